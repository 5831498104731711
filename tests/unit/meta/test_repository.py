# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Repository: creation, concurrency, eviction, failures of the disk, capture of changes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from oio.common.status import StatusError
from oio.meta import sqlite_files
from oio.meta.base import BaseOptions
from oio.meta.base_type import BaseType
from oio.meta.repository import Repository

TOY = BaseType(
    name="toy",
    schema="CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, text TEXT NOT NULL);",
    directory_width=1,
)


def insert(tx: Any, text: str) -> None:
    tx.execute("INSERT INTO notes(text) VALUES(?)", (text,))
    tx.set("count", str(int(tx.get("count", "0")) + 1))


def count(reader: Any) -> tuple[int, int]:
    (rows,) = reader.execute("SELECT count(*) FROM notes").fetchone()
    return rows, int(reader.get("count", "0"))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    repository = Repository(str(tmp_path), TOY, options=BaseOptions(sync="normal", wait_s=5))
    yield repository
    repository.close()


def test_create_read_write_destroy(repository: Repository) -> None:
    assert repository.create("b1", lambda tx: tx.set("a", "1"))
    assert not repository.create("b1", lambda tx: tx.set("a", "2"))
    assert repository.exists("b1")
    assert repository.read("b1", lambda reader: reader.get("a")) == "1"
    repository.write("b1", lambda tx: insert(tx, "x"))
    assert repository.read("b1", count) == (1, 1)
    assert repository.read("b1", lambda reader: reader.get("version:main.notes")) == "2:0"
    assert list(repository.names()) == ["b1"]

    def refuse(tx: Any) -> None:
        raise StatusError(438, "no")

    with pytest.raises(StatusError):
        repository.destroy("b1", refuse)
    assert repository.read("b1", count) == (1, 1)
    repository.destroy("b1")
    assert not repository.exists("b1")
    for attempt in (repository.read, repository.write, repository.destroy):
        with pytest.raises(StatusError) as caught:
            attempt("b1", lambda tx: None)  # type: ignore[operator]
        assert caught.value.code == 431
    assert repository.stats()["open"] == 0


def test_bad_names(repository: Repository) -> None:
    for name in ("", "../x", "a/b", ".hidden", "a\0b"):
        with pytest.raises(StatusError) as caught:
            repository.create(name, lambda tx: None)
        assert caught.value.code == 400


def test_concurrent_creation_has_one_winner(repository: Repository) -> None:
    barrier = threading.Barrier(8)
    created: list[bool] = []

    def create() -> None:
        barrier.wait()
        created.append(repository.create("b", lambda tx: None))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 7 + [True]
    repository.close()
    assert os.listdir(os.path.join(repository.volume, "b")) == ["b.toy"]


def test_a_base_that_is_being_created_is_absent_or_whole(repository: Repository) -> None:
    outcomes: list[object] = []
    wanted = ["n0"]
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                outcomes.append(repository.read(wanted[0], lambda reader: reader.get("a")))
            except StatusError as exc:
                outcomes.append(exc.code)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(40):
            wanted[0] = f"n{number}"
            seen = len(outcomes)
            while len(outcomes) < seen + 2:
                time.sleep(0)
            repository.create(wanted[0], lambda tx: tx.set("a", "1"))
            assert repository.read(wanted[0], lambda reader: reader.get("a")) == "1"
            if number % 2:
                repository.destroy(wanted[0])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert set(outcomes) == {"1", 431}


def test_concurrent_writers_share_commits(tmp_path: Path) -> None:
    repository = Repository(str(tmp_path), TOY, options=BaseOptions(sync="full", wait_s=30))
    repository.create("b", lambda tx: None)
    failures: list[int] = []

    def write(worker: int) -> None:
        for i in range(40):

            def fn(tx: Any, i: int = i) -> None:
                insert(tx, f"{worker}-{i}")
                if i % 10 == 7:
                    raise StatusError(421, "refused on purpose")

            try:
                repository.write("b", fn)
            except StatusError as exc:
                failures.append(exc.code)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [421] * 32
    assert repository.read("b", count) == (288, 288)
    with repository.opened("b") as base:
        assert base.commits < 288
    repository.close()


def test_unexpected_error_of_a_member(repository: Repository) -> None:
    repository.create("b", lambda tx: None)

    def fail(tx: Any) -> None:
        insert(tx, "x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        repository.write("b", fail)
    with pytest.raises(StatusError) as caught:
        repository.write("b", lambda tx: tx.execute("INSERT INTO notes(id, text) VALUES(1, NULL)"))
    assert caught.value.code == 19
    assert repository.read("b", count) == (0, 0)


def test_eviction_under_load(tmp_path: Path) -> None:
    repository = Repository(
        str(tmp_path), TOY, options=BaseOptions(sync="off", wait_s=30), open_max=4
    )
    names = [f"{i:02d}" for i in range(20)]
    for name in names:
        repository.create(name, lambda tx: None)
    errors: list[Exception] = []

    def work(seed: int) -> None:
        try:
            for i in range(60):
                name = names[(seed * 7 + i * 3) % len(names)]
                repository.write(name, lambda tx: insert(tx, "x"))
                rows, counter = repository.read(name, count, short=i % 2 == 0)
                assert rows > 0
                assert counter > 0
        except Exception as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    stats = repository.stats()
    assert stats["open"] <= 4
    assert stats["evictions"] > 16
    totals = [repository.read(name, count) for name in names]
    assert sum(rows for rows, _ in totals) == sum(counter for _, counter in totals) == 360
    repository.close()


def test_all_bases_in_use(tmp_path: Path) -> None:
    repository = Repository(str(tmp_path), TOY, options=BaseOptions(wait_s=0.05), open_max=1)
    repository.create("a", lambda tx: None)
    repository.create("b", lambda tx: None)
    with repository.opened("a"), pytest.raises(StatusError) as caught:
        repository.read("b", count)
    assert caught.value.code == 503
    assert repository.read("b", count) == (0, 0)
    repository.close()


def test_readers_do_not_wait_for_a_writer(repository: Repository) -> None:
    repository.create("b", lambda tx: None)
    inside, leave = threading.Event(), threading.Event()

    def slow(tx: Any) -> None:
        insert(tx, "x")
        inside.set()
        assert leave.wait(10)

    writer = threading.Thread(target=lambda: repository.write("b", slow))
    writer.start()
    assert inside.wait(10)
    assert repository.read("b", count) == (0, 0)
    assert repository.read("b", count, short=True) == (0, 0)
    leave.set()
    writer.join()
    assert repository.read("b", count, short=True) == (1, 1)
    assert repository.read("b", count) == (1, 1)


def test_a_request_does_not_outlive_its_deadline(tmp_path: Path) -> None:
    options = BaseOptions(sync="off", wait_s=30, readers_max=1)
    repository = Repository(str(tmp_path), TOY, options=options)
    repository.create("b1", lambda tx: None)
    entered, go = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        entered.set()
        assert go.wait(10)

    for use in (repository.write, repository.read):
        ran: list[Any] = []
        entered.clear()
        go.clear()
        holder = threading.Thread(target=use, args=("b1", hold))
        holder.start()
        assert entered.wait(10)
        with pytest.raises(StatusError) as caught:
            use("b1", ran.append, deadline=time.monotonic() + 0.5)
        assert caught.value.code == 503
        with pytest.raises(StatusError) as caught:
            use("b1", ran.append, deadline=time.monotonic() - 1)
        assert caught.value.code == 504
        go.set()
        holder.join(10)
        assert ran == []
    repository.close()


def test_too_many_readers(tmp_path: Path) -> None:
    options = BaseOptions(wait_s=0.05, waiting_max=1, readers_max=1)
    repository = Repository(str(tmp_path), TOY, options=options)
    repository.create("b", lambda tx: None)

    def nested(reader: Any) -> int:
        with pytest.raises(StatusError) as caught:
            repository.read("b", count)
        return caught.value.code

    assert repository.read("b", nested) == 503
    assert repository.read("b", count) == (0, 0)
    repository.close()


def test_corrupt_base(repository: Repository) -> None:
    repository.create("b", lambda tx: None)
    Path(repository.path("b")).write_bytes(b"this is not a database" * 100)
    with pytest.raises(StatusError) as caught:
        repository.read("b", count)
    assert caught.value.code == 511


class BrokenVFS(apsw.VFS):
    """The system's files, whose syncs fail on demand."""

    broken = False

    def __init__(self) -> None:
        super().__init__("broken", "")

    def xOpen(self, name: Any, flags: Any) -> apsw.VFSFile:
        return BrokenFile(name, flags)


class BrokenFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: Any) -> None:
        super().__init__("", name, flags)

    def xSync(self, flags: int) -> None:
        if BrokenVFS.broken:
            raise apsw.IOError("the disk is broken")
        super().xSync(flags)


def test_failed_sync_fails_everyone_then_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vfs = BrokenVFS()
    real = apsw.Connection
    monkeypatch.setattr(
        apsw, "Connection",
        lambda path, **kw: real(path, **kw) if path == ":memory:" else real(path, vfs="broken", **kw),
    )
    repository = Repository(str(tmp_path), TOY, options=BaseOptions(sync="full", wait_s=5))
    repository.create("b", lambda tx: None)
    repository.write("b", lambda tx: insert(tx, "kept"))
    BrokenVFS.broken = True
    try:
        for _ in range(2):
            with pytest.raises(StatusError) as caught:
                repository.write("b", lambda tx: insert(tx, "lost"))
            assert caught.value.code in (500, 503)
        assert repository.read("b", count) == (1, 1)
    finally:
        BrokenVFS.broken = False
    repository.write("b", lambda tx: insert(tx, "kept"))
    assert repository.read("b", count) == (2, 2)
    repository.close()
    del vfs


class Copy:
    """A replicator that applies changesets to another database."""

    def __init__(self, path: str) -> None:
        self.connection = apsw.Connection(path)
        self.refuse = False
        self.commits = 0

    def begin(self) -> None:
        self.tidied = False

    def tidy(self, connection: apsw.Connection) -> None:
        self.tidied = True

    def replicate(self, connection: apsw.Connection, changeset: bytes, relaxed: bool) -> None:
        if self.refuse:
            raise StatusError(503, "no quorum (1/2)")
        apsw.Changeset.apply(changeset, self.connection)

    def committed(self) -> None:
        assert self.tidied
        self.commits += 1


def test_changesets_make_an_equal_copy(repository: Repository, tmp_path: Path) -> None:
    repository.create("b", lambda tx: tx.set("a", "1"))
    copy_path = tmp_path / "copy.db"
    copy_path.write_bytes(Path(repository.path("b")).read_bytes())
    copy = Copy(str(copy_path))
    with repository.opened("b") as base:
        base.replicate_with(copy)
        for i in range(5):
            base.write(lambda tx, i=i: insert(tx, f"n{i}"))  # type: ignore[misc]
        copy.refuse = True
        with pytest.raises(StatusError) as caught:
            base.write(lambda tx: insert(tx, "refused"))
        assert caught.value.code == 503
        copy.refuse = False
        base.write(lambda tx: insert(tx, "last"))
        assert copy.commits == 6
    for table in ("notes", "admin"):
        sql = f"SELECT * FROM {table} ORDER BY 1"
        mine = repository.read("b", lambda reader, sql=sql: list(reader.execute(sql)))  # type: ignore[misc]
        assert mine == list(copy.connection.execute(sql))
    copy.connection.close()


def test_memory_of_open_bases_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not used for long is closed when the connections take too much memory, and opens again."""
    repository = Repository(str(tmp_path), TOY, options=BaseOptions(sync="off"))
    monkeypatch.setattr(sqlite_files, "HEAP_MAX_BYTES", apsw.memory_used() + (1 << 20))
    names = [f"{number:08X}" for number in range(40)]
    try:
        for name in names:
            repository.create(name, lambda tx: insert(tx, "one"))
            assert repository.read(name, count) == (1, 1)
        assert repository.stats()["open"] < 30
        assert repository.stats()["evictions"] > 10
        assert [repository.read(name, count) for name in names] == [(1, 1)] * 40
    finally:
        repository.close()


# --- images -----------------------------------------------------------------------------------------


def test_installing_an_image(repository: Repository, tmp_path: Path) -> None:
    repository.create("b1", lambda tx: tx.set("a", "1"))
    repository.write("b1", lambda tx: insert(tx, "x"))
    with repository.workshop_file() as path:
        repository.copy_out("b1", path)
        assert not repository.install("b1", path, lambda tx: None)
        assert repository.install("c1", path, lambda tx: tx.set("a", "2"))
    assert os.listdir(os.path.join(repository.volume, ".new")) == []
    assert repository.read("c1", count) == (1, 1)
    assert repository.read("c1", lambda reader: reader.get("a")) == "2"
    repository.write("c1", lambda tx: insert(tx, "y"))
    assert repository.read("b1", count) == (1, 1)
    repository.destroy("b1")
    assert repository.read("c1", count) == (2, 2)


def test_an_image_that_is_refused_leaves_nothing(repository: Repository) -> None:
    repository.create("b1", lambda tx: None)

    def refuse(tx: Any) -> None:
        tx.set("a", "1")
        raise StatusError(431, "no")

    with pytest.raises(StatusError), repository.workshop_file() as path:
        repository.copy_out("b1", path)
        repository.install("c1", path, refuse)
    assert not repository.exists("c1")
    with pytest.raises(StatusError) as caught, repository.workshop_file() as path:
        repository.copy_out("absent", path)
    assert caught.value.code == 431
    with pytest.raises(StatusError) as caught, repository.workshop_file() as path:
        Path(path).write_bytes(b"x" * 5000)
        repository.install("c1", path, lambda tx: None)
    assert caught.value.code == 511
    assert os.listdir(os.path.join(repository.volume, ".new")) == []


def test_an_installed_base_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(str(tmp_path), TOY, options=BaseOptions(sync="full"))
    repository.create("b1", lambda tx: None)
    order: list[str] = []
    fsync, link = os.fsync, os.link

    def watch_fsync(fd: int) -> None:
        target = os.readlink(f"/proc/self/fd/{fd}")
        order.append("file" if target.endswith(".new") else os.path.basename(target))
        fsync(fd)

    def watch_link(source: str, target: str) -> None:
        order.append("link")
        link(source, target)

    with repository.workshop_file() as path:
        repository.copy_out("b1", path)
        monkeypatch.setattr(os, "fsync", watch_fsync)
        monkeypatch.setattr(os, "link", watch_link)
        assert repository.install("c1", path, lambda tx: None)
    monkeypatch.undo()
    assert order == [tmp_path.name, "file", "link", "c"]
    repository.close()


def test_vacuum_waits_for_its_turn_and_shrinks(repository: Repository) -> None:
    repository.create("b1", lambda tx: None)
    for _ in range(50):
        repository.write("b1", lambda tx: insert(tx, "x" * 4000))
    repository.write("b1", lambda tx: tx.execute("DELETE FROM notes WHERE id > 1"))

    def pages(reader: Any) -> int:
        return int(reader.execute("PRAGMA page_count").fetchone()[0])

    before = repository.read("b1", pages)
    version = repository.read("b1", lambda reader: reader.get("version:main.admin"))
    begin = int(time.time())
    repository.vacuum("b1")
    assert repository.read("b1", pages) < before / 4
    after = repository.read("b1", lambda reader: reader.all_admin())
    assert begin <= int(after["sys.last_vacuum"]) <= time.time() and after["version:main.admin"] == version
    assert repository.read("b1", lambda r: r.execute("SELECT count(*) FROM notes").fetchone()) == (1,)
    repository.write("b1", lambda tx: insert(tx, "more"))
    with pytest.raises(StatusError) as caught:
        repository.vacuum("absent")
    assert caught.value.code == 431


def test_a_vacuum_that_fails_harms_nothing(repository: Repository) -> None:
    repository.create("b1", lambda tx: None)
    repository.write("b1", lambda tx: insert(tx, "x" * 20000))
    repository.write("b1", lambda tx: tx.execute("DELETE FROM notes"))
    with repository.opened("b1") as opened:
        writer = opened._writer
        assert writer is not None
        # A statement in progress forbids it.
        pending = writer.execute("SELECT 1 UNION SELECT 2")
        repository.vacuum("b1")
        del pending
    repository.write("b1", lambda tx: insert(tx, "y"))
    assert repository.read("b1", lambda r: r.execute("SELECT count(*) FROM notes").fetchone()) == (1,)


def test_counters_and_rows_of_a_view_belong_together(repository: Repository) -> None:
    """A long reader begins while a commit is under way: its admin keys are those of the rows that it sees."""
    repository.create("b", lambda tx: tx.set("told", "0"))
    stop = threading.Event()
    wrong: list[tuple[str | None, int]] = []

    def add(tx: Any) -> None:
        insert(tx, "x")
        tx.set("told", str(int(tx.get("told")) + 1))

    def look(reader: Any) -> None:
        told, ((rows,),) = reader.get("told"), reader.execute("SELECT count(*) FROM notes")
        if told != str(rows):
            wrong.append((told, rows))

    def read() -> None:
        while not stop.is_set():
            repository.read("b", look)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in readers:
        thread.start()
    for _ in range(300):
        repository.write("b", add)
    stop.set()
    for thread in readers:
        thread.join()
    assert not wrong


# --- new versions of the tables -----------------------------------------------------------------------


def test_a_base_of_a_former_version_is_upgraded_at_its_first_use(repository: Repository) -> None:
    repository.create("b1", lambda tx: tx.set("a", "1"))
    repository.write("b1", lambda tx: insert(tx, "x"))
    repository.close()
    newer = replace(
        TOY,
        schema_version="1.2",
        upgrades={
            "1.0": ("1.1", "ALTER TABLE notes ADD COLUMN colour TEXT DEFAULT 'blue'"),
            "1.1": ("1.2", "UPDATE notes SET colour = 'red'"),
        },
    )
    upgraded = Repository(repository.volume, newer, options=BaseOptions(sync="off"))
    try:
        colours = upgraded.read("b1", lambda reader: reader.execute("SELECT colour FROM notes").fetchall())
        assert colours == [("red",)]
        assert upgraded.read("b1", lambda reader: reader.get("schema_version")) == "1.2"
    finally:
        upgraded.close()
