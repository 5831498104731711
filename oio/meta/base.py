# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One open base: a SQLite file in WAL mode, its writer, its readers, its admin keys.

- Writers go through :class:`~oio.common.batching.Group`. Each member of a batch runs in its own
  savepoint; an error rolls back that member only. A batch whose commit fails fails all its members, and the
  connections are closed and opened again: a failed fsync is never retried as if it had worked.
- Readers have connections of their own, so that they never wait for a commit. A reader that begins after an
  acknowledgement sees what was acknowledged.
- Admin keys are in memory. The dictionary is replaced at each commit, never modified: a reader holds a
  consistent one.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import apsw
import msgspec

from oio.common import status
from oio.common.batching import BATCH_MAX, Group, Member
from oio.common.status import StatusError
from oio.meta.base_type import PEERS, TOMBSTONE, BaseType
from oio.meta.changeset import Capture, Replicator
from oio.meta.deadlines import wait_within
from oio.meta.outbox import Batch, Outbox
from oio.meta.readers import Readers, copy_base
from oio.meta.replication import operations
from oio.meta.sqlite_files import close, connect, cut_failed_frames, translate
from oio.meta.transaction import Reader, Transaction

logger = logging.getLogger("oio.meta.base")

T = TypeVar("T")

SYNC_LEVELS = {"full": "FULL", "normal": "NORMAL", "off": "OFF"}
#: The WAL file is cut back to this size once its content is in the base.
WAL_SIZE_MAX = 8 << 20
#: SQLite takes the view of a transaction at its first read.
_VIEW = "SELECT 1 FROM admin LIMIT 1"
_PENDING = "SELECT 1 FROM events LIMIT 1"

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True)
class BaseOptions:
    """How bases are opened and waited for.

    :ivar sync: ``full``: a commit is on disk before it is acknowledged; ``normal``: a power cut may lose
        the last commits (not a crash of the process); ``off``: a power cut may damage bases.
    :ivar wait_s: longest wait for a turn on a base, then 503.
    :ivar waiting_max: batches of writers, and readers, that may wait for one base; beyond: 509.
    """

    sync: str = "full"
    wait_s: float = 20.0
    waiting_max: int = 16
    readers_max: int = 4
    page_size: int = 4096


class Write(Member):
    """A write that is made once, however often it is sent: ``operation`` is its id, '' when it has none."""

    __slots__ = ("operation",)

    def __init__(self, work: Callable[[Transaction], object], relaxed: bool, operation: str) -> None:
        super().__init__(work, relaxed)
        self.operation = operation


class Replay(Member):
    """Work on the connection of the writer, in a transaction of its own, which no replicator sees.

    ``follows``: it makes the base follow another copy, whose master delivers the events.
    """

    __slots__ = ("after", "follows")

    def __init__(
        self,
        work: Callable[[apsw.Connection], object],
        relaxed: bool,
        follows: bool,
        after: Callable[[], object] | None,
    ) -> None:
        super().__init__(work, relaxed)
        self.follows = follows
        self.after = after


class Base:
    """One open base. Only the repository makes them; ``pins`` and ``doomed`` are protected by its lock."""

    def __init__(
        self, name: str, path: str, base_type: BaseType, options: BaseOptions, outbox: Outbox
    ) -> None:
        self.name = name
        self.path = path
        self.pins = 0
        #: The file is about to go away: nobody may use the base any more.
        self.doomed = False
        self.admin: dict[str, str] = {}
        self.commits = 0
        #: Only the writer changes these; a reader that finds them equal meets no commit.
        self._commits_begun = self._commits_ended = 0
        self._type = base_type
        self._options = options
        self._outbox = outbox
        self._open_lock = threading.Lock()
        self._opened = False
        self._writer: apsw.Connection | None = None
        self._sync = ""
        self._replicator: Replicator | None = None
        #: Called when the peers of the base have changed.
        self.on_peers: Callable[[], object] | None = None
        self._group = Group(self._run_batch, queue_max=options.waiting_max * BATCH_MAX)
        self._readers = Readers(name, path, options.readers_max, options.waiting_max, options.wait_s)

    @property
    def is_open(self) -> bool:
        """Did :meth:`open` succeed?"""
        return self._opened

    # --- opening and closing ---------------------------------------------------------------------

    def open(self) -> None:
        """Open the file unless it is. :raises StatusError: 431 absent, 511 corrupt."""
        if self._opened:
            return
        with self._open_lock:
            if not self._opened:
                self._open_writer()
                self._opened = True

    def close(self) -> None:
        """Close all connections; the repository does it when nobody holds the base."""
        with self._open_lock:
            self._opened = False
            self._close_connections()

    def _open_writer(self) -> None:
        try:
            try:
                connection = connect(self.path)
            except apsw.CantOpenError as exc:
                if not os.path.exists(self.path):
                    raise StatusError(
                        status.CONTAINER_NOT_FOUND, f"no base {self.name}.{self._type.name} here"
                    ) from exc
                # It was created just after we failed.
                connection = connect(self.path)
            try:
                self._sync = ""
                self._set_sync(connection, relaxed=False)
                connection.execute(f"PRAGMA journal_size_limit={WAL_SIZE_MAX}")
                self.admin = dict(connection.execute("SELECT k, v FROM admin"))
            except BaseException:
                connection.close()
                raise
        except apsw.CantOpenError as exc:
            raise StatusError(status.UNAVAILABLE, f"base {self.name}: {exc}") from exc
        except apsw.SQLError as exc:
            raise StatusError(
                status.CORRUPT_DATABASE, f"base {self.name} has no admin table: {exc}"
            ) from exc
        except apsw.Error as exc:
            raise translate(exc, self.name) from exc
        self._writer = connection

    def _close_connections(self) -> None:
        self._readers.close()
        if self._writer is not None:
            close(self._writer, self.name)
            self._writer = None

    # --- reading -----------------------------------------------------------------------------------

    def read(
        self, fn: Callable[[Reader], T], short: bool = False, deadline: float | None = None
    ) -> T:
        """Run a function in a read transaction, unless its turn comes after the deadline.

        A ``short`` one takes the connection of the writer when nobody writes: a base that has no
        concurrent use needs one connection only, whose pages and statements are warm.
        """
        if short and self._group.try_borrow():
            try:
                if self._writer is not None:
                    return self._read_on_writer(self._writer, fn)
            finally:
                self._group.give_back()
        connection, generation = self._readers.take(deadline)
        healthy = False
        try:
            connection.execute("BEGIN")
            try:
                return fn(Reader(self.name, connection, self._admin_of(connection)))
            finally:
                connection.execute("COMMIT")
                healthy = True
        except apsw.Error as exc:
            raise translate(exc, self.name) from exc
        finally:
            self._readers.give_back(connection, generation, healthy)

    def _admin_of(self, connection: apsw.Connection) -> dict[str, str]:
        """Take the view of a read transaction; the admin keys as of this view.

        Those in memory follow a commit by a moment: while there is one they are read from the view.
        """
        begun = self._commits_begun
        quiet = begun == self._commits_ended
        connection.execute(_VIEW).fetchall()
        admin = self.admin
        if quiet and self._commits_begun == begun:
            return admin
        return dict(connection.execute("SELECT k, v FROM admin"))

    def _read_on_writer(self, connection: apsw.Connection, fn: Callable[[Reader], T]) -> T:
        try:
            connection.execute("BEGIN")
            try:
                return fn(Reader(self.name, connection, self.admin))
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")
        except apsw.Error as exc:
            raise translate(exc, self.name) from exc

    def copy_to(self, path: str, deadline: float | None = None) -> None:
        """Write the base as it is now to a file, which is not made durable; nobody waits for it.

        :raises StatusError: 504 when the deadline is over.
        """
        copy_base(self.name, self.path, path, deadline)

    # --- writing -----------------------------------------------------------------------------------

    def replicate_with(self, replicator: Replicator | None) -> None:
        """From now on every transaction's changeset goes through this replicator first."""
        self._replicator = replicator

    def write(
        self,
        fn: Callable[[Transaction], T],
        relaxed: bool = False,
        deadline: float | None = None,
        operation: str = "",
    ) -> T:
        """Run a function in a batch of the writer; returns once its change is durable.

        It is not run when its turn comes after the deadline. ``relaxed``: the commit needs not be durable
        (housekeeping of the outbox). ``operation``: its id, when it may be sent again.

        :raises AlreadyDone: when the copies of the base know this operation.
        """
        return self._group.submit(Write(fn, relaxed, operation), wait_within(self._options.wait_s, deadline))

    def exclusively(
        self,
        work: Callable[[apsw.Connection], T],
        relaxed: bool = False,
        deadline: float | None = None,
        follows: bool = False,
        after: Callable[[], object] | None = None,
    ) -> T:
        """Run a function on the connection of the writer, in a transaction that nobody else shares.

        No replicator sees it. ``follows``: it makes the base follow a copy that is led elsewhere; ``after``: to
        be called after the commit, in the same turn.
        """
        member = Replay(work, relaxed, follows, after)
        return self._group.submit(member, wait_within(self._options.wait_s, deadline))

    def defragment(self) -> None:
        """Rewrite the file without its free pages; only the leader of the writers may call it."""
        connection = self._writer
        if connection is None:
            return
        try:
            if connection.execute("PRAGMA freelist_count").fetchall() == [(0,)]:
                return
            connection.execute("VACUUM")
            # The file shrinks when the WAL is copied into it; nobody waits for readers in the way.
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except apsw.Error as exc:
            logger.error("base %s: defragmentation: %s", self.name, exc)
            self._reopen()

    def _run_batch(self, members: list[Member]) -> None:
        """Never raises: every member gets its result or its error."""
        writes: list[Member] = []
        for member in members:
            if isinstance(member, Replay):
                if writes:
                    self._run_writes(writes)
                    writes = []
                self._run_replay(member)
            else:
                writes.append(member)
        if writes:
            self._run_writes(writes)

    def _run_replay(self, member: Replay) -> None:
        try:
            self._execute_replay(member)
        except Exception as exc:
            error = translate(exc, self.name)
            member.error = error
            writer = self._writer
            if writer is not None and writer.in_transaction:
                writer.execute("ROLLBACK")
            if isinstance(exc, apsw.Error):
                logger.error("base %s: %s", self.name, error)
                self._reopen()

    def _execute_replay(self, member: Replay) -> None:
        connection = self._ready_writer()
        self._set_sync(connection, member.relaxed)
        connection.execute("BEGIN IMMEDIATE")
        member.result = member.work(connection)
        admin = dict(connection.execute("SELECT k, v FROM admin"))
        follows = member.follows and self._outbox.enabled
        pending = follows and bool(connection.execute(_PENDING).fetchall())
        if pending:
            self._outbox.follow(self.name)
        with self._committing():
            connection.execute("COMMIT")
            self.admin, former = admin, self.admin
        if follows and not pending:
            self._outbox.follow_nothing(self.name)
        self._look_at_peers(former)
        self.commits += 1
        if member.after is not None:
            member.after()

    @contextmanager
    def _committing(self) -> Iterator[None]:
        """A commit, and the change of the admin keys in memory that follows it."""
        self._commits_begun += 1
        try:
            yield
        finally:
            self._commits_ended = self._commits_begun

    def _look_at_peers(self, former: dict[str, str]) -> None:
        if self.admin.get(PEERS) != former.get(PEERS) and self.on_peers is not None:
            self.on_peers()

    def _ready_writer(self) -> apsw.Connection:
        if self._writer is None:
            # The former batch failed and the base could not be opened again.
            self._open_writer()
        connection = self._writer
        assert connection is not None
        return connection

    def _run_writes(self, members: list[Member]) -> None:
        try:
            survivors = self._execute_batch(members)
        except Exception as exc:
            error = translate(exc, self.name)
            if not isinstance(error, StatusError):
                logger.exception("base %s: batch of %d writes failed", self.name, len(members))
                error = StatusError(status.INTERNAL_ERROR, f"base {self.name}: {exc}")
            else:
                logger.error("base %s: batch of %d writes failed: %s", self.name, len(members), error)
            _fail_all(members, error)
            self._reopen()
            return
        for callback in survivors:
            try:
                callback()
            except Exception:
                # The change is committed: its author must not be told that it failed.
                logger.exception("base %s: after the commit", self.name)

    def _execute_batch(self, members: list[Member]) -> list[Callable[[], object]]:
        connection = self._ready_writer()
        relaxed = all(member.relaxed for member in members)
        self._set_sync(connection, relaxed)
        replicator = self._replicator
        capture = None
        if replicator is not None:
            try:
                replicator.begin()
            except StatusError as exc:
                _fail_all(members, exc)
                return []
            capture = Capture(connection, self._type.replicated)
        try:
            connection.execute("BEGIN IMMEDIATE")
            tx = Transaction(self.name, connection, self.admin, self._outbox.enabled)
            if len(members) == 1:
                done = self._run_alone(tx, members[0])
            else:
                done = sum([self._run_in_savepoint(tx, member) for member in members])
            if not done:
                connection.execute("ROLLBACK")
                return []
            admin, batch = self._flush(tx)
            replicated = False
            if capture is not None and replicator is not None:
                replicator.tidy(connection)
                changes = capture.changeset()
                if changes:
                    try:
                        replicator.replicate(connection, changes, relaxed)
                    except StatusError as exc:
                        connection.execute("ROLLBACK")
                        logger.warning("base %s: %d writes rolled back: %s", self.name, len(members), exc)
                        _fail_all(members, exc)
                        return []
                    replicated = True
            with self._committing():
                connection.execute("COMMIT")
                self.admin, former = admin, self.admin
            if replicated and replicator is not None:
                replicator.committed()
        finally:
            if capture is not None:
                capture.close()
        self._look_at_peers(former)
        self.commits += 1
        if batch is not None:
            self._outbox.committed(batch)
        return tx.callbacks

    def _set_sync(self, connection: apsw.Connection, relaxed: bool) -> None:
        level = self._options.sync
        if relaxed and level == "full":
            level = "normal"
        if level != self._sync:
            connection.execute(f"PRAGMA synchronous={SYNC_LEVELS[level]}")
            self._sync = level

    def _flush(self, tx: Transaction) -> tuple[dict[str, str], Batch | None]:
        admin = tx.flush_admin()
        if not tx.events_enabled:
            return admin, None
        return admin, self._outbox.write(tx, admin, tx.tidying)

    def _run_alone(self, tx: Transaction, member: Member) -> int:
        """No savepoint: the rollback of the transaction is the rollback of its only member."""
        try:
            if TOMBSTONE in self.admin:
                raise StatusError(status.CONTAINER_NOT_FOUND, f"base {self.name} is destroyed")
            self._work(tx, member)
        except Exception as exc:
            self._fail(tx, member, exc)
            return 0
        tx.keep_member()
        return 1

    def _work(self, tx: Transaction, member: Member) -> None:
        operation = member.operation if isinstance(member, Write) and self._replicator is not None else ""
        if operation:
            operations.check_new(tx.connection, operation)
        member.result = member.work(tx)
        if operation:
            operations.note(tx.connection, operation, b"" if member.result is None else _encode(member.result))

    def _run_in_savepoint(self, tx: Transaction, member: Member) -> int:
        execute = tx.connection.execute
        execute("SAVEPOINT member")
        try:
            if tx.get(TOMBSTONE) is not None:
                raise StatusError(status.CONTAINER_NOT_FOUND, f"base {self.name} is destroyed")
            self._work(tx, member)
        except Exception as exc:
            self._fail(tx, member, exc)
            execute("ROLLBACK TO member")
            execute("RELEASE member")
            return 0
        execute("RELEASE member")
        tx.keep_member()
        return 1

    def _fail(self, tx: Transaction, member: Member, exc: Exception) -> None:
        tx.drop_member()
        if not tx.connection.in_transaction:
            # Some errors (disk full, I/O) make SQLite roll back everything: it concerns all members.
            raise exc
        error = translate(exc, self.name)
        if not isinstance(error, StatusError | operations.AlreadyDone):
            logger.error("base %s: a write failed", self.name, exc_info=exc)
        member.error = error

    def _reopen(self) -> None:
        """Drop the connections after a failed batch: what they hold cannot be trusted."""
        with self._open_lock:
            writer = self._writer
            if writer is not None and writer.in_transaction:
                try:
                    writer.execute("ROLLBACK")
                except apsw.Error as exc:
                    logger.error("base %s: rollback: %s", self.name, exc)
            if writer is not None:
                cut_failed_frames(self.path, self.name)
            self._close_connections()
            try:
                self._open_writer()
            except StatusError as exc:
                # The next write tries again; meanwhile admin keys are those of the last commit.
                logger.error("base %s cannot be opened again: %s", self.name, exc)


def _fail_all(members: list[Member], error: StatusError) -> None:
    """Nothing of a batch remains, nor do errors of members: they may come from what others of it had changed."""
    for member in members:
        member.error = StatusError(error.code, error.message)
