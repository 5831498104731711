# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ecd gateway on a real cluster, as a service and as a WSGI application: both must behave the same."""

import http.client
import io
import random
import socket
from pathlib import Path

import pytest
from content_harness import Disk
from support import ACCOUNT, eventually

from oio.common.exceptions import NotFound, OioException
from oio.common.fullpath import encode_fullpath
from oio.common.utils import cid_from_name
from oio.content.content import Chunk
from oio.ecd.app import create_app

PREFIX = "x-oio-chunk-meta-"
MIB = 1 << 20
K, M = 6, 3


def through_http(cluster):
    host, _, port = cluster.services("ecd")[0].addr.rpartition(":")

    def ask(method, headers, body=None, path="/", chunked=True):
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        try:
            if body is not None and chunked:
                pieces = (body[i : i + 100_000] for i in range(0, len(body), 100_000))
                connection.request(method, path, pieces, headers, encode_chunked=True)
            else:
                connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, reply.read(), {name.lower(): value for name, value in reply.getheaders()}
        finally:
            connection.close()

    return ask


def through_wsgi(cluster):
    app = create_app({"namespace": cluster.namespace})

    def ask(method, headers, body=None, path="/", chunked=True):
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(body or b"")}
        environ.update({"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()})
        if body is not None and chunked:
            environ["HTTP_TRANSFER_ENCODING"] = "chunked"
        elif body is not None:
            environ["CONTENT_LENGTH"] = str(len(body))
        answer = {}

        def start_response(status, fields):
            answer["status"] = int(status.split()[0])
            answer["headers"] = {name.lower(): value for name, value in fields}

        pieces = app(environ, start_response)
        try:
            data = b"".join(pieces)
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
        return answer["status"], data, answer["headers"]

    return ask


@pytest.fixture(params=[through_http, through_wsgi], ids=["service", "wsgi"])
def ask(request, cluster):
    """Sends a request to the gateway; gives the status, the body and the headers of the answer."""
    return request.param(cluster)


def some_bytes(size):
    return random.Random(size).randbytes(size)


def locate(api, container, name):
    """Metadata of an object, and its chunks by metachunk, sorted by sub-position."""
    meta, chunks = api.object_locate(ACCOUNT, container, name)
    groups = {}
    for chunk in chunks:
        position, _, num = chunk["pos"].partition(".")
        groups.setdefault(int(position), []).append((int(num or 0), chunk))
    for group in groups.values():
        group.sort(key=lambda pair: pair[0])
    return meta, {position: [chunk for _, chunk in group] for position, group in groups.items()}


def read_headers(meta, chunks, **more):
    """Headers of a GET."""
    headers = {
        PREFIX + "content-chunk-method": meta["chunk_method"],
        PREFIX + "chunk-size": str(MIB),
        PREFIX + "content-chunksnb": str(len(chunks)),
    }
    for index, chunk in enumerate(chunks):
        if chunk is not None:
            headers[f"{PREFIX}chunk-{index}"] = chunk["real_url"]
    headers.update({name.replace("_", "-"): value for name, value in more.items()})
    return headers


def prepare(api, container, name, policy, size=1):
    """Ask for chunks, as clients of the gateway do; gives the metadata, the chunks, and the headers of a PUT."""
    meta, chunks = api.container.content_prepare(ACCOUNT, container, name, size=size, stgpol=policy)
    chunks.sort(key=lambda chunk: int(chunk["pos"].partition(".")[2] or 0))
    headers = {
        PREFIX + "content-id": meta["id"],
        PREFIX + "content-version": meta["version"],
        PREFIX + "content-path": name.replace(" ", "%20"),
        PREFIX + "content-chunk-method": meta["chunk_method"],
        PREFIX + "content-mime-type": "text/plain",
        PREFIX + "content-storage-policy": policy,
        PREFIX + "container-id": cid_from_name(ACCOUNT, container),
        PREFIX + "full-path": encode_fullpath(ACCOUNT, container, name, meta["version"], meta["id"]),
        PREFIX + "oio-version": "4.2",
        PREFIX + "content-chunksnb": str(len(chunks)),
        PREFIX + "chunk-pos": "0",
    }
    for index, chunk in enumerate(chunks):
        headers[f"{PREFIX}chunk-{index}"] = chunk["real_url"]
    return meta, chunks, headers


@pytest.fixture
def stored(api, container):
    """An erasure-coded object of one metachunk."""
    data = some_bytes(3 * MIB + 4321)
    api.object_create(ACCOUNT, container, obj_name="o", data=data, policy="EC")
    meta, groups = locate(api, container, "o")
    return data, meta, groups[0]


# -- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1 << 10, 10 << 10, 100 << 10, MIB, 10 * MIB])
def test_each_metachunk_can_be_read(ask, api, container, size):
    data = some_bytes(size)
    api.object_create(ACCOUNT, container, obj_name="o", data=data, policy="EC")
    meta, groups = locate(api, container, "o")
    found = b""
    for position in sorted(groups):
        status, body, headers = ask("GET", read_headers(meta, groups[position]))
        assert status == 200
        assert not body or "content-length" not in headers
        found += body
    assert found == data


def test_chunks_may_be_named_by_service(ask, stored):
    data, meta, chunks = stored
    named = [{**chunk, "real_url": chunk["url"]} for chunk in chunks]
    assert ask("GET", read_headers(meta, named))[:2] == (200, data)


def test_chunks_may_be_left_out(ask, stored):
    data, meta, chunks = stored
    for missing in ([0], [2, 5, 8], [0, 1, 2]):
        listed = [None if index in missing else chunk for index, chunk in enumerate(chunks)]
        assert ask("GET", read_headers(meta, listed))[:2] == (200, data)
    listed = [None if index in (0, 3, 4, 7) else chunk for index, chunk in enumerate(chunks)]
    assert ask("GET", read_headers(meta, listed))[0] == 500
    assert ask("GET", read_headers(meta, []))[0] == 500


def test_chunks_may_be_deleted(ask, api, stored):
    data, meta, chunks = stored
    for chunk in chunks[1:4]:
        api.blob_client.chunk_delete(chunk["url"])
    assert ask("GET", read_headers(meta, chunks))[:2] == (200, data)
    api.blob_client.chunk_delete(chunks[7]["url"])
    status, body, _headers = ask("GET", read_headers(meta, chunks))
    assert status == 500
    assert b"Cannot read" in body


def test_services_may_be_down(ask, stored):
    data, meta, chunks = stored
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nowhere = f"127.0.0.1:{unused.getsockname()[1]}"
    dead = [
        {**chunk, "real_url": f"http://{nowhere}/{chunk['url'].rpartition('/')[2]}"} if index < M else chunk
        for index, chunk in enumerate(chunks)
    ]
    assert ask("GET", read_headers(meta, dead))[:2] == (200, data)
    dead[5] = dead[0]
    assert ask("GET", read_headers(meta, dead))[0] == 500


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=1000000-2100000", slice(1_000_000, 2_100_001)),
        ("bytes=3000000-", slice(3_000_000, None)),
        ("bytes=-777", slice(-777, None)),
        ("bytes=5-9,100-200", slice(5, 10)),
        ("bytes=0-99999999", slice(None)),
        ("bytes=99999999-", slice(0, 0)),
        ("nonsense", slice(None)),
    ],
)
@pytest.mark.parametrize("policy", ["EC", "TWOCOPIES"])
def test_one_range_is_honoured_and_the_status_stays_200(ask, api, container, policy, value, part):
    data = some_bytes(3 * MIB + 4321 if policy == "EC" else MIB - 17)
    if policy != "EC" and part.start and part.start > len(data):
        part = slice(0, 0)
    api.object_create(ACCOUNT, container, obj_name="o", data=data, policy=policy)
    meta, groups = locate(api, container, "o")
    status, body, headers = ask("GET", read_headers(meta, groups[0], range=value))
    assert status == 200
    assert body == data[part]
    assert "content-range" not in headers


def test_replicated_chunks_can_be_read(ask, api, container):
    data = some_bytes(500_000)
    api.object_create(ACCOUNT, container, obj_name="o", data=data, policy="THREECOPIES")
    meta, groups = locate(api, container, "o")
    api.blob_client.chunk_delete(groups[0][0]["url"])
    assert ask("GET", read_headers(meta, groups[0]))[:2] == (200, data)
    for chunk in groups[0][1:]:
        api.blob_client.chunk_delete(chunk["url"])
    assert ask("GET", read_headers(meta, groups[0]))[0] == 500


def test_what_a_read_needs_is_named(ask, api, container, stored):
    _data, meta, chunks = stored
    for name in ("content-chunk-method", "chunk-size"):
        headers = read_headers(meta, chunks)
        del headers[PREFIX + name]
        status, body, _headers = ask("GET", headers)
        assert (status, body.decode().strip()) == (400, f"Missing header '{PREFIX}{name}'")
    headers = read_headers({"chunk_method": "plain/nb_copy=2"}, chunks[:2])
    del headers[PREFIX + "content-chunksnb"]
    status, body, _headers = ask("GET", headers)
    assert (status, body.decode().strip()) == (400, f"Missing header '{PREFIX}content-chunksnb'")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chunk-size", "-1"), ("chunk-size", "x"), ("chunk-0", "not a url"),
        ("chunk-1", "http://"), ("content-chunk-method", "ec/k=0"), ("content-chunk-method", "nonsense"),
    ],
)  # fmt: skip
def test_a_bad_header_is_named(ask, stored, name, value):
    _data, meta, chunks = stored
    status, body, _headers = ask("GET", {**read_headers(meta, chunks), PREFIX + name: value})
    assert status == 400
    assert PREFIX + name in body.decode()


def test_sources_that_get_lost_on_the_way_break_the_answer_off(cluster, api, container):
    """What was sent before is right, and nobody can take it for the whole."""
    data = some_bytes(10 * MIB)
    meta, chunks, headers = prepare(api, container, "o", "EC21")
    assert through_http(cluster)("PUT", headers, data)[0] == 200
    disk = Disk(cluster)
    for chunk in chunks[:2]:
        disk.corrupt(Chunk(chunk), 3 * MIB)
    read = read_headers(meta, chunks)
    host, _, port = cluster.services("ecd")[0].addr.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request("GET", "/", headers=read)
        reply = connection.getresponse()
        assert reply.status == 200
        with pytest.raises(http.client.IncompleteRead) as caught:
            reply.read()
        assert 0 < len(caught.value.partial) < len(data)
        assert data.startswith(caught.value.partial)
    finally:
        connection.close()
    with pytest.raises(OioException):
        through_wsgi(cluster)("GET", read)
    assert through_http(cluster)("GET", {**read, "range": "bytes=0-999"})[1] == data[:1000]


# -- writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 5])
def test_what_is_written_is_read_by_the_api(ask, api, container, size, chunked):
    data = some_bytes(size)
    meta, chunks, headers = prepare(api, container, "a b", "EC")
    assert ask("PUT", headers, data, chunked=chunked)[:2] == (200, b"OK")
    checksum = api.blob_client.chunk_head(chunks[0]["url"])["metachunk_hash"]
    for chunk in chunks:
        head = api.blob_client.chunk_head(chunk["url"], check_hash=True)
        assert (head["chunk_pos"], head["metachunk_size"]) == (chunk["pos"], str(size))
        assert (head["content_path"], head["metachunk_hash"]) == ("a b", checksum)
        chunk["size"], chunk["hash"] = size, checksum
    api.container.content_create(
        ACCOUNT, container, "a b", size=size, checksum=checksum, data={"chunks": chunks, "properties": {}},
        content_id=meta["id"], version=meta["version"], stgpol="EC", chunk_method=meta["chunk_method"],
        mime_type="text/plain",
    )  # fmt: skip
    _meta, stream = api.object_fetch(ACCOUNT, container, "a b")
    assert b"".join(stream) == data


def test_copies_get_the_position_that_is_told(ask, api, container):
    _meta, chunks, headers = prepare(api, container, "o", "TWOCOPIES")
    assert ask("PUT", headers, b"abc")[:2] == (200, b"OK")
    assert [api.blob_client.chunk_head(chunk["url"])["chunk_pos"] for chunk in chunks] == ["0", "0"]
    _meta, chunks, headers = prepare(api, container, "o", "TWOCOPIES")
    del headers[PREFIX + "chunk-pos"]
    assert ask("PUT", headers, b"abc")[:2] == (200, b"OK")
    assert [api.blob_client.chunk_head(chunk["url"])["chunk_pos"] for chunk in chunks] == ["0", "1"]


@pytest.mark.parametrize("policy", ["TWOCOPIES", "EC"])
@pytest.mark.parametrize("position", ["-1", "0.1", "x"])
def test_a_bad_position_is_named(ask, api, container, policy, position):
    _meta, _chunks, headers = prepare(api, container, "o", policy)
    status, body, _headers = ask("PUT", {**headers, PREFIX + "chunk-pos": position}, b"abc")
    assert (status, body.decode().strip()) == (400, f"Invalid header '{PREFIX}chunk-pos': '{position}'")


@pytest.mark.parametrize(
    "name",
    [
        "content-id", "content-version", "content-path", "content-chunk-method", "content-mime-type",
        "content-storage-policy", "container-id", "full-path", "oio-version", "chunk-pos",
    ],
)  # fmt: skip
def test_what_a_write_needs_is_named(ask, api, container, name):
    _meta, chunks, headers = prepare(api, container, "o", "EC")
    del headers[PREFIX + name]
    status, body, _headers = ask("PUT", headers, b"abc")
    assert (status, body.decode().strip()) == (400, f"Missing header '{PREFIX}{name}'")
    with pytest.raises(NotFound):
        api.blob_client.chunk_head(chunks[0]["url"])


def test_a_write_needs_a_quorum(ask, api, container):
    _meta, chunks, headers = prepare(api, container, "o", "EC")
    for index in (1, 4):
        del headers[f"{PREFIX}chunk-{index}"]
    assert ask("PUT", headers, b"abc")[:2] == (200, b"OK")
    _meta, chunks, headers = prepare(api, container, "o", "EC")
    for index in (1, 4, 8):
        del headers[f"{PREFIX}chunk-{index}"]
    status, body, _headers = ask("PUT", headers, b"abc")
    assert status == 503
    assert b"quorum" in body
    assert len(chunks) == K + M


@pytest.mark.parametrize(("policy", "expected"), [("EC", 503), ("TWOCOPIES", 500)])
def test_chunks_that_exist_are_not_replaced(ask, api, container, policy, expected):
    _meta, chunks, headers = prepare(api, container, "o", policy)
    assert ask("PUT", headers, b"first")[0] == 200
    before = api.blob_client.chunk_head(chunks[0]["url"])
    assert ask("PUT", headers, b"second")[0] == expected
    assert api.blob_client.chunk_head(chunks[0]["url"]) == before


def test_backblaze_is_refused_clearly(ask, api, container):
    _meta, _chunks, headers = prepare(api, container, "o", "EC")
    headers[PREFIX + "content-chunk-method"] = "backblaze/account_id=a,bucket_name=b"
    for method in ("PUT", "GET"):
        status, body, _headers = ask(method, headers, b"abc" if method == "PUT" else None)
        assert status == 500
        assert b"not supported" in body


def test_a_body_that_breaks_off_leaves_nothing(cluster, api, container):
    _meta, chunks, headers = prepare(api, container, "o", "EC")
    host, _, port = cluster.services("ecd")[0].addr.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        peer.sendall(f"PUT / HTTP/1.1\r\nHost: ecd\r\nContent-Length: 3000000\r\n{lines}\r\n".encode())
        peer.sendall(b"x" * 1_500_000)
    path = {
        service.service_id: Path(service.volume) for service in cluster.services("rawx")
    }  # fmt: skip

    def leftovers():
        found = []
        for chunk in chunks:
            host, _, chunk_id = chunk["url"].partition("://")[2].partition("/")
            found += list((path[host] / chunk_id[:3]).glob(f"{chunk_id}*"))
        return found

    eventually(lambda: not leftovers(), what="no file left")


# -- the rest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_forbidden(ask, method):
    assert ask(method, {})[0] == 403


def test_other_paths_do_not_exist(ask):
    assert ask("GET", {}, path="/other")[0] == 404
    assert ask("PUT", {}, b"x", path="/other")[0] == 404


def test_two_hundred_headers_are_accepted(ask, stored):
    data, meta, chunks = stored
    headers = read_headers(meta, chunks)
    headers.update({f"x-filler-{index}": "x" * 150 for index in range(200)})
    assert ask("GET", headers)[:2] == (200, data)


def test_counters(ask, stored):
    data, meta, chunks = stored
    assert ask("GET", read_headers(meta, chunks))[:2] == (200, data)
    status, body, headers = ask("GET", {}, path="/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert b'oio_ecd_requests_total{method="get"}' in body
    assert ask("GET", {}, path="/status")[0] == 200


def test_memory_stays_bounded(cluster, api, container):
    """One upload and one download of 96 MiB: a few segments are in memory, not the metachunk."""
    ask = through_http(cluster)
    data = some_bytes(MIB) * 96
    _meta, chunks, headers = prepare(api, container, "o", "EC")
    ask("GET", {}, path="/status")
    service = cluster.services("ecd")[0]

    def peak_kib():
        text = Path(f"/proc/{cluster.pids()[service.name]}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0])

    before = peak_kib()
    assert ask("PUT", headers, data)[:2] == (200, b"OK")
    assert ask("GET", read_headers({"chunk_method": headers[PREFIX + "content-chunk-method"]}, chunks))[1] == data
    assert peak_kib() - before < 64 * 1024
