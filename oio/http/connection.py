# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One connection of the server: read a request, call the handler, send the answer, again.

Guarantees: a request that breaks the rules gets one answer (400, 408, 413, 414, 431, 501 or 505) and a
closed connection; nothing after it is read as a request. A body that the handler left unread is either
skipped (when small) or makes the connection close. Neither side of a transfer is ever held whole in memory.

Timeouts without a system call per request: the socket's receive timeout stays at the short "linger" value.
A receive that expires tells a lingering connection to go and park; in the middle of a message it only
switches the socket to the longer timeout that applies there, once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

from oio.http import sending, wire
from oio.http.body import RECEIVE_BYTES, ChunkedBody, LengthBody, Source
from oio.http.errors import (
    BodyError,
    BodyMalformed,
    BodyTimeout,
    BodyTruncated,
    HeadError,
    HttpError,
)
from oio.http.messages import FileBody, Request, Response

if TYPE_CHECKING:
    from oio.http.server import Server

logger = logging.getLogger("oio.http")

REQID_CHARS_MAX = 63
"""Longer request ids are cut."""

DRAIN_BYTES_MAX = 262144
"""A body that the handler left unread is skipped up to this size; beyond, closing the connection is
cheaper.
"""

CLOSE_DRAIN_S = 2.0
"""How long a refused sender may go on sending before the connection is cut. Closing at once would make the
kernel send a reset, which can destroy the answer before the peer has read it."""

SKIP_BODY_S = 5.0
"""How long a body that the handler left unread may take to come, for the sake of the connection."""

LATE_HEAD = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

_state = threading.local()


def current_reqid() -> str:
    """Give the id of the request that this thread is serving, '' outside of any."""
    return getattr(_state, "reqid", "")


def pack_timeout(seconds: float) -> bytes:
    """Encode a timeout for SO_RCVTIMEO and SO_SNDTIMEO, for which 0 would mean forever."""
    micros = max(1000, int(seconds * 1e6))
    return struct.pack("ll", micros // 1000000, micros % 1000000)


class Connection(Source):
    """A connection accepted by a server. One thread at a time owns it."""

    __slots__ = (
        "_timeout_s",
        "armed_once",
        "deadline",
        "fd",
        "head_deadline",
        "peer",
        "server",
        "tls",
        "wait_s",
    )

    def __init__(self, server: Server, sock: Any, peer: str, tls: ssl.SSLContext | None) -> None:
        Source.__init__(self, sock, vectored=tls is None)
        self.server = server
        self.peer = peer
        self.tls = tls
        self.fd: int = sock.fileno()
        self.armed_once = False
        self.deadline = 0.0
        # When a head must be complete of which only a part has come; 0 when there is none.
        self.head_deadline = 0.0
        self._timeout_s = server.config.linger_s
        self.wait_s = 0.0

    # ---- what the parking lot calls

    def serve(self) -> bool:
        """Serve requests until the connection is idle (True: park it) or over (False)."""
        config = self.server.config
        try:
            if self.tls is not None:
                self._handshake(self.tls)
            while True:
                head = self._read_head()
                if head is None:
                    self.deadline = self.head_deadline or time.monotonic() + config.timeout_idle_s
                    return True
                if not head or not self._serve_request(head):
                    break
                if self.pos == self.end and not self.server.lot.may_linger():
                    if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
                        continue
                    self.deadline = time.monotonic() + config.timeout_idle_s
                    self.buf = b""
                    self.pos = self.end = 0
                    self.side = None
                    return True
        except _Refused as refused:
            self._refuse(refused.error)
        except (OSError, BodyError) as error:
            logger.debug("connection of %s lost: %s", self.peer, error)
        self.close()
        return False

    def close(self) -> None:
        """Close the socket and forget the connection."""
        if self.head_deadline and time.monotonic() >= self.head_deadline:
            self._tell_late()
        self.server.forget(self)
        with contextlib.suppress(OSError):
            self.sock.close()

    def abort(self) -> None:
        """Break the connection under the thread that serves it."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def has_input(self) -> bool:
        """Tell whether something was received that was not read yet."""
        if self.tls is not None or isinstance(self.sock, ssl.SSLSocket):
            poller = select.poll()
            poller.register(self.fd, select.POLLIN)
            return bool(poller.poll(0))
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    # ---- what the body readers call

    def stalled(self) -> None:
        """Give a body the long timeout after the short one expired; then give up."""
        if self._timeout_s < self.wait_s:
            self._set_timeout(self.wait_s)
            return
        raise BodyTimeout(f"nothing received for {self.wait_s} s")

    def broken(self, error: OSError) -> BaseException:
        """See `Source.broken`."""
        return BodyTruncated(f"connection lost: {error}")

    def truncated(self) -> BaseException:
        """See `Source.truncated`."""
        return BodyTruncated("connection closed by peer before the end of the body")

    def malformed(self, message: str) -> BaseException:
        """See `Source.malformed`."""
        return BodyMalformed(message)

    # ---- receiving

    def _read_head(self) -> bytes | None:
        """Give the head of the next request without its empty line; b'' when the peer left, None when it is
        idle.
        """
        config = self.server.config
        if self.pos == self.end:
            if self._timeout_s != config.linger_s:
                self._set_timeout(config.linger_s)
            try:
                data = self.sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, TimeoutError):
                if self.server.stopping:
                    return b""
                self.buf = b""
                self.pos = self.end = 0
                self.side = None
                return None
            if not data:
                return b""
            self.buf = data
            self.pos = 0
            self.end = len(data)
        buf = self.buf
        pos = self.pos
        end = buf.find(b"\r\n\r\n", pos, self.end)
        if end < 0 or buf[pos] == 13:
            return self._read_rest_of_head()
        if end - pos > config.max_head_bytes:
            raise _Refused(HeadError("request head too large", 431))
        self.pos = end + 4
        return bytes(buf[pos:end])

    def _read_rest_of_head(self) -> bytes | None:
        """The slow path of `_read_head`: the head comes in pieces, or after empty lines.

        Half a head holds no thread: the connection is parked with what has come, until its deadline.
        """
        config = self.server.config
        if not self.head_deadline:
            self.head_deadline = time.monotonic() + config.timeout_head_s
        while True:
            while self.buf[self.pos : self.pos + 2] == b"\r\n" and self.pos < self.end:
                self.pos += 2
            end = self.buf.find(b"\r\n\r\n", self.pos, self.end)
            size = (end if end >= 0 else self.end) - self.pos
            if size > config.max_head_bytes:
                raise _Refused(HeadError("request head too large", 431))
            if end >= 0:
                head = bytes(self.buf[self.pos : end])
                self.pos = end + 4
                self.head_deadline = 0.0
                return head
            pending = self.buf[self.pos : self.end]
            if wire.looks_broken(pending):
                raise _Refused(HeadError("illegal character in head"))
            if size > config.max_target_bytes and b"\r\n" not in pending:
                raise _Refused(HeadError("request line too long", 414))
            if time.monotonic() >= self.head_deadline:
                self.head_deadline = 0.0
                raise _Refused(HeadError("request head not received in time", 408))
            if self._timeout_s != config.linger_s:
                self._set_timeout(config.linger_s)
            try:
                data = self.sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, TimeoutError):
                if self.server.stopping:
                    continue  # nobody looks at parked connections any more
                self.buf = bytes(pending)
                self.pos = 0
                self.end = len(self.buf)
                self.side = None
                return None
            if not data:
                return b""
            self.buf = bytes(pending) + data
            self.pos = 0
            self.end = len(self.buf)

    def _parse(self, head: bytes) -> Request:
        config = self.server.config
        line, headers = wire.parse_head(head)
        if len(line) > config.max_target_bytes:
            raise HeadError("request line too long", 414)
        method, target, is_11 = wire.parse_request_line(line)
        request = Request(method, target, headers, None, self.peer)
        request.is_11 = is_11
        if "content-length" in headers or "transfer-encoding" in headers:
            length, chunked = wire.request_framing(headers, is_11)
            request.content_length = length
            if chunked:
                request.chunked = True
                request._body = ChunkedBody(self)
            elif length:
                request._body = LengthBody(self, length)
            request.body_limit = config.max_body_bytes
            self.wait_s = config.timeout_body_s
        if "expect" in headers and is_11:
            if headers["expect"].lower() != "100-continue":
                raise HeadError("unsupported expectation", 417)
            if request._body is not None and self.pos == self.end:
                request._continue = self._continue
        reqid = headers.get("x-oio-req-id") or headers.get("x-trans-id")
        if reqid:
            request.reqid = reqid[:REQID_CHARS_MAX]
        elif config.generate_reqid_prefix is not None:
            request.reqid = config.generate_reqid_prefix + os.urandom(12).hex().upper()
        return request

    def _continue(self) -> None:
        self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _set_timeout(self, seconds: float) -> None:
        self._timeout_s = seconds
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(seconds)
        else:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, pack_timeout(seconds))

    def _handshake(self, context: ssl.SSLContext) -> None:
        self.sock.settimeout(self.server.config.timeout_head_s)
        self.sock = context.wrap_socket(
            self.sock, server_side=True, do_handshake_on_connect=False
        )
        self.tls = None
        self.sock.do_handshake()
        self._set_timeout(self.server.config.linger_s)

    # ---- one request

    def _serve_request(self, head: bytes) -> bool:
        """Answer one request; True when the connection may carry another one."""
        server = self.server
        config = server.config
        started = time.perf_counter_ns()
        try:
            request = self._parse(head)
        except HeadError as error:
            raise _Refused(error) from None
        _state.reqid = request.reqid
        try:
            response, usable = self._call(request)
            keep = usable and config.keepalive and not server.stopping and not response.close
            if keep:
                keep = self._wants_keepalive(request) and self._can_skip_body(request)
            sent = False
            try:
                keep = sending.send_response(self, config, request, response, keep)
                sent = True
            finally:
                body = response.body
                if isinstance(body, FileBody):
                    body.close()
                if response.after_sent is not None:
                    response.after_sent()
                if config.access_log is not None:
                    micros = (time.perf_counter_ns() - started) // 1000
                    config.access_log(request, response, micros if sent else -micros)
            if keep and not request.body_finished:
                return self._skip_body(request)
            if not keep and not request.body_finished:
                self._close_gently()
            return keep
        finally:
            _state.reqid = ""

    def _call(self, request: Request) -> tuple[Response, bool]:
        """Run the handler; give its answer, and whether the connection is still in step."""
        try:
            response = self.server.handler(request)
            if not isinstance(response, Response):
                raise TypeError(f"handler gave {type(response).__name__} instead of a Response")
            return response, True
        except HttpError as error:
            return self.server.config.refusal(error), True
        except BodyTruncated:
            raise
        except BodyError as error:
            logger.info("%s %s refused: %s [%s]", request.method, request.path, error, request.reqid)
            return self.server.config.refusal(HttpError(error.status, str(error))), False
        except Exception:
            logger.exception("%s %s failed [%s]", request.method, request.path, request.reqid)
            return self.server.config.refusal(HttpError(500, "internal error")), True

    def _wants_keepalive(self, request: Request) -> bool:
        option = request.headers.get("connection")
        if option is None:
            return request.is_11
        options = [item.strip(" \t") for item in option.lower().split(",")]
        if "close" in options:
            return False
        return request.is_11 or "keep-alive" in options

    def _can_skip_body(self, request: Request) -> bool:
        """Tell whether the part of the body that the handler did not read is small enough to be skipped."""
        body = request._body
        if body is None or body.finished:
            return True
        if request._continue is not None:
            return False  # The peer waits for permission to send it, or does not: nobody can know.
        if isinstance(body, ChunkedBody):
            with contextlib.suppress(BodyMalformed):
                return body.skip_buffered()
            return False
        left = body.left_at_most()
        return left is not None and left <= DRAIN_BYTES_MAX

    def _skip_body(self, request: Request) -> bool:
        """Receive what the handler left unread; False when the peer trickles it."""
        deadline = time.monotonic() + SKIP_BODY_S
        self.wait_s = min(self.wait_s, SKIP_BODY_S)
        buffer = bytearray(RECEIVE_BYTES)
        while not request.body_finished:
            if time.monotonic() > deadline:
                return False
            request.readinto(buffer)
        return True

    def _tell_late(self) -> None:
        """Answer, without waiting, to a head that did not come in time."""
        logger.info("request of %s refused: request head not received in time", self.peer)
        if not isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                self.sock.send(LATE_HEAD, socket.MSG_DONTWAIT)

    def _refuse(self, error: HeadError) -> None:
        """Answer to something that is not a valid request, and close."""
        request = Request("-", "-", {}, None, self.peer)
        config = self.server.config
        response = config.refusal(HttpError(error.status, error.message))
        logger.info("request of %s refused: %s", self.peer, error.message)
        try:
            sending.send_response(self, config, request, response, False)
            self._close_gently()
        except OSError as lost:
            logger.debug("connection of %s lost: %s", self.peer, lost)
        if config.access_log is not None:
            config.access_log(request, response, 0)

    def _close_gently(self) -> None:
        """Stop sending, then swallow for a while what the peer still sends, so that it can read the
        answer.
        """
        deadline = time.monotonic() + CLOSE_DRAIN_S
        buffer = bytearray(RECEIVE_BYTES)
        with contextlib.suppress(OSError, BodyError):
            if isinstance(self.sock, ssl.SSLSocket):
                return
            self.sock.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0 and not self.server.stopping:
                self._set_timeout(left)
                if not self.sock.recv_into(buffer):
                    break


class _Refused(Exception):
    """Raised inside the connection loop when a request can't be parsed."""

    def __init__(self, error: HeadError) -> None:
        super().__init__(error.message)
        self.error = error
