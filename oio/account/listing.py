# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Rules of the listings of an account, over any sorted collection of names.

Names are ordered by their UTF-8 bytes, in which no byte 0xff occurs: a text followed by 0xff lies just behind all
the names that start with that text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

LISTING_DEFAULT = 1000
LISTING_MAX = 10000
# Names asked for at once: enough to make round trips rare, little enough not to hold up other clients of Redis.
BATCH = 1000
# After a group the rest of a batch is useless as a rule: fewer names are asked for.
BATCH_OF_GROUPS = 64

_BEHIND = b"\xff"
_LABEL = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_BUCKET_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]*")
# What gateways put behind the name of a bucket to name the containers of its parts.
_PARTS = ("+segments", "%2F")

# fetch(minimum, maximum, count): names within bounds as ZRANGEBYLEX takes them.
Fetch = Callable[[bytes, bytes, int], list[bytes]]


@dataclass(frozen=True)
class Query:
    """What a client asks for; markers are exclusive, empty texts mean nothing."""

    limit: int = LISTING_DEFAULT
    marker: str = ""
    end_marker: str = ""
    prefix: str = ""
    delimiter: str = ""
    s3_buckets_only: bool = False


class Entry(NamedTuple):
    """One entry of a listing: a name, or the common beginning of several names."""

    name: str
    is_prefix: bool


def container_limit(asked: int) -> int:
    """How many entries a listing of containers may have."""
    return min(asked, LISTING_MAX) if asked > 0 else LISTING_DEFAULT


def is_bucket_name(name: str) -> bool:
    """Whether S3 clients could know a container by this name."""
    return (
        3 <= len(name) <= 63 and _BUCKET_NAME.fullmatch(name) is not None and not _DIGITS_AND_DOTS.fullmatch(name)
    )


def list_names(fetch: Fetch, query: Query) -> Iterator[Entry]:
    """Yield the entries of a listing, at most ``query.limit``."""
    left = query.limit
    # A name that is refused says where to look next.
    position, maximum = bounds(query)
    while left > 0:
        size = BATCH_OF_GROUPS if query.delimiter else min(BATCH, left + 1)
        if query.s3_buckets_only:
            size = BATCH
        names = fetch(position, maximum, size)
        last = ""
        for raw in names:
            last = raw.decode("utf-8", "replace")
            position = b"(" + raw
            if query.s3_buckets_only and not is_bucket_name(last):
                continue
            group = group_of(last, query)
            if group is None:
                yield Entry(last, False)
            else:
                position = b"[" + group.encode() + _BEHIND
                if group != query.marker:
                    yield Entry(group, True)
            if group is None or group != query.marker:
                left -= 1
            if left <= 0:
                return
            if group is not None:
                break
        else:
            if len(names) < size:
                return
            if query.s3_buckets_only:
                position = _behind_parts(last) or position


def bounds(query: Query) -> tuple[bytes, bytes]:
    """Lowest and highest name of a listing, as ZRANGEBYLEX takes them."""
    prefix, marker, end_marker = query.prefix.encode(), query.marker.encode(), query.end_marker.encode()
    minimum = b"[" + prefix if prefix else b"-"
    if marker and marker >= prefix:
        minimum = b"(" + marker
    maximum = b"(" + prefix + _BEHIND if prefix else b"+"
    if end_marker and (not prefix or end_marker < prefix + _BEHIND):
        maximum = b"(" + end_marker
    return minimum, maximum


def group_of(name: str, query: Query) -> str | None:
    """The prefix that stands for this name in the listing, if any."""
    if not query.delimiter:
        return None
    found = name.find(query.delimiter, len(query.prefix))
    return name[: found + len(query.delimiter)] if found > 0 else None


def _behind_parts(name: str) -> bytes | None:
    """Where to go on behind the parts of a bucket, which can be many and none of which is a bucket."""
    for part in _PARTS:
        beginning, found, _ = name.partition(part)
        if found:
            return b"[" + (beginning + part).encode() + _BEHIND
    return None
