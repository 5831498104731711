# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Conversions of texts: values, sizes, full paths, dates, JSON."""

import json as standard_json
import subprocess
import sys
from datetime import datetime, timezone

import pytest

from oio.common import easy_value, fullpath
from oio.common.json import json
from oio.common.timestamp import Timestamp


@pytest.mark.parametrize("unset", [None, "None", ""])
def test_what_is_unset_has_the_default(unset):
    assert easy_value.int_value(unset, 3) == 3
    assert easy_value.float_value(unset, None) is None
    assert easy_value.boolean_value(unset, True) is True and easy_value.boolean_value(unset) is False


def test_numbers():
    assert easy_value.int_value("-5", 3) == -5 and easy_value.int_value(0, 3) == 0
    assert easy_value.float_value("1.5", 0) == 1.5 and easy_value.float_value(0, 1) == 0.0
    for convert in (easy_value.int_value, easy_value.float_value):
        with pytest.raises(ValueError):
            convert("x", 1)


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "t", "y"])
def test_true_words(word):
    for text in (word, word.upper(), word.title()):
        assert easy_value.true_value(text) is True and easy_value.boolean_value(text) is True
    assert word in easy_value.TRUE_VALUES


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "f", "n"])
def test_false_words(word):
    for text in (word, word.upper()):
        assert easy_value.true_value(text) is False and easy_value.boolean_value(text, True) is False
    assert word in easy_value.FALSE_VALUES


def test_only_texts_and_true_itself_are_true():
    assert easy_value.true_value(True) is True
    assert [easy_value.true_value(value) for value in (1, None, "maybe", 2.0, [])] == [False] * 5
    assert easy_value.boolean_value(True) is True and easy_value.boolean_value(False, True) is False
    with pytest.raises(ValueError, match="maybe"):
        easy_value.boolean_value("maybe")


@pytest.mark.parametrize(
    ("size", "unit", "text"),
    [
        (0, "", "0"), (-42, "", "-42"), (999, "", "999"), (1000, "", "1.000K"), (-1000, "", "-1.000K"),
        (0, "B", "0B"), (1500, "B", "1.500KB"), (10**6, "", "1.000M"), (10**9, "", "1.000G"),
        (10**12, "", "1.000T"), (10**15, "", "1.000P"), (10**18, "", "1.000E"), (10**21, "", "1.000Z"),
        (10**24, "", "1.000Y"), (10**28, "", "10000.000Y"), (123456789, "iB", "123.457MiB"),
    ],
)  # fmt: skip
def test_sizes_for_people(size, unit, text):
    assert easy_value.convert_size(size, unit=unit) == text
    assert "".join(easy_value.METRIC_SYMBOLS) == "KMGTPEZY"


def test_hexadecimal_texts():
    assert easy_value.is_hexa("0aF") and easy_value.is_hexa("0aF", 3)
    for wrong in ("", "0x1", "g", " 1", "1\n", b"0a", 12, None):
        assert not easy_value.is_hexa(wrong)
    assert not easy_value.is_hexa("ABC", 4) and not easy_value.is_hexa("ABC", size=2)


def test_bytes_become_texts_everywhere():
    mixed = {b"k": [b"v", {b"n": b"\xc3\xa9"}], "t": 1, "u": None}
    assert easy_value.debinarize(mixed) == {"k": ["v", {"n": "é"}], "t": 1, "u": None}
    assert easy_value.debinarize(b"x") == "x" and easy_value.debinarize("x") == "x"


# --- full paths -----------------------------------------------------------------------------------

PARTS = ("myaccount", "my cont", "a/b", 1600000000000000, "0123456789ABCDEF")


def test_full_paths():
    encoded = "myaccount/my%20cont/a%2Fb/1600000000000000/0123456789ABCDEF"
    assert fullpath.encode_fullpath(*PARTS) == encoded
    assert fullpath.decode_fullpath(encoded) == (*PARTS[:3], "1600000000000000", PARTS[4])
    assert fullpath.encode_fullpath("é", "c", "p~%", "1", "AA") == "%C3%A9/c/p~%25/1/AA"


def test_legacy_full_paths():
    encoded = "myaccount/my+cont/a%2Fb/1600000000000000"
    assert fullpath.encode_old_fullpath(*PARTS[:4]) == encoded
    assert fullpath.decode_old_fullpath(encoded) == (*PARTS[:3], "1600000000000000")


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("nothing", ["", None, 0])
def test_every_part_of_a_full_path_is_needed(position, nothing):
    parts = list(PARTS)
    parts[position] = nothing
    with pytest.raises(ValueError):
        fullpath.encode_fullpath(*parts)
    if position < 4:
        with pytest.raises(ValueError):
            fullpath.encode_old_fullpath(*parts[:4])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_full_paths_of_another_length_are_refused(count):
    text = "/".join("abcdef"[:count])
    for decode, expected in ((fullpath.decode_fullpath, 5), (fullpath.decode_old_fullpath, 4)):
        if count == expected:
            assert decode(text) == tuple("abcdef"[:count])
        else:
            with pytest.raises(ValueError):
                decode(text)


# --- dates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(1600000000, 1600000000.0), ("1600000000.5", 1600000000.5), (1600000000000000, 1600000000.0),
     (31e12, 31e12), (31.1e12, 31.1e6), (0, 0.0), (Timestamp(5), 5.0)],
)  # fmt: skip
def test_timestamps_are_in_seconds(given, seconds):
    assert float(Timestamp(given)) == seconds and int(Timestamp(given)) == int(seconds)


def test_timestamps_compare_with_numbers():
    assert Timestamp(5) == 5 == Timestamp(5.0) and Timestamp(5) != 6 and Timestamp(5) == Timestamp("5")
    assert Timestamp(1600000000) == 1600000000000000


def test_texts_of_timestamps():
    assert repr(Timestamp(1600000000.123456)) == Timestamp(1600000000.123456).normal == "1600000000.12346"
    assert Timestamp(1).normal == "0000000001.00000"
    assert Timestamp(1600000000).isoformat == "2020-09-13T12:26:40"
    assert Timestamp(1600000000.25).isoformat == "2020-09-13T12:26:40.250000"


def test_a_timestamp_without_argument_is_now():
    before = datetime.now(timezone.utc).timestamp()
    assert before <= float(Timestamp()) <= datetime.now(timezone.utc).timestamp()


# --- JSON -----------------------------------------------------------------------------------------


def test_the_module_of_json():
    assert json.loads(json.dumps({"a": [1, "é"]})) == {"a": [1, "é"]}
    try:
        import simplejson
    except ImportError:
        assert json is standard_json
    else:
        assert json is simplejson


def test_simplejson_is_taken_when_it_is_there(tmp_path):
    (tmp_path / "simplejson.py").write_text("MARK = 1\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from oio.common.json import json; assert json.MARK"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
