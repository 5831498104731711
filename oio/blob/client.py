# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``BlobClient``: operations on single chunks, straight to rawx services.

A chunk is designated by its URL, ``http://<service id or address>/<chunk id>``; service ids are resolved
through the proxy.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate
from typing import Any
from urllib.parse import unquote

from oio.common.constants import (
    CHECKHASH_HEADER,
    CHUNK_HEADERS,
    CHUNK_XATTR_KEYS_OPTIONAL,
    FETCHXATTR_HEADER,
    OIO_VERSION,
    REQID_HEADER,
)
from oio.common.exceptions import (
    ChunkException,
    FaultyChunk,
    MissingAttribute,
    OioException,
    ServiceBusy,
    from_response,
)
from oio.common.http_urllib3 import (
    get_pool_manager,
    oio_exception_from_httperror,
    pool_errors,
    pool_timeout,
)
from oio.common.logger import get_logger
from oio.common.storage_method import STORAGE_METHODS
from oio.common.utils import GeneratorIO, request_id
from oio.conscience.client import ConscienceClient
from oio.http.client import HttpResponse

# Towards rawx services, in seconds: a busy disk may take long.
CONNECTION_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0

DELETE_CONCURRENCY = 3
_CONTAINER_ID_HEADER = "X-oio-chunk-meta-container-id"
# Digits of a chunk id that change when a link gets a name of its own; the first ones choose the folder.
_RANDOM_LINK_DIGITS = 60

_HTTP_CREATED = 201
_HTTP_NO_CONTENT = 204

# Algorithms of chunk hashes by number of digits, for the copies of chunks that have neither MD5 nor BLAKE3.
_ALGORITHM_OF_DIGITS = {40: "sha1", 56: "sha224"}
_SHA256_DIGITS = 64
_MD5_DIGITS = 32

# Keys under which the writers want what the readers call otherwise.
_WRITER_KEYS = {
    "id": "content_id",
    "version": "content_version",
    "chunk_method": "content_chunkmethod",
    "policy": "content_policy",
}


def extract_headers_meta(headers: Mapping[str, Any], check: bool = True) -> dict[str, Any]:
    """Make the metadata of a chunk from the headers of an answer.

    :param check: raise ``FaultyChunk`` when a mandatory header is missing.
    :returns: texts under the keys of ``CHUNK_HEADERS``; ``chunk_mtime`` is a number of seconds.
    """
    meta: dict[str, Any] = {}
    missing = []
    for key, name in CHUNK_HEADERS.items():
        value = headers.get(name)
        if value is None:
            if check and key not in CHUNK_XATTR_KEYS_OPTIONAL:
                missing.append(MissingAttribute(key))
        elif key == "full_path":
            meta[key] = value
        elif key == "chunk_mtime":
            # Told in the time of the rawx, which is taken for ours (contract: rawx GET, Last-Modified).
            date = parsedate(value)
            if date is not None:
                meta[key] = time.mktime(date)
        else:
            meta[key] = unquote(value)
    if missing:
        raise FaultyChunk(*missing)
    return meta


class ChunkStream:
    """Data of a chunk: an iterator of ``bytes`` that can also be read like a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._file = GeneratorIO(blocks)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = self._file.read()
        if not block:
            raise StopIteration
        return block

    def read(self, size: int | None = -1) -> bytes:
        """Read ``size`` bytes, or all that is left."""
        if size is None or size < 0:
            return b"".join(self)
        return self._file.read(size)

    def close(self) -> None:
        """Stop reading."""
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()


class ChunkResponse(HttpResponse):
    """Answer about one chunk, which it carries."""

    __slots__ = ("chunk",)

    def __init__(self, resp: HttpResponse, chunk: Mapping[str, Any]) -> None:
        super().__init__(resp.status, resp.reason, resp.headers, resp.data)
        self.chunk = chunk


class BlobClient:
    """Client of chunks.

    :param conf: must hold ``namespace`` for service ids to be resolved.
    :param connection_pool: connections to share.
    :keyword endpoint: location of the proxy.
    """

    def __init__(
        self,
        conf: Mapping[str, Any] | None = None,
        perfdata: MutableMapping[str, Any] | None = None,
        logger: Any = None,
        connection_pool: Any = None,
        **kwargs: Any,
    ) -> None:
        self.conf = conf
        self.perfdata = perfdata
        self.logger = logger or get_logger(dict(conf or {}), "oio.blob")
        self.http_pool = connection_pool or get_pool_manager(**kwargs)
        self._conscience_client = kwargs.pop("conscience_client", None)
        self._conscience_kwargs = {**kwargs, "pool_manager": self.http_pool, "logger": self.logger}
        self._lock = threading.Lock()

    @property
    def conscience_client(self) -> ConscienceClient:
        """What resolves service ids."""
        with self._lock:
            if self._conscience_client is None:
                self._conscience_client = ConscienceClient(self.conf or {}, **self._conscience_kwargs)
            client: ConscienceClient = self._conscience_client
            return client

    def resolve_url(self, url: str, reqid: str | None = None) -> str:
        """Replace the service id of a chunk URL by the address of the service."""
        url = _with_scheme(url)
        host = url.partition("://")[2].partition("/")[0]
        _, colon, port = host.rpartition(":")
        if colon and port.isdigit():
            return url
        return self.conscience_client.resolve_url("rawx", url, reqid=reqid)

    # --- data ---

    def chunk_put(self, url: str, meta: Mapping[str, Any], data: Any, **kwargs: Any) -> tuple[int, str | None]:
        """Write a chunk.

        :param meta: ``chunk_pos``, ``chunk_method``, ``chunk_hash`` (or ``metachunk_hash`` for an erasure
            coded chunk; may be None), and the metadata of the object.
        :param data: file, ``bytes``, or iterable of ``bytes``.
        :returns: number of bytes, hash of the chunk.
        :raises Conflict: when the chunk exists.
        :raises ServiceBusy: on any other failure; also when the data have another MD5 than the one announced.
        """
        size, chunk_hash = self._write(url, meta, data, kwargs)
        announced = meta.get("chunk_hash")
        if len(announced or "") == _MD5_DIGITS and _hashes_differ(announced, chunk_hash):
            # Rawx verify what they are told last, which is the hash of what was sent.
            problem = f"{url}: the data have the hash {chunk_hash} instead of {announced}"
            self._delete_copy(url, kwargs)
            raise ServiceBusy(message=problem)
        return size, chunk_hash

    def _write(
        self, url: str, meta: Mapping[str, Any], data: Any, kwargs: dict[str, Any]
    ) -> tuple[int, str | None]:
        from oio.api.replication import FakeChecksum, ReplicatedMetachunkWriter

        sysmeta = dict(meta)
        for wanted, known in _WRITER_KEYS.items():
            if sysmeta.get(wanted) is None and known in sysmeta:
                sysmeta[wanted] = sysmeta[known]
        if not hasattr(data, "read"):
            if not sysmeta.get("chunk_size") and isinstance(data, (bytes, bytearray, memoryview)):
                # The size of the blocks that get a checksum depends on it.
                sysmeta["chunk_size"] = len(data)
            data = GeneratorIO(data)
        chunk = {"url": self.resolve_url(url, kwargs.get("reqid")), "pos": str(meta["chunk_pos"])}
        storage_method = STORAGE_METHODS.load(sysmeta["chunk_method"])
        checksum = meta["metachunk_hash" if storage_method.ec else "chunk_hash"]
        kwargs.setdefault("perfdata", self.perfdata)
        kwargs.setdefault("logger", self.logger)
        both_s = _single_timeout(kwargs)
        kwargs["connection_timeout"] = kwargs.get("connection_timeout") or both_s
        kwargs["write_timeout"] = kwargs.get("write_timeout") or kwargs.get("read_timeout") or both_s
        kwargs["headers"] = _request_headers(kwargs)
        kwargs["reqid"] = kwargs["headers"][REQID_HEADER]
        writer = ReplicatedMetachunkWriter(
            sysmeta, [chunk], FakeChecksum(checksum), storage_method, quorum=1, **kwargs
        )
        size, chunk_hash, _chunks = writer.stream(data, None)
        return size, chunk_hash

    def chunk_get(self, url: str, check_headers: bool = True, **kwargs: Any) -> tuple[dict[str, Any], ChunkStream]:
        """Read a chunk. :returns: its metadata, its data.

        :param check_headers: raise ``FaultyChunk`` when a mandatory attribute is missing.
        :raises NotFound: when it is missing.
        """
        from oio.api.io import ChunkReader

        both_s = _single_timeout(kwargs)
        reader = ChunkReader(
            iter([{"url": self.resolve_url(url, kwargs.get("reqid"))}]),
            None,
            _request_headers(kwargs),
            logger=self.logger,
            perfdata=kwargs.get("perfdata"),
            connection_timeout=kwargs.get("connection_timeout") or both_s,
            read_timeout=kwargs.get("read_timeout") or both_s,
        )
        stream = ChunkStream(reader.stream())
        try:
            return extract_headers_meta(reader.headers or {}, check=check_headers), stream
        except FaultyChunk:
            stream.close()
            raise

    def chunk_copy(
        self,
        from_url: str,
        to_url: str,
        chunk_id: str | None = None,
        fullpath: str | None = None,
        cid: str | None = None,
        path: str | None = None,
        version: Any = None,
        content_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy a chunk to another service, through this process; given metadata replace the source's.

        :raises ChunkException: when the copy differs; it is then deleted.
        """
        kwargs["headers"] = _request_headers(kwargs)
        kwargs["reqid"] = kwargs["headers"][REQID_HEADER]
        meta, stream = self.chunk_get(from_url, check_headers=not fullpath, **kwargs)
        try:
            meta["oio_version"] = OIO_VERSION
            meta["chunk_id"] = chunk_id or to_url.rpartition("/")[2]
            meta["full_path"] = fullpath or meta.get("full_path")
            meta["container_id"] = cid or meta.get("container_id")
            meta["content_path"] = path or meta.get("content_path")
            meta["version"] = version or meta.get("content_version")
            meta["id"] = content_id or meta.get("content_id")
            expected_size = meta.get("chunk_size")
            expected_hash = meta.get("chunk_hash")
            meta.setdefault("chunk_hash", None)
            meta.setdefault("metachunk_hash", None)
            _check_writable(meta)
            algorithm = _algorithm_of(meta)
            if algorithm:
                kwargs.setdefault("chunk_checksum_algo", algorithm)
            size, chunk_hash = self._write(to_url, meta, stream, dict(kwargs))
        finally:
            stream.close()
        problem = None
        if expected_size is not None and size != int(expected_size):
            problem = f"Size isn't the same for the copied chunk: {size} instead of {expected_size}"
        elif _hashes_differ(expected_hash, chunk_hash):
            problem = f"Hash isn't the same for the copied chunk: {chunk_hash}, {expected_hash}"
        if problem:
            self._delete_copy(to_url, kwargs)
            raise ChunkException(problem)

    def _delete_copy(self, url: str, kwargs: Mapping[str, Any]) -> None:
        """Delete a chunk that is not what it should be, if that can be done."""
        try:
            self.chunk_delete(url, **kwargs)
        except Exception as exc:
            self.logger.warning("Failed to delete the bad copy %s: %s", url, exc)

    # --- metadata ---

    def chunk_head(self, url: str, xattr: bool = True, check_hash: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Metadata of a chunk, ``{}`` without ``xattr``.

        :param check_hash: have the rawx read the chunk and verify it.
        :raises NotFound: when it is missing. :raises ClientPreconditionFailed: when it is corrupt.
        """
        headers = _request_headers(kwargs)
        headers[FETCHXATTR_HEADER] = str(bool(xattr))
        if check_hash:
            headers[CHECKHASH_HEADER] = "True"
        url = self.resolve_url(url, kwargs.get("reqid"))
        try:
            resp = self._request("HEAD", url, headers, kwargs)
        except pool_errors() as exc:
            oio_exception_from_httperror(exc, headers.get(REQID_HEADER), url)
        if resp.status == 200:
            return extract_headers_meta(resp.headers) if xattr else {}
        # Without a body the reason takes the place of the code: "n/a (HTTP 404) (STATUS Not Found)".
        raise from_response(resp)

    # --- deletion ---

    def chunk_delete(self, url: str, **kwargs: Any) -> Any:
        """Delete a chunk. :returns: the HTTP response. :raises NotFound: when it is missing."""
        url = self.resolve_url(url, kwargs.get("reqid"))
        resp = self._request("DELETE", url, _request_headers(kwargs), kwargs)
        if resp.status != _HTTP_NO_CONTENT:
            raise from_response(resp)
        return resp

    def chunk_delete_many(
        self,
        chunks: Iterable[Mapping[str, Any]],
        cid: str | None = None,
        concurrency: int = DELETE_CONCURRENCY,
        **kwargs: Any,
    ) -> list[Any]:
        """Delete chunks, several at once.

        :returns: for each chunk, in any order, the HTTP response or the error, with an attribute ``chunk``.
        """
        headers = _request_headers(kwargs)
        if cid is not None:
            headers[_CONTAINER_ID_HEADER] = cid

        def delete(chunk: Mapping[str, Any]) -> Any:
            try:
                result: Any = self._request("DELETE", self._address_of(chunk, kwargs), headers, kwargs)
            except pool_errors() as exc:
                result = exc
            except OioException as exc:
                result = exc
            if isinstance(result, HttpResponse):
                result = ChunkResponse(result, chunk)
            else:
                result.chunk = chunk
            return result

        targets = list(chunks)
        if len(targets) < 2 or concurrency < 2:
            return [delete(chunk) for chunk in targets]
        with ThreadPoolExecutor(min(concurrency, len(targets))) as pool:
            return list(pool.map(delete, targets))

    def _address_of(self, chunk: Mapping[str, Any], kwargs: Mapping[str, Any]) -> str:
        """URL to send a request to; spares a resolution when the chunk tells its real URL."""
        url: str = chunk["url"]
        host = url.partition("://")[2].partition("/")[0]
        if ":" not in host and chunk.get("real_url"):
            real_url: str = chunk["real_url"]
            return real_url
        return self.resolve_url(url, kwargs.get("reqid"))

    # --- links ---

    def chunk_link(
        self,
        target: str,
        link: str | None,
        fullpath: str,
        headers: Mapping[str, str] | None = None,
        write_timeout: float | None = None,
        **kwargs: Any,
    ) -> tuple[Any, str]:
        """Give a chunk a second name on the same rawx, for another object.

        :param link: URL or id of the new chunk; random when None.
        :param fullpath: full path of the other object.
        :returns: the HTTP response, the URL of the new chunk.
        """
        target = _with_scheme(target)
        if link is None:
            digits = "".join(random.choices("0123456789ABCDEF", k=_RANDOM_LINK_DIGITS))
            link = target[:-_RANDOM_LINK_DIGITS] + digits
        elif "://" not in link:
            link = f"{target.rpartition('/')[0]}/{link}"
        sent = _request_headers({**kwargs, "headers": headers})
        sent["Destination"] = link
        sent[CHUNK_HEADERS["full_path"]] = fullpath
        if write_timeout is not None:
            kwargs.setdefault("read_timeout", write_timeout)
        resp = self._request("COPY", self.resolve_url(target, kwargs.get("reqid")), sent, kwargs)
        if resp.status != _HTTP_CREATED:
            raise ChunkException(resp.status)
        return resp, link

    # --- transport ---

    def _request(self, method: str, url: str, headers: dict[str, str], kwargs: Mapping[str, Any]) -> Any:
        both_s = _single_timeout(kwargs)
        connect_s = kwargs.get("connection_timeout") or both_s or CONNECTION_TIMEOUT_S
        read_s = kwargs.get("read_timeout") or both_s or READ_TIMEOUT_S
        timeout = pool_timeout(self.http_pool, float(connect_s), float(read_s))
        perfdata = kwargs.get("perfdata")
        if perfdata is None:
            perfdata = self.perfdata
        if perfdata is None:
            return self.http_pool.request(method, url, headers=headers, timeout=timeout)
        start_s = time.monotonic()
        try:
            return self.http_pool.request(method, url, headers=headers, timeout=timeout)
        finally:
            rawx = perfdata.setdefault("rawx", {})
            rawx["overall"] = rawx.get("overall", 0.0) + time.monotonic() - start_s


def _with_scheme(url: str) -> str:
    return url if "://" in url else f"http://{url}"


def _check_writable(meta: Mapping[str, Any]) -> None:
    """:raises FaultyChunk: what describes a chunk does not suffice to write a copy of it."""
    needed: tuple[str, ...] = (
        "chunk_pos", "content_chunkmethod", "content_policy", "container_id", "content_path", "full_path",
        "id", "version",
    )  # fmt: skip
    if (meta.get("content_chunkmethod") or "").startswith("ec/"):
        needed += ("metachunk_hash", "metachunk_size")
    missing = [MissingAttribute(key) for key in needed if not meta.get(key)]
    if missing:
        raise FaultyChunk(*missing)


def _algorithm_of(meta: Mapping[str, Any]) -> str | None:
    """Algorithm of the hash of a chunk, None when the writers find it by themselves.

    64 digits are BLAKE3 on fragments; copies never have such a hash, unless the caller chose SHA-256.
    """
    digits = len(meta.get("chunk_hash") or "")
    if digits == _SHA256_DIGITS and not meta["content_chunkmethod"].startswith("ec/"):
        return "sha256"
    return _ALGORITHM_OF_DIGITS.get(digits)


def _hashes_differ(one: str | None, other: str | None) -> bool:
    """Compare two hashes, when they may be of the same kind."""
    if not one or not other or len(one) != len(other):
        return False
    return one.upper() != other.upper()


def _single_timeout(kwargs: Mapping[str, Any]) -> float | None:
    """The keyword ``timeout``, when it is a number of seconds."""
    timeout = kwargs.get("timeout")
    return float(timeout) if isinstance(timeout, (int, float)) else None


def _request_headers(kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Headers of a request: a copy of the caller's, with a request id."""
    headers = {}
    reqid = kwargs.get("reqid")
    for name, value in (kwargs.get("headers") or {}).items():
        if name.lower() == REQID_HEADER:
            reqid = reqid or str(value)
        elif value is not None:
            headers[name] = str(value)
    headers[REQID_HEADER] = reqid or request_id()
    return headers
