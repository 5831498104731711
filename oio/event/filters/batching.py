# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Natural batching: what comes while a request is on its way leaves together in the next one.

Nobody ever waits for a batch to fill. When nothing is on its way, an item leaves at once, alone; under load, the
batches grow until the service keeps up. There is no thread: a caller that finds nothing on its way sends, and
hands over to one of those who came meanwhile.

>>> batcher = Batcher(lambda items: [item * 2 for item in items])
>>> batcher.submit(21)
42
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from oio.common.exceptions import (
    ClientException,
    MethodNotAllowed,
    NotFound,
    OioException,
    StatusMessageException,
    from_status,
)
from oio.common.utils import request_id

# Enough for every green thread of an agent; keeps a request of the largest batch below 100 KiB.
BATCH_MAX = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Entry(Generic[Item, Result]):
    """An item that waits; ``gate`` opens when it is answered, or when its thread has to send (``lead``)."""

    __slots__ = ("done", "error", "gate", "item", "lead", "result")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.done = False
        self.lead = False
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.gate = threading.Lock()
        self.gate.acquire()


class Batcher(Generic[Item, Result]):
    """Groups what concurrent threads, green or not, submit.

    :param send: given the items, returns the results in the same order; a result that is an exception is
        raised to the one who submitted the item. What it raises is raised to all of them.
    :param batch_max: most items that ``send`` is given at once.
    """

    def __init__(
        self, send: Callable[[list[Item]], Sequence[Result | BaseException]], batch_max: int = BATCH_MAX
    ) -> None:
        self._send = send
        self._batch_max = batch_max
        self._lock = threading.Lock()
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._sending = False

    def submit(self, item: Item) -> Result:
        """Have an item sent, and wait for its result."""
        entry: _Entry[Item, Result] = _Entry(item)
        with self._lock:
            self._waiting.append(entry)
            lead, self._sending = not self._sending, True
        if not lead:
            try:
                entry.gate.acquire()
            except BaseException:
                self._abandon(entry)
                raise
        if not entry.done:
            self._lead(entry)
        if entry.error is not None:
            raise entry.error
        return entry.result  # type: ignore[return-value]

    def _lead(self, own: _Entry[Item, Result]) -> None:
        """Send one batch, which holds ``own``, then hand over."""
        with self._lock:
            # The one who leads came first of all that wait, so its own item is in the batch.
            size = min(len(self._waiting), self._batch_max)
            batch = [self._waiting.popleft() for _ in range(size)]
        try:
            results = self._send([entry.item for entry in batch])
            if len(results) != len(batch):
                raise OioException(f"{len(results)} results for {len(batch)} items")
            for entry, result in zip(batch, results, strict=True):
                if isinstance(result, BaseException):
                    entry.error = result
                else:
                    entry.result = result
        except Exception as exc:
            for entry in batch:
                entry.error = exc
        except BaseException as exc:
            # This thread is being killed: the others get something that they can treat as a failure.
            for entry in batch:
                entry.error = OioException(f"interrupted: {exc!r}")
            own.error = exc
        finally:
            for entry in batch:
                entry.done = True
                if entry is not own:
                    entry.gate.release()
            self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting[0].lead = True
                self._waiting[0].gate.release()
            else:
                self._sending = False

    def _abandon(self, entry: _Entry[Item, Result]) -> None:
        """The thread that submitted ``entry`` is being killed while it waits.

        When it had just been told to lead, another must: until it does, it is still first in line.
        """
        with self._lock:
            if entry not in self._waiting:
                return  # on its way, or answered
            self._waiting.remove(entry)
        if entry.lead:
            self._hand_over()


class BatchingAccountClient:
    """The updates of containers that concurrent threads tell the account service, grouped.

    :param client: an ``AccountClient``.
    :param options: keywords of every request, such as ``read_timeout``.
    """

    def __init__(self, client: Any, batch_max: int = BATCH_MAX, **options: Any) -> None:
        self._client = client
        self._options = options
        self._batcher: Batcher[tuple[str, str, dict[str, Any], str | None], None] = Batcher(self._send, batch_max)
        # False once the service told that it takes updates only one by one.
        self._grouped = True

    def container_update(
        self, account: str, container: str, metadata: dict[str, Any], reqid: str | None = None
    ) -> None:
        """Tell the state of a container.

        :raises Conflict: when it is older than what is known.
        :raises OioException: as ``AccountClient.container_update``.
        """
        self._batcher.submit((account, container, metadata, reqid))

    def _send(self, items: list[tuple[str, str, dict[str, Any], str | None]]) -> list[Any]:
        if self._grouped and len(items) > 1:
            body = [{**metadata, "account": account, "name": name} for account, name, metadata, _ in items]
            try:
                replies = self._client.container_update_many(
                    body, reqid=request_id("account-update-"), **self._options
                )
                return [_outcome(reply) for reply in replies]
            except (NotFound, MethodNotAllowed):
                self._grouped = False
        return [self._send_one(*item) for item in items]

    def _send_one(
        self, account: str, container: str, metadata: dict[str, Any], reqid: str | None
    ) -> OioException | None:
        try:
            self._client.container_update(account, container, metadata, reqid=reqid, **self._options)
        except OioException as exc:
            return exc
        return None


def _outcome(reply: dict[str, Any]) -> StatusMessageException | None:
    status = int(reply["status"])
    if status < 400:
        return None
    error: ClientException = from_status(status, str(reply.get("message") or "n/a"))
    return error
