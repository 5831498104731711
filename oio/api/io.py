# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Reading and writing chunks: what replication and erasure coding share.

``http_connect`` is the attribute through which every chunk is read or written; programs may replace it.
Readers: :class:`ChunkReader`. Writers: :class:`WriteHandler` cuts a source in metachunks and has each one written
by a :class:`MetachunkWriter`; :class:`LinkHandler` makes hard links instead of writing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import Logger
from typing import Any, NoReturn

from oio.api._fanout import Fanout, Sink, open_sink
from oio.api._reader import (
    ChunkReader,
    discard_bytes,
    exp_ramp_gen,
    make_iter_from_resp,
)
from oio.api._tools import (
    Closeable,
    IOBaseWrapper,
    PeekSource,
    chain,
    close_source,
    consume,
    iters_to_raw_body,
    read_source,
)
from oio.api._transport import (
    CHUNK_TIMEOUT,
    CONNECTION_TIMEOUT,
    LOGGER,
    connect_each,
    failures,
    green_module,
    http_connect,
    is_timeout,
    open_connection,
)
from oio.common import exceptions as exc
from oio.common.constants import CHUNK_HEADERS
from oio.common.fullpath import decode_fullpath
from oio.common.http import headers_from_object_metadata
from oio.common.storage_method import STORAGE_METHODS
from oio.common.utils import (
    cid_from_name,
    compute_chunk_id,
    compute_perfdata_stats,
    deadline_to_timeout,
    group_chunk_errors,
    set_deadline_from_read_timeout,
    timeout_to_deadline,
)

__all__ = [
    "CHUNK_TIMEOUT", "CLIENT_TIMEOUT", "CONNECTION_TIMEOUT", "PUT_QUEUE_DEPTH", "READ_CHUNK_SIZE",
    "WRITE_CHUNK_SIZE", "ChunkReader", "Closeable", "IOBaseWrapper", "LinkHandler", "MetachunkLinker",
    "MetachunkPreparer", "MetachunkWriter", "WriteHandler", "chain", "close_source", "consume", "discard_bytes",
    "exp_ramp_gen", "http_connect", "iters_to_raw_body", "make_iter_from_resp", "read_source",
]  # fmt: skip

WRITE_CHUNK_SIZE = 65536
READ_CHUNK_SIZE = 65536
CLIENT_TIMEOUT = 60.0
PUT_QUEUE_DEPTH = 10

# Blocks read from a source: small at first, so that small objects cost little, then large.
CHUNK_BUFFER_MIN = 32768
CHUNK_BUFFER_MAX = 262144

_HTTP_CONFLICT = 409

Chunk = dict[str, Any]
Metachunks = Callable[[], Iterable[list[Chunk]]] | Mapping[Any, list[Chunk]]


# --- writing a metachunk ------------------------------------------------------------------------------


class MetachunkWriter:
    """Base of the writers of one metachunk: quorum, connections, spare chunks."""

    FILTERED_KEYS = ("chunk_checksum_algo", "chunk_buffer_min", "chunk_buffer_max", "perfdata", "logger",
                     "spare_provider")  # fmt: skip

    def __init__(
        self,
        storage_method: Any = None,
        quorum: int | None = None,
        chunk_checksum_algo: str | None = "md5",
        reqid: str | None = None,
        chunk_buffer_min: int = CHUNK_BUFFER_MIN,
        chunk_buffer_max: int = CHUNK_BUFFER_MAX,
        perfdata: dict[str, Any] | None = None,
        connection_timeout: float | None = None,
        write_timeout: float | None = None,
        read_timeout: float | None = None,
        spare_provider: Callable[[list[Chunk], list[Chunk]], list[Chunk]] | None = None,
        logger: Logger | None = None,
        **_kwargs: Any,
    ) -> None:
        if storage_method is None and quorum is None:
            raise ValueError("Missing storage_method or quorum")
        self.storage_method = storage_method
        self._quorum = quorum
        self.checksum_algo = chunk_checksum_algo
        self.reqid = reqid
        self.perfdata = perfdata
        self.connection_timeout = connection_timeout or CONNECTION_TIMEOUT
        self.write_timeout = write_timeout or CHUNK_TIMEOUT
        self.read_timeout = read_timeout or CLIENT_TIMEOUT
        self.spare_provider = spare_provider
        self.logger = logger or LOGGER
        self._buffer_min = chunk_buffer_min
        self._buffer_max = chunk_buffer_max
        self._buffer_sizes = exp_ramp_gen(chunk_buffer_min, chunk_buffer_max)

    @property
    def quorum(self) -> int:
        """How many chunks must be written."""
        return self.storage_method.quorum if self._quorum is None else self._quorum

    def buffer_size(self) -> int:
        """Size of the next block to read: ramps from the minimum to the maximum."""
        return next(self._buffer_sizes)

    @classmethod
    def filter_kwargs(cls, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the keywords that configure a writer."""
        return {key: kwargs[key] for key in cls.FILTERED_KEYS if key in kwargs}

    def quorum_or_fail(self, successes: list[Chunk], failed: list[Chunk]) -> None:
        """Return when enough chunks are written, else raise what explains best why they are not."""
        if len(successes) >= self.quorum:
            return
        self._raise_quorum(successes, failed)

    def _raise_quorum(self, successes: list[Chunk], failed: list[Chunk]) -> NoReturn:
        errors = group_chunk_errors(
            [(chunk.get("url", ""), str(chunk.get("error", "success"))) for chunk in [*successes, *failed]]
        )
        text = (
            f"RAWX write failure, quorum not reached ({len(successes)}/{self.quorum}): {errors}"
            + (f" (reqid={self.reqid})" if self.reqid else "")
        )
        green = green_module()
        for chunk in failed:
            error = chunk.get("error")
            if isinstance(error, exc.SourceReadError):
                raise exc.SourceReadError(text)
            if isinstance(error, exc.SourceReadTimeout) or (
                green is not None and isinstance(error, green.SourceReadTimeout)
            ):
                raise exc.SourceReadTimeout(text)
            if isinstance(error, BaseException) and is_timeout(error):
                raise exc.OioTimeout(text)
            if error in ("HTTP 409", "resp: HTTP 409"):
                raise exc.Conflict(message=text)
        raise exc.ServiceBusy(message=text)

    # --- connections ----------------------------------------------------------------------------

    def _connect(self, chunk: Chunk, headers: dict[str, str]) -> Sink:
        """Open the upload of one chunk. Raises what goes wrong."""
        start_s = time.monotonic() if self.perfdata is not None else 0.0
        connection = open_connection(
            chunk, "PUT", headers, self.connection_timeout, self.write_timeout
        )
        if self.perfdata is not None:
            self.add_perf("connect.", chunk, start_s)
        return open_sink(chunk, connection, self.write_timeout)

    def connect_all(
        self, chunks: list[Chunk], headers_of: Callable[[Chunk], dict[str, str]]
    ) -> tuple[Fanout, list[tuple[Chunk, BaseException]]]:
        """Open the uploads of a metachunk, spare chunks included: the sinks, and the failures."""
        fanout = Fanout(self.write_timeout)
        failed: list[tuple[Chunk, BaseException]] = []
        pending = list(chunks)
        asked = self.spare_provider is None
        while pending:
            for chunk, result in connect_each(lambda one: self._connect(one, headers_of(one)), pending):
                if isinstance(result, Sink):
                    fanout.sinks.append(result)
                    continue
                self.logger.warning("cannot connect to %s: %s (reqid=%s)",
                                    chunk.get("url"), result, self.reqid)  # fmt: skip
                failed.append((chunk, result))
            pending = []
            if failed and not asked:
                asked = True
                pending = self.spares(
                    [sink.chunk for sink in fanout.sinks], [chunk for chunk, _ in failed]
                )
        return fanout, failed

    def spares(self, good: list[Chunk], broken: list[Chunk]) -> list[Chunk]:
        """Chunks in place of broken ones, as many as the provider gives; none when it fails."""
        if self.spare_provider is None or not broken:
            return []
        try:
            found = list(self.spare_provider(good, broken))
        except exc.OioException as err:
            self.logger.warning("no spare chunk: %s (reqid=%s)", err, self.reqid)
            return []
        for spare, old in zip(found, broken, strict=False):
            for key in ("pos", "num", "offset"):
                if key in old:
                    spare[key] = old[key]
        return found[: len(broken)]

    def add_perf(self, prefix: str, chunk: Chunk, start_s: float) -> None:
        """Add the time since ``start_s`` to a figure of ``perfdata``."""
        if self.perfdata is not None:
            rawx = self.perfdata.setdefault("rawx", {})
            key = prefix + str(chunk.get("url", ""))
            rawx[key] = rawx.get(key, 0.0) + time.monotonic() - start_s


def chunk_headers(base: Mapping[str, str], chunk: Chunk) -> dict[str, str]:
    """Headers of the upload of one chunk."""
    headers = dict(base)
    headers[CHUNK_HEADERS["chunk_pos"]] = str(chunk["pos"])
    headers[CHUNK_HEADERS["chunk_id"]] = chunk["url"].rpartition("/")[2]
    return headers


# --- writing an object --------------------------------------------------------------------------------


class _Handler:
    """What uploads and links share: the metachunks and the timeouts."""

    def __init__(
        self,
        chunk_preparer: Metachunks,
        storage_method: Any,
        headers: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.chunk_prep: Callable[[], Iterable[list[Chunk]]]
        if isinstance(chunk_preparer, Mapping):
            prepared = chunk_preparer
            self.chunk_prep = lambda: (prepared[pos] for pos in sorted(prepared))
        else:
            self.chunk_prep = chunk_preparer
        self.storage_method = storage_method
        self.headers = headers or {}
        self.connection_timeout = float(kwargs.get("connection_timeout") or CONNECTION_TIMEOUT)
        self.deadline = kwargs.get("deadline")
        self._read_timeout = kwargs.get("read_timeout")
        self._write_timeout = kwargs.get("write_timeout")
        self.logger: Logger = kwargs.get("logger") or LOGGER
        self.extra_kwargs = kwargs

    def _timeout(self, given: Any, default: float) -> float:
        if given is not None:
            return float(given)
        if self.deadline is not None:
            return deadline_to_timeout(self.deadline, True)
        return default

    @property
    def read_timeout(self) -> float:
        """Seconds: given, else what the deadline leaves, else the default."""
        return self._timeout(self._read_timeout, CLIENT_TIMEOUT)

    @property
    def write_timeout(self) -> float:
        """Seconds: given, else what the deadline leaves, else the default."""
        return self._timeout(self._write_timeout, CHUNK_TIMEOUT)

    def _writer_kwargs(self) -> dict[str, Any]:
        kwargs = MetachunkWriter.filter_kwargs(self.extra_kwargs)
        kwargs["reqid"] = self.extra_kwargs.get("reqid") or self.headers.get("x-oio-req-id")
        kwargs["connection_timeout"] = self.connection_timeout
        kwargs["write_timeout"] = self.write_timeout
        kwargs["read_timeout"] = self.read_timeout
        return kwargs


class WriteHandler(_Handler):
    """Writes a source as an object: metachunk after metachunk, as long as there is data."""

    def __init__(
        self,
        source: Any,
        sysmeta: dict[str, Any],
        chunk_preparer: Metachunks,
        storage_method: Any,
        headers: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(chunk_preparer, storage_method, headers=headers, **kwargs)
        self.source = source
        self.sysmeta = sysmeta

    def metachunk_size(self) -> int:
        """Most bytes that a metachunk may hold."""
        raise NotImplementedError

    def write_metachunk(
        self, source: Any, meta_chunk: list[Chunk], checksum: Any, size: int
    ) -> tuple[int, list[Chunk]]:
        """Write at most ``size`` bytes of a source; give how many, and the chunks written."""
        raise NotImplementedError

    def stream(self) -> tuple[list[Chunk], int, str]:
        """Write everything. Gives the chunks, the number of bytes and the MD5 of the object."""
        start_s = time.monotonic()
        checksum = hashlib.md5()
        source = PeekSource(self.source, self.read_timeout)
        size = self.metachunk_size()
        total = 0
        content_chunks: list[Chunk] = []
        for meta_chunk in self.chunk_prep():
            if total and self._read_timeout is not None:
                # Each metachunk has the whole read timeout for itself.
                self.deadline = timeout_to_deadline(float(self._read_timeout))
            transferred, chunks = self.write_metachunk(source, meta_chunk, checksum, size)
            content_chunks += chunks
            total += transferred
            if transferred < size or source.at_end():
                break
        else:
            if total and not source.at_end():
                raise exc.OioException("No metachunk left for the rest of the data")
        self._add_perfdata(time.monotonic() - start_s, total)
        return content_chunks, total, checksum.hexdigest()

    def _add_perfdata(self, elapsed_s: float, size: int) -> None:
        perfdata = self.extra_kwargs.get("perfdata")
        if perfdata is None:
            return
        rawx = perfdata.setdefault("rawx", {})
        rawx["overall"] = rawx.get("overall", 0.0) + elapsed_s
        perfdata["data_size"] = size
        for prefix in ("connect.", "upload."):
            compute_perfdata_stats(perfdata, prefix)


# --- links ----------------------------------------------------------------------------------------------


class LinkHandler(_Handler):
    """Makes an object of hard links to the chunks of another."""

    def __init__(
        self,
        fullpath: str,
        chunk_preparer: Metachunks,
        storage_method: Any,
        blob_client: Any,
        policy: str,
        headers: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(chunk_preparer, storage_method, headers=headers, **kwargs)
        self.fullpath = fullpath
        self.blob_client = blob_client
        self.policy = policy

    def link(self) -> list[Chunk]:
        """Give the new chunks. :raises UnfinishedUploadException: with the chunks linked so far."""
        content_chunks: list[Chunk] = []
        try:
            for meta_chunk in self.chunk_prep():
                linker = MetachunkLinker(
                    meta_chunk,
                    self.fullpath,
                    self.blob_client,
                    self.policy,
                    storage_method=self.storage_method,
                    **self._writer_kwargs(),
                )
                content_chunks += linker.link()
        except exc.UnfinishedUploadException as err:
            raise exc.UnfinishedUploadException(
                err.exception, content_chunks + err.chunks_already_uploaded
            ) from err
        except failures() as err:
            raise exc.UnfinishedUploadException(err, content_chunks) from err
        return content_chunks


class MetachunkLinker(MetachunkWriter):
    """Makes a hard link to each chunk of a metachunk."""

    def __init__(
        self,
        meta_chunk_target: list[Chunk],
        fullpath: str,
        blob_client: Any,
        policy: str,
        storage_method: Any = None,
        quorum: int | None = None,
        reqid: str | None = None,
        perfdata: dict[str, Any] | None = None,
        connection_timeout: float | None = None,
        write_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            storage_method=storage_method,
            quorum=quorum,
            reqid=reqid,
            perfdata=perfdata,
            connection_timeout=connection_timeout,
            write_timeout=write_timeout,
            **kwargs,
        )
        self.meta_chunk_target = meta_chunk_target
        self.fullpath = fullpath
        self.blob_client = blob_client
        self.policy = policy

    def link(self) -> list[Chunk]:
        """Give the new chunks. :raises UnfinishedUploadException: below the quorum."""
        account, container, path, version, _ = decode_fullpath(self.fullpath)
        cid = cid_from_name(account, container)
        linked: list[Chunk] = []
        failed: list[Chunk] = []
        for target in self.meta_chunk_target:
            chunk_id = compute_chunk_id(cid, path, version, target["pos"], self.policy)
            try:
                if target["url"].rpartition("/")[2] == chunk_id:
                    # The rawx would call a link to itself forbidden.
                    raise exc.ChunkException(_HTTP_CONFLICT)
                _resp, url = self.blob_client.chunk_link(
                    target["url"],
                    chunk_id,
                    self.fullpath,
                    connection_timeout=self.connection_timeout,
                    write_timeout=self.write_timeout,
                    reqid=self.reqid,
                    perfdata=self.perfdata,
                    logger=self.logger,
                )
            except failures() as err:
                self.logger.error("cannot link %s: %s (reqid=%s)", target["url"], err, self.reqid)
                target["error"] = str(err)
                taken = isinstance(err, exc.ChunkException) and err.args == (_HTTP_CONFLICT,)
                failed.append({**target, "error": "HTTP 409" if taken else err})
                continue
            link = {**target, "url": url}
            if target.get("real_url"):
                # Whoever deletes the link must not meet the chunk it was made from.
                link["real_url"] = f"{target['real_url'].rpartition('/')[0]}/{url.rpartition('/')[2]}"
            linked.append(link)
        try:
            self.quorum_or_fail(linked, failed)
        except exc.OioException as err:
            raise exc.UnfinishedUploadException(err, linked) from err
        return linked


class MetachunkPreparer:
    """Asks for the chunks of an object, one metachunk at a time, the first at construction."""

    def __init__(
        self,
        container_client: Any,
        account: str,
        container: str,
        obj_name: str,
        policy: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.account = account
        self.container = container
        self.obj_name = obj_name
        self.policy = policy
        self.container_client = container_client
        self.extra_kwargs = kwargs
        self.obj_meta, self.first_body = container_client.content_prepare(
            account, container, obj_name, size=1, stgpol=policy, **kwargs
        )
        self.stg_method = STORAGE_METHODS.load(self.obj_meta["chunk_method"])
        self._all_chunks: list[Chunk] = []

    def _place(self, chunks: list[Chunk], position: int) -> list[Chunk]:
        for chunk in chunks:
            _, dot, num = str(chunk["pos"]).partition(".")
            if self.stg_method.ec:
                chunk["num"] = int(num)
            chunk["pos"] = f"{position}{dot}{num}"
        self._all_chunks += chunks
        return chunks

    def __call__(self) -> Iterator[list[Chunk]]:
        position = int(self.extra_kwargs.get("meta_pos") or 0)
        yield self._place(self.first_body, position)
        while True:
            position += 1
            kwargs = {key: value for key, value in self.extra_kwargs.items()
                      if key not in ("position", "version", "meta_pos")}  # fmt: skip
            # Each metachunk has the whole read timeout for itself.
            set_deadline_from_read_timeout(kwargs, force=True)
            meta, chunks = self.container_client.content_prepare(
                self.account,
                self.container,
                self.obj_name,
                position=position,
                size=1,
                stgpol=self.policy,
                version=self.obj_meta["version"],
                **kwargs,
            )
            # The placement quality of each chunk goes with the commit.
            self.obj_meta.setdefault("properties", {}).update(meta.get("properties") or {})
            yield self._place(chunks, position)

    def all_chunks_so_far(self) -> list[Chunk]:
        """Every chunk asked for until now, to clean up after a failure."""
        return self._all_chunks


def upload_headers(
    sysmeta: Mapping[str, Any], headers: Mapping[str, str] | None, reqid: str | None
) -> dict[str, str]:
    """Headers that all the chunks of a metachunk share."""
    result = headers_from_object_metadata(sysmeta)
    if headers:
        result.update({name: str(value) for name, value in headers.items() if value is not None})
    if reqid and "x-oio-req-id" not in result:
        result["x-oio-req-id"] = reqid
    return result


