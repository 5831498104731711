# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Reading of objects, and their properties."""

from __future__ import annotations

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import (
    Chunk,
    ContainerTarget,
    ContentDelProperties,
    ContentReply,
    ContentSetProperties,
    ContentShow,
    ContentTarget,
    ContentTouch,
)
from oio.meta.meta2 import events, rows, rules, schema
from oio.meta.meta2.rows import Alias
from oio.meta.transaction import Reader, Transaction

_SHOW = (
    "SELECT a.alias, a.version, a.content, a.deleted, a.ctime, a.mtime, hex(a.content), hex(c.hash),"
    " c.size, c.mime_type, c.chunk_method, c.policy"
    " FROM aliases a LEFT JOIN contents c ON c.id = a.content WHERE "
)
_SHOW_LATEST = _SHOW + "a.alias = ? ORDER BY a.version DESC LIMIT 1"
_SHOW_VERSION = _SHOW + "a.alias = ? AND a.version = ?"
_SHOW_CHUNKS = (
    "SELECT id, position, size, hex(hash) FROM chunks WHERE content = ? ORDER BY position, id"
)
_DELETE = "DELETE FROM properties WHERE alias = ? AND version = ? AND key = ? RETURNING key"
_DELETE_ALL = "DELETE FROM properties WHERE alias = ? AND version = ? RETURNING key"


def show(reader: Reader, request: ContentShow) -> ContentReply:
    """An object version with its chunks and properties."""
    rules.check_readable(reader.get)
    execute = reader.execute
    if request.path and not request.content_id and 0 <= request.version <= rows.INTEGER_MAX:
        if request.version:
            row = execute(_SHOW_VERSION, (request.path, request.version)).fetchone()
        else:
            row = execute(_SHOW_LATEST, (request.path,)).fetchone()
    else:
        alias = rows.require(execute, request)
        row = execute(_SHOW_VERSION, (alias.name, alias.version)).fetchone()
    if row is None:
        raise StatusError(status.CONTENT_NOT_FOUND, "Alias not found")
    (
        name, version, content, deleted, ctime, mtime, content_hex, hash_hex, size, mime_type,
        method, policy,
    ) = row
    if deleted:
        if not request.deleted:
            raise StatusError(status.CONTENT_DELETED, "Alias deleted")
    elif method == schema.DRAINED and not request.drained:
        raise StatusError(status.CONTENT_DRAINED, "The content is drained")
    chunks: list[Chunk] = []
    if request.chunks and not deleted:
        chunks = [
            Chunk(url=url, pos=position, size=chunk_size, hash=hash_)
            for url, position, chunk_size, hash_ in execute(_SHOW_CHUNKS, (content,))
        ]
    properties: dict[str, str] = {}
    if request.properties:
        for key, value in execute(rows.PROPERTIES, (name, version)):
            properties[key] = value if type(value) is str else rows.text(value)
    return ContentReply(
        name=name, version=version, deleted=bool(deleted), ctime=ctime, mtime=mtime,
        content_id=content_hex, hash=hash_hex or "", size=size or 0, mime_type=mime_type or "",
        chunk_method=method or "", policy=policy or "", chunks=chunks, properties=properties,
    )


def set_properties(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContentSetProperties
) -> None:
    """Set properties; an empty value deletes; ``clear`` removes the others first."""
    alias = _require_object(tx, request)
    changed: dict[str, str | None] = {}
    key_of_alias = (alias.name, alias.version)
    if request.clear:
        changed.update((key, None) for (key,) in list(tx.execute(_DELETE_ALL, key_of_alias)))
    for key, value in request.properties.items():
        if not key:
            raise StatusError(status.BAD_REQUEST, "Empty property name")
        if value:
            rows.set_object_properties(tx, alias, [(key, value)])
            changed[key] = value
        elif list(tx.execute(_DELETE, (*key_of_alias, key))):
            changed[key] = None
    _emit_update(tx, context, request, alias, changed)


def del_properties(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContentDelProperties
) -> None:
    """Delete properties by name; an empty list deletes all; nothing is said when none existed."""
    alias = _require_object(tx, request)
    key_of_alias = (alias.name, alias.version)
    deleted: list[str] = []
    if request.names:
        for name in request.names:
            deleted += [key for (key,) in list(tx.execute(_DELETE, (*key_of_alias, name)))]
    else:
        deleted = [key for (key,) in list(tx.execute(_DELETE_ALL, key_of_alias))]
    if deleted:
        _emit_update(tx, context, request, alias, dict.fromkeys(deleted))


def touch(tx: Transaction, context: Context, request: ContentTouch) -> None:
    """Emit ``storage.content.new`` again with all properties."""
    rules.check_readable(tx.get)
    alias = rows.require(tx.execute, request)
    if alias.deleted:
        raise StatusError(status.CONTENT_NOT_FOUND, "Alias deleted: a marker cannot be touched")
    emit_object(tx, context, request, "new", alias)


def emit_object(
    tx: Transaction,
    context: Context,
    target: ContainerTarget,
    kind: str,
    alias: Alias,
    header: rows.Header | None = None,
) -> None:
    """Emit ``storage.content.<kind>`` of an object version with all its properties, without its chunks."""
    if tx.events_enabled:
        properties: dict[str, str | None] = {**rows.properties(tx.execute, alias)}
        _emit(tx, context, target, kind, alias, properties, header)


def _require_object(tx: Transaction, request: ContentTarget) -> Alias:
    rules.check_writable(tx.get)
    alias = rows.require(tx.execute, request)
    if alias.deleted:
        raise StatusError(status.CONTENT_NOT_FOUND, "Alias deleted: a marker has no properties")
    return alias


def _emit_update(
    tx: Transaction,
    context: Context,
    request: ContentTarget,
    alias: Alias,
    changed: dict[str, str | None],
) -> None:
    if tx.events_enabled:
        _emit(tx, context, request, "update", alias, changed)


def _emit(
    tx: Transaction,
    context: Context,
    target: ContainerTarget,
    kind: str,
    alias: Alias,
    properties: dict[str, str | None],
    header: rows.Header | None = None,
) -> None:
    header = header or rows.header(tx.execute, alias.content)
    others = [] if header is None else [header.bean(alias.content)]
    others += rows.property_beans(alias, properties.items())
    events.emit_content(tx, context, target, kind, alias.bean(), others)
