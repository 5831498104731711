# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Conversions of texts that come from configuration, headers and command lines."""

from __future__ import annotations

from typing import Any

TRUE_VALUES = frozenset({"true", "1", "yes", "on", "t", "y"})
FALSE_VALUES = frozenset({"false", "0", "no", "off", "f", "n"})
METRIC_SYMBOLS = ("", "K", "M", "G", "T", "P", "E", "Z", "Y")
_UNSET = (None, "None", "")
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


def int_value(value: Any, default: Any) -> Any:
    """``int(value)``, or the default when there is no value. :raises ValueError: on other text."""
    return default if value in _UNSET else int(value)


def float_value(value: Any, default: Any) -> Any:
    """``float(value)``, or the default when there is no value. :raises ValueError: on other text."""
    return default if value in _UNSET else float(value)


def true_value(value: Any) -> bool:
    """True for ``True`` and for the words of :data:`TRUE_VALUES` (any case), else False."""
    return value is True or (isinstance(value, str) and value.lower() in TRUE_VALUES)


def boolean_value(value: Any, default: bool = False) -> bool:
    """Parse a boolean. :raises ValueError: when the text is neither a true nor a false word."""
    if value in _UNSET:
        return default
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word in TRUE_VALUES:
        return True
    if word in FALSE_VALUES:
        return False
    raise ValueError(f"invalid boolean {value!r}")


def convert_size(size: float, unit: str = "") -> str:
    """Write a quantity for people, in powers of 1000.

    >>> convert_size(0, unit="B"), convert_size(-42), convert_size(1500)
    ('0B', '-42', '1.500K')
    """
    quantity = float(size)
    for symbol in METRIC_SYMBOLS:
        if abs(quantity) < 1000.0 or symbol == METRIC_SYMBOLS[-1]:
            break
        quantity /= 1000.0
    digits = f"{quantity:.3f}" if symbol else f"{quantity:.0f}"
    return digits + symbol + unit


def is_hexa(text: Any, size: int | None = None) -> bool:
    """Is this a hexadecimal ``str`` (of exactly ``size`` digits when given)?"""
    if not isinstance(text, str) or (size is not None and len(text) != size):
        return False
    return bool(text) and set(text) <= _HEX_DIGITS


def debinarize(something: Any) -> Any:
    """Decode every ``bytes`` within lists and dictionaries (keys too) as UTF-8."""
    if isinstance(something, bytes):
        return something.decode("utf-8")
    if isinstance(something, dict):
        return {debinarize(key): debinarize(value) for key, value in something.items()}
    if isinstance(something, list):
        return [debinarize(item) for item in something]
    return something
