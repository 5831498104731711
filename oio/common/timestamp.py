# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Points in time, from seconds or microseconds."""

from __future__ import annotations

import functools
import time
from datetime import datetime, timezone
from typing import Any

# Beyond year 2954 in seconds: such a number is in microseconds.
_MICROSECONDS_FROM = 31_000_000_000_000


@functools.total_ordering
class Timestamp:
    """Seconds since the epoch; numbers above 3.1e13 are taken as microseconds.

    >>> Timestamp(1600000000).isoformat
    '2020-09-13T12:26:40'
    """

    def __init__(self, timestamp: Any = None) -> None:
        seconds = time.time() if timestamp is None else float(timestamp)
        self.timestamp = seconds / 1e6 if seconds > _MICROSECONDS_FROM else seconds

    def __repr__(self) -> str:
        return self.normal

    def __float__(self) -> float:
        return self.timestamp

    def __int__(self) -> int:
        return int(self.timestamp)

    def __bool__(self) -> bool:
        return bool(self.timestamp)

    def __eq__(self, other: object) -> bool:
        seconds = _seconds_of(other)
        return NotImplemented if seconds is None else self.timestamp == seconds

    def __lt__(self, other: object) -> bool:
        seconds = _seconds_of(other)
        return NotImplemented if seconds is None else self.timestamp < seconds

    def __hash__(self) -> int:
        return hash(self.timestamp)

    @property
    def normal(self) -> str:
        """Seconds with five decimals, padded with zeros to 16 characters."""
        return f"{self.timestamp:016.05f}"

    @property
    def isoformat(self) -> str:
        """Date and time in UTC, without zone."""
        moment = datetime.fromtimestamp(self.timestamp, timezone.utc)
        return moment.replace(tzinfo=None).isoformat()


def _seconds_of(other: object) -> float | None:
    """What a point in time can be compared with, in seconds; None for the rest."""
    if isinstance(other, (int, float, str, Timestamp)):
        try:
            return Timestamp(float(other)).timestamp
        except ValueError:
            return None
    return None
