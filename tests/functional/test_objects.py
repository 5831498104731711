# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Objects through the public API, on a real cluster, under each kind of policy."""

import hashlib
import io
import os
import random

import pytest
from support import ACCOUNT, CHUNK_SIZE

from oio.common.exceptions import (
    ClientException,
    EtagMismatch,
    FileNotFound,
    MissingData,
    MissingName,
    NoSuchContainer,
    NoSuchObject,
)

POLICIES = ["SINGLE", "TWOCOPIES", "THREECOPIES", "EC", "EC21"]
SIZES = [0, 1, 4096, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE, 7 * CHUNK_SIZE + 13]


def read(api, container, name, **kwargs):
    _metadata, stream = api.object_fetch(ACCOUNT, container, name, **kwargs)
    return b"".join(stream)


def some_bytes(size):
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_stored_is_read(api, container, policy, size):
    data = some_bytes(size)
    chunks, stored, checksum = api.object_create(ACCOUNT, container, obj_name="o", data=data, policy=policy)
    assert stored == size
    assert checksum == hashlib.md5(data).hexdigest()
    assert read(api, container, "o") == data
    metadata = api.object_get_properties(ACCOUNT, container, "o")
    assert metadata["policy"] == policy
    assert metadata["length"] == metadata["size"] == str(size)
    assert metadata["hash"] == checksum.upper()
    _metadata, located = api.object_locate(ACCOUNT, container, "o")
    assert sorted(chunk["url"] for chunk in located) == sorted(chunk["url"] for chunk in chunks)


@pytest.mark.parametrize(("policy", "count"), [("SINGLE", 1), ("THREECOPIES", 3), ("EC", 9), ("EC21", 3)])
def test_the_chunks_of_a_metachunk_lie_on_different_servers(api, container, policy, count):
    chunks, _size, _checksum = api.object_create(ACCOUNT, container, obj_name="o", data=b"x", policy=policy)
    assert len({chunk["url"].split("/")[2] for chunk in chunks}) == count


def test_a_metachunk_more_is_made_only_when_there_are_data(api, container):
    chunks, _size, _etag = api.object_create(
        ACCOUNT, container, obj_name="o", data=b"x" * (2 * CHUNK_SIZE), policy="SINGLE"
    )
    assert sorted(chunk["pos"] for chunk in chunks) == ["0", "1"]


def test_data_may_come_from_anything(api, container, tmp_path):
    data = some_bytes(100_000)
    path = tmp_path / "source.bin"
    path.write_bytes(data)
    api.object_create(ACCOUNT, container, str(path))
    api.object_create(ACCOUNT, container, io.BytesIO(data), obj_name="file")
    api.object_create(ACCOUNT, container, obj_name="bytes", data=data)
    pieces = (data[i : i + 777] for i in range(0, len(data), 777))
    api.object_create(ACCOUNT, container, obj_name="generator", data=pieces)
    api.object_create(ACCOUNT, container, obj_name="text", data="héllo")
    for name in ("source.bin", "file", "bytes", "generator"):
        assert read(api, container, name) == data
    assert read(api, container, "text") == "héllo".encode()


def test_what_is_missing_is_said_before_any_request(api, container, tmp_path):
    with pytest.raises(MissingData):
        api.object_create(ACCOUNT, container, obj_name="o")
    with pytest.raises(FileNotFound):
        api.object_create(ACCOUNT, container, str(tmp_path / "absent"))
    with pytest.raises(MissingName):
        api.object_create(ACCOUNT, container, data=b"x")


def test_creating_returns_the_metadata(api, container):
    chunks, size, checksum, metadata = api.object_create_ext(
        ACCOUNT, container, obj_name="o", data=b"abc", mime_type="text/plain", properties={"k": "v"}
    )
    assert (size, metadata["etag"], metadata["mime_type"]) == (3, checksum, "text/plain")
    assert metadata["name"] == "o" and metadata["ns"] and metadata["container_id"]
    assert {"url", "real_url", "pos", "hash", "size", "score"} <= set(chunks[0])


def test_a_wrong_etag_is_refused(api, container):
    with pytest.raises(EtagMismatch):
        api.object_create(ACCOUNT, container, obj_name="o", data=b"abc", etag="0" * 32)
    with pytest.raises(NoSuchObject):
        api.object_get_properties(ACCOUNT, container, "o")


def test_a_missing_container_is_made_unless_forbidden(api, container):
    name = container + "-auto"
    with pytest.raises(NoSuchContainer):
        api.object_create(ACCOUNT, name, obj_name="o", data=b"x", autocreate=False)
    api.object_create(
        ACCOUNT, name, obj_name="o", data=b"x",
        container_properties={"properties": {"made": "here"}, "system": {}},
    )
    assert api.container_get_properties(ACCOUNT, name)["properties"] == {"made": "here"}


def test_overwriting_replaces(api, container):
    api.object_create(ACCOUNT, container, obj_name="o", data=b"first", properties={"a": "1"})
    api.object_create(ACCOUNT, container, obj_name="o", data=b"second")
    assert read(api, container, "o") == b"second"
    assert api.object_get_properties(ACCOUNT, container, "o")["properties"] == {}
    assert len(api.object_list(ACCOUNT, container)["objects"]) == 1


RANGES = [
    [(0, 0)], [(10, 19)], [(None, 7)], [(100, None)], [(CHUNK_SIZE - 5, CHUNK_SIZE + 5)],
    [(5, 4 * CHUNK_SIZE)], [(20, 29), (0, 9), (5, 14)], [(2 * CHUNK_SIZE, 2 * CHUNK_SIZE)],
    [(2**40, None)],
]  # fmt: skip


@pytest.mark.parametrize("ranges", RANGES, ids=str)
@pytest.mark.parametrize("policy", ["SINGLE", "THREECOPIES", "EC", "EC21"])
def test_ranges_are_served_in_the_order_asked(api, container, policy, ranges):
    size = 3 * CHUNK_SIZE + 1000
    data = some_bytes(size)
    api.object_create(ACCOUNT, container, obj_name="o", data=data, policy=policy)
    expected = b""
    for start, end in ranges:
        if start is None:
            expected += data[-end:]
        else:
            expected += data[start : None if end is None else end + 1]
    assert read(api, container, "o", ranges=ranges) == expected


def test_a_stream_may_be_abandoned(api, container):
    api.object_create(ACCOUNT, container, obj_name="o", data=some_bytes(5 * CHUNK_SIZE))
    _metadata, stream = api.object_fetch(ACCOUNT, container, "o")
    assert next(stream)
    stream.close()
    assert len(read(api, container, "o")) == 5 * CHUNK_SIZE


def test_deleting(api, container):
    api.object_create(ACCOUNT, container, obj_name="o", data=b"x")
    assert api.object_delete(ACCOUNT, container, "o") is True
    with pytest.raises(NoSuchObject):
        api.object_delete(ACCOUNT, container, "o")
    with pytest.raises(NoSuchObject):
        api.object_fetch(ACCOUNT, container, "o")
    with pytest.raises(NoSuchContainer):
        api.object_delete(ACCOUNT, container + "-absent", "o")


def test_deleting_several_tells_which(api, container):
    names = ["a", "strange % \n \"name'", "c"]
    for name in names:
        api.object_create(ACCOUNT, container, obj_name=name, data=b"x")
    outcome = api.object_delete_many(ACCOUNT, container, [*names, "absent"])
    assert outcome == [(name, True) for name in names] + [("absent", False)]


def test_properties(api, container):
    api.object_create(ACCOUNT, container, obj_name="o", data=b"x", properties={"a": "1", "b": "é"})
    api.object_set_properties(ACCOUNT, container, "o", {"c": "3", "a": ""})
    assert api.object_get_properties(ACCOUNT, container, "o")["properties"] == {"b": "é", "c": "3"}
    assert api.object_del_properties(ACCOUNT, container, "o", ["b", "unknown"]) is True
    assert api.object_get_properties(ACCOUNT, container, "o")["properties"] == {"c": "3"}
    api.object_set_properties(ACCOUNT, container, "o", {"d": "4"}, clear=True)
    assert api.object_get_properties(ACCOUNT, container, "o")["properties"] == {"d": "4"}
    with pytest.raises(NoSuchObject):
        api.object_set_properties(ACCOUNT, container, "absent", {"d": "4"})


def test_large_properties_round_trip(api, container):
    properties = {f"key{n}": "x" * 100 for n in range(2048)}
    api.object_create(ACCOUNT, container, obj_name="o", data=b"x", properties=properties)
    assert api.object_get_properties(ACCOUNT, container, "o")["properties"] == properties
    metadata, _chunks = api.object_locate(ACCOUNT, container, "o")
    assert metadata["properties"] == properties


def test_head_tells_whether_it_is_there(api, container):
    api.object_create(ACCOUNT, container, obj_name="o", data=b"x")
    assert api.object_head(ACCOUNT, container, "o") is True
    assert api.object_head(ACCOUNT, container, "o", trust_level=2) is True
    assert api.object_head(ACCOUNT, container, "absent") is False
    assert api.object_head(ACCOUNT, container + "-absent", "o") is False


def test_chunk_information_comes_from_the_servers(api, container):
    data = some_bytes(CHUNK_SIZE + 10)
    api.object_create(ACCOUNT, container, obj_name="o", data=data, policy="TWOCOPIES")
    _metadata, chunks = api.object_locate(ACCOUNT, container, "o", chunk_info=True)
    chunks = list(chunks)
    assert [chunk["pos"] for chunk in chunks] == ["0", "0", "1", "1"]
    assert {int(chunk["chunk_size"]) for chunk in chunks if chunk["pos"] == "1"} == {10}
    assert {chunk["chunk_hash"] for chunk in chunks if chunk["pos"] == "1"} == {
        hashlib.md5(data[CHUNK_SIZE:]).hexdigest().upper()
    }


STRANGE_NAMES = ["a b", "100%", "a//b", "back\\slash", "tab\t", "cr\r", "lf\n", "日本", "?q=1&r#f", "x" * 1023]


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_any_name_will_do(api, container, name):
    api.object_create(ACCOUNT, container, obj_name=name, data=name.encode())
    assert read(api, container, name) == name.encode()
    assert [entry["name"] for entry in api.object_list(ACCOUNT, container)["objects"]] == [name]


def test_a_name_that_is_not_utf8_is_refused(api, container):
    with pytest.raises(ClientException):
        api.object_create(ACCOUNT, container, obj_name=b"\xff\xfe", data=b"x")


def test_an_unknown_policy_is_refused(api, container):
    with pytest.raises(ClientException) as refused:
        api.object_create(ACCOUNT, container, obj_name="o", data=b"x", policy="NOPE")
    assert refused.value.status == 480


def test_a_source_that_fails_leaves_nothing(api, container):
    def source():
        yield b"x" * 100_000
        raise OSError("the disk of the source broke")

    with pytest.raises(Exception, match="broke"):
        api.object_create(ACCOUNT, container, obj_name="o", data=source())
    assert api.object_list(ACCOUNT, container)["objects"] == []


def test_versions_are_kept_when_the_container_says_so(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    versions = []
    for data in (b"one", b"two"):
        api.object_create(ACCOUNT, container, obj_name="o", data=data)
        versions.append(api.object_get_properties(ACCOUNT, container, "o")["version"])
    assert read(api, container, "o", version=versions[0]) == b"one"
    api.object_delete(ACCOUNT, container, "o")
    with pytest.raises(NoSuchObject):
        api.object_fetch(ACCOUNT, container, "o")
    listed = api.object_list(ACCOUNT, container, versions=True)["objects"]
    assert [entry["deleted"] for entry in listed] == [True, False, False]
    assert read(api, container, "o", version=versions[1]) == b"two"


@pytest.mark.slow
def test_a_large_object_streams_within_bounded_memory(cluster, container):
    import subprocess
    import sys

    code = f"""
import resource
from oio import ObjectStorageApi
api = ObjectStorageApi({cluster.namespace!r})
block = {os.urandom(16)!r} * 65536
def blocks(count):
    for _ in range(count):
        yield block
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for policy in ("THREECOPIES", "EC"):
    api.object_create({ACCOUNT!r}, {container!r}, obj_name="small", data=blocks(2), policy=policy)
    before = peak()
    api.object_create({ACCOUNT!r}, {container!r}, obj_name=policy, data=blocks(300), policy=policy)
    _meta, stream = api.object_fetch({ACCOUNT!r}, {container!r}, policy)
    assert sum(map(len, stream)) == 300 * len(block)
    assert peak() - before < 64, (policy, before, peak())
    api.object_delete({ACCOUNT!r}, {container!r}, policy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
