# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Commit of objects whose chunks are written (contract: "Object semantics").

A plain put makes a version of a name. What adds to the version in place is in :mod:`.additions`, what
replaces its chunks in :mod:`.policy_change`.
"""

from __future__ import annotations

import time

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import ContentPut
from oio.meta.meta2 import (
    additions,
    checks,
    conditions,
    deletes,
    events,
    policy_change,
    quality,
    rows,
    rules,
    schema,
)
from oio.meta.meta2.rows import Alias, Header
from oio.meta.transaction import Transaction

_INSERT_ALIAS = (
    "INSERT INTO aliases(alias, version, content, deleted, ctime, mtime) VALUES(?, ?, ?, 0, ?, ?)"
)
_VERSION_EXISTS = "SELECT 1 FROM aliases WHERE alias = ? AND version = ?"
_EXCEEDING = (
    "SELECT alias, version, content, deleted, ctime, mtime FROM aliases"
    " WHERE alias = ? AND deleted = 0 ORDER BY version DESC LIMIT -1 OFFSET ?"
)


def check(request: ContentPut) -> list[str]:
    """Verify a request without looking at the base; returns the positions that lack chunks.

    :raises StatusError: 400 for an invalid field, 425 when the chunks cannot make the object.
    """
    if not request.path:
        raise StatusError(status.BAD_REQUEST, "Missing path")
    if request.version > rows.VERSION_MAX or (request.version <= 0 and not request.append):
        raise StatusError(status.BAD_REQUEST, f"Invalid version {request.version}")
    if not request.content_id:
        raise StatusError(status.BAD_REQUEST, "Missing content id")
    if request.content_id == events.MARKER_CONTENT_HEX:
        raise StatusError(status.BAD_REQUEST, "Invalid content id: it is the one of delete markers")
    if request.chunk_method == schema.DRAINED:
        raise StatusError(status.BAD_REQUEST, "Invalid chunk method: an object is drained later")
    if request.append + request.force + request.change_policy > 1:
        raise StatusError(
            status.BAD_REQUEST, "Only one of append, force and change_policy can be asked"
        )
    if not 0 <= request.size <= rows.INTEGER_MAX:
        raise StatusError(status.BAD_REQUEST, f"Invalid size {request.size}")
    if len(request.hash) // 2 not in checks.HASH_LENGTHS:
        raise StatusError(status.BAD_REQUEST, f"Invalid hash: {len(request.hash)} digits")
    if "" in request.properties:
        raise StatusError(status.BAD_REQUEST, "Empty property name")
    placed = checks.placed(request.chunks)
    # What is forced completes the version in place: the whole is checked once this one is known.
    return checks.missing_positions(
        request.security, placed, request.size, partial=request.force
    )


def put(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContentPut,
    missing: list[str],
) -> None:
    """Commit an object; ``missing`` comes from :func:`check`."""
    rules.check_writable(tx.get)
    limit = rules.quota(tx, settings, context)
    before = rows.counter(tx, schema.USAGE) if limit else 0
    mode = rules.versioning_mode(
        tx, settings, context, request, request.force_versioning, request.simulate_versioning
    )
    if request.change_policy:
        policy_change.change_policy(tx, settings, context, request, missing)
    elif not (request.append or request.force) or not additions.add(
        tx, settings, context, request, missing
    ):
        _put(tx, settings, context, request, missing, mode)
    if limit:
        rules.check_quota(limit, before, rows.counter(tx, schema.USAGE))


def _put(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContentPut,
    missing: list[str],
    mode: int,
) -> None:
    """Add a version, in the place of the latest one when a name has one version only."""
    former = rows.latest(tx.execute, request.path)
    if request.condition is not None:
        conditions.check(tx.execute, request.condition, former)
    if request.version <= 0:
        raise StatusError(status.BAD_REQUEST, f"Invalid version {request.version}")
    replaced = mode in rules.UNVERSIONED
    ctime = now = int(time.time())
    if former is not None:
        _check_versions(tx, settings, context, request, former, mode)
        ctime = former.ctime
    content = bytes.fromhex(request.content_id)
    alias = Alias(request.path, request.version, content, 0, ctime, now)
    header = Header(
        bytes.fromhex(request.hash) or None, request.size, request.policy or None,
        request.chunk_method, request.mime_type,
    )
    # Before the removal of the former version: its content id is taken.
    rows.insert_header(tx, content, header, now)
    if former is not None and replaced:
        deletes.really_delete(tx, context, request, former)
    tx.execute(_INSERT_ALIAS, (alias.name, alias.version, content, ctime, now))
    rows.insert_chunks(tx, content, request.chunks, now)
    kept = quality.kept_properties(request.properties) if request.properties else []
    if kept:
        rows.set_object_properties(tx, alias, kept)
    rows.add(tx, schema.USAGE, request.size)
    rows.add(tx, schema.OBJECTS, 1)
    lacking = checks.count_lacking(request, missing, header.chunk_method)
    if lacking:
        rows.change_damage(tx, 0, lacking)
    trimmed = False
    if mode > 1 and rules.delete_exceeding(tx, settings):
        trimmed = _trim(tx, settings, context, request, mode)
    if tx.events_enabled:
        bean = alias.bean()
        others = [header.bean(content), *rows.property_beans(alias, kept)]
        events.emit_content(tx, context, request, "new", bean, others)
        quality.emit(tx, context, request, bean, request.chunks, missing, request.properties)
        tx.emit_state()
    if trimmed:
        deletes.really_delete(tx, context, request, alias)


def _check_versions(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContentPut,
    former: Alias,
    mode: int,
) -> None:
    replaced = mode in rules.UNVERSIONED
    if replaced:
        rules.check_overwrite(settings, context)
    if request.version == former.version:
        raise StatusError(status.CONTENT_EXISTS, "A content exists with this version")
    if mode == 0 and former.version == 0 and not former.deleted:
        raise StatusError(status.CONTENT_EXISTS, "A content exists, and versioning is disabled")
    if request.version > former.version:
        return
    if replaced:
        raise StatusError(
            status.CONTENT_PRECONDITION_FAILED, "New object version is older than latest version"
        )
    if tx.execute(_VERSION_EXISTS, (request.path, request.version)).fetchone() is not None:
        raise StatusError(status.CONTENT_EXISTS, "A content exists with this version")


def _trim(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContentPut,
    mode: int,
) -> bool:
    """Remove what exceeds the maximum of versions; delete markers stay.

    True when the version just put must go too: the caller does it, after having told that it came.
    """
    if settings["ns.worm"] and not context.admin:
        return False
    trimmed = False
    for row in tx.execute(_EXCEEDING, (request.path, mode)).fetchall():
        alias = Alias._make(row)
        if alias.version == request.version:
            trimmed = True
        else:
            deletes.really_delete(tx, context, request, alias)
    return trimmed
