# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where consumers take events from: the other end of :mod:`oio.event.queue`.

>>> source = open_source("redis://127.0.0.1:6379/0")         # doctest: +SKIP
>>> while job := source.reserve(timeout_s=1.0):              # doctest: +SKIP
...     handle(job.body)
...     source.delete(job)
>>> source.close()                                           # doctest: +SKIP

What a job goes through::

    put ──► ready ──reserve──► reserved ──delete──► gone
              ▲                 │  │  └──release──► (after the delay) ready
              │   TTR passed,   │  │
              ├── close, death ─┘  └──bury──► buried ──kick──► ready
              └────────────────────────────────────────┘

Guarantees: an event that was put is delivered until it is deleted, at least once. A job is reserved by one
consumer at a time until it is settled (deleted, released or buried) or its time to run (TTR) is over; then it is
not its consumer's any more, and settling it changes nothing and returns False. A consumer that dies gives its jobs
back: at once (beanstalk), when another one begins on this host (spool, redis), when the TTR is over at the latest.

No order is promised: jobs are delivered about in the order in which they became ready.

All methods may be called by many threads at once, real or green. A job is best settled by the thread that
reserved it. Errors of the connection are raised as :class:`SourceError`; the next call connects again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oio.event.queue import DEFAULT_TUBE, Closable, shown_url, split_urls

__all__ = [
    "DEFAULT_TTR_S", "EventSource", "Job", "SourceClosed", "SourceError", "TubeStats", "open_source",
    "register_source", "split_urls",
]  # fmt: skip

# Seconds in which a consumer must settle a job, or say with ``touch`` that it is still at it.
DEFAULT_TTR_S = 120.0


class SourceError(Exception):
    """Raised when the source cannot be reached or does not answer; the next call connects again."""


class SourceClosed(SourceError):
    """Raised by calls on a source that was closed (also by those that were waiting for a job)."""


class Job:
    """One delivery of one event.

    :ivar id: same in all deliveries of the event; ids of later events are greater numbers.
    :ivar body: the event.
    :ivar token: what the source needs to settle this delivery; nobody else's business.
    """

    __slots__ = ("body", "id", "token")

    def __init__(self, id: str, body: bytes, token: Any = None) -> None:
        self.id = id
        self.body = body
        self.token = token

    def __repr__(self) -> str:
        return f"Job({self.id!r}, {self.body[:100]!r})"


@dataclass(frozen=True)
class TubeStats:
    """Jobs of a tube, by state (see the picture above)."""

    ready: int = 0
    reserved: int = 0
    delayed: int = 0
    buried: int = 0


class EventSource(Closable):
    """A tube of one server, seen by its consumers."""

    #: URL that the source was opened with.
    url: str
    #: Name of the tube.
    tube: str
    #: How long the first jobs of a flow may wait for the next ones, so that fewer exchanges carry them all; 0: not
    #: at all. Sources whose consumers share nothing need not care.
    gather_s: float = 0.0

    @abstractmethod
    def reserve(self, timeout_s: float) -> Job | None:
        """Take a job, waiting ``timeout_s`` for one at most; None when there was none.

        :raises SourceError: when the server cannot be asked.
        """

    @abstractmethod
    def delete(self, job: Job) -> bool:
        """The event is handled. False when the job is not ours any more. :raises SourceError: as reserve."""

    @abstractmethod
    def release(self, job: Job, delay_s: float = 0) -> bool:
        """Have the event delivered again, ``delay_s`` from now. False, and raises, as delete."""

    @abstractmethod
    def bury(self, job: Job) -> bool:
        """Put the event aside until somebody kicks it. False, and raises, as delete."""

    @abstractmethod
    def touch(self, job: Job) -> bool:
        """Start the time to run anew. False, and raises, as delete."""

    @abstractmethod
    def attempts(self, job: Job) -> int:
        """Deliveries of this event, this one included (1 at first). May cost a round trip; raises as reserve."""

    @abstractmethod
    def stats(self) -> TubeStats:
        """Jobs by state. :raises SourceError: as reserve."""

    @abstractmethod
    def kick(self, limit: int) -> int:
        """Make at most ``limit`` buried jobs ready, or delayed ones when none is buried; returns how many."""

    @abstractmethod
    def close(self) -> None:
        """Give back, without delay, what is reserved and not settled; wake up those who wait. Idempotent."""


SourceFactory = Callable[[str, str, float], EventSource]
_factories: dict[str, SourceFactory] = {}


def register_source(scheme: str, factory: SourceFactory) -> None:
    """Make ``open_source`` give URLs of a scheme to ``factory``, called with URL, tube and TTR."""
    _factories[scheme] = factory


def open_source(url: str, tube: str = DEFAULT_TUBE, *, ttr_s: float = DEFAULT_TTR_S) -> EventSource:
    """Open one source, of one server; a list of URLs is cut by :func:`split_urls` first.

    The server is not asked for anything yet: one that is down is found out by the first call.

    :param ttr_s: time to run of reserved jobs (beanstalk: the producer's choice holds instead).
    :raises ValueError: when nothing handles the scheme of the URL, or it is malformed.
    """
    scheme, separator, _ = url.strip().partition("://")
    factory = _factories.get(scheme)
    if factory is None or not separator or ";" in url:
        known = ", ".join(sorted(_factories))
        raise ValueError(f"{shown_url(url)!r} is not the URL of one source of events (known schemes: {known})")
    return factory(url.strip(), tube, ttr_s)


def _spool(url: str, tube: str, ttr_s: float) -> EventSource:
    from oio.event.transport.spool_source import SpoolSource

    return SpoolSource(url, tube)


def _redis(url: str, tube: str, ttr_s: float) -> EventSource:
    from oio.event.transport.redis_source import RedisSource

    return RedisSource(url, tube, ttr_s=ttr_s)


def _beanstalk(url: str, tube: str, ttr_s: float) -> EventSource:
    from oio.event.transport.beanstalk_source import BeanstalkSource

    return BeanstalkSource(url, tube)


register_source("spool", _spool)
register_source("redis", _redis)
register_source("redis+sentinel", _redis)
register_source("beanstalk", _beanstalk)
