# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The proxy in front of the real metadata services, all in this process."""

import pytest
from proxy_backend import full_cluster
from proxy_cluster import NS

from oio.common.status import StatusError
from oio.common.utils import cid_from_name

REF = "acct=acct&ref=ref"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    with full_cluster(tmp_path_factory.mktemp("meta")) as cluster:
        yield cluster


def put(cluster, path, version, *, query="", policy="THREE", headers=None, size=10):
    """Prepare and commit an object as clients do."""
    where = f"{REF}&path={path}&version={version}{query}"
    prepared = cluster.post(f"content/prepare2?{where}", {"size": size, "policy": policy})
    chunks = [{**chunk, "hash": "AB" * 16, "size": size} for chunk in prepared.json["chunks"]]
    body = {"chunks": chunks, "properties": {**prepared.json["properties"], "color": "blue"}}
    meta = {
        "x-oio-content-meta-id": prepared.headers["x-oio-content-meta-id"],
        "x-oio-content-meta-version": prepared.headers["x-oio-content-meta-version"],
        "x-oio-content-meta-length": str(size),
        "x-oio-content-meta-policy": policy,
        "x-oio-content-meta-hash": "AB" * 16,
        "x-oio-content-meta-chunk-method": prepared.headers["x-oio-content-meta-chunk-method"],
    }
    return cluster.post(f"content/create?{where}", body, headers={**meta, **(headers or {})})


def test_life_of_an_object(full):
    assert put(full, "obj", 1000).code == (404, 406)
    assert put(full, "obj", 1000, query="&autocreate=true").status == 204
    located = full.get(f"content/locate?{REF}&path=obj")
    assert len(located.json) == 3 and all(chunk["score"] == 80 for chunk in located.json)
    assert located.headers["x-oio-content-meta-color"] == "blue"
    assert located.headers["x-oio-content-meta-policy"] == "THREE"
    assert not [name for name in located.headers if "oio_chunk" in name]
    listing = full.get(f"container/list?{REF}&properties=1")
    assert [one["name"] for one in listing.json["objects"]] == ["obj"]
    assert listing.json["objects"][0]["properties"] == {"color": "blue"}
    assert listing.json["system"]["sys.m2.objects"] == "1"
    assert full.post(f"content/set_properties?{REF}&path=obj", {"properties": {"a": "b"}}).status == 204
    answer = full.post(f"content/get_properties?{REF}&path=obj")
    assert answer.json == {"properties": {"color": "blue", "a": "b"}}
    assert full.post(f"container/destroy?{REF}").code == (409, 438)
    assert full.get(f"content/locate?{REF}&path=obj").status == 200
    assert full.post(f"content/delete?{REF}&path=obj").status == 204
    assert full.post(f"content/delete?{REF}&path=obj").code == (404, 420)
    assert full.get(f"content/show?{REF}&path=obj").code == (404, 420)
    assert full.post(f"container/destroy?{REF}").status == 204
    assert full.post(f"container/destroy?{REF}").status == 404
    assert full.post(f"reference/destroy?{REF}").status == 204
    assert full.post(f"container/get_properties?{REF}").code == (404, 406)


def test_containers_twice(full):
    assert full.post("container/create?acct=acct&ref=twice").status == 201
    assert full.post("container/create?acct=acct&ref=twice").status == 204
    answer = full.post("container/create_many?acct=acct", {"containers": [{"name": "twice"}, {"name": "once"}]})
    assert [one["status"] for one in answer.json["containers"]] == [433, 201]
    shown = full.get("reference/show?acct=acct&ref=twice").json
    assert shown["srv"] == [{"seq": 1, "type": "meta2", "host": f"{NS}-meta2-1", "args": ""}]
    assert shown["cid"] == cid_from_name("acct", "twice")
    assert full.post("reference/destroy?acct=acct&ref=twice").code == (403, 407)


def test_a_container_made_while_it_is_destroyed_is_linked(full, monkeypatch):
    """The destruction begins after the link was read, and ends before the base is made."""
    where = "acct=acct&ref=phoenix"
    full.post(f"container/create?{where}")
    resolver = full.app.resolver
    call_meta2 = resolver.call_meta2

    def destroyed_first(request, context, write):
        if request.operation() == "container_create":
            monkeypatch.setattr(resolver, "call_meta2", call_meta2)
            assert full.post(f"container/destroy?{where}").status == 204
            # It forgot what it destroyed; another proxy would not.
            resolver.learn(request.cid, "meta2", [f"{NS}-meta2-1"])
        return call_meta2(request, context, write)

    monkeypatch.setattr(resolver, "call_meta2", destroyed_first)
    assert full.post(f"container/create?{where}").status == 201
    links = full.get(f"reference/show?{where}").json["srv"]
    assert links == [{"seq": 1, "type": "meta2", "host": f"{NS}-meta2-1", "args": ""}]
    resolver.links.clear()
    assert full.post(f"container/get_properties?{where}").status == 200
    assert full.post(f"container/destroy?{where}").status == 204


def test_two_destructions_at_once_leave_no_link(full, monkeypatch):
    where = "acct=acct&ref=twice-dead"
    full.post(f"container/create?{where}")
    resolver = full.app.resolver
    call_meta1 = resolver.call_meta1

    def destroyed_first(request, context, write, **rest):
        if request.operation() == "reference_unlink":
            monkeypatch.setattr(resolver, "call_meta1", call_meta1)
            assert full.post(f"container/destroy?{where}").status == 204
        return call_meta1(request, context, write, **rest)

    monkeypatch.setattr(resolver, "call_meta1", destroyed_first)
    assert full.post(f"container/destroy?{where}").status == 404
    assert full.get(f"reference/show?{where}").json["srv"] == []
    assert full.post(f"reference/destroy?{where}").status == 204


def test_a_container_that_could_not_be_destroyed_tells_that_it_lives(full, monkeypatch):
    where = "acct=acct&ref=survivor"
    full.post(f"container/create?{where}")
    resolver = full.app.resolver
    call_services, asked = resolver.call_services, []

    def failing(service_type, services, request, context, write):
        asked.append(request.operation())
        if request.operation() == "container_destroy":
            raise StatusError(504, "deadline reached")
        return call_services(service_type, services, request, context, write)

    monkeypatch.setattr(resolver, "call_services", failing)
    assert full.post(f"container/destroy?{where}").status == 503
    assert asked == ["container_set_status", "container_destroy", "container_set_status", "container_touch"]
    monkeypatch.setattr(resolver, "call_services", call_services)
    assert full.post(f"container/get_properties?{where}").json["system"]["sys.status"] == "0"
    assert full.post(f"container/destroy?{where}").status == 204


def test_forced_versioning_sets_the_container(full):
    where = "acct=acct&ref=ref"
    full.post(f"container/create?{where}")
    unlimited = {"x-oio-force-versioning": "-1"}
    assert put(full, "v", 1, headers=unlimited).status == 204
    assert put(full, "v", 2, headers=unlimited).status == 204
    system = full.post(f"container/get_properties?{where}").json["system"]
    assert system["sys.m2.policy.version"] == "-1" and system["sys.m2.objects"] == "2"
    answer = full.post(f"content/delete?{where}&path=v", headers={"x-oio-force-versioning": "1"})
    assert answer.status == 204
    assert full.post(f"container/get_properties?{where}").json["system"]["sys.m2.objects"] == "1"
    assert full.post(f"content/delete?{where}&path=v", headers=unlimited).status == 204
    rows = full.get(f"container/list?{where}&all=1").json["objects"]
    assert [row["deleted"] for row in rows] == [True, False]
    assert full.get(f"content/show?{where}&path=v").code == (404, 426)
    assert full.get(f"content/show?{where}&path=v&deleted=1").status == 200
    assert full.post(f"content/get_properties?{where}&path=v").headers["x-oio-content-meta-deleted"] == "True"
    assert full.post(f"container/destroy?{where}&force=1").status == 204


def test_names_survive(full):
    full.post("container/create?acct=acct&ref=names")
    names = ["a b", "100%", 'quo"te', "l\ni", "sl/a/sh", "é+&="]
    for number, name in enumerate(names):
        quoted = "".join(f"%{byte:02X}" for byte in name.encode())
        where = f"acct=acct&ref=names&path={quoted}"
        headers = {
            "x-oio-content-meta-id": f"{number:032X}", "x-oio-content-meta-version": "5",
            "x-oio-content-meta-length": "0", "x-oio-content-meta-policy": "SINGLE",
        }  # fmt: skip
        chunk = {"url": f"http://{NS}-rawx-1/{number:064X}", "pos": "0", "size": 0, "hash": "AB" * 16}
        assert full.post(f"content/create?{where}", [chunk], headers=headers).status == 204
        assert full.get(f"content/show?{where}").headers["x-oio-content-meta-id"] == f"{number:032X}"
    listed = full.get("container/list?acct=acct&ref=names").json["objects"]
    assert [one["name"] for one in listed] == sorted(names)
    seen, marker = [], ""
    while True:
        page = full.get(f"container/list?acct=acct&ref=names&max=2&marker={marker}")
        seen += [one["name"] for one in page.json["objects"]]
        if page.headers["x-oio-list-truncated"] == "false":
            break
        marker = page.headers["x-oio-list-marker"]
    assert seen == sorted(names)
    doomed = {"contents": [{"name": name} for name in [*names, "no"]]}
    answer = full.post("content/delete_many?acct=acct&ref=names", doomed)
    assert [one["status"] for one in answer.json["contents"]] == [204] * len(names) + [420]


@pytest.mark.parametrize("verb", ["reload", "flush"])
def test_meta_services_forget_what_they_know_of_others(full, verb):
    for kind in ("meta0", "meta1", "meta2"):
        before = full.backend.prefixes_read
        addr = full.conscience.services[kind][0].addr
        assert full.request("POST", f"/v3.0/forward/{verb}?id={addr}", raw=True).status == 204
        assert full.backend.prefixes_read == before + (kind == "meta1")
