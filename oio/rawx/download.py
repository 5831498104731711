# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Answering GET and HEAD: which bytes of a chunk, checked how, sent how.

- Up to one block: read, verified, sent with the head in one system call.
- More: the kernel sends the file; the client verifies the whole blocks with the sums it gets in
  the head, and the blocks of which only a part leaves are verified here first.
- Without block sums (chunks of other writers): as it is on disk, only the size is checked.
- Compressed: inflated and verified block by block on the way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator

import blake3

from oio.common.blocksums import SUM_BYTES, BadSums, BlockVerifier, Mismatch
from oio.http.server import FileBody, Response
from oio.rawx import compression, metadata, ranges
from oio.rawx.store import StoredChunk

MEMORY_BYTES_MAX = 1 << 20
"""What is at most read at once. Bigger blocks are verified in pieces of this size."""

Headers = list[tuple[str, str]]
logger = logging.getLogger("oio.rawx")


class Inconsistent(Exception):
    """Raised when the bytes of a chunk are not what its attributes say (412)."""


class Unreadable(Exception):
    """Raised when the attributes of a chunk do not allow to read it (500)."""


def logical_size(chunk: StoredChunk) -> int:
    """Size of the uncompressed data; :class:`Inconsistent` when the file has another one."""
    text = chunk.meta.chunk_size
    known = metadata.is_decimal64(text)
    if compression.is_raw(chunk.meta.compression):
        if not known and not chunk.meta.compression:
            raise Unreadable(f"chunk {chunk.meta.chunk_id} has no size attribute")
        expected = int(text) if known else 0
        if expected != chunk.file_size:
            raise Inconsistent(f"chunk {chunk.meta.chunk_id} has {chunk.file_size} bytes instead of {expected}")
        return expected
    if not known or int(text) < 0:
        raise Unreadable(f"chunk {chunk.meta.chunk_id} is compressed and has no size attribute")
    return int(text)


def description(chunk: StoredChunk) -> Headers:
    """Reply headers that describe a chunk; to a lean read, only the sums that its bytes must have."""
    if chunk.lean:
        return [("x-oio-chunk-meta-block-sums", chunk.meta.block_sums)]
    headers = metadata.reply_headers(chunk.meta)
    headers.append(("Last-Modified", local_date(chunk.mtime)))
    return headers


def local_date(seconds: float) -> str:
    """RFC 1123 date in the zone of this server: clients ignore its name (contract: rawx GET, Last-Modified)."""
    return time.strftime("%a, %d %b %Y %H:%M:%S %Z", time.localtime(seconds))


def get(chunk: StoredChunk, range_header: str | None, uncached: bool = False) -> Response:
    """Response to a GET. Owns `chunk`: it is closed here, or once the response left."""
    try:
        return _get(chunk, range_header, uncached)
    except BaseException:
        chunk.close()
        raise


def _get(chunk: StoredChunk, range_header: str | None, uncached: bool) -> Response:
    size = logical_size(chunk)
    try:
        selected = ranges.parse(range_header, size)
    except ranges.Unsatisfiable:
        chunk.close()
        return Response(416)
    verifier = _verifier(chunk, size)
    headers = description(chunk)
    status, first, count = 200, 0, size
    if selected is not None:
        first, last = selected
        status, count = 206, last - first + 1
        headers.append(("Content-Range", f"bytes {first}-{last}/{size}"))
    if not compression.is_raw(chunk.meta.compression):
        body: Iterable[bytes] = _primed(_inflated(chunk, verifier, first, count))
        return Response(status, body, headers, content_length=count)
    if verifier is not None:
        if data := _small(chunk, verifier, first, count):
            if uncached:
                _forget(chunk.fd)
            chunk.close()
            return Response(status, data, headers)
        _verify_edges(chunk, verifier, first, first + count - 1)
    if uncached:
        # The response must not close the file before it is dropped from the cache.
        body_file = FileBody(chunk.fd, first, count, close=False)
        return Response(status, body_file, headers, after_sent=_forgetter(chunk))
    return Response(status, FileBody(chunk.take_fd(), first, count), headers)


def verify_all(chunk: StoredChunk) -> None:
    """Check every block of a chunk; :class:`Inconsistent` on the first bad one."""
    verifier = _verifier(chunk, logical_size(chunk))
    if verifier is None:
        raise Inconsistent(f"chunk {chunk.meta.chunk_id} has no checksum that can be verified")
    for _ in _inflated(chunk, verifier, 0, verifier.chunk_size):
        continue


def _verifier(chunk: StoredChunk, size: int) -> BlockVerifier | None:
    """None when the chunk has no usable block sums; unusable ones are not shown to the client."""
    meta = chunk.meta
    if not meta.block_sums:
        return None
    try:
        return BlockVerifier(meta.block_sums, size)
    except BadSums as err:
        if chunk.lean:
            # The size of the file is all that is known here: it is not the size that was summed.
            raise Inconsistent(f"chunk {meta.chunk_id} does not have the size of its sums: {err}") from None
        logger.warning("the block sums of chunk %s are unusable: %s", meta.chunk_id, err)
        meta.block_sums = ""
        return None


def _small(chunk: StoredChunk, verifier: BlockVerifier, first: int, count: int) -> bytes | memoryview | None:
    """The bytes, verified, when they lie in one block that may be held in memory."""
    index = first // verifier.block_size
    if not count or (first + count - 1) // verifier.block_size != index:
        return None
    length = verifier.block_length(index)
    if length > MEMORY_BYTES_MAX:
        return None
    start = index * verifier.block_size
    block = os.pread(chunk.fd, length, start)
    with _inconsistent(chunk):
        verifier.check_block(index, block)
    if count == length:
        return block
    return memoryview(block)[first - start : first - start + count]


def _verify_edges(chunk: StoredChunk, verifier: BlockVerifier, first: int, last: int) -> None:
    """Verify the blocks of which only a part lies between `first` and `last`."""
    size = verifier.block_size
    edges = set()
    if first % size:
        edges.add(first // size)
    if last + 1 < verifier.chunk_size and (last + 1) % size:
        edges.add(last // size)
    for index in sorted(edges):
        _verify_block(chunk, verifier, index)


def _verify_block(chunk: StoredChunk, verifier: BlockVerifier, index: int) -> None:
    hasher = blake3.blake3()
    start = index * verifier.block_size
    end = start + verifier.block_length(index)
    while start < end:
        piece = os.pread(chunk.fd, min(end - start, MEMORY_BYTES_MAX), start)
        if not piece:
            break
        hasher.update(piece)
        start += len(piece)
    with _inconsistent(chunk):
        verifier.check_sum(index, hasher.digest(SUM_BYTES))


@contextlib.contextmanager
def _inconsistent(chunk: StoredChunk) -> Iterator[None]:
    try:
        yield
    except Mismatch as err:
        raise Inconsistent(f"chunk {chunk.meta.chunk_id} is corrupt: {err}") from None


def _inflated(chunk: StoredChunk, verifier: BlockVerifier | None, first: int, count: int) -> Iterator[bytes]:
    """`count` bytes from `first` of the uncompressed data. Closes the chunk."""
    skip = first
    with chunk:
        for piece in compression.read_all(chunk.fd, chunk.meta.compression):
            with _inconsistent(chunk):
                blocks = [piece] if verifier is None else verifier.feed(piece)
            for block in blocks:
                length = len(block)
                if length <= skip:
                    skip -= length
                    continue
                wanted = memoryview(block)[skip : skip + count]
                skip = 0
                count -= len(wanted)
                yield bytes(wanted)
                if not count:
                    return
    if count:
        raise Inconsistent(f"chunk {chunk.meta.chunk_id} is shorter than its attributes say")


def _primed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Produce the first piece now, so that its errors are still a status."""
    try:
        head = next(pieces)
    except StopIteration:
        return iter(())
    return _chained(head, pieces)


def _chained(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from pieces


def _forget(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _forgetter(chunk: StoredChunk) -> Callable[[], None]:
    def forget() -> None:
        _forget(chunk.fd)
        chunk.close()

    return forget
