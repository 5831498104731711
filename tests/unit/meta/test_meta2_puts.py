# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the table "Put on an existing name", and what adds to the version in place."""

from __future__ import annotations

from typing import Any

import pytest
from meta2_bench import ADMIN, CID, FakeQueue, Meta2Bench
from meta2_kit import beans, damage, kinds, refused, same_chunk, state, told

from oio.meta import messages as m

ID = "AB" * 16


# --- put ------------------------------------------------------------------------------------------------


def test_content_id_in_use_is_refused_even_by_the_version_that_it_would_replace(bench: Meta2Bench) -> None:
    bench.put("a", 5, content_id=ID)
    before = state(bench)
    for name, version in (("a", 6), ("b", 7)):
        assert "ID" in refused(421, bench.put, name, version, content_id=ID)
    assert state(bench) == before


@pytest.mark.parametrize("mode", ["-1", "2", "0", "1"])
def test_version_in_place_cannot_be_put_again(bench: Meta2Bench, mode: str) -> None:
    bench.set(sys__m2__policy__version=mode)
    bench.put("a", 5)
    before = state(bench)
    refused(421, bench.put, "a", 5)
    assert state(bench) == before


@pytest.mark.parametrize(
    ("mode", "code"), [("-1", 0), ("3", 0), ("0", 424), ("1", 424)]
)
def test_version_older_than_the_latest(bench: Meta2Bench, mode: str, code: int) -> None:
    bench.set(sys__m2__policy__version=mode)
    bench.put("a", 5)
    if code:
        assert "older" in refused(code, bench.put, "a", 4)
        assert bench.versions("a") == [(5, False)]
        return
    bench.put("a", 4)
    assert bench.versions("a") == [(5, False), (4, False)]
    refused(421, bench.put, "a", 4)
    assert bench.show("a").version == 5


@pytest.mark.parametrize("mode", ["0", "1"])
def test_put_over_a_marker_without_versions_replaces_the_marker(bench: Meta2Bench, mode: str) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5)
    bench.delete("a")
    bench.set(sys__m2__policy__version=mode)
    bench.put("a", 9)
    assert bench.versions("a") == [(9, False), (5, False)]
    assert bench.check_counters() == (20, 2)


def test_version_zero_in_place_conflicts_when_versions_are_disabled(bench: Meta2Bench) -> None:
    # No put makes one: restored rows may.
    bench.put("a", 5)
    bench.repository.write(CID + ".1", lambda tx: list(tx.execute("UPDATE aliases SET version = 0")))
    bench.set(sys__m2__policy__version="0")
    refused(421, bench.put, "a", 6)
    bench.set(sys__m2__policy__version="1")
    bench.put("a", 6)
    assert bench.versions("a") == [(6, False)]


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2**63 - 1},
        {"version": 2**64 - 1},
        {"content_id": b"DELETED".hex().upper()},
        {"chunk_method": "drained"},
        {"size": 2**63, "chunks": [same_chunk("u", "0", 10)]},
        {"chunks": [same_chunk("u", "0", 2**63)]},
        {"chunks": [same_chunk("u", "0", -1)]},
        {"chunks": [same_chunk("", "0", 10)]},
        {"properties": {"": "v"}},
        {"append": True, "force": True},
        {"append": True, "change_policy": True},
        {"force": True, "change_policy": True},
        {"append": True, "version": 2**63 - 1},
        {"force": True, "version": -1},
        {"force_versioning": 2**63},
    ],
)
def test_what_cannot_be_stored_is_a_bad_request(bench: Meta2Bench, fields: dict[str, Any]) -> None:
    bench.put("a", 5)
    before = state(bench)
    refused(400, bench.put, "a", **fields)
    assert state(bench) == before


@pytest.mark.parametrize("position", ["00", "-1", "1.", "0.", ".0", "0.00", "\u0663", "1e1", ""])
def test_positions_are_written_in_one_way(bench: Meta2Bench, position: str) -> None:
    for security in (m.Security(), m.Security(type="ec", k=1, m=0)):
        refused(425, bench.put, "a", chunks=Meta2Bench.chunks(position, 10, 1), security=security)


def test_overwriting_tells_deleted_then_new(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.put("a", 5, properties={"old": "1"})
    bench.put("a", 6, properties={"k": "v", "__OIO_CHUNK__x": ""})
    events = told(bench, event_queue)
    assert kinds(events) == ["new", "deleted", "new"]
    assert [event["url"]["version"] for event in events] == ["5", "5", "6"]
    assert len(beans(events[1], "chunks")) == 3
    assert beans(events[1], "properties")[0]["key"] == "old"
    assert beans(events[2], "chunks") == []
    assert [(b["key"], b["value"]) for b in beans(events[2], "properties")] == [("k", "v")]
    assert (events[2]["part"], events[2]["parts"]) == (0, 1)
    assert beans(events[2], "contents_headers")[0]["policy"] == "THREE"


def test_trimmed_put_tells_new_before_deleted(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.set(sys__m2__policy__version="2", sys__m2__policy__version__delete_exceeding="1")
    for version in (10, 20, 30):
        bench.put("a", version)
    assert [(e["event"][-3:], e["url"]["version"]) for e in told(bench, event_queue)] == [
        ("new", "10"), ("new", "20"), ("ted", "10"), ("new", "30"),
    ]
    bench.put("a", 15)  # older than those that are kept
    assert [v for v, _ in bench.versions("a")] == [30, 20]
    events = told(bench, event_queue)
    assert kinds(events) == ["new", "deleted"]
    assert {event["url"]["version"] for event in events} == {"15"}
    assert bench.check_counters() == (20, 2)


def test_worm_refuses_to_overwrite_in_place_but_not_to_add_versions(bench: Meta2Bench) -> None:
    bench.put("a", 5)
    bench.variables.set("ns.worm", "on")
    for mode in ("0", "1"):
        bench.set(sys__m2__policy__version=mode)
        assert "worm" in refused(421, bench.put, "a", 6)
    bench.set(sys__m2__policy__version="2", sys__m2__policy__version__delete_exceeding="1")
    for version in (6, 7):
        bench.put("a", version)
    assert len(bench.versions("a")) == 3  # nothing is trimmed
    bench.put("a", 8, context=ADMIN)
    assert len(bench.versions("a")) == 2


def test_defaults_of_a_put(bench: Meta2Bench) -> None:
    bench.call(
        m.ContentPut(
            cid=CID, path="a", version=3, content_id=ID, size=10, chunks=Meta2Bench.chunks("0", 10, 1)
        )
    )
    shown = bench.show("a")
    assert (shown.chunk_method, shown.mime_type, shown.policy, shown.hash) == (
        "plain", "application/octet-stream", "NONE", "",
    )
    assert bench.objects()[0]["hash"] is None


def test_copies_beyond_the_policy_are_accepted(bench: Meta2Bench) -> None:
    bench.put("a", copies=5)
    assert damage(bench) == (0, 0)


# --- append ---------------------------------------------------------------------------------------------


def test_append_shifts_fragments_and_keeps_identity(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    security = m.Security(type="ec", k=2, m=1)
    ec: dict[str, Any] = {"security": security, "chunk_method": "ec/algo=x,k=2,m=1"}

    def chunks(count: int) -> list[m.Chunk]:
        return [c for n in range(count) for i in range(3) for c in Meta2Bench.chunks(f"{n}.{i}", 10, 1)]

    bench.put("a", 5, 20, chunks=chunks(2), content_id=ID, properties={"k": "v"}, **ec)
    told(bench, event_queue)
    bench.put("a", 9, 25, chunks=chunks(3), append=True, properties={"l": "w"}, **ec)
    shown = bench.show("a")
    assert (shown.version, shown.content_id, shown.size, shown.hash) == (5, ID, 45, "")
    assert sorted({c.pos for c in shown.chunks}) == [f"{n}.{i}" for n in range(5) for i in range(3)]
    assert shown.properties == {"k": "v", "l": "w"}
    (event,) = told(bench, event_queue)
    assert event["event"] == "storage.content.append"
    assert (event["url"]["version"], event["url"]["content"]) == ("5", ID)
    assert beans(event, "contents_headers")[0]["size"] == 45
    assert len(beans(event, "properties")) == 2
    assert bench.check_counters() == (45, 1)


def test_append_beyond_ten_metachunks(bench: Meta2Bench) -> None:
    for _ in range(12):
        bench.put("a", size=1, append=True)
    assert {int(chunk.pos) for chunk in bench.show("a").chunks} == set(range(12))


def test_append_is_checked_on_what_is_sent(bench: Meta2Bench) -> None:
    bench.put("a", 5)
    before = state(bench)
    refused(425, bench.put, "a", append=True, chunks=Meta2Bench.chunks("1", 10, 3))
    refused(425, bench.put, "a", size=11, append=True, chunks=Meta2Bench.chunks("0", 10, 3))
    ec = m.Security(type="ec", k=1, m=1)
    # Correct after the policy that it names, but unreadable as a part of this object.
    refused(
        425, bench.put, "a", append=True, security=ec,
        chunks=Meta2Bench.chunks("0.0", 10, 1) + Meta2Bench.chunks("0.1", 10, 1),
    )
    assert state(bench) == before


def test_append_to_drained_object_is_refused(bench: Meta2Bench) -> None:
    bench.put("a", 5)
    bench.call(m.ContentDrain(cid=CID, path="a"))
    refused(427, bench.put, "a", append=True)
    refused(427, bench.put, "a", 5, force=True)
    refused(427, bench.put, "a", 5, change_policy=True)


def test_append_that_overflows_is_refused(bench: Meta2Bench) -> None:
    huge = 2**62
    bench.put("a", 5, huge, chunks=[same_chunk("u", "0", huge)], security=m.Security())
    bench.put("a", 5, huge - 1, append=True, chunks=[same_chunk("v", "0", huge)], security=m.Security())
    before = state(bench)
    refused(
        400, bench.put, "a", 5, 2, append=True, chunks=[same_chunk("w", "0", 2)], security=m.Security()
    )
    refused(445, bench.put, "b", 5, 2, chunks=[same_chunk("w", "0", 2)], security=m.Security())
    assert state(bench) == before


# --- force ----------------------------------------------------------------------------------------------


def test_force_creates_when_absent(bench: Meta2Bench) -> None:
    refused(425, bench.put, "a", 5, force=True, chunks=Meta2Bench.chunks("1", 10, 3))
    bench.put("a", 5, force=True, properties={"k": "v"})
    assert (bench.show("a").version, bench.show("a").properties) == (5, {"k": "v"})
    assert bench.check_counters() == (10, 1)
    bench.set(sys__m2__policy__version="-1")
    bench.delete("a")
    bench.put("a", 9, force=True)  # a marker is no version to complete
    assert bench.versions("a") == [(9, False), (6, True), (5, False)]
    refused(421, bench.put, "a", 6, force=True)


def test_force_completes_the_version_in_place(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.put("a", 5, copies=1, content_id=ID, properties={"k": "v", "l": "w"})
    assert damage(bench) == (1, 2)
    told(bench, event_queue)
    url = bench.show("a").chunks[0].url
    bench.put("a", 9, force=True, copies=1, properties={"l": "x"})
    assert bench.versions("a") == [(5, False)]
    shown = bench.show("a")
    assert (shown.content_id, shown.size, shown.hash) == (ID, 10, "AB" * 16)
    assert len(shown.chunks) == 2
    assert url in [chunk.url for chunk in shown.chunks]
    assert shown.properties == {"k": "v", "l": "x"}
    assert damage(bench) == (1, 1)
    events = told(bench, event_queue)
    assert kinds(events) == ["new", "broken"]
    assert len(beans(events[0], "properties")) == 2
    bench.put("a", 9, force=True, chunks=[shown.chunks[0], *Meta2Bench.chunks("0", 10, 1)])
    assert len(bench.show("a").chunks) == 3  # one was there already
    assert damage(bench) == (0, 0)
    assert kinds(told(bench, event_queue)) == ["new"]
    assert bench.check_counters() == (10, 1)


def test_force_goes_to_the_version_that_it_names(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5)
    bench.put("a", 6)
    bench.put("a", 5, force=True, copies=1)
    assert len(bench.show("a", version=5).chunks) == 4
    assert len(bench.show("a", version=6).chunks) == 3


def test_force_of_chunks_that_do_not_fit_is_refused(bench: Meta2Bench) -> None:
    bench.put("a", 5)
    before = state(bench)
    for chunks in (
        Meta2Bench.chunks("0", 11, 1),
        Meta2Bench.chunks("2", 10, 3),
        Meta2Bench.chunks("0.1", 10, 1),
    ):
        refused(425, bench.put, "a", 5, force=True, chunks=chunks)
    assert state(bench) == before


def test_force_is_refused_by_worm(bench: Meta2Bench) -> None:
    bench.put("a", 5)
    bench.variables.set("ns.worm", "on")
    refused(421, bench.put, "a", 5, force=True)
    bench.put("a", 5, force=True, copies=1, context=ADMIN)
    assert len(bench.show("a").chunks) == 4


# --- content check --------------------------------------------------------------------------------------


def test_damage_of_puts_and_appends(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.put("a", copies=2)
    assert damage(bench) == (1, 1)
    bench.put("a", size=4, append=True, copies=2)
    assert damage(bench) == (1, 2)
    bench.put("a", size=4, append=True)
    assert damage(bench) == (1, 2)
    events = [event for event in told(bench, event_queue) if event["event"].endswith("broken")]
    assert [event["data"]["missing_chunks"] for event in events] == [["0"], ["1"]]
    assert [chunk["pos"] for chunk in events[1]["data"]["present_chunks"]] == ["1", "1"]
    assert set(events[1]["data"]["present_chunks"][0]) == {"id", "pos", "hash", "size"}
    bench.put("b", copies=1)
    assert damage(bench) == (2, 4)
    bench.call(m.ContentTruncate(cid=CID, path="a", size=10))
    assert damage(bench) == (2, 3)
    bench.delete("a")
    assert damage(bench) == (1, 2)
    bench.put("b")
    assert damage(bench) == (0, 0)


def test_damage_follows_the_chunk_method_whatever_the_policy_said(bench: Meta2Bench) -> None:
    # A put without chunk method is stored as "plain": later nobody knows that three copies were due.
    bench.put("a", copies=1, chunk_method="plain")
    assert damage(bench) == (0, 0)
    bench.put("b", copies=1, security=m.Security(nb_copy=1), chunk_method="plain/nb_copy=3")
    assert damage(bench) == (1, 2)
    bench.delete("a")
    assert damage(bench) == (1, 2)
    bench.delete("b")
    assert damage(bench) == (0, 0)


def test_flawed_metachunks_are_told_one_by_one(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    good = '{"expected_dist":4,"final_dist":4,"warn_dist":0,"expected_slot":"a","final_slot":"a"}'
    near = good.replace('"final_dist":4', '"final_dist":0')
    chunks = [chunk for n in range(3) for chunk in Meta2Bench.chunks(str(n), 10, 3)]
    properties = {f"__OIO_CHUNK__{c.url}": good for c in chunks}
    properties[f"__OIO_CHUNK__{chunks[0].url}"] = near
    properties[f"__OIO_CHUNK__{chunks[8].url}"] = near
    bench.put("a", size=30, chunks=chunks, properties=properties)
    events = told(bench, event_queue)
    assert kinds(events) == ["new", "perfectible", "perfectible"]
    assert [event["data"]["pos"] for event in events[1:]] == [0, 2]
    assert [len(event["data"]["chunks"]) for event in events[1:]] == [3, 3]
    described = events[1]["data"]["chunks"][0]
    assert set(described) == {"id", "pos", "hash", "size", "quality"}
    assert described["quality"]["final_dist"] == 0
    bench.put("a", size=30, chunks=chunks, properties=properties, append=True)
    events = told(bench, event_queue)
    assert kinds(events) == ["append", "perfectible", "perfectible"]
    assert [event["data"]["pos"] for event in events[1:]] == [3, 5]
    assert bench.show("a").properties == {}
    refused(400, bench.put, "b", properties={"__OIO_CHUNK__u": "no json"})


# --- policy change --------------------------------------------------------------------------------------


def change(bench: Meta2Bench, path: str, version: int, **fields: Any) -> None:
    bench.call(
        m.ContentPut(
            cid=CID, path=path, version=version, change_policy=True,
            **{
                "content_id": "EF" * 16, "size": 10, "hash": "AB" * 16, "policy": "SINGLE",
                "chunk_method": "plain/nb_copy=1", "chunks": Meta2Bench.chunks("0", 10, 1), **fields,
            },
        ),
        ADMIN,
    )


def test_policy_change_keeps_all_but_chunks(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5, content_id=ID, properties={"k": "v"}, mime_type="text/plain", copies=2)
    bench.put("a", 6)
    bench.repository.write(
        CID + ".1", lambda tx: list(tx.execute("UPDATE aliases SET ctime = 7, mtime = 8"))
    )
    assert damage(bench) == (1, 1)
    told(bench, event_queue)
    change(bench, "a", 5)
    shown = bench.show("a", version=5)
    assert (shown.content_id, shown.policy, shown.chunk_method) == ("EF" * 16, "SINGLE", "plain/nb_copy=1")
    assert (shown.size, shown.hash, shown.mime_type) == (10, "AB" * 16, "text/plain")
    assert (shown.ctime, shown.mtime, shown.properties) == (7, 8, {"k": "v"})
    assert len(shown.chunks) == 1
    assert damage(bench) == (0, 0)
    assert bench.check_counters() == (20, 2)
    events = told(bench, event_queue)
    assert kinds(events) == ["deleted", "new"]
    assert [event["url"]["content"] for event in events] == [ID, "EF" * 16]
    assert {event["url"]["version"] for event in events} == {"5"}
    assert len(beans(events[0], "chunks")) == 2
    assert beans(events[0], "contents_headers")[0]["chunk-method"] == "plain/nb_copy=3"
    assert beans(events[1], "properties")[0]["key"] == "k"
    refused(420, bench.call, m.ContentShow(cid=CID, content_id=ID))


def test_policy_change_that_cannot_be(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5, content_id=ID)
    bench.delete("a")
    before = state(bench)
    refused(420, change, bench, "b", 5)
    refused(420, change, bench, "a", 4)
    refused(400, change, bench, "a", 6)
    for fields in ({"size": 9}, {"hash": "CD" * 16}, {"hash": ""}):
        assert "Different content" in refused(400, change, bench, "a", 5, **fields)
    refused(421, change, bench, "a", 5, content_id=ID)
    refused(425, change, bench, "a", 5, chunks=Meta2Bench.chunks("1", 10, 1))
    assert state(bench) == before


def test_policy_change_is_refused_by_worm(bench: Meta2Bench) -> None:
    version = bench.put("a", content_id=ID)
    bench.variables.set("ns.worm", "on")
    refused(421, bench.put, "a", version, change_policy=True)
    change(bench, "a", version)


def test_policy_change_of_an_object_whose_hash_is_unknown(bench: Meta2Bench) -> None:
    bench.put("a", 5)
    bench.put("a", size=4, append=True)
    chunks = Meta2Bench.chunks("0", 14, 1)
    change(bench, "a", 5, size=14, chunks=chunks)
    assert (bench.show("a").hash, bench.show("a").size) == ("", 14)
