# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Measures and the cache of metadata: what each call measures, asks, stores and forgets, on a cluster."""

from unittest.mock import Mock

import pytest
from support import ACCOUNT

from oio import ObjectStorageApi
from oio.common import exceptions as exc
from oio.common.utils import cid_from_name


class Counted:
    """An API with a cache, whose requests to the proxy are counted."""

    def __init__(self, cluster):
        self.cache = {}
        self.api = ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy, cache=self.cache)
        self._mock = Mock(side_effect=self.api.container._direct_request)
        self.api.container._direct_request = self._mock

    def requests(self, call):
        """How many requests a call makes."""
        self._mock.reset_mock()
        self.result = call()
        return self._mock.call_count


@pytest.fixture
def counted(cluster):
    return Counted(cluster)


@pytest.fixture
def filled(api, container):
    api.object_create(ACCOUNT, container, data=b"data", obj_name="o", policy="THREECOPIES", properties={"k": "v"})
    return container


# --- cache: containers ---


def test_properties_of_a_container_are_asked_for_once(counted, api, container):
    key = f"meta/{cid_from_name(ACCOUNT, container)}"
    ask = lambda: counted.api.container_get_properties(ACCOUNT, container)  # noqa: E731
    assert [counted.requests(ask) for _ in range(3)] == [1, 0, 0]
    assert list(counted.cache) == [key]
    assert counted.cache[key] == counted.result
    counted.result["properties"]["mine"] = "changed"
    assert "mine" not in counted.cache[key]["properties"]
    assert counted.requests(lambda: counted.api.container_get_properties(ACCOUNT, container, cache=None)) == 1
    by_id = {"cid": key[5:].lower(), "cache": counted.cache}
    assert counted.requests(lambda: counted.api.container.container_get_properties(**by_id)) == 0


@pytest.mark.parametrize("change", ["set", "del", "delete", "freeze", "enable"])
def test_what_forgets_the_properties_of_a_container(counted, api, container, change):
    where = (ACCOUNT, container)
    if change == "enable":
        api.container.container_freeze(*where)
    counted.api.container_get_properties(*where)
    assert counted.cache
    calls = {
        "set": lambda: counted.api.container_set_properties(*where, {"a": "b"}),
        "del": lambda: counted.api.container_del_properties(*where, ["a"]),
        "delete": lambda: counted.api.container_delete(*where),
        "freeze": lambda: counted.api.container.container_freeze(*where, cache=counted.cache),
        "enable": lambda: counted.api.container.container_enable(*where, cache=counted.cache),
    }
    calls[change]()
    assert counted.cache == {}
    if change == "set":
        assert counted.api.container_get_properties(*where)["properties"] == {"a": "b"}


def test_creating_stores_nothing(counted, api, container):
    counted.api.container_create(ACCOUNT, container + "-x")
    counted.api.object_create(ACCOUNT, container, data=b"x", obj_name="o")
    assert counted.cache == {}
    api.container_delete(ACCOUNT, container + "-x")


# --- cache: objects ---


def test_one_entry_serves_locate_fetch_and_properties(counted, filled):
    api, where = counted.api, (ACCOUNT, filled, "o")
    assert counted.requests(lambda: api.object_locate(*where)) == 1
    meta, chunks = counted.result
    assert counted.requests(lambda: api.object_locate(*where)) == 0
    assert counted.result[0] == meta
    keys = ("url", "real_url", "pos", "size", "hash")
    assert [[chunk[key] for key in keys] for chunk in counted.result[1]] == [
        [chunk[key] for key in keys] for chunk in chunks
    ]
    assert counted.requests(lambda: api.object_get_properties(*where)) == 0
    assert counted.result["properties"] == {"k": "v"}
    assert counted.requests(lambda: b"".join(api.object_fetch(*where)[1])) == 0
    assert counted.result == b"data"
    ((key, entry),) = counted.cache.items()
    assert key == f"meta/{cid_from_name(ACCOUNT, filled)}/o"
    assert not any("score" in chunk for chunk in entry["chunks"])


def test_properties_that_are_not_stored_are_asked_for(counted, filled):
    api, where = counted.api, (ACCOUNT, filled, "o")
    assert counted.requests(lambda: api.object_locate(*where, properties=False)) == 1
    assert counted.requests(lambda: api.object_locate(*where, properties=False)) == 0
    assert counted.requests(lambda: api.object_locate(*where, properties=True)) == 1
    assert counted.result[0]["properties"] == {"k": "v"}
    assert counted.requests(lambda: api.object_locate(*where, properties=False)) == 0
    assert counted.result[0]["properties"] == {}


def test_an_entry_without_chunks_does_not_locate(counted, filled):
    api, where = counted.api, (ACCOUNT, filled, "o")
    assert counted.requests(lambda: api.object_get_properties(*where)) == 1
    assert counted.requests(lambda: api.object_get_properties(*where)) == 0
    assert counted.requests(lambda: api.object_locate(*where)) == 1
    assert counted.requests(lambda: api.object_get_properties(*where)) == 0


def test_a_version_never_uses_the_cache(counted, filled):
    api, where = counted.api, (ACCOUNT, filled, "o")
    version = api.object_locate(*where)[0]["version"]
    for call in (api.object_locate, api.object_get_properties, api.object_fetch):
        assert counted.requests(lambda call=call: call(*where, version=version)) == 1
    counted.cache.clear()
    api.object_locate(*where, version=version)
    assert counted.cache == {}


@pytest.mark.parametrize(
    "change",
    ["set properties", "del properties", "create", "append", "delete", "delete many", "drain", "truncate", "cut",
     "purge", "change policy", "link"],
)  # fmt: skip
def test_what_forgets_an_object(counted, filled, change):
    api, where = counted.api, (ACCOUNT, filled)
    api.object_locate(*where, "o")
    assert counted.cache
    calls = {
        "set properties": lambda: api.object_set_properties(*where, "o", {"a": "b"}),
        "del properties": lambda: api.object_del_properties(*where, "o", ["a"]),
        "create": lambda: api.object_create(*where, data=b"new", obj_name="o"),
        "append": lambda: api.object_create(*where, data=b"new", obj_name="o", append=True),
        "delete": lambda: api.object_delete(*where, "o"),
        "delete many": lambda: api.object_delete_many(*where, ["o", "p"]),
        "drain": lambda: api.object_drain(*where, "o"),
        "truncate": lambda: api.object_truncate(*where, "o", size=0),
        "cut": lambda: api.object_truncate(*where, "o", size=2),
        "purge": lambda: api.container.content_purge(*where, "o", cache=counted.cache),
        "change policy": lambda: api.object_change_policy(*where, "o", "SINGLE"),
        "link": lambda: api.object_link(*where, "o", *where, "o"),
    }
    calls[change]()
    assert counted.cache == {}


def test_a_refused_change_forgets_too(counted, filled):
    counted.api.object_locate(ACCOUNT, filled, "o")
    with pytest.raises(exc.Conflict):
        counted.api.object_create(ACCOUNT, filled, data=b"x", obj_name="o", version=1)
    assert counted.cache == {}


def test_cached_chunks_that_moved_are_asked_for_again(counted, api, filled):
    mine, where = counted.api, (ACCOUNT, filled, "o")
    assert b"".join(mine.object_fetch(*where)[1]) == b"data"
    for chunk in api.object_locate(*where)[1]:
        api.blob_client.chunk_delete(chunk["url"])
    api.object_create(ACCOUNT, filled, data=b"new data", obj_name="o")
    meta, stream = mine.object_fetch(*where)
    assert meta["length"] == "4"
    assert counted.requests(lambda: b"".join(stream)) == 1
    assert (counted.result, meta["length"]) == (b"new data", "8")
    for chunk in api.object_locate(*where)[1]:
        api.blob_client.chunk_delete(chunk["url"])
    api.object_delete(*where)
    _meta, stream = mine.object_fetch(*where)
    with pytest.raises(exc.NoSuchObject):
        next(stream)
    assert counted.cache == {}


# --- measures ---


@pytest.fixture
def measured(cluster):
    perfdata = {}
    return ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy, perfdata=perfdata), perfdata


def test_the_proxy_is_measured(measured, filled):
    api, perfdata = measured
    api.container_get_properties(ACCOUNT, filled)
    assert {"overall", "resolve", "meta2"} <= set(perfdata["proxy"])
    assert all(type(value) is float for value in perfdata["proxy"].values())
    first = dict(perfdata["proxy"])
    api.object_get_properties(ACCOUNT, filled, "o")
    assert perfdata["proxy"]["overall"] > first["overall"]
    assert perfdata["proxy"]["meta2"] > first["meta2"]
    assert perfdata["proxy"]["overall"] > perfdata["proxy"]["meta2"]


def test_a_dictionary_may_be_given_to_one_call(api, filled):
    perfdata = {}
    api.object_get_properties(ACCOUNT, filled, "o", perfdata=perfdata)
    assert "proxy" in perfdata
    assert api.perfdata is None


def test_the_account_service_is_measured(measured):
    api, perfdata = measured
    api.account_list()
    assert perfdata["account-service"]["overall"] > 0


@pytest.mark.parametrize(("policy", "at_least"), [("SINGLE", 1), ("THREECOPIES", 1), ("EC", 6)])
@pytest.mark.parametrize("size", [0, 1000])
def test_uploads_and_downloads_are_measured(measured, container, policy, at_least, size):
    api, perfdata = measured
    chunks, *_ = api.object_create(ACCOUNT, container, data=b"x" * size, obj_name="o", policy=policy)
    urls = {chunk["url"] for chunk in chunks}
    rawx = perfdata["rawx"]
    for kind in ("connect", "upload", "upload_finish"):
        assert {key.partition(".")[2] for key in rawx if key.startswith(kind + ".http")} == urls
    for kind in ("connect", "upload"):
        assert {f"{kind}.{figure}" for figure in ("AVG", "SD", "RSD")} <= set(rawx)
    assert rawx["overall"] > 0
    assert ("ec" in rawx) == (policy == "EC")
    assert perfdata["data_size"] == size
    assert not {"ttfb", "ttlb"} & set(perfdata)

    perfdata.clear()
    _meta, stream = api.object_fetch(ACCOUNT, container, "o")
    assert set(perfdata) == {"proxy"}
    assert b"".join(stream) == b"x" * size
    assert perfdata["data_size"] == size
    assert 0 < perfdata["ttfb"] <= perfdata["ttlb"]
    rawx = perfdata["rawx"]
    if size:
        for kind in ("connect", "download"):
            asked = {key.partition(".")[2] for key in rawx if key.startswith(kind + ".http")}
            assert at_least <= len(asked) and asked <= urls
            assert {f"{kind}.{figure}" for figure in ("AVG", "SD", "RSD")} <= set(rawx)
        assert ("ec" in rawx) == (policy == "EC")
    assert rawx["overall"] > 0
