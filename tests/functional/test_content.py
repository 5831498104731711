# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Storing objects and rebuilding their chunks, on a cluster whose chunks get lost for real."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from content_harness import check_whole, forget, some_bytes, urls
from support import ACCOUNT, CHUNK_SIZE

from oio.common import exceptions as exc
from oio.common.fullpath import encode_fullpath
from oio.common.storage_method import ECDriverError
from oio.common.utils import cid_from_name
from oio.content.ec import ECContent
from oio.content.plain import PlainContent

pytest_plugins = ["content_fixtures"]


# -- factory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "kind"), [("SINGLE", PlainContent), ("THREECOPIES", PlainContent), ("EC", ECContent)]
)
def test_the_kind_of_content_follows_the_policy(store, factory, cid, container, policy, kind):
    data, content = store(policy)
    assert type(content) is kind
    assert (content.account, content.container_name) == (ACCOUNT, container)
    assert (content.path, content.length, content.policy) == ("some object", len(data), policy)
    assert content.full_path == encode_fullpath(
        ACCOUNT, container, "some object", content.version, content.content_id
    )
    same = factory.get(cid, content.content_id, account="a", container_name="b")
    assert (same.path, same.account, same.container_name) == ("some object", "a", "b")
    assert urls(same) == urls(content)


def test_a_missing_content_is_not_found(factory, cid, container):
    for find in (
        lambda: factory.get(cid, "0123456789ABCDEF" * 2),
        lambda: factory.get_by_path_and_version(cid, "absent", None),
        lambda: factory.get(cid_from_name("no", "body"), "0123456789ABCDEF" * 2),
    ):
        with pytest.raises(exc.ContentNotFound):
            find()


def test_a_version_can_be_told(api, container, factory, cid):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "3"})
    api.object_create(ACCOUNT, container, obj_name="o", data=b"one")
    first = factory.get_by_path_and_version(cid, "o", None)
    api.object_create(ACCOUNT, container, obj_name="o", data=b"second")
    assert factory.get_by_path_and_version(cid, "o", first.version).length == 3
    assert factory.get_by_path_and_version(cid, "o", None).length == 6
    first.delete(version=first.version)
    with pytest.raises(exc.ContentNotFound):
        factory.get_by_path_and_version(cid, "o", first.version)
    with pytest.raises(exc.ContentNotFound):
        factory.get_by_path_and_version(cid, "o", 12)


@pytest.mark.parametrize("policy", ["SINGLE", "THREECOPIES", "EC"])
@pytest.mark.parametrize("size", [0, 1, 3 * CHUNK_SIZE + 7, 13 * CHUNK_SIZE])
def test_a_new_content_is_stored_by_create(api, factory, cid, container, tmp_path, policy, size):
    data = some_bytes(size)
    (tmp_path / "source").write_bytes(data)
    content = factory.new(cid, "new", size, policy, content_id="AB" * 16, version=1234567890123456)
    assert (content.content_id, content.version, content.length) == ("AB" * 16, "1234567890123456", size)
    with pytest.raises(exc.ContentNotFound):
        factory.get(cid, content.content_id)
    with open(tmp_path / "source", "rb") as source:
        chunks, written, checksum = content.create(source)
    assert (written, checksum.upper()) == (size, content.checksum.upper())
    assert sorted(chunk["url"] for chunk in chunks) == urls(content)
    found = factory.get(cid, "AB" * 16)
    assert (found.version, found.length, found.checksum) == ("1234567890123456", size, checksum.upper())
    assert b"".join(found.fetch()) == data
    found.delete()
    with pytest.raises(exc.ContentNotFound):
        factory.get(cid, content.content_id)


def test_a_stream_may_be_shorter_or_longer_than_announced(factory, cid, tmp_path):
    for name, announced, size in (("short", 5 * CHUNK_SIZE, 10), ("long", 10, 3 * CHUNK_SIZE + 1)):
        (tmp_path / name).write_bytes(some_bytes(size))
        content = factory.new(cid, name, announced, "TWOCOPIES")
        with open(tmp_path / name, "rb") as source:
            content.create(source)
        assert factory.get_by_path_and_version(cid, name, None).length == size
        assert b"".join(content.fetch()) == some_bytes(size)


def test_a_refused_content_leaves_no_chunk(api, factory, cid, container, disk, tmp_path):
    content = factory.new(cid, "o", 10, "TWOCOPIES")
    prepared = [disk.path(chunk) for chunk in content.chunks]
    content.metadata["mime_type"] = "text/plain"
    api.container.container_freeze(ACCOUNT, container)
    (tmp_path / "source").write_bytes(b"0123456789")
    with open(tmp_path / "source", "rb") as source, pytest.raises(exc.OioException):
        content.create(source)
    assert not any(path.exists() for path in prepared)


def test_a_source_that_breaks_off_leaves_no_chunk(factory, cid, disk):
    class Broken:
        def read(self, size):
            raise OSError("gone")

    content = factory.new(cid, "o", 10, "TWOCOPIES")
    with pytest.raises(exc.SourceReadError):
        content.create(Broken())
    assert not any(disk.path(chunk).exists() for chunk in content.chunks)


@pytest.mark.parametrize(("policy", "other"), [("TWOCOPIES", None), ("TWOCOPIES", "EC"), ("EC", "SINGLE")])
def test_a_copy_is_the_next_version_and_is_not_saved(api, store, factory, cid, container, policy, other):
    data, content = store(policy)
    api.object_set_properties(ACCOUNT, container, "some object", {"color": "red"})
    content = factory.get(cid, content.content_id)
    copy = factory.copy(content, policy=other)
    assert copy.policy == (other or policy)
    assert copy.content_id != content.content_id
    assert int(copy.version) == int(content.version) + 1
    assert copy.length == len(data) and copy.properties["color"] == "red"
    with pytest.raises(exc.ContentNotFound):
        factory.get(cid, copy.content_id)
    assert not set(urls(copy)) & set(urls(content))

    class Source:
        def __init__(self, blocks):
            self.blocks = blocks

        def read(self, size):
            data = next(self.blocks, b"")
            assert len(data) <= size or not data
            return data

    pieces = (block[i : i + 4096] for block in content.fetch() for i in range(0, len(block), 4096))
    copy.create(Source(pieces))
    found = factory.get_by_path_and_version(cid, "some object", None)
    assert (found.content_id, found.policy) == (copy.content_id, other or policy)
    assert found.properties["color"] == "red"
    assert b"".join(found.fetch()) == data


# -- rebuild -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["random_ids", "predictable_ids"])
@pytest.mark.parametrize("allow_same_rawx", [False, True])
@pytest.mark.parametrize("policy", ["TWOCOPIES", "THREECOPIES", "EC"])
def test_a_lost_chunk_is_rebuilt(request, api, store, factory, disk, policy, allow_same_rawx, ids):
    request.getfixturevalue(ids)
    data, content = store(policy)
    lost = content.chunks[len(content.chunks) // 2]
    url, host, size = lost.url, lost.host, disk.path(lost).stat().st_size
    disk.lose(lost)
    found = content.rebuild_chunk(lost.id, service_id=host, allow_same_rawx=allow_same_rawx)
    assert found == size
    if not allow_same_rawx:
        assert url not in urls(content)
        assert host not in {chunk.host for chunk in content.chunks.filter(pos=lost.pos)}
    check_whole(api, factory, disk, content, data)


@pytest.mark.parametrize("policy", ["EC", "EC21"])
def test_every_fragment_can_be_rebuilt_without_its_service_being_told(api, store, factory, disk, policy):
    data, content = store(policy, size=CHUNK_SIZE + 1)
    for subpos in range(content.storage_method.expected_chunks):
        lost = content.chunks.filter(subpos=subpos).one()
        disk.lose(lost)
        content.rebuild_chunk(lost.id)
    check_whole(api, factory, disk, content, data)


@pytest.mark.parametrize("policy", ["THREECOPIES", "EC"])
def test_an_empty_object_is_rebuilt(api, store, factory, disk, policy):
    data, content = store(policy, size=0)
    lost = content.chunks[1]
    disk.lose(lost)
    assert content.rebuild_chunk(lost.id, service_id=lost.host) == 0
    check_whole(api, factory, disk, content, data)


@pytest.mark.parametrize("policy", ["TWOCOPIES", "EC"])
def test_a_position_that_the_container_forgot_is_rebuilt(api, store, factory, cid, disk, policy):
    data, content = store(policy)
    lost = content.chunks[1]
    size = disk.path(lost).stat().st_size
    disk.lose(lost)
    forget(api, cid, content, lost)
    content = factory.get(cid, content.content_id)
    before = len(content.chunks)
    assert content.rebuild_chunk(None, chunk_pos=lost.pos) == size
    assert len(content.chunks) == before + 1
    check_whole(api, factory, disk, content, data)


def test_a_position_that_lacks_nothing_is_not_rebuilt(store):
    _data, content = store("TWOCOPIES")
    before = urls(content)
    with pytest.raises(exc.SpareChunkException):
        content.rebuild_chunk(None, chunk_pos=0)
    assert urls(content) == before


@pytest.mark.parametrize("size", [1000, CHUNK_SIZE])
def test_a_corrupt_source_is_left_for_another(api, store, factory, disk, size):
    data, content = store("THREECOPIES", size=size)
    for corrupt in range(2):
        lost, *sources = [content.chunks[index] for index in (2, corrupt, 1 - corrupt)]
        disk.corrupt(sources[0], size // 2)
        disk.lose(lost)
        content.rebuild_chunk(lost.id, service_id=lost.host)
        # Repair the corrupt one from the good ones, too.
        disk.lose(sources[0])
        content.rebuild_chunk(sources[0].id, service_id=sources[0].host)
        check_whole(api, factory, disk, content, data)


def test_a_source_that_is_corrupt_in_its_second_block_is_left_for_another(api, container, factory, cid, disk):
    """The upload breaks off midway, and begins again with another source."""
    data = some_bytes(3 * 2**20 + 5)
    content = factory.new(cid, "big", len(data), "THREECOPIES")
    content.metadata["chunk_size"] = 8 * 2**20
    content.create(Whole(data))
    assert len(content.chunks) == 3
    for _ in range(4):
        lost, source = content.chunks[0], content.chunks[1]
        disk.corrupt(source, 2**20 + 17)
        disk.lose(lost)
        content.rebuild_chunk(lost.id, service_id=lost.host)
        disk.lose(source)
        content.rebuild_chunk(source.id, service_id=source.host)
        check_whole(api, factory, disk, content, data)


class Whole:
    """A file of bytes."""

    def __init__(self, data):
        self.data = memoryview(data)

    def read(self, size):
        part, self.data = bytes(self.data[:size]), self.data[size:]
        return part


def test_corrupt_fragments_on_disk_are_left_out(api, store, factory, disk):
    data, content = store("EC", size=5 * CHUNK_SIZE + 3)
    lost, *others = list(content.chunks)
    disk.lose(lost)
    disk.corrupt(others[0], 5)
    disk.corrupt(others[3], disk.path(others[3]).stat().st_size - 1)
    content.rebuild_chunk(lost.id)
    for corrupt in (others[0], others[3]):
        disk.lose(corrupt)
        content.rebuild_chunk(corrupt.id)
    check_whole(api, factory, disk, content, data)


def test_fragments_that_were_written_wrong_need_all_the_sources(api, store, factory, disk):
    """Their rawx vouches for them: only the header of the fragments tells."""
    data, content = store("EC", size=2 * CHUNK_SIZE + 3)
    lost, *others = list(content.chunks)
    disk.lose(lost)
    wrong = others[:2]
    for chunk in wrong:
        write_wrong(api, chunk)
    before = urls(content)
    with pytest.raises(ECDriverError):
        content.rebuild_chunk(lost.id)
    assert urls(content) == before
    content.rebuild_chunk(lost.id, read_all_available_sources=True)
    for chunk in wrong:
        disk.lose(chunk)
        content.rebuild_chunk(chunk.id, read_all_available_sources=True)
    check_whole(api, factory, disk, content, data)


def write_wrong(api, chunk):
    """Replace a chunk by another one whose first fragment has a wrong header."""
    meta, stream = api.blob_client.chunk_get(chunk.url)
    data = bytearray(stream.read())
    data[7] ^= 0xFF
    meta["chunk_hash"] = None
    api.blob_client.chunk_delete(chunk.url)
    api.blob_client.chunk_put(chunk.url, meta, bytes(data))


@pytest.mark.parametrize(("policy", "kept"), [("SINGLE", 0), ("THREECOPIES", 0), ("EC", 5)])
def test_too_few_sources_are_unrecoverable(store, disk, policy, kept):
    _data, content = store(policy, size=1000)
    for chunk in list(content.chunks)[kept:]:
        disk.lose(chunk)
    before = urls(content)
    lost = content.chunks[len(content.chunks) - 1]
    with pytest.raises(exc.UnrecoverableContent):
        content.rebuild_chunk(lost.id, service_id=lost.host)
    assert urls(content) == before


def test_copies_that_share_their_id_need_a_service_to_tell_them_apart(predictable_ids, store):
    _data, content = store("THREECOPIES", size=1000)
    lost = content.chunks[0]
    with pytest.raises(exc.OrphanChunk):
        content.rebuild_chunk(lost.id)
    with pytest.raises(exc.ChunkException):
        content.move_chunk(lost.id)


@pytest.mark.parametrize("policy", ["THREECOPIES", "EC"])
def test_a_chunk_of_nobody_is_an_orphan(store, policy):
    _data, content = store(policy, size=1000)
    chunk = content.chunks[0]
    for call in (
        lambda: content.rebuild_chunk("AB" * 32),
        lambda: content.rebuild_chunk(chunk.id, service_id="no-such-rawx"),
        lambda: content.move_chunk("AB" * 32),
        lambda: content.move_chunk(chunk.id, service_id="no-such-rawx"),
        lambda: content.move_linked_chunk("AB" * 32, chunk.url),
    ):
        with pytest.raises(exc.OrphanChunk):
            call()


def test_two_lost_copies_are_rebuilt_from_two_stale_views(predictable_ids, api, store, factory, cid, disk):
    """The second rebuild, which does not know of the first, may be sent to the same service."""
    data, content = store("THREECOPIES", size=1000)
    kept, *lost = list(content.chunks)
    for chunk in lost:
        disk.lose(chunk)
        forget(api, cid, content, chunk)
    first, second = (factory.get(cid, content.content_id) for _ in range(2))
    first.rebuild_chunk(None, chunk_pos=0)
    second.rebuild_chunk(None, chunk_pos=0)
    found = factory.get(cid, content.content_id)
    assert len(found.chunks) == 3 and kept.url in urls(found)
    check_whole(api, factory, disk, found, data)


@pytest.mark.parametrize("ids", ["random_ids", "predictable_ids"])
@pytest.mark.parametrize("policy", ["TWOCOPIES", "EC"])
def test_of_several_rebuilds_of_one_chunk_a_single_one_counts(request, api, store, factory, disk, policy, ids):
    request.getfixturevalue(ids)
    data, content = store(policy, size=1000)
    lost = content.chunks[0]
    disk.lose(lost)
    views = [factory.get(content.container_id, content.content_id) for _ in range(4)]

    def rebuild(view):
        try:
            return view.rebuild_chunk(lost.id, service_id=lost.host)
        except (exc.NotFound, exc.Conflict) as err:
            return err

    before = files(disk)
    with ThreadPoolExecutor(len(views)) as pool:
        results = list(pool.map(rebuild, views))
    assert len([result for result in results if isinstance(result, int)]) == 1, results
    found = factory.get(content.container_id, content.content_id)
    check_whole(api, factory, disk, found, data)
    assert files(disk) - before == {disk.path(chunk) for chunk in found.chunks} - before
    assert len(files(disk) - before) == 1


def files(disk):
    """Every file of every volume, besides what a chunk server notes for itself."""
    return {path for volume in disk.volumes.values() for path in Path(volume).glob("[!.]*/*")}


@pytest.mark.parametrize("policy", ["TWOCOPIES", "EC"])
def test_a_frozen_container_takes_a_rebuilt_chunk_only_when_told(api, store, factory, container, disk, policy):
    data, content = store(policy, size=1000)
    lost = content.chunks[0]
    lost_id, host = lost.id, lost.host
    disk.lose(lost)
    before = {path for volume in disk.volumes.values() for path in Path(volume).glob(f"{lost_id[:3]}/*")}
    api.container.container_freeze(ACCOUNT, container)
    try:
        with pytest.raises(exc.ServiceBusy):
            content.rebuild_chunk(lost_id, service_id=host)
        after = {path for volume in disk.volumes.values() for path in Path(volume).glob(f"{lost_id[:3]}/*")}
        assert after == before
        content.rebuild_chunk(lost_id, service_id=host, allow_frozen_container=True)
        check_whole(api, factory, disk, content, data)
    finally:
        api.container.container_enable(ACCOUNT, container)
