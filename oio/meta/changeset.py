# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The one place where what a transaction changed is captured.

A base with copies gives its :class:`Replicator`: the writer then records every transaction with the session
extension of SQLite, and hands the changeset over *before* the commit; an exception of the replicator rolls
the transaction back for all its members. A base without copies has no session, and pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import apsw

#: The wheel of apsw holds the session extension; a build without it cannot replicate.
AVAILABLE = hasattr(apsw, "Session")


class Replicator(Protocol):
    """The lead of a base that has copies: gives each transaction to the others. Called by the writer only."""

    def begin(self) -> None:
        """A transaction is about to begin. :raises StatusError: when somebody else leads the base now."""

    def tidy(self, connection: apsw.Connection) -> None:
        """The transaction is made but for what the replicator itself wants to change in the copies."""

    def replicate(self, connection: apsw.Connection, changeset: bytes, relaxed: bool) -> None:
        """Return once a majority holds the changeset; raise ``StatusError`` otherwise.

        It runs in the transaction; ``relaxed``: the copies need not be on disk.
        """

    def committed(self) -> None:
        """The transaction is committed here too."""


class Capture:
    """Recording of one transaction.

    :param tables: those whose changes are recorded, None for all.
    """

    __slots__ = ("_session",)

    def __init__(self, connection: apsw.Connection, tables: Iterable[str] | None = None) -> None:
        if not AVAILABLE:
            raise RuntimeError("this build of apsw has no session extension: bases cannot be replicated")
        self._session = apsw.Session(connection, "main")
        if tables is None:
            self._session.attach()
        else:
            for table in tables:
                self._session.attach(table)

    def changeset(self) -> bytes:
        """What changed since the beginning, empty when nothing did."""
        return self._session.changeset()

    def close(self) -> None:
        """Stop recording."""
        self._session.close()
