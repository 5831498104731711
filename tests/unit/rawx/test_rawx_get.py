# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Reading, checking, linking and removing chunks."""

import errno
import os
import time

import pytest
from rawx_harness import CHUNK, OTHER, PREFIX, cid, open_files, wait_for

from oio.common.blocksums import BlockSums
from oio.rawx.ranges import Unsatisfiable, parse

MIB = 1 << 20
LEAN = {"x-oio-chunk-attributes": "block-sums"}
LEGACY = {
    "user.grid.chunk.id": CHUNK,
    "user.grid.content.container": cid("acme", "media"),
    "user.grid.content.path": "a b/c+d.txt",
    "user.grid.content.version": "1700000000000001",
    "user.grid.content.id": "0011AABB",
}


def make_legacy(service):
    """Turn the chunk into one of the older format."""
    path = service.path()
    os.removexattr(path, f"user.oio.content.fullpath:{CHUNK}")
    os.removexattr(path, "user.grid.oio.version")
    os.removexattr(path, "user.oio.chunk.block_sums")
    for name, value in LEGACY.items():
        os.setxattr(path, name, value.encode())
    return path


def overwrite(path, offset, data):
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def metas(reply, *without):
    skipped = {PREFIX + name for name in without} | {"date"}
    return {name: value for name, value in reply.headers.items() if name not in skipped}


@pytest.mark.parametrize(("header", "expected"), [
    (None, None), ("", None), ("bytes=", None), ("bytes=-", None), ("bytes=a-b", None),
    ("bytes=5-2", None), ("Bytes=0-1", None), ("lines=0-1", None), ("bytes=0-None", None),
    ("bytes=1-99999999999999999999", None), ("bytes=+1-2", None), ("bytes= 0 - 1", None),
    ("bytes=0-0", (0, 0)), ("bytes=2-5", (2, 5)), ("bytes=9-9", (9, 9)), ("bytes=0-99", (0, 9)),
    (f"bytes=2-{2**63 - 1}", (2, 9)), (f"bytes=2-{2**63}", None),
    # Open ends and suffixes are ignored, what follows the first range too (contract: rawx GET).
    ("bytes=2-", None), ("bytes=10-", None), ("bytes=-3", None), ("bytes=-0", None),
    ("bytes=0-1,4-5", (0, 1)), ("bytes=0-1,5-2", (0, 1)), ("bytes=0-1, x", (0, 1)),
    ("bytes=0-" + "9" * 9000, None), ("bytes=" + "9" * 9000 + "-1", None),
    ("bytes=000000000000000000000002-05", (2, 5)), ("bytes=0-1x", (0, 1)),
    ("bytes=,0-1", None), ("bytes=-2,0-1", None), ("bytes=5-2,0-1", None),
])  # fmt: skip
def test_parse_ranges(header, expected):
    assert parse(header, 10) == expected
    assert parse(header, 0) is None


@pytest.mark.parametrize("header", ["bytes=10-10", "bytes=10-11", "bytes=20-30,0-1"])
def test_a_range_beyond_the_end(header):
    with pytest.raises(Unsatisfiable):
        parse(header, 10)
    assert parse(header, 0) is None


def test_ranges_on_the_wire(client):
    data = bytes(range(100))
    client.put(data)
    for ignored in ("bytes=5-2", "bytes=90-", "bytes=100-", "bytes=-7", "bytes=0-None"):
        whole = client.get(Range=ignored)
        assert (whole.status, whole.body, whole.headers.get("content-range")) == (200, data, None)
    for served in ("bytes=93-99", "bytes=93-250", "bytes=93-99,0-1"):
        part = client.get(Range=served)
        assert (part.status, part.body, part.headers["content-length"]) == (206, data[93:], "7")
        assert part.headers["content-range"] == "bytes 93-99/100"
    for beyond in ("bytes=100-100", "bytes=200-300,1-2"):
        refused = client.get(Range=beyond)
        assert (refused.status, refused.body) == (416, b"")
        assert "content-range" not in refused.headers
    client.put(b"", OTHER)
    assert client.get(OTHER, Range="bytes=0-1").status == 200


def test_dates_are_those_of_the_server(client, service, monkeypatch):
    """Contract: rawx GET, Last-Modified. Clients drop the zone, and take the rest for their own time."""
    client.put(b"hello")
    os.utime(service.path(), (1700000000, 1700000000))
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        assert client.get().headers["last-modified"] == "Tue, 14 Nov 2023 17:13:20 EST"
        assert client.head_chunk().headers["last-modified"] == "Tue, 14 Nov 2023 17:13:20 EST"
        assert client.get().headers["date"].endswith("GMT")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_headers_of_get_and_head(client):
    client.put(b"hello", metachunk_hash="AB", metachunk_size="9")
    get, again, head = client.get(), client.get(), client.head_chunk()
    assert metas(get) == metas(again)
    assert "date" in get.headers
    expected = {
        "full-path": "acme/media/a%20b%2Fc%2Bd.txt/1700000000000001/0011AABB",
        "container-id": cid("acme", "media"), "content-path": "a%20b%2Fc%2Bd.txt",
        "content-version": "1700000000000001", "content-id": "0011AABB",
        "content-storage-policy": "THREECOPIES", "content-chunk-method": "plain/nb_copy=3",
        "metachunk-hash": "AB", "metachunk-size": "9", "chunk-id": CHUNK, "chunk-pos": "0",
        "chunk-hash": "5D41402ABC4B2A76B9719D911017C592", "chunk-size": "5", "oio-version": "4.2",
        "block-sums": "1048576:6o8WPbOGgpI",
    }  # fmt: skip
    assert {k[len(PREFIX):]: v for k, v in get.headers.items() if k.startswith(PREFIX)} == expected
    assert "server" not in get.headers
    assert head.headers.pop("accept-ranges") == "bytes"
    assert metas(head) == metas(get)
    assert head.body == b""


def test_empty_values_are_left_out(client):
    client.put(b"hello")
    assert client.get().meta("metachunk-hash") is None


@pytest.mark.parametrize("size", [1, 4096, MIB, MIB + 1, 3 * MIB + 17])
def test_corruption_is_seen_before_bytes_leave(service, client, size):
    data = os.urandom(size)
    client.put(data)
    where = size // 2
    overwrite(service.path(), where, bytes([data[where] ^ 0x40]))
    around = client.get(Range=f"bytes={where}-{where}")
    assert (around.status, around.body) == (412, b"")
    whole = client.get()
    if size <= MIB:
        assert whole.status == 412
    else:  # the client verifies: it gets the sums
        sums = BlockSums()
        sums.update(data)
        assert whole.meta("block-sums") == sums.text()
        first = where // MIB * MIB
        assert client.get(Range=f"bytes={first}-{first + MIB - 1}").status == 412
        assert client.get(Range=f"bytes={first + 1}-{size - 1}").status == 412
        intact = (first + MIB) if first + MIB < size else 0
        assert client.get(Range=f"bytes={intact}-{intact + 5}").body == data[intact : intact + 6]
    assert client.head_chunk().status == 200
    assert client.head_chunk(x_oio_check_hash="true").status == 412


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 17])
def test_a_lean_read_tells_the_bytes_and_their_sums(client, size):
    data = os.urandom(size)
    client.put(data)
    full, lean = client.get(), client.get(**LEAN)
    assert (lean.status, lean.body) == (200, data)
    told = [name for name in lean.headers if name.startswith(PREFIX)]
    assert told == [PREFIX + "block-sums"]
    assert lean.meta("block-sums") == full.meta("block-sums")
    assert client.get(Range="bytes=0-0", **LEAN).body == data[:1]


@pytest.mark.parametrize("size", [1, 4096, MIB])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_lean_read_sees_a_wrong_length(service, client, size, change):
    client.put(os.urandom(size))
    os.truncate(service.path(), size + change)
    assert client.get(**LEAN).status == 412


def test_a_lean_read_sees_corruption(service, client):
    client.put(b"0123456789")
    overwrite(service.path(), 3, b"x")
    assert client.get(**LEAN).status == 412


def test_a_lean_read_of_a_chunk_without_sums_tells_everything(service, client):
    client.put(b"0123456789")
    os.removexattr(service.path(), "user.oio.chunk.block_sums")
    assert metas(client.get(**LEAN)) == metas(client.get())
    os.truncate(service.path(), 9)
    assert client.get(**LEAN).status == 412


def test_a_lean_read_of_a_compressed_chunk_tells_everything(start):
    service = start(compression="zlib")
    service.client.put(b"0123456789" * 100)
    lean = service.client.get(**LEAN)
    assert lean.body == b"0123456789" * 100
    assert metas(lean) == metas(service.client.get())


@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_length(service, client, change):
    client.put(b"0123456789")
    os.truncate(service.path(), 10 + change)
    assert client.get().status == client.head_chunk().status == 412
    assert client.delete().status == 204


def test_size_attribute(service, client):
    client.put(b"0123456789")
    os.removexattr(service.path(), "user.grid.chunk.size")
    assert client.get().status == 500
    os.setxattr(service.path(), "user.grid.compression", b"off")
    assert client.get().status == 412
    os.truncate(service.path(), 0)
    assert (client.get().status, client.get().body) == (200, b"")


def test_chunks_of_other_writers_have_no_sums(service, client):
    data = os.urandom(2 * MIB)
    client.put(data)
    os.removexattr(service.path(), "user.oio.chunk.block_sums")
    reply = client.get()
    assert (reply.status, reply.body) == (200, data)
    assert reply.meta("block-sums") is None
    assert client.get(Range="bytes=1-9").body == data[1:10]
    os.setxattr(service.path(), "user.oio.chunk.block_sums", b"nonsense")
    reply = client.get()
    assert (reply.body, reply.meta("block-sums")) == (data, None)


def test_malformed_fullpath(service, client):
    client.put(b"x")
    os.setxattr(service.path(), f"user.oio.content.fullpath:{CHUNK}", b"a/b/c")
    assert client.get().status == client.head_chunk().status == client.delete().status == 500
    assert service.files() == [CHUNK]


def test_a_file_without_attributes(service, client):
    client.put(b"x")
    path = service.path()
    for name in os.listxattr(path):
        os.removexattr(path, name)
    assert client.head_chunk().status == 500
    assert client.delete().status == 204


def test_missing_hash(service, client):
    client.put(b"x")
    os.removexattr(service.path(), "user.grid.chunk.hash")
    assert client.get().status == 200
    assert client.head_chunk().status == 500


def test_hash_check(service, client):
    client.put(b"hello")
    good = "5d41402abc4b2a76b9719d911017c592"

    def check(value="True", reference=None):
        headers = {"x_oio_check_hash": value}
        if reference is not None:
            headers[PREFIX.replace("-", "_") + "chunk_hash"] = reference
        return client.head_chunk(**headers).status

    assert check() == check("yes") == check("on", good) == check("on", good.upper()) == 200
    assert check("on", "xxx") == check("on", "A" * 32) == 412
    assert check("off", "A" * 32) == 200
    overwrite(service.path(), 0, b"HELLO")
    assert check() == 412
    assert check("on", "eb61eead90e3b899c6bcbe27ac581660") == 200


def test_hash_of_an_algorithm_that_nobody_can_tell(service, client):
    sums = BlockSums()
    sums.update(b"hello")
    client.put(b"hello", chunk_hash="ABC", block_sums=sums.text())
    assert client.head_chunk(x_oio_check_hash="on").status == 200
    overwrite(service.path(), 0, b"H")
    assert client.head_chunk(x_oio_check_hash="on").status == 412


def test_legacy_chunk(service, client):
    client.put(b"hello")
    new = client.get()
    path = make_legacy(service)
    old = client.get()
    gone = ("full-path", "oio-version", "block-sums")
    assert old.status == 200
    assert metas(old) == metas(new, *gone)
    assert metas(client.head_chunk()) == {**metas(old), "accept-ranges": "bytes"}
    assert client.copy(full_path="acme/media/link/1/AA", content_path=None, content_version=None,
                       content_id=None).status == 201  # fmt: skip
    assert client.get(OTHER).meta("content-path") == "link"
    assert client.get(OTHER).body == b"hello"
    os.setxattr(path, "user.grid.chunk.id", OTHER.encode())
    assert client.get().meta("content-id") is None
    assert client.get().status == 200
    assert client.delete().status == 204
    _, meta, _, _ = service.events[-1]
    assert (meta.fullpath, meta.content_id) == ("", "")


def test_event_of_the_deletion_of_a_legacy_chunk(service, client):
    client.put(b"hello")
    make_legacy(service)
    assert client.delete().status == 204
    kind, meta, _, whole = service.events[-1]
    assert (kind, whole, meta.fullpath) == ("storage.chunk.deleted", False, "")
    assert (meta.content_path, meta.content_id) == ("a b/c+d.txt", "0011AABB")


LINK = {
    "full_path": "other/bucket/copy/2/CC", "container_id": cid("other", "bucket"),
    "content_path": "copy", "content_version": "2", "content_id": "CC",
}  # fmt: skip


def test_copy(service, client):
    client.put(b"hello")
    reply = client.copy(**LINK)
    assert (reply.status, reply.body) == (201, b"")
    assert not [name for name in reply.headers if name.startswith(PREFIX)]
    assert os.path.samefile(service.path(), service.path(OTHER))
    assert service.files() == [CHUNK, OTHER]
    source, link = client.get(), client.get(OTHER)
    assert source.body == link.body == b"hello"
    assert (source.meta("content-id"), link.meta("content-id")) == ("0011AABB", "CC")
    assert (link.meta("chunk-id"), link.meta("full-path")) == (OTHER, "other/bucket/copy/2/CC")
    kind, meta, _, whole = service.events[-1]
    assert (kind, meta.chunk_id, meta.fullpath, whole) == (
        "storage.chunk.new", OTHER, "other/bucket/copy/2/CC", False)  # fmt: skip
    third = "AB" * 32
    assert client.copy(OTHER, third, **LINK).status == 201
    assert client.delete().status == 204
    assert client.get(OTHER).body == client.get(third).body == b"hello"
    names = [n for n in os.listxattr(service.path(OTHER)) if "fullpath" in n]
    assert sorted(names) == [f"user.oio.content.fullpath:{name}" for name in sorted((OTHER, third))]


@pytest.mark.parametrize(("arguments", "status"), [
    ({"destination": ""}, 400), ({"destination": "nonsense"}, 400),
    ({"destination": "//host/" + OTHER}, 400), ({"destination": "http://["}, 400),
    ({"destination": f"http://elsewhere:1/{OTHER}"}, 403), ({"target": "xyz"}, 400),
    ({"target": CHUNK}, 403), ({"target": CHUNK.lower()}, 403), ({"full_path": None}, 400),
    ({"full_path": "a/b"}, 400), ({"container_id": "00"}, 400), ({"source": "AB" * 32}, 404),
    ({"target": "EF" * 32}, 409),
])  # fmt: skip
def test_copy_refused(service, client, arguments, status):
    client.put(b"hello")
    client.put(b"exists", "EF" * 32)
    before = os.listxattr(service.path()), service.files(), len(service.events)
    assert client.copy(**arguments).status == status
    assert (os.listxattr(service.path()), service.files(), len(service.events)) == before


def test_copy_destination_forms(start):
    service = start(service_id="NS-rawx-1")
    client = service.client
    client.put(b"hello")
    assert client.copy(destination=f"http://NS-rawx-1/{OTHER}").status == 201
    assert client.copy(destination=f"/{'AB' * 32}").status == 403
    bare = start()
    bare.client.put(b"hello")
    assert bare.client.copy(destination=f"/{OTHER}").status == 201


@pytest.mark.parametrize("ever", [True, False])
def test_a_link_takes_the_room_of_the_block_sums(service, client, monkeypatch, ever):
    """The attributes of a file have one block on ext4; long paths need theirs."""
    data = os.urandom(2 * MIB)
    client.put(data)
    sums = client.get().meta("block-sums")
    setxattr = os.setxattr

    def full(target, name, value, *more):
        has_sums = isinstance(target, int) and "user.oio.chunk.block_sums" in os.listxattr(target)
        if name.endswith(OTHER) and (has_sums or not ever):
            raise OSError(errno.ENOSPC, "no space left for an attribute")
        setxattr(target, name, value, *more)

    monkeypatch.setattr(os, "setxattr", full)
    assert client.copy().status == (201 if ever else 500)
    reply = client.get()
    assert (reply.status, reply.body) == (200, data)
    assert reply.meta("block-sums") == (None if ever else sums)
    assert client.head_chunk(x_oio_check_hash="on").status == 200
    assert client.get(OTHER).status == (200 if ever else 404)
    assert not os.path.exists(service.path(OTHER) + ".pending")


def test_an_attribute_that_cannot_be_a_header(service, client):
    data = os.urandom(2 * MIB)
    client.put(data)
    path = service.path()
    os.setxattr(path, "user.grid.content.storage_policy", b"A\r\nInjected: yes")
    before = open_files()
    for _ in range(5):
        reply = client.get()
        assert (reply.status, "injected" in reply.headers) == (500, False)
    wait_for(lambda: open_files() <= before)


def test_no_descriptor_is_left_open(service, client):
    client.put(os.urandom(2 * MIB))
    before = open_files()
    for value in ("bytes=0-1", "bytes=0-1,5-6", "bytes=9999999-9999999", f"bytes=5-{2 * MIB}", "x"):
        for _ in range(5):
            client.get(Range=value)
            client.head_chunk(x_oio_check_hash="on")
            client.put(b"x")
            client.get("A" * 64)
    wait_for(lambda: open_files() <= before)


def test_permission_problem(service, client, monkeypatch):
    def refuse(*_args, **_kw):
        raise PermissionError(1, "not yours")

    client.put(b"hello")
    monkeypatch.setattr(service.rawx.volume, "open", refuse)
    monkeypatch.setattr(service.rawx.volume, "upload", refuse)
    assert client.get().status == client.put(b"x", OTHER).status == 403
