# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Rules of containers, and of their listing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from meta2_bench import CID, FakeQueue, Meta2Bench

from oio.common.status import StatusError
from oio.meta import messages as m
from oio.meta.meta2.listing import after_prefix


def test_create_is_idempotent(bench: Meta2Bench) -> None:
    assert not bench.create(**{"user.color": "red"})
    admin = bench.properties()
    assert admin["sys.account"] == "acme"
    assert admin["sys.user.name"] == "photos"
    assert admin["sys.ns"] == "NS"
    assert admin["sys.name"] == CID + ".1"
    assert admin["sys.type"] == "meta2"
    assert admin["sys.peers"] == "p1,p2"
    assert admin["schema_version"] == "1.8"
    assert admin["version:main.aliases"] == "1:0"
    assert admin["sys.m2.init"] == "1"
    assert not any(key.startswith("user.") for key in admin)
    assert os.path.exists(f"{bench.volume}/C0C/{CID}.1.meta2")


def test_properties(bench: Meta2Bench) -> None:
    keys = {"user.a": "1", "user.b": "2", "sys.m2.quota": "9"}
    bench.call(m.ContainerSetProperties(cid=CID, properties=keys))
    assert keys.items() <= bench.properties().items()
    bench.call(m.ContainerSetProperties(cid=CID, properties={"user.a": ""}))
    assert "user.a" not in bench.properties()
    bench.call(m.ContainerSetProperties(cid=CID, properties={"user.c": "3"}, clear=True))
    assert "user.b" not in bench.properties()
    assert bench.properties()["sys.m2.quota"] == "9"
    bench.call(m.ContainerDelProperties(cid=CID, names=["sys.m2.quota", "user.unknown"]))
    bench.call(m.ContainerDelProperties(cid=CID))
    assert not {"user.c", "sys.m2.quota"} & bench.properties().keys()
    for bad in ("color", "user.", "sys."):
        with pytest.raises(StatusError, match="Invalid property name"):
            bench.call(m.ContainerSetProperties(cid=CID, properties={bad: "x"}))
    stats = bench.call(m.ContainerGetProperties(cid=CID, stats=True)).properties
    assert stats["stats.page_size"] == "4096"


@pytest.mark.parametrize("key", ["sys.account", "sys.user.name", "sys.ns", "sys.name", "sys.type", "sys.m2.init"])
def test_what_names_a_base_cannot_change(bench: Meta2Bench, key: str) -> None:
    before = bench.properties()
    bench.call(m.ContainerSetProperties(cid=CID, properties={key: before.get(key, "")}))
    before = bench.properties()
    for change in (
        m.ContainerSetProperties(cid=CID, properties={"user.a": "1", key: "other"}),
        m.ContainerSetProperties(cid=CID, properties={key: ""}),
        m.ContainerDelProperties(cid=CID, names=["user.a", key]),
    ):
        with pytest.raises(StatusError, match="cannot be changed") as refused:
            bench.call(change)
        assert refused.value.code == 400
    assert bench.properties() == before


@pytest.mark.parametrize("key", ["sys.m2.policy.version", "sys.m2.quota", "sys.status", "sys.m2.usage"])
@pytest.mark.parametrize("value", ["many", "1.5", "9223372036854775808"])
def test_numbers_are_numbers(bench: Meta2Bench, key: str, value: str) -> None:
    before = bench.properties()
    with pytest.raises(StatusError, match="must be an integer"):
        bench.call(m.ContainerSetProperties(cid=CID, properties={key: value}))
    assert bench.properties() == before


def test_a_container_is_not_created_with_another_identity(tmp_path: Path) -> None:
    bench = Meta2Bench(str(tmp_path), None)
    with pytest.raises(StatusError, match="cannot be changed"):
        bench.create(**{"sys.account": "other"})
    assert not bench.repository.exists(f"{CID}.1")


def test_touch_recomputes(bench: Meta2Bench) -> None:
    bench.put("a", size=7)
    bench.set(sys__m2__usage="12345", sys__m2__objects="99")
    bench.call(m.ContainerTouch(cid=CID))
    assert bench.properties()["sys.m2.usage"] == "12345"
    bench.call(m.ContainerTouch(cid=CID, recompute=True))
    assert bench.check_counters() == (7, 1)


def test_touch_recounts_what_lacks(bench: Meta2Bench) -> None:
    bench.put("whole")
    bench.call(m.ContainerTouch(cid=CID, damaged_objects=True, missing_chunks=True))
    assert "sys.m2.chunks.missing" not in bench.properties()
    bench.put("damaged", copies=1)
    bench.put("more", copies=2)
    bench.set(sys__m2__chunks__missing="50", sys__m2__objects__damaged="60")
    bench.call(m.ContainerTouch(cid=CID, recompute=True))
    assert bench.properties()["sys.m2.chunks.missing"] == "50"
    bench.call(m.ContainerTouch(cid=CID, missing_chunks=True))
    assert bench.properties()["sys.m2.chunks.missing"] == "3"
    assert bench.properties()["sys.m2.objects.damaged"] == "60"
    bench.call(m.ContainerTouch(cid=CID, damaged_objects=True))
    assert bench.properties()["sys.m2.objects.damaged"] == "2"


def test_destroy(bench: Meta2Bench) -> None:
    bench.put("a")
    with pytest.raises(StatusError) as caught:
        bench.call(m.ContainerDestroy(cid=CID))
    assert caught.value.code == 438
    bench.call(m.ContainerDestroy(cid=CID, force=True))
    with pytest.raises(StatusError) as caught:
        bench.properties()
    assert caught.value.code == 431
    with pytest.raises(StatusError) as caught:
        bench.call(m.ContainerDestroy(cid=CID))
    assert caught.value.code == 431
    assert bench.create()
    assert bench.objects() == []


def test_a_destruction_that_comes_late_spares_what_was_made_since(bench: Meta2Bench) -> None:
    bench.call(m.ContainerSetStatus(cid=CID, status="frozen"))
    bench.call(m.ContainerDestroy(cid=CID, sealed=True))
    bench.create()
    with pytest.raises(StatusError) as caught:
        bench.call(m.ContainerDestroy(cid=CID, sealed=True))
    assert caught.value.code == 439
    assert bench.objects() == []


def test_a_container_of_markers_is_empty(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    version = bench.put("a")
    bench.delete("a")
    bench.delete("a", version=version)
    assert len(bench.versions("a")) == 1
    bench.call(m.ContainerDestroy(cid=CID))


def test_without_event_queue_nothing_is_stored(tmp_path: Path) -> None:
    bench = Meta2Bench(str(tmp_path), None)
    bench.create()
    bench.put("a")
    rows = bench.repository.read(
        CID + ".1", lambda reader: reader.execute("SELECT count(*) FROM events").fetchone()
    )
    assert rows == (0,)
    bench.call(m.ContainerDestroy(cid=CID, force=True))
    assert list(tmp_path.glob("**/*.meta2*")) == []
    assert bench.create()
    bench.repository.close()


def test_events_of_a_life(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    version = bench.put("a", properties={"k": "v"}, copies=2)
    bench.put("a", size=3)
    bench.call(m.ContentSetProperties(cid=CID, path="a", properties={"x": "1"}))
    bench.call(m.ContentDelProperties(cid=CID, path="a", names=["unknown"]))
    bench.call(m.ContentDelProperties(cid=CID, path="a", names=["x"]))
    bench.delete("a")
    bench.set(sys__m2__bucket__name="bucket")
    bench.call(m.ContainerDestroy(cid=CID))
    event_queue.wait_for(lambda: "meta2.deleted" in event_queue.kinds())
    kinds = [kind for kind in event_queue.kinds() if kind != "container.state"]
    assert kinds == [
        "container.new", "content.new", "content.broken", "content.deleted", "content.new",
        "content.update", "content.update", "content.deleted", "container.update",
        "container.deleted", "meta2.deleted",
    ]
    by_kind = {event["event"].removeprefix("storage."): event for event in event_queue.events}
    url = {"ns": "NS", "account": "acme", "user": "photos", "id": CID}
    assert by_kind["container.new"]["url"] == url
    assert by_kind["container.new"]["data"]["peers"] == ["p2", "p1"]
    assert by_kind["meta2.deleted"]["data"] == {"peer": "NS-meta2-1"}
    assert by_kind["container.deleted"]["data"] == {"bucket": "bucket"}
    assert by_kind["content.broken"]["data"]["missing_chunks"] == ["0"]
    replaced = next(e for e in event_queue.events if e["event"] == "storage.content.deleted")
    assert replaced["url"] == {
        **url, "path": "a", "version": str(version), "content": replaced["data"][0]["header"],
    }
    assert [bean["type"] for bean in replaced["data"]] == [
        "aliases", "contents_headers", "properties", "chunks", "chunks",
    ]
    assert (replaced["part"], replaced["parts"]) == (0, 1)
    assert (replaced["request_id"], replaced["origin"]) == ("reqid-1", "agent")
    assert by_kind["content.update"]["data"][-1]["value"] is None


def test_state_event(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    for i in range(20):
        bench.put(f"o{i}", size=2)

    def told() -> bool:
        states = [e for e in event_queue.events if e["event"] == "storage.container.state"]
        return bool(states) and states[-1]["data"]["object-count"] == 20

    event_queue.wait_for(told)
    states = [e for e in event_queue.events if e["event"] == "storage.container.state"]
    assert states[-1]["data"]["bytes-count"] == 40
    assert len(states) <= 3


def test_large_deletion_is_split(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    chunks = [chunk for i in range(20) for chunk in Meta2Bench.chunks(str(i), 10, 1)]
    bench.put("a", size=200, chunks=chunks, security=m.Security(nb_copy=1))
    bench.delete("a")
    event_queue.wait_for(lambda: event_queue.kinds().count("content.deleted") == 3)
    parts = [e for e in event_queue.events if e["event"] == "storage.content.deleted"]
    assert [(e["part"], e["parts"], len(e["data"])) for e in parts] == [(0, 3, 2), (1, 3, 18), (2, 3, 6)]


def test_delete_marker_event(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 7)
    bench.delete("a")
    event_queue.wait_for(lambda: "content.deleted" in event_queue.kinds())
    event = next(e for e in event_queue.events if e["event"] == "storage.content.deleted")
    assert event["url"]["version"] == "7"
    assert event["url"]["content"] == b"DELETED".hex().upper()
    assert [bean["type"] for bean in event["data"]] == ["aliases"]
    assert event["data"][0]["deleted"] is True


def test_perfectible_event(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    chunks = Meta2Bench.chunks("0", 10, 3)
    good = '{"expected_dist":4,"final_dist":4,"warn_dist":0,"expected_slot":"a","final_slot":"a"}'
    bad = good.replace('"final_slot":"a"', '"final_slot":"b"')
    bench.put("fine", chunks=chunks, properties={f"__OIO_CHUNK__{c.url}": good for c in chunks})
    chunks = Meta2Bench.chunks("0", 10, 3)
    bench.put("bad", chunks=chunks, properties={f"__OIO_CHUNK__{c.url}": bad for c in chunks})
    event_queue.wait_for(lambda: "content.perfectible" in event_queue.kinds())
    events = [e for e in event_queue.events if e["event"] == "storage.content.perfectible"]
    assert [e["url"]["path"] for e in events] == ["bad"]
    assert events[0]["data"]["chunks"][0]["quality"]["final_slot"] == "b"
    assert bench.show("bad").properties == {}


# --- listing --------------------------------------------------------------------------------------


def names(bench: Meta2Bench, **fields: object) -> list[str]:
    return [item["name"] for item in bench.objects(**fields)]


def test_listing_item(bench: Meta2Bench) -> None:
    bench.put("a", 5, content_id="EE" * 16, properties={"k": "v"})
    item = bench.objects()[0]
    assert item.pop("ctime") == item.pop("mtime")
    assert item == {
        "name": "a", "version": 5, "deleted": False, "id": "EE" * 16, "content": "EE" * 16,
        "policy": "THREE", "chunk-method": "plain/nb_copy=3", "hash": "AB" * 16, "size": 10,
        "mime-type": "application/octet-stream",
    }
    assert bench.objects(properties=True)[0]["properties"] == {"k": "v"}
    bench.set(sys__m2__policy__version="-1")
    bench.delete("a")
    marker = bench.objects(deleted=True)[0]
    assert marker["id"] == "44454C45544544"
    assert marker["mime-type"] == "application/x-deleted;swift_versions_deleted=1"
    assert [marker[key] for key in ("policy", "chunk-method", "hash", "size")] == [None] * 4


def test_listing_pages(bench: Meta2Bench) -> None:
    wanted = sorted(f"{i % 4}/{i:03d}" for i in range(64))
    for name in wanted:
        bench.put(name)
    for size in (1, 7, 63, 64, 65):
        seen: list[str] = []
        marker = ""
        while True:
            page = bench.listing(max=size, marker=marker)
            seen += [item["name"] for item in bench.objects(max=size, marker=marker)]
            if not page.truncated:
                break
            marker = page.next_marker
        assert seen == wanted
        assert page.next_marker == ""
    assert names(bench, marker="0/") == wanted
    assert names(bench, prefix="1/") == [name for name in wanted if name.startswith("1/")]
    assert names(bench, prefix="1/", marker="1/005", end_marker="1/013") == ["1/009"]
    assert names(bench, prefix="1/", marker="2") == []
    assert bench.listing().properties["sys.account"] == "acme"


def test_listing_with_delimiter(bench: Meta2Bench) -> None:
    for name in ("a", "b/1", "b/2", "b/c/3", "c", "d/1", "e/", "z"):
        bench.put(name)
    reply = bench.listing(delimiter="/")
    assert (names(bench, delimiter="/"), reply.prefixes) == (["a", "c", "z"], ["b/", "d/", "e/"])
    reply = bench.listing(delimiter="/", prefix="b/")
    assert (names(bench, delimiter="/", prefix="b/"), reply.prefixes) == (["b/1", "b/2"], ["b/c/"])
    assert bench.listing(delimiter="/", marker="b/").prefixes == ["d/", "e/"]
    for size in (1, 2, 3, 5, 6):
        seen: list[str] = []
        marker = ""
        while True:
            page = bench.listing(delimiter="/", max=size, marker=marker)
            found = names(bench, delimiter="/", max=size, marker=marker)
            assert len(found) + len(page.prefixes) <= size
            seen += sorted(found + page.prefixes)
            if not page.truncated:
                break
            marker = page.next_marker
        assert seen == ["a", "b/", "c", "d/", "e/", "z"]


def test_prefix_of_hidden_objects_is_hidden(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    for name in ("a/1", "a/2", "b/1"):
        bench.put(name)
    bench.delete("a/1")
    assert bench.listing(delimiter="/").prefixes == ["a/", "b/"]
    bench.delete("a/2")
    assert bench.listing(delimiter="/").prefixes == ["b/"]
    assert bench.listing(delimiter="/", deleted=True).prefixes == ["a/", "b/"]


def test_listing_jumps_over_versions(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    for version in range(1, 40):
        bench.put("a", version)
    bench.put("b", 1)
    assert [(i["name"], i["version"]) for i in bench.objects()] == [("a", 39), ("b", 1)]
    assert [(i["name"], i["version"]) for i in bench.objects(delimiter="/")] == [("a", 39), ("b", 1)]
    assert len(bench.objects(all_versions=True)) == 40
    page = bench.listing(all_versions=True, max=10)
    assert (page.truncated, page.next_marker) == (True, "a")
    assert names(bench, all_versions=True, marker="a") == ["b"]


def test_look_up_by_chunk_and_hash(bench: Meta2Bench) -> None:
    chunks = Meta2Bench.chunks("0", 10, 3)
    bench.put("a", chunks=chunks, hash="12" * 16)
    bench.put("b")
    assert names(bench, chunk_id=chunks[0].url) == ["a"]
    assert names(bench, chunk_id=chunks[0].url.rpartition("/")[2]) == ["a"]
    assert names(bench, content_hash="12" * 16) == ["a"]
    for fields in ({"chunk_id": "A" * 64}, {"content_hash": "34" * 16}, {"chunk_id": "%"}):
        with pytest.raises(StatusError) as caught:
            bench.listing(**fields)
        assert caught.value.code == 420


def test_after_prefix() -> None:
    assert after_prefix("a/") == "a0"
    assert after_prefix("a\U0010ffff") == "b"
    assert after_prefix("\U0010ffff") == ""
    assert after_prefix("\ud7ff") == "\ue000"
