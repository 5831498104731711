# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Events of spools to handle again, and events nobody understands; one SQLite base.

What is added is on disk (``synchronous=FULL``) before the call returns, so that the event may be acknowledged. An
event leaves the base only by :meth:`RetryStore.finish`, or by :meth:`RetryStore.kick` for another table of it.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any, NamedTuple

import apsw

_SCHEMA = """
CREATE TABLE IF NOT EXISTS postponed (
    id INTEGER PRIMARY KEY, due_s REAL NOT NULL, attempts INTEGER NOT NULL, event BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS postponed_due ON postponed (due_s);
CREATE TABLE IF NOT EXISTS buried (
    id INTEGER PRIMARY KEY, when_s REAL NOT NULL, reason TEXT NOT NULL, event BLOB NOT NULL);
"""


class PostponedEvent(NamedTuple):
    """An event whose pipeline failed ``attempts`` times."""

    id: int
    attempts: int
    event: bytes


class StoreError(Exception):
    """Raised when the base cannot be read or written."""


class StoreBusy(StoreError):
    """Raised when the base belongs to another process."""


class RetryStore:
    """Thread-safe; one process at a time."""

    def __init__(self, path: str) -> None:
        """:raises StoreError: when the base cannot be opened or belongs to a running process."""
        self._lock = threading.Lock()
        self._path = path
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._base = apsw.Connection(path)
            self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.execute("PRAGMA cache_size=-2000")
            self._base.execute(_SCHEMA)
        except apsw.BusyError as exc:
            raise StoreBusy(f"{path} belongs to another process: {exc}") from exc
        except (OSError, apsw.Error) as exc:
            raise StoreError(f"cannot open {path}: {exc}") from exc

    def postpone(self, event: bytes, due_s: float) -> None:
        """Keep an event whose pipeline failed once."""
        self._change(
            ("INSERT INTO postponed (due_s, attempts, event) VALUES (?, 1, ?)", [(due_s, event)])
        )

    def postpone_again(self, postponed: PostponedEvent, due_s: float) -> None:
        """Note one more failure of a postponed event."""
        self._change(
            (
                "UPDATE postponed SET due_s = ?, attempts = ? WHERE id = ?",
                [(due_s, postponed.attempts + 1, postponed.id)],
            )
        )

    def finish(self, postponed: PostponedEvent) -> None:
        """Forget a postponed event, which is handled."""
        self._change(("DELETE FROM postponed WHERE id = ?", [(postponed.id,)]))

    def postponed_due(self, now_s: float, limit: int) -> list[PostponedEvent]:
        """Some postponed events whose time has come, the oldest first."""
        rows = self._read(
            "SELECT id, attempts, event FROM postponed WHERE due_s <= ? ORDER BY due_s LIMIT ?",
            (now_s, limit),
        )
        return [PostponedEvent(*row) for row in rows]

    def bury(self, event: bytes, reason: str, now_s: float) -> None:
        """Keep an event that cannot be handled, for a person."""
        self._change(
            ("INSERT INTO buried (when_s, reason, event) VALUES (?, ?, ?)", [(now_s, reason, event)])
        )

    def kick(self, limit: int, now_s: float) -> int:
        """Make the oldest buried events due, or the next postponed ones when none is buried; returns how many."""
        buried = [row[0] for row in self._read("SELECT id FROM buried ORDER BY id LIMIT ?", (limit,))]
        if buried:
            self._change(
                (
                    "INSERT INTO postponed (due_s, attempts, event) SELECT ?, 0, event FROM buried WHERE id = ?",
                    [(now_s, row) for row in buried],
                ),
                ("DELETE FROM buried WHERE id = ?", [(row,) for row in buried]),
            )
            return len(buried)
        delayed = self._read("SELECT id FROM postponed WHERE due_s > ? ORDER BY due_s LIMIT ?", (now_s, limit))
        self._change(("UPDATE postponed SET due_s = ? WHERE id = ?", [(now_s, row[0]) for row in delayed]))
        return len(delayed)

    def adopt_chunks(self, now_s: float) -> int:
        """Make events of the chunks to delete that former versions kept here; returns how many there were."""
        if not self._read("SELECT 1 FROM sqlite_master WHERE name = 'chunk'"):
            return 0
        rows = self._read("SELECT service, chunk, due_s, request_id FROM chunk")
        events = [
            {
                "event": "storage.content.deleted",
                "when": int(now_s * 1_000_000),
                "request_id": request_id,
                "data": [{"type": "chunks", "id": f"http://{service}/{chunk}"}],
            }
            for service, chunk, _, request_id in rows
        ]
        self._change(
            (
                "INSERT INTO postponed (due_s, attempts, event) VALUES (?, 0, ?)",
                [(row[2], json.dumps(event).encode()) for row, event in zip(rows, events, strict=True)],
            ),
            ("DELETE FROM chunk WHERE service = ? AND chunk = ?", [row[:2] for row in rows]),
        )
        return len(rows)

    def counts(self) -> dict[str, int]:
        """``{"postponed": events, "buried": events}``."""
        (row,) = self._read("SELECT (SELECT count(*) FROM postponed), (SELECT count(*) FROM buried)")
        return {"postponed": row[0], "buried": row[1]}

    def close(self) -> None:
        """Close the base; idempotent."""
        with self._lock:
            self._base.close()

    def _change(self, *statements: tuple[str, list[tuple[Any, ...]]]) -> None:
        try:
            with self._lock, self._base:
                for sql, rows in statements:
                    if rows:
                        self._base.executemany(sql, rows)
        except apsw.Error as exc:
            raise StoreError(f"cannot write {self._path}: {exc}") from exc

    def _read(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return list(self._base.execute(sql, parameters))
        except apsw.Error as exc:
            raise StoreError(f"cannot read {self._path}: {exc}") from exc
