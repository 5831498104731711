# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Connections of the readers of one base: as many as are needed at once, up to a limit."""

from __future__ import annotations

import threading

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.deadlines import wait_within
from oio.meta.sqlite_files import close, connect, memory_is_short, translate

#: Pages of one step of a copy: the deadline is looked at in between.
COPY_PAGES = 1024


class Readers:
    """The connections of the readers of a base. Thread-safe.

    :param readers_max: connections at once; beyond, readers wait for their turn.
    :param waiting_max: readers that may wait; beyond: 509.
    :param wait_s: longest wait, then 503.
    """

    def __init__(self, base_name: str, path: str, readers_max: int, waiting_max: int, wait_s: float) -> None:
        self._base_name = base_name
        self._path = path
        self._readers_max = readers_max
        self._waiting_max = waiting_max
        self._wait_s = wait_s
        self._lock = threading.Condition(threading.Lock())
        self._idle: list[apsw.Connection] = []
        self._connections = 0
        self._waiting = 0
        #: Connections of a former generation are closed after use.
        self._generation = 0

    def take(self, deadline: float | None) -> tuple[apsw.Connection, int]:
        """A connection and its generation; :meth:`give_back` must follow.

        :raises StatusError: 509 when too many wait, 503 after a wait in vain, 504 when the deadline is over.
        """
        with self._lock:
            if not self._idle and self._connections >= self._readers_max:
                self._wait(wait_within(self._wait_s, deadline))
            generation = self._generation
            if self._idle:
                return self._idle.pop(), generation
            self._connections += 1
        try:
            return connect(self._path), generation
        except apsw.Error as exc:
            with self._lock:
                self._connections -= 1
                self._lock.notify()
            raise translate(exc, self._base_name) from exc

    def give_back(self, connection: apsw.Connection, generation: int, healthy: bool) -> None:
        """Leave the connection to the next reader, unless it is not ``healthy`` or of a former generation."""
        with self._lock:
            keep = healthy and generation == self._generation and not memory_is_short()
            if keep:
                self._idle.append(connection)
            else:
                self._connections -= 1
            self._lock.notify()
        if not keep:
            connection.close()

    def close(self) -> None:
        """Close those that nobody uses now, and the others after their use."""
        with self._lock:
            self._generation += 1
            connections = list(self._idle)
            self._idle.clear()
            self._connections -= len(connections)
        for connection in connections:
            close(connection, self._base_name)

    def _wait(self, wait_s: float) -> None:
        limit = self._waiting_max
        if self._waiting >= limit:
            raise StatusError(
                status.EXCESSIVE_LOAD,
                f"{limit} readers wait for base {self._base_name}, which is the limit",
            )
        self._waiting += 1
        try:
            free = self._lock.wait_for(lambda: self._idle or self._connections < self._readers_max, wait_s)
        finally:
            self._waiting -= 1
        if not free:
            raise StatusError(
                status.UNAVAILABLE, f"no turn to read base {self._base_name} in {wait_s:.3g} s"
            )


def copy_base(base_name: str, path: str, target_path: str, deadline: float | None) -> None:
    """Write a base as it is now to a file, which is not made durable.

    One read transaction holds the view, so that the copy of the pages, slice by slice, is consistent
    while others write; nobody waits for it. :raises StatusError: 504 when the deadline is over.
    """
    try:
        source = connect(path)
        try:
            source.execute("BEGIN")
            # The view is taken by the first read.
            source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            _copy_pages(source, target_path, deadline)
        finally:
            source.close()
    except apsw.Error as exc:
        raise translate(exc, base_name) from exc


def _copy_pages(source: apsw.Connection, path: str, deadline: float | None) -> None:
    target = apsw.Connection(path)
    try:
        target.execute("PRAGMA journal_mode=OFF")
        target.execute("PRAGMA synchronous=OFF")
        with target.backup("main", source, "main") as backup:
            while not backup.done:
                wait_within(0, deadline)
                backup.step(COPY_PAGES)
    finally:
        target.close()
