# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What the account service counts, and how the numbers of its workers are put together."""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec

from oio.common.metrics import Metric

Number = TypeVar("Number", int, float)


class Numbers(msgspec.Struct):
    """Numbers of one worker, or the sum over workers. Keys are ``handler status``."""

    requests: dict[str, int] = {}
    seconds: dict[str, float] = {}
    updates: dict[str, int] = {}
    redis_errors: int = 0

    def plus(self, other: Numbers) -> Numbers:
        """Add up."""
        return Numbers(
            _sum(self.requests, other.requests),
            _sum(self.seconds, other.seconds),
            _sum(self.updates, other.updates),
            self.redis_errors + other.redis_errors,
        )


class Counts:
    """Counts in one worker; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handled: dict[tuple[str, int], list[float]] = {}
        self._updates: dict[int, int] = {}
        self._redis_errors = 0

    def handled(self, handler: str, status: int, duration_s: float) -> None:
        """A request was answered."""
        with self._lock:
            entry = self._handled.get((handler, status))
            if entry is None:
                entry = self._handled[handler, status] = [0, 0.0]
            entry[0] += 1
            entry[1] += duration_s

    def updated(self, status: int) -> None:
        """An update within a batch was answered."""
        with self._lock:
            self._updates[status] = self._updates.get(status, 0) + 1

    def redis_failed(self) -> None:
        """Redis did not serve a request."""
        with self._lock:
            self._redis_errors += 1

    def snapshot(self) -> Numbers:
        """The numbers now."""
        with self._lock:
            handled = {f"{name} {status}": tuple(entry) for (name, status), entry in self._handled.items()}
            return Numbers(
                {key: int(entry[0]) for key, entry in handled.items()},
                {key: entry[1] for key, entry in handled.items()},
                {str(status): count for status, count in self._updates.items()},
                self._redis_errors,
            )


def metrics_of(numbers: Numbers, accounts: int | None) -> list[Metric]:
    """The families of ``/metrics``; without the number of accounts when it is not known now."""
    return [
        Metric("oio_account_accounts", "gauge", "Accounts", [] if accounts is None else [({}, accounts)]),
        Metric(
            "oio_account_requests", "counter", "Requests answered",
            [(_labels(key), count) for key, count in sorted(numbers.requests.items())],
        ),
        Metric(
            "oio_account_request_seconds", "counter", "Time spent on requests",
            [(_labels(key), spent) for key, spent in sorted(numbers.seconds.items())],
        ),
        Metric(
            "oio_account_batched_updates", "counter", "Container updates that came in batches",
            [({"status": status}, count) for status, count in sorted(numbers.updates.items())],
        ),
        Metric(
            "oio_account_redis_errors", "counter", "Requests that Redis did not serve",
            [({}, numbers.redis_errors)],
        ),
    ]  # fmt: skip


def _labels(key: str) -> dict[str, str]:
    handler, _, status = key.partition(" ")
    return {"handler": handler, "status": status}


def _sum(one: dict[str, Number], other: dict[str, Number]) -> dict[str, Number]:
    return {**one, **{key: value + one[key] if key in one else value for key, value in other.items()}}
