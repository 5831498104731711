# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Routes of the account service: what they take, and their statuses."""

import json

import pytest

from oio.account.sqlite_server import AccountService
from oio.http.client import HttpPool
from oio.http.server import Server


@pytest.fixture
def ask(store):
    server = Server(AccountService(store).router, [("127.0.0.1", 0)])
    server.start()
    pool = HttpPool()
    host, port = server.addresses[0]

    def ask(method, path, body=None):
        data = None if body is None else json.dumps(body)
        return pool.request(method, f"http://{host}:{port}{path}", body=data)

    yield ask
    pool.close()
    server.stop(1)


def test_life_of_an_account(ask):
    created = ask("PUT", "/v1.0/account/create?id=acme")
    assert (created.status, created.data) == (201, b"acme")
    assert ask("PUT", "/v1.0/account/create?id=acme").status == 202
    assert ask("POST", "/v1.0/account/update?id=acme", {"metadata": {"a": "b"}, "to_delete": None}).status == 204
    shown = json.loads(ask("GET", "/v1.0/account/show?id=acme").data)
    assert shown["metadata"] == {"a": "b"}
    assert (shown["objects"], shown["containers"], shown["buckets"]) == (0, 0, 0)
    update = {"name": "c", "mtime": 12, "objects": 2, "bytes": 30}
    assert ask("PUT", "/v1.0/account/container/update?id=acme", update).data == b'"c"'
    assert ask("PUT", "/v1.0/account/container/update?id=acme", update).status == 409
    listed = json.loads(ask("GET", "/v1.0/account/containers?id=acme").data)
    assert listed["listing"] == [["c", 2, 30, 0, 12.0]]
    for flag, count in (("True", 0), ("False", 1)):
        answer = ask("GET", f"/v1.0/account/containers?id=acme&s3_buckets_only={flag}")
        assert len(json.loads(answer.data)["listing"]) == count
    assert ask("POST", "/v1.0/account/delete?id=acme").status == 409
    assert ask("PUT", "/v1.0/account/container/update?id=acme", {"name": "c", "dtime": 13}).status == 200
    assert ask("POST", "/v1.0/account/delete?id=acme").status == 204
    assert ask("GET", "/v1.0/account/show?id=acme").status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/v1.0/account/create", 400),
        ("GET", "/v1.0/account/show?id=", 400),
        ("GET", "/v1.0/account/container/show?id=acme", 400),
        ("POST", "/v1.0/account/create?id=acme", 405),
        ("DELETE", "/v1.0/account/show?id=acme", 405),
        ("GET", "/v1.0/account/", 404),
        ("GET", "/v1.0/account/list/", 404),
        ("POST", "/v1.0/account/delete?id=nobody", 404),
        ("HEAD", "/v1.0/account/list", 200),
        ("POST", "/status", 200),
    ],
)
def test_statuses(ask, method, path, status):
    answer = ask(method, path)
    assert answer.status == status
    assert ("allow" in answer.headers) == (status == 405)


def test_an_unknown_container_has_zeros(ask):
    shown = json.loads(ask("GET", "/v1.0/account/show-container?id=nobody&container=c").data)
    assert (shown["name"], shown["objects"], shown["replication_enabled"]) == ("c", 0, False)


def test_a_base_that_fails_is_unavailable(ask, store):
    store._db.close()
    answer = ask("GET", "/v1.0/account/list")
    assert answer.status == 503
    assert answer.data.startswith(b"Could not satisfy the request")
