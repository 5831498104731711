# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of a container's base: look-ups, removals, counters. No rule is decided here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, NamedTuple

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.messages import Chunk, ContentTarget
from oio.meta.meta2 import events, schema
from oio.meta.meta2.checks import lacking, security_of
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

_INSERT_CONTENT = (
    "INSERT INTO contents(id, hash, size, ctime, mtime, mime_type, chunk_method, policy)"
    " VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_CHUNK = (
    "INSERT INTO chunks(id, content, position, hash, size, ctime) VALUES(?, ?, ?, ?, ?, ?)"
)
_REPLACE_CHUNK = _INSERT_CHUNK + (
    " ON CONFLICT DO UPDATE SET hash = excluded.hash, size = excluded.size"
)
_SET_PROPERTY = (
    "INSERT INTO properties(alias, version, key, value) VALUES(?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET value = excluded.value"
)
_SET_MTIME = "UPDATE aliases SET mtime = ? WHERE alias = ? AND version = ?"
_SET_SIZE = "UPDATE contents SET size = ?, hash = x'', mtime = ? WHERE id = ?"
_REFERENCES = "SELECT count(*) FROM aliases WHERE content = ? AND NOT deleted"
_DELETE_ALIAS = "DELETE FROM aliases WHERE alias = ? AND version = ?"
_REFERENCED = "SELECT 1 FROM aliases WHERE content = ? LIMIT 1"
_DELETE_HEADER = (
    "DELETE FROM contents WHERE id = ? RETURNING hash, size, policy, chunk_method, mime_type"
)
_LENT_CHUNKS = "SELECT id FROM chunks WHERE content = ? AND ctime = ?"
_DELETE_CHUNKS = "DELETE FROM chunks WHERE content = ? RETURNING id, position, hash, size"
_DELETE_PROPERTIES = (
    "DELETE FROM properties WHERE alias = ? AND version = ? RETURNING key, value"
)


#: Versions and sizes are stored as 64-bit integers; the marker of a version is the next one.
INTEGER_MAX = 2**63 - 1
VERSION_MAX = INTEGER_MAX - 1

#: A stored chunk: URL, position, hash, size.
ChunkRow = tuple[str, str, bytes, int]


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
    chunks: list[ChunkRow]
    properties: list[tuple[str, Any]]


def text(value: Any) -> str:
    """A stored value as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def scalar(execute: Execute, sql: str, bindings: tuple[Any, ...]) -> Any:
    """The only value of a query that always gives one row."""
    return execute(sql, bindings).fetchone()[0]


def latest(execute: Execute, name: str) -> Alias | None:
    """Latest version of a name, delete markers included."""
    row = execute(_BY_NAME, (name,)).fetchone()
    return None if row is None else Alias._make(row)


def version(execute: Execute, name: str, number: int) -> Alias | None:
    """A version of a name, which may be a delete marker."""
    row = execute(_BY_VERSION, (name, number)).fetchone()
    return None if row is None else Alias._make(row)


def find(execute: Execute, target: ContentTarget) -> Alias | None:
    """The version that a request names: by path (and version), else by content id."""
    if not 0 <= target.version <= INTEGER_MAX:
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
    return present(find(execute, target))


def present(alias: Alias | None) -> Alias:
    """A version that was looked up. :raises StatusError: 420 when there is none."""
    if alias is None:
        raise StatusError(status.CONTENT_NOT_FOUND, "Alias not found")
    return alias


def header(execute: Execute, content: bytes) -> Header | None:
    """Header of a content."""
    row = execute(HEADER, (content,)).fetchone()
    return None if row is None else Header._make(row)


def chunks(execute: Execute, content: bytes) -> list[ChunkRow]:
    """Chunks of a content."""
    found: list[ChunkRow] = execute(CHUNKS, (content,)).fetchall()
    return found


def readable_header(execute: Execute, alias: Alias) -> Header:
    """Header of an object that has its chunks. :raises StatusError: 427 when it is drained, 425 without header."""
    found = header(execute, alias.content)
    if found is None:
        raise StatusError(status.CONTENT_CORRUPTED, "Alias without header")
    if found.chunk_method == schema.DRAINED:
        raise StatusError(status.CONTENT_DRAINED, "The content is drained")
    return found


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
        value = counter(tx, key) + delta
        if value < 0:
            value = 0
        elif value > INTEGER_MAX:
            raise StatusError(status.CONTAINER_FULL, f"Container full: {key} would be {value}")
        tx.set(key, str(value))


def counter(tx: Transaction, key: str) -> int:
    """Value of a counter, zero when absent or unreadable."""
    try:
        return int(tx.get(key) or "0")
    except ValueError:
        return 0


def insert_header(tx: Transaction, content: bytes, header_: Header, now: int) -> None:
    """Add a content. :raises StatusError: 421 when its id is taken."""
    try:
        tx.execute(
            _INSERT_CONTENT,
            (
                content, header_.hash, header_.size, now, now, header_.mime_type,
                header_.chunk_method, header_.policy,
            ),
        )
    except apsw.ConstraintError as exc:
        raise StatusError(status.CONTENT_EXISTS, "A content exists with this ID") from exc


def insert_chunks(
    tx: Transaction, content: bytes, chunks: Iterable[Chunk], now: int, replace: bool = False
) -> None:
    """Add chunks to a content. :raises StatusError: 400 for a duplicate, unless they replace."""
    values = [(c.url, content, c.pos, bytes.fromhex(c.hash), c.size, now) for c in chunks]
    try:
        tx.executemany(_REPLACE_CHUNK if replace else _INSERT_CHUNK, values)
    except apsw.ConstraintError as exc:
        raise StatusError(status.BAD_REQUEST, "The same chunk twice at one position") from exc


def set_object_properties(tx: Transaction, alias: Alias, items: Iterable[tuple[str, str]]) -> None:
    """Set properties of an object version."""
    tx.executemany(_SET_PROPERTY, [(alias.name, alias.version, *item) for item in items])


def set_mtime(tx: Transaction, alias: Alias, now: int) -> Alias:
    """The version changed now; returns it as it is after that."""
    tx.execute(_SET_MTIME, (now, alias.name, alias.version))
    return alias._replace(mtime=now)


def resize(tx: Transaction, content: bytes, header_: Header, size: int, now: int) -> Header:
    """The data of a content changed: its size is told, its hash is not known any more.

    The usage follows, once for each version that holds this content.
    """
    if size > INTEGER_MAX:
        raise StatusError(status.BAD_REQUEST, f"Invalid size: the object would hold {size} bytes")
    tx.execute(_SET_SIZE, (size, now, content))
    if size != header_.size:
        references = scalar(tx.execute, _REFERENCES, (content,))
        add(tx, schema.USAGE, (size - header_.size) * references)
    return header_._replace(size=size, hash=b"")


def remove(tx: Transaction, alias: Alias) -> Removed:
    """Remove a version with all that only it uses, and update the counters."""
    execute = tx.execute
    execute(_DELETE_ALIAS, (alias.name, alias.version))
    properties_ = list(execute(_DELETE_PROPERTIES, (alias.name, alias.version)))
    if alias.deleted:
        return Removed(alias, None, [], properties_)
    header_, lost = remove_content(tx, alias.content)
    add(tx, schema.OBJECTS, -1)
    if header_ is not None:
        add(tx, schema.USAGE, -header_.size)
    tx.emit_state()
    return Removed(alias, header_, lost, properties_)


def remove_content(tx: Transaction, content: bytes) -> tuple[Header | None, list[ChunkRow]]:
    """Remove a content, unless a version refers to it; returns its header and the chunks to delete."""
    execute: Execute = tx.execute
    if execute(_REFERENCED, (content,)).fetchone() is not None:
        return header(execute, content), []
    lent = lent_chunks(tx, content)
    rows = execute(_DELETE_HEADER, (content,)).fetchall()
    header_ = Header._make(rows[0]) if rows else None
    removed: list[ChunkRow] = execute(_DELETE_CHUNKS, (content,)).fetchall()
    if header_ is not None:
        forget_missing(tx, header_, removed)
    return header_, [chunk for chunk in removed if chunk[0] not in lent] if lent else removed


def lent_chunks(tx: Transaction, content: bytes) -> frozenset[str]:
    """Chunks of a content that belong to the container of which this one is a copy."""
    if tx.get(schema.COPY_OF) is None:
        return frozenset()
    return frozenset(url for (url,) in tx.execute(_LENT_CHUNKS, (content, schema.LENT)))


def count_missing(header_: Header, chunks: Iterable[ChunkRow]) -> int:
    """How many chunks a stored object lacks, after its chunk method."""
    if header_.chunk_method == schema.DRAINED:
        return 0
    placed = [(position, size) for _, position, _, size in chunks]
    return lacking(security_of(header_.chunk_method), placed)


def damage_counted(tx: Transaction) -> bool:
    """Does the container know of an object that lacks chunks?"""
    return counter(tx, schema.MISSING) > 0 or counter(tx, schema.DAMAGED) > 0


def change_damage(tx: Transaction, before: int, after: int) -> None:
    """An object lacked ``before`` chunks, it lacks ``after`` of them now."""
    if before != after:
        add(tx, schema.MISSING, after - before)
        add(tx, schema.DAMAGED, (after > 0) - (before > 0))


def forget_missing(tx: Transaction, header_: Header, chunks: Iterable[ChunkRow]) -> None:
    """Chunks go away: so do those that they lacked."""
    if damage_counted(tx):
        change_damage(tx, count_missing(header_, chunks), 0)


def recount_missing(execute: Execute) -> tuple[int, int]:
    """(objects that lack chunks, chunks that lack) as the tables say."""
    damaged = missing = 0
    for _, group in groupby(execute(_ALL_CHUNKS), key=lambda row: row[0]):
        chunks = list(group)
        header_ = Header(None, 0, None, chunks[0][1], "")
        lost = count_missing(header_, [("", position, b"", size) for _, _, position, size in chunks])
        damaged += lost > 0
        missing += lost
    return damaged, missing


def recompute(execute: Execute) -> tuple[int, int]:
    """(bytes, object versions) as the tables say."""
    size, count = execute(
        "SELECT coalesce(sum(c.size), 0), count(*) FROM aliases a "
        "LEFT JOIN contents c ON c.id = a.content WHERE NOT a.deleted"
    ).fetchone()
    return size, count
