# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Changes of chunks in place: update, truncate, drain; and what drained objects and markers allow."""

from __future__ import annotations

from typing import Any

import pytest
from meta2_bench import ADMIN, CID, FakeQueue, Meta2Bench
from meta2_kit import beans, damage, kinds, refused, state, told

from oio.meta import messages as m

FROZEN = "4294967295"


def put(bench: Meta2Bench, sizes: list[int], copies: int = 3, **fields: Any) -> int:
    """An object whose metachunks have these sizes."""
    chunks = [c for n, size in enumerate(sizes) for c in Meta2Bench.chunks(str(n), size, copies)]
    return bench.put("a", size=sum(sizes), chunks=chunks, **fields)


def update(bench: Meta2Bench, chunks: list[m.Chunk], **fields: Any) -> None:
    context = fields.pop("context", ADMIN)
    fields.setdefault("security", m.Security(nb_copy=3))
    bench.call(m.ContentUpdate(cid=CID, path="a", chunks=chunks, policy="THREE", **fields), context)


def truncate(bench: Meta2Bench, size: int, **fields: Any) -> None:
    bench.call(m.ContentTruncate(cid=CID, path="a", size=size, **fields))


def drain(bench: Meta2Bench, path: str = "a", **fields: Any) -> None:
    bench.call(m.ContentDrain(cid=CID, path=path, **fields))


def positions(bench: Meta2Bench) -> dict[str, int]:
    """Size of each position of the object."""
    return {chunk.pos: chunk.size for chunk in bench.show("a").chunks}


# --- update ---------------------------------------------------------------------------------------------


def test_update_replaces_the_metachunks_that_it_names(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    version = put(bench, [10, 10, 10], properties={"k": "v"})
    former = bench.show("a")
    told(bench, event_queue)
    new = Meta2Bench.chunks("1", 4, 3)
    update(bench, new, properties={"l": "w", "__OIO_CHUNK__x": ""})
    shown = bench.show("a")
    assert (shown.version, shown.size, shown.hash, shown.ctime) == (version, 24, "", former.ctime)
    assert shown.properties == {"k": "v", "l": "w"}
    assert positions(bench) == {"0": 10, "1": 4, "2": 10}
    assert {c.url for c in shown.chunks if c.pos == "1"} == {c.url for c in new}
    assert bench.check_counters() == (24, 1)
    events = told(bench, event_queue)
    assert kinds(events) == ["deleted", "new"]
    assert {c["id"] for c in beans(events[0], "chunks")} == {c.url for c in former.chunks if c.pos == "1"}
    assert beans(events[0], "contents_headers")[0]["size"] == 30
    assert beans(events[1], "contents_headers")[0] == {
        **beans(events[0], "contents_headers")[0], "size": 24, "hash": "",
    }
    assert len(beans(events[1], "properties")) == 2
    assert events[1]["url"]["version"] == str(version)


def test_update_designates_by_content_id_else_by_version(bench: Meta2Bench) -> None:
    version = put(bench, [10])
    content_id = bench.show("a").content_id
    update(bench, Meta2Bench.chunks("0", 4, 3), content_id=content_id, version=version + 7)
    update(bench, Meta2Bench.chunks("0", 5, 3), content_id="CD" * 16, version=version)
    assert positions(bench) == {"0": 5}
    # Neither is in place any more: another object is not touched, whatever its name.
    before = state(bench)
    refused(420, update, bench, Meta2Bench.chunks("0", 6, 3), content_id="CD" * 16, version=version - 1)
    assert state(bench) == before
    drain(bench)
    refused(427, update, bench, Meta2Bench.chunks("0", 6, 3), content_id="CD" * 16, version=version + 7)
    bench.call(m.ContentDelete(cid=CID, path="a"))
    refused(420, update, bench, Meta2Bench.chunks("0", 6, 3), content_id="CD" * 16, version=version + 7)


def test_update_never_tells_to_delete_a_chunk_that_stays(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    put(bench, [10])
    kept = bench.show("a").chunks
    told(bench, event_queue)
    moved = Meta2Bench.chunks("0", 10, 1)
    update(bench, [*kept[:2], *moved])
    events = told(bench, event_queue)
    assert kinds(events) == ["deleted", "new"]
    assert [c["id"] for c in beans(events[0], "chunks")] == [kept[2].url]
    update(bench, [*kept[:2], *moved])
    assert kinds(told(bench, event_queue)) == ["new"]


def test_update_counts_what_lacks_before_and_after(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    put(bench, [10, 10])
    told(bench, event_queue)
    update(bench, Meta2Bench.chunks("0", 10, 1))
    assert damage(bench) == (1, 2)
    events = told(bench, event_queue)
    assert kinds(events) == ["deleted", "new", "broken"]
    assert events[2]["data"]["missing_chunks"] == ["0", "0"]
    update(bench, Meta2Bench.chunks("1", 10, 2))
    assert damage(bench) == (1, 3)
    update(bench, Meta2Bench.chunks("0", 10, 3))
    assert damage(bench) == (1, 1)
    update(bench, Meta2Bench.chunks("1", 10, 4))
    assert damage(bench) == (0, 0)


def test_update_of_erasure_coded_metachunk(bench: Meta2Bench) -> None:
    security = m.Security(type="ec", k=2, m=1)

    def fragments(number: int, size: int, which: str = "012") -> list[m.Chunk]:
        return [c for i in which for c in Meta2Bench.chunks(f"{number}.{i}", size, 1)]

    bench.put(
        "a", size=20, chunks=fragments(0, 10) + fragments(1, 10), security=security,
        chunk_method="ec/k=2,m=1",
    )
    update(bench, fragments(1, 6), security=security)
    assert bench.show("a").size == 16
    update(bench, fragments(0, 10, "02"), security=security)
    assert damage(bench) == (1, 1)
    before = state(bench)
    refused(425, update, bench, fragments(0, 10, "1"), security=security)
    refused(425, update, bench, fragments(0, 10, "0123"), security=security)
    refused(425, update, bench, Meta2Bench.chunks("0", 10, 3), security=security)
    # Right after the policy named, wrong after the object.
    refused(425, update, bench, Meta2Bench.chunks("0", 10, 3))
    assert state(bench) == before


def test_update_may_add_the_next_metachunk_but_no_hole(bench: Meta2Bench) -> None:
    put(bench, [10])
    update(bench, Meta2Bench.chunks("1", 5, 3))
    assert bench.show("a").size == 15
    before = state(bench)
    refused(425, update, bench, Meta2Bench.chunks("3", 5, 3))
    refused(425, update, bench, Meta2Bench.chunks("0", 5, 2) + Meta2Bench.chunks("0", 6, 1))
    refused(425, update, bench, Meta2Bench.chunks("x", 5, 3))
    refused(400, update, bench, [])
    refused(400, update, bench, Meta2Bench.chunks("0", 5, 1) * 2)
    refused(400, update, bench, Meta2Bench.chunks("0", 5, 1), properties={"": "v"})
    assert state(bench) == before


def test_update_of_a_last_chunk_larger_than_what_is_used_of_it(bench: Meta2Bench) -> None:
    chunks = Meta2Bench.chunks("0", 100, 3) + Meta2Bench.chunks("1", 100, 3)
    bench.put("a", size=120, chunks=chunks)
    update(bench, Meta2Bench.chunks("1", 20, 3))
    assert bench.show("a").size == 120
    update(bench, Meta2Bench.chunks("0", 50, 3))
    assert bench.show("a").size == 70
    assert bench.check_counters() == (70, 1)


# --- truncate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kept"), [(30, 3), (25, 2), (10, 1)])
def test_truncate_at_the_end_of_a_metachunk(
    bench: Meta2Bench, event_queue: FakeQueue, size: int, kept: int
) -> None:
    put(bench, [10, 15, 5], properties={"k": "v"})
    former = bench.show("a")
    told(bench, event_queue)
    truncate(bench, size)
    shown = bench.show("a")
    assert (shown.size, shown.hash) == (size, "")
    assert list(positions(bench)) == ["0", "1", "2"][:kept]
    assert bench.check_counters() == (size, 1)
    events = told(bench, event_queue)
    assert kinds(events) == (["deleted", "new"] if kept < 3 else ["new"])
    if kept < 3:
        lost = {c.url for c in former.chunks if int(c.pos) >= kept}
        assert {c["id"] for c in beans(events[0], "chunks")} == lost
        assert beans(events[0], "contents_headers")[0]["size"] == 30
    assert beans(events[-1], "contents_headers")[0]["size"] == size
    assert beans(events[-1], "properties")[0]["key"] == "k"


def test_truncate_to_nothing_keeps_an_empty_first_metachunk(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    put(bench, [10, 15])
    told(bench, event_queue)
    truncate(bench, 0)
    assert positions(bench) == {"0": 0}
    assert len(bench.show("a").chunks) == 3
    assert bench.check_counters() == (0, 1)
    assert [len(beans(event, "chunks")) for event in told(bench, event_queue)] == [3, 0]
    bench.put("a", size=4, append=True)
    assert (bench.show("a").size, positions(bench)) == (4, {"0": 0, "1": 4})


@pytest.mark.parametrize("size", [-1, 1, 9, 11, 24, 26, 2**63])
def test_truncate_elsewhere_is_refused(bench: Meta2Bench, size: int) -> None:
    put(bench, [10, 15])
    before = state(bench)
    refused(400, truncate, bench, size)
    assert state(bench) == before


def test_truncate_orders_metachunks_by_number(bench: Meta2Bench) -> None:
    put(bench, [1] * 12)
    truncate(bench, 11)
    assert sorted(map(int, positions(bench))) == list(range(11))
    truncate(bench, 2)
    assert sorted(map(int, positions(bench))) == [0, 1]


def test_truncate_where_fragments_do_not_tell_their_metachunk(bench: Meta2Bench) -> None:
    # Some clients announce the size of the fragment: the ends of metachunks cannot be told.
    chunks = [c for n in "01" for i in "012" for c in Meta2Bench.chunks(f"{n}.{i}", 5, 1)]
    bench.put(
        "a", size=20, chunks=chunks, security=m.Security(type="ec", k=2, m=1), chunk_method="ec/k=2,m=1"
    )
    refused(400, truncate, bench, 5)
    truncate(bench, 0)
    assert bench.show("a").size == 0


# --- drain ----------------------------------------------------------------------------------------------


def test_drain_keeps_all_but_chunks(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    put(bench, [10, 10], copies=2, properties={"k": "v"})
    assert damage(bench) == (1, 2)
    former = bench.show("a")
    told(bench, event_queue)
    drain(bench)
    shown = bench.show("a", drained=True)
    assert (shown.size, shown.hash, shown.properties) == (20, former.hash, {"k": "v"})
    assert (shown.chunk_method, shown.chunks, shown.version) == ("drained", [], former.version)
    assert bench.check_counters() == (20, 1)
    assert damage(bench) == (0, 0)
    (event,) = told(bench, event_queue)
    assert event["event"] == "storage.content.drained"
    assert {c["id"] for c in beans(event, "chunks")} == {c.url for c in former.chunks}
    drain(bench)
    assert told(bench, event_queue) == []
    assert bench.objects()[0]["chunk-method"] == "drained"


def test_what_drained_objects_allow(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    put(bench, [10])
    drain(bench)
    before = state(bench)
    refused(427, bench.show, "a")
    refused(427, truncate, bench, 0)
    refused(427, bench.put, "a", append=True)
    refused(427, update, bench, Meta2Bench.chunks("0", 10, 3))
    assert state(bench) == before
    bench.call(m.ContentSetProperties(cid=CID, path="a", properties={"x": "1"}))
    told(bench, event_queue)
    bench.call(m.ContentTouch(cid=CID, path="a"))
    (event,) = told(bench, event_queue)
    assert event["event"] == "storage.content.new"
    assert beans(event, "contents_headers")[0]["chunk-method"] == "drained"
    bench.call(m.ContentDelProperties(cid=CID, path="a", names=["x"]))
    bench.put("a")
    drain(bench)
    bench.delete("a")
    refused(420, drain, bench)
    assert bench.check_counters() == (0, 0)
    put(bench, [10])
    drain(bench)


def test_drain_of_one_version(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5)
    bench.put("a", 6)
    drain(bench, version=5)
    refused(427, bench.show, "a", version=5)
    assert bench.show("a").version == 6
    by_id = bench.show("a").content_id
    bench.call(m.ContentDrain(cid=CID, content_id=by_id))
    refused(427, bench.show, "a")


def test_drain_of_many_chunks_is_told_in_parts(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    put(bench, [1] * 7)
    told(bench, event_queue)
    drain(bench)
    events = told(bench, event_queue)
    assert [(e["part"], e["parts"], len(beans(e, "chunks"))) for e in events] == [
        (0, 3, 0), (1, 3, 16), (2, 3, 5),
    ]
    for event in events:
        assert len(beans(event, "aliases")) == len(beans(event, "contents_headers")) == 1


# --- what all of them refuse ------------------------------------------------------------------------------


def changes(bench: Meta2Bench) -> list[Any]:
    return [
        lambda **f: update(bench, Meta2Bench.chunks("0", 10, 3), **f),
        lambda **f: truncate(bench, 0, **f),
        lambda **f: drain(bench, **f),
    ]


def test_absent_objects_and_markers_have_no_chunks(bench: Meta2Bench) -> None:
    for attempt in changes(bench):
        refused(420, attempt)
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5)
    bench.delete("a")
    for attempt in changes(bench):
        refused(420, attempt)
        refused(420, attempt, version=6)
        refused(420, attempt, version=99)


def test_frozen_and_disabled_containers(bench: Meta2Bench) -> None:
    bench.put("a")
    for value in (FROZEN, "4294967294"):
        bench.set(sys__status=value)
        for attempt in changes(bench):
            refused(436, attempt)
        refused(436, bench.call, m.ContentPurge(cid=CID, path="a"))
        refused(436, bench.call, m.ContainerPurge(cid=CID))


@pytest.mark.parametrize(("variable", "code"), [("ns.worm", 405), ("ns.master", 500)])
def test_modes_of_the_namespace(bench: Meta2Bench, variable: str, code: int) -> None:
    bench.put("a")
    bench.variables.set(variable, "on" if variable == "ns.worm" else "off")
    for request in (
        m.ContentUpdate(cid=CID, path="a", chunks=Meta2Bench.chunks("0", 10, 3), policy="THREE"),
        m.ContentTruncate(cid=CID, path="a", size=0),
        m.ContentDrain(cid=CID, path="a"),
        m.ContainerPurge(cid=CID),
    ):
        message = refused(code, bench.call, request)
        assert ("worm" if code == 405 else "NS slave!") in message
        bench.call(request, ADMIN)
    if code == 405:
        bench.call(m.ContentPurge(cid=CID, path="a"))
    else:
        refused(500, bench.call, m.ContentPurge(cid=CID, path="a"))


# --- properties -----------------------------------------------------------------------------------------


def test_properties_of_markers_and_frozen_objects(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5, properties={"k": "v"})
    bench.delete("a")
    marker = bench.show("a", deleted=True, drained=True, chunks=False)
    assert (marker.deleted, marker.version, marker.properties) == (True, 6, {})
    for change in (
        m.ContentSetProperties(cid=CID, path="a", properties={"x": "1"}),
        m.ContentDelProperties(cid=CID, path="a", names=["x"]),
        m.ContentTouch(cid=CID, path="a"),
    ):
        refused(420, bench.call, change)
    bench.call(m.ContentSetProperties(cid=CID, path="a", version=5, properties={"x": "1"}))
    assert bench.show("a", version=5).properties == {"k": "v", "x": "1"}
    bench.set(sys__status=FROZEN)
    assert bench.show("a", version=5).properties == {"k": "v", "x": "1"}
    refused(436, bench.call, m.ContentSetProperties(cid=CID, path="a", version=5, properties={"x": "2"}))
    refused(436, bench.call, m.ContentDelProperties(cid=CID, path="a", version=5))
    bench.call(m.ContentTouch(cid=CID, path="a", version=5))


def test_events_of_property_changes(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.put("a", properties={"k": "v", "l": "w"})
    told(bench, event_queue)
    bench.call(m.ContentSetProperties(cid=CID, path="a", properties={"x": "1"}, clear=True))
    (event,) = told(bench, event_queue)
    assert event["event"] == "storage.content.update"
    assert {b["key"]: b["value"] for b in beans(event, "properties")} == {"k": None, "l": None, "x": "1"}
    assert beans(event, "chunks") == []
    bench.call(m.ContentDelProperties(cid=CID, path="a", names=["unknown"]))
    assert told(bench, event_queue) == []
    bench.call(m.ContentDelProperties(cid=CID, path="a", names=["x", "unknown"]))
    (event,) = told(bench, event_queue)
    assert {b["key"]: b["value"] for b in beans(event, "properties")} == {"x": None}
    refused(400, bench.call, m.ContentSetProperties(cid=CID, path="a", properties={"": "v"}))


def test_touch_tells_all_properties(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.put("a", properties={"k": "v", "l": "w"})
    told(bench, event_queue)
    bench.call(m.ContentTouch(cid=CID, path="a"))
    (event,) = told(bench, event_queue)
    assert kinds([event]) == ["new"]
    assert {b["key"]: b["value"] for b in beans(event, "properties")} == {"k": "v", "l": "w"}
    assert beans(event, "chunks") == []
    refused(420, bench.call, m.ContentTouch(cid=CID, path="b"))
