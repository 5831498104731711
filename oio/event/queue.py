# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where services put their events: one interface, and a table of implementations by URL scheme.

>>> import tempfile
>>> directory = tempfile.mkdtemp()
>>> with open_queue(f"spool://{directory}") as queue:
...     queue.put(b'{"event": "storage.content.new", "when": 1}')
...     queue.depth()
1

An event is the bytes of one JSON object ``{"event", "when", "url", "request_id", "data"}``. When ``put``
returns, the event is durable and will be delivered at least once. When it raises, the event may or may not
be delivered: the caller keeps it and puts it again.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

# Larger than any event: an event carries at most 16 chunks, or the properties of one object.
EVENT_MAX_BYTES = 16 << 20

# What cannot stand in the name of a directory.
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


class QueueError(Exception):
    """Raised when a queue could not take an event; the caller keeps it."""


class QueueFull(QueueError):
    """Raised when a queue holds as much as it may: its consumer is late or dead."""


class QueueTimeout(QueueError):
    """Raised when a queue did not confirm in time."""


class EventQueue(ABC):
    """A durable queue; thread-safe."""

    def put(self, event: bytes, timeout_s: float | None = None) -> None:
        """Put one event. :raises QueueError: when it is not known to be durable."""
        self.put_many([event], timeout_s)

    @abstractmethod
    def put_many(self, events: Sequence[bytes], timeout_s: float | None = None) -> None:
        """Put several events, in order, for the price of one. :raises QueueError: as ``put``."""

    @abstractmethod
    def depth(self) -> int:
        """Events that were put and not consumed yet (approximate while things move)."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


QueueFactory = Callable[[str], EventQueue]
_factories: dict[str, QueueFactory] = {}


def register_scheme(scheme: str, factory: QueueFactory) -> None:
    """Make ``open_queue`` give URLs of a scheme to ``factory``."""
    _factories[scheme] = factory


def open_queue(url: str) -> EventQueue:
    """Open the queue at ``url``. :raises ValueError: when nothing handles its scheme."""
    scheme, separator, _ = url.partition("://")
    factory = _factories.get(scheme)
    if factory is None or not separator:
        known = ", ".join(sorted(_factories))
        raise ValueError(f"{url!r} is not the URL of a queue (known schemes: {known})")
    return factory(url)


def producer_url(url: str, service_type: str, service_id: str) -> str:
    """URL of the queue of one producer, out of the one that a host or a namespace configures.

    A spool has a single writer: the URL of a spool names a directory with one sub-directory per producer.

    >>> producer_url("spool:///var/spool/oio?fsync=0", "rawx", "10.0.0.1:6200")
    'spool:///var/spool/oio/rawx-10.0.0.1_6200?fsync=0'
    """
    if not url.startswith("spool://"):
        return url
    path, mark, query = url.partition("?")
    name = _UNSAFE.sub("_", f"{service_type}-{service_id}")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def _spool(url: str) -> EventQueue:
    from oio.event.spool import spool_from_url

    return spool_from_url(url)


register_scheme("spool", _spool)
