# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Block sums: the fast checksum that follows a chunk from the client to the disk and back.

A chunk is cut in blocks of ``block_size`` bytes (the last one may be short). The sum of a block
is the first 8 bytes of its BLAKE3 digest. The text form, used in headers, trailers and in the
attribute ``user.oio.chunk.block_sums``, is

    <block size in decimal>:<base64url, without padding, of the concatenated sums>

so the text of an empty chunk is ``1048576:``. Sums are taken over the uncompressed bytes.

>>> sums = BlockSums()
>>> sums.update(b"hello")
>>> sums.text()
'1048576:6o8WPbOGgpI'
>>> BlockVerifier(sums.text(), 5).check_block(0, b"hello")

Guarantee: bytes handed out by :class:`BlockVerifier` have the sums that the text announces.
Non-guarantee: 64 bits per block detect accidents, they do not resist an attacker.
"""

from __future__ import annotations

import base64
import binascii
from typing import Protocol

import blake3 as _blake3

BLOCK_SIZE_DEFAULT = 1 << 20
BLOCK_SIZE_MAX = 1 << 30
# The text of 256 sums takes about 2.7 KiB. All the attributes of a file must fit in one 4 KiB
# block on ext4, and the path of the object takes its share.
BLOCKS_MAX = 256
SUM_BYTES = 8

Buffer = bytes | bytearray | memoryview


class _Hasher(Protocol):
    def update(self, data: Buffer, /) -> object: ...

    def digest(self, length: int = 32) -> bytes: ...


class Mismatch(ValueError):
    """Raised when a block does not have the sum that was announced for it."""

    def __init__(self, block_index: int, expected: bytes, computed: bytes) -> None:
        super().__init__(
            f"block {block_index} has sum {computed.hex()}, {expected.hex()} was announced"
        )
        self.block_index = block_index
        self.expected = expected
        self.computed = computed


class BadSums(ValueError):
    """Raised when a text is not the description of the block sums of a chunk of that size."""


def block_size_for(chunk_size_max: int) -> int:
    """Smallest power of two, not below the default, that cuts a chunk in at most 256 blocks."""
    block_size = BLOCK_SIZE_DEFAULT
    while block_size * BLOCKS_MAX < chunk_size_max:
        block_size *= 2
    return block_size


def block_count(chunk_size: int, block_size: int) -> int:
    """How many blocks a chunk of that size has."""
    return -(-chunk_size // block_size)


def sum_of(block: Buffer) -> bytes:
    """The sum of one whole block."""
    return _blake3.blake3(block).digest(SUM_BYTES)


def encode(block_size: int, sums: Buffer) -> str:
    """Text form of concatenated sums."""
    text = base64.urlsafe_b64encode(sums).decode("ascii").rstrip("=")
    return f"{block_size}:{text}"


def decode(text: str) -> tuple[int, bytes]:
    """Block size and concatenated sums of a text; :class:`BadSums` when it is malformed."""
    size_text, colon, sums_text = text.partition(":")
    if not colon or not size_text.isascii() or not size_text.isdigit() or len(size_text) > 10:
        raise BadSums(f"malformed block sums {text[:80]!r}")
    block_size = int(size_text)
    if not 0 < block_size <= BLOCK_SIZE_MAX:
        raise BadSums(f"block size {block_size} out of bounds")
    try:
        # `altchars` maps the URL alphabet; `validate` refuses anything out of it.
        padded = sums_text + "=" * (-len(sums_text) % 4)
        sums = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as err:
        raise BadSums(f"malformed block sums: {err}") from None
    if len(sums) % SUM_BYTES:
        raise BadSums(f"{len(sums)} bytes of sums are not a whole number of sums")
    return block_size, sums


def verify(text: str, data: Buffer) -> None:
    """Check a whole chunk held in memory; :class:`Mismatch` or :class:`BadSums` otherwise."""
    verifier = BlockVerifier(text, len(data))
    view = memoryview(data)
    size = verifier.block_size
    for index in range(verifier.count):
        verifier.check_block(index, view[index * size : (index + 1) * size])


class BlockSums:
    """Computes the sums of a stream of bytes, given in pieces of any size."""

    __slots__ = ("_hasher", "_left", "_sums", "block_size", "size")

    def __init__(self, block_size: int = BLOCK_SIZE_DEFAULT) -> None:
        self.block_size = block_size
        self.size = 0
        self._sums = bytearray()
        self._hasher: _Hasher | None = None
        self._left = block_size

    def update(self, data: Buffer) -> None:
        """Add bytes at the end of the stream."""
        length = len(data)
        self.size += length
        if length < self._left:
            if length:
                self._feed(data)
                self._left -= length
            return
        view = memoryview(data)
        start = 0
        while start < length:
            end = min(length, start + self._left)
            self._feed(view[start:end])
            self._left -= end - start
            start = end
            if not self._left:
                self._close_block()

    def _feed(self, data: Buffer) -> None:
        if self._hasher is None:
            self._hasher = _blake3.blake3(data)
        else:
            self._hasher.update(data)

    def _close_block(self) -> None:
        assert self._hasher is not None
        self._sums += self._hasher.digest(SUM_BYTES)
        self._hasher = None
        self._left = self.block_size

    def sums(self) -> bytes:
        """Concatenated sums of what was given so far; more bytes may follow."""
        if self._hasher is None:
            return bytes(self._sums)
        return bytes(self._sums) + self._hasher.digest(SUM_BYTES)

    def text(self) -> str:
        """Text form of what was given so far."""
        return encode(self.block_size, self.sums())


class BlockVerifier:
    """Checks the bytes of a chunk against the text of its block sums.

    Two ways of using it: :meth:`check_block` on whole blocks that the caller holds, in any order;
    or :meth:`feed` with a stream that starts at the beginning of block ``first_block``, which
    gives bytes back once their block is verified and never before.
    """

    __slots__ = ("_index", "_pending", "block_size", "chunk_size", "count", "sums")

    def __init__(self, text: str, chunk_size: int, first_block: int = 0) -> None:
        self.block_size, self.sums = decode(text)
        self.chunk_size = chunk_size
        self.count = block_count(chunk_size, self.block_size)
        if len(self.sums) != self.count * SUM_BYTES:
            raise BadSums(
                f"{len(self.sums) // SUM_BYTES} sums announced, a chunk of {chunk_size} bytes "
                f"has {self.count} blocks of {self.block_size}"
            )
        self._index = first_block
        self._pending = bytearray()

    def block_length(self, index: int) -> int:
        """Length of a block; only the last one may be short."""
        return min(self.block_size, self.chunk_size - index * self.block_size)

    def expected(self, index: int) -> bytes:
        """The sum announced for a block."""
        return self.sums[index * SUM_BYTES : (index + 1) * SUM_BYTES]

    def check_block(self, index: int, block: Buffer) -> None:
        """Raise :class:`Mismatch` unless `block` is exactly block `index` of the chunk."""
        self.check_sum(index, sum_of(block))

    def check_sum(self, index: int, computed: bytes) -> None:
        """Raise :class:`Mismatch` unless `computed` is the sum announced for block `index`."""
        expected = self.expected(index)
        if computed != expected:
            raise Mismatch(index, expected, computed)

    def feed(self, data: Buffer) -> list[Buffer]:
        """Add bytes of the stream; give back the blocks that are now complete and verified.

        A block that arrives whole in one call is verified in place and given back as a view of
        the caller's buffer, without copy. Bytes beyond the announced size are a mismatch.
        """
        ready: list[Buffer] = []
        view = memoryview(data)
        start = 0
        while start < len(view):
            if self._index >= self.count:
                raise Mismatch(self._index, b"", sum_of(view[start:]))
            wanted = self.block_length(self._index) - len(self._pending)
            piece = view[start : start + wanted]
            start += len(piece)
            if len(piece) < wanted:
                self._pending += piece
                break
            block: Buffer = piece
            if self._pending:
                self._pending += piece
                block, self._pending = self._pending, bytearray()
            self.check_block(self._index, block)
            self._index += 1
            ready.append(block)
        return ready

    @property
    def finished(self) -> bool:
        """Whether every block of the chunk was given to :meth:`feed` and verified."""
        return self._index == self.count and not self._pending
