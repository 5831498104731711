# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Group commit: concurrent writers of one base share one transaction and one fsync.

The first writer to come leads: it takes what is queued behind it, runs everything in one transaction and
commits once. Those who come meanwhile queue, and one of them leads the next batch. A lone writer never
waits and never switches threads.

Guarantees: a member gets its answer only after the commit that holds its change is done, or its own error;
members run in the order of arrival; a member that waited for too long leaves with 503 without having run
(once its batch has begun it waits for the outcome, so that no answer is ever a guess).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from oio.common import status
from oio.common.status import StatusError

#: Weight of one batch at most: bounds how long the first member waits for the last one.
BATCH_MAX = 128


class Member:
    """One write: the function to run, then its result or its error.

    :param weight: its part of the largest weight of a batch.
    """

    __slots__ = ("error", "fn", "gate", "leads", "relaxed", "result", "weight")

    def __init__(self, fn: Callable[[Any], Any], relaxed: bool = False, weight: int = 1) -> None:
        self.fn = fn
        self.relaxed = relaxed
        self.weight = weight
        self.result: Any = None
        self.error: BaseException | None = None
        self.gate: threading.Lock | None = None
        self.leads = False


class CommitGroup:
    """The queue of writers of one base.

    ``run_batch(members)`` must set the result or the error of every member, and must not raise.
    """

    def __init__(
        self, run_batch: Callable[[list[Member]], None], queue_max: int, batch_max: int = BATCH_MAX
    ) -> None:
        self._run_batch = run_batch
        self._queue_max = queue_max
        self._batch_max = batch_max
        self._mutex = threading.Lock()
        self._queue: deque[Member] = deque()
        self._led = False

    def submit(self, member: Member, timeout_s: float) -> Any:
        """Run a member in some batch; returns its result or raises its error."""
        with self._mutex:
            lead = not self._led
            if lead:
                self._led = True
            else:
                if len(self._queue) >= self._queue_max:
                    raise StatusError(
                        status.EXCESSIVE_LOAD,
                        f"{len(self._queue)} writes wait for this base, which is the limit",
                    )
                member.gate = gate = threading.Lock()
                gate.acquire()
                self._queue.append(member)
        if not lead:
            lead = self._wait(member, gate, timeout_s)
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

    def _wait(self, member: Member, gate: threading.Lock, timeout_s: float) -> bool:
        """Wait for the outcome, or for the leadership (True)."""
        if not gate.acquire(timeout=max(0.0, timeout_s)):
            with self._mutex:
                if member in self._queue:
                    self._queue.remove(member)
                    raise StatusError(
                        status.UNAVAILABLE, f"no turn to write to this base within {timeout_s:g} s"
                    )
            # Taken by a leader (or made one) between the timeout and the mutex: the gate will open.
            gate.acquire()
        return member.leads

    def _lead(self, first: Member) -> None:
        queue = self._queue
        batch = [first]
        if queue:
            room = self._batch_max - first.weight
            with self._mutex:
                while queue and (room := room - queue[0].weight) >= 0:
                    batch.append(queue.popleft())
        try:
            self._run_batch(batch)
        finally:
            # The next leader is released before the members of this batch: its transaction overlaps
            # with their answers.
            self.give_back()
            for member in batch:
                if member is not first and member.gate is not None:
                    member.gate.release()
