# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``content/*``: placement, commit, location, properties, deletion, spare chunks."""

from urllib.parse import quote

import msgspec
import pytest

from oio.common.status import StatusError
from oio.common.utils import cid_from_name, compute_chunk_id
from oio.meta import messages

OBJECT = "acct=acct&ref=ref&path=obj"
CREATE_HEADERS = {
    "x-oio-content-meta-id": "ab" * 16,
    "x-oio-content-meta-version": "1234567",
    "x-oio-content-meta-length": "10",
    "x-oio-content-meta-policy": "SINGLE",
    "x-oio-content-meta-hash": "d41d8cd98f00b204e9800998ecf8427e",
    "x-oio-content-meta-mime-type": "text/plain",
    "x-oio-content-meta-chunk-method": "plain/nb_copy=1",
}
CHUNKS = [{"url": "http://NSTEST-rawx-1/" + "AB" * 32, "pos": "0", "size": 10, "hash": "00" * 16}]


def content(**changes):
    fields = {
        "name": "dir/ö b", "version": 12, "deleted": False, "ctime": 100, "mtime": 200,
        "content_id": "AB" * 16, "hash": "CD" * 16, "size": 10, "mime_type": "text/plain",
        "chunk_method": "plain/nb_copy=1", "policy": "SINGLE",
        "chunks": [messages.Chunk(url=CHUNKS[0]["url"], pos="0", size=10, hash="CD" * 16)],
        "properties": {"color": "dark blue"},
    }
    return messages.ContentReply(**{**fields, **changes})


# --- prepare


def test_prepare_needs_no_container_and_gives_exactly_six_keys(cluster):
    answer = cluster.post(f"content/prepare2?{OBJECT}", {"size": 10, "policy": "THREE", "position": 0})
    assert answer.status == 200
    assert cluster.meta.calls == []
    chunks = answer.json["chunks"]
    assert len(chunks) == 3
    for chunk in chunks:
        assert set(chunk) == {"url", "real_url", "pos", "size", "hash", "score"}
        assert chunk["pos"] == "0" and chunk["size"] == 1000 and chunk["hash"] == "0" * 32
        service_id, chunk_id = chunk["url"].removeprefix("http://").split("/")
        number = int(service_id.rpartition("-")[2])
        assert chunk["real_url"] == f"http://127.0.0.1:{6200 + number}/{chunk_id}"
        assert len(chunk_id) == 64
    assert len({chunk["url"].split("/")[2] for chunk in chunks}) == 3
    properties = answer.json["properties"]
    assert set(properties) == {"__OIO_CHUNK__" + chunk["url"] for chunk in chunks}
    quality = msgspec.json.decode(next(iter(properties.values())))
    assert set(quality) == {"expected_dist", "final_dist", "warn_dist", "expected_slot", "final_slot"}
    assert quality["final_dist"] == 2 and quality["final_slot"] == quality["expected_slot"] == "rawx"
    headers = answer.headers
    assert headers["x-oio-ns-chunk-size"] == "1000"
    assert headers["x-oio-content-meta-policy"] == "THREE"
    assert headers["x-oio-content-meta-chunk-method"] == "plain/nb_copy=3"
    assert headers["x-oio-content-meta-length"] == headers["x-oio-content-meta-size"] == "10"
    assert headers["x-oio-content-meta-deleted"] == "False"
    assert len(headers["x-oio-content-meta-id"]) == 32


def test_prepare_gives_qualities_in_headers(cluster):
    answer = cluster.post(f"content/prepare?{OBJECT}", {"size": "10"})
    (chunk,) = answer.json
    name = "x-oio-content-meta-__oio_chunk__" + quote(chunk["url"], safe="").lower()
    assert answer.headers[name].startswith("%7B")


@pytest.mark.parametrize(("size", "metachunks"), [(0, 1), (1, 1), (1000, 1), (1001, 2), (3000, 3)])
def test_prepare_cuts_in_metachunks(cluster, size, metachunks):
    answer = cluster.post(f"content/prepare2?{OBJECT}", {"size": size, "policy": "SINGLE", "position": 4})
    assert [chunk["pos"] for chunk in answer.json["chunks"]] == [str(4 + n) for n in range(metachunks)]


def test_prepare_cuts_erasure_coded_metachunks_larger(cluster):
    answer = cluster.post(f"content/prepare2?{OBJECT}", {"size": 4001, "policy": "EC"})
    assert [chunk["pos"] for chunk in answer.json["chunks"]] == [
        f"{meta}.{sub}" for meta in range(2) for sub in range(6)
    ]
    assert answer.headers["x-oio-content-meta-chunk-method"] == "ec/algo=isa_l_rs_cauchy,k=4,m=2"


def test_chunk_ids_follow_the_variable(cluster):
    random = cluster.post(f"content/prepare2?{OBJECT}", {"size": 1, "policy": "THREE"}).json["chunks"]
    assert len({chunk["url"].rpartition("/")[2] for chunk in random}) == 3
    cluster.process.variables.set("core.lb.generate_random_chunk_ids", "off")
    answer = cluster.post(f"content/prepare2?{OBJECT}&version=77", {"size": 1, "policy": "THREE"})
    expected = compute_chunk_id(cid_from_name("acct", "ref"), "obj", 77, "0", "THREE")
    assert {chunk["url"].rpartition("/")[2] for chunk in answer.json["chunks"]} == {expected}
    assert len({chunk["url"] for chunk in answer.json["chunks"]}) == 3
    assert answer.headers["x-oio-content-meta-version"] == "77"


@pytest.mark.parametrize(
    ("query", "body", "code"),
    [
        (OBJECT, None, (400, 400)),
        (OBJECT, b"null", (400, 400)),
        (OBJECT, b"{", (400, 400)),
        (OBJECT, {}, (400, 400)),
        (OBJECT, {"size": "x"}, (400, 400)),
        (OBJECT, {"size": -1}, (400, 400)),
        (OBJECT, {"size": True}, (400, 400)),
        (OBJECT, {"size": 1 << 62}, (400, 400)),
        (OBJECT, {"size": 1, "position": "a"}, (400, 400)),
        (OBJECT, {"size": 1, "policy": 4}, (400, 400)),
        (OBJECT + "&version=0", {"size": 1}, (400, 400)),
        (OBJECT + "&version=a", {"size": 1}, (400, 400)),
        (OBJECT + "&content=xyz", {"size": 1}, (400, 400)),
        ("acct=acct&ref=ref", {"size": 1}, (400, 400)),
        ("acct=acct&path=obj", {"size": 1}, (400, 400)),
        ("acct=a&ref=r&path=%FF", {"size": 1}, (400, 400)),
        ("acct=" + "a" * 64 + "&ref=r&path=o", {"size": 1}, (400, 400)),
        (OBJECT, {"size": 1, "policy": "NOTHING"}, (500, 480)),
        (OBJECT, {"size": 1, "policy": "BROKEN"}, (500, 480)),
    ],
)
def test_prepare_refuses(cluster, query, body, code):
    answer = cluster.post(f"content/prepare2?{query}", body)
    assert answer.code == code
    assert answer.json["message"]


def test_prepare_without_enough_services(cluster):
    cluster.conscience.services["rawx"] = cluster.conscience.services["rawx"][:2]
    cluster.conscience.generation += 1
    cluster.reload()
    answer = cluster.post(f"content/prepare2?{OBJECT}", {"size": 1, "policy": "THREE"})
    assert answer.code == (500, 481)
    assert answer.json["message"].startswith(
        "at position 0: did not find enough services matching the criteria for pool [rawx3]"
    )


# --- create


def test_create_sends_everything(cluster):
    answer = cluster.post(
        f"content/create?{OBJECT}",
        {"chunks": CHUNKS, "properties": {"a": "b", "empty": ""}},
        headers={**CREATE_HEADERS, "x-oio-force-versioning": "-1", "user-agent": "tester"},
    )
    assert answer.status == 204 and answer.data == b""
    sent = cluster.meta.last("content_put")
    assert sent.cid == cid_from_name("acct", "ref")
    assert (sent.account, sent.name, sent.path) == ("acct", "ref", "obj")
    assert (sent.version, sent.size, sent.content_id) == (1234567, 10, "AB" * 16)
    assert sent.hash == "D41D8CD98F00B204E9800998ECF8427E"
    assert sent.properties == {"a": "b"}
    assert sent.force_versioning == -1 and not sent.append
    assert sent.security == messages.Security()
    assert cluster.meta.headers[-1]["user-agent"] == "tester"
    assert cluster.meta.headers[-1]["x-oio-req-id"].startswith("proxy-")


@pytest.mark.parametrize(
    ("policy", "method"),
    [
        ("SINGLE", "plain"),
        ("NONE", "plain"),
        ("THREE", "plain/nb_copy=3"),
        ("EC", "ec/algo=isa_l_rs_cauchy,k=4,m=2"),
    ],
)
def test_create_without_chunk_method_stores_one_that_can_be_read(cluster, policy, method):
    headers = {name: value for name, value in CREATE_HEADERS.items() if not name.endswith("chunk-method")}
    headers["x-oio-content-meta-policy"] = policy
    assert cluster.post(f"content/create?{OBJECT}", CHUNKS, headers=headers).status == 204
    assert cluster.meta.last("content_put").chunk_method == method


def test_create_accepts_a_bare_array(cluster):
    assert cluster.post(f"content/create?{OBJECT}", CHUNKS, headers=CREATE_HEADERS).status == 204


def test_create_makes_the_container_when_asked(cluster):
    cluster.meta.answers["content_put"] = [StatusError(431, "no base"), None]
    body = {"chunks": CHUNKS, "container_properties": {"properties": {"k": "v"}, "system": {"sys.m2.quota": "5"}}}
    answer = cluster.post(f"content/create?{OBJECT}&autocreate=1", body, headers=CREATE_HEADERS)
    assert answer.status == 204
    created = cluster.meta.last("container_create")
    assert created.properties == {"user.k": "v", "sys.m2.quota": "5"}
    assert created.peers == ["NSTEST-meta2-1"] and created.namespace == "NSTEST"


def test_create_without_container(cluster):
    cluster.meta.answers["reference_show"] = StatusError(406, "Reference not found")
    answer = cluster.post(f"content/create?{OBJECT}", CHUNKS, headers=CREATE_HEADERS)
    assert answer.code == (404, 406)
    assert answer.json["message"].startswith("Directory error: ")
    assert "container_create" not in cluster.meta.names()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"x-oio-content-meta-id": None}, (400, 400)),
        ({"x-oio-content-meta-id": "xy"}, (400, 400)),
        ({"x-oio-content-meta-version": None}, (400, 400)),
        ({"x-oio-content-meta-version": "0"}, (400, 400)),
        ({"x-oio-content-meta-version": "1e3"}, (400, 400)),
        ({"x-oio-content-meta-length": None}, (400, 400)),
        ({"x-oio-content-meta-length": "-1"}, (400, 400)),
        ({"x-oio-content-meta-hash": "abcd"}, (400, 400)),
        ({"x-oio-content-meta-policy": None}, (500, 480)),
        ({"x-oio-content-meta-policy": "WHAT"}, (500, 480)),
    ],
)
def test_create_refuses_headers(cluster, change, code):
    headers = {name: value for name, value in {**CREATE_HEADERS, **change}.items() if value is not None}
    assert cluster.post(f"content/create?{OBJECT}", CHUNKS, headers=headers).code == code
    assert cluster.meta.calls == []


@pytest.mark.parametrize(
    "body",
    [None, b"[", [], {}, {"chunks": []}, {"chunks": "x"}, [{"url": "u"}], [{**CHUNKS[0], "hash": "x"}],
     [{**CHUNKS[0], "size": -1}], [{**CHUNKS[0], "size": "10"}], {"chunks": CHUNKS, "properties": {"a": None}}],
)  # fmt: skip
def test_create_refuses_bodies(cluster, body):
    answer = cluster.post(f"content/create?{OBJECT}", body, headers=CREATE_HEADERS)
    assert answer.code == (400, 400)
    assert cluster.meta.calls == []


@pytest.mark.parametrize(
    ("code", "http"), [(421, 409), (424, 409), (425, 500), (427, 410), (436, 503), (19, 400), (455, 500)]
)
def test_codes_of_meta2_are_mapped(cluster, code, http):
    cluster.meta.answers["content_put"] = StatusError(code, "because")
    answer = cluster.post(f"content/create?{OBJECT}", CHUNKS, headers=CREATE_HEADERS)
    assert answer.code == (http, code)
    assert answer.json["message"] == "because"
    assert (answer.headers.get("retry-after") == "1") is (http == 503)


def test_worm_tells_what_is_allowed(cluster):
    cluster.meta.answers["content_delete"] = StatusError(405, "NS wormed! Cannot delete.")
    answer = cluster.post(f"content/delete?{OBJECT}")
    assert answer.code == (405, 405)
    assert answer.headers["allow"] == "GET, HEAD, PUT"


# --- locate


def test_locate(cluster):
    cluster.meta.answers["content_show"] = content()
    answer = cluster.get(f"content/locate?{OBJECT}&version=12")
    assert answer.json == [
        {"url": CHUNKS[0]["url"], "real_url": CHUNKS[0]["url"].replace("NSTEST-rawx-1", "127.0.0.1:6201"),
         "pos": "0", "size": 10, "hash": "CD" * 16, "score": 80}
    ]  # fmt: skip
    headers = answer.headers
    assert headers["x-oio-content-meta-name"] == quote("dir/ö b", safe="")
    assert headers["x-oio-content-meta-color"] == "dark%20blue"
    assert headers["x-oio-content-meta-hash"] == "CD" * 16
    assert headers["x-oio-content-meta-version"] == "12"
    assert cluster.meta.last("content_show").version == 12
    cluster.get(f"content/show?{OBJECT}&properties=false")
    assert not cluster.meta.last("content_show").properties
    cluster.meta.answers["content_show"] = content(hash="")
    assert cluster.get(f"content/locate?{OBJECT}").headers["x-oio-content-meta-hash"] == ""


def test_property_names_cannot_break_the_head(cluster):
    cluster.meta.answers["content_show"] = content(
        properties={"a: b\r\nx-evil": "1\r\n2"}, mime_type="text/plain\r\nx-evil: 1"
    )
    answer = cluster.get(f"content/locate?{OBJECT}")
    assert answer.status == 200
    assert "x-evil" not in answer.headers
    assert answer.headers["x-oio-content-meta-mime-type"] == "text/plain%0D%0Ax-evil%3A 1"


def test_locate_shows_unknown_services(cluster):
    chunk = messages.Chunk(url="http://gone/AA", pos="0", size=1, hash="")
    cluster.meta.answers["content_show"] = content(chunks=[chunk])
    (shown,) = cluster.get(f"content/locate?{OBJECT}").json
    assert shown["score"] == 0 and shown["real_url"] == "http://gone/AA"


def test_locate_by_content_id(cluster):
    cluster.meta.answers["content_show"] = content()
    cid = cid_from_name("acct", "ref").lower()
    assert cluster.get(f"content/locate?cid={cid}.1&content=abcd&version=3").status == 200
    sent = cluster.meta.last("content_show")
    assert (sent.cid, sent.content_id, sent.path, sent.version) == (cid.upper(), "ABCD", "", 0)


def test_perfdata(cluster):
    cluster.meta.answers["content_show"] = content()
    answer = cluster.get(f"content/locate?{OBJECT}", headers={"x-oio-perfdata": "1"})
    names = [part.partition("=")[0] for part in answer.headers["x-oio-perfdata"].split(",")]
    assert names == ["resolve", "meta2"]


def test_tls_addresses_on_demand(cluster):
    rawx = cluster.conscience.services["rawx"][0]
    tls = msgspec.structs.replace(rawx, tags={**rawx.tags, "tag.tls": "127.0.0.1:7201"})
    cluster.conscience.put(tls)
    cluster.reload()
    cluster.meta.answers["content_show"] = content()
    (plain,) = cluster.get(f"content/locate?{OBJECT}").json
    (secure,) = cluster.get(f"content/locate?{OBJECT}", headers={"x-oio-upgrade-to-tls": "1"}).json
    assert plain["real_url"].startswith("http://127.0.0.1:6201/")
    assert secure["real_url"].startswith("https://127.0.0.1:7201/")


# --- properties, delete, touch


def test_get_properties(cluster):
    cluster.meta.answers["content_show"] = content(deleted=True)
    answer = cluster.post(f"content/get_properties?{OBJECT}", b"[]")
    assert answer.json == {"properties": {"color": "dark blue"}}
    assert answer.headers["x-oio-content-meta-deleted"] == "True"
    sent = cluster.meta.last("content_show")
    assert sent.deleted and sent.drained and not sent.chunks


def test_set_and_del_properties(cluster):
    assert cluster.post(f"content/set_properties?{OBJECT}&flush=1", {"properties": {"a": ""}}).status == 204
    sent = cluster.meta.last("content_set_properties")
    assert sent.clear and sent.properties == {"a": ""}
    assert cluster.post(f"content/set_properties?{OBJECT}&content=AB", {"properties": {}}).code == (400, 400)
    assert cluster.post(f"content/set_properties?{OBJECT}", {"properties": {"a": None}}).code == (400, 400)
    assert cluster.post(f"content/del_properties?{OBJECT}", []).status == 204
    assert cluster.post(f"content/del_properties?{OBJECT}").code == (400, 400)
    assert cluster.post(f"content/touch?{OBJECT}").status == 204
    assert cluster.post("content/touch?acct=a&ref=r").code == (400, 400)


def test_delete_passes_its_options(cluster):
    answer = cluster.post(
        f"content/delete?{OBJECT}&version=5",
        headers={"x-oio-action-mode": "autocreate, delete_marker", "x-oio-simulate-versioning": "true"},
    )
    assert answer.status == 204
    sent = cluster.meta.last("content_delete")
    assert sent.delete_marker and sent.version == 5 and sent.simulate_versioning


def test_delete_many(cluster):
    cluster.meta.answers["content_delete_many"] = messages.BulkReply(
        items=[messages.ItemStatus(status=204), messages.ItemStatus(status=420, message="absent")]
    )
    names = ['a %"\n', "ö/b"]
    answer = cluster.post("content/delete_many?acct=acct&ref=ref", {"contents": [{"name": n} for n in names]})
    assert answer.json == {
        "contents": [
            {"name": names[0], "status": 204, "message": "ok"},
            {"name": names[1], "status": 420, "message": "absent"},
        ]
    }
    too_many = {"contents": [{"name": str(n)} for n in range(101)]}
    assert cluster.post("content/delete_many?acct=acct&ref=ref", too_many).code == (413, 413)
    for body in (None, b"{", {}, {"contents": []}, {"contents": [{}]}, {"contents": "x"}):
        assert cluster.post("content/delete_many?acct=acct&ref=ref", body).code == (400, 400)
    assert cluster.post("content/delete_many?acct=acct", {"contents": [{"name": "a"}]}).code == (400, 400)


# --- spare


def chunk_on(number):
    return {"url": f"http://NSTEST-rawx-{number}/AA", "pos": "0", "size": 1, "hash": "00" * 16}


def test_spare_gives_what_is_missing(cluster):
    for _ in range(20):
        answer = cluster.post(
            f"content/spare?{OBJECT}&version=1&stgpol=THREE&position=0",
            {"notin": [chunk_on(1), chunk_on(2)], "broken": [chunk_on(3), chunk_on(4), chunk_on(5)]},
        )
        assert answer.status == 200
        (chunk,) = answer.json["chunks"]
        assert chunk["id"].startswith("http://NSTEST-rawx-6/")
        assert (chunk["pos"], chunk["hash"], chunk["size"]) == ("", "", 0)
        (quality,) = answer.json["properties"]
        assert quality["key"] == "__OIO_CHUNK__" + chunk["id"]
        assert answer.json["aliases"] == answer.json["headers"] == []


def test_spare_without_anything_is_a_plain_poll(cluster):
    answer = cluster.post(f"content/spare?{OBJECT}&stgpol=THREE&position=0", {"notin": None, "broken": None})
    assert len(answer.json["chunks"]) == 3


def test_spare_counts_chunks_of_services_that_left(cluster):
    answer = cluster.post(
        f"content/spare?{OBJECT}&stgpol=THREE&position=0", {"notin": [chunk_on(99), chunk_on(1)], "broken": []}
    )
    assert len(answer.json["chunks"]) == 1


@pytest.mark.parametrize(
    ("query", "body", "code"),
    [
        ("position=0", {"notin": None, "broken": None}, (400, 400)),
        ("stgpol=THREE&position=0", None, (400, 400)),
        ("stgpol=THREE&position=0", {"notin": None}, (400, 400)),
        ("stgpol=THREE&position=0", {"notin": "", "broken": None}, (400, 400)),
        ("stgpol=THREE&position=0", {"notin": [3], "broken": None}, (400, 400)),
        ("stgpol=THREE&position=x", {"notin": None, "broken": None}, (400, 400)),
        ("stgpol=THREE&position=0", {"notin": [chunk_on(n) for n in (1, 2, 3)], "broken": None}, (400, 400)),
        ("stgpol=NOTHING&position=0", {"notin": None, "broken": None}, (500, 480)),
        ("stgpol=THREE&position=0", {"notin": None, "broken": [chunk_on(n) for n in (1, 2, 3, 4)]}, (500, 481)),
    ],
)
def test_spare_refuses(cluster, query, body, code):
    assert cluster.post(f"content/spare?{OBJECT}&{query}", body).code == code


@pytest.mark.parametrize("name", ["x" * 1024, "é" * 512, "日" * 342])
@pytest.mark.parametrize("route", ["prepare", "prepare2", "create"])
def test_names_of_objects_are_bounded_in_bytes_when_they_are_written(cluster, route, name):
    query = f"acct=acct&ref=ref&path={quote(name)}"
    answer = cluster.post(f"content/{route}?{query}", {"size": 1, "chunks": []})
    assert answer.code == (400, 400)
    assert answer.json["message"] == "Invalid parameter 'path', more than 1023 bytes"
    assert cluster.meta.calls == []


@pytest.mark.parametrize("name", ["x" * 1023, "é" * 511, "日" * 341])
def test_the_longest_names_of_objects_are_accepted(cluster, name):
    answer = cluster.post(f"content/prepare2?acct=acct&ref=ref&path={quote(name)}", {"size": 1})
    assert answer.status == 200
