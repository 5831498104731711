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
be delivered: the caller keeps it and puts it again. The one exception is :class:`EventsRefused`, which tells
the events that no further try can help.

URLs: ``spool:///directory``, ``redis://host:port/db``, ``redis+sentinel://host:port,host:port/master/db``, and
``beanstalk://host:port;beanstalk://host:port...`` (several servers share the events, and stand in for each
other). The consuming side is :mod:`oio.event.source`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

DEFAULT_TUBE = "oio"

# Larger than any event: an event carries at most 16 chunks, or the properties of one object.
EVENT_MAX_BYTES = 16 << 20

# What stands before the address of a URL: user and password.
_USER = re.compile(r"://[^/?;]*@")
# What cannot stand in the name of a directory.
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


# Reads the text of one option of a URL. :raises ValueError: when it makes no sense.
Option = Callable[[str], Any]


class QueueError(Exception):
    """Raised when a queue could not take an event; the caller keeps it."""


class QueueFull(QueueError):
    """Raised when a queue holds as much as it may: its consumer is late or dead."""


class QueueTimeout(QueueError):
    """Raised when a queue did not confirm in time."""


class EventsRefused(QueueError):
    """Raised when a queue will never take some events (too large); the others of the call were put."""

    def __init__(self, message: str, events: Sequence[bytes]) -> None:
        super().__init__(message, events)
        self.events = list(events)

    def __str__(self) -> str:
        return str(self.args[0])


class Closable(ABC):
    """Closed at the end of a ``with``."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EventQueue(Closable):
    """A durable queue; thread-safe."""

    def put(self, event: bytes, timeout_s: float | None = None) -> None:
        """Put one event. :raises QueueError: when it is not known to be durable."""
        self.put_many([event], timeout_s)

    @abstractmethod
    def put_many(
        self, events: Sequence[bytes], timeout_s: float | None = None, keys: Sequence[str] | None = None
    ) -> None:
        """Put several events for the price of one.

        :param keys: one per event. Events of the same key keep their order: they go to the same server while it
            is up. Without keys, the events of one call stay together.
        :raises EventsRefused: when some can never be put; the others were.
        :raises QueueError: as ``put``, for the events as a whole.
        """

    @abstractmethod
    def depth(self) -> int:
        """Events that were put and not consumed yet (approximate while things move)."""


QueueFactory = Callable[[str, str], EventQueue]
_factories: dict[str, QueueFactory] = {}


def register_scheme(scheme: str, factory: QueueFactory) -> None:
    """Make ``open_queue`` give URLs of a scheme to ``factory``, called with the URL and the tube."""
    _factories[scheme] = factory


def open_queue(url: str, tube: str = DEFAULT_TUBE) -> EventQueue:
    """Open the queue at ``url``: one URL, or several of the same scheme separated by ``;``.

    Servers are not asked for anything yet: one that is down is found out by the first ``put``.

    :param tube: queues of different tubes do not see each other's events.
    :raises ValueError: when nothing handles its scheme, or it is malformed.
    """
    scheme, separator, _ = url.strip().partition("://")
    factory = _factories.get(scheme)
    if factory is None or not separator:
        known = ", ".join(sorted(_factories))
        raise ValueError(f"{shown_url(url)!r} is not the URL of a queue (known schemes: {known})")
    return factory(url.strip(), tube)


def split_urls(url: str) -> list[str]:
    """The single URLs of a list separated by ``;``.

    >>> split_urls("beanstalk://10.0.0.1:6014; beanstalk://10.0.0.2:6014;")
    ['beanstalk://10.0.0.1:6014', 'beanstalk://10.0.0.2:6014']
    """
    return [part.strip() for part in url.split(";") if part.strip()]


def shown_url(url: str) -> str:
    """A URL, or a list of them, as logs may show it: without passwords.

    >>> shown_url("redis://:secret@127.0.0.1:6379/0?timeout_s=1")
    'redis://127.0.0.1:6379/0?timeout_s=1'
    """
    return _USER.sub("://", url)


def url_options(url: str, known: Mapping[str, Option]) -> tuple[str, dict[str, Any]]:
    """Cut the query string off a URL, converted.

    >>> url_options("redis://h:1/0?timeout_s=2", {"timeout_s": float})
    ('redis://h:1/0', {'timeout_s': 2.0})

    :raises ValueError: on an unknown option, or a value that cannot be converted.
    """
    address, _, query = url.partition("?")
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        convert = known.get(name)
        if convert is None:
            raise ValueError(f"{shown_url(url)!r}: unknown option {name}")
        try:
            options[name] = convert(text)
        except ValueError as exc:
            raise ValueError(f"{shown_url(url)!r}: option {name}: {exc}") from exc
    return address, options


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


def _spool(url: str, tube: str) -> EventQueue:
    from oio.event.transport.spool import spool_from_url

    return spool_from_url(url, tube)


def _redis(url: str, tube: str) -> EventQueue:
    from oio.event.transport.redis_queue import redis_queue_from_url

    return redis_queue_from_url(url, tube)


def _beanstalk(url: str, tube: str) -> EventQueue:
    from oio.event.transport.beanstalk_queue import beanstalk_queue_from_url

    return beanstalk_queue_from_url(url, tube)


register_scheme("spool", _spool)
register_scheme("redis", _redis)
register_scheme("redis+sentinel", _redis)
register_scheme("beanstalk", _beanstalk)
