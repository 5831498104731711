# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Reading one chunk from whichever of its copies works.

``VerifiedBody`` reads the body of one answer of a rawx and gives bytes only once their block sum has been
checked. ``ChunkReader`` chooses the copies, and goes from one to the next when a copy fails midway, at the byte
where the failure happened.

Guarantee: bytes given by a native connection whose answer carries block sums are the bytes that were written.
Blocks that lie only partly in the range are verified by the rawx before it answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from logging import Logger
from typing import Any

from oio.api._transport import (
    CHUNK_TIMEOUT,
    CONNECTION_TIMEOUT,
    LOGGER,
    ChunkReadTimeout,
    discard,
    failures,
    green_module,
    is_timeout,
    new_timeout,
    open_connection,
)
from oio.common import exceptions as exc
from oio.common.blocksums import BLOCK_SIZE_DEFAULT, BlockVerifier, Mismatch
from oio.common.constants import CHUNK_METADATA_PREFIX, REQID_HEADER
from oio.common.http import http_header_from_ranges, parse_content_range, ranges_from_http_header
from oio.http.client import ClientResponse
from oio.http.errors import ConnectionClosed, HttpClientError

BLOCK_SUMS_HEADER = CHUNK_METADATA_PREFIX + "block-sums"
READ_SIZE_MIN = 8192
# Unit of reading when there are no block sums, and upper bound of progressive reads.
READ_SIZE_MAX = 1048576

ResponseHeaders = dict[str, str]


def discard_bytes(buf_size: int, start: int) -> int:
    """Bytes to skip from ``start`` to reach the next multiple of ``buf_size``."""
    return -start % buf_size


def exp_ramp_gen(start: int, maximum: int) -> Iterator[int]:
    """start, start, then twice as much each time, up to maximum, forever."""
    yield start
    current = start
    while True:
        yield current
        current = min(current * 2, maximum)


def make_iter_from_resp(
    resp: Any,
) -> Iterator[tuple[int, int, int, list[tuple[str, str]], Any]]:
    """Iterator of the one part ``(start, end, total length, headers, body)`` of an answer.

    :raises ValueError: for a multipart answer, or a 206 without a usable Content-Range.
    """
    headers = list(resp.getheaders())
    content_type = resp.getheader("Content-Type") or ""
    if content_type.startswith("multipart/"):
        raise ValueError(f"Unsupported answer: {content_type}")
    if resp.status == 200:
        length = int(resp.getheader("Content-Length") or 0)
        return iter([(0, length - 1, length, headers, resp)])
    start, end, length = parse_content_range(resp.getheader("Content-Range") or "")
    return iter([(start, end, length, headers, resp)])


class VerifiedBody:
    """Body of an answer, given as verified pieces.

    :ivar position: offset in the chunk of the next byte.
    :ivar end: offset in the chunk after the last byte.
    """

    __slots__ = ("_verifier", "chunk_size", "end", "position", "response", "start")

    def __init__(self, response: ClientResponse) -> None:
        self.response = response
        start, last, self.chunk_size, _, _ = next(make_iter_from_resp(response))
        self.start = self.position = start
        self.end = last + 1
        length = response.length
        if length is not None and length != self.end - start:
            raise exc.OioNetworkException(
                f"{length} bytes announced for the range {start}-{last}"
            )
        self._verifier: BlockVerifier | None = None
        sums = response.getheader(BLOCK_SUMS_HEADER)
        if sums:
            self._verifier = BlockVerifier(sums, self.chunk_size)

    @property
    def block_size(self) -> int:
        """Unit of verification."""
        return BLOCK_SIZE_DEFAULT if self._verifier is None else self._verifier.block_size

    def read(self) -> bytes:
        """The next verified piece, ``b""`` at the end.

        :raises Mismatch: the piece does not have its sum; nothing of it is given.
        :raises OioNetworkException: the body ended too early.
        """
        position = self.position
        if position >= self.end:
            return b""
        verifier = self._verifier
        if verifier is None:
            data = self._read_exactly(min(READ_SIZE_MAX, self.end - position))
        else:
            block_size = verifier.block_size
            index, inside = divmod(position, block_size)
            stop = min((index + 1) * block_size, self.end)
            data = self._read_exactly(stop - position)
            if not inside and len(data) == verifier.block_length(index):
                verifier.check_block(index, data)
        self.position = position + len(data)
        return data

    def _read_exactly(self, size: int) -> bytes:
        response = self.response
        data = response.read(size)
        if len(data) == size:
            return data
        parts = [data]
        left = size - len(data)
        while left and data:
            data = response.read(left)
            parts.append(data)
            left -= len(data)
        if left:
            raise exc.OioNetworkException(
                f"connection closed at byte {self.position + size - left}, {self.end} expected"
            )
        return b"".join(parts)

    def skip_to(self, offset: int) -> None:
        """Give up the bytes before an offset (a rawx may ignore ranges). The offset must not be past the end."""
        while self.position < offset:
            step = min(READ_SIZE_MAX, offset - self.position)
            self._read_exactly(step)
            self.position += step

    def close(self) -> None:
        """Give the connection back when the body has been read to its end, else close it."""
        if self.position >= self.end:
            self.response.release()
        else:
            self.response.close()


def timed_out(err: BaseException, timeout: float) -> BaseException:
    """The failure as readers raise it."""
    if is_timeout(err) and not str(err).startswith(("Chunk", "Connection")):
        return new_timeout(ChunkReadTimeout, timeout)
    if isinstance(err, (HttpClientError, ConnectionError)):
        wrapped = exc.OioNetworkException(str(err))
        wrapped.__cause__ = err
        return wrapped
    return err


def describe_failures(by_url: Mapping[str, tuple[int, str]]) -> exc.OioException:
    """One exception for the failures ``(status, reason)`` of all the copies."""
    if len(set(by_url.values())) == 1:
        status, reason = next(iter(by_url.values()))
        return exc.from_status(status, f"{reason} {list(by_url)}")
    return exc.ServiceUnavailable(f"unavailable chunks: {dict(by_url)}")


class ChunkReader:
    """Reads a chunk, or a range of it, from the first copy that answers, then from the next ones.

    :param chunk_iter: iterator of chunk dictionaries, consumed until one answers.
    :param buf_size: give blocks of exactly that size (the last may be shorter); None = as they come.
    :param headers: headers of the request; ``Range`` is kept up to date in it.
    :param expected: first and last byte that the caller needs; a copy that cannot give them is not used.
    """

    def __init__(
        self,
        chunk_iter: Iterator[dict[str, Any]] | None,
        buf_size: int | None,
        headers: dict[str, str],
        connection_timeout: float | None = None,
        read_timeout: float | None = None,
        align: bool = False,
        perfdata: dict[str, Any] | None = None,
        resp_by_chunk: dict[str, tuple[int, str]] | None = None,
        logger: Logger | None = None,
        expected: tuple[int, int] | None = None,
        **_kwargs: Any,
    ) -> None:
        self.chunk_iter = chunk_iter
        self.buf_size = buf_size
        self.request_headers = headers
        self.connection_timeout = connection_timeout or CONNECTION_TIMEOUT
        self.read_timeout = read_timeout or CHUNK_TIMEOUT
        self.align = align
        self.perfdata = perfdata
        self.logger = logger or LOGGER
        self.status: int | None = None
        self.discard_bytes = 0
        self._expected = expected
        self._headers: ResponseHeaders | None = None
        self._resp_by_chunk = {} if resp_by_chunk is None else resp_by_chunk
        self._body: VerifiedBody | None = None

    # --- choosing a copy ------------------------------------------------------------------------

    @property
    def reqid(self) -> str | None:
        """Id of the request, from its headers."""
        for name, value in self.request_headers.items():
            if name.lower() == REQID_HEADER:
                return value
        return None

    @property
    def headers(self) -> ResponseHeaders | None:
        """Headers of the answer, names in lower case; None until a copy has answered."""
        return self._headers

    def _wanted_start(self) -> int:
        """First byte of the chunk that the present request asks for; negative for a suffix."""
        value = self.request_headers.get("Range")
        if not value:
            return 0
        start, end = ranges_from_http_header(value)[0]
        return -(end or 0) if start is None else start

    def _get_request(self, chunk: Mapping[str, Any]) -> Any:
        """Answer of a copy, None when it is of no use (the reason is recorded)."""
        url = chunk.get("url") or chunk.get("real_url") or ""
        start_s = time.monotonic() if self.perfdata is not None else 0.0
        try:
            try:
                source = self._ask(chunk)
            except ConnectionClosed:
                # A pooled connection that the rawx closed meanwhile says nothing about the chunk.
                source = self._ask(chunk, fresh=True)
        except failures() as err:
            self._failed(url, 0, str(timed_out(err, self.read_timeout)))
            return None
        if self.perfdata is not None:
            self._add_perf("connect." + str(url), start_s)
        if source.status not in (200, 206):
            self._failed(url, source.status, str(source.reason))
            discard(source)
            return None
        return source

    def _ask(self, chunk: Mapping[str, Any], fresh: bool = False) -> Any:
        """Head of the answer of a copy. Raises what goes wrong."""
        connection = open_connection(
            chunk, "GET", self.request_headers, self.connection_timeout, self.read_timeout, fresh
        )
        green = green_module()
        try:
            if green is None:
                return connection.getresponse()
            with green.ChunkReadTimeout(self.read_timeout):
                return connection.getresponse()
        except failures():
            connection.close()
            raise

    def _failed(self, url: str, status: int, reason: str) -> None:
        self._resp_by_chunk[url] = (status, reason)
        self.logger.warning(
            "cannot read chunk %s: %s (%s) (reqid=%s)", url, reason, status, self.reqid
        )

    def _add_perf(self, key: str, start_s: float) -> None:
        assert self.perfdata is not None
        rawx = self.perfdata.setdefault("rawx", {})
        rawx[key] = rawx.get(key, 0.0) + time.monotonic() - start_s

    def _get_source(self) -> tuple[Any, Any]:
        """``(answer, chunk)`` of the next copy that is of use, ``(None, None)`` when none is left."""
        for chunk in self.chunk_iter or ():
            source = self._get_request(chunk)
            if source is None:
                continue
            if isinstance(source, ClientResponse):
                try:
                    self._body = self._check_body(source)
                except (ValueError, exc.OioException) as err:
                    source.close()
                    self._failed(chunk.get("url", ""), 0, str(err))
                    continue
            self.status = source.status
            self._headers = {name.lower(): value for name, value in source.getheaders()}
            return source, chunk
        return None, None

    def _check_body(self, source: ClientResponse) -> VerifiedBody:
        """Check that an answer holds what is asked for. :raises ValueError: else."""
        body = VerifiedBody(source)
        start = self._wanted_start()
        if start < 0:
            start = max(0, body.chunk_size + start)
        if self._expected is not None and body.end <= self._expected[1]:
            raise exc.OioException(
                f"chunk of {body.chunk_size} bytes, byte {self._expected[1]} is needed"
            )
        if not body.start <= start <= body.end:
            raise exc.OioException(f"answer holds bytes {body.start}-{body.end - 1}, {start} is asked for")
        if "Range" in self.request_headers:
            # A rawx may ignore a range, or give more than it was asked for.
            body.skip_to(start)
            first, last = ranges_from_http_header(self.request_headers["Range"])[0]
            if first is not None and last is not None:
                body.end = max(start, min(body.end, last + 1))
        return body

    # --- reading --------------------------------------------------------------------------------

    def recover(self, nb_bytes: int) -> None:
        """Shift the requested range by what has already been read.

        :raises EmptyByteRange: nothing is left to read.
        :raises UnsatisfiableRange: more has been read than was asked for.
        :raises ValueError: the range is malformed.
        """
        value = self.request_headers.get("Range")
        if not value:
            self.request_headers["Range"] = f"bytes={nb_bytes}-"
            start = nb_bytes
        else:
            first, last = ranges_from_http_header(value)[0]
            if first is None:
                assert last is not None
                left = last - nb_bytes
                new: tuple[int | None, int | None] = (None, left)
                start = 0
            else:
                start = first + nb_bytes
                left = 1 if last is None else last - start + 1
                new = (start, last)
            if left == 0:
                raise exc.EmptyByteRange()
            if left < 0:
                raise exc.UnsatisfiableRange(message=f"{nb_bytes} bytes read of {value}")
            self.request_headers["Range"] = http_header_from_ranges([new])
        if self.align and self.buf_size:
            self.discard_bytes = discard_bytes(self.buf_size, start)

    def get_iter(self) -> Iterator[dict[str, Any]]:
        """Connect, and give an iterator of the parts (one) ``{start, end, length, iter, headers}``.

        :raises ClientException: all copies answered with the same error.
        :raises ServiceUnavailable: they failed in different ways.
        """
        source, chunk = self._get_source()
        if source is None:
            raise describe_failures(self._resp_by_chunk)
        return self._create_iter(chunk, source)

    def stream(self) -> Iterator[bytes]:
        """Connect now, and give a generator of the bytes."""
        parts = self.get_iter()
        return self._join(parts)

    @staticmethod
    def _join(parts: Iterator[dict[str, Any]]) -> Iterator[bytes]:
        for part in parts:
            yield from part["iter"]

    def __iter__(self) -> Iterator[bytes]:
        return self.stream()

    def _create_iter(self, chunk: Any, source: Any) -> Iterator[dict[str, Any]]:
        if isinstance(source, ClientResponse):
            body = self._body
            if body is None or body.response is not source:
                body = self._body = self._check_body(source)
            start, end, length = body.position, body.end - 1, body.chunk_size
            headers = source.getheaders()
            blocks = self._native_blocks(chunk)
            if self.buf_size:
                blocks = _exact_blocks(blocks, self.buf_size, self._aligned_skip(start))
        else:
            start, end, length, headers, _ = next(make_iter_from_resp(source))
            if self.align and self.buf_size:
                self.discard_bytes = discard_bytes(self.buf_size, start)
            blocks = self._foreign_blocks(chunk, source)
        part = {"start": start, "end": end, "length": length, "iter": blocks, "headers": headers}
        return iter((part,))

    def _aligned_skip(self, start: int) -> int:
        return discard_bytes(self.buf_size, start) if self.align and self.buf_size else 0

    def _native_blocks(self, chunk: Any) -> Iterator[bytes]:
        """Verified blocks; goes to another copy on any failure, at the first byte not given yet."""
        body = self._body
        assert body is not None
        start_s = time.monotonic()
        goal = body.end
        recovered_at = body.position
        # Copies with a bad block are still of use for the blocks after it.
        bad_at: list[tuple[int, Any]] = []
        try:
            while body.position < goal:
                try:
                    data = body.read()
                except read_failures() as err:
                    url = chunk.get("url", "")
                    if isinstance(err, Mismatch):
                        bad_at.append((err.block_index, chunk))
                        raised: BaseException = exc.CorruptedChunk(
                            f"chunk {url}: {err} (reqid={self.reqid})"
                        )
                    else:
                        raised = timed_out(err, self.read_timeout)
                    self.logger.error("chunk %s failed at byte %d: %s (reqid=%s)",
                                      url, body.position, raised, self.reqid)  # fmt: skip
                    body.response.close()
                    position = body.position
                    self.recover(position - recovered_at)
                    self._close_range(goal)
                    recovered_at = position
                    source, chunk = self._get_source()
                    if source is None:
                        source, chunk = self._second_chance(bad_at, position, body)
                    if source is None:
                        raise raised from err
                    assert self._body is not None
                    body = self._body
                    if body.end < goal:
                        raise raised from err
                    continue
                yield data
        finally:
            body.close()
            if self.perfdata is not None:
                self._add_perf("download." + str(chunk.get("url", "")), start_s)

    def _close_range(self, goal: int) -> None:
        """Rawx may ignore open ranges: say the end, which is known by now."""
        value = self.request_headers.get("Range", "")
        if value.endswith("-"):
            self.request_headers["Range"] = f"{value}{goal - 1}"

    def _second_chance(
        self, bad_at: list[tuple[int, Any]], position: int, body: VerifiedBody
    ) -> tuple[Any, Any]:
        """Try again the copies whose bad block is behind us."""
        block_size = body.block_size
        usable = [pair for pair in bad_at if (pair[0] + 1) * block_size <= position]
        for pair in usable:
            bad_at.remove(pair)
        self.chunk_iter = iter([chunk for _, chunk in usable])
        return self._get_source()

    def _foreign_blocks(self, chunk: Any, source: Any) -> Iterator[bytes]:
        """Blocks read with the few methods that every response has. Nothing is verified."""
        sizes = exp_ramp_gen(READ_SIZE_MIN, READ_SIZE_MAX)
        length = total = _foreign_length(source)
        read = given = ignored = 0
        buf = b""
        while True:
            try:
                data = self._read_foreign(source, self.buf_size or next(sizes))
                if not data and length is not None and read < length:
                    raise OSError(f"connection closed at byte {read}, {length} expected")
            except read_failures() as err:
                try:
                    self.recover(given)
                except exc.EmptyByteRange:
                    return
                self.logger.error("chunk %s failed: %s (reqid=%s)", chunk, err, self.reqid)
                buf = b""
                new_source, new_chunk = self._get_source()
                if not new_source:
                    raise
                source, chunk = new_source, new_chunk
                length, read, given = _foreign_length(source), 0, 0
                # A rawx may ignore the open range of what is left, and begin again (contract: rawx GET).
                ignored = max(0, self._wanted_start()) if source.status == 200 and length == total else 0
                continue
            read += len(data)
            if ignored:
                dropped = min(ignored, len(data))
                data, ignored = data[dropped:], ignored - dropped
                if not data:
                    continue
            buf += data
            if self.discard_bytes and buf:
                skipped = min(self.discard_bytes, len(buf))
                buf = buf[skipped:]
                self.discard_bytes -= skipped
                given += skipped
            while buf and (not data or not self.buf_size or len(buf) >= self.buf_size):
                block, buf = (buf[: self.buf_size], buf[self.buf_size :]) if self.buf_size else (buf, b"")
                given += len(block)
                yield block
            if not data:
                return

    def _read_foreign(self, source: Any, size: int) -> bytes:
        green = green_module()
        if green is None:
            data: bytes = source.read(size)
            return data
        with green.ChunkReadTimeout(self.read_timeout):
            return source.read(size)  # type: ignore[no-any-return]


def read_failures() -> tuple[type[BaseException], ...]:
    """What makes a reader go to another copy; programming errors are not among them."""
    return (OSError, HttpClientError, exc.OioException, Mismatch, *failures()[1:])


def _foreign_length(source: Any) -> int | None:
    try:
        start, end, _, _, _ = next(make_iter_from_resp(source))
    except (ValueError, AttributeError):
        return None
    return end - start + 1


def _exact_blocks(blocks: Iterator[bytes], size: int, skip: int) -> Iterator[bytes]:
    """Cut a stream in blocks of one size, after having dropped ``skip`` bytes."""
    left = b""
    for data in blocks:
        if skip:
            skipped = min(skip, len(data))
            data, skip = data[skipped:], skip - skipped
        data = left + data if left else data
        whole = len(data) - len(data) % size
        for start in range(0, whole, size):
            yield data[start : start + size]
        left = data[whole:]
    if left:
        yield left

