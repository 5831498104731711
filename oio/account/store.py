# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Store of the account service: accounts, their containers, and counters kept by ordered updates.

One SQLite base. The order of events is not trusted: an update older than what is stored is refused, and a
deleted container leaves a tombstone for a minute so that late events are recognised (contract: "Container
update rules").
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import apsw

_LABEL = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_BUCKET_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]*")
# What gateways add to the name of a bucket to name the containers of its parts.
_PART_OF_BUCKET = re.compile(r".*?(?:\+segments|%2F)", re.DOTALL)

SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts(
    id TEXT PRIMARY KEY, ctime TEXT NOT NULL, objects INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0, damaged_objects INTEGER NOT NULL DEFAULT 0,
    missing_chunks INTEGER NOT NULL DEFAULT 0, metadata TEXT NOT NULL DEFAULT '{}') WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS containers(
    account TEXT, name TEXT, listed INTEGER NOT NULL, mtime TEXT NOT NULL, dtime TEXT NOT NULL,
    objects INTEGER NOT NULL, bytes INTEGER NOT NULL, damaged_objects INTEGER NOT NULL,
    missing_chunks INTEGER NOT NULL, expires REAL, PRIMARY KEY(account, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tombstones ON containers(expires) WHERE expires IS NOT NULL;
"""
COUNTERS = ("objects", "bytes", "damaged_objects", "missing_chunks")
# A deleted container is remembered this long, so that events that come late are recognised.
TOMBSTONE_S = 60.0
LISTING_DEFAULT = 1000
LISTING_MAX = 10000
# Beyond the last name that starts with a prefix.
LAST_CHARACTER = "\U0010fffd"
_MICROSECONDS_ABOVE = 31494784780800
_UNKNOWN_TIME = "0"


class UnknownAccount(Exception):
    """Raised when the account does not exist."""


class AccountNotEmpty(Exception):
    """Raised when the account still has containers."""


class UnknownContainer(Exception):
    """Raised when the account does not know the container."""


class StaleUpdate(Exception):
    """Raised when the update is older than what is known."""


@dataclass
class ContainerUpdate:
    """State of a container at a moment, as told by an event."""

    name: str
    mtime: str = _UNKNOWN_TIME
    dtime: str = _UNKNOWN_TIME
    objects: int = 0
    bytes: int = 0
    damaged_objects: int = 0
    missing_chunks: int = 0


def is_bucket_name(name: str) -> bool:
    """Whether S3 clients could know a container by this name."""
    return (
        3 <= len(name) <= 63 and _BUCKET_NAME.fullmatch(name) is not None and not _DIGITS_AND_DOTS.fullmatch(name)
    )


def normalize_time(value: float | str | None) -> str:
    """Seconds with five decimals, padded to 16 characters; ``0`` when absent.

    :raises ValueError: when the value is not a number.
    """
    if value is None or value == "":
        return _UNKNOWN_TIME
    seconds = float(value)
    if not 0 <= seconds < 1e20:
        raise ValueError(f"not a timestamp: {value!r}")
    return f"{seconds / 1e6 if seconds > _MICROSECONDS_ABOVE else seconds:016.5f}"


def is_later(a: str, b: str) -> bool:
    """Compare two normal forms: the longer integer part is later, else the greater text."""
    digits_a, digits_b = len(a.partition(".")[0]), len(b.partition(".")[0])
    return digits_a > digits_b or (digits_a == digits_b and a > b) or (b == _UNKNOWN_TIME and a > b)


class AccountStore:
    """Accounts and containers in one base; every method is one transaction.

    Guarantee: the counters of an account equal the sum over its listed containers after each method.
    """

    def __init__(self, path: str, synchronous: str = "FULL") -> None:
        self._db = apsw.Connection(path)
        self._db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        self._db.set_busy_timeout(5000)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={synchronous}")
        self._db.execute(SCHEMA)
        self._lock = threading.Lock()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._db:
            yield

    def close(self) -> None:
        """Close the base."""
        with self._lock:
            self._db.close()

    def count(self) -> int:
        """Number of accounts."""
        with self._lock:
            return self._number("SELECT count(*) FROM accounts")

    def names(self) -> list[str]:
        """All the accounts."""
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT id FROM accounts")]

    def create(self, account: str) -> bool:
        """Create an account; False when it existed."""
        with self._transaction():
            return self._ensure(account)

    def _ensure(self, account: str) -> bool:
        self._db.execute(
            "INSERT OR IGNORE INTO accounts(id, ctime) VALUES(?, ?)", (account, f"{time.time():016.5f}")
        )
        return bool(self._db.changes())

    def delete(self, account: str) -> None:
        """:raises UnknownAccount, AccountNotEmpty:"""
        with self._transaction():
            self._show(account)
            if self._count_containers(account):
                raise AccountNotEmpty(account)
            self._db.execute("DELETE FROM accounts WHERE id = ?", (account,))
            self._db.execute("DELETE FROM containers WHERE account = ?", (account,))

    def show(self, account: str) -> dict[str, Any]:
        """Counters and metadata of an account. :raises UnknownAccount:"""
        with self._lock:
            return self._show(account)

    def _show(self, account: str) -> dict[str, Any]:
        row = self._db.execute(
            "SELECT id, ctime, objects, bytes, damaged_objects, missing_chunks, metadata"
            " FROM accounts WHERE id = ?", (account,)
        ).fetchone()
        if row is None:
            raise UnknownAccount(account)
        info = dict(zip(("id", "ctime", *COUNTERS), row[:6], strict=True))
        return info | {
            "containers": self._count_containers(account),
            "buckets": 0,
            "metadata": json.loads(row[6]),
            "replication_enabled": False,
        }

    def _count_containers(self, account: str) -> int:
        return self._number("SELECT count(*) FROM containers WHERE account = ? AND listed", account)

    def _number(self, query: str, *values: str) -> int:
        for row in self._db.execute(query, values):
            return int(row[0])
        raise AssertionError("an aggregate query always gives a row")

    def update_metadata(self, account: str, metadata: dict[str, str], to_delete: list[str]) -> None:
        """Delete, then set properties; the account is created when needed."""
        with self._transaction():
            self._ensure(account)
            properties = self._show(account)["metadata"]
            for key in to_delete:
                properties.pop(key, None)
            properties.update(metadata)
            self._db.execute(
                "UPDATE accounts SET metadata = ? WHERE id = ?", (json.dumps(properties), account)
            )

    def update_container(self, account: str, update: ContainerUpdate) -> None:
        """Apply what an event tells of a container.

        :raises StaleUpdate: when it tells nothing newer than what is known.
        """
        with self._transaction():
            self._ensure(account)
            row = self._db.execute(
                "SELECT mtime, dtime, objects, bytes, damaged_objects, missing_chunks FROM containers"
                " WHERE account = ? AND name = ? AND (expires IS NULL OR expires > ?)",
                (account, update.name, time.time()),
            ).fetchone()
            old_mtime, old_dtime, *old = row or (_UNKNOWN_TIME, _UNKNOWN_TIME, 0, 0, 0, 0)
            newer = is_later(update.mtime, old_mtime)
            if not newer and not is_later(update.dtime, old_dtime):
                raise StaleUpdate(update.name)
            mtime = update.mtime if newer else old_mtime
            dtime = update.dtime if is_later(update.dtime, old_dtime) else old_dtime
            deleted = is_later(dtime, mtime)
            if not deleted and not newer:
                raise StaleUpdate(update.name)
            new = [0, 0, 0, 0] if deleted else [getattr(update, counter) for counter in COUNTERS]
            self._db.execute(
                "INSERT OR REPLACE INTO containers VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    account, update.name, not deleted, mtime, dtime, *new,
                    time.time() + TOMBSTONE_S if deleted else None,
                ),
            )
            self._db.execute(
                "UPDATE accounts SET objects = objects + ?, bytes = bytes + ?,"
                " damaged_objects = damaged_objects + ?, missing_chunks = missing_chunks + ? WHERE id = ?",
                (*(after - before for after, before in zip(new, old, strict=True)), account),
            )
            self._db.execute("DELETE FROM containers WHERE expires < ?", (time.time(),))

    def reset_container(self, account: str, name: str, mtime: str) -> None:
        """Set the counters of a known container to 0.

        :raises UnknownContainer: when it is not listed. :raises StaleUpdate: when something newer is known.
        """
        with self._transaction():
            row = self._db.execute(
                "SELECT mtime FROM containers WHERE account = ? AND name = ? AND listed", (account, name)
            ).fetchone()
            if row is None:
                raise UnknownContainer(name)
            if not is_later(mtime, row[0]):
                raise StaleUpdate(name)
            self._db.execute(
                "UPDATE accounts SET (objects, bytes, damaged_objects, missing_chunks) ="
                " (SELECT a.objects - c.objects, a.bytes - c.bytes, a.damaged_objects - c.damaged_objects,"
                "  a.missing_chunks - c.missing_chunks FROM accounts a, containers c"
                "  WHERE a.id = ?1 AND c.account = ?1 AND c.name = ?2) WHERE id = ?1",
                (account, name),
            )
            self._db.execute(
                "UPDATE containers SET mtime = ?, objects = 0, bytes = 0, damaged_objects = 0,"
                " missing_chunks = 0 WHERE account = ? AND name = ?",
                (mtime, account, name),
            )

    def refresh(self, account: str) -> None:
        """Compute the counters of an account again. :raises UnknownAccount:"""
        with self._transaction():
            self._show(account)
            self._db.execute(
                "UPDATE accounts SET (objects, bytes, damaged_objects, missing_chunks) ="
                " (SELECT ifnull(sum(objects), 0), ifnull(sum(bytes), 0), ifnull(sum(damaged_objects), 0),"
                "  ifnull(sum(missing_chunks), 0)"
                "  FROM containers WHERE account = ?1 AND listed) WHERE id = ?1",
                (account,),
            )

    def flush(self, account: str) -> None:
        """Forget the containers of an account; tombstones stay. :raises UnknownAccount:"""
        with self._transaction():
            self._show(account)
            self._db.execute("DELETE FROM containers WHERE account = ? AND listed", (account,))
            self._db.execute(
                "UPDATE accounts SET objects = 0, bytes = 0, damaged_objects = 0, missing_chunks = 0"
                " WHERE id = ?", (account,)
            )

    def show_container(self, account: str, name: str) -> dict[str, Any]:
        """Counters of a container; zeros when it is unknown (contract)."""
        with self._lock:
            row = self._db.execute(
                "SELECT mtime, dtime, objects, bytes, damaged_objects, missing_chunks FROM containers"
                " WHERE account = ? AND name = ?", (account, name)
            ).fetchone()
        row = row or (_UNKNOWN_TIME, _UNKNOWN_TIME, 0, 0, 0, 0)
        info = dict(zip(("mtime", "dtime", *COUNTERS), row, strict=True))
        return info | {"name": name, "replication_enabled": False}

    def list_containers(
        self,
        account: str,
        limit: int,
        marker: str,
        end_marker: str,
        prefix: str,
        delimiter: str,
        *,
        s3_buckets_only: bool = False,
    ) -> list[list[Any]]:
        """Entries ``[name, objects, bytes, is_prefix, mtime]`` in the order of names.

        :param s3_buckets_only: only those whose name could be a bucket's.
        """
        limit = min(limit, LISTING_MAX) if limit > 0 else LISTING_DEFAULT
        entries: list[list[Any]] = []
        with self._lock:
            position = max(marker, "") if marker >= prefix else ""
            while len(entries) < limit:
                entry = self._next_entry(account, position, marker, end_marker, prefix, delimiter)
                if entry is None:
                    break
                position, row = entry
                if row is None:
                    continue
                if not s3_buckets_only or is_bucket_name(row[0]):
                    entries.append(row)
                elif part := _PART_OF_BUCKET.match(position):
                    # The parts of a bucket are many, and none is one: on to what follows them.
                    position = part[0] + LAST_CHARACTER
        return entries

    def _next_entry(
        self, account: str, position: str, marker: str, end_marker: str, prefix: str, delimiter: str
    ) -> tuple[str, list[Any] | None] | None:
        start = ("name > ?", position) if position >= prefix and position else ("name >= ?", prefix)
        for name, objects, size_bytes, mtime in self._select(account, *start):
            if not name.startswith(prefix) or (end_marker and name >= end_marker):
                return None
            cut = name.find(delimiter, max(len(prefix), 1)) if delimiter else -1
            if cut < 0:
                return name, [name, objects, size_bytes, 0, float(mtime)]
            group = name[: cut + len(delimiter)]
            return group + LAST_CHARACTER, None if group == marker else [group, 0, 0, 1, 0]
        return None

    def _select(self, account: str, condition: str, value: str) -> Iterator[tuple[Any, ...]]:
        yield from self._db.execute(
            "SELECT name, objects, bytes, mtime FROM containers"
            f" WHERE account = ? AND {condition} AND listed ORDER BY name LIMIT 1",
            (account, value),
        )
