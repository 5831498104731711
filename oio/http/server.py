# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 server that all services stand on.

    def handler(request):
        return Response(200, b"hello " + request.path.encode())

    server = Server(handler, [("127.0.0.1", 0)])
    server.start()
    ...  # server.addresses tells the port
    server.stop()

A handler runs in a thread of its own for as long as it needs and may block. Idle connections hold no
thread. Stopping finishes what runs, within a bound.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oio.http.connection import Connection, current_reqid, pack_timeout
from oio.http.errors import (
    BodyError,
    BodyMalformed,
    BodyTimeout,
    BodyTooLarge,
    BodyTruncated,
    HttpError,
)
from oio.http.messages import FileBody, Request, Response, parse_query, response_of_error
from oio.http.parking import ParkingLot
from oio.http.tcp import tune

__all__ = [
    "BodyError",
    "BodyMalformed",
    "BodyTimeout",
    "BodyTooLarge",
    "BodyTruncated",
    "FileBody",
    "HttpError",
    "Request",
    "RequestIdFilter",
    "Response",
    "Server",
    "ServerConfig",
    "current_reqid",
    "log_access",
    "parse_query",
]

logger = logging.getLogger("oio.http")
_access_logger = logging.getLogger("oio.access")

Listen = tuple[str, int] | str
Handler = Callable[[Request], Response]

ACCEPT_BURST = 64
"""Connections accepted in a row before the other listeners get their turn."""

ACCEPT_PAUSE_S = 0.1
"""Rest after the process or the host ran out of descriptors, instead of spinning."""

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class RequestIdFilter(logging.Filter):
    """Give every log record the attribute `reqid`: the id of the request that its thread is serving, or "-".

    ``handler.addFilter(RequestIdFilter())`` with ``%(reqid)s`` in the format puts it on every line.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attribute; never drops a record."""
        record.reqid = current_reqid() or "-"
        return True


def log_access(request: Request, response: Response, duration_us: int) -> None:
    """Log one line per request on "oio.access": method path status bytes_in bytes_out duration_us reqid peer.

    A negative duration tells that the answer could not be sent whole.
    """
    if _access_logger.isEnabledFor(logging.INFO):
        # Not `info`: looking for the caller's file and line would cost as much as the rest of the request.
        arguments = (
            request.method,
            request.path,
            response.status,
            request.bytes_in,
            response.bytes_sent,
            duration_us,
            request.reqid or "-",
            request.peer or "-",
        )
        record = logging.LogRecord(
            "oio.access", logging.INFO, "", 0, "%s %s %d %d %d %d %s %s", arguments, None, "log_access"
        )
        _access_logger.handle(record)


@dataclass
class ServerConfig:
    """Limits and habits of a server; durations in seconds, sizes in bytes."""

    max_head_bytes: int = 65536
    max_target_bytes: int = 16384
    max_body_bytes: int | None = 64 << 20
    """Default limit of `Request.read_all`, None for no limit; streaming reads are never limited."""
    timeout_head_s: float = 60.0
    """From the first byte of a head to its last; also for a new connection to send something."""
    timeout_body_s: float = 60.0
    """Longest silence while a body is read."""
    timeout_write_s: float = 60.0
    """Longest time without progress while an answer is sent."""
    timeout_idle_s: float = 3600.0
    """How long an idle connection is kept."""
    linger_s: float = 0.02
    """How long a thread waits for the next request of its connection before the connection is parked."""
    max_threads: int = 256
    max_connections: int = 16384
    backlog: int = 1024
    keepalive: bool = True
    generate_reqid_prefix: str | None = None
    echo_reqid: bool = True
    date_header: bool = True
    reuse_port: bool = False
    """Let several processes listen on the same port; the kernel spreads the connections."""
    access_log: Callable[[Request, Response, int], None] | None = log_access
    refusal: Callable[[HttpError], Response] = response_of_error
    """Makes the answer to something that cannot be read as a request."""


class Server:
    """An HTTP server on one or several addresses: ``(host, port)`` or ``"unix:/path"``.

    `tls` is None, a (certificate file, key file) pair for all listeners, or a list with one such item per
    listener.
    """

    def __init__(
        self,
        handler: Handler,
        listen: Sequence[Listen],
        config: ServerConfig | None = None,
        tls: Any = None,
    ) -> None:
        self.handler = handler
        self.config = config or ServerConfig()
        self.stopping = False
        self.lot = ParkingLot(self.config.max_threads)
        self._listen = list(listen)
        tls_items = tls if isinstance(tls, list) else [tls] * len(self._listen)
        if len(tls_items) != len(self._listen):
            raise ValueError("one tls item per listener expected")
        self._tls = [None if item is None else _tls_context(item) for item in tls_items]
        self._listeners: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        self._connections: dict[int, Connection] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._accepter: threading.Thread | None = None
        self._stopped = threading.Event()
        self._idle = threading.Condition()
        self._stop_lock = threading.Lock()

    def bind(self) -> None:
        """Open the listening sockets; `start` does it when it was not done."""
        if self._listeners:
            return
        for address, tls in zip(self._listen, self._tls, strict=True):
            try:
                self._listeners.append((self._open(address), tls))
            except OSError as error:
                self._close_listeners()
                self._listeners.clear()
                reason = error.strerror or str(error)
                raise OSError(error.errno, f"cannot listen on {_shown(address)}: {reason}") from error

    def start(self) -> None:
        """Listen and serve in background threads; returns once the ports are open."""
        self.bind()
        self.lot.start()
        self._accepter = threading.Thread(target=self._accept_loop, name="http-accept", daemon=True)
        self._accepter.start()

    @property
    def addresses(self) -> list[Listen]:
        """The addresses really listened on (with the port that the kernel chose for port 0)."""
        found: list[Listen] = []
        for sock, _ in self._listeners:
            name = sock.getsockname()
            found.append(f"unix:{name}" if isinstance(name, str) else (name[0], name[1]))
        return found

    @property
    def connections_count(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def stop(self, grace_s: float = 10.0) -> bool:
        """Refuse new connections, let running requests end within `grace_s`, then cut the others.

        Gives True when nothing had to be cut. May be called several times, from any thread but a handler's.
        """
        with self._stop_lock:
            if self._stopped.is_set():
                return True
            deadline = time.monotonic() + grace_s
            self.stopping = True
            os.eventfd_write(self._wake, 1)
            if self._accepter is not None:
                self._accepter.join(grace_s + 1.0)
            else:
                self._close_listeners()
            self.lot.clear()
            with self._idle:
                clean = self._idle.wait_for(
                    lambda: not self._connections, max(0.0, deadline - time.monotonic())
                )
            if not clean:
                for connection in list(self._connections.values()):
                    connection.abort()
            if self._accepter is None or self.lot.end(time.monotonic() + 1.0):
                self.lot.close()
            os.close(self._wake)
            self._stopped.set()
            return clean

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has stopped."""
        return self._stopped.wait(timeout_s)

    def forget(self, connection: Connection) -> None:
        """Account the end of a connection."""
        self._connections.pop(id(connection), None)
        if self.stopping and not self._connections:
            with self._idle:
                self._idle.notify_all()

    def _open(self, address: Listen) -> socket.socket:
        if isinstance(address, str):
            return _open_unix(address.removeprefix("unix:"), self.config.backlog)
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.config.reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Accepted sockets inherit these options from their listener: no system call per connection.
            tune(sock, host)
            self._set_timeouts(sock)
            sock.bind((host, port))
            sock.listen(self.config.backlog)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return sock

    def _set_timeouts(self, sock: socket.socket) -> None:
        config = self.config
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, pack_timeout(config.linger_s))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, pack_timeout(config.timeout_write_s))

    def _accept_loop(self) -> None:
        config = self.config
        tick = min(1.0, max(0.02, min(config.timeout_head_s, config.timeout_idle_s) / 4))
        ready = select.epoll()
        by_fd = {sock.fileno(): (sock, tls) for sock, tls in self._listeners}
        for fd in (self._wake, *by_fd):
            ready.register(fd, select.EPOLLIN)
        next_reap = time.monotonic() + tick
        try:
            while not self.stopping:
                for fd, _ in ready.poll(tick):
                    if fd in by_fd:
                        self._accept_some(*by_fd[fd])
                now = time.monotonic()
                if now >= next_reap:
                    self.lot.reap(now)
                    next_reap = now + tick
        finally:
            ready.close()
            self._close_listeners()

    def _accept_some(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        for _ in range(ACCEPT_BURST):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    logger.error("cannot accept connections: %s", error)
                    time.sleep(ACCEPT_PAUSE_S)
                return
            if len(self._connections) >= self.config.max_connections:
                logger.warning("too many connections (%d), one refused", len(self._connections))
                sock.close()
                continue
            if isinstance(address, tuple):
                peer = f"{address[0]}:{address[1]}"
            else:
                peer = "unix"
                self._set_timeouts(sock)
            connection = Connection(self, sock, peer, tls)
            self._connections[id(connection)] = connection
            self.lot.park(connection, time.monotonic() + self.config.timeout_head_s)

    def _close_listeners(self) -> None:
        for sock, _ in self._listeners:
            name = sock.getsockname() if sock.fileno() >= 0 else None
            sock.close()
            if isinstance(name, str) and name:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)


def _shown(address: Listen) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


def _open_unix(path: str, backlog: int) -> socket.socket:
    """Listen on a unix socket, taking the place of one that nobody serves any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _is_served(path):
                raise
            os.unlink(path)
            sock.bind(path)
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def _tls_context(item: Any) -> ssl.SSLContext:
    if isinstance(item, ssl.SSLContext):
        return item
    certificate, key = item
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context
