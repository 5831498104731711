# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Consumers of the spools of a host: every spool below a directory, as one source.

Spools that appear are found within a second. What was released with a delay, or buried, leaves its spool for a
base (:mod:`oio.event.transport.retry_store`), so that a consumer that is down holds only its own events. The
base belongs to one process at a time: in the others, ``reserve`` finds nothing until they can take its place.

There is no time to run: what is reserved is delivered again when its process dies, and so are the events that were
settled in the last second before. The id of an event changes when it is released.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from typing import NamedTuple
from urllib.parse import urlsplit

from oio.event.queue import DEFAULT_TUBE, url_options
from oio.event.source import EventSource, Job, SourceClosed, SourceError, TubeStats
from oio.event.transport.retry_store import PostponedEvent, RetryStore, StoreBusy, StoreError
from oio.event.transport.spool import TUBE_PREFIX, spool_depth, tube_directory
from oio.event.transport.spool_reader import Delivery, SpoolReader, find_spools

STATE_DIRECTORY = ".event-agent"
SCAN_PERIOD_S = 1.0
SAVE_PERIOD_S = 1.0
# A spool gets at most this many turns before the next one is looked at.
RESERVE_AT_ONCE = 16
IDLE_PAUSE_MIN_S = 0.02
IDLE_PAUSE_MAX_S = 0.25
# The options of producers are accepted: one URL configures both.
OPTIONS = {"state_dir": str, "max_bytes": int, "segment_bytes": int, "fsync": str}

logger = logging.getLogger("oio.event.spool")


class _Token(NamedTuple):
    """Where a delivery comes from: a spool, or the base."""

    reader: SpoolReader | None
    delivery: Delivery | None
    postponed: PostponedEvent | None


class _Elsewhere(SourceError):
    """Another process reads these spools."""


class SpoolSource(EventSource):
    """Thread-safe; open it after forking."""

    def __init__(self, url: str, tube: str = DEFAULT_TUBE) -> None:
        """``spool:///directory?state_dir=/where/the/base/is``. :raises ValueError: on anything else."""
        address, options = url_options(url, OPTIONS)
        parts = urlsplit(address)
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError(f"{url!r} must be spool:///absolute/directory")
        self.url = url
        self.tube = tube
        self._root = parts.path
        tube_directory(self._root, tube)  # checks the name
        state = options.get("state_dir") or os.path.join(parts.path, STATE_DIRECTORY)
        name = "retry.db" if tube == DEFAULT_TUBE else f"retry-{tube}.db"
        self._store_path = os.path.join(state, name)
        self._store: RetryStore | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._saving = threading.Lock()
        self._readers: dict[str, SpoolReader] = {}
        self._buffer: deque[Job] = deque()
        self._reserved: set[Job] = set()
        self._running: set[int] = set()  # postponed events in the buffer or reserved
        self._polling = False
        self._closed = False
        self._scan_s = self._save_s = self._open_s = self._poll_s = 0.0
        self._pause_s = IDLE_PAUSE_MIN_S

    def reserve(self, timeout_s: float) -> Job | None:
        """Take a job; one thread looks at the spools for all."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                job = self._take()
                if job is not None:
                    return job
                now_s = time.monotonic()
                lead = not self._polling and now_s >= self._poll_s
                if not lead:
                    if now_s >= deadline:
                        return None
                    self._changed.wait(min(deadline, max(self._poll_s, now_s + IDLE_PAUSE_MIN_S)) - now_s)
                    continue
                self._polling = True
            found = False
            try:
                found = self._poll()
            finally:
                with self._lock:
                    self._polling = False
                    self._pause_s = IDLE_PAUSE_MIN_S if found else min(IDLE_PAUSE_MAX_S, self._pause_s * 2)
                    self._poll_s = 0.0 if found else time.monotonic() + self._pause_s
                    self._changed.notify_all()
            if not found and time.monotonic() >= deadline:
                return None

    def delete(self, job: Job) -> bool:
        """Acknowledge where the event comes from; durable within a second."""
        return self._settle(job, "delete", 0.0)

    def release(self, job: Job, delay_s: float = 0) -> bool:
        """Keep the event in the base until it is due; durable on return."""
        return self._settle(job, "release", delay_s)

    def bury(self, job: Job) -> bool:
        """Keep the event in the base until it is kicked; durable on return."""
        return self._settle(job, "bury", 0.0)

    def touch(self, job: Job) -> bool:
        """Nothing to do: there is no time to run."""
        with self._lock:
            return job in self._reserved

    def attempts(self, job: Job) -> int:
        """Deliveries so far; those that ended with the death of a process are not counted."""
        token: _Token = job.token
        return 1 if token.postponed is None else token.postponed.attempts + 1

    def stats(self) -> TubeStats:
        """Counts, with the spools read for it: not for every second."""
        self._save()
        try:
            depth = sum(spool_depth(directory) for directory in self._directories())
        except OSError as exc:
            raise SourceError(f"{self.url}: {exc}") from exc
        try:
            counts = self._opened().counts()
        except StoreError as exc:
            raise SourceError(str(exc)) from exc
        with self._lock:
            from_spools = sum(1 for job in (*self._reserved, *self._buffer) if job.token.postponed is None)
            buffered = sum(1 for job in self._buffer if job.token.postponed is None)
            return TubeStats(
                ready=max(0, depth - from_spools) + buffered,
                reserved=len(self._reserved),
                delayed=counts["postponed"] - len(self._running),
                buried=counts["buried"],
            )

    def kick(self, limit: int) -> int:
        """Have buried, else delayed events delivered now."""
        try:
            kicked = self._opened().kick(limit, time.time()) if limit > 0 else 0
        except StoreError as exc:
            raise SourceError(str(exc)) from exc
        with self._lock:
            self._save_s = self._poll_s = 0.0
        return kicked

    def close(self) -> None:
        """Save the positions before the first event that is not settled."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while self._polling:
                self._changed.wait()
            self._buffer.clear()
            self._reserved.clear()
            self._changed.notify_all()
            for reader in self._readers.values():
                try:
                    reader.close()
                except OSError as exc:
                    logger.error("cannot save the position of %s: %s", reader.directory, exc)
            if self._store is not None:
                self._store.close()

    def skipped_bytes(self) -> dict[str, int]:
        """By spool: what was found in it that was no event."""
        return {directory: reader.skipped_bytes for directory, reader in list(self._readers.items())}

    # --- taking -------------------------------------------------------------------------------------

    def _take(self) -> Job | None:
        """The next job at hand. Called with the lock."""
        if self._closed:
            raise SourceClosed(f"{self.url} is closed")
        if not self._buffer:
            return None
        job = self._buffer.popleft()
        self._reserved.add(job)
        return job

    def _poll(self) -> bool:
        """Read what there is; one thread at a time. :raises SourceError: when the base cannot be used."""
        try:
            store = self._opened()
        except _Elsewhere:
            return False
        now_s = time.monotonic()
        if now_s >= self._scan_s:
            self._scan_s = now_s + SCAN_PERIOD_S
            self._find_spools()
        if now_s >= self._save_s:
            self._save_s = now_s + SAVE_PERIOD_S
            self._save()
            self._add_postponed(store)
        found = False
        for reader in list(self._readers.values()):
            try:
                deliveries = reader.reserve(RESERVE_AT_ONCE)
            except OSError as exc:
                self._leave(reader, exc)
                continue
            if deliveries:
                found = True
                self._add([
                    Job(str((item.segment << 40) + item.end), item.payload, _Token(reader, item, None))
                    for item in deliveries
                ])  # fmt: skip
        return found or bool(self._buffer)

    def _add(self, jobs: list[Job]) -> None:
        with self._lock:
            self._buffer.extend(jobs)
            self._changed.notify(len(jobs))

    def _add_postponed(self, store: RetryStore) -> None:
        running = set(self._running)
        try:
            due = store.postponed_due(time.time(), RESERVE_AT_ONCE + len(running))
        except StoreError as exc:
            raise SourceError(str(exc)) from exc
        # An event that is settled just now may still be seen: delivering it twice is allowed.
        fresh = [postponed for postponed in due if postponed.id not in running]
        self._running.update(postponed.id for postponed in fresh)
        self._add([Job(str(item.id), item.event, _Token(None, None, item)) for item in fresh])

    def _opened(self) -> RetryStore:
        """The base, opened at the first need. :raises SourceError: when it cannot be, or is another process's."""
        with self._lock:
            if self._closed:
                raise SourceClosed(f"{self.url} is closed")
            if self._store is None:
                if time.monotonic() < self._open_s:
                    raise _Elsewhere(f"{self._store_path} belongs to another process")
                try:
                    self._store = RetryStore(self._store_path)
                    self._store.adopt_chunks(time.time())
                except StoreBusy as exc:
                    self._open_s = time.monotonic() + SCAN_PERIOD_S
                    raise _Elsewhere(str(exc)) from exc
                except StoreError as exc:
                    raise SourceError(str(exc)) from exc
            return self._store

    def _directories(self) -> list[str]:
        directories = find_spools(self._root)
        if self.tube == DEFAULT_TUBE:
            return directories
        # Tubes are hidden from those who look for the default one.
        parents = [self._root, *(entry.path for entry in _subdirectories(self._root))]
        return [path for parent in parents if os.path.isdir(path := tube_directory(parent, self.tube))]

    def _find_spools(self) -> None:
        for directory in self._directories():
            if directory not in self._readers:
                try:
                    self._readers[directory] = SpoolReader(directory)
                    logger.info("reading the spool %s", directory)
                except OSError as exc:
                    logger.error("cannot read the spool %s: %s", directory, exc)

    def _save(self) -> None:
        with self._saving:
            for reader in list(self._readers.values()):
                try:
                    reader.save()
                except OSError as exc:
                    self._leave(reader, exc)

    def _leave(self, reader: SpoolReader, reason: OSError) -> None:
        """Leave a spool that fails to the next scan, which opens it again if it still exists."""
        logger.error("cannot read the spool %s: %s", reader.directory, reason)
        self._readers.pop(reader.directory, None)
        with contextlib.suppress(OSError):
            reader.close()

    # --- settling -----------------------------------------------------------------------------------

    def _settle(self, job: Job, fate: str, delay_s: float) -> bool:
        with self._lock:
            if self._store is None or job not in self._reserved:
                return False
            store = self._store
        token: _Token = job.token
        now_s = time.time()
        try:
            if fate == "bury":
                store.bury(job.body, "by a consumer", now_s)
            if fate == "release" and token.postponed is None:
                store.postpone(job.body, now_s + delay_s)
            elif fate == "release" and token.postponed is not None:
                store.postpone_again(token.postponed, now_s + delay_s)
            elif token.postponed is not None:
                store.finish(token.postponed)
        except StoreError as exc:
            raise SourceError(str(exc)) from exc
        if token.reader is not None and token.delivery is not None:
            token.reader.ack(token.delivery)
        with self._lock:
            self._reserved.discard(job)
            if token.postponed is not None:
                self._running.discard(token.postponed.id)
            if fate == "release" and delay_s <= 0:
                self._save_s = self._poll_s = 0.0  # look at the base at once
                self._changed.notify()
        return True


def spool_tubes(root: str) -> list[str]:
    """Names of the tubes that have spools below a directory."""
    tubes = {DEFAULT_TUBE} if find_spools(root) else set()
    for parent in (root, *(entry.path for entry in _subdirectories(root))):
        with contextlib.suppress(OSError):
            names = (name for name in os.listdir(parent) if name.startswith(TUBE_PREFIX))
            tubes.update(name.removeprefix(TUBE_PREFIX) for name in names)
    return sorted(tubes)


def _subdirectories(root: str) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(root) as scan:
        return [entry for entry in scan if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
    return []
