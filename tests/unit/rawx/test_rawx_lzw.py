# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""LZW: the example of the PDF standard, and round trips through every width of codes."""

import random

import pytest

from oio.rawx import lzw

# ISO 32000-1, 7.4.4.2.
PLAIN, PACKED = b"-----A---B", bytes.fromhex("800B6050220C0C8501")


def compressed(data, step):
    compressor = lzw.Compressor()
    parts = [compressor.compress(memoryview(data)[i : i + step]) for i in range(0, len(data), step)]
    return b"".join(parts) + compressor.flush()


def expanded(data, step=1 << 16):
    return b"".join(lzw.decompress((data[i : i + step] for i in range(0, len(data), step)), 4096))


@pytest.mark.parametrize("step", [1, 3, 100])
def test_the_example_of_the_standard(step):
    assert compressed(PLAIN, step) == PACKED
    assert expanded(PACKED, step) == PLAIN


def test_streams_without_clear_code():
    packed = bytes.fromhex("2A13C8445279489C4F2A40A090685C160F098080")
    assert expanded(packed) == b"TOBEORNOTTOBEORTOBEORNOT"
    assert expanded(b"\x80\x80") == b""


@pytest.mark.parametrize("data", [
    b"", b"x", b"a" * 300000, b"ab" * 70000, bytes(range(256)) * 200, random.Random(1).randbytes(70000),
    b"".join(b"%d," % number for number in range(20000)),
])  # fmt: skip
def test_round_trips(data):
    packed = compressed(data, 7777)
    assert expanded(packed, 1001) == data


@pytest.mark.parametrize("packed", [b"", PACKED[:-1], bytes.fromhex("8000FFFF"), b"\xff" * 40])
def test_what_is_no_stream(packed):
    with pytest.raises(lzw.Corrupt):
        expanded(packed)
