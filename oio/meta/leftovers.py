# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Bases of destroyed containers, kept beside the others until their last events are delivered."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable

import apsw

from oio.meta.base_files import unlink_base
from oio.meta.outbox_rows import read_after

logger = logging.getLogger("oio.meta.outbox")

#: Suffix of their files.
SUFFIX = ".gone"


class Leftovers:
    """Files of such bases. Any thread may add one; one thread delivers."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._paths: deque[str] = deque()
        #: Last event of the first one that was delivered.
        self._delivered = 0

    def __len__(self) -> int:
        return len(self._paths)

    def path_for(self, name: str) -> str:
        """Where the file of a destroyed base goes while it holds events."""
        return os.path.join(self._directory, f"{name}.{time.time_ns()}{SUFFIX}")

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
        except apsw.Error as exc:
            logger.error("events of the destroyed base %s cannot be read, file kept: %s", path, exc)
            self._next()
            return True
        if rows:
            name = os.path.basename(path)[: -len(SUFFIX)].rpartition(".")[0]
            put([event for _, event in rows], [name] * len(rows))
            self._delivered = rows[-1][0]
            return True
        unlink_base(path)
        self._next()
        return True

    def _next(self) -> None:
        self._delivered = 0
        self._paths.popleft()
