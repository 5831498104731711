# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Timers: the earliest name first."""

from __future__ import annotations

import random

from oio.meta.timers import Timers


def test_the_earliest_is_taken_first_and_only_when_it_is_due() -> None:
    timers = Timers()
    timers.add("late", 9.0)
    timers.add("early", 3.0)
    assert timers.next_s() == 3.0
    assert timers.take(2.9) is None
    assert timers.take(10.0) == "early"
    assert timers.take(8.0) is None
    assert timers.take(9.0) == "late"
    assert timers.next_s() is None and len(timers) == 0


def test_a_name_keeps_its_first_moment_until_it_is_dropped() -> None:
    timers = Timers()
    timers.add("a", 5.0)
    timers.add("a", 1.0)
    assert timers.next_s() == 5.0
    timers.drop("a")
    timers.drop("a")
    assert timers.next_s() is None
    timers.add("a", 7.0)
    assert timers.take(6.0) is None
    assert timers.take(7.0) == "a"


def test_any_sequence_gives_what_a_plain_table_gives() -> None:
    rng = random.Random(7)
    timers, model = Timers(), {}
    for step in range(5000):
        name, moment = rng.choice("abcdefgh"), float(rng.randrange(50))
        match rng.randrange(3):
            case 0:
                timers.add(name, moment)
                model.setdefault(name, moment)
            case 1:
                timers.drop(name)
                model.pop(name, None)
            case _:
                due = [(due_s, one) for one, due_s in model.items() if due_s <= moment]
                taken = timers.take(moment)
                assert taken == (min(due)[1] if due else None), step
                model.pop(taken, None)
        assert timers.next_s() == min(model.values(), default=None)
        assert len(timers) == len(model)
