# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Marks of processes: dead is said only of the dead."""

import os
import subprocess
import sys

import pytest
from support import eventually

from oio.common import processes

TELL = "from oio.common import processes; import sys; print(processes.mark(), flush=True); sys.stdin.read()"


@pytest.fixture
def other():
    with subprocess.Popen(
        [sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_who_lives_is_not_dead(other):
    mark = other.stdout.readline().strip()
    assert mark != processes.mark() == processes.mark()
    assert not processes.is_dead(mark)
    assert not processes.is_dead(mark + "/and/more")


def test_the_killed_are_dead_before_their_parent_looks_and_after(other):
    mark = other.stdout.readline().strip()
    other.kill()
    eventually(lambda: processes.is_dead(mark))
    other.wait()
    assert processes.is_dead(mark)
    assert processes.is_dead(mark + "/and/more")


def test_a_number_that_is_used_again_is_another_process():
    *head, birth = processes.mark().split("/")
    assert processes.is_dead("/".join([*head, str(int(birth) - 1)]))


@pytest.mark.parametrize("place", [1, 2])
def test_nothing_is_known_of_other_boots_and_containers(other, place):
    parts = other.stdout.readline().strip().split("/")
    other.kill()
    other.wait()
    parts[place] = "0"
    assert not processes.is_dead("/".join(parts))


def test_a_process_that_proc_hides_lives(monkeypatch):
    def hidden(pid):
        raise FileNotFoundError(pid)

    mark = processes.mark()
    monkeypatch.setattr(processes, "_stat", hidden)
    assert not processes.is_dead(mark)
    assert processes.mark() is None


@pytest.mark.parametrize("text", ["", "/", "a/b/c/d/e", "0123456789abcdef"])
def test_other_texts_are_no_marks(text):
    assert not processes.is_dead(text)


def test_a_mark_that_is_cut_says_nothing():
    assert not processes.is_dead("/".join(processes.mark().split("/")[:4]))
    assert str(os.getpid()) in processes.mark()
