# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Packed keys have the order of their texts."""

from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oio.rdir import keys

packed_keys = st.binary(min_size=keys.PACKED_BYTES, max_size=keys.PACKED_BYTES)
# Few different bytes, so that the keys share long prefixes.
close_keys = st.lists(st.sampled_from([0x00, 0x09, 0x9A, 0xA0, 0xFF]), min_size=80, max_size=80).map(bytes)
anything = st.text(alphabet="09AFGaf|/:@{é\x00", max_size=4)


def test_usual_ids_are_packed_and_others_are_not():
    container, content, chunk = "0123456789ABCDEF" * 4, "AB" * 16, "CD" * 32
    packed = keys.pack(container, content, chunk)
    assert len(packed) == 80
    assert keys.unpack(packed) == keys.text(container, content, chunk) == f"{container}|{content}|{chunk}"
    for wrong in (container.lower(), container[:-1], container + "0", "G" + container[1:], " " + container[1:]):
        assert keys.pack(wrong, content, chunk) is None
    assert keys.pack(container, content[:-2] + "  ", chunk) is None
    assert keys.pack(container, "é" * 32, chunk) is None


def test_long_ids_are_cut():
    assert keys.text("c" * 70, "d" * 2000, "e" * 600) == "c" * 64 + "|" + "d" * 1023 + "|" + "e" * 511


@given(packed_keys, packed_keys)
def test_the_order_is_that_of_the_texts(one, other):
    assert (one < other) == (keys.unpack(one) < keys.unpack(other))


@settings(max_examples=300)
@given(st.lists(st.one_of(packed_keys, close_keys), min_size=1, max_size=8), st.data())
def test_the_lower_bound_of_any_text(found, data):
    found = sorted(set(found))
    texts = [keys.unpack(key).encode() for key in found]
    text = data.draw(st.sampled_from(texts)).decode()
    position = (text[: data.draw(st.integers(0, 162))] + data.draw(anything)).encode()
    bound = keys.lower_bound(position)
    expected = bisect_left(texts, position)
    assert (len(found) if bound is None else bisect_left(found, bound)) == expected


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"", None), (b"\xff\xff", None), (b"a\xff", b"b")]
)
def test_the_end_of_a_prefix(prefix, end):
    assert keys.end_of_prefix(prefix) == end


@given(anything, anything)
def test_what_begins_with_a_prefix_is_below_its_end(prefix, rest):
    end = keys.end_of_prefix(prefix.encode())
    assert end is None or (prefix + rest).encode() < end
