# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Deletion of objects, for real or by a delete marker (contract: "Deletion")."""

from __future__ import annotations

import time

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import (
    BulkReply,
    ContainerTarget,
    ContentDelete,
    ContentDeleteMany,
    ItemStatus,
)
from oio.meta.meta2 import conditions, events, rows, rules, schema
from oio.meta.meta2.rows import Alias
from oio.meta.transaction import Transaction

_INSERT_MARKER = (
    "INSERT INTO aliases(alias, version, content, deleted, ctime, mtime) VALUES(?, ?, ?, 1, ?, ?)"
)


def delete(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContentDelete
) -> None:
    """Delete the version that the request names, or hide the object behind a marker."""
    rules.check_writable(tx.get)
    mode = rules.versioning_mode(
        tx, settings, context, request, request.force_versioning, request.simulate_versioning
    )
    if mode == 0 and request.version:
        raise StatusError(status.BAD_REQUEST, "Versioning is disabled: no version can be given")
    if request.condition is None:
        alias = rows.require(tx.execute, request)
        if alias.deleted and request.retried and not request.version:
            # The marker is that of the former request, most likely: removing it would bring the object back.
            return
    else:
        found = rows.find(tx.execute, request)
        conditions.check(tx.execute, request.condition, found)
        alias = rows.present(found)
    if request.delete_marker:
        if mode in rules.UNVERSIONED:
            raise StatusError(status.BAD_REQUEST, "No delete marker: versioning is not enabled")
        if alias.deleted:
            raise StatusError(status.BAD_REQUEST, "This version is a delete marker already")
    elif mode in rules.UNVERSIONED or request.version or alias.deleted:
        really_delete(tx, context, request, alias)
        return
    _add_marker(tx, context, request, alias)


def delete_many(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContentDeleteMany
) -> BulkReply:
    """Delete each name on its own: one that fails does not disturb the others."""
    rules.check_writable(tx.get)
    items = []
    for path in request.paths:
        one = ContentDelete(
            cid=request.cid,
            path=path,
            force_versioning=request.force_versioning,
            simulate_versioning=request.simulate_versioning,
            retried=request.retried,
        )
        try:
            # Whatever can refuse a deletion is checked before it changes anything.
            delete(tx, settings, context, one)
            items.append(ItemStatus(status=204))
        except StatusError as exc:
            items.append(ItemStatus(status=exc.code, message=exc.message))
    return BulkReply(items=items)


def really_delete(
    tx: Transaction, context: Context, target: ContainerTarget, alias: Alias
) -> None:
    """Remove a version and tell it; the removal of a marker is not told."""
    removed = rows.remove(tx, alias)
    if not alias.deleted:
        emit_removed(tx, context, target, "deleted", removed)


def emit_removed(
    tx: Transaction, context: Context, target: ContainerTarget, kind: str, removed: rows.Removed
) -> None:
    """Emit ``storage.content.<kind>`` of what was taken away from an object version."""
    if not tx.events_enabled:
        return
    alias, header = removed.alias, removed.header
    others = [] if header is None else [header.bean(alias.content)]
    others += rows.property_beans(alias, removed.properties)
    chunks = [events.chunk_bean(*chunk) for chunk in removed.chunks]
    events.emit_content(tx, context, target, kind, alias.bean(), others, chunks)


def _add_marker(tx: Transaction, context: Context, target: ContainerTarget, alias: Alias) -> None:
    now = int(time.time())
    marker = Alias(alias.name, alias.version + 1, schema.MARKER_CONTENT, 1, now, now)
    try:
        tx.execute(
            _INSERT_MARKER, (marker.name, marker.version, marker.content, now, now)
        )
    except apsw.ConstraintError as exc:
        raise StatusError(status.CONTENT_EXISTS, "A version exists after this one") from exc
    events.emit_content(tx, context, target, "deleted", marker.bean())
