# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""ObjectStorageApi against a fake proxy and fake rawx, on real sockets."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Iterator
from hashlib import md5
from typing import Any
from unittest.mock import Mock

import pytest
from fake_cluster import META, NS, FakeCluster, answer, failure

import oio
from oio import ObjectStorageApi
from oio.api.object_storage import ObjectStorageAPI
from oio.common import exceptions as exc
from oio.common.utils import cid_from_name

CID = cid_from_name("acct", "cont")


def fetch(api: ObjectStorageApi, name: str = "obj", **kwargs: object) -> bytes:
    _meta, stream = api.object_fetch("acct", "cont", name, **kwargs)
    return b"".join(stream)


# --- construction ---


def test_construction_makes_no_request_and_keeps_known_keywords(cluster: FakeCluster) -> None:
    cache: dict[str, object] = {}
    api = ObjectStorageApi(
        NS, endpoint=cluster.proxy.address, read_timeout="5", connection_timeout="", write_timeout="None",
        cache=cache, nonsense=1, tls=True,
    )  # fmt: skip
    assert api._global_kwargs == {"read_timeout": 5.0, "autocreate": True, "cache": cache, "tls": True}
    assert api.namespace == NS
    assert api._blob_client is None
    assert api.blob_client.http_pool is api.container.pool_manager
    assert api.proxy_client.endpoint == f"http://{cluster.proxy.address}"
    assert cluster.proxy.log == []


def test_lazy_export_and_deprecated_class() -> None:
    assert oio.ObjectStorageApi is ObjectStorageApi
    with pytest.warns(DeprecationWarning):
        assert isinstance(ObjectStorageAPI(NS, "127.0.0.1:1"), ObjectStorageApi)


# --- what reaches the proxy client ---


def test_keywords_reach_direct_request_untouched() -> None:
    api = ObjectStorageApi(NS, endpoint="127.0.0.1:1")
    headers = {"x-oio-req-id": "fixed"}
    resp = Mock(status=200, headers={})
    api.container._direct_request = Mock(return_value=(resp, {"properties": {}}))  # type: ignore[method-assign]
    api.container_show("acct", "cont", headers=headers)
    base = f"http://127.0.0.1:1/v3.0/{NS}/"
    api.container._direct_request.assert_called_once_with(
        "GET", base + "container/show", params={"acct": "acct", "ref": "cont"}, autocreate=True,
        headers=headers, reqid="fixed",
    )  # fmt: skip

    api.container._direct_request = Mock(return_value=(resp, {"objects": [{"name": "a"}]}))  # type: ignore[method-assign]
    listing = api.object_list("acct", "cont", limit=3, marker="m", headers=headers)
    assert listing["objects"] == [{"name": "a"}]
    api.container._direct_request.assert_called_once_with(
        "GET", base + "container/list",
        params={"acct": "acct", "ref": "cont", "max": 3, "marker": "m", "end_marker": None, "prefix": None,
                "delimiter": None, "properties": False},
        path=None, autocreate=True, headers=headers, reqid="fixed",
    )  # fmt: skip

    resp.headers = {META + "name": "a%20b", META + "color": "dark%20blue", META + "mime-type": "text/plain"}
    api.container._direct_request = Mock(return_value=(resp, {"properties": {}}))  # type: ignore[method-assign]
    meta = api.object_get_properties("acct", "cont", "a b", headers=headers)
    assert meta == {"name": "a b", "mime_type": "text/plain", "properties": {"color": "dark blue"}}
    api.container._direct_request.assert_called_once_with(
        "POST", base + "content/get_properties",
        params={"acct": "acct", "ref": "cont", "path": "a b", "version": None}, data=None,
        autocreate=True, headers=headers, reqid="fixed",
    )  # fmt: skip


def test_object_create_delegates_to_the_private_helper() -> None:
    api = ObjectStorageApi(NS, endpoint="127.0.0.1:1")
    api._object_create = Mock(return_value=([], 0, "", {}))  # type: ignore[method-assign]
    source = io.BytesIO(b"x")
    api.object_create("acct", "cont", file_or_path=source, obj_name="o", etag="E", properties={"a": "b"})
    args, kwargs = api._object_create.call_args
    assert args == ("acct", "cont", "o", source, {"mime_type": None, "etag": "E"})
    assert kwargs["properties"] == {"a": "b"}
    assert kwargs["append"] is False
    assert kwargs["reqid"].startswith("create-")
    assert kwargs["headers"]["x-oio-req-id"] == kwargs["reqid"]


# --- upload ---


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 4096, 5000])
def test_round_trip(api: ObjectStorageApi, cluster: FakeCluster, size: int) -> None:
    data = bytes(index * 7 % 251 for index in range(size))
    chunks, sent, checksum, meta = api.object_create_ext(
        "acct", "cont", data=data, obj_name="obj", mime_type="text/plain", properties={"k": "é %"}
    )
    metachunks = max(1, -(-size // 1024))
    assert (sent, checksum) == (size, md5(data).hexdigest())
    assert len(chunks) == 3 * metachunks
    assert len(cluster.proxy.requests("content/prepare2")) == metachunks
    versions = {entry[2].get("version") for entry in cluster.proxy.requests("content/prepare2")[1:]}
    assert versions <= {meta["version"]}
    assert meta["etag"] == checksum
    assert meta["container_id"] == CID
    assert meta["full_path"] == f"acct/cont/obj/{meta['version']}/{meta['id']}"
    assert (meta["ns"], meta["oio_version"], meta["chunk_size"]) == (NS, "4.2", 1024)
    assert fetch(api) == data
    shown = api.object_get_properties("acct", "cont", "obj")
    assert shown["properties"] == {"k": "é %"}
    assert (shown["mime_type"], shown["length"]) == ("text/plain", str(size))


def test_sources(api: ObjectStorageApi, tmp_path: object) -> None:
    path = tmp_path / "file.bin"  # type: ignore[operator]
    path.write_bytes(b"from disk" * 300)
    api.object_create("acct", "cont", file_or_path=str(path))
    api.object_create("acct", "cont", file_or_path=path, obj_name="pathlike")
    with path.open("rb") as file:
        api.object_create("acct", "cont", file_or_path=file, obj_name="file")
    api.object_create("acct", "cont", data="é", obj_name="text")
    api.object_create("acct", "cont", data=(b"ab", b"", b"c"), obj_name="iterable")
    api.object_create("acct", "cont", data=(part for part in (b"ab" * 800, b"c")), obj_name="generator")
    assert fetch(api, "file.bin") == fetch(api, "file") == fetch(api, "pathlike") == b"from disk" * 300
    assert fetch(api, "text") == "é".encode()
    assert fetch(api, "iterable") == b"abc"
    assert fetch(api, "generator") == b"ab" * 800 + b"c"


def test_bad_input_is_refused_before_any_request(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    with pytest.raises(exc.MissingData):
        api.object_create("acct", "cont", obj_name="obj")
    with pytest.raises(exc.FileNotFound):
        api.object_create("acct", "cont", file_or_path="/nowhere/file")
    with pytest.raises(exc.MissingName):
        api.object_create("acct", "cont", data=b"x")
    with pytest.raises(exc.MissingName):
        api.object_create("acct", "cont", file_or_path=io.BytesIO(b"x"))
    assert cluster.proxy.log == []


def test_no_autocreate(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    with pytest.raises(exc.NoSuchContainer) as caught:
        api.object_create("acct", "cont", data=b"x", obj_name="obj", autocreate=False)
    assert caught.value.args == ("Container 'cont' does not exist.", "No such user")


def test_container_properties_go_with_the_commit(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    wanted = {"properties": {"a": "b"}, "system": {"sys.m2.quota": "1"}}
    api.object_create("acct", "cont", data=b"x", obj_name="obj", container_properties=wanted)
    assert cluster.proxy.requests("content/create")[0][4]["container_properties"] == wanted


def test_given_id_version_and_policy(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    meta = api.object_create_ext(
        "acct", "cont", data=b"x", obj_name="obj", content_id="AB" * 16, version=42, policy="SINGLE"
    )[3]
    assert (meta["id"], meta["version"], meta["policy"]) == ("AB" * 16, "42", "SINGLE")
    sent = cluster.proxy.requests("content/create")[0][3]
    assert (sent[META + "id"], sent[META + "version"], sent[META + "policy"]) == ("AB" * 16, "42", "SINGLE")


def test_the_headers_of_a_caller_carry_no_object_from_one_call_to_the_next(api: ObjectStorageApi) -> None:
    headers: dict[str, str] = {}
    api.object_create("acct", "cont", data=b"x", obj_name="obj", headers=headers)
    assert not [name for name in headers if name.startswith(META)]
    assert "x-oio-req-id" in headers


def test_etag(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    api.object_create("acct", "cont", data=b"x", obj_name="obj", etag=md5(b"x").hexdigest().upper())
    before = cluster.chunk_count()
    with pytest.raises(exc.EtagMismatch):
        api.object_create("acct", "cont", data=b"y", obj_name="other", etag="0" * 32)
    assert cluster.chunk_count() == before
    assert not api.object_head("acct", "cont", "other")


@pytest.mark.parametrize(("answered", "raised"), [(failure(409, 421, "exists"), exc.Conflict)])
def test_a_refused_commit_deletes_the_chunks(
    api: ObjectStorageApi, cluster: FakeCluster, answered: object, raised: type[Exception]
) -> None:
    cluster.proxy.script["content/create"] = [answered]  # type: ignore[list-item]
    with pytest.raises(raised):
        api.object_create("acct", "cont", data=b"z" * 3000, obj_name="obj")
    assert cluster.chunk_count() == 0


def test_chunks_are_deleted_by_the_list_that_was_committed(api: ObjectStorageApi) -> None:
    api.container.content_create = Mock(side_effect=exc.DeadlineReached())  # type: ignore[method-assign]
    api._blob_client = Mock()
    api._blob_client.chunk_delete_many.return_value = []
    with pytest.raises(exc.DeadlineReached):
        api.object_create("acct", "cont", data=b"z", obj_name="obj")
    committed = api.container.content_create.call_args[1]["data"]["chunks"]
    assert api._blob_client.chunk_delete_many.call_args[0] == (committed, CID)


def test_a_commit_of_unknown_outcome_keeps_the_chunks(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    cluster.proxy.script["content/create"] = [failure(503, 503, "busy")]
    with pytest.raises(exc.ServiceBusy):
        api.object_create("acct", "cont", data=b"z", obj_name="obj")
    assert cluster.chunk_count() == 3


def test_a_failed_upload_deletes_what_was_written(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    for rawx in cluster.rawx[:2]:
        rawx.refuse["PUT"] = 507
    with pytest.raises(exc.ServiceBusy, match="quorum not reached"):
        api.object_create("acct", "cont", data=b"z", obj_name="obj")
    assert cluster.chunk_count() == 0
    assert cluster.proxy.requests("content/create") == []


def test_a_source_that_fails_leaves_nothing(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    def broken() -> Iterator[bytes]:
        yield b"a" * 2500
        raise KeyError("not an error of ours")

    with pytest.raises(KeyError):
        api.object_create("acct", "cont", data=broken(), obj_name="obj")
    assert cluster.chunk_count() == 0


def test_one_bad_rawx_is_tolerated(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    cluster.rawx[1].refuse["PUT"] = 500
    chunks, _size, _sum = api.object_create("acct", "cont", data=b"z" * 10, obj_name="obj")
    assert len(chunks) == 2
    assert fetch(api) == b"z" * 10


@pytest.mark.parametrize("size", [10, 2000])
def test_a_spare_rawx_takes_the_place_of_a_bad_one(size: int) -> None:
    cluster = FakeCluster(chunk_size=1024, rawx=4)
    try:
        api = ObjectStorageApi(NS, endpoint=cluster.proxy.address)
        cluster.rawx[1].refuse["PUT"] = 500
        chunks, _size, _sum = api.object_create("acct", "cont", data=b"z" * size, obj_name="obj")
        metachunks = -(-size // 1024)
        assert len(chunks) == 3 * metachunks
        assert len(cluster.rawx[3].chunks) == metachunks
        sent = cluster.proxy.requests("content/create")[0][4]
        assert {"__OIO_CHUNK__" + chunk["url"] for chunk in chunks} == set(sent["properties"])
        assert fetch(api) == b"z" * size
        for rawx in cluster.rawx[2:]:
            rawx.refuse["PUT"] = 500
        with pytest.raises(exc.ServiceBusy):
            api.object_create("acct", "cont", data=b"z" * size, obj_name="other")
        assert cluster.chunk_count() == 3 * metachunks
    finally:
        cluster.stop()


def test_append(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    api.object_create("acct", "cont", data=b"a" * 1500, obj_name="obj", policy="OTHER", append=True)
    _chunks, size, checksum = api.object_create("acct", "cont", data=b"b" * 600, obj_name="obj", append=True)
    assert (size, checksum) == (600, md5(b"b" * 600).hexdigest())
    assert cluster.proxy.requests("content/prepare2")[-1][4]["policy"] == "OTHER"
    assert cluster.proxy.requests("content/create")[-1][2]["append"] == "1"
    assert fetch(api) == b"a" * 1500 + b"b" * 600
    assert api.object_get_properties("acct", "cont", "obj")["hash"] == ""


def test_append_leaves_the_properties_alone(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    given: Any = {"obj_name": "obj", "append": True}
    api.object_create("acct", "cont", data=b"a", properties={"color": "red"}, **given)
    assert api.object_get_properties("acct", "cont", "obj")["properties"] == {"color": "red"}
    api.object_create("acct", "cont", data=b"b", properties={"color": "blue", "size": "L"}, **given)
    sent = cluster.proxy.requests("content/create")[-1][4]["properties"]
    assert sent
    assert all(key.startswith("__OIO_CHUNK__") for key in sent)


# --- timeouts ---


def test_a_read_timeout_bounds_the_whole_call(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    api.container_create("acct", "cont", read_timeout=5)
    told = int(cluster.proxy.log[-1][3]["x-oio-timeout"])
    assert 4_000_000 < told <= 4_950_000
    with pytest.raises(exc.DeadlineReached):
        api.container_show("acct", "cont", deadline=time.monotonic() - 1)


# --- reading ---


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(0, 9)], slice(0, 10)),
        ([(1020, 1030)], slice(1020, 1031)),
        ([(None, 5)], slice(2995, 3000)),
        ([(2990, None)], slice(2990, 3000)),
        ([(2990, 9999)], slice(2990, 3000)),
        ([(3000, 4000)], slice(0, 0)),
    ],
)
def test_ranges(api: ObjectStorageApi, ranges: list[tuple[int, int]], expected: slice) -> None:
    data = bytes(index % 251 for index in range(3000))
    api.object_create("acct", "cont", data=data, obj_name="obj")
    assert fetch(api, ranges=ranges) == data[expected]


def test_several_ranges_come_in_the_order_asked(api: ObjectStorageApi) -> None:
    data = bytes(index % 251 for index in range(3000))
    api.object_create("acct", "cont", data=data, obj_name="obj")
    assert fetch(api, ranges=[(2000, 2100), (0, 10)]) == data[2000:2101] + data[:11]


def test_other_copies_serve_when_one_is_missing(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    api.object_create("acct", "cont", data=b"d" * 2000, obj_name="obj")
    cluster.rawx[0].chunks.clear()
    cluster.rawx[1].refuse["GET"] = 500
    assert fetch(api) == b"d" * 2000
    cluster.rawx[2].chunks.clear()
    _meta, stream = api.object_fetch("acct", "cont", "obj")
    with pytest.raises(exc.ServiceUnavailable):
        next(stream)
    del cluster.rawx[1].refuse["GET"]
    cluster.rawx[1].chunks.clear()
    _meta, stream = api.object_fetch("acct", "cont", "obj")
    with pytest.raises(exc.UnrecoverableContent):
        next(stream)


def test_fetch_metadata_and_errors(api: ObjectStorageApi) -> None:
    api.object_create("acct", "cont", data=b"d", obj_name="a b%c", properties={"k": "v"})
    meta, _stream = api.object_fetch("acct", "cont", "a b%c")
    assert (meta["name"], meta["container_id"], meta["ns"]) == ("a b%c", CID, NS)
    assert meta["properties"] == {"k": "v"}
    meta, _stream = api.object_fetch("acct", "cont", "a b%c", properties=False)
    assert meta["properties"] == {}
    meta, stream = api.object_fetch("", "", "a b%c", cid=CID.lower() + ".1")
    assert meta["container_id"] == CID
    assert b"".join(stream) == b"d"
    with pytest.raises(exc.NoSuchObject):
        api.object_fetch("acct", "cont", "missing")
    with pytest.raises(exc.NoSuchContainer):
        api.object_fetch("acct", "missing", "missing")
    with pytest.raises(exc.OioException, match="Invalid cid"):
        api.object_fetch("acct", "cont", "obj", cid="123")


def test_locate_with_chunk_info(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    api.object_create("acct", "cont", data=b"d" * 1500, obj_name="obj")
    _meta, chunks = api.object_locate("acct", "cont", "obj")
    assert set(chunks[0]) == {"url", "real_url", "pos", "size", "hash", "score"}
    cluster.rawx[2].chunks.clear()
    _meta, stream = api.object_locate("acct", "cont", "obj", chunk_info=True)
    infos = list(stream)
    assert [info["pos"] for info in infos] == ["0"] * 3 + ["1"] * 3
    assert sorted(info.get("chunk_size", "-") for info in infos) == ["-", "-", "1024", "1024", "476", "476"]
    assert sum("error" in info for info in infos) == 2


def test_head(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    assert not api.object_head("acct", "cont", "obj")
    api.object_create("acct", "cont", data=b"d", obj_name="obj")
    assert api.object_head("acct", "cont", "obj")
    assert api.object_head("acct", "cont", "obj", trust_level=2)
    cluster.rawx[0].chunks.clear()
    assert not api.object_head("acct", "cont", "obj", trust_level=2)
    with pytest.raises(NotImplementedError):
        api.object_head("acct", "cont", "obj", trust_level=1)
    with pytest.raises(ValueError):
        api.object_head("acct", "cont", "obj", trust_level=9)


@pytest.mark.parametrize(
    "properties", [{"k": "v" * 200_000}, {f"k{index}": "v" for index in range(2048)}], ids=["large", "many"]
)
def test_large_properties_are_loaded_apart(api: ObjectStorageApi, properties: dict[str, str]) -> None:
    api.object_create("acct", "cont", data=b"d", obj_name="obj", properties=properties)
    meta, chunks = api.object_locate("acct", "cont", "obj")
    assert meta["properties"] == properties
    assert (meta["length"], len(chunks)) == ("1", 3)


def test_heads_refused_by_other_pools(api: ObjectStorageApi) -> None:
    api.object_create("acct", "cont", data=b"d", obj_name="obj", properties={"k": "v"})
    direct = api.container._direct_request

    def refuse_properties(method: str, url: str, **kwargs: object) -> object:
        if "locate" in url and kwargs["params"]["properties"]:  # type: ignore[index]
            raise exc.OioNetworkException("got more than 65536 bytes when reading header line")
        return direct(method, url, **kwargs)  # type: ignore[arg-type]

    api.container._direct_request = refuse_properties  # type: ignore[method-assign, assignment]
    meta, _chunks = api.object_locate("acct", "cont", "obj")
    assert meta["properties"] == {"k": "v"}


# --- listing, properties, deletion ---


def test_list_pages(api: ObjectStorageApi) -> None:
    for index in range(5):
        api.object_create("acct", "cont", data=b"", obj_name=f"é{index}")
    page = api.object_list("acct", "cont", limit=3)
    assert page["truncated"]
    assert page["next_marker"] == "é2"
    item = page["objects"][0]
    assert (item["chunk_method"], item["mime_type"]) == ("plain/nb_copy=3", "application/octet-stream")
    assert item["is_latest"] is True
    assert isinstance(item["version"], int)
    page = api.object_list("acct", "cont", limit=3, marker=page["next_marker"])
    assert [item["name"] for item in page["objects"]] == ["é3", "é4"]
    assert not page["truncated"]
    assert "next_marker" not in page
    with pytest.raises(exc.NoSuchContainer):
        api.object_list("acct", "missing")


def test_latest_version_of_a_page() -> None:
    api = ObjectStorageApi(NS, endpoint="127.0.0.1:1")
    body = {"objects": [{"name": "a", "version": 3}, {"name": "a", "version": 2}, {"name": "b", "version": "1"}]}
    api.container._direct_request = Mock(return_value=(Mock(headers={}), body))  # type: ignore[method-assign]
    listing = api.object_list("acct", "cont", versions=True)
    assert [item["is_latest"] for item in listing["objects"]] == [True, False, True]
    # The former page ended amid the versions of the first name.
    listing = api.object_list("acct", "cont", versions=True, marker="a", version_marker=4)
    assert [item["is_latest"] for item in listing["objects"]] == [False, False, True]


def test_properties(api: ObjectStorageApi) -> None:
    api.object_create("acct", "cont", data=b"d", obj_name="obj", properties={"a": "1"})
    assert api.object_set_properties("acct", "cont", "obj", {"b": "2"}) is None
    assert api.object_get_properties("acct", "cont", "obj")["properties"] == {"a": "1", "b": "2"}
    assert api.object_del_properties("acct", "cont", "obj", {"a": None}.keys()) is True
    api.object_set_properties("acct", "cont", "obj", {"c": "3"}, clear=True)
    assert api.object_get_properties("acct", "cont", "obj")["properties"] == {"c": "3"}
    assert api.object_del_properties("acct", "cont", "obj", []) is True
    assert api.object_get_properties("acct", "cont", "obj")["properties"] == {}
    with pytest.raises(exc.NoSuchObject):
        api.object_set_properties("acct", "cont", "missing", {"b": "2"})


def test_delete(api: ObjectStorageApi) -> None:
    api.object_create("acct", "cont", data=b"d", obj_name="obj")
    api.object_create("acct", "cont", data=b"d", obj_name="two")
    assert api.object_delete("acct", "cont", "obj") is True
    with pytest.raises(exc.NoSuchObject):
        api.object_delete("acct", "cont", "obj")
    assert api.object_delete_many("acct", "cont", ["obj", "two"]) == [("obj", False), ("two", True)]
    with pytest.raises(exc.NotFound):
        api.object_touch("acct", "cont", "obj")


def test_containers(api: ObjectStorageApi) -> None:
    assert api.container_create("acct", "cont", properties={"a": "1"}) is True
    assert api.container_create("acct", "cont") is False
    assert api.container_set_properties("acct", "cont", {"b": "2"}) == {}
    assert api.container_get_properties("acct", "cont")["properties"] == {"a": "1", "b": "2"}
    api.object_create("acct", "cont", data=b"d", obj_name="obj")
    with pytest.raises(exc.ContainerNotEmpty):
        api.container_delete("acct", "cont")
    api.object_delete("acct", "cont", "obj")
    assert api.container_delete("acct", "cont") is None
    with pytest.raises(exc.NoSuchContainer) as caught:
        api.container_delete("acct", "cont")
    assert not isinstance(caught.value, exc.ClientException)
    with pytest.raises(exc.NoSuchContainer, match="Container 'cont' does not exist"):
        api.container_get_properties(account="acct", container="cont")


# --- perfdata ---


def test_perfdata(cluster: FakeCluster) -> None:
    perfdata: dict[str, dict[str, float]] = {}
    api = ObjectStorageApi(NS, endpoint=cluster.proxy.address, perfdata=perfdata)
    api.object_create("acct", "cont", data=b"d" * 1500, obj_name="obj")
    assert perfdata["proxy"]["overall"] > 0
    assert perfdata["data_size"] == 1500  # type: ignore[comparison-overlap]
    assert perfdata["rawx"]["overall"] > 0
    assert {"connect.AVG", "upload.AVG", "upload.SD", "upload.RSD"} <= set(perfdata["rawx"])
    mine: dict[str, dict[str, float]] = {}
    _meta, stream = api.object_fetch("acct", "cont", "obj", perfdata=mine)
    assert "rawx" not in mine
    assert "ttfb" not in mine
    assert b"".join(stream) == b"d" * 1500
    assert mine["ttlb"] >= mine["ttfb"] > 0  # type: ignore[operator]
    assert [key for key in mine["rawx"] if key.startswith("download.http")]


def test_deprecated_names(api: ObjectStorageApi) -> None:
    api.object_create("acct", "cont", data=b"d", obj_name="obj", metadata={"a": "b"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning):
            api.object_show("acct", "cont", "obj")
    with pytest.warns(DeprecationWarning):
        assert api.object_show("acct", "cont", "obj")["properties"] == {"a": "b"}
    with pytest.warns(DeprecationWarning):
        assert len(api.object_analyze("acct", "cont", "obj")[1]) == 3
    with pytest.warns(DeprecationWarning):
        api.object_update("acct", "cont", "obj", {})
    with pytest.warns(DeprecationWarning):
        api.container_update("acct", "cont", {"c": "d"})
    assert api.container_get_properties("acct", "cont")["properties"] == {"c": "d"}


def test_fake_answers_are_json() -> None:
    assert answer([]).status == 200


# --- by id ---


def test_upload_by_container_id(api: ObjectStorageApi) -> None:
    api.container_create("acct", "cont")
    api.directory = Mock()
    api.directory.list.return_value = {"account": "acct", "name": "cont"}
    meta = api.object_create_ext("", "", data=b"x", obj_name="obj", cid=CID)[3]
    assert meta["full_path"].startswith("acct/cont/obj/")
    assert fetch(api) == b"x"
