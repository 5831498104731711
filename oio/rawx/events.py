# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Telling the rest of the cluster that a chunk appeared or went.

Delivery is asynchronous and best effort: requests never wait for the queue. Events wait in a
bounded memory; when it is full, or when the queue stays unreachable for about a second, the
event is written to the log as ``event <json>`` and dropped. The reverse directory is repaired by
the indexer when that happens.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from oio.rawx.metadata import ChunkMeta

CHUNK_NEW = "storage.chunk.new"
CHUNK_DELETED = "storage.chunk.deleted"

MEMORY_EVENTS_MAX = 32768
BATCH_EVENTS_MAX = 4096
# Events wait for each other this long, so that a busy service flushes a few times per second, not per chunk.
LINGER_S = 0.2
# How long an unreachable queue is retried before its events are dropped, and the pace.
GIVE_UP_S = 1.0
RETRY_S = 0.2

logger = logging.getLogger("oio.rawx")


class Queue(Protocol):
    """What is needed of an event queue."""

    def put_many(self, events: list[bytes]) -> None:
        """Add events; they are safe when it returns."""

    def close(self) -> None:
        """Release the resources."""


class EventSender:
    """Hands events to queues, from one thread per queue; each event goes to one queue only."""

    def __init__(
        self,
        openers: list[Callable[[], Queue]],
        volume_id: str,
        service_id: str,
        capacity: int = MEMORY_EVENTS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volume_id = volume_id
        self._service_id = service_id
        self._capacity = capacity
        self._clock = clock
        self._waiting: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(opener,), name=f"rawx-events-{i}", daemon=True)
            for i, opener in enumerate(openers)
        ]
        for thread in self._threads:
            thread.start()

    def emit(self, kind: str, meta: ChunkMeta, reqid: str, whole: bool) -> None:
        """Queue one event without waiting. `whole` tells every field, not only whose chunk it is."""
        if not self._threads:
            return
        item = (kind, time.time(), reqid, meta, whole)
        if self._waiting.qsize() >= self._capacity:
            self._drop([self._encode(item)], "too many events are waiting")
            return
        self._waiting.put(item)

    def close(self, timeout_s: float = 5.0) -> None:
        """Hand over what waits, within a bound; what remains is logged."""
        self._stopping.set()
        for _ in self._threads:
            self._waiting.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = [item for item in self._take_ready() if item is not None]
        self._drop([self._encode(item) for item in left], "the service stops")

    def _run(self, opener: Callable[[], Queue]) -> None:
        target: Queue | None = None
        running = True
        while running:
            first = self._waiting.get()
            self._stopping.wait(LINGER_S)
            items = [first, *self._take_ready(BATCH_EVENTS_MAX - 1)]
            if None in items:
                running = False
                # The mark of another thread is put back; events that follow are this one's.
                for _ in range(items.count(None) - 1):
                    self._waiting.put(None)
            batch = [self._encode(item) for item in items if item is not None]
            if batch:
                target = self._hand_over(opener, target, batch)
        if target is not None:
            target.close()

    def _take_ready(self, limit: int | None = None) -> list[tuple[Any, ...] | None]:
        ready: list[tuple[Any, ...] | None] = []
        while limit is None or len(ready) < limit:
            try:
                ready.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return ready

    def _hand_over(self, opener: Callable[[], Queue], target: Queue | None, batch: list[bytes]) -> Queue | None:
        """Give a batch to the queue, again for a while when it fails; gives the queue if it works.

        A batch that failed may have been taken in part: events can be seen twice.
        """
        deadline = self._clock() + GIVE_UP_S
        while True:
            try:
                if target is None:
                    target = opener()
                target.put_many(batch)
                return target
            except Exception as err:  # whatever a queue raises, the event ends in the log
                if target is not None:
                    _close_quietly(target)
                    target = None
                if self._clock() >= deadline:
                    self._drop(batch, f"{type(err).__name__}: {err}")
                    return None
            self._stopping.wait(RETRY_S)

    def _encode(self, item: tuple[Any, ...]) -> bytes:
        kind, when, reqid, meta, whole = item
        data = {
            "volume_id": self._volume_id,
            "volume_service_id": self._service_id,
            "full_path": meta.fullpath,
            "container_id": meta.container_id,
            "content_path": _utf8(meta.content_path),
            "content_version": meta.content_version,
            "content_id": meta.content_id,
            "content_storage_policy": _utf8(meta.policy) if whole else "",
            "metachunk_hash": meta.metachunk_hash if whole else "",
            "metachunk_size": meta.metachunk_size if whole else "",
            "chunk_id": meta.chunk_id,
            "content_chunk_method": _utf8(meta.method) if whole else "",
            "chunk_position": _utf8(meta.position) if whole else "",
            "chunk_hash": meta.chunk_hash if whole else "",
            "chunk_size": meta.chunk_size if whole else "",
            "oio_version": meta.version if whole else "",
        }
        event = {
            "event": kind,
            "when": int(when * 1_000_000),
            "request_id": reqid or "-",
            "data": data,
        }
        return json.dumps(event).encode("ascii") + b"\n"

    def _drop(self, events: list[bytes], reason: str) -> None:
        if events:
            logger.error("%d events dropped: %s", len(events), reason)
        for event in events:
            logger.error("event %s", event.decode("ascii").rstrip())


def _utf8(text: str) -> str:
    """Texts of headers are latin-1 views of bytes; events show them as the UTF-8 they mostly are."""
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "replace")


def _close_quietly(target: Queue) -> None:
    try:
        target.close()
    except Exception as err:  # it already failed once, and that is reported
        logger.debug("closing a broken event queue: %s", err)
