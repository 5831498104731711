# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What adds to the version in place: append (new metachunks), and force (more chunks and properties)."""

from __future__ import annotations

import time

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import ContentPut
from oio.meta.meta2 import checks, conditions, contents, quality, rows, rules
from oio.meta.meta2.rows import Alias, Header
from oio.meta.transaction import Transaction

# A cast reads the digits before the dot: the metachunk.
_HAS_CHUNK = "SELECT EXISTS (SELECT 1 FROM chunks WHERE content = ? AND id = ?)"
_LAST_METACHUNK = "SELECT max(CAST(position AS INTEGER)) FROM chunks WHERE content = ?"


def add(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContentPut,
    missing: list[str],
) -> bool:
    """Append to, or complete, the version in place. False when there is none: a put is due.

    A delete marker is no version to add to. Version and content id of the request are ignored, but that
    what is forced goes to the version of that number when there is one.
    """
    if request.force:
        rules.check_overwrite(settings, context)
    alias = rows.latest(tx.execute, request.path)
    if request.force and alias is not None and alias.version != request.version:
        alias = rows.version(tx.execute, request.path, request.version) or alias
    if alias is None or alias.deleted:
        if request.force:
            # Only now is it known that these chunks must make a whole object.
            checks.missing_positions(
                request.security, checks.placed(request.chunks), request.size
            )
        return False
    if request.retried and request.append:
        _refuse_again(tx, request, alias)
    if request.condition is not None:
        conditions.check(tx.execute, request.condition, alias)
    header = rows.readable_header(tx.execute, alias)
    if request.force:
        _force(tx, context, request, alias, header)
    else:
        _append(tx, context, request, alias, header, missing)
    return True


def _refuse_again(tx: Transaction, request: ContentPut, alias: Alias) -> None:
    """:raises StatusError: 421 when the request was executed before, but its answer was lost."""
    for chunk in request.chunks:
        if rows.scalar(tx.execute, _HAS_CHUNK, (alias.content, chunk.url)):
            raise StatusError(status.CONTENT_EXISTS, f"{alias.name} has these chunks already")


def _append(
    tx: Transaction,
    context: Context,
    request: ContentPut,
    alias: Alias,
    header: Header,
    missing: list[str],
) -> None:
    """Add metachunks after the last one."""
    security = checks.security_of(header.chunk_method)
    placed = checks.placed(request.chunks)
    if security != request.security:
        # The policy named is not the one of the object: what is added must be readable as the rest.
        checks.missing_positions(security, placed, request.size)
    last = rows.scalar(tx.execute, _LAST_METACHUNK, (alias.content,))
    shift = 0 if last is None else last + 1
    chunks = [
        msgspec.structs.replace(chunk, pos=checks.shifted(chunk.pos, shift))
        for chunk in request.chunks
    ]
    lacking = checks.lacking(security, placed)
    if lacking:
        before = rows.count_missing(header, rows.chunks(tx.execute, alias.content))
        rows.change_damage(tx, before, before + lacking)
    now = int(time.time())
    rows.insert_chunks(tx, alias.content, chunks, now)
    header = rows.resize(tx, alias.content, header, header.size + request.size, now)
    alias = rows.set_mtime(tx, alias, now)
    kept = quality.kept_properties(request.properties)
    if kept:
        rows.set_object_properties(tx, alias, kept)
    if tx.events_enabled:
        contents.emit_object(tx, context, request, "append", alias, header)
        missing = [checks.shifted(position, shift) for position in missing]
        quality.emit(tx, context, request, alias.bean(), chunks, missing, request.properties)
        tx.emit_state()


def _force(
    tx: Transaction, context: Context, request: ContentPut, alias: Alias, header: Header
) -> None:
    """Add chunks where they are said to be, and properties; those in place with the same key are replaced."""
    security = checks.security_of(header.chunk_method)
    former = rows.chunks(tx.execute, alias.content)
    now = int(time.time())
    rows.insert_chunks(tx, alias.content, request.chunks, now, replace=True)
    present = rows.chunks(tx.execute, alias.content)
    placed = [(position, size) for _, position, _, size in present]
    try:
        missing = checks.missing_positions(security, placed, header.size)
    except StatusError as exc:
        raise StatusError(
            exc.code, f"{exc.message} (with the {len(former)} chunks in place)"
        ) from exc
    rows.change_damage(tx, rows.count_missing(header, former), len(missing))
    alias = rows.set_mtime(tx, alias, now)
    kept = quality.kept_properties(request.properties)
    if kept:
        rows.set_object_properties(tx, alias, kept)
    if tx.events_enabled:
        contents.emit_object(tx, context, request, "new", alias, header)
        quality.emit(tx, context, request, alias.bean(), request.chunks, missing, request.properties)
        tx.emit_state()
