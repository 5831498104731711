# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Values of records, and the outcome of changes in any order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oio.rdir import records

WHEN = 1_700_000_000_123_456


@pytest.mark.parametrize(
    ("mtime", "when", "size"),
    [
        (0, 0, 0),
        (1_700_000_000, 0, 5),
        (1_700_000_000, WHEN, 8),
        (12, WHEN, 16),
        (0, WHEN, 16),
        (2**63 - 1, 0, 16),
    ],
)
def test_values_are_small_and_come_back(mtime, when, size):
    value = records.encode(mtime, when)
    assert len(value) == size
    assert records.decode(value) == (mtime, when)


def test_golden_values():
    """The bytes of docs/format/rdir.md."""
    assert records.encode(1_700_000_000, 0).hex() == "006553f100"
    assert records.encode(1_700_000_000, WHEN).hex() == "00060a2418202240"
    assert records.encode(5, WHEN).hex() == "000000000000000500060a2418202240"
    assert records.encode_grave(WHEN, 1_700_000_001).hex() == "00060a24182022406553f101"


def test_a_negative_mtime_is_unknown():
    assert records.decode(records.encode(-3, 0)) == (0, 0)


@pytest.mark.parametrize("size", [1, 4, 6, 7, 9, 15, 17])
def test_other_values_are_undecodable(size):
    with pytest.raises(records.Undecodable):
        records.decode(b"x" * size)


def apply(changes):
    """(record, when of the tombstone) after some changes, as a store applies them."""
    record = grave = None
    for action, mtime, when in changes:
        if action == "push":
            new = records.after_push(record, grave if record is None else None, mtime, when)
            if new is not None:
                record, grave = new, None
        elif record is None or records.deletes(record, when):
            record = None
            if when:
                grave = when if grave is None else max(grave, when)
    return record, grave


changes = st.lists(
    st.tuples(st.sampled_from(["push", "delete"]), st.just(0), st.integers(1, 4)), min_size=1, max_size=5
).map(lambda found: [(action, when * 10, when) for action, _mtime, when in found])


@given(changes)
def test_the_outcome_does_not_depend_on_the_order(found):
    last = max(when for _action, _mtime, when in found)
    deleted = ("delete", last * 10, last) in found
    for order in itertools.permutations(found):
        record, _grave = apply(order)
        assert record == (None if deleted else (last * 10, last))


@given(changes, st.data())
def test_repeated_events_change_nothing(found, data):
    again = data.draw(st.permutations([*found, *data.draw(st.lists(st.sampled_from(found), max_size=3))]))
    assert apply(again)[0] == apply(found)[0]


def test_a_push_without_date_is_obeyed_and_old_deletes_stay_without_effect():
    record, grave = apply([("delete", 0, 5), ("push", 7, 0), ("delete", 0, 5)])
    assert (record, grave) == ((7, 6), None)
    assert apply([("push", 7, 5), ("push", 3, 0)])[0] == (3, 5)
    assert apply([("push", 7, 5), ("delete", 0, 0)]) == (None, None)
