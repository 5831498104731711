# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Events of destroyed bases: delivered by whoever destroyed them, else by those that kept a spare."""

from __future__ import annotations

import os
from pathlib import Path

import apsw
import pytest

from oio.meta.base_type import ENGINE_SCHEMA
from oio.meta.leftovers import SPARE_SUFFIX, SUFFIX, Leftovers

NAME = "C0C0.1"


def make(path: str, events: int) -> None:
    connection = apsw.Connection(path)
    connection.execute(ENGINE_SCHEMA)
    connection.executemany("INSERT INTO events VALUES(?, ?)", [(n, b"event %d" % n) for n in range(1, events + 1)])
    connection.close()


class Queue:
    """Takes events; remembers them with their keys."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, str]] = []

    def put(self, events: list[bytes], keys: list[str]) -> None:
        self.taken += zip(events, keys, strict=True)


@pytest.fixture
def leftovers(tmp_path: Path) -> Leftovers:
    return Leftovers(str(tmp_path))


def test_events_of_a_destroyed_base_are_delivered_and_the_file_goes(leftovers: Leftovers, tmp_path: Path) -> None:
    path = leftovers.path_for(NAME, 7)
    make(path, 2)
    leftovers.add(path)
    told: list[tuple[str, int]] = []
    leftovers.on_delivered = lambda name, last_entry: told.append((name, last_entry))
    queue = Queue()
    while leftovers.deliver(queue.put):
        assert len(leftovers) <= 1
    assert queue.taken == [(b"event 1", NAME), (b"event 2", NAME)]
    assert told == [(NAME, 7)]
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_opened_now_is_tried_again_after_the_others(leftovers: Leftovers) -> None:
    absent, there = leftovers.path_for("ABSENT.1"), leftovers.path_for(NAME)
    make(there, 1)
    leftovers.add(absent)
    leftovers.add(there)
    queue = Queue()
    with pytest.raises(apsw.CantOpenError):
        leftovers.deliver(queue.put)
    assert leftovers.deliver(queue.put)
    assert queue.taken == [(b"event 1", NAME)]
    make(absent, 1)
    while leftovers.deliver(queue.put):
        assert queue.taken
    assert [key for _, key in queue.taken] == [NAME, "ABSENT.1"]


def test_a_file_that_is_no_base_is_kept_for_a_person(leftovers: Leftovers, tmp_path: Path) -> None:
    path = leftovers.path_for(NAME)
    Path(path).write_bytes(b"no base at all" * 1000)
    leftovers.add(path)
    assert leftovers.deliver(Queue().put)
    assert len(leftovers) == 0
    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_spares_go_when_their_events_are_delivered_but_not_those_of_a_later_life(
    leftovers: Leftovers, tmp_path: Path
) -> None:
    for last_entry in (5, 9):
        make(leftovers.path_for(NAME, last_entry, spare=True), 1)
    make(leftovers.path_for("OTHER.1", 5, spare=True), 1)
    leftovers.drop_spares(NAME, 5)
    left = sorted(name.split(".")[0] + name.rpartition("-")[2] for name in os.listdir(tmp_path))
    assert left == [f"C0C09{SPARE_SUFFIX}", f"OTHER5{SPARE_SUFFIX}"]


def test_spares_of_which_nobody_speaks_are_delivered(leftovers: Leftovers, tmp_path: Path) -> None:
    make(leftovers.path_for(NAME, 5, spare=True), 1)
    assert not leftovers.adopt_spares(3600)
    assert leftovers.adopt_spares(0)
    assert [name.endswith(SUFFIX) for name in os.listdir(tmp_path)] == [True]
    queue = Queue()
    while leftovers.deliver(queue.put):
        assert len(leftovers) <= 1
    assert queue.taken == [(b"event 1", NAME)]
