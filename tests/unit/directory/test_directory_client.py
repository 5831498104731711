# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What DirectoryClient sends for each method, and what it makes of the answers."""

import json

import pytest

from oio.common.exceptions import NotFound, OioException
from oio.directory.client import DirectoryClient

URL = "http://127.0.0.1:4444/v3.0/NS/reference/"


class Answer:
    def __init__(self, status=204):
        self.status = status
        self.headers = {}


class Client(DirectoryClient):
    """Records requests instead of sending them."""

    def __init__(self):
        super().__init__({"namespace": "NS"}, endpoint="127.0.0.1:4444")
        self.sent = []
        self.answer = (Answer(), b"")

    def _direct_request(self, method, url, **kwargs):
        self.sent.append((method, url, kwargs))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def client():
    return Client()


REF = {"acct": "acme", "ref": "photos"}


@pytest.mark.parametrize(("status", "created"), [(201, True), (202, False)])
def test_create(client, status, created):
    client.answer = Answer(status), b""
    assert client.create("acme", "photos", properties={"a": "b"}, reqid="R") is created
    method, url, kwargs = client.sent[0]
    assert (method, url) == ("POST", URL + "create")
    assert kwargs == {"params": REF, "data": '{"properties": {"a": "b"}}', "reqid": "R"}


def test_create_without_properties_still_has_a_body(client):
    client.answer = Answer(201), b""
    client.create("acme", "photos")
    assert client.sent[0][2]["data"] == '{"properties": {}}'


def test_create_with_an_unexpected_status(client):
    client.answer = Answer(204), b""
    with pytest.raises(OioException):
        client.create("acme", "photos")


def test_has(client):
    assert client.has("acme", "photos")
    assert client.sent[0][:2] == ("GET", URL + "has")
    client.answer = NotFound("no", 404)
    assert not client.has(cid="ABCD")
    assert client.sent[1][2]["params"] == {"cid": "ABCD"}


def test_list_is_show(client):
    client.answer = Answer(200), {"srv": []}
    assert client.list("acme", "photos", service_type="meta2") == {"srv": []}
    assert client.show("acme", "photos") == {"srv": []}
    assert [request[:2] for request in client.sent] == [("GET", URL + "show")] * 2
    assert client.sent[0][2]["params"] == {**REF, "type": "meta2"}
    assert client.sent[1][2]["params"] == REF


def test_a_missing_reference_is_told(client):
    client.answer = NotFound("no", 404)
    for call in (client.show, client.delete, client.get_properties, client.unlink):
        with pytest.raises(NotFound):
            call("acme", "photos")


@pytest.mark.parametrize("keys", [None, [], ["a", "b"], {"a": 1}.keys()])
@pytest.mark.parametrize("method", ["get_properties", "del_properties"])
def test_names_of_properties_are_an_array(client, method, keys):
    client.answer = Answer(200), {"properties": {"a": "1"}}
    getattr(client, method)("acme", "photos", keys)
    verb, url, kwargs = client.sent[0]
    assert (verb, url) == ("POST", URL + method)
    assert json.loads(kwargs["data"]) == list(keys or [])


def test_set_properties(client):
    client.set_properties("acme", "photos", {"a": ""}, clear=True)
    assert client.sent[0][2] == {"params": {**REF, "flush": 1}, "data": '{"properties": {"a": ""}}'}


@pytest.mark.parametrize("method", ["link", "unlink", "renew"])
def test_links(client, method):
    assert getattr(client, method)("acme", "photos", "meta2") is None
    verb, url, kwargs = client.sent[0]
    assert (verb, url) == ("POST", URL + method)
    assert kwargs["params"] == {**REF, "type": "meta2"}
    assert ("autocreate" in kwargs) == (method == "link")


def test_force(client):
    service = {"seq": 1, "type": "meta2", "host": "m1", "args": ""}
    client.force("acme", "photos", "meta2", service, autocreate=True, replace=True)
    assert client.sent[0][:2] == ("POST", URL + "force")
    assert client.sent[0][2] == {
        "params": {**REF, "type": "meta2", "replace": "yes"},
        "data": json.dumps(service),
        "autocreate": True,
    }


def test_delete(client):
    client.destroy("acme", "photos")
    assert client.sent == [("POST", URL + "destroy", {"params": REF})]
