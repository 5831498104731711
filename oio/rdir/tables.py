# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Ordered tables of keys of any length over LMDB databases, whose keys have at most 511 bytes.

Keys of up to `DIRECT_BYTES_MAX` bytes are stored as they are. The longer ones that share their first
`DIRECT_BYTES_MAX` bytes are kept together, sorted, in one "drawer": a value whose LMDB key is those bytes and one
zero byte. A drawer comes right after the key equal to its stem and before any other, so the order is that of the
whole keys.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import msgspec

from oio.common import status
from oio.rdir.engine import Undo

DIRECT_BYTES_MAX = 500
DRAWER_RECORDS_MAX = 4096
"""A drawer is written whole at each change; real ids are far too short to fill one."""

_Drawer = list[tuple[bytes, bytes]]
_decode = msgspec.msgpack.Decoder(_Drawer).decode
_encode = msgspec.msgpack.Encoder().encode


def get(txn: Any, db: Any, key: bytes) -> bytes | None:
    """The value of a key, or None."""
    if len(key) <= DIRECT_BYTES_MAX:
        value: bytes | None = txn.get(key, db=db)
        return value
    drawer, place = _look(txn, db, key)
    return drawer[place][1] if _is_there(drawer, place, key) else None


def put(txn: Any, db: Any, key: bytes, value: bytes) -> None:
    """Set the value of a key. :raises Undo: when there are too many long ones that begin like it."""
    if len(key) <= DIRECT_BYTES_MAX:
        txn.put(key, value, db=db)
        return
    drawer, place = _look(txn, db, key)
    if _is_there(drawer, place, key):
        drawer[place] = (key[DIRECT_BYTES_MAX:], value)
    elif len(drawer) >= DRAWER_RECORDS_MAX:
        raise Undo(status.BAD_PARAMETER, f"too many keys begin with the same {DIRECT_BYTES_MAX} bytes")
    else:
        drawer.insert(place, (key[DIRECT_BYTES_MAX:], value))
    txn.put(_drawer_key(key), _encode(drawer), db=db)


def delete(txn: Any, db: Any, key: bytes) -> bool:
    """Remove a key; False when it is not there."""
    if len(key) <= DIRECT_BYTES_MAX:
        return bool(txn.delete(key, db=db))
    drawer, place = _look(txn, db, key)
    if not _is_there(drawer, place, key):
        return False
    del drawer[place]
    if drawer:
        txn.put(_drawer_key(key), _encode(drawer), db=db)
    else:
        txn.delete(_drawer_key(key), db=db)
    return True


def scan(txn: Any, db: Any, position: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys from `position` on, and their values. Nothing may be written meanwhile."""
    cursor = txn.cursor(db=db)
    if not cursor.set_range(position[:DIRECT_BYTES_MAX]):
        return
    for key, value in cursor.iternext():
        if len(key) <= DIRECT_BYTES_MAX:
            if key >= position:
                yield key, value
            continue
        stem = key[:DIRECT_BYTES_MAX]
        for rest, inner in _decode(value):
            if stem + rest >= position:
                yield stem + rest, inner


def _drawer_key(key: bytes) -> bytes:
    return key[:DIRECT_BYTES_MAX] + b"\0"


def _look(txn: Any, db: Any, key: bytes) -> tuple[_Drawer, int]:
    """The drawer of a long key, and the place of the key in it."""
    value = txn.get(_drawer_key(key), db=db)
    drawer = _decode(value) if value else []
    return drawer, bisect_left(drawer, (key[DIRECT_BYTES_MAX:], b""))


def _is_there(drawer: _Drawer, place: int, key: bytes) -> bool:
    return place < len(drawer) and drawer[place][0] == key[DIRECT_BYTES_MAX:]
