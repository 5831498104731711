# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Reading and rebuilding erasure-coded metachunks.

k chunks are opened at once, those that hold plain data first: when they are all there a segment is put
together without decoding. A chunk that fails, or whose bytes do not match their checksum, is replaced by another
one from the present segment on.

Guarantee: a stream gives every byte asked for or raises; it never ends early.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from logging import Logger, getLogger
from typing import Any

from oio.api._reader import VerifiedBody, describe_failures, read_failures, timed_out
from oio.api._transport import (
    CHUNK_TIMEOUT,
    CONNECTION_TIMEOUT,
    NativeConnection,
    discard,
    failures,
    green_module,
    open_connection,
)
from oio.common import exceptions as exc
from oio.common.constants import CHUNK_HEADERS
from oio.http.client import ClientResponse

Chunk = dict[str, Any]
Fragment = bytes | memoryview

# Header of a fragment, as liberasurecode writes it (80 bytes, packed, in the order of the machine's bytes): index,
# payload size, size of the back-end's own data, size of the segment, type of checksum, 8 checksums, mismatch flag,
# back-end id and version (59 bytes); then magic, library version, CRC-32 of the first 59 bytes; then padding.
_HEADER = struct.Struct("=IIIQ")
_HEADER_TAIL = struct.Struct("=III")
_HEADER_META_BYTES = 59
_HEADER_BYTES = 80
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
    if len(fragment) < _HEADER_BYTES:
        raise BadFragment(f"fragment of {len(fragment)} bytes")
    index, size, extra, length = _HEADER.unpack_from(fragment)
    magic, _version, crc = _HEADER_TAIL.unpack_from(fragment, _HEADER_META_BYTES)
    if magic != _MAGIC or zlib.crc32(fragment[:_HEADER_META_BYTES]) != crc:
        raise BadFragment("fragment without a valid header")
    if size + extra + _HEADER_BYTES != len(fragment):
        raise BadFragment(f"fragment of {len(fragment)} bytes announces {size}+{extra}+{_HEADER_BYTES}")
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


class _Opener:
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
        self.logger = logger or getLogger("oio.api")
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
        """Send all requests, then read all answers; gives the sources that work."""
        waiting: list[tuple[Chunk, Any, float]] = []
        for chunk in chunks:
            start_s = time.monotonic()
            try:
                connection = open_connection(
                    chunk, "GET", headers, self.connection_timeout, self.read_timeout
                )
                if isinstance(connection, NativeConnection) and connection.client is not None:
                    connection.client.flush()
            except failures() as err:
                self.failed(chunk, 0, str(err))
                continue
            waiting.append((chunk, connection, start_s))
        sources = []
        for chunk, connection, start_s in waiting:
            source = self._answer(chunk, connection, start, accepted)
            if source is not None:
                sources.append(source)
                self.add_perf("connect.", chunk, start_s)
        return sources

    def _answer(
        self, chunk: Chunk, connection: Any, start: int, accepted: tuple[int, ...]
    ) -> FragmentSource | None:
        green = green_module()
        try:
            if green is None:
                response = connection.getresponse()
            else:
                with green.ChunkReadTimeout(self.read_timeout):
                    response = connection.getresponse()
        except failures() as err:
            connection.close()
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

    def add_perf(self, prefix: str, chunk: Chunk, start_s: float) -> None:
        """Add the time since ``start_s`` to a figure of ``perfdata``."""
        if self.perfdata is not None:
            rawx = self.perfdata.setdefault("rawx", {})
            key = prefix + str(chunk.get("url", ""))
            rawx[key] = rawx.get(key, 0.0) + time.monotonic() - start_s


class _Layout:
    """Where the bytes of a metachunk are in its chunks."""

    __slots__ = ("chunk_size", "fragment_size", "last_fragment_size", "segment_size", "segments", "size")

    def __init__(self, method: Any, size: int) -> None:
        self.size = size
        self.segment_size: int = method.ec_segment_size
        self.fragment_size: int = method.ec_fragment_size
        self.segments = -(-size // self.segment_size)
        self.last_fragment_size = self.fragment_size
        last = size - max(self.segments - 1, 0) * self.segment_size
        if last and last != self.segment_size:
            info = method.driver.get_segment_info(last, self.segment_size)
            self.last_fragment_size = int(info["fragment_size"])
        self.chunk_size = max(self.segments - 1, 0) * self.fragment_size + (
            self.last_fragment_size if self.segments else 0
        )

    def segment_length(self, index: int) -> int:
        """Bytes of a segment."""
        return min(self.segment_size, self.size - index * self.segment_size)

    def fragment_length(self, index: int) -> int:
        """Bytes of each fragment of a segment."""
        return self.last_fragment_size if index == self.segments - 1 else self.fragment_size


class ECChunkDownloadHandler:
    """Reads a range of a metachunk.

    :param chunks: chunks of the metachunk; the ``size`` of the first is the length of the metachunk.
    :param meta_start: first byte; None with ``meta_end`` = the last ``meta_end`` bytes.
    :param meta_end: last byte; None = to the end.
    """

    def __init__(
        self,
        storage_method: Any,
        chunks: list[Chunk],
        meta_start: int | None,
        meta_end: int | None,
        headers: dict[str, str] | None = None,
        connection_timeout: float | None = None,
        read_timeout: float | None = None,
        reqid: str | None = None,
        perfdata: dict[str, Any] | None = None,
        logger: Logger | None = None,
        **_kwargs: Any,
    ) -> None:
        self.storage_method = storage_method
        self.chunks = chunks
        self.meta_start = meta_start
        self.meta_end = meta_end
        self.headers = headers or {}
        self.opener = _Opener(
            connection_timeout, read_timeout, perfdata, reqid or self.headers.get("x-oio-req-id"), logger
        )

    def get_stream(self) -> ECStream:
        """Open k sources.

        :raises OioException: fewer than k chunks can be read.
        """
        size = int(self.chunks[0]["size"])
        start, end = self.meta_start, self.meta_end
        if start is None:
            start, end = (0 if end is None else max(0, size - end)), size - 1
        end = size - 1 if end is None else min(end, size - 1)
        stream = ECStream(self, _Layout(self.storage_method, size), start, end)
        stream.start()
        return stream


class ECStream:
    """Bytes of a range of a metachunk, as parts (one, or none when the range is empty). Must be closed."""

    def __init__(self, handler: ECChunkDownloadHandler, layout: _Layout, start: int, end: int) -> None:
        self.handler = handler
        self.opener = handler.opener
        self.method = handler.storage_method
        self.layout = layout
        self.start_byte = start
        self.end_byte = end
        self.sources: list[FragmentSource] = []
        self._candidates = _by_preference(handler.chunks, self.method.ec_nb_data)
        # Chunks that had a bad fragment, and in which segment: the following segments may be good.
        self._suspects: list[tuple[int, Chunk]] = []
        self._decode_s = 0.0

    def start(self) -> None:
        """Open the sources, unless there is nothing to read."""
        if self.start_byte <= self.end_byte:
            self._fill(self.start_byte // self.layout.segment_size, self.method.ec_nb_data)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.start_byte > self.end_byte:
            return iter(())
        part = {"start": self.start_byte, "end": self.end_byte, "iter": self._blocks()}
        return iter((part,))

    def close(self) -> None:
        """Be done with the sources."""
        sources, self.sources = self.sources, []
        for source in sources:
            source.close()
            self.opener.add_perf("download.", source.chunk, source.started_s)
        perfdata = self.opener.perfdata
        if perfdata is not None:
            rawx = perfdata.setdefault("rawx", {})
            rawx["ec"] = rawx.get("ec", 0.0) + self._decode_s
            self._decode_s = 0.0

    # --- sources --------------------------------------------------------------------------------

    def _fill(self, segment: int, missing: int) -> list[FragmentSource]:
        """Open that many more sources at a segment. Raises when there are not enough."""
        layout = self.layout
        first = segment * layout.fragment_size
        last_segment = self.end_byte // layout.segment_size
        headers = {name: value for name, value in self.handler.headers.items() if name.lower() != "range"}
        if segment or last_segment < layout.segments - 1:
            headers["Range"] = f"bytes={first}-{(last_segment + 1) * layout.fragment_size - 1}"
        opened: list[FragmentSource] = []
        while len(opened) < missing:
            if not self._candidates:
                self._reconsider(segment)
            batch = self._candidates[: missing - len(opened)]
            if not batch:
                for source in opened:
                    source.close()
                self._raise_not_enough(len(self.sources))
            del self._candidates[: len(batch)]
            for source in self.opener.open(batch, headers, first, (200, 206)):
                if source.chunk_size not in (None, layout.chunk_size):
                    self.opener.failed(
                        source.chunk, 0,
                        f"chunk of {source.chunk_size} bytes instead of {layout.chunk_size}",
                    )  # fmt: skip
                    source.close()
                else:
                    opened.append(source)
        self.sources += opened
        return opened

    def _reconsider(self, segment: int) -> None:
        """Try again the chunks whose bad fragment is behind us."""
        self._candidates = [chunk for bad, chunk in self._suspects if bad < segment]
        self._suspects = [pair for pair in self._suspects if pair[0] >= segment]

    def _raise_not_enough(self, valid: int) -> None:
        errors = self.opener.errors
        if len(set(errors.values())) == 1:
            raise describe_failures(errors)
        raise exc.ServiceUnavailable(
            f"Not enough valid sources to read ({valid}/{self.method.ec_nb_data}): {errors} "
            f"(reqid={self.opener.reqid})"
        )

    def _drop(self, source: FragmentSource, segment: int, err: BaseException) -> None:
        self.sources.remove(source)
        source.close()
        self.opener.failed(source.chunk, 0, f"segment {segment}: {err}")
        if isinstance(err, (BadFragment, ValueError)):
            self._suspects.append((segment, source.chunk))

    # --- data -----------------------------------------------------------------------------------

    def _blocks(self) -> Iterator[bytes]:
        layout = self.layout
        segment_size = layout.segment_size
        last = self.end_byte // segment_size
        for index in range(self.start_byte // segment_size, last + 1):
            data = self._segment(index)
            base = index * segment_size
            first = max(self.start_byte - base, 0)
            stop = min(self.end_byte + 1 - base, len(data))
            yield data if first == 0 and stop == len(data) else data[first:stop]

    def _segment(self, index: int) -> bytes:
        k = self.method.ec_nb_data
        fragments: dict[int, Fragment] = {}
        to_read: Iterable[FragmentSource] = list(self.sources)
        while True:
            for source in to_read:
                self._read_fragment(source, index, fragments)
            if len(fragments) >= k:
                return self._decode(index, fragments)
            to_read = self._fill(index, k - len(fragments))

    def _read_fragment(
        self, source: FragmentSource, segment: int, fragments: dict[int, Fragment]
    ) -> None:
        layout = self.layout
        try:
            fragment = source.read(layout.fragment_length(segment))
            number = fragment_index(fragment, layout.segment_length(segment))
            if source.native and number != source.chunk.get("num", number):
                raise BadFragment(f"fragment {number} in the chunk of fragment {source.chunk['num']}")
            if number in fragments or number >= self.method.expected_chunks:
                raise BadFragment(f"fragment {number} is not expected")
        except read_failures() as err:
            self._drop(source, segment, timed_out(err, self.opener.read_timeout))
        else:
            fragments[number] = fragment

    def _decode(self, index: int, fragments: dict[int, Fragment]) -> bytes:
        start_s = time.monotonic()
        k = self.method.ec_nb_data
        length = self.layout.segment_length(index)
        data = _plain_segment(fragments, k, length)
        if data is None:
            try:
                # Only bytes: the library crashes on other buffers.
                data = self.method.driver.decode([bytes(fragments[num]) for num in sorted(fragments)])
            except Exception as err:
                raise exc.ServiceUnavailable(f"cannot decode segment {index}: {err}") from err
        if len(data) != length:
            raise exc.ServiceUnavailable(
                f"segment {index}: {len(data)} bytes decoded instead of {length}"
            )
        self._decode_s += time.monotonic() - start_s
        return data


def _plain_segment(fragments: dict[int, Fragment], k: int, length: int) -> bytes | None:
    """Join the data fragments when they are all there; their headers have been checked."""
    parts = []
    left = length
    for number in range(k):
        fragment = fragments.get(number)
        if fragment is None:
            return None
        size = min(_HEADER.unpack_from(fragment)[1], left)
        parts.append(memoryview(fragment)[_HEADER_BYTES : _HEADER_BYTES + size])
        left -= size
    return b"".join(parts) if not left else None


def _by_preference(chunks: Iterable[Chunk], k: int) -> list[Chunk]:
    """Chunks of data first, in their order; those of services known to be down last."""
    listed = list(chunks)
    scored = any(int(chunk.get("score") or 0) > 0 for chunk in listed)

    def rank(chunk: Chunk) -> tuple[bool, bool]:
        return scored and int(chunk.get("score") or 0) <= 0, int(chunk.get("num", 0)) >= k

    return sorted(listed, key=rank)


class ECRebuildHandler:
    """Rebuilds the fragments of one missing chunk from k others.

    :param missing: sub-position of the chunk to rebuild.
    :param read_all_available_sources: read more than k chunks, and discard invalid fragments.
    """

    def __init__(
        self,
        meta_chunk: list[Chunk],
        missing: int,
        storage_method: Any,
        connection_timeout: float | None = None,
        read_timeout: float | None = None,
        read_all_available_sources: bool = False,
        logger: Logger | None = None,
        reqid: str | None = None,
        **_kwargs: Any,
    ) -> None:
        self.meta_chunk = meta_chunk
        self.missing = missing
        self.storage_method = storage_method
        self.read_all = read_all_available_sources
        self.reqid = reqid
        self.opener = _Opener(connection_timeout, read_timeout, None, reqid, logger)

    def rebuild(self) -> tuple[int | None, Iterator[bytes]]:
        """Size of the chunk (None when no source tells it), and a generator of its fragments.

        :raises UnrecoverableContent: fewer than k sources are usable.
        """
        headers = {"x-oio-req-id": self.reqid} if self.reqid else {}
        k = self.storage_method.ec_nb_data
        by_size: dict[int | None, list[FragmentSource]] = {}
        for source in self.opener.open(self.meta_chunk, headers, 0, (200,)):
            text = source.header(CHUNK_HEADERS["chunk_size"])
            by_size.setdefault(int(text) if text else None, []).append(source)
        unsized = by_size.pop(None, [])
        size: int | None = None
        usable: list[FragmentSource] = []
        if by_size:
            size, usable = max(by_size.items(), key=lambda item: len(item[1]))
        rejected = [source for other, group in by_size.items() if other != size for source in group]
        if len(usable) < k:
            usable = usable + unsized
        else:
            rejected += unsized
        for source in rejected:
            source.close()
        if len(usable) < k:
            for source in usable:
                source.close()
            raise exc.UnrecoverableContent(
                f"Not enough sources to rebuild fragment {self.missing} ({len(usable)}/{k}): "
                f"{self.opener.errors} (reqid={self.reqid})"
            )
        return size, self._fragments(usable)

    def _fragments(self, usable: list[FragmentSource]) -> Iterator[bytes]:
        k = self.storage_method.ec_nb_data
        active, spares = (list(usable), []) if self.read_all else (usable[:k], usable[k:])
        offset = 0
        try:
            while True:
                read = self._read_all(active, spares, offset)
                lengths = {len(fragment) for _, fragment in read}
                if lengths == {0}:
                    return
                if len(lengths) != 1:
                    raise exc.ServiceUnavailable(f"sources end at different places ({lengths})")
                fragments = [bytes(fragment) for _, fragment in read]
                if self.read_all:
                    fragments = self._valid(read)
                yield self.storage_method.driver.reconstruct(fragments, [self.missing])[0]
                offset += lengths.pop()
        finally:
            for source in [*active, *spares]:
                source.close()

    def _read_all(
        self, active: list[FragmentSource], spares: list[FragmentSource], offset: int
    ) -> list[tuple[FragmentSource, Fragment]]:
        """One fragment of each active source; sources that fail are replaced by spare ones, or left out."""
        k = self.storage_method.ec_nb_data
        size = self.storage_method.ec_fragment_size
        result: list[tuple[FragmentSource, Fragment]] = []
        waiting = [(source, 0) for source in active]
        while waiting:
            source, skipped = waiting.pop(0)
            try:
                source.skip(skipped)
                fragment = source.read(size)
                if source.native and fragment:
                    number = fragment_index(fragment, None)
                    if number != source.chunk.get("num", number):
                        raise BadFragment(f"fragment {number} where {source.chunk['num']} is expected")
            except read_failures() as err:
                failure = timed_out(err, self.opener.read_timeout)
                self.opener.failed(source.chunk, 0, f"byte {offset}: {failure}")
                active.remove(source)
                source.close()
                if spares:
                    spare = spares.pop(0)
                    active.append(spare)
                    waiting.append((spare, offset))
                elif len(active) < k:
                    raise failure from err
            else:
                result.append((source, fragment))
        return result

    def _valid(self, read: list[tuple[FragmentSource, Fragment]]) -> list[bytes]:
        """Fragments with a valid header, k at least, one per index."""
        valid: dict[int, bytes] = {}
        for source, fragment in read:
            try:
                number = fragment_index(fragment, None)
            except BadFragment as err:
                self.opener.failed(source.chunk, 0, str(err))
                continue
            valid.setdefault(number, bytes(fragment))
        valid.pop(self.missing, None)
        if len(valid) < self.storage_method.ec_nb_data:
            raise exc.UnrecoverableContent(
                f"Not enough valid fragments to rebuild fragment {self.missing} "
                f"({len(valid)}/{self.storage_method.ec_nb_data}): {self.opener.errors}"
            )
        return list(valid.values())
