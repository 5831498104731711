# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Rows written as they are given: what repair, move, copy and restore tools stand on (contract: "Raw routes").

No rule of objects applies, but the counters of the container stay true: each request compares what the
contents that it touches weigh and lack before and after. All or nothing of a request is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import RawAlias, RawBean, RawChunk, RawDelete, RawHeader, RawInsert, RawUpdate
from oio.meta.meta2 import checks, rows, rules, schema, states
from oio.meta.transaction import Transaction

#: Longest name of an object, as everywhere else in the system (bytes of UTF-8).
NAME_MAX_BYTES = 1023
#: Longest other text (URL of a chunk, chunk method, media type, policy) and content id, in bytes.
TEXT_MAX_BYTES, CONTENT_ID_MAX_BYTES = 4096, 256

_ALIAS_COLUMNS = "INTO aliases(alias, version, content, deleted, ctime, mtime) VALUES(?, ?, ?, ?, ?, ?)"
_HEADER_COLUMNS = (
    "INTO contents(id, hash, size, ctime, mtime, mime_type, chunk_method, policy)"
    " VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
)
_CHUNK_COLUMNS = "INTO chunks(id, content, position, hash, size, ctime) VALUES(?, ?, ?, ?, ?, ?)"
_DELETE_ALIAS = "DELETE FROM aliases WHERE alias = ? AND version = ? RETURNING 1"
_DELETE_PROPERTIES = "DELETE FROM properties WHERE alias = ? AND version = ?"
_MOVE_PROPERTIES = (
    "UPDATE properties SET alias = ?, version = ? WHERE alias = ? AND version = ?"
)
_DELETE_HEADER = "DELETE FROM contents WHERE id = ? RETURNING 1"
_DELETE_CHUNK = "DELETE FROM chunks WHERE content = ? AND position = ? AND id = ? RETURNING 1"
_SIZE_AND_HASH = "SELECT size, hash FROM chunks WHERE content = ? AND position = ? AND id = ?"
_CONTENT_OF_ALIAS = "SELECT content FROM aliases WHERE alias = ? AND version = ? AND NOT deleted"
_LIVE_ALIASES = "SELECT count(*) FROM aliases WHERE content = ? AND NOT deleted"


def insert(
    tx: Transaction, settings: rules.Settings, context: Context, request: RawInsert
) -> None:
    """Insert rows. :raises StatusError: 421 when one exists, unless ``force`` replaces it."""
    rules.check_not_worm(settings, context, "insert rows")
    _check_status(tx, request.frozen)
    _check_beans(request.beans)

    def change() -> None:
        if request.strict:
            _check_siblings(tx, request.beans)
        for bean in request.beans:
            _insert(tx, bean, request.force)
        if request.strict:
            _check_apart(tx, request.beans)

    _count_change(tx, request.beans, change)


def update(
    tx: Transaction, settings: rules.Settings, context: Context, request: RawUpdate
) -> None:
    """Replace rows. :raises StatusError: 420 when an old one is absent, 421 when a new one is in place."""
    rules.check_not_worm(settings, context, "update rows")
    _check_status(tx, request.frozen)
    if len(request.old) != len(request.new):
        raise StatusError(
            status.BAD_REQUEST, f"{len(request.old)} old rows for {len(request.new)} new ones"
        )
    _check_beans(request.old)
    _check_beans(request.new)
    for old, new in zip(request.old, request.new, strict=True):
        if type(old) is not type(new):
            raise StatusError(status.BAD_REQUEST, f"{_name(old)} cannot become {_name(new)}")

    def change() -> None:
        if request.strict:
            _check_unchanged(tx, request.old)
        for bean in request.old:
            if not _delete(tx, bean):
                raise StatusError(status.CONTENT_NOT_FOUND, f"No {_name(bean)}")
        for old, new in zip(request.old, request.new, strict=True):
            _insert(tx, new, False)
            if isinstance(old, RawAlias) and isinstance(new, RawAlias):
                _move_properties(tx, old, new)
        if request.strict:
            _check_apart(tx, request.new)

    _count_change(tx, [*request.old, *request.new], change)


def delete(
    tx: Transaction, settings: rules.Settings, context: Context, request: RawDelete
) -> None:
    """Delete rows; those that are absent are not an error. An alias takes its properties along."""
    rules.check_not_worm(settings, context, "delete rows")
    _check_status(tx, False)
    _check_beans(request.beans)

    def change() -> None:
        for bean in request.beans:
            if _delete(tx, bean) and isinstance(bean, RawAlias):
                tx.execute(_DELETE_PROPERTIES, (bean.name, bean.version))

    _count_change(tx, request.beans, change)


# --- what is accepted ---------------------------------------------------------------------------------


def _check_status(tx: Transaction, even_frozen: bool) -> None:
    rules.check_initialised(tx.get)
    present = states.current(tx.get)
    if present == "disabled" or (present == "frozen" and not even_frozen):
        raise StatusError(status.CONTAINER_FROZEN, f"Invalid status: {present}")


def _check_beans(beans: Sequence[RawBean]) -> None:
    if not beans:
        raise StatusError(status.BAD_REQUEST, "No row given")
    for bean in beans:
        if isinstance(bean, RawAlias):
            _check_alias(bean)
        elif isinstance(bean, RawHeader):
            _check_header(bean)
        else:
            _check_chunk(bean)


def _check_alias(bean: RawAlias) -> None:
    _check_text("alias", "name", bean.name, NAME_MAX_BYTES)
    _check_number("alias", "version", bean.version, 1, rows.VERSION_MAX)
    _check_content_id("alias", "header", bean.header)
    _check_times("alias", bean.ctime, bean.mtime)


def _check_header(bean: RawHeader) -> None:
    _check_content_id("header", "id", bean.id)
    if len(bean.hash) // 2 not in checks.HASH_LENGTHS:
        raise _invalid("header", "hash", f"{len(bean.hash)} digits")
    _check_number("header", "size", bean.size, 0)
    _check_text("header", "chunk-method", bean.chunk_method, TEXT_MAX_BYTES)
    _check_text("header", "mime-type", bean.mime_type, TEXT_MAX_BYTES)
    if bean.policy:
        _check_text("header", "policy", bean.policy, TEXT_MAX_BYTES)
    _check_times("header", bean.ctime, bean.mtime)


def _check_chunk(bean: RawChunk) -> None:
    _check_text("chunk", "id", bean.id, TEXT_MAX_BYTES)
    if len(bean.hash) // 2 not in checks.HASH_LENGTHS:
        raise _invalid("chunk", "hash", f"{len(bean.hash)} digits")
    _check_number("chunk", "size", bean.size, 0)
    _check_content_id("chunk", "content", bean.content)
    try:
        checks.split_position(bean.pos)
    except StatusError as exc:
        raise _invalid("chunk", "pos", repr(bean.pos[:32])) from exc
    _check_times("chunk", bean.ctime)


def _check_text(kind: str, field: str, value: str, max_bytes: int) -> None:
    if not value:
        raise _invalid(kind, field, "it is empty")
    if "\0" in value:
        raise _invalid(kind, field, "it holds a NUL")
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > max_bytes:
        raise _invalid(kind, field, f"{size} bytes, at most {max_bytes} allowed")


def _check_content_id(kind: str, field: str, value: str) -> None:
    if not 0 < len(value) <= 2 * CONTENT_ID_MAX_BYTES:
        raise _invalid(kind, field, f"{len(value)} digits")


def _check_number(kind: str, field: str, value: int, low: int, high: int = rows.INTEGER_MAX) -> None:
    if not low <= value <= high:
        raise _invalid(kind, field, str(value))


def _check_times(kind: str, ctime: int | None, mtime: int | None = None) -> None:
    _check_number(kind, "ctime", ctime or 0, 0)
    _check_number(kind, "mtime", mtime or 0, 0)


def _invalid(kind: str, field: str, reason: str) -> StatusError:
    return StatusError(status.BAD_REQUEST, f"Invalid field '{field}' of {kind}: {reason}")


def _name(bean: RawBean) -> str:
    """A row as errors name it."""
    if isinstance(bean, RawAlias):
        return f"alias {bean.name!r} version {bean.version}"
    if isinstance(bean, RawHeader):
        return f"header {bean.id}"
    return f"chunk {bean.id} at position {bean.pos} of content {bean.content}"


# --- strictness ---------------------------------------------------------------------------------------
#
# Chunks are rebuilt and moved by clients whose view of the object grows old meanwhile. Here, in the transaction
# that writes the rows, nothing can be unknown.


def _check_unchanged(tx: Transaction, beans: Sequence[RawBean]) -> None:
    """The new rows copy the size and the hash of the old ones: these must still be right."""
    for bean in beans:
        if isinstance(bean, RawChunk):
            key = (bytes.fromhex(bean.content), bean.pos, bean.id)
            stored = tx.execute(_SIZE_AND_HASH, key).fetchone()
            if stored is not None and stored != _size_and_hash(bean):
                raise StatusError(
                    status.CONTENT_NOT_FOUND, f"{_name(bean)} changed meanwhile: {stored[0]} bytes"
                )


def _check_siblings(tx: Transaction, beans: Sequence[RawBean]) -> None:
    """A chunk is added to a metachunk that is there, and is still the one that it was made from."""
    for bean in beans:
        if not isinstance(bean, RawChunk):
            continue
        there = rows.chunks(tx.execute, bytes.fromhex(bean.content))
        metachunk, wanted = _metachunk(bean.pos), _size_and_hash(bean)
        if not any((size, hash_) == wanted and _metachunk(pos) == metachunk for _, pos, hash_, size in there):
            raise StatusError(
                status.CONTENT_NOT_FOUND, f"No metachunk of {bean.size} bytes and this hash for {_name(bean)}"
            )


def _check_apart(tx: Transaction, beans: Sequence[RawBean]) -> None:
    """Two chunks of a metachunk on one service are lost together."""
    for bean in beans:
        if not isinstance(bean, RawChunk):
            continue
        metachunk, service = _metachunk(bean.pos), _service(bean.id)
        for url, position, _, _ in rows.chunks(tx.execute, bytes.fromhex(bean.content)):
            if (url, position) == (bean.id, bean.pos) or _service(url) != service:
                continue
            if _metachunk(position) == metachunk:
                raise StatusError(
                    status.CONTENT_EXISTS,
                    f"{service} has another chunk of this metachunk, {url}: cannot add {_name(bean)}",
                )


def _size_and_hash(bean: RawChunk) -> tuple[int, bytes]:
    return bean.size, bytes.fromhex(bean.hash)


def _metachunk(position: str) -> str:
    return position.partition(".")[0]


def _service(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


# --- counters -----------------------------------------------------------------------------------------


class _Weight(NamedTuple):
    """What a content, or several, count for."""

    objects: int = 0
    usage: int = 0
    missing: int = 0
    damaged: int = 0


def _count_change(
    tx: Transaction, beans: Sequence[RawBean], change: Callable[[], None]
) -> None:
    """Make a change, and keep the counters true."""
    touched = _touched(tx, beans)
    before = _weigh(tx, touched)
    change()
    after = _weigh(tx, touched)
    if before == after:
        return
    rows.add(tx, schema.OBJECTS, after.objects - before.objects)
    rows.add(tx, schema.USAGE, after.usage - before.usage)
    rows.add(tx, schema.MISSING, after.missing - before.missing)
    rows.add(tx, schema.DAMAGED, after.damaged - before.damaged)
    tx.emit_state()


def _touched(tx: Transaction, beans: Sequence[RawBean]) -> set[bytes]:
    """Contents whose weight the beans can change, as the base stands before or as it will stand."""
    touched = set()
    for bean in beans:
        if isinstance(bean, RawAlias):
            if not bean.deleted:
                touched.add(bytes.fromhex(bean.header))
            stored = tx.execute(_CONTENT_OF_ALIAS, (bean.name, bean.version)).fetchone()
            if stored is not None:
                touched.add(stored[0])
        else:
            touched.add(bytes.fromhex(bean.id if isinstance(bean, RawHeader) else bean.content))
    return touched


def _weigh(tx: Transaction, contents: set[bytes]) -> _Weight:
    objects = usage = missing = damaged = 0
    for content in contents:
        row: Any = tx.execute(_LIVE_ALIASES, (content,)).fetchone()
        aliases: int = row[0]
        objects += aliases
        header = rows.header(tx.execute, content)
        if header is not None:
            usage += aliases * header.size
            lacking = rows.count_missing(header, tx.execute(rows.CHUNKS, (content,)))
            missing += lacking
            damaged += lacking > 0
    return _Weight(objects, usage, missing, damaged)


# --- rows ---------------------------------------------------------------------------------------------


def _insert(tx: Transaction, bean: RawBean, replace: bool) -> None:
    columns, values = _row(bean)
    verb = "INSERT OR REPLACE " if replace else "INSERT "
    try:
        tx.execute(verb + columns, values)
    except apsw.ConstraintError as exc:
        raise StatusError(status.CONTENT_EXISTS, f"Already there: {_name(bean)}") from exc


def _row(bean: RawBean) -> tuple[str, tuple[Any, ...]]:
    """Columns and values of a bean; times that are not given are now."""
    now = int(time.time())
    ctime = now if bean.ctime is None else bean.ctime
    if isinstance(bean, RawChunk):
        values: tuple[Any, ...] = (
            bean.id, bytes.fromhex(bean.content), bean.pos, bytes.fromhex(bean.hash), bean.size, ctime,
        )
        return _CHUNK_COLUMNS, values
    mtime = now if bean.mtime is None else bean.mtime
    if isinstance(bean, RawAlias):
        content = bytes.fromhex(bean.header)
        return _ALIAS_COLUMNS, (bean.name, bean.version, content, int(bean.deleted), ctime, mtime)
    return _HEADER_COLUMNS, (
        bytes.fromhex(bean.id), bytes.fromhex(bean.hash) or None, bean.size, ctime, mtime,
        bean.mime_type, bean.chunk_method, bean.policy or None,
    )


def _delete(tx: Transaction, bean: RawBean) -> bool:
    """Delete the row of a bean, found by its key; was it there?"""
    if isinstance(bean, RawAlias):
        deleted = tx.execute(_DELETE_ALIAS, (bean.name, bean.version))
    elif isinstance(bean, RawHeader):
        deleted = tx.execute(_DELETE_HEADER, (bytes.fromhex(bean.id),))
    else:
        deleted = tx.execute(_DELETE_CHUNK, (bytes.fromhex(bean.content), bean.pos, bean.id))
    return bool(deleted.fetchall())


def _move_properties(tx: Transaction, old: RawAlias, new: RawAlias) -> None:
    """The properties of an alias follow it under its new name or version."""
    if (old.name, old.version) != (new.name, new.version):
        tx.execute(_DELETE_PROPERTIES, (new.name, new.version))
        tx.execute(_MOVE_PROPERTIES, (new.name, new.version, old.name, old.version))
