# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Which events a worker was handling when it died: memory that its parent can still read.

Each consumer writes the id of its event to a place of its own before it handles it, and clears it afterwards; that
costs no system call. An event that was there at several deaths is taken for their cause. So that those beside it
are not, events that were there at one death are handled one at a time from then on.
"""

from __future__ import annotations

import mmap
import os

PLACE_BYTES = 64
# Workers that an event may kill before it is buried.
DEATHS_MAX = 4
# Events that are remembered as having been there.
SUSPECTS_MAX = 1000


class RunningEvents:
    """The places of the consumers of one worker, in memory that outlives it."""

    def __init__(self, fd: int, consumers: int) -> None:
        """:param fd: what :func:`create` gave."""
        self._map = mmap.mmap(fd, consumers * PLACE_BYTES)

    def begin(self, place: int, job_id: str) -> None:
        """A consumer takes an event."""
        start = place * PLACE_BYTES
        self._map[start : start + PLACE_BYTES] = job_id.encode()[:PLACE_BYTES].ljust(PLACE_BYTES, b"\0")

    def end(self, place: int) -> None:
        """A consumer is done with its event."""
        self._map[place * PLACE_BYTES] = 0


def create(consumers: int) -> int:
    """Memory for the consumers of a worker; returns its descriptor."""
    fd = os.memfd_create("oio-event-agent")
    os.ftruncate(fd, consumers * PLACE_BYTES)
    return fd


def read(fd: int) -> list[str]:
    """Ids of the events that were being handled."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    places = (data[start : start + PLACE_BYTES] for start in range(0, len(data), PLACE_BYTES))
    return [place.rstrip(b"\0").decode("utf-8", "replace") for place in places if place[0]]


class Suspects:
    """Counts at how many deaths each event was there."""

    def __init__(self) -> None:
        self._deaths: dict[str, int] = {}

    def died(self, job_ids: list[str]) -> None:
        """A worker died while it handled these."""
        for job_id in job_ids:
            self._deaths[job_id] = self._deaths.pop(job_id, 0) + 1
        for job_id in list(self._deaths)[: max(0, len(self._deaths) - SUSPECTS_MAX)]:
            del self._deaths[job_id]

    def suspects(self) -> list[str]:
        """Events of which a worker died, perhaps."""
        return list(self._deaths)

    def guilty(self) -> list[str]:
        """Events that no worker shall handle any more."""
        return [job_id for job_id, deaths in self._deaths.items() if deaths >= DEATHS_MAX]
