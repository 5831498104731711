# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Listing of a container: one index-driven query, read no further than the page.

With a delimiter, everything below a common prefix is jumped over by a new seek, so that the price of a page
does not depend on how many names it folds. A name with many versions is jumped over in the same way. Names
that delete markers hide must be read one by one: a page that meets too many of them ends before its
deadline, truncated, with the marker of the last name that it read.

Markers are names: a page begins with the next name. A page of all versions that ends amid those of a name tells
the last version as well, and who gives both back goes on with the version below it.

The look-ups by chunk and by hash read a whole table, which takes about 0.1 µs per chunk: an index would cost
each put a page more, for the sake of tools that seldom ask. They end at the deadline with 504.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.meta.messages import ContentList, ListReply
from oio.meta.meta2 import rows, rules, scans
from oio.meta.transaction import Reader

DEFAULT_MAX, ABSOLUTE_MAX = 1000, 10000
#: Appended to a prefix, it makes a marker that is after every name of that prefix.
LAST_CHARACTER = "\U0010fffd"
MARKER_MIME_TYPE = "application/x-deleted;swift_versions_deleted=1"
#: Lower than every version.
_NO_VERSION = -(2**63)
#: Versions of one name that are read before jumping to the next name.
SKIP_AFTER = 8
#: Hidden names between two looks at the clock.
CHECK_NAMES = 256
#: Part of the time that the caller allows after which a page ends: the answer must still travel.
TIME_SHARE = 0.75

_COLUMNS = (
    "SELECT a.alias, a.version, a.ctime, a.mtime, a.deleted, hex(a.content), c.policy,"
    " c.chunk_method, hex(c.hash), c.size, c.mime_type, c.hash IS NULL"
    " FROM aliases a LEFT JOIN contents c ON c.id = a.content "
)
_ORDER = " ORDER BY a.alias, a.version DESC"
_PAGE_PROPERTIES = (
    "SELECT alias, version, key, value FROM properties WHERE alias >= ? AND alias <= ?"
)
_AFTER = " AND a.alias >= ? AND (a.alias > ? OR a.version < ?)" + _ORDER + " LIMIT ?"
_BY_CHUNK = _COLUMNS + "WHERE a.content IN (SELECT content FROM chunks WHERE id = ?)" + _AFTER
_BY_BARE_CHUNK = (
    _COLUMNS + "WHERE a.content IN (SELECT content FROM chunks WHERE substr(id, -?) = ?)" + _AFTER
)
_BY_HASH = _COLUMNS + "WHERE a.content IN (SELECT id FROM contents WHERE hash = ?)" + _AFTER


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


class Page:
    """What a page holds so far; ``last`` is the marker that continues after it, ``last_version`` the version where
    it ends amid those of this name.
    """

    __slots__ = (
        "_begin", "_deadline", "_hidden", "last", "last_version", "prefixes", "rows", "scattered", "truncated",
    )  # fmt: skip

    def __init__(self, deadline: float | None = None) -> None:
        self.rows: list[Any] = []
        self.prefixes: list[str] = []
        self.last = ""
        self.last_version: int | None = None
        self.truncated = False
        #: Are there names between the rows that are not in the page?
        self.scattered = False
        self._hidden = 0
        self._begin = time.monotonic() if deadline is not None else 0.0
        self._deadline = deadline

    def hide(self, name: str) -> bool:
        """A name was read that is not shown; True when the page must end here."""
        self._hidden += 1
        if self._hidden % CHECK_NAMES or self._deadline is None:
            return False
        if time.monotonic() < self._begin + TIME_SHARE * (self._deadline - self._begin):
            return False
        self.last, self.truncated = name, True
        return True

    def end_before(self, following: Any) -> None:
        """The page is full, and it ends with an object; the next one begins with this row."""
        name, version = self.rows[-1][:2]
        self.last, self.truncated = name, True
        self.last_version = version if following[0] == name else None

    def is_sparse(self) -> bool:
        """Are there many names between the first row and the last that are not in the page?"""
        return self.scattered or bool(self.prefixes) or self._hidden > len(self.rows)


def list_contents(reader: Reader, request: ContentList, deadline: float | None = None) -> ListReply:
    """One page of objects and prefixes."""
    rules.check_readable(reader.get)
    limit = min(request.max, ABSOLUTE_MAX) if request.max > 0 else DEFAULT_MAX
    page = Page(deadline)
    if request.chunk_id or request.content_hash:
        with scans.bounded(reader, deadline):
            _look_up(reader, request, limit, page)
    elif request.delimiter:
        _walk_folded(reader, request, limit, page)
    elif request.all_versions:
        _walk_versions(reader, request, limit, page)
    else:
        _walk(reader, request, limit, page)
    return ListReply(
        objects=_objects(reader, request, page),
        prefixes=page.prefixes,
        truncated=page.truncated,
        next_marker=page.last if page.truncated else "",
        next_version_marker=page.last_version,
        properties=reader.all_admin(),
    )


def _range(request: ContentList, after: str, at: str, below: int | None = None) -> tuple[str, list[Any]]:
    """SQL of the names that can be in the page, strictly after a name, or from a name on.

    :param below: the versions of the name ``after`` that are lower can be there too.
    """
    low, strict = after, True
    if at and at > low:
        low, strict = at, False
    if request.prefix and (request.prefix > low or not low):
        low, strict = request.prefix, False
    conditions: list[str] = []
    values: list[Any] = []
    if low and strict and below is not None:
        conditions.append("a.alias >= ? AND (a.alias > ? OR a.version < ?)")
        values += [low, low, below]
    elif low:
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


def _walk_versions(reader: Reader, request: ContentList, limit: int, page: Page) -> None:
    """Every version, markers included, without delimiter."""
    sql, values = _range(request, request.marker, "", request.version_marker)
    _fill(page, reader.execute(f"{sql} LIMIT {limit + 1}", values).fetchall(), limit)


def _fill(page: Page, found: list[Any], limit: int) -> None:
    """Make a page of rows of which one more than the limit was asked."""
    page.rows = found
    if len(found) > limit:
        page.end_before(found.pop())


def _walk(reader: Reader, request: ContentList, limit: int, page: Page) -> None:
    """The latest version of each name, without delimiter."""
    found = page.rows
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
                if page.hide(name):
                    return
                continue
            if len(found) == limit:
                page.last, page.truncated = found[-1][0], True
                return
            append(row)
        if not jump or previous is None:
            return
        after = previous


def _walk_folded(reader: Reader, request: ContentList, limit: int, page: Page) -> None:
    """Names up to the delimiter: objects, and one prefix for all the names that it begins."""
    delimiter, start = request.delimiter[0], len(request.prefix)
    skipped = _prefix_of_marker(request.marker)
    found, prefixes = page.rows, page.prefixes
    after, at, last = request.marker, "", ""
    below = request.version_marker if request.all_versions else None
    previous, repeats = None, 0
    while True:
        sql, values = _range(request, after, at, below)
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
                if page.hide(name):
                    return
                continue
            cut = name.find(delimiter, start)
            folded = name[: cut + 1] if cut >= 0 else ""
            if folded == skipped and folded:
                at = after_prefix(folded)
                jump = at != ""
                break
            if len(found) + len(prefixes) == limit:
                page.last, page.truncated = last, True
                if name == last:
                    page.end_before(row)
                return
            if folded:
                prefixes.append(folded)
                last = folded + LAST_CHARACTER
                at = after_prefix(folded)
                jump = at != ""
                break
            found.append(row)
            last = name
        if not jump:
            return


def _prefix_of_marker(marker: str) -> str:
    """The prefix that a marker skips whole: the former page ended with it."""
    return marker.removesuffix(LAST_CHARACTER)


def _objects(reader: Reader, request: ContentList, page: Page) -> bytes:
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
        ) in page.rows
    ]
    if request.properties and items:
        _add_properties(reader, items, page.is_sparse())
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


def _look_up(reader: Reader, request: ContentList, limit: int, page: Page) -> None:
    """Objects that hold a chunk, or that have a hash. :raises StatusError: 420 when there is none."""
    page.scattered = True
    wanted: tuple[Any, ...]
    if not request.chunk_id:
        sql, wanted = _BY_HASH, (_hash(request.content_hash),)
    elif "/" in request.chunk_id:
        sql, wanted = _BY_CHUNK, (request.chunk_id,)
    else:
        suffix = "/" + request.chunk_id.upper()
        sql, wanted = _BY_BARE_CHUNK, (len(suffix), suffix)
    below = _NO_VERSION if request.version_marker is None else request.version_marker
    after = (request.marker, request.marker, below)
    _fill(page, reader.execute(sql, (*wanted, *after, limit + 1)).fetchall(), limit)
    if not page.rows and not request.marker:
        raise StatusError(status.CONTENT_NOT_FOUND, "No object has this chunk or hash")


def _hash(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as exc:
        raise StatusError(status.BAD_REQUEST, f"Invalid hash: {exc}") from exc
