# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``container/*`` and ``admin/*`` of the proxy in plain HTTP, on a real cluster."""

import os
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pytest
from proxy_http import ZERO
from support import ACCOUNT, eventually

from oio.common.utils import cid_from_name

FROZEN, DISABLED = "4294967295", "4294967294"


@pytest.fixture
def with_variable(raw_proxy, cluster):
    """Set a variable of the proxy and of the meta2 services for the time of a test."""
    services = [service.addr for service in cluster.services("meta2")]
    former = []

    def set_variable(name, value):
        former.append((name, raw_proxy.set_variable(name, value, *services)))

    yield set_variable
    for name, value in reversed(former):
        raw_proxy.set_variable(name, value, *services)


def admin(box, route, body=None, headers=None, **query):
    return box.post(f"admin/{route}", body, headers, type="meta2", **query)


# --- life


def test_creating_twice(make_box, raw_proxy):
    box, other = make_box(), make_box("-b")
    assert box.post("container/create").code == (201, None)
    answer = box.post("container/create", {"properties": {"a": "b"}})
    assert (answer.status, answer.data) == (204, b"")
    assert box.post("container/get_properties").json["properties"] == {}
    for status in (201, 433):
        body = {"containers": [{"name": box.name}, {"name": other.name}]}
        items = raw_proxy.post("container/create_many", {"acct": ACCOUNT}, body).json["containers"]
        assert [(one["name"], one["status"]) for one in items] == [(box.name, 433), (other.name, status)]


def test_an_unknown_policy_is_500_and_creates_nothing(make_box):
    box = make_box()
    answer = box.post("container/create", {"system": {"sys.m2.policy.storage": "UNKNOWN"}})
    assert answer.code == (500, 480)
    assert box.post("container/get_properties").code == (404, 406)
    assert box.get("reference/show").code == (404, 406)


def test_destroying(box):
    box.put("a")
    assert box.post("container/destroy").code == (409, 438)
    # A refusal leaves the container as it was: neither frozen nor unlinked.
    assert box.put("b").status == 204 and box.system()["sys.status"] == "0"
    assert box.post("container/destroy", force="1").status == 204
    assert box.post("container/destroy").code == (404, 431)
    assert box.get("container/list").code == (404, 431)
    assert box.post("reference/destroy").status == 204
    assert box.get("container/list").code == (404, 406)


def test_markers_and_drained_objects_do_not_keep_a_container(box):
    unlimited = {"x-oio-force-versioning": "-1"}
    box.put("a", headers=unlimited)
    box.put("b")
    assert box.post("content/delete", path="a").status == 204
    assert box.post("container/destroy").code == (409, 438)
    for row in box.rows(all=1):
        if not row["deleted"]:
            assert box.post("content/drain", path=row["name"], version=row["version"]).status == 204
    assert len(box.rows(all=1)) == 3
    assert box.post("container/destroy").status == 204


@pytest.mark.parametrize("status", ["freeze", "disable"])
def test_frozen_and_disabled_containers_can_be_destroyed(box, status):
    box.put("a")
    assert admin(box, status).status == 200
    before = box.system()["sys.status"]
    assert box.post("container/destroy").code == (409, 438)
    assert box.system()["sys.status"] == before
    assert box.post("container/destroy", force="1").status == 204
    assert box.post("container/create").status == 201
    assert box.system()["sys.status"] == "0"


def test_an_object_that_was_acknowledged_is_not_destroyed_as_nothing(make_box):
    with ThreadPoolExecutor(4) as executor:
        for number in range(8):
            box = make_box(f"-{number}")
            box.post("container/create")
            puts = [executor.submit(box.put, f"o{rank}") for rank in range(3)]
            destroyed = box.post("container/destroy")
            stored = [put.result().status for put in puts].count(204)
            assert destroyed.code in ((204, None), (409, 438))
            if destroyed.status == 204:
                assert stored == 0
            else:
                assert box.system()["sys.m2.objects"] == str(stored)


def test_what_is_not_there(make_box):
    box = make_box()
    for route in (
        "get_properties", "set_properties", "del_properties", "flush", "purge", "destroy",
        "raw_insert", "raw_update", "raw_delete", "snapshot",
    ):  # fmt: skip
        chunk = {"type": "chunk", "id": "http://a/B", "hash": ZERO, "size": 1, "content": "AB", "pos": "0"}
        body = {
            "set_properties": {"properties": {"a": "b"}},
            "snapshot": {"account": ACCOUNT, "container": box.name + "-copy"},
            "raw_update": {"old": [chunk], "new": [chunk]},
            "raw_insert": [chunk],
            "raw_delete": [chunk],
        }.get(route, [])
        assert box.post(f"container/{route}", body).code == (404, 406), route
    assert box.get("container/show").code == (404, 406)
    assert box.get("container/list").code == (404, 406)
    assert box.post("container/touch").code == (403, 406)
    # The reference alone is not a container.
    assert box.post("reference/create").status == 201
    assert box.get("container/list").code == (404, 431)
    assert box.post("container/touch").code == (403, 431)


def test_wrong_methods_and_old_routes_are_404(box):
    assert box.post("container/list").code == (404, 404)
    assert box.get("container/create").code == (404, 404)
    assert box.post("container/stage").code == (404, 404)


def test_containers_are_found_by_id_in_any_case(box):
    box.put("a")
    cid = cid_from_name(ACCOUNT, box.name)
    for text in (cid, cid.lower(), f"{cid}.1"):
        answer = box.proxy.get("container/list", {"cid": text})
        assert [row["name"] for row in answer.json["objects"]] == ["a"]
        assert answer.json["system"]["sys.name"] == f"{cid}.1"
    assert box.proxy.get("container/list", {"cid": cid[:-1]}).code == (400, 400)


# --- properties


def test_properties(box):
    body = {"properties": {"color": "dark blue", "é": "ü"}, "system": {"sys.m2.quota": "1000"}}
    answer = box.post("container/set_properties", body)
    assert (answer.status, answer.json) == (200, {})
    shown = box.get("container/show")
    assert shown.json == {"properties": {"color": "dark blue", "é": "ü"}}
    assert shown.headers["x-oio-container-meta-user-color"] == "dark%20blue"
    assert shown.headers["x-oio-container-meta-sys-m2-quota"] == "1000"
    assert shown.headers["x-oio-container-meta-x-schema-version"] == "1.8"
    assert box.post("container/set_properties", {"properties": {"color": None}}).status == 200
    assert box.post("container/get_properties").json["properties"] == {"é": "ü"}
    for body in (None, {}, {"properties": {}}, [], {"properties": {"a": 1}}, {"system": {"color": "x"}}):
        assert box.post("container/set_properties", body, flush=1).code == (400, 400)
    assert box.post("container/set_properties", {"properties": {"z": "1"}}, flush=1).status == 200
    assert box.post("container/get_properties").json["properties"] == {"z": "1"}
    assert box.post("container/del_properties", []).json == {}
    assert box.post("container/get_properties").json["properties"] == {}
    assert box.post("container/del_properties", "z").code == (400, 400)


def test_administrators_see_statistics(box):
    assert not any(key.startswith("stats.") for key in box.system())
    system = box.post("container/get_properties", headers={"x-oio-admin": "yeah"}).json["system"]
    assert {"stats.page_count", "stats.freelist_count", "stats.page_size"} <= set(system)
    assert all(isinstance(value, str) for value in system.values())


def test_counters_follow(box):
    assert "sys.m2.policy.version" not in box.system()
    box.put("a", metachunks=2)
    box.put("b")
    system = box.system()
    assert (system["sys.m2.objects"], system["sys.m2.usage"]) == ("2", "30")
    box.post("content/delete", path="a")
    assert box.post("container/touch", recompute=1, damaged_objects=1, missing_chunks=1).status == 204
    system = box.system()
    assert (system["sys.m2.objects"], system["sys.m2.usage"]) == ("1", "10")


# --- listing


def test_pages_give_each_object_once_and_in_order(box):
    names = sorted([f"{n % 8}/é {n}" for n in range(64)])
    for name in names:
        box.put(name)
    for size in (1, 7, 63, 64, 65):
        found, marker = [], ""
        while True:
            page = box.get("container/list", max=size, marker=marker)
            assert len(page.json["objects"]) <= size
            found += [row["name"] for row in page.json["objects"]]
            if page.headers["x-oio-list-truncated"] == "false":
                assert "x-oio-list-marker" not in page.headers
                break
            marker = page.json["objects"][-1]["name"]
        assert found == names
    folded = box.get("container/list", delimiter="/?", max=3)
    assert folded.json["prefixes"] == ["0/", "1/", "2/"] and folded.json["objects"] == []
    assert folded.headers["x-oio-list-marker"].startswith("2%2F")
    assert [row["name"] for row in box.rows(prefix="3/")] == [name for name in names if name.startswith("3/")]
    assert [row["name"] for row in box.rows(marker="6/", marker_end="7/")] == names[48:56]
    assert len(box.rows(max=0)) == len(box.rows(max=-3)) == len(box.rows(marker="0/")) == 64
    answer = box.get("container/list", max="ten")
    assert answer.code == (400, 400) and "'max'" in answer.json["message"]


def test_listing_shows_markers_versions_and_properties(box):
    unlimited = {"x-oio-force-versioning": "-1"}
    box.put("a", headers=unlimited, properties={"k": "v"})
    box.put("a")
    box.put("b")
    box.post("content/delete", path="a")
    assert [row["name"] for row in box.rows()] == ["b"]
    hidden, shown = box.rows(deleted=1)
    assert (hidden["deleted"], shown["deleted"]) == (True, False)
    assert hidden["id"] == b"DELETED".hex().upper()
    assert [hidden[key] for key in ("policy", "chunk-method", "hash", "size")] == [None] * 4
    assert hidden["mime-type"] == "application/x-deleted;swift_versions_deleted=1"
    rows = box.rows(all=1, properties=1)
    assert [(row["name"], row["deleted"]) for row in rows] == [
        ("a", True), ("a", False), ("a", False), ("b", False),
    ]  # fmt: skip
    assert [row["version"] for row in rows[:3]] == sorted([row["version"] for row in rows[:3]], reverse=True)
    assert rows[2]["properties"] == {"k": "v"} and "properties" not in rows[1]
    assert rows[3]["id"] == rows[3]["content"]


@pytest.mark.parametrize("more", [{}, {"delimiter": "/"}])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_of_all_versions_hold_each_once(box, size, more):
    for name in ("a", "b c", "d"):
        for _ in range(4):
            box.put(name, headers={"x-oio-force-versioning": "-1"})
    whole = [(row["name"], row["version"]) for row in box.rows(all=1)]
    assert len(whole) == 12
    found, after, truncated = [], {}, "true"
    while truncated == "true":
        answer = box.get("container/list", all=1, max=size, **after, **more)
        found += [(row["name"], row["version"]) for row in answer.json["objects"]]
        truncated = answer.headers["x-oio-list-truncated"]
        after = {
            "marker": unquote(answer.headers.get("x-oio-list-marker", "")),
            "version_marker": answer.headers.get("x-oio-list-version-marker", ""),
        }
    assert found == whole


def test_objects_are_found_by_chunk_and_by_hash(box):
    box.put("a", digest="AB" * 16)
    box.put("b", digest="CD" * 16)
    (chunk,) = box.get("content/locate", path="b").json
    for text in (chunk["url"], chunk["url"].rpartition("/")[2]):
        answer = box.get("container/list", headers={"x-oio-list-chunk-id": text})
        assert [row["name"] for row in answer.json["objects"]] == ["b"]
    answer = box.get("container/list", headers={"x-oio-list-content-hash": "ab" * 16})
    assert [row["name"] for row in answer.json["objects"]] == ["a"]
    for name, value in (("chunk-id", "AA"), ("content-hash", "EF" * 16)):
        assert box.get("container/list", headers={f"x-oio-list-{name}": value}).code == (404, 420)


# --- flush, purge, dedup


def test_flush_is_repeated_until_nothing_remains(box):
    for number in range(70):
        box.put(f"o{number}")
    truncated = []
    while not truncated or truncated[-1] == "true":
        answer = box.post("container/flush")
        assert answer.status == 204
        truncated.append(answer.headers["x-oio-truncated"])
    assert truncated == ["true", "false"]
    system = box.system()
    assert (system["sys.m2.objects"], system["sys.m2.usage"], box.rows(all=1)) == ("0", "0", [])


def test_purge_applies_to_every_name(box):
    for name in ("a", "b"):
        for _ in range(4):
            box.put(name, headers={"x-oio-force-versioning": "-1"})
    assert box.post("container/purge").status == 204
    assert len(box.rows(all=1)) == 8
    assert box.post("container/purge", maxvers=3).status == 204
    assert [row["name"] for row in box.rows(all=1)] == ["a"] * 3 + ["b"] * 3
    box.post("container/set_properties", {"system": {"sys.m2.policy.version": "2"}})
    assert box.post("container/purge").status == 204
    assert box.system()["sys.m2.objects"] == "4"
    assert box.post("container/purge", maxvers="x").code == (400, 400)


def test_dedup_never_works(box):
    answer = box.post("container/dedup")
    assert answer.code == (500, 404) and answer.json["message"] == "No handler found"


# --- status


def test_status_is_changed_in_this_order_only(box):
    assert admin(box, "enable").code == (500, 439)
    assert admin(box, "freeze").json == {}
    assert box.system()["sys.status"] == FROZEN
    answer = admin(box, "freeze")
    assert answer.code == (503, 436) and answer.headers["retry-after"] == "1"
    assert admin(box, "disable").code == (503, 436)
    assert admin(box, "enable").json == {}
    assert admin(box, "disable").json == {}
    assert box.system()["sys.status"] == DISABLED
    assert admin(box, "disable").code == (500, 437)
    assert admin(box, "freeze").code == (500, 437)
    assert admin(box, "enable").json == {}
    assert box.system()["sys.status"] == "0"
    peer = box.system()["sys.peers"]
    answer = admin(box, "enable", service_id=peer)
    assert answer.status == 200 and answer.json[peer]["status"]["status"] == 439


def chunk_bean(box, path):
    (row,) = [row for row in box.rows() if row["name"] == path]
    (chunk,) = box.get("content/locate", path=path).json
    return {
        "type": "chunk", "id": chunk["url"], "hash": chunk["hash"], "size": chunk["size"],
        "content": row["id"], "pos": "0",
    }  # fmt: skip


@pytest.mark.parametrize("status", ["frozen", "disabled"])
def test_what_a_status_allows(box, status):
    box.put("a")
    bean = chunk_bean(box, "a")
    chunks, headers = box.prepared("a")
    current = {**headers, "x-oio-content-meta-version": str(box.rows()[0]["version"])}
    assert admin(box, "freeze" if status == "frozen" else "disable").status == 200
    reads = [
        box.get("container/list"),
        box.get("content/show", path="a"),
        box.post("content/get_properties", path="a"),
        box.post("content/touch", path="a"),
    ]
    writes = [
        box.put("b"),
        box.put("a", append=1),
        box.post("content/update", chunks, current, path="a"),
        box.post("content/truncate", path="a", size=0),
        box.post("content/drain", path="a"),
        box.post("content/delete", path="a"),
        box.post("content/delete", path="a", headers={"x-oio-force-versioning": "-1"}),
        box.post("content/purge", path="a"),
        box.post("content/set_properties", {"properties": {"a": "b"}}, path="a"),
        box.post("content/del_properties", ["a"], path="a"),
        box.post("container/purge"),
        box.post("container/raw_delete", [bean]),
        box.post("container/raw_insert", [bean]),
        box.post("container/raw_update", {"old": [bean], "new": [bean]}),
    ]
    always = [
        box.post("container/get_properties"),
        box.post("container/set_properties", {"properties": {"a": "b"}}),
        box.post("container/del_properties", ["a"]),
        box.post("container/touch"),
    ]
    for answer in writes + (reads if status == "disabled" else []):
        assert answer.code == (503, 436) and answer.headers["retry-after"] == "1"
        assert status in answer.json["message"]
    for answer in always + (reads if status == "frozen" else []):
        assert answer.status < 300, answer
    many = box.post("content/delete_many", {"contents": [{"name": "a"}]})
    assert many.code == (503, 436)
    raw = box.post("container/raw_update", {"old": [bean], "new": [bean]}, frozen=1)
    flush = box.post("container/flush")
    if status == "frozen":
        assert (raw.status, flush.status) == (204, 204)
    else:
        assert raw.code == flush.code == (503, 436)
    box.post("container/set_properties", {"system": {"sys.status": "0"}})
    assert box.put("b").status == 204


def test_a_worm_namespace_forbids_what_loses_data(box, with_variable):
    box.put("a")
    box.put("many", headers={"x-oio-force-versioning": "1"})
    bean = chunk_bean(box, "a")
    chunks, headers = box.prepared("a")
    current = {**headers, "x-oio-content-meta-version": str(box.rows()[0]["version"])}
    with_variable("ns.worm", "on")
    forbidden = [
        ("content/delete", None, {"path": "a"}, None),
        ("content/delete_many", {"contents": [{"name": "a"}]}, {}, None),
        ("content/drain", None, {"path": "a"}, None),
        ("content/truncate", None, {"path": "a", "size": 0}, None),
        ("content/update", chunks, {"path": "a"}, current),
        ("container/purge", None, {}, None),
        ("container/flush", None, {}, None),
        ("container/destroy", None, {}, None),
        ("container/destroy", None, {"force": 1}, None),
        ("container/raw_insert", [bean], {}, None),
        ("container/raw_update", {"old": [bean], "new": [bean]}, {}, None),
        ("container/raw_delete", [bean], {}, None),
    ]
    for route, body, query, more in forbidden:
        answer = box.post(route, body, more, **query)
        assert answer.code == (405, 405), (route, answer)
        assert "worm" in answer.json["message"].lower() and answer.headers["allow"] == "GET, HEAD, PUT"
    assert box.put("a").code == (409, 421)
    for allowed in (
        box.put("new"),
        box.put("a", append=1),
        box.post("content/purge", path="a"),
        box.post("content/set_properties", {"properties": {"a": "b"}}, path="a"),
        box.post("container/set_properties", {"properties": {"a": "b"}}),
    ):
        assert allowed.status < 300, allowed
    administrator = {"x-oio-admin": "1"}
    assert box.put("a", headers=administrator).status == 204
    assert box.post("content/delete", path="a", headers=administrator).status == 204
    assert box.post("container/destroy", force=1, headers=administrator).status == 204


def test_a_slave_namespace_refuses_writes(box, make_box, with_variable):
    box.put("a")
    bean = chunk_bean(box, "a")
    with_variable("ns.master", "off")
    other = make_box("-other")
    refused = [
        other.post("container/create"),
        box.put("b"),
        box.put("a", append=1),
        box.post("content/delete", path="a"),
        box.post("content/drain", path="a"),
        box.post("content/truncate", path="a", size=0),
        box.post("content/purge", path="a"),
        box.post("content/set_properties", {"properties": {"a": "b"}}, path="a"),
        box.post("container/set_properties", {"properties": {"a": "b"}}),
        box.post("container/purge"),
        box.post("container/flush"),
        box.post("container/raw_delete", [bean]),
        box.post("container/destroy", force=1),
    ]
    for answer in refused:
        assert answer.code == (500, 500) and "NS slave!" in answer.json["message"], answer
    assert other.get("reference/show").code == (404, 406)
    assert len(box.rows()) == 1
    assert box.post("content/delete", path="a", headers={"x-oio-admin": "true"}).status == 204


# --- raw rows


def test_raw_rows(box):
    content = "AB" * 16
    alias = {"type": "alias", "name": "r/é", "version": 5, "header": content, "ctime": 1, "mtime": 2}
    header = {
        "type": "header", "id": content.lower(), "chunk-method": "plain/nb_copy=1", "mime-type": "a/b", "size": 7,
    }  # fmt: skip
    chunk = {"type": "chunk", "id": "http://x/AA", "hash": ZERO, "size": 7, "content": content, "pos": "0"}
    assert box.post("container/raw_insert", [alias, header, chunk]).status == 204
    assert box.post("container/raw_insert", [chunk]).code == (409, 421)
    assert box.post("container/raw_insert", [chunk], force=1).status == 204
    (row,) = box.rows()
    assert (row["name"], row["version"], row["id"], row["size"], row["mime-type"]) == ("r/é", 5, content, 7, "a/b")
    assert (row["ctime"], row["mtime"]) == (1, 2)
    moved = {**chunk, "id": "http://y/AA"}
    assert box.post("container/raw_update", {"old": [chunk], "new": [moved]}).status == 204
    (shown,) = box.get("content/show", path="r/é").json
    assert shown["url"] == "http://y/AA"
    assert box.post("container/raw_delete", [moved, header, alias, chunk]).status == 204
    assert box.rows(all=1) == []
    assert box.post("container/raw_insert", [{**alias, "version": "5"}]).code == (400, 400)


def test_inserting_what_lacked_repairs_the_counters(box):
    assert box.put("a", policy="THREECOPIES", drop=1).status == 204
    system = box.system()
    assert (system["sys.m2.chunks.missing"], system["sys.m2.objects.damaged"]) == ("1", "1")
    chunk = box.get("content/locate", path="a").json[0]
    bean = {
        "type": "chunk", "id": chunk["url"][:-8] + "0" * 8, "hash": chunk["hash"], "size": chunk["size"],
        "content": box.rows()[0]["id"], "pos": "0",
    }  # fmt: skip
    assert box.post("container/raw_insert", [bean]).status == 204
    system = box.system()
    assert (system["sys.m2.chunks.missing"], system["sys.m2.objects.damaged"]) == ("0", "0")


# --- snapshot


def unscored(box):
    """The chunks of the object ``a``, without their scores, which move."""
    chunks = box.get("content/show", path="a").json
    return [{key: value for key, value in chunk.items() if key != "score"} for chunk in chunks]


def test_a_snapshot_is_a_frozen_copy_under_another_name(box, make_box):
    box.put("a", properties={"k": "v"})
    box.post("container/set_properties", {"properties": {"color": "blue"}})
    copy = make_box("-copy")
    body = {"account": ACCOUNT, "container": copy.name}
    assert admin(box, "freeze").status == 200
    answer = box.post("container/snapshot", body)
    assert (answer.status, answer.data) == (204, b"")
    assert admin(box, "enable").status == 200
    system = copy.system()
    assert system["sys.status"] == FROZEN
    assert (system["sys.account"], system["sys.user.name"]) == (ACCOUNT, copy.name)
    assert system["sys.name"] == cid_from_name(ACCOUNT, copy.name) + ".1"
    links = [link["host"] for link in copy.get("reference/show").json["srv"] if link["type"] == "meta2"]
    assert system["sys.peers"] == ",".join(sorted(links))
    assert copy.rows(properties=1) == box.rows(properties=1)
    assert unscored(copy) == unscored(box)
    assert copy.get("container/show").json["properties"] == {"color": "blue"}
    assert copy.put("b").code == (503, 436)
    answer = box.post("container/snapshot", body)
    assert answer.code == (400, 400) and "already exists" in answer.json["message"]
    assert copy.rows() == box.rows()
    assert admin(copy, "enable").status == 200
    assert copy.put("b").status == 204
    assert [row["name"] for row in box.rows()] == ["a"]


def test_a_snapshot_that_fails_leaves_nothing(make_box, raw_proxy):
    source, copy = make_box(), make_box("-copy")
    body = {"account": ACCOUNT, "container": copy.name}
    assert source.post("container/snapshot", body).code == (404, 406)
    assert copy.get("reference/show").code == (404, 406)
    # Linked, but without a base: found out only when the copy is made.
    assert source.post("reference/link", type="meta2", autocreate=1).status == 200
    assert source.post("container/snapshot", body).status == 404
    assert copy.get("reference/show").code == (404, 406)
    for wrong in ({}, {"account": ACCOUNT}, {**body, "account": ""}, {**body, "container": source.name}):
        assert source.post("container/snapshot", wrong).code == (400, 400)


def test_of_several_snapshots_onto_one_name_one_is_made(box, make_box):
    for number in range(20):
        box.put(f"o{number}")
    copy = make_box("-copy")
    body = {"account": ACCOUNT, "container": copy.name}
    with ThreadPoolExecutor(6) as executor:
        answers = list(executor.map(lambda _: box.post("container/snapshot", body), range(6)))
    assert sorted(answer.status for answer in answers) == [204] + [400] * 5, answers
    assert copy.rows() == box.rows()
    assert copy.post("container/destroy", force=1).status == 204
    assert box.post("container/snapshot", body).status == 204


# --- single bases


def test_each_peer_tells_where_its_base_is(box):
    (peer,) = box.system()["sys.peers"].split(",")
    answer = admin(box, "has")
    assert answer.status == 200 and list(answer.json) == [peer]
    path = answer.json[peer]["body"]
    assert answer.json[peer]["status"] == {"status": 200, "message": "OK"}
    assert os.path.basename(path) == cid_from_name(ACCOUNT, box.name) + ".1.meta2" and os.path.exists(path)
    for route in ("ping", "status", "drop_cache"):
        assert admin(box, route).json == {peer: {"status": {"status": 200, "message": "OK"}, "body": ""}}
    info = admin(box, "info").json[peer]["body"]
    assert info["replication"] == "NONE" and "sqlite" in info
    # The file of a base is taken away behind the back of its service.
    os.unlink(path)
    assert admin(box, "has").json[peer]["status"]["status"] == 431
    box.post("reference/unlink", type="meta2")


def test_bases_of_the_directory_can_be_asked_about(box, raw_proxy, cluster):
    cid = cid_from_name(ACCOUNT, box.name)
    prefix = {"type": "meta1", "cid": cid[:4]}
    for query in ({"type": "meta1", **box.where}, prefix, {"type": "meta0", **box.where}):
        answer = raw_proxy.post("admin/has", query)
        assert answer.json
        for entry in answer.json.values():
            assert entry["status"]["status"] == 200 and os.path.exists(entry["body"])
        system = raw_proxy.post("admin/get_properties", query).json["system"]
        assert system["sys.type"] == query["type"] and "stats.page_count" in system
    mapping = raw_proxy.get("admin/meta0_list").json
    assert len(mapping) == 65536 and all(mapping.values())


def test_properties_of_single_bases(box):
    peer = box.system()["sys.peers"]
    assert admin(box, "set_properties", {"properties": {"a": "b"}, "system": {"sys.m2.quota": "5"}}).json == {}
    answer = admin(box, "get_properties", service_id=peer).json
    assert answer["properties"] == {"a": "b"} and answer["system"]["sys.m2.quota"] == "5"
    assert "stats.page_size" in answer["system"]
    assert admin(box, "del_properties", ["a"]).json == {}
    assert admin(box, "del_properties", {"a": 1}).code == (400, 400)
    assert admin(box, "get_properties").json["properties"] == {}


def test_a_container_destroyed_by_two_at_once_is_destroyed_once(box):
    box.put("a")
    with ThreadPoolExecutor(4) as executor:
        answers = list(executor.map(lambda _: box.post("container/destroy", force=1), range(4)))
    statuses = sorted(answer.status for answer in answers)
    assert 204 in statuses and set(statuses) <= {204, 404}, answers
    eventually(lambda: box.post("container/get_properties").status == 404, what="gone")
