# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The cache of ObjectStorageApi: what it saves, and when it is dropped."""

from __future__ import annotations

import time
from unittest.mock import Mock

import pytest
from fake_cluster import NS, FakeCluster

from oio import ObjectStorageApi
from oio.common import exceptions as exc
from oio.common.utils import cid_from_name

CID = cid_from_name("acct", "cont")


def fetch(api: ObjectStorageApi, name: str = "obj") -> bytes:
    _meta, stream = api.object_fetch("acct", "cont", name)
    return b"".join(stream)


class CountedApi:
    """API whose proxy requests are counted."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cache: dict[str, object] = {}
        self.api = ObjectStorageApi(NS, endpoint=cluster.proxy.address, cache=self.cache)
        self.mock = Mock(side_effect=self.api.container._direct_request)
        self.api.container._direct_request = self.mock  # type: ignore[method-assign]

    def requests(self) -> int:
        count: int = self.mock.call_count
        self.mock.reset_mock()
        return count


def test_cache_of_objects(cluster: FakeCluster) -> None:
    counted = CountedApi(cluster)
    api = counted.api
    api.object_create("acct", "cont", data=b"d", obj_name="obj", properties={"k": "v"})
    assert counted.cache == {}
    counted.requests()
    api.object_get_properties("acct", "cont", "obj")
    api.object_get_properties("acct", "cont", "obj")
    assert counted.requests() == 1
    api.object_locate("acct", "cont", "obj", properties=False)
    assert counted.requests() == 1
    assert api.object_locate("acct", "cont", "obj")[0]["properties"] == {"k": "v"}
    assert counted.requests() == 1
    assert api.object_locate("acct", "cont", "obj", properties=False)[0]["properties"] == {}
    assert fetch(api) == b"d"
    assert counted.requests() == 0
    version = api.object_get_properties("acct", "cont", "obj")["version"]
    api.object_locate("acct", "cont", "obj", version=version)
    assert counted.requests() == 1
    api.object_locate("acct", "cont", "obj", cache=None)
    assert counted.requests() == 1
    assert list(counted.cache) == [f"meta/{CID}/obj"]
    for change in (
        lambda: api.object_set_properties("acct", "cont", "obj", {"x": "y"}),
        lambda: api.object_del_properties("acct", "cont", "obj", ["x"]),
        lambda: api.object_create("acct", "cont", data=b"e", obj_name="obj"),
        lambda: api.object_delete("acct", "cont", "obj"),
    ):
        change()
        assert counted.cache == {}
        if change.__code__.co_names[0] != "object_delete":
            api.object_get_properties("acct", "cont", "obj")


def test_cache_of_containers(cluster: FakeCluster) -> None:
    counted = CountedApi(cluster)
    api = counted.api
    api.container_create("acct", "cont")
    assert counted.cache == {}
    counted.requests()
    api.container_get_properties("acct", "cont")
    api.container_get_properties("acct", "cont")
    assert counted.requests() == 1
    assert list(counted.cache) == [f"meta/{CID}"]
    api.container_set_properties("acct", "cont", {"a": "b"})
    assert counted.cache == {}
    api.container_get_properties("acct", "cont", params={"service_id": "meta2-1"})
    assert counted.cache == {}
    api.container_get_properties("acct", "cont")
    api.container_delete("acct", "cont")
    assert counted.cache == {}


def test_scores_of_cached_chunks_are_refreshed_aside(cluster: FakeCluster) -> None:
    counted = CountedApi(cluster)
    api = counted.api
    api.object_create("acct", "cont", data=b"d", obj_name="obj")
    api.object_locate("acct", "cont", "obj")
    _meta, chunks = api.object_locate("acct", "cont", "obj")
    deadline = time.monotonic() + 5
    while not api.container.rawx_scores and time.monotonic() < deadline:
        time.sleep(0.002)
    _meta, chunks = api.object_locate("acct", "cont", "obj")
    assert {chunk["score"] for chunk in chunks} == {80}
    assert len(cluster.proxy.requests("conscience/list")) == 1


def test_a_stale_entry_is_read_again_once(cluster: FakeCluster) -> None:
    counted = CountedApi(cluster)
    api = counted.api
    api.object_create("acct", "cont", data=b"old", obj_name="obj")
    assert fetch(api) == b"old"
    other = ObjectStorageApi(NS, endpoint=cluster.proxy.address)
    for rawx in cluster.rawx:
        rawx.chunks.clear()
    other.object_create("acct", "cont", data=b"new!", obj_name="obj")
    counted.requests()
    meta, stream = api.object_fetch("acct", "cont", "obj")
    assert meta["length"] == "3"
    assert b"".join(stream) == b"new!"
    assert meta["length"] == "4"
    assert counted.requests() == 1
    other.object_delete("acct", "cont", "obj")
    for rawx in cluster.rawx:
        rawx.chunks.clear()
    _meta, stream = api.object_fetch("acct", "cont", "obj")
    with pytest.raises(exc.NoSuchObject):
        next(stream)
