# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One LMDB environment: its map grows by itself, and concurrent writers share one commit.

Guarantees: a write is answered after the commit that holds it reached the disk (unless `sync` is off), or with an
error and without effect; a function given to :meth:`Engine.write` may run again when its transaction had to be
started over, and sees nothing of the run that failed. When the disk is full or the map may not grow, writers get
"unavailable" and readers go on.

Locks: `_Gate` keeps transactions out while the map is replaced, which LMDB wants no transaction to see.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import lmdb

from oio.common import status
from oio.common.batching import Group, Member
from oio.common.status import StatusError

MAP_BYTES_FIRST = 256 * 2**20
"""Address space of a small database: it costs neither memory nor disk. Doubled when it is full."""

MAP_STEP_BYTES_MAX = 64 * 2**30
"""A large map grows by that much at once."""

BATCH_RECORDS_MAX = 10000
"""Records of one commit at most: bounds how long the first writer waits for the last, and the pages in memory."""

QUEUE_MAX = 4096
"""Writers that wait for one database at most; beyond, the service is overloaded."""

WAIT_MAX_S = 30.0
"""How long a writer waits for its turn."""

READERS_MAX = 1024
"""Read transactions at once: more than a server has threads."""

DATABASES_MAX = 8

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

logger = logging.getLogger("oio.rdir")


class Undo(StatusError):
    """Raised by a write that may have changed something: all is undone, and done again without it."""


class _Gate:
    """Lets any number in, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._closed = False

    def enter(self) -> None:
        with self._condition:
            while self._closed:
                self._condition.wait()
            self._inside += 1

    def leave(self) -> None:
        with self._condition:
            self._inside -= 1
            if self._closed and not self._inside:
                self._condition.notify_all()

    def close(self) -> None:
        """Wait until nobody is inside, and keep everybody out. One thread at a time may call it."""
        with self._condition:
            self._closed = True
            while self._inside:
                self._condition.wait()

    def open(self) -> None:
        with self._condition:
            self._closed = False
            self._condition.notify_all()


class Engine:
    """An LMDB environment in a directory, with its named databases.

    :param path: directory, which must exist.
    :param names: databases, created when they are missing.
    :param sync: commit to the disk. Without it a power cut may cost the whole database; a crash of the process
        costs nothing.
    :param map_bytes_max: the map does not grow beyond; 0 for no limit.
    """

    def __init__(
        self, path: str, names: tuple[str, ...], *, sync: bool = True, map_bytes_max: int = 0
    ) -> None:
        self.path = path
        self.commits = 0
        self.writes = 0
        self._names = names
        self._sync = sync
        self._map_bytes_max = map_bytes_max
        self._map_bytes = self._limited(max(MAP_BYTES_FIRST, 2 * _size_of(path)))
        self._gate = _Gate()
        self._group = Group(self._run_batch, batch_max=BATCH_RECORDS_MAX, queue_max=QUEUE_MAX)
        self._closed = False
        self._open()

    def read(self, fn: Callable[[Any], Any]) -> Any:
        """Give ``fn(transaction)``, which sees one state of the database."""
        self._gate.enter()
        try:
            self._check_open()
            with self._env.begin() as txn:
                return fn(txn)
        except lmdb.Error as exc:
            raise self._failure(exc) from exc
        finally:
            self._gate.leave()

    def write(self, fn: Callable[[Any], Any], weight: int = 1) -> Any:
        """Run ``fn(transaction)`` within the next commit and give its result, or raise its `StatusError`.

        A function that raises must not have written anything, or must raise :class:`Undo`: the commit takes
        place for the others. `weight` is the number of records that it changes.
        """
        self._check_open()
        return self._group.submit(Member(fn, weight=weight), WAIT_MAX_S)

    def info(self) -> dict[str, int]:
        """Figures: bytes of the file in use, bytes of the map, records of each database."""

        def count(txn: Any) -> dict[str, int]:
            return {name: txn.stat(self.dbs[name])["entries"] for name in self._names}

        figures: dict[str, int] = self.read(count)
        figures["file_bytes"] = _size_of(self.path)
        figures["map_bytes"] = self._map_bytes
        return figures

    def close(self) -> None:
        """Wait for those inside, flush and close; further calls raise "unavailable"."""
        self._closed = True
        self._gate.close()
        try:
            if not self._sync:
                self._env.sync(True)
            self._env.close()
        finally:
            self._gate.open()

    # --- the leader of a group ---

    def _run_batch(self, batch: list[Member]) -> None:
        """Give every member its result or its error."""
        try:
            self._run(batch)
        except lmdb.Error as exc:
            self._fail(batch, self._failure(exc))
            if isinstance(exc, (lmdb.PanicError, lmdb.CorruptedError)):
                self._reopen()
        except StatusError as exc:
            self._fail(batch, exc)
        except BaseException as exc:
            # A mistake of a function: nothing was committed, everybody must know.
            self._fail(batch, exc)
            logger.exception("%s: write failed", self.path)

    @staticmethod
    def _fail(batch: list[Member], error: BaseException) -> None:
        for member in batch:
            member.error = error

    def _run(self, batch: list[Member]) -> None:
        while True:
            try:
                return self._attempt(batch)
            except Undo:
                continue  # without the member that failed
            except lmdb.MapFullError:
                self._grow()

    def _attempt(self, batch: list[Member]) -> None:
        """Run all and commit."""
        self._gate.enter()
        try:
            self._check_open()
            with self._env.begin(write=True) as txn:  # commits at the end, aborts on an error
                for member in batch:
                    if isinstance(member.error, Undo):
                        continue
                    member.error = None
                    try:
                        member.result = member.work(txn)
                    except StatusError as exc:
                        member.error = exc
                        if isinstance(exc, Undo):
                            raise
            self.commits += 1
            self.writes += len(batch)
        finally:
            self._gate.leave()

    def _grow(self) -> None:
        larger = self._limited(self._map_bytes + min(self._map_bytes, MAP_STEP_BYTES_MAX))
        if larger <= self._map_bytes:
            raise StatusError(
                status.UNAVAILABLE, f"{self.path} is full: it may not exceed {self._map_bytes} bytes"
            )
        self._gate.close()
        try:
            self._env.set_mapsize(larger)
            self._map_bytes = larger
        finally:
            self._gate.open()
        logger.info("%s: room for %d MiB", self.path, larger >> 20)

    def _limited(self, size: int) -> int:
        return min(size, self._map_bytes_max) if self._map_bytes_max else size

    # --- the environment ---

    def _open(self) -> None:
        self._env = lmdb.open(
            self.path,
            map_size=self._map_bytes,
            max_dbs=DATABASES_MAX,
            max_readers=READERS_MAX,
            sync=self._sync,
            # Keys come in random order: what lies around a page is of no use.
            readahead=False,
            meminit=False,
        )
        self._map_bytes = max(self._map_bytes, self._env.info()["map_size"])
        self.dbs = {name: self._env.open_db(name.encode()) for name in self._names}

    def _reopen(self) -> None:
        """Start again from the last commit, after LMDB refused to go on."""
        logger.error("%s: opened again after a failed commit", self.path)
        self._gate.close()
        try:
            self._env.close()
            self._open()
        except lmdb.Error:
            self._closed = True
            logger.exception("%s: cannot be opened again, and is out of order", self.path)
        finally:
            self._gate.open()

    def _check_open(self) -> None:
        if self._closed:
            raise StatusError(status.UNAVAILABLE, f"{self.path} is closed")

    def _failure(self, exc: lmdb.Error) -> StatusError:
        # Errors of the system have no class of their own, and no number: only their text.
        unavailable = isinstance(exc, (lmdb.DiskError, lmdb.PanicError, lmdb.ReadersFullError)) or any(
            os.strerror(number) in str(exc) for number in _FULL
        )
        code = status.UNAVAILABLE if unavailable else status.INTERNAL_ERROR
        logger.error("%s: %s: %s", self.path, type(exc).__name__, exc)
        return StatusError(code, f"{self.path}: {exc}")


def _size_of(path: str) -> int:
    try:
        return os.stat(os.path.join(path, "data.mdb")).st_size
    except FileNotFoundError:
        return 0
