# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are about to become bases: what they say of themselves, and what they must say."""

from __future__ import annotations

import logging
from collections.abc import Collection

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.replication import journal, operations
from oio.meta.replication.positions import Position

logger = logging.getLogger("oio.meta.replication")

_ANY_SIZE = 1 << 62


def declare_position(path: str, position: Position, operation: str = "") -> None:
    """Make an image the beginning of a history, made by an operation. :raises StatusError: 511: it is no base."""
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            # The file is made durable by whoever puts it in its place.
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("BEGIN")
            journal.set_position(connection, position)
            operations.install(connection)
            if operation:
                operations.note(connection, operation, b"")
            connection.execute("COMMIT")
        finally:
            # The last connection copies the WAL into the file.
            connection.close()
    except apsw.Error as exc:
        raise StatusError(status.CORRUPT_DATABASE, f"image {path}: {exc}") from exc


def position_of_image(path: str) -> Position:
    """Where an image stands. :raises StatusError: 511 when it is no base."""
    try:
        connection = _open(path)
        try:
            return journal.position(connection)
        finally:
            connection.close()
    except apsw.Error as exc:
        raise StatusError(status.CORRUPT_DATABASE, f"image {path}: {exc}") from exc


def tail_of_file(path: str, count: int) -> list[Position] | None:
    """The last positions of a base that nobody has open, newest first; None when there is none.

    One that cannot be read says nothing: any image is better.
    """
    try:
        # With its WAL: a process that was killed leaves one.
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            return journal.tail(connection, count)
        finally:
            connection.close()
    except apsw.CantOpenError:
        return None
    except apsw.Error as exc:
        logger.error("base %s cannot be read, an image takes its place: %s", path, exc)
        return []


def carry_on(path: str, base_path: str, tables: Collection[str]) -> bool:
    """Bring an image to where the base that it shall replace stands, by the entries of the base; did it get there?

    Nobody has the base open. What the entries tell was checked when the base followed them.
    """
    try:
        base = _open(base_path)
        image = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            entries = journal.entries_after(base, journal.position(image), _ANY_SIZE)
            if entries is None:
                return False
            image.execute("PRAGMA synchronous=OFF")
            image.execute("BEGIN")
            for entry in entries:
                journal.apply(image, entry, tables)
            image.execute("COMMIT")
            return journal.position(image) == journal.position(base)
        finally:
            base.close()
            image.close()
    except (apsw.Error, journal.Diverged) as exc:
        logger.error("image %s cannot be carried on: %s", path, exc)
        return False


def look_at_image(path: str) -> tuple[dict[str, str], bool]:
    """Admin keys of an image, and whether it holds events. :raises StatusError: 511 when it is no base."""
    try:
        connection = _open(path)
        try:
            admin = dict(connection.execute("SELECT k, v FROM admin"))
            return admin, bool(connection.execute("SELECT 1 FROM events LIMIT 1").fetchall())
        finally:
            connection.close()
    except apsw.Error as exc:
        raise StatusError(status.CORRUPT_DATABASE, f"image {path}: {exc}") from exc


def _open(path: str) -> apsw.Connection:
    """Open a file that nobody changes, without the WAL that its header announces."""
    return apsw.Connection(
        f"file:{path}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
