# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What a handler gets and gives: `Request`, `Response` and `FileBody`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote_to_bytes

from oio.http.body import BodyReader
from oio.http.errors import BodyTooLarge, HeaderItems, HttpError

DRAIN_STEP_BYTES = 262144
"""Size of the buffer that receives what nobody wants to read."""


class Request:
    """A request whose head was received; its body is read on demand.

    ``headers`` has lower-case names; ``path`` and ``target`` are still percent-encoded.
    """

    __slots__ = (
        "_body",
        "_continue",
        "_query",
        "body_limit",
        "chunked",
        "content_length",
        "context",
        "headers",
        "is_11",
        "method",
        "path",
        "peer",
        "query_string",
        "reqid",
        "target",
    )

    def __init__(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: BodyReader | None = None,
        peer: str = "",
        reqid: str = "",
        content_length: int | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.path, _, self.query_string = target.partition("?")
        self.headers: dict[str, str] = {} if headers is None else headers
        self.peer = peer
        self.reqid = reqid
        self.content_length = content_length
        self.chunked = False
        self.is_11 = True
        self.body_limit: int | None = None
        self.context: object = None
        self._body = body
        self._continue: Callable[[], None] | None = None
        self._query: dict[str, str] | None = None

    @property
    def query(self) -> dict[str, str]:
        """Decoded parameters of the query string; the first value of a name wins, a bare name has the value
        ''.

        :raises HttpError: 400 when one of them is not UTF-8.
        """
        query = self._query
        if query is None:
            query = self._query = parse_query(self.query_string)
        return query

    @property
    def trailers(self) -> dict[str, str]:
        """Headers sent after a chunked body; empty until the end of the body was read."""
        return {} if self._body is None else self._body.trailers

    @property
    def bytes_in(self) -> int:
        """How many bytes of the body were read."""
        return 0 if self._body is None else self._body.bytes_read

    @property
    def body_finished(self) -> bool:
        """Whether the body was read to its end (or there is none)."""
        return self._body is None or self._body.finished

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read between 1 byte and the size of `buffer`, waiting only for the first; 0 at the end of the body.

        Raises `BodyError`.
        """
        body = self._reader()
        return 0 if body is None else body.readinto(buffer)

    def read(self, count: int = -1) -> bytes:
        """Read exactly `count` bytes, fewer only at the end of the body; all of it (`read_all`) when
        negative.
        """
        if count < 0:
            return self.read_all()
        body = self._reader()
        return b"" if body is None else body.read(count)

    def read_some(self, count: int = 65536) -> bytes:
        """Read between 1 and `count` bytes, waiting only for the first; empty at the end of the body."""
        body = self._reader()
        return b"" if body is None else body.read_some(count)

    def read_all(self, limit_bytes: int | None = None) -> bytes:
        """Read the whole body. Raises `BodyTooLarge` when it exceeds `limit_bytes`, or the server's limit
        if none.
        """
        if self._body is None:
            return b""
        limit = self.body_limit if limit_bytes is None else limit_bytes
        if limit is not None and self.content_length is not None and self.content_length > limit:
            raise BodyTooLarge(f"body larger than {limit} bytes")
        body = self._reader()
        assert body is not None
        data = body.read_all(limit)
        if data is None:
            raise BodyTooLarge(f"body larger than {limit} bytes")
        return data

    def drain(self) -> int:
        """Read and forget the rest of the body; give its size."""
        body = self._reader()
        if body is None or body.finished:
            return 0
        buffer = bytearray(DRAIN_STEP_BYTES)
        total = 0
        while count := body.readinto(buffer):
            total += count
        return total

    def _reader(self) -> BodyReader | None:
        if self._continue is not None:
            answer, self._continue = self._continue, None
            answer()
        return self._body


class FileBody:
    """`count` bytes of the open file `fd` from `offset`, sent by the kernel without passing through Python.

    The descriptor is closed once sent (or when the answer fails), unless `close` is False.
    """

    __slots__ = ("_close", "count", "fd", "offset")

    def __init__(self, fd: int, offset: int, count: int, close: bool = True) -> None:
        self.fd = fd
        self.offset = offset
        self.count = count
        self._close = close

    def close(self) -> None:
        """Close the descriptor, once."""
        if self._close:
            self._close = False
            os.close(self.fd)


Body = bytes | bytearray | memoryview | FileBody | Iterator[bytes] | Iterable[bytes]


class Response:
    """An answer: status, body and headers (mapping or pairs).

    The server adds Content-Length (or chunked coding for an iterator without `content_length`), Connection,
    Date and the request id. `after_sent` runs when the last byte was handed to the kernel or the answer
    failed; `bytes_sent` (of the body) is known then.
    """

    __slots__ = ("after_sent", "body", "bytes_sent", "close", "content_length", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        body: Body = b"",
        headers: HeaderItems | None = None,
        content_length: int | None = None,
        after_sent: Callable[[], None] | None = None,
        close: bool = False,
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.content_length = content_length
        self.after_sent = after_sent
        self.close = close
        self.bytes_sent = 0


def response_of_error(error: HttpError) -> Response:
    """Build the answer to a request whose handler raised `error`: its body, else its message as plain
    text.
    """
    if error.body or not error.message:
        return Response(error.status, error.body, error.headers)
    headers = error.headers
    items: list[tuple[str, str]] = []
    if headers is not None:
        items = list(headers.items() if hasattr(headers, "items") else headers)
    items.append(("Content-Type", "text/plain; charset=utf-8"))
    return Response(error.status, error.message.encode("utf-8", "replace"), items)


def parse_query(text: str) -> dict[str, str]:
    """Decode a query string; '+' is a blank, the first value of a name wins, a name without '=' has the
    value ''.

    :raises HttpError: 400 when a name or a value is not UTF-8: replaced by something, different names would
        become the same.
    """
    query: dict[str, str] = {}
    if not text:
        return query
    for item in text.split("&"):
        if not item:
            continue
        name, _, value = item.partition("=")
        if "%" in name or "+" in name:
            name = _unquote(name, "name")
        if name not in query:
            query[name] = _unquote(value, f"parameter {name}") if "%" in value or "+" in value else value
    return query


def _unquote(text: str, what: str) -> str:
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise HttpError(400, f"{what}: not UTF-8") from None
