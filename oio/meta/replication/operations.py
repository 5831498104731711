# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The last operations of a base, by id: one that is sent again after a fail-over is not made twice.

They are rows of the base, written in the transaction of the change and replicated with it, so that whoever is
master next knows them.
"""

from __future__ import annotations

import time

import apsw

TABLE = "operations"
#: A caller that sends an operation again does so within its own deadline, which is shorter (seconds).
KEPT_S = 300
#: Forgotten at a time, which is more than what can be noted in between: no entry becomes large after a rush.
TRIM_MAX = 10_000

_CREATE = """
CREATE TABLE IF NOT EXISTS operations (
    id TEXT PRIMARY KEY NOT NULL, reply BLOB, at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS operations_by_time ON operations(at);
"""
_SEEN = "SELECT reply FROM operations WHERE id = ?"
_NOTE = "INSERT INTO operations(id, reply, at) VALUES(?, ?, ?)"
_TRIM = "DELETE FROM operations WHERE id IN (SELECT id FROM operations WHERE at < ? ORDER BY at LIMIT ?)"


class AlreadyDone(Exception):
    """The operation was made before; ``reply`` is what was answered then, encoded."""

    def __init__(self, reply: bytes) -> None:
        super().__init__("this operation was made before")
        self.reply = reply


def install(connection: apsw.Connection) -> None:
    """Make the table of a base that has none."""
    connection.execute(_CREATE)


def known(connection: apsw.Connection, operation: str) -> bool:
    """Is an operation among the last ones of a base that has copies?"""
    return bool(connection.execute(_SEEN, (operation,)).fetchall())


def check_new(connection: apsw.Connection, operation: str) -> None:
    """:raises AlreadyDone: when the operation is among the last ones."""
    for (reply,) in connection.execute(_SEEN, (operation,)):
        raise AlreadyDone(reply or b"")


def note(connection: apsw.Connection, operation: str, reply: bytes) -> None:
    """The operation is made."""
    connection.execute(_NOTE, (operation, reply or None, int(time.time())))


def trim(connection: apsw.Connection) -> None:
    """Forget those that nobody sends again, the oldest first."""
    connection.execute(_TRIM, (int(time.time()) - KEPT_S, TRIM_MAX))
