# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The journal of a base: the last entries of its history, in one table of the base itself.

All functions work in a transaction that the caller has begun, and that the caller ends: an entry and the
change that it tells are committed together or not at all. After an exception the caller must roll back,
because a changeset may be applied in part.

The oldest row of the table is the *border*: it has no entry any more, only the position that its entry led to.
The newest row is the position of the base.
"""

from __future__ import annotations

import time
from collections.abc import Collection

import apsw

from oio.meta.replication.positions import NOWHERE, Entry, Position, after, check_follows

#: Entries that :func:`trim` always leaves: those that no majority confirmed yet may have to be undone.
KEPT_MIN = 8
#: Entries after which a base is looked at for what :func:`trim` may forget.
TRIM_PERIOD = 64

#: What is short stands first: positions are read without the pages of the changesets.
_TABLE = """
CREATE TABLE IF NOT EXISTS changes (
    seq INTEGER PRIMARY KEY NOT NULL,
    term INTEGER NOT NULL,
    digest BLOB NOT NULL,
    total INTEGER NOT NULL,
    at INTEGER NOT NULL,
    script TEXT,
    changeset BLOB
)
"""
_BORDER = "INSERT INTO changes(seq, term, digest, total, at) VALUES(?, ?, ?, 0, ?)"
_APPEND = (
    "INSERT INTO changes(seq, term, digest, total, at, script, changeset)"
    " VALUES(?, ?, ?, (SELECT total + ? FROM changes WHERE seq = ? AND digest = ?), ?, ?, ?)"
)
_NEWEST = "SELECT term, seq, digest FROM changes ORDER BY seq DESC LIMIT ?"
_EXTENT = (
    "SELECT * FROM (SELECT seq, total FROM changes ORDER BY seq LIMIT 1),"
    " (SELECT seq, total FROM changes ORDER BY seq DESC LIMIT 1)"
)
_ENTRIES = "SELECT term, seq, changeset, script FROM changes WHERE seq > ? ORDER BY seq"

_NO_SAVEPOINT = apsw.SQLITE_CHANGESETAPPLY_NOSAVEPOINT
_INVERT = apsw.SQLITE_CHANGESETAPPLY_INVERT
_ABORT = apsw.SQLITE_CHANGESET_ABORT
_REASONS = {
    apsw.SQLITE_CHANGESET_DATA: "has other values",
    apsw.SQLITE_CHANGESET_NOTFOUND: "is absent",
    apsw.SQLITE_CHANGESET_CONFLICT: "exists already",
    apsw.SQLITE_CHANGESET_CONSTRAINT: "breaks a constraint",
    apsw.SQLITE_CHANGESET_FOREIGN_KEY: "breaks a foreign key",
}


class Diverged(Exception):
    """The base is not what its position says: the entry does not fit its content."""


class CannotRollBack(Exception):
    """The journal does not allow to go back that far."""


# --- the table and the position --------------------------------------------------------------------


def install(connection: apsw.Connection) -> None:
    """Make the journal of a base that has none; its position is then :data:`NOWHERE`."""
    connection.execute(_TABLE)
    if not _newest(connection, 1):
        connection.execute(_BORDER, (0, 0, b"", _now_us()))


def installed(connection: apsw.Connection) -> bool:
    """Has the base a journal?"""
    sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'changes'"
    return bool(connection.execute(sql).fetchall())


def position(connection: apsw.Connection) -> Position:
    """Where the base stands; :data:`NOWHERE` when it has no journal."""
    positions = tail(connection, 1)
    return positions[0] if positions else NOWHERE


def tail(connection: apsw.Connection, count: int = 64) -> list[Position]:
    """The last positions that the journal knows, newest first; empty when there is no journal."""
    try:
        return _newest(connection, count)
    except apsw.SQLError:
        if installed(connection):
            raise
        return []


def _newest(connection: apsw.Connection, count: int) -> list[Position]:
    return [Position(*row) for row in connection.execute(_NEWEST, (count,))]


def set_position(connection: apsw.Connection, position: Position) -> None:
    """Declare where a base stands whose content comes from elsewhere; the journal becomes empty."""
    connection.execute(_TABLE)
    connection.execute("DELETE FROM changes")
    connection.execute(_BORDER, (position.seq, position.term, position.digest, _now_us()))


# --- forwards --------------------------------------------------------------------------------------


def append(connection: apsw.Connection, position: Position, entry: Entry) -> Position:
    """Add the entry of what this transaction changed.

    :param position: where the base stands.
    :returns: where it stands from now on.
    :raises ValueError: when the base stands elsewhere, or the entry does not follow.
    """
    reached = after(position, entry)
    changeset, script = entry.changeset, entry.script
    size = len(changeset) + len(script)
    try:
        connection.execute(
            _APPEND,
            (
                reached.seq, reached.term, reached.digest, size, position.seq, position.digest, _now_us(),
                script or None, changeset,
            ),
        )  # fmt: skip
    except apsw.ConstraintError as exc:
        raise ValueError(f"entry {position.seq} is not the last one of the journal") from exc
    return reached


def apply(connection: apsw.Connection, entry: Entry, tables: Collection[str] | None = None) -> Position:
    """Make the change that an entry tells, and add the entry to the journal.

    The caller has checked that the position of the base is the one that the entry was made at.

    :param tables: those that an entry may change, None for all.
    :raises Diverged: when the entry does not fit the base in any way.
    """
    before = position(connection)
    try:
        check_follows(before, entry)
    except ValueError as exc:
        raise Diverged(str(exc)) from exc
    if entry.script:
        try:
            connection.execute(entry.script)
        except (apsw.SQLError, apsw.ConstraintError) as exc:
            raise Diverged(f"the script of entry {entry.seq} fails: {exc}") from exc
    if entry.changeset:
        _change(connection, entry.seq, entry.changeset, _NO_SAVEPOINT, tables)
    return append(connection, before, entry)


def _change(
    connection: apsw.Connection, seq: int, changeset: bytes, flags: int, tables: Collection[str] | None
) -> None:
    """Apply a changeset, or its inverse, wholly."""
    try:
        expected = sum(1 for _ in apsw.Changeset.iter(changeset))
    except apsw.CorruptError as exc:
        raise Diverged(f"the changeset of entry {seq} is malformed") from exc
    conflicts: list[str] = []

    def refuse(reason: int, change: apsw.TableChange) -> int:
        conflicts.append(f"a row of {change.name} {_REASONS.get(reason, reason)}")
        return _ABORT

    def allows(table: str) -> bool:
        return table != "changes" if tables is None else table in tables

    former = connection.total_changes()
    try:
        apsw.Changeset.apply(changeset, connection, filter=allows, conflict=refuse, flags=flags)
    except (apsw.AbortError, apsw.ConstraintError) as exc:
        raise Diverged(f"entry {seq}: {'; '.join(conflicts) or exc}") from exc
    # SQLite leaves tables out, without an error, when they are absent or have other columns.
    changed = connection.total_changes() - former
    if changed != expected:
        raise Diverged(f"entry {seq}: {changed} rows of {expected} belong to tables of this base")


# --- backwards -------------------------------------------------------------------------------------


def roll_back(connection: apsw.Connection, seq: int) -> Position:
    """Undo the entries after entry ``seq``, and forget them.

    :returns: where the base stands from now on.
    :raises CannotRollBack: when the journal does not hold that point, or one of them has a script.
    :raises Diverged: when an entry to undo does not fit the base.
    """
    last = position(connection)
    if seq == last.seq:
        return last
    sql = "SELECT 1 FROM changes WHERE seq = ?"
    if seq > last.seq or not connection.execute(sql, (seq,)).fetchall():
        raise CannotRollBack(f"the journal does not hold entry {seq}")
    sql = "SELECT max(seq) FROM changes WHERE seq > ? AND script IS NOT NULL"
    ((scripted,),) = connection.execute(sql, (seq,))
    if scripted is not None:
        raise CannotRollBack(f"entry {scripted} changed the schema")
    for undone in range(last.seq, seq, -1):
        for (changeset,) in connection.execute("SELECT changeset FROM changes WHERE seq = ?", (undone,)):
            if changeset:
                _change(connection, undone, changeset, _NO_SAVEPOINT | _INVERT, None)
    connection.execute("DELETE FROM changes WHERE seq > ?", (seq,))
    return position(connection)


# --- what others ask for -----------------------------------------------------------------------------


def entries_after(connection: apsw.Connection, position: Position, max_bytes: int) -> list[Entry] | None:
    """The entries that lead on from a position; none when it is where the base stands.

    :param max_bytes: of the content of the entries together, but there is at least one.
    :returns: None when the position is of another history, or older than the journal.
    """
    sql = "SELECT digest FROM changes WHERE seq = ?"
    try:
        found = connection.execute(sql, (position.seq,)).fetchall()
    except apsw.SQLError:
        if installed(connection):
            raise
        return None
    if found != [(position.digest,)]:
        return None
    entries: list[Entry] = []
    size = 0
    for term, seq, changeset, script in connection.execute(_ENTRIES, (position.seq,)):
        size += len(changeset) + len(script or "")
        if entries and size > max_bytes:
            break
        entries.append(Entry(term, seq, changeset, script or ""))
    return entries


def trim(connection: apsw.Connection, max_entries: int, max_bytes: int) -> None:
    """Forget the oldest entries beyond a number and a size of their content together.

    The last :data:`KEPT_MIN` stay whatever their size. It costs nothing to speak of when there is nothing to do.
    """
    ((first, first_total, last, last_total),) = connection.execute(_EXTENT)
    border = last - max_entries
    if last_total - first_total > max_bytes:
        sql = "SELECT seq FROM changes WHERE total >= ? ORDER BY seq LIMIT 1"
        ((fitting,),) = connection.execute(sql, (last_total - max_bytes,))
        border = max(border, fitting)
    border = min(border, last - KEPT_MIN)
    if border <= first:
        return
    connection.execute("DELETE FROM changes WHERE seq < ?", (border,))
    connection.execute("UPDATE changes SET script = NULL, changeset = NULL WHERE seq = ?", (border,))


def _now_us() -> int:
    return time.time_ns() // 1000
