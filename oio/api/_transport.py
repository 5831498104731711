# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Connections to rawx services, and the vocabulary of their failures.

``connect`` is what readers and writers call: it goes through ``oio.api.io.http_connect``, which programs may
replace. A connection made by the package's own ``http_connect`` is *native*: it comes from a pool shared by
the whole process, is opened by ``open_connection`` (with timeouts), and may carry more than the contract (block
sums, vectored non-blocking writes). A connection made by a replacement is *foreign*: only ``send``,
``getresponse`` and ``close`` are used, the answer is only read through ``status``, ``reason``, ``getheader``,
``getheaders`` and ``read``, and nothing but the contract's protocol is spoken.

Timeouts: when ``oio.common.green`` is loaded the green exceptions of that module are raised (they derive from
``BaseException``, as green programs expect); otherwise the classes below, which have the same text and derive
from ``oio.common.exceptions.OioTimeout``.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oio.common import exceptions as exc
from oio.http import errors as http_errors
from oio.http.client import ClientConnection, ClientResponse, HttpPool

LOGGER = logging.getLogger("oio.api")

CONNECTION_TIMEOUT = 10.0
CHUNK_TIMEOUT = 60.0

# Idle connections kept per rawx. More than the parallelism of a program towards one rawx is waste; each one
# costs a descriptor on both sides.
_IDLE_PER_RAWX_MAX = 64
# Answers to refused requests are read up to this length so that the connection can be used again; a longer one
# costs more than a new connection.
_DISCARD_MAX = 65536


# --- timeouts ---------------------------------------------------------------------------------------


class _Timeout(exc.OioTimeout):
    """Timeout of the data path, with the text of the green one."""

    prefix = ""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.prefix}timeout {self.seconds} second{'' if self.seconds == 1 else 's'}"


class ConnectionTimeout(_Timeout):
    """Raised when a connection takes too long to be made."""

    prefix = "Connection "


class ChunkWriteTimeout(_Timeout):
    """Raised when a rawx does not take data, or does not confirm, in time."""

    prefix = "Chunk write "


class ChunkReadTimeout(_Timeout):
    """Raised when a rawx does not give data in time."""

    prefix = "Chunk read "


def green_module() -> Any:
    """The module ``oio.common.green`` when the program has loaded it, else None."""
    return sys.modules.get("oio.common.green")


def new_timeout(cls: type[_Timeout], seconds: float) -> BaseException:
    """A timeout of the right family for this program."""
    green = green_module()
    if green is None:
        return cls(seconds)
    timeout: BaseException = getattr(green, cls.__name__)(None)  # None: do not start the timer
    timeout.seconds = seconds  # type: ignore[attr-defined]
    return timeout


def failures() -> tuple[type[BaseException], ...]:
    """What the loss of one chunk may look like: any error, and eventlet's timeouts when they exist."""
    eventlet_timeout = sys.modules.get("eventlet.timeout")
    if eventlet_timeout is None:
        return (Exception,)
    return (Exception, eventlet_timeout.Timeout)


def is_timeout(err: object) -> bool:
    """Whether a failure is a timeout, of either family."""
    if isinstance(err, (exc.OioTimeout, http_errors.ReadTimeout, http_errors.WriteTimeout,
                        http_errors.ConnectTimeout, TimeoutError)):  # fmt: skip
        return True
    eventlet_timeout = sys.modules.get("eventlet.timeout")
    return eventlet_timeout is not None and isinstance(err, eventlet_timeout.Timeout)


# --- connections ------------------------------------------------------------------------------------

_pool: HttpPool | None = None
_pool_lock = threading.Lock()


def shared_pool() -> HttpPool:
    """The pool of this process. A forked child gets its own: sockets must not be shared."""
    global _pool
    pool = _pool
    if pool is None:
        with _pool_lock:
            if _pool is None:
                _pool = HttpPool(max_idle_per_address=_IDLE_PER_RAWX_MAX)
            pool = _pool
    return pool


def _forget_pool() -> None:
    global _pool, _pool_lock
    _pool = None
    _pool_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_pool)


class NativeConnection:
    """One request to a rawx, on a pooled connection that is taken when the request starts.

    ``open`` may be left out: the first ``send`` or ``getresponse`` then opens with the default timeouts.
    """

    __slots__ = ("client", "headers", "host", "method", "path", "port", "scheme")

    def __init__(
        self, netloc: str, method: str, path: str, headers: Mapping[str, str], scheme: str
    ) -> None:
        host, _, port = netloc.rpartition(":")
        if not host or netloc.endswith("]"):
            host, port = netloc, "443" if scheme == "https" else "80"
        self.host = host.strip("[]")
        self.port = int(port)
        self.method = method
        self.path = path
        self.headers = headers
        self.scheme = scheme
        self.client: ClientConnection | None = None

    def open(
        self,
        connection_timeout: float = CONNECTION_TIMEOUT,
        timeout: float = CHUNK_TIMEOUT,
        fresh: bool = False,
    ) -> ClientConnection:
        """Take a connection, put the head of the request in its buffer (nothing is sent yet)."""
        client = shared_pool().acquire(
            self.host,
            self.port,
            self.scheme,
            connect_timeout_s=connection_timeout,
            read_timeout_s=timeout,
            write_timeout_s=timeout,
            fresh=fresh,
        )
        client.put_request(self.method, self.path, self.headers)
        self.client = client
        return client

    @property
    def sock(self) -> Any:
        """The socket."""
        return (self.client or self.open()).sock

    def send(self, data: bytes) -> None:
        """Send raw bytes of the body (chunked framing included, if any)."""
        (self.client or self.open()).send(data)

    def getresponse(self) -> ClientResponse:
        """Send what is left in the buffer, wait for the head of the answer."""
        return (self.client or self.open()).getresponse()

    def close(self) -> None:
        """Drop the connection; it does not go back to the pool."""
        client, self.client = self.client, None
        if client is not None:
            client.close()


def http_connect(
    netloc: str, method: str, path: str, headers: Mapping[str, str], scheme: str = "http"
) -> NativeConnection:
    """Prepare a request to a rawx. The default value of ``oio.api.io.http_connect``."""
    return NativeConnection(netloc, method, path, headers, scheme)


def split_url(url: str) -> tuple[str, str, str]:
    """``(scheme, netloc, path)`` of a chunk URL; the scheme defaults to http."""
    scheme, sep, rest = url.partition("://")
    if not sep:
        scheme, rest = "http", url
    netloc, _, path = rest.partition("/")
    return scheme, netloc, "/" + path


def speaks_native() -> bool:
    """Whether connections are the package's own, hence may carry more than the contract."""
    from oio.api import io

    return io.http_connect is http_connect


def open_connection(
    chunk: Mapping[str, Any],
    method: str,
    headers: Mapping[str, str],
    connection_timeout: float,
    timeout: float,
    fresh: bool = False,
) -> Any:
    """Connect to the rawx of a chunk. Raises a timeout of :func:`new_timeout`, or what the network says."""
    from oio.api import io

    scheme, netloc, path = split_url(chunk.get("real_url") or chunk["url"])
    green = green_module()
    try:
        if green is None:
            connection = io.http_connect(netloc, method, path, headers, scheme=scheme)
            if isinstance(connection, NativeConnection):
                connection.open(connection_timeout, timeout, fresh)
            return connection
        with green.ConnectionTimeout(connection_timeout):
            connection = io.http_connect(netloc, method, path, headers, scheme=scheme)
            if isinstance(connection, NativeConnection):
                connection.open(connection_timeout, timeout, fresh)
            return connection
    except http_errors.ConnectTimeout:
        raise new_timeout(ConnectionTimeout, connection_timeout) from None


def connect_each(
    connect: Callable[[dict[str, Any]], Any], chunks: Sequence[dict[str, Any]]
) -> list[tuple[dict[str, Any], Any]]:
    """Call a function that connects for each chunk: the pairs of a chunk and what came of it, failures too.

    Connecting is quick as a rule, hence one after the other. Once a host gives no sign of life, the rest go all at
    once: others of the chunks may be there, and the timeouts would add up.
    """

    def attempt(chunk: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        try:
            return chunk, connect(chunk)
        except failures() as err:
            return chunk, err

    pairs = []
    for index, chunk in enumerate(chunks, 1):
        pair = attempt(chunk)
        pairs.append(pair)
        if isinstance(pair[1], BaseException) and is_timeout(pair[1]) and speaks_native():
            return pairs + _at_once(attempt, chunks[index:])
    return pairs


def _at_once(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Results of a function, which must not raise, in the order of the items."""
    green = green_module()
    if green is not None and items:
        return list(green.GreenPool(len(items)).imap(function, items))
    results: list[Any] = [None] * len(items)

    def run(index: int) -> None:
        results[index] = function(items[index])

    threads = [
        threading.Thread(target=run, args=(index,), name="oio-connect", daemon=True)
        for index in range(len(items))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def discard(response: Any) -> None:
    """Be done with an answer whose body does not matter; keep the connection when that is cheap."""
    if not isinstance(response, ClientResponse):
        return
    length = response.length
    if length is None or length > _DISCARD_MAX:
        response.close()
        return
    try:
        response.read()
    except (OSError, http_errors.HttpClientError):
        response.close()
    else:
        response.release()
