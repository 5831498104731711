# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Sending an answer: its head, and its body in as few system calls as possible.

A head and a small body leave in one `send`. A file leaves with `sendfile`, behind a head that the kernel
holds back until the first bytes of the file are there. An iterator is never held beyond one piece.
"""

from __future__ import annotations

import http
import logging
import os
import socket
import ssl
import time
from collections.abc import Iterable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from oio.http import wire
from oio.http.messages import FileBody, Request, Response

if TYPE_CHECKING:
    from oio.http.connection import Connection
    from oio.http.server import ServerConfig

logger = logging.getLogger("oio.http")

JOIN_BYTES_MAX = 65536
"""Up to this size, copying the body behind the head is cheaper than a vectored send."""

SMALL_FILE_BYTES_MAX = 32768
"""Up to this size, reading a file and sending it with its head is cheaper than `sendfile`."""

SENDFILE_BYTES_MAX = 0x7FFFF000
"""What one `sendfile` call can do."""

TLS_STEP_BYTES = 262144
"""How much of a file is read at once to be sent through TLS."""

_status_lines: dict[int, str] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in http.HTTPStatus
}
_OWN_HEADERS = frozenset({"content-length", "transfer-encoding", "connection", "date"})

_date_second = 0
_date_line = ""


def send_response(
    connection: Connection, config: ServerConfig, request: Request, response: Response, keep: bool
) -> bool:
    """Send `response`; give whether the connection may be kept. Raises OSError when the peer is gone or too
    slow.
    """
    try:
        head, length, head_only, chunked, keep = _format_head(config, request, response, keep)
    except ValueError as error:
        logger.error("answer to %s replaced by 500: %s [%s]", request.path, error, request.reqid)
        _close_iterator(response.body)
        if isinstance(response.body, FileBody):
            response.body.close()
        response.status, response.body, response.headers = 500, b"", None
        response.content_length = None
        head, length, head_only, chunked, keep = _format_head(config, request, response, keep)
    body = response.body
    sock = connection.sock
    if head_only:
        _close_iterator(body)
        sock.sendall(head)
    elif isinstance(body, (bytes, bytearray, memoryview)):
        response.bytes_sent = _send_bytes(sock, head, body, length)
    elif isinstance(body, FileBody):
        response.bytes_sent = _send_file(sock, head, body, length)
    else:
        try:
            _send_pieces(sock, head, body, length, chunked, response)
        except OSError:
            raise
        except Exception:
            logger.exception("body of %s failed [%s]", request.path, request.reqid)
            return False
        finally:
            _close_iterator(body)
    return keep


def _format_head(
    config: ServerConfig, request: Request, response: Response, keep: bool
) -> tuple[bytes, int | None, bool, bool, bool]:
    """Give (head, Content-Length, whether only the head is sent, whether the body is chunked, whether to
    keep the connection). Raises ValueError when a header of the handler is illegal."""
    body = response.body
    status = response.status
    lines, length, keep = _own_headers(response, keep)
    head_only = request.method == "HEAD"
    chunked = False
    if status in (204, 304) or status < 200:
        head_only = True
        if status != 304:
            length = None
    elif length is None:
        if isinstance(body, (bytes, bytearray)):
            length = len(body)
        elif isinstance(body, memoryview):
            length = body.nbytes
        elif isinstance(body, FileBody):
            length = body.count
        elif request.is_11:
            chunked = True
        else:
            keep = False
    fields: list[str] = [_status_lines.get(status) or f"HTTP/1.1 {status} Unknown\r\n"]
    count = 3 + len(lines)
    fields += lines
    if length is not None:
        fields.append(f"Content-Length: {length}\r\n")
        count += 1
    elif chunked:
        fields.append("Transfer-Encoding: chunked\r\n")
        count += 1
    fields.append("Connection: keep-alive\r\n" if keep else "Connection: close\r\n")
    if config.date_header:
        fields.append(date_line())
        count += 1
    if config.echo_reqid and request.reqid:
        fields.append(f"x-oio-req-id: {request.reqid}\r\n")
        count += 1
    fields.append("\r\n")
    text = "".join(fields)
    wire.check_head(text, count)
    return text.encode("latin-1"), length, head_only, chunked, keep


def date_line() -> str:
    """Give the Date header, computed once per second."""
    global _date_second, _date_line
    now = int(time.time())
    if now != _date_second:
        _date_line = f"Date: {formatdate(now, usegmt=True)}\r\n"
        _date_second = now
    return _date_line


def _own_headers(response: Response, keep: bool) -> tuple[list[str], int | None, bool]:
    """Format the headers given by the handler; those that belong to the server are taken as wishes."""
    headers: Any = response.headers
    length = response.content_length
    if not headers:
        return [], length, keep
    items: Iterable[tuple[str, str]] = headers.items() if hasattr(headers, "items") else headers
    lines = []
    for name, value in items:
        lower = name.lower()
        if lower in _OWN_HEADERS:
            if lower == "content-length":
                length = int(value)
                continue
            if lower == "connection":
                keep = keep and value.lower() != "close"
                continue
            if lower == "transfer-encoding":
                continue
        lines.append(f"{name}: {value}\r\n")
    return lines, length, keep


def _send_bytes(
    sock: Any, head: bytes, body: bytes | bytearray | memoryview, length: int | None
) -> int:
    size = body.nbytes if isinstance(body, memoryview) else len(body)
    if length is not None and length != size:
        raise ConnectionAbortedError("handler gave a body of another length than it announced")
    if size <= JOIN_BYTES_MAX:
        sock.sendall(b"".join((head, body)) if size else head)
    else:
        send_vector(sock, [head, body])
    return size


def send_vector(sock: Any, buffers: list[Any]) -> None:
    """Send all of `buffers`, in one system call when the kernel takes it."""
    if isinstance(sock, ssl.SSLSocket):
        for buffer in buffers:
            sock.sendall(buffer)
        return
    sent = sock.sendmsg(buffers)
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        if sent >= view.nbytes:
            sent -= view.nbytes
        else:
            sock.sendall(view[sent:])
            sent = 0


def _send_file(sock: Any, head: bytes, body: FileBody, length: int | None) -> int:
    count = body.count
    if length is not None and length != count:
        raise ConnectionAbortedError("handler gave a file of another length than it announced")
    if not count:
        sock.sendall(head)
        return 0
    if count <= SMALL_FILE_BYTES_MAX:
        data = os.pread(body.fd, count, body.offset)
        if len(data) == count:
            sock.sendall(head + data)
            return count
    if isinstance(sock, ssl.SSLSocket):
        return _send_file_tls(sock, head, body)
    sock.sendall(head, socket.MSG_MORE)
    out = sock.fileno()
    offset = body.offset
    left = count
    while left:
        sent = os.sendfile(out, body.fd, offset, min(left, SENDFILE_BYTES_MAX))
        if not sent:
            raise ConnectionAbortedError("file shorter than announced")
        offset += sent
        left -= sent
    return count


def _send_file_tls(sock: ssl.SSLSocket, head: bytes, body: FileBody) -> int:
    sock.sendall(head)
    left = body.count
    offset = body.offset
    while left:
        data = os.pread(body.fd, min(left, TLS_STEP_BYTES), offset)
        if not data:
            raise ConnectionAbortedError("file shorter than announced")
        sock.sendall(data)
        offset += len(data)
        left -= len(data)
    return body.count


def _send_pieces(
    sock: Any, head: bytes, pieces: Any, length: int | None, chunked: bool, response: Response
) -> None:
    """Send the pieces of an iterator as they come; the head leaves with the first one."""
    pending = head
    total = 0
    for piece in pieces:
        size = piece.nbytes if isinstance(piece, memoryview) else len(piece)
        if not size:
            continue
        total += size
        if length is not None and total > length:
            raise ConnectionAbortedError("handler gave a longer body than it announced")
        before = b"%b%x\r\n" % (pending, size) if chunked else pending
        pending = b""
        after = b"\r\n" if chunked else b""
        if size <= JOIN_BYTES_MAX:
            sock.sendall(b"".join((before, piece, after)))
        else:
            send_vector(sock, [before, piece, after])
        response.bytes_sent = total
    if length is not None and total < length:
        if pending:
            sock.sendall(pending)
        raise ConnectionAbortedError("handler gave a shorter body than it announced")
    if chunked:
        pending += b"0\r\n\r\n"
    if pending:
        sock.sendall(pending)


def _close_iterator(body: Any) -> None:
    close = getattr(body, "close", None)
    if close is not None and not isinstance(body, FileBody):
        close()
