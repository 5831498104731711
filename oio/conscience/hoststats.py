# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Load of this host, from ``/proc``: one sampler per process serves all watched services.

A sampler computes ratios over the time between two of its readings, and reads again at most once per
``REFRESH_PERIOD_S``: 25 services that ask in the same second cost one reading.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

# Slightly less than the usual cycle of one second, so that each cycle finds a new value.
REFRESH_PERIOD_S = 0.8
# Columns of /proc/stat and /proc/diskstats.
_IDLE = 3
_MAJOR, _MINOR, _IO_TICKS_MS = 0, 1, 12


class CpuSampler:
    """Share of the time that the processors were idle (waiting for a disk is not idleness)."""

    def __init__(self, path: str = "/proc/stat", clock: Callable[[], float] | None = None) -> None:
        self._path = path
        self._clock = clock or time.monotonic
        self._lock = threading.Lock()
        self._read_s = -REFRESH_PERIOD_S
        self._fields: list[int] = []
        self._ratio = 1.0

    def idle_ratio(self) -> float:
        """0..1, over the last period; 1.0 at first."""
        with self._lock:
            now = self._clock()
            if now - self._read_s >= REFRESH_PERIOD_S:
                self._read_s = now
                self._refresh()
            return self._ratio

    def _refresh(self) -> None:
        fields = self._read()
        previous, self._fields = self._fields, fields
        if not previous:
            return
        total = sum(fields) - sum(previous)
        idle = fields[_IDLE] - previous[_IDLE]
        if total > 0:
            self._ratio = min(1.0, max(0.0, idle / total))

    def _read(self) -> list[int]:
        with open(self._path, "rb") as stream:
            for line in stream:
                if line.startswith(b"cpu "):
                    return [int(field) for field in line.split()[1:]]
        raise OSError(f"no cpu line in {self._path}")


class DiskSampler:
    """Share of the time that each block device was idle."""

    def __init__(
        self, path: str = "/proc/diskstats", clock: Callable[[], float] | None = None
    ) -> None:
        self._path = path
        self._clock = clock or time.monotonic
        self._lock = threading.Lock()
        self._read_s = 0.0
        self._busy_ms: dict[tuple[int, int], int] = {}
        self._ratios: dict[tuple[int, int], float] = {}

    def idle_ratio(self, path: str) -> float:
        """0..1 for the device that holds ``path``; 1.0 when unknown (overlay, tmpfs, missing path)."""
        try:
            device = os.stat(path).st_dev
        except OSError:
            return 1.0
        with self._lock:
            now = self._clock()
            if not self._busy_ms or now - self._read_s >= REFRESH_PERIOD_S:
                self._refresh(now)
            return self._ratios.get((os.major(device), os.minor(device)), 1.0)

    def _refresh(self, now: float) -> None:
        previous, elapsed_ms = self._busy_ms, (now - self._read_s) * 1000
        self._busy_ms = self._read()
        self._read_s = now
        if not previous or elapsed_ms <= 0:
            return
        self._ratios = {
            device: min(1.0, max(0.0, 1.0 - (busy - previous[device]) / elapsed_ms))
            for device, busy in self._busy_ms.items()
            if device in previous
        }

    def _read(self) -> dict[tuple[int, int], int]:
        busy = {}
        try:
            with open(self._path, "rb") as stream:
                for line in stream:
                    fields = line.split()
                    if len(fields) > _IO_TICKS_MS:
                        device = (int(fields[_MAJOR]), int(fields[_MINOR]))
                        busy[device] = int(fields[_IO_TICKS_MS])
        except FileNotFoundError:
            return {}  # no block device is visible here: everything is unknown
        return busy


def free_ratio(path: str) -> float:
    """Smallest of the free inode ratio and the available block ratio; 0 when it cannot be known."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return 0.0
    inodes = stat.f_ffree / stat.f_files if stat.f_files else 1.0
    blocks = stat.f_bavail / stat.f_blocks if stat.f_blocks else 1.0
    return min(inodes, blocks)
