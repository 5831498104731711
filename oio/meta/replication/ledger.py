# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What a volume must remember about its peers and about bases that it holds no more.

- *Promises*: for each group of bases, the highest epoch that this peer accepted, and whose it is. A promise is
  durable before anybody hears of it.
- *Graves*: bases that were destroyed, or removed from here, so that a copy that missed it is not taken for a
  living one. There may be many: they stay in the file.
- *Late marks*: the copies that are known to have missed entries, by peer. They only save a search: a power cut
  may lose the last ones.

All is in ``<volume>/.replication/ledger``, a SQLite file in WAL mode. Writes that come together share a
transaction and its fsync. After a failed write, and when the file is opened, its WAL is emptied into it before
anything else is written: no later success can stand on pages whose fsync failed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import apsw
import msgspec

from oio.common import status
from oio.common.batching import Group, Member
from oio.common.durable import fsync_directory
from oio.common.status import StatusError
from oio.meta.replication.positions import Position
from oio.meta.sqlite_files import translate

logger = logging.getLogger("oio.meta.replication")

DIRECTORY = ".replication"
FILE = "ledger"
DESTROYED, REMOVED = "destroyed", "removed"
#: Late marks that are also in memory, so that marking a copy again costs nothing.
LATE_CACHED_MAX = 100_000
#: Rows of one step of a long listing or purge: others work in between.
STEP_ROWS = 10_000
#: Longest wait of a write for its turn (seconds).
WAIT_S = 20.0
BUSY_TIMEOUT_MS = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS promises (
    group_key TEXT NOT NULL PRIMARY KEY,
    epoch INTEGER NOT NULL,
    owner TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS graves (
    base TEXT NOT NULL PRIMARY KEY,
    term INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    digest BLOB NOT NULL,
    reason TEXT NOT NULL,
    peers TEXT NOT NULL,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS graves_by_time ON graves(at);
CREATE TABLE IF NOT EXISTS late (
    peer TEXT NOT NULL,
    base TEXT NOT NULL,
    PRIMARY KEY (peer, base)
) WITHOUT ROWID;
"""
_PROMISE = (
    "INSERT INTO promises(group_key, epoch, owner) VALUES(?, ?, ?)"
    " ON CONFLICT(group_key) DO UPDATE SET epoch = excluded.epoch, owner = excluded.owner"
)
_BURY = """
INSERT INTO graves(base, term, seq, digest, reason, peers, at) VALUES(?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(base) DO UPDATE SET term = excluded.term, seq = excluded.seq, digest = excluded.digest,
    reason = excluded.reason, peers = excluded.peers, at = excluded.at
WHERE (excluded.term, excluded.seq) >= (term, seq)
"""
_PURGE = "DELETE FROM graves WHERE base IN (SELECT base FROM graves WHERE at < ? ORDER BY at LIMIT ?)"
#: One step in the index for each peer, not for each mark.
_LATE_PEERS = """
WITH RECURSIVE found(peer) AS (
    SELECT min(peer) FROM late
    UNION ALL SELECT (SELECT min(peer) FROM late WHERE peer > found.peer) FROM found WHERE peer IS NOT NULL
) SELECT peer FROM found WHERE peer IS NOT NULL
"""


class Promise(msgspec.Struct, frozen=True):
    """The highest epoch that a peer accepted for a group, and the service id of the one who leads in it."""

    epoch: int
    owner: str


class Grave(msgspec.Struct, frozen=True):
    """A base that is no more.

    :ivar position: where it stood.
    :ivar reason: ``destroyed`` for all its peers, or ``removed`` from this one.
    :ivar peers: service ids of its peers at the time.
    :ivar at_s: when (seconds since 1970).
    """

    position: Position
    reason: str
    peers: list[str]
    at_s: int


#: Runs in a transaction with others; what it returns is called once the transaction is committed.
Job = Callable[[apsw.Connection], Callable[[], object] | None]


class Ledger:
    """The ledger of one volume. Thread-safe.

    :param fsync: False: a power cut may lose or damage it.
    :raises StatusError: by all methods that write or read the file: 511 corrupt, 503 no space or closed, 500.
    """

    def __init__(self, volume: str, fsync: bool = True) -> None:
        self.directory = os.path.join(volume, DIRECTORY)
        self.path = os.path.join(self.directory, FILE)
        self._fsync = fsync
        self._promises: dict[str, Promise] = {}
        self._late: dict[str, set[str]] = {}
        self._late_cached = 0
        self._group = Group(self._run_batch)
        #: Taken in this order; the second one is held for the time of one short query.
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._writer: apsw.Connection | None = None
        self._reader: apsw.Connection | None = None
        self._sync = ""
        #: A write failed: the frames that it left behind the valid ones of the WAL must go first.
        self._suspect = False
        self._make_directory(volume)
        with self._write_lock:
            try:
                self._open()
            except apsw.Error as exc:
                raise translate(exc, self.path) from exc
            except OSError as exc:
                raise StatusError(status.UNAVAILABLE, f"cannot open {self.path}: {exc}") from exc

    # --- promises ----------------------------------------------------------------------------------

    def promise(self, group_key: str) -> Promise | None:
        """The promise that holds for a group, from memory."""
        return self._promises.get(group_key)

    def highest_epoch(self, group_key: str) -> int:
        """Epoch of the promise that holds for a group, 0 when there is none."""
        promise = self._promises.get(group_key)
        return promise.epoch if promise is not None else 0

    def store_promise(self, group_key: str, epoch: int, owner: str) -> None:
        """Accept an epoch of an owner; durable on return.

        :raises ValueError: when a later epoch, or the same one of another owner, was promised.
        """
        wanted = Promise(epoch, owner)
        if self._promises.get(group_key) == wanted:
            return

        def store(connection: apsw.Connection) -> Callable[[], object]:
            sql = "SELECT epoch, owner FROM promises WHERE group_key = ?"
            rows: list[Any] = connection.execute(sql, (group_key,)).fetchall()
            for held in [Promise(*row) for row in rows]:
                if epoch < held.epoch or (epoch == held.epoch and owner != held.owner):
                    raise ValueError(f"epoch {held.epoch} of group {group_key} is promised to {held.owner}")
            connection.execute(_PROMISE, (group_key, epoch, owner))
            return lambda: self._promises.update({group_key: wanted})

        self._write(store)

    # --- graves ------------------------------------------------------------------------------------

    def grave(self, base: str) -> Grave | None:
        """The grave of a base, if it has one."""
        sql = "SELECT term, seq, digest, reason, peers, at FROM graves WHERE base = ?"
        rows = self._read(sql, (base,))
        if not rows:
            return None
        term, seq, digest, reason, peers, at_s = rows[0]
        return Grave(Position(term, seq, digest), reason, peers.split(",") if peers else [], at_s)

    def bury(self, base: str, position: Position, reason: str, peers: list[str]) -> None:
        """Remember that a base is no more; durable on return. A grave of a later position stays as it is."""
        row = (
            base, position.term, position.seq, position.digest, reason, ",".join(peers), int(time.time()),
        )  # fmt: skip
        self._write(lambda connection: _run(connection, _BURY, row))

    def exhume(self, base: str) -> None:
        """Forget a grave, because the base is created again; durable on return."""
        self._write(lambda connection: _run(connection, "DELETE FROM graves WHERE base = ?", (base,)))

    def purge_graves(self, older_than_s: float) -> int:
        """Forget the graves that are older than this; returns how many."""
        before = int(time.time() - older_than_s)
        purged = 0
        removed: list[int] = []

        def purge(connection: apsw.Connection) -> None:
            connection.execute(_PURGE, (before, STEP_ROWS))
            removed.append(connection.changes())

        while True:
            self._write(purge, relaxed=True)
            purged += removed[-1]
            if removed[-1] < STEP_ROWS:
                return purged

    # --- late marks --------------------------------------------------------------------------------

    def add_late(self, peer: str, base: str) -> None:
        """The copy of a base on a peer missed something.

        Whoever marks and clears the same copy at the same time must know the order himself.
        """
        if base in self._late.get(peer, ()):
            return

        def add(connection: apsw.Connection) -> Callable[[], object]:
            connection.execute("INSERT OR IGNORE INTO late(peer, base) VALUES(?, ?)", (peer, base))
            return lambda: self._remember_late(peer, base)

        self._write(add, relaxed=True)

    def clear_late(self, peer: str, base: str) -> None:
        """The copy of a base on a peer is complete, or is no more."""

        def clear(connection: apsw.Connection) -> Callable[[], object]:
            connection.execute("DELETE FROM late WHERE peer = ? AND base = ?", (peer, base))
            return lambda: self._forget_late(peer, base)

        self._write(clear, relaxed=True)

    def late(self, peer: str, limit: int | None = None) -> list[str]:
        """Bases of which a peer has a late copy, sorted. :param limit: as many names at most."""
        sql = "SELECT base FROM late WHERE peer = ? AND base > ? ORDER BY base LIMIT ?"
        names: list[str] = []
        while limit is None or len(names) < limit:
            step = STEP_ROWS if limit is None else min(STEP_ROWS, limit - len(names))
            rows = self._read(sql, (peer, names[-1] if names else "", step))
            names += [name for (name,) in rows]
            if len(rows) < step:
                break
        return names

    def late_counts(self) -> dict[str, int]:
        """How many late copies each peer has; those that have none are not there."""
        return dict(self._read("SELECT peer, count(*) FROM late GROUP BY peer", ()))

    def late_peers(self) -> list[str]:
        """The peers that have late copies, sorted."""
        return [peer for (peer,) in self._read(_LATE_PEERS, ())]

    def _remember_late(self, peer: str, base: str) -> None:
        bases = self._late.setdefault(peer, set())
        if self._late_cached < LATE_CACHED_MAX and base not in bases:
            bases.add(base)
            self._late_cached += 1

    def _forget_late(self, peer: str, base: str) -> None:
        bases = self._late.get(peer)
        if bases is not None and base in bases:
            bases.remove(base)
            self._late_cached -= 1

    # --- the file ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; the promises stay readable."""
        with self._write_lock:
            self._close_connections()

    def _make_directory(self, volume: str) -> None:
        try:
            if not os.path.isdir(self.directory):
                os.makedirs(self.directory, exist_ok=True)
                if self._fsync:
                    fsync_directory(volume)
        except OSError as exc:
            raise StatusError(status.UNAVAILABLE, f"cannot create {self.directory}: {exc}") from exc

    def _open(self) -> None:
        """Open the file, and empty its WAL: what a former process left there is not trusted to be on disk."""
        writer = apsw.Connection(self.path)
        try:
            writer.set_busy_timeout(BUSY_TIMEOUT_MS)
            writer.execute("PRAGMA journal_mode=WAL").fetchall()
            self._set_sync(writer, relaxed=False)
            writer.execute(_SCHEMA)
            _empty_wal(writer)
            if self._fsync:
                fsync_directory(self.directory)
            rows: list[Any] = writer.execute("SELECT group_key, epoch, owner FROM promises").fetchall()
            reader = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READWRITE)
            reader.set_busy_timeout(BUSY_TIMEOUT_MS)
        except BaseException:
            writer.close()
            raise
        self._promises = {key: Promise(epoch, owner) for key, epoch, owner in rows}
        self._writer, self._reader = writer, reader

    def _close_connections(self) -> None:
        with self._read_lock:
            connections = [self._reader, self._writer]
            self._reader = self._writer = None
            for connection in connections:
                if connection is None:
                    continue
                try:
                    connection.close()
                except apsw.Error as exc:
                    logger.error("%s: closing: %s", self.path, exc)

    def _set_sync(self, connection: apsw.Connection, relaxed: bool) -> None:
        level = "OFF" if not self._fsync else "NORMAL" if relaxed else "FULL"
        if level != self._sync:
            connection.execute(f"PRAGMA synchronous={level}")
            self._sync = level

    def _read(self, sql: str, bindings: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._read_lock:
            reader = self._reader
            if reader is None:
                raise self._unavailable()
            try:
                return reader.execute(sql, bindings).fetchall()
            except apsw.Error as exc:
                raise translate(exc, self.path) from exc

    def _write(self, job: Job, relaxed: bool = False) -> None:
        """Run a job in a transaction that is durable on return, unless it is relaxed."""
        self._group.submit(Member(job, relaxed), WAIT_S)

    def _run_batch(self, members: list[Member]) -> None:
        """Never raises: every member gets its error, or none."""
        with self._write_lock:
            writer = self._writer
            if writer is None:
                for member in members:
                    member.error = self._unavailable()
                return
            try:
                callbacks = self._commit(writer, members)
            except Exception as exc:
                error = translate(exc, self.path)
                if isinstance(error, StatusError):
                    logger.error("%s: %d writes failed: %s", self.path, len(members), error)
                else:
                    logger.exception("%s: %d writes failed", self.path, len(members))
                    error = StatusError(status.INTERNAL_ERROR, f"{self.path}: {exc}")
                for member in members:
                    if member.error is None:
                        member.error = StatusError(error.code, error.message)
                self._suspect = True
                _roll_back(writer, self.path)
                return
            for callback in callbacks:
                callback()

    def _commit(self, connection: apsw.Connection, members: list[Member]) -> list[Callable[[], object]]:
        if self._suspect:
            self._set_sync(connection, relaxed=False)
            _empty_wal(connection)
            self._suspect = False
        self._set_sync(connection, all(member.relaxed for member in members))
        callbacks = []
        connection.execute("BEGIN IMMEDIATE")
        for member in members:
            try:
                callback = member.work(connection)
            except ValueError as exc:
                # Refused before it wrote anything.
                member.error = exc
                continue
            if callback is not None:
                callbacks.append(callback)
        connection.execute("COMMIT")
        return callbacks

    def _unavailable(self) -> StatusError:
        return StatusError(status.UNAVAILABLE, f"{self.path} is closed")


def _run(connection: apsw.Connection, sql: str, bindings: tuple[Any, ...]) -> None:
    connection.execute(sql, bindings)


def _empty_wal(connection: apsw.Connection) -> None:
    """Write the valid frames of the WAL into the file, sync it, and cut the WAL to nothing."""
    ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    if busy:
        raise apsw.BusyError("its WAL cannot be emptied")


def _roll_back(connection: apsw.Connection, path: str) -> None:
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except apsw.Error as exc:
            logger.error("%s: rollback: %s", path, exc)
