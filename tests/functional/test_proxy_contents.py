# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``content/*`` of the proxy in plain HTTP, on a real cluster."""

import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pytest
from proxy_http import CHUNK, ZERO
from support import CHUNK_SIZE

UNLIMITED = {"x-oio-force-versioning": "-1"}
SUSPENDED = {"x-oio-force-versioning": "1"}
SIMULATED = {"x-oio-simulate-versioning": "1"}
HASH, OTHER_HASH = "AB" * 16, "CD" * 16


def versions(box, path="a"):
    """(version, is it a marker?) of a name, newest first."""
    return [(row["version"], row["deleted"]) for row in box.rows(all=1) if row["name"] == path]


def positions(box, path="a"):
    return sorted(chunk["pos"] for chunk in box.get("content/locate", path=path).json)


# --- prepare


def test_prepare_looks_at_nothing_but_the_policy(make_box, raw_proxy):
    box = make_box()
    for route in ("prepare", "prepare2"):
        answer = box.post(f"content/{route}", {"size": "10", "policy": "THREECOPIES", "other": 1}, path="a b")
        assert answer.status == 200
        chunks = answer.json if route == "prepare" else answer.json["chunks"]
        assert len(chunks) == 3
        assert all(set(one) == {"url", "real_url", "pos", "size", "hash", "score"} for one in chunks)
        assert all(one["size"] == CHUNK_SIZE and one["hash"] == ZERO for one in chunks)
        assert len({one["url"].split("/")[2] for one in chunks}) == 3
        names = {"__OIO_CHUNK__" + one["url"] for one in chunks}
        if route == "prepare":
            start = "x-oio-content-meta-__oio_chunk__"
            found = {unquote(name) for name in answer.headers if name.lower().startswith(start)}
            assert {name.lower() for name in found} == {f"x-oio-content-meta-{name}".lower() for name in names}
        else:
            assert set(answer.json["properties"]) == names
            quality = json.loads(next(iter(answer.json["properties"].values())))
            assert set(quality) == {"expected_dist", "final_dist", "warn_dist", "expected_slot", "final_slot"}
        assert answer.headers["x-oio-content-meta-name"] == "a%20b"
        assert answer.headers["x-oio-ns-chunk-size"] == str(CHUNK_SIZE)
        for body in (None, {}, {"size": "x"}, {"size": -1}, {"size": 1, "position": "x"}):
            assert box.post(f"content/{route}", body, path="a").code == (400, 400)
        assert box.post(f"content/{route}", {"size": 1}).code == (400, 400)
        assert box.post(f"content/{route}", {"size": 1, "policy": "UNKNOWN"}, path="a").code == (500, 480)
    assert box.get("reference/show").code == (404, 406)


# --- what is not there


ROUTES = [
    ("show", None, {}), ("locate", None, {}), ("get_properties", None, {}), ("touch", None, {}),
    ("set_properties", {"properties": {"a": "b"}}, {}), ("del_properties", ["a"], {}),
    ("truncate", None, {"size": 0}), ("drain", None, {}), ("delete", None, {}), ("purge", None, {}),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "query"), ROUTES, ids=[one[0] for one in ROUTES])
def test_objects_and_containers_that_are_not_there(make_box, route, body, query):
    box, method = make_box(), "GET" if route in ("show", "locate") else "POST"

    def call(**more):
        where = {**box.where, "path": "a", **query, **more}
        return box.proxy.request(method, f"content/{route}", where, body)

    assert call().code == (404, 406)
    assert call(ref="").code == call(path="").code == (400, 400)
    assert box.post("container/create").status == 201
    assert call().code == ((204, None) if route == "purge" else (404, 420))
    assert box.post("container/destroy").status == 204
    assert call().code == (404, 431)
    assert box.proxy.request("PUT", f"content/{route}", box.where).code == (404, 404)


# --- create


def test_create_needs_a_container_or_makes_it(make_box):
    box = make_box()
    assert box.put("a").code == (404, 406)
    chunks, headers = box.prepared("a")
    wanted = {"properties": {"color": "blue"}, "system": {"sys.m2.policy.version": "3"}}
    body = {"chunks": chunks, "container_properties": wanted}
    assert box.post("content/create", body, headers, path="a", autocreate=1).status == 204
    data = box.post("container/get_properties").json
    assert data["properties"] == {"color": "blue"} and data["system"]["sys.m2.policy.version"] == "3"
    other = make_box("-b")
    assert other.put("a", headers={"x-oio-action-mode": "autocreate"}).status == 204


@pytest.mark.parametrize("name", ["id", "version", "length", "policy"])
def test_create_names_the_header_that_lacks(box, name):
    chunks, headers = box.prepared("a")
    del headers[f"x-oio-content-meta-{name}"]
    answer = box.post("content/create", chunks, headers, path="a")
    assert answer.code == ((500, 480) if name == "policy" else (400, 400))
    assert (name if name != "length" else "size") in answer.json["message"]
    assert box.rows(all=1) == []


def test_an_incomplete_object_is_counted_an_impossible_one_refused(box):
    assert box.put("a", policy="THREECOPIES", drop=1).status == 204
    chunks, headers = box.prepared("b", metachunks=3)
    assert box.post("content/create", [chunks[0], chunks[2]], headers, path="b").code == (500, 425)
    assert box.post("content/create", chunks[:2], headers, path="b").code == (500, 425)
    assert box.post("content/create", [{**chunks[0], "pos": "x"}], headers, path="b").code == (500, 425)
    assert [row["name"] for row in box.rows()] == ["a"]


def test_putting_again_after_the_mode(box):
    assert box.put("a").status == 204
    (row,) = box.rows()
    first, ctime = row["version"], row["ctime"]
    assert box.put("a", version=first).code == (409, 421)
    assert box.put("a", version=first - 1).code == (409, 424)
    assert box.put("a", version=first + 5).status == 204
    assert versions(box) == [(first + 5, False)] and box.rows()[0]["ctime"] == ctime
    assert box.put("a", version=first + 9, headers=UNLIMITED).status == 204
    assert box.put("a", version=first).status == 204
    assert box.put("a", version=first).code == (409, 421)
    assert versions(box) == [(first + 9, False), (first + 5, False), (first, False)]
    (latest,) = box.rows()
    chunks, headers = box.prepared("b")
    headers["x-oio-content-meta-id"] = latest["id"]
    assert box.post("content/create", chunks, headers, path="b").code == (409, 421)


def test_exceeding_versions_are_removed_when_that_is_wanted(box):
    system = {"sys.m2.policy.version": "2", "sys.m2.policy.version.delete_exceeding": "1"}
    box.post("container/set_properties", {"system": system})
    for _ in range(4):
        assert box.put("a").status == 204
    assert len(versions(box)) == 2


def test_forced_versioning_is_kept_by_the_container(box):
    assert box.put("a", headers=UNLIMITED).status == 204
    assert box.system()["sys.m2.policy.version"] == "-1"
    assert box.put("a", headers=UNLIMITED).status == 204
    assert box.system()["sys.m2.objects"] == "2"
    assert box.post("content/delete", path="a", headers=SUSPENDED).status == 204
    assert box.system()["sys.m2.policy.version"] == "1" and box.system()["sys.m2.objects"] == "1"
    assert len(versions(box)) == 1
    assert box.post("content/delete", path="a", headers=UNLIMITED).status == 204
    assert [deleted for _, deleted in versions(box)] == [True, False]
    assert box.put("a", headers={"x-oio-force-versioning": "x"}).code == (400, 400)


def test_simulated_versioning_leaves_the_container_as_it_is(box):
    for _ in range(3):
        assert box.put("a", headers=SIMULATED).status == 204
    assert box.post("content/delete", path="a", headers=SIMULATED).status == 204
    assert [deleted for _, deleted in versions(box)] == [True, False, False, False]
    assert "sys.m2.policy.version" not in box.system()
    assert box.system()["sys.m2.objects"] == "3"


def test_append(box):
    assert box.put("new", append=1).status == 204
    box.put("a", metachunks=2, digest=HASH, properties={"k": "v"})
    version = box.rows()[0]["version"]
    assert box.put("a", metachunks=2, append=1).status == 204
    shown = box.get("content/show", path="a")
    assert positions(box) == ["0", "1", "2", "3"]
    assert shown.headers["x-oio-content-meta-size"] == str(4 * CHUNK)
    assert shown.headers["x-oio-content-meta-hash"] == ""
    assert shown.headers["x-oio-content-meta-version"] == str(version)
    assert shown.headers["x-oio-content-meta-k"] == "v"
    box.post("content/drain", path="a")
    assert box.put("a", append=1).code == (410, 427)


def test_force_adds_chunks_and_properties_to_the_version_in_place(box):
    assert box.put("a", policy="THREECOPIES", drop=1, properties={"k": "v"}).status == 204
    (row,) = box.rows()
    chunks, headers = box.prepared("a", policy="THREECOPIES")
    headers = {
        **headers, "x-oio-content-meta-version": str(row["version"]), "x-oio-content-meta-id": row["id"],
        "x-oio-content-meta-hash": ZERO,
    }  # fmt: skip
    answer = box.post("content/create", {"chunks": chunks, "properties": {"l": "w"}}, headers, path="a", force=1)
    assert answer.status == 204
    assert len(versions(box)) == 1
    assert positions(box) == ["0"] * 5
    assert box.post("content/get_properties", path="a").json["properties"] == {"k": "v", "l": "w"}
    assert box.put("b", force=1).status == 204
    assert [row["name"] for row in box.rows()] == ["a", "b"]


def test_the_policy_of_a_version_is_changed(box):
    box.put("a", digest=HASH, properties={"k": "v"})
    (row,) = box.rows()
    chunks, headers = box.prepared("a", policy="THREECOPIES")
    headers = {**headers, "x-oio-content-meta-version": str(row["version"]), "x-oio-content-meta-hash": HASH}

    def change(path="a", **changes):
        more = {f"x-oio-content-meta-{name}": value for name, value in changes.items()}
        return box.post("content/create", chunks, {**headers, **more}, path=path, change_policy=1)

    assert change(hash=OTHER_HASH).code == (400, 400)
    assert change(id=row["id"]).code == (409, 421)
    assert change(version=str(row["version"] + 1)).code == (404, 420)
    assert change("other").code == (404, 420)
    assert change().status == 204
    shown = box.get("content/show", path="a")
    assert shown.headers["x-oio-content-meta-policy"] == "THREECOPIES"
    assert shown.headers["x-oio-content-meta-version"] == str(row["version"])
    assert shown.headers["x-oio-content-meta-k"] == "v"
    assert len(shown.json) == 3 and box.system()["sys.m2.usage"] == str(CHUNK)


def test_a_quota_holds(box):
    box.post("container/set_properties", {"system": {"sys.m2.quota": str(3 * CHUNK)}})
    assert box.put("a", metachunks=2).status == 204
    assert box.put("b", metachunks=2).code == (500, 445)
    assert box.put("a", append=1, metachunks=2).code == (500, 445)
    assert box.put("a", metachunks=3).status == 204
    assert box.put("b", headers={"x-oio-admin": "1"}).status == 204
    assert box.put("a", metachunks=1).status == 204


# --- conditions


def test_conditions_on_create(box):
    none = {"if-none-match": "*"}
    assert box.put("a", digest=HASH, headers=none).status == 204
    assert box.put("a", digest=HASH, headers=none).code == (412, 412)
    assert box.put("a", headers={"if-match": f'"{OTHER_HASH}"'}).code == (412, 412)
    assert box.put("a", headers={"if-match": f'W/"{HASH}"'}).code == (412, 412)
    assert box.put("b", headers={"if-match": "*"}).code == (412, 412)
    assert box.put("a", headers={"if-none-match": f'"{HASH.lower()}"'}).code == (412, 412)
    assert box.put("a", digest=OTHER_HASH, headers={"if-match": f'"{ZERO}", {HASH.lower()}'}).status == 204
    assert box.put("a", headers={"if-none-match": HASH}).status == 204
    for text in ("", "x", "*, *", '"ab'):
        answer = box.put("a", headers={"if-match": text})
        assert answer.code == (400, 400) and "If-Match" in answer.json["message"]
    (row,) = box.rows()
    assert row["hash"] == ZERO


def test_conditions_on_delete(box):
    box.put("a", digest=HASH, headers=UNLIMITED)
    assert box.post("content/delete", path="a", headers={"if-match": OTHER_HASH}).code == (412, 412)
    assert box.post("content/delete", path="a", headers={"if-none-match": "*"}).code == (412, 412)
    assert box.post("content/delete", path="a", headers={"if-match": f'"{HASH}"'}).status == 204
    # A delete marker counts as no object.
    assert box.post("content/delete", path="a", headers={"if-match": "*"}).code == (412, 412)
    assert box.put("a", headers={"if-none-match": "*"}).status == 204


def test_of_many_that_create_only_one_does(box):
    def create(number):
        return box.put("a", headers={"if-none-match": "*"}).status

    with ThreadPoolExecutor(8) as executor:
        assert sorted(executor.map(create, range(16))) == [204] + [412] * 15


# --- update, truncate, drain, purge


def test_update_replaces_whole_metachunks(box):
    box.put("a", metachunks=3, digest=HASH)
    (row,) = box.rows()
    former = {one["pos"]: one["url"] for one in box.get("content/show", path="a").json}
    chunks, headers = box.prepared("a", metachunks=3)
    headers["x-oio-content-meta-version"] = str(row["version"])
    assert box.post("content/update", [{**chunks[1], "size": 4}], headers, path="a").status == 204
    shown = box.get("content/show", path="a")
    present = {one["pos"]: one["url"] for one in shown.json}
    assert present == {**former, "1": chunks[1]["url"]}
    assert shown.headers["x-oio-content-meta-size"] == str(2 * CHUNK + 4)
    assert shown.headers["x-oio-content-meta-hash"] == ""
    assert len(versions(box)) == 1 and box.system()["sys.m2.usage"] == str(2 * CHUNK + 4)
    assert box.post("content/update", chunks, headers, path="other").code == (404, 420)
    stale = {**headers, "x-oio-content-meta-version": str(row["version"] - 1)}
    assert box.post("content/update", chunks, stale, path="a").code == (404, 420)
    assert box.post("content/update", [], headers, path="a").code == (400, 400)
    # The content id is enough, as for a repair that made its own version number.
    known = {**stale, "x-oio-content-meta-id": row["id"]}
    assert box.post("content/update", [{**chunks[1], "size": 5}], known, path="a").status == 204
    box.post("content/drain", path="a")
    for one in (headers, known, stale):
        assert box.post("content/update", chunks, one, path="a").code == (410, 427)


def test_truncate_at_boundaries_only(box):
    box.put("a", metachunks=3, digest=HASH)
    for size in (3 * CHUNK + 1, CHUNK + 1, "x", -1, ""):
        assert box.post("content/truncate", path="a", size=size).code == (400, 400)
    assert box.post("content/truncate", path="a").code == (400, 400)
    assert positions(box) == ["0", "1", "2"]
    assert box.post("content/truncate", path="a", size=2 * CHUNK).status == 204
    assert positions(box) == ["0", "1"] and box.system()["sys.m2.usage"] == str(2 * CHUNK)
    assert box.post("content/truncate", path="a", size=0).status == 204
    assert positions(box) == ["0"] and box.system()["sys.m2.usage"] == "0"
    assert box.post("content/truncate", path="b", size=0).code == (404, 420)
    box.post("content/drain", path="a")
    assert box.post("content/truncate", path="a", size=0).code == (410, 427)


def test_a_drained_object_is_gone_but_for_its_name(box):
    box.put("a", digest=HASH, properties={"k": "v"})
    assert box.post("content/drain", path="b").code == (404, 420)
    for _ in range(2):
        assert box.post("content/drain", path="a").status == 204
    for route in ("show", "locate"):
        assert box.get(f"content/{route}", path="a").code == (410, 427)
    answer = box.post("content/get_properties", path="a")
    assert answer.json == {"properties": {"k": "v"}}
    assert answer.headers["x-oio-content-meta-hash"] == HASH
    assert answer.headers["x-oio-content-meta-size"] == str(CHUNK)
    assert answer.headers["x-oio-content-meta-chunk-method"] == "drained"
    assert box.post("content/touch", path="a").status == 204
    assert box.post("content/set_properties", {"properties": {"l": "w"}}, path="a").status == 204
    assert box.post("content/delete", path="a").status == 204
    assert box.post("content/delete", path="a").code == (404, 420)
    assert box.put("a").status == 204
    assert box.post("content/drain", path="a").status == 204


def test_purge_keeps_the_latest_versions(box, make_box):
    for _ in range(100):
        box.put("a", headers={"x-oio-force-versioning": "3"})
    for _ in range(5):
        box.put("b")
    assert len(versions(box)) == 100
    newest = versions(box)[:3]
    assert box.post("content/purge", path="a").status == 204
    assert versions(box) == newest and len(versions(box, "b")) == 5
    assert box.post("content/purge", path="b", maxvers=1).status == 204
    assert len(versions(box, "b")) == 1
    assert box.post("content/purge", path="c").status == 204
    assert box.post("content/purge").code == (400, 400)
    assert box.post("content/purge", path="a", maxvers="x").code == (400, 400)
    assert make_box("-c").post("content/purge", path="a").code == (404, 406)


# --- show, properties


def test_show_and_its_parameters(box):
    name = "d/é %+&"
    assert box.put(name, digest=HASH, properties={"a b": "é ü", "size": "x"}).status == 204
    row = box.rows()[0]
    for route in ("show", "locate"):
        answer = box.get(f"content/{route}", path=name)
        (chunk,) = answer.json
        assert set(chunk) == {"url", "real_url", "pos", "size", "hash", "score"}
        assert chunk["score"] > 0 and chunk["size"] == CHUNK
        headers = answer.headers
        assert unquote(headers["x-oio-content-meta-name"]) == name
        assert headers["x-oio-content-meta-id"] == row["id"]
        assert headers["x-oio-content-meta-hash"] == HASH
        assert headers["x-oio-content-meta-deleted"] == "False"
        assert headers["x-oio-content-meta-size"] == headers["x-oio-content-meta-length"] == str(CHUNK)
        assert headers["x-oio-content-meta-a%20b"] == "%C3%A9%20%C3%BC"
        for value in ("false", "0", "no", "False"):
            shown = box.get(f"content/{route}", path=name, properties=value)
            assert "x-oio-content-meta-a%20b" not in shown.headers
        by_id = box.get(f"content/{route}", content=row["id"].lower())
        assert by_id.headers["x-oio-content-meta-name"] == headers["x-oio-content-meta-name"]
        assert box.get(f"content/{route}", path="x").code == (404, 420)
        assert box.get(f"content/{route}", path=name, version=1).code == (404, 420)
        assert box.get(f"content/{route}", path=name, version="x").code == (400, 400)
        assert box.get(f"content/{route}", content="abc").code == (400, 400)
        assert box.get(f"content/{route}").code == (400, 400)


def test_markers_are_told_from_what_is_absent(box):
    box.put("a", headers=UNLIMITED)
    box.post("content/delete", path="a")
    (marker, _), (first, _) = versions(box)
    answer = box.get("content/show", path="a")
    assert answer.code == (404, 426) and answer.json["message"] == "Alias deleted"
    assert box.get("content/show", path="a", version=marker).code == (404, 426)
    assert box.get("content/show", path="a", deleted=1).headers["x-oio-content-meta-deleted"] == "True"
    assert box.get("content/show", path="a", version=first).status == 200
    for query in ({}, {"version": marker}):
        answer = box.post("content/get_properties", path="a", **query)
        assert answer.status == 200 and answer.headers["x-oio-content-meta-deleted"] == "True"


def test_object_properties(box):
    box.put("a", properties={"k": "v", "empty": ""})
    assert box.post("content/get_properties", path="a").json == {"properties": {"k": "v"}}
    answer = box.post("content/set_properties", {"properties": {"é": "ü", "k": ""}}, path="a")
    assert (answer.status, answer.data) == (204, b"")
    assert box.post("content/get_properties", path="a").json == {"properties": {"é": "ü"}}
    assert box.post("content/set_properties", {"properties": {"x": "y"}}, path="a", flush="").status == 204
    assert box.post("content/get_properties", path="a").json == {"properties": {"x": "y"}}
    assert box.post("content/del_properties", ["nothing"], path="a").status == 204
    assert box.post("content/del_properties", [], path="a").status == 204
    assert box.post("content/get_properties", path="a").json == {"properties": {}}
    for body in (None, b"null", {"x": 1}, [3]):
        assert box.post("content/del_properties", body, path="a").code == (400, 400)
    for body in (None, [], {}, {"properties": {"a": None}}, {"properties": {"a": 1}}):
        assert box.post("content/set_properties", body, path="a").code == (400, 400)
    body = {"properties": {"a": "b"}}
    assert box.post("content/set_properties", body, path="a", content="AB").code == (400, 400)
    assert box.post("content/set_properties", body, path="b").code == (404, 420)
    assert box.post("content/get_properties", path="b").code == (404, 420)


# --- delete


def test_deleting_without_versions(box):
    box.put("a")
    assert box.post("content/delete", path="a", delete_marker=1).code == (400, 400)
    assert box.post("content/delete", path="a").status == 204
    assert box.get("content/show", path="a").code == (404, 420)
    assert box.post("content/delete", path="a").code == (404, 420)
    box.post("container/set_properties", {"system": {"sys.m2.policy.version": "0"}})
    box.put("b", version=5)
    assert box.post("content/delete", path="b", version=5).code == (400, 400)
    assert box.post("content/delete", path="b").status == 204


def test_markers_come_and_go(box):
    box.put("a", version=10, headers=UNLIMITED)
    box.put("a", version=20)
    assert box.post("content/delete", path="a", version=10, delete_marker=1).status == 204
    assert box.post("content/delete", path="a", version=10, delete_marker=1).code == (409, 421)
    assert versions(box) == [(20, False), (11, True), (10, False)]
    assert box.post("content/delete", path="a", headers={"x-oio-action-mode": "delete_marker"}).status == 204
    assert box.post("content/delete", path="a", delete_marker=1).code == (400, 400)
    assert versions(box)[0] == (21, True)
    assert box.put("a", version=10).code == (409, 421)
    # The deletion of a marker shows what it hid; the deletion of a version is final.
    assert box.post("content/delete", path="a").status == 204
    assert box.get("content/show", path="a").headers["x-oio-content-meta-version"] == "20"
    assert box.post("content/delete", path="a", version=20).status == 204
    assert versions(box) == [(11, True), (10, False)]
    assert box.get("content/show", path="a").code == (404, 426)
    assert box.post("content/delete", path="a", version=12).code == (404, 420)


def test_deleting_many_names_of_any_kind(box):
    names = ["a b", "100%", 'quo"te', "l\ni\rne", "sl/a//sh", "é+&=?#", "\\", "日本"]
    for name in names:
        assert box.put(name).status == 204
    assert sorted(row["name"] for row in box.rows()) == sorted(names)
    body = {"contents": [{"name": name} for name in ["no", *names]]}
    answer = box.post("content/delete_many", body)
    assert answer.status == 200
    assert [(one["name"], one["status"]) for one in answer.json["contents"]] == [
        ("no", 420), *((name, 204) for name in names),
    ]  # fmt: skip
    assert box.rows() == []
    for body in (None, b"{", {}, {"contents": []}, {"contents": [{}]}):
        assert box.post("content/delete_many", body).code == (400, 400)
    body = {"contents": [{"name": str(number)} for number in range(101)]}
    assert box.post("content/delete_many", body).code == (413, 413)


# --- spare


def test_spare_gives_what_lacks_on_other_places(box):
    chunks = box.post("content/prepare2", {"size": 1, "policy": "TWOCOPIES"}, path="a").json["chunks"]
    kept, lost = chunks
    query = {"path": "a", "stgpol": "TWOCOPIES", "position": "0"}
    for _ in range(10):
        answer = box.post("content/spare", {"notin": [kept], "broken": [lost]}, **query)
        assert answer.status == 200
        (spare,), (quality,) = answer.json["chunks"], answer.json["properties"]
        assert spare["id"].split("/")[2] not in {kept["url"].split("/")[2], lost["url"].split("/")[2]}
        assert (spare["pos"], spare["hash"], spare["size"]) == ("", "", 0)
        assert quality["key"] == "__OIO_CHUNK__" + spare["id"] and json.loads(quality["value"])
        assert answer.json["aliases"] == answer.json["headers"] == []
    assert len(box.post("content/spare", {"notin": None, "broken": []}, **query).json["chunks"]) == 2
    answer = box.post("content/spare", {"notin": chunks, "broken": None}, **query)
    assert answer.code == (400, 400) and "too many locations already known" in answer.json["message"]
    for body in (None, [], {}, {"notin": None}, {"broken": None}, {"notin": "", "broken": None}):
        assert box.post("content/spare", body, **query).code == (400, 400)
    assert box.post("content/spare", {}, path="a", position="0").code == (400, 400)
    both = {"notin": None, "broken": None}
    assert box.post("content/spare", both, **{**query, "stgpol": "UNKNOWN"}).code == (500, 480)
