# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Change of policy: the same data under the same name and version, in other chunks (contract: "Policy change")."""

from __future__ import annotations

import time

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import ContentPut
from oio.meta.meta2 import checks, conditions, contents, deletes, quality, rows, rules
from oio.meta.meta2.rows import Header
from oio.meta.transaction import Transaction

_SET_CONTENT = "UPDATE aliases SET content = ? WHERE alias = ? AND version = ?"


def change_policy(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContentPut,
    missing: list[str],
) -> None:
    """Replace content id, chunks and policy of an exact version; its times, hash, properties stay."""
    rules.check_overwrite(settings, context)
    found = rows.version(tx.execute, request.path, request.version)
    if request.condition is not None:
        conditions.check(tx.execute, request.condition, found)
    former = rows.present(found)
    if former.deleted:
        raise StatusError(status.BAD_REQUEST, "A delete marker has no policy")
    current = rows.readable_header(tx.execute, former)
    _check_same_data(current, request)
    now = int(time.time())
    content = bytes.fromhex(request.content_id)
    header = Header(
        current.hash, current.size, request.policy or None, request.chunk_method, current.mime_type
    )
    rows.insert_header(tx, content, header, now)
    rows.insert_chunks(tx, content, request.chunks, now)
    tx.execute(_SET_CONTENT, (content, former.name, former.version))
    _, chunks = rows.remove_content(tx, former.content)
    lacking = checks.count_lacking(request, missing, header.chunk_method)
    if lacking:
        rows.change_damage(tx, 0, lacking)
    if tx.events_enabled:
        removed = rows.Removed(former, current, chunks, [])
        deletes.emit_removed(tx, context, request, "deleted", removed)
        alias = former._replace(content=content)
        contents.emit_object(tx, context, request, "new", alias, header)
        quality.emit(
            tx, context, request, alias.bean(), request.chunks, missing, request.properties
        )
        tx.emit_state()


def _check_same_data(current: Header, request: ContentPut) -> None:
    """Of an object that was appended to, the hash is not known: its size only can be compared."""
    if request.size != current.size:
        raise StatusError(
            status.BAD_REQUEST, f"Different content: {request.size} bytes for {current.size}"
        )
    if current.hash and bytes.fromhex(request.hash) != current.hash:
        raise StatusError(
            status.BAD_REQUEST,
            f"Different content: hash {request.hash or 'missing'} for {current.hash.hex().upper()}",
        )
