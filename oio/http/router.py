# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Finding the handler of a request: one dictionary look-up on (method, path).

    router = Router()
    router.add("GET", "/status", status)
    server = Server(router, [("127.0.0.1", 0)])
"""

from __future__ import annotations

from collections.abc import Callable

from oio.http.messages import Request, Response

Handler = Callable[[Request], Response]


def _not_found(request: Request) -> Response:
    return Response(404, b"no such route", [("Content-Type", "text/plain")])


class Router:
    """Routes of a service. Exact paths win over prefixes, long prefixes over short ones.

    `not_found` answers everything else; `method_not_allowed`, when given, answers a known path asked with
    an unknown method.
    """

    def __init__(
        self,
        not_found: Handler = _not_found,
        method_not_allowed: Handler | None = None,
    ) -> None:
        self.not_found = not_found
        self.method_not_allowed = method_not_allowed
        self._exact: dict[tuple[str, str], Handler] = {}
        self._paths: dict[str, list[str]] = {}
        self._prefixes: list[tuple[str, str, Handler]] = []

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Serve `method` on exactly `path`. Raises ValueError when the route exists."""
        key = (method, path)
        if key in self._exact:
            raise ValueError(f"route declared twice: {method} {path}")
        self._exact[key] = handler
        self._paths.setdefault(path, []).append(method)

    def add_prefix(self, method: str, prefix: str, handler: Handler) -> None:
        """Serve `method` on all paths that start with `prefix`; `method` "*" stands for any."""
        self._prefixes.append((prefix, method, handler))
        self._prefixes.sort(key=lambda item: -len(item[0]))

    def methods(self, path: str) -> list[str]:
        """Give the methods declared for exactly `path`."""
        return list(self._paths.get(path, ()))

    def routes(self) -> list[tuple[str, str]]:
        """Give all exact routes, sorted by path."""
        return sorted(self._exact, key=lambda key: (key[1], key[0]))

    def __call__(self, request: Request) -> Response:
        """Answer a request: this makes a router a handler."""
        handler = self._exact.get((request.method, request.path))
        if handler is not None:
            return handler(request)
        path = request.path
        for prefix, method, prefix_handler in self._prefixes:
            if path.startswith(prefix) and method in ("*", request.method):
                return prefix_handler(request)
        if self.method_not_allowed is not None and path in self._paths:
            return self.method_not_allowed(request)
        return self.not_found(request)
