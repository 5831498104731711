# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``content/*`` and ``container/*``: the operations that change what is in place."""

import pytest

from oio.common.status import StatusError
from oio.common.utils import cid_from_name
from oio.meta import messages

REF = "acct=acct&ref=ref"
CID = cid_from_name("acct", "ref")
OBJECT = f"{REF}&path=obj"
HEADERS = {
    "x-oio-content-meta-id": "ab" * 16,
    "x-oio-content-meta-version": "1234567",
    "x-oio-content-meta-length": "10",
    "x-oio-content-meta-policy": "EC",
}
CHUNKS = [{"url": "http://NSTEST-rawx-1/" + "AB" * 32, "pos": "0.1", "size": 10, "hash": "00" * 16}]


# --- create


@pytest.mark.parametrize("flag", ["append", "force", "change_policy"])
def test_forms_of_create(cluster, flag):
    forms = ("append", "force", "change_policy")
    for query, headers in ((f"&{flag}=1", {}), ("", {"x-oio-action-mode": f"autocreate, {flag}"})):
        answer = cluster.post(f"content/create?{OBJECT}{query}", CHUNKS, headers={**HEADERS, **headers})
        assert answer.status == 204
        sent = cluster.meta.last("content_put")
        assert [name for name in forms if getattr(sent, name)] == [flag]
    # The query wins over the header.
    answer = cluster.post(f"content/create?{OBJECT}&{flag}=0", CHUNKS, headers={**HEADERS, **headers})
    assert not getattr(cluster.meta.last("content_put"), flag)


@pytest.mark.parametrize("query", ["append=1&force=1", "force=1&change_policy=1", "append=1&change_policy=on"])
def test_forms_of_create_exclude_each_other(cluster, query):
    answer = cluster.post(f"content/create?{OBJECT}&{query}", CHUNKS, headers=HEADERS)
    assert answer.code == (400, 400) and "'force'" in answer.json["message"]
    assert cluster.meta.calls == []


@pytest.mark.parametrize(("name", "value"), [("version", "0x5"), ("size", "ten"), ("length", "-1")])
def test_create_names_the_header_that_is_wrong(cluster, name, value):
    header = f"x-oio-content-meta-{name}"
    answer = cluster.post(f"content/create?{OBJECT}", CHUNKS, headers={**HEADERS, header: value})
    assert answer.code == (400, 400) and "x-oio-content-meta-" in answer.json["message"]


@pytest.mark.parametrize("route", ["content/create", "content/delete", "content/delete_many"])
def test_versioning_headers_are_checked(cluster, route):
    body = {"contents": [{"name": "a"}]} if route.endswith("many") else CHUNKS
    answer = cluster.post(f"{route}?{OBJECT}", body, headers={**HEADERS, "x-oio-force-versioning": "many"})
    assert answer.code == (400, 400) and "x-oio-force-versioning" in answer.json["message"]
    assert cluster.meta.calls == []


def test_headers_of_writes_travel(cluster):
    cluster.meta.answers["content_delete_many"] = messages.BulkReply(items=[messages.ItemStatus(status=204)])
    extra = {**HEADERS, "x-oio-force-versioning": "-1", "x-oio-simulate-versioning": "1", "x-oio-retried": "1"}
    for route, name, body in (
        ("content/create", "content_put", CHUNKS),
        ("content/delete", "content_delete", None),
        ("content/delete_many", "content_delete_many", {"contents": [{"name": "a"}]}),
    ):
        cluster.post(f"{route}?{OBJECT}", body, headers=extra)
        sent = cluster.meta.last(name)
        assert (sent.force_versioning, sent.simulate_versioning, sent.retried) == (-1, True, True)
        cluster.post(f"{route}?{OBJECT}", body, headers=HEADERS)
        sent = cluster.meta.last(name)
        assert (sent.force_versioning, sent.simulate_versioning, sent.retried) == (None, False, False)


def test_autocreate_refuses_bad_container_properties_before_anything(cluster):
    body = {"chunks": CHUNKS, "container_properties": {"system": {"color": "x"}}}
    answer = cluster.post(f"content/create?{OBJECT}&autocreate=1", body, headers=HEADERS)
    assert answer.code == (400, 400) and "color" in answer.json["message"]
    assert cluster.meta.calls == []


# --- update


def test_update_sends_the_chunks_and_what_the_policy_promises(cluster):
    body = {"chunks": CHUNKS, "properties": {"__OIO_CHUNK__x": "{}", "empty": ""}}
    answer = cluster.post(f"content/update?{OBJECT}&id={'ab' * 16}", body, headers=HEADERS)
    assert (answer.status, answer.data) == (204, b"")
    sent = cluster.meta.last("content_update")
    assert (sent.cid, sent.path, sent.version, sent.content_id) == (CID, "obj", 1234567, "AB" * 16)
    assert (sent.policy, sent.security) == ("EC", messages.Security(type="ec", k=4, m=2))
    assert sent.chunks == [messages.Chunk(url=CHUNKS[0]["url"], pos="0.1", size=10, hash="00" * 16)]
    assert sent.properties == {"__OIO_CHUNK__x": "{}"}
    assert cluster.post(f"content/update?{OBJECT}", CHUNKS, headers=HEADERS).status == 204


@pytest.mark.parametrize(
    ("query", "change", "body", "code"),
    [
        (REF, {}, CHUNKS, (400, 400)),
        ("path=obj", {}, CHUNKS, (400, 400)),
        (OBJECT, {"x-oio-content-meta-id": None}, CHUNKS, (400, 400)),
        (OBJECT, {"x-oio-content-meta-version": None}, CHUNKS, (400, 400)),
        (OBJECT + "&version=3", {}, CHUNKS, (400, 400)),
        (OBJECT, {"x-oio-content-meta-length": None}, CHUNKS, (400, 400)),
        (OBJECT, {"x-oio-content-meta-policy": None}, CHUNKS, (500, 480)),
        (OBJECT, {"x-oio-content-meta-policy": "WHAT"}, CHUNKS, (500, 480)),
        (OBJECT, {}, None, (400, 400)),
        (OBJECT, {}, [], (400, 400)),
        (OBJECT, {}, {"chunks": []}, (400, 400)),
        (OBJECT, {}, [{**CHUNKS[0], "hash": "x"}], (400, 400)),
    ],
)
def test_update_refuses(cluster, query, change, body, code):
    headers = {name: value for name, value in {**HEADERS, **change}.items() if value is not None}
    assert cluster.post(f"content/update?{query}", body, headers=headers).code == code
    assert cluster.meta.calls == []


# --- truncate, drain, purge


def test_truncate(cluster):
    assert cluster.post(f"content/truncate?{OBJECT}&size=0&version=4").status == 204
    sent = cluster.meta.last("content_truncate")
    assert (sent.path, sent.version, sent.size) == ("obj", 4, 0)
    for query in ("", "&size=", "&size=ten", "&size=-1", "&size=99999999999999999999", "&size=1.5"):
        cluster.meta.calls.clear()
        answer = cluster.post(f"content/truncate?{OBJECT}{query}")
        assert answer.code == (400, 400) and "'size'" in answer.json["message"]
        assert cluster.meta.calls == []


def test_drain(cluster):
    assert cluster.post(f"content/drain?{OBJECT}&version=4").status == 204
    sent = cluster.meta.last("content_drain")
    assert (sent.path, sent.version) == ("obj", 4)
    assert cluster.post(f"content/drain?{REF}&content=abcd").status == 204
    assert cluster.meta.last("content_drain").content_id == "ABCD"


def test_purges(cluster):
    assert cluster.post(f"content/purge?{OBJECT}").status == 204
    sent = cluster.meta.last("content_purge")
    assert (sent.path, sent.max_versions) == ("obj", None)
    assert cluster.post(f"content/purge?{OBJECT}&maxvers=3").status == 204
    assert cluster.meta.last("content_purge").max_versions == 3
    assert cluster.post(f"container/purge?{REF}&maxvers=-1").status == 204
    assert cluster.meta.last("container_purge").max_versions == -1
    assert cluster.post(f"container/purge?{REF}").status == 204
    assert cluster.meta.last("container_purge").max_versions is None
    cluster.meta.calls.clear()
    assert cluster.post(f"content/purge?{REF}").code == (400, 400)
    for route in (f"content/purge?{OBJECT}", f"container/purge?{REF}"):
        answer = cluster.post(f"{route}&maxvers=some")
        assert answer.code == (400, 400) and "'maxvers'" in answer.json["message"]
    assert cluster.meta.calls == []


def test_flush_tells_whether_rows_remain(cluster):
    for truncated, text in ((True, "true"), (False, "false")):
        cluster.meta.answers["container_flush"] = messages.FlushReply(truncated=truncated)
        answer = cluster.post(f"container/flush?{REF}")
        assert (answer.status, answer.data, answer.headers["x-oio-truncated"]) == (204, b"", text)
    assert cluster.meta.last("container_flush").cid == CID


def test_dedup_never_works(cluster):
    answer = cluster.post(f"container/dedup?{REF}")
    assert answer.code == (500, 404) and answer.json["message"] == "No handler found"


@pytest.mark.parametrize("route", ["truncate", "drain", "touch", "delete"])
def test_an_object_must_be_designated(cluster, route):
    for query in ("acct=acct&path=a&size=1", f"{REF}&size=1", f"{REF}&path=&size=1"):
        assert cluster.post(f"content/{route}?{query}").code == (400, 400)
    for query, word in ((f"{OBJECT}&version=last", "'version'"), (f"{REF}&content=xyz", "'content'")):
        answer = cluster.post(f"content/{route}?{query}&size=1")
        assert answer.code == (400, 400) and word in answer.json["message"]
    assert cluster.meta.calls == []


# --- what meta2 refuses

CHANGES = [
    ("content/update", "content_update", OBJECT, CHUNKS),
    ("content/truncate", "content_truncate", OBJECT + "&size=0", None),
    ("content/drain", "content_drain", OBJECT, None),
    ("content/purge", "content_purge", OBJECT, None),
    ("content/delete", "content_delete", OBJECT, None),
    ("container/flush", "container_flush", REF, None),
    ("container/purge", "container_purge", REF, None),
]


@pytest.mark.parametrize(("route", "operation", "query", "body"), CHANGES, ids=[one[0] for one in CHANGES])
def test_refusals_have_their_status_and_their_headers(cluster, route, operation, query, body):
    for code, http, header, value in (
        (405, 405, "allow", "GET, HEAD, PUT"),
        (436, 503, "retry-after", "1"),
        (420, 404, "allow", None),
        (427, 410, "allow", None),
        (431, 404, "allow", None),
        (445, 500, "retry-after", None),
        (500, 500, "retry-after", None),
    ):
        cluster.meta.answers[operation] = StatusError(code, "NS wormed! Cannot do that (worm).")
        answer = cluster.post(f"{route}?{query}", body, headers=HEADERS)
        assert answer.code == (http, code)
        assert answer.headers.get(header) == value
    cluster.meta.answers["reference_show"] = StatusError(406, "no such reference")
    cluster.app.resolver.links.clear()
    assert cluster.post(f"{route}?{query}", body, headers=HEADERS).code == (404, 406)


@pytest.mark.parametrize(("route", "operation", "query", "body"), CHANGES, ids=[one[0] for one in CHANGES])
def test_the_wish_to_be_an_administrator_travels(cluster, route, operation, query, body):
    if operation == "container_flush":
        cluster.meta.answers[operation] = messages.FlushReply(truncated=False)
    assert cluster.post(f"{route}?{query}", body, headers={**HEADERS, "x-oio-admin": "1"}).status == 204
    assert cluster.meta.headers[-1]["x-oio-admin"] == "1"
    assert cluster.post(f"{route}?{query}", body, headers=HEADERS).status == 204
    assert "x-oio-admin" not in cluster.meta.headers[-1]
