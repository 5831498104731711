# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The Range header (RFC 9110, section 14)."""

from __future__ import annotations

import re

# A request for more parts than this is answered whole: nobody reads a chunk that way.
RANGES_MAX = 64

_SPEC = re.compile(r"([0-9]*)-([0-9]*)\Z")
_INT64_MAX = (1 << 63) - 1


def parse(header: str | None, size: int) -> list[tuple[int, int]] | None:
    """Ranges to send, as (first byte, last byte); None for the whole chunk.

    An empty list means that no range can be satisfied (416). A header that is not understood is
    ignored, as the RFC asks. An empty chunk is always sent whole (contract: rawx GET).

    >>> parse("bytes=2-5", 10), parse("bytes=-3", 10), parse("bytes=12-", 10), parse("lines=1", 10)
    ([(2, 5)], [(7, 9)], [], None)
    """
    if header is None or not size or not header.startswith("bytes="):
        return None
    specs = header[len("bytes=") :].split(",")
    if len(specs) > RANGES_MAX:
        return None
    ranges: list[tuple[int, int]] = []
    asked = 0
    for spec in specs:
        spec = spec.strip(" \t")
        if not spec:
            continue
        asked += 1
        bounds = _bounds(spec, size)
        if bounds is None:
            return None
        first, last = bounds
        if first <= last:
            ranges.append(bounds)
    if not asked or sum(last - first + 1 for first, last in ranges) > 2 * size:
        return None  # nothing, or overlapping parts that would multiply the answer
    return ranges


def _bounds(spec: str, size: int) -> tuple[int, int] | None:
    """First and last byte of one range; first > last when it can't be satisfied; None if bad."""
    match = _SPEC.match(spec)
    if match is None:
        return None
    first_text, last_text = match.groups()
    if not first_text and not last_text:
        return None
    first = int(first_text) if first_text else 0
    last = int(last_text) if last_text else _INT64_MAX
    if first > _INT64_MAX or last > _INT64_MAX:
        return None
    if not first_text:
        return (max(0, size - last), size - 1) if last else (1, 0)
    if first > last:
        return None
    if first >= size:
        return 1, 0
    return first, min(last, size - 1)
