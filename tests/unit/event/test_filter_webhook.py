# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""An endpoint is told what happens to objects."""

import pytest
from filter_kit import Chain, WebServer, event
from support import held_port

from oio.common.exceptions import ConfigurationException, ExplicitBury
from oio.event.filters import clients
from oio.http.server import Response

URL = {
    "ns": "NS", "account": "acme", "user": "photos", "path": "a.jpg", "content": "0AB1", "id": "CD" * 32,
    "version": "1651234567890123",
}  # fmt: skip
BEANS = [
    {
        "type": "aliases", "name": "a.jpg", "version": 1651234567890123, "ctime": 1651234567,
        "mtime": 1651234568, "deleted": False, "header": "0AB1",
    },
    {
        "type": "contents_headers", "id": "0AB1", "hash": "D41D8CD98F00B204E9800998ECF8427E", "size": 3,
        "policy": "SINGLE", "chunk-method": "plain/nb_copy=1", "mime-type": "image/jpeg",
    },
    {"type": "properties", "alias": "a.jpg", "version": 1651234567890123, "key": "k", "value": "v"},
    {"type": "properties", "alias": "a.jpg", "version": 1651234567890123, "key": "gone", "value": None},
]  # fmt: skip
NAMED = {"id": "0AB1", "account": "acme", "container": "photos", "name": "a.jpg"}


@pytest.fixture
def endpoint():
    with WebServer(lambda request, _body: 200) as server:
        yield server


def one(kind, data=None):
    return event(kind, 1651234567.890123, data, url=dict(URL), job_id=7)


def test_a_new_object_is_told_with_all_its_fields(endpoint):
    chain = Chain("webhook", endpoint=f"{endpoint.url}/hook?a=b")
    assert chain.run(one("storage.content.new", BEANS)) == 200
    (request,) = endpoint.requests
    assert (request.method, request.path, request.query) == ("POST", "/hook", {"a": "b"})
    assert request.headers["content-type"] == "application/json"
    assert request.json == {
        "eventId": "7",
        "eventType": "storage.content.new",
        "timestamp": 1651234567890123,
        "data": {
            **NAMED,
            "md5Hash": "D41D8CD98F00B204E9800998ECF8427E",
            "contentType": "image/jpeg",
            "policy": "SINGLE",
            "chunkMethod": "plain/nb_copy=1",
            "size": 3,
            "creationTime": 1651234567,
            "modificationTime": 1651234568,
            "version": 1651234567890123,
            "metadata": {"k": "v"},
        },
    }


@pytest.mark.parametrize("kind", ["storage.content.deleted", "storage.content.append"])
def test_deletions_and_additions_only_name_the_object(endpoint, kind):
    assert Chain("webhook", endpoint=endpoint.url).run(one(kind, BEANS)) == 200
    assert endpoint.requests[0].json["data"] == NAMED


def test_what_is_about_no_object_goes_on(endpoint):
    chain = Chain("webhook", endpoint=endpoint.url)
    assert chain.run(one("storage.container.new", {})) == 200
    assert endpoint.requests == []


def proxy_answer(_request, _body):
    headers = {
        "id": "0AB1", "hash": "FFFF", "length": "12", "policy": "EC", "chunk-method": "ec/k=6",
        "mime-type": "text/plain", "ctime": "11", "mtime": "12", "version": "13",
    }  # fmt: skip
    return Response(
        200, b'{"properties": {"color": "blue"}}',
        [(f"x-oio-content-meta-{name}", value) for name, value in headers.items()],
    )  # fmt: skip


def test_an_update_is_told_with_what_the_proxy_says(endpoint):
    with WebServer(proxy_answer) as proxy:
        chain = Chain("webhook", global_conf={"proxyd_url": proxy.url}, endpoint=endpoint.url)
        assert chain.run(one("storage.content.update", BEANS[2:])) == 200
    (request,) = proxy.requests
    assert request.path == "/v3.0/NS/content/get_properties"
    assert request.query == {"acct": "acme", "ref": "photos", "content": "0AB1"}
    assert endpoint.requests[0].json["data"] == {
        **NAMED, "md5Hash": "FFFF", "contentType": "text/plain", "policy": "EC", "chunkMethod": "ec/k=6",
        "size": 12, "creationTime": 11, "modificationTime": 12, "version": 13, "metadata": {"color": "blue"},
    }  # fmt: skip


def test_an_update_of_an_object_that_is_gone_only_names_it(endpoint):
    with WebServer(lambda request, _body: (404, {"status": 420, "message": "not found"})) as proxy:
        chain = Chain("webhook", global_conf={"proxyd_url": proxy.url}, endpoint=endpoint.url)
        assert chain.run(one("storage.content.update", [])) == 200
    assert endpoint.requests[0].json["data"] == NAMED


def test_a_proxy_that_is_down_brings_the_event_back(endpoint):
    sock, port = held_port()
    with sock:
        conf = {"proxyd_url": f"http://127.0.0.1:{port}"}
        chain = Chain("webhook", global_conf=conf, endpoint=endpoint.url)
        assert chain.run(one("storage.content.update", [])) == 503
    assert endpoint.requests == []


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_refusal_of_the_endpoint_brings_the_event_back(endpoint, status):
    endpoint.answers = lambda request, _body: (status, {"why": "no"})
    chain = Chain("webhook", endpoint=endpoint.url)
    assert str(status) in chain.answer(one("storage.content.deleted")).message
    endpoint.answers = lambda request, _body: 204
    assert chain.run(one("storage.content.deleted")) == 200


def test_an_endpoint_that_is_down_brings_the_event_back():
    sock, port = held_port()
    with sock:
        chain = Chain("webhook", endpoint=f"http://127.0.0.1:{port}/hook")
        assert chain.run(one("storage.content.deleted")) == 503


def test_an_endpoint_is_not_left_alone_for_what_others_fail_to_do(endpoint, monkeypatch):
    """It did not answer; whoever tries it next asks a proxy that is down before, or has an event without sense."""
    monkeypatch.setattr(clients, "PAUSE_MIN_S", 0.0)
    sock, port = held_port()
    with sock:
        conf = {"proxyd_url": f"http://127.0.0.1:{port}"}
        chain = Chain("webhook", global_conf=conf, endpoint=endpoint.url)
        clients.pauses_of(chain.filter).failed(endpoint.url)
        assert chain.run(one("storage.content.update", [])) == 503
    with pytest.raises(ExplicitBury):
        chain.run(one("storage.content.new", "no list"))
    assert endpoint.requests == []
    assert chain.run(one("storage.content.new", BEANS)) == 200
    assert "paused" not in chain.counts


def test_what_makes_no_sense_is_buried(endpoint):
    chain = Chain("webhook", endpoint=endpoint.url)
    for wrong in ({**one("storage.content.new", BEANS), "url": None}, one("storage.content.new", {"no": "list"})):
        with pytest.raises(ExplicitBury):
            chain.run(wrong)


@pytest.mark.parametrize("url", [None, "", "ftp://x", "127.0.0.1:80", "http://"])
def test_an_endpoint_is_needed(url):
    with pytest.raises(ConfigurationException):
        Chain("webhook", endpoint=url)
