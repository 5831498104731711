# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Prefixes of container ids: the directory is cut by them.

The table has one entry for each of the 65536 prefixes of 4 hexadecimal digits. With fewer significant digits
(``ns.meta1_digits``), all prefixes that share them form one *base* and have the same services.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

DIGITS_MAX = 4
PREFIXES = 16**DIGITS_MAX
_HEX = "0123456789ABCDEF"


def count_prefixes(digits: int) -> int:
    """Number of bases. :raises ValueError: when ``digits`` is not 0 to 4."""
    if not 0 <= digits <= DIGITS_MAX:
        raise ValueError(f"A prefix has 0 to {DIGITS_MAX} significant digits, not {digits}")
    return int(16**digits)


def generate_short_prefixes(digits: int) -> Iterable[str]:
    """Every prefix of this many digits, in order; one empty prefix for 0 digits."""
    count_prefixes(digits)
    return ("".join(letters) for letters in product(_HEX, repeat=digits)) if digits else ("",)


def generate_prefixes(digits: int) -> Iterable[str]:
    """Names of the bases: short prefixes filled up to 4 digits with zeros."""
    return (short.ljust(DIGITS_MAX, "0") for short in generate_short_prefixes(digits))


def base_of(cid_or_prefix: str, digits: int) -> str:
    """Name of the base of a container id: ``base_of("ABCDEF…", 2) == "AB00"``."""
    return cid_or_prefix[:digits].ljust(DIGITS_MAX, "0")


def siblings(base: str, digits: int) -> Iterable[str]:
    """The prefixes of 4 digits that belong to a base."""
    return (base[:digits] + end for end in generate_short_prefixes(DIGITS_MAX - digits))
