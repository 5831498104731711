# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Chunk methods, groups of chunks, ranges."""

from __future__ import annotations

import logging

import pytest

from oio.common import exceptions as exc
from oio.common import storage_method as sm
from oio.common.storage_functions import (
    _get_weighted_random_score,
    _make_object_metadata,
    _sort_chunks,
    fetch_stream,
    get_meta_ranges,
    obj_range_to_meta_chunk_range,
    wrand_choice_index,
)

load = sm.STORAGE_METHODS.load


def test_parse():
    assert sm.parse_chunk_method("plain/nb_copy=3") == ("plain", {"nb_copy": "3"})
    assert sm.parse_chunk_method("plain") == ("plain", {})
    assert sm.parse_chunk_method("ec/algo=x, k=6,flag") == ("ec", {"algo": "x", "k": "6", "flag": "1"})


def test_replication():
    method = load("plain/nb_copy=3")
    assert method is load("plain/nb_copy=3")
    assert (method.name, method.type, method.ec, method.backblaze) == ("repli", "plain", False, False)
    assert (method.nb_copy, method.expected_chunks, method.quorum, method.min_chunks_to_read) == (3, 3, 2, 1)
    assert [load(f"plain/nb_copy={n}").quorum for n in (1, 2, 4, 5)] == [1, 1, 2, 3]
    assert load("plain").nb_copy == 1


def test_ec():
    method = load("ec/algo=liberasurecode_rs_vand,k=6,m=3")
    assert (method.name, method.type, method.ec) == ("ec", "ec", True)
    assert (method.expected_chunks, method.quorum, method.min_chunks_to_read) == (9, 7, 6)
    assert (method.ec_type, method.ec_nb_data, method.ec_nb_parity) == ("liberasurecode_rs_vand", 6, 3)
    assert method.ec_segment_size == sm.EC_SEGMENT_SIZE == 1048576
    assert method.ec_fragment_size == len(method.driver.encode(b"x" * 1048576)[0])


def test_backblaze_is_refused_by_name():
    with pytest.raises(exc.InvalidStorageMethod, match="Backblaze are not supported"):
        load("backblaze/account_id=abc,bucket_name=def")


def test_without_the_library_an_ec_method_is_refused(monkeypatch):
    stub = type("ECDriverError", (RuntimeError,), {})
    monkeypatch.setattr(sm, "_load_ec_library", lambda: (None, stub))
    assert issubclass(sm.ECDriverError, RuntimeError)
    with pytest.raises(exc.InvalidStorageMethod, match="not installed"):
        sm.load_methods().load("ec/algo=liberasurecode_rs_vand,k=6,m=3")


@pytest.mark.parametrize(
    "text",
    [
        "unknown/x=1",
        "",
        "plain/nb_copy=zero",
        "plain/nb_copy=0",
        "ec/algo=liberasurecode_rs_vand,k=6",
        "ec/algo=liberasurecode_rs_vand,k=a,m=3",
        "ec/algo=liberasurecode_rs_vand,k=6,m=0",
        "ec/k=6,m=3",
        "ec/algo=flat_xor_hd_3,k=1,m=1",
        "backblaze/account_id=abc",
    ],
)
def test_invalid(text):
    with pytest.raises(exc.InvalidStorageMethod):
        load(text)


def test_unknown_algorithm_is_named():
    with pytest.raises(exc.InvalidStorageMethod, match="magic_code"):
        load("ec/algo=magic_code,k=6,m=3")


def test_unsafe_combination_is_refused():
    assert load("ec/algo=isa_l_rs_vand,k=6,m=4").ec
    with pytest.raises(exc.InvalidStorageMethod, match="isa_l_rs_cauchy"):
        load("ec/algo=isa_l_rs_vand,k=6,m=5")
    assert load("ec/algo=isa_l_rs_cauchy,k=6,m=5").ec


def test_registry():
    fresh = sm.load_methods()
    assert fresh.load("plain/nb_copy=2") is not load("plain/nb_copy=2")
    assert fresh["ec"] is sm.ECStorageMethod
    assert fresh["plain"] is sm.ReplicatedStorageMethod and fresh["backblaze"] is sm.BackblazeStorageMethod
    assert "plain" in fresh and "kplain" not in fresh
    assert fresh.load("plain", logger=None) is fresh.load("plain")
    assert issubclass(sm.ECDriverError, Exception)


@pytest.mark.parametrize(
    "url, name",
    [("b2://x", "backblaze"), ("backblaze://x", "backblaze"), ("kine://x", "kplain"), ("http://x", "plain")],
)
def test_guess(url, name):
    assert sm.guess_storage_method(url) == name


# --- groups -----------------------------------------------------------------------------------------


def chunk(pos, score=0, size=10, digest="A", url=None):
    return {"url": url or f"http://x/{pos}-{score}", "pos": pos, "score": score, "size": size, "hash": digest}


def test_sort_replicated():
    raw = [chunk("1", 80, 20), chunk("0", 50), chunk("0", 90), chunk("1", 20, 20), chunk("0", 70)]
    groups = _sort_chunks(raw, False)
    assert list(groups) == [0, 1]
    assert [one["score"] for one in groups[0]] == [90, 70, 50]
    assert [one["offset"] for one in groups[1]] == [10, 10]
    assert groups[0][0] is raw[2]


def test_sort_keeps_the_order_without_score():
    raw = [chunk("0", url=f"http://x/{i}") for i in range(5)]
    raw[3]["score"] = 1
    assert _sort_chunks(raw, False)[0] == [raw[3], raw[0], raw[1], raw[2], raw[4]]


def test_sort_ec(caplog):
    raw = [chunk("0.1"), chunk("0.0"), chunk("0.1", url="http://x/again"), chunk("1.2", size=7)]
    groups = _sort_chunks(raw, True, logger=logging.getLogger("test"))
    assert [one["num"] for one in groups[0]] == [1, 0]
    assert "again" in caplog.text
    assert groups[1][0]["num"] == 2


def test_sort_keeps_the_majority():
    raw = [chunk("0", digest="A"), chunk("0", digest="B"), chunk("0", digest="B")]
    assert _sort_chunks(raw, False)[0] == raw[1:]


def test_sort_many_positions():
    groups = _sort_chunks([chunk(str(i)) for i in (11, 2, 0, 1, 10, *range(3, 10))], False)
    assert list(groups) == list(range(12))
    assert groups[11][0]["offset"] == 110


def test_weights():
    assert _get_weighted_random_score({}) == 0
    assert _get_weighted_random_score({"score": 0}) == 0
    assert {50 <= _get_weighted_random_score({"score": 50}) <= 59 for _ in range(50)} == {True}
    assert {wrand_choice_index([0, 5, 0]) for _ in range(20)} == {1}
    assert {wrand_choice_index([1, 0, 1]) for _ in range(100)} == {0, 2}
    assert wrand_choice_index([0]) == 0


# --- ranges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, end, result",
    [
        (None, None, {0: (0, 49), 1: (0, 29), 2: (0, 19)}),
        (49, 99, {0: (49, 49), 1: (0, 29), 2: (0, 19)}),
        (20, 100, {0: (20, 49), 1: (0, 29), 2: (0, 19)}),
        (None, 49, {1: (1, 29), 2: (0, 19)}),
        (None, 101, {0: (0, 49), 1: (0, 29), 2: (0, 19)}),
        (80, None, {2: (0, 19)}),
        (100, 200, {}),
        (None, 0, {}),
        (50, 50, {1: (0, 0)}),
    ],
)
def test_object_ranges(start, end, result):
    assert obj_range_to_meta_chunk_range(start, end, [50, 30, 20]) == result


def test_object_ranges_skip_empty_metachunks():
    assert obj_range_to_meta_chunk_range(None, None, [10, 0, 5]) == {0: (0, 9), 2: (0, 4)}
    assert obj_range_to_meta_chunk_range(None, None, [0]) == {}


def test_meta_ranges():
    groups = _sort_chunks([chunk("0"), chunk("1")], False)
    assert get_meta_ranges([(0, 0), (9, 10)], groups) == [{0: (0, 0)}, {0: (9, 9), 1: (0, 0)}]
    assert get_meta_ranges(None, groups) == [{0: (0, 9), 1: (0, 9)}]


def test_streams_are_lazy():
    stream = fetch_stream({5: [chunk("5")]}, None, load("plain"))
    with pytest.raises(exc.OioException):
        next(stream)


def test_metadata_of_headers():
    headers = {"X-oio-content-meta-mime-type": "text/plain", "x-oio-content-meta-x-color": "red", "Date": "now"}
    assert _make_object_metadata(headers) == {"mime_type": "text/plain", "properties": {"color": "red"}}
