# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Counters of accounts follow ordered container updates."""

import pytest

from oio.account.store import (
    AccountNotEmpty,
    ContainerUpdate,
    StaleUpdate,
    UnknownAccount,
    normalize_time,
)


def update(store, name="c", mtime=None, dtime=None, **counters):
    store.update_container(
        "acct", ContainerUpdate(name, normalize_time(mtime), normalize_time(dtime), **counters)
    )


def test_an_update_is_added_to_the_account_once(store):
    update(store, mtime=10, objects=2, bytes=20)
    update(store, mtime=11, objects=3, bytes=25)
    info = store.show("acct")
    assert (info["objects"], info["bytes"], info["containers"]) == (3, 25, 1)


@pytest.mark.parametrize("late", [{"mtime": 10}, {"mtime": 9}, {"dtime": 9}])
def test_an_update_that_is_not_news_is_refused(store, late):
    update(store, mtime=10, objects=1)
    with pytest.raises(StaleUpdate):
        update(store, **late)
    assert store.show("acct")["objects"] == 1


def test_a_deletion_takes_the_counters_back(store):
    update(store, mtime=10, objects=1, bytes=5)
    update(store, dtime=11)
    info = store.show("acct")
    assert (info["objects"], info["bytes"], info["containers"]) == (0, 0, 0)


def test_a_late_update_does_not_bring_a_deleted_container_back(store):
    update(store, mtime=10, dtime=20)
    update(store, mtime=15, objects=7)
    assert store.show("acct")["objects"] == 0
    update(store, mtime=21, objects=7)
    assert store.show("acct")["objects"] == 7


def test_equal_times_mean_alive(store):
    update(store, mtime=10, dtime=10, objects=1)
    assert store.show("acct")["containers"] == 1


def test_a_deletion_alone_lists_nothing(store):
    update(store, dtime=10)
    assert store.list_containers("acct", 0, "", "", "", "") == []


def test_an_account_with_containers_cannot_be_deleted(store):
    update(store, mtime=10)
    with pytest.raises(AccountNotEmpty):
        store.delete("acct")


def test_an_unknown_account_is_said(store):
    with pytest.raises(UnknownAccount):
        store.show("nobody")


def names(store, limit=0, marker="", end_marker="", prefix="", delimiter="", **kwargs):
    rows = store.list_containers("acct", limit, marker, end_marker, prefix, delimiter, **kwargs)
    return [row[0] for row in rows]


@pytest.fixture
def four(store):
    for name in ("cnt%2Bdir1", "cnt%2Bdir2", "container1", "zzz"):
        update(store, name, mtime=1)
    return store


def test_listing_is_ordered_and_paged(four):
    assert names(four, limit=2) == ["cnt%2Bdir1", "cnt%2Bdir2"]
    assert names(four, marker="cnt%2Bdir2") == ["container1", "zzz"]


def test_a_delimiter_groups_names(four):
    assert names(four, delimiter="%") == ["cnt%", "container1", "zzz"]


def test_a_group_equal_to_the_marker_is_skipped(four):
    assert names(four, marker="cnt%", delimiter="%") == ["container1", "zzz"]


def test_prefix_and_end_marker_bound_the_listing(four):
    assert names(four, prefix="cnt", end_marker="cnt%2Bdir2") == ["cnt%2Bdir1"]


def test_only_names_that_can_be_buckets_when_asked(store):
    good = ["a-b", "a.b.c", "abc", "b" * 63, "1.2.3.x"]
    bad = [
        "ab", "c" * 64, "1.2.3.4", "123", "ABC", "a_b", ".abc", "abc.", "a..b", "-abc", "abc-", "a.-b", "é--",
        *(f"abc%2F{number}" for number in range(5)), "abc+segments", "abc+segments%2Fx", "%2F", "a\nbc",
    ]  # fmt: skip
    for name in good + bad:
        update(store, name, mtime=1)
    assert names(store, s3_buckets_only=True) == sorted(good)
    assert names(store, s3_buckets_only=True, limit=2, marker="a-b") == ["a.b.c", "abc"]
    assert len(names(store)) == len(good + bad)


def test_times_are_normalised():
    assert normalize_time("12456.000354") == "0000012456.00035"
    assert normalize_time(1600000000000000) == "1600000000.00000"
    assert normalize_time(None) == "0"
