# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Every error of the HTTP core, server side then client side.

The server side errors carry the status that the peer gets; the client side errors carry the address of the
peer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

HeaderItems = Mapping[str, str] | Iterable[tuple[str, str]]
"""Headers as callers give them: a mapping, or pairs when a name may be repeated."""


class HttpError(Exception):
    """Raised by a handler to answer with ``status`` instead of returning a response."""

    def __init__(
        self,
        status: int,
        message: str = "",
        headers: HeaderItems | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(status, message, headers, body)
        self.status = status
        self.message = message
        self.headers = headers
        self.body = body

    def __str__(self) -> str:
        return f"{self.status} {self.message}".rstrip()


class HeadError(Exception):
    """Raised when the head of a message (start line and headers) breaks RFC 9112 or a limit."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return self.message


class BodyError(Exception):
    """Raised when the body of a request could not be read to its end; parent of the four below."""

    status = 400

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.__doc__)


class BodyTruncated(BodyError):
    """Raised when the peer left before the end of the body."""

    status = 400


class BodyTimeout(BodyError):
    """Raised when the peer sent nothing of the body for longer than allowed."""

    status = 408


class BodyMalformed(BodyError):
    """Raised when the chunked framing or the trailers of a body are malformed."""

    status = 400


class BodyTooLarge(BodyError):
    """Raised when a body is larger than the limit its reader gave."""

    status = 413


class HttpClientError(Exception):
    """Raised when no complete answer came from ``address``; parent of all errors of the client.

    ``sent`` is False when it is certain that not a single byte of the request left, thus that it may be
    sent again.
    """

    def __init__(self, message: str = "", address: str = "", sent: bool = True) -> None:
        super().__init__(message, address, sent)
        self.message = message
        self.address = address
        self.sent = sent

    def __str__(self) -> str:
        return f"{self.message} ({self.address})" if self.address else self.message


class ConnectError(HttpClientError):
    """Raised when the connection was refused, the host is unreachable or its name is unknown."""


class ConnectTimeout(ConnectError):
    """Raised when the connection could not be established in time."""


class ReadTimeout(HttpClientError):
    """Raised when the peer did not answer in time."""


class WriteTimeout(HttpClientError):
    """Raised when the peer did not take the request in time."""


class ConnectionClosed(HttpClientError):
    """Raised when the peer closed the connection before the end of its answer."""


class ProtocolError(HttpClientError):
    """Raised when the peer answered something that is not valid HTTP/1.x, or beyond the limits."""
