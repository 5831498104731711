# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Flush: everything in a container is really deleted, in bounded steps."""

from __future__ import annotations

import os
import time

import pytest
from meta2_bench import ADMIN, CID, USER, FakeQueue, Meta2Bench

from oio.common.status import StatusError
from oio.meta import messages as m
from oio.meta.context import Context
from oio.meta.meta2 import flush as flush_module


def flush(bench: Meta2Bench, context: Context = USER) -> bool:
    truncated: bool = bench.call(m.ContainerFlush(cid=CID), context).truncated
    return truncated


def rows_left(bench: Meta2Bench) -> dict[str, int]:
    def count(reader: object) -> dict[str, int]:
        return {
            table: reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # type: ignore[attr-defined]
            for table in ("aliases", "contents", "chunks", "properties")
        }

    return bench.repository.read(CID + ".1", count)


def test_flush_empties_the_container(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1", user__kept="yes")
    bench.put("a", properties={"k": "v"})
    bench.put("a", copies=1)
    bench.put("b", copies=2)
    bench.delete("b")
    assert bench.properties()["sys.m2.chunks.missing"] == "3"
    assert not flush(bench)
    assert set(rows_left(bench).values()) == {0}
    assert bench.check_counters() == (0, 0)
    admin = bench.properties()
    assert (admin["sys.m2.chunks.missing"], admin["sys.m2.objects.damaged"]) == ("0", "0")
    assert admin["user.kept"] == "yes"
    assert not flush(bench)
    bench.put("a")
    assert bench.check_counters() == (10, 1)


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_flush_is_bounded(bench: Meta2Bench, limit: int) -> None:
    bench.variables.set("meta2.flush_limit", str(limit))
    for number in range(10):
        bench.put(f"o{number}")
    calls = 0
    while True:
        left = rows_left(bench)["aliases"]
        truncated = flush(bench)
        calls += 1
        assert rows_left(bench)["aliases"] == max(0, left - limit)
        bench.check_counters()
        if not truncated:
            break
    assert calls == -(-10 // limit)


def test_a_full_flush_takes_several_transactions(
    bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush_module, "SLICE_ROWS", 4)
    bench.variables.set("meta2.flush_limit", "10")
    for number in range(11):
        bench.put(f"o{number}")
    with bench.repository.opened(CID + ".1") as base:
        before = base.commits
        assert flush(bench)
        assert base.commits - before >= 3
    assert rows_left(bench)["aliases"] == 1
    assert not flush(bench)


def test_flush_stops_before_its_deadline(bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_module, "SLICE_ROWS", 2)
    monkeypatch.setattr(flush_module, "TIME_SHARE", 0.0)
    for number in range(5):
        bench.put(f"o{number}")
    late = Context("NS", deadline=time.monotonic() + 30)
    assert flush(bench, late)
    assert rows_left(bench)["aliases"] == 3


def test_flush_tells_each_object(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5, properties={"k": "v"})
    bench.put("a", 6)
    bench.delete("a")
    event_queue.wait_for(lambda: event_queue.kinds().count("content.deleted") == 1)
    flush(bench)
    event_queue.wait_for(lambda: event_queue.kinds().count("content.deleted") == 3)
    told = [e for e in event_queue.events if e["event"] == "storage.content.deleted"][1:]
    assert sorted(e["url"]["version"] for e in told) == ["5", "6"]
    assert all(sum(bean["type"] == "chunks" for bean in e["data"]) == 3 for e in told)

    def emptied() -> bool:
        states = [e for e in event_queue.events if e["event"] == "storage.container.state"]
        return states[-1]["data"]["object-count"] == 0

    event_queue.wait_for(emptied)


def test_rows_that_no_object_uses_go_away(bench: Meta2Bench) -> None:
    chunk = m.RawChunk(id="http://rawx/1", hash="", size=1, content="AA", pos="0")
    header = m.RawHeader(id="BB", chunk_method="plain", mime_type="x")
    bench.call(m.RawInsert(cid=CID, beans=[chunk, header]))
    assert not flush(bench)
    assert set(rows_left(bench).values()) == {0}


def test_flush_gives_the_space_back(bench: Meta2Bench) -> None:
    path = bench.repository.path(CID + ".1")
    for number in range(300):
        bench.put(f"o{number}", properties={"k": "v" * 200})
    with bench.repository.opened(CID + ".1") as base:
        base.write(lambda tx: tx.on_commit(base.defragment))
    before = os.path.getsize(path) + os.path.getsize(path + "-wal")
    assert not flush(bench)
    assert os.path.getsize(path) < before / 4
    stats = bench.call(m.ContainerGetProperties(cid=CID, stats=True)).properties
    assert stats["stats.freelist_count"] == "0"


def test_a_flush_is_done_even_when_its_space_cannot_be_given_back(
    bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise StatusError(503, "no turn")

    bench.put("a")
    monkeypatch.setattr(bench.repository, "vacuum", refuse)
    assert not flush(bench)
    assert rows_left(bench)["aliases"] == 0


def test_flush_of_a_frozen_container(bench: Meta2Bench) -> None:
    bench.put("a")
    bench.call(m.ContainerSetStatus(cid=CID, status="frozen"))
    assert not flush(bench)
    bench.call(m.ContainerSetStatus(cid=CID, status="enabled"))
    bench.call(m.ContainerSetStatus(cid=CID, status="disabled"))
    with pytest.raises(StatusError) as refused:
        flush(bench)
    assert refused.value.code == 436


def test_worm_forbids_flush(bench: Meta2Bench) -> None:
    bench.put("a")
    bench.variables.set("ns.worm", "on")
    with pytest.raises(StatusError) as refused:
        flush(bench)
    assert refused.value.code == 405
    assert not flush(bench, ADMIN)


def test_flush_of_an_absent_container(bench: Meta2Bench) -> None:
    bench.call(m.ContainerDestroy(cid=CID))
    with pytest.raises(StatusError) as refused:
        flush(bench)
    assert refused.value.code == 431
