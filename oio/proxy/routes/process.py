# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Routes outside a namespace: the process itself, its caches, and the services behind it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from oio.common import status
from oio.common.metrics import CONTENT_TYPE, Metric, render
from oio.common.status import StatusError
from oio.conscience.messages import valid_address
from oio.http.client import HttpClientError, HttpResponse
from oio.http.messages import Response
from oio.meta.client import network_code
from oio.meta.messages import Refresh
from oio.proxy.app import Proxy, RouteDefinition, mapped_error
from oio.proxy.call import Call, bad_request, json_reply
from oio.proxy.policies import FORGET_PATH

_STATUS_HEADERS = [("Content-Type", "text/x-java-properties")]
_LINE = re.compile(rb"^(?:(?P<kind>counter|gauge) )?(?P<name>\S+)[ =](?P<value>\S+)$")

#: Elections that a service may be asked to leave at once, and how long their bases must have been idle (seconds).
_MASTERS_DEFAULT = 100
_MASTERS_MAX = 9999
_INACTIVITY_MAX_S = 86400

#: Network failures that mean "too late", not "not there".
_TIMEOUTS = frozenset({status.CONNECTION_TIMEOUT, status.READ_TIMEOUT})


# --- status --------------------------------------------------------------------------------------------------


def show_status(call: Call) -> Response:
    """``/v3.0/status``: counters of all the workers together, gauges of the worker that has most."""
    proxy = call.proxy
    counters = _counters(proxy)
    caches = (("dir", proxy.resolver.csm0.describe()), ("srv", proxy.resolver.links.describe()))
    world = proxy.feed.world
    gauges = {
        f"cache.{level}.{name}": description[name]
        for level, description in caches
        for name in ("count", "max", "ttl")
    }
    gauges["down.srv"] = len(proxy.resolver.down)
    gauges["known.srv"] = len(world.items) if world is not None else 0
    for reply in proxy.tell_siblings(call):
        for name, value in _parse_numbers(reply, b"counter").items():
            counters[name] = counters.get(name, 0) + value
        for name, value in _parse_numbers(reply, b"gauge").items():
            gauges[name] = max(gauges.get(name, 0), value)
    # The sums come after what they sum up.
    order = sorted(counters, key=lambda name: (name.count(".") < 2, name))
    lines = [f"counter {name} {counters[name]}" for name in order]
    lines += [f"gauge {name} {value}" for name, value in gauges.items()]
    return Response(200, ("\n".join(lines) + "\n").encode(), _STATUS_HEADERS)


def _counters(proxy: Proxy) -> dict[str, int]:
    counters = {"req.hits": 0, "req.time": 0}
    for route in [*proxy.routes.values(), proxy.unexpected]:
        counters[f"req.hits.{route.name}"] = route.hits
        counters[f"req.time.{route.name}"] = route.time_us
        counters["req.hits"] += route.hits
        counters["req.time"] += route.time_us
    return counters


def _parse_numbers(text: bytes, kind: bytes) -> dict[str, int]:
    """Counters, or gauges, of the status of another worker."""
    numbers = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and match["kind"] == kind and match["value"].isdigit():
            numbers[match["name"].decode()] = int(match["value"])
    return numbers


def metrics(call: Call) -> Response:
    """``/metrics``: the same, for Prometheus."""
    proxy = call.proxy
    counters = _counters(proxy)
    for reply in proxy.tell_siblings(call, target="/v3.0/status"):
        for name, value in _parse_numbers(reply, b"counter").items():
            counters[name] = counters.get(name, 0) + value
    hits, seconds = [], []
    for route in [*proxy.routes.values(), proxy.unexpected]:
        hits.append(({"route": route.name}, float(counters[f"req.hits.{route.name}"])))
        seconds.append(({"route": route.name}, counters[f"req.time.{route.name}"] / 1e6))
    world = proxy.feed.world
    known = float(len(world.items) if world is not None else 0)
    return Response(
        200,
        render(
            [
                Metric("oio_proxy_requests", "counter", "Requests answered, by route", hits),
                Metric("oio_proxy_request_seconds", "counter", "Time spent, by route", seconds),
                Metric("oio_proxy_known_services", "gauge", "Services in the load balancer", [({}, known)]),
                Metric(
                    "oio_proxy_down_services",
                    "gauge",
                    "Services thought to be down",
                    [({}, float(len(proxy.resolver.down)))],
                ),
            ]
        ),
        [("Content-Type", CONTENT_TYPE)],
    )


# --- config --------------------------------------------------------------------------------------------------


def get_config(call: Call) -> Response:
    """``GET /v3.0/config``: every variable."""
    return json_reply(call.proxy.variables.as_text())


def set_config(call: Call) -> Response:
    """``POST /v3.0/config``: true for each variable that was set."""
    raw = call.raw_body()
    body = call.json_of(raw)
    if not isinstance(body, dict) or not body:
        raise bad_request("Invalid body: a non-empty object is expected")
    for name, value in body.items():
        if isinstance(value, (dict, list)) or value is None:
            raise bad_request(f"Invalid value of '{name}': a string or a scalar is expected")
    done = {name: call.proxy.variables.set(name, value) for name, value in body.items()}
    call.proxy.apply_variables()
    call.proxy.tell_siblings(call, raw)
    return json_reply(done)


# --- caches --------------------------------------------------------------------------------------------------


def cache_status(call: Call) -> Response:
    """``/v3.0/cache/status``: each level as the worker has it that remembers most.

    Workers learn on their own: another one than the caller just spoke to would seem to have forgotten.
    """
    resolver = call.proxy.resolver
    levels = {"csm0": resolver.csm0.describe(), "meta1": resolver.links.describe()}
    for reply in call.proxy.tell_siblings(call):
        for level, other in msgspec.json.decode(reply).items():
            levels[level]["count"] = max(levels[level]["count"], other["count"])
    return json_reply(levels)


def cache_show(call: Call) -> Response:
    """``/v3.0/cache/show``: what the load balancer holds."""
    world = call.proxy.feed.world
    return json_reply(
        [{"addr": item.addr, "id": item.key} for item in (world.items if world is not None else ())]
    )


def flush_local(call: Call) -> Response:
    """``/v3.0/cache/flush/local``: empty everything.

    The load balancer is filled again from the conscience at once; until then the former picture serves.
    """
    call.proxy.resolver.csm0.clear()
    call.proxy.resolver.links.clear()
    call.proxy.resolver.masters.clear()
    call.proxy.policies.clear()
    call.proxy.resolver.down = {}
    call.proxy.resolver.doubted = {}
    call.proxy.feed.try_refresh()
    call.proxy.tell_siblings(call)
    return Response(204)


def flush_policy(call: Call) -> Response:
    """Another worker of this proxy changed the storage policy of a container."""
    call.proxy.policies.drop(call.target.cid)
    return Response(204)


def flush_high(call: Call) -> Response:
    """``/v3.0/cache/flush/high``."""
    call.proxy.resolver.csm0.clear()
    call.proxy.tell_siblings(call)
    return Response(204)


def flush_low(call: Call) -> Response:
    """``/v3.0/cache/flush/low``."""
    call.proxy.resolver.links.clear()
    call.proxy.tell_siblings(call)
    return Response(204)


# --- forward ------------------------------------------------------------------------------------------------


def forward_get_config(call: Call) -> Response:
    """``GET /v3.0/forward/config``."""
    return _forward(call, "GET", "/config", "proxy.outgoing.timeout.config")


def forward_set_config(call: Call) -> Response:
    """``POST /v3.0/forward/config``."""
    return _forward(call, "POST", "/config", "proxy.outgoing.timeout.config", call.raw_body())


def forward_info(call: Call) -> Response:
    """``/v3.0/forward/info``."""
    return _forward(call, "GET", "/status", "proxy.outgoing.timeout.info")


def forward_version(call: Call) -> Response:
    """``/v3.0/forward/version``: the version string of the service."""
    response = _forward(call, "GET", "/status", "proxy.outgoing.timeout.info")
    if response.status != 200:
        return response
    try:
        version = msgspec.json.decode(bytes(response.body), type=_Version).version  # type: ignore[arg-type]
    except msgspec.MsgspecError as exc:
        raise StatusError(status.PROXY_ERROR, f"Unreadable status of the service: {exc}") from None
    return Response(200, version.encode(), [("Content-Type", "text/plain")])


def forward_stats(call: Call) -> Response:
    """``/v3.0/forward/stats``: lines ``name value``."""
    response = _forward(call, "GET", "/stats", "proxy.outgoing.timeout.stat")
    if response.status != 200:
        return response
    lines = [
        line.replace(b"=", b" ", 1) if _LINE.match(line) and b" " not in line else line
        for line in bytes(response.body).splitlines()  # type: ignore[arg-type]
    ]
    return Response(200, b"\n".join(lines) + b"\n", [("Content-Type", "text/plain")])


def forward_ping(call: Call) -> Response:
    """``/v3.0/forward/ping``."""
    return _forward(call, "POST", "/v1/ping", "proxy.outgoing.timeout.info")


def forward_reload(call: Call) -> Response:
    """``/v3.0/forward/reload``."""
    return _refresh(call)


def forward_flush(call: Call) -> Response:
    """``/v3.0/forward/flush``."""
    return _refresh(call)


def forward_kill(call: Call) -> Response:
    """``/v3.0/forward/kill``: the service ends, its supervisor decides what comes next."""
    return _forward(call, "POST", "/v1/kill", "proxy.outgoing.timeout.config", b"")


def forward_lean_glib(call: Call) -> Response:
    """``/v3.0/forward/lean-glib``: free memory goes back to the system."""
    return _forward(call, "POST", "/v1/lean_glib", "proxy.outgoing.timeout.config", b"")


def forward_lean_sqlx(call: Call) -> Response:
    """``/v3.0/forward/lean-sqlx``: SQLite gives memory back."""
    return _forward(call, "POST", "/v1/lean_sqlx", "proxy.outgoing.timeout.config", b"")


def forward_balance_masters(call: Call) -> Response:
    """``/v3.0/forward/balance-masters``: the number of elections that the service left."""
    most = min(max(call.number("max", _MASTERS_DEFAULT), 1), _MASTERS_MAX)
    inactivity_s = min(max(call.number("inactivity", 0), 0), _INACTIVITY_MAX_S)
    path = f"/v1/balance_masters?max={most}&inactivity={inactivity_s}"
    return _forward(call, "POST", path, "proxy.outgoing.timeout.config", b"")


def _refresh(call: Call) -> Response:
    # A meta service keeps nothing of others but what one request makes it forget.
    path, body = f"/v1/{Refresh.operation()}", msgspec.msgpack.encode(Refresh())
    return _forward(call, "POST", path, "proxy.outgoing.timeout.config", body)


class _Version(msgspec.Struct):
    version: str = ""


class _Failure(msgspec.Struct):
    status: int
    message: str = ""


def _service_address(call: Call) -> str:
    """Address of the service that the query names. :raises StatusError: 400 when it names none."""
    name = call.args.get("id")
    if not name:
        raise bad_request("Missing SRVID")
    if valid_address(name):
        return name
    world = call.proxy.feed.world
    for item in world.items if world is not None else ():
        if item.id == name:
            return str(item.addr)
    raise bad_request(f"Invalid SRVID, IP:PORT or the id of a known service expected, not {name!r}")


def _forward(call: Call, method: str, path: str, ceiling: str, body: bytes | None = None) -> Response:
    address = _service_address(call)
    timeout_s = call.timeout_s(call.proxy.variables[ceiling])
    try:
        answer: HttpResponse = call.proxy.http.request(
            method,
            f"http://{address}{path}",
            headers={"x-oio-req-id": call.reqid},
            body=body,
            timeout=timeout_s,
        )
    except HttpClientError as exc:
        code = network_code(exc)
        return mapped_error(504 if code in _TIMEOUTS else 503, StatusError(code, str(exc)))
    if answer.status >= 400:
        raise _failure_of(answer)
    if not answer.data:
        return Response(204)
    return Response(
        200, answer.data, [("Content-Type", answer.headers.get("content-type") or "text/plain")]
    )


def _failure_of(answer: HttpResponse) -> StatusError:
    if answer.status == 404:
        return StatusError(status.NO_HANDLER, "No handler found")
    for decode in (msgspec.json.decode, msgspec.msgpack.decode):
        try:
            failure: Any = decode(answer.data, type=_Failure)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        return StatusError(failure.status, failure.message)
    return StatusError(status.PROXY_ERROR, f"The service answered HTTP {answer.status}")


def _process(method: str, path: str, handler: Any) -> RouteDefinition:
    return RouteDefinition(method, path, handler, namespaced=False)


ROUTES = [
    _process("GET", "status", show_status),
    _process("GET", "config", get_config),
    _process("POST", "config", set_config),
    _process("GET", "cache/status", cache_status),
    _process("GET", "cache/show", cache_show),
    _process("POST", "cache/flush/local", flush_local),
    _process("POST", FORGET_PATH, flush_policy),
    _process("POST", "cache/flush/high", flush_high),
    _process("POST", "cache/flush/low", flush_low),
    _process("GET", "forward/config", forward_get_config),
    _process("POST", "forward/config", forward_set_config),
    _process("GET", "forward/version", forward_version),
    _process("GET", "forward/info", forward_info),
    _process("GET", "forward/stats", forward_stats),
    _process("POST", "forward/stats", forward_stats),
    _process("GET", "forward/ping", forward_ping),
    _process("POST", "forward/reload", forward_reload),
    _process("POST", "forward/flush", forward_flush),
    _process("POST", "forward/kill", forward_kill),
    _process("POST", "forward/lean-glib", forward_lean_glib),
    _process("POST", "forward/lean-sqlx", forward_lean_sqlx),
    _process("POST", "forward/balance-masters", forward_balance_masters),
    _process("GET", "/metrics", metrics),
]
