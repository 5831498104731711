# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Reading erasure-coded metachunks.

k chunks are opened at once, those that hold plain data first: when they are all there a segment is put
together without decoding. A chunk that fails, or whose bytes do not match their checksum, is replaced by another
one from the present segment on.

Guarantee: a stream gives every byte asked for or raises; it never ends early.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from logging import Logger
from typing import Any

from oio.api._ec_sources import (
    HEADER_BYTES,
    BadFragment,
    Chunk,
    Fragment,
    FragmentSource,
    SourceOpener,
    fragment_index,
    payload_size,
)
from oio.api._reader import describe_failures, read_failures, timed_out
from oio.common import exceptions as exc
from oio.common.constants import CHUNK_ATTRIBUTES_HEADER


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
        self.opener = SourceOpener(
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
        headers[CHUNK_ATTRIBUTES_HEADER] = "block-sums"
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
        size = min(payload_size(fragment), left)
        parts.append(memoryview(fragment)[HEADER_BYTES : HEADER_BYTES + size])
        left -= size
    return b"".join(parts) if not left else None


def _by_preference(chunks: Iterable[Chunk], k: int) -> list[Chunk]:
    """Chunks of data first, in their order; those of services known to be down last."""
    listed = list(chunks)
    scored = any(int(chunk.get("score") or 0) > 0 for chunk in listed)

    def rank(chunk: Chunk) -> tuple[bool, bool]:
        return scored and int(chunk.get("score") or 0) <= 0, int(chunk.get("num", 0)) >= k

    return sorted(listed, key=rank)
