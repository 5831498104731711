# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Flush: the real deletion of everything in a container, a bounded number of rows per call.

A call works in slices, each a transaction of its own: other writers get their turn between two of them, and
a deadline stops the work between two slices, never inside one. The call that finds no more object empties
the tables of what no object referred to, puts the counters back to zero and gives the space of the base
back to the disk.
"""

from __future__ import annotations

import logging
import time

from oio.common.status import StatusError
from oio.meta.client import Route
from oio.meta.context import Context
from oio.meta.messages import ContainerFlush, FlushReply
from oio.meta.meta2 import deletes, rules, schema
from oio.meta.meta2.rows import Alias
from oio.meta.repository import Repository
from oio.meta.transaction import Transaction

logger = logging.getLogger("oio.meta.meta2.flush")

#: Rows of one transaction: bounds how long other writers of the container wait.
SLICE_ROWS = 100
#: Part of the time that the caller allows after which no other slice begins.
TIME_SHARE = 0.8

_SOME = "SELECT alias, version, content, deleted, ctime, mtime FROM aliases LIMIT ?"
_ANY = "SELECT 1 FROM aliases LIMIT 1"
_TABLES = ("chunks", "contents", "properties")


def flush(
    repository: Repository, settings: rules.Settings, context: Context, request: ContainerFlush
) -> FlushReply:
    """Delete up to ``meta2.flush_limit`` object versions and markers; do rows remain?"""
    rules.check_not_worm(settings, context, "flush a container")
    rules.check_writable_namespace(settings, context)
    base_name = schema.base_name(request.cid)
    left: int = settings["meta2.flush_limit"]
    begin = time.monotonic()

    def delete_slice(tx: Transaction) -> bool:
        return _delete_some(tx, context, request, min(left, SLICE_ROWS))

    while True:
        truncated = repository.write(base_name, delete_slice, deadline=context.deadline, route=context.steps)
        left -= min(left, SLICE_ROWS)
        if not truncated:
            _give_space_back(repository, base_name, context.steps)
            return FlushReply(truncated=False)
        if left <= 0 or _is_late(begin, context.deadline):
            return FlushReply(truncated=True)


def _give_space_back(repository: Repository, base_name: str, route: Route) -> None:
    """Defragment the base; the objects are gone whatever becomes of that."""
    try:
        repository.vacuum(base_name, route=route)
    except StatusError as exc:
        logger.warning("base %s was flushed, but not defragmented: %s", base_name, exc)


def _is_late(begin: float, deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > begin + TIME_SHARE * (deadline - begin)


def _delete_some(tx: Transaction, context: Context, request: ContainerFlush, rows: int) -> bool:
    """Delete some rows, and all that remains when they were the last ones; do aliases remain?"""
    # A frozen container may be flushed, a disabled one not.
    rules.check_readable(tx.get)
    for row in tx.execute(_SOME, (rows,)).fetchall():
        deletes.really_delete(tx, context, request, Alias._make(row))
    if tx.execute(_ANY).fetchone() is not None:
        return True
    for table in _TABLES:
        if tx.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None:
            tx.execute(f"DELETE FROM {table}")
    for key in (schema.USAGE, schema.OBJECTS, schema.DAMAGED, schema.MISSING):
        if tx.get(key, "0") != "0":
            tx.set(key, "0")
    tx.emit_state()
    return False
