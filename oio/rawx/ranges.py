# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The Range header, as far as chunk servers honour it (contract: rawx GET, ranges).

One closed range is served. Ranges with an open end and suffixes are ignored, as the clients of the 7.x series
expect: they ask for whole chunks so, and take 206 for the range that they computed themselves.
"""

from __future__ import annotations

import re

# What follows the first range is ignored: answers never have several parts.
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]+)")
_INT64_MAX = (1 << 63) - 1
# With leading zeros; Python refuses to read numbers of thousands of digits.
_DIGITS_MAX = 64


class Unsatisfiable(Exception):
    """Raised when a range begins after the last byte (416)."""


def parse(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte to send; None for the whole chunk. :raises Unsatisfiable: when there is no such byte.

    A header that is not understood is ignored; an empty chunk is always sent whole.

    >>> parse("bytes=2-5", 10), parse("bytes=8-99", 10), parse("bytes=2-", 10), parse("bytes=-3", 10)
    ((2, 5), (8, 9), None, None)
    """
    if header is None or not size:
        return None
    match = _RANGE.match(header)
    if match is None or max(map(len, match.groups())) > _DIGITS_MAX:
        return None
    first, last = int(match[1]), int(match[2])
    if first > last or last > _INT64_MAX:
        return None
    if first >= size:
        raise Unsatisfiable(f"byte {first} of {size}")
    return first, min(last, size - 1)
