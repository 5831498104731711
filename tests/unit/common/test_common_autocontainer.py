# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Names of containers computed from the names of objects."""

import hashlib
import re

import pytest

from oio.common.autocontainer import (
    AutocontainerBuilder,
    ContainerBuilder,
    HashedContainerBuilder,
    NoMatchFound,
    RegexContainerBuilder,
)

MASK = 0xFFFFFFFFFF0000FF


def test_the_plain_builder_keeps_the_name():
    builder = ContainerBuilder()
    assert builder("a/b") == "a/b" and builder(12) == "12"
    assert list(builder.alternatives("a")) == ["a"]
    assert builder.verify("anything") and not builder.verify(b"bytes") and not builder.verify(None)


def test_hashed_names_are_the_first_bits():
    digest = hashlib.sha256(b"path").hexdigest().upper()
    assert HashedContainerBuilder(bits=256)("path") == digest
    assert HashedContainerBuilder(bits=8)("path") == digest[:2]
    assert int(HashedContainerBuilder(bits=15)("path"), 16) == int(digest[:4], 16) & 0xFFFE
    assert HashedContainerBuilder(bits=17)("fstab") == "06EE0"
    assert HashedContainerBuilder()("path") == HashedContainerBuilder(bits=15)("path")
    assert list(HashedContainerBuilder(bits=17).alternatives("fstab")) == ["06EE0"]


@pytest.mark.parametrize(("bits", "digits"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (17, 5)])
def test_hashed_names_have_all_their_digits_and_no_other_bit(bits, digits):
    builder = HashedContainerBuilder(bits=bits)
    for number in range(64):
        name = builder(f"object-{number}")
        assert re.fullmatch(f"[0-9A-F]{{{digits}}}", name)
        assert builder.verify(name)


def test_hashed_names_heed_offset_and_size():
    builder = HashedContainerBuilder(offset=1, size=2, bits=256)
    assert builder("abcd") == hashlib.sha256(b"bc").hexdigest().upper()
    # The size counts bytes, the offset characters.
    assert builder("éàb") == hashlib.sha256("à".encode()).hexdigest().upper()
    assert str(builder) == "HashedContainerBuilder(bits=256,offset=1,size=2)"
    assert str(HashedContainerBuilder()) == "HashedContainerBuilder(bits=15,offset=0,size=None)"


@pytest.mark.parametrize("bits", [0, -1, 257])
def test_the_number_of_bits_is_bounded(bits):
    with pytest.raises(ValueError, match=str(bits)):
        HashedContainerBuilder(bits=bits)


@pytest.mark.parametrize(
    ("bits", "good", "bad"),
    [
        (8, ["F0", "0F", "ff"], ["1F0", "FF0", "zz", "", "0x1", "-1", "1_0", None, 5]),
        (9, ["FF0", "FF8"], ["FF4", "FF1"]),
        (12, [f"{number:03X}" for number in range(4096)], ["1000"]),
    ],
)
def test_hashed_names_are_verified(bits, good, bad):
    builder = HashedContainerBuilder(bits=bits)
    assert all(builder.verify(name) for name in good)
    assert not [name for name in bad if builder.verify(name)]


@pytest.mark.parametrize(
    ("path", "options", "number"),
    [
        ("12/34rest", {}, 1234 & MASK),
        ("prefix/567/8.jpg", {"offset": 6}, 5678 & MASK),
        ("00123456", {"size": 5}, 123 & MASK),
        ("1/2/3", {"size": 3}, 12 & MASK),
        ("65535", {"mask": 0xFF00}, 0xFF00),
        ("10", {"base": 2}, 10),
    ],
)
def test_names_from_digits(path, options, number):
    builder = AutocontainerBuilder(**options)
    assert builder(path) == f"{number:016X}" and builder.verify(builder(path))


def test_names_from_digits_have_their_format():
    assert AutocontainerBuilder(con_format="c-%X")("255") == "c-FF"


@pytest.mark.parametrize("path", ["rest", "", "/", "٣"])
def test_digits_are_needed(path):
    with pytest.raises(ValueError, match="digit"):
        AutocontainerBuilder()(path)


@pytest.mark.parametrize("name", ["0000000000000100", "FF", "00000000000000ff", "zz", "", None])
def test_names_not_from_digits_are_refused(name):
    assert not AutocontainerBuilder().verify(name)


def test_names_from_a_pattern():
    builder = RegexContainerBuilder(r"^user/(\w+)(?:/(\d+))?")
    assert builder("user/bob/12/x") == "bob12" and builder("user/bob") == "bob"
    with pytest.raises(NoMatchFound):
        builder("other")
    assert issubclass(NoMatchFound, ValueError)


@pytest.mark.parametrize("made", [list, tuple, iter])
def test_the_first_pattern_wins_and_all_are_alternatives(made):
    builder = RegexContainerBuilder(made([r"^user/(\w+)/", re.compile(r"(\d+)")]))
    assert builder("user/bob/1") == "bob" and builder("x/7") == "7"
    assert list(builder.alternatives("user/bob/1")) == ["bob", "1"]
    assert list(builder.alternatives("nothing")) == []


@pytest.mark.parametrize(
    "patterns", ["", [], (), "no group", ["(a)", "no group"], [re.compile("no group")], re.compile("x")]
)
def test_patterns_need_a_group(patterns):
    with pytest.raises(ValueError):
        RegexContainerBuilder(patterns)


def test_another_builder_makes_the_name_of_what_matched():
    builder = RegexContainerBuilder(r"/(\w+)$", builder=HashedContainerBuilder, bits=17)
    assert builder("etc/fstab") == "06EE0"
    assert builder.verify("06EE0") and not builder.verify("not hexa")
    assert RegexContainerBuilder("(.)").verify("anything")
