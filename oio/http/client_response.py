# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The answer to a request, whose body is read on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oio.http.body import BodyReader
from oio.http.wire import HeaderDict

if TYPE_CHECKING:
    from oio.http.client_connection import ClientConnection


class WouldBlock(Exception):
    """Raised inside the client when the caller asked not to wait and nothing is there."""


class ClientResponse:
    """The answer to a request; its body is read on demand."""

    __slots__ = ("_body", "_keep", "connection", "headers", "reason", "status")

    def __init__(
        self,
        connection: ClientConnection,
        status: int,
        reason: str,
        headers: dict[str, str],
        body: BodyReader | None,
        keep: bool,
    ) -> None:
        self.connection = connection
        self.status = status
        self.reason = reason
        self.headers = HeaderDict(headers)
        self._body = body
        self._keep = keep

    @property
    def length(self) -> int | None:
        """How many bytes of the body remain, None when unknown."""
        return 0 if self._body is None else self._body.left_at_most()

    @property
    def finished(self) -> bool:
        """Whether the body was read to its end."""
        return self._body is None or self._body.finished

    @property
    def trailers(self) -> dict[str, str]:
        """Headers sent after a chunked body; empty until the end of the body was read."""
        return {} if self._body is None else self._body.trailers

    def getheader(self, name: str, default: Any = None) -> Any:
        """Give the value of a header, or `default`."""
        return self.headers.get(name, default)

    def getheaders(self) -> list[tuple[str, str]]:
        """Give all headers as pairs."""
        return list(self.headers.items())

    def read(self, count: int = -1) -> bytes:
        """Read exactly `count` bytes, fewer only at the end; everything when negative."""
        body = self._body
        if body is None:
            return b""
        if count < 0:
            return body.read_all() or b""
        return body.read(count)

    def read_all(self, limit: int) -> bytes:
        """Read everything. Raises `ProtocolError` when it is more than `limit` bytes."""
        body = self._body
        if body is None:
            return b""
        data = body.read_all(limit)
        if data is None:
            raise self.connection.malformed(f"answer larger than {limit} bytes")
        return data

    def read_some(self, count: int = 65536) -> bytes:
        """Read between 1 and `count` bytes, waiting only for the first; empty at the end."""
        return b"" if self._body is None else self._body.read_some(count)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read between 1 byte and the size of `buffer`, waiting only for the first; 0 at the end."""
        return 0 if self._body is None else self._body.readinto(buffer)

    def readinto_nowait(self, buffer: bytearray | memoryview) -> int | None:
        """Like `readinto`, but gives None instead of waiting."""
        if self._body is None:
            return 0
        with self.connection.nowait():
            try:
                return self._body.readinto(buffer)
            except WouldBlock:
                return None

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def release(self) -> None:
        """Give the connection back to its pool if the answer was read whole and allows it; close it
        otherwise.
        """
        if self._keep and (self._body is None or self._body.finished):
            self.connection.release()
        else:
            self.connection.close()

    def __enter__(self) -> ClientResponse:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
