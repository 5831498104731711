# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""HttpApi and ProxyClient: what is sent, what is raised, how often it is tried again."""

from __future__ import annotations

import json
import logging
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from support import stop_for_good

from oio.api.base import HttpApi, encode_query, text_of_json
from oio.common import client as client_module
from oio.common import exceptions as exc
from oio.common import http_urllib3
from oio.common.client import ProxyClient
from oio.common.configuration import InvalidServiceConfigError
from oio.http.client import HttpPool
from oio.http.server import Request, Response, Server

CONF = {"namespace": "OPENIO"}


class Scripted:
    """Server that gives the answers of a list (the last one for ever) and remembers requests."""

    def __init__(self) -> None:
        self.answers: list[Response] = []
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []
        self.server = Server(self.handle, [("127.0.0.1", 0)])
        self.server.start()
        self.address = "{}:{}".format(*self.server.addresses[0][:2])

    def handle(self, req: Request) -> Response:
        self.requests.append(req)
        self.bodies.append(req.read_all(1 << 20))
        if not self.answers:
            return Response(204)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.server.stop()


@pytest.fixture
def api(scripted: Scripted) -> HttpApi:
    return HttpApi(endpoint=f"http://{scripted.address}/base", service_type="proxy")


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(client_module.time, "sleep", pauses.append)
    return pauses


def error(http_status: int, status: int = 0) -> Response:
    return Response(http_status, json.dumps({"status": status, "message": "no"}).encode())


# --- HttpApi: requests ---


def test_plain_request(api: HttpApi, scripted: Scripted) -> None:
    resp, body = api._request(
        "GET", "/route", params={"a": "x y/é", "n": None, "b": True, "i": 3}, headers={"X-A": 1}
    )
    assert (resp.status, body) == (204, b"")
    req = scripted.requests[0]
    assert (req.method, req.target) == ("GET", "/base/route?a=x+y%2F%C3%A9&b=True&i=3")
    assert req.headers["x-a"] == "1"
    assert req.headers["connection"] == "keep-alive"
    assert req.headers["x-oio-timeout"] == "30000000"
    assert "x-oio-admin" not in req.headers
    assert "x-oio-perfdata" not in req.headers


def test_modes(scripted: Scripted) -> None:
    api = HttpApi(endpoint=f"http://{scripted.address}", admin_mode="true", connection="close")
    api._request("GET", "a", force_master="1")
    assert scripted.requests[0].headers["x-oio-admin"] == "1"
    assert scripted.requests[0].headers["x-oio-force-master"] == "1"
    assert scripted.requests[0].headers["connection"] == "close"
    plain = HttpApi(endpoint=f"http://{scripted.address}", admin_mode="false", force_master="yes")
    plain._request("GET", "a", admin_mode="no")
    assert "x-oio-admin" not in scripted.requests[1].headers
    assert scripted.requests[1].headers["x-oio-force-master"] == "1"


def test_request_id_is_bounded(api: HttpApi, scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    api.logger = logging.getLogger("test-reqid")
    api._request("GET", "a", reqid="r" * 70)
    assert scripted.requests[0].headers["x-oio-req-id"] == "r" * 63
    assert "truncated" in caplog.text


def test_timeouts(api: HttpApi, scripted: Scripted) -> None:
    api._request("GET", "a", read_timeout=4)
    api._request("GET", "a", timeout=3.5)
    api._request("GET", "a", deadline=time.monotonic() + 2)
    api._request("GET", "a", deadline=time.monotonic() + 20, read_timeout=1)
    told = [int(req.headers["x-oio-timeout"]) for req in scripted.requests]
    assert told[:2] == [4000000, 3500000]
    assert 1_900_000 < told[2] <= 1_980_000
    assert told[3] == 990000
    with pytest.raises(exc.DeadlineReached):
        api._request("GET", "a", deadline=time.monotonic())
    assert len(scripted.requests) == 4


def test_bodies(api: HttpApi, scripted: Scripted) -> None:
    scripted.answers = [
        Response(200, b'{"a": [1]}'), Response(200, b"plain"), Response(200, b'"\\ud800"'), Response(200, b"\xff"),
    ]  # fmt: skip
    bodies = [api._request("POST", "a", json={"x": 1})[1] for _ in range(4)]
    assert bodies == [{"a": [1]}, b"plain", "\ud800", b"\xff"]
    assert scripted.bodies[0] == b'{"x":1}'
    assert scripted.requests[0].headers["content-type"] == "application/json"
    api._request("POST", "a", data="é", json={})
    assert scripted.bodies[-1] == "é".encode()
    assert "content-type" not in scripted.requests[-1].headers


@pytest.mark.parametrize(
    ("http_status", "expected"),
    [
        (400, exc.BadRequest),
        (404, exc.NotFound),
        (409, exc.Conflict),
        (503, exc.ServiceBusy),
        (500, exc.ClientException),
    ],
)
def test_errors(api: HttpApi, scripted: Scripted, http_status: int, expected: type[Exception]) -> None:
    scripted.answers = [error(http_status, 431)]
    with pytest.raises(exc.ClientException) as caught:
        api._request("GET", "a")
    assert type(caught.value) is expected
    assert (caught.value.http_status, caught.value.status, caught.value.message) == (http_status, 431, "no")


def test_network_errors(api: HttpApi, scripted: Scripted) -> None:
    stop_for_good(scripted.server)
    with pytest.raises(exc.OioNetworkException) as caught:
        api._request("GET", "a", reqid="r1")
    assert caught.value.args[0] == f"reqid=r1, host={scripted.address}"


def test_a_silent_service_times_out() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = HttpApi(endpoint="http://{}:{}".format(*silent.getsockname()))
        with pytest.raises(exc.OioTimeout):
            api._request("GET", "a", read_timeout=0.05)


def test_no_endpoint() -> None:
    with pytest.raises(ValueError):
        HttpApi()._request("GET", "a")


def test_perfdata(api: HttpApi, scripted: Scripted) -> None:
    scripted.answers = [Response(200, b"{}", {"x-oio-perfdata": "resolve=1000,meta2=2000000,odd"})]
    perfdata: dict[str, Any] = {}
    api._request("GET", "a", perfdata=perfdata)
    api._request("GET", "a", perfdata=perfdata)
    assert scripted.requests[0].headers["x-oio-perfdata"] == "enabled"
    assert perfdata["proxy"]["resolve"] == pytest.approx(0.002)
    assert perfdata["proxy"]["meta2"] == pytest.approx(4.0)
    assert perfdata["proxy"]["overall"] > 0


def test_pool_of_urllib3(scripted: Scripted) -> None:
    import urllib3

    pool = http_urllib3.SafePoolManager(retries=False)
    api = HttpApi(endpoint=f"http://{scripted.address}", pool_manager=pool)
    scripted.answers = [Response(200, b'{"a": 1}')]
    resp, body = api._request("POST", "a", data="x", nonsense=1, read_timeout=3)
    assert isinstance(resp, urllib3.HTTPResponse)
    assert body == {"a": 1}
    stop_for_good(scripted.server)
    with pytest.raises(exc.OioNetworkException):
        HttpApi(endpoint=f"http://{scripted.address}", pool_manager=http_urllib3.SafePoolManager())._request(
            "GET", "a"
        )


def test_any_pool_with_request_will_do() -> None:
    pool = Mock()
    pool.request.return_value = SimpleNamespace(status=200, headers={}, data=b"")
    HttpApi(endpoint="http://h:1", pool_manager=pool)._request("GET", "a", chunked=True, other=1)
    args, kwargs = pool.request.call_args
    assert args == ("GET", "http://h:1/a")
    assert set(kwargs) == {"headers", "body", "timeout", "chunked"}
    assert kwargs["timeout"].read_timeout == 30.0


@pytest.mark.parametrize("kind", ["ours", "urllib3"])
@pytest.mark.parametrize("bounds", [{"total": 7}, {"total": 9, "read": 7}, {"connect": 1, "read": 7}])
def test_timeout_of_urllib3(scripted: Scripted, kind: str, bounds: dict[str, float]) -> None:
    import urllib3

    pool = http_urllib3.SafePoolManager() if kind == "urllib3" else HttpPool()
    api = HttpApi(endpoint=f"http://{scripted.address}", pool_manager=pool)
    for others in ({}, {"pool_manager": HttpPool()}, {"pool_manager": http_urllib3.SafePoolManager()}):
        api._request("GET", "a", timeout=urllib3.Timeout(**bounds), **others)
        told_us = int(scripted.requests[-1].headers["x-oio-timeout"])
        assert 6_900_000 < told_us <= 7_000_000


def test_busy_service_through_a_pool_of_urllib3(scripted: Scripted) -> None:
    """The pool would obey ``Retry-After`` behind the back of the caller."""
    import urllib3

    busy = Response(503, b'{"status": 436, "message": "frozen"}', [("Retry-After", "60")])
    for pool in (urllib3.PoolManager(), urllib3.PoolManager(retries=2), urllib3.PoolManager(retries=False)):
        scripted.answers, scripted.requests = [busy], []
        with pytest.raises(exc.ServiceBusy) as caught:
            HttpApi(endpoint=f"http://{scripted.address}", pool_manager=pool)._request("GET", "a")
        assert caught.value.status == 436
        assert len(scripted.requests) == 1


def test_headers_are_the_same_through_any_pool(scripted: Scripted) -> None:
    for pool in (HttpPool(), http_urllib3.SafePoolManager()):
        api = HttpApi(endpoint=f"http://{scripted.address}", pool_manager=pool)
        api._request("GET", "a", headers={"x-a": "é\u1234"})
        assert scripted.requests.pop().headers["x-a"].encode("latin-1").decode() == "é\u1234"
        with pytest.raises(exc.OioException):
            api._request("GET", "a", headers={"x-a": "a\nb"})
    assert not scripted.requests


# --- queries and bodies ---


def test_queries() -> None:
    from urllib.parse import urlencode

    params = {
        "a": "plain",
        "b": "sp ace",
        "c": "é/%",
        "d": b"\xff\x00",
        "e": False,
        "f": 12,
        "g": "",
        "h": "~._-*",
        "i&j=é": "k",
    }
    assert encode_query(params) == urlencode(params)
    assert encode_query({"a": None}) == ""
    assert encode_query({"a": "\udce7"}) == "a=%ED%B3%A7"


def test_json_text() -> None:
    assert text_of_json({"a": b"\xc3\xa9", "b": {"k": 1}.keys()}) == '{"a": "\\u00e9", "b": ["k"]}'
    with pytest.raises(TypeError):
        text_of_json(object())


# --- pools ---


def test_pool_manager_keywords() -> None:
    pool = http_urllib3.get_pool_manager(pool_maxsize="7", source_address="127.0.0.1", what="ever")
    assert isinstance(pool, HttpPool)
    assert (pool.max_idle_per_address, pool.source_address) == (7, ("127.0.0.1", 0))
    assert not pool.tls_verify
    http_urllib3.get_pool_manager(backoff_factor="unused")
    for required in ("CERT_REQUIRED", "REQUIRED", ssl.CERT_REQUIRED):
        pool = http_urllib3.get_pool_manager(cert_reqs=required, ca_certs="/some/ca.pem")
        assert (pool.tls_verify, pool.tls_ca_file) == (True, "/some/ca.pem")
    assert not http_urllib3.get_pool_manager(cert_reqs="CERT_NONE").tls_verify
    for bad in ({"pool_maxsize": "x"}, {"max_retries": "x"}, {"max_retries": 1, "backoff_factor": "x"}):
        with pytest.raises(ValueError):
            http_urllib3.get_pool_manager(**bad)


def test_urllib3_errors_are_converted() -> None:
    from urllib3 import exceptions as errors

    new_connection = errors.NewConnectionError(Mock(), "refused")
    cases: list[tuple[BaseException, type[Exception]]] = [
        (errors.MaxRetryError(Mock(), "/", new_connection), exc.OioNetworkException),
        (errors.MaxRetryError(Mock(), "/", errors.ConnectTimeoutError()), exc.OioTimeout),
        (errors.MaxRetryError(Mock(), "/"), exc.OioNetworkException),
        (errors.ProtocolError(), exc.OioNetworkException),
        (errors.ClosedPoolError(Mock(), ""), exc.OioNetworkException),
        (errors.ReadTimeoutError(Mock(), "/", ""), exc.OioTimeout),
        (errors.HTTPError(), exc.OioException),
        (ValueError(), exc.OioException),
    ]
    for given, expected in cases:
        with pytest.raises(exc.OioException) as caught:
            http_urllib3.oio_exception_from_httperror(given, reqid="R", url="http://h:1/x")
        assert type(caught.value) is expected
        assert caught.value.args[0] == "reqid=R, host=h:1"


def test_importing_the_api_loads_neither_eventlet_nor_urllib3() -> None:
    code = (
        "import sys, oio.api.object_storage, oio.blob.client\n"
        "sys.exit(any(name in sys.modules for name in ('eventlet', 'urllib3')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- ProxyClient ---


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4444", "http://127.0.0.1:4444"])
def test_endpoint(endpoint: str) -> None:
    proxy = ProxyClient(CONF, endpoint=endpoint)
    assert proxy.proxy_netloc == "127.0.0.1:4444"
    assert proxy.endpoint == "http://127.0.0.1:4444/v3.0/OPENIO"
    assert ProxyClient(CONF, "/prefix", endpoint=endpoint).endpoint == proxy.endpoint + "/prefix"
    assert ProxyClient(CONF, no_ns_in_url=True, endpoint=endpoint).endpoint == "http://127.0.0.1:4444"
    assert ProxyClient({**CONF, "proxyd_url": endpoint}).endpoint == proxy.endpoint


def test_bad_construction() -> None:
    with pytest.raises(InvalidServiceConfigError):
        ProxyClient({}, endpoint="127.0.0.1:1")
    with pytest.raises(AssertionError):
        ProxyClient(CONF, endpoint="127.0.0.1:1", request_attempts=0)


def test_flags(scripted: Scripted) -> None:
    proxy = ProxyClient(CONF, endpoint=scripted.address)
    headers: dict[str, str] = {}
    proxy._request("GET", "a", headers=headers, autocreate=True, tls="1")
    assert headers == {"x-oio-action-mode": "autocreate", "x-oio-upgrade-to-tls": "1"}
    assert scripted.requests[0].headers["x-oio-action-mode"] == "autocreate"
    proxy._request("GET", "a", autocreate=False, tls=None)
    assert "x-oio-action-mode" not in scripted.requests[1].headers
    proxy._request("GET", "a", autocreate=True)
    assert scripted.requests[2].headers["x-oio-action-mode"] == "autocreate"
    # Headers that served another call already.
    proxy._request("GET", "a", headers=headers)
    assert scripted.requests[3].headers["x-oio-action-mode"] == "autocreate"
    proxy._request("GET", "a", headers=headers, autocreate=False)
    assert "x-oio-action-mode" not in scripted.requests[4].headers


def test_attempts(scripted: Scripted, no_pause: list[float]) -> None:
    proxy = ProxyClient(CONF, endpoint=scripted.address, request_attempts=3)
    scripted.answers = [error(503)]
    with pytest.raises(exc.ServiceBusy):
        proxy._request("POST", "a")
    assert len(scripted.requests) == 3
    with pytest.raises(exc.ServiceBusy):
        proxy._request("POST", "a", request_attempts="2")
    assert len(scripted.requests) == 5
    with pytest.raises(exc.OioException):
        proxy._request("POST", "a", request_attempts=-1)
    scripted.answers = [error(409)]
    with pytest.raises(exc.Conflict):
        proxy._request("POST", "a")
    scripted.answers = [error(503), error(409)]
    assert proxy._request("POST", "a") == (None, None)
    for method, route in (("PUT", "a"), ("POST", "content/prepare2")):
        scripted.answers = [error(503), error(409)]
        with pytest.raises(exc.Conflict):
            proxy._request(method, route)
    scripted.answers = [error(503), error(503), Response(200, b"{}")]
    assert proxy._request("POST", "a")[1] == {}
    assert all(pause % 0.5 == 0 for pause in no_pause)


def test_no_attempts_by_default(scripted: Scripted) -> None:
    scripted.answers = [error(503)]
    with pytest.raises(exc.ServiceBusy):
        ProxyClient(CONF, endpoint=scripted.address)._request("GET", "a")
    assert len(scripted.requests) == 1


def test_pauses_grow_and_respect_the_deadline(monkeypatch: pytest.MonkeyPatch, no_pause: list[float]) -> None:
    monkeypatch.setattr(client_module.random, "randint", lambda _low, high: high)
    for attempt in (1, 2, 3):
        client_module._pause(attempt, None)
    assert no_pause == [0.5, 1.5, 3.5]
    client_module._pause(3, time.monotonic() + 0.1)
    assert no_pause[-1] <= 0.1
