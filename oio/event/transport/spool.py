# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A queue of events in append-only files, for one producing process.

It is read by :mod:`oio.event.transport.spool_reader`.

Files of a spool directory
--------------------------
=====================  =============================================================================
``N.seg``              segment number N (16 digits): 8 bytes ``OIOSPL01``, then records
``writer.lock``        locked (flock) by the only producer
``reader.lock``        locked by the only consumer
``position``           what is consumed: ``segment offset crc32``, as text
``N.seg.corrupt``      a segment in which the reader had to skip something, for a person to look at
=====================  =============================================================================

A record is ``length`` (u32 big endian, never 0), ``crc32`` (u32) of the payload seeded with the length, and
the payload. The seed makes the zeros of a file that was extended and never written a bad record.

Why nothing is lost or invented
-------------------------------
``put`` returns after ``fdatasync``. Threads that arrive while one of them syncs are written together by the next:
their number does not multiply the syncs. A producer always starts a new segment, after cutting the incomplete
last record of the former one: the reader may have read further than what a power cut left, so a position must
never be used twice for different records. For the same reason a segment is abandoned after a failed write or
sync (what a failed sync left on disk is unknown).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from urllib.parse import parse_qs, urlsplit

from oio.common.durable import fsync_directory
from oio.event.queue import (
    DEFAULT_TUBE,
    EVENT_MAX_BYTES,
    EventQueue,
    EventsRefused,
    QueueError,
    QueueFull,
    QueueTimeout,
)

MAGIC = b"OIOSPL01"
HEADER = struct.Struct(">II")
SUFFIX = ".seg"
WRITER_LOCK = "writer.lock"
POSITION_FILE = "position"
# Directory of a tube other than the default one, in the directory of the producer.
TUBE_PREFIX = ".tube-"
TUBE_MAX_BYTES = 200

# A consumed segment is the unit that is given back to the file system.
SEGMENT_BYTES = 16 << 20
# About three million events without any consumer; then producers are told to wait.
SPOOL_MAX_BYTES = 1 << 30

logger = logging.getLogger("oio.event.spool")


def spool_from_url(url: str, tube: str = DEFAULT_TUBE) -> SpoolQueue:
    """``spool:///dir?max_bytes=N&segment_bytes=N&fsync=0``. :raises ValueError: on anything else."""
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/"):
        raise ValueError(f"{url!r} must be spool:///absolute/directory")
    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    unknown = options.keys() - {"max_bytes", "segment_bytes", "fsync"}
    if unknown:
        raise ValueError(f"{url!r}: unknown option {', '.join(sorted(unknown))}")
    return SpoolQueue(
        tube_directory(parts.path, tube),
        segment_bytes=int(options.get("segment_bytes", SEGMENT_BYTES)),
        max_bytes=int(options.get("max_bytes", SPOOL_MAX_BYTES)),
        fsync=options.get("fsync", "1") != "0",
    )


class _Batch:
    """Records that will be written and synced together."""

    __slots__ = ("blobs", "done", "error", "settled", "size")

    def __init__(self, lock: threading.Lock) -> None:
        # Each batch wakes its own threads: with one condition for all, every sync would wake everybody.
        self.settled = threading.Condition(lock)
        self.blobs: list[bytes] = []
        self.size = 0
        self.done = False
        self.error: OSError | None = None


class SpoolQueue(EventQueue):
    """The producing side. Open it after forking: a second process is refused."""

    def __init__(
        self,
        directory: str,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = SPOOL_MAX_BYTES,
        fsync: bool = True,
    ) -> None:
        """:raises QueueError: when the directory cannot be used, or another process produces into it."""
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._fsync = fsync
        self._lock = threading.Lock()
        self._batch = _Batch(self._lock)
        self._idle = threading.Condition(self._lock)
        self._writing = False
        self._closed = False
        self._fd = -1
        self._offset = 0
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._lock_fd = lock_file(os.path.join(directory, WRITER_LOCK))
            segments = list_segments(directory)
            if segments:
                repair_segment(segment_path(directory, segments[-1]))
            # Beyond the reader too, or it would take new records for consumed ones.
            self._number = max([*segments[-1:], read_position(directory)[0]])
            self._size = spool_size(directory)
        except OSError as exc:
            raise QueueError(f"cannot open the spool {directory}: {exc}") from exc

    def put_many(
        self, events: Sequence[bytes], timeout_s: float | None = None, keys: Sequence[str] | None = None
    ) -> None:
        """Append events; returns once they are on disk. There is one order for all keys."""
        refused = [event for event in events if not 0 < len(event) <= EVENT_MAX_BYTES]
        blob = b"".join([frame(event) for event in events if 0 < len(event) <= EVENT_MAX_BYTES])
        if blob:
            self._append(blob, timeout_s)
        if refused:
            raise EventsRefused(f"{len(refused)} events are empty or above {EVENT_MAX_BYTES} bytes", refused)

    def depth(self) -> int:
        """Records behind the position that the reader saved last."""
        return spool_depth(self.directory)

    def close(self) -> None:
        """Wait for the running write, then release the files."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._batch.settled.notify_all()
            while self._writing:
                self._idle.wait()
            self._abandon_segment()
            os.close(self._lock_fd)

    def _append(self, blob: bytes, timeout_s: float | None) -> None:
        """Write records with those of other threads; returns once they are on disk."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            if self._closed:
                raise QueueError(f"the spool {self.directory} is closed")
            batch = self._batch
            self._check_room(batch.size + len(blob))
            batch.blobs.append(blob)
            batch.size += len(blob)
            # Either somebody writes this batch, or nobody writes and this thread does.
            while self._writing and not batch.done:
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise QueueTimeout(f"the spool {self.directory} is slow")
                batch.settled.wait(left_s)
            if not batch.done:
                if self._closed:
                    batch.settled.notify_all()
                    raise QueueError(f"the spool {self.directory} is closed")
                self._writing = True
                self._batch = _Batch(self._lock)
        if not batch.done:
            self._commit(batch)
        if batch.error is not None:
            raise QueueError(f"cannot write to the spool {self.directory}: {batch.error}")

    def _check_room(self, more: int) -> None:
        if self._size + more <= self._max_bytes:
            return
        # The reader deletes what it has consumed, without telling.
        self._size = spool_size(self.directory)
        if self._size + more > self._max_bytes:
            raise QueueFull(
                f"the spool {self.directory} holds {self._size} bytes, at most {self._max_bytes} are allowed"
            )

    def _commit(self, batch: _Batch) -> None:
        """Write one batch, as the only writing thread, and wake up those who wait for it."""
        try:
            self._write(b"".join(batch.blobs))
        except OSError as exc:
            batch.error = exc
            self._give_up_segment()
        finally:
            with self._lock:
                self._size += batch.size
                batch.done = True
                self._writing = False
                batch.settled.notify_all()
                # One thread of the next batch is enough to write it. It finds nobody writing, hence it cannot
                # leave for its time instead: the loop in put_many looks at that first.
                self._batch.settled.notify()
                self._idle.notify_all()

    def _write(self, data: bytes) -> None:
        if self._fd < 0 or self._offset + len(data) > self._segment_bytes:
            self._new_segment()
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        if self._fsync:
            os.fdatasync(self._fd)
        self._offset += len(data)

    def _new_segment(self) -> None:
        self._abandon_segment()
        self._number += 1
        path = segment_path(self.directory, self._number)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._offset = 0
        if os.write(self._fd, MAGIC) != len(MAGIC):
            raise OSError(errno.ENOSPC, f"cannot begin {path}")
        self._offset = len(MAGIC)
        if self._fsync:
            os.fsync(self._fd)
            fsync_directory(self.directory)

    def _give_up_segment(self) -> None:
        """After an error: cut what may be half written, and never write behind it."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._offset)
                if self._offset == 0:
                    os.unlink(segment_path(self.directory, self._number))
        self._abandon_segment()

    def _abandon_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# --- format, shared with the reader ---------------------------------------------------------------


def frame(event: bytes) -> bytes:
    """Record of an event. :raises QueueError: when it is empty or too large."""
    size = len(event)
    if not 0 < size <= EVENT_MAX_BYTES:
        raise QueueError(f"an event of {size} bytes, 1..{EVENT_MAX_BYTES} allowed")
    return HEADER.pack(size, zlib.crc32(event, size)) + event


def parse_record(data: bytes | memoryview, offset: int) -> tuple[int, bytes | None]:
    """Read the record at ``offset``.

    :returns: (offset of the next record, payload), or (bytes needed, None) when ``data`` ends too early.
    :raises ValueError: when what stands there is no record.
    """
    if len(data) - offset < HEADER.size:
        return offset + HEADER.size, None
    size, checksum = HEADER.unpack_from(data, offset)
    if not 0 < size <= EVENT_MAX_BYTES:
        raise ValueError(f"record of {size} bytes")
    end = offset + HEADER.size + size
    if end > len(data):
        return end, None
    payload = bytes(data[offset + HEADER.size : end])
    if zlib.crc32(payload, size) != checksum:
        raise ValueError("checksum mismatch")
    return end, payload


def tube_directory(directory: str, tube: str) -> str:
    """Spool of a tube: the directory itself for the default one, else a hidden directory in it.

    :raises ValueError: when the name of the tube cannot be that of a directory.
    """
    if tube == DEFAULT_TUBE:
        return directory
    if not tube or "/" in tube or "\0" in tube or len(tube.encode()) > TUBE_MAX_BYTES:
        raise ValueError(f"{tube!r} cannot be the name of a tube")
    return os.path.join(directory, TUBE_PREFIX + tube)


def segment_path(directory: str, number: int) -> str:
    """Path of a segment."""
    return os.path.join(directory, f"{number:016d}{SUFFIX}")


def list_segments(directory: str) -> list[int]:
    """Numbers of the segments, in order."""
    return sorted(
        int(name[: -len(SUFFIX)])
        for name in os.listdir(directory)
        if name.endswith(SUFFIX) and name[: -len(SUFFIX)].isdigit()
    )


def spool_size(directory: str) -> int:
    """Bytes of all segments."""
    size = 0
    for number in list_segments(directory):
        with contextlib.suppress(FileNotFoundError):  # consumed meanwhile
            size += os.stat(segment_path(directory, number)).st_size
    return size


def scan_segment(path: str, start: int = len(MAGIC)) -> Iterator[int]:
    """Yield the end offset of each good record; stop at the first that is not."""
    with open(path, "rb") as stream:
        data = stream.read()
    if data[: len(MAGIC)] != MAGIC:
        return
    while start < len(data):
        try:
            start, payload = parse_record(data, start)
        except ValueError:
            return
        if payload is None:
            return
        yield start


def repair_segment(path: str) -> None:
    """Cut what follows the last good record: it was never acknowledged, or the disk lost it.

    Bytes that do not look like an interrupted write (whole, but wrong) are kept in a ``.corrupt`` file.
    """
    good = max(scan_segment(path), default=0)
    with open(path, "r+b") as stream:
        stream.seek(good)
        tail = stream.read()
        if not tail or (good == 0 and tail == MAGIC):
            return
        logger.warning("%s: cutting %d bytes after the last record, at %d", path, len(tail), good)
        if _looks_corrupt(tail[len(MAGIC) :] if good == 0 else tail):
            with open(path + ".corrupt", "wb") as out:
                out.write(tail)
                os.fsync(out.fileno())
        if good == 0:
            stream.seek(0)
            stream.write(MAGIC)
        stream.truncate(max(good, len(MAGIC)))
        os.fsync(stream.fileno())


def _looks_corrupt(tail: bytes) -> bool:
    try:
        return parse_record(tail, 0)[1] is not None
    except ValueError:
        return bool(tail.strip(b"\0"))


def spool_depth(directory: str) -> int:
    """Records behind the saved position."""
    number, offset = read_position(directory)
    count = 0
    for segment in list_segments(directory):
        if segment >= number:
            start = offset if segment == number else len(MAGIC)
            with contextlib.suppress(FileNotFoundError):
                count += sum(1 for _ in scan_segment(segment_path(directory, segment), start))
    return count


def read_position(directory: str) -> tuple[int, int]:
    """(segment, offset) saved by the reader; the very beginning when there is none or it is damaged.

    Reading from the beginning delivers again what is left of consumed segments, and loses nothing.
    """
    try:
        with open(os.path.join(directory, POSITION_FILE), "rb") as stream:
            text, checksum = stream.read(256).rsplit(None, 1)
        if int(checksum) == zlib.crc32(text):
            number, offset = text.split()
            return int(number), int(offset)
        logger.error("%s: damaged position, events will be delivered again", directory)
    except FileNotFoundError:
        return 0, len(MAGIC)
    except ValueError as exc:
        logger.error("%s: damaged position (%s), events will be delivered again", directory, exc)
    return 0, len(MAGIC)


def lock_file(path: str) -> int:
    """Lock a file for this process; returns its descriptor. :raises OSError: when somebody else has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(fd)
        raise OSError(exc.errno, f"{path} is locked by another process") from exc
    return fd
