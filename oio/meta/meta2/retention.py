# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Retention: which versions of a name are kept (contract: "Retention").

A whole container is purged in one pass over its names, in their order. Readers find the names that have
something to lose, which takes nothing from those who write; then each slice of them is one transaction, where
the rule is applied again, name by name. Memory and time under the writer's lock depend on the slice,
not on the container; a name is purged wholly or not at all.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import ContainerPurge, ContainerTarget, ContentPurge
from oio.meta.meta2 import deletes, rows, rules, schema
from oio.meta.meta2.rows import Alias
from oio.meta.repository import Repository
from oio.meta.transaction import Reader, Transaction

#: Names, and versions, of one transaction: bounds how long other writers of the container wait. (A name that has
#: more versions is a slice of its own.)
SLICE_NAMES, SLICE_VERSIONS = 100, 200
#: Rows that one reader goes through: bounds how long it keeps the log of the base from being folded.
SCAN_ROWS = 10_000

_ALIAS = "SELECT alias, version, content, deleted, ctime, mtime FROM aliases WHERE "
_ALL = _ALIAS + "alias = ? ORDER BY version"
_EXCEEDING = _ALIAS + "alias = ? AND NOT deleted ORDER BY version DESC LIMIT -1 OFFSET ?"
# "deleted" and "mtime" are those of the row that has the greatest version (SQLite, "bare columns").
_CANDIDATES = (
    "SELECT alias, versions, rows FROM ("
    " SELECT alias, sum(NOT deleted) AS versions, count(*) AS rows, max(version), deleted, mtime"
    " FROM aliases WHERE alias > ?1 AND alias <= ?2 GROUP BY alias)"
    " WHERE versions > ?3 OR (deleted AND mtime < ?4) LIMIT ?5"
)
_END_OF_SCAN = "SELECT alias FROM aliases WHERE alias > ? ORDER BY alias LIMIT 1 OFFSET ?"
_LAST = "SELECT alias FROM aliases ORDER BY alias DESC LIMIT 1"


class _Rule(NamedTuple):
    """What is kept of a name.

    :ivar versions: how many versions, markers excepted; ``None``: all.
    :ivar hidden_before: a name whose latest version is a marker older than this (seconds) goes away wholly.
    """

    versions: int | None
    hidden_before: float


def purge_content(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContentPurge
) -> None:
    """Apply the retention to one name; nothing happens when it is absent."""
    rules.check_writable(tx.get)
    if not request.path:
        raise StatusError(status.BAD_REQUEST, "Missing path")
    rule = _rule(tx.get, settings, request.max_versions)
    _purge_name(tx, context, request, request.path, rule)


def purge_container(
    repository: Repository, settings: rules.Settings, context: Context, request: ContainerPurge
) -> None:
    """Apply the retention to every name. When the deadline passes, what is done remains done (504)."""
    rules.check_not_worm(settings, context, "purge a container")
    rules.check_writable_namespace(settings, context)
    base_name = schema.base_name(request.cid)

    after: str | None = ""
    while after is not None:
        if after and context.deadline is not None and time.monotonic() > context.deadline:
            raise StatusError(
                status.GATEWAY_TIMEOUT, f"Deadline reached: names are purged up to {after!r} only"
            )
        find = partial(_find, settings=settings, request=request, after=after)
        names, after = repository.read(base_name, find, deadline=context.deadline, route=context.route)
        if names:
            purge = partial(
                _purge_names, settings=settings, context=context, request=request, names=names
            )
            repository.write(base_name, purge, deadline=context.deadline, route=context.steps)


def _find(
    reader: Reader, settings: rules.Settings, request: ContainerPurge, after: str
) -> tuple[list[str], str | None]:
    rules.check_writable(reader.get)
    return _candidates(reader, after, _rule(reader.get, settings, request.max_versions))


def _purge_names(
    tx: Transaction,
    settings: rules.Settings,
    context: Context,
    request: ContainerPurge,
    names: list[str],
) -> None:
    rules.check_writable(tx.get)
    rule = _rule(tx.get, settings, request.max_versions)
    for name in names:
        _purge_name(tx, context, request, name, rule)


def _rule(get: Any, settings: rules.Settings, max_versions: int | None) -> _Rule:
    kept = rules.max_versions(get, settings) if max_versions is None else max_versions
    delay = rules.keep_deleted_delay(get, settings)
    now = time.time()
    if delay < 0:
        hidden_before = float("-inf")
    elif not delay:
        hidden_before = float("inf")
    else:
        # A marker of this very second may be younger than it says.
        hidden_before = int(now) - delay
    return _Rule(None if kept < 0 else min(max(1, kept), rows.INTEGER_MAX), hidden_before)


def _candidates(reader: Reader, after: str, rule: _Rule) -> tuple[list[str], str | None]:
    """Names after one that have something to lose, and where to go on (None: all were seen)."""
    row = reader.execute(_END_OF_SCAN, (after, SCAN_ROWS)).fetchone()
    last = row or reader.execute(_LAST).fetchone()
    if last is None:
        return [], None
    end = last[0]
    kept = rows.INTEGER_MAX if rule.versions is None else rule.versions
    names: list[str] = []
    doomed = 0
    found = reader.execute(_CANDIDATES, (after, end, kept, rule.hidden_before, SLICE_NAMES))
    for name, versions, count in found:
        names.append(name)
        doomed += max(versions - kept, 0) or count
        if doomed >= SLICE_VERSIONS:
            return names, name
    if len(names) == SLICE_NAMES:
        return names, names[-1]
    return names, None if row is None else end


def _purge_name(
    tx: Transaction, context: Context, target: ContainerTarget, name: str, rule: _Rule
) -> None:
    latest = rows.latest(tx.execute, name)
    if latest is None:
        return
    if latest.deleted and latest.mtime < rule.hidden_before:
        doomed = tx.execute(_ALL, (name,)).fetchall()
    elif rule.versions is not None:
        doomed = tx.execute(_EXCEEDING, (name, rule.versions)).fetchall()
    else:
        return
    for row in doomed:
        deletes.really_delete(tx, context, target, Alias._make(row))
