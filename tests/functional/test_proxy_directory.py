# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""References, variables and orders to services, through the proxy of a real cluster."""

import json

import pytest
from processes import Meta2Process, Process, free_port
from proxy_http import RawContainer, RawProxy, fresh_name
from support import ACCOUNT, eventually

from oio.common.exceptions import BadRequest, Forbidden, NoSuchAccount, NotFound
from oio.common.utils import cid_from_name
from oio.directory.client import DirectoryClient

MIB = 1 << 20


@pytest.fixture
def proxy(cluster):
    proxy = RawProxy(cluster.proxy, cluster.namespace)
    yield proxy
    proxy.pool.close()


@pytest.fixture
def directory(cluster):
    return DirectoryClient({"namespace": cluster.namespace}, endpoint=cluster.proxy)


@pytest.fixture
def name(request):
    return fresh_name(request.node.name)


@pytest.fixture
def reference(proxy, name):
    """A reference of the test's own."""
    reference = RawContainer(proxy, ACCOUNT, name)
    assert reference.post("reference/create").status == 201
    return reference


# --- references


def test_life_of_a_reference(proxy, name, cluster):
    reference = RawContainer(proxy, ACCOUNT, name)
    cid = cid_from_name(ACCOUNT, name)
    assert reference.get("reference/has").code == (404, 406)
    assert reference.post("reference/create", {"properties": {"a": "b"}}).status == 201
    assert reference.post("reference/create").status == 202
    assert reference.get("reference/has").status == 204
    shown = proxy.get("reference/show", {"cid": cid.lower()}).json
    assert (shown["account"], shown["name"], shown["cid"], shown["srv"]) == (ACCOUNT, name, cid, [])
    hosts = {kind: [one["host"] for one in shown["dir"] if one["type"] == kind] for kind in ("meta0", "meta1")}
    assert sorted(hosts["meta0"]) == sorted(one.addr for one in cluster.services("meta0"))
    assert set(hosts["meta1"]) <= {one.addr for one in cluster.services("meta1")} and hosts["meta1"]
    assert all((one["seq"], one["args"]) == (1, "") for one in shown["dir"])
    assert reference.post("reference/destroy").status == 204
    assert reference.post("reference/destroy").code == (404, 406)


def test_a_reference_creates_its_account(directory, cluster, api):
    account = fresh_name("account")[-60:]
    assert directory.create(account, "first") is True

    def known():
        try:
            return api.account_show(account)
        except NoSuchAccount:
            return None

    assert eventually(known, what="the account of the reference")["containers"] == 0
    directory.delete(account, "first")


def test_large_and_many_properties_come_back(directory, name):
    many = {f"key {number} é": f"value {number} ü" for number in range(2048)}
    large = {"k" * MIB: "v" * MIB, "text": "é" * (MIB // 2)}
    assert directory.create(ACCOUNT, name, properties=many) is True
    assert directory.create(ACCOUNT, name) is False
    assert directory.get_properties(ACCOUNT, name)["properties"] == many
    directory.set_properties(ACCOUNT, name, properties=large)
    assert directory.get_properties(ACCOUNT, name)["properties"] == {**many, **large}
    assert directory.get_properties(ACCOUNT, name, properties=["k" * MIB])["properties"] == {"k" * MIB: "v" * MIB}
    directory.del_properties(ACCOUNT, name, many.keys())
    assert directory.get_properties(ACCOUNT, name)["properties"] == large
    directory.set_properties(ACCOUNT, name, properties={"text": "", "new": "1"})
    directory.del_properties(ACCOUNT, name, ["k" * MIB, "unknown"])
    assert directory.get_properties(ACCOUNT, name)["properties"] == {"new": "1"}
    directory.set_properties(ACCOUNT, name, properties={"other": "2"}, clear=True)
    assert directory.get_properties(ACCOUNT, name)["properties"] == {"other": "2"}
    directory.del_properties(ACCOUNT, name, [])
    assert directory.get_properties(ACCOUNT, name)["properties"] == {}
    directory.delete(ACCOUNT, name)


def test_client_of_the_directory(directory, name):
    cid = cid_from_name(ACCOUNT, name)
    assert directory.has(ACCOUNT, name) is False
    for change in ("list", "delete", "get_properties"):
        with pytest.raises(NotFound):
            getattr(directory, change)(ACCOUNT, name)
    with pytest.raises(NotFound):
        directory.link(ACCOUNT, name, "meta2")
    assert directory.link(ACCOUNT, name, "meta2", autocreate=True) is None
    assert directory.has(cid=cid) is True
    linked = directory.list(ACCOUNT, name)["srv"]
    assert linked and {one["type"] for one in linked} == {"meta2"}
    directory.link(ACCOUNT, name, "meta2")
    assert directory.renew(ACCOUNT, name, "meta2") is None
    assert directory.show(cid=cid, service_type="meta2")["srv"] == linked
    assert directory.list(ACCOUNT, name, service_type="rawx")["srv"] == []
    with pytest.raises(Forbidden) as caught:
        directory.force(ACCOUNT, name, "meta2", linked[0])
    assert caught.value.status == 455
    moved = {**linked[0], "host": "somewhere"}
    directory.force(ACCOUNT, name, "meta2", moved, replace=True)
    assert directory.list(ACCOUNT, name)["srv"] == [moved]
    with pytest.raises(Forbidden) as caught:
        directory.destroy(ACCOUNT, name)
    assert caught.value.status == 407
    assert directory.unlink(ACCOUNT, name, "meta2") is None
    with pytest.raises(NotFound) as caught:
        directory.unlink(cid=cid, service_type="meta2")
    assert caught.value.status == 454
    assert directory.destroy(ACCOUNT, name) is None


def test_relink_on_real_services(reference, cluster):
    first = reference.proxy.get("lb/choose", {"type": "rawx"}).json[0]["addr"]
    link = {"seq": 1, "type": "rawx", "host": first, "args": "x"}
    assert reference.post("reference/force", link, type="rawx").status == 204
    answer = reference.post("reference/relink", {"kept": None, "replaced": link}, type="rawx", dryrun="1")
    assert [one["host"] != first for one in answer.json] == [True]
    assert reference.get("reference/show").json["srv"] == [link]
    answer = reference.post("reference/relink", {"kept": None, "replaced": link}, type="rawx")
    assert [one["host"] != first for one in answer.json] == [True]
    assert reference.get("reference/show").json["srv"] == answer.json
    answer = reference.post("reference/relink", {"kept": None, "replaced": link}, type="rawx")
    assert answer.code == (500, 407)
    assert reference.post("reference/destroy", force="1").status == 204


def test_a_container_is_a_reference(api, container, proxy, cluster):
    shown = proxy.get("reference/show", {"cid": cid_from_name(ACCOUNT, container)}).json
    assert (shown["account"], shown["name"]) == (ACCOUNT, container)
    (link,) = shown["srv"]
    assert (link["seq"], link["type"], link["args"]) == (1, "meta2", "")
    assert proxy.post("reference/destroy", {"acct": ACCOUNT, "ref": container}).code == (403, 407)
    assert api.resolve_cid(shown["cid"]) == (ACCOUNT, container)


def test_names_that_are_too_long_are_refused(directory):
    for account, name in ((ACCOUNT, "x" * 1024), ("x" * 64, "name")):
        with pytest.raises(BadRequest, match="more than"):
            directory.create(account, name)


# --- the process


def test_variables_of_the_proxy_and_of_the_services(proxy, cluster):
    shown = proxy.get("/v3.0/config").json
    assert shown["ns.chunk_size"].isdigit() and shown["proxy.cache.enabled"] == "on"
    former = shown["ns.flat_bits"]
    try:
        done = proxy.post("/v3.0/config", body={"ns.flat_bits": "23", "x": "y"}).json
        assert done == {"ns.flat_bits": True, "x": False}
        for _ in range(10):
            assert proxy.get("/v3.0/config").json["ns.flat_bits"] == "23", "in every process"
    finally:
        proxy.post("/v3.0/config", body={"ns.flat_bits": former})
    for kind in ("meta0", "meta1", "meta2"):
        where = {"id": cluster.services(kind)[0].addr}
        former = proxy.get("/v3.0/forward/config", where).json["ns.flat_bits"]
        assert proxy.post("/v3.0/forward/config", where, {"ns.flat_bits": former}).json == {"ns.flat_bits": True}


def test_orders_to_the_services(proxy, cluster):
    for kind in ("meta0", "meta1", "meta2"):
        where = {"id": cluster.services(kind)[0].addr}
        assert proxy.get("/v3.0/forward/ping", where).status in (200, 204)
        info = proxy.get("/v3.0/forward/info", where).json
        assert info["replication"] in ("NONE", "QUORUM", "GROUP")
        assert proxy.get("/v3.0/forward/version", where).data.decode() == info["version"]
        for verb in ("reload", "flush", "lean-glib", "lean-sqlx"):
            assert proxy.post(f"/v3.0/forward/{verb}", where).status == 204
        assert proxy.post("/v3.0/forward/balance-masters", {**where, "max": 1}).data.isdigit()
        lines = proxy.post("/v3.0/forward/stats", where).data.decode().splitlines()
        assert any("req.hits" in line for line in lines)
    assert proxy.get("/v3.0/forward/ping", {"id": cluster.services("conscience")[0].addr}).status in (200, 204)


def test_a_service_can_be_ended(proxy, tmp_path):
    process = Meta2Process(tmp_path)
    try:
        assert proxy.get("/v3.0/forward/ping", {"id": process.addr}).status == 204
        assert proxy.post("/v3.0/forward/kill", {"id": process.addr}).status == 204
        eventually(lambda: proxy.get("/v3.0/forward/ping", {"id": process.addr}).status == 503, what="the end")
    finally:
        process.stop()


@pytest.fixture
def quiet_proxy(cluster, tmp_path):
    """Another proxy of the cluster, of two processes, which nobody else asks."""
    port = free_port()
    process = Process(tmp_path, ["oio-proxy", "-O", "Workers=2", f"127.0.0.1:{port}", cluster.namespace], port)
    proxy = RawProxy(process.addr, cluster.namespace)
    try:
        eventually(lambda: proxy.get("lb/choose", {"type": "rawx"}).status == 200, what="the services")
        yield proxy
    finally:
        proxy.pool.close()
        process.stop()


def test_caches_can_be_emptied(quiet_proxy, container):
    proxy = quiet_proxy

    def counts():
        status = proxy.get("/v3.0/cache/status").json
        return status["csm0"]["count"], status["meta1"]["count"]

    where = {"acct": ACCOUNT, "ref": container}
    for level in ("low", "high", "local"):
        for _ in range(4):
            assert proxy.post("container/get_properties", where).status == 200
        assert proxy.post(f"/v3.0/cache/flush/{level}").status == 204
        csm0, meta1 = counts()
        assert meta1 == 0 if level in ("low", "local") else csm0 == 0
        assert proxy.post("container/get_properties", where).status == 200, "found again"
    shown = proxy.get("/v3.0/cache/show").json
    assert {one["id"].split("|")[1] for one in shown} >= {"meta0", "meta1", "meta2", "rawx"}


def test_statistics_add_up(quiet_proxy):
    proxy = quiet_proxy

    def hits():
        lines = proxy.get("/v3.0/status").data.decode().splitlines()
        return {line.split(" ")[1]: int(line.split(" ")[2]) for line in lines}

    before = hits()
    for _ in range(8):
        proxy.get("conscience/info")
    after = hits()
    assert after["req.hits.conscience_info_GET"] - before["req.hits.conscience_info_GET"] == 8
    assert after["req.hits"] > before["req.hits"] and after["known.srv"] > 0


def test_errors_have_a_body(proxy):
    for method, path, code in (
        ("PUT", "lb/choose", (404, 404)), ("GET", "/v3.0/OTHER/lb/choose", (400, 400)),
        ("GET", "/v2.0/status", (404, 404)), ("POST", "reference/create", (400, 400)),
    ):  # fmt: skip
        answer = proxy.request(method, path)
        assert answer.code == code
        assert set(json.loads(answer.data)) == {"status", "message"}
        assert answer.headers["x-oio-req-id"].startswith("proxy-")
