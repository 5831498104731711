# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Routes of the account service: what they take, what they answer, and their statuses."""

import json

import pytest

from oio.account.updates import COUNTERS

ACCOUNT = "/v1.0/account/"
STALE = b"No update needed, event older than last container update"


def test_life_of_an_account(ask):
    created = ask("PUT", "/v1.0/account/create?id=acme")
    assert (created.status, created.data) == (201, b"acme")
    again = ask("PUT", "/v1.0/account/create?id=acme")
    assert (again.status, again.data) == (202, b"")
    metadata = {"metadata": {"a": "b", "c": "d"}, "to_delete": None}
    assert ask("POST", "/v1.0/account/update?id=acme", metadata).status == 204
    metadata = {"metadata": {"a": "e"}, "to_delete": ["a", "c"]}
    assert ask("PUT", "/v1.0/account/update?id=acme", metadata).status == 204
    answer = ask("GET", "/v1.0/account/show?id=acme")
    assert answer.headers["content-type"] == "text/json"
    shown = json.loads(answer.data)
    assert float(shown.pop("ctime")) > 1.6e9
    assert shown == {
        "id": "acme", "metadata": {"a": "e"}, "containers": 0, "buckets": 0, "replication_enabled": False,
        **dict.fromkeys(COUNTERS, 0),
    }  # fmt: skip
    update = {"name": "c", "mtime": 12, "objects": 2, "bytes": 30}
    assert ask("PUT", "/v1.0/account/container/update?id=acme", update).data == b'"c"'
    late = ask("POST", "/v1.0/account/container/update?id=acme", update)
    assert (late.status, late.data) == (409, STALE)
    listed = json.loads(ask("GET", "/v1.0/account/containers?id=acme").data)
    assert listed["listing"] == [["c", 2, 30, 0, 12.0]]
    assert listed["bytes"] == 30
    for flag, count in (("True", 0), ("False", 1)):
        answer = ask("GET", f"/v1.0/account/containers?id=acme&s3_buckets_only={flag}")
        assert len(json.loads(answer.data)["listing"]) == count
    assert ask("POST", "/v1.0/account/delete?id=acme").status == 409
    assert ask("PUT", "/v1.0/account/container/update?id=acme", {"name": "c", "dtime": 13}).status == 200
    assert ask("POST", "/v1.0/account/delete?id=acme").status == 204
    gone = ask("GET", "/v1.0/account/show?id=acme")
    assert (gone.status, gone.data) == (404, b"Account acme not found")
    assert json.loads(ask("GET", "/v1.0/account/list").data) == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "create", 400),
        ("GET", "show?id=", 400),
        ("GET", "container/show?id=acme", 400),
        ("POST", "create?id=acme", 405),
        ("DELETE", "show?id=acme", 405),
        ("POST", "bucket/show?id=acme", 404),
        ("GET", "", 404),
        ("GET", "list/", 404),
        ("POST", "delete?id=nobody", 404),
        ("POST", "refresh?id=nobody", 404),
        ("POST", "flush?id=nobody", 404),
        ("GET", "show?id=nobody", 404),
        ("GET", "containers?id=nobody", 404),
        ("GET", "buckets?id=nobody", 404),
        ("GET", "show-bucket?id=nothing", 404),
        ("POST", "refresh-bucket?id=nothing", 404),
        ("POST", "refresh-bucket", 400),
        ("PUT", "container/reset?id=nobody", 400),
        ("HEAD", "list", 200),
        ("HEAD", "show-container?id=a&container=c", 200),
    ],
)
def test_statuses(ask, method, path, status):
    answer = ask(method, ACCOUNT + path)
    assert answer.status == status
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE"])
def test_the_number_of_accounts_is_told_to_all(ask, method):
    ask("PUT", "/v1.0/account/create?id=acme")
    answer = ask(method, "/status")
    assert answer.status == 200
    assert method == "HEAD" or json.loads(answer.data) == {"account_count": 1}


def test_what_is_missing_is_named(ask):
    assert ask("GET", ACCOUNT + "show").data == b"Missing account ID"
    assert ask("GET", "/v1.0/bucket/show").data == b"Missing bucket ID"
    assert ask("GET", ACCOUNT + "show-container?id=a").data == b"Missing container ID"
    assert ask("PUT", ACCOUNT + "container/update?id=a", {"mtime": 1}).data == b"Missing container ID"


def test_errors_are_harmless_in_a_browser(ask):
    assert ask("GET", ACCOUNT + "show?id=%3Cb%3E").data == b"Account &lt;b&gt; not found"


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"\xff", {"name": "c", "mtime": "noon"}, {"name": "c", "dtime": -1}, {"name": 3},
     {"name": "c", "mtime": 1, "objects": 2**53}, {"name": "c", "mtime": 1, "bytes": "many"},
     {"name": "c", "mtime": 1, "bytes": 1.5}, {"name": "c", "mtime": [1]}],
)  # fmt: skip
def test_bad_updates_change_nothing(ask, raw, body):
    assert ask("PUT", ACCOUNT + "container/update?id=acme", body).status == 400
    assert raw.keys("*") == []


@pytest.mark.parametrize("path", ["containers", "buckets"])
def test_a_bad_limit_is_refused(ask, path):
    ask("PUT", ACCOUNT + "create?id=acme")
    answer = ask("GET", f"{ACCOUNT}{path}?id=acme&limit=few")
    assert answer.status == 400
    assert b"few" in answer.data
    assert ask("GET", f"{ACCOUNT}{path}?id=acme&limit=").status == 200


def test_times_and_counters_may_be_texts_and_lack(ask):
    update = {"name": "c", "mtime": "1600000000123456", "objects": "3", "bytes": None, "bucket": None}
    assert ask("PUT", ACCOUNT + "container/update?id=acme", update).status == 200
    for path in ("container/show", "show-container"):
        shown = json.loads(ask("GET", f"{ACCOUNT}{path}?id=acme&container=c").data)
        assert shown == {
            "name": "c", "mtime": "1600000000.12346", "dtime": "0", "objects": 3, "bytes": 0, "damaged_objects": 0,
            "missing_chunks": 0, "replication_enabled": False,
        }  # fmt: skip


def test_an_unknown_container_has_zeros(ask):
    shown = json.loads(ask("GET", "/v1.0/account/show-container?id=nobody&container=c").data)
    assert (shown["name"], shown["objects"], shown["replication_enabled"]) == ("c", 0, False)


def test_properties_may_be_many_and_large(ask):
    metadata = {f"key-{number}": "é" * 100 for number in range(2048)} | {"k" * 2**20: "v" * 2**20}
    assert ask("PUT", ACCOUNT + "update?id=acme", {"metadata": metadata, "to_delete": []}).status == 204
    assert json.loads(ask("GET", ACCOUNT + "show?id=acme").data)["metadata"] == metadata
    assert ask("PUT", ACCOUNT + "update?id=acme", {"metadata": None, "to_delete": list(metadata)}).status == 204
    assert json.loads(ask("GET", ACCOUNT + "show?id=acme").data)["metadata"] == {}


@pytest.mark.parametrize("routes", ["/v1.0/bucket/{}", "/v1.0/account/{}-bucket"])
def test_buckets(ask, raw, routes):
    def call(method, action, body=None):
        return ask(method, routes.format(action) + "?id=b", body)

    assert call("GET", "show").status == 404
    made = json.loads(call("PUT", "update", {"metadata": {"replication_enabled": True, "a": 1}}).data)
    assert (made["replication_enabled"], made["a"], made["bytes"]) == (True, "1", 0)
    assert raw.hget("bucket:b", "replication_enabled") == "true"
    assert call("PUT", "update", {"metadata": {"bytes": "x"}}).status == 400
    for name, objects in (("b", 1), ("b+segments", 9)):
        update = {"name": name, "mtime": 5, "objects": objects, "bytes": 7, "bucket": "b"}
        assert ask("PUT", ACCOUNT + "container/update?id=acme", update).status == 200
    raw.hset("bucket:b", "objects", 77)
    assert call("POST", "refresh").status == 204
    shown = json.loads(call("GET", "show").data)
    assert (shown["objects"], shown["bytes"]) == (1, 14)
    assert (shown["account"], shown["mtime"]) == ("acme", "0000000005.00000")
    listed = json.loads(ask("GET", ACCOUNT + "buckets?id=acme").data)
    assert listed["listing"] == [{"name": "b", "objects": 1, "bytes": 14, "mtime": 5.0}]
    assert (listed["truncated"], listed["buckets"], "next_marker" in listed) == (False, 1, False)
    raw.hset("bucketlock:b", mapping={"ctime": "1", "mtime": "99999999999.00000", "marker": ""})
    locked = call("POST", "refresh")
    assert (locked.status, locked.data) == (409, b"Refresh on bucket already in progress")


def test_pages_of_buckets(ask):
    for name in ("b1", "b2", "b3"):
        ask("PUT", ACCOUNT + "container/update?id=acme", {"name": name, "mtime": 5, "bucket": name})
    page = json.loads(ask("GET", ACCOUNT + "buckets?id=acme&limit=2").data)
    assert ([bucket["name"] for bucket in page["listing"]], page["truncated"]) == (["b1", "b2"], True)
    page = json.loads(ask("GET", f"{ACCOUNT}buckets?id=acme&limit=2&marker={page['next_marker']}").data)
    assert ([bucket["name"] for bucket in page["listing"]], page["truncated"]) == (["b3"], False)


def test_a_batch_answers_each_update_in_order(ask, raw):
    def many(body):
        answer = ask("POST", ACCOUNT + "container/update-many", body)
        assert answer.status == 200
        return [(one["status"], one["message"]) for one in json.loads(answer.data)]

    good = {"account": "acme", "name": "c", "mtime": 5, "objects": 2}
    assert many([]) == []
    assert many([good, good, {**good, "account": "other"}, {**good, "dtime": 6}]) == [
        (200, ""), (409, STALE.decode()), (200, ""), (200, ""),
    ]  # fmt: skip
    bad = [{**good, "mtime": "x"}, {"name": "c"}, {"account": "acme"}, 7, {**good, "name": "d"}]
    outcomes = many(bad)
    assert [status for status, _ in outcomes] == [400, 400, 400, 400, 200]
    assert "Missing account ID" in outcomes[1][1]
    assert "Missing container ID" in outcomes[2][1]
    assert raw.zrange("containers:acme", 0, -1) == ["d"]
    assert ask("POST", ACCOUNT + "container/update-many", {"name": "c"}).status == 400
    text = ask("GET", "/metrics").data.decode()
    assert 'oio_account_batched_updates_total{status="200"} 4.0' in text
    assert 'oio_account_requests_total{handler="container_update_many",status="200"} 3.0' in text


def test_a_batch_larger_than_what_redis_gets_at_once(ask, monkeypatch):
    monkeypatch.setattr("oio.account.server.UPDATES_AT_ONCE", 3)
    batch = [{"account": "acme", "name": f"c{number}", "mtime": 5, "objects": 1} for number in range(10)]
    outcomes = json.loads(ask("POST", ACCOUNT + "container/update-many", batch).data)
    assert [one["status"] for one in outcomes] == [200] * 10
    assert json.loads(ask("GET", ACCOUNT + "show?id=acme").data)["objects"] == 10


def test_a_lock_on_an_account_holds_creation_and_deletion(ask, raw, monkeypatch):
    monkeypatch.setattr("oio.account.backend.LOCK_WAIT_S", 0.05)
    raw.set("lock:account:acme", "somebody")
    assert ask("PUT", ACCOUNT + "create?id=acme").status == 202
    assert json.loads(ask("GET", ACCOUNT + "list").data) == []
    assert ask("POST", ACCOUNT + "delete?id=acme").status == 404
    raw.delete("lock:account:acme")
    assert ask("PUT", ACCOUNT + "create?id=acme").status == 201
    assert raw.keys("lock:*") == []
