# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Promises and leases of a service, by a clock that only the test advances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oio.common.status import StatusError
from oio.meta.replication.ledger import Ledger, Promise
from oio.meta.replication.voter import Voter
from oio.meta.replication.wire import Voice, Vote

LEASE_S = 4.0


class Service:
    """A voter that can be started again on its volume."""

    def __init__(self, volume: Path) -> None:
        self._volume = volume
        self.now = 1000.0
        self.deposed: list[tuple[str, int, str]] = []
        self.ledger: Ledger | None = None
        self.restart()

    def restart(self) -> None:
        self.stop()
        self.ledger = Ledger(str(self._volume), fsync=False)
        self.voter = Voter(self.ledger, LEASE_S, self._on_deposed, clock=lambda: self.now)

    def stop(self) -> None:
        if self.ledger is not None:
            self.ledger.close()
            self.ledger = None

    def vote(self, epoch: int, owner: str, key: str = "K") -> Vote:
        return self.voter.vote(Voice(key=key, epoch=epoch, owner=owner))

    def _on_deposed(self, key: str, vote: Vote) -> None:
        assert vote.granted
        self.deposed.append((key, vote.epoch, vote.owner))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.stop()


def granted(epoch: int, owner: str) -> Vote:
    return Vote(granted=True, epoch=epoch, owner=owner)


def refused(epoch: int, owner: str, wait_s: float = 0.0) -> Vote:
    return Vote(granted=False, epoch=epoch, owner=owner, wait_s=wait_s)


# --- promises --------------------------------------------------------------------------------------


def test_promises_only_grow(service: Service) -> None:
    assert service.voter.highest("K") == 0
    assert service.vote(5, "a") == granted(5, "a")
    assert service.vote(4, "a") == refused(5, "a")
    assert service.vote(7, "a") == granted(7, "a")
    for epoch in (5, 6):
        assert service.vote(epoch, "a") == refused(7, "a")
        assert service.vote(epoch, "b") == refused(7, "a")
    assert service.voter.highest("K") == 7
    assert service.ledger is not None
    assert service.ledger.promise("K") == Promise(7, "a")


def test_an_epoch_has_one_owner_even_without_lease(service: Service) -> None:
    assert service.vote(5, "a").granted
    for _ in range(2):
        assert service.vote(5, "b") == refused(5, "a")
        service.now += 10 * LEASE_S
    service.restart()
    service.now += 10 * LEASE_S
    assert service.vote(5, "b") == refused(5, "a")
    assert service.vote(5, "a") == granted(5, "a")


def test_groups_are_independent(service: Service) -> None:
    assert service.vote(5, "a").granted
    assert service.vote(1, "b", "other") == granted(1, "b")
    assert service.voter.highest("other") == 1
    assert service.vote(6, "b").wait_s == LEASE_S


def test_what_was_promised_last(service: Service) -> None:
    assert not service.voter.promised(Voice(key="K", epoch=5, owner="a"))
    service.vote(5, "a")
    assert service.voter.promised(Voice(key="K", epoch=5, owner="a"))
    assert not service.voter.promised(Voice(key="K", epoch=5, owner="b"))
    service.vote(6, "a")
    assert not service.voter.promised(Voice(key="K", epoch=5, owner="a"))


# --- leases ----------------------------------------------------------------------------------------


def test_a_lease_keeps_others_out_until_it_ends(service: Service) -> None:
    service.vote(5, "a")
    assert service.voter.lease_left_s("K") == LEASE_S
    service.now += 1
    assert service.vote(6, "b") == refused(5, "a", LEASE_S - 1)
    assert service.voter.lease_left_s("K") == LEASE_S - 1
    service.now += LEASE_S - 1.5
    assert service.vote(9, "b") == refused(5, "a", 0.5)
    service.now += 0.5
    assert service.voter.lease_left_s("K") == 0.0
    assert service.vote(6, "b") == granted(6, "b")
    # Now the lease is theirs.
    assert service.vote(7, "a") == refused(6, "b", LEASE_S)


def test_a_refusal_changes_nothing(service: Service) -> None:
    service.vote(5, "a")
    service.now += 3
    for epoch, owner in ((4, "a"), (5, "b"), (6, "b")):
        assert not service.vote(epoch, owner).granted
    assert service.voter.lease_left_s("K") == LEASE_S - 3
    assert service.voter.highest("K") == 5


def test_a_lease_is_renewed_by_its_owner(service: Service) -> None:
    service.vote(5, "a")
    for _ in range(5):
        service.now += LEASE_S - 1
        assert service.vote(5, "a") == granted(5, "a")
        assert service.vote(6, "b") == refused(5, "a", LEASE_S)
    # A later epoch of the same owner needs not wait, and renews it as well.
    service.now += 1
    assert service.vote(8, "a") == granted(8, "a")
    assert service.voter.lease_left_s("K") == LEASE_S


def test_a_lease_that_ended_can_be_taken_up_again(service: Service) -> None:
    service.vote(5, "a")
    service.now += 2 * LEASE_S
    assert service.vote(5, "a") == granted(5, "a")
    assert service.vote(6, "b") == refused(5, "a", LEASE_S)


def test_a_lease_begins_when_the_promise_is_stored(service: Service) -> None:
    """However long the disk took: from then on the others are kept out for as long as a master believes."""
    ledger = service.ledger
    assert ledger is not None
    store = ledger.store_promise

    def store_slowly(key: str, epoch: int, owner: str) -> None:
        store(key, epoch, owner)
        service.now += 3

    ledger.store_promise = store_slowly  # type: ignore[method-assign]
    assert service.vote(5, "a").granted
    assert service.voter.lease_left_s("K") == LEASE_S


def test_after_a_restart_leases_may_hold_that_nobody_remembers(service: Service) -> None:
    service.vote(5, "a")
    service.vote(5, "a", "mine")
    service.now += 1
    service.restart()
    assert service.vote(6, "b") == refused(5, "a", LEASE_S)
    assert service.voter.lease_left_s("K") == 0.0
    # The owner of the promise need not wait, in the same epoch or in a later one.
    assert service.vote(5, "a", "mine") == granted(5, "a")
    assert service.vote(6, "a", "mine") == granted(6, "a")
    # Nor anybody where nothing was ever promised.
    assert service.vote(1, "b", "new") == granted(1, "b")
    service.now += LEASE_S - 1
    assert service.vote(6, "b") == refused(5, "a", 1.0)
    service.now += 1
    assert service.vote(6, "b") == granted(6, "b")


# --- who is told -----------------------------------------------------------------------------------


def test_only_later_promises_are_told(service: Service) -> None:
    service.vote(5, "a")
    assert service.deposed == [("K", 5, "a")]
    service.vote(5, "a")  # renewed
    service.vote(4, "a")  # refused: former
    service.vote(5, "b")  # refused: of another
    service.vote(6, "b")  # refused: leased
    assert service.deposed == [("K", 5, "a")]
    service.vote(6, "a")
    service.now += LEASE_S
    service.vote(7, "b")
    service.vote(1, "b", "other")
    assert service.deposed == [("K", 5, "a"), ("K", 6, "a"), ("K", 7, "b"), ("other", 1, "b")]
    service.restart()
    service.vote(7, "b")
    assert len(service.deposed) == 4


def test_a_promise_that_cannot_be_stored_is_not_given(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.vote(5, "a")
    service.now += LEASE_S

    def fail(key: str, epoch: int, owner: str) -> None:
        raise StatusError(500, "disk full")

    assert service.ledger is not None
    with monkeypatch.context() as patch:
        patch.setattr(service.ledger, "store_promise", fail)
        with pytest.raises(StatusError, match="disk full"):
            service.vote(6, "b")
    assert service.deposed == [("K", 5, "a")]
    assert service.voter.highest("K") == 5
    assert service.vote(6, "b") == granted(6, "b")


def test_of_all_who_ask_for_an_epoch_at_once_one_gets_it(service: Service) -> None:
    def candidate(number: int) -> Callable[[], list[int]]:
        return lambda: [epoch for epoch in range(1, 30) if service.vote(epoch, f"p{number}").granted]

    with ThreadPoolExecutor(6) as threads:
        futures = [threads.submit(candidate(number)) for number in range(6)]
        won = [future.result(30) for future in futures]
    # The first one keeps its lease: the clock stands still.
    assert sum(1 for epochs in won if epochs) == 1
    assert service.deposed == [("K", epoch, service.deposed[0][2]) for epoch in range(1, 30)]
