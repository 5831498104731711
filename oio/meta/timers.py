# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Timers: which names are due, the earliest first."""

from __future__ import annotations

import heapq


class Timers:
    """At most one moment (monotonic, in seconds) per name. Not thread-safe: the owner's lock protects it."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        #: Moments of ``_due``, and some of names that were dropped since.
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._due)

    def add(self, name: str, due_s: float) -> None:
        """Set the moment of a name, unless it has one."""
        if name not in self._due:
            self._due[name] = due_s
            heapq.heappush(self._heap, (due_s, name))

    def drop(self, name: str) -> None:
        """Forget a name."""
        self._due.pop(name, None)

    def next_s(self) -> float | None:
        """The earliest moment, None when there is none."""
        while self._heap:
            due_s, name = self._heap[0]
            if self._due.get(name) == due_s:
                return due_s
            heapq.heappop(self._heap)
        return None

    def take(self, now_s: float) -> str | None:
        """Remove the earliest name that is due, and return it; None when none is."""
        due_s = self.next_s()
        if due_s is None or due_s > now_s:
            return None
        name = heapq.heappop(self._heap)[1]
        del self._due[name]
        return name
