# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""How files of bases are opened, what errors of SQLite mean, and what a failed commit leaves in a file."""

from __future__ import annotations

import logging
import os
import struct

import apsw

from oio.common import status
from oio.common.status import StatusError

logger = logging.getLogger("oio.meta.base")

#: Page cache of a connection, in KiB: beyond it pages come from the cache of the system.
CACHE_KIB = 512
#: Memory of all the connections of the process. Beyond, page caches do not grow, connections of readers are
#: closed after use, and opening a base closes another: a base with one connection takes about 200 KiB.
HEAP_MAX_BYTES = 32 << 20
#: How long SQLite itself waits for a lock: only opening, recovery and checkpoints ever do.
BUSY_TIMEOUT_MS = 10_000
#: Prepared statements kept by a connection.
STATEMENT_CACHE = 48
#: Page size and number of frames in the index of a WAL (native byte order), as SQLite documents them.
_WAL_INDEX = struct.Struct("=14xHI")
_WAL_HEADER, _FRAME_HEADER = 32, 24


def connect(path: str) -> apsw.Connection:
    """Open the file of a base, which must exist. :raises apsw.Error:"""
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=STATEMENT_CACHE)
    if connection.readonly("main") and os.access(path, os.W_OK):
        # SQLite tries to read a file that it cannot open to write: this one appeared in between.
        connection.close()
        return connect(path)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    # Else a statement is compiled again for each new value bound to it, which costs more than to run it.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    return connection


def close(connection: apsw.Connection, base_name: str) -> None:
    """Close a connection; one that cannot be closed well is forgotten all the same."""
    try:
        connection.close()
    except apsw.Error as exc:
        logger.error("base %s: closing: %s", base_name, exc)


def memory_is_short() -> bool:
    """Do the open bases take more memory than they should?"""
    return apsw.memory_used() > HEAP_MAX_BYTES


def translate(exc: BaseException, base_name: str) -> BaseException:
    """The StatusError that says an error of SQLite; other exceptions are returned as they are."""
    if isinstance(exc, apsw.CorruptError | apsw.NotADBError):
        return StatusError(status.CORRUPT_DATABASE, f"base {base_name} is corrupt: {exc}")
    if isinstance(exc, apsw.ConstraintError):
        return StatusError(status.SQLITE_CONSTRAINT, f"base {base_name}: {exc}")
    if isinstance(exc, apsw.BusyError | apsw.LockedError):
        return StatusError(status.UNAVAILABLE, f"base {base_name} is busy: {exc}")
    if isinstance(exc, apsw.FullError):
        return StatusError(status.UNAVAILABLE, f"no space left for base {base_name}: {exc}")
    if isinstance(exc, apsw.Error):
        return StatusError(status.INTERNAL_ERROR, f"base {base_name}: {type(exc).__name__}: {exc}")
    return exc


def cut_failed_frames(path: str, base_name: str) -> None:
    """Take the frames of a failed commit off the WAL of a base, whose writer is still open.

    When the fsync of a commit fails, its frames are in the file all the same, complete: whoever opens the
    base next would take them for a committed transaction, whose authors were told that it failed. What
    is valid ends at the frame that the index of the WAL tells (it is updated after the fsync only), and
    no other writer can be adding frames now.
    """
    try:
        with open(path + "-shm", "rb") as index:
            page_size, frames = _WAL_INDEX.unpack_from(index.read(_WAL_INDEX.size))
        page_size = 65536 if page_size == 1 else page_size
        end = _WAL_HEADER + frames * (_FRAME_HEADER + page_size) if frames else 0
        if os.path.getsize(path + "-wal") > end:
            os.truncate(path + "-wal", end)
    except (OSError, struct.error) as exc:
        logger.error("base %s: a failed write may still appear: %s", base_name, exc)
