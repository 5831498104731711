# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Uploads: what is accepted, what is refused, what is left on the disk."""

import hashlib
import os
import socket
import stat
import threading
import zlib

import blake3
import pytest
from rawx_harness import CHUNK, OTHER, PREFIX, cid, headers_for, read_reply, wait_for

from oio.common.blocksums import BlockSums
from oio.rawx import lzw

SIZES = (0, 1, 2, 3, 4, 32, 64, 128, 256, 512, 1024, 8192, 65536, 1 << 20, (1 << 20) + 1, 5 << 20)


def md5(data):
    return hashlib.md5(data).hexdigest().upper()


def sums_of(data, block_size=1 << 20):
    sums = BlockSums(block_size)
    sums.update(data)
    return sums.text()


def xattrs(path):
    return {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}


@pytest.mark.parametrize("plain", [False, True], ids=["chunked", "length"])
@pytest.mark.parametrize("size", SIZES)
def test_sizes(service, client, size, plain):
    data = os.urandom(size)
    reply = client.put(data, plain=plain)
    assert reply.status == 201
    assert reply.meta("chunk-hash") == md5(data)
    assert reply.meta("chunk-size") == str(size)
    assert reply.meta("oio-version") == "4.2"
    assert reply.headers["connection"] == "keep-alive"
    assert reply.headers["content-length"] == "0"
    assert "server" not in reply.headers
    again = client.put(b"other bytes", plain=plain)
    assert again.status == 409
    got = client.get()
    assert (got.status, got.body) == (200, data)
    assert got.meta("block-sums") == sums_of(data)
    if size:
        for first, last in ((0, 0), (0, size - 1), (max(0, size - 2), size - 1), (0, size + 9)):
            part = client.get(Range=f"bytes={first}-{last}")
            assert (part.status, part.body) == (206, data[first : last + 1])
            end = min(last, size - 1)
            assert part.headers["content-range"] == f"bytes {first}-{end}/{size}"
        assert client.get(Range=f"bytes={size}-{size}").status == 416
    assert client.head_chunk(x_oio_check_hash="True").status == 200
    assert client.delete().status == 204
    assert service.files() == []
    assert client.get().status == client.delete().status == client.head_chunk().status == 404


def test_attributes_and_layout(service, client):
    data = b"some bytes"
    reply = client.put(
        data, metachunk_hash="aa" * 16, metachunk_size="30", chunk_hash=md5(data).lower()
    )
    assert reply.status == 201
    path = service.root / CHUNK[:3] / CHUNK
    assert str(path) == service.path()
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 & ~_umask()
    assert xattrs(path) == {
        f"user.oio.content.fullpath:{CHUNK}":
            "acme/media/a%20b%2Fc%2Bd.txt/1700000000000001/0011AABB",
        "user.grid.metachunk.hash": "AA" * 16,
        "user.grid.metachunk.size": "30",
        "user.grid.chunk.hash": md5(data),
        "user.grid.chunk.size": "10",
        "user.grid.chunk.position": "0",
        "user.grid.content.chunk_method": "plain/nb_copy=3",
        "user.grid.content.storage_policy": "THREECOPIES",
        "user.grid.oio.version": "4.2",
        "user.oio.chunk.block_sums": sums_of(data),
    }  # fmt: skip


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(("width", "depth", "directory"), [
    (2, 3, "01/23/45"), (4, 1, "0123"), (0, 1, ""), (3, 0, ""), (1, 2, "0/1"),
])  # fmt: skip
def test_layout_options(start, width, depth, directory):
    service = start(hash_width=width, hash_depth=depth if width else 0)
    assert service.client.put(b"x").status == 201
    assert (service.root / directory / CHUNK).read_bytes() == b"x"


def test_lowercase_id_is_stored_in_uppercase(service, client):
    assert client.request("PUT", f"/{CHUNK.lower()}", headers_for(), body=b"x").status == 201
    assert service.files() == [CHUNK]
    assert client.get(CHUNK.lower()).meta("chunk-id") == CHUNK


@pytest.mark.parametrize("names", [
    ["chunk-hash"], ["chunk-id"], ["content-id"], ["content-version"], ["content-path"],
    ["container-id"], ["container-id", "content-path", "content-version", "content-id"],
])  # fmt: skip
def test_optional_headers(client, names):
    assert client.put(b"x", **dict.fromkeys(names)).status == 201


BAD_HEADERS = [
    {"content_storage_policy": None}, {"content_storage_policy": ""},
    {"content_chunk_method": None}, {"content_chunk_method": ""},
    {"chunk_id": OTHER}, {"chunk_pos": None}, {"chunk_pos": ""},
    {"metachunk_hash": "xx"}, {"metachunk_hash": "A" * 65},
    {"metachunk_size": "1k"}, {"metachunk_size": str(1 << 63)},
    {"chunk_hash": "0"}, {"chunk_hash": "xx"}, {"chunk_hash": "A" * 32}, {"chunk_hash": "A" * 64},
    {"chunk_size": "x"}, {"chunk_size": "4"}, {"chunk_size": "-1"},
    {"full_path": None}, {"full_path": ""},
    {"full_path": "acme/media/p/1/AA/BB"}, {"full_path": "acme/media/p/1"},
    {"full_path": "acme/media/p"},
    {"full_path": "acme2/media/a%20b%2Fc%2Bd.txt/1700000000000001/0011AABB"},
    {"full_path": "acme/media2/a%20b%2Fc%2Bd.txt/1700000000000001/0011AABB"},
    {"full_path": "acme/media/other/1700000000000001/0011AABB"},
    {"full_path": "acme/media/a%20b%2Fc%2Bd.txt/1700000000000002/0011AABB"},
    {"full_path": "acme/media/a%20b%2Fc%2Bd.txt/1700000000000001/0011AABC"},
    {"full_path": "acme/media/a%20b%2Fc%2Bd.txt/17x/0011AABB", "content_version": None},
    {"full_path": "acme/media/a%20b%2Fc%2Bd.txt//0011AABB", "content_version": None},
    {"full_path": "acme/media/a%20b%2Fc%2Bd.txt/1/ZZ", "content_version": None, "content_id": None},
    {"full_path": "acme/media/a%20b%2Fc%2Bd.txt/1/", "content_version": None, "content_id": None},
    {"full_path": "/media/p/1/AA"}, {"full_path": "acme//p/1/AA"}, {"full_path": "acme/media//1/AA"},
    {"full_path": "acme/media/%zz/1/AA"}, {"full_path": "a%2/media/p/1/AA"},
    {"container_id": "00" * 32}, {"content_path": "other"}, {"content_path": "%"},
    {"content_version": "01700000000000001"}, {"content_id": "AA"},
    {"block_sums": "x"}, {"block_sums": "1048576:"}, {"block_sums": "1048576:AAAAAAAAAAA"},
    {"content_chunk_method": "ec/algo=x,k=2,m=1"},
    {"content_chunk_method": "ec/algo=x,k=2,m=1", "metachunk_size": "3"},
    {"content_chunk_method": "ec/algo=x,k=2,m=1", "metachunk_hash": "AA"},
]  # fmt: skip


@pytest.mark.parametrize("changes", BAD_HEADERS, ids=str)
def test_bad_headers(service, client, changes):
    assert client.put(b"xyz", **changes).status == 400
    assert service.files() == []
    assert service.events == []


@pytest.mark.parametrize(("trailers", "status"), [
    ({"chunk-hash": "0"}, 400), ({"chunk-hash": "xx"}, 400), ({"chunk-hash": "A" * 32}, 400),
    ({"chunk-hash": md5(b"xyz").lower()}, 201), ({"chunk-size": "3"}, 201),
    ({"chunk-size": "4"}, 400), ({"chunk-size": "x"}, 400),
    ({"metachunk-hash": "g"}, 400), ({"metachunk-size": "g"}, 400),
    ({"metachunk-hash": "ab", "metachunk-size": "7"}, 201),
    ({"block-sums": sums_of(b"xyz")}, 201), ({"block-sums": sums_of(b"xyz", 2)}, 201),
    ({"block-sums": sums_of(b"xyz"), "chunk-hash": "AB" * 32}, 201),
    ({"block-sums": sums_of(b"xyy")}, 400), ({"block-sums": sums_of(b"xyz" * 700000)}, 400),
    ({"block-sums": "nonsense"}, 400),
    ({"chunk-hash": blake3.blake3(b"xyz").hexdigest()}, 201),
    ({"chunk-hash": blake3.blake3(b"xyy").hexdigest()}, 400),
])  # fmt: skip
@pytest.mark.parametrize("announced", ["one", "many", "no"])
def test_trailers(service, client, trailers, status, announced):
    trailers = {PREFIX + name: value for name, value in trailers.items()}
    headers = {}
    if announced == "one":
        headers["Trailer"] = ", ".join(trailers)
    elif announced == "many":
        headers = {("Trailer" if i % 2 else "TRAILER"): name for i, name in enumerate(trailers)}
    reply = client.put(b"xyz", headers=headers, trailers=trailers)
    assert reply.status == status
    assert service.files() == ([CHUNK] if status == 201 else [])
    if status == 201:
        got = client.get()
        assert got.body == b"xyz"
        for name, value in trailers.items():
            assert got.headers[name] == (value if "sums" in name else value.upper())


def test_trailers_win_over_headers(client):
    data = b"xyz"
    trailers = {PREFIX + "metachunk-size": "3", PREFIX + "metachunk-hash": "bb"}
    reply = client.put(
        data, trailers=trailers, metachunk_size="2", metachunk_hash="aa",
        content_chunk_method="ec/algo=x,k=2,m=1",
    )  # fmt: skip
    assert reply.status == 201
    got = client.get()
    assert (got.meta("metachunk-size"), got.meta("metachunk-hash")) == ("3", "BB")


def test_block_sums_in_a_header_replace_the_hash(service, client):
    data = os.urandom(3 << 20)
    reply = client.put(data, block_sums=sums_of(data), chunk_hash="AB" * 16)
    assert (reply.status, reply.meta("chunk-hash")) == (201, "AB" * 16)
    assert client.put(data, OTHER, block_sums=sums_of(data)).meta("chunk-hash") == md5(data)
    bad = bytearray(data)
    bad[2 << 20] ^= 1
    third = "AB" * 32
    assert client.put(bytes(bad), third, block_sums=sums_of(data)).status == 400
    assert third not in service.files()


def test_announced_block_sums_must_come(service, client):
    reply = client.put(b"xyz", headers={"Trailer": PREFIX + "block-sums"})
    assert reply.status == 400
    assert service.files() == []


def test_blake3_hash_without_block_sums(client):
    data = os.urandom(100000)
    assert client.put(data, chunk_hash=blake3.blake3(data).hexdigest()).status == 201
    assert client.head_chunk(x_oio_check_hash="True").status == 200


def test_a_pending_upload_conflicts(service, client):
    with socket.create_connection((client.host, client.port)) as sock:
        sock.sendall(client.head("PUT", f"/{CHUNK}", headers_for(), chunks=[]) + b"3\r\nabc\r\n")
        wait_for(lambda: service.files() == [CHUNK + ".pending"])
        assert client.put(b"other").status == 409
        assert client.get().status == 404
        sock.sendall(b"0\r\n\r\n")
        assert read_reply(sock).status == 201
    assert client.get().body == b"abc"
    assert service.files() == [CHUNK]


def test_the_leftover_of_a_crash_does_not_block_its_id(service, client):
    path = service.path() + ".pending"
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as leftover:
        leftover.write(b"half a chu")
    assert client.put(b"whole").status == 201
    assert service.files() == [CHUNK]


@pytest.mark.parametrize("sent", [b"3\r\nab", b"3\r\nabc\r\n", b"3\r\nabc\r\nzz\r\n", b"3\r\nabcd\r\n"])
def test_broken_body(service, client, sent):
    with socket.create_connection((client.host, client.port)) as sock:
        sock.sendall(client.head("PUT", f"/{CHUNK}", headers_for(), chunks=[]) + sent)
        sock.shutdown(socket.SHUT_WR)
        assert read_reply(sock).status == 500
    assert service.files() == []
    assert service.events == []
    assert client.put(b"retry").status == 201


def test_truncated_content_length(service, client):
    with socket.create_connection((client.host, client.port)) as sock:
        sock.sendall(client.head("PUT", f"/{CHUNK}", headers_for(), body=b"12345") + b"123")
        sock.shutdown(socket.SHUT_WR)
        assert read_reply(sock).status == 500
    assert service.files() == []


def test_a_client_too_slow_is_cut(start):
    service = start(timeout_read_request_s=1)
    client = service.client
    with socket.create_connection((client.host, client.port)) as sock:
        sock.sendall(client.head("PUT", f"/{CHUNK}", headers_for(), chunks=[]) + b"3\r\nab")
        assert read_reply(sock).status == 500
    assert service.files() == []


def test_expect_continue(client):
    with socket.create_connection((client.host, client.port)) as sock:
        headers = {**headers_for(), "Expect": "100-continue"}
        sock.sendall(client.head("PUT", f"/{CHUNK}", headers, body=b"abc"))
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"abc")
        assert read_reply(sock).status == 201
    with socket.create_connection((client.host, client.port)) as sock:
        sock.sendall(client.head("PUT", f"/{CHUNK}", headers, body=b"abc"))
        assert read_reply(sock).status == 409


def test_a_refused_upload_keeps_the_connection(client):
    with socket.create_connection((client.host, client.port)) as sock:
        for headers, status in ((headers_for(chunk_pos=None), 400), (headers_for(), 201),
                                (headers_for(), 409)):  # fmt: skip
            sock.sendall(client.head("PUT", f"/{CHUNK}", headers, body=b"abc") + b"abc")
            assert read_reply(sock).status == status


def test_a_disk_error_frees_the_space_and_bounds_what_is_read(service, client, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("oio.rawx.store.Upload.write", full)
    size = 200 << 20
    with socket.create_connection((client.host, client.port), timeout=20) as sock:
        head = "\r\n".join(f"{k}: {v}" for k, v in headers_for().items())
        sock.sendall(
            f"PUT /{CHUNK} HTTP/1.1\r\nHost: {client.address}\r\n{head}\r\n"
            f"Content-Length: {size}\r\n\r\n".encode()
        )
        piece = bytes(1 << 20)
        for _ in range(6):
            sock.sendall(piece)
        reply = read_reply(sock)
    assert (reply.status, reply.headers["connection"]) == (500, "close")
    assert service.files() == []
    assert client.put(b"x").status == 500  # a small one keeps its connection and its status


def test_concurrent_uploads_of_one_id(service, client):
    statuses, barrier = [], threading.Barrier(8)

    def upload(number):
        barrier.wait()
        statuses.append(client.put(b"%d" % number * 1000).status)

    threads = [threading.Thread(target=upload, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [409] * 7
    assert service.files() == [CHUNK]
    assert len(set(client.get().body)) == 1


@pytest.mark.parametrize("text", [
    "with space", "plus+equal=percent%", "slash/back\\slash", "accent é", "comma,{brace}",
    "cr\rlf\ntab\t", "".join(map(chr, range(1, 32))), "%41%", "日本",
])  # fmt: skip
def test_paths_survive(client, text):
    from urllib.parse import quote

    encoded = quote(text, safe="")
    changes = {"full_path": f"acme/media/{encoded}/1/AA", "content_version": "1",
               "content_id": "aa", "content_path": quote(text)}  # fmt: skip
    assert client.put(b"x", **changes).status == 201
    got = client.get()
    assert got.meta("content-path") == encoded
    assert got.meta("full-path") == f"acme/media/{encoded}/1/AA"
    assert client.copy(**changes).status == 201
    assert client.get(OTHER).meta("content-path") == encoded


def test_raw_bytes_in_headers_survive(client):
    assert client.put(b"x", content_storage_policy="é\xff").status == 201
    assert client.get().meta("content-storage-policy") == "é\xff"


def test_a_long_path(client):
    path = "%C3%A9" * 400  # 2400 bytes, more than the original could read back
    fullpath = f"acme/media/{path}/1/AA"
    changes = {"full_path": fullpath, "content_path": None, "content_version": None, "content_id": None}
    assert client.put(b"x", **changes).status == 201
    assert client.get().meta("full-path") == fullpath
    assert client.delete().status == 204


EXPANDERS = {
    "zlib": zlib.decompress,
    "deflate": lambda stored: zlib.decompress(stored, -15),
    "lzw": lambda stored: b"".join(lzw.decompress([stored], 1 << 16)),
}


@pytest.mark.parametrize("name", EXPANDERS)
def test_compression(start, name):
    service = start(compression=name)
    client = service.client
    data = b"compressible " * 200000
    reply = client.put(data, chunk_size=str(len(data)))
    assert (reply.status, reply.meta("chunk-hash")) == (201, md5(data))
    path = service.path()
    with open(path, "rb") as stream:
        stored = stream.read()
    assert EXPANDERS[name](stored) == data
    assert xattrs(path)["user.grid.compression"] == name
    got = client.get()
    assert (got.status, got.body) == (200, data)
    assert got.headers["content-length"] == str(len(data))
    for first, last in ((0, 0), (5, 1500000), (1048575, 1048576), (2599999, 2599999)):
        part = client.get(Range=f"bytes={first}-{last}")
        assert (part.status, part.body) == (206, data[first : last + 1])
    first_only = client.get(Range="bytes=2000000-2000003,0-1")
    assert (first_only.status, first_only.body) == (206, data[2000000:2000004])
    assert client.head_chunk(x_oio_check_hash="on").status == 200
    head = client.head_chunk()
    assert head.headers["content-length"] == str(len(data))
    assert client.put(b"", OTHER).status == 201
    assert client.get(OTHER).body == b""
    middle = len(stored) // 2
    with open(path, "r+b") as stream:
        stream.seek(middle)
        stream.write(bytes([stored[middle] ^ 0xFF]) * 8)
    assert client.head_chunk(x_oio_check_hash="on").status == 412
    os.setxattr(path, "user.grid.compression", b"unknown")
    assert client.get().status == 500
    assert client.head_chunk(x_oio_check_hash="on").status == 500


def test_preallocation_leaves_no_trace(start):
    service = start(fallocate=True)
    for plain, chunk_id in ((False, CHUNK), (True, OTHER)):
        data = os.urandom(100000)
        assert service.client.put(data, chunk_id, plain=plain).status == 201
        stats = os.stat(service.path(chunk_id))
        assert stats.st_size == 100000
        assert stats.st_blocks * 512 < 200000
        assert service.client.get(chunk_id).body == data


def test_uncached(start):
    service = start(fadvise_upload="nocache", fadvise_download="nocache")
    data = os.urandom(3 << 20)
    assert service.client.put(data).status == 201
    assert service.client.get().body == data
    assert service.client.get(Range="bytes=7-9").body == data[7:10]
    cached = start(fadvise_upload="cache", fadvise_download="cache", open_nonblock=True)
    assert cached.client.put(data).status == 201
    assert cached.client.get().body == data


def test_events(service, client):
    client.put(b"x", headers={"X-oio-req-id": "REQ-77"})
    (kind, meta, reqid, whole), = service.events
    assert (kind, reqid, whole) == ("storage.chunk.new", "REQ-77", True)
    assert meta.container_id == cid("acme", "media")
    assert (meta.content_path, meta.content_version, meta.content_id) == (
        "a b/c+d.txt", "1700000000000001", "0011AABB")  # fmt: skip


def test_a_name_that_the_file_system_cannot_hold_is_refused(service, client):
    path = f"acme/media/{'x' * 5000}/1700000000000001/0011AABB"
    reply = client.put(b"hello", full_path=path, content_path=None, content_version=None, content_id=None,
                       container_id=None)  # fmt: skip
    if reply.status == 201:
        pytest.skip("attributes of a file may be larger here")
    assert reply.status == 400
    assert service.files() == []
