# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""BlobClient against fake rawx."""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import md5
from typing import Any

import pytest
from fake_cluster import NS, FakeCluster
from support import stop_for_good

from oio.blob.client import BlobClient, ChunkStream, extract_headers_meta
from oio.common import exceptions as exc
from oio.common.fullpath import encode_fullpath
from oio.http.server import Request, Response, Server

CHUNK_ID = "AB" * 32
OTHER_ID = "CD" * 32


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.stop()


@pytest.fixture
def blob(cluster: FakeCluster) -> BlobClient:
    return BlobClient({"namespace": NS}, endpoint=cluster.proxy.address)


def url_of(cluster: FakeCluster, index: int = 0, chunk_id: str = CHUNK_ID) -> str:
    return f"http://{cluster.rawx[index].address}/{chunk_id}"


def meta_of(path: str = "o b", **more: Any) -> dict[str, Any]:
    return {
        "chunk_pos": "0",
        "chunk_method": "plain/nb_copy=3",
        "chunk_hash": None,
        "id": "EF" * 16,
        "version": "7",
        "content_path": path,
        "policy": "THREE",
        "container_id": "12" * 32,
        "full_path": encode_fullpath("a", "c", path, 7, "EF" * 16),
        "oio_version": "4.2",
        **more,
    }


def test_put_get_head_delete(blob: BlobClient, cluster: FakeCluster) -> None:
    url = url_of(cluster)
    data = b"some data" * 1000
    size, checksum = blob.chunk_put(url, meta_of(), data)
    assert (size, str(checksum).lower()) == (len(data), md5(data).hexdigest())
    with pytest.raises(exc.Conflict):
        blob.chunk_put(url, meta_of(), data)
    meta, stream = blob.chunk_get(url)
    assert b"".join(stream) == data
    assert meta["chunk_size"] == str(len(data))
    assert meta["content_path"] == "o b"
    assert meta["full_path"] == "a/c/o%20b/7/" + "EF" * 16
    assert meta["chunk_id"] == CHUNK_ID
    head = blob.chunk_head(url, check_hash=True)
    assert (head["chunk_hash"], head["content_version"]) == (md5(data).hexdigest().upper(), "7")
    assert blob.chunk_head(url, xattr=False) == {}
    assert blob.chunk_delete(url).status == 204
    for method in (blob.chunk_get, blob.chunk_head, blob.chunk_delete):
        with pytest.raises(exc.NotFound):
            method(url)


def test_stream_reads_like_a_file(blob: BlobClient, cluster: FakeCluster) -> None:
    blob.chunk_put(url_of(cluster), meta_of(), iter([b"0123", b"456789"]))
    _meta, stream = blob.chunk_get(url_of(cluster), headers={"Range": "bytes=2-7"})
    assert (stream.read(3), stream.read(), stream.read()) == (b"234", b"567", b"")
    stream.close()


def test_stream_yields_every_block() -> None:
    stream = ChunkStream(iter([b"a", b"", b"b"]))
    assert list(stream) == [b"a", b"b"]


def test_missing_attributes(blob: BlobClient, cluster: FakeCluster) -> None:
    blob.chunk_put(url_of(cluster), meta_of(), b"x")
    del cluster.rawx[0].chunks[CHUNK_ID][1]["x-oio-chunk-meta-full-path"]
    with pytest.raises(exc.FaultyChunk) as caught:
        blob.chunk_get(url_of(cluster))
    assert [str(arg) for arg in caught.value.args] == ["full_path"]
    meta, _stream = blob.chunk_get(url_of(cluster), check_headers=False)
    assert "full_path" not in meta


def test_head_errors(blob: BlobClient, cluster: FakeCluster) -> None:
    for status, expected in ((412, exc.ClientPreconditionFailed), (500, exc.ClientException)):
        cluster.rawx[0].refuse["HEAD"] = status
        with pytest.raises(expected) as caught:
            blob.chunk_head(url_of(cluster))
        assert str(caught.value).startswith(f"n/a (HTTP {status}) (STATUS ")
    stop_for_good(cluster.rawx[0].server)
    with pytest.raises(exc.OioNetworkException):
        blob.chunk_head(url_of(cluster))


def test_delete_many(blob: BlobClient, cluster: FakeCluster) -> None:
    urls = [url_of(cluster, index) for index in range(3)]
    for url in urls:
        blob.chunk_put(url, meta_of(), b"x")
    cluster.rawx[1].chunks.clear()
    stop_for_good(cluster.rawx[2].server)
    results = blob.chunk_delete_many([{"url": url} for url in urls], cid="12" * 32)
    by_url = {result.chunk["url"]: getattr(result, "status", None) for result in results}
    assert by_url == {urls[0]: 204, urls[1]: 404, urls[2]: None}
    assert isinstance(next(result for result in results if not hasattr(result, "status")), Exception)
    assert blob.chunk_delete_many([]) == []


def test_service_ids_are_resolved(blob: BlobClient, cluster: FakeCluster) -> None:
    blob.chunk_put(url_of(cluster, 1), meta_of(), b"x")
    url = f"http://rawx-1/{CHUNK_ID}"
    assert blob.resolve_url(url) == url_of(cluster, 1)
    assert blob.chunk_head(url)["chunk_size"] == "1"
    assert len(cluster.proxy.requests("conscience/resolve")) == 1
    chunk = {"url": f"http://rawx-unknown/{CHUNK_ID}", "real_url": url_of(cluster, 1)}
    assert blob.chunk_delete_many([chunk])[0].status == 204
    result = blob.chunk_delete_many([{"url": f"http://nobody/{CHUNK_ID}"}])[0]
    assert isinstance(result, exc.ServiceBusy)


def test_copy(blob: BlobClient, cluster: FakeCluster) -> None:
    data = b"x" * 5000
    blob.chunk_put(url_of(cluster), meta_of(), data)
    target = url_of(cluster, 1, OTHER_ID)
    fullpath = encode_fullpath("a", "c", "new", 8, "EF" * 16)
    blob.chunk_copy(
        url_of(cluster), target, fullpath=fullpath, cid="34" * 32, path="new", version=8, content_id="EF" * 16
    )
    head = blob.chunk_head(target)
    assert (head["full_path"], head["content_path"], head["content_version"]) == (fullpath, "new", "8")
    assert (head["container_id"], head["oio_version"], head["content_policy"]) == ("34" * 32, "4.2", "THREE")
    assert cluster.rawx[1].chunks[OTHER_ID][0] == data


def test_a_bad_copy_is_deleted(blob: BlobClient, cluster: FakeCluster) -> None:
    blob.chunk_put(url_of(cluster), meta_of(), b"x" * 10)
    cluster.rawx[0].chunks[CHUNK_ID][1]["x-oio-chunk-meta-chunk-hash"] = "00" * 16
    cluster.rawx[0].chunks[CHUNK_ID][1].pop("x-oio-chunk-meta-block-sums", None)
    target = url_of(cluster, 1, OTHER_ID)
    with pytest.raises(exc.ChunkException):
        blob.chunk_copy(url_of(cluster), target)
    assert cluster.rawx[1].chunks == {}


def test_data_must_have_the_announced_hash(blob: BlobClient, cluster: FakeCluster) -> None:
    url, right = url_of(cluster), md5(b"data").hexdigest()
    for announced in ("00" * 16, md5(b"other").hexdigest().upper()):
        with pytest.raises(exc.ServiceBusy, match=right):
            blob.chunk_put(url, meta_of(chunk_hash=announced), b"data")
        assert cluster.rawx[0].chunks == {}
    assert blob.chunk_put(url, meta_of(chunk_hash=right.upper()), b"data") == (4, right)
    with pytest.raises(exc.Conflict):
        blob.chunk_put(url, meta_of(chunk_hash="00" * 16), b"data")
    assert cluster.rawx[0].chunks[CHUNK_ID][0] == b"data"


def test_link_of_a_url_without_scheme(blob: BlobClient, cluster: FakeCluster) -> None:
    blob.chunk_put(url_of(cluster), meta_of(), b"x")
    fullpath = encode_fullpath("a", "c", "new", 8, "EF" * 16)
    _resp, link = blob.chunk_link(url_of(cluster).removeprefix("http://"), OTHER_ID, fullpath)
    assert link == url_of(cluster, 0, OTHER_ID)


def test_link(blob: BlobClient, cluster: FakeCluster) -> None:
    blob.chunk_put(url_of(cluster), meta_of(), b"x")
    fullpath = encode_fullpath("a", "c", "new", 8, "EF" * 16)
    resp, link = blob.chunk_link(url_of(cluster), OTHER_ID, fullpath)
    assert (resp.status, link) == (201, url_of(cluster, 0, OTHER_ID))
    _resp, link = blob.chunk_link(url_of(cluster), None, fullpath)
    assert len(link) == len(url_of(cluster))
    assert link[:-60] == url_of(cluster)[:-60]
    assert link != url_of(cluster)
    with pytest.raises(exc.ChunkException) as caught:
        blob.chunk_link(url_of(cluster), OTHER_ID, fullpath)
    assert caught.value.args == (409,)


def test_every_request_carries_an_id(blob: BlobClient, cluster: FakeCluster) -> None:
    seen: list[str | None] = []

    def listen(server: Server) -> None:
        handle = server.handler

        def noted(req: Request) -> Response:
            seen.append(req.headers.get("x-oio-req-id"))
            return handle(req)

        server.handler = noted

    for rawx in cluster.rawx:
        listen(rawx.server)
    url, other = url_of(cluster), url_of(cluster, 1, OTHER_ID)
    fullpath = encode_fullpath("a", "c", "new", 8, "EF" * 16)

    def all_calls(**kwargs: Any) -> set[str | None]:
        seen.clear()
        blob.chunk_put(url, meta_of(), b"x", **kwargs)
        blob.chunk_get(url, **kwargs)[1].read()
        blob.chunk_head(url, **kwargs)
        blob.chunk_copy(url, other, **kwargs)
        blob.chunk_delete_many([{"url": other}], **kwargs)
        blob.chunk_link(url, OTHER_ID, fullpath, **kwargs)
        blob.chunk_delete(url, **kwargs)
        blob.chunk_delete(url_of(cluster, 0, OTHER_ID), **kwargs)
        assert len(seen) == 9
        return set(seen)

    generated = all_calls()
    assert None not in generated and len(generated) == 8, "a copy reads and writes under one id"
    assert all_calls(reqid="given") == {"given"}
    assert all_calls(headers={"X-oio-req-id": "in-headers"}) == {"in-headers"}


def test_a_url_may_lack_its_scheme(blob: BlobClient, cluster: FakeCluster) -> None:
    blob.chunk_put(url_of(cluster), meta_of(), b"x")
    assert blob.resolve_url(f"{cluster.rawx[0].address}/{CHUNK_ID}") == url_of(cluster)
    assert blob.resolve_url(f"rawx-0/{CHUNK_ID}") == url_of(cluster)
    assert blob.resolve_url(f"https://127.0.0.1:1/{CHUNK_ID}") == f"https://127.0.0.1:1/{CHUNK_ID}"


def test_perfdata(blob: BlobClient, cluster: FakeCluster) -> None:
    blob.chunk_put(url_of(cluster), meta_of(), b"x")
    perfdata: dict[str, Any] = {}
    blob.chunk_head(url_of(cluster), perfdata=perfdata)
    assert perfdata["rawx"]["overall"] > 0


@pytest.mark.parametrize("zone", ["GMT", "CET", "EST", "-03"])
def test_dates_are_local(zone: str) -> None:
    """Rawx tell their local time; the name of its zone says little (contract: rawx GET, Last-Modified)."""
    headers = {
        "last-modified": f"Tue, 14 Nov 2023 17:13:20 {zone}", "x-oio-chunk-meta-full-path": "a%20b"
    }  # fmt: skip
    meta = extract_headers_meta(headers, check=False)
    local = time.mktime((2023, 11, 14, 17, 13, 20, 0, 0, -1))
    assert meta == {"chunk_mtime": local, "full_path": "a%20b"}
    assert extract_headers_meta({"last-modified": "yesterday"}, check=False) == {}
