# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The last operations of a base: noted with the change, known to the copies, forgotten in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from oio.common.status import StatusError
from oio.meta.base import BaseOptions
from oio.meta.base_type import ENGINE_SCHEMA, BaseType
from oio.meta.changeset import Capture
from oio.meta.meta2.schema import META2
from oio.meta.replication import journal, operations
from oio.meta.replication.images import declare_position
from oio.meta.replication.journal import Diverged
from oio.meta.replication.operations import KEPT_S, TABLE, AlreadyDone
from oio.meta.replication.positions import Entry, Position, term_of
from oio.meta.repository import Repository

TERM = term_of(3)
TOY = BaseType(
    name="toy",
    schema="CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, text TEXT NOT NULL);",
    directory_width=1,
)


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    made = apsw.Connection(":memory:")
    made.execute(ENGINE_SCHEMA + META2.schema)
    with made:
        journal.install(made)
        operations.install(made)
    yield made
    made.close()


def known(connection: apsw.Connection) -> dict[str, bytes | None]:
    return dict(connection.execute("SELECT id, reply FROM operations").fetchall())


# --- the table -------------------------------------------------------------------------------------


def test_an_operation_is_made_once_and_answered_again(connection: apsw.Connection) -> None:
    operations.check_new(connection, "id-1")
    operations.note(connection, "id-1", b"reply")
    operations.check_new(connection, "id-2")
    with pytest.raises(AlreadyDone) as caught:
        operations.check_new(connection, "id-1")
    assert caught.value.reply == b"reply"
    with pytest.raises(apsw.ConstraintError):
        operations.note(connection, "id-1", b"other")
    assert known(connection) == {"id-1": b"reply"}


def test_an_operation_without_a_reply(connection: apsw.Connection) -> None:
    operations.note(connection, "id", b"")
    with pytest.raises(AlreadyDone) as caught:
        operations.check_new(connection, "id")
    assert caught.value.reply == b""
    assert known(connection) == {"id": None}


def test_the_table_is_the_documented_one(connection: apsw.Connection) -> None:
    before = int(time.time())
    operations.note(connection, "id", b"r")
    ((kinds, at),) = connection.execute("SELECT typeof(id) || typeof(reply) || typeof(at), at FROM operations")
    assert kinds == "textblobinteger"
    assert before <= at <= time.time()
    names = [row[1] for row in connection.execute("PRAGMA table_info(operations)")]
    assert names == ["id", "reply", "at"]


def test_old_operations_are_forgotten(connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000
    monkeypatch.setattr(time, "time", lambda: float(now))
    operations.note(connection, "early", b"1")
    now += 1
    operations.note(connection, "late", b"2")
    now += KEPT_S - 1
    operations.trim(connection)
    assert set(known(connection)) == {"early", "late"}
    now += 1
    operations.trim(connection)
    assert set(known(connection)) == {"late"}
    operations.check_new(connection, "early")


def test_what_a_rush_left_is_forgotten_in_steps(
    connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "TRIM_MAX", 3)
    for number in (3, 1, 4, 0, 2):
        connection.execute("INSERT INTO operations VALUES(?, NULL, ?)", (f"id-{number}", number))
    operations.note(connection, "new", b"")
    operations.trim(connection)
    assert set(known(connection)) == {"id-3", "id-4", "new"}
    operations.trim(connection)
    operations.trim(connection)
    assert set(known(connection)) == {"new"}


def test_installing_again_forgets_nothing(connection: apsw.Connection) -> None:
    operations.note(connection, "id", b"reply")
    operations.install(connection)
    assert known(connection) == {"id": b"reply"}


def test_a_base_without_the_table_says_so() -> None:
    """Nothing is taken for new, or noted, where nothing can be known."""
    bare = apsw.Connection(":memory:")
    for use in (
        lambda: operations.check_new(bare, "id"),
        lambda: operations.note(bare, "id", b""),
        lambda: operations.trim(bare),
    ):
        with pytest.raises(apsw.SQLError, match="no such table"):
            use()


def test_an_image_that_begins_a_history_has_the_table(tmp_path: Path) -> None:
    path = str(tmp_path / "image")
    made = apsw.Connection(path)
    made.execute(ENGINE_SCHEMA + META2.schema)
    made.close()
    there = Position(TERM, 4, b"d" * 16)
    declare_position(path, there)
    made = apsw.Connection(path)
    assert journal.position(made) == there
    assert known(made) == {}
    made.close()


# --- in the history --------------------------------------------------------------------------------


def write(connection: apsw.Connection, change: Callable[[apsw.Connection], object]) -> Entry:
    """Make a change, as the master does."""
    capture = Capture(connection, META2.replicated)
    try:
        with connection:
            former = journal.position(connection)
            change(connection)
            entry = Entry(TERM, former.seq + 1, capture.changeset())
            journal.append(connection, former, entry)
    finally:
        capture.close()
    return entry


@pytest.fixture
def follower(connection: apsw.Connection) -> Iterator[apsw.Connection]:
    copy = apsw.Connection(":memory:")
    with copy.backup("main", connection, "main") as backup:
        backup.step()
    yield copy
    copy.close()


def apply(connection: apsw.Connection, entry: Entry) -> None:
    with connection:
        journal.apply(connection, entry, META2.replicated)


def test_operations_go_with_the_changes(
    connection: apsw.Connection, follower: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy knows them, forgets what is rolled back, and forgets by age when its master does."""
    first = write(connection, lambda made: operations.note(made, "id-1", b"reply"))
    second = write(connection, lambda made: operations.note(made, "id-2", b""))
    apply(follower, first)
    apply(follower, second)
    rows = "SELECT * FROM operations ORDER BY id"
    assert follower.execute(rows).fetchall() == connection.execute(rows).fetchall()
    with pytest.raises(AlreadyDone):
        operations.check_new(follower, "id-1")
    with follower:
        journal.roll_back(follower, first.seq)
    assert set(known(follower)) == {"id-1"}
    operations.check_new(follower, "id-2")
    apply(follower, second)
    later = time.time() + KEPT_S + 2
    monkeypatch.setattr(time, "time", lambda: later)
    apply(follower, write(connection, operations.trim))
    assert known(follower) == known(connection) == {}
    with follower:
        assert journal.roll_back(follower, second.seq).seq == second.seq
    assert set(known(follower)) == {"id-1", "id-2"}


def test_a_copy_without_the_table_gets_an_image(connection: apsw.Connection, follower: apsw.Connection) -> None:
    follower.execute(f"DROP TABLE {TABLE}")
    with pytest.raises(Diverged, match="0 rows of 1"):
        apply(follower, write(connection, lambda made: operations.note(made, "id", b"")))


# --- writers ---------------------------------------------------------------------------------------


class Majority:
    """The copies, which hold a transaction or refuse it."""

    def __init__(self) -> None:
        self.refuse = False
        self.tables: list[set[str]] = []

    def begin(self) -> None:
        self.tidied = False

    def tidy(self, connection: apsw.Connection) -> None:
        self.tidied = True

    def replicate(self, connection: apsw.Connection, changeset: bytes, relaxed: bool) -> None:
        assert self.tidied
        if self.refuse:
            raise StatusError(503, "no quorum (1/2)")
        self.tables.append({change.name for change in apsw.Changeset.iter(changeset)})

    def committed(self) -> None:
        assert self.tidied


@pytest.fixture
def majority() -> Majority:
    return Majority()


@pytest.fixture
def base(tmp_path: Path, majority: Majority) -> Iterator[Any]:
    repository = Repository(str(tmp_path), TOY, options=BaseOptions(sync="off", wait_s=20))
    repository.create("b", lambda tx: None)
    with repository.opened("b") as opened:
        opened.exclusively(operations.install)
        opened.replicate_with(majority)
        yield opened
    repository.close()


def insert(text: str) -> Callable[[Any], str]:
    def work(tx: Any) -> str:
        tx.execute("INSERT INTO notes(text) VALUES(?)", (text,))
        return text

    return work


def notes(base: Any) -> list[str]:
    return base.read(lambda reader: [text for (text,) in reader.execute("SELECT text FROM notes ORDER BY id")])


def test_a_write_that_is_sent_again_is_not_made_twice(base: Any, majority: Majority) -> None:
    assert base.write(insert("a"), operation="id-1") == "a"
    with pytest.raises(AlreadyDone) as caught:
        base.write(insert("a"), operation="id-1")
    assert caught.value.reply == b"\xa1a"
    assert base.write(insert("a"), operation="id-2") == "a"
    assert base.write(insert("b")) == "b"
    assert notes(base) == ["a", "a", "b"]
    assert [TABLE in tables for tables in majority.tables] == [True, True, False]


def test_a_write_that_failed_is_not_noted(base: Any, majority: Majority) -> None:
    def fail(tx: Any) -> None:
        insert("lost")(tx)
        raise StatusError(420, "no such thing")

    with pytest.raises(StatusError, match="no such thing"):
        base.write(fail, operation="id")
    majority.refuse = True
    with pytest.raises(StatusError, match="no quorum"):
        base.write(insert("refused"), operation="id")
    majority.refuse = False
    assert base.write(insert("made"), operation="id") == "made"
    assert notes(base) == ["made"]


def in_one_batch(base: Any, works: list[tuple[Callable[[Any], object], str]]) -> list[object]:
    """Results or errors of writes that share a transaction."""
    entered, release = threading.Event(), threading.Event()
    outcomes: list[object] = [None] * len(works)

    def occupy(tx: Any) -> None:
        entered.set()
        assert release.wait(20)

    def run(index: int) -> None:
        work, operation = works[index]
        try:
            outcomes[index] = base.write(work, operation=operation)
        except (StatusError, AlreadyDone) as exc:
            outcomes[index] = exc

    threads = [threading.Thread(target=base.write, args=(occupy,))]
    threads[0].start()
    assert entered.wait(20)
    for index in range(len(works)):
        threads.append(threading.Thread(target=run, args=(index,)))
        threads[-1].start()
        deadline = time.monotonic() + 20
        while len(base._group._queue) <= index:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    release.set()
    for thread in threads:
        thread.join(20)
    return outcomes


def test_twice_in_one_transaction_is_once(base: Any) -> None:
    first, second = in_one_batch(base, [(insert("a"), "id"), (insert("a"), "id")])
    assert first == "a"
    assert isinstance(second, AlreadyDone)
    assert second.reply == b"\xa1a"
    assert notes(base) == ["a"]


def test_what_members_of_a_refused_transaction_saw_of_each_other_is_not_told(
    base: Any, majority: Majority
) -> None:
    """The second one is not done, and the third one has found nothing: all of it is rolled back."""

    def find(tx: Any) -> None:
        if tx.execute("SELECT 1 FROM notes").fetchone():
            raise StatusError(433, "there is a note")

    majority.refuse = True
    outcomes = in_one_batch(base, [(insert("a"), "id"), (insert("a"), "id"), (find, "")])
    assert [getattr(outcome, "code", outcome) for outcome in outcomes] == [503, 503, 503]
    majority.refuse = False
    assert base.write(insert("a"), operation="id") == "a"
    assert notes(base) == ["a"]
