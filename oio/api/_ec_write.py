# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Writing erasure-coded metachunks: each segment of the data becomes one fragment per chunk.

Guarantee: when ``stream`` returns, at least a quorum of rawx (k + the parities that the algorithm needs) have
confirmed their fragments. Chunks that failed are returned too, after the others, with ``error``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from typing import Any, Protocol

from blake3 import blake3

from oio.api._fanout import ChunkHasher, Fanout, Sink
from oio.api._transport import discard, speaks_native
from oio.api.io import (
    MetachunkWriter,
    WriteHandler,
    chunk_headers,
    read_source,
    upload_headers,
)
from oio.common import exceptions as exc
from oio.common.blocksums import BlockSums, block_size_for
from oio.common.constants import CHUNK_HEADERS, CHUNK_METADATA_PREFIX

# Bytes of fragments that one slow rawx may lag behind. Fragments are not shared between rawx, so an upload may
# hold (k + m) times as much.
WINDOW_BYTES = 1048576

_CHUNK_HASH = CHUNK_HEADERS["chunk_hash"]
_CHUNK_SIZE = CHUNK_HEADERS["chunk_size"]
_META_HASH = CHUNK_HEADERS["metachunk_hash"]
_META_SIZE = CHUNK_HEADERS["metachunk_size"]
_BLOCK_SUMS = CHUNK_METADATA_PREFIX + "block-sums"
# What the attribute of a chunk can hold.
_HASH_DIGITS_MAX = 64

Chunk = dict[str, Any]


def ec_encode(storage_method: Any, n: int) -> Generator[list[bytes] | None, bytes, None]:
    """Coroutine: prime with ``send(None)``, then send bytes and get n fragments, or None when none is ready.

    ``send(b"")`` flushes: the fragments of what is left, n empty ones when nothing is.
    """
    segment_size = storage_method.ec_segment_size
    encode = storage_method.driver.encode
    waiting = bytearray()
    data = yield None
    while data:
        waiting += data
        ready: list[list[bytes]] = []
        while len(waiting) >= segment_size:
            ready.append(encode(bytes(waiting[:segment_size])))
            del waiting[:segment_size]
        data = yield [b"".join(parts) for parts in zip(*ready, strict=True)] if ready else None
    yield encode(bytes(waiting)) if waiting else [b""] * n


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...

    def hexdigest(self) -> str: ...


class _FragmentWriter:
    """One chunk being written: its sink, its hash, and its block sums."""

    __slots__ = ("chunk", "hash", "sink", "size", "sums")

    def __init__(self, chunk: Chunk, sink: Sink, chunk_hash: _Hash | None, sums: BlockSums | None) -> None:
        self.chunk = chunk
        self.sink = sink
        self.hash = chunk_hash
        self.sums = sums
        self.size = 0

    def framed(self, fragment: bytes) -> tuple[bytes, bytes, bytes]:
        """Account for a fragment; what must be sent for it."""
        self.size += len(fragment)
        if self.hash is not None:
            self.hash.update(fragment)
        if self.sums is not None:
            self.sums.update(fragment)
        return b"%x\r\n" % len(fragment), fragment, b"\r\n"

    def trailers(self) -> str:
        """Trailers about this chunk alone."""
        lines = ""
        if self.hash is not None:
            digest = self.hash.hexdigest()
            if len(digest) <= _HASH_DIGITS_MAX:
                lines = f"{_CHUNK_HASH}: {digest}\r\n"
        if self.sums is not None:
            lines += f"{_BLOCK_SUMS}: {self.sums.text()}\r\n"
        return lines


class EcMetachunkWriter(MetachunkWriter):
    """Writes one metachunk as k + m chunks."""

    def __init__(
        self,
        sysmeta: dict[str, Any],
        meta_chunk: list[Chunk],
        global_checksum: Any,
        storage_method: Any,
        connection_timeout: float | None = None,
        write_timeout: float | None = None,
        read_timeout: float | None = None,
        headers: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            storage_method=storage_method,
            connection_timeout=connection_timeout,
            write_timeout=write_timeout,
            read_timeout=read_timeout,
            **kwargs,
        )
        self.sysmeta = sysmeta
        self.meta_chunk = meta_chunk
        self.global_checksum = global_checksum
        self.headers = headers or {}

    def stream(self, source: Any, size: int | None) -> tuple[int, str, list[Chunk]]:
        """Write at most ``size`` bytes. Gives their number, their checksum, and the chunks, failed ones last."""
        upload = _Upload(self)
        try:
            return upload.run(source, size)
        except BaseException:
            upload.abort()
            raise


class _Upload:
    """State of one call of :meth:`EcMetachunkWriter.stream`."""

    def __init__(self, writer: EcMetachunkWriter) -> None:
        self.writer = writer
        self.method = writer.storage_method
        self.native = speaks_native() and writer.checksum_algo is not None
        self.hasher = ChunkHasher(writer.global_checksum, writer.checksum_algo or "md5")
        trailers = [_META_SIZE, _META_HASH]
        if writer.checksum_algo is not None:
            trailers.append(_CHUNK_HASH)
        if self.native:
            trailers.append(_BLOCK_SUMS)
        self.headers = upload_headers(writer.sysmeta, writer.headers, writer.reqid)
        self.headers["Trailer"] = ", ".join(trailers)
        self.fanout = Fanout(writer.write_timeout)
        self.fragments: list[_FragmentWriter] = []
        self.failed: list[Chunk] = []
        self.size = 0
        self.encode_s = 0.0
        self.started_s = time.monotonic()

    def run(self, source: Any, size: int | None) -> tuple[int, str, list[Chunk]]:
        """Connect, then read, encode, hash and send; then check the answers."""
        writer = self.writer
        self.fanout, refused = writer.connect_all(
            writer.meta_chunk, lambda chunk: chunk_headers(self.headers, chunk)
        )
        for chunk, err in refused:
            self._fail(chunk, "connect", err)
        self.fragments = [self._fragment_writer(sink) for sink in self.fanout.sinks]
        self._check_quorum("connect")
        segment_size = self.method.ec_segment_size
        first: list[bytes] | None = None
        while True:
            wanted = segment_size if size is None else min(segment_size, size - self.size)
            segment = self._read_segment(source, wanted)
            if segment:
                encoded = self._send(segment)
                first = encoded if self.size == len(segment) else None
            if len(segment) < segment_size or (size is not None and self.size >= size):
                break
            self.fanout.flush(WINDOW_BYTES)
            self._check_quorum("write")
        checksum = self.hasher.finish()
        assert checksum is not None
        for one in self.fragments:
            one.sink.push((self._end(one, checksum),))
        self.fanout.flush()
        self._check_quorum("write")
        written = self._conclude(checksum, self._resend_bodies(first))
        if writer.perfdata is not None:
            rawx = writer.perfdata.setdefault("rawx", {})
            rawx["ec"] = rawx.get("ec", 0.0) + self.encode_s
        return self.size, checksum, [*written, *self.failed]

    def abort(self) -> None:
        """Close everything without result."""
        self.hasher.abort()
        self.fanout.close()

    # --- data -----------------------------------------------------------------------------------

    def _fragment_writer(self, sink: Sink) -> _FragmentWriter:
        algorithm = self.writer.checksum_algo
        chunk_hash: _Hash | None = None
        if algorithm is not None:
            # Nobody needs the MD5 of a fragment: BLAKE3 is ten times as fast. Other services than ours, and other
            # algorithms when they are asked for, get what the contract says.
            fast = self.native and algorithm == "md5"
            chunk_hash = blake3() if fast else hashlib.new(algorithm)
        sums = None
        if self.native:
            sums = BlockSums(block_size_for(int(self.writer.sysmeta.get("chunk_size") or 0) * 2))
        return _FragmentWriter(sink.chunk, sink, chunk_hash, sums)

    def _read_segment(self, source: Any, wanted: int) -> bytes:
        """Bytes of one segment: short only at the end of the source."""
        timeout = self.writer.read_timeout
        if wanted <= 0:
            return b""
        data = read_source(source, wanted, timeout)
        if not data or len(data) == wanted:
            return data
        parts = [data]
        left = wanted - len(data)
        while left and (data := read_source(source, left, timeout)):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def _send(self, segment: bytes) -> list[bytes]:
        self.size += len(segment)
        self.hasher.update(segment)
        start_s = time.monotonic()
        try:
            encoded: list[bytes] = self.method.driver.encode(segment)
        except Exception as err:
            raise exc.ECError(f"cannot encode a segment: {err}") from err
        self.encode_s += time.monotonic() - start_s
        for one in self.fragments:
            one.sink.push(one.framed(encoded[one.chunk["num"]]))
        return encoded

    def _end(self, one: _FragmentWriter, checksum: str) -> bytes:
        return (
            f"0\r\n{_META_SIZE}: {self.size}\r\n{_META_HASH}: {checksum}\r\n{one.trailers()}\r\n"
        ).encode("ascii")

    # --- failures and answers -------------------------------------------------------------------

    def _fail(self, chunk: Chunk, stage: str, error: BaseException | str) -> None:
        writer = self.writer
        chunk["error"] = f"{stage}: {error}"
        writer.logger.warning(
            "chunk %s: %s (reqid=%s)", chunk.get("url"), chunk["error"], writer.reqid
        )
        self.failed.append(chunk)

    def _check_quorum(self, stage: str) -> None:
        """Take note of the sinks that broke. Raises below the quorum."""
        for one in [one for one in self.fragments if one.sink.error is not None]:
            assert one.sink.error is not None
            self.fragments.remove(one)
            self.fanout.sinks.remove(one.sink)
            self._fail(one.chunk, stage, one.sink.error)
        self.writer.quorum_or_fail([one.chunk for one in self.fragments], self.failed)

    def _resend_bodies(self, first: list[bytes] | None) -> list[bytes] | None:
        """Fragments of an object of one segment, which can still be sent elsewhere."""
        if self.size == 0:
            return [b""] * self.method.expected_chunks
        return first

    def _conclude(self, checksum: str, resend: list[bytes] | None) -> list[Chunk]:
        written: list[Chunk] = []
        self._judge(self.fanout, self.fragments, written)
        if resend is not None and self.failed:
            self._use_spares(checksum, resend, written)
        # Before the quorum is judged: below it, the caller must know what was written.
        for chunk in [*written, *self.failed]:
            chunk["hash"] = checksum
            chunk["size"] = self.size
        self.writer.quorum_or_fail(written, self.failed)
        return written

    def _judge(self, fanout: Fanout, fragments: list[_FragmentWriter], written: list[Chunk]) -> None:
        finish_s = time.monotonic()
        by_sink = {id(one.sink): one for one in fragments}
        for sink, answer in fanout.responses():
            if isinstance(answer, BaseException):
                self._fail(sink.chunk, "resp", answer)
                continue
            error = self._error_of(by_sink[id(sink)], answer)
            discard(answer)
            self.writer.add_perf("upload.", sink.chunk, self.started_s)
            self.writer.add_perf("upload_finish.", sink.chunk, finish_s)
            if error is None:
                written.append(sink.chunk)
            else:
                self._fail(sink.chunk, "resp", error)

    @staticmethod
    def _error_of(one: _FragmentWriter, answer: Any) -> str | None:
        if answer.status != 201:
            return f"HTTP {answer.status}"
        if one.sink.answered:
            return "HTTP 201 before the end of the data"
        size = answer.getheader(_CHUNK_SIZE)
        if size and int(size) != one.size:
            return f"chunk size mismatch: {one.size} (local), {size} (rawx)"
        return None

    def _use_spares(self, checksum: str, fragments: list[bytes], written: list[Chunk]) -> None:
        """Send fragments, still in memory, to other rawx in place of those that refused them."""
        writer = self.writer
        have = {chunk["num"] for chunk in written}
        refused = {
            chunk["num"]: chunk
            for chunk in self.failed
            if chunk["num"] not in have and chunk["error"] != "resp: HTTP 409"
        }
        spares = writer.spares(list(written), list(refused.values()))
        if not spares:
            return
        provider, writer.spare_provider = writer.spare_provider, None
        try:
            fanout, failed = writer.connect_all(
                spares, lambda chunk: chunk_headers(self.headers, chunk)
            )
        finally:
            writer.spare_provider = provider
        for chunk, err in failed:
            self._fail(chunk, "connect", err)
        ones = [self._fragment_writer(sink) for sink in fanout.sinks]
        for one in ones:
            fragment = fragments[one.chunk["num"]]
            body = one.framed(fragment) if fragment else ()
            one.sink.push((*body, self._end(one, checksum)))
        fanout.flush()
        self._judge(fanout, ones, written)


class ECWriteHandler(WriteHandler):
    """Writes an object as erasure-coded metachunks."""

    def metachunk_size(self) -> int:
        """k chunks, rounded down to a whole number of segments."""
        size = int(self.sysmeta["chunk_size"]) * int(self.storage_method.ec_nb_data)
        segment_size: int = self.storage_method.ec_segment_size
        return size - size % segment_size if size > segment_size else size

    def write_metachunk(
        self, source: Any, meta_chunk: list[Chunk], checksum: Any, size: int
    ) -> tuple[int, list[Chunk]]:
        """See :meth:`WriteHandler.write_metachunk`."""
        writer = EcMetachunkWriter(
            self.sysmeta,
            meta_chunk,
            checksum,
            self.storage_method,
            headers=self.headers,
            **self._writer_kwargs(),
        )
        transferred, _checksum, chunks = writer.stream(source, size)
        return transferred, [chunk for chunk in chunks if not chunk.get("error")]
