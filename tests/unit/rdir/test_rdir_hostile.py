# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Requests that no client of ours sends: a status of 4xx or 503, and nothing has changed."""

import http.client
import json
import os
import socket

import pytest

from oio.rdir import store as store_module
from oio.rdir.messages import OWNER_CHARS_MAX, URL_CHARS_MAX

RECORD = {"container_id": "A", "content_id": "B", "chunk_id": "C"}
DEEP = b'{"container_id":"a","content_id":"b","chunk_id":"c","x":' + b"[" * 50000 + b"]" * 50000 + b"}"


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("push", {**RECORD, "chunk_id": "a\nb"}),
        ("push-many", {"records": [RECORD, {**RECORD, "content_id": "\x00"}]}),
        ("push", {**RECORD, "container_id": " A"}),
        ("push", {**RECORD, "chunk_id": "C "}),
        ("push", {**RECORD, "chunk_id": "C" * 510 + " C"}),
        ("push-many", {"records": [RECORD, {**RECORD, "container_id": " "}]}),
        ("push", DEEP),
        ("push-many", DEEP),
        ("meta2/push", DEEP),
        ("meta2/push", {"container_id": "A", "container_url": ""}),
        ("meta2/push", {"container_id": "A", "container_url": "x" * (URL_CHARS_MAX + 1)}),
        ("meta2/push", {"container_id": "A" * 2000, "container_url": "NS/a/c"}),
        ("meta2/push", {"container_id": "A", "container_url": "NS/a/c", "extra_data": "x" * 100000}),
    ],
)
def test_a_refused_push_creates_no_database(rdir, tmp_path, action, body):
    answer = rdir.ask("POST", f"/v1/rdir/{action}?vol=v&create=1", body)
    assert (answer.status, json.loads(answer.data)["status"]) == (400, 400), answer.data
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/status"),
        ("PUT", "/status"),
        ("POST", "/v1/rdir/fetch?vol=v"),
        ("POST", "/v1/rdir/admin/lock?vol=v"),
    ],
)
def test_bodies_nested_too_deep_are_refused_everywhere(rdir, method, path):
    rdir.ask("POST", "/v1/rdir/create?vol=v")
    for body in (b"[" * 100000, b"[" * 50000 + b"]" * 50000, DEEP):
        assert rdir.ask(method, path, body).status == 400


@pytest.mark.parametrize("volume", ["%FF", "a%C3", "%ED%A0%80"])
def test_names_that_are_no_utf8_are_refused(rdir, tmp_path, volume):
    # Replaced by a question mark they would all be the same volume.
    for action in ("create", "push", "meta2/create", "meta2/push"):
        answer = rdir.ask("POST", f"/v1/rdir/{action}?create=1&vol={volume}", RECORD)
        body = json.loads(answer.data)
        assert (answer.status, body["status"]) == (400, 400)
    assert "not UTF-8" in body["message"]
    assert os.listdir(tmp_path) == []


def test_an_empty_or_endless_url_is_no_record(rdir):
    rdir.ask("POST", "/v1/rdir/meta2/create?vol=v")
    for url in ("", "x" * (URL_CHARS_MAX + 1)):
        answer = rdir.ask("POST", "/v1/rdir/meta2/delete?vol=v", {"container_id": "A", "container_url": url})
        assert answer.status == 400
    longest = {"container_id": "A", "container_url": "é" * URL_CHARS_MAX}
    assert rdir.ask("POST", "/v1/rdir/meta2/push?vol=v", longest).status == 204
    assert rdir.ask("POST", "/v1/rdir/meta2/delete?vol=v", longest).status == 204


def test_the_owner_of_a_lock_is_no_novel(rdir):
    rdir.ask("POST", "/v1/rdir/create?vol=v")
    assert rdir.ask("POST", "/v1/rdir/admin/lock?vol=v", {"who": "x" * (OWNER_CHARS_MAX + 1)}).status == 400
    assert json.loads(rdir.ask("GET", "/v1/rdir/admin/show?vol=v").data) == {}


def test_more_volumes_than_there_are_files_for(rdir, tmp_path):
    rdir.store.databases_max = 3
    assert [rdir.ask("POST", f"/v1/rdir/create?vol=v{n}").status for n in range(2)] == [201, 201]
    assert rdir.ask("POST", "/v1/rdir/meta2/create?vol=m").status == 201
    present = sorted(os.listdir(tmp_path))
    for path in ("create?vol=more", "push?create=1&vol=more", "meta2/create?vol=more", "meta2/push?vol=more"):
        answer = rdir.ask("POST", f"/v1/rdir/{path}", {**RECORD, "container_url": "NS/a/c"})
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "3 databases" in json.loads(answer.data)["message"]
    assert rdir.ask("POST", "/v1/rdir/fetch?vol=unknown").status == 404
    assert sorted(os.listdir(tmp_path)) == present
    assert rdir.ask("POST", "/v1/rdir/push?vol=v0", RECORD).status == 204


def test_a_database_that_cannot_be_opened_leaves_nothing(rdir, tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(24, os.strerror(24))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "fsync_directory", refuse)
        answer = rdir.ask("POST", "/v1/rdir/push?vol=v&create=1", RECORD)
        assert (answer.status, os.listdir(tmp_path)) == (503, [])
    # A directory that was left by a creation that was killed is used.
    (tmp_path / "v").mkdir()
    assert rdir.ask("POST", "/v1/rdir/fetch?vol=v").status == 404
    assert rdir.ask("POST", "/v1/rdir/push?vol=v&create=1", RECORD).status == 204
    assert len(json.loads(rdir.ask("POST", "/v1/rdir/fetch?vol=v").data)) == 1


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_pages_of_strange_ids_are_complete(rdir, limit):
    client = rdir.client()
    client.create("v")
    strange = ["à", "z\u00a0", "q\u0085", "\u3000", "\u2028", " in side ", "A" * 64, "%00", "|", "\U0010fffd"]
    records = [
        record
        for text in strange
        for record in ((text.strip(" "), "b", "c"), ("a", text, "c"), ("a", "b", text.strip(" ")))
    ]
    for record in records:
        client.chunk_push("v", *record, mtime=5)
    found = ["|".join(record[:3]) for record in client.chunk_fetch("v", limit=limit)]
    assert found == sorted(("|".join(record) for record in records), key=str.encode)
    assert client.status("v", max=limit)["chunk"] == {"total": len(records)}


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/rdir/push?vol=v&create=1 HTTP/1.1\r\nContent-Length: 70000000\r\n", 413),
        (b"POST /v1/rdir/push?vol=v&create=1 HTTP/1.1\r\nContent-Length: -1\r\n", 400),
        (b"POST /v1/rdir/push?vol=v&create=1 HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n", 400),
        (b"POST /v1/rdir/push?" + b"x" * 70000 + b" HTTP/1.1\r\n", 414),
        (b"POST /v1/rdir/push HTTP/1.1\r\nno colon\r\n", 400),
    ],
)
def test_what_is_no_request_is_told_in_json(rdir, tmp_path, head, status):
    host, _, port = rdir.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(head + b"Host: x\r\n\r\n")
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, answer.getheader("content-type")) == (status, "application/json")
        assert json.loads(answer.read())["message"]
    assert os.listdir(tmp_path) == []
