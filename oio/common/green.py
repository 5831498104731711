# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Green threads: the only module of the package that imports eventlet.

Programs that want to be green import this module and call :func:`patch` at their entry point, before the
others. Importing it patches nothing. The rest of the package works with plain threads, and becomes green
when the standard library has been patched.

The timeouts below derive from eventlet's ``Timeout``, hence from ``BaseException``. They are distinct from
``oio.common.exceptions.OioTimeout``.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

with warnings.catch_warnings():
    # Whoever imports this module has chosen eventlet; users of its programs need not be told at each start.
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    import eventlet
import eventlet.hubs as eventlet_hubs
from eventlet import GreenPile, GreenPool, Timeout, greenthread, patcher, sleep
from eventlet.event import Event
from eventlet.green import socket, thread, threading
from eventlet.green.http.client import _UNKNOWN, HTTPConnection, HTTPResponse, HTTPSConnection
from eventlet.queue import Empty, LifoQueue, LightQueue, Queue
from eventlet.semaphore import Semaphore

__all__ = [
    "_UNKNOWN", "ChunkReadTimeout", "ChunkWriteTimeout", "ConnectionTimeout", "ContextPool", "Empty", "Event",
    "GreenPile", "GreenPool", "HTTPConnection", "HTTPResponse", "HTTPSConnection", "LifoQueue", "LightQueue",
    "OioTimeout", "Queue", "Semaphore", "SourceReadTimeout", "Timeout", "datetime", "eventlet",
    "eventlet_hubs", "eventlet_yield", "get_hub", "greenthread", "patch", "patcher", "ratelimit",
    "ratelimit_function_build", "ratelimit_function_curr_rate", "ratelimit_function_next_rate",
    "ratelimit_policy_from_string", "ratelimit_validate_policy", "sleep", "socket", "thread", "threading",
    "time", "timedelta",
]  # fmt: skip

Policy = list[tuple[timedelta, int]]
_DAY = timedelta(days=1)
_MIDNIGHT = timedelta(0)


def patch() -> None:
    """Make the standard library green, except ``os`` (files and processes keep blocking)."""
    patcher.monkey_patch(os=False)


def eventlet_yield() -> None:
    """Let the other green threads run."""
    sleep(0)


def get_hub() -> str:
    """Name of the hub that green programs should use."""
    return "poll"


# --- timeouts -------------------------------------------------------------------------------------


class OioTimeout(Timeout):
    """Base of the green timeouts."""

    msg_prefix = ""

    def __str__(self) -> str:
        return f"{self.msg_prefix}timeout {super().__str__()}"


class ConnectionTimeout(OioTimeout):
    """Raised when a connection takes too long to be made."""

    msg_prefix = "Connection "


class SourceReadTimeout(OioTimeout):
    """Raised when the source of an upload gives nothing in time."""

    msg_prefix = "Source read "


class ChunkWriteTimeout(OioTimeout):
    """Raised when a rawx does not take data, or does not confirm, in time."""

    msg_prefix = "Chunk write "


class ChunkReadTimeout(OioTimeout):
    """Raised when a rawx does not give data in time."""

    msg_prefix = "Chunk read "


class ContextPool(GreenPool):  # type: ignore[misc]
    """Pool of green threads that kills those still running at the end of a ``with`` block."""

    def __enter__(self) -> ContextPool:
        return self

    def __exit__(self, *_exc: object) -> None:
        for running in list(self.coroutines_running):
            running.kill()


# --- rate limits ----------------------------------------------------------------------------------


def ratelimit(
    run_time: float,
    max_rate: float,
    increment: float = 1,
    rate_buffer: float = 5,
    time_time: float | None = None,
) -> float:
    """Sleep as needed to do at most ``max_rate`` operations per second; give the next ``run_time``.

    :param run_time: what the previous call gave, 0 at first (milliseconds).
    :param increment: how many operations this call stands for.
    :param rate_buffer: seconds of lateness that may be caught up.
    """
    if max_rate <= 0 or increment <= 0:
        return run_time
    clock_accuracy = 1000.0
    now = (time.time() if time_time is None else time_time) * clock_accuracy
    slot = clock_accuracy * (float(increment) / max_rate)
    if now - run_time > rate_buffer * clock_accuracy:
        run_time = now
    elif run_time - now > slot:
        sleep((run_time - now) / clock_accuracy)
    return run_time + slot


def ratelimit_validate_policy(policy: Policy) -> bool:
    """Check a policy, a list of ``(time since midnight, rate)``, and sort it in place.

    :raises ValueError: when it is empty, or when an entry is malformed.
    """
    if not policy:
        raise ValueError("Empty rate policy")
    for entry in policy:
        if len(entry) < 2:
            raise ValueError(f"Rate policy: entry {entry!r} is too short")
        start, rate = entry[0], entry[1]
        if not _MIDNIGHT <= start < _DAY:
            raise ValueError(f"Rate policy: {start} is not a time of day")
        if rate < 0:
            raise ValueError(f"Rate policy: negative rate {rate}")
    policy.sort()
    return True


def _time_of_day(moment: datetime) -> timedelta:
    return timedelta(
        hours=moment.hour,
        minutes=moment.minute,
        seconds=moment.second,
        microseconds=moment.microsecond,
    )


def ratelimit_function_curr_rate(curr_date: datetime, policy: Policy) -> int:
    """Rate of a sorted policy at a moment; before the first entry of the day the last one applies."""
    now = _time_of_day(curr_date)
    rate = policy[-1][1]
    for entry in policy:
        if entry[0] > now:
            break
        rate = entry[1]
    return rate


def ratelimit_function_next_rate(curr_date: datetime, policy: Policy) -> tuple[int, datetime]:
    """Rate that comes after the present one, and when it starts."""
    midnight = curr_date.replace(hour=0, minute=0, second=0, microsecond=0)
    now = _time_of_day(curr_date)
    for entry in policy:
        if entry[0] > now:
            return entry[1], midnight + entry[0]
    return policy[0][1], midnight + _DAY + policy[0][0]


def ratelimit_policy_from_string(policy_str: str) -> Policy:
    """Parse ``"10"`` or ``"0h30:10;6h45:2"``. :raises ValueError: on a malformed item."""
    if re.fullmatch(r"\s*-?\d+\s*", policy_str):
        policy: Policy = [(_MIDNIGHT, int(policy_str))]
    else:
        policy = []
        for item in policy_str.split(";"):
            start, colon, rate = item.partition(":")
            hours, sep, minutes = start.partition("h")
            if not colon or not sep:
                raise ValueError(f"Malformed rate {item!r}: expected HhM:rate")
            policy.append((timedelta(hours=int(hours), minutes=int(minutes or 0)), int(rate)))
    ratelimit_validate_policy(policy)
    return policy


def ratelimit_function_build(policy: Policy | str) -> Callable[..., float]:
    """Make a function like :func:`ratelimit` whose rate follows the time of day."""
    entries = ratelimit_policy_from_string(policy) if isinstance(policy, str) else policy
    ratelimit_validate_policy(entries)
    state: dict[str, Any] = {"rate": 0, "next": None}

    def _ratelimit(
        run_time: float, _max_rate: Any = None, increment: float = 1, rate_buffer: float = 5
    ) -> float:
        now = datetime.now()
        if state["next"] is None or now >= state["next"]:
            state["rate"] = ratelimit_function_curr_rate(now, entries)
            state["next"] = ratelimit_function_next_rate(now, entries)[1]
        return ratelimit(run_time, state["rate"], increment, rate_buffer)

    _ratelimit.policy = entries  # type: ignore[attr-defined]
    return _ratelimit
