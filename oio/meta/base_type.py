# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What distinguishes the bases of one service from those of another.

A :class:`BaseType` names the service (``meta2``), gives the tables of a base, its first admin keys, and
where the file of a base stands in the volume. The engine adds two tables to every base: ``admin`` (keys
and values, kept in memory while the base is open) and ``events`` (the outbox).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Tables of the engine itself. ``events`` row 0 says "the state of this base must be emitted soon".
ENGINE_SCHEMA = """
CREATE TABLE admin (k TEXT PRIMARY KEY NOT NULL, v BLOB) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY NOT NULL, event BLOB) ;
"""
#: Admin key: version of the tables of a base.
SCHEMA_VERSION = "schema_version"
#: Admin key: ids of the services that hold copies of the base, separated by commas.
PEERS = "sys.peers"
#: Admin key of a base whose destruction is committed but whose file is still in place.
TOMBSTONE = "sys.destroyed"

StateEvent = Callable[[Mapping[str, str]], dict[str, Any]]

_TABLE = re.compile(r"^\s*CREATE TABLE (?:IF NOT EXISTS )?(\w+)", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")


def peers_in(admin: Mapping[str, str]) -> list[str]:
    """The services that hold copies of a base, from its admin keys; none when it lives alone."""
    return [peer for peer in admin.get(PEERS, "").split(",") if peer]


@dataclass(frozen=True)
class BaseType:
    """Kind of base.

    :ivar name: type, which is also the suffix of the files (``meta2``).
    :ivar schema: ``CREATE TABLE`` statements of the service.
    :ivar schema_version: stored under the admin key ``schema_version``.
    :ivar upgrades: by version of a base, the next version and the SQL that leads to it.
    :ivar directory_width: leading characters of the base name that make its directory (0: none).
    :ivar state_event: builds the event "state of this base" from its admin keys; ``None`` when the
        type has no such event.
    """

    name: str
    schema: str
    schema_version: str = "1.0"
    upgrades: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    directory_width: int = 0
    state_event: StateEvent | None = None

    def relative_path(self, base_name: str) -> str:
        """Where the file of a base stands, from the root of the volume.

        :raises ValueError: for a name that could leave the volume.
        """
        if not _NAME.match(base_name):
            raise ValueError(f"invalid base name {base_name!r}")
        file_name = f"{base_name}.{self.name}"
        if self.directory_width:
            return f"{base_name[: self.directory_width]}/{file_name}"
        return file_name

    def tables(self) -> list[str]:
        """Names of the tables whose versions are counted (all but the outbox)."""
        return ["admin", *_TABLE.findall(self.schema)]

    def upgrade_from(self, version: str) -> str:
        """SQL that brings a base of this version to the next one, '' when there is none."""
        following, script = self.upgrades.get(version, ("", ""))
        return f"{script};\nUPDATE admin SET v = '{following}' WHERE k = '{SCHEMA_VERSION}';" if following else ""

    @property
    def replicated(self) -> list[str]:
        """Names of the tables that copies of a base have in common."""
        return [*self.tables(), "events", "operations"]

    def first_admin(self, base_name: str) -> dict[str, str]:
        """Admin keys that every new base has."""
        keys = {f"version:main.{table}": "1:0" for table in self.tables()}
        return {
            **keys,
            SCHEMA_VERSION: self.schema_version,
            "sys.name": base_name,
            "sys.type": self.name,
            "sys.status": "0",
        }
