# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""How far behind the events of a queue are: counts, and the age of the one that has waited longest.

Nothing is taken from the queue. The age comes from the date that the event bears, as far as the queue lets itself
be looked into: Redis shows its first jobs, beanstalkd its next one, spools none.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from oio.common.exceptions import OioException
from oio.event.beanstalk import Beanstalk, BeanstalkError
from oio.event.client import EventClient
from oio.event.queue import DEFAULT_TUBE, shown_url

# Date of an event, in microseconds. Bodies are not parsed: they may be large, and many.
_WHEN = re.compile(rb'"when"\s*:\s*([0-9]{10,17})')
# Jobs of a stream, and delayed ones, that are looked at: those that came back are behind younger ones.
JOBS_SEEN = 32


@dataclass(frozen=True)
class Backlog:
    """Events of a tube. ``oldest_s`` is None when there is none, or when the queue does not tell."""

    queue: str
    tube: str
    ready: int
    reserved: int
    delayed: int
    buried: int
    oldest_s: float | None

    @property
    def pending(self) -> int:
        """Events that are still to be handled; buried ones wait for a person."""
        return self.ready + self.reserved + self.delayed


def read_backlog(url: str, tube: str = DEFAULT_TUBE, timeout_s: float = 4.0) -> Backlog:
    """Look at a tube of one queue.

    :raises OioException: when it cannot be asked.
    """
    kind = urlsplit(url).scheme.partition("+")[0]
    if kind == "redis":
        base, _, options = url.partition("?")
        # The last ones count: those of the URL.
        url = f"{base}?timeout_s={timeout_s:g}&connect_timeout_s={timeout_s:g}&{options}".rstrip("&")
    try:
        stats = EventClient({"event-agent": url}).stats(tube)
    except OioException as exc:
        # The options are ours, and long.
        raise OioException(str(exc).replace(shown_url(url), shown_url(url.partition("?")[0]))) from exc
    counts = {state: int(stats.get(f"current-jobs-{state}", 0)) for state in _STATES}
    oldest_s = None
    if any(counts[state] for state in _STATES[:3]):
        look = {"redis": _first_of_redis, "beanstalk": _first_of_beanstalk}.get(kind)
        oldest_s = _age_of_oldest(look(url, tube, timeout_s)) if look else None
    return Backlog(queue=shown_url(url.partition("?")[0]), tube=tube, **counts, oldest_s=oldest_s)


_STATES = ("ready", "reserved", "delayed", "buried")


def _first_of_redis(url: str, tube: str, timeout_s: float) -> list[bytes]:
    from redis.exceptions import RedisError

    from oio.event.transport.redis_tube import RedisTube

    with contextlib.closing(RedisTube(url, tube)) as redis, contextlib.suppress(RedisError):
        first = redis.client.xrange(redis.stream, count=JOBS_SEEN)
        bodies = [fields.get(b"b", b"") for _place, fields in first]
        return bodies + redis.client.zrange(redis.delayed, 0, JOBS_SEEN - 1)
    return []


def _first_of_beanstalk(url: str, tube: str, timeout_s: float) -> list[bytes]:
    beanstalk = Beanstalk.from_url(url.partition("?")[0], socket_timeout=timeout_s)
    with contextlib.closing(beanstalk), contextlib.suppress(BeanstalkError):
        beanstalk.use(tube)
        _job_id, body = beanstalk.peek_ready()
        return [body.encode("utf-8", "surrogateescape")] if body else []
    return []


def _age_of_oldest(bodies: list[bytes]) -> float | None:
    """Seconds since the oldest of these events.

    >>> _age_of_oldest([b'{"event": "x"}']) is None
    True
    """
    dates = [int(found[1]) for body in bodies if (found := _WHEN.search(body))]
    return max(0.0, time.time() - min(dates) / 1e6) if dates else None
