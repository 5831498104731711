# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the event agent counts, and how the counters of its processes become one page.

A worker counts with plain integers and tells its parent everything once in a while, in one message (a
*report*); the parent adds the reports up when ``/metrics`` is read. What a worker counted is not lost when it
ends: the parent keeps its last report.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from oio.common.metrics import Metric

# Types are names that producers choose: beyond this many in a process, and this length, those that nothing handles
# are told as one. Those that handlers are made for are few, but for a mistake.
TYPES_MAX = 100
HANDLED_TYPES_MAX = 1000
TYPE_CHARS_MAX = 100
OTHER_TYPES = "other"
# The rate is told over this long.
RATE_PERIOD_S = 10.0
# The greatest lag is the one of the events that ended within this long.
LAG_PERIOD_S = 30.0

# name → (kind, help); gauges of several workers are added, except the greatest lag.
CATALOGUE = {
    "event_agent_events": ("counter", "Deliveries by tube, type of event, and what became of them"),
    "event_agent_retries": ("counter", "Deliveries that failed and come again later"),
    "event_agent_buried": ("counter", "Events put aside for a person"),
    "event_agent_lag_seconds": ("counter", "Sum of the ages of the events, when they were done"),
    "event_agent_lag_seconds_max": ("gauge", "Greatest age of the events done in the last 30 s"),
    "event_agent_rate": ("gauge", "Deliveries per second, over the last 10 s"),
    "event_agent_queue": ("gauge", "Events in the queue by state"),
    "event_agent_running": ("gauge", "Events that are being handled"),
    "event_agent_source_errors": ("counter", "Failures of the connection to the queue"),
    "event_agent_filter_calls": ("counter", "Calls of each filter"),
    "event_agent_filter_errors": ("counter", "Calls of each filter that failed by its own fault"),
    "event_agent_filter_seconds": ("counter", "Time spent in each filter, without those that follow it"),
    "event_agent_filter_counts": ("counter", "What filters count themselves"),
}
WORST_OF = {"event_agent_lag_seconds_max"}


class Sample(NamedTuple):
    """One number of a report."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Report(msgspec.Struct):
    """What a worker tells its parent.

    :ivar ready: it consumes events.
    :ivar error: why it could not begin.
    """

    ready: bool = False
    error: str = ""
    samples: list[Sample] = []


encode_report = msgspec.msgpack.Encoder().encode
decode_report = msgspec.msgpack.Decoder(Report).decode


def shown_url(url: str) -> str:
    """A URL as metrics and logs show it: without password.

    >>> shown_url("redis://:secret@127.0.0.1:6379/0?x=1")
    'redis://127.0.0.1:6379/0'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class TypeNames:
    """Which types of events the consumers of a process tell by name: a report must fit in one message."""

    def __init__(self) -> None:
        self._names: dict[bool, set[str]] = {True: set(), False: set()}

    def shown(self, kind: str, is_handled: bool) -> str:
        """Name under which a type is counted."""
        names = self._names[is_handled]
        if kind not in names:
            if len(names) >= (HANDLED_TYPES_MAX if is_handled else TYPES_MAX) or len(kind) > TYPE_CHARS_MAX:
                return OTHER_TYPES
            names.add(kind)
        return kind


class ConsumerCounts:
    """What one consumer counted; written by its thread only."""

    __slots__ = ("_names", "lag_seconds", "lags", "outcomes", "source_errors", "total")

    def __init__(self, names: TypeNames | None = None) -> None:
        """:param names: shared by the consumers of a process."""
        self._names = names or TypeNames()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.total = 0
        self.lag_seconds = 0.0
        self.source_errors = 0
        #: (second, greatest lag in that second)
        self.lags: deque[tuple[int, float]] = deque(maxlen=int(LAG_PERIOD_S))

    def count(self, kind: str, outcome: str, lag_s: float | None, now_s: float) -> None:
        """A delivery is over; ``lag_s`` is told when the event is done."""
        key = (kind, outcome)
        if key not in self.outcomes:
            key = (self._names.shown(kind, outcome != "ignored"), outcome)
        self.outcomes[key] += 1
        self.total += 1
        if lag_s is None:
            return
        self.lag_seconds += lag_s
        second = int(now_s)
        if self.lags and self.lags[-1][0] == second:
            if lag_s > self.lags[-1][1]:
                self.lags[-1] = (second, lag_s)
        else:
            self.lags.append((second, lag_s))


class RateMeter:
    """Events per second over the last seconds, out of a growing total."""

    def __init__(self, period_s: float = RATE_PERIOD_S) -> None:
        self._period_s = period_s
        self._points: deque[tuple[float, int]] = deque()

    def rate(self, total: int, now_s: float) -> float:
        """Note the total, and give the rate."""
        points = self._points
        points.append((now_s, total))
        while len(points) > 2 and points[1][0] <= now_s - self._period_s:
            points.popleft()
        seconds = now_s - points[0][0]
        return (total - points[0][1]) / seconds if seconds > 0 else 0.0


def consumer_samples(
    labels: tuple[tuple[str, str], ...], counts: Iterable[ConsumerCounts], meter: RateMeter
) -> list[Sample]:
    """Numbers of the consumers of one queue."""
    counts = list(counts)
    outcomes: Counter[tuple[str, str]] = Counter()
    for one in counts:
        outcomes.update(one.outcomes.copy())
    since = int(time.time() - LAG_PERIOD_S)
    lags = [lag_s for one in counts for second, lag_s in list(one.lags) if second >= since]
    total = sum(one.total for one in counts)
    return [
        *(
            Sample("event_agent_events", (*labels, ("type", kind), ("outcome", outcome)), number)
            for (kind, outcome), number in outcomes.items()
        ),
        Sample("event_agent_retries", labels, _sum(outcomes, "retry")),
        Sample("event_agent_buried", labels, _sum(outcomes, "buried")),
        Sample("event_agent_lag_seconds", labels, sum(one.lag_seconds for one in counts)),
        Sample("event_agent_lag_seconds_max", labels, max(lags, default=0.0)),
        Sample("event_agent_rate", labels, meter.rate(total, time.monotonic())),
        Sample("event_agent_source_errors", labels, sum(one.source_errors for one in counts)),
    ]


def _sum(outcomes: Counter[tuple[str, str]], outcome: str) -> int:
    return sum(number for (_, one), number in outcomes.items() if one == outcome)


class Totals:
    """Adds up reports: those of the living, and what is left of the dead."""

    def __init__(self) -> None:
        self._living: dict[int, list[Sample]] = {}
        self._dead: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def put(self, worker: int, samples: list[Sample]) -> None:
        """A worker reported."""
        self._living[worker] = samples

    def retire(self, worker: int) -> None:
        """A worker ended: what it counted stays, what it measured goes."""
        for name, labels, value in self._living.pop(worker, ()):
            if CATALOGUE.get(name, ("gauge",))[0] == "counter":
                key = (name, labels)
                self._dead[key] = self._dead.get(key, 0) + value

    def metrics(self) -> list[Metric]:
        """Families for ``/metrics``."""
        totals = dict(self._dead)
        for samples in list(self._living.values()):
            for name, labels, value in samples:
                key = (name, labels)
                if name in WORST_OF:
                    totals[key] = max(totals.get(key, 0), value)
                else:
                    totals[key] = totals.get(key, 0) + value
        families: dict[str, Metric] = {
            name: Metric(name, kind, text, []) for name, (kind, text) in CATALOGUE.items()
        }
        for (name, labels), value in totals.items():
            if name in families:
                families[name].samples.append((dict(labels), value))
        return list(families.values())
