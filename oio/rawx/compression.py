# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Compression of chunks on disk.

`zlib` is the zlib format at the default level, `deflate` is raw deflate at level 1, `lzw` is described in
:mod:`oio.rawx.lzw`. Hashes and block sums are always over the uncompressed bytes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Protocol

from oio.rawx import lzw

READ_BYTES = 1 << 18
_RAW_DEFLATE = -zlib.MAX_WBITS
_WINDOW_BITS = {"zlib": zlib.MAX_WBITS, "deflate": _RAW_DEFLATE}
_LZW = "lzw"
_NAMES = (*_WINDOW_BITS, _LZW)


class UnknownCompression(ValueError):
    """Raised when a compression is not one that can be read and written."""


class CorruptStream(ValueError):
    """Raised when compressed data cannot be decompressed, or ends too early."""


class Compressor(Protocol):
    """What turns bytes into fewer bytes."""

    def compress(self, data: memoryview, /) -> bytes:
        """Compressed form of some more bytes."""

    def flush(self) -> bytes:
        """The end of the compressed stream."""


def is_raw(name: str) -> bool:
    """Does this value of the attribute mean that the data is stored as it is?"""
    return name in ("", "off")


def check(name: str) -> None:
    """Raise :class:`UnknownCompression` unless chunks can be written so."""
    if not is_raw(name) and name not in _NAMES:
        raise UnknownCompression(f"compression {name!r} is not one of off, {', '.join(_NAMES)}")


def compressor(name: str) -> Compressor | None:
    """A new compressor, None when data is stored as it is."""
    check(name)
    if is_raw(name):
        return None
    if name == _LZW:
        return lzw.Compressor()
    level = 1 if name == "deflate" else zlib.Z_DEFAULT_COMPRESSION
    return zlib.compressobj(level, zlib.DEFLATED, _WINDOW_BITS[name])


def read_all(fd: int, name: str) -> Iterator[bytes]:
    """The uncompressed bytes of a file, from its start, in pieces of a bounded size."""
    check(name)
    if is_raw(name):
        return _raw_pieces(fd)
    return _expanded(fd) if name == _LZW else _inflated(fd, _WINDOW_BITS[name])


def _raw_pieces(fd: int) -> Iterator[bytes]:
    offset = 0
    while piece := os.pread(fd, READ_BYTES, offset):
        offset += len(piece)
        yield piece


def _expanded(fd: int) -> Iterator[bytes]:
    try:
        yield from lzw.decompress(_raw_pieces(fd), READ_BYTES)
    except lzw.Corrupt as err:
        raise CorruptStream(str(err)) from err


def _inflated(fd: int, window_bits: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(window_bits)
    try:
        for piece in _raw_pieces(fd):
            pending = piece
            while pending:
                yield inflater.decompress(pending, READ_BYTES)
                pending = inflater.unconsumed_tail
        yield inflater.flush()
    except zlib.error as err:
        raise CorruptStream(str(err)) from err
    if not inflater.eof:
        raise CorruptStream("compressed data ends too early")
