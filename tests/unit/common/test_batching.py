# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Batches: who runs when, who fails with whom, and what becomes of the others when a thread is killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import eventually

from oio.common.batching import Batcher, Group, Member
from oio.common.status import StatusError


class SlowDisk:
    """Runs batches; the first one waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, members: list[Member]) -> None:
        self.entered.set()
        if not self.batches:
            assert self.go.wait(10)
        self.batches.append(len(members))
        for member in members:
            try:
                member.result = member.work(None)
            except ValueError as exc:
                member.error = exc


def in_threads(functions: list[Callable[[], Any]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    return threads


def start_leader(group: Group, disk: SlowDisk) -> threading.Thread:
    (thread,) = in_threads([lambda: group.submit(Member(lambda tx: "led"), 5)])
    assert disk.entered.wait(10)
    return thread


def test_followers_share_a_batch_and_get_their_own_outcome() -> None:
    disk = SlowDisk()
    group = Group(disk)
    leader = start_leader(group, disk)
    outcomes: dict[int, Any] = {}

    def fail() -> None:
        raise ValueError("mine")

    def write(i: int) -> None:
        try:
            outcomes[i] = group.submit(Member(lambda tx: fail() if i == 3 else i * i), 5)
        except ValueError as exc:
            outcomes[i] = str(exc)

    threads = in_threads([lambda i=i: write(i) for i in range(8)])  # type: ignore[misc]
    while len(group._queue) < 8:
        threading.Event().wait(0.001)
    disk.go.set()
    for thread in [leader, *threads]:
        thread.join(10)
    assert outcomes == {i: "mine" if i == 3 else i * i for i in range(8)}
    assert disk.batches == [1, 8]
    assert group.submit(Member(lambda tx: "alone"), 5) == "alone"


def test_a_batch_has_a_largest_weight_which_one_member_alone_may_exceed() -> None:
    disk = SlowDisk()
    group = Group(disk, batch_max=10)
    threads = [start_leader(group, disk)]
    for count, weight in enumerate((4, 5, 1, 1, 50, 9, 0, 2), 1):
        threads += in_threads([lambda w=weight: group.submit(Member(lambda tx: None, weight=w), 5)])  # type: ignore[misc]
        while len(group._queue) < count:
            threading.Event().wait(0.001)
    disk.go.set()
    for thread in threads:
        thread.join(10)
    assert disk.batches == [1, 3, 1, 1, 2, 1]


def test_too_many_waiters_and_too_long_a_wait() -> None:
    disk = SlowDisk()
    group = Group(disk, queue_max=1)
    leader = start_leader(group, disk)
    ran: list[int] = []
    with pytest.raises(StatusError) as caught:
        group.submit(Member(lambda tx: ran.append(1)), 0.01)
    assert caught.value.code == 503
    (waiter,) = in_threads([lambda: group.submit(Member(lambda tx: ran.append(2)), 10)])
    while not group._queue:
        threading.Event().wait(0.001)
    with pytest.raises(StatusError) as caught:
        group.submit(Member(lambda tx: ran.append(3)), 10)
    assert caught.value.code == 509
    disk.go.set()
    leader.join(10)
    waiter.join(10)
    assert ran == [2]


class Slow:
    """Something that can be held while others come."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def send(self, items: list[int]) -> list[Any]:
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.acquire(timeout=5)
        return [ValueError(item) if item < 0 else item * 10 for item in items]


def submit_all(batcher: Batcher[int, Any], items: list[int], results: dict[int, Any]) -> list[threading.Thread]:
    def one(item: int) -> None:
        try:
            results[item] = batcher.submit(item)
        except Exception as exc:
            results[item] = exc

    threads = [threading.Thread(target=one, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    return threads


def test_what_comes_meanwhile_leaves_together() -> None:
    slow = Slow()
    results: dict[int, Any] = {}
    batcher = Batcher(slow.send, batch_max=4)
    threads = submit_all(batcher, [1], results)
    slow.entered.acquire()
    threads += submit_all(batcher, [2, 3, -4, 5, 6], results)
    eventually(lambda: len(batcher._group._queue) == 5)
    for _ in range(3):
        slow.gate.release()
    for thread in threads:
        thread.join(5)
    assert [len(batch) for batch in slow.batches] == [1, 4, 1]
    assert {item: results[item] for item in (1, 2, 3, 5, 6)} == {1: 10, 2: 20, 3: 30, 5: 50, 6: 60}
    assert isinstance(results[-4], ValueError)
    slow.gate.release()
    assert batcher.submit(7) == 70


def test_a_failure_reaches_all_of_a_batch_and_the_next_one_goes_on() -> None:
    calls: list[list[int]] = []

    def send(items: list[int]) -> list[int]:
        calls.append(items)
        if len(calls) == 1:
            raise OSError("down")
        return items

    batcher = Batcher(send)
    with pytest.raises(OSError, match="down"):
        batcher.submit(1)
    assert batcher.submit(2) == 2
    short: Batcher[int, int] = Batcher(lambda items: [])
    with pytest.raises(Exception, match="0 results for 1 items"):
        short.submit(1)


GREEN = """
    import sys, threading
    import eventlet
    eventlet.monkey_patch()
    from oio.common.batching import Batcher, Group, Member

    def started(entered, *work):
        thread = eventlet.spawn(*work)
        while not entered():
            eventlet.sleep(0)
        return thread

    where, kind = sys.argv[1:]
    go, batches = threading.Event(), []

    def run(items):
        batches.append(list(items))
        if len(batches) == 1:
            go.wait()
        return [item * 10 for item in items]

    def run_members(members):
        for member, result in zip(members, run([member.work for member in members])):
            member.result = result

    if kind == "batcher":
        one = Batcher(run)
        group, submit = one._group, one.submit
    else:
        group = Group(run_members)
        submit = lambda item: group.submit(Member(item), 20)
    first = started(lambda: batches, submit, 1)
    doomed = started(lambda: len(group._queue) == 1, submit, 2)
    others = [started(lambda: len(group._queue) == n - 1, submit, n) for n in (3, 4)]
    if where == "waits":
        doomed.kill()
    elif where == "told":
        # The leader hands over, and the heir is killed before it runs.
        give_back = group.give_back
        def give_back_and_kill():
            give_back()
            group.give_back = give_back
            doomed.kill()
        group.give_back = give_back_and_kill
    elif where == "leads":
        first.kill()
    go.set()
    with eventlet.Timeout(20):
        print(*(thread.wait() for thread in others))
        print(submit(5), len(group._queue), group._led)
"""


@pytest.mark.parametrize("kind", ["group", "batcher"])
@pytest.mark.parametrize("where", ["waits", "told", "leads"])
def test_a_green_thread_that_is_killed_leaves_the_others_alone(where: str, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(GREEN), where, kind],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "30 40\n50 0 False\n", done.stdout + done.stderr


@pytest.mark.parametrize("kind", [Group, Batcher])
def test_those_of_a_batch_whose_leader_is_killed_are_told(kind: type) -> None:
    class Killed(BaseException):
        pass

    entered, go = threading.Event(), threading.Event()
    sizes: list[int] = []

    def run(members: list[Any]) -> list[Any]:
        sizes.append(len(members))
        entered.set()
        assert go.wait(10)
        if len(sizes) == 2:
            raise Killed
        return members

    submitting = kind(run)
    group = getattr(submitting, "_group", submitting)
    outcomes: list[BaseException | None] = []

    def submit() -> None:
        try:
            if kind is Group:
                submitting.submit(Member(None), 10)
            else:
                submitting.submit(None)
        except BaseException as exc:
            outcomes.append(exc)
        else:
            outcomes.append(None)

    threads = in_threads([submit])
    assert entered.wait(10)
    threads += in_threads([submit] * 3)
    eventually(lambda: len(group._queue) == 3)
    go.set()
    for thread in threads:
        thread.join(10)
    assert sizes == [1, 3]
    kinds = sorted(type(outcome).__name__ for outcome in outcomes)
    assert kinds == sorted(["NoneType", "Killed", *[{Group: "StatusError", Batcher: "OioException"}[kind]] * 2])
    submit()
    assert outcomes[-1] is None


def test_those_who_are_ready_join_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[int]] = []
    batcher: Batcher[int, int] = Batcher(lambda items: calls.append(items) or items, gathers=True)
    other = threading.Thread(target=batcher.submit, args=(2,))
    turns: list[float] = []

    def turn(seconds: float) -> None:
        """What another green thread does while this one lets it run."""
        turns.append(seconds)
        other.start()
        while not batcher._group._queue:
            other.join(0.01)

    with monkeypatch.context() as patch:
        patch.setattr("oio.common.batching.time", type("Clock", (), {"sleep": staticmethod(turn)}))
        assert batcher.submit(1) == 1
    other.join(60)
    assert (calls, turns) == ([[1, 2]], [0])
