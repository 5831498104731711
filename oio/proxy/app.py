# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The proxy as one object: its state, and the dispatch of requests to routes.

A known request is found by one look-up of ``method path``. Everything a route raises becomes the documented error
here, in one place: see :func:`error_response`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from oio.common import status
from oio.common.status import StatusError, http_status
from oio.common.utils import request_id
from oio.common.variables import Variables
from oio.http.client import HttpPool
from oio.http.errors import BodyError, HttpError
from oio.http.messages import Request, Response
from oio.meta.client import MetaClient
from oio.proxy import policies
from oio.proxy.call import JSON_HEADERS, Call, encode_json
from oio.proxy.feed import Feed
from oio.proxy.lb import World
from oio.proxy.resolver import Resolver

logger = logging.getLogger(__name__)

PREFIX = "/v3.0/"
METHOD_MAX = 64

#: Sent on the copy of a request that goes to the sibling processes, so that they do not pass it on again.
SIBLING_HEADER = "x-oio-proxy-sibling"

_NOT_WORDS = re.compile(r"[^A-Za-z0-9]+")

Handler = Callable[[Call], Response]
#: Sends a request to the sibling processes (method, path with query, body, headers); answers their bodies.
Broadcast = Callable[[str, str, bytes, dict[str, str]], list[bytes]]


class RouteDefinition(NamedTuple):
    """A route as its module declares it; the path is relative to ``/v3.0/`` or, with ``namespaced``, to
    ``/v3.0/NS/``."""

    method: str
    path: str
    handler: Handler
    meta2: bool = False
    namespaced: bool = True


class _Route:
    """A route and its counters. Increments of one attribute are not torn by threads under the GIL; what could be
    lost at worst is one count."""

    __slots__ = ("handler", "hits", "meta2", "name", "time_us")

    def __init__(self, name: str, handler: Handler, meta2: bool) -> None:
        self.name = name
        self.handler = handler
        self.meta2 = meta2
        self.hits = 0
        self.time_us = 0


class Proxy:
    """State of one worker process of the proxy. Calling it with a request gives the response."""

    def __init__(
        self,
        namespace: str,
        variables: Variables,
        feed: Feed,
        http: HttpPool,
        routes: list[RouteDefinition],
    ) -> None:
        self.namespace = namespace
        self.variables = variables
        self.feed = feed
        self.http = http
        self.resolver = Resolver(variables, MetaClient(http), feed)
        self.policies = policies.new_cache()
        self.broadcast: Broadcast | None = None
        self.body_max: int = variables["server.request.max_size"]
        self.routes: dict[str, _Route] = {}
        self._templates: set[str] = set()
        for definition in routes:
            middle = f"{namespace}/" if definition.namespaced else ""
            # A path that begins with a slash stands outside the tree of the API.
            absolute = definition.path if definition.path.startswith("/") else PREFIX + middle + definition.path
            name = _NOT_WORDS.sub("_", f"{definition.path}_{definition.method}").strip("_")
            route = _Route(name, definition.handler, definition.meta2)
            self.routes[f"{definition.method} {absolute}"] = route
            if definition.namespaced:
                self._templates.add(f"{definition.method} {definition.path}")
        self.unexpected = _Route("UNEXPECTED", _no_handler, False)

    @property
    def world(self) -> World:
        """The current picture of the namespace. :raises StatusError: 503 before the first one arrived."""
        world = self.feed.world
        if world is None:
            raise StatusError(status.UNAVAILABLE, "Load balancer not ready: no answer from the conscience yet")
        return world

    def __call__(self, request: Request) -> Response:
        """Answer a request; raises nothing."""
        begin = time.perf_counter_ns()
        route = self.routes.get(f"{request.method} {request.path}") or self._find(request)
        if not request.reqid:
            request.reqid = request_id("proxy-")
        call = Call(self, request)
        try:
            response = route.handler(call)
        except StatusError as exc:
            response = error_response(exc.code, exc.message, route.meta2)
        except BodyError as exc:
            code = status.PAYLOAD_TOO_LARGE if exc.status == 413 else status.BAD_REQUEST
            response = _error(exc.status, code, str(exc))
            response.close = True
        except msgspec.MsgspecError as exc:
            response = error_response(status.BAD_REQUEST, f"Invalid JSON: {exc}", route.meta2)
        except Exception:
            logger.exception("%s %s failed, request %s", request.method, request.target, request.reqid)
            response = error_response(status.INTERNAL_ERROR, "Internal error, see the logs of the proxy")
        option = request.headers.get("connection")
        if option != "keep-alive" and (option is None or "keep-alive" not in option.lower()):
            # Contract: only those who ask keep their connection.
            response.close = True
        perfdata = call.perfdata()
        if perfdata:
            headers = response.headers or ()
            pairs = headers.items() if hasattr(headers, "items") else headers
            response.headers = [*pairs, ("X-oio-perfdata", perfdata)]
        route.hits += 1
        route.time_us += (time.perf_counter_ns() - begin) // 1000
        return response

    def apply_variables(self) -> None:
        """Take into account variables that are not read at each use."""
        self.body_max = self.variables["server.request.max_size"]
        self.feed.registry.timeout_s = self.variables["proxy.outgoing.timeout.conscience"]
        self.feed.rebuild()

    def is_from_sibling(self, call: Call) -> bool:
        """Was this request passed on by another worker of the same proxy?"""
        return SIBLING_HEADER in call.headers

    def tell_siblings(self, call: Call, body: bytes = b"", target: str = "") -> list[bytes]:
        """Pass a request that changes the state of the process on to the other workers, and give their answers.

        ``target`` replaces the one of the request. Does nothing in a sibling that got it that way.
        """
        if self.broadcast is None or self.is_from_sibling(call):
            return []
        return self.broadcast(
            call.request.method,
            target or call.request.target,
            body,
            {SIBLING_HEADER: "1", "x-oio-req-id": call.reqid, "connection": "keep-alive"},
        )

    def _find(self, request: Request) -> _Route:
        """Look up a path written in an unusual way; refuse another namespace."""
        maximum = self.variables["proxy.url.path.maxlen"]
        if len(request.path) > maximum or len(request.method) > METHOD_MAX:
            return self.unexpected
        path = request.path.lstrip("/")
        tokens = [unquote(token) for token in path.removesuffix("/").split("/")]
        if any("/" in token for token in tokens):
            return self.unexpected
        route = self.routes.get(f"{request.method} /{'/'.join(tokens)}")
        if route is not None:
            return route
        template = f"{request.method} {'/'.join(tokens[2:])}"
        if len(tokens) > 2 and tokens[0] == "v3.0" and template in self._templates:
            return _WRONG_NAMESPACE
        return self.unexpected


def error_response(code: int, message: str, meta2: bool = False) -> Response:
    """The answer to a request that failed (contract: "Error body and HTTP mapping")."""
    return _error(http_status(code, meta2), code, message)


def refusal(error: HttpError) -> Response:
    """The answer to something that could not be read as a request."""
    code = status.NOT_IMPLEMENTED if error.status == 501 else status.BAD_REQUEST
    response = _error(error.status, code, error.message)
    response.headers = [*(response.headers or ()), ("x-oio-req-id", request_id("proxy-"))]
    return response


def mapped_error(http: int, error: StatusError) -> Response:
    """The answer of a route that chooses its HTTP status by itself."""
    return _error(http, error.code, error.message)


def _error(http: int, code: int, message: str) -> Response:
    headers = JSON_HEADERS
    if http == 503:
        headers = [*JSON_HEADERS, ("Retry-After", "1")]
    elif http == 405:
        allow = "GET, HEAD, PUT" if "worm" in message.lower() else "GET, HEAD"
        headers = [*JSON_HEADERS, ("Allow", allow)]
    return Response(http, encode_json({"status": code, "message": message}), headers)


def _no_handler(call: Call) -> Response:
    return error_response_404()


def error_response_404() -> Response:
    """The answer to a request that no route takes."""
    return _error(404, status.NO_HANDLER, "No handler found")


def _wrong_namespace(call: Call) -> Response:
    raise StatusError(status.BAD_REQUEST, "Invalid parameter 'namespace'")


_WRONG_NAMESPACE = _Route("UNEXPECTED", _wrong_namespace, False)
