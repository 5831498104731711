# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The client of the meta services against a live meta1, and against servers that fail in every way."""

import hashlib
import socket
import threading
from contextlib import contextmanager

import pytest

from oio.common.status import StatusError
from oio.common.variables import Variables
from oio.http.client import HttpPool
from oio.http.server import Response, Server
from oio.meta.client import MetaClient
from oio.meta.messages import (
    ReferenceCreate,
    ReferenceLink,
    ReferenceSetProperties,
    ReferenceShow,
)
from oio.meta.meta1.prefixes import Prefixes
from oio.meta.meta1.service import META1, Meta1Service
from oio.meta.repository import Repository
from oio.meta.server import MetaApplication

CID = hashlib.sha256(b"acme\0photos").hexdigest().upper()
TARGET = {"cid": CID, "account": "acme", "name": "photos"}


@pytest.fixture
def client():
    with HttpPool() as pool:
        yield MetaClient(pool)


@contextmanager
def served(handler):
    server = Server(handler, [("127.0.0.1", 0)])
    server.start()
    try:
        yield f"127.0.0.1:{server.addresses[0][1]}"
    finally:
        server.stop(1.0)


@pytest.fixture
def meta1(tmp_path):
    repository = Repository(str(tmp_path), META1)
    service = Meta1Service(repository, Prefixes(lambda: ["0000"]), 0)
    with served(MetaApplication("meta1", "NS", service.handlers(), Variables(), repository)) as address:
        yield address
    repository.close()


def test_operations_travel(client, meta1):
    assert client.call(meta1, ReferenceCreate(**TARGET, properties={"k": "é"})).created
    links = client.call(meta1, ReferenceLink(**TARGET, type="meta2", proposed=["m1"]), reqid="R")
    assert [(one.seq, one.host) for one in links.services] == [(1, "m1")]
    shown = client.call(meta1, ReferenceShow(cid=CID), admin=True, origin="tests")
    assert (shown.name, shown.properties) == ("photos", {"k": "é"})
    assert client.call(meta1, ReferenceSetProperties(cid=CID, properties={})) is None


def test_failures_keep_their_code_and_message(client, meta1):
    with pytest.raises(StatusError, match="not found") as caught:
        client.call(meta1, ReferenceShow(cid=CID))
    assert caught.value.code == 406


@pytest.mark.parametrize("cid", ["", "00", CID.lower(), CID + "\n", CID + "0", "Z" * 64])
def test_malformed_ids_are_refused_at_the_border(client, meta1, cid):
    with pytest.raises(StatusError) as caught:
        client.call(meta1, ReferenceShow(cid=cid))
    assert caught.value.code == 400


def code_of(client, address, **kwargs):
    with pytest.raises(StatusError) as caught:
        client.call(address, ReferenceCreate(**TARGET), **kwargs)
    return caught.value.code


def test_nobody_listens(client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert code_of(client, f"127.0.0.1:{free.getsockname()[1]}") == 2


def test_no_answer_in_time(client):
    release = threading.Event()

    def slow(request):
        release.wait(10)
        return Response(204)

    with served(slow) as address:
        assert code_of(client, address, timeout_s=0.1) == 7
        release.set()


def test_the_service_dies_before_it_answers(client):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)

        def accept_and_close():
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.close()

        thread = threading.Thread(target=accept_and_close)
        thread.start()
        assert code_of(client, f"127.0.0.1:{listener.getsockname()[1]}") in (3, 4)
        thread.join()


@pytest.mark.parametrize(
    ("response", "code"), [(Response(200, b"\xc1"), 500), (Response(502, b"<html>"), 502)]
)
def test_answers_of_something_else(client, response, code):
    with served(lambda request: response) as address:
        assert code_of(client, address) == code


def test_headers(client):
    seen = {}

    def handler(request):
        seen.update(request.headers, path=request.path, method=request.method)
        return Response(204)

    with served(handler) as address:
        client.call(
            address, ReferenceCreate(**TARGET), reqid="R1", timeout_s=1.5, admin=True, origin="swift"
        )
    assert (seen["method"], seen["path"]) == ("POST", "/v1/reference_create")
    assert seen["x-oio-req-id"] == "R1"
    assert seen["x-oio-timeout"] == "1500000"
    assert seen["x-oio-admin"] == "1"
    assert seen["user-agent"] == "swift"
