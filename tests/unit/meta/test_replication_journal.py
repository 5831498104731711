# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Histories of bases: written by one copy, applied, undone and applied again by another one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from oio.meta.base_type import ENGINE_SCHEMA
from oio.meta.changeset import Capture
from oio.meta.meta2.schema import META2
from oio.meta.replication import journal
from oio.meta.replication.journal import CannotRollBack, Diverged
from oio.meta.replication.positions import (
    NOWHERE,
    Entry,
    Position,
    after,
    digest_after,
    epoch_of,
    term_of,
)

TABLES = [*META2.tables(), "events"]
TERM = term_of(3)
EVERYTHING = 1 << 30

Change = Callable[[apsw.Connection], object]
Content = dict[str, list[tuple[Any, ...]]]


class Copy:
    """One copy of a base in memory."""

    def __init__(self) -> None:
        self.connection = apsw.Connection(":memory:")
        self.connection.execute(ENGINE_SCHEMA + META2.schema)
        with self.connection:
            journal.install(self.connection)

    def write(self, change: Change, term: int = TERM, script: str = "") -> Entry:
        """Make a change, as the leader does."""
        capture = Capture(self.connection, TABLES)
        try:
            with self.connection:
                former = self.position
                if script:
                    self.connection.execute(script)
                change(self.connection)
                entry = Entry(term, former.seq + 1, capture.changeset(), script)
                assert journal.append(self.connection, former, entry) == after(former, entry)
        finally:
            capture.close()
        return entry

    def apply(self, entry: Entry) -> Position:
        with self.connection:
            return journal.apply(self.connection, entry, TABLES)

    def roll_back(self, seq: int) -> Position:
        with self.connection:
            return journal.roll_back(self.connection, seq)

    def trim(self, max_entries: int, max_bytes: int = EVERYTHING) -> None:
        with self.connection:
            journal.trim(self.connection, max_entries, max_bytes)

    @property
    def position(self) -> Position:
        return journal.position(self.connection)

    def content(self) -> Content:
        return {name: self.connection.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}


@pytest.fixture
def leader() -> Iterator[Copy]:
    copy = Copy()
    yield copy
    copy.connection.close()


@pytest.fixture
def follower() -> Iterator[Copy]:
    copy = Copy()
    yield copy
    copy.connection.close()


def admin(key: str, value: str) -> Change:
    """Set an admin key."""
    sql = "INSERT INTO admin VALUES(?, ?) ON CONFLICT(k) DO UPDATE SET v = excluded.v"
    return lambda connection: connection.execute(sql, (key, value))


def fill(copy: Copy, count: int) -> list[Entry]:
    return [copy.write(admin(f"k{number}", str(number))) for number in range(count)]


# --- random histories ------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "é\0x", ""])
versions = st.integers(1, 3)
contents = st.binary(min_size=1, max_size=2)
values = st.one_of(st.none(), st.binary(max_size=3), st.text(max_size=3))

changes = st.one_of(
    st.tuples(
        st.just("INSERT OR REPLACE INTO aliases VALUES(?, ?, ?, ?, ?, 5)"),
        st.tuples(names, versions, contents, st.booleans(), versions),
    ),
    st.tuples(
        st.just("INSERT OR REPLACE INTO contents VALUES(?, ?, ?, 5, 5, 'text', 'plain', NULL)"),
        st.tuples(contents, st.one_of(st.none(), contents), versions),
    ),
    st.tuples(
        st.just("INSERT OR IGNORE INTO chunks VALUES(?, ?, '0', x'00', ?, 5)"),
        st.tuples(names, contents, versions),
    ),
    st.tuples(
        st.just("INSERT OR REPLACE INTO properties VALUES(?, ?, ?, ?)"),
        st.tuples(names, versions, names, values),
    ),
    st.tuples(
        st.just("INSERT INTO admin VALUES(?, ?) ON CONFLICT(k) DO UPDATE SET v = excluded.v"),
        st.tuples(names, st.text(max_size=3)),
    ),
    # The key of a row changes.
    st.tuples(
        st.just("UPDATE OR IGNORE aliases SET alias = ?, mtime = ? WHERE alias = ?"),
        st.tuples(names, versions, names),
    ),
    st.tuples(st.just("UPDATE chunks SET size = ?, ctime = size"), st.tuples(versions)),
    st.tuples(st.just("UPDATE properties SET value = ? WHERE alias = ?"), st.tuples(values, names)),
    st.tuples(st.just("DELETE FROM aliases WHERE alias = ?"), st.tuples(names)),
    st.tuples(st.just("DELETE FROM admin WHERE k = ?"), st.tuples(names)),
    st.tuples(st.sampled_from([f"DELETE FROM {name}" for name in TABLES]), st.just(())),
    st.tuples(st.just("INSERT INTO events(event) VALUES(?)"), st.tuples(values)),
    st.tuples(st.just("INSERT OR REPLACE INTO events VALUES(0, NULL)"), st.just(())),
)
#: Members of one transaction; those that are marked fail, and leave nothing.
transactions = st.lists(st.tuples(st.booleans(), st.lists(changes, max_size=4)), max_size=3)
histories = st.lists(transactions, min_size=1, max_size=10)


def run(members: list[tuple[bool, list[tuple[str, tuple[Any, ...]]]]]) -> Change:
    def change(connection: apsw.Connection) -> None:
        for fails, statements in members:
            connection.execute("SAVEPOINT member")
            for sql, bindings in statements:
                connection.execute(sql, bindings)
            if fails:
                connection.execute("ROLLBACK TO member")
            connection.execute("RELEASE member")

    return change


@settings(max_examples=150, deadline=None)
@given(histories, st.data())
def test_a_copy_goes_back_and_forth_through_a_history(history: Any, data: st.DataObject) -> None:
    leader, follower = Copy(), Copy()
    states = [(leader.position, leader.content())]
    entries = []
    for members in history:
        entries.append(leader.write(run(members)))
        states.append((leader.position, leader.content()))
        assert follower.apply(entries[-1]) == leader.position
        assert follower.content() == leader.content()
    assert journal.entries_after(leader.connection, NOWHERE, EVERYTHING) == entries
    for _ in range(3):
        seq = data.draw(st.integers(0, follower.position.seq))
        assert follower.roll_back(seq) == states[seq][0] == follower.position
        assert follower.content() == states[seq][1]
        missing = journal.entries_after(leader.connection, follower.position, EVERYTHING)
        assert missing == entries[seq:]
        for entry in missing[: data.draw(st.integers(0, len(missing)))]:
            follower.apply(entry)
        assert (follower.position, follower.content()) == states[follower.position.seq]
        expected = [state[0] for state in states[follower.position.seq :: -1]]
        assert journal.tail(follower.connection) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=30), st.integers(0, 40), st.integers(0, 4000))
def test_a_trimmed_journal_serves_what_it_kept(sizes: list[int], max_entries: int, max_bytes: int) -> None:
    copy = Copy()
    entries = [copy.write(admin("k", f"{seq}." + "x" * size)) for seq, size in enumerate(sizes)]
    positions = journal.tail(copy.connection)[::-1]
    for _ in range(2):
        copy.trim(max_entries, max_bytes)
        kept = len(journal.tail(copy.connection)) - 1
        assert kept >= min(len(sizes), journal.KEPT_MIN)
        assert kept <= max(max_entries, journal.KEPT_MIN)
        kept_bytes = sum(len(entry.changeset) for entry in entries[len(entries) - kept :])
        assert kept_bytes <= max_bytes or kept <= journal.KEPT_MIN
        # Nothing more than needed went away.
        if kept < min(len(sizes), max_entries):
            assert kept_bytes + len(entries[-kept - 1].changeset) > max_bytes
        for position in positions:
            found = journal.entries_after(copy.connection, position, EVERYTHING)
            within = position.seq >= len(sizes) - kept
            assert found == (entries[position.seq :] if within else None)


# --- positions and digests -------------------------------------------------------------------------


def test_a_term_holds_an_epoch_and_an_attempt() -> None:
    assert term_of(5) == 5 << 20
    assert term_of(5, 7) == (5 << 20) + 7
    assert epoch_of(term_of(5, 7)) == 5
    assert term_of(5, (1 << 20) - 1) < term_of(6)
    for epoch, attempt in ((1, 1 << 20), (1, -1), (-1, 0)):
        with pytest.raises(ValueError, match="no term"):
            term_of(epoch, attempt)


def test_the_digest_is_the_documented_one() -> None:
    entry = Entry(TERM, 8, b"changes", "CREATE TABLE é(x)")
    previous = bytes(range(16))
    script = "CREATE TABLE é(x)".encode()
    head = previous + struct.pack(">QQQQ", TERM, 8, len(script), 7)
    expected = blake3(head + script + b"changes").digest(length=16)
    assert digest_after(previous, entry) == expected
    assert after(Position(TERM, 7, previous), entry) == Position(TERM, 8, expected)


def test_everything_in_an_entry_counts_in_the_digest() -> None:
    entries = [
        Entry(TERM, 1), Entry(TERM + 1, 1), Entry(TERM, 2), Entry(TERM, 1, b"x"), Entry(TERM, 1, b"", "x"),
        Entry(TERM, 1, b"x", "x"),
    ]  # fmt: skip
    digests = {digest_after(previous, entry) for entry in entries for previous in (b"", b"p" * 16)}
    assert len(digests) == 2 * len(entries)


def test_positions_and_entries_travel() -> None:
    entry = Entry(TERM, 1, b"changes", "script")
    position = after(NOWHERE, entry)
    for value, kind in ((entry, Entry), (position, Position), (NOWHERE, Position)):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind) == value
    assert position.rank == (TERM, 1)


@pytest.mark.parametrize("entry", [Entry(TERM, 1), Entry(TERM, 3), Entry(TERM - 1, 2)])
def test_an_entry_that_does_not_follow_is_refused(leader: Copy, entry: Entry) -> None:
    first = leader.write(admin("k", "v"))
    position = after(NOWHERE, first)
    with pytest.raises(ValueError, match="does not follow"):
        after(position, entry)
    with pytest.raises(ValueError, match="does not follow"), leader.connection:
        journal.append(leader.connection, position, entry)
    with pytest.raises(Diverged, match="does not follow"):
        leader.apply(entry)
    assert journal.tail(leader.connection) == [position, NOWHERE]


# --- the table -------------------------------------------------------------------------------------


def test_a_base_that_was_never_replicated_is_nowhere() -> None:
    connection = apsw.Connection(":memory:")
    assert not journal.installed(connection)
    assert journal.position(connection) == NOWHERE
    assert journal.tail(connection) == []
    assert journal.entries_after(connection, NOWHERE, EVERYTHING) is None
    assert journal.roll_back(connection, 0) == NOWHERE
    with pytest.raises(CannotRollBack):
        journal.roll_back(connection, 1)
    with connection:
        journal.install(connection)
    assert journal.installed(connection)
    assert journal.tail(connection) == [NOWHERE]
    assert journal.entries_after(connection, NOWHERE, EVERYTHING) == []


def test_installing_again_changes_nothing(leader: Copy) -> None:
    fill(leader, 2)
    before = journal.tail(leader.connection)
    with leader.connection:
        journal.install(leader.connection)
    assert journal.tail(leader.connection) == before


def test_an_entry_goes_with_the_transaction(leader: Copy) -> None:
    fill(leader, 1)
    before = leader.content(), journal.tail(leader.connection)
    with pytest.raises(ZeroDivisionError), leader.connection:
        admin("k", "v")(leader.connection)
        journal.append(leader.connection, leader.position, Entry(TERM, 2))
        raise ZeroDivisionError
    assert (leader.content(), journal.tail(leader.connection)) == before


def test_the_journal_has_no_branches(leader: Copy) -> None:
    """An entry is added to where the base stands, whatever its author believes."""
    entries = fill(leader, 3)
    third = leader.position
    second = journal.tail(leader.connection)[1]
    for believed, entry in (
        (second, entries[2]),
        (Position(TERM, 3, b"d" * 16), Entry(TERM, 4)),
        (Position(TERM, 8, b"d" * 16), Entry(TERM, 9)),
    ):
        with pytest.raises(ValueError, match="not the last one"), leader.connection:
            journal.append(leader.connection, believed, entry)
    assert leader.position == third


def test_the_journal_is_not_in_changesets(leader: Copy) -> None:
    entry = leader.write(admin("k", "v"))
    assert {change.name for change in apsw.Changeset.iter(entry.changeset)} == {"admin"}
    # Even when all the entries are written while a session records.
    capture = Capture(leader.connection, TABLES)
    with leader.connection:
        journal.append(leader.connection, leader.position, Entry(TERM, 2))
        assert capture.changeset() == b""
    capture.close()


def test_the_tail_is_as_long_as_wanted(leader: Copy) -> None:
    fill(leader, 5)
    assert [position.seq for position in journal.tail(leader.connection, 3)] == [5, 4, 3]
    assert [position.seq for position in journal.tail(leader.connection)] == [5, 4, 3, 2, 1, 0]


def test_a_new_position_empties_the_journal(leader: Copy) -> None:
    fill(leader, 3)
    content = leader.content()
    there = Position(term_of(9), 70, b"d" * 16)
    with leader.connection:
        journal.set_position(leader.connection, there)
    assert journal.tail(leader.connection) == [there]
    assert leader.content() == content
    leader.write(admin("k", "v"), term=term_of(9))
    assert leader.roll_back(70) == there
    with pytest.raises(CannotRollBack):
        leader.roll_back(69)


def test_a_position_can_be_given_to_a_base_without_a_journal() -> None:
    connection = apsw.Connection(":memory:")
    there = Position(TERM, 70, b"d" * 16)
    with connection:
        journal.set_position(connection, there)
    assert journal.tail(connection) == [there]


def test_a_journal_survives_in_its_file(tmp_path: Path) -> None:
    path = str(tmp_path / "base")
    connection = apsw.Connection(path)
    connection.execute("PRAGMA journal_mode=WAL")
    with connection:
        journal.install(connection)
        position = journal.append(connection, NOWHERE, Entry(TERM, 1))
    connection.close()
    connection = apsw.Connection(path)
    assert journal.tail(connection) == [position, NOWHERE]


# --- what others ask for -----------------------------------------------------------------------------


def test_entries_are_given_by_size_but_one_at_least(leader: Copy) -> None:
    entries = [leader.write(admin(f"k{number}", "v" * 1000)) for number in range(4)]
    size = len(entries[0].changeset)
    for max_bytes, count in ((0, 1), (size, 1), (2 * size - 1, 1), (2 * size, 2), (4 * size, 4)):
        assert journal.entries_after(leader.connection, NOWHERE, max_bytes) == entries[:count]


def test_the_last_position_has_no_entries_after_it(leader: Copy) -> None:
    fill(leader, 2)
    assert journal.entries_after(leader.connection, leader.position, EVERYTHING) == []


def test_positions_of_another_history_are_unknown(leader: Copy) -> None:
    fill(leader, 2)
    here = leader.position
    for seq, digest in ((here.seq, b"d" * 16), (here.seq + 1, here.digest), (1, here.digest), (0, here.digest)):
        assert journal.entries_after(leader.connection, Position(TERM, seq, digest), EVERYTHING) is None


def test_the_border_of_a_trimmed_journal(leader: Copy, follower: Copy) -> None:
    """One position before the oldest entry is still known: what follows can be sent, and undone down to there."""
    entries = fill(leader, 20)
    positions = journal.tail(leader.connection)[::-1]
    for entry in entries[:10]:
        follower.apply(entry)
    at_border = follower.content()
    leader.trim(10)
    assert journal.tail(leader.connection) == positions[:9:-1]
    assert journal.entries_after(leader.connection, positions[9], EVERYTHING) is None
    assert journal.entries_after(leader.connection, positions[10], EVERYTHING) == entries[10:]
    with pytest.raises(CannotRollBack):
        leader.roll_back(9)
    assert leader.roll_back(10) == positions[10]
    assert leader.content() == at_border
    assert journal.tail(leader.connection) == [positions[10]]
    # It goes on from there.
    for entry in entries[10:]:
        leader.apply(entry)
    assert leader.position == positions[20]
    leader.trim(10)
    assert journal.tail(leader.connection) == positions[:9:-1]


def test_a_large_entry_stays_until_it_is_far_behind(leader: Copy) -> None:
    fill(leader, 3)
    large = leader.write(admin("large", "v" * 100_000))
    for _ in range(journal.KEPT_MIN - 1):
        leader.write(admin("k", "v"))
        leader.trim(1000, 10_000)
    border = journal.tail(leader.connection)[-1]
    assert border.seq == 3
    assert journal.entries_after(leader.connection, border, 0) == [large]
    leader.write(admin("k", "v"))
    leader.trim(1000, 10_000)
    assert journal.tail(leader.connection)[-1].seq == 4


# --- schema upgrades ---------------------------------------------------------------------------------

UPGRADE = "ALTER TABLE contents ADD COLUMN extra TEXT; CREATE TABLE more (k TEXT NOT NULL PRIMARY KEY)"


def test_a_script_runs_before_the_changeset(leader: Copy, follower: Copy) -> None:
    follower.apply(leader.write(admin("schema_version", "1.8")))
    upgrade = leader.write(admin("schema_version", "1.9"), script=UPGRADE)
    follower.apply(upgrade)
    insert = "INSERT INTO contents VALUES(x'00', NULL, 1, 5, 5, 'text', 'plain', NULL, 'extra')"
    follower.apply(leader.write(lambda connection: connection.execute(insert)))
    assert follower.content() == leader.content()
    assert follower.position == leader.position
    assert follower.connection.execute("SELECT count(*) FROM more").get == 0
    given_back = journal.entries_after(leader.connection, journal.tail(leader.connection)[2], EVERYTHING)
    assert given_back is not None
    assert given_back[0] == upgrade


def test_a_script_cannot_be_undone(leader: Copy) -> None:
    leader.write(admin("k", "1"))
    leader.write(admin("k", "2"), script=UPGRADE)
    leader.write(admin("k", "3"))
    leader.write(admin("k", "4"))
    with pytest.raises(CannotRollBack, match="schema"):
        leader.roll_back(1)
    assert leader.connection.execute("SELECT v FROM admin").get == "4"
    assert leader.roll_back(2).seq == 2
    assert leader.connection.execute("SELECT v FROM admin").get == "2"


def test_a_script_that_fails_here_is_a_divergence(leader: Copy, follower: Copy) -> None:
    follower.connection.execute("CREATE TABLE more (x)")
    with pytest.raises(Diverged, match="script"):
        follower.apply(leader.write(admin("k", "v"), script=UPGRADE))
    assert follower.position == NOWHERE
    # All or nothing: the first statement of the script is undone as well.
    assert len(follower.connection.execute("PRAGMA table_info(contents)").fetchall()) == 8


# --- divergence --------------------------------------------------------------------------------------

BEHIND_ITS_BACK = {
    "other values": ("UPDATE admin SET v = 'x' WHERE k = 'changed'", "other values"),
    "row to delete has other values": ("UPDATE admin SET v = 'x' WHERE k = 'deleted'", "other values"),
    "row to change is absent": ("DELETE FROM admin WHERE k = 'changed'", "absent"),
    "row to delete is absent": ("DELETE FROM admin WHERE k = 'deleted'", "absent"),
    "row to add exists": ("INSERT INTO admin VALUES('added', 'x')", "exists already"),
    "row to add exists with the same values": ("INSERT INTO admin VALUES('added', '3')", "exists already"),
    "a constraint": (
        "CREATE UNIQUE INDEX one ON admin(v) WHERE v = '3'; INSERT INTO admin VALUES('x', '3')", "constraint",
    ),
    "no such table": ("DROP TABLE admin", "0 rows of 3"),
    "other columns": ("DROP TABLE admin; CREATE TABLE admin (k TEXT NOT NULL PRIMARY KEY)", "0 rows of 3"),
    "other key": ("DROP TABLE admin; CREATE TABLE admin (k TEXT, v TEXT PRIMARY KEY)", "0 rows of 3"),
}


@pytest.mark.parametrize("case", BEHIND_ITS_BACK)
def test_a_change_behind_the_back_of_the_journal_is_detected(leader: Copy, follower: Copy, case: str) -> None:
    def first(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO admin VALUES('changed', '1'), ('deleted', '1')")

    def second(connection: apsw.Connection) -> None:
        connection.execute("UPDATE admin SET v = '2' WHERE k = 'changed'")
        connection.execute("DELETE FROM admin WHERE k = 'deleted'")
        connection.execute("INSERT INTO admin VALUES('added', '3')")

    follower.apply(leader.write(first))
    before = follower.position
    statements, message = BEHIND_ITS_BACK[case]
    follower.connection.execute(statements)
    with pytest.raises(Diverged, match=message):
        follower.apply(leader.write(second))
    assert follower.position == before


def test_a_change_behind_the_back_of_the_journal_is_detected_while_undoing(leader: Copy) -> None:
    leader.write(admin("k", "1"))
    leader.write(admin("k", "2"))
    leader.connection.execute("UPDATE admin SET v = 'x'")
    before = leader.position
    with pytest.raises(Diverged, match="other values"):
        leader.roll_back(1)
    assert leader.position == before
    assert leader.content()["admin"] == [("k", "x")]


def test_a_table_that_entries_may_not_change_is_a_divergence(leader: Copy, follower: Copy) -> None:
    entry = leader.write(admin("k", "v"))
    with pytest.raises(Diverged, match="0 rows of 1"), follower.connection:
        journal.apply(follower.connection, entry, ["contents"])
    with follower.connection:
        assert journal.apply(follower.connection, entry) == leader.position


def test_entries_cannot_change_the_journal(leader: Copy, follower: Copy) -> None:
    capture = Capture(leader.connection)
    fill(leader, 1)
    entry = Entry(TERM, 1, capture.changeset())
    capture.close()
    assert {change.name for change in apsw.Changeset.iter(entry.changeset)} == {"admin", "changes"}
    with pytest.raises(Diverged), follower.connection:
        journal.apply(follower.connection, entry)


@pytest.mark.parametrize("damage", [lambda text: text[:-3], lambda text: b"x" + text, lambda text: b"T"])
def test_a_damaged_changeset_is_a_divergence(
    leader: Copy, follower: Copy, damage: Callable[[bytes], bytes]
) -> None:
    entry = leader.write(admin("k", "v"))
    entry.changeset = damage(entry.changeset)
    with pytest.raises(Diverged, match="malformed"):
        follower.apply(entry)
    assert follower.position == NOWHERE


def test_two_histories_of_the_same_length_differ(leader: Copy, follower: Copy) -> None:
    """What a peer took that no majority confirmed is undone for what the majority took instead."""
    for entry in fill(leader, 3):
        follower.apply(entry)
    follower.write(admin("k", "unconfirmed"))
    confirmed = leader.write(lambda connection: None, term=TERM + 1)
    assert follower.position.seq == leader.position.seq
    assert follower.position != leader.position
    assert journal.entries_after(leader.connection, follower.position, EVERYTHING) is None
    common = [place for place in journal.tail(follower.connection) if place in journal.tail(leader.connection)]
    assert follower.roll_back(common[0].seq) == common[0]
    assert journal.entries_after(leader.connection, common[0], EVERYTHING) == [confirmed]
    assert follower.apply(confirmed) == leader.position
    assert follower.content() == leader.content()
