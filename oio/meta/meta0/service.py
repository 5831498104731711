# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The prefix table: one base, named after the namespace, small and read all the time.

Reads of one prefix are one look-up; the whole table is kept in memory between two changes. A change is
visible to readers once it is committed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from oio.common import status
from oio.common.status import StatusError
from oio.directory.prefixes import PREFIXES
from oio.meta.base_type import BaseType
from oio.meta.context import Context, nothing_to_refresh
from oio.meta.messages import Meta0Get, Meta0Set, Operation, PrefixMapping, Refresh
from oio.meta.replication import journal
from oio.meta.repository import Repository
from oio.meta.transaction import Reader, Transaction

SCHEMA = """
CREATE TABLE meta1 (
    prefix BLOB NOT NULL,
    addr TEXT NOT NULL,
    PRIMARY KEY (prefix, addr)
) WITHOUT ROWID;
CREATE TABLE meta1_ref (
    addr TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    prefixes INTEGER NOT NULL
) WITHOUT ROWID;
"""
META0 = BaseType(name="meta0", schema=SCHEMA)

_PREFIX = re.compile(r"^[0-9A-F]{4}\Z")
_PARTIAL = re.compile(r"^[0-9A-F]{0,4}\Z")
_ADDRESS_MAX = 255
_ANY = "SELECT 1 FROM meta1 LIMIT 1"
#: Admin key that changes with the table.
_VERSION = "version:main.meta1"

Handler = Callable[[Any, Context], Any]


class Meta0Service:
    """Operations of meta0 on the base of a namespace, which is created when it is missing."""

    def __init__(self, repository: Repository, namespace: str) -> None:
        self._repository = repository
        self._base = namespace
        #: The table, as of a version of its rows.
        self._known: tuple[str, dict[str, list[str]]] = ("", {})
        if repository.replication is None:
            repository.create(namespace, self._init)

    def _init(self, tx: Transaction) -> None:
        tx.set("sys.ns", self._base)

    def handlers(self) -> dict[type[Operation], Handler]:
        """What to call for each operation."""
        return {Meta0Get: self.get, Meta0Set: self.set, Refresh: nothing_to_refresh}

    def get(self, request: Meta0Get, context: Context) -> PrefixMapping:
        """Services of the prefixes that start with the given digits."""
        wanted = request.prefix.upper()
        if not _PARTIAL.match(wanted):
            raise StatusError(
                status.BAD_REQUEST, f"A prefix has up to 4 hex digits: {request.prefix!r}"
            )
        table = self._table(context)
        if not wanted:
            return PrefixMapping(mapping=table)
        if len(wanted) == 4:
            services = table.get(wanted)
            return PrefixMapping(mapping={wanted: services} if services else {})
        return PrefixMapping(
            mapping={prefix: services for prefix, services in table.items() if prefix.startswith(wanted)}
        )

    def set(self, request: Meta0Set, context: Context) -> None:
        """Replace the services of the given prefixes, all of them or none.

        :raises StatusError: 400 for a first mapping that leaves prefixes without services.
        """
        rows = []
        for prefix, services in request.mapping.items():
            if not _PREFIX.match(prefix):
                raise StatusError(
                    status.BAD_REQUEST, f"A prefix is 4 upper-case hex digits: {prefix!r}"
                )
            if not services or len(set(services)) < len(services):
                raise StatusError(status.BAD_REQUEST, f"{prefix}: no service, or one named twice")
            key = bytes.fromhex(prefix)
            for service in services:
                if not 0 < len(service) <= _ADDRESS_MAX:
                    raise StatusError(status.BAD_REQUEST, f"{prefix}: bad address {service[:64]!r}")
                rows.append((key, service))
        if not rows:
            return
        whole = len(request.mapping) == PREFIXES
        if not self._repository.present(self._base, context.deadline, context.route):
            if not whole:
                raise _incomplete(request)
            # The copies of a new namespace are made with its first mapping.
            self._repository.create(self._base, self._init, context.deadline, context.steps)

        def replace(tx: Transaction) -> None:
            if not whole and not tx.execute(_ANY).fetchall():
                raise _incomplete(request)
            tx.executemany(
                "DELETE FROM meta1 WHERE prefix = ?",
                [(bytes.fromhex(prefix),) for prefix in request.mapping],
            )
            tx.executemany("INSERT INTO meta1 (prefix, addr) VALUES (?, ?)", rows)
            tx.execute("DELETE FROM meta1_ref")
            tx.execute(
                "INSERT INTO meta1_ref (addr, state, prefixes)"
                " SELECT addr, '0', count(*) FROM meta1 GROUP BY addr"
            )

        self._repository.write(self._base, replace, deadline=context.deadline, route=context.route)

    def _table(self, context: Context) -> dict[str, list[str]]:
        """The whole table; it is read again when its version changed, here or by another copy of it."""
        known = self._known

        def read(reader: Reader) -> tuple[str, dict[str, list[str]]]:
            # Numbers may come again when an image took the place of the base: the history tells them apart.
            version = f"{reader.get(_VERSION)} {journal.position(reader.connection).digest.hex()}"
            return known if version == known[0] else (version, _read_rows(reader))

        try:
            self._known = known = self._repository.read(
                self._base, read, deadline=context.deadline, route=context.route
            )
        except StatusError as exc:
            if exc.code != status.CONTAINER_NOT_FOUND or self._repository.replication is None:
                raise
            return {}
        return known[1]


def _incomplete(request: Meta0Set) -> StatusError:
    return StatusError(
        status.BAD_REQUEST,
        f"The first mapping must name all the {PREFIXES} prefixes, this one names {len(request.mapping)}",
    )


def _read_rows(reader: Reader) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for prefix, address in reader.execute("SELECT prefix, addr FROM meta1 ORDER BY prefix, addr"):
        table.setdefault(prefix.hex().upper(), []).append(address)
    return table
