# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Block sums: vectors, streams cut anywhere, malformed texts."""

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oio.common import blocksums
from oio.common.blocksums import BadSums, BlockSums, BlockVerifier, Mismatch

MIB = 1 << 20

# (data, text): what docs/format/chunk.md promises.
VECTORS = [
    (b"", "1048576:"),
    (b"hello", "1048576:6o8WPbOGgpI"),
    (b"a" * MIB, "1048576:tTWJCfi-1T8"),
    (b"a" * MIB + b"b", "1048576:tTWJCfi-1T8Q5c89PIpPnw"),
]


@pytest.mark.parametrize(("data", "text"), VECTORS, ids=[str(len(v[0])) for v in VECTORS])
def test_vectors(data, text):
    sums = BlockSums()
    sums.update(data)
    assert sums.text() == text
    blocksums.verify(text, data)
    assert sums.size == len(data)


def test_a_sum_is_the_head_of_the_digest_of_its_block():
    data = bytes(range(256)) * 10
    sums = BlockSums(1000)
    sums.update(data)
    expected = b"".join(blake3.blake3(data[i : i + 1000]).digest()[:8] for i in (0, 1000, 2000))
    assert sums.sums() == expected


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 64), st.lists(st.integers(0, 100), max_size=20))
def test_the_way_a_stream_is_cut_does_not_matter(data, block_size, cuts):
    whole = BlockSums(block_size)
    whole.update(data)
    pieces = BlockSums(block_size)
    verifier = BlockVerifier(whole.text(), len(data))
    given_back = b""
    start = 0
    for cut in [*cuts, len(data)]:
        piece = data[start : start + cut]
        start += len(piece)
        pieces.update(piece)
        given_back += b"".join(verifier.feed(piece))
    assert pieces.text() == whole.text()
    assert given_back == data
    assert verifier.finished


def test_text_may_be_asked_before_the_end():
    sums = BlockSums(4)
    sums.update(b"abcde")
    first = sums.text()
    sums.update(b"f")
    blocksums.verify(first, b"abcde")
    blocksums.verify(sums.text(), b"abcdef")


@pytest.mark.parametrize("flip", [0, 3, 4, 7, 8])
def test_a_bad_block_is_never_given_back(flip):
    data = bytearray(b"abcdefghi")
    sums = BlockSums(4)
    sums.update(data)
    data[flip] ^= 1
    verifier = BlockVerifier(sums.text(), 9)
    got = b""
    with pytest.raises(Mismatch) as caught:
        for byte in data:
            got += b"".join(verifier.feed(bytes([byte])))
    assert caught.value.block_index == flip // 4
    assert got == b"abcdefghi"[: flip // 4 * 4]
    assert not verifier.finished


def test_bytes_beyond_the_end_are_a_mismatch():
    sums = BlockSums(4)
    sums.update(b"abcd")
    with pytest.raises(Mismatch):
        BlockVerifier(sums.text(), 4).feed(b"abcde")


def test_a_stream_may_start_at_any_block():
    sums = BlockSums(4)
    sums.update(b"abcdefghi")
    assert b"".join(BlockVerifier(sums.text(), 9, first_block=1).feed(b"efghi")) == b"efghi"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1048576",
        ":",
        "x:",
        "-1:",
        "0:",
        "99999999999:",
        "4:!!",
        "4:AAAA",
        "4:AAAAAAAAAAA==",
        "4:A",
        "٣:AAAAAAAAAAA",
        "4:AAAAAAAAAA\xff",
    ],
)
def test_malformed_texts_are_refused(text):
    with pytest.raises(BadSums):
        BlockVerifier(text, 1)


@pytest.mark.parametrize("size", [0, 5, 9, 10**6])
def test_the_number_of_sums_must_fit_the_size(size):
    sums = BlockSums(4)
    sums.update(b"abcd")
    with pytest.raises(BadSums):
        BlockVerifier(sums.text(), size)


@pytest.mark.parametrize(
    ("size", "block"),
    [(0, MIB), (1, MIB), (256 * MIB, MIB), (256 * MIB + 1, 2 * MIB), (10 << 30, 64 * MIB)],
)
def test_at_most_256_blocks(size, block):
    assert blocksums.block_size_for(size) == block
    assert blocksums.block_count(size, block) <= 256
