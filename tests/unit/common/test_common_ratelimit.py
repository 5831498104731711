# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Rate limits, constant or by time of day."""

import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from oio.common import ratelimit as module
from oio.common.ratelimit import (
    ratelimit,
    ratelimit_function_build,
    ratelimit_function_curr_rate,
    ratelimit_function_next_rate,
    ratelimit_policy_from_string,
    ratelimit_validate_policy,
)

DAY = datetime(2024, 5, 17)
POLICY = [(timedelta(minutes=30), 10), (timedelta(hours=6, minutes=45), 2)]


class Clock:
    """Time that only sleeping makes pass."""

    def __init__(self, monkeypatch):
        self.now_s = 1000.0
        self.slept = []
        monkeypatch.setattr(module.time, "time", lambda: self.now_s)
        monkeypatch.setattr(module.time, "sleep", self.sleep)

    def sleep(self, pause_s):
        self.slept.append(pause_s)
        self.now_s += pause_s


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize(("rate", "increment"), [(0, 1), (-1, 1), (10, 0), (10, -3)])
def test_no_limit(clock, rate, increment):
    assert ratelimit(123.0, rate, increment) == 123.0 and not clock.slept


def test_the_rate_is_kept(clock):
    run_time = 0.0
    for _ in range(101):
        run_time = ratelimit(run_time, 10)
    assert 9.7 <= sum(clock.slept) <= 10.0


def test_a_call_may_stand_for_several(clock):
    run_time = 0.0
    for _ in range(11):
        run_time = ratelimit(run_time, 10, increment=5)
    assert 4.4 <= sum(clock.slept) <= 5.0


def test_a_little_lateness_is_caught_up_and_more_is_forgotten(clock):
    run_time = ratelimit(0, 10)
    clock.now_s += 4
    for _ in range(40):
        run_time = ratelimit(run_time, 10)
    assert not clock.slept
    clock.now_s += 100
    assert ratelimit(run_time, 10) == clock.now_s * 1000 + 100
    assert ratelimit(run_time, 10, rate_buffer=1000) == run_time + 100


def test_the_time_can_be_given(clock):
    assert ratelimit(0, 10, time_time=100.0) == 100_100.0
    assert ratelimit(101_000.0, 10, time_time=100.0) == 101_100.0 and clock.slept == [1.0]


# --- policies -------------------------------------------------------------------------------------


def test_a_policy_is_sorted_in_place():
    policy = [POLICY[1], POLICY[0]]
    assert ratelimit_validate_policy(policy) is True and policy == POLICY


@pytest.mark.parametrize(
    "policy",
    [
        [], [(timedelta(0),)], [(timedelta(seconds=-1), 5)], [(timedelta(hours=24), 5)], [(timedelta(0), -1)],
        [(timedelta(0), 5), (timedelta(days=2), 5)],
    ],
)  # fmt: skip
def test_wrong_policies_are_refused(policy):
    with pytest.raises(ValueError):
        ratelimit_validate_policy(policy)


@pytest.mark.parametrize(
    ("hour", "minute", "rate", "next_rate", "change"),
    [
        (0, 0, 2, 10, timedelta(minutes=30)),
        (0, 29, 2, 10, timedelta(minutes=30)),
        (0, 30, 10, 2, timedelta(minutes=405)),
        (6, 44, 10, 2, timedelta(minutes=405)),
        (6, 45, 2, 10, timedelta(days=1, minutes=30)),
        (23, 59, 2, 10, timedelta(days=1, minutes=30)),
    ],
)
def test_the_rate_follows_the_time_of_day(hour, minute, rate, next_rate, change):
    moment = DAY + timedelta(hours=hour, minutes=minute, seconds=59)
    assert ratelimit_function_curr_rate(moment, POLICY) == rate
    assert ratelimit_function_next_rate(moment, POLICY) == (next_rate, DAY + change)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("10", [(timedelta(0), 10)]),
        (" 0 ", [(timedelta(0), 0)]),
        ("0h30:10;6h45:2", POLICY),
        ("6h45:2 ; 0h30:10", POLICY),
    ],
)
def test_policies_are_written(text, policy):
    assert ratelimit_policy_from_string(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "1.5", "6h45", "6:3", "6h45:x", "6h:2", "h45:2", "6h45:", "25h0:3", "1h0:-1", "0h30:10;",
        "0h30:10;x",
    ],
)  # fmt: skip
def test_malformed_policies_are_refused(text):
    with pytest.raises(ValueError):
        ratelimit_policy_from_string(text)


def test_a_function_follows_a_policy(clock, monkeypatch):
    moments = [DAY + timedelta(hours=1), DAY + timedelta(hours=2), DAY + timedelta(hours=7)]

    class Now(datetime):
        """Moments of the test, in turn."""

        @classmethod
        def now(cls, tz=None):
            return moments.pop(0)

    monkeypatch.setattr(module, "datetime", Now)
    limited = ratelimit_function_build("6h45:2;0h30:10")
    assert limited.policy == POLICY
    start = clock.now_s * 1000
    assert [limited(0), limited(0, 77), limited(0, None, 3)] == [start + 100, start + 100, start + 1500]
    assert ratelimit_function_build(POLICY).policy is POLICY
    with pytest.raises(ValueError):
        ratelimit_function_build([])


def test_green_limits_let_other_threads_run():
    code = """
import time
from oio.common import green
ran = []
green.eventlet.spawn(ran.append, 1)
for limit in (lambda run: green.ratelimit(run, 100), green.ratelimit_function_build("100")):
    run_time = limit(limit(limit(0)))
    assert ran
    ran.clear()
    green.eventlet.spawn(ran.append, 1)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
