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
    """Sends changesets to the other copies of a base."""

    def replicate(self, base_name: str, changeset: bytes) -> None:
        """Return once a quorum holds the changeset; raise ``StatusError`` otherwise."""


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
