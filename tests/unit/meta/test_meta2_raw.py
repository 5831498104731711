# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Raw rows: what is accepted, and counters that stay true whatever is written."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from meta2_bench import ADMIN, CID, FakeQueue, Meta2Bench

from oio.common.status import StatusError
from oio.meta import messages as m
from oio.meta.meta2.schema import base_name

CONTENT = "AA" * 16


def alias(name: str = "a", version: int = 1, **fields: Any) -> m.RawAlias:
    return m.RawAlias(name=name, version=version, **{"header": CONTENT, **fields})


def header(content: str = CONTENT, **fields: Any) -> m.RawHeader:
    fields = {"chunk_method": "plain/nb_copy=3", "mime_type": "text/plain", "size": 10, **fields}
    return m.RawHeader(id=content, **fields)


def chunk(url: str = "http://rawx-1/1", **fields: Any) -> m.RawChunk:
    fields = {"hash": "CD" * 16, "size": 10, "content": CONTENT, "pos": "0", **fields}
    return m.RawChunk(id=url, **fields)


def insert(bench: Meta2Bench, *beans: m.RawBean, **fields: Any) -> None:
    bench.call(m.RawInsert(cid=CID, beans=list(beans), **fields))


def update(bench: Meta2Bench, old: list[m.RawBean], new: list[m.RawBean]) -> None:
    bench.call(m.RawUpdate(cid=CID, old=old, new=new))


def delete(bench: Meta2Bench, *beans: m.RawBean) -> None:
    bench.call(m.RawDelete(cid=CID, beans=list(beans)))


def code_of(call: Any, *args: Any, **fields: Any) -> int:
    with pytest.raises(StatusError) as refused:
        call(*args, **fields)
    return refused.value.code


def lacks(bench: Meta2Bench) -> tuple[int, int]:
    """(damaged objects, missing chunks), verified against a new count."""
    keys = ("sys.m2.objects.damaged", "sys.m2.chunks.missing")
    told = tuple(int(bench.properties().get(key, "0")) for key in keys)
    bench.call(m.ContainerTouch(cid=CID, damaged_objects=True, missing_chunks=True))
    assert told == tuple(int(bench.properties().get(key, "0")) for key in keys)
    return told[0], told[1]


def rows(bench: Meta2Bench) -> list[Any]:
    def read(reader: Any) -> list[Any]:
        tables = ("aliases", "contents", "chunks", "properties")
        return [reader.execute(f"SELECT * FROM {table}").fetchall() for table in tables]

    return bench.repository.read(base_name(CID), read)


def test_an_object_from_its_rows(bench: Meta2Bench) -> None:
    urls = [f"http://rawx-{i}/{i}" for i in range(3)]
    insert(
        bench, alias(ctime=11, mtime=22), header(hash="AB" * 16, policy="THREE"), *map(chunk, urls)
    )
    shown = bench.show("a")
    assert (shown.ctime, shown.mtime, shown.size, shown.hash) == (11, 22, 10, "AB" * 16)
    assert (shown.policy, shown.mime_type) == ("THREE", "text/plain")
    assert [c.url for c in shown.chunks] == urls
    assert bench.check_counters() == (10, 1)
    assert lacks(bench) == (0, 0)
    delete(bench, alias(), header(), *map(chunk, urls))
    assert bench.check_counters() == (0, 0)
    assert rows(bench) == [[], [], [], []]


def test_times_are_now_when_absent(bench: Meta2Bench) -> None:
    version = bench.put("b")
    now = bench.show("b", version=version).mtime
    insert(bench, alias(), header())
    assert now <= bench.show("a").ctime <= now + 5
    assert now <= bench.show("a").mtime <= now + 5


def test_counters_follow_rows_in_any_order(bench: Meta2Bench) -> None:
    insert(bench, alias())
    assert bench.properties()["sys.m2.objects"] == "1"
    insert(bench, alias("link"))
    insert(bench, header(size=7))
    assert bench.check_counters() == (14, 2)
    insert(bench, header(size=9), force=True)
    assert bench.check_counters() == (18, 2)
    delete(bench, alias("link"))
    assert bench.check_counters() == (9, 1)
    insert(bench, alias(deleted=True), force=True)
    assert bench.check_counters() == (0, 0)
    insert(bench, alias(), force=True)
    insert(bench, header("BB", size=100))
    insert(bench, alias(header="BB"), force=True)
    assert bench.check_counters() == (100, 1)
    delete(bench, header("BB"))
    assert bench.properties()["sys.m2.usage"] == "0"


def test_the_last_version_can_be_hidden(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    insert(bench, alias(version=2**63 - 2), header())
    bench.delete("a")
    assert bench.versions("a") == [(2**63 - 1, True), (2**63 - 2, False)]


def test_sizes_that_no_counter_holds(bench: Meta2Bench) -> None:
    insert(bench, alias(), header(size=2**63 - 1))
    before = rows(bench)
    assert code_of(insert, bench, alias("b")) == 445
    assert rows(bench) == before


def test_markers_count_for_nothing(bench: Meta2Bench) -> None:
    insert(bench, alias(deleted=True, header=b"DELETED".hex().upper()))
    assert bench.check_counters() == (0, 0)
    assert bench.versions("a") == [(1, True)]


def test_duplicates_are_refused_unless_forced(bench: Meta2Bench) -> None:
    for bean, other in (
        (alias(), alias(mtime=5)),
        (header(), header(mime_type="image/png")),
        (chunk(), chunk(size=11)),
    ):
        insert(bench, bean)
        before = rows(bench)
        assert code_of(insert, bench, other) == 421
        assert code_of(insert, bench, alias("fresh"), other) == 421
        assert code_of(insert, bench, chunk("http://x"), chunk("http://x")) == 421
        assert rows(bench) == before
        insert(bench, other, force=True)
        assert rows(bench) != before
        assert [len(table) for table in rows(bench)] == [len(table) for table in before]
        if not isinstance(bean, m.RawAlias):
            bench.check_counters()


def test_chunks_of_a_metachunk_are_kept_apart_when_asked(bench: Meta2Bench) -> None:
    bench.put("a", copies=2)
    content = bench.show("a").content_id
    first, second = (chunk(found.url, content=content) for found in bench.show("a").chunks)
    service = first.id.rpartition("/")[0]
    there = chunk(f"{service}/99", content=content)
    before = rows(bench)

    def move(old: m.RawChunk, new: m.RawChunk) -> None:
        bench.call(m.RawUpdate(cid=CID, old=[old], new=[new], strict=True))

    assert code_of(move, second, there) == 421
    assert code_of(insert, bench, there, strict=True) == 421
    assert rows(bench) == before
    insert(bench, chunk("http://elsewhere/98", content=content, pos="1"))
    insert(bench, chunk(f"{service}/98", content=content, pos="1"), strict=True)
    move(first, there)
    assert code_of(move, there, chunk(second.id.rpartition("/")[0] + "/97", content=content)) == 421
    update(bench, [second], [chunk(f"{service}/96", content=content)])
    assert [c.url for c in bench.show("a").chunks].count(f"{service}/96") == 1


def test_fragments_of_a_metachunk_are_kept_apart_when_asked(bench: Meta2Bench) -> None:
    insert(bench, alias(), header(), chunk("http://r/1", pos="0.0"), chunk("http://r/2", pos="1.0"))
    assert code_of(insert, bench, chunk("http://r/3", pos="0.1"), strict=True) == 421
    insert(bench, chunk("http://s/3", pos="0.1"), chunk("http://s/4", pos="1.1"), strict=True)


def test_chunks_that_were_made_from_an_old_view_are_refused_when_asked(bench: Meta2Bench) -> None:
    bench.put("a")
    content = bench.show("a").content_id
    old = chunk(bench.show("a").chunks[0].url, content=content)
    moved = chunk("http://elsewhere/1", content=content)
    bench.call(m.ContentTruncate(cid=CID, path="a", size=0))
    before = rows(bench)

    def move(before: m.RawChunk, after: m.RawChunk) -> None:
        bench.call(m.RawUpdate(cid=CID, old=[before], new=[after], strict=True))

    assert code_of(move, old, moved) == 420
    assert code_of(insert, bench, moved, strict=True) == 420
    assert code_of(insert, bench, chunk("http://r/1", content="BB"), strict=True) == 420
    assert rows(bench) == before
    replaced = msgspec.structs.replace
    move(replaced(old, size=0), replaced(moved, size=0))
    assert code_of(move, replaced(moved, size=0, hash="EF" * 16), replaced(old, size=0)) == 420
    insert(bench, replaced(old, size=0), strict=True)
    assert bench.check_counters() == (0, 1)


def test_a_missing_chunk_that_comes_back(bench: Meta2Bench) -> None:
    bench.put("a", copies=2)
    bench.put("b", copies=1)
    assert lacks(bench) == (2, 3)
    content = bench.show("a").content_id
    insert(bench, chunk(content=content))
    assert lacks(bench) == (1, 2)
    insert(bench, chunk("http://one-more/1", content=content))
    assert lacks(bench) == (1, 2)
    content = bench.show("b").content_id
    insert(bench, chunk(content=content))
    assert lacks(bench) == (1, 1)
    insert(bench, chunk("http://other/1", content=content))
    assert lacks(bench) == (0, 0)


def test_a_missing_fragment_that_comes_back(bench: Meta2Bench) -> None:
    security = m.Security(type="ec", k=4, m=2)
    chunks = [m.Chunk(url=f"http://r{i}/1", pos=f"0.{i}", size=10, hash="CD") for i in range(4)]
    bench.put("a", chunks=chunks, security=security, chunk_method="ec/algo=x,k=4,m=2")
    assert lacks(bench) == (1, 2)
    content = bench.show("a").content_id
    insert(bench, chunk(content=content, pos="0.4"))
    assert lacks(bench) == (1, 1)
    insert(bench, chunk(content=content, pos="0.5"))
    assert lacks(bench) == (0, 0)


def test_a_chunk_that_goes_is_missing(bench: Meta2Bench) -> None:
    bench.put("a")
    shown = bench.show("a")
    delete(bench, chunk(shown.chunks[0].url, content=shown.content_id))
    assert lacks(bench) == (1, 1)
    delete(bench, chunk(shown.chunks[0].url, content=shown.content_id))
    assert lacks(bench) == (1, 1)


def test_absent_rows_are_deleted_without_error(bench: Meta2Bench) -> None:
    delete(bench, alias(), header(), chunk())
    assert bench.check_counters() == (0, 0)


def test_properties_go_with_their_alias(bench: Meta2Bench) -> None:
    bench.put("a", 1, properties={"k": "v"}, content_id=CONTENT)
    delete(bench, alias())
    assert rows(bench)[3] == []


# --- updates --------------------------------------------------------------------------------------


def test_chunks_are_replaced(bench: Meta2Bench) -> None:
    bench.put("a")
    shown = bench.show("a")
    old = [chunk(c.url, content=shown.content_id) for c in shown.chunks]
    new = [chunk(f"http://new-{i}/1", content=shown.content_id) for i in range(3)]
    update(bench, list(old), list(new))
    assert [c.url for c in bench.show("a").chunks] == [c.id for c in new]
    assert lacks(bench) == (0, 0)
    assert bench.check_counters() == (10, 1)


def test_update_of_headers_and_aliases(bench: Meta2Bench) -> None:
    bench.put("a", 1, content_id=CONTENT, properties={"k": "v"})
    update(bench, [header()], [header(size=25, hash="12" * 16)])
    assert bench.check_counters() == (25, 1)
    update(bench, [alias()], [alias("b", 7)])
    assert bench.show("b").properties == {"k": "v"}
    assert code_of(bench.show, "a") == 420
    assert bench.check_counters() == (25, 1)
    update(bench, [alias("b", 7)], [alias("b", 7, deleted=True)])
    assert bench.check_counters() == (0, 0)


def test_rows_can_swap_their_places(bench: Meta2Bench) -> None:
    bench.put("a", 1, content_id="AA")
    bench.put("b", 1, content_id="BB", size=20)
    one, two = alias("a", header="AA"), alias("b", header="BB")
    update(bench, [one, two], [alias("a", header="BB"), alias("b", header="AA")])
    assert (bench.show("a").size, bench.show("b").size) == (20, 10)
    assert bench.check_counters() == (30, 2)


def test_bad_updates_change_nothing(bench: Meta2Bench) -> None:
    bench.put("a", 1, content_id=CONTENT)
    bench.put("b", 1, content_id="BB")
    before = rows(bench)
    assert code_of(update, bench, [alias()], []) == 400
    assert code_of(update, bench, [], []) == 400
    assert code_of(update, bench, [alias()], [header()]) == 400
    assert code_of(update, bench, [alias("absent")], [alias("c")]) == 420
    assert code_of(update, bench, [alias(), alias("absent")], [alias("c"), alias("d")]) == 420
    assert code_of(update, bench, [alias()], [alias("b")]) == 421
    assert code_of(update, bench, [header()], [header("BB")]) == 421
    assert rows(bench) == before


# --- what is accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bean", "field"),
    [
        (alias(""), "name"), (alias("é" * 512), "name"), (alias("a\0b"), "name"),
        (alias(version=0), "version"), (alias(version=-4), "version"),
        (alias(version=2**63), "version"), (alias(version=2**63 - 1), "version"), (alias(header=""), "header"),
        (alias(header="AA" * 257), "header"), (alias(ctime=-1), "ctime"), (alias(mtime=2**63), "mtime"),
        (header(""), "id"), (header(hash="AB" * 15), "hash"), (header(hash="AB"), "hash"),
        (header(size=-1), "size"), (header(size=2**63), "size"), (header(chunk_method=""), "chunk-method"),
        (header(mime_type=""), "mime-type"), (header(mime_type="x" * 5000), "mime-type"),
        (header(policy="x\0"), "policy"),
        (chunk(""), "id"), (chunk("http://" + "x" * 5000), "id"), (chunk(size=-1), "size"),
        (chunk(content=""), "content"), (chunk(hash="CD" * 65), "hash"),
        *[(chunk(pos=pos), "pos") for pos in ("", "x", "-1", "0.", "0.x", ".1", "0.1.2", "1e3")],
    ],
)  # fmt: skip
def test_bad_fields_are_named(bench: Meta2Bench, bean: m.RawBean, field: str) -> None:
    before = rows(bench)
    for call in (
        lambda: insert(bench, bean),
        lambda: insert(bench, alias("fine"), bean, force=True),
        lambda: update(bench, [bean], [bean]),
        lambda: delete(bench, bean),
    ):
        with pytest.raises(StatusError, match=f"field '{field}'") as refused:
            call()
        assert refused.value.code == 400
    assert rows(bench) == before


@pytest.mark.parametrize("digits", [0, 32, 40, 64, 128])
def test_known_hashes_are_accepted(bench: Meta2Bench, digits: int) -> None:
    insert(bench, header(hash="A" * digits), alias("é" * 511))
    assert bench.show("é" * 511).hash == "A" * digits


def test_nothing_to_do_is_an_error(bench: Meta2Bench) -> None:
    assert code_of(insert, bench) == 400
    assert code_of(delete, bench) == 400


@pytest.mark.parametrize(
    "bean",
    [
        {"type": "aliases", "name": "a"}, {"name": "a", "version": 1, "header": "AA"},
        {"type": "alias", "name": "a", "version": "1", "header": "AA"},
        {"type": "alias", "name": "a", "version": 1, "header": "AAA"},
        {"type": "chunk", "id": "u", "hash": "zz", "size": 1, "content": "AA", "pos": "0"},
        {"type": "chunk", "id": "u", "hash": "AA", "size": 1.5, "content": "AA", "pos": "0"},
        {"type": "header", "id": "AA", "mime_type": "x"}, [], 5, None,
    ],
)  # fmt: skip
def test_malformed_rows_do_not_pass_the_wire(bean: object) -> None:
    body = msgspec.msgpack.encode({"cid": CID, "beans": [bean]})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(body, type=m.RawInsert)


def test_counters_stay_true_under_random_writes(bench: Meta2Bench) -> None:
    draw = random.Random(20)

    def bean() -> m.RawBean:
        content = draw.choice(["AA", "BB"])
        kind = draw.randrange(3)
        if kind == 0:
            return alias(
                draw.choice("xy"), draw.randint(1, 2), header=content, deleted=draw.random() < 0.2
            )
        if kind == 1:
            return header(content, size=draw.randint(0, 50))
        return chunk(f"http://{draw.randint(1, 3)}", content=content, pos=str(draw.randint(0, 1)))

    refused = 0
    for _ in range(300):
        beans = [bean() for _ in range(draw.randint(1, 4))]
        try:
            action = draw.randrange(3)
            if action == 0:
                insert(bench, *beans, force=draw.random() < 0.7)
            elif action == 1:
                delete(bench, *beans)
            else:
                update(bench, beans, [bean() for _ in beans])
        except StatusError as exc:
            assert exc.code in (400, 420, 421)
            refused += 1
        check(bench)
    assert 0 < refused < 250


def check(bench: Meta2Bench) -> None:
    keys = ("usage", "objects", "objects.damaged", "chunks.missing")
    admin = bench.properties()
    told = [int(admin.get(f"sys.m2.{key}", "0")) for key in keys]
    bench.call(
        m.ContainerTouch(cid=CID, recompute=True, damaged_objects=True, missing_chunks=True)
    )
    admin = bench.properties()
    assert told == [int(admin.get(f"sys.m2.{key}", "0")) for key in keys]


def test_state_is_told_when_counters_change(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    insert(bench, alias(), header())

    def told() -> bool:
        states = [e for e in event_queue.events if e["event"] == "storage.container.state"]
        return bool(states) and states[-1]["data"]["bytes-count"] == 10

    event_queue.wait_for(told)
    assert {e["event"] for e in event_queue.events} == {"storage.container.new", "storage.container.state"}


def test_administrators_pass_over_worm(bench: Meta2Bench) -> None:
    bench.variables.set("ns.worm", "on")
    assert code_of(insert, bench, alias()) == 405
    bench.call(m.RawInsert(cid=CID, beans=[alias(), header()]), ADMIN)
    bench.call(m.RawUpdate(cid=CID, old=[alias()], new=[alias()]), ADMIN)
    bench.call(m.RawDelete(cid=CID, beans=[alias(), header()]), ADMIN)
    assert bench.check_counters() == (0, 0)
