# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where bases are made before they have a place: a directory of the volume, which every start empties.

A base is born whole: built in memory and written to a file, or made of the image of another one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apsw

from oio.common import status
from oio.common.durable import write_file
from oio.common.status import StatusError
from oio.meta.base_files import unlink_base
from oio.meta.base_type import ENGINE_SCHEMA, BaseType
from oio.meta.sqlite_files import translate
from oio.meta.transaction import Transaction

#: Directory of the volume.
DIRECTORY = ".new"
# Offsets of the "file format" bytes in a SQLite header; 2 says WAL.
_FORMAT_BYTES = (18, 19)


class Workshop:
    """Makes images of bases. Thread-safe.

    :param events_enabled: is there a queue for the events of new bases?
    """

    def __init__(self, volume: str, base_type: BaseType, page_size: int, events_enabled: bool) -> None:
        self._type = base_type
        self._page_size = page_size
        self._events_enabled = events_enabled
        self._directory = os.path.join(volume, DIRECTORY)
        self._numbers = itertools.count(1)
        self._template: bytes | None = None
        os.makedirs(self._directory, exist_ok=True)
        # What a former process left unfinished there was never a base.
        for entry in list(os.scandir(self._directory)):
            os.unlink(entry.path)

    @contextmanager
    def file(self) -> Iterator[str]:
        """Path of a new file; what is there goes away at the end."""
        path = os.path.join(self._directory, f"{next(self._numbers)}.new")
        try:
            yield path
        finally:
            unlink_base(path)

    def build(self, base_name: str, path: str, init: Callable[[Transaction], object]) -> bool:
        """Write a base that ``init`` fills to a file; does it hold events?"""
        image, has_events = self._image(base_name, init)
        try:
            write_file(path, image)
        except OSError as exc:
            raise StatusError(status.UNAVAILABLE, f"cannot write {path}: {exc}") from exc
        return has_events

    def change(self, base_name: str, path: str, change: Callable[[Transaction], object]) -> bool:
        """Have ``change`` make a base of an image; does it hold events? Those that the image held are dropped.

        When it fails, the file is good for nothing any more.
        """
        try:
            connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                connection.execute("PRAGMA journal_mode=OFF")
                connection.execute("PRAGMA synchronous=OFF")
                connection.execute("BEGIN")
                connection.execute("DELETE FROM events")
                admin = dict(connection.execute("SELECT k, v FROM admin"))
                tx = Transaction(base_name, connection, admin, self._events_enabled)
                change(tx)
                tx.keep_member()
                tx.flush_admin()
                has_events = _store_events(connection, tx)
                connection.execute("COMMIT")
            finally:
                connection.close()
        except apsw.Error as exc:
            raise translate(exc, base_name) from exc
        with open(path, "r+b", buffering=0) as file:
            for offset in _FORMAT_BYTES:
                os.pwrite(file.fileno(), b"\2", offset)
        return has_events

    def _image(self, base_name: str, init: Callable[[Transaction], object]) -> tuple[bytes, bool]:
        connection = apsw.Connection(":memory:")
        try:
            if self._template is None:
                connection.execute(f"PRAGMA page_size={self._page_size}")
                connection.execute(ENGINE_SCHEMA + self._type.schema)
                self._template = connection.serialize("main")
            else:
                connection.deserialize("main", self._template)
            connection.execute("BEGIN")
            tx = Transaction(base_name, connection, {}, self._events_enabled)
            for key, value in self._type.first_admin(base_name).items():
                tx.set(key, value)
            init(tx)
            tx.keep_member()
            # The first versions of the tables are written by first_admin: nothing to count yet.
            connection.executemany("INSERT INTO admin(k, v) VALUES(?, ?)", tx.all_admin().items())
            has_events = _store_events(connection, tx)
            connection.execute("COMMIT")
            image = bytearray(connection.serialize("main"))
        except apsw.Error as exc:
            raise translate(exc, base_name) from exc
        finally:
            connection.close()
        for offset in _FORMAT_BYTES:
            image[offset] = 2
        return bytes(image), has_events


def _store_events(connection: apsw.Connection, tx: Transaction) -> bool:
    """Fill the outbox of a base that is not in its place yet; is there anything?"""
    rows: list[tuple[int, bytes | None]] = list(enumerate(tx.events, 1))
    if tx.state_wanted:
        rows.insert(0, (0, None))
    connection.executemany("INSERT INTO events(id, event) VALUES(?, ?)", rows)
    return bool(rows)
