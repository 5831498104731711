# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Keys of chunk records: ``<container id>|<content id>|<chunk id>``, and their packed form.

Ids are nearly always upper-case hexadecimal numbers of 64, 32 and 64 digits. Such a key is packed in 80 bytes,
half of its text, and packed keys have the order of their texts: an index of half the size, read in the same order.
"""

from __future__ import annotations

CONTAINER_CHARS_MAX, CONTENT_CHARS_MAX, CHUNK_CHARS_MAX = 64, 1023, 511
"""What is longer is cut (contract: rdir, length limits)."""

PACKED_BYTES = 80
TEXT_CHARS = 162
_DIGITS = 160
_BARS = frozenset({64, 97})
_BAR = ord("|")
_HEX = frozenset(b"0123456789ABCDEF")


def pack(container: str, content: str, chunk: str) -> bytes | None:
    """The packed key of three ids; None when they are not of the usual form."""
    if len(container) != 64 or len(content) != 32 or len(chunk) != 64:
        return None
    digits = container + content + chunk
    try:
        packed = bytes.fromhex(digits)
    except ValueError:
        return None
    # `fromhex` takes lower case, and skips blanks.
    return packed if len(packed) == PACKED_BYTES and digits.upper() == digits else None


def unpack(packed: bytes) -> str:
    """The text of a packed key."""
    digits = packed.hex().upper()
    return f"{digits[:64]}|{digits[64:96]}|{digits[96:]}"


def text(container: str, content: str, chunk: str) -> str:
    """The text of a key, ids cut at their longest length."""
    return f"{container[:CONTAINER_CHARS_MAX]}|{content[:CONTENT_CHARS_MAX]}|{chunk[:CHUNK_CHARS_MAX]}"


def lower_bound(position: bytes) -> bytes | None:
    """The smallest packed key whose text is not below `position`; None when all are below.

    >>> lower_bound(b"A").hex()[:4], lower_bound(b":").hex()[:4], lower_bound(b"9z").hex()[:4], lower_bound(b"G")
    ('a000', 'a000', 'a000', None)
    """
    digits = bytearray()
    for index, byte in enumerate(position[:TEXT_CHARS]):
        if index in _BARS:
            if byte == _BAR:
                continue
            return _first_with(digits) if byte < _BAR else _first_after(digits)
        if byte in _HEX:
            digits.append(byte)
        elif byte < ord("0"):
            return _first_with(digits)
        elif byte < ord("A"):
            return _first_with(digits + b"A")
        else:
            return _first_after(digits)
    return _first_after(digits) if len(position) > TEXT_CHARS else _first_with(digits)


def end_of_prefix(prefix: bytes) -> bytes | None:
    """The smallest text above all those that begin with `prefix`; None when there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


def _first_with(digits: bytes | bytearray) -> bytes:
    return bytes.fromhex(digits.ljust(_DIGITS, b"0").decode())


def _first_after(digits: bytes | bytearray) -> bytes | None:
    """The first key above all those whose digits begin like this."""
    stem = digits.rstrip(b"F")
    if not stem:
        return None
    return _first_with(stem[:-1] + b"%X" % (int(stem[-1:], 16) + 1))
