# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Listing of a container: one index-driven query, read no further than the page.

With a delimiter, everything below a common prefix is jumped over by a new seek, so that the price of a page
does not depend on how many names it folds. A name with many versions is jumped over in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.meta.messages import ContentList, ListReply
from oio.meta.meta2 import rows, rules
from oio.meta.transaction import Reader

DEFAULT_MAX, ABSOLUTE_MAX = 1000, 10000
#: Appended to a prefix, it makes a marker that is after every name of that prefix.
LAST_CHARACTER = "\U0010fffd"
MARKER_MIME_TYPE = "application/x-deleted;swift_versions_deleted=1"
#: Versions of one name that are read before jumping to the next name.
SKIP_AFTER = 8

_COLUMNS = (
    "SELECT a.alias, a.version, a.ctime, a.mtime, a.deleted, hex(a.content), c.policy,"
    " c.chunk_method, hex(c.hash), c.size, c.mime_type, c.hash IS NULL"
    " FROM aliases a LEFT JOIN contents c ON c.id = a.content "
)
_ORDER = " ORDER BY a.alias, a.version DESC"
_PAGE_PROPERTIES = (
    "SELECT alias, version, key, value FROM properties WHERE alias >= ? AND alias <= ?"
)
_BY_CHUNK = (
    _COLUMNS + "WHERE a.content IN (SELECT content FROM chunks WHERE id = ? OR id LIKE ? ESCAPE '\\')"
    + _ORDER
)
_BY_HASH = _COLUMNS + "WHERE a.content IN (SELECT id FROM contents WHERE hash = ?)" + _ORDER


class Item(
    msgspec.Struct,
    gc=False,
    rename={"chunk_method": "chunk-method", "mime_type": "mime-type"},
):
    """An object of a page, as HTTP clients receive it."""

    name: str
    version: int
    ctime: int
    mtime: int
    deleted: bool
    id: str
    content: str
    policy: str | None
    chunk_method: str | None
    hash: str | None
    size: int | None
    mime_type: str | None
    properties: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


_encode = msgspec.json.Encoder().encode


def list_contents(reader: Reader, request: ContentList) -> ListReply:
    """One page of objects and prefixes."""
    rules.check_readable(reader.get)
    if request.chunk_id or request.content_hash:
        return _look_up(reader, request)
    limit = min(request.max, ABSOLUTE_MAX) if request.max > 0 else DEFAULT_MAX
    if request.delimiter:
        found, prefixes, last, truncated = _walk_folded(reader, request, limit)
    else:
        found, last, truncated = _walk(reader, request, limit)
        prefixes = []
    return ListReply(
        objects=_objects(reader, request, found),
        prefixes=prefixes,
        truncated=truncated,
        next_marker=last if truncated else "",
        properties=reader.all_admin(),
    )


def _range(request: ContentList, after: str, at: str) -> tuple[str, list[str]]:
    """SQL of the names that can be in the page, strictly after a name, or from a name on."""
    low, strict = after, True
    if at and at > low:
        low, strict = at, False
    if request.prefix and (request.prefix > low or not low):
        low, strict = request.prefix, False
    conditions, values = [], []
    if low:
        conditions.append("a.alias > ?" if strict else "a.alias >= ?")
        values.append(low)
    high = request.end_marker
    if request.prefix:
        end = after_prefix(request.prefix)
        if end and (not high or end < high):
            high = end
    if high:
        conditions.append("a.alias < ?")
        values.append(high)
    where = "WHERE " + " AND ".join(conditions) if conditions else ""
    return _COLUMNS + where + _ORDER, values


def after_prefix(prefix: str) -> str:
    """The first text, in the order of code points, that is after all those of a prefix.

    Empty when there is none. Surrogates cannot be in a text that came by the wire: they are skipped.
    """
    while prefix:
        code = ord(prefix[-1]) + 1
        if code <= 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if code == 0xD800 else code)
        prefix = prefix[:-1]
    return ""


def _walk(
    reader: Reader, request: ContentList, limit: int
) -> tuple[list[Any], str, bool]:
    """Rows of a page without delimiter: (rows, last name, is there more?)."""
    if request.all_versions:
        sql, values = _range(request, request.marker, "")
        found: list[Any] = reader.execute(f"{sql} LIMIT {limit + 1}", values).fetchall()
        truncated = len(found) > limit
        if truncated:
            found.pop()
        return found, found[-1][0] if found else "", truncated
    found = []
    append = found.append
    with_deleted = request.deleted
    after, previous, repeats = request.marker, None, 0
    while True:
        sql, values = _range(request, after, "")
        jump = False
        for row in reader.execute(sql, values):
            name = row[0]
            if name == previous:
                repeats += 1
                if repeats >= SKIP_AFTER:
                    jump = True
                    break
                continue
            previous, repeats = name, 0
            if row[4] and not with_deleted:
                continue
            if len(found) == limit:
                return found, found[-1][0], True
            append(row)
        if not jump or previous is None:
            return found, found[-1][0] if found else "", False
        after = previous


def _walk_folded(
    reader: Reader, request: ContentList, limit: int
) -> tuple[list[Any], list[str], str, bool]:
    """Rows and prefixes of a page with a delimiter: (rows, prefixes, next marker, is there more?)."""
    delimiter, start = request.delimiter[0], len(request.prefix)
    found: list[Any] = []
    prefixes: list[str] = []
    after, at, last = request.marker, "", ""
    previous, repeats = None, 0
    while True:
        sql, values = _range(request, after, at)
        jump = False
        for row in reader.execute(sql, values):
            name = row[0]
            if name == previous:
                if not request.all_versions:
                    repeats += 1
                    if repeats >= SKIP_AFTER:
                        after, jump = name, True
                        break
                    continue
            else:
                previous, repeats = name, 0
            if row[4] and not (request.deleted or request.all_versions):
                continue
            cut = name.find(delimiter, start)
            if cut >= 0:
                folded = name[: cut + 1]
                # A marker that is this very prefix skips it: the former page ended with it.
                if folded != request.marker:
                    if len(found) + len(prefixes) == limit:
                        return found, prefixes, last, True
                    prefixes.append(folded)
                    last = folded + LAST_CHARACTER
                at = after_prefix(folded)
                jump = at != ""
                break
            if len(found) + len(prefixes) == limit:
                return found, prefixes, last, True
            found.append(row)
            last = name
        if not jump:
            return found, prefixes, last, False


def _objects(reader: Reader, request: ContentList, found: list[Any]) -> bytes:
    """JSON array of the rows of a page."""
    items = [
        Item(
            name, version, ctime, mtime, False, content, content, policy, method,
            None if no_hash else hash_, size, mime_type,
        )
        if not deleted
        else _marker(name, version, ctime, mtime, content)
        for (
            name, version, ctime, mtime, deleted, content, policy, method, hash_, size, mime_type,
            no_hash,
        ) in found
    ]
    if request.properties and items:
        _add_properties(reader, items, bool(request.delimiter))
    return _encode(items)


def _marker(name: str, version: int, ctime: int, mtime: int, content: str) -> Item:
    return Item(
        name, version, ctime, mtime, True, content, content, None, None, None, None,
        MARKER_MIME_TYPE,
    )


def _add_properties(reader: Reader, items: list[Item], scattered: bool) -> None:
    if scattered:
        for item in items:
            stored = reader.execute(rows.PROPERTIES, (item.name, item.version))
            properties = {key: rows.text(value) for key, value in stored}
            if properties:
                item.properties = properties
        return
    by_version: dict[tuple[str, int], dict[str, str]] = {}
    bounds = (items[0].name, items[-1].name)
    for alias, version, key, value in reader.execute(_PAGE_PROPERTIES, bounds):
        by_version.setdefault((alias, version), {})[key] = rows.text(value)
    if by_version:
        for item in items:
            item.properties = by_version.get((item.name, item.version), msgspec.UNSET)


def _look_up(reader: Reader, request: ContentList) -> ListReply:
    """Objects that hold a chunk, or that have a hash."""
    matches: Iterable[Any]
    if request.chunk_id:
        escaped = request.chunk_id.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
        matches = reader.execute(_BY_CHUNK, (request.chunk_id, "%/" + escaped))
    else:
        try:
            hash_ = bytes.fromhex(request.content_hash)
        except ValueError as exc:
            raise StatusError(status.BAD_REQUEST, f"Invalid hash: {exc}") from exc
        matches = reader.execute(_BY_HASH, (hash_,))
    found = list(matches)
    if not found:
        raise StatusError(status.CONTENT_NOT_FOUND, "No object has this chunk or hash")
    return ListReply(objects=_objects(reader, request, found), properties=reader.all_admin())
