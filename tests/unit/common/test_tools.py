# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Identifiers, full paths, ranges, streams, pagination."""

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oio.common import utils
from oio.common.exceptions import DeadlineReached, OioException, ServiceBusy
from oio.common.fullpath import decode_fullpath, decode_old_fullpath, encode_fullpath, encode_old_fullpath
from oio.common.timestamp import Timestamp
from oio.common.utils import GeneratorIO, RingBuffer, depaginate, fix_ranges, request_id
from oio.common.variables import Variables, parse_boolean

names = st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable())


def test_the_container_id_is_the_hash_of_the_names():
    cid = utils.cid_from_name("acme", "media")
    assert cid == hashlib.sha256(b"acme\0media").hexdigest().upper()
    assert cid != utils.cid_from_name("acmem", "edia")


def test_chunk_ids_are_predictable():
    one = utils.compute_chunk_id("C" * 64, "path", 1, "0", "THREECOPIES")
    assert one == utils.compute_chunk_id("C" * 64, "path", "1", 0, "THREECOPIES")
    assert len(one) == 64


@pytest.mark.parametrize("prefix", ["", "CLI-", "x" * 28, "y" * 40])
def test_request_ids_start_with_their_prefix(prefix):
    made = request_id(prefix)
    assert made.startswith(prefix)
    assert len(made) == max(32, len(prefix) + len(f"{os.getpid():04X}"))
    assert made != request_id(prefix) or len(prefix) >= 28


@given(names, names, names, st.integers(min_value=1), st.text("0123456789ABCDEF", min_size=1))
def test_full_paths_round_trip(account, container, path, version, content_id):
    encoded = encode_fullpath(account, container, path, version, content_id)
    assert encoded.count("/") == 4
    assert decode_fullpath(encoded) == (account, container, path, str(version), content_id)


@given(names, names, names, st.integers(min_value=1))
def test_old_full_paths_round_trip(account, container, path, version):
    encoded = encode_old_fullpath(account, container, path, version)
    assert decode_old_fullpath(encoded) == (account, container, path, str(version))


def test_a_full_path_with_a_missing_part_is_refused():
    with pytest.raises(ValueError, match="container"):
        encode_fullpath("a", "", "p", 1, "AB")
    with pytest.raises(ValueError, match="4 parts"):
        decode_fullpath("a/b/c/d")


def test_a_full_path_encodes_all_but_unreserved():
    encoded = encode_fullpath("acme", "media", "a b/c+d.txt", 1700000000000001, "0011AABB")
    assert encoded == "acme/media/a%20b%2Fc%2Bd.txt/1700000000000001/0011AABB"


def test_deadlines_are_checked():
    assert utils.deadline_to_timeout(utils.monotonic_time() + 10) > 9
    with pytest.raises(DeadlineReached):
        utils.deadline_to_timeout(utils.monotonic_time() - 1, check=True)


def test_a_deadline_comes_from_the_read_timeout_once():
    kwargs = {"read_timeout": 5.0}
    utils.set_deadline_from_read_timeout(kwargs)
    first = kwargs["deadline"]
    utils.set_deadline_from_read_timeout(kwargs)
    assert kwargs["deadline"] == first
    utils.set_deadline_from_read_timeout(kwargs, force=True)
    assert kwargs["deadline"] >= first


def test_pages_follow_each_other():
    pages = {None: ["a", "b"], "b": ["c"], "c": []}
    assert list(depaginate(lambda marker=None: pages[marker])) == ["a", "b", "c"]


def test_a_busy_page_is_tried_again():
    answers = [ServiceBusy(), ["a"], []]

    def page(marker=None):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert list(depaginate(page, attempts=2)) == ["a"]


@pytest.mark.parametrize(
    ("ranges", "length", "expected"),
    [([(0, 4)], 3, [(0, 2)]), ([(5, 6)], 3, []), ([], 3, None), ([(None, 2)], 5, [(3, 4)]),
     ([(2, None)], 5, [(2, 4)]), (None, 5, None), ([(0, 1)], None, None), ([(None, 9)], 5, [(0, 4)])],
)
def test_ranges_are_clamped(ranges, length, expected):
    assert fix_ranges(ranges, length) == expected


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(min_value=1, max_value=17))
def test_a_generator_is_read_in_any_size(items, size):
    stream = GeneratorIO(iter(items))
    blocks = iter(lambda: stream.read(size), b"")
    assert b"".join(blocks) == b"".join(items)


def test_reading_without_size_gives_the_next_item():
    stream = GeneratorIO(iter([b"ab", b"", b"cd"]))
    assert [stream.read(), stream.read(), stream.read()] == [b"ab", b"cd", b""]


def test_building_a_stream_does_not_touch_the_iterable():
    def explode():
        raise AssertionError("touched")
        yield b""

    GeneratorIO(explode())


def test_a_ring_buffer_overwrites_the_oldest():
    ring = RingBuffer(2)
    for item in (1, 2, 3):
        ring.append(item)
    assert sorted(ring) == [2, 3]
    with pytest.raises(TypeError):
        del ring[0]


def test_measures_are_summed_up():
    perfdata = {"rawx": {"connect.a": 1.0, "connect.b": 3.0, "connect.AVG": 9.0}}
    utils.compute_perfdata_stats(perfdata, "connect.")
    assert perfdata["rawx"]["connect.AVG"] == 2.0 and perfdata["rawx"]["connect.RSD"] == 0.5
    utils.compute_perfdata_stats({}, "connect.")


def test_an_empty_deadline_is_no_deadline():
    kwargs = {"read_timeout": 1.0, "deadline": None}
    utils.set_deadline_from_read_timeout(kwargs)
    assert kwargs["deadline"] is not None


def test_an_unknown_user_is_refused():
    with pytest.raises(OioException, match="does not exist"):
        utils.drop_privileges("nobody-has-this-name")


def test_timestamps_in_microseconds_are_recognised():
    assert Timestamp(1600000000000000) == 1600000000
    assert repr(Timestamp(1600000000)) == "1600000000.00000"
    assert Timestamp(1600000000).isoformat == "2020-09-13T12:26:40"


def test_timestamps_have_an_order():
    early, late = Timestamp(1600000000), Timestamp(1700000000000000)
    assert early < late and late >= early and early < 1600000001 and sorted([late, early]) == [early, late]
    assert bool(early) and not Timestamp(0)
    assert early != "not a number" and early != object()


def test_variables_are_typed_bounded_and_changeable():
    variables = Variables({"ns.chunk_size": "1Mi", "proxy.period.cs.downstream": "500ms", "ns.worm": "?"})
    assert variables["ns.chunk_size"] == 2**20
    assert variables["proxy.period.cs.downstream"] == 0.5
    assert len(variables.errors) == 1 and not variables["ns.worm"]
    assert variables.set("ns.flat_bits", "1000") and variables["ns.flat_bits"] == 64
    assert not variables.set("no.such.variable", "1")
    assert not variables.set("ns.flat_bits", "many")
    assert variables.as_text()["proxy.period.cs.downstream"] == "500000"
    assert variables.as_text()["ns.worm"] == "off"


def test_booleans_of_parameters():
    assert parse_boolean("Enabled") and not parse_boolean("disable", True)
    assert parse_boolean("perhaps", True) and not parse_boolean("perhaps")
