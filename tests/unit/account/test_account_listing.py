# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Listings: against a slow and plain statement of the rules, on examples, and through Redis."""

import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oio.account import backend as backend_module
from oio.account import listing
from oio.account.listing import Query, container_limit, is_bucket_name, list_names
from oio.account.updates import ContainerUpdate, normalize_time


class SortedNames:
    """Names as a sorted set of Redis gives them; counts what is asked."""

    def __init__(self, names):
        self.names = sorted(name.encode() for name in names)
        self.fetched = 0

    def __call__(self, minimum, maximum, count):
        first = 0 if minimum == b"-" else self.place(minimum, minimum[:1] == b"(")
        last = len(self.names) if maximum == b"+" else self.place(maximum, maximum[:1] == b"[")
        found = self.names[first:last][:count]
        self.fetched += len(found)
        return found

    def place(self, bound, behind):
        return (bisect.bisect_right if behind else bisect.bisect_left)(self.names, bound[1:])


def plainly(names, query):
    """The listing, rule by rule."""
    marker = query.marker if query.marker.encode() >= query.prefix.encode() else ""
    entries = []
    for name in sorted(names, key=str.encode):
        if not name.startswith(query.prefix) or (query.s3_buckets_only and not is_bucket_name(name)):
            continue
        if (marker and name.encode() <= marker.encode()) or (
            query.end_marker and name.encode() >= query.end_marker.encode()
        ):
            continue
        found = name.find(query.delimiter, len(query.prefix)) if query.delimiter else -1
        entry = (name[: found + 1], True) if found > 0 else (name, False)
        if entry not in entries and entry != (query.marker, True):
            entries.append(entry)
    return entries[: query.limit]


letters = st.text("ab-é\U0010fffd\U0010ffff", max_size=6)
queries = st.builds(
    Query, limit=st.integers(1, 6), marker=letters, end_marker=letters, prefix=st.text("ab-", max_size=2),
    delimiter=st.sampled_from(["", "-", "a", "é"]), s3_buckets_only=st.booleans(),
)  # fmt: skip


@given(st.sets(letters.filter(bool), max_size=25), queries)
def test_listings_follow_the_rules(names, query):
    assert [tuple(entry) for entry in list_names(SortedNames(names), query)] == plainly(names, query)


@given(st.sets(letters.filter(bool), max_size=25), queries)
def test_small_batches_change_nothing(names, query):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "BATCH", 2)
        patch.setattr(listing, "BATCH_OF_GROUPS", 1)
        assert [tuple(entry) for entry in list_names(SortedNames(names), query)] == plainly(names, query)


def names_of(names, **query):
    return [entry.name for entry in list_names(SortedNames(names), Query(**query))]


MANY = [f"{first}-{second:04d}" for first in range(4) for second in range(125)]
MANY += ["2-0051-dddd", *(f"3-{number:04d}-0049" for number in range(45, 50))]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"delimiter": "-"}, ["0-", "1-", "2-", "3-"]),
        ({"delimiter": "-", "prefix": "2"}, ["2-"]),
        ({"delimiter": "-", "marker": "2-"}, ["3-"]),
        ({"delimiter": "-", "prefix": "2-", "marker": "2-0050", "limit": 3}, ["2-0051", "2-0051-", "2-0052"]),
        (
            {"delimiter": "-", "prefix": "3-", "marker": "3-0045", "limit": 3},
            ["3-0045-", "3-0046", "3-0046-"],
        ),
        ({"delimiter": "-", "marker": "1-0005", "limit": 2}, ["1-", "2-"]),
        ({"prefix": "1-", "marker": "1-0122", "end_marker": "1-0124"}, ["1-0123"]),
        ({"prefix": "1-", "marker": "0-", "end_marker": "2", "limit": 1}, ["1-0000"]),
        ({"prefix": "1-0124", "marker": "1-0124"}, []),
        ({"prefix": "1-", "marker": "9"}, []),
        ({"end_marker": "0-0002"}, ["0-0000", "0-0001"]),
    ],
)
def test_examples(query, expected):
    assert names_of(MANY, **query) == expected


def test_a_name_that_ends_with_the_delimiter():
    assert names_of([*MANY, "3-0049-"], prefix="3-0049-", delimiter="-") == ["3-0049-", "3-0049-0049"]


def test_a_delimiter_in_front_groups_nothing():
    assert names_of(["-a-b", "a-b"], delimiter="-") == ["-a-b", "a-"]
    names = ["cnt%2Bdir1", "cnt%2Bdir2", "container1", "zzz"]
    assert names_of(names, delimiter="%") == ["cnt%", "container1", "zzz"]


GOOD = ["a-b", "a.b.c", "abc", "b" * 63, "1.2.3.x", "my-1st.bucket"]
BAD = [
    "ab", "c" * 64, "1.2.3.4", "123", "ABC", "a_b", ".abc", "abc.", "a..b", "-abc", "abc-", "a.-b", "é--",
    "abc%2F1", "abc+segments", "abc+segments%2Fx", "%2F", "a\nbc", "abc\n",
]  # fmt: skip


def test_only_names_that_can_be_buckets_when_asked():
    assert names_of(GOOD + BAD, s3_buckets_only=True) == sorted(GOOD)
    assert names_of(GOOD + BAD, s3_buckets_only=True, limit=2, marker="a-b") == ["a.b.c", "abc"]
    grouped = ["1.2.3.x", "a-", "a.b.c", "abc", "b" * 63, "my-"]
    assert names_of(GOOD + BAD, s3_buckets_only=True, delimiter="-") == grouped


def test_the_parts_of_buckets_are_not_read_one_by_one():
    parts = [f"abc+segments%2F{number:05d}" for number in range(20000)]
    folders = [f"abc%2F{number:05d}" for number in range(20000)]
    names = SortedNames(["abc", "abd", *folders, *parts])
    found = list_names(names, Query(s3_buckets_only=True))
    assert [entry.name for entry in found] == ["abc", "abd"]
    assert names.fetched <= 3 * listing.BATCH


def test_groups_are_skipped_at_once():
    names = SortedNames([f"{first}/{second}" for first in "abc" for second in range(10000)])
    assert [entry.name for entry in list_names(names, Query(delimiter="/"))] == ["a/", "b/", "c/"]
    assert names.fetched <= 4 * listing.BATCH_OF_GROUPS


def test_limits():
    assert [container_limit(asked) for asked in (0, -1, 1, 10000, 10001)] == [1000, 1000, 1, 10000, 10000]


# --- through Redis -----------------------------------------------------------------------------------


def fill(backend, names, **fields):
    updates = [("acct", ContainerUpdate(name, normalize_time(12), **fields)) for name in names]
    assert backend.update_containers(updates) == [None] * len(updates)


def test_containers_are_told_with_their_counters(backend, update, monkeypatch):
    monkeypatch.setattr(backend_module, "DESCRIBED_AT_ONCE", 2)
    fill(backend, ["a/1", "b", "c", "d", "ù"], objects=1, bytes=2)
    update("gone", mtime=1, dtime=2)
    assert backend.list_containers("acct", Query(delimiter="/", limit=4)) == [
        ["a/", 0, 0, 1, 0], ["b", 1, 2, 0, 12.0], ["c", 1, 2, 0, 12.0], ["d", 1, 2, 0, 12.0],
    ]  # fmt: skip
    assert backend.list_containers("acct", Query(marker="d")) == [["ù", 1, 2, 0, 12.0]]
    assert backend.list_containers("nobody", Query()) == []


def test_buckets_are_told_page_by_page(backend):
    names = [f"bucket-{number}" for number in range(5)]
    for name in names:
        fill(backend, [name], bucket=name, objects=1, bytes=3)
    found, marker = [], ""
    pages = 0
    while marker is not None:
        page, marker = backend.list_buckets("acct", Query(limit=2, marker=marker))
        found += page
        pages += 1
    assert [bucket["name"] for bucket in found] == names
    assert pages == 3
    assert found[0] == {"name": "bucket-0", "objects": 1, "bytes": 3, "mtime": 12.0}
    assert backend.list_buckets("acct", Query(limit=5))[1] is None
    assert backend.list_buckets("acct", Query(limit=0)) == ([], None)
    page, marker = backend.list_buckets("acct", Query(prefix="bucket-", marker="bucket-1", end_marker="bucket-4"))
    assert [bucket["name"] for bucket in page] == ["bucket-2", "bucket-3"]
    assert marker is None
