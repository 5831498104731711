# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Bases that are kept closed while others try to use them."""

import threading
import time

import pytest

from oio.common.status import StatusError
from oio.meta.open_bases import OpenBases


class Base:
    """A base that cannot be opened: its file is not there."""

    def __init__(self, name):
        self.name, self.pins, self.doomed, self.is_open, self.closed = name, 0, False, False, 0

    def close(self):
        self.closed += 1


@pytest.fixture
def bases():
    return OpenBases(Base, 10, 5.0)


def in_background(action):
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_the_end_of_a_use_leaves_the_place_of_what_is_kept_closed(bases):
    used = bases.pin("a")
    entered, leave = threading.Event(), threading.Event()

    def keep():
        with bases.kept_closed("a"):
            entered.set()
            leave.wait(5)

    thread = in_background(keep)
    while not used.doomed:
        time.sleep(0.001)
    bases.unpin(used)
    assert entered.wait(5) and "a" in bases
    pinned = []
    waiting = in_background(lambda: pinned.append(bases.pin("a")))
    assert not pinned, "nobody uses it meanwhile"
    leave.set()
    thread.join()
    waiting.join()
    assert pinned[0] is not used and pinned[0].pins == 1


def test_a_base_is_kept_closed_by_one_at_a_time(bases):
    inside, most, lock = 0, 0, threading.Lock()

    def keep():
        nonlocal inside, most
        with bases.kept_closed("a"):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.005)
            with lock:
                inside -= 1

    for thread in [in_background(keep) for _ in range(5)]:
        thread.join()
    assert most == 1 and "a" not in bases


def test_a_base_in_use_is_not_kept_closed_for_ever():
    bases = OpenBases(Base, 10, 0.05)
    used = bases.pin("a")
    with pytest.raises(StatusError, match="in use"):
        with bases.kept_closed("a"):
            pass
    bases.unpin(used)
    assert "a" not in bases
    with bases.kept_closed("a"):
        assert "a" in bases
