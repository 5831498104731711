# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Natural batching: what comes while a batch is under way leaves together in the next one.

Writers of one base share a transaction and its fsync (:class:`Group`); requests to one service share a round
trip (:class:`Batcher`). There is no thread and no timer: the first to come leads, takes what is queued behind it
and runs everything at once; those who come meanwhile queue, and one of them leads the next batch. Nobody ever
waits for a batch to fill: a lone caller never waits and never switches threads; under load batches grow until
what they are made for keeps up.

>>> batcher = Batcher(lambda items: [item * 2 for item in items])
>>> batcher.submit(21)
42

Guarantees: a member gets its answer only after the batch that holds it is over, or its own error; members run
in the order of arrival; a member that waited for too long leaves with 503 without having run (once its batch
has begun it waits for the outcome, so that no answer is ever a guess). A green thread that is killed, while it
waits, when it has just been told to lead, or while it leads, takes nobody with it: another leads, and the
members of its batch get an error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from oio.common import status
from oio.common.exceptions import OioException
from oio.common.status import StatusError

#: Weight of one batch at most: bounds how long the first member waits for the last one.
BATCH_MAX = 128
#: Items of one request at most: enough for every green thread of an agent.
ITEMS_MAX = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


class Member:
    """One piece of work, then its result or its error.

    :param work: a function, or data: what ``run_batch`` understands.
    :param relaxed: a remark for ``run_batch``: the outcome needs not be durable.
    :param weight: its part of the largest weight of a batch.
    """

    __slots__ = ("error", "gate", "leads", "relaxed", "result", "weight", "work")

    def __init__(self, work: Any, relaxed: bool = False, weight: int = 1) -> None:
        self.work = work
        self.relaxed = relaxed
        self.weight = weight
        self.result: Any = None
        self.error: BaseException | None = None
        self.gate: threading.Lock | None = None
        self.leads = False


class Group:
    """Those who share batches.

    :param run_batch: must set the result or the error of every member, and must not raise (but to be killed).
    :param queue_max: members that may wait, None for any number; beyond: 509.
    :param answers_first: release the members of a batch before the next leader. Green threads then submit again
        before it leads: larger batches. Else the next batch overlaps with the answers to this one.
    :param gathers: let the green threads that are ready to run join before a batch begins: those who were woken
        together send one batch, not one alone and then the others.
    """

    def __init__(
        self,
        run_batch: Callable[[list[Member]], None],
        *,
        batch_max: int = BATCH_MAX,
        queue_max: int | None = None,
        answers_first: bool = False,
        gathers: bool = False,
    ) -> None:
        self._run_batch = run_batch
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._answers_first = answers_first
        self._mutex = threading.Lock()
        self._queue: deque[Member] = deque()
        self._led = False
        self._gathers = gathers

    def submit(self, member: Member, timeout_s: float | None) -> Any:
        """Run a member in some batch; returns its result or raises its error."""
        with self._mutex:
            lead = not self._led
            if lead:
                self._led = True
            else:
                if self._queue_max is not None and len(self._queue) >= self._queue_max:
                    raise StatusError(
                        status.EXCESSIVE_LOAD, f"{len(self._queue)} wait for their turn, which is the limit"
                    )
                member.gate = gate = threading.Lock()
                gate.acquire()
                self._queue.append(member)
        if not lead:
            try:
                lead = self._wait(member, gate, timeout_s)
            except BaseException:
                self._abandon(member)
                raise
        if lead:
            self._lead(member)
        if member.error is not None:
            raise member.error
        return member.result

    def try_borrow(self) -> bool:
        """Take the place of the leader when nobody has it; :meth:`give_back` must follow, soon."""
        with self._mutex:
            if self._led:
                return False
            self._led = True
            return True

    def give_back(self) -> None:
        """Leave the place of the leader to the first who waits."""
        with self._mutex:
            heir = self._queue.popleft() if self._queue else None
            if heir is None:
                self._led = False
            else:
                heir.leads = True
        if heir is not None and heir.gate is not None:
            heir.gate.release()

    def _wait(self, member: Member, gate: threading.Lock, timeout_s: float | None) -> bool:
        """Wait for the outcome, or for the leadership (True)."""
        if not gate.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s)):
            with self._mutex:
                if member in self._queue:
                    self._queue.remove(member)
                    raise StatusError(status.UNAVAILABLE, f"no turn within {timeout_s:g} s")
            # Taken by a leader (or made one) between the timeout and the mutex: the gate will open.
            gate.acquire()
        return member.leads

    def _abandon(self, member: Member) -> None:
        """Whoever waited for this one is gone, killed perhaps."""
        with self._mutex:
            if member in self._queue:
                self._queue.remove(member)
        # Told to lead, but did not; one that a leader has taken runs without anybody to tell.
        if member.leads:
            self.give_back()

    def _lead(self, first: Member) -> None:
        if self._gathers:
            try:
                time.sleep(0)
            except BaseException:  # this green thread is being killed
                self.give_back()
                raise
        queue = self._queue
        batch = [first]
        if queue:
            room = self._batch_max - first.weight
            with self._mutex:
                while queue and (room := room - queue[0].weight) >= 0:
                    batch.append(queue.popleft())
        try:
            self._run_batch(batch)
        except BaseException:
            for member in batch:
                if member.error is None:
                    member.error = StatusError(status.INTERNAL_ERROR, "interrupted, nobody knows how far")
            raise
        finally:
            if not self._answers_first:
                self.give_back()
            for member in batch:
                if member is not first and member.gate is not None:
                    member.gate.release()
            if self._answers_first:
                self.give_back()


class Batcher(Generic[Item, Result]):
    """Sends together what concurrent threads, green or not, submit.

    :param send: given the items, returns the results in the same order; a result that is an exception is
        raised to the one who submitted the item. What it raises is raised to all of them.
    :param batch_max: most items that ``send`` is given at once.
    :param gathers: as for :class:`Group`.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Sequence[Result | BaseException]],
        batch_max: int = ITEMS_MAX,
        gathers: bool = False,
    ) -> None:
        self._send = send
        self._group = Group(self._run_batch, batch_max=batch_max, answers_first=True, gathers=gathers)

    def submit(self, item: Item) -> Result:
        """Have an item sent, and wait for its result."""
        result: Result = self._group.submit(Member(item), None)
        return result

    def _run_batch(self, batch: list[Member]) -> None:
        try:
            results = self._send([member.work for member in batch])
            if len(results) != len(batch):
                raise OioException(f"{len(results)} results for {len(batch)} items")
        except Exception as exc:
            for member in batch:
                member.error = exc
            return
        except BaseException as exc:
            # This thread is being killed: the others get something that they can treat as a failure.
            for member in batch:
                member.error = OioException(f"interrupted: {exc!r}")
            raise
        for member, result in zip(batch, results, strict=True):
            if isinstance(result, BaseException):
                member.error = result
            else:
                member.result = result
