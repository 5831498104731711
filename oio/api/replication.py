# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Writing replicated metachunks: the same bytes to several rawx.

Guarantee: when ``stream`` returns, at least a quorum of rawx have confirmed that they hold these very bytes; the
chunks returned are those ones and no others. When it raises, the connections of unfinished chunks are closed, so
that their rawx forget them; chunks that were confirmed all the same are for the caller to delete.
"""

from __future__ import annotations

import time
from typing import Any

from oio.api._fanout import BLAKE3, ChunkHasher, Fanout, Sink
from oio.api._transport import discard, speaks_native
from oio.api.io import (
    MetachunkWriter,
    WriteHandler,
    chunk_headers,
    read_source,
    upload_headers,
)
from oio.common.blocksums import BlockSums, block_size_for
from oio.common.constants import CHUNK_HEADERS, CHUNK_METADATA_PREFIX

# An object up to this size is read whole, then leaves in one system call per copy; and it can be sent again to a
# spare rawx when one refuses it.
SMALL_MAX = 262144
# Bytes that the slowest copy may lag behind the fastest. The copies share the buffers, so this bounds the memory
# of an upload.
WINDOW_BYTES = 4194304
# A hash with more digits does not fit in the attribute of a chunk (SHA-256 is the longest that does).
_HASH_DIGITS_MAX = 64
_BLAKE3_DIGITS = 64

_CHUNK_HASH = CHUNK_HEADERS["chunk_hash"]
_CHUNK_SIZE = CHUNK_HEADERS["chunk_size"]
_BLOCK_SUMS = CHUNK_METADATA_PREFIX + "block-sums"

Chunk = dict[str, Any]


class FakeChecksum:
    """Checksum that is known beforehand."""

    def __init__(self, actual_checksum: str) -> None:
        self.checksum = actual_checksum

    def hexdigest(self) -> str:
        """The value given."""
        return self.checksum

    def update(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing."""


class ReplicatedMetachunkWriter(MetachunkWriter):
    """Writes one metachunk as identical chunks."""

    def __init__(
        self,
        sysmeta: dict[str, Any],
        meta_chunk: list[Chunk],
        checksum: Any,
        storage_method: Any,
        quorum: int | None = None,
        connection_timeout: float | None = None,
        write_timeout: float | None = None,
        read_timeout: float | None = None,
        headers: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            storage_method=storage_method,
            quorum=quorum,
            connection_timeout=connection_timeout,
            write_timeout=write_timeout,
            read_timeout=read_timeout,
            **kwargs,
        )
        self.sysmeta = sysmeta
        self.meta_chunk = meta_chunk
        self.checksum = checksum
        self.headers = headers or {}

    def stream(self, source: Any, size: int | None) -> tuple[int, str | None, list[Chunk]]:
        """Write at most ``size`` bytes. Gives their number, their checksum, and the chunks written."""
        hasher = ChunkHasher(self.checksum, self._algorithm())
        # Without algorithm the rawx computes the hash, so it must not be given block sums instead.
        sums = None
        base = upload_headers(self.sysmeta, self.headers, self.reqid)
        if self.checksum_algo and speaks_native():
            chunk_size_max = size if size is not None else int(self.sysmeta.get("chunk_size") or 0)
            sums = BlockSums(block_size_for(chunk_size_max))
            base["Trailer"] = f"{_CHUNK_HASH}, {_BLOCK_SUMS}"
        fanout, failed = self.connect_all(
            self.meta_chunk, lambda chunk: chunk_headers(base, chunk)
        )
        upload = _Upload(self, fanout, base, hasher, sums)
        try:
            for chunk, err in failed:
                upload.fail(chunk, err)
            upload.check_quorum()
            return upload.run(source, size)
        except BaseException:
            hasher.abort()
            fanout.close()
            raise


    def _algorithm(self) -> str | None:
        """The algorithm asked for; in place of MD5, BLAKE3 for the copy of a chunk that has such a hash already.

        Fragments have a BLAKE3 hash (64 digits, an MD5 has 32): a copy must keep it, and a rebuilt one has it too.
        """
        if self.checksum_algo != "md5" or not speaks_native():
            return self.checksum_algo
        known = self.sysmeta.get("chunk_hash")
        if known:
            return BLAKE3 if len(known) == _BLAKE3_DIGITS else "md5"
        return BLAKE3 if self.storage_method is not None and self.storage_method.ec else "md5"


class _Upload:
    """State of one call of :meth:`ReplicatedMetachunkWriter.stream`."""

    def __init__(
        self,
        writer: ReplicatedMetachunkWriter,
        fanout: Fanout,
        headers: dict[str, str],
        hasher: ChunkHasher,
        sums: BlockSums | None,
    ) -> None:
        self.writer = writer
        self.fanout = fanout
        self.headers = headers
        self.hasher = hasher
        self.sums = sums
        self.failed: list[Chunk] = []
        self.size = 0
        self.started_s = time.monotonic()

    def fail(self, chunk: Chunk, error: BaseException | str) -> None:
        """Record the loss of a copy."""
        chunk["error"] = str(error)
        self.failed.append({**chunk, "error": error})

    def check_quorum(self) -> None:
        """Take note of the sinks that broke. Raises below the quorum."""
        sinks = self.fanout.sinks
        for sink in [sink for sink in sinks if sink.error is not None]:
            sinks.remove(sink)
            assert sink.error is not None
            self.writer.logger.warning(
                "cannot write to %s: %s (reqid=%s)",
                sink.chunk.get("url"), sink.error, self.writer.reqid,
            )  # fmt: skip
            self.fail(sink.chunk, sink.error)
        self.writer.quorum_or_fail([sink.chunk for sink in sinks], self.failed)

    def run(self, source: Any, size: int | None) -> tuple[int, str | None, list[Chunk]]:
        """Read, hash and send; then check the answers."""
        first, at_end = self._read_first(source, size)
        if at_end:
            whole = b"".join(first) if len(first) != 1 else first[0]
            self._take(whole)
            checksum = self.hasher.finish()
            body = self._framed(whole, checksum)
            self.fanout.push(body)
            resend = [*body]
        else:
            resend = None
            for block in first:
                self._take(block)
                self._send(block)
            first.clear()
            while block := self._read(source, size):
                self._take(block)
                self._send(block)
                self.check_quorum()
            checksum = self.hasher.finish()
            self.fanout.push(self._end(checksum))
        self.fanout.flush()
        self.check_quorum()
        return self._conclude(checksum, resend)

    # --- reading --------------------------------------------------------------------------------

    def _read(self, source: Any, size: int | None, ahead: int = 0) -> bytes:
        writer = self.writer
        wanted = writer.buffer_size()
        if size is not None:
            wanted = min(wanted, size - self.size - ahead)
        return read_source(source, wanted, writer.read_timeout) if wanted > 0 else b""

    def _read_first(self, source: Any, size: int | None) -> tuple[list[bytes], bool]:
        """The beginning of the data, and whether it is all of it."""
        blocks: list[bytes] = []
        length = 0
        while length <= SMALL_MAX:
            block = self._read(source, size, length)
            if not block:
                return blocks, True
            blocks.append(block)
            length += len(block)
        return blocks, False

    # --- sending --------------------------------------------------------------------------------

    def _take(self, block: bytes) -> None:
        self.size += len(block)
        self.hasher.update(block)
        if self.sums is not None:
            self.sums.update(block)

    def _send(self, block: bytes) -> None:
        self.fanout.push((b"%x\r\n" % len(block), block, b"\r\n"))
        self.fanout.flush(WINDOW_BYTES)

    def _framed(self, whole: bytes, checksum: str | None) -> list[bytes]:
        end = self._end(checksum)
        return [b"%x\r\n" % len(whole), whole, b"\r\n", *end] if whole else end

    def _end(self, checksum: str | None) -> list[bytes]:
        """Terminating chunk, with trailers when they were announced."""
        if self.sums is None:
            return [b"0\r\n\r\n"]
        hash_line = ""
        if checksum and len(checksum) <= _HASH_DIGITS_MAX:
            hash_line = f"{_CHUNK_HASH}: {checksum}\r\n"
        return [f"0\r\n{hash_line}{_BLOCK_SUMS}: {self.sums.text()}\r\n\r\n".encode("ascii")]

    # --- answers --------------------------------------------------------------------------------

    def _conclude(
        self, checksum: str | None, resend: list[bytes] | None
    ) -> tuple[int, str | None, list[Chunk]]:
        written: list[Chunk] = []
        self._judge(self.fanout, checksum, written)
        if resend is not None and self.failed:
            self._use_spares(checksum, resend, written)
        self.writer.quorum_or_fail(written, self.failed)
        for chunk in written:
            chunk["size"] = self.size
        return self.size, written[0]["hash"] if written else checksum, written

    def _judge(self, fanout: Fanout, checksum: str | None, written: list[Chunk]) -> None:
        """Sort the sinks by what they answer."""
        finish_s = time.monotonic()
        for sink, answer in fanout.responses():
            if isinstance(answer, BaseException):
                self.fail(sink.chunk, answer)
                continue
            error = self._error_of(sink, answer, checksum)
            discard(answer)
            self.writer.add_perf("upload.", sink.chunk, self.started_s)
            self.writer.add_perf("upload_finish.", sink.chunk, finish_s)
            if error is None:
                written.append(sink.chunk)
            else:
                self.writer.logger.error(
                    "chunk %s: %s (reqid=%s)", sink.chunk.get("url"), error, self.writer.reqid
                )
                self.fail(sink.chunk, error)

    def _error_of(self, sink: Sink, answer: Any, checksum: str | None) -> str | None:
        """What is wrong with an answer; sets the hash of the chunk when nothing is."""
        if answer.status != 201:
            return f"HTTP {answer.status}"
        if sink.answered:
            return "HTTP 201 before the end of the data"
        announced = (answer.getheader(_CHUNK_HASH) or "").lower()
        if checksum is None:
            sink.chunk["hash"] = announced
        elif announced and announced != checksum.lower():
            return f"checksum mismatch: {checksum} (local), {announced} (rawx)"
        else:
            sink.chunk["hash"] = checksum
        size = answer.getheader(_CHUNK_SIZE)
        if size and int(size) != self.size:
            return f"chunk size mismatch: {self.size} (local), {size} (rawx)"
        return None

    def _use_spares(self, checksum: str | None, body: list[bytes], written: list[Chunk]) -> None:
        """Send the data, still whole in memory, to other rawx in place of those that refused."""
        writer = self.writer
        refused = [chunk for chunk in self.failed if chunk["error"] != "HTTP 409"]
        missing = len(writer.meta_chunk) - len(written)
        spares = writer.spares(list(written), refused[-missing:]) if missing > 0 else []
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
            self.fail(chunk, err)
        fanout.push(body)
        fanout.flush()
        self._judge(fanout, checksum, written)


class ReplicatedWriteHandler(WriteHandler):
    """Writes an object as identical chunks."""

    def metachunk_size(self) -> int:
        """The chunk size."""
        return int(self.sysmeta["chunk_size"])

    def write_metachunk(
        self, source: Any, meta_chunk: list[Chunk], checksum: Any, size: int
    ) -> tuple[int, list[Chunk]]:
        """See :meth:`WriteHandler.write_metachunk`."""
        writer = ReplicatedMetachunkWriter(
            self.sysmeta,
            meta_chunk,
            checksum,
            self.storage_method,
            headers=self.headers,
            **self._writer_kwargs(),
        )
        transferred, _checksum, chunks = writer.stream(source, size)
        return transferred, chunks
