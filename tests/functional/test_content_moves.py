# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Moving the chunks of objects, on a cluster."""

import os
from pathlib import Path

import pytest
from content_harness import check_whole, forget, urls
from support import ACCOUNT

from oio.common import exceptions as exc

pytest_plugins = ["content_fixtures"]


@pytest.mark.parametrize("ids", ["random_ids", "predictable_ids"])
@pytest.mark.parametrize("policy", ["SINGLE", "THREECOPIES", "EC"])
def test_a_moved_chunk_changes_its_place_only(request, api, store, factory, disk, policy, ids):
    request.getfixturevalue(ids)
    data, content = store(policy)
    current = content.chunks[0]
    old_path, old_url, old_host = disk.path(current), current.url, current.host
    before = {chunk.url: dict(chunk.raw()) for chunk in content.chunks}
    stored = old_path.read_bytes()
    moved = content.move_chunk(current.id, service_id=old_host)
    assert moved["url"] != old_url
    assert moved["real_url"] == api.blob_client.resolve_url(moved["url"])
    assert moved["url"].split("/")[2] != old_host
    for key in ("pos", "size", "hash"):
        assert moved[key] == before[old_url][key]
    assert {"expected_dist", "final_dist", "expected_slot", "final_slot"} <= moved["quality"].keys()
    assert not old_path.exists()
    new = content.chunks.filter(url=moved["url"]).one()
    assert disk.path(new).read_bytes() == stored
    assert set(urls(content)) == {*before, moved["url"]} - {old_url}
    check_whole(api, factory, disk, content, data)


@pytest.mark.parametrize("policy", ["THREECOPIES", "EC"])
def test_chunks_moved_at_the_same_time_do_not_end_on_one_service(
    api, store, factory, cid, disk, policy, monkeypatch
):
    """The second move does not know of the first, and is sent to the same service."""
    data, content = store(policy, size=1000)
    late = factory.get(cid, content.content_id)
    first, second = content.chunks[0], late.chunks[-1]
    taken = content.move_chunk(first)["url"]
    target = taken[:-8] + f"{int(taken[-8:], 16) ^ 1:08X}"
    monkeypatch.setattr(late, "_get_spare_chunk", lambda *_args, **_kwargs: ([target], {}))
    with pytest.raises(exc.Conflict, match="another chunk of this metachunk"):
        late.move_chunk(second)
    with pytest.raises(exc.Conflict):
        late.rebuild_chunk(second.id, service_id=second.host)
    with pytest.raises(exc.NotFound):
        api.blob_client.chunk_head(target)
    check_whole(api, factory, disk, content, data)
    monkeypatch.undo()
    late = factory.get(cid, content.content_id)
    late.move_chunk(late.chunks.filter(url=second.url).one())
    check_whole(api, factory, disk, late, data)


@pytest.mark.parametrize("policy", ["THREECOPIES", "EC"])
@pytest.mark.parametrize("method", ["move_chunk", "rebuild_chunk"])
def test_an_object_emptied_during_a_move_stays_empty(
    api, store, container, factory, disk, policy, method, monkeypatch
):
    """What is added later must not come behind bytes that are no longer the object's."""
    _data, content = store(policy, size=1000)
    before = urls(content)
    find_spare = content._get_spare_chunk

    def empty(*args, **kwargs):
        api.object_truncate(ACCOUNT, container, content.path, size=0)
        return find_spare(*args, **kwargs)

    monkeypatch.setattr(content, "_get_spare_chunk", empty)
    chunk = content.chunks[0]
    with pytest.raises(exc.NotFound, match="changed meanwhile"):
        getattr(content, method)(chunk.id, service_id=chunk.host)
    assert urls(factory.get(content.container_id, content.content_id)) == before
    api.object_create(ACCOUNT, container, obj_name=content.path, data=b"more", append=True)
    assert b"".join(api.object_fetch(ACCOUNT, container, content.path)[1]) == b"more"


@pytest.mark.parametrize("policy", ["THREECOPIES", "EC"])
def test_a_chunk_is_not_rebuilt_by_position_into_an_object_that_went(api, store, container, factory, policy):
    _data, content = store(policy, size=1000)
    position = content.chunks[0].pos
    forget(api, content.container_id, content, content.chunks[0])
    late = factory.get(content.container_id, content.content_id)
    find_spare, spares = late._get_spare_chunk, []

    def overwrite(*args, **kwargs):
        spares.append(find_spare(*args, **kwargs))
        api.object_create(ACCOUNT, container, obj_name=content.path, data=b"other", policy=policy)
        return spares[0]

    late._get_spare_chunk = overwrite
    with pytest.raises(exc.NotFound):
        late.rebuild_chunk(None, chunk_pos=position)
    with pytest.raises(exc.NotFound):
        api.blob_client.chunk_head(spares[0][0][0])


@pytest.mark.parametrize("policy", ["TWOCOPIES", "EC"])
def test_an_object_drained_during_a_move_leaves_no_chunk(api, store, container, disk, policy, monkeypatch):
    _data, content = store(policy, size=1000)
    target = []
    find_spare = content._get_spare_chunk

    def drain(*args, **kwargs):
        api.object_drain(ACCOUNT, container, content.path)
        found = find_spare(*args, **kwargs)
        target.append(found[0][0])
        return found

    monkeypatch.setattr(content, "_get_spare_chunk", drain)
    with pytest.raises(exc.NotFound):
        content.move_chunk(content.chunks[0])
    with pytest.raises(exc.NotFound):
        api.blob_client.chunk_head(target[0])


def test_a_chunk_object_can_be_moved(api, store, factory, disk):
    data, content = store("THREECOPIES")
    old_url = content.chunks[1].url
    content.move_chunk(content.chunks[1])
    assert old_url not in urls(content)
    check_whole(api, factory, disk, content, data)


def test_a_dry_run_moves_nothing(api, store, factory, disk):
    data, content = store("TWOCOPIES")
    before = urls(content)
    current = content.chunks[0]
    planned = content.move_chunk(current.id, service_id=current.host, dry_run=True)
    assert planned["url"] not in before
    assert urls(content) == before
    check_whole(api, factory, disk, content, data)


def test_a_lost_copy_can_be_moved_from_another(api, store, factory, disk):
    data, content = store("THREECOPIES")
    lost = content.chunks[0]
    disk.lose(lost)
    content.move_chunk(lost.id, service_id=lost.host)
    check_whole(api, factory, disk, content, data)


@pytest.mark.parametrize(
    ("policy", "error"),
    [("SINGLE", exc.NotFound), ("EC", exc.NotFound), ("THREECOPIES", exc.UnrecoverableContent)],
)
def test_a_move_without_source_changes_nothing(store, disk, policy, error):
    _data, content = store(policy, size=1000)
    before = urls(content)
    for chunk in content.chunks:
        disk.lose(chunk)
    current = content.chunks[0]
    with pytest.raises(error):
        content.move_chunk(current.id, service_id=current.host)
    assert urls(content) == before


def test_a_fragment_that_does_not_tell_its_metachunk_is_not_moved(store, disk):
    _data, content = store("EC", size=1000)
    before = urls(content)
    path = disk.path(content.chunks[0])
    for attribute in ("hash", "size"):
        os.removexattr(path, f"user.grid.metachunk.{attribute}")
    with pytest.raises(exc.FaultyChunk, match=r"metachunk_hash.*metachunk_size"):
        content.move_chunk(content.chunks[0])
    assert urls(content) == before


def test_a_corrupt_chunk_is_not_moved_but_replaced_by_a_good_copy(api, store, factory, disk):
    data, content = store("THREECOPIES", size=1000)
    current = content.chunks[0]
    disk.corrupt(current, 500)
    content.move_chunk(current.id, service_id=current.host)
    check_whole(api, factory, disk, content, data)


def test_the_last_copy_is_kept_when_the_move_cannot_be_registered(api, store, factory, container, disk):
    data, content = store("SINGLE", size=1000)
    current = content.chunks[0]
    before = urls(content)
    api.container.container_freeze(ACCOUNT, container)
    try:
        with pytest.raises(exc.ServiceBusy):
            content.move_chunk(current.id)
    finally:
        api.container.container_enable(ACCOUNT, container)
    assert urls(content) == before
    copies = [path for volume in disk.volumes.values() for path in Path(volume).glob(f"*/{current.id}")]
    assert copies == [disk.path(current)]
    check_whole(api, factory, disk, content, data)


def test_only_better_places_are_accepted_when_quality_counts(store):
    _data, content = store("SINGLE", size=10)
    current = content.chunks[0]
    perfect = dict.fromkeys(("expected_dist", "final_dist"), 10_000)
    current.quality = {**perfect, "expected_slot": "rawx", "final_slot": "rawx"}
    before = urls(content)
    with pytest.raises(exc.SpareChunkException):
        content.move_chunk(current.id, check_quality=True)
    assert urls(content) == before
    current.quality = {"expected_dist": 1, "final_dist": -10, "expected_slot": "rawx", "final_slot": "elsewhere"}
    content.move_chunk(current.id, check_quality=True)
    assert urls(content) != before


def test_services_can_be_avoided(cluster, store):
    _data, content = store("SINGLE", size=10)
    current = content.chunks[0]
    allowed = next(one.service_id for one in cluster.services("rawx") if one.service_id != current.host)
    avoided = [
        {"url": f"http://{service.service_id}/{'0' * 64}"}
        for service in cluster.services("rawx")
        if service.service_id not in (current.host, allowed)
    ]
    moved = content.move_chunk(current.id, fake_excluded_chunks=avoided)
    assert content.chunks[0].host == allowed == moved["url"].split("/")[2]


def test_linked_chunks_follow(api, store, factory, cid, container, disk):
    """Two objects share their files: once one has moved, the other follows by links to the new files."""
    data, content = store("TWOCOPIES")
    api.object_link(ACCOUNT, container, "some object", ACCOUNT, container, "link")
    link = factory.get_by_path_and_version(cid, "link", None)
    by_file = {}
    for one in (content, link):
        for chunk in one.chunks:
            by_file.setdefault(disk.path(chunk).stat().st_ino, []).append((one, chunk))
    pairs = [pair for pair in by_file.values() if len(pair) == 2]
    assert len(pairs) == len(content.chunks)
    for (_, chunk), (_, linked) in pairs:
        old = disk.path(linked)
        moved = content.move_chunk(chunk.id, service_id=chunk.host)
        raw = link.move_linked_chunk(linked.id, moved["url"], service_id=linked.host)
        new = link.chunks.filter(url=raw["url"]).one()
        assert not old.exists()
        assert raw["url"].rpartition("/")[0] == moved["url"].rpartition("/")[0]
        assert raw["real_url"] == api.blob_client.resolve_url(raw["url"])
        assert os.path.samefile(disk.path(new), disk.path(content.chunks.filter(url=moved["url"]).one()))
    check_whole(api, factory, disk, content, data)
    check_whole(api, factory, disk, link, data)
