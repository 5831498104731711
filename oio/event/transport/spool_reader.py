# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The consuming side of a spool: at least once, in order of writing, acknowledged in any order.

>>> reader = SpoolReader("/var/spool/oio/NS-meta2-1")        # doctest: +SKIP
>>> for delivery in reader.reserve(16):                      # doctest: +SKIP
...     handle(delivery.payload)
...     reader.ack(delivery)
>>> reader.save()                                            # doctest: +SKIP

The position saved is the one before the first delivery that is not acknowledged. What was acknowledged
after the last :meth:`SpoolReader.save` is delivered again when the process dies, hence consumers are
idempotent. Segments are deleted after the position that makes them useless is on disk, never before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import zlib
from collections import deque

from oio.event.transport.spool import (
    MAGIC,
    POSITION_FILE,
    SUFFIX,
    WRITER_LOCK,
    list_segments,
    lock_file,
    parse_record,
    read_position,
    segment_path,
)

READER_LOCK = "reader.lock"
READ_BYTES = 256 << 10

logger = logging.getLogger("oio.event.spool")


class Delivery:
    """One event, reserved by this process until it is acknowledged."""

    __slots__ = ("acknowledged", "end", "payload", "segment")

    def __init__(self, payload: bytes, segment: int, end: int) -> None:
        self.payload = payload
        self.segment = segment
        self.end = end
        self.acknowledged = False


class SpoolReader:
    """Thread-safe. One per spool directory: a second one, in any process, is refused."""

    def __init__(self, directory: str) -> None:
        """:raises OSError: when the directory cannot be read or has a reader."""
        self.directory = directory
        self._lock = threading.Lock()
        self._lock_fd = lock_file(os.path.join(directory, READER_LOCK))
        self._saved = read_position(directory)
        # Where the next record is read, and the last position before which all is acknowledged.
        self._number, self._offset = self._saved
        self._done = self._saved
        self._reserved: deque[Delivery] = deque()
        self._fd = -1
        self._buffer = b""
        self._buffer_offset = 0
        self.skipped_bytes = 0

    def reserve(self, count: int) -> list[Delivery]:
        """Up to ``count`` events that were not delivered yet; empty when there is none now."""
        deliveries: list[Delivery] = []
        with self._lock:
            while len(deliveries) < count:
                payload = self._read()
                if payload is None and not self._next_segment():
                    break
                if payload is not None:
                    delivery = Delivery(payload, self._number, self._offset)
                    deliveries.append(delivery)
                    self._reserved.append(delivery)
        return deliveries

    def ack(self, delivery: Delivery) -> None:
        """Note that an event is handled."""
        with self._lock:
            delivery.acknowledged = True
            while self._reserved and self._reserved[0].acknowledged:
                first = self._reserved.popleft()
                self._done = (first.segment, first.end)

    @property
    def reserved(self) -> int:
        """Events delivered and not acknowledged."""
        return len(self._reserved)

    def save(self) -> None:
        """Make the position durable, and delete the segments before it. :raises OSError: on a bad disk."""
        with self._lock:
            if not self._reserved:
                self._done = (self._number, self._offset)
            done = self._done
        if done == self._saved:
            return
        self._write_position(done)
        self._saved = done
        for number in list_segments(self.directory):
            if number < done[0]:
                os.unlink(segment_path(self.directory, number))

    def close(self) -> None:
        """Save, then release the files; idempotent."""
        if self._lock_fd < 0:
            return
        try:
            self.save()
        finally:
            with self._lock:
                self._close_segment()
                os.close(self._lock_fd)
                self._lock_fd = -1

    def _read(self) -> bytes | None:
        """Payload of the next record of this segment, None when it is not (wholly) there."""
        if self._fd < 0 and not self._open_segment():
            return None
        for _ in range(2):  # what is buffered, then what can be read from the file
            start = self._offset - self._buffer_offset
            try:
                end, payload = parse_record(self._buffer, start)
            except ValueError:
                # Perhaps a record that is being written: told apart when the segment is left.
                end, payload = start, None
            if payload is not None:
                self._offset = self._buffer_offset + end
                return payload
            wanted = max(READ_BYTES, end - start)
            self._buffer = os.pread(self._fd, wanted, self._offset)
            self._buffer_offset = self._offset
            if not self._buffer:
                return None
        # The second pass has the head of the record, which may announce more than was read.
        return self._read_large()

    def _read_large(self) -> bytes | None:
        try:
            end, payload = parse_record(self._buffer, 0)
            if payload is None and end > len(self._buffer):
                self._buffer = os.pread(self._fd, end, self._offset)
                end, payload = parse_record(self._buffer, 0)
        except ValueError:
            return None
        if payload is not None:
            self._offset += end
        return payload

    def _open_segment(self) -> bool:
        try:
            fd = os.open(segment_path(self.directory, self._number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        if os.pread(fd, len(MAGIC), 0) != MAGIC:
            os.close(fd)  # being created, or damaged: _next_segment decides
            return False
        self._fd, self._buffer, self._buffer_offset = fd, b"", self._offset
        return True

    def _next_segment(self) -> bool:
        """Go to the next segment if there is one; returns whether there may be something to read.

        The producer never comes back to a segment once it opened the next. What was missing a moment ago may
        have been written before that, hence the last look at this one.
        """
        following = [number for number in list_segments(self.directory) if number > self._number]
        if not following:
            return False
        payload_before = self._offset
        payload = self._read()
        if payload is not None:
            # Read again by the caller: the record is still in the buffer.
            self._offset = payload_before
            return True
        self._leave_segment()
        self._number, self._offset = following[0], len(MAGIC)
        return True

    def _leave_segment(self) -> None:
        """Close this segment; whatever it holds after the last good record is kept aside and told."""
        path = segment_path(self.directory, self._number)
        try:
            left = os.stat(path).st_size - self._offset
        except FileNotFoundError:
            left = 0
        if left > 0:
            self.skipped_bytes += left
            logger.error(
                "%s: %d bytes at %d are no records, skipped; the file is kept as %s.corrupt",
                path, left, self._offset, os.path.basename(path),
            )
            with contextlib.suppress(FileExistsError):
                os.link(path, path + ".corrupt")
        self._close_segment()

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._buffer = b""

    def _write_position(self, position: tuple[int, int]) -> None:
        text = f"{position[0]} {position[1]}".encode()
        path = os.path.join(self.directory, POSITION_FILE)
        temporary = path + ".tmp"
        with open(temporary, "wb") as out:
            out.write(b"%s %d\n" % (text, zlib.crc32(text)))
            out.flush()
            os.fdatasync(out.fileno())
        os.rename(temporary, path)


def find_spools(root: str, depth: int = 3) -> list[str]:
    """Spool directories at or below ``root``; directories whose name starts with a dot are left alone."""
    found: list[str] = []
    try:
        with os.scandir(root) as scan:
            entries = list(scan)
    except (FileNotFoundError, NotADirectoryError):
        return found
    if any(entry.name == WRITER_LOCK or entry.name.endswith(SUFFIX) for entry in entries):
        found.append(root)
    if depth > 0:
        for entry in sorted(entries, key=lambda item: item.name):
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                found.extend(find_spools(entry.path, depth - 1))
    return found
