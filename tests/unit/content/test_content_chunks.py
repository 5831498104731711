# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Chunks, lists of chunks, quality of their placement."""

from __future__ import annotations

import operator
from typing import Any

import pytest

from oio.common.exceptions import SpareChunkException
from oio.content.content import (
    Chunk,
    ChunksHelper,
    compare_chunk_quality,
    ensure_better_chunk_qualities,
)


def raw(pos: str, host: str = "rawx-1", chunk_id: str = "AA", **more: Any) -> dict[str, Any]:
    return {"pos": pos, "url": f"http://{host}/{chunk_id}", "size": 10, "hash": "ab12", **more}


def test_a_chunk_is_a_view_of_its_dictionary() -> None:
    data = raw("3.14", "127.0.0.1:6010", "0A0B")
    chunk = Chunk(data)
    assert (chunk.pos, chunk.metapos, chunk.subpos, chunk.ec) == ("3.14", 3, 14, True)
    assert (chunk.id, chunk.host, chunk.size, chunk.checksum) == ("0A0B", "127.0.0.1:6010", 10, "AB12")
    assert chunk.data is data and chunk.raw() is data
    chunk.size, chunk.checksum, chunk.url = 11, "cd", "http://rawx-2/FF"
    assert data == {
        "pos": "3.14", "url": "http://rawx-2/FF", "real_url": "http://rawx-2/FF", "size": 11, "hash": "cd",
    }  # fmt: skip
    assert str(chunk) == repr(chunk) == "[Chunk http://rawx-2/FF (3.14)]"


def test_a_plain_chunk_has_no_sub_position() -> None:
    chunk = Chunk(raw("2"))
    assert (chunk.pos, chunk.metapos, chunk.ec) == ("2", 2, False)
    assert not hasattr(chunk, "subpos")


def test_the_id_stands_for_a_missing_url() -> None:
    assert Chunk({"pos": "0", "id": "http://rawx-1/AA"}).url == "http://rawx-1/AA"


def test_an_unknown_quality_is_imperfect() -> None:
    data = raw("0")
    chunk = Chunk(data)
    assert chunk.quality == {"final_dist": 0, "expected_dist": 1}
    assert data["quality"] is chunk.quality
    assert chunk.imperfections == ["dist 0 < 1"]


def test_imperfections_tell_slots_and_distances() -> None:
    chunk = Chunk(raw("0"))
    chunk.quality = {"expected_slot": "a", "final_slot": "b", "expected_dist": 3, "final_dist": 2}
    assert chunk.imperfections == ["slot b != a", "dist 2 < 3"]
    chunk.quality = {"expected_slot": "a", "final_slot": "a", "expected_dist": 3, "final_dist": 3}
    assert chunk.imperfections == []


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (raw("0", chunk_id="BB"), raw("1", chunk_id="AA")),
        (raw("0", chunk_id="AA"), raw("0", chunk_id="BB")),
        (raw("0.2", chunk_id="BB"), raw("0.10", chunk_id="AA")),
        (raw("2.0"), raw("10.0")),
    ],
)
def test_the_order_of_chunks(low: dict[str, Any], high: dict[str, Any]) -> None:
    one, two = Chunk(low), Chunk(high)
    for compare, expected in (
        (operator.lt, True), (operator.le, True), (operator.gt, False), (operator.ge, False),
        (operator.eq, False), (operator.ne, True),
    ):  # fmt: skip
        assert compare(one, two) is expected
        assert compare(two, one) is (compare in (operator.gt, operator.ge, operator.ne))


def test_copies_are_equal_and_so_are_chunks_of_one_sub_position() -> None:
    assert Chunk(raw("0", "a")) == Chunk(raw("0", "b"))
    assert Chunk(raw("0.1", "a", "AA")) == Chunk(raw("0.1", "b", "BB"))
    assert Chunk(raw("0")) != "chunk"


CHUNKS = [
    raw("0", "a", "11"), raw("0", "b", "11"), raw("1", "a", "22"), raw("1", "c", "22"),
]  # fmt: skip
FRAGMENTS = [raw("0.1", "a", "11"), raw("0.0", "b", "22"), raw("1.0", "a", "33")]


def urls(helper: ChunksHelper) -> list[str]:
    return [chunk.url.removeprefix("http://") for chunk in helper]


def test_chunks_are_sorted_by_position_id_and_url() -> None:
    helper = ChunksHelper([CHUNKS[3], CHUNKS[1], CHUNKS[2], CHUNKS[0]])
    assert urls(helper) == ["a/11", "b/11", "a/22", "c/22"]
    assert helper.raw() == CHUNKS and helper.raw()[0] is CHUNKS[0]
    assert len(helper) == 4 and helper[1].host == "b" and [chunk.host for chunk in helper.all()[:2]] == ["a", "b"]


def test_a_list_of_chunk_objects_is_sorted_in_place() -> None:
    chunks = [Chunk(data) for data in reversed(CHUNKS)]
    helper = ChunksHelper(chunks, False)
    assert helper.all() is chunks and chunks[0].url == "http://a/11"


def test_filter_keeps_what_matches_everything() -> None:
    helper = ChunksHelper(CHUNKS)
    assert urls(helper.filter(id="11")) == ["a/11", "b/11"]
    assert urls(helper.filter(id="11", host="b")) == ["b/11"]
    assert urls(helper.filter(pos=1)) == urls(helper.filter(metapos=1)) == ["a/22", "c/22"]
    assert urls(helper.filter(url="http://c/22")) == ["c/22"]
    assert urls(helper.filter(subpos=0)) == urls(helper.filter(metapos=7)) == []
    assert urls(ChunksHelper(FRAGMENTS).filter(metapos=0, subpos=1)) == ["a/11"]
    assert len(helper) == 4


def test_exclude_drops_what_matches_anything() -> None:
    helper = ChunksHelper(CHUNKS)
    assert urls(helper.exclude(id="11", host="c")) == ["a/22"]
    assert urls(helper.exclude(pos="0")) == ["a/22", "c/22"]
    assert urls(helper.exclude(subpos=0)) == urls(helper)
    assert urls(ChunksHelper(FRAGMENTS).exclude(subpos=0)) == ["a/11"]


def test_one_wants_exactly_one() -> None:
    helper = ChunksHelper(CHUNKS)
    found = helper.filter(url="http://c/22").one()
    assert found is not None and found.host == "c"
    assert helper.one() is None
    assert helper.filter(id="zz").one() is None


def test_sort_gives_another_list_whose_order_is_kept() -> None:
    helper = ChunksHelper(CHUNKS)
    backwards = helper.sort(key=lambda chunk: chunk.host, reverse=True)
    assert urls(backwards)[0] == "c/22" and urls(helper)[0] == "a/11"
    assert urls(backwards.exclude(host="c"))[0] == "b/11"
    assert urls(backwards.sort()) == urls(helper)


@pytest.mark.parametrize(
    ("current", "candidate", "balance"),
    [
        ({"final_dist": 1}, {"final_dist": 3}, 2),
        ({"final_dist": 3}, {"final_dist": 1}, -2),
        ({}, {"final_dist": 1}, 0),
        ({"final_dist": 1}, {}, 0),
        ({"expected_slot": "x", "final_slot": "y"}, {"final_slot": "x", "expected_slot": "z"}, 1),
        ({"expected_slot": "x", "final_slot": "x"}, {"final_slot": "y", "expected_slot": "y"}, -1),
        ({"expected_slot": "x", "final_slot": "x"}, {"final_slot": "x"}, 0),
        ({"expected_slot": "x", "final_slot": "y", "final_dist": 1}, {"final_slot": "x", "final_dist": 2}, 2),
    ],
)
def test_comparison_of_qualities(current: dict[str, Any], candidate: dict[str, Any], balance: int) -> None:
    assert compare_chunk_quality(current, candidate) == balance


def test_several_chunks_are_compared_in_order() -> None:
    chunks = [Chunk(raw("0", quality={"final_dist": 1})), Chunk(raw("0", quality={"final_dist": 2}))]
    candidates = {"http://x": {"final_dist": 3}, "http://y": {"final_dist": 1}}
    assert ensure_better_chunk_qualities(chunks, candidates) == 1
    with pytest.raises(SpareChunkException):
        ensure_better_chunk_qualities(chunks, candidates, threshold=2)
    assert ensure_better_chunk_qualities(chunks, {}, threshold=0) == 0
