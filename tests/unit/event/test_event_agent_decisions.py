# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the event agent decides about an event, and how it counts."""

import logging

import pytest

from oio.common import exceptions
from oio.event.agent_metrics import TYPES_MAX, ConsumerCounts, RateMeter, Sample, Totals
from oio.event.pipelines import Answer
from oio.event.worker.outcomes import (
    Malformed,
    Outcome,
    judge_answer,
    judge_failure,
    parse_event,
    retry_delay_s,
)


def test_delays():
    for attempts, expected in [(0, 15), (1, 15), (2, 30), (3, 60), (6, 480), (7, 600), (1000, 600)]:
        delays = [retry_delay_s(attempts, 15, 600) for _ in range(200)]
        assert 0.8 * expected <= min(delays) < 0.9 * expected
        assert 1.1 * expected < max(delays) <= 1.2 * expected


def test_verdicts():
    answer = Answer()
    assert judge_answer(answer).outcome is Outcome.UNANSWERED
    answer(299)
    assert judge_answer(answer).outcome is Outcome.HANDLED
    answer(500, "x", delay_s=3)
    assert judge_answer(answer).outcome is Outcome.RETRY and judge_answer(answer).delay_s == 3
    assert judge_failure(exceptions.ExplicitBury("x")).level == logging.INFO
    for body in (b"[1]", b'{"event": null}', b"\x00"):
        with pytest.raises(Malformed):
            parse_event(body)
    assert parse_event(b'{"event":"e","when":1}') == {"event": "e", "when": 1}


def test_totals():
    totals = Totals()
    calls = Sample("event_agent_filter_calls", (("filter", "f"),), 2)
    rate = Sample("event_agent_rate", (), 10)
    worst = Sample("event_agent_lag_seconds_max", (), 5)
    totals.put(0, [calls, rate, worst])
    totals.put(1, [calls, rate, worst._replace(value=7)])

    def values():
        return {one.name: one.samples[0][1] for one in totals.metrics() if one.samples}

    assert values() == {
        "event_agent_filter_calls": 4, "event_agent_rate": 20, "event_agent_lag_seconds_max": 7,
    }  # fmt: skip
    totals.retire(1)
    assert values() == {
        "event_agent_filter_calls": 4, "event_agent_rate": 10, "event_agent_lag_seconds_max": 5,
    }  # fmt: skip
    totals.put(1, [calls])
    assert values()["event_agent_filter_calls"] == 6


def test_types_without_end_are_one():
    counts = ConsumerCounts()
    for number in range(1000):
        counts.count(f"kind{number}", "ignored", None, 0.0)
    counts.count("k" * 1000, "ignored", None, 0.0)
    assert len(counts.outcomes) <= TYPES_MAX + 1
    assert sum(counts.outcomes.values()) == counts.total == 1001


def test_rate():
    meter = RateMeter(10)
    assert meter.rate(0, 100.0) == 0
    assert meter.rate(50, 105.0) == 10
    assert meter.rate(100, 110.0) == 10
    assert meter.rate(300, 120.0) == 20
