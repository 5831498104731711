# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Receiving a chunk: bytes to the disk, what they must be, and the attributes that come of it.

Which checks are made depends on what the client sends:

- block sums: they are checked, and the announced hash is stored without being computed;
- no block sums: the MD5 (BLAKE3 when the announced hash has 64 digits) is checked, and block sums
  are computed for later reads.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Protocol

import blake3

from oio.common import blocksums
from oio.common.blocksums import BlockSums
from oio.http.server import BodyError, BodyTimeout, Request
from oio.rawx import compression, metadata
from oio.rawx.metadata import BadHeader, ChunkMeta
from oio.rawx.store import Upload

BLAKE3_DIGITS = 64
HASH_ALGORITHMS = {32: ("md5",), 40: ("sha1",), 64: ("blake3", "sha256")}
# Buffers kept for the next uploads; more are allocated when more uploads run at once.
POOLED_BUFFERS_MAX = 8


class Hasher(Protocol):
    """What hashlib and blake3 have in common."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Digest of what was added."""


class BufferPool:
    """Receive buffers, reused: the pages of a fresh one would have to be cleared each time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """A buffer of any content."""
        try:
            return self._free.pop()
        except IndexError:
            return memoryview(bytearray(self.size))

    def give_back(self, buffer: memoryview) -> None:
        """Let the next upload have it."""
        if len(self._free) < POOLED_BUFFERS_MAX:
            self._free.append(buffer)


def new_hasher(digits: int) -> Hasher:
    """BLAKE3 for a hash of 64 digits, else MD5."""
    if digits == BLAKE3_DIGITS:
        return blake3.blake3()
    return hashlib.md5(usedforsecurity=False)


def matches(fd: int, compressed: str, reference: str) -> bool:
    """Is this hexadecimal hash the one of the uncompressed bytes of the file?

    The algorithm is told by the number of digits; for 64 digits, BLAKE3 is tried, then SHA-256.
    """
    for name in HASH_ALGORITHMS.get(len(reference), ()):
        hasher: Hasher = blake3.blake3() if name == "blake3" else hashlib.new(name)
        for piece in compression.read_all(fd, compressed):
            hasher.update(piece)
        if hasher.hexdigest().upper() == reference.upper():
            return True
    return False


class Receiver:
    """Receives the body of one PUT into an :class:`Upload`.

    Raises :class:`BadHeader` for what the client got wrong, BodyError when the body ended early,
    OSError when the disk refused. The upload is then to be aborted.
    """

    def __init__(self, request: Request, meta: ChunkMeta, upload: Upload, deadline: float) -> None:
        headers = request.headers
        self._request = request
        self._meta = meta
        self._upload = upload
        self._deadline = deadline
        self._sums = BlockSums(metadata.block_size_hint(headers, request.content_length))
        self._sums_announced = metadata.announces_block_sums(headers)
        self._hasher = None if self._sums_announced else new_hasher(len(meta.chunk_hash))
        self._compressor = compression.compressor(meta.compression)

    def run(self, buffers: BufferPool) -> None:
        """Receive and write all the bytes, check them, and complete the metadata."""
        if self._request.content_length is not None and self._compressor is None:
            self._upload.expect(self._request.content_length)
        buffer = buffers.take()
        try:
            self._receive(buffer)
        finally:
            buffers.give_back(buffer)
        self._check()

    def _receive(self, buffer: memoryview) -> None:
        request, upload, sums = self._request, self._upload, self._sums
        hasher, compressor = self._hasher, self._compressor
        while count := request.readinto(buffer):
            piece = buffer[:count]
            sums.update(piece)
            if hasher is not None:
                hasher.update(piece)
            if compressor is None:
                upload.write(piece)
            else:
                upload.write(compressor.compress(piece))
            if request.body_finished:
                break
            if time.monotonic() > self._deadline:
                raise BodyTimeout("the request took too long")
        if compressor is not None:
            upload.write(compressor.flush())

    def _check(self) -> None:
        meta, size = self._meta, self._sums.size
        if trailers := self._request.trailers:
            metadata.apply_measures(meta, trailers)
        if meta.method.startswith("ec/") and not (meta.metachunk_hash and meta.metachunk_size):
            raise BadHeader("metachunk-hash, metachunk-size: missing, mandatory with ec/")
        if meta.chunk_size and int(meta.chunk_size) != size:
            raise BadHeader(f"chunk-size: {meta.chunk_size} announced, {size} bytes received")
        meta.chunk_size = str(size)
        if meta.block_sums:
            self._check_block_sums()
        elif self._sums_announced:
            raise BadHeader("block-sums: announced by a Trailer header, but not sent")
        else:
            self._check_hash()

    def _check_block_sums(self) -> None:
        meta = self._meta
        try:
            block_size, expected = blocksums.decode(meta.block_sums)
        except blocksums.BadSums as err:
            raise BadHeader(f"block-sums: {err}") from None
        if self._sums_of(block_size) != expected:
            raise BadHeader("block-sums: the bytes received have other sums")
        meta.block_sums = blocksums.encode(block_size, expected)
        if not meta.chunk_hash:
            meta.chunk_hash = self._digest(0)

    def _check_hash(self) -> None:
        meta, hasher = self._meta, self._hasher
        assert hasher is not None
        computed = hasher.hexdigest().upper()
        if not meta.chunk_hash:
            meta.chunk_hash = computed
        elif meta.chunk_hash != computed:
            # A trailer may bring a BLAKE3 where nothing announced one.
            digits = len(meta.chunk_hash)
            if digits == len(computed) or digits != BLAKE3_DIGITS:
                raise BadHeader(f"chunk-hash: {meta.chunk_hash} announced, {computed} received")
            if self._digest(digits) != meta.chunk_hash:
                raise BadHeader(f"chunk-hash: {meta.chunk_hash} is not the hash of the bytes")
        block_size = max(self._sums.block_size, blocksums.block_size_for(self._sums.size))
        meta.block_sums = blocksums.encode(block_size, self._sums_of(block_size))

    def _sums_of(self, block_size: int) -> bytes:
        """Sums for a block size; the file is read again when it is not the one that was guessed."""
        if block_size == self._sums.block_size:
            return self._sums.sums()
        sums = BlockSums(block_size)
        for piece in self._written():
            sums.update(piece)
        return sums.sums()

    def _digest(self, digits: int) -> str:
        hasher = new_hasher(digits)
        for piece in self._written():
            hasher.update(piece)
        return hasher.hexdigest().upper()

    def _written(self) -> Iterator[bytes]:
        return compression.read_all(self._upload.fd, self._meta.compression)


__all__ = ["BodyError", "BufferPool", "Receiver", "matches", "new_hasher"]
