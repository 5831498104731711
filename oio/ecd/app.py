# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ecd gateway as a WSGI application, for a web server that runs it.

>>> app = create_app({"namespace": "NS"})

The web server must accept chunked request bodies (and say so by ``wsgi.input_terminated``, as gunicorn and
mod_wsgi do) and some 200 header fields.
"""

from __future__ import annotations

import http
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from oio.ecd.gateway import Gateway

_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}


class ECD:
    """The application.

    :param conf: ``namespace``; ``key_file`` is ignored, chunks on Backblaze are not supported.
    """

    def __init__(self, conf: Mapping[str, Any] | None = None) -> None:
        self.gateway = Gateway(conf)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve a request."""
        headers = {
            name[5:].lower().replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        if environ.get("CONTENT_LENGTH"):
            headers["content-length"] = environ["CONTENT_LENGTH"]
        path = environ.get("PATH_INFO") or "/"
        reply = self.gateway.answer(environ["REQUEST_METHOD"], path, headers, _Input(environ))
        fields = [("Content-Type", reply.content_type)]
        if isinstance(reply.body, bytes):
            fields.append(("Content-Length", str(len(reply.body))))
        start_response(f"{reply.status} {_PHRASES.get(reply.status, 'Unknown')}", fields)
        return [reply.body] if isinstance(reply.body, bytes) else reply.body


class _Input:
    """Body of a request: as long as it says, or to its end when it is chunked."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._stream = environ["wsgi.input"]
        chunked = "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower()
        self._to_the_end = chunked or bool(environ.get("wsgi.input_terminated"))
        length = environ.get("CONTENT_LENGTH") or ""
        self._left = int(length) if length.isdigit() else None

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes. :raises OSError: when the body is shorter than announced."""
        if self._left is None:
            return self._stream.read(size) if self._to_the_end else b""
        if not self._left:
            return b""
        data: bytes = self._stream.read(min(size, self._left))
        if not data:
            raise OSError(f"the body ends {self._left} bytes too early")
        self._left -= len(data)
        return data


def create_app(conf: Mapping[str, Any] | None = None) -> ECD:
    """Make the application."""
    return ECD(conf)
