# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The ledger of a volume: promises, graves, late marks, through crashes and failures of the disk."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oio.common.status import StatusError
from oio.meta.replication import ledger as module
from oio.meta.replication.ledger import DESTROYED, REMOVED, Ledger, Promise
from oio.meta.replication.positions import NOWHERE, Position

HERE = Position(5 << 20, 12, b"d" * 16)

Open = Callable[[], Ledger]


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Open]:
    """Opens the ledger of a volume, after closing the one that was open."""
    opened: list[Ledger] = []

    def open_again() -> Ledger:
        while opened:
            opened.pop().close()
        opened.append(Ledger(str(tmp_path), fsync=False))
        return opened[0]

    yield open_again
    while opened:
        opened.pop().close()


# --- promises --------------------------------------------------------------------------------------


def test_promises_outlive_the_process(reopen: Open) -> None:
    ledger = reopen()
    assert ledger.promise("K1") is None
    assert ledger.highest_epoch("K1") == 0
    ledger.store_promise("K1", 3, "peer-1")
    ledger.store_promise("K2", 1, "peer-2")
    ledger.store_promise("K1", 7, "peer-2")
    for _ in range(2):
        assert ledger.promise("K1") == Promise(7, "peer-2")
        assert (ledger.highest_epoch("K1"), ledger.highest_epoch("K2"), ledger.highest_epoch("K3")) == (7, 1, 0)
        ledger = reopen()


def test_a_promise_is_never_taken_back(reopen: Open) -> None:
    ledger = reopen()
    ledger.store_promise("K", 3, "peer-1")
    for epoch, owner in ((2, "peer-1"), (3, "peer-2"), (0, "")):
        with pytest.raises(ValueError, match="promised to peer-1"):
            ledger.store_promise("K", epoch, owner)
    ledger.store_promise("K", 3, "peer-1")
    assert ledger.promise("K") == reopen().promise("K") == Promise(3, "peer-1")


def test_two_owners_never_get_the_same_epoch(reopen: Open) -> None:
    ledger = reopen()

    def ask(owner: str) -> set[int]:
        granted = set()
        for epoch in range(1, 60):
            try:
                ledger.store_promise("K", epoch, owner)
            except ValueError:
                continue
            granted.add(epoch)
        return granted

    with ThreadPoolExecutor(4) as pool:
        granted = list(pool.map(ask, ["a", "b", "c", "d"]))
    assert sum(map(len, granted)) == len(set().union(*granted))
    assert ledger.highest_epoch("K") == 59
    assert reopen().highest_epoch("K") == 59


CHILD = """
import sys
from oio.meta.replication.ledger import Ledger
from oio.meta.replication.positions import Position
ledger = Ledger(sys.argv[1])
epoch = 0
while True:
    epoch += 1
    ledger.store_promise("K", epoch, "peer")
    ledger.bury(f"base{epoch}", Position(1, epoch, b"d" * 16), "destroyed", ["a", "b"])
    ledger.add_late("peer", f"base{epoch}")
    print(epoch, flush=True)
"""


def told_by_a_killed_child(volume: Path) -> int:
    """Run the child until it told some numbers, kill it, and return the last one."""
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", CHILD, str(volume)], stdout=subprocess.PIPE, cwd=root) as child:
        assert child.stdout is not None
        try:
            lines = [child.stdout.readline() for _ in range(20)]
        finally:
            child.kill()
        lines += child.stdout.readlines()
    return int([line for line in lines if line.endswith(b"\n")][-1])


@pytest.mark.parametrize("_times", range(2))
def test_what_was_told_survives_a_killed_process(tmp_path: Path, _times: int) -> None:
    told = told_by_a_killed_child(tmp_path)
    ledger = Ledger(str(tmp_path))
    assert ledger.promise("K") in (Promise(told, "peer"), Promise(told + 1, "peer"))
    expected = {f"base{epoch}" for epoch in range(1, told + 1)}
    assert all(ledger.grave(base) is not None for base in expected)
    assert set(ledger.late("peer")) >= expected
    ledger.close()


# --- graves ----------------------------------------------------------------------------------------


def test_graves_outlive_the_process_until_exhumed(reopen: Open) -> None:
    ledger = reopen()
    before = int(time.time())
    ledger.bury("base1", HERE, DESTROYED, ["peer-1", "peer-2"])
    ledger.bury("base2", NOWHERE, REMOVED, [])
    for _ in range(2):
        found = ledger.grave("base1")
        assert found is not None
        assert (found.position, found.reason, found.peers) == (HERE, "destroyed", ["peer-1", "peer-2"])
        assert before <= found.at_s <= time.time()
        other = ledger.grave("base2")
        assert other is not None
        assert (other.position, other.reason, other.peers) == (NOWHERE, "removed", [])
        assert ledger.grave("base3") is None
        ledger = reopen()
    ledger.exhume("base1")
    ledger.exhume("base3")
    assert ledger.grave("base1") is None
    assert reopen().grave("base1") is None


def test_the_grave_of_the_latest_position_stays(reopen: Open) -> None:
    ledger = reopen()
    later = Position(HERE.term, HERE.seq + 1, b"e" * 16)
    for position, reason, expected in (
        (HERE, REMOVED, (HERE, REMOVED)),
        (HERE, DESTROYED, (HERE, DESTROYED)),
        (Position(HERE.term - 1, 99, b"c" * 16), REMOVED, (HERE, DESTROYED)),
        (later, REMOVED, (later, REMOVED)),
        (HERE, DESTROYED, (later, REMOVED)),
    ):
        ledger.bury("base", position, reason, [])
        found = ledger.grave("base")
        assert found is not None
        assert (found.position, found.reason) == expected


def test_old_graves_are_purged(reopen: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_ROWS", 3)
    ledger = reopen()
    now = time.time()
    for number in range(10):
        monkeypatch.setattr(time, "time", lambda number=number: now - 100 * number)
        ledger.bury(f"base{number}", HERE, DESTROYED, [])
    monkeypatch.setattr(time, "time", lambda: now)
    assert ledger.purge_graves(1000) == 0
    assert ledger.purge_graves(250) == 7
    assert [number for number in range(10) if ledger.grave(f"base{number}")] == [0, 1, 2]
    assert ledger.purge_graves(250) == 0


# --- late marks --------------------------------------------------------------------------------------


def test_late_marks_outlive_the_process(reopen: Open) -> None:
    ledger = reopen()
    assert ledger.late_peers() == []
    for peer, base in (("p2", "b2"), ("p1", "b3"), ("p1", "b1"), ("p1", "b3"), ("p3", "b1")):
        ledger.add_late(peer, base)
    ledger.clear_late("p3", "b1")
    ledger.clear_late("p3", "b9")
    for _ in range(2):
        assert ledger.late_peers() == ["p1", "p2"]
        assert ledger.late("p1") == ["b1", "b3"]
        assert ledger.late("p1", 1) == ["b1"]
        assert ledger.late("p3") == []
        ledger = reopen()
    ledger.clear_late("p1", "b1")
    assert ledger.late("p1") == ["b3"]


marks = st.tuples(
    st.sampled_from(["add", "add", "clear", "reopen"]), st.sampled_from("pq"), st.sampled_from("abcdef")
)


@settings(max_examples=40, deadline=None)
@given(st.lists(marks, max_size=30), st.integers(0, 4), st.integers(1, 4))
def test_late_marks_beyond_the_memory_are_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str]], cached: int, page: int
) -> None:
    volume = str(tmp_path_factory.mktemp("volume"))
    expected: dict[str, set[str]] = {"p": set(), "q": set()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LATE_CACHED_MAX", cached)
        patch.setattr(module, "STEP_ROWS", page)
        ledger = Ledger(volume, fsync=False)
        for step, peer, base in steps:
            if step == "add":
                ledger.add_late(peer, base)
                expected[peer].add(base)
            elif step == "clear":
                ledger.clear_late(peer, base)
                expected[peer].discard(base)
            else:
                ledger.close()
                ledger = Ledger(volume, fsync=False)
            assert ledger.late(peer) == sorted(expected[peer])
            assert ledger.late_peers() == [name for name in "pq" if expected[name]]
        ledger.close()


def test_a_copy_that_is_marked_already_costs_no_write(
    reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = reopen()
    ledger.add_late("peer", "base")
    monkeypatch.setattr(ledger, "_write", lambda *args, **kwargs: pytest.fail("a write"))
    ledger.add_late("peer", "base")


# --- failures ----------------------------------------------------------------------------------------


class BrokenVFS(apsw.VFS):
    """The system's files, whose syncs fail on demand, and are counted."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "")
        self.broken = False
        self.syncs = 0

    def xOpen(self, name: Any, flags: Any) -> apsw.VFSFile:
        return BrokenFile(self, name, flags)


class BrokenFile(apsw.VFSFile):
    def __init__(self, vfs: BrokenVFS, name: Any, flags: Any) -> None:
        super().__init__("", name, flags)
        self.vfs = vfs

    def xSync(self, flags: int) -> None:
        if self.vfs.broken:
            raise apsw.IOError("the disk is broken")
        self.vfs.syncs += 1
        super().xSync(flags)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> BrokenVFS:
    vfs = BrokenVFS("broken-ledger")
    real = apsw.Connection
    monkeypatch.setattr(apsw, "Connection", lambda path, **kw: real(path, vfs="broken-ledger", **kw))
    return vfs


def test_a_failed_sync_is_told_and_repaired(tmp_path: Path, disk: BrokenVFS) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.store_promise("K", 1, "peer-1")
    ledger.bury("base", HERE, DESTROYED, [])
    disk.broken = True
    for _ in range(2):
        for write in (lambda: ledger.store_promise("K", 2, "peer-2"), lambda: ledger.exhume("base")):
            with pytest.raises(StatusError) as caught:
                write()
            assert caught.value.code in (500, 503)
        # Readers never see what was told to have failed.
        assert ledger.promise("K") == Promise(1, "peer-1")
        assert ledger.grave("base") is not None
    disk.broken = False
    ledger.store_promise("K", 2, "peer-3")
    ledger.add_late("peer", "base")
    ledger.close()
    ledger = Ledger(str(tmp_path))
    assert ledger.promise("K") == Promise(2, "peer-3")
    assert ledger.grave("base") is not None
    assert ledger.late("peer") == ["base"]
    ledger.close()


def test_what_a_failed_sync_left_in_the_wal_goes_before_the_next_write(tmp_path: Path, disk: BrokenVFS) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.store_promise("K", 1, "peer-1")
    disk.broken = True
    with pytest.raises(StatusError):
        ledger.bury("base", HERE, DESTROYED, [])
    disk.broken = False
    wal = tmp_path / ".replication" / "ledger-wal"
    suspect = wal.read_bytes()
    ledger.store_promise("K", 2, "peer-1")
    # The WAL began anew: its salt is another one, and no frame of the former one is left.
    assert wal.read_bytes()[16:24] != suspect[16:24]
    assert wal.stat().st_size < len(suspect)
    ledger.close()


def test_only_what_must_be_durable_is_synced(tmp_path: Path, disk: BrokenVFS) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.store_promise("K", 1, "peer")
    before = disk.syncs
    for number in range(10):
        ledger.add_late("peer", f"base{number}")
    assert disk.syncs == before
    for write in (
        lambda: ledger.store_promise("K", 2, "peer"),
        lambda: ledger.bury("base", HERE, DESTROYED, []),
        lambda: ledger.exhume("base"),
    ):
        before = disk.syncs
        write()
        assert disk.syncs > before
    ledger.close()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / ".replication").mkdir()
    (tmp_path / ".replication" / "ledger").write_bytes(b"no database" * 1000)
    with pytest.raises(StatusError) as caught:
        Ledger(str(tmp_path))
    assert caught.value.code == 511


def test_a_volume_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / ".replication").write_bytes(b"")
    with pytest.raises(StatusError) as caught:
        Ledger(str(tmp_path))
    assert caught.value.code == 503


def test_a_closed_ledger_refuses(reopen: Open) -> None:
    ledger = reopen()
    ledger.store_promise("K", 1, "peer")
    ledger.close()
    ledger.close()
    for call in (
        lambda: ledger.grave("base"),
        lambda: ledger.store_promise("K", 2, "peer"),
        lambda: ledger.add_late("peer", "base"),
        ledger.late_peers,
    ):
        with pytest.raises(StatusError) as caught:
            call()
        assert caught.value.code == 503
    assert ledger.promise("K") == Promise(1, "peer")


def test_many_threads_share_a_ledger(reopen: Open) -> None:
    ledger = reopen()
    barrier = threading.Barrier(6)

    def use(thread: int) -> None:
        barrier.wait()
        for number in range(30):
            base = f"base{thread}.{number}"
            ledger.bury(base, HERE, DESTROYED, ["a"])
            ledger.add_late(f"peer{thread}", base)
            assert ledger.grave(base) is not None
            assert base in ledger.late(f"peer{thread}")
            if number % 2:
                ledger.exhume(base)
                ledger.clear_late(f"peer{thread}", base)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(use, range(6)))
    ledger = reopen()
    for thread in range(6):
        assert len(ledger.late(f"peer{thread}")) == 15
        assert sum(1 for number in range(30) if ledger.grave(f"base{thread}.{number}")) == 15
