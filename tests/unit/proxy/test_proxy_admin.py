# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``admin/*``: bases below what they hold."""

import pytest

from oio.common.status import StatusError
from oio.common.utils import cid_from_name
from oio.meta import base_messages, messages
from oio.meta.messages import ServiceLink

REF = "acct=acct&ref=ref"
CID = cid_from_name("acct", "ref")
META2 = f"type=meta2&{REF}"
PEER = "NSTEST-meta2-1"
ROUTES = [
    "ping", "status", "has", "info", "freeze", "enable", "disable", "get_properties",
    "set_properties", "del_properties",
]  # fmt: skip


def two_peers(cluster):
    """A container whose second copy is on a service that is not there."""
    link = ServiceLink(type="meta2", host=f"{PEER},127.0.0.1:9")
    cluster.meta.answers["reference_show"] = messages.ReferenceReply(
        cid=CID, account="acct", name="ref", services=[link]
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("query", "word"),
    [(REF, "No service type"), (f"type=&{REF}", "No service type"), (f"type=rawx&{REF}", "'type'"),
     (f"type=sqlx&{REF}", "'type'"), ("type=meta2", "acct"), ("type=meta2&acct=a", "ref"),
     ("type=meta2&cid=xyz", "cid")],
)  # fmt: skip
def test_the_base_must_be_told(cluster, route, query, word):
    answer = cluster.post(f"admin/{route}?{query}", [])
    assert answer.code == (400, 400) and word in answer.json["message"]


def test_only_known_routes_are_there(cluster):
    assert cluster.post(f"admin/nothing?{META2}").code == (404, 404)
    assert cluster.get(f"admin/freeze?{META2}").code == (404, 404)


@pytest.mark.parametrize("route", ["has", "ping", "status"])
def test_the_only_copy_answers_for_itself(cluster, route):
    operation = {"has": "base_find", "ping": "base_ping", "status": "base_status"}[route]
    cluster.meta.answers[operation] = base_messages.BaseFile(path="/vol/ABC/x.meta2") if route == "has" else None
    answer = cluster.post(f"admin/{route}?{META2}")
    assert answer.status == 200
    body = "/vol/ABC/x.meta2" if route == "has" else ""
    assert answer.json == {PEER: {"status": {"status": 200, "message": "OK"}, "body": body}}
    assert cluster.meta.last(operation).base == f"{CID}.1"
    assert cluster.meta.headers[-1]["x-oio-admin"] == "1" and "x-oio-peers" not in cluster.meta.headers[-1]
    cluster.meta.answers[operation] = StatusError(431, "no file")
    assert cluster.post(f"admin/{route}?{META2}").json[PEER]["status"] == {"status": 431, "message": "no file"}


def test_named_peers_only(cluster):
    cluster.meta.answers["base_find"] = base_messages.BaseFile(path="/x")
    answer = cluster.post(f"admin/has?{META2}&service_id={cluster.meta.addr},nowhere")
    assert list(answer.json) == [cluster.meta.addr, "nowhere"]
    assert answer.json["nowhere"]["status"]["status"] == 503
    # They may hold it although the directory does not know it any more.
    cluster.meta.answers["reference_show"] = StatusError(406, "no such reference")
    answer = cluster.post(f"admin/has?{META2}&service_id={PEER}")
    assert answer.json[PEER]["body"] == "/x" and "x-oio-peers" not in cluster.meta.headers[-1]
    two_peers(cluster)
    # A redirection is an answer like another when the peer is named.
    cluster.meta.answers["base_status"] = StatusError(303, PEER)
    assert cluster.post(f"admin/status?{META2}").json[PEER]["status"] == {"status": 303, "message": PEER}


@pytest.mark.parametrize(
    ("query", "base", "kind"),
    [
        (f"type=meta2&cid={CID}.1", f"{CID}.1", "meta2"),
        (f"type=meta2&cid={CID.lower()}", f"{CID}.1", "meta2"),
        (f"type=meta1&{REF}", CID[:4], "meta1"),
        ("type=meta1&cid=ab", "AB00", "meta1"),
        (f"type=meta0&{REF}", "NSTEST", "meta0"),
        ("type=meta0", "NSTEST", "meta0"),
    ],
)
def test_bases_are_named_after_their_type(cluster, query, base, kind):
    cluster.meta.answers["base_find"] = base_messages.BaseFile(path="/x")
    answer = cluster.post(f"admin/has?{query}")
    assert cluster.meta.last("base_find").base == base
    assert list(answer.json) == [PEER if kind == "meta2" else cluster.meta.addr]


def test_info_is_what_the_peer_says(cluster):
    two_peers(cluster)
    answer = cluster.post(f"admin/info?{META2}").json
    assert answer[PEER]["body"] == {"version": "1.2", "replication": "NONE"}
    assert answer["127.0.0.1:9"]["status"]["status"] == 2


@pytest.mark.parametrize("route", ROUTES)
def test_unknown_containers(cluster, route):
    cluster.meta.answers["reference_show"] = StatusError(406, "no such reference")
    body = {"properties": {"a": "b"}} if route == "set_properties" else []
    assert cluster.post(f"admin/{route}?{META2}", body).code == (404, 406)


@pytest.mark.parametrize(
    ("route", "wanted"), [("freeze", "frozen"), ("enable", "enabled"), ("disable", "disabled")]
)
def test_status_of_containers(cluster, route, wanted):
    answer = cluster.post(f"admin/{route}?{META2}")
    assert (answer.status, answer.json) == (200, {})
    sent = cluster.meta.last("container_set_status")
    assert (sent.cid, sent.status, sent.tolerant) == (CID, wanted, False)
    for code, http in ((436, 503), (437, 500), (439, 500), (431, 404)):
        cluster.meta.answers["container_set_status"] = StatusError(code, "not now")
        answer = cluster.post(f"admin/{route}?{META2}")
        assert answer.code == (http, code)
        assert (answer.headers.get("retry-after") == "1") is (http == 503)
        # A peer that is named gets an entry, whatever it says.
        answer = cluster.post(f"admin/{route}?{META2}&service_id={PEER}")
        assert answer.json == {PEER: {"status": {"status": code, "message": "not now"}, "body": ""}}


@pytest.mark.parametrize("route", ["freeze", "enable", "disable"])
@pytest.mark.parametrize("kind", ["meta0", "meta1"])
def test_only_containers_are_changed(cluster, route, kind):
    assert cluster.post(f"admin/{route}?type={kind}&{REF}", []).code == (400, 400)


def test_properties(cluster):
    cluster.meta.answers["base_get_properties"] = messages.Properties(
        properties={"user.color": "blue", "sys.type": "meta2", "stats.page_count": "3"}
    )
    answer = cluster.post(f"admin/get_properties?{META2}")
    assert answer.json == {
        "properties": {"color": "blue"}, "system": {"sys.type": "meta2", "stats.page_count": "3"}
    }  # fmt: skip
    sent = cluster.meta.last("base_get_properties")
    assert sent.base == f"{CID}.1" and sent.stats
    assert cluster.post(f"admin/get_properties?type=meta1&{REF}").status == 200
    body = {"properties": {"a": "b"}, "system": {"sys.m2.quota": "1"}}
    answer = cluster.post(f"admin/set_properties?{META2}&flush=1", body)
    assert (answer.status, answer.json) == (200, {})
    sent = cluster.meta.last("container_set_properties")
    assert sent.properties == {"user.a": "b", "sys.m2.quota": "1"} and sent.clear
    answer = cluster.post(f"admin/del_properties?{META2}", ["a"])
    assert (answer.status, answer.json) == (200, {})
    assert cluster.meta.last("container_del_properties").names == ["user.a"]
    for body in (None, {}, "x", 3, [3]):
        assert cluster.post(f"admin/del_properties?{META2}", body).code == (400, 400)
    for body in (None, {}, [], {"properties": {"a": 3}}, {"system": {"x": "y"}}):
        assert cluster.post(f"admin/set_properties?{META2}", body).code == (400, 400)


def test_mapping_of_meta0(cluster, monkeypatch):
    told = []
    monkeypatch.setattr(cluster.app, "broadcast", lambda method, path, *_: told.append((method, path)) or [])
    mapping = {"0000": ["127.0.0.1:6007"], "FFFF": ["127.0.0.1:6008"]}
    cluster.meta.answers["meta0_get"] = messages.PrefixMapping(mapping=mapping)
    assert cluster.get("admin/meta0_list").json == mapping
    assert cluster.post("admin/meta0_force", mapping).status == 204
    assert cluster.meta.last("meta0_set").mapping == mapping
    # The other workers of the proxy remember the former mapping too.
    assert told == [("POST", "/v3.0/cache/flush/high")]
    for body in (None, {}, [], {"0000": "x"}, {"0000": [3]}, {"ABCD": ["a:1"], "abcd": ["b:1"]}):
        assert cluster.post("admin/meta0_force", body).code == (400, 400)
    assert cluster.post("admin/meta0_force", {"abCd": ["127.0.0.1:6007"]}).status == 204
    assert cluster.meta.last("meta0_set").mapping == {"ABCD": ["127.0.0.1:6007"]}


def test_prefixes_of_one_base_have_the_same_services(cluster):
    cluster.process.variables.set("ns.meta1_digits", "3")
    assert cluster.post("admin/meta0_force", {"AB1C": ["a:1"], "0007": ["b:1"], "0005": ["c:1"]}).status == 204
    expected = {f"AB1{n:X}": ["a:1"] for n in range(16)} | {f"000{n:X}": ["c:1"] for n in range(16)}
    assert cluster.meta.last("meta0_set").mapping == expected | {"0007": ["b:1"]}
