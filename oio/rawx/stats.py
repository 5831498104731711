# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Counters of a rawx, as /stat and /metrics show them."""

from __future__ import annotations

import threading

from oio.common.metrics import Metric

KINDS = ("put", "copy", "get", "head", "del", "stat", "info", "raw", "other")
_REPLIES = ("2xx", "4xx", "5xx", "other", "403", "404")


class Stats:
    """Counts requests; times in microseconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._time = dict.fromkeys(KINDS, 0)
        self._hits = dict.fromkeys(KINDS, 0)
        self._replies = dict.fromkeys(_REPLIES, 0)
        self._bytes_read = 0
        self._bytes_written = 0

    def count(self, kind: str, status: int, duration_us: int, bytes_read: int, bytes_written: int) -> None:
        """Count one finished request: `bytes_read` were sent by a GET, `bytes_written` by a PUT."""
        group = _group(status)
        with self._lock:
            self._time[kind] += duration_us
            self._hits[kind] += 1
            self._replies[group] += 1
            if status == 403 or status == 404:
                self._replies[str(status)] += 1
            self._bytes_read += bytes_read
            self._bytes_written += bytes_written

    def lines(self) -> list[str]:
        """The counters in the order of the contract: ``counter <name> <value>``."""
        with self._lock:
            times, hits, replies = dict(self._time), dict(self._hits), dict(self._replies)
            transfers = (("rep.bread", self._bytes_read), ("rep.bwritten", self._bytes_written))
        pairs = [("req.time", sum(times.values()))]
        pairs += [(f"req.time.{kind}", times[kind]) for kind in KINDS]
        pairs.append(("req.hits", sum(hits.values())))
        pairs += [(f"req.hits.{kind}", hits[kind]) for kind in KINDS]
        pairs += [(f"rep.hits.{name}", replies[name]) for name in _REPLIES]
        pairs += transfers
        return [f"counter {name} {value}" for name, value in pairs]

    def metrics(self) -> list[Metric]:
        """The same counters, for Prometheus."""
        with self._lock:
            times, hits, replies = dict(self._time), dict(self._hits), dict(self._replies)
            transfers = {"sent": self._bytes_read, "received": self._bytes_written}
        return [
            Metric(
                "oio_rawx_requests", "counter", "Requests answered, by kind",
                [({"kind": kind}, count) for kind, count in hits.items()],
            ),
            Metric(
                "oio_rawx_request_seconds", "counter", "Time spent on requests, by kind",
                [({"kind": kind}, spent / 1e6) for kind, spent in times.items()],
            ),
            Metric(
                "oio_rawx_replies", "counter", "Answers, by status; those of 403 and 404 are in 4xx too",
                [({"status": status}, count) for status, count in replies.items()],
            ),
            Metric(
                "oio_rawx_chunk_bytes", "counter", "Bytes of chunks sent and received",
                [({"direction": direction}, count) for direction, count in transfers.items()],
            ),
        ]  # fmt: skip


def _group(status: int) -> str:
    if 200 <= status < 300:
        return "2xx"
    if 400 <= status < 500:
        return "4xx"
    return "5xx" if status >= 500 else "other"
