# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Repair of counters: refresh and flush of an account, reset of a container, through the routes and the client."""

import pytest

from oio.account.updates import COUNTERS
from oio.common import exceptions as exc


def figures(client, name="acme"):
    shown = client.account_show(name)
    return [shown[counter] for counter in COUNTERS], shown["containers"]


def fill(client):
    for name, mtime in (("a", 10), ("b", 20)):
        counters = dict(zip(COUNTERS, (2, 30, 1, 4), strict=True))
        client.container_update("acme", name, {"mtime": mtime, "bucket": "a", **counters})


def test_refresh_sums_the_containers_again(client, raw):
    fill(client)
    client.container_update("acme", "gone", {"dtime": 5})
    raw.hset("account:acme", mapping=dict(zip(COUNTERS, (99, -3, 7, 7), strict=True)))
    assert client.account_refresh("acme") is None
    assert figures(client) == ([4, 60, 2, 8], 2)
    # Counters that an entry lacks count as zero.
    raw.hdel("container:acme:a", "damaged_objects", "missing_chunks")
    client.account_refresh("acme")
    assert figures(client) == ([4, 60, 1, 4], 2)
    with pytest.raises(exc.NotFound):
        client.account_refresh("nobody")


def test_refresh_of_many_containers(client, backend, raw):
    from oio.account.updates import ContainerUpdate, normalize_time

    updates = [("acme", ContainerUpdate(f"c{number}", normalize_time(1), objects=1)) for number in range(2500)]
    backend.update_containers(updates)
    raw.hset("account:acme", "objects", 7)
    client.account_refresh("acme")
    assert figures(client) == ([2500, 0, 0, 0], 2500)
    client.account_flush("acme")
    assert figures(client) == ([0, 0, 0, 0], 0)
    assert raw.keys("container*") == []


def test_refresh_of_an_account_without_containers(client):
    client.account_create("acme")
    client.account_refresh("acme")
    assert figures(client) == ([0, 0, 0, 0], 0)


def test_flush_forgets_the_containers_until_their_next_state(client):
    fill(client)
    assert client.account_flush("acme") is None
    assert figures(client) == ([0, 0, 0, 0], 0)
    assert client.container_list("acme")["listing"] == []
    assert client.bucket_show("a")["bytes"] == 60
    client.container_update("acme", "a", {"mtime": 10, "objects": 1})
    assert figures(client) == ([1, 0, 0, 0], 1)
    with pytest.raises(exc.NotFound):
        client.account_flush("nobody")


def test_reset_takes_the_counters_of_a_container_back(client):
    fill(client)
    assert client.container_reset("acme", "a", 11) is None
    assert figures(client) == ([2, 30, 1, 4], 2)
    assert client.bucket_show("a")["bytes"] == 30
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


def test_many_updates_by_the_client(client):
    told = [
        {"account": account, "name": name, "mtime": 3, "objects": 2} for account in ("x", "y") for name in "abb"
    ]
    assert [one["status"] for one in client.container_update_many(told)] == [200, 200, 409] * 2
    assert figures(client, "x") == ([4, 0, 0, 0], 2)
    assert client.container_update_many([]) == []
