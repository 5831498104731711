# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The endpoint of webhooks in local clusters: what it was told last about each object."""

import json

import pytest

from oio.http.client import HttpPool
from oio.http.server import Server
from oio.sandbox.webhook import LastBodies


@pytest.fixture
def ask():
    server = Server(LastBodies(objects_max=2), [("127.0.0.1", 0)])
    server.start()
    pool = HttpPool()
    host, port = server.addresses[0][:2]

    def request(method, path, body=None):
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        answer = pool.request(method, f"http://{host}:{port}{path}", body=body)
        return answer.status, bytes(answer.data)

    yield request
    pool.close()
    server.stop(1.0)


def told(name, kind="new", **more):
    data = {"account": "a", "container": "c", "name": name, **more}
    return {"eventId": "1", "eventType": f"storage.content.{kind}", "data": data}


def test_the_last_body_of_an_object_is_kept_until_its_deletion(ask):
    assert ask("GET", "/") == (200, b"")
    assert ask("GET", "/a/c/o")[0] == 404
    assert ask("POST", "/", told("o", size=1))[0] == 200
    assert ask("POST", "/", told("o", "append"))[0] == 200
    assert json.loads(ask("GET", "/a/c/o")[1]) == told("o", "append")
    assert ask("POST", "/", told("o", "deleted"))[0] == 200
    assert ask("GET", "/a/c/o")[0] == 404


def test_names_are_percent_encoded(ask):
    ask("POST", "/", told("é /%"))
    assert ask("GET", "/a/c/%C3%A9%20%2F%25")[0] == 200


def test_a_purge_forgets_everything_and_the_oldest_go_when_there_are_too_many(ask):
    for name in ("1", "2", "1", "3"):
        ask("POST", "/", told(name))
    assert [ask("GET", f"/a/c/{name}")[0] for name in "123"] == [200, 404, 200]
    assert ask("POST", "/PURGE")[0] == 200
    assert [ask("GET", f"/a/c/{name}")[0] for name in "123"] == [404, 404, 404]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'"x"', {"eventType": "x", "data": {"account": 1}}])
def test_what_is_not_about_an_object_is_refused(ask, body):
    assert ask("POST", "/", body)[0] == 400


def test_other_methods_are_refused(ask):
    assert ask("DELETE", "/a/c/o")[0] == 405
