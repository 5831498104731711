# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What events tell of a container, in the form in which it is compared and stored."""

from __future__ import annotations

from dataclasses import dataclass

COUNTERS = ("objects", "bytes", "damaged_objects", "missing_chunks")
# Text of a time that was not given. It is older than everything, zero included (contract: "Timestamps").
UNKNOWN_TIME = "0"
# Lua computes with doubles, which hold all integers up to this; one container is far from it (9 PB, 9e15 objects).
COUNTER_MAX = 2**53 - 1
# A bigger number is a time in microseconds.
_MICROSECONDS_ABOVE = 31494784780800
# So that a normal form has 16 to 20 characters.
_MICROSECONDS_LIMIT = _MICROSECONDS_ABOVE * 10**6


@dataclass(frozen=True, slots=True)
class ContainerUpdate:
    """State of a container at a moment: times in normal form, counters, the bucket that it is a part of."""

    name: str
    mtime: str = UNKNOWN_TIME
    dtime: str = UNKNOWN_TIME
    bucket: str = ""
    objects: int = 0
    bytes: int = 0
    damaged_objects: int = 0
    missing_chunks: int = 0


def normalize_time(value: float | str | None) -> str:
    """Seconds with five decimals, padded with zeros to 16 characters; ``0`` when there is no time.

    :raises ValueError: when the value is no time.

    >>> normalize_time("12456.00035"), normalize_time(1600000000000000), normalize_time(None)
    ('0000012456.00035', '1600000000.00000', '0')
    """
    if value is None or value == "":
        return UNKNOWN_TIME
    seconds = float(value)
    if not 0 <= seconds <= _MICROSECONDS_LIMIT:
        raise ValueError(f"not a timestamp: {value!r}")
    return f"{seconds / 1e6 if seconds > _MICROSECONDS_ABOVE else seconds:016.5f}"


def is_later(a: str, b: str) -> bool:
    """Compare two normal forms: more digits before the point are later, else the greater text.

    The script that applies updates has the same function, in Lua.
    """
    digits_a, digits_b = len(a.partition(".")[0]), len(b.partition(".")[0])
    return a > b if digits_a == digits_b else digits_a > digits_b
