# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Rate limits: a constant rate, or one that follows the time of day.

A loop keeps the ``run_time`` that each call gives back::

    run_time = 0
    for item in items:
        run_time = ratelimit(run_time, max_rate=30)

A policy is a list of ``(time since midnight, rate)``. Waiting is ``time.sleep``, looked up when it is called;
``oio.common.green`` has the same functions for green threads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

Policy = list[tuple[timedelta, int]]

_MS_PER_SECOND = 1000.0
_DAY = timedelta(days=1)
_MIDNIGHT = timedelta(0)
_CHANGE = re.compile(r"\s*(\d+)h(\d+):(-?\d+)\s*", re.ASCII)


def ratelimit(
    run_time: float,
    max_rate: float,
    increment: float = 1,
    rate_buffer: float = 5,
    time_time: float | None = None,
    sleep: Callable[[float], Any] | None = None,
) -> float:
    """Sleep as needed to do at most ``max_rate`` operations per second; give the next ``run_time``.

    :param run_time: what the previous call gave, 0 at first (milliseconds).
    :param increment: how many operations this call stands for.
    :param rate_buffer: seconds of lateness that may be caught up.
    :param time_time: present time, when the caller knows it.
    """
    if max_rate <= 0 or increment <= 0:
        return run_time
    now = (time.time() if time_time is None else time_time) * _MS_PER_SECOND
    slot = _MS_PER_SECOND * (float(increment) / max_rate)
    if now - run_time > rate_buffer * _MS_PER_SECOND:
        run_time = now
    elif run_time - now > slot:
        (sleep or time.sleep)((run_time - now) / _MS_PER_SECOND)
    return run_time + slot


def ratelimit_validate_policy(policy: Policy) -> bool:
    """Check a policy and sort it in place.

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
    if re.fullmatch(r"\s*-?\d+\s*", policy_str, re.ASCII):
        policy: Policy = [(_MIDNIGHT, int(policy_str))]
    else:
        policy = []
        for item in policy_str.split(";"):
            change = _CHANGE.fullmatch(item)
            if not change:
                raise ValueError(f"Malformed rate {item!r}: expected HhMM:rate, such as 6h45:10")
            start = timedelta(hours=int(change[1]), minutes=int(change[2]))
            policy.append((start, int(change[3])))
    ratelimit_validate_policy(policy)
    return policy


def ratelimit_function_build(
    policy: Policy | str, limiter: Callable[..., float] = ratelimit
) -> Callable[..., float]:
    """Make a function like :func:`ratelimit` whose rate follows the time of day.

    :param limiter: the function that waits.
    """
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
        return limiter(run_time, state["rate"], increment, rate_buffer)

    _ratelimit.policy = entries  # type: ignore[attr-defined]
    return _ratelimit


def _time_of_day(moment: datetime) -> timedelta:
    return timedelta(
        hours=moment.hour, minutes=moment.minute, seconds=moment.second, microseconds=moment.microsecond
    )
