# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Changes of the chunks of an object in place: update, truncate, drain.

Whatever loses its last chunks is told with ``storage.content.deleted``, whose consumers remove the chunks: a
chunk that stays in use is never in such an event.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import ContentDrain, ContentTarget, ContentTruncate, ContentUpdate
from oio.meta.meta2 import checks, contents, deletes, quality, rows, rules, schema
from oio.meta.meta2.rows import Alias, ChunkRow, Header
from oio.meta.transaction import Transaction

_DELETE_CHUNK = "DELETE FROM chunks WHERE content = ? AND position = ? AND id = ?"
_EMPTY_CHUNKS = "UPDATE chunks SET size = 0 WHERE content = ?"
_DRAIN = "UPDATE contents SET chunk_method = ?, mtime = ? WHERE id = ?"
_DELETE_CHUNKS = "DELETE FROM chunks WHERE content = ?"


# --- update -------------------------------------------------------------------------------------------


def check_update(request: ContentUpdate) -> None:
    """Verify a request without looking at the base. :raises StatusError: 400, 425."""
    placed = checks.placed(request.chunks)
    if "" in request.properties:
        raise StatusError(status.BAD_REQUEST, "Empty property name")
    if request.policy:
        checks.missing_positions(request.security, placed, None, partial=True)


def update(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContentUpdate
) -> None:
    """Replace all the chunks of each metachunk that the request names; the others stay."""
    rules.check_writable(tx.get)
    limit = rules.quota(tx, settings, context)
    usage = rows.counter(tx, schema.USAGE) if limit else 0
    alias = _designated(tx, request)
    header = rows.readable_header(tx.execute, alias)
    placed = checks.placed(request.chunks)
    missing = checks.missing_positions(
        checks.security_of(header.chunk_method), placed, None, partial=True
    )
    former = rows.chunks(tx.execute, alias.content)
    wanted = _sizes((chunk.pos, chunk.size) for chunk in request.chunks)
    present = _sizes((position, size) for _, position, _, size in former)
    _check_contiguous(wanted, present)
    replaced = [chunk for chunk in former if checks.split_position(chunk[1])[0] in wanted]
    lent = rows.lent_chunks(tx, alias.content)
    now = int(time.time())
    tx.executemany(_DELETE_CHUNK, [(alias.content, c[1], c[0]) for c in replaced])
    rows.insert_chunks(tx, alias.content, request.chunks, now)
    before = rows.count_missing(header, former)
    after = before - rows.count_missing(header, replaced) + len(missing)
    rows.change_damage(tx, before, after)
    held = _bytes_held(present, header.size)
    size = header.size + sum(wanted.values()) - sum(held.get(number, 0) for number in wanted)
    changed = rows.resize(tx, alias.content, header, size, now)
    after_alias = rows.set_mtime(tx, alias, now)
    kept = quality.kept_properties(request.properties)
    if kept:
        rows.set_object_properties(tx, alias, kept)
    if limit:
        rules.check_quota(limit, usage, rows.counter(tx, schema.USAGE))
    if tx.events_enabled:
        still_used = lent | {chunk.url for chunk in request.chunks}
        lost = [chunk for chunk in replaced if chunk[0] not in still_used]
        _emit_change(tx, context, request, (alias, header, lost), (after_alias, changed))
        quality.emit(
            tx, context, request, after_alias.bean(), request.chunks, missing, request.properties
        )


def _designated(tx: Transaction, request: ContentUpdate) -> Alias:
    """The version that has the content id of the request, else its version number.

    Never the latest one for want of these: when an object was replaced meanwhile, the chunks of one would end
    in the other. All that is told of the latest one is that it is drained.

    :raises StatusError: 420, 427.
    """
    alias = None
    if request.content_id and request.path:
        alias = rows.find(tx.execute, msgspec.structs.replace(request, version=0))
    if alias is None:
        alias = rows.find(tx.execute, request)
    if alias is None and request.path:
        latest = rows.latest(tx.execute, request.path)
        if latest is not None and not latest.deleted:
            rows.readable_header(tx.execute, latest)
    return _not_marker(rows.present(alias))


def _check_contiguous(wanted: dict[int, int], present: dict[int, int]) -> None:
    """A metachunk that is new must follow another one. :raises StatusError: 425."""
    for number in wanted:
        if number and number not in present and number - 1 not in present.keys() | wanted.keys():
            raise StatusError(
                status.CONTENT_CORRUPTED, f"Invalid content: no chunk at position {number - 1}"
            )


# --- truncate -----------------------------------------------------------------------------------------


def truncate(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContentTruncate
) -> None:
    """Drop the metachunks beyond a size, which must be the end of one; the first one stays, empty if need be."""
    rules.check_writable(tx.get)
    if request.size < 0:
        raise StatusError(status.BAD_REQUEST, f"Invalid size {request.size}")
    alias, header = _require_data(tx, request)
    if request.size > header.size:
        raise StatusError(
            status.BAD_REQUEST, f"Cannot truncate at {request.size}: the object has {header.size} bytes"
        )
    former = rows.chunks(tx.execute, alias.content)
    lent = rows.lent_chunks(tx, alias.content)
    dropped = _beyond(_sizes((c[1], c[3]) for c in former), header.size, request.size)
    now = int(time.time())
    lost = [chunk for chunk in former if checks.split_position(chunk[1])[0] in dropped]
    tx.executemany(_DELETE_CHUNK, [(alias.content, c[1], c[0]) for c in lost])
    if not request.size:
        # The data of the first metachunk stay on the disks: what is not in its size is not read.
        tx.execute(_EMPTY_CHUNKS, (alias.content,))
    before = rows.count_missing(header, former)
    rows.change_damage(tx, before, before - rows.count_missing(header, lost))
    changed = rows.resize(tx, alias.content, header, request.size, now)
    after = rows.set_mtime(tx, alias, now)
    told = [chunk for chunk in lost if chunk[0] not in lent]
    _emit_change(tx, context, request, (alias, header, told), (after, changed))


def _beyond(sizes: dict[int, int], total: int, size: int) -> set[int]:
    """Metachunks that begin at a size or after it, but the first. :raises StatusError: 400 when it cuts one."""
    if size and sum(sizes.values()) < total:
        raise StatusError(
            status.BAD_REQUEST, "Cannot truncate: the chunks do not tell the size of their metachunks"
        )
    end = 0
    for number in sorted(sizes):
        if end >= size:
            break
        end += sizes[number]
    # The last chunk may be larger than what the object uses of it.
    if size not in (end, total):
        raise StatusError(
            status.BAD_REQUEST, f"Cannot truncate at {size}: it is inside a metachunk that ends at {end}"
        )
    kept, end = {0}, 0
    for number in sorted(sizes):
        if end < size:
            kept.add(number)
        end += sizes[number]
    return sizes.keys() - kept


# --- drain --------------------------------------------------------------------------------------------


def drain(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContentDrain
) -> None:
    """Remove the chunks of an object; size, hash and properties stay. Nothing happens to a drained one."""
    rules.check_writable(tx.get)
    alias = _require_object(tx, request)
    header = rows.header(tx.execute, alias.content)
    if header is None:
        raise StatusError(status.CONTENT_CORRUPTED, "Alias without header")
    if header.chunk_method == schema.DRAINED:
        return
    chunks = rows.chunks(tx.execute, alias.content)
    lent = rows.lent_chunks(tx, alias.content)
    rows.forget_missing(tx, header, chunks)
    tx.execute(_DELETE_CHUNKS, (alias.content,))
    tx.execute(_DRAIN, (schema.DRAINED, int(time.time()), alias.content))
    if tx.events_enabled:
        drained = header._replace(chunk_method=schema.DRAINED)
        told = [chunk for chunk in chunks if chunk[0] not in lent]
        removed = rows.Removed(alias, drained, told, [])
        deletes.emit_removed(tx, context, request, "drained", removed)
        tx.emit_state()


# --- helpers ------------------------------------------------------------------------------------------


def _require_object(tx: Transaction, request: ContentTarget) -> Alias:
    return _not_marker(rows.require(tx.execute, request))


def _not_marker(alias: Alias) -> Alias:
    if alias.deleted:
        raise StatusError(status.CONTENT_NOT_FOUND, "Alias deleted: a marker has no chunk")
    return alias


def _require_data(tx: Transaction, request: ContentTarget) -> tuple[Alias, Header]:
    """An object that has its chunks. :raises StatusError: 420, 427."""
    alias = _require_object(tx, request)
    return alias, rows.readable_header(tx.execute, alias)


def _sizes(chunks: Iterable[tuple[str, int]]) -> dict[int, int]:
    """Size of each metachunk: the one of any of its chunks, or fragments."""
    return {checks.split_position(position)[0]: size for position, size in chunks}


def _bytes_held(sizes: dict[int, int], total: int) -> dict[int, int]:
    """Bytes of the object in each metachunk: the last chunk may be larger than what is used of it."""
    held, left = {}, total
    for number in sorted(sizes):
        held[number] = min(sizes[number], left)
        left -= held[number]
    return held


def _emit_change(
    tx: Transaction,
    context: Context,
    request: ContentTarget,
    former: tuple[Alias, Header, list[ChunkRow]],
    present: tuple[Alias, Header],
) -> None:
    """Tell which chunks are lost, then what the object is."""
    if not tx.events_enabled:
        return
    alias, header, lost = former
    if lost:
        deletes.emit_removed(
            tx, context, request, "deleted", rows.Removed(alias, header, lost, [])
        )
    contents.emit_object(tx, context, request, "new", *present)
    tx.emit_state()
