# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Commit of objects whose chunks are written: put and append (contract: "Object semantics")."""

from __future__ import annotations

import time
from typing import Any

import apsw
import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import Chunk, ContentPut
from oio.meta.meta2 import checks, deletes, events, rows, rules, schema
from oio.meta.meta2.rows import Alias, Header
from oio.meta.transaction import Transaction

#: Properties that tell how well each chunk was placed; they are not kept.
QUALITY_PREFIX = "__OIO_CHUNK__"
#: Lengths of the hashes that are known: md5, sha1, sha256 and blake3, sha512.
HASH_LENGTHS = (0, 16, 20, 32, 64)

_INSERT_ALIAS = (
    "INSERT INTO aliases(alias, version, content, deleted, ctime, mtime) VALUES(?, ?, ?, 0, ?, ?)"
)
_INSERT_CONTENT = (
    "INSERT INTO contents(id, hash, size, ctime, mtime, mime_type, chunk_method, policy)"
    " VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_CHUNK = (
    "INSERT INTO chunks(id, content, position, hash, size, ctime) VALUES(?, ?, ?, ?, ?, ?)"
)
_INSERT_PROPERTY = "INSERT INTO properties(alias, version, key, value) VALUES(?, ?, ?, ?)"
_UPSERT_PROPERTY = (
    "INSERT INTO properties(alias, version, key, value) VALUES(?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET value = excluded.value"
)
_VERSION_EXISTS = "SELECT 1 FROM aliases WHERE alias = ? AND version = ?"
_EXCEEDING = (
    "SELECT alias, version, content, deleted, ctime, mtime FROM aliases"
    " WHERE alias = ? AND deleted = 0 ORDER BY version DESC LIMIT -1 OFFSET ?"
)


class _Quality(msgspec.Struct):
    """How well a chunk was placed, as far as decisions need it."""

    final_dist: int = 1
    warn_dist: int = 0
    expected_slot: str = ""
    final_slot: str = ""


_decode_quality = msgspec.json.Decoder(_Quality).decode


def check(request: ContentPut) -> list[str]:
    """Verify a request without looking at the base; returns the positions that lack chunks.

    :raises StatusError: 400 for an invalid field, 425 when the chunks cannot make the object.
    """
    if not request.path:
        raise StatusError(status.BAD_REQUEST, "Missing path")
    if request.version <= 0 and not request.append:
        raise StatusError(status.BAD_REQUEST, f"Invalid version {request.version}")
    if not request.content_id:
        raise StatusError(status.BAD_REQUEST, "Missing content id")
    if request.size < 0:
        raise StatusError(status.BAD_REQUEST, f"Invalid size {request.size}")
    if len(request.hash) // 2 not in HASH_LENGTHS:
        raise StatusError(status.BAD_REQUEST, f"Invalid hash: {len(request.hash)} digits")
    if not request.chunks:
        raise StatusError(status.BAD_REQUEST, "Missing chunks")
    placed = []
    for chunk in request.chunks:
        if chunk.size < 0 or not chunk.url:
            raise StatusError(status.BAD_REQUEST, f"Invalid chunk {chunk.url!r} at {chunk.pos!r}")
        placed.append((chunk.pos, chunk.size))
    return checks.missing_positions(request.security, placed, request.size)


def put(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContentPut,
    missing: list[str],
) -> None:
    """Commit an object; ``missing`` comes from :func:`check`."""
    rules.check_writable(tx.get)
    mode = rules.versioning_mode(
        tx, settings, context, request, request.force_versioning, request.simulate_versioning
    )
    former = rows.latest(tx.execute, request.path)
    if request.append and former is not None and not former.deleted:
        _append(tx, context, request, former, missing)
        return
    if request.version <= 0:
        raise StatusError(status.BAD_REQUEST, f"Invalid version {request.version}")
    ctime = now = int(time.time())
    if former is not None:
        replaced = mode in rules.UNVERSIONED
        _check_versions(tx, settings, context, request, former, replaced)
        ctime = former.ctime
        if replaced:
            deletes.really_delete(tx, context, request, former)
    content = bytes.fromhex(request.content_id)
    alias = Alias(request.path, request.version, content, 0, ctime, now)
    header = Header(
        bytes.fromhex(request.hash) or None, request.size, request.policy or None,
        request.chunk_method, request.mime_type,
    )
    _insert(tx, alias, header, request.chunks, now)
    kept = _kept_properties(request)
    if kept:
        tx.executemany(
            _INSERT_PROPERTY, [(alias.name, alias.version, key, value) for key, value in kept]
        )
    rows.add(tx, schema.USAGE, request.size)
    rows.add(tx, schema.OBJECTS, 1)
    if missing:
        rows.add(tx, schema.MISSING, len(missing))
        rows.add(tx, schema.DAMAGED, 1)
    if mode > 1 and rules.delete_exceeding(tx, settings):
        _trim(tx, settings, context, request, mode)
    if tx.events_enabled:
        bean = alias.bean()
        others = [header.bean(content), *rows.property_beans(alias, kept)]
        events.emit_content(tx, context, request, "new", bean, others)
        _emit_quality(tx, context, request, bean, missing)
        tx.emit_state()


def _kept_properties(request: ContentPut) -> list[tuple[str, str]]:
    return [
        (key, value)
        for key, value in request.properties.items()
        if value and not key.startswith(QUALITY_PREFIX)
    ]


def _check_versions(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContentPut,
    former: Alias,
    replaced: bool,
) -> None:
    if replaced and settings["ns.worm"] and not context.admin:
        raise StatusError(status.CONTENT_EXISTS, "NS wormed! Cannot overwrite.")
    if request.version == former.version:
        raise StatusError(status.CONTENT_EXISTS, "A content exists with this version")
    if request.version > former.version:
        return
    if replaced:
        raise StatusError(
            status.CONTENT_PRECONDITION_FAILED, "New object version is older than latest version"
        )
    if tx.execute(_VERSION_EXISTS, (request.path, request.version)).fetchone() is not None:
        raise StatusError(status.CONTENT_EXISTS, "A content exists with this version")


def _insert(
    tx: Transaction, alias: Alias, header: Header, chunks: list[Chunk], now: int
) -> None:
    content = alias.content
    try:
        tx.execute(
            _INSERT_CONTENT,
            (
                content, header.hash, header.size, now, now, header.mime_type,
                header.chunk_method, header.policy,
            ),
        )
    except apsw.ConstraintError as exc:
        raise StatusError(status.CONTENT_EXISTS, "A content exists with this ID") from exc
    tx.execute(_INSERT_ALIAS, (alias.name, alias.version, content, alias.ctime, alias.mtime))
    _insert_chunks(
        tx, [(c.url, content, c.pos, bytes.fromhex(c.hash), c.size, now) for c in chunks]
    )


def _insert_chunks(tx: Transaction, values: list[tuple[Any, ...]]) -> None:
    try:
        tx.executemany(_INSERT_CHUNK, values)
    except apsw.ConstraintError as exc:
        raise StatusError(status.BAD_REQUEST, "The same chunk twice at one position") from exc


def _append(
    tx: Transaction,
    context: Context,
    request: ContentPut,
    former: Alias,
    missing: list[str],
) -> None:
    """Add metachunks after the last one; version and content id of the request are ignored."""
    header = rows.header(tx.execute, former.content)
    if header is None:
        raise StatusError(status.CONTENT_CORRUPTED, "Alias without header")
    if header.chunk_method == schema.DRAINED:
        raise StatusError(status.CONTENT_DRAINED, "The content is drained")
    present = list(tx.execute(rows.CHUNKS, (former.content,)))
    last = max((checks.split_position(position)[0] for _, position, _, _ in present), default=-1)
    now = int(time.time())
    added = []
    for chunk in request.chunks:
        number, rest = checks.split_position(chunk.pos)
        position = f"{number + last + 1}{rest}"
        added.append(
            (chunk.url, former.content, position, bytes.fromhex(chunk.hash), chunk.size, now)
        )
    _insert_chunks(tx, added)
    tx.execute(
        "UPDATE contents SET size = size + ?, hash = x'', mtime = ? WHERE id = ?",
        (request.size, now, former.content),
    )
    tx.execute(
        "UPDATE aliases SET mtime = ? WHERE alias = ? AND version = ?",
        (now, former.name, former.version),
    )
    kept = _kept_properties(request)
    if kept:
        tx.executemany(
            _UPSERT_PROPERTY, [(former.name, former.version, key, value) for key, value in kept]
        )
    rows.add(tx, schema.USAGE, request.size)
    if missing:
        rows.add(tx, schema.MISSING, len(missing))
        if not rows.count_missing(header, present):
            rows.add(tx, schema.DAMAGED, 1)
    if tx.events_enabled:
        bean = former._replace(mtime=now).bean()
        header = header._replace(size=header.size + request.size, hash=b"")
        stored = rows.properties(tx.execute, former)
        others = [header.bean(former.content), *rows.property_beans(former, stored.items())]
        events.emit_content(tx, context, request, "append", bean, others)
        _emit_quality(tx, context, request, bean, missing, last + 1)
        tx.emit_state()


def _trim(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContentPut,
    mode: int,
) -> None:
    """Remove what exceeds the maximum of versions; delete markers stay."""
    if settings["ns.worm"] and not context.admin:
        return
    for row in list(tx.execute(_EXCEEDING, (request.path, mode))):
        deletes.really_delete(tx, context, request, Alias._make(row))


def _emit_quality(
    tx: Transaction,
    context: Context,
    request: ContentPut,
    alias: events.Bean,
    missing: list[str],
    shift: int = 0,
) -> None:
    """Say what can be repaired (lacking chunks) or improved (badly placed ones)."""
    if missing:
        positions = []
        for position in missing:
            number, rest = checks.split_position(position)
            positions.append(f"{number + shift}{rest}")
        data = {
            "present_chunks": [_chunk_data(chunk, shift) for chunk in request.chunks],
            "missing_chunks": positions,
        }
        events.emit_content_data(tx, context, request, "broken", alias, data)
    improvable: set[int] = set()
    qualities: dict[str, Any] = {}
    for key, value in request.properties.items():
        if key.startswith(QUALITY_PREFIX) and value:
            url = key[len(QUALITY_PREFIX) :]
            try:
                quality = _decode_quality(value)
                qualities[url] = msgspec.Raw(value.encode())
            except msgspec.MsgspecError as exc:
                raise StatusError(status.BAD_REQUEST, f"Invalid quality of {url}: {exc}") from exc
            if quality.final_dist <= quality.warn_dist or quality.final_slot != quality.expected_slot:
                improvable.update(
                    checks.split_position(chunk.pos)[0]
                    for chunk in request.chunks
                    if chunk.url == url
                )
    for number in sorted(improvable):
        chunks = []
        for chunk in request.chunks:
            if checks.split_position(chunk.pos)[0] == number:
                description = _chunk_data(chunk, shift)
                description["quality"] = qualities.get(chunk.url)
                chunks.append(description)
        data = {"pos": number + shift, "chunks": chunks}
        events.emit_content_data(tx, context, request, "perfectible", alias, data)


def _chunk_data(chunk: Chunk, shift: int) -> dict[str, Any]:
    number, rest = checks.split_position(chunk.pos)
    position = f"{number + shift}{rest}"
    return {"id": chunk.url, "pos": position, "hash": chunk.hash, "size": chunk.size}
