# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Which versions a purge removes, of one name and of a whole container."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from meta2_bench import CID, FakeQueue, Meta2Bench
from meta2_kit import beans, kinds, refused, told

from oio.meta import messages as m
from oio.meta.context import Context
from oio.meta.meta2 import retention

Purge = Callable[..., None]


def purge_one(bench: Meta2Bench, max_versions: int | None = None) -> None:
    bench.call(m.ContentPurge(cid=CID, path="a", max_versions=max_versions))


def purge_all(bench: Meta2Bench, max_versions: int | None = None) -> None:
    bench.call(m.ContainerPurge(cid=CID, max_versions=max_versions))


both = pytest.mark.parametrize("purge", [purge_one, purge_all])


def numbers(bench: Meta2Bench, name: str = "a") -> list[int]:
    return [version for version, _ in bench.versions(name)]


def make_older(bench: Meta2Bench, seconds: int) -> None:
    """Everything is older than it was."""
    bench.repository.write(
        CID + ".1", lambda tx: list(tx.execute("UPDATE aliases SET mtime = mtime - ?", (seconds,)))
    )


def versions(bench: Meta2Bench, name: str, count: int) -> None:
    for version in range(1, count + 1):
        bench.put(name, version)


@both
@pytest.mark.parametrize(
    ("stored", "asked", "kept"),
    [
        ("3", None, [5, 4, 3]),
        ("3", 2, [5, 4]),
        ("-1", None, [5, 4, 3, 2, 1]),
        ("-1", 2, [5, 4]),
        ("2", -1, [5, 4, 3, 2, 1]),
        ("1", None, [5]),
        ("0", None, [5]),
        ("", None, [5]),
        ("-1", 0, [5]),
        ("-1", 2**63, [5, 4, 3, 2, 1]),
    ],
)
def test_versions_kept(
    bench: Meta2Bench, purge: Purge, stored: str, asked: int | None, kept: list[int]
) -> None:
    bench.set(sys__m2__policy__version="-1")
    versions(bench, "a", 5)
    bench.set(sys__m2__policy__version=stored)
    purge(bench, asked)
    assert numbers(bench) == kept
    assert bench.check_counters() == (10 * len(kept), len(kept))


@both
def test_namespace_tells_when_the_container_does_not(bench: Meta2Bench, purge: Purge) -> None:
    bench.variables.set("meta2.max_versions", "4")
    versions(bench, "a", 6)
    purge(bench)
    assert numbers(bench) == [6, 5, 4, 3]


def test_purge_of_one_name_leaves_the_others(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.set(sys__m2__policy__version="3")
    versions(bench, "a", 20)
    versions(bench, "b", 5)
    told(bench, event_queue)
    purge_one(bench)
    assert (len(numbers(bench)), len(numbers(bench, "b"))) == (3, 5)
    events = told(bench, event_queue)
    assert kinds(events) == ["deleted"] * 17
    assert {len(beans(event, "chunks")) for event in events} == {3}
    purge_one(bench)
    assert told(bench, event_queue) == []


def test_purge_of_absent_name_or_container(bench: Meta2Bench) -> None:
    purge_one(bench)
    purge_all(bench)
    refused(400, bench.call, m.ContentPurge(cid=CID, path=""))
    refused(431, bench.call, m.ContentPurge(cid="D" * 64, path="a"))
    refused(431, bench.call, m.ContainerPurge(cid="D" * 64))


@both
def test_markers_count_for_nothing_and_stay(bench: Meta2Bench, purge: Purge) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 10)
    bench.delete("a")  # 11
    bench.put("a", 20)
    bench.put("a", 30)
    bench.delete("a")  # 31
    bench.set(sys__m2__policy__version="2")
    purge(bench)
    assert numbers(bench) == [31, 30, 20, 11]


@both
@pytest.mark.parametrize(
    ("delay", "age", "gone"),
    [
        ("", 604800 + 5, True), ("", 604800 - 60, False), ("100", 105, True), ("100", 60, False),
        ("-1", 10**8, False), ("0", 0, True),
    ],
)
def test_names_hidden_for_too_long_go_away(
    bench: Meta2Bench, event_queue: FakeQueue, purge: Purge, delay: str, age: int, gone: bool
) -> None:
    bench.set(sys__m2__policy__version="-1", sys__m2__keep_deleted_delay=delay)
    bench.put("a", 5)
    bench.put("a", 10, properties={"k": "v"})
    bench.delete("a")
    make_older(bench, age)
    bench.put("b", 7)  # its latest version is no marker
    told(bench, event_queue)
    purge(bench)
    assert numbers(bench) == ([] if gone else [11, 10, 5])
    assert numbers(bench, "b") == [7]
    assert kinds(told(bench, event_queue)) == ["deleted", "deleted"] * gone
    assert bench.check_counters() == ((10, 1) if gone else (30, 3))


@both
def test_marker_that_is_not_the_latest_hides_nothing(bench: Meta2Bench, purge: Purge) -> None:
    bench.set(sys__m2__policy__version="-1", sys__m2__keep_deleted_delay="10")
    bench.put("a", 5)
    bench.delete("a")
    bench.put("a", 9)
    make_older(bench, 1000)
    purge(bench)
    assert numbers(bench) == [9, 6, 5]


# --- whole containers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slice_names", [1, 2, 100])
@pytest.mark.parametrize("slice_versions", [1, 3, 200])
@pytest.mark.parametrize("scan_rows", [1, 4, 10000])
def test_slices_of_any_size_make_one_whole_pass(
    bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch, slice_names: int, slice_versions: int, scan_rows: int
) -> None:
    monkeypatch.setattr(retention, "SLICE_NAMES", slice_names)
    monkeypatch.setattr(retention, "SLICE_VERSIONS", slice_versions)
    monkeypatch.setattr(retention, "SCAN_ROWS", scan_rows)
    bench.set(sys__m2__policy__version="-1", sys__m2__keep_deleted_delay="10")
    sizes = {"a": 1, "b": 4, "b/c": 2, "c": 3, "d": 1, "\U0001f600": 3}
    for name, count in sizes.items():
        versions(bench, name, count)
    bench.delete("c")
    bench.delete("d")
    make_older(bench, 100)
    purge_all(bench, 2)
    assert {name: numbers(bench, name) for name in sizes} == {
        "a": [1], "b": [4, 3], "b/c": [2, 1], "c": [], "d": [], "\U0001f600": [3, 2],
    }
    assert bench.check_counters() == (70, 7)


def test_others_write_between_two_slices(bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE_NAMES", 5)
    bench.set(sys__m2__policy__version="-1")
    for i in range(40):
        versions(bench, f"n{i:02}", 2)
    transactions: list[int] = []
    write = bench.repository.write

    def counted(base: str, fn: Any, *args: Any, **kwargs: Any) -> Any:
        transactions.append(len(bench.objects(all_versions=True)))
        if len(transactions) == 3:
            # Somebody else comes between two slices: a name ahead changes, a name behind too.
            other = threading.Thread(target=lambda: [bench.delete("n39"), versions(bench, "n00a", 3)])
            other.start()
            other.join(10)
        return write(base, fn, *args, **kwargs)

    monkeypatch.setattr(bench.repository, "write", counted)
    purge_all(bench, 1)
    assert numbers(bench, "n39") == [3, 2]
    assert numbers(bench, "n00a") == [3, 2, 1]  # behind the pass: the next one sees it
    assert all(len(numbers(bench, f"n{i:02}")) == 1 for i in range(39))
    slices = [before - after for before, after in itertools.pairwise(transactions)]
    assert max(slices) <= 5


def test_purge_that_is_late_says_how_far_it_went(bench: Meta2Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE_NAMES", 1)
    bench.set(sys__m2__policy__version="-1")
    for name in "abc":
        versions(bench, name, 2)
    context = Context("NS", deadline=time.monotonic() + 60)
    write = bench.repository.write

    def last(*args: Any, **kwargs: Any) -> Any:
        done = write(*args, **kwargs)
        context.deadline = time.monotonic() - 1
        return done

    monkeypatch.setattr(bench.repository, "write", last)
    message = refused(504, bench.call, m.ContainerPurge(cid=CID, max_versions=1), context)
    assert "'a'" in message
    assert [len(numbers(bench, name)) for name in "abc"] == [1, 2, 2]
    bench.call(m.ContainerPurge(cid=CID, max_versions=1))
    assert [len(numbers(bench, name)) for name in "abc"] == [1, 1, 1]


def test_search_of_names_is_driven_by_the_index(bench: Meta2Bench) -> None:
    plan = bench.repository.read(
        CID + ".1",
        lambda reader: list(
            reader.execute(f"EXPLAIN QUERY PLAN {retention._CANDIDATES}", ("a", "b", 1, 2, 3))
        ),
    )
    text = " ".join(str(row[3]) for row in plan)
    assert "SEARCH aliases USING PRIMARY KEY (alias>? AND alias<?)" in text
    assert "TEMP B-TREE" not in text
