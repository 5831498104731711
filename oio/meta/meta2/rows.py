# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of a container's base: look-ups, removals, counters. No rule is decided here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, NamedTuple

from oio.common import status
from oio.common.status import StatusError
from oio.meta.messages import ContentTarget
from oio.meta.meta2 import events, schema
from oio.meta.meta2.checks import missing_positions, security_of
from oio.meta.transaction import Transaction

#: ``execute(sql, bindings)`` of a transaction or of a reader.
Execute = Callable[..., Any]

_ALIAS = "SELECT alias, version, content, deleted, ctime, mtime FROM aliases WHERE "
_BY_NAME = _ALIAS + "alias = ? ORDER BY version DESC LIMIT 1"
_BY_VERSION = _ALIAS + "alias = ? AND version = ?"
_BY_CONTENT = _ALIAS + "content = ? ORDER BY version DESC LIMIT 1"
_BY_CONTENT_AND_NAME = _ALIAS + "content = ? AND alias = ? ORDER BY version DESC LIMIT 1"
HEADER = "SELECT hash, size, policy, chunk_method, mime_type FROM contents WHERE id = ?"
CHUNKS = "SELECT id, position, hash, size FROM chunks WHERE content = ?"
_ALL_CHUNKS = (
    "SELECT c.id, c.chunk_method, k.position, k.size FROM contents c JOIN chunks k ON k.content = c.id"
    " ORDER BY c.id, k.position"
)
PROPERTIES = "SELECT key, value FROM properties WHERE alias = ? AND version = ?"

_DELETE_ALIAS = "DELETE FROM aliases WHERE alias = ? AND version = ?"
_REFERENCED = "SELECT 1 FROM aliases WHERE content = ? LIMIT 1"
_DELETE_HEADER = (
    "DELETE FROM contents WHERE id = ? RETURNING hash, size, policy, chunk_method, mime_type"
)
_DELETE_CHUNKS = "DELETE FROM chunks WHERE content = ? RETURNING id, position, hash, size"
_DELETE_PROPERTIES = (
    "DELETE FROM properties WHERE alias = ? AND version = ? RETURNING key, value"
)


class Alias(NamedTuple):
    """An object version, or a delete marker."""

    name: str
    version: int
    content: bytes
    deleted: int
    ctime: int
    mtime: int

    def bean(self) -> events.Bean:
        """The bean that events hold."""
        return events.alias_bean(
            self.name, self.version, self.content, bool(self.deleted), self.ctime, self.mtime
        )


class Header(NamedTuple):
    """What is known of a content besides its chunks."""

    hash: bytes | None
    size: int
    policy: str | None
    chunk_method: str
    mime_type: str

    def bean(self, content: bytes) -> events.Bean:
        """The bean that events hold."""
        return events.header_bean(
            content, self.hash, self.size, self.policy, self.chunk_method, self.mime_type
        )


class Removed(NamedTuple):
    """What the removal of an object version took away."""

    alias: Alias
    header: Header | None
    chunks: list[tuple[str, str, bytes, int]]
    properties: list[tuple[str, Any]]


def text(value: Any) -> str:
    """A stored value as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def latest(execute: Execute, name: str) -> Alias | None:
    """Latest version of a name, delete markers included."""
    row = execute(_BY_NAME, (name,)).fetchone()
    return None if row is None else Alias._make(row)


def find(execute: Execute, target: ContentTarget) -> Alias | None:
    """The version that a request names: by path (and version), else by content id."""
    if target.version < 0:
        raise StatusError(status.BAD_REQUEST, f"Invalid version {target.version}")
    if target.path and target.version:
        row = execute(_BY_VERSION, (target.path, target.version)).fetchone()
    elif target.content_id:
        content = bytes.fromhex(target.content_id)
        if target.path:
            row = execute(_BY_CONTENT_AND_NAME, (content, target.path)).fetchone()
        else:
            row = execute(_BY_CONTENT, (content,)).fetchone()
    elif target.path:
        row = execute(_BY_NAME, (target.path,)).fetchone()
    else:
        raise StatusError(status.BAD_REQUEST, "Missing path or content id")
    return None if row is None else Alias._make(row)


def require(execute: Execute, target: ContentTarget) -> Alias:
    """The version that a request names. :raises StatusError: 420 when there is none."""
    alias = find(execute, target)
    if alias is None:
        raise StatusError(status.CONTENT_NOT_FOUND, "Alias not found")
    return alias


def header(execute: Execute, content: bytes) -> Header | None:
    """Header of a content."""
    row = execute(HEADER, (content,)).fetchone()
    return None if row is None else Header._make(row)


def properties(execute: Execute, alias: Alias) -> dict[str, str]:
    """Properties of an object version."""
    rows = execute(PROPERTIES, (alias.name, alias.version))
    return {key: text(value) for key, value in rows}


def property_beans(alias: Alias, items: Iterable[tuple[str, Any]]) -> list[events.Bean]:
    """Beans of properties; a value of None says "deleted"."""
    return [
        events.property_bean(alias.name, alias.version, key, None if value is None else text(value))
        for key, value in items
    ]


def add(tx: Transaction, key: str, delta: int) -> None:
    """Add to a counter of the container, which never goes below zero."""
    if delta:
        tx.set(key, str(max(0, counter(tx, key) + delta)))


def counter(tx: Transaction, key: str) -> int:
    """Value of a counter, zero when absent or unreadable."""
    try:
        return int(tx.get(key) or "0")
    except ValueError:
        return 0


def remove(tx: Transaction, alias: Alias) -> Removed:
    """Remove a version with all that only it uses, and update the counters."""
    execute = tx.execute
    execute(_DELETE_ALIAS, (alias.name, alias.version))
    properties_ = list(execute(_DELETE_PROPERTIES, (alias.name, alias.version)))
    if alias.deleted:
        return Removed(alias, None, [], properties_)
    header_: Header | None = None
    chunks: list[tuple[str, str, bytes, int]] = []
    if execute(_REFERENCED, (alias.content,)).fetchone() is None:
        rows = list(execute(_DELETE_HEADER, (alias.content,)))
        header_ = Header._make(rows[0]) if rows else None
        chunks = list(execute(_DELETE_CHUNKS, (alias.content,)))
        if header_ is not None:
            forget_missing(tx, header_, chunks)
    else:
        header_ = header(execute, alias.content)
    add(tx, schema.OBJECTS, -1)
    if header_ is not None:
        add(tx, schema.USAGE, -header_.size)
    tx.emit_state()
    return Removed(alias, header_, chunks, properties_)


def count_missing(header_: Header, chunks: Iterable[tuple[str, str, bytes, int]]) -> int:
    """How many chunks a stored object lacks."""
    if header_.chunk_method == schema.DRAINED:
        return 0
    placed = [(position, size) for _, position, _, size in chunks]
    try:
        return len(missing_positions(security_of(header_.chunk_method), placed, None, True))
    except StatusError:
        return 0


def forget_missing(
    tx: Transaction, header_: Header, chunks: Iterable[tuple[str, str, bytes, int]]
) -> None:
    """Chunks go away: so do those that they lacked."""
    if counter(tx, schema.MISSING) <= 0 and counter(tx, schema.DAMAGED) <= 0:
        return
    lacking = count_missing(header_, chunks)
    if lacking:
        add(tx, schema.MISSING, -lacking)
        add(tx, schema.DAMAGED, -1)


def recount_missing(execute: Execute) -> tuple[int, int]:
    """(objects that lack chunks, chunks that lack) as the tables say."""
    damaged = missing = 0
    for _, group in groupby(execute(_ALL_CHUNKS), key=lambda row: row[0]):
        chunks = list(group)
        header_ = Header(None, 0, None, chunks[0][1], "")
        lacking = count_missing(header_, [("", position, b"", size) for _, _, position, size in chunks])
        damaged += lacking > 0
        missing += lacking
    return damaged, missing


def recompute(execute: Execute) -> tuple[int, int]:
    """(bytes, object versions) as the tables say."""
    size, count = execute(
        "SELECT coalesce(sum(c.size), 0), count(*) FROM aliases a "
        "LEFT JOIN contents c ON c.id = a.content WHERE NOT a.deleted"
    ).fetchone()
    return size, count
