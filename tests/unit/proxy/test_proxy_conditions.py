# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``If-Match`` and ``If-None-Match``: how headers become what meta2 evaluates."""

import pytest

from oio.common.status import StatusError
from oio.proxy.conditions import TAGS_MAX, parse_tags

OBJECT = "acct=acct&ref=ref&path=obj"
HASH = "d41d8cd98f00b204e9800998ecf8427e"
HEADERS = {
    "x-oio-content-meta-id": "ab" * 16,
    "x-oio-content-meta-version": "1234567",
    "x-oio-content-meta-length": "10",
    "x-oio-content-meta-policy": "SINGLE",
}
CHUNKS = [{"url": "http://NSTEST-rawx-1/" + "AB" * 32, "pos": "0", "size": 10, "hash": "00" * 16}]


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("*", ["*"]),
        (" * ", ["*"]),
        (f'"{HASH}"', [HASH.upper()]),
        (f'"{HASH.upper()}"', [HASH.upper()]),
        (HASH, [HASH.upper()]),
        (f' "{HASH}" , abcd', [HASH.upper(), "ABCD"]),
        # Valid, but no hash is written so: nothing matches them.
        (f'W/"{HASH}"', []),
        (f'W/"{HASH}", "ABCD"', ["ABCD"]),
        ('"*"', []),
        ('""', []),
        ('"no,hash"', []),
    ],
)
def test_tags(text, tags):
    assert parse_tags("If-Match", text) == tags


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", '"', '"abc', 'abc"', "xyz", 'w/"ab"', "W/ab", "*, ab", '"ab" *', '"ab" "cd"', '"ab",',
     "ab,,cd", '"a b"', ", ".join(["ab"] * (TAGS_MAX + 1))],
)  # fmt: skip
def test_malformed_headers_are_refused_by_name(text):
    with pytest.raises(StatusError) as caught:
        parse_tags("If-None-Match", text)
    assert caught.value.code == 400 and "'If-None-Match'" in caught.value.message


def test_conditions_travel_with_create_in_all_its_forms(cluster):
    for query in ("", "&append=1", "&force=1", "&change_policy=1", "&autocreate=1"):
        headers = {**HEADERS, "if-match": f'"{HASH}", W/"AB"', "if-none-match": "*"}
        assert cluster.post(f"content/create?{OBJECT}{query}", CHUNKS, headers=headers).status == 204
        sent = cluster.meta.last("content_put").condition
        assert (sent.if_match, sent.if_none_match) == ([HASH.upper()], ["*"])
    assert cluster.post(f"content/create?{OBJECT}", CHUNKS, headers=HEADERS).status == 204
    assert cluster.meta.last("content_put").condition is None


def test_conditions_travel_with_delete(cluster):
    assert cluster.post(f"content/delete?{OBJECT}", headers={"if-match": "*"}).status == 204
    sent = cluster.meta.last("content_delete").condition
    assert (sent.if_match, sent.if_none_match) == (["*"], None)
    # No tag is left of a list of weak ones: it can match nothing, and that must be told.
    assert cluster.post(f"content/delete?{OBJECT}", headers={"if-match": f'W/"{HASH}"'}).status == 204
    assert cluster.meta.last("content_delete").condition.if_match == []


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("", {"if-match": "*"}, (412, 412)),
        ("&change_policy=1", {}, (404, 406)),
        ("&change_policy=1", {"if-match": HASH}, (404, 406)),
    ],
)
def test_no_container_is_made_for_what_needs_an_object(cluster, query, headers, code):
    cluster.meta.answers["content_put"] = StatusError(406, "Reference not found")
    answer = cluster.post(f"content/create?{OBJECT}&autocreate=1{query}", CHUNKS, headers={**HEADERS, **headers})
    assert answer.code == code
    assert not [call for call in cluster.meta.calls if call.operation() == "container_create"]


def test_a_condition_that_fails_is_412(cluster):
    cluster.meta.answers["content_put"] = StatusError(412, "The object is there")
    answer = cluster.post(f"content/create?{OBJECT}", CHUNKS, headers={**HEADERS, "if-none-match": "*"})
    assert answer.code == (412, 412)
    cluster.meta.answers["content_delete"] = StatusError(412, "Another object is there")
    assert cluster.post(f"content/delete?{OBJECT}", headers={"if-match": HASH}).code == (412, 412)


@pytest.mark.parametrize("route", ["content/create", "content/delete"])
@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
def test_malformed_conditions_change_nothing(cluster, route, name):
    answer = cluster.post(f"{route}?{OBJECT}", CHUNKS, headers={**HEADERS, name.lower(): "what?"})
    assert answer.code == (400, 400) and name in answer.json["message"]
    assert cluster.meta.calls == []
