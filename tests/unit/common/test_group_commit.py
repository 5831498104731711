# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Group commit: who runs when, who fails with whom."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from oio.common.group_commit import CommitGroup, Member
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
                member.result = member.fn(None)
            except ValueError as exc:
                member.error = exc


def in_threads(functions: list[Callable[[], Any]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    return threads


def start_leader(group: CommitGroup, disk: SlowDisk) -> threading.Thread:
    (thread,) = in_threads([lambda: group.submit(Member(lambda tx: "led"), 5)])
    assert disk.entered.wait(10)
    return thread


def test_followers_share_a_batch_and_get_their_own_outcome() -> None:
    disk = SlowDisk()
    group = CommitGroup(disk, 100)
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
    group = CommitGroup(disk, 100, 10)
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
    group = CommitGroup(disk, 1)
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
