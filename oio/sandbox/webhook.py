# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The endpoint that webhooks of a local cluster are sent to, for tests: it remembers what it was told last.

``python -m oio.sandbox.webhook HOST:PORT``

| request | answer |
|---|---|
| ``POST /`` (what the filter ``webhook`` of the event agent sends) | 200; 400 when it names no object |
| ``GET /ACCOUNT/CONTAINER/OBJECT``, percent-encoded | the last body about it; 404 if none or deleted |
| ``GET /`` | 200 |
| ``POST /PURGE`` | 200, everything is forgotten |

Everything is in memory, and at most ``OBJECTS_MAX`` objects: those told of longest ago are forgotten.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Sequence
from urllib.parse import unquote

from oio.common.service import command_line, parse_address, run_until_stopped, setup_logging
from oio.http.server import Request, Response, Server

OBJECTS_MAX = 100_000
_BODY_MAX_BYTES = 16 << 20
_DELETED = "storage.content.deleted"


class LastBodies:
    """The handler of the server."""

    def __init__(self, objects_max: int = OBJECTS_MAX) -> None:
        self._objects_max = objects_max
        self._bodies: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Response:
        """Answer one request."""
        if request.method == "GET":
            return self._get(request.path)
        if request.method != "POST":
            return Response(405)
        if request.path == "/PURGE":
            with self._lock:
                self._bodies.clear()
            return Response(200)
        return self._post(request.read_all(_BODY_MAX_BYTES))

    def _get(self, path: str) -> Response:
        if path == "/":
            return Response(200)
        with self._lock:
            body = self._bodies.get(unquote(path[1:]))
        if body is None:
            return Response(404)
        return Response(200, body, [("Content-Type", "application/json")])

    def _post(self, body: bytes) -> Response:
        try:
            told = json.loads(body)
            data = told["data"]
            name = "/".join((data["account"], data["container"], data["name"]))
            deleted = told["eventType"] == _DELETED
        except (ValueError, KeyError, TypeError):
            return Response(400, b"not about an object")
        with self._lock:
            self._bodies.pop(name, None)
            if not deleted:
                self._bodies[name] = body
                while len(self._bodies) > self._objects_max:
                    del self._bodies[next(iter(self._bodies))]
        return Response(200)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; gives the exit code of the process."""
    parser = command_line("oio.sandbox.webhook", "Remember what webhooks told, for tests.")
    parser.add_argument("address", metavar="HOST:PORT", type=parse_address)
    options = parser.parse_args(argv)
    setup_logging()
    logging.getLogger("oio.access").setLevel(logging.WARNING)
    return run_until_stopped([Server(LastBodies(), [options.address])], name="webhook")


if __name__ == "__main__":
    sys.exit(main())
