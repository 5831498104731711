# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""LZW as chunk servers of the 7.x series write it: most significant bit first, 8 bits literals.

It is the LZW of PDF without early change: codes of 9 to 12 bits, 256 clears the table, 257 ends the stream. A
stream begins with a clear code. A megabyte takes a tenth of a second or more: for volumes that have such chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_CLEAR, _END = 256, 257
_WIDTH_FIRST, _WIDTH_MAX = 9, 12
# The writer clears its table when this code would be next.
_CODE_LAST = (1 << _WIDTH_MAX) - 1
_LITERALS = [bytes((value,)) for value in range(256)]


class Corrupt(ValueError):
    """Raised when bytes are no LZW stream, or not all of one."""


class Compressor:
    """Gives the compressed form of what it is fed."""

    def __init__(self) -> None:
        self._codes: dict[int, int] = {}
        self._code = -1  # what was read and is not written yet
        self._next = _END
        self._width = _WIDTH_FIRST
        self._bits = 0
        self._bits_count = 0
        self._out = bytearray()

    def compress(self, data: memoryview, /) -> bytes:
        """Compressed form of some more bytes."""
        code = self._code
        for value in bytes(data):
            if code < 0:
                self._write(_CLEAR)
                code = value
                continue
            key = code << 8 | value
            known = self._codes.get(key)
            if known is not None:
                code = known
                continue
            self._write(code)
            code = value
            if self._advance():
                self._codes[key] = self._next
        self._code = code
        return self._take()

    def flush(self) -> bytes:
        """The end of the compressed stream."""
        if self._code < 0:
            self._write(_CLEAR)
        else:
            self._write(self._code)
            self._advance()
        self._write(_END)
        if self._bits_count:
            self._out.append(self._bits << (8 - self._bits_count) & 0xFF)
        return self._take()

    def _advance(self) -> bool:
        """Go to the next code; False when the table was cleared instead."""
        self._next += 1
        if self._next == 1 << self._width:
            self._width += 1
        if self._next < _CODE_LAST:
            return True
        self._write(_CLEAR)
        self._codes.clear()
        self._next, self._width = _END, _WIDTH_FIRST
        return False

    def _write(self, code: int) -> None:
        bits, count = self._bits << self._width | code, self._bits_count + self._width
        while count >= 8:
            count -= 8
            self._out.append(bits >> count)
            bits &= (1 << count) - 1
        self._bits, self._bits_count = bits, count

    def _take(self) -> bytes:
        out, self._out = self._out, bytearray()
        return bytes(out)


def decompress(pieces: Iterable[bytes], size_max: int) -> Iterator[bytes]:
    """The bytes of a stream, in pieces of about `size_max`. :raises Corrupt: in the midst of it, maybe."""
    table: list[bytes] = [*_LITERALS, b"", b""]
    width, last = _WIDTH_FIRST, b""
    bits = count = 0
    out = bytearray()
    for piece in pieces:
        for byte in piece:
            bits, count = bits << 8 | byte, count + 8
            if count < width:
                continue
            count -= width
            code = bits >> count
            bits &= (1 << count) - 1
            if code == _CLEAR:
                del table[_END + 1 :]
                width, last = _WIDTH_FIRST, b""
                continue
            if code == _END:
                yield bytes(out)
                return
            # The entry that the writer made when it wrote the code before this one.
            grows = last and len(table) <= _CODE_LAST
            if code < len(table):
                entry = table[code]
                if grows:
                    table.append(last + entry[:1])
            elif grows and code == len(table):
                entry = last + last[:1]
                table.append(entry)
            else:
                raise Corrupt(f"code {code} is not known")
            out += entry
            last = entry
            if len(table) == 1 << width and width < _WIDTH_MAX:
                width += 1
            if len(out) >= size_max:
                yield bytes(out)
                out.clear()
    raise Corrupt("the stream has no end")
