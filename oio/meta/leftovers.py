# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Bases of destroyed containers, kept beside the others until their last events are delivered.

Where a base had copies, the service that destroyed it delivers its events; the others keep their copies as
*spares*, until it says that it is done. When it does not, because it was lost, they deliver what they hold.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable

import apsw

from oio.meta.base_files import move_base, unlink_base
from oio.meta.outbox_rows import read_after

logger = logging.getLogger("oio.meta.outbox")

#: Suffixes of their files and of spares, behind the name, the time and the last entry of the base.
SUFFIX = ".gone"
SPARE_SUFFIX = ".spare"

#: Called with the name of a base whose events are delivered, and its last entry.
OnDelivered = Callable[[str, int], object]


class Leftovers:
    """Files of such bases. Any thread may add one; one thread delivers."""

    def __init__(self, directory: str) -> None:
        self.on_delivered: OnDelivered | None = None
        self._directory = directory
        self._paths: deque[str] = deque()
        #: Last event of the first one that was delivered.
        self._delivered = 0

    def __len__(self) -> int:
        return len(self._paths)

    def path_for(self, name: str, last_entry: int = 0, spare: bool = False) -> str:
        """Where the file of a destroyed base goes while it holds events."""
        suffix = SPARE_SUFFIX if spare else SUFFIX
        return os.path.join(self._directory, f"{name}.{time.time_ns()}-{last_entry}{suffix}")

    def add(self, path: str) -> None:
        """Deliver what this file holds, then delete it."""
        self._paths.append(path)

    def deliver(self, put: Callable[[list[bytes], list[str]], object]) -> bool:
        """Give some events of the first one, and their keys, to ``put``; is there more to do?"""
        if not self._paths:
            return False
        path = self._paths[0]
        try:
            connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                rows = read_after(connection.execute, self._delivered)
            finally:
                connection.close()
        except (apsw.CorruptError, apsw.NotADBError) as exc:
            logger.error("events of the destroyed base %s cannot be read, file kept: %s", path, exc)
            self._next()
            return True
        except apsw.Error:
            # A full disk, say: the others first, this one again later.
            self._delivered = 0
            self._paths.rotate(-1)
            raise
        name, last_entry, _since = _described(path)
        if rows:
            put([event for _, event in rows], [name] * len(rows))
            self._delivered = rows[-1][0]
            return True
        unlink_base(path)
        self._next()
        if last_entry and self.on_delivered is not None:
            self.on_delivered(name, last_entry)
        return True

    # --- spares ----------------------------------------------------------------------------------------------

    def drop_spares(self, name: str, last_entry: int) -> None:
        """The events of a destroyed base are delivered, up to this entry."""
        for path in self._spares():
            if _described(path)[0] == name and _described(path)[1] <= last_entry:
                unlink_base(path)

    def adopt_spares(self, age_s: float) -> bool:
        """Deliver the events of spares that nobody said to be delivered for so long; were there any?"""
        limit = time.time_ns() - int(age_s * 1e9)
        old = [path for path in self._spares() if _described(path)[2] <= limit]
        for path in old:
            target = path.removesuffix(SPARE_SUFFIX) + SUFFIX
            move_base(path, target)
            self.add(target)
        return bool(old)

    def _spares(self) -> list[str]:
        with os.scandir(self._directory) as entries:
            return [entry.path for entry in entries if entry.name.endswith(SPARE_SUFFIX)]

    def _next(self) -> None:
        self._delivered = 0
        self._paths.popleft()


def _described(path: str) -> tuple[str, int, int]:
    """Name, last entry (0: unknown) and time of the destruction (ns) that a file name tells."""
    name, _, rest = os.path.basename(path).rpartition(".")[0].rpartition(".")
    since, _, last_entry = rest.partition("-")
    return name, int(last_entry) if last_entry.isdigit() else 0, int(since) if since.isdigit() else 0
