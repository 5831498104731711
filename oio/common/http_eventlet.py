# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Single HTTP connections under the names that programs know (deprecated: the package has its own client).

They stand on the standard library, and become green when it has been patched; importing this module loads no
eventlet. Nothing is pooled: one connection serves one request.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote_from_bytes

_TCP_CORK = getattr(socket, "TCP_CORK", 3)


class CustomHTTPResponse(http.client.HTTPResponse):
    """Response whose ``close``, before the end of the body, shuts the connection down."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._connection_sock: Any = sock

    def close(self) -> None:
        """Be done with the response; what was not read is lost, and the connection with it."""
        if not self.isclosed():
            with suppress(OSError):
                self._connection_sock.shutdown(socket.SHUT_RDWR)
        super().close()

    def force_close(self) -> None:
        """Close the socket itself, whoever else holds it."""
        self.close()
        self._connection_sock.close()


class _Tuned:
    """Options of the socket of a connection."""

    sock: Any

    def set_cork(self, enabled: bool = True) -> None:
        """Hold partial frames back (TCP_CORK)."""
        self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_CORK, int(bool(enabled)))


class CustomHttpConnection(_Tuned, http.client.HTTPConnection):
    """Connection that sends small segments at once (TCP_NODELAY)."""

    response_class = CustomHTTPResponse

    def connect(self) -> None:
        """Connect, and set TCP_NODELAY."""
        super().connect()
        self.set_nodelay(True)

    def set_nodelay(self, enabled: bool = True) -> None:
        """Send small segments at once, or gather them."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(bool(enabled)))


class CustomHttpsConnection(_Tuned, http.client.HTTPSConnection):
    """Same through TLS, without ``set_nodelay``."""

    response_class = CustomHTTPResponse


def http_connect(
    host: str,
    method: str,
    path: str | bytes,
    headers: Mapping[str, Any] | None = None,
    query_string: str | None = None,
    scheme: str = "http",
) -> Any:
    """Connect and send the head of a request; the body is for the caller to send.

    :param path: text or bytes, percent-encoded here.
    :param headers: values may be numbers, booleans, or lists (repeated headers).
    :returns: connection, ready for ``send`` and ``getresponse``. HTTPS does not verify certificates.
    """
    connection: http.client.HTTPConnection
    if scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = CustomHttpsConnection(host, context=context)
    else:
        connection = CustomHttpConnection(host)
    raw = path if isinstance(path, bytes) else path.encode("utf-8")
    target = quote_from_bytes(raw if raw.startswith(b"/") else b"/" + raw, safe="/")
    if query_string:
        target = f"{target}?{query_string}"
    connection.putrequest(method, target)
    for name, value in (headers or {}).items():
        for one in _values(value):
            connection.putheader(name, one)
    connection.endheaders()
    return connection


def _values(value: Any) -> Iterable[str | bytes]:
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [one if isinstance(one, bytes) else str(one) for one in values]
