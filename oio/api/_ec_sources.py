# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Chunks of fragments: opening several at once, reading them, checking the fragments' headers."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Sequence
from logging import Logger
from typing import Any

from oio.api._reader import VerifiedBody, timed_out
from oio.api._transport import (
    CHUNK_TIMEOUT,
    CONNECTION_TIMEOUT,
    LOGGER,
    ChunkReadTimeout,
    NativeConnection,
    connect_each,
    discard,
    failures,
    green_module,
    is_timeout,
    new_timeout,
    open_connection,
)
from oio.common import exceptions as exc
from oio.http.client import ClientResponse

Chunk = dict[str, Any]
Fragment = bytes | memoryview

# An answer is waited for at least this long: one that is there is not missed because another used up the time.
_LAST_CHANCE_S = 0.05

# Header of a fragment, as liberasurecode writes it (80 bytes, packed, in the order of the machine's bytes): index,
# payload size, size of the back-end's own data, size of the segment, type of checksum, 8 checksums, mismatch flag,
# back-end id and version (59 bytes); then magic, library version, CRC-32 of the first 59 bytes; then padding.
_HEADER = struct.Struct("=IIIQ")
_HEADER_TAIL = struct.Struct("=III")
_META_BYTES = 59
HEADER_BYTES = 80
_MAGIC = 0x0B0C5ECC


class BadFragment(exc.ChunkException):
    """Raised when a fragment is not the one that was expected."""


def segment_range_to_fragment_range(
    segment_start: int | None, segment_end: int | None, segment_size: int, fragment_size: int
) -> tuple[int | None, int | None]:
    """From a range of whole segments to the range of their fragments in a chunk."""
    start = None if segment_start is None else segment_start // segment_size * fragment_size
    if segment_end is None:
        return start, None
    end = (segment_end + 1) // segment_size * fragment_size
    return start, end if segment_start is None else end - 1


def meta_chunk_range_to_segment_range(
    meta_start: int | None, meta_end: int | None, segment_size: int
) -> tuple[int | None, int | None]:
    """From a range of a metachunk to the whole segments that hold it.

    >>> meta_chunk_range_to_segment_range(100, 600, 256)
    (0, 767)
    """
    start = None if meta_start is None else meta_start // segment_size * segment_size
    end = None if meta_end is None else (meta_end // segment_size + 1) * segment_size - 1
    return start, end


def fragment_index(fragment: Fragment, segment_length: int | None) -> int:
    """Index that a fragment announces. :raises BadFragment: when its header is not valid for that segment.

    The library must never be given an invalid header: it may stop the process.
    """
    if len(fragment) < HEADER_BYTES:
        raise BadFragment(f"fragment of {len(fragment)} bytes")
    index, size, extra, length = _HEADER.unpack_from(fragment)
    magic, _version, crc = _HEADER_TAIL.unpack_from(fragment, _META_BYTES)
    if magic != _MAGIC or zlib.crc32(fragment[:_META_BYTES]) != crc:
        raise BadFragment("fragment without a valid header")
    if size + extra + HEADER_BYTES != len(fragment):
        raise BadFragment(f"fragment of {len(fragment)} bytes announces {size}+{extra}+{HEADER_BYTES}")
    if segment_length is not None and length != segment_length:
        raise BadFragment(f"fragment of a segment of {length} bytes instead of {segment_length}")
    return int(index)


class FragmentSource:
    """Bytes of one chunk, verified when they come from a native connection."""

    __slots__ = ("_body", "_piece", "_response", "_timeout", "chunk", "native", "started_s")

    def __init__(self, chunk: Chunk, response: Any, timeout: float, start: int) -> None:
        self.chunk = chunk
        self.native = isinstance(response, ClientResponse)
        self.started_s = time.monotonic()
        self._response = response
        self._timeout = timeout
        self._piece: Fragment = b""
        self._body: VerifiedBody | None = None
        if self.native:
            self._body = body = VerifiedBody(response)
            if body.start > start:
                raise BadFragment(f"answer starts at byte {body.start} instead of {start}")
            body.skip_to(start)

    @property
    def chunk_size(self) -> int | None:
        """Size of the whole chunk, when it is known."""
        return None if self._body is None else self._body.chunk_size

    def header(self, name: str) -> str | None:
        """Value of a header of the answer."""
        value: str | None = self._response.getheader(name)
        return value

    def read(self, size: int) -> Fragment:
        """Exactly ``size`` bytes, fewer at the end of the chunk only."""
        piece = self._piece
        if len(piece) >= size:
            self._piece = piece[size:]
            return piece[:size]
        parts = [piece]
        left = size - len(piece)
        while left and (data := self._next_piece(left)):
            part = data[:left]
            piece = data[left:]
            parts.append(part)
            left -= len(part)
        else:
            if left:
                piece = b""
        self._piece = piece
        return parts[1] if len(parts) == 2 and not parts[0] else b"".join(parts)

    def skip(self, size: int) -> None:
        """Read and forget."""
        while size and (data := self.read(min(size, 1 << 20))):
            size -= len(data)

    def _next_piece(self, size: int) -> Fragment:
        if self._body is not None:
            return memoryview(self._body.read())
        green = green_module()
        if green is None:
            return self._response.read(size)  # type: ignore[no-any-return]
        with green.ChunkReadTimeout(self._timeout):
            return self._response.read(size)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Give the connection back if everything was read, else close it; never fails."""
        try:
            if self._body is not None:
                self._body.close()
            else:
                self._response.close()
        except failures():
            self._piece = b""


class SourceOpener:
    """Opens the chunks of a metachunk and remembers why some could not be opened."""

    def __init__(
        self,
        connection_timeout: float | None,
        read_timeout: float | None,
        perfdata: dict[str, Any] | None,
        reqid: str | None,
        logger: Logger | None,
    ) -> None:
        self.connection_timeout = connection_timeout or CONNECTION_TIMEOUT
        self.read_timeout = read_timeout or CHUNK_TIMEOUT
        self.perfdata = perfdata
        self.reqid = reqid
        self.logger = logger or LOGGER
        self.errors: dict[str, tuple[int, str]] = {}

    def failed(self, chunk: Chunk, status: int, reason: str) -> None:
        """Remember the failure of a chunk."""
        self.errors[chunk.get("url", "")] = (status, reason)
        self.logger.warning(
            "cannot read chunk %s: %s (%s) (reqid=%s)", chunk.get("url"), reason, status, self.reqid
        )

    def open(
        self, chunks: Sequence[Chunk], headers: dict[str, str], start: int, accepted: tuple[int, ...]
    ) -> list[FragmentSource]:
        """Send all requests, then read all answers; gives the sources that work.

        The answers come at the same time: those that do not are waited for together, the read timeout at most.
        """

        def send(chunk: Chunk) -> tuple[Any, float]:
            start_s = time.monotonic()
            connection = open_connection(chunk, "GET", headers, self.connection_timeout, self.read_timeout)
            if isinstance(connection, NativeConnection) and connection.client is not None:
                connection.client.flush()
            return connection, start_s

        waiting: list[tuple[Chunk, Any, float]] = []
        for chunk, result in connect_each(send, chunks):
            if isinstance(result, BaseException):
                self.failed(chunk, 0, str(result))
            else:
                waiting.append((chunk, *result))
        sources = []
        deadline_s = time.monotonic() + self.read_timeout
        patience_s = self.read_timeout
        for chunk, connection, start_s in waiting:
            source = self._answer(chunk, connection, start, accepted, patience_s)
            if source is None:
                patience_s = max(_LAST_CHANCE_S, deadline_s - time.monotonic())
            else:
                sources.append(source)
                self.add_perf("connect.", chunk, start_s)
        return sources

    def _answer(
        self, chunk: Chunk, connection: Any, start: int, accepted: tuple[int, ...], patience_s: float
    ) -> FragmentSource | None:
        try:
            response = self._head(connection, patience_s)
        except failures() as err:
            connection.close()
            if is_timeout(err):
                err = new_timeout(ChunkReadTimeout, self.read_timeout)
            self.failed(chunk, 0, str(timed_out(err, self.read_timeout)))
            return None
        if response.status not in accepted:
            self.failed(chunk, response.status, str(response.reason))
            discard(response)
            return None
        try:
            return FragmentSource(chunk, response, self.read_timeout, start)
        except failures() as err:
            connection.close()
            self.failed(chunk, 0, str(timed_out(err, self.read_timeout)))
            return None

    def _head(self, connection: Any, patience_s: float) -> Any:
        """Answer of a rawx, its body unread. Raises what goes wrong."""
        client = connection.client if isinstance(connection, NativeConnection) else None
        if client is not None:
            client.settimeout(read_s=patience_s)
        green = green_module()
        if green is None:
            response = connection.getresponse()
        else:
            with green.ChunkReadTimeout(patience_s):
                response = connection.getresponse()
        if client is not None:
            client.settimeout(read_s=self.read_timeout)
        return response

    def add_perf(self, prefix: str, chunk: Chunk, start_s: float) -> None:
        """Add the time since ``start_s`` to a figure of ``perfdata``."""
        if self.perfdata is not None:
            rawx = self.perfdata.setdefault("rawx", {})
            key = prefix + str(chunk.get("url", ""))
            rawx[key] = rawx.get(key, 0.0) + time.monotonic() - start_s


def payload_size(fragment: Fragment) -> int:
    """Bytes of data in a fragment whose header has been checked."""
    return int(_HEADER.unpack_from(fragment)[1])
