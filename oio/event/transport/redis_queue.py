# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The producing side of a tube in Redis (see :mod:`oio.event.transport.redis_tube`).

Durable on return as the server is: with ``appendonly yes``, what a killed server had answered is there when it
comes back; with ``appendfsync always``, after a loss of power too. With ``?replicas=N`` an event counts as put
once N replicas have it, so that it outlives a change of master.

A batch is put by one script, in order; a large one is cut, so that others are served in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from oio.event.queue import (
    DEFAULT_TUBE,
    EVENT_MAX_BYTES,
    EventQueue,
    EventsRefused,
    QueueError,
    QueueFull,
    QueueTimeout,
)
from oio.event.transport.redis_tube import PUT, TUBES_KEY, RedisTube

# One call of the script: about a millisecond of the server.
PUT_EVENTS_MAX = 250
PUT_BYTES_MAX = 1 << 20


def redis_queue_from_url(url: str, tube: str = DEFAULT_TUBE) -> RedisQueue:
    """Queue of a tube. :raises ValueError: when the URL is malformed."""
    return RedisQueue(url, tube)


class RedisQueue(EventQueue):
    """Puts events into a tube; usable after a fork."""

    def __init__(self, url: str, tube: str = DEFAULT_TUBE) -> None:
        """See :class:`oio.event.transport.redis_tube.RedisTube`. :raises ValueError: when the URL is malformed."""
        self._tube = RedisTube(url, tube)
        self._closed = False

    def put_many(
        self, events: Sequence[bytes], timeout_s: float | None = None, keys: Sequence[str] | None = None
    ) -> None:
        """Put events, in order. ``timeout_s`` is looked at between exchanges, whose own limit is in the URL."""
        if self._closed:
            raise QueueError(f"{self._tube.shown} is closed")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        refused = [event for event in events if not 0 < len(event) <= EVENT_MAX_BYTES]
        if refused:
            events = [event for event in events if 0 < len(event) <= EVENT_MAX_BYTES]
        for batch in _batches(events):
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueTimeout(f"{self._tube.shown} is slow")
            self._put(batch)
        if refused:
            raise EventsRefused(f"{len(refused)} events are empty or above {EVENT_MAX_BYTES} bytes", refused)

    def depth(self) -> int:
        """Jobs that are ready, reserved or delayed. :raises QueueError: when the server does not tell."""
        from redis.exceptions import RedisError

        try:
            return sum(self._tube.counts()[:3])
        except (RedisError, OSError) as exc:
            raise QueueError(f"{self._tube.shown}: {exc}") from exc

    def close(self) -> None:
        """Close the connections; idempotent."""
        self._closed = True
        self._tube.close()

    def _put(self, batch: Sequence[bytes]) -> None:
        from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
        from redis.exceptions import TimeoutError as RedisTimeout

        tube = self._tube
        try:
            reached = tube.run_and_wait(PUT, (tube.stream, TUBES_KEY), tube.tube, tube.jobs_max, *batch)
        except RedisTimeout as exc:
            raise QueueTimeout(f"{tube.shown}: {exc}") from exc
        except OutOfMemoryError as exc:
            raise QueueFull(f"{tube.shown}: {exc}") from exc
        except ResponseError as exc:
            kind = QueueFull if str(exc).startswith("FULL") else QueueError
            raise kind(f"{tube.shown}: {exc}") from exc
        except (RedisError, OSError) as exc:
            raise QueueError(f"{tube.shown}: {exc}") from exc
        if reached < tube.replicas:
            raise QueueTimeout(f"{tube.shown}: {reached} of {tube.replicas} replicas have the events")


def _batches(events: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    start = size = 0
    for number, event in enumerate(events):
        if number > start and (number - start == PUT_EVENTS_MAX or size + len(event) > PUT_BYTES_MAX):
            yield events[start:number]
            start, size = number, 0
        size += len(event)
    if start < len(events):
        yield events[start:]
