# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Operations on single chunks, on real rawx."""

import hashlib
import io
import os
import random
import socket
import subprocess
import sys

import pytest
from blake3 import blake3
from content_harness import Disk
from support import ACCOUNT, ROOT

from oio.blob.client import BlobClient
from oio.blob.utils import read_chunk_metadata
from oio.common import blocksums
from oio.common import exceptions as exc
from oio.common.constants import CHUNK_XATTR_BLOCK_SUMS
from oio.common.fullpath import encode_fullpath
from oio.common.utils import cid_from_name
from oio.content.content import Chunk

MIB = 1 << 20
HASHES = {"md5": hashlib.md5, "sha1": hashlib.sha1, "sha224": hashlib.sha224, "sha256": hashlib.sha256}


@pytest.fixture
def blob(cluster):
    return BlobClient({"namespace": cluster.namespace})


@pytest.fixture
def disk(cluster):
    return Disk(cluster)


@pytest.fixture
def new_url(cluster):
    """URL of a chunk that does not exist, on a rawx."""
    services = cluster.services("rawx")

    def make(index=0, chunk_id=None, by_address=False):
        service = services[index]
        name = service.addr if by_address else service.service_id
        return f"http://{name}/{chunk_id or os.urandom(32).hex().upper()}"

    return make


def meta_of(url, method="plain/nb_copy=3", name="an object", version=1234567890, **more):
    content_id = "0123456789ABCDEF" * 2
    return {
        "chunk_pos": "0.0" if method.startswith("ec") else "0",
        "chunk_id": url.rpartition("/")[2],
        "chunk_method": method,
        "chunk_hash": None,
        "metachunk_hash": None,
        "id": content_id,
        "version": str(version),
        "content_path": name,
        "policy": "THREECOPIES",
        "container_id": cid_from_name(ACCOUNT, "c"),
        "full_path": encode_fullpath(ACCOUNT, "c", name, version, content_id),
        "oio_version": "4.2",
        **more,
    }


def some_bytes(size):
    return random.Random(size).randbytes(size)


def check_sums(disk, url):
    """The block sums in the attributes of a chunk are those of its bytes."""
    chunk = Chunk({"pos": "0", "url": url})
    _meta, attributes = read_chunk_metadata(disk.path(chunk), chunk.id)
    blocksums.verify(attributes[CHUNK_XATTR_BLOCK_SUMS], disk.path(chunk).read_bytes())


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 7])
@pytest.mark.parametrize("by_address", [False, True])
def test_what_is_put_is_got(blob, disk, new_url, size, by_address):
    url = new_url(by_address=by_address)
    data = some_bytes(size)
    assert blob.chunk_put(url, meta_of(url), data) == (size, hashlib.md5(data).hexdigest())
    meta, stream = blob.chunk_get(url)
    assert b"".join(stream) == data
    head = blob.chunk_head(url)
    assert head == meta
    assert head["chunk_hash"] == hashlib.md5(data).hexdigest().upper()
    assert (head["chunk_size"], head["content_path"], head["content_version"]) == (
        str(size),
        "an object",
        "1234567890",
    )
    assert isinstance(head["chunk_mtime"], float)
    assert all(isinstance(value, str) for key, value in head.items() if key != "chunk_mtime")
    if not by_address:
        check_sums(disk, url)


@pytest.mark.parametrize("source", [io.BytesIO, lambda data: iter([data[:10], data[10:]]), bytearray, memoryview])
def test_data_may_come_from_anything(blob, new_url, source):
    url = new_url()
    assert blob.chunk_put(url, meta_of(url), source(b"0123456789abc"))[0] == 13
    assert blob.chunk_get(url)[1].read() == b"0123456789abc"


def test_the_keys_of_a_read_serve_for_a_write(blob, new_url):
    url, other = new_url(0), new_url(1)
    blob.chunk_put(url, meta_of(url), b"abc")
    meta, stream = blob.chunk_get(url)
    meta["chunk_id"] = other.rpartition("/")[2]
    meta["metachunk_hash"] = None
    blob.chunk_put(other, meta, stream)
    assert blob.chunk_get(other)[1].read() == b"abc"


@pytest.mark.parametrize("key", ["chunk_pos", "chunk_hash"])
def test_mandatory_keys(blob, new_url, key):
    url = new_url()
    meta = meta_of(url)
    del meta[key]
    with pytest.raises(KeyError, match=key):
        blob.chunk_put(url, meta, b"abc")
    with pytest.raises(exc.NotFound):
        blob.chunk_head(url)


def test_a_chunk_is_never_replaced(blob, new_url):
    url = new_url()
    blob.chunk_put(url, meta_of(url), b"abc")
    with pytest.raises(exc.Conflict):
        blob.chunk_put(url, meta_of(url), b"def")
    assert blob.chunk_get(url)[1].read() == b"abc"


@pytest.mark.parametrize(
    "changes",
    [
        {"full_path": "a/b"}, {"container_id": "00" * 32}, {"content_path": "another"}, {"version": "1"},
        {"id": "AB" * 16}, {"chunk_hash": "not hexadecimal"},
    ],
)  # fmt: skip
def test_contradictory_metadata_are_refused(blob, new_url, changes):
    url = new_url()
    with pytest.raises(exc.ServiceBusy, match="HTTP 400"):
        blob.chunk_put(url, {**meta_of(url), **changes}, b"abc")
    with pytest.raises(exc.NotFound):
        blob.chunk_head(url)


def test_ranges(blob, new_url):
    url = new_url()
    blob.chunk_put(url, meta_of(url), b"0123456789")
    assert blob.chunk_get(url, headers={"Range": "bytes=2-5"})[1].read() == b"2345"
    with pytest.raises(exc.UnsatisfiableRange):
        blob.chunk_get(url, headers={"Range": "bytes=10-12"})


def test_the_stream_reads_iterates_and_closes(blob, new_url):
    url = new_url()
    blob.chunk_put(url, meta_of(url), b"0123456789")
    _meta, stream = blob.chunk_get(url)
    assert stream.read(4) == b"0123"
    assert b"".join(stream) == b"456789"
    assert stream.read() == b""
    stream.close()


def test_missing_chunks(blob, new_url):
    url = new_url()
    for call in (blob.chunk_get, blob.chunk_head, blob.chunk_delete):
        with pytest.raises(exc.NotFound):
            call(url)
    with pytest.raises(exc.NotFound):
        blob.chunk_copy(url, new_url(1), fullpath=meta_of(url)["full_path"])


def test_silent_services_are_reported(blob, new_url):
    with socket.create_server(("127.0.0.1", 0), backlog=1) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/{'AB' * 32}"
        with pytest.raises(exc.OioTimeout):
            blob.chunk_head(url, connection_timeout=1.0, read_timeout=0.1)
        with pytest.raises(exc.OioTimeout):
            blob.chunk_put(url, meta_of(url), b"abc", timeout=0.1)
    with pytest.raises(exc.OioNetworkException):
        blob.chunk_head(url)
    with pytest.raises(exc.ServiceBusy):
        blob.chunk_put(url, meta_of(url), b"abc")


def test_a_corrupt_chunk_is_found_by_the_check(blob, disk, new_url):
    url = new_url()
    blob.chunk_put(url, meta_of(url), b"0123456789")
    assert blob.chunk_head(url, check_hash=True)["chunk_size"] == "10"
    disk.corrupt(Chunk({"pos": "0", "url": url}), 5)
    assert blob.chunk_head(url)["chunk_size"] == "10"
    with pytest.raises(exc.ClientPreconditionFailed):
        blob.chunk_head(url, check_hash=True)
    assert blob.chunk_head(url, xattr=False) == {}


def test_missing_attributes(blob, disk, new_url):
    url = new_url()
    blob.chunk_put(url, meta_of(url), b"0123456789")
    path = disk.path(Chunk({"pos": "0", "url": url}))
    os.removexattr(path, "user.grid.content.storage_policy")
    with pytest.raises(exc.FaultyChunk) as caught:
        blob.chunk_get(url)
    assert [str(error) for error in caught.value.args] == ["content_policy"]
    meta, stream = blob.chunk_get(url, check_headers=False)
    assert "content_policy" not in meta and stream.read() == b"0123456789"
    # What lacks cannot be copied, even when its object is told.
    with pytest.raises(exc.FaultyChunk):
        blob.chunk_copy(url, new_url(1), fullpath=meta_of(url)["full_path"])
    os.removexattr(path, "user.grid.chunk.hash")
    with pytest.raises(exc.ClientException) as failed:
        blob.chunk_head(url)
    assert failed.value.http_status == 500


@pytest.mark.parametrize("count", [1, 7])
def test_many_are_deleted(blob, new_url, count):
    urls = [new_url(index) for index in range(count)]
    for url in urls[1:]:
        blob.chunk_put(url, meta_of(url), b"abc")
    results = blob.chunk_delete_many([{"url": url} for url in urls], cid="AB" * 32)
    assert {result.chunk["url"]: result.status for result in results} == {
        url: 204 if index else 404 for index, url in enumerate(urls)
    }


# -- copies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [*HASHES, None])
@pytest.mark.parametrize("size", [0, 10, 2 * MIB + 5])
def test_a_copy_has_the_same_bytes_hash_and_sums(blob, disk, new_url, size, algorithm):
    source, target = new_url(0), new_url(1)
    data = some_bytes(size)
    blob.chunk_put(source, meta_of(source), data, chunk_checksum_algo=algorithm)
    assert blob.chunk_copy(source, target) is None
    before, after = blob.chunk_head(source), blob.chunk_head(target)
    for key in before.keys() - {"chunk_id", "chunk_mtime"}:
        assert after[key] == before[key], key
    expected = HASHES[algorithm or "md5"](data).hexdigest().upper()
    assert after["chunk_hash"] == expected
    assert after["chunk_id"] == target.rpartition("/")[2]
    assert blob.chunk_get(target)[1].read() == data
    check_sums(disk, target)


def test_a_copy_of_fragments_keeps_their_hash(blob, disk, new_url):
    source, target = new_url(0), new_url(1)
    data = some_bytes(MIB + 5)
    meta = meta_of(source, "ec/algo=liberasurecode_rs_vand,k=6,m=3", metachunk_hash="AB" * 16, metachunk_size="77")
    blob.chunk_put(source, meta, data)
    blob.chunk_copy(source, target)
    head = blob.chunk_head(target, check_hash=True)
    assert head["chunk_hash"] == blake3(data).hexdigest().upper()
    assert (head["metachunk_hash"], head["metachunk_size"]) == ("AB" * 16, "77")
    check_sums(disk, target)


def test_a_copy_may_belong_to_another_object(blob, new_url):
    source, target = new_url(0), new_url(1)
    blob.chunk_put(source, meta_of(source), b"abc")
    told = {
        "fullpath": encode_fullpath("a", "b", "other", 99, "AB" * 16), "cid": cid_from_name("a", "b"),
        "path": "other", "version": 99, "content_id": "AB" * 16,
    }  # fmt: skip
    blob.chunk_copy(source, target, **told)
    head = blob.chunk_head(target)
    assert (head["full_path"], head["container_id"]) == (told["fullpath"], told["cid"])
    assert (head["content_path"], head["content_version"], head["content_id"]) == ("other", "99", "AB" * 16)
    assert head["oio_version"] == "4.2"


def test_a_copy_to_a_place_that_is_taken_is_refused(blob, new_url):
    source, target = new_url(0), new_url(1)
    blob.chunk_put(source, meta_of(source), b"abc")
    blob.chunk_put(target, meta_of(target), b"def")
    with pytest.raises(exc.Conflict):
        blob.chunk_copy(source, target)
    assert blob.chunk_get(target)[1].read() == b"def"


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_a_corrupt_chunk_has_no_copy(blob, disk, new_url, size):
    source, target = new_url(0), new_url(1)
    blob.chunk_put(source, meta_of(source), some_bytes(size))
    disk.corrupt(Chunk({"pos": "0", "url": source}), size - 1)
    with pytest.raises(exc.OioException):
        blob.chunk_copy(source, target)
    with pytest.raises(exc.NotFound):
        blob.chunk_head(target)


COPY_SCRIPT = """
import sys
from oio.blob.client import BlobClient

def peak_kib():
    text = open("/proc/self/status").read()
    return int(text.partition("VmHWM:")[2].split()[0])

client = BlobClient({"namespace": sys.argv[1]})
client.chunk_copy(sys.argv[2], sys.argv[3])
before = peak_kib()
client.chunk_copy(sys.argv[4], sys.argv[5])
print(peak_kib() - before)
"""


def test_the_copy_of_a_large_chunk_needs_little_memory(cluster, blob, disk, new_url):
    small, large = new_url(0), new_url(1)
    size = 96 * MIB
    blob.chunk_put(small, meta_of(small), b"x" * MIB)
    blob.chunk_put(large, meta_of(large, chunk_size=size), (some_bytes(MIB) for _ in range(96)))
    copies = new_url(2), new_url(3)
    done = subprocess.run(
        [sys.executable, "-c", COPY_SCRIPT, cluster.namespace, small, copies[0], large, copies[1]],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 32 * 1024
    assert blob.chunk_head(copies[1], check_hash=True)["chunk_size"] == str(size)
    check_sums(disk, copies[1])
    for url in (small, large, *copies):
        blob.chunk_delete(url)


# -- links -----------------------------------------------------------------------------------------------------


def test_links(blob, new_url):
    target = new_url()
    blob.chunk_put(target, meta_of(target), b"abc")
    fullpath = encode_fullpath("a", "b", "link", 99, "AB" * 16)
    link_id = "CD" * 32
    for link, expected in (
        (None, None),
        (link_id, target.rpartition("/")[0] + "/" + link_id),
        (new_url(chunk_id="EF" * 32), new_url(chunk_id="EF" * 32)),
    ):
        response, url = blob.chunk_link(target, link, fullpath)
        assert response.status == 201
        assert expected in (None, url)
        assert (blob.chunk_head(url)["full_path"], blob.chunk_get(url)[1].read()) == (fullpath, b"abc")
        blob.chunk_delete(url)
    assert blob.chunk_get(target)[1].read() == b"abc"


def test_links_that_cannot_be_made(blob, new_url):
    target, other = new_url(0), new_url(0)
    for url in (target, other):
        blob.chunk_put(url, meta_of(url), b"abc")
    fullpath = encode_fullpath("a", "b", "link", 99, "AB" * 16)
    for words, status in (
        ((target, target, fullpath), 403),
        ((target, new_url(1), fullpath), 403),
        ((target, other, fullpath), 409),
        ((new_url(0), None, fullpath), 404),
        ((target, None, "not/a/full/path"), 400),
        ((target, None, ""), 400),
    ):
        with pytest.raises(exc.ChunkException) as caught:
            blob.chunk_link(*words)
        assert caught.value.args == (status,)
