# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Listing against a model, its cost, and what ends it early."""

from __future__ import annotations

import itertools
import json
import random
import time
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from meta2_bench import CID, USER, Meta2Bench

from oio.common.status import StatusError
from oio.meta import messages as m
from oio.meta.context import Context
from oio.meta.meta2 import listing, rows, scans
from oio.meta.meta2.schema import base_name
from oio.meta.transaction import Transaction

LAST = "\U0010fffd"
Row = tuple[str, int, bool]


def fill(bench: Meta2Bench, rows_: list[Row]) -> None:
    """Write object versions and markers straight into the base, with one property each."""

    def write(tx: Transaction) -> None:
        for number, (name, version, deleted) in enumerate(rows_):
            content = b"DELETED" if deleted else number.to_bytes(16, "big")
            tx.execute("INSERT INTO aliases VALUES(?, ?, ?, ?, 1, 1)", (name, version, content, deleted))
            if not deleted:
                tx.execute(
                    "INSERT INTO contents VALUES(?, ?, 1, 1, 1, 'm', 'plain', 'P')", (content, b"\xab" * 16)
                )
                tx.execute(
                    "INSERT INTO properties VALUES(?, ?, 'k', ?)", (name, version, f"{name} {version}")
                )

    bench.repository.write(base_name(CID), write)


def page(bench: Meta2Bench, context: Context = USER, **fields: Any) -> tuple[list[Row], m.ListReply]:
    reply: m.ListReply = bench.call(m.ContentList(cid=CID, **fields), context)
    items = json.loads(reply.objects)
    for item in items:
        if fields.get("properties") and not item["deleted"]:
            assert item["properties"] == {"k": f"{item['name']} {item['version']}"}
        else:
            assert "properties" not in item
    return [(item["name"], item["version"], item["deleted"]) for item in items], reply


def everything(bench: Meta2Bench, **fields: Any) -> tuple[list[Row], list[str]]:
    """All the pages of a listing: rows, prefixes; the form of each page is checked."""
    found: list[Row] = []
    prefixes: list[str] = []
    marker, version = fields.pop("marker", ""), None
    size = fields["max"]
    while True:
        items, reply = page(bench, marker=marker, version_marker=version, **fields)
        assert reply.prefixes == sorted(reply.prefixes)
        found += items
        prefixes += reply.prefixes
        count = len(items) + len(reply.prefixes)
        if not reply.truncated:
            assert count <= size
            assert (reply.next_marker, reply.next_version_marker) == ("", None)
            return found, prefixes
        assert count == size
        last = max([name for name, _, _ in items] + [prefix + LAST for prefix in reply.prefixes])
        assert reply.next_marker == last >= marker
        assert (reply.next_marker, reply.next_version_marker) != (marker, version)
        marker, version = reply.next_marker, reply.next_version_marker
        assert version is None or (fields["all_versions"] and version == items[-1][1])


def model(rows_: list[Row], **fields: Any) -> tuple[list[Row], list[str]]:
    """What a listing must give, in the most stupid way."""
    prefix, delimiter = fields.get("prefix", ""), fields.get("delimiter", "")[:1]
    found: list[Row] = []
    prefixes: list[str] = []
    ordered = sorted(rows_, key=lambda row: (row[0], -row[1]))
    for name, group in itertools.groupby(ordered, key=lambda row: row[0]):
        if not name.startswith(prefix) or name <= fields.get("marker", ""):
            continue
        if fields.get("end_marker") and name >= fields["end_marker"]:
            continue
        versions = list(group)
        if not fields.get("all_versions"):
            versions = [row for row in versions[:1] if fields.get("deleted") or not row[2]]
        if not versions:
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            found += versions
        elif name[: cut + 1] not in prefixes:
            prefixes.append(name[: cut + 1])
    return found, prefixes


@pytest.mark.parametrize("seed", range(12))
def test_pages_agree_with_a_model(bench: Meta2Bench, seed: int) -> None:
    draw = random.Random(seed)
    alphabet = "ab/" if seed % 2 else "a/é\ufffd\U0010fffc" + LAST + "\U0010ffff"
    names = {"".join(draw.choices(alphabet, k=draw.randint(1, 5))) for _ in range(60)}
    rows_ = [
        (name, version, draw.random() < 0.3)
        for name in names
        for version in draw.sample(range(1, 50), draw.choice((1, 1, 2, 15)))
    ]
    fill(bench, rows_)
    for _ in range(60):
        fields: dict[str, Any] = {"max": draw.choice((1, 2, 3, 7, 40, 1000))}
        if draw.random() < 0.4:
            fields["delimiter"] = draw.choice(("/", "a", "/ignored"))
        if draw.random() < 0.4:
            fields["prefix"] = "".join(draw.choices(alphabet, k=draw.randint(1, 2)))
        if draw.random() < 0.3:
            fields["end_marker"] = "".join(draw.choices(alphabet, k=draw.randint(1, 3)))
        if draw.random() < 0.3 and "delimiter" not in fields:
            fields["marker"] = "".join(draw.choices(alphabet, k=draw.randint(1, 3)))
        fields["deleted"] = draw.random() < 0.3
        fields["properties"] = draw.random() < 0.3
        fields["all_versions"] = draw.random() < 0.3
        assert everything(bench, **fields) == model(rows_, **fields), fields


def test_a_page_may_end_amid_the_versions_of_a_name(bench: Meta2Bench) -> None:
    fill(bench, [("a", number, False) for number in range(1, 6)] + [("a0", 1, False), ("b", 1, False)])
    items, reply = page(bench, all_versions=True, max=2)
    assert items == [("a", 5, False), ("a", 4, False)]
    assert (reply.next_marker, reply.next_version_marker) == ("a", 4)
    items, reply = page(bench, all_versions=True, max=3, marker="a", version_marker=4)
    assert items == [("a", 3, False), ("a", 2, False), ("a", 1, False)]
    assert (reply.next_marker, reply.next_version_marker) == ("a", None)
    # The name alone goes on with the next one, as does a listing of the latest versions.
    for fields in ({"all_versions": True}, {"version_marker": 4}, {"version_marker": 4, "delimiter": "/"}):
        assert [name for name, _, _ in page(bench, marker="a", **fields)[0]] == ["a0", "b"]
    folded = page(bench, all_versions=True, max=1, marker="a", version_marker=3, delimiter="/")
    assert folded[0] == [("a", 2, False)]


def test_look_ups_go_through_all_versions(bench: Meta2Bench) -> None:
    rows_ = [("a", number, False) for number in range(5, 0, -1)] + [("b", 1, False)]
    fill(bench, rows_)
    found: list[Row] = []
    after: dict[str, Any] = {}
    while True:
        items, reply = page(bench, max=2, content_hash="AB" * 16, **after)
        found += items
        if not reply.truncated:
            break
        after = {"marker": reply.next_marker, "version_marker": reply.next_version_marker}
    assert found == rows_


def test_the_marker_of_a_prefix_skips_it_whole(bench: Meta2Bench) -> None:
    names = ["a/1", "a/" + LAST, "a/\U0010fffe", "a/\U0010ffff", "b"]
    fill(bench, [(name, 1, False) for name in names])
    items, reply = page(bench, delimiter="/", max=1)
    assert (items, reply.prefixes, reply.truncated, reply.next_marker) == ([], ["a/"], True, "a/" + LAST)
    items, reply = page(bench, delimiter="/", max=1, marker=reply.next_marker)
    assert ([name for name, _, _ in items], reply.prefixes, reply.truncated) == (["b"], [], False)
    # Without delimiter the same marker is a name as any other.
    assert [name for name, _, _ in page(bench, marker="a/" + LAST)[0]] == names[2:]


def test_a_page_that_ends_with_the_last_name_is_not_truncated(bench: Meta2Bench) -> None:
    fill(bench, [("a", 1, False), ("b/1", 1, False), ("c", 1, True), ("d", 1, True)])
    assert not page(bench, max=2)[1].truncated
    assert not page(bench, max=2, delimiter="/")[1].truncated
    assert page(bench, max=1)[1].next_marker == "a"


@pytest.mark.parametrize(("asked", "got"), [(0, 1000), (-5, 1000), (999, 999), (10001, 10000), (2**40, 10000)])
def test_size_of_pages(bench: Meta2Bench, asked: int, got: int) -> None:
    fill(bench, [(f"o{i:05d}", 1, False) for i in range(10001)])
    items, reply = page(bench, max=asked)
    assert (len(items), reply.truncated) == (got, True)


def test_disabled_containers_are_not_listed(bench: Meta2Bench) -> None:
    bench.call(m.ContainerSetStatus(cid=CID, status="disabled"))
    with pytest.raises(StatusError, match="disabled") as refused:
        bench.listing()
    assert refused.value.code == 436


# --- cost -----------------------------------------------------------------------------------------


def rows_read(bench: Meta2Bench, **fields: Any) -> int:
    """How many rows a page takes from SQLite."""

    def read(reader: Any) -> int:
        count = 0

        def count_row(_cursor: apsw.Cursor, row: Any) -> Any:
            nonlocal count
            count += 1
            return row

        reader.connection.row_trace = count_row
        try:
            listing.list_contents(reader, m.ContentList(cid=CID, **fields))
        finally:
            reader.connection.row_trace = None
        return count

    return bench.repository.read(base_name(CID), read)


def test_a_folded_prefix_costs_one_row(bench: Meta2Bench) -> None:
    fill(bench, [(f"p{i:03d}/{j:03d}", 1, False) for i in range(50) for j in range(100)])
    assert rows_read(bench, delimiter="/") == 50
    assert rows_read(bench, delimiter="/", max=10) == 11
    assert rows_read(bench, delimiter="/", marker="p040/" + LAST) == 9
    assert rows_read(bench, delimiter="/", prefix="p040/") == 100


def test_versions_of_a_name_are_jumped_over(bench: Meta2Bench) -> None:
    fill(bench, [(name, version, False) for name in "abc" for version in range(1, 500)])
    assert rows_read(bench) < 50
    assert rows_read(bench, delimiter="/") < 50


@pytest.mark.parametrize("fields", [{}, {"marker": "a"}, {"prefix": "a"}, {"end_marker": "z"}])
def test_no_page_sorts_or_scans_a_table(bench: Meta2Bench, fields: dict[str, str]) -> None:
    sql, values = listing._range(m.ContentList(cid=CID, **fields), fields.get("marker", ""), "")

    def plan(reader: Any) -> list[str]:
        return [row[3] for row in reader.execute("EXPLAIN QUERY PLAN " + sql, values)]

    steps = bench.repository.read(base_name(CID), plan)
    assert not any("TEMP B-TREE" in step for step in steps), steps
    assert any(step.startswith("SEARCH c USING PRIMARY KEY") for step in steps), steps
    if fields:
        assert any(step.startswith("SEARCH a USING PRIMARY KEY") for step in steps), steps


# --- deadlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"delimiter": "/"}])
def test_hidden_names_do_not_hold_a_page_beyond_its_deadline(
    bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]
) -> None:
    monkeypatch.setattr(listing, "TIME_SHARE", 0.0)
    names = [f"h{i:04d}" for i in range(3 * listing.CHECK_NAMES)]
    fill(bench, [("a", 1, False), *[(name, 1, True) for name in names], ("z", 1, False)])
    context = Context("NS", deadline=time.monotonic() + 60)
    seen: list[str] = []
    marker, pages = "", 0
    while True:
        items, reply = page(bench, context, marker=marker, **fields)
        seen += [name for name, _, _ in items]
        pages += 1
        if not reply.truncated:
            break
        assert reply.next_marker > marker
        marker = reply.next_marker
    assert seen == ["a", "z"]
    assert pages == 4
    # Nobody set a deadline: the page goes on.
    assert [name for name, _, _ in page(bench, **fields)[0]] == ["a", "z"]


@pytest.mark.parametrize("fields", [{"chunk_id": "AB" * 32}, {"content_hash": "AB" * 16}])
def test_look_ups_end_at_their_deadline(
    bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]
) -> None:
    monkeypatch.setattr(scans, "CHECK_STEPS", 1)
    bench.put("a")

    def look_up(deadline: float | None) -> m.ListReply:
        request = m.ContentList(cid=CID, **fields)  # type: ignore[arg-type]
        return bench.repository.read(
            base_name(CID), lambda reader: listing.list_contents(reader, request, deadline)
        )

    with pytest.raises(StatusError) as late:
        look_up(time.monotonic() - 1)
    assert late.value.code == 504
    # The connection that was interrupted serves again.
    assert page(bench)[0]


# --- look-ups -------------------------------------------------------------------------------------


def test_look_ups_find_every_version_and_link(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    first = bench.put("b", hash="12" * 16)
    second = bench.put("b", hash="12" * 16)
    third = bench.put("a", hash="12" * 16, properties={"k": f"a {second + 1}"})
    items, reply = page(bench, content_hash="12" * 16)
    assert items == [("a", third, False), ("b", second, False), ("b", first, False)]
    assert not reply.truncated
    chunk = bench.show("b", version=first).chunks[1].url
    for text in (chunk, chunk.rpartition("/")[2], chunk.rpartition("/")[2].lower()):
        assert page(bench, chunk_id=text)[0] == [("b", first, False)]
    bench.call(m.ContainerSetStatus(cid=CID, status="frozen"))
    assert len(page(bench, content_hash="12" * 16)[0]) == 3


def test_look_ups_are_paged(bench: Meta2Bench) -> None:
    fill(bench, [(f"o{i:02d}", 1, False) for i in range(20)])
    seen: list[str] = []
    marker = ""
    while True:
        items, reply = page(bench, content_hash="AB" * 16, max=7, marker=marker, properties=True)
        seen += [name for name, _, _ in items]
        if not reply.truncated:
            break
        marker = reply.next_marker
    assert seen == [f"o{i:02d}" for i in range(20)]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"content_hash": "xyz"}, 400), ({"content_hash": "ABC"}, 400), ({"content_hash": "AB" * 15}, 420),
        ({"chunk_id": "http://rawx-0/unknown"}, 420), ({"chunk_id": "%"}, 420), ({"chunk_id": "_" * 64}, 420),
    ],
)  # fmt: skip
def test_look_ups_that_find_nothing(bench: Meta2Bench, fields: dict[str, str], code: int) -> None:
    bench.put("a")
    with pytest.raises(StatusError) as refused:
        bench.listing(**fields)
    assert refused.value.code == code


# --- counting again -------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", ["0", "5", "999999"])
def test_a_count_is_exact_while_others_write(
    bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch, usage: str
) -> None:
    for number in range(6):
        bench.put(f"o{number}", copies=2)
    bench.set(sys__m2__usage=usage, sys__m2__objects="2", sys__m2__chunks__missing="1")
    plain = rows.recompute
    calls: list[int] = []

    def slow(execute: Any) -> tuple[int, int]:
        counted = plain(execute)
        calls.append(1)
        if len(calls) == 1:
            # After the count, before the correction: what was too low meets zero.
            bench.put("new", size=77)
            for number in range(5):
                bench.delete(f"o{number}")
        return counted

    monkeypatch.setattr(rows, "recompute", slow)
    flags = {"recompute": True, "missing_chunks": True, "damaged_objects": True}
    bench.call(m.ContainerTouch(cid=CID, **flags))
    assert bench.check_counters() == (87, 2)
    assert bench.properties()["sys.m2.chunks.missing"] == "1"
    assert bench.properties()["sys.m2.objects.damaged"] == "1"


def test_a_count_does_not_hold_writers(bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put("a")
    bench.set(sys__m2__usage="50")
    plain = rows.recompute
    calls: list[int] = []

    def slow(execute: Any) -> tuple[int, int]:
        calls.append(1)
        bench.put("b")
        return plain(execute)

    monkeypatch.setattr(rows, "recompute", slow)
    bench.call(m.ContainerTouch(cid=CID, recompute=True))
    assert calls == [1]
    assert bench.check_counters() == (20, 2)


def test_a_count_ends_at_its_deadline(bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put("a")
    monkeypatch.setattr(scans, "CHECK_STEPS", 1)
    plain = rows.recompute

    def late(execute: Any) -> tuple[int, int]:
        monkeypatch.setattr(scans, "time", SimpleNamespace(monotonic=lambda: float("inf")))
        try:
            return plain(execute)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(rows, "recompute", late)
    with pytest.raises(StatusError) as refused:
        bench.call(m.ContainerTouch(cid=CID, recompute=True), Context("NS", deadline=time.monotonic() + 60))
    assert refused.value.code == 504
