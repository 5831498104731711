# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One client connection: send a request in pieces, read its answer in pieces.

    connection = pool.acquire("127.0.0.1", 6200)
    connection.put_request("PUT", "/chunk", [("Transfer-Encoding", "chunked")])
    connection.send_chunk(data)
    connection.finish_chunks([("x-trailer", "1")])
    response = connection.getresponse()
    response.read()
    response.release()

What is small is buffered and leaves in one system call: head, chunk, last chunk and trailers of a small
upload together. What is large leaves at once, without a copy. The `queue…` methods never touch the socket;
with `send_nowait`, `try_read_response` and `ClientResponse.readinto_nowait` one thread can drive many
connections with a selector on `sock`.

The same code works on plain sockets (timeouts held by the kernel, no poll per receive), TLS sockets, and
the green sockets that eventlet puts in the place of the standard ones.
"""

from __future__ import annotations

import _socket
import contextlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from oio.http import wire
from oio.http.body import BodyReader, ChunkedBody, CloseBody, LengthBody, Source
from oio.http.client_response import ClientResponse, WouldBlock
from oio.http.errors import (
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    HeadError,
    HttpClientError,
    ProtocolError,
    ReadTimeout,
    WriteTimeout,
)
from oio.http.tcp import tune

HEAD_BYTES_MAX = 131072
"""Largest accepted head of an answer."""

BUFFERED_BYTES_MAX = 65536
"""Chunks are collected up to this size before they leave."""

COPY_BYTES_MAX = 16384
"""Up to this size, joining buffers is cheaper than a vectored send of them."""

VECTOR_MAX = 512
"""Most buffers given to the kernel in one call (its own limit is 1024)."""

TIMEOUT_SLACK = 1.02
"""A kernel timeout up to 2 % longer than what is left is not worth a system call to change it."""

_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_DONTWAIT = int(socket.MSG_DONTWAIT)

BytesLike = bytes | bytearray | memoryview
Headers = Mapping[str, Any] | Iterable[tuple[str, Any]]


class ClientConnection(Source):
    """A connection to `host`:`port`; used by one request at a time. `reused` tells that it served another
    before.
    """

    __slots__ = (
        "_method",
        "_out",
        "_out_bytes",
        "_plain",
        "_receive_s",
        "_send_s",
        "_tls",
        "_waiting",
        "address",
        "deadline",
        "host_header",
        "idle_since",
        "key",
        "on_release",
        "on_silence",
        "read_timeout_s",
        "received",
        "reused",
        "sent",
        "write_timeout_s",
    )

    def __init__(
        self,
        sock: Any,
        address: str,
        host_header: str,
        read_timeout_s: float = 30.0,
        write_timeout_s: float = 30.0,
    ) -> None:
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._plain = isinstance(sock, _socket.socket) and not self._tls
        Source.__init__(self, sock, vectored=self._plain)
        self.address = address
        self.host_header = host_header
        self.key = address
        self.reused = False
        self.sent = False
        self.received = False
        self.deadline: float | None = None
        self.idle_since = 0.0
        self.on_release: Callable[[ClientConnection], None] | None = None
        #: Asked after each silence of `read_timeout_s`: shall one wait on? None: a silence ends the request.
        self.on_silence: Callable[[], bool] | None = None
        self.read_timeout_s = read_timeout_s
        self.write_timeout_s = write_timeout_s
        self._method = ""
        self._out: list[BytesLike] = []
        self._out_bytes = 0
        self._receive_s = -1.0
        self._send_s = -1.0
        self._waiting = True

    # ---- request

    def put_request(self, method: str, path: str, headers: Headers = ()) -> None:
        """Buffer the head of a request; Host is added when it is missing, nothing else.

        Raises ValueError when something in it would break the framing.
        """
        self._queue(format_request(method, path, headers, self.host_header))
        self._method = method
        self.sent = self.received = False

    def send(self, data: BytesLike) -> None:
        """Send raw body bytes, behind what was buffered."""
        self._queue(data)
        self.flush()

    def send_chunk(self, data: BytesLike) -> None:
        """Send `data` as one chunk; small chunks wait for more, for `finish_chunks` or for `flush`."""
        if self._out_bytes + len(data) < BUFFERED_BYTES_MAX and not isinstance(data, bytes):
            data = bytes(data)  # The caller may change its buffer before this one leaves.
        self.queue_chunk(data)
        if self._out_bytes >= BUFFERED_BYTES_MAX:
            self.flush()

    def finish_chunks(self, trailers: Headers | None = None) -> None:
        """Send the last chunk, with trailers, and all that was buffered."""
        self.queue_finish(trailers)
        self.flush()

    def flush(self) -> None:
        """Send all that is buffered. Raises `WriteTimeout` or `ConnectionClosed`."""
        out = self._out
        if not out:
            return
        self._out = []
        self._out_bytes = 0
        self._arm_send()
        try:
            self._send_all(out)
        except (BlockingIOError, TimeoutError) as error:
            raise WriteTimeout("write timeout", self.address, self.sent) from error
        except OSError as error:
            raise self.broken(error) from error

    # ---- request, without waiting

    @property
    def pending(self) -> int:
        """How many bytes are buffered and have not left."""
        return self._out_bytes

    def queue(self, data: BytesLike) -> None:
        """Buffer raw bytes. `data` must not change until it has left."""
        self._queue(data)

    def queue_chunk(self, data: BytesLike) -> None:
        """Buffer `data` as one chunk. `data` must not change until it has left."""
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if size:
            self._queue(b"%x\r\n" % size)
            self._queue(data)
            self._queue(b"\r\n")

    def queue_finish(self, trailers: Headers | None = None) -> None:
        """Buffer the last chunk and the trailers."""
        if not trailers:
            self._queue(b"0\r\n\r\n")
            return
        items = list(trailers.items() if isinstance(trailers, Mapping) else trailers)
        text = wire.format_fields(items)
        wire.check_head(text, len(items))
        self._queue(b"0\r\n" + _encode(text) + b"\r\n")

    def send_nowait(self) -> bool:
        """Send as much of the buffer as the kernel takes without waiting; True when all has left."""
        while self._out:
            try:
                count = self._send_some()
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except OSError as error:
                raise self.broken(error) from error
            self.sent = True
            self._out_bytes -= count
            self._out = _after(self._out, count)
        return True

    # ---- answer

    def getresponse(self) -> ClientResponse:
        """Send what is still buffered and wait for the head of the answer."""
        if self._out:
            self.flush()
        while True:
            if self.pos != self.end:
                response = self._parse_response()
                if response is not None:
                    return response
            if not self.fill():
                raise self.truncated()

    def try_read_response(self) -> ClientResponse | None:
        """Give the answer if its head is there, None if more must come; never waits."""
        response = self._parse_response()
        while response is None:
            with self.nowait():
                try:
                    count = self.fill()
                except WouldBlock:
                    return None
            if not count:
                raise self.truncated()
            response = self._parse_response()
        return response

    # ---- life

    def settimeout(self, read_s: float | None = None, write_s: float | None = None) -> None:
        """Change the longest silence accepted while reading and while writing."""
        if read_s is not None:
            self.read_timeout_s = read_s
        if write_s is not None:
            self.write_timeout_s = write_s

    def fileno(self) -> int:
        """Give the descriptor, so that a selector takes the connection itself."""
        fd: int = self.sock.fileno()
        return fd

    def close(self) -> None:
        """Close the connection."""
        self._out = []
        self._out_bytes = 0
        with contextlib.suppress(OSError):
            self.sock.close()

    def release(self) -> None:
        """Give the connection back to its pool; it must be between two requests."""
        self.side = None
        self.deadline = None
        self.on_silence = None
        if self.on_release is None or self.pos != self.end or self._out:
            self.close()
            return
        self.buf = b""
        self.pos = self.end = 0
        self.on_release(self)

    def is_stale(self) -> bool:
        """Tell whether the peer closed the connection, or said something nobody asked for."""
        if self._tls:
            fd = self.sock.fileno()
            return fd < 0 or _is_readable(fd)
        raw = self.sock if self._plain else getattr(self.sock, "fd", self.sock)
        try:
            raw.recv(1, _PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    # ---- what the body readers call

    def fill(self) -> int:
        """See `Source.fill`."""
        if self._waiting:
            self._arm_receive()
        count = Source.fill(self)
        if count:
            self.received = True
        return count

    def recv_into(self, view: memoryview) -> int:
        """See `Source.recv_into`."""
        if self._waiting:
            self._arm_receive()
        if self._plain:
            return Source.recv_into(self, view)
        while True:
            try:
                count: int = self.sock.recv_into(view)
                return count
            except (BlockingIOError, TimeoutError, ssl.SSLWantReadError):
                self.stalled()
            except OSError as error:
                raise self.broken(error) from error

    def recv_split(self, view: memoryview) -> int:
        """See `Source.recv_split`."""
        if not self.vectored:
            return self.recv_into(view)
        if self._waiting:
            self._arm_receive()
        return Source.recv_split(self, view)

    def stalled(self) -> None:
        """See `Source.stalled`."""
        if not self._waiting:
            raise WouldBlock
        on_silence = self.on_silence
        if on_silence is None:
            raise ReadTimeout("read timeout", self.address, self.sent)
        # Raises when the deadline is reached; then what remains of it bounds the next silence.
        self._arm_receive()
        if not on_silence() and not _is_readable(self.sock.fileno()):
            raise ReadTimeout("no answer, and no sign of life", self.address, self.sent)
        self._arm_receive()

    def broken(self, error: OSError) -> BaseException:
        """See `Source.broken`."""
        if isinstance(error, ssl.SSLWantReadError) and not self._waiting:
            return WouldBlock()
        return ConnectionClosed(f"connection lost: {error}", self.address, self.sent)

    def truncated(self) -> BaseException:
        """See `Source.truncated`."""
        return ConnectionClosed("connection closed by peer", self.address, self.sent)

    def malformed(self, message: str) -> BaseException:
        """See `Source.malformed`."""
        return ProtocolError(message, self.address, self.sent)

    @contextlib.contextmanager
    def nowait(self) -> Any:
        """Inside, receiving raises instead of waiting."""
        self._waiting = False
        if self._plain:
            self.flags = _DONTWAIT
        else:
            self.sock.settimeout(0.0)
            self._receive_s = -1.0
        try:
            yield
        finally:
            self._waiting = True
            self.flags = 0

    # ---- helpers

    def _queue(self, data: BytesLike) -> None:
        self._out.append(data)
        self._out_bytes += data.nbytes if isinstance(data, memoryview) else len(data)

    def _send_all(self, out: list[BytesLike]) -> None:
        """Send all of `out`; `sent` becomes True with the first byte that the kernel took."""
        if not self._plain:
            self._send_all_simple(out)
            return
        sock = self.sock
        while out:
            if len(out) == 1:
                count = sock.send(out[0])
            else:
                count = sock.sendmsg(out if len(out) <= VECTOR_MAX else out[:VECTOR_MAX])
            self.sent = True
            out = _after(out, count)

    def _send_all_simple(self, out: list[BytesLike]) -> None:
        """The same for sockets that have no vectored send: TLS and green ones."""
        if len(out) > 1 and sum([len(data) for data in out]) <= 2 * BUFFERED_BYTES_MAX:
            out = [b"".join(out)]
        for data in out:
            view = memoryview(data).cast("B")
            while view:
                count = self.sock.send(view)
                self.sent = True
                view = view[count:]

    def _send_some(self) -> int:
        out = self._out
        if self._plain:
            buffers = out if len(out) <= VECTOR_MAX else out[:VECTOR_MAX]
            return int(self.sock.sendmsg(buffers, (), _DONTWAIT))
        if self._tls:
            self.sock.settimeout(0.0)
            self._receive_s = -1.0
            return int(self.sock.send(out[0]))
        return int(self.sock.fd.send(out[0]))

    def _arm_receive(self) -> None:
        want = self.read_timeout_s
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise ReadTimeout("deadline reached", self.address, self.sent)
            if left < want:
                want = left
        if not want <= self._receive_s <= want * TIMEOUT_SLACK:
            self._receive_s = want
            if self._plain:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _pack(want))
            else:
                self.sock.settimeout(want)

    def _arm_send(self) -> None:
        want = self.write_timeout_s
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise WriteTimeout("deadline reached", self.address, self.sent)
            if left < want:
                want = left
        if self._plain:
            if not want <= self._send_s <= want * TIMEOUT_SLACK:
                self._send_s = want
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _pack(want))
        elif self._receive_s != want:
            self._receive_s = want
            self.sock.settimeout(want)

    def _parse_response(self) -> ClientResponse | None:
        """Parse the head of the answer if it is whole in the buffer; interim answers (1xx) are skipped."""
        while True:
            end = self.buf.find(b"\r\n\r\n", self.pos, self.end)
            size = (end if end >= 0 else self.end) - self.pos
            if size > HEAD_BYTES_MAX:
                raise self.malformed("head of the answer too large")
            if end < 0:
                if self.pos < self.end and wire.looks_broken(self.buf[self.pos : self.end]):
                    raise self.malformed("malformed answer")
                return None
            try:
                head = self.buf[self.pos : end]
                line, headers = wire.parse_head(head)
                is_11, status, reason = wire.parse_status_line(line)
                self.pos = end + 4
                if status >= 200:
                    body, keep = self._frame(status, headers, is_11)
                    response = ClientResponse(self, status, reason, headers, body, keep)
                    response.headers.raw = head
                    return response
            except HeadError as error:
                raise self.malformed(f"malformed answer: {error.message}") from None
            if status == 101:
                raise self.malformed("unexpected protocol switch")

    def _frame(
        self, status: int, headers: dict[str, str], is_11: bool
    ) -> tuple[BodyReader | None, bool]:
        """Give the reader of the body (None when there is none) and whether the connection survives it."""
        option = headers.get("connection")
        if option is None:
            keep = is_11
        else:
            option = option.lower()
            keep = "close" not in option and (is_11 or "keep-alive" in option)
        text = headers.get("content-length")
        coding = headers.get("transfer-encoding")
        if coding is not None:
            if text is not None:
                raise HeadError("both Content-Length and Transfer-Encoding")
            if coding.lower() != "chunked":
                raise HeadError("unsupported Transfer-Encoding")
        length = None if text is None else wire.parse_length(text)
        if self._method == "HEAD" or status == 204 or status == 304:
            return None, keep
        if coding is not None:
            return ChunkedBody(self), keep
        if length is None:
            return CloseBody(self), False
        return (LengthBody(self, length) if length else None), keep


def connect(
    scheme: str,
    host: str,
    port: int,
    *,
    connect_timeout_s: float,
    source_address: tuple[str, int] | None = None,
    tls_context: Any = None,
) -> tuple[Any, str]:
    """Open a socket; give it and the address for messages. `scheme` is http, https or http+unix (path as
    host).
    """
    address = host if scheme == "http+unix" else f"{host}:{port}"
    sock: Any = None
    try:
        if scheme == "http+unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(connect_timeout_s)
            sock.connect(host)
        else:
            sock = socket.create_connection((host, port), connect_timeout_s, source_address)
            tune(sock, host)
            if scheme == "https":
                sock = tls_context.wrap_socket(sock, server_hostname=host)
        if isinstance(sock, _socket.socket) and not isinstance(sock, ssl.SSLSocket):
            sock.settimeout(None)
    except OSError as error:
        if sock is not None:
            sock.close()
        if isinstance(error, TimeoutError):
            raise ConnectTimeout("connect timeout", address, False) from error
        raise ConnectError(f"cannot connect: {error}", address, False) from error
    return sock, address


def format_request(method: str, target: str, headers: Headers, host: str) -> bytes:
    """Format the head of a request; headers whose value is None are left out. Raises ValueError on
    injection.
    """
    lines = []
    kind = type(headers)
    if kind is dict or (kind is not list and kind is not tuple and isinstance(headers, Mapping)):
        headers = headers.items()  # type: ignore[union-attr]
    has_host = False
    for name, value in headers:  # type: ignore[str-unpack]
        if value is None:
            continue
        if len(name) == 4 and name.lower() == "host":
            has_host = True
        lines.append(f"{name}: {value}\r\n")
    first = f"{method} {target} HTTP/1.1\r\n"
    if not has_host:
        first += f"Host: {host}\r\n"
    text = first + "".join(lines)
    wire.check_head(text, len(lines) + (1 if has_host else 2))
    if first.count(" ") != (2 if has_host else 3) or not first.isascii():
        raise ValueError(f"illegal character in request target {target!r}")
    return _encode(text) + b"\r\n"


def _encode(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8")


def _after(buffers: list[BytesLike], count: int) -> list[BytesLike]:
    """Give what remains of `buffers` after their first `count` bytes."""
    for index, data in enumerate(buffers):
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if count < size:
            rest: list[BytesLike] = [memoryview(data).cast("B")[count:]]
            return rest + buffers[index + 1 :]
        count -= size
    return []


def _pack(seconds: float) -> bytes:
    micros = max(1000, int(seconds * 1e6))
    return struct.pack("ll", micros // 1000000, micros % 1000000)


__all__ = ["ClientConnection", "ClientResponse", "HttpClientError", "connect", "format_request"]


def _is_readable(fd: int) -> bool:
    """Would a read of this descriptor return at once?"""
    if not hasattr(select, "poll"):
        # Eventlet takes it away; its own ``select`` takes any descriptor.
        return bool(select.select([fd], [], [], 0)[0])
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
