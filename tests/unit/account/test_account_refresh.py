# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Repair of counters: refresh and flush of an account, reset of a container, through the routes and the client."""

import pytest

from oio.account.client import AccountClient
from oio.account.sqlite_server import AccountService
from oio.common import exceptions as exc
from oio.http.server import Server

COUNTERS = ("objects", "bytes", "damaged_objects", "missing_chunks")


@pytest.fixture
def client(store):
    server = Server(AccountService(store).router, [("127.0.0.1", 0)])
    server.start()
    host, port = server.addresses[0]
    client = AccountClient({"namespace": "NS"}, endpoint=f"{host}:{port}", proxy_endpoint="127.0.0.1:1")
    yield client
    server.stop(1)


def figures(client, name="acme"):
    shown = client.account_show(name)
    return [shown[counter] for counter in COUNTERS], shown["containers"]


def fill(client):
    for name, mtime in (("a", 10), ("b", 20)):
        counters = dict(zip(COUNTERS, (2, 30, 1, 4), strict=True))
        client.container_update("acme", name, {"mtime": mtime, **counters})


def test_refresh_sums_the_containers_again(client, store):
    fill(client)
    client.container_update("acme", "gone", {"dtime": 5})
    store._db.execute("UPDATE accounts SET objects = 99, bytes = -3, damaged_objects = 7, missing_chunks = 7")
    assert client.account_refresh("acme") is None
    assert figures(client) == ([4, 60, 2, 8], 2)
    with pytest.raises(exc.NotFound):
        client.account_refresh("nobody")


def test_refresh_of_an_account_without_containers(client):
    client.account_create("acme")
    client.account_refresh("acme")
    assert figures(client) == ([0, 0, 0, 0], 0)


def test_flush_forgets_the_containers_until_their_next_state(client):
    fill(client)
    assert client.account_flush("acme") is None
    assert figures(client) == ([0, 0, 0, 0], 0)
    assert client.container_list("acme")["listing"] == []
    client.container_update("acme", "a", {"mtime": 10, "objects": 1})
    assert figures(client) == ([1, 0, 0, 0], 1)
    with pytest.raises(exc.NotFound):
        client.account_flush("nobody")


def test_reset_takes_the_counters_of_a_container_back(client):
    fill(client)
    assert client.container_reset("acme", "a", 11) is None
    assert figures(client) == ([2, 30, 1, 4], 2)
    shown = client.container_show("acme", "a")
    assert [shown[counter] for counter in COUNTERS] == [0, 0, 0, 0]
    assert float(shown["mtime"]) == 11
    with pytest.raises(exc.Conflict, match="No update needed"):
        client.container_reset("acme", "a", 11)
    client.container_update("acme", "a", {"mtime": 12, "objects": 5})
    assert figures(client)[0][0] == 7


@pytest.mark.parametrize("name", ["unknown", "deleted"])
def test_reset_of_what_is_not_listed(client, name):
    fill(client)
    client.container_update("acme", "deleted", {"mtime": 1, "dtime": 2})
    with pytest.raises(exc.NotFound, match=f"Container {name} not found"):
        client.container_reset("acme", name, 99)
    assert figures(client) == ([4, 60, 2, 8], 2)
    with pytest.raises(exc.NotFound):
        client.container_reset("nobody", name, 99)


@pytest.mark.parametrize(
    ("name", "mtime", "told"), [("", 1, "container"), ("a", "noon", "mtime"), ("a", None, "mtime")]
)
def test_reset_names_the_bad_field(client, name, mtime, told):
    with pytest.raises(exc.BadRequest, match=told):
        client.container_reset("acme", name, mtime)
