# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What one change does to one record, whatever the order of the changes.

A change may carry `when`, the time of its event in microseconds. Among changes that do, the latest wins; a push
and a delete of the same moment leave the record deleted. To that end a delete leaves a tombstone with its `when`,
for :data:`TOMBSTONE_S`. Changes without `when` are obeyed as they come (contract: rdir push, delete).
"""

from __future__ import annotations

import struct

TOMBSTONE_S = 86400
"""Life of a tombstone. An event that comes later than that may bring a deleted record back: its handler checks
that the chunk exists before it sends such an old event."""

_MICROSECONDS = 1_000_000
_PAIR = struct.Struct(">QQ")
_GRAVE = struct.Struct(">QI")
_MTIME_BYTES, _WHEN_BYTES = 5, 8


class Undecodable(ValueError):
    """Raised when a stored value is not one that was written here."""


def encode(mtime: int, when: int) -> bytes:
    """The stored value of a record; 0 stands for unknown.

    Nothing when both are unknown; 5 bytes of mtime; 8 bytes of when, in microseconds, when the mtime is its
    seconds; else 8 bytes of mtime and 8 of when.
    """
    if mtime < 0:
        mtime = 0
    if when and mtime == when // _MICROSECONDS:
        return when.to_bytes(_WHEN_BYTES)
    if when or mtime >> 8 * _MTIME_BYTES:
        return _PAIR.pack(mtime, when)
    return mtime.to_bytes(_MTIME_BYTES) if mtime else b""


def decode(value: bytes) -> tuple[int, int]:
    """Give (mtime, when). :raises Undecodable: when the value has not one of the four lengths."""
    size = len(value)
    if size == _WHEN_BYTES:
        when = int.from_bytes(value)
        return when // _MICROSECONDS, when
    if size == _MTIME_BYTES or not size:
        return int.from_bytes(value), 0
    if size == _PAIR.size:
        mtime, when = _PAIR.unpack(value)
        return mtime, when
    raise Undecodable(f"a value of {size} bytes")


def encode_grave(when: int, now_s: int) -> bytes:
    """The stored value of a tombstone: when the record was deleted, and since when we know."""
    return _GRAVE.pack(when, now_s)


def decode_grave(value: bytes) -> tuple[int, int]:
    """Give (when, since when it is known, in seconds)."""
    when, since_s = _GRAVE.unpack(value)
    return when, since_s


def after_push(
    old: tuple[int, int] | None, grave_when: int | None, mtime: int, when: int
) -> tuple[int, int] | None:
    """The record after a push, (mtime, when); None when the push changes nothing."""
    if not when:
        # Kept: deletes that were sent before what is known already stay without effect.
        known = old[1] if old else 0
        return mtime, max(known, 0 if grave_when is None else grave_when + 1)
    if grave_when is not None and when <= grave_when:
        return None
    if old is None:
        return mtime, when
    if when < old[1]:
        return None
    return max(mtime, old[0]), when


def deletes(old: tuple[int, int] | None, when: int) -> bool:
    """Does a delete apply to a record?"""
    return old is not None and (not when or old[1] <= when)
