# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The chunk server: one volume behind HTTP.

    GET  HEAD                     /info  /stat  /metrics
    PUT  GET  HEAD  DELETE  COPY  /<chunk id>

A request goes through: host check (418), volume probe (503), route, method. See `store` for what
an acknowledged request guarantees, `upload` and `download` for how bytes are verified.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from oio.common.constants import CHUNK_ATTRIBUTES_HEADER
from oio.common.exceptions import ConfigurationException
from oio.common.metrics import CONTENT_TYPE, Metric, render
from oio.http.server import BodyError, Request, Response, Server, ServerConfig
from oio.rawx import compression, download, events, metadata, upload
from oio.rawx.config import RawxConfig, boolean, split_address
from oio.rawx.logs import LogWriter
from oio.rawx.metadata import BadHeader, MalformedFullpath
from oio.rawx.probe import VolumeProbe
from oio.rawx.stats import Stats
from oio.rawx.store import ChunkIsNewer, StoreOptions, Volume

# Receiving more than this at once gains nothing: the bytes would leave the cache of the processor
# between the moment they are received, hashed and written.
RECEIVE_BYTES_MAX = 512 << 10

# How much of a refused body is read for the sake of the connection. A whole one is read when the
# chunk exists (contract: rawx PUT).
DISCARD_BYTES_MAX = 4 << 20

# Of DELETE: only remove the chunk if its bytes were written before this time (microseconds). Chunk ids can be
# used again; a deletion that comes late must not hit the next chunk of that name.
CREATED_BEFORE = "x-oio-chunk-created-before"

logger = logging.getLogger("oio.rawx")

Emit = Callable[[str, metadata.ChunkMeta, str, bool, int], None]


def status_of(error: OSError) -> int:
    """HTTP status for an error of the file system."""
    code = error.errno
    if code == errno.ENOENT:
        return 404
    if code == errno.EEXIST:
        return 409
    return 403 if code in (errno.EACCES, errno.EPERM) else 500


def store_options(config: RawxConfig, exclusive: bool = True) -> StoreOptions:
    """The part of the configuration that the store is concerned with."""
    return StoreOptions(
        hash_width=config.hash_width,
        hash_depth=config.hash_depth,
        fsync=config.fsync,
        fsync_dir=config.fsync_dir,
        fallocate=config.fallocate,
        fadvise_upload=config.fadvise_upload,
        fadvise_download=config.fadvise_download,
        open_nonblock=config.open_nonblock,
        exclusive=exclusive,
    )


def server_config(config: RawxConfig) -> ServerConfig:
    """The part of the configuration that the HTTP server is concerned with."""
    return ServerConfig(
        max_head_bytes=config.headers_buffer_size,
        timeout_head_s=config.timeout_read_header_s,
        timeout_body_s=config.timeout_read_request_s,
        timeout_write_s=config.timeout_write_reply_s,
        timeout_idle_s=config.timeout_idle_s,
        keepalive=config.http_keepalive,
    )


class Rawx:
    """One chunk server. `emit` gets the events; None when events are off."""

    def __init__(
        self,
        config: RawxConfig,
        *,
        emit: Emit | None = None,
        volume: Volume | None = None,
        probe: VolumeProbe | None = None,
        log: LogWriter | None = None,
        verbose: bool = False,
        event_counters: Callable[[], dict[str, int]] | None = None,
    ) -> None:
        try:
            compression.check(config.compression)
        except compression.UnknownCompression as err:
            raise ConfigurationException(str(err)) from None
        self.config = config
        self.volume = volume or Volume(config.docroot, store_options(config))
        self.probe = probe or VolumeProbe(config.docroot)
        self.stats = Stats()
        self.address = config.listen
        self._emit = emit
        self._event_counters = event_counters
        self._log = log
        self._verbose = verbose
        self._buffers = upload.BufferPool(min(config.buffer_size, RECEIVE_BYTES_MAX))
        self._uncached = config.fadvise_download == "nocache"
        self._hosts: frozenset[str] = frozenset()
        self._chunk_methods = {
            "PUT": ("put", self._put),
            "GET": ("get", self._get),
            "HEAD": ("head", self._head),
            "DELETE": ("del", self._delete),
            "COPY": ("copy", self._copy),
        }
        listen = [split_address_or_any(config.listen)]
        tls: list[tuple[str, str] | None] = [None]
        if config.tls_rawx_url:
            listen.append(split_address("tls_rawx_url", config.tls_rawx_url))
            tls.append((config.tls_cert_file, config.tls_key_file))
        http = server_config(config)
        http.access_log = self._account
        self.server = Server(self.handle, listen, http, tls)

    def start(self) -> None:
        """Listen and serve in the background."""
        self.server.bind()
        host, port = split_address_or_any(self.config.listen)
        if not port:
            self.address = f"{host}:{self.server.addresses[0][1]}"
        names = (self.config.service_id, self.address, self.config.tls_rawx_url)
        self._hosts = frozenset(name for name in names if name)
        self.server.start()
        self.probe.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Let the running requests end."""
        self.server.stop(grace_s)
        self.probe.stop()

    # -- dispatch ------------------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """Answer one request, in the order of checks of the contract."""
        host = request.headers.get("host")
        if host and host not in self._hosts:
            return self._error(418, f"this is {self.address}, not {host}")
        if not self.probe.healthy():
            return self._error(503, "the volume does not work")
        name = request.path.lstrip("/")
        if name == "info":
            return self._text(request, "info", self._info)
        if name == "stat":
            return self._text(request, "stat", self._stat)
        if name == "metrics" and request.method in ("GET", "HEAD"):
            return self._metrics(request)
        chunk_id = metadata.parse_chunk_id(unquote(name) if "%" in name else name)
        if chunk_id is None:
            return self._error(400, "the path is not a chunk id")
        kind, method = self._chunk_methods.get(request.method, ("other", self._not_allowed))
        request.context = kind
        try:
            if kind != "put":
                request.drain()
            return method(request, chunk_id)
        except OSError as err:
            status = status_of(err)
            if status == 500:
                logger.error("%s %s: %s [%s]", request.method, chunk_id, err, request.reqid or "-")
            return self._error(status, str(err))
        except BodyError as err:
            return self._error(500, f"incomplete upload: {err}", close=True)
        except BadHeader as err:
            return self._error(400, str(err))
        except ChunkIsNewer as err:
            return self._error(412, str(err))
        except download.Inconsistent as err:
            logger.error("%s [%s]", err, request.reqid or "-")
            return self._error(412, str(err))
        except (
            MalformedFullpath,
            download.Unreadable,
            compression.UnknownCompression,
            compression.CorruptStream,
        ) as err:
            logger.error("%s %s: %s [%s]", request.method, chunk_id, err, request.reqid or "-")
            return self._error(500, str(err))

    # -- chunks --------------------------------------------------------------------------------

    def _put(self, request: Request, chunk_id: str) -> Response:
        deadline = time.monotonic() + self.config.timeout_read_request_s
        try:
            meta = metadata.upload_metadata(request.headers, chunk_id)
            meta.compression = self.config.compression
            target = self.volume.upload(chunk_id)
        except FileExistsError:
            self._discard_body(request, deadline)
            raise
        except BadHeader:
            self._discard_body(request, deadline, DISCARD_BYTES_MAX)
            raise
        with target:
            try:
                upload.Receiver(request, meta, target, deadline).run(self._buffers)
            except (BadHeader, OSError):
                target.abort()  # the space is needed more than the answer
                self._discard_body(request, deadline, DISCARD_BYTES_MAX)
                raise
            when_us = events.now_us()
            target.commit(metadata.attributes_of(meta))
        self._tell(events.CHUNK_NEW, meta, request, when_us, whole=True)
        return Response(
            201,
            headers=(
                ("x-oio-chunk-meta-chunk-hash", meta.chunk_hash),
                ("x-oio-chunk-meta-chunk-size", meta.chunk_size),
                ("x-oio-chunk-meta-oio-version", meta.version),
            ),
        )

    def _get(self, request: Request, chunk_id: str) -> Response:
        lean = CHUNK_ATTRIBUTES_HEADER in request.headers
        chunk = self.volume.open(chunk_id, lean)
        return download.get(chunk, request.headers.get("range"), self._uncached)

    def _head(self, request: Request, chunk_id: str) -> Response:
        with self.volume.open(chunk_id) as chunk:
            if not chunk.meta.chunk_hash:
                raise download.Unreadable(f"chunk {chunk_id} has no hash attribute")
            size = download.logical_size(chunk)
            if boolean(request.headers.get("x-oio-check-hash"), False):
                self._check_hash(chunk, request.headers.get(metadata.PREFIX + "chunk-hash"))
            headers = download.description(chunk)
        headers.append(("Accept-Ranges", "bytes"))
        return Response(200, headers=headers, content_length=size)

    def _delete(self, request: Request, chunk_id: str) -> Response:
        limit = request.headers.get(CREATED_BEFORE)
        if limit is None:
            meta, when_us = self.volume.delete(chunk_id)
        else:
            if not metadata.is_decimal64(limit):
                raise BadHeader(f"{CREATED_BEFORE}: {limit[:32]!r} is not a number of microseconds")
            meta, when_us = self.volume.delete(chunk_id, int(limit))
        self._tell(events.CHUNK_DELETED, meta, request, when_us, whole=False)
        return Response(204)

    def _copy(self, request: Request, chunk_id: str) -> Response:
        target_id = self._destination(request.headers.get("destination"))
        if isinstance(target_id, Response):
            return target_id
        if target_id == chunk_id:
            return self._error(403, "a chunk cannot be a link to itself")
        meta = metadata.ChunkMeta(target_id)
        metadata.apply_fullpath(meta, request.headers)
        when_us = events.now_us()
        self.volume.link(chunk_id, target_id, meta.fullpath)
        self._tell(events.CHUNK_NEW, meta, request, when_us, whole=False)
        return Response(201)

    def _not_allowed(self, request: Request, _chunk_id: str = "") -> Response:
        return self._error(405, f"{request.method} is not allowed here")

    # -- parts of the above --------------------------------------------------------------------

    def _check_hash(self, chunk: download.StoredChunk, announced: str | None) -> None:
        """Compare the data with the hash asked for, else with the one that was stored.

        A stored hash of an algorithm that its length does not tell was only ever verified through
        the block sums, which decide then.
        """
        meta = chunk.meta
        reference = announced or meta.chunk_hash
        try:
            if upload.matches(chunk.fd, meta.compression, reference):
                return
        except compression.CorruptStream as err:
            raise download.Inconsistent(f"chunk {meta.chunk_id} is corrupt: {err}") from None
        if not announced and len(reference) not in upload.HASH_ALGORITHMS and meta.block_sums:
            download.verify_all(chunk)
            return
        raise download.Inconsistent(f"the hash of chunk {meta.chunk_id} is not {reference[:80]}")

    def _destination(self, url: str | None) -> str | Response:
        """Chunk id of the Destination header, or the error to answer."""
        if not url:
            return self._error(400, "Destination: missing")
        try:
            parts = urlsplit(url)
        except ValueError as err:
            return self._error(400, f"Destination: {err}")
        if not parts.path.startswith("/") or (parts.netloc and not parts.scheme):
            return self._error(400, "Destination: not an absolute URL")
        if parts.netloc not in (self.config.service_id, self.address):
            return self._error(403, f"Destination: {parts.netloc!r} is not this service")
        target_id = metadata.parse_chunk_id(parts.path.rpartition("/")[2])
        return target_id or self._error(400, "Destination: not a chunk id")

    def _discard_body(
        self, request: Request, deadline: float, limit: int | None = None
    ) -> None:
        """Read what the client still sends, so that it reads the answer and keeps the connection.

        Not when it waits for the permission to send. Beyond the limit the connection is closed.
        """
        if "expect" in request.headers and not request.bytes_in:
            return
        last = None if limit is None else request.bytes_in + limit
        buffer = self._buffers.take()
        try:
            while request.readinto(buffer):
                if time.monotonic() > deadline or (last is not None and request.bytes_in > last):
                    return
        except BodyError as err:
            logger.debug("the client left before the end of its body: %s", err)
        finally:
            self._buffers.give_back(buffer)

    def _tell(
        self, kind: str, meta: metadata.ChunkMeta, request: Request, when_us: int, whole: bool
    ) -> None:
        if self._emit is not None:
            self._emit(kind, meta, request.reqid, whole, when_us)

    def _error(self, status: int, message: str, close: bool = False) -> Response:
        """An error has no body (contract); its reason is a header in verbose mode only."""
        headers: tuple[tuple[str, str], ...] = ()
        if self._verbose:
            printable = "".join(c if " " <= c <= "~" else "?" for c in message)
            headers = (("X-Error", printable[:512]),)
        return Response(status, headers=headers, close=close)

    # -- information ---------------------------------------------------------------------------

    def _text(self, request: Request, kind: str, lines: Callable[[], list[str]]) -> Response:
        request.drain()
        if request.method not in ("GET", "HEAD"):
            request.context = "other"
            return self._not_allowed(request)
        request.context = kind
        body = "".join(f"{line}\n" for line in lines()).encode()
        return Response(200, body, (("Content-Type", "text/plain; charset=utf-8"),))

    def _metrics(self, request: Request) -> Response:
        """Not of the contract, hence not counted by ``/stat`` either."""
        request.drain()
        families = self.stats.metrics()
        healthy = float(self.probe.healthy())
        families.append(Metric("oio_rawx_volume_up", "gauge", "Does the volume work?", [({}, healthy)]))
        if self._event_counters is not None:
            samples = [({"what": what}, float(count)) for what, count in self._event_counters().items()]
            families.append(
                Metric("oio_rawx_events", "counter", "Events: journal, queue, log; failed calls", samples)
            )
        return Response(200, render(families), [("Content-Type", CONTENT_TYPE)])

    def _info(self) -> list[str]:
        lines = [f"namespace {self.config.namespace}", f"path {self.config.docroot}"]
        if self.config.service_id:
            lines.append(f"service_id {self.config.service_id}")
        if self.config.tls_rawx_url:
            lines.append(f"url_tls {self.config.tls_rawx_url}")
        return lines

    def _stat(self) -> list[str]:
        lines = [*self.stats.lines(), f"config volume {self.config.docroot}"]
        if self.config.service_id:
            lines.append(f"config service_id {self.config.service_id}")
        return lines

    # -- after the answer ----------------------------------------------------------------------

    def _account(self, request: Request, response: Response, duration_us: int) -> None:
        """Count and log a request that went as far as its route."""
        kind = request.context
        if not isinstance(kind, str):
            return
        duration_us = abs(duration_us)
        status = response.status
        bytes_out = response.bytes_sent if kind == "get" else 0
        bytes_in = request.bytes_in if kind == "put" else 0
        self.stats.count(kind, status, duration_us, bytes_out, bytes_in)
        if self._log is None or not self._is_logged(kind, status):
            return
        method, peer, path = request.method, request.peer, request.path
        host = request.headers.get("host") or "-"
        reqid = request.reqid or "-"
        scheme = "https" if host == self.config.tls_rawx_url else "http"
        self._log.access(
            lambda: (
                f"{host} {peer} {method} {status} {duration_us} {bytes_out} {bytes_in} - {reqid} {path} {scheme}"
            )
        )

    def _is_logged(self, kind: str, status: int) -> bool:
        if kind in ("info", "stat") and not self._verbose:
            return False
        if not 200 <= status < 300:
            return True
        if kind in ("get", "head"):
            return self.config.log_access_get
        if kind == "del":
            return self.config.log_access_delete
        return kind != "put" or self.config.log_access_put


def split_address_or_any(listen: str) -> tuple[str, int]:
    """Like :func:`split_address`, but port 0 (chosen by the kernel) is allowed."""
    if listen.endswith(":0"):
        return listen[:-2].strip("[]"), 0
    return split_address("listen", listen)
