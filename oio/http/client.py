# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP client of the whole system: pooled keep-alive connections.

    pool = HttpPool()
    response = pool.request("GET", "http://127.0.0.1:6000/v3.0/NS/status", deadline=time.monotonic() + 5)
    response.status, response.headers.get("content-type"), response.data

When a request is sent a second time, and why nothing can happen twice
----------------------------------------------------------------------
A pooled connection may have been closed by the server while it was idle. Three cases, told apart exactly:

1. *The close is already known when the connection is taken from the pool* (the kernel has the peer's FIN or
RST, or
   bytes nobody asked for). The connection is dropped and another one used. Nothing was sent: safe for all
   requests.
2. *The first send fails* (EPIPE, ECONNRESET). The kernel refused the very first byte, thus no byte of this
request can
   have reached the server: safe for all requests.
3. *The connection ends after at least one byte left and before one byte of the answer came.* The server may
have read
   the request, executed it and died, or may have closed before reading; nothing on our side tells these
   apart (an acknowledged segment proves reception by the kernel, not by the program; a missing one proves
   nothing). Only requests whose repetition has no effect are sent again: GET, HEAD, OPTIONS, PUT, DELETE,
   or what the caller declares `idempotent`.

Only one such repetition is made by default, on a new connection, and only when the first attempt used a
pooled one. A timeout is never repeated: the server may still be at work.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from oio.http.client_connection import (
    BytesLike,
    ClientConnection,
    ClientResponse,
    Headers,
    connect,
)
from oio.http.errors import (
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    HttpClientError,
    ProtocolError,
    ReadTimeout,
    WriteTimeout,
)
from oio.http.wire import HeaderDict

__all__ = [
    "ClientConnection",
    "ClientResponse",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionClosed",
    "HeaderDict",
    "HttpClientError",
    "HttpPool",
    "HttpResponse",
    "ProtocolError",
    "ReadTimeout",
    "WriteTimeout",
]

Timeout = float | tuple[float, float] | None

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Methods whose repetition has the same effect as one request (RFC 9110, 9.2.2)."""

SWEEP_CONNECTS = 32
"""After so many new connections, the idle ones that nobody will use any more are closed."""

TARGETS_CACHED_MAX = 4096
"""Bound of the cache of parsed addresses."""

_OWN_FIELDS = frozenset({"content-length", "transfer-encoding"})
_DEFAULT_PORTS = {"http": 80, "https": 443, "http+unix": 0}


class HttpResponse:
    """A whole answer: `status`, `reason`, `headers` (names in any case) and `data`."""

    __slots__ = ("data", "headers", "reason", "status")

    def __init__(self, status: int, reason: str, headers: HeaderDict, data: bytes) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.data = data

    def __repr__(self) -> str:
        return f"<HttpResponse {self.status} {self.reason} {len(self.data)} bytes>"


class HttpPool:
    """Keep-alive connections per address, for any number of threads (or green threads).

    No lock is ever held: the idle connections of an address stand in a deque, whose operations are atomic;
    therefore a pool made before a monkey patch works after it.
    """

    def __init__(
        self,
        max_idle_per_address: int = 32,
        connect_timeout_s: float = 2.0,
        read_timeout_s: float = 30.0,
        write_timeout_s: float = 30.0,
        source_address: tuple[str, int] | None = None,
        tls_verify: bool = False,
        tls_ca_file: str | None = None,
        idle_timeout_s: float = 300.0,
        max_answer_bytes: int = 1 << 30,
    ) -> None:
        self.max_idle_per_address = max_idle_per_address
        self.connect_timeout_s = connect_timeout_s
        self.read_timeout_s = read_timeout_s
        self.write_timeout_s = write_timeout_s
        self.source_address = source_address
        self.tls_verify = tls_verify
        self.tls_ca_file = tls_ca_file
        self.idle_timeout_s = idle_timeout_s
        self.max_answer_bytes = max_answer_bytes
        self._closed = False
        self._idle: dict[str, deque[ClientConnection]] = {}
        self._connects = 0
        self._targets: dict[str, tuple[str, str, int]] = {}
        self._tls_context: Any = None
        _pools.add(self)

    def request(
        self,
        method: str,
        url: str,
        headers: Headers | None = None,
        body: BytesLike | str | None = None,
        *,
        timeout: Timeout = None,
        deadline: float | None = None,
        retries: int = 1,
        idempotent: bool | None = None,
        on_silence: Callable[[], bool] | None = None,
        **_ignored: Any,
    ) -> HttpResponse:
        """Send a request and give its whole answer.

        `timeout` is the longest silence, or (connect, read); `deadline` a monotonic time that bounds
        everything. `retries` bounds the repetitions described at the top of this module. With
        `on_silence` a silence ends nothing by itself: this is called (it may take its time, and look at
        the peer in another way), and the wait goes on while it answers True. Raises `HttpClientError`.
        """
        connect_s, read_s = self.connect_timeout_s, self.read_timeout_s
        if timeout is not None:
            if isinstance(timeout, tuple):
                connect_s, read_s = timeout
            else:
                connect_s, read_s = min(connect_s, timeout), timeout
        key, target = _split_url(url)
        fields, data = _fields_of(method, headers, body)
        fresh = False
        while True:
            connection = None if fresh else self._take(key)
            if connection is None:
                connection = self._connect(key, connect_s, deadline)
            connection.read_timeout_s = read_s
            connection.write_timeout_s = self.write_timeout_s
            connection.deadline = deadline
            if on_silence is not None:
                connection.on_silence = on_silence
            try:
                return self._exchange(connection, method, target, fields, data)
            except ConnectionClosed as error:
                connection.close()
                if not connection.reused or connection.received or retries <= 0:
                    raise
                if error.sent and not (method in IDEMPOTENT if idempotent is None else idempotent):
                    raise
                retries -= 1
                fresh = True
            except BaseException:
                connection.close()
                raise

    def acquire(
        self,
        host: str,
        port: int,
        scheme: str = "http",
        connect_timeout_s: float | None = None,
        read_timeout_s: float | None = None,
        write_timeout_s: float | None = None,
        deadline: float | None = None,
        fresh: bool = False,
    ) -> ClientConnection:
        """Give a connection, pooled (checked to be alive) or new, for a request in pieces."""
        if scheme == "http+unix":
            key = f"http+unix://{host}"
        else:
            key = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        connection = None if fresh else self._take(key)
        if connection is None:
            if connect_timeout_s is None:
                connect_timeout_s = self.connect_timeout_s
            connection = self._connect(key, connect_timeout_s, deadline)
        connection.read_timeout_s = self.read_timeout_s if read_timeout_s is None else read_timeout_s
        connection.write_timeout_s = (
            self.write_timeout_s if write_timeout_s is None else write_timeout_s
        )
        connection.deadline = deadline
        return connection

    def close(self) -> None:
        """Close all idle connections; those in use are closed when they are given back."""
        self._closed = True
        for idle in list(self._idle.values()):
            while idle:
                try:
                    idle.pop().close()
                except IndexError:
                    break

    def idle_count(self) -> int:
        """Give how many connections are idle."""
        return sum([len(idle) for idle in list(self._idle.values())])

    def __enter__(self) -> HttpPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(
        self,
        connection: ClientConnection,
        method: str,
        target: str,
        fields: list[tuple[str, Any]],
        data: BytesLike | None,
    ) -> HttpResponse:
        connection.put_request(method, target, fields)
        if data:
            connection.queue(data)
        try:
            connection.flush()
        except ConnectionClosed as error:
            # A server may refuse a request before it has read it whole, and close: its answer is still there.
            if not error.sent:
                raise
            connection.on_release = None
        response = connection.getresponse()
        body = response.read_all(self.max_answer_bytes)
        response.release()
        return HttpResponse(response.status, response.reason, response.headers, body)

    def _take(self, key: str) -> ClientConnection | None:
        """Take the most recently used idle connection that is still alive."""
        idle = self._idle.get(key)
        if not idle:
            return None
        oldest = time.monotonic() - self.idle_timeout_s
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if connection.idle_since >= oldest and not connection.is_stale():
                connection.reused = True
                return connection
            connection.close()

    def _give_back(self, connection: ClientConnection) -> None:
        connection.idle_since = time.monotonic()
        idle = self._idle.get(connection.key)
        if idle is None:
            idle = self._idle.setdefault(connection.key, deque())
        if self._closed or len(idle) >= self.max_idle_per_address:
            connection.close()
            return
        idle.append(connection)

    def _sweep(self) -> None:
        """Close what waits for addresses that are gone, or has waited too long: its descriptors are not free."""
        oldest = time.monotonic() - self.idle_timeout_s
        for idle in list(self._idle.values()):
            with contextlib.suppress(IndexError):  # others take from it meanwhile
                while True:
                    # One that is alive stays for others to take: without it they would open one more.
                    first = idle[0]
                    if first.idle_since >= oldest and not first.is_stale():
                        break
                    connection = idle.popleft()
                    if connection is not first:
                        idle.appendleft(connection)
                        break
                    connection.close()

    def _connect(self, key: str, timeout_s: float, deadline: float | None) -> ClientConnection:
        self._connects += 1
        if self._connects % SWEEP_CONNECTS == 0:
            self._sweep()
        scheme, host, port = self._target(key)
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConnectTimeout("deadline reached", f"{host}:{port}", False)
            timeout_s = min(timeout_s, left)
        context = self._context() if scheme == "https" else None
        sock, address = connect(
            scheme,
            host,
            port,
            connect_timeout_s=timeout_s,
            source_address=self.source_address,
            tls_context=context,
        )
        host_header = "localhost" if scheme == "http+unix" else key.partition("://")[2]
        connection = ClientConnection(sock, address, host_header)
        connection.key = key
        connection.on_release = self._give_back
        return connection

    def _target(self, key: str) -> tuple[str, str, int]:
        target = self._targets.get(key)
        if target is None:
            target = _parse_authority(key)
            if len(self._targets) >= TARGETS_CACHED_MAX:
                self._targets.clear()
            self._targets[key] = target
        return target

    def _context(self) -> Any:
        # A monkey patch replaces ssl.SSLContext: a context made before it is not fit for green sockets.
        context = self._tls_context
        if context is None or type(context) is not ssl.SSLContext:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if self.tls_verify:
                context.load_default_certs()
                if self.tls_ca_file:
                    context.load_verify_locations(self.tls_ca_file)
            else:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._tls_context = context
        return context


def _split_url(url: str) -> tuple[str, str]:
    """Split an URL into "scheme://authority" and the target (path and query)."""
    start = url.find("://")
    if start < 0:
        raise ValueError(f"not an absolute URL: {url!r}")
    slash = url.find("/", start + 3)
    if slash < 0:
        question = url.find("?", start + 3)
        if question >= 0:
            return url[:question], "/" + url[question:]
        return url, "/"
    target = url[slash:]
    if "#" in target:
        target = target.partition("#")[0]
    return url[:slash], target


def _parse_authority(key: str) -> tuple[str, str, int]:
    """Give (scheme, host, port) of "scheme://authority"."""
    scheme, _, authority = key.partition("://")
    if scheme not in _DEFAULT_PORTS:
        raise ValueError(f"unsupported scheme: {scheme!r}")
    if scheme == "http+unix":
        return scheme, unquote(authority), 0
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        port_text = rest[1:] if rest.startswith(":") else ""
    else:
        host, _, port_text = authority.partition(":")
    if not host or "@" in authority or (port_text and not port_text.isdigit()):
        raise ValueError(f"malformed address: {authority!r}")
    return scheme, host, int(port_text) if port_text else _DEFAULT_PORTS[scheme]


def _fields_of(
    method: str, headers: Headers | None, body: BytesLike | str | None
) -> tuple[list[tuple[str, Any]], BytesLike | None]:
    """Give the headers with Content-Length, and the body as bytes."""
    fields: list[tuple[str, Any]]
    if headers is None:
        fields = []
    else:
        is_dict = type(headers) is dict or isinstance(headers, Mapping)
        fields = list(headers.items() if is_dict else headers)  # type: ignore[union-attr, arg-type]
        for name, _ in fields:
            if len(name) > 13 and name.lower() in _OWN_FIELDS:
                raise ValueError(f"{name} is set by the client")
    if isinstance(body, str):
        body = body.encode("utf-8")
    if body is not None:
        size = body.nbytes if isinstance(body, memoryview) else len(body)
        fields.append(("Content-Length", size))
    elif method in ("PUT", "POST"):
        fields.append(("Content-Length", 0))
    return fields, body


_pools: weakref.WeakSet[HttpPool] = weakref.WeakSet()


def _after_fork() -> None:
    """A child must not talk on its parent's connections: forget them all (closing ours leaves the parent's
    open).
    """
    for pool in list(_pools):
        pool._idle = {}


os.register_at_fork(after_in_child=_after_fork)
