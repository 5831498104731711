# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The routes outside a namespace: statistics, variables, caches, and orders to services."""

import socket
import time

import msgspec
import pytest
from proxy_cluster import NS

from oio.common.variables import DECLARED, Variables
from oio.http.server import Server, ServerConfig
from oio.meta.messages import ReferenceReply
from oio.meta.meta1.service import META1
from oio.meta.repository import Repository
from oio.meta.server import MetaApplication

REF = "acct=acct&ref=ref"
JAVA = "text/x-java-properties"


@pytest.fixture
def ask(cluster):
    """Sends a request below ``/v3.0/``."""

    def send(method, path, body=None):
        return cluster.request(method, f"/v3.0/{path}", body, raw=True)

    yield send
    cluster.meta.orders.clear()
    cluster.meta.ordered.clear()


# --- status


def test_every_route_is_counted_under_its_name(ask, cluster):
    def counters():
        lines = ask("GET", "status").data.decode().splitlines()
        return {line.split()[1]: int(line.split()[2]) for line in lines}

    before = counters()
    cluster.get("lb/choose?type=rawx")
    cluster.get(f"reference/show?{REF}")
    ask("GET", "nowhere")
    after = counters()
    assert after["req.hits.lb_choose_GET"] == before["req.hits.lb_choose_GET"] + 1
    assert after["req.hits.reference_show_GET"] == before["req.hits.reference_show_GET"] + 1
    assert after["req.hits.UNEXPECTED"] == before["req.hits.UNEXPECTED"] + 1
    assert after["req.time.reference_show_GET"] > before["req.time.reference_show_GET"]
    assert after["req.hits"] == before["req.hits"] + 4
    assert after["req.hits"] == sum(value for name, value in after.items() if name.startswith("req.hits."))
    for route in ("status_GET", "config_POST", "cache_flush_local_POST", "forward_lean_sqlx_POST", "lb_poll_POST",
                  "conscience_info_GET", "container_list_GET", "content_prepare2_POST"):  # fmt: skip
        assert {f"req.hits.{route}", f"req.time.{route}"} <= set(after)


def test_lines_of_status(ask):
    answer = ask("GET", "status")
    assert answer.headers["content-type"] == JAVA
    lines = answer.data.decode().splitlines()
    kinds = [line.split(" ")[0] for line in lines]
    assert kinds == sorted(kinds), "counters, then gauges"
    assert all(len(line.split(" ")) == 3 and line.split(" ")[2].isdigit() for line in lines)
    assert [line.split(" ")[1] for line in lines if line.startswith("gauge ")] == [
        "cache.dir.count", "cache.dir.max", "cache.dir.ttl", "cache.srv.count", "cache.srv.max", "cache.srv.ttl",
        "down.srv", "known.srv",
    ]  # fmt: skip
    sums = [index for index, line in enumerate(lines) if line.split(" ")[1] in ("req.hits", "req.time")]
    assert sums == [kinds.count("counter") - 2, kinds.count("counter") - 1]


# --- config


def test_variables_are_shown_as_texts(ask):
    shown = ask("GET", "config").json
    assert set(shown) == set(DECLARED)
    assert all(isinstance(value, str) for value in shown.values())
    assert shown["proxy.cache.enabled"] == "on" and shown["ns.worm"] == "off"
    assert shown["proxy.outgoing.timeout.common"] == "30.000000"
    assert shown["proxy.ttl.services.down"] == "5000000"
    assert shown["server.request.max_size"] == str(1 << 30)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("ns.chunk_size", "1k", "1000"), ("ns.chunk_size", "1Ki", "1024"), ("ns.chunk_size", "2M", "2000000"),
        ("ns.chunk_size", "1Gi", str(1 << 30)), ("ns.chunk_size", 4096, "4096"), ("ns.chunk_size", "0", "1"),
        ("proxy.ttl.services.down", "250ms", "250000"), ("proxy.ttl.services.down", "2m", "120000000"),
        ("proxy.ttl.services.down", "1h", "3600000000"), ("proxy.ttl.services.known", "1w", "604800000000"),
        ("proxy.ttl.services.known", "1M", "2419200000000"), ("proxy.ttl.services.down", "9d", "86400000000"),
        ("ns.flat_bits", 99, "64"), ("ns.flat_bits", "-3", "0"), ("proxy.srv_local.prepare", 7, "2"),
        ("proxy.outgoing.timeout.info", 2.5, "2.500000"), ("ns.worm", True, "on"), ("ns.worm", "yeah", "on"),
        ("ns.worm", "nope", "off"), ("proxy.location", "a.b", "a.b"),
        ("enbug.proxy.cs.failure_rate", "1000", "100"), ("proxy.ttl.services.down", "2000000", "2000000"),
        ("meta2.retention_period", "1d", "86400"), ("meta2.retention_period", "60", "60"),
    ],
)  # fmt: skip
def test_variables_can_be_set(ask, name, value, shown):
    assert ask("POST", "config", {name: value}).json == {name: True}
    assert ask("GET", "config").json[name] == shown


def test_what_is_shown_can_be_set_again(ask):
    before = ask("GET", "config").json
    assert ask("POST", "config", before).json == dict.fromkeys(before, True)
    assert ask("GET", "config").json == before


def test_variables_that_cannot_be_set(ask):
    before = ask("GET", "config").json
    wrong = {"unknown": "1", "ns.worm": "perhaps", "ns.flat_bits": "many", "proxy.ttl.services.down": "5 parsecs"}
    assert ask("POST", "config", wrong).json == dict.fromkeys(wrong, False)
    assert ask("GET", "config").json == before


@pytest.mark.parametrize("body", [None, {}, [], "x", 3, {"ns.worm": None}, {"ns.worm": ["on"]}, b"{"])
def test_bad_settings(ask, body):
    assert ask("POST", "config", body).code == (400, 400)


# --- caches


def test_flushes(ask, cluster):
    def fill():
        cluster.get(f"reference/show?{REF}")
        cluster.post(f"container/get_properties?{REF}")
        cluster.app.resolver.links.put(("X", "meta2"), ["x"])
        status = ask("GET", "cache/status").json
        assert status["csm0"]["count"] and status["meta1"]["count"]

    def counts(path):
        fill()
        answer = ask("POST", path)
        assert (answer.status, answer.data) == (204, b"")
        status = ask("GET", "cache/status").json
        return bool(status["csm0"]["count"]), bool(status["meta1"]["count"])

    cluster.meta.answers["reference_show"] = ReferenceReply(cid="0" * 64, account="acct", name="ref")
    assert counts("cache/flush/high") == (False, True)
    assert counts("cache/flush/low") == (True, False)
    assert counts("cache/flush/local") == (False, False)
    assert ask("GET", "cache/status").json["csm0"] == {"count": 0, "max": 4194304, "ttl": 0}


def test_show_tells_what_the_load_balancer_knows(ask, cluster):
    shown = ask("GET", "cache/show").json
    assert {"addr": "127.0.0.1:6201", "id": f"{NS}|rawx|{NS}-rawx-1"} in shown
    assert all(set(one) == {"addr", "id"} for one in shown)
    assert len(shown) == sum(map(len, cluster.conscience.services.values()))


# --- forward


VERBS = [
    ("GET", "config"), ("POST", "config"), ("GET", "version"), ("GET", "info"), ("GET", "stats"),
    ("POST", "stats"), ("GET", "ping"), ("POST", "kill"), ("POST", "reload"), ("POST", "flush"),
    ("POST", "lean-glib"), ("POST", "lean-sqlx"), ("POST", "balance-masters"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "verb"), VERBS)
def test_orders_want_a_service(ask, method, verb):
    for query in ("", "?id=", "?id"):
        answer = ask(method, f"forward/{verb}{query}")
        assert answer.code == (400, 400)
        assert answer.json["message"] == "Missing SRVID"
    assert ask(method, f"forward/{verb}?id=nonsense").code == (400, 400)


def test_orders_to_a_service_by_its_id(ask, cluster):
    cluster.meta.orders["POST /v1/balance_masters"] = (200, b"3")
    assert ask("POST", f"forward/balance-masters?id={NS}-meta2-1").data == b"3"


@pytest.mark.parametrize(("method", "verb"), VERBS)
def test_orders_to_nobody(ask, method, verb):
    answer = ask(method, f"forward/{verb}?id=127.0.0.1:1", {"a": 1} if method == "POST" else None)
    assert answer.code == (503, 2)
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(("method", "verb"), VERBS)
def test_orders_to_a_service_that_hangs(cluster, method, verb):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        answer = cluster.request(
            method, f"/v3.0/forward/{verb}?id=127.0.0.1:{port}", raw=True, headers={"X-oio-timeout": "50000"}
        )
    assert answer.code == (504, 7)


@pytest.mark.parametrize(
    ("verb", "order", "answer"),
    [
        ("kill", "POST /v1/kill", (204, b"")),
        ("lean-glib", "POST /v1/lean_glib", (204, b"")),
        ("lean-sqlx", "POST /v1/lean_sqlx", (204, b"")),
        ("balance-masters", "POST /v1/balance_masters", (200, b"7")),
    ],
)
def test_orders_reach_the_service(ask, cluster, verb, order, answer):
    cluster.meta.orders[order] = answer
    got = ask("POST", f"forward/{verb}?id={cluster.meta.addr}")
    assert (got.status, got.data) == answer
    assert len(cluster.meta.ordered) == 1


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("", "max=100&inactivity=0"), ("&max=5&inactivity=60", "max=5&inactivity=60"),
        ("&max=0&inactivity=-1", "max=1&inactivity=0"),
        ("&max=100000&inactivity=1000000", "max=9999&inactivity=86400"),
    ],
)  # fmt: skip
def test_bounds_of_balance_masters(ask, cluster, query, sent):
    cluster.meta.orders["POST /v1/balance_masters"] = (200, b"0")
    assert ask("POST", f"forward/balance-masters?id={cluster.meta.addr}{query}").data == b"0"
    assert cluster.meta.ordered[-1][0] == f"/v1/balance_masters?{sent}"
    assert ask("POST", f"forward/balance-masters?id={cluster.meta.addr}&max=x").code == (400, 400)


def test_settings_of_a_service(ask, cluster):
    cluster.meta.orders["POST /config"] = (200, b'{"a":true}')
    assert ask("POST", f"forward/config?id={cluster.meta.addr}", {"a": "1"}).json == {"a": True}
    assert cluster.meta.ordered == [("/config", b'{"a":"1"}')]


def test_failures_of_a_service_keep_their_code(ask, cluster):
    refusal = msgspec.json.encode({"status": 400, "message": "bad setting"})
    cluster.meta.orders["POST /config"] = (400, refusal)
    answer = ask("POST", f"forward/config?id={cluster.meta.addr}", {"a": {}})
    assert answer.code == (400, 400)
    assert answer.json["message"] == "bad setting"
    cluster.meta.orders["POST /config"] = (500, b"what?")
    assert ask("POST", f"forward/config?id={cluster.meta.addr}", {"a": 1}).code == (500, 502)
    cluster.meta.orders["GET /status"] = (200, b"not JSON")
    assert ask("GET", f"forward/version?id={cluster.meta.addr}").code == (500, 502)


@pytest.fixture
def meta1(tmp_path):
    """The address of a real service."""
    repository = Repository(str(tmp_path), META1)
    application = MetaApplication("meta1", NS, {}, Variables(), repository)
    config = ServerConfig(linger_s=0.001, access_log=None)
    server = application.server = Server(application, [("127.0.0.1", 0)], config)
    server.start()
    yield f"127.0.0.1:{server.addresses[0][1]}"
    server.stop(0.2)
    repository.close()


def test_info_of_a_real_service(ask, meta1):
    info = ask("GET", f"forward/info?id={meta1}").json
    assert set(info) == {"sqlite", "sqliterepo", "replication", "elections", "cache", "server", "version"}
    assert [one.split("=")[0] for one in info["sqlite"]] == ["VERSION_COMPILED", "VERSION_RUNTIME", "THREADSAFE"]
    assert set(info["sqliterepo"]) == {"width", "depth", "vacuum", "delete"}
    assert info["replication"] in ("NONE", "QUORUM", "GROUP")
    assert set(info["elections"]) == {"total", "none", "pending", "failed", "slave", "master"}
    assert set(info["cache"]) == {"max", "soft_max", "hot", "cold", "used"}
    assert set(info["server"]) == {"threads", "connections"}
    assert isinstance(info["server"]["threads"]["active"], int)
    assert isinstance(info["server"]["connections"]["clients"], int)
    assert ask("GET", f"forward/version?id={meta1}").data.decode() == info["version"]


def test_a_real_service_obeys(ask, meta1):
    assert ask("GET", f"forward/ping?id={meta1}").status == 204
    for verb in ("lean-glib", "lean-sqlx"):
        assert ask("POST", f"forward/{verb}?id={meta1}").status == 204
    assert ask("POST", f"forward/balance-masters?id={meta1}&max=3").data == b"0"
    settings = {"ns.worm": "on", "x": 1}
    assert ask("POST", f"forward/config?id={meta1}", settings).json == {"ns.worm": True, "x": False}
    assert ask("GET", f"forward/config?id={meta1}").json["ns.worm"] == "on"
    for method in ("GET", "POST"):
        text = ask(method, f"forward/stats?id={meta1}").data.decode()
        assert all(len(line.rsplit(" ", 1)) == 2 and "=" not in line for line in text.splitlines())


# --- registrations and deregistrations wait their turn


def test_what_is_deregistered_does_not_come_back_from_the_queue(make_cluster):
    cluster = make_cluster(**{"proxy.period.cs.upstream": "1h"})
    one = {"type": "rawx", "addr": "127.0.0.1:7001", "tags": {"tag.service_id": "s1"}}
    other = {"type": "rdir", "addr": "127.0.0.1:7002"}
    cluster.post("conscience/register", [one, other])
    assert cluster.post("conscience/deregister", {"type": "rawx", "addr": "127.0.0.1:7001"}).status == 204
    assert [item["addr"] for item in cluster.get("local/list").json] == ["127.0.0.1:7002"]
    cluster.process.feed.flush_queue()
    assert [item.addr for item in cluster.conscience.pushed] == ["127.0.0.1:7002"]
    cluster.post("conscience/register", [one, other])
    assert cluster.post("conscience/flush?type=rdir").status == 204
    cluster.process.feed.flush_queue()
    assert [item.addr for item in cluster.conscience.pushed[1:]] == ["127.0.0.1:7001"]


def test_workers_forget_a_deregistered_service_together(make_cluster):
    one, two = (make_cluster(**{"proxy.period.cs.upstream": "1h"}) for _ in range(2))

    def tell(method, target, body, headers):
        answer = two.pool.request(method, two.url + target, headers=headers, body=body)
        return [bytes(answer.data)] if answer.status < 300 else []

    one.app.broadcast = tell
    service = {"type": "rawx", "addr": "127.0.0.1:7001"}
    two.post("conscience/register", service)
    one.post("conscience/deregister", service)
    assert [item.addr for item in one.conscience.deregistered] == ["127.0.0.1:7001"]
    assert two.conscience.deregistered == [] and two.get("local/list").json == []
    two.process.feed.flush_queue()
    assert two.conscience.pushed == []


def test_the_conscience_is_waited_for_no_longer_than_the_deadline(make_cluster):
    cluster = make_cluster()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cluster.process.feed.registry.addresses = [f"127.0.0.1:{silent.getsockname()[1]}"] * 3
        cluster.process.variables.set("proxy.cache.enabled", "off")
        service = {"type": "rawx", "addr": "127.0.0.1:7001"}
        for method, path, body in (
            ("GET", "list?type=rawx", None), ("POST", "register", service), ("POST", "lock", service),
            ("POST", "deregister", service), ("POST", "flush?type=rawx", None),
        ):  # fmt: skip
            begin = time.monotonic()
            answer = cluster.request(method, f"conscience/{path}", body, headers={"X-oio-timeout": "60000"})
            assert answer.code == (503, 503)
            assert answer.json["message"].startswith("Conscience error: ")
            assert time.monotonic() - begin < 5


def test_routes_of_the_conscience_fail_when_told_to(cluster):
    paths = [
        ("GET", "info"), ("GET", "list?type=rawx"), ("GET", "score?type=rawx&service_id=x"),
        ("GET", "resolve?type=rawx&service_id=x"), ("POST", "register"), ("POST", "lock"), ("POST", "unlock"),
        ("POST", "deregister"), ("POST", "flush?type=rawx"),
    ]  # fmt: skip
    cluster.request("POST", "/v3.0/config", {"enbug.proxy.cs.failure_rate": "100"}, raw=True)
    for method, path in paths:
        assert cluster.request(method, f"conscience/{path}").code == (503, 503)
    assert cluster.get("lb/choose?type=rawx").status == 200
    cluster.request("POST", "/v3.0/config", {"enbug.proxy.cs.failure_rate": "50"}, raw=True)
    seen = {cluster.get("conscience/info").status for _ in range(60)}
    assert seen == {200, 503}
