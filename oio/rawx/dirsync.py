# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Directory syncs shared between the requests that change the same directory.

Guarantee: when :meth:`DirectorySyncer.sync` returns, every change that the caller made to the
directory before the call is on stable storage. When it raises, nothing is known: the caller must
treat its change as lost, and must not call again hoping for a better answer, because the kernel
reports the failure of a write only once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterable

from oio.common.durable import fsync_directory

# Directories created ahead of need: so many at once, then a pause that leaves the machine to the requests,
# as a share of the time of one processor.
PREPARE_BATCH = 16
PREPARE_SHARE = 0.03


class _Batch:
    """The callers that one fsync serves."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = threading.Event()
        # Only a flush that returned clears it: whatever ends the leader early is a failure.
        self.error: OSError | None = OSError(errno.EIO, "not flushed")


class _Directory:
    __slots__ = ("busy", "next", "users")

    def __init__(self) -> None:
        self.busy = threading.Lock()  # held during the fsync
        self.next: _Batch | None = None  # the batch that may still be joined
        self.users = 0


class DirectorySyncer:
    """Leader and followers: one fsync for all the callers that wait for the same directory.

    Why a follower is covered. A follower joins a batch while ``directory.next`` names it. The
    leader sets ``next`` to None under the same lock, and only then starts its fsync. The follower's
    change was made before its call, so: change < join < close of the batch < start of the fsync.
    A caller that comes after the close finds ``next`` empty and leads a new batch, whose fsync
    starts after it acquires ``busy``, hence after the running fsync, hence after its change too.
    No caller is ever served by an fsync that had already started when it came.
    """

    def __init__(self, flush: Callable[[str], None] = fsync_directory) -> None:
        self._flush = flush
        self._lock = threading.Lock()
        self._directories: dict[str, _Directory] = {}
        self.flushes = 0
        """How many fsync were started; fewer than calls when batches form."""

    def sync(self, path: str) -> None:
        """Flush the directory, or share the flush of somebody else. OSError when it failed."""
        with self._lock:
            directory = self._directories.get(path)
            if directory is None:
                directory = self._directories[path] = _Directory()
            directory.users += 1
            batch = directory.next
            leads = batch is None
            if batch is None:
                batch = directory.next = _Batch()
        try:
            if leads:
                self._lead(path, directory, batch)
            else:
                batch.done.wait()
            if batch.error is not None:
                raise OSError(batch.error.errno, f"directory sync failed: {batch.error}", path)
        finally:
            with self._lock:
                directory.users -= 1
                if not directory.users:
                    del self._directories[path]

    def _lead(self, path: str, directory: _Directory, batch: _Batch) -> None:
        try:
            with directory.busy:
                with self._lock:
                    directory.next = None
                    self.flushes += 1
                self._flush(path)
                batch.error = None
        except OSError as err:
            batch.error = err
        finally:
            batch.done.set()


class DirectoryTree:
    """Knows which directories below a root will still be there after a power failure.

    A directory is durable once its parent was flushed after its creation. A directory found on
    disk may have been made by a request in progress, or by a process that died before it flushed
    the parent; so every directory is considered volatile until this process flushed its parent
    once. Flushing a parent without changes costs next to nothing.
    """

    def __init__(self, root: str, syncer: DirectorySyncer) -> None:
        self.root = root
        self._syncer = syncer
        self._durable = {root}

    def create(self, path: str) -> None:
        """Create a directory and its missing parents below the root."""
        if path == self.root:
            raise OSError(errno.EIO, "the volume is gone", path)
        self._durable.discard(path)
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            return
        except FileNotFoundError:
            self.create(os.path.dirname(path))
            self.create(path)

    def prepare(self, names: Iterable[str], stop: threading.Event) -> None:
        """Create directories of the first level ahead of need, gently, and flush the root once.

        They are durable afterwards: all existed before that flush started. Uploads that come
        meanwhile create what they need themselves.
        """
        paths = [f"{self.root}/{name}" for name in names]
        for first in range(0, len(paths), PREPARE_BATCH):
            begin_s = time.monotonic()
            for path in paths[first : first + PREPARE_BATCH]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o755)
            if stop.wait((time.monotonic() - begin_s) * (1 / PREPARE_SHARE - 1)):
                return
        self._syncer.sync(self.root)
        self._durable.update(paths)

    def sync(self, path: str) -> None:
        """Flush a directory of the tree, and once the parents that lead to it."""
        self._ensure_durable(path)
        self._syncer.sync(path)

    def _ensure_durable(self, path: str) -> None:
        if path in self._durable:
            return
        parent = os.path.dirname(path)
        self._ensure_durable(parent)
        self._syncer.sync(parent)
        self._durable.add(path)
