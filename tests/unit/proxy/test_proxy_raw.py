# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/raw_*``: every field of every bean."""

import pytest

from oio.common.status import StatusError
from oio.meta.messages import RawAlias, RawChunk, RawHeader

REF = "acct=acct&ref=ref"
ALIAS = {"type": "alias", "name": "a/é", "version": 12, "header": "abcd"}
HEADER = {"type": "header", "id": "abcd", "chunk-method": "plain/nb_copy=1", "mime-type": "text/plain"}
CHUNK = {
    "type": "chunk", "id": "http://NSTEST-rawx-1/" + "AB" * 32, "hash": "ab" * 16, "size": 4, "content": "abcd",
    "pos": "0.1",
}  # fmt: skip
BEANS = {"alias": ALIAS, "header": HEADER, "chunk": CHUNK}


def test_beans_arrive_as_they_were_sent(cluster):
    full = [
        {**ALIAS, "ctime": 1, "mtime": 2, "deleted": True},
        {**HEADER, "hash": "ef" * 16, "size": 7, "ctime": 3, "mtime": 4, "policy": "EC"},
        {**CHUNK, "ctime": 5, "unknown": [1]},
    ]
    assert cluster.post(f"container/raw_insert?{REF}", [ALIAS, HEADER, CHUNK]).status == 204
    sent = cluster.meta.last("raw_insert")
    assert not sent.force and not sent.frozen and not sent.strict
    assert sent.beans == [
        RawAlias(name="a/é", version=12, header="ABCD"),
        RawHeader(id="ABCD", chunk_method="plain/nb_copy=1", mime_type="text/plain"),
        RawChunk(id=CHUNK["id"], hash="AB" * 16, size=4, content="ABCD", pos="0.1"),
    ]
    assert cluster.post(f"container/raw_insert?{REF}&force=1&frozen=1&strict=1", full).status == 204
    sent = cluster.meta.last("raw_insert")
    assert sent.force and sent.frozen and sent.strict
    assert sent.beans == [
        RawAlias(name="a/é", version=12, header="ABCD", ctime=1, mtime=2, deleted=True),
        RawHeader(
            id="ABCD", chunk_method="plain/nb_copy=1", mime_type="text/plain", hash="EF" * 16, size=7, ctime=3,
            mtime=4, policy="EC",
        ),
        RawChunk(id=CHUNK["id"], hash="AB" * 16, size=4, content="ABCD", pos="0.1", ctime=5),
    ]  # fmt: skip
    assert cluster.post(f"container/raw_delete?{REF}", full).status == 204
    assert cluster.meta.last("raw_delete").beans == sent.beans


def test_optional_fields_may_be_null(cluster):
    bean = {**HEADER, "hash": None, "size": None, "ctime": None, "mtime": None, "policy": None}
    assert cluster.post(f"container/raw_insert?{REF}", [bean]).status == 204
    (sent,) = cluster.meta.last("raw_insert").beans
    assert (sent.hash, sent.size, sent.policy) == ("", 0, "")


def test_update_pairs_beans(cluster):
    other = {**CHUNK, "id": CHUNK["id"].replace("rawx-1", "rawx-2")}
    assert cluster.post(f"container/raw_update?{REF}&frozen=1", {"old": [CHUNK], "new": [other]}).status == 204
    sent = cluster.meta.last("raw_update")
    assert (sent.old[0].id, sent.new[0].id, sent.frozen) == (CHUNK["id"], other["id"], True)
    assert cluster.post(
        f"container/raw_update?{REF}", {"old": [CHUNK], "new": [other]}, headers={"x-oio-action-mode": "frozen"}
    ).status == 204
    assert cluster.meta.last("raw_update").frozen


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (None, "body"),
        (b"null", "array"),
        (b"[", "JSON"),
        ({"old": [CHUNK]}, "new"),
        ({"old": [CHUNK], "new": None}, "new"),
        ({"old": [CHUNK], "new": []}, "new"),
        ({"old": [], "new": []}, "old"),
        ({"old": [CHUNK], "new": [ALIAS]}, "new[0]"),
        ({"old": [ALIAS, CHUNK], "new": [ALIAS, {**CHUNK, "pos": "z"}]}, "'pos' of new[1]"),
        ({"old": [ALIAS, {**CHUNK, "pos": 3}], "new": [ALIAS, CHUNK]}, "old[1].pos"),
    ],
)
def test_update_refuses(cluster, body, word):
    answer = cluster.post(f"container/raw_update?{REF}", body)
    assert answer.code == (400, 400)
    assert word in answer.json["message"] or body == b"null"
    assert cluster.meta.calls == []


@pytest.mark.parametrize("route", ["raw_insert", "raw_delete"])
@pytest.mark.parametrize("body", [None, b"null", b"[", {}, [], {"old": []}, "text", 3, [3], [None], [[]]])
def test_bodies_that_are_no_array_of_beans_are_refused(cluster, route, body):
    if body == "text":
        body = b'"text"'
    assert cluster.post(f"container/{route}?{REF}", body).code == (400, 400)
    assert cluster.meta.calls == []


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        ("alias", "type", [None, "aliases", 3, ""]),
        ("alias", "name", [None, "", 3, "x" * 1024, "é" * 512, "a\0b"]),
        ("alias", "version", [None, "12", 1.5, -1, 0, 1 << 63]),
        ("alias", "header", [None, "", "abc", "xy", 3]),
        ("alias", "ctime", ["1", -1]),
        ("alias", "mtime", ["1", 1 << 63]),
        ("alias", "deleted", ["true", 1]),
        ("header", "type", ["contents_headers"]),
        ("header", "id", [None, "", "abc", 3]),
        ("header", "chunk-method", [None, "", 3]),
        ("header", "mime-type", [None, "", 3]),
        ("header", "hash", ["ab", "ab" * 17, "xy" * 16, 3]),
        ("header", "size", ["1", -1, 1 << 63]),
        ("header", "ctime", ["1"]),
        ("header", "mtime", ["1"]),
        ("header", "policy", [3]),
        ("chunk", "type", ["chunks"]),
        ("chunk", "id", [None, "", 3, "http://a/\n", "x" * 512]),
        ("chunk", "hash", [None, "abc", "xy", 3]),
        ("chunk", "size", [None, "1", -1, 1 << 63]),
        ("chunk", "content", [None, "", "abc", "xy", 3]),
        ("chunk", "pos", [None, "", "x", "0.", ".1", "-1", "0.1.2", 3]),
        ("chunk", "ctime", ["1"]),
    ],
)
def test_a_bad_field_is_named_with_its_item(cluster, kind, field, values):
    for value in values:
        bean = {**BEANS[kind], field: value}
        answer = cluster.post(f"container/raw_insert?{REF}", [ALIAS, bean])
        assert answer.code == (400, 400), (value, answer.data)
        assert field in answer.json["message"] and "[1]" in answer.json["message"], answer.json
    assert cluster.meta.calls == []


@pytest.mark.parametrize("kind", list(BEANS))
def test_each_mandatory_field_is_asked_for(cluster, kind):
    for field in BEANS[kind]:
        bean = {key: value for key, value in BEANS[kind].items() if key != field}
        answer = cluster.post(f"container/raw_insert?{REF}", [bean])
        assert answer.code == (400, 400)
        assert field in answer.json["message"] and "[0]" in answer.json["message"], answer.json
    assert cluster.meta.calls == []


@pytest.mark.parametrize(("code", "http"), [(421, 409), (431, 404), (436, 503), (405, 405)])
def test_what_meta2_refuses(cluster, code, http):
    cluster.meta.answers["raw_insert"] = StatusError(code, "because of worm")
    assert cluster.post(f"container/raw_insert?{REF}", [ALIAS]).code == (http, code)
