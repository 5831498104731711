# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Events of a chunk server, on its disk until the queue has them.

A request appends its event to the journal before it is answered, and never waits for the queue. The journal is
a spool (:mod:`oio.event.transport.spool`): append-only files that survive the death of the process, of which a
thread takes what it hands to the queue, in order. When the queue of the namespace is a spool itself, the journal
is that spool, and the event agent reads it.

Appending does not sync: one more sync for each chunk would cost more than the chunk. A thread does it every
second for those that the queue does not have yet; :mod:`oio.rawx.recall` finds again what a power cut takes.

The journal is bounded. At the bound, events are written to the log and dropped, until the queue has taken some
of the older ones: what the journal holds stays a prefix of what happened, and the indexer repairs the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from oio.common.durable import fsync_directory
from oio.event.queue import EventQueue, EventsRefused, QueueError
from oio.event.transport.spool import SpoolQueue, list_segments, segment_path
from oio.event.transport.spool_reader import SpoolReader

#: Events handed to the queue in one call.
BATCH_EVENTS = 1000
#: Pause when the journal was read to its end: events of this time leave together.
LINGER_S = 0.5
#: Pause after the queue failed, growing up to the second.
RETRY_MIN_S, RETRY_MAX_S = 0.2, 5.0
#: The longest that a power cut reaches back: unless the queue has them, events are synced after it.
SYNC_PERIOD_S = 1.0
#: Events that were delivered in this time are delivered again after a crash.
SAVE_PERIOD_S = 5.0
#: Empty file whose time is that of the last sync. It is not there after a stop in good order.
SYNC_MARK = "synced"

logger = logging.getLogger("oio.rawx")


class Journal:
    """Where requests leave their events; thread-safe.

    :param spool: the files; the journal closes it.
    :param queue: opens what the events go to from here; None when somebody else reads the journal.
    :param keys: tells of an event which others it must keep its order with, when there are several queues.
    :raises QueueError: when somebody else reads the files.
    """

    def __init__(
        self,
        spool: SpoolQueue,
        queue: Callable[[], EventQueue] | None = None,
        keys: Callable[[bytes], str] | None = None,
    ) -> None:
        self._spool = spool
        self._keys = keys
        self.directory = spool.directory
        self._stopping = threading.Event()
        self._stop_at = 0.0
        self._synced = 0
        self._dropping = False
        self._counting = threading.Lock()
        #: When all was with the queue, and how many events had been appended then.
        self._drained = (0.0, -1)
        self._mark = os.path.join(self.directory, SYNC_MARK)
        #: When a former process did not stop in good order: the time (seconds) of its last sync. The mark on the
        #: disk stays as it is until :meth:`recalled` is called.
        self.interrupted_at = _time_of(self._mark)
        if self.interrupted_at is None:
            _touch(self._mark, time.time())
        self.appended = 0
        self.dropped = 0
        self.forwarded = 0
        self.failures = 0
        self._threads = [threading.Thread(target=self._keep_synced, name="journal-sync", daemon=True)]
        if queue is not None:
            try:
                reader = SpoolReader(self.directory)
            except OSError as exc:
                spool.close()
                raise QueueError(f"cannot read the journal {self.directory}: {exc}") from exc
            forward = threading.Thread(
                target=self._forward, args=(reader, queue), name="journal-forward", daemon=True
            )
            self._threads.append(forward)
        for thread in self._threads:
            thread.start()

    def append(self, event: bytes) -> None:
        """Keep an event, in the files when it returns; one that does not fit is logged and dropped."""
        try:
            self._spool.put(event)
        except QueueError as exc:
            # Every event is logged; why, only once.
            self._drop([event], "" if self._dropping else str(exc))
            self._dropping = True
        else:
            with self._counting:
                self.appended += 1
            self._dropping = False

    def _drop(self, events: Sequence[bytes], reason: str) -> None:
        """Write events to the log: nobody else will have them."""
        self.dropped += len(events)
        if reason:
            logger.error("events are dropped: %s", reason)
        for event in events:
            logger.error("event %s", event.decode("utf-8", "replace").rstrip())

    def recalled(self) -> None:
        """What the last power cut may have taken is in the journal again."""
        self.interrupted_at = None
        # The next sync says from when on.
        self._synced = -1

    def counters(self) -> dict[str, int]:
        """Events since the start: appended, forwarded to the queue, dropped; failed calls of the queue."""
        return {
            "appended": self.appended, "forwarded": self.forwarded, "dropped": self.dropped,
            "failures": self.failures,
        }  # fmt: skip

    def depth(self) -> int:
        """Events that wait in the files."""
        return self._spool.depth()

    def close(self, timeout_s: float = 5.0) -> None:
        """Hand over what waits, within a bound; what remains is for the next start."""
        self._stop_at = time.monotonic() + timeout_s
        self._stopping.set()
        for thread in self._threads:
            thread.join(max(0.0, self._stop_at - time.monotonic()) + 1.0)
        self._spool.close()
        if self._synced == self.appended and self.interrupted_at is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._mark)

    # --- the threads ------------------------------------------------------------------------------

    def _keep_synced(self) -> None:
        while not self._stopping.wait(SYNC_PERIOD_S):
            self._sync()
        self._sync(patient=False)

    def _sync(self, patient: bool = True) -> None:
        """Sync what is neither with the queue nor on the disk; unless ``patient``, at once."""
        if self.appended == self._synced:
            return
        begin, appended = time.time(), self.appended
        drained_at, drained = self._drained
        if drained == appended:
            begin = drained_at
        elif patient and begin - drained_at < SYNC_PERIOD_S:
            return  # what came since is young
        elif not self._sync_files():
            return
        if self.interrupted_at is None:
            try:
                _touch(self._mark, begin)
            except OSError as exc:
                logger.error("cannot touch %s: %s", self._mark, exc)
        self._synced = appended

    def _sync_files(self) -> bool:
        try:
            # Former segments were synced by former calls, but for the one that was current then.
            for number in list_segments(self.directory)[-2:]:
                _sync_file(segment_path(self.directory, number))
            fsync_directory(self.directory)
        except FileNotFoundError:
            return False  # consumed meanwhile; the next call looks again
        except OSError as exc:
            logger.error("cannot sync the journal %s: %s", self.directory, exc)
            return False
        return True

    def _forward(self, reader: SpoolReader, opener: Callable[[], EventQueue]) -> None:
        """Take events from the files to the queue, in order, until there is none left at the end."""
        queue = _Lazy(opener)
        saved_at = time.monotonic()
        while True:
            begin = time.time(), self.appended
            batch = reader.reserve(BATCH_EVENTS)
            if not batch and self._stopping.is_set():
                break
            if batch:
                if not self._deliver(queue, [delivery.payload for delivery in batch]):
                    break
                for delivery in batch:
                    reader.ack(delivery)
            if len(batch) < BATCH_EVENTS:
                # All that was appended before is with the queue.
                self._drained = begin
            if time.monotonic() - saved_at >= SAVE_PERIOD_S:
                saved_at = time.monotonic()
                _save(reader)
            if len(batch) < BATCH_EVENTS:
                self._stopping.wait(LINGER_S)
        queue.close()
        with contextlib.suppress(OSError):  # told by _save
            _save(reader)
            reader.close()

    def _deliver(self, queue: _Lazy, events: list[bytes]) -> bool:
        """Put events in the queue, again until it takes them; False when the service stops before."""
        retry_s = 0.0
        while True:
            try:
                queue.put_many(events, self._keys and [self._keys(event) for event in events])
            except EventsRefused as exc:
                self._drop(exc.events, f"the queue refuses them for ever: {exc}")
                self.forwarded += len(events) - len(exc.events)
                return True
            except Exception as exc:
                # Whatever the queue raises, the events are still in the files: say it, wait, retry.
                self.failures += 1
                retry_s = min(RETRY_MAX_S, max(RETRY_MIN_S, retry_s * 2))
                logger.warning("event queue: %s: %s; retry in %.1f s", type(exc).__name__, exc, retry_s)
                if self._stopping.wait(retry_s):
                    if time.monotonic() >= self._stop_at:
                        return False
                    time.sleep(RETRY_MIN_S)
            else:
                self.forwarded += len(events)
                return True


class _Lazy:
    """A queue that is opened by the first put."""

    def __init__(self, opener: Callable[[], EventQueue]) -> None:
        self._opener = opener
        self._queue: EventQueue | None = None

    def put_many(self, events: list[bytes], keys: list[str] | None) -> None:
        """As that of the queue."""
        if self._queue is None:
            self._queue = self._opener()
        self._queue.put_many(events, keys=keys)

    def close(self) -> None:
        """Close the queue if it was opened."""
        if self._queue is not None:
            self._queue.close()


def _save(reader: SpoolReader) -> None:
    try:
        reader.save()
    except OSError as exc:
        # Events since the position that is on the disk will be delivered again.
        logger.error("cannot save the position in the journal %s: %s", reader.directory, exc)


def _time_of(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return None


def _touch(path: str, time_s: float) -> None:
    """Give a file a time. An older time after a power cut is as good."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    os.utime(path, (time_s, time_s))


def _sync_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
