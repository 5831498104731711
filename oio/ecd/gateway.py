# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Writes and reads one metachunk on behalf of programs without erasure coding library.

A request names the chunks in headers, ``x-oio-chunk-meta-chunk-<i>: <URL>``. PUT encodes its body and writes it to
them; GET reads enough of them and answers with the decoded bytes. The gateway keeps nothing: neither the
directory nor another gateway is involved.

Guarantees: data are streamed, with a few segments of 1 MiB in memory per request, whatever its size. An answer is
either all the bytes that were asked for or, when sources get lost on the way, a connection that breaks off.

:class:`Gateway` knows requests by their method, path, headers and body; ``oio.ecd.server`` and ``oio.ecd.app``
connect it to the program's own HTTP server and to WSGI.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import unquote

from oio.api._transport import failures
from oio.api.ec import ECChunkDownloadHandler, EcMetachunkWriter
from oio.api.io import ChunkReader
from oio.api.replication import ReplicatedMetachunkWriter
from oio.blob.client import BlobClient
from oio.common import exceptions as exc
from oio.common.constants import CHUNK_METADATA_PREFIX as PREFIX
from oio.common.constants import REQID_HEADER
from oio.common.http import http_header_from_ranges, ranges_from_http_header
from oio.common.metrics import CONTENT_TYPE, Metric, render
from oio.common.storage_method import STORAGE_METHODS
from oio.common.utils import request_id

logger = logging.getLogger("oio.ecd")

REQID_PREFIX = "ECD-"
# Positions of chunks that a request may name: more than any policy has.
CHUNKS_MAX = 255
# Towards rawx services, in seconds.
CONNECTION_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0

METACHUNK_SIZE_HEADER = PREFIX + "metachunk-size"
CHUNK_SIZE_HEADER = PREFIX + "chunk-size"
_TEXT = "text/plain; charset=utf-8"
# Headers that describe the object, and the names under which the writers of chunks want them.
_OBJECT_HEADERS = {
    "content-id": "id",
    "content-version": "version",
    "content-path": "content_path",
    "content-chunk-method": "chunk_method",
    "content-mime-type": "mime_type",
    "content-storage-policy": "policy",
    "container-id": "container_id",
    "full-path": "full_path",
    "oio-version": "oio_version",
}

Chunk = dict[str, Any]


class Source(Protocol):
    """Body of a request."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none at the end."""


class Reply:
    """Answer to a request: status, body (bytes, or pieces that are made while they are sent), type."""

    __slots__ = ("body", "content_type", "status")

    def __init__(self, status: int, body: bytes | Pieces, content_type: str = _TEXT) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type


class Refusal(Exception):
    """A request that cannot be served, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Pieces:
    """Bytes of an answer; must be closed, even when nothing was read."""

    def __init__(self, gateway: Gateway, pieces: Iterator[bytes], source: Any) -> None:
        self._gateway = gateway
        self._pieces = pieces
        self._source = source

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self._gateway.count("bytes_out", len(piece))
        return piece

    def close(self) -> None:
        """Be done with the sources."""
        for one in (self._pieces, self._source):
            close = getattr(one, "close", None)
            if close is not None:
                close()


class Gateway:
    """Serves requests. Thread-safe.

    :param conf: ``namespace``, needed only for chunk URLs that hold a service id instead of an address.
    """

    COUNTERS = ("put", "get", "refused", "failed", "bytes_in", "bytes_out")

    def __init__(self, conf: Mapping[str, Any] | None = None) -> None:
        self.conf = dict(conf or {})
        self.blob_client = BlobClient(self.conf, logger=logger)
        self.started_s = time.monotonic()
        self._counters = dict.fromkeys(self.COUNTERS, 0)
        self._lock = threading.Lock()
        if self.conf.get("key_file"):
            logger.warning("key_file is ignored: chunks on Backblaze are not supported")

    # --- requests -------------------------------------------------------------------------------

    def answer(self, method: str, path: str, headers: Mapping[str, str], source: Source) -> Reply:
        """Serve a request.

        :param headers: names in lower case.
        :param source: the body. What its ``read`` raises, other than ``OSError``, is raised.
        """
        reqid = headers.get(REQID_HEADER) or request_id(REQID_PREFIX)
        try:
            if path != "/":
                return self._answer_aside(method, path)
            if method == "PUT":
                return self._put(headers, source, reqid)
            if method == "GET":
                return self._get(headers, reqid)
            raise Refusal(403, f"Method {method} is not allowed")
        except Refusal as refusal:
            self.count("refused" if refusal.status < 500 else "failed")
            if refusal.status >= 500:
                logger.error("%s: %s (reqid=%s)", method, refusal.message, reqid)
            return Reply(refusal.status, f"{refusal.message}\n".encode())

    def _answer_aside(self, method: str, path: str) -> Reply:
        if path == "/status" and method == "GET":
            return Reply(200, json.dumps(self.status()).encode(), "application/json")
        if path == "/metrics" and method == "GET":
            return Reply(200, self.metrics([]), CONTENT_TYPE)
        if path in ("/status", "/metrics"):
            raise Refusal(403, f"Method {method} is not allowed")
        raise Refusal(404, f"No such path: {path[:100]}")

    def count(self, name: str, more: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[name] += more

    def status(self) -> dict[str, int]:
        """Counters of this process."""
        with self._lock:
            return {"uptime": int(time.monotonic() - self.started_s), **self._counters}

    def metrics(self, others: list[dict[str, int]]) -> bytes:
        """Counters of this process and of its siblings, for Prometheus."""
        total = self.status()
        for other in others:
            for name in self.COUNTERS:
                total[name] += other.get(name, 0)
        return render(
            [
                Metric("oio_ecd_requests", "counter", "Metachunks written and read",
                       [({"method": name}, total[name]) for name in ("put", "get")]),
                Metric("oio_ecd_errors", "counter", "Requests that were refused, or failed",
                       [({"kind": name}, total[name]) for name in ("refused", "failed")]),
                Metric("oio_ecd_bytes", "counter", "Plain bytes received and sent",
                       [({"direction": name}, total[f"bytes_{name}"]) for name in ("in", "out")]),
            ]
        )  # fmt: skip

    # --- writing --------------------------------------------------------------------------------

    def _put(self, headers: Mapping[str, str], source: Source, reqid: str) -> Reply:
        sysmeta = {key: _needed(headers, name) for name, key in _OBJECT_HEADERS.items()}
        sysmeta["content_path"] = unquote(sysmeta["content_path"])
        length = _number(headers, PREFIX + "content-length", 0, 0)
        copies = _number(headers, PREFIX + "content-chunksnb", 1, 1, CHUNKS_MAX)
        method = _storage_method(sysmeta["chunk_method"])
        counted = _CountedSource(source)
        kwargs: dict[str, Any] = {
            "connection_timeout": CONNECTION_TIMEOUT_S,
            "write_timeout": READ_TIMEOUT_S,
            "reqid": reqid,
            "logger": logger,
        }
        # The size of the blocks that get a checksum depends on that of the chunks, when it is known.
        length = _number(headers, "content-length", length, 0)
        writer: EcMetachunkWriter | ReplicatedMetachunkWriter
        if method.ec:
            position = _number(headers, PREFIX + "chunk-pos", None, 0)
            chunks = self._chunks(headers, method.expected_chunks)
            for chunk in chunks:
                chunk["pos"] = f"{position}.{chunk['num']}"
            sysmeta["chunk_size"] = str(-(-length // method.ec_nb_data))
            writer = EcMetachunkWriter(sysmeta, chunks, hashlib.md5(), method, **kwargs)
        else:
            # Without a position the copies get their own number, as existing programs expect.
            chunks = self._chunks(headers, copies)
            if headers.get(PREFIX + "chunk-pos"):
                position = _number(headers, PREFIX + "chunk-pos", None, 0)
                for chunk in chunks:
                    chunk["pos"] = str(position)
            sysmeta["chunk_size"] = str(length)
            writer = ReplicatedMetachunkWriter(sysmeta, chunks, hashlib.md5(), method, **kwargs)
        if not chunks:
            raise Refusal(400, f"Missing header '{PREFIX}chunk-0': no chunk to write to")
        try:
            writer.stream(counted, None)
        except failures() as err:
            raise _write_failure(err, method, chunks, counted) from err
        self.count("put")
        self.count("bytes_in", counted.size)
        return Reply(200, b"OK")

    # --- reading --------------------------------------------------------------------------------

    def _get(self, headers: Mapping[str, str], reqid: str) -> Reply:
        method = _storage_method(_needed(headers, "content-chunk-method"))
        if method.ec:
            size = _number(headers, CHUNK_SIZE_HEADER, None, 0)
            chunks = self._chunks(headers, method.expected_chunks)
        else:
            size = 0
            chunks = self._chunks(headers, _number(headers, PREFIX + "content-chunksnb", None, 1, CHUNKS_MAX))
        if not chunks:
            raise Refusal(500, f"No chunk to read from: no header '{PREFIX}chunk-<i>'")
        asked = _range_of(headers.get("range"))
        try:
            pieces = (
                self._read_fragments(method, chunks, size, asked, reqid)
                if method.ec
                else self._read_copy(chunks, asked, reqid)
            )
        except failures() as err:
            raise Refusal(500, f"Cannot read: {err}") from err
        self.count("get")
        return Reply(200, pieces, "application/octet-stream")

    def _read_fragments(
        self, method: Any, chunks: list[Chunk], given_size: int, asked: Any, reqid: str
    ) -> bytes | Pieces:
        """Decode a metachunk. Clients tell its size, not always the right one: the chunks know it."""
        size = self._size_on_rawx(chunks, METACHUNK_SIZE_HEADER, reqid)
        chunks[0]["size"] = given_size if size is None else size
        if not chunks[0]["size"]:
            # Nothing has to be read, but too few chunks are a loss here as well.
            found = sum(1 for _ in self._answering(chunks, reqid))
            if found < method.ec_nb_data:
                raise exc.ServiceUnavailable(f"{found} of {method.ec_nb_data} chunks answer")
            return b""
        start, end = asked or (None, None)
        stream = ECChunkDownloadHandler(
            method, chunks, start, end, {REQID_HEADER: reqid}, reqid=reqid, logger=logger,
            connection_timeout=CONNECTION_TIMEOUT_S, read_timeout=READ_TIMEOUT_S,
        ).get_stream()  # fmt: skip
        return Pieces(self, (piece for part in stream for piece in part["iter"]), stream)

    def _read_copy(self, chunks: list[Chunk], asked: Any, reqid: str) -> bytes | Pieces:
        """Read a chunk from the first copy that answers, then from the next ones."""
        headers = {REQID_HEADER: reqid}
        expected = None
        if asked is not None:
            size = self._size_on_rawx(chunks, CHUNK_SIZE_HEADER, reqid)
            if size is None:
                raise exc.ServiceUnavailable("no chunk answers")
            expected = _clamp(asked, size)
            if expected is None:
                return b""
            headers["Range"] = http_header_from_ranges([expected])
        reader = ChunkReader(
            iter(chunks), None, headers, expected=expected, logger=logger,
            connection_timeout=CONNECTION_TIMEOUT_S, read_timeout=READ_TIMEOUT_S,
        )  # fmt: skip
        stream = reader.stream()
        return Pieces(self, stream, None)

    def _size_on_rawx(self, chunks: list[Chunk], header: str, reqid: str) -> int | None:
        """A size that the first rawx to answer tells; None when none does."""
        for resp in self._answering(chunks, reqid):
            text = resp.headers.get(header)
            if text and text.isascii() and text.isdigit():
                return int(text)
        return None

    def _answering(self, chunks: list[Chunk], reqid: str) -> Iterator[Any]:
        """Answers of the rawx that have their chunk."""
        for chunk in chunks:
            try:
                resp = self.blob_client.http_pool.request(
                    "HEAD", chunk["url"], headers={REQID_HEADER: reqid},
                    timeout=(CONNECTION_TIMEOUT_S, READ_TIMEOUT_S),
                )  # fmt: skip
            except failures() as err:
                logger.info("chunk %s: %s (reqid=%s)", chunk["url"], err, reqid)
                continue
            if resp.status == 200:
                yield resp

    def _chunks(self, headers: Mapping[str, str], count: int) -> list[Chunk]:
        """The chunks that a request names, among the ``count`` first; numbers may be missing.

        A chunk whose service nobody knows is lost, like one whose service does not answer.
        """
        chunks = []
        named = 0
        for num in range(count):
            name = f"{PREFIX}chunk-{num}"
            url = headers.get(name)
            if not url:
                continue
            named += 1
            scheme, separator, rest = url.partition("://")
            host, _, chunk_id = rest.partition("/")
            if not separator or scheme not in ("http", "https") or not host or not chunk_id:
                raise Refusal(400, f"Invalid header '{name}': {url[:200]!r} is not the URL of a chunk")
            try:
                address = self.blob_client.resolve_url(url)
            except failures() as err:
                logger.warning("%s: cannot resolve %s: %s", name, url, err)
                continue
            chunks.append({"url": address, "num": num, "pos": str(num)})
        if named and not chunks:
            raise Refusal(500, f"None of the services of {named} chunks can be resolved")
        return chunks


class _CountedSource:
    """Body of a request, and how much of it was read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.size = 0
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except Exception as err:
            self.error = err
            raise
        self.size += len(data)
        return data


def _write_failure(err: BaseException, method: Any, chunks: list[Chunk], source: _CountedSource) -> BaseException:
    """What to answer when a metachunk could not be written: 503 when too few rawx took their chunk, but not when
    the reason is that they are slow.
    """
    if source.error is not None and not isinstance(source.error, OSError):
        return source.error  # the body is malformed, or the peer left: its server knows what to say
    busy = isinstance(err, exc.ServiceBusy) or (method.ec and isinstance(err, exc.Conflict))
    slow = any("timeout" in str(chunk.get("error", "")) for chunk in chunks)
    return Refusal(503 if busy and not slow else 500, f"Cannot write: {err}")


def _needed(headers: Mapping[str, str], suffix: str) -> str:
    value = headers.get(PREFIX + suffix)
    if not value:
        raise Refusal(400, f"Missing header '{PREFIX}{suffix}'")
    return value


def _number(headers: Mapping[str, str], name: str, default: int | None, low: int, high: int = 1 << 62) -> int:
    text = headers.get(name)
    if not text:
        if default is None:
            raise Refusal(400, f"Missing header '{name}'")
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise Refusal(400, f"Invalid header '{name}': {text[:40]!r}")
    return int(text)


def _storage_method(text: str) -> Any:
    try:
        return STORAGE_METHODS.load(text)
    except exc.InvalidStorageMethod as err:
        status = 500 if text.startswith("backblaze") else 400
        raise Refusal(status, f"Invalid header '{PREFIX}content-chunk-method': {err}") from err


def _range_of(value: str | None) -> tuple[int | None, int | None] | None:
    """The first range of a header; None when there is none, or when it cannot be understood."""
    if not value:
        return None
    try:
        return ranges_from_http_header(value)[0]
    except ValueError:
        return None


def _clamp(asked: tuple[int | None, int | None], size: int) -> tuple[int, int] | None:
    """Bounds of a range in a chunk; None when nothing is in it."""
    start, end = asked
    if start is None:
        start, end = max(0, size - (end or 0)), size - 1
    end = size - 1 if end is None else min(end, size - 1)
    return (start, end) if start <= end else None
