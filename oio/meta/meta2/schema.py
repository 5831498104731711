# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Tables and admin keys of a container's base.

Versions of a name are stored newest first, so that the latest is the first row met. Chunks are clustered by
content: reading an object touches one page of each table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oio.meta.base_type import BaseType
from oio.meta.meta2.events import state_event

SCHEMA = """
CREATE TABLE aliases (
    alias TEXT NOT NULL,
    version INTEGER NOT NULL,
    content BLOB NOT NULL,
    deleted BOOL NOT NULL DEFAULT 0,
    ctime INTEGER NOT NULL DEFAULT 0,
    mtime INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (alias, version DESC)
) WITHOUT ROWID;
CREATE INDEX aliases_by_content ON aliases(content);
CREATE TABLE contents (
    id BLOB NOT NULL PRIMARY KEY,
    hash BLOB,
    size INTEGER NOT NULL,
    ctime INTEGER NOT NULL DEFAULT 0,
    mtime INTEGER NOT NULL DEFAULT 0,
    mime_type TEXT NOT NULL,
    chunk_method TEXT NOT NULL,
    policy TEXT
) WITHOUT ROWID;
CREATE TABLE chunks (
    id TEXT NOT NULL,
    content BLOB NOT NULL,
    position TEXT NOT NULL,
    hash BLOB NOT NULL,
    size INTEGER NOT NULL,
    ctime INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (content, position, id)
) WITHOUT ROWID;
CREATE TABLE properties (
    alias TEXT NOT NULL,
    version INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB,
    PRIMARY KEY (alias, version, key)
) WITHOUT ROWID;
"""

ACCOUNT, USER, NAMESPACE = "sys.account", "sys.user.name", "sys.ns"
STATUS, PEERS = "sys.status", "sys.peers"
INIT, VERSION, CTIME = "sys.m2.init", "sys.m2.version", "sys.m2.ctime"
USAGE, OBJECTS = "sys.m2.usage", "sys.m2.objects"
DAMAGED, MISSING = "sys.m2.objects.damaged", "sys.m2.chunks.missing"
QUOTA, POLICY = "sys.m2.quota", "sys.m2.policy.storage"
MAX_VERSIONS = "sys.m2.policy.version"
DELETE_EXCEEDING = "sys.m2.policy.version.delete_exceeding"
KEEP_DELETED = "sys.m2.keep_deleted_delay"
BUCKET = "sys.m2.bucket.name"
#: Container id of the source of a copy.
COPY_OF = "sys.m2.copy_of"

#: What says which base this is.
FIXED_KEYS = frozenset({ACCOUNT, USER, NAMESPACE, "sys.name", "sys.type", INIT, COPY_OF})
#: Keys whose value is an integer.
NUMBERS = frozenset(
    {
        STATUS, VERSION, CTIME, USAGE, OBJECTS, DAMAGED, MISSING, QUOTA, MAX_VERSIONS, KEEP_DELETED,
    }
)  # fmt: skip

#: Values of ``sys.status`` (unsigned, and signed as some tools write them).
FROZEN = frozenset({"4294967295", "-1"})
DISABLED = frozenset({"4294967294", "-2"})

#: Content of a delete marker.
MARKER_CONTENT = b"DELETED"
#: In a copy, ``ctime`` of the chunks that belong to the source: who deletes them here must not delete the data.
LENT = -1
#: Chunk method of a drained object.
DRAINED = "drained"


def _state(admin: Mapping[str, str]) -> dict[str, Any]:
    return state_event(admin)


META2 = BaseType(
    name="meta2", schema=SCHEMA, schema_version="1.8", directory_width=3, state_event=_state
)


def base_name(cid: str) -> str:
    """Name of the base of a container."""
    return cid + ".1"
