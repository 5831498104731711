# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Reading message bodies from a socket: by length, by chunks, or until the peer closes.

Both ends use these readers. Nothing is ever read beyond what the caller asked for, save what fits in one
receive buffer; big pieces are received by the kernel straight into the caller's buffer. `Source` is the
receiving half of a connection, its subclasses decide what a timeout or a broken connection means.
"""

from __future__ import annotations

from typing import Any

from oio.http import wire
from oio.http.errors import HeadError

RECEIVE_BYTES = 65536
"""How much is asked from the kernel at once for heads and small bodies."""

DIRECT_BYTES_MIN = 16384
"""From this many expected bytes on, the kernel writes straight into the caller's buffer."""

SIDE_BYTES = 262144
"""Size of the buffer that takes what follows a chunk while the chunk itself goes to the caller's buffer."""

CHUNK_LINE_BYTES_MAX = 1024
"""Longest accepted line before a chunk, extensions included."""

TRAILERS_BYTES_MAX = 65536
"""Largest accepted block of trailers."""

READ_STEP_BYTES = 4 << 20
"""`read` never allocates more than this ahead of the bytes that really came."""

Buffer = bytes | bytearray | memoryview


class Source:
    """The receiving half of a connection: a socket and the bytes already received but not yet consumed.

    The bytes not consumed are ``buf[pos:end]``. They never grow beyond one receive plus a partial line or
    head.
    """

    __slots__ = ("buf", "end", "flags", "pos", "side", "sock", "vectored")

    def __init__(self, sock: Any, vectored: bool = True) -> None:
        self.sock = sock
        self.buf: bytes | bytearray = b""
        self.pos = 0
        self.end = 0
        self.side: bytearray | None = None
        self.vectored = vectored
        self.flags = 0

    def stalled(self) -> None:
        """Handle a receive that timed out: return to wait again, or raise."""
        raise NotImplementedError

    def broken(self, error: OSError) -> BaseException:
        """Give the exception to raise for a socket error."""
        raise NotImplementedError

    def truncated(self) -> BaseException:
        """Give the exception to raise when the peer closed in the middle of a message."""
        raise NotImplementedError

    def malformed(self, message: str) -> BaseException:
        """Give the exception to raise for bad framing."""
        raise NotImplementedError

    def fill(self) -> int:
        """Receive some more bytes after those that remain; give how many, 0 when the peer closed."""
        while True:
            try:
                data = self.sock.recv(RECEIVE_BYTES, self.flags)
            except (BlockingIOError, TimeoutError):
                self.stalled()
                continue
            except OSError as error:
                raise self.broken(error) from error
            if self.pos == self.end:
                self.buf = data
            else:
                self.buf = bytes(self.buf[self.pos : self.end]) + data
            self.pos = 0
            self.end = len(self.buf)
            return len(data)

    def recv_into(self, view: memoryview) -> int:
        """Receive straight into `view`; only when nothing remains in the buffer."""
        while True:
            try:
                count: int = self.sock.recv_into(view, 0, self.flags)
                return count
            except (BlockingIOError, TimeoutError):
                self.stalled()
            except OSError as error:
                raise self.broken(error) from error

    def recv_split(self, view: memoryview) -> int:
        """Receive into `view`, and what comes after it in the buffer, in one call; give the count put in
        `view`.
        """
        if not self.vectored:
            return self.recv_into(view)
        side = self.side
        if side is None:
            side = self.side = bytearray(SIDE_BYTES)
        while True:
            try:
                count: int = self.sock.recvmsg_into((view, side), 0, self.flags)[0]
            except (BlockingIOError, TimeoutError):
                self.stalled()
                continue
            except OSError as error:
                raise self.broken(error) from error
            size = len(view)
            if count > size:
                self.buf = side
                self.pos = 0
                self.end = count - size
                return size
            return count

    def take(self, view: memoryview, count: int) -> None:
        """Move `count` buffered bytes to the start of `view`."""
        pos = self.pos
        if count <= 512:
            view[:count] = self.buf[pos : pos + count]
        else:
            view[:count] = memoryview(self.buf)[pos : pos + count]
        self.pos = pos + count


class BodyReader:
    """What the three kinds of bodies have in common. `finished` is True once the last byte was consumed."""

    __slots__ = ("bytes_read", "finished", "source", "trailers")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.finished = False
        self.bytes_read = 0
        self.trailers: dict[str, str] = {}

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read between 1 byte and the size of `buffer`, waiting only for the first; 0 at the end of the
        body.
        """
        raise NotImplementedError

    def left_at_most(self) -> int | None:
        """Give how many bytes of the body have not been read, None when unknown."""
        return 0 if self.finished else None

    def read(self, count: int) -> bytes:
        """Read exactly `count` bytes, fewer only at the end of the body."""
        source = self.source
        left = self.left_at_most()
        if left is not None and count > left:
            count = left
        if count <= 0 or self.finished:
            return b""
        if self._plain(count):
            pos = source.pos
            data = bytes(source.buf[pos : pos + count])
            source.pos = pos + count
            self._consumed(count)
            return data
        pieces: list[bytes] = []
        while count:
            step = min(count, READ_STEP_BYTES)
            buffer = bytearray(step)
            view = memoryview(buffer)
            done = 0
            while done < step:
                got = self.readinto(view[done:])
                if not got:
                    break
                done += got
            pieces.append(bytes(view[:done]))
            count -= done
            if done < step:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_some(self, count: int = RECEIVE_BYTES) -> bytes:
        """Read between 1 and `count` bytes, waiting only for the first; empty at the end of the body."""
        buffer = bytearray(count)
        got = self.readinto(buffer)
        return bytes(memoryview(buffer)[:got])

    def read_all(self, limit: int | None = None) -> bytes | None:
        """Read all that remains; None as soon as it exceeds `limit`."""
        left = self.left_at_most()
        if left is not None:
            if limit is not None and left > limit:
                return None
            return self.read(left)
        pieces: list[bytes] = []
        total = 0
        step = RECEIVE_BYTES if limit is None else min(RECEIVE_BYTES, limit + 1)
        while True:
            data = self.read(step)
            if not data:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            total += len(data)
            if limit is not None and total > limit:
                return None
            pieces.append(data)
            step = min(step * 2, READ_STEP_BYTES)

    def _plain(self, count: int) -> bool:
        """Tell whether the next `count` bytes stand in the buffer without framing in between."""
        return False

    def _consumed(self, count: int) -> None:
        """Account `count` body bytes taken from the buffer by `read`."""
        raise NotImplementedError


class LengthBody(BodyReader):
    """A body of a known length."""

    __slots__ = ("left",)

    def __init__(self, source: Source, length: int) -> None:
        BodyReader.__init__(self, source)
        self.left = length
        self.finished = length == 0

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """See `BodyReader.readinto`."""
        left = self.left
        if not left:
            return 0
        view = _byte_view(buffer)
        source = self.source
        count = len(view)
        if count > left:
            count = left
        if not count:
            return 0
        buffered = source.end - source.pos
        if buffered:
            if count > buffered:
                count = buffered
            source.take(view, count)
        else:
            count = source.recv_into(view[:count])
            if not count:
                raise source.truncated()
        self._consumed(count)
        return count

    def left_at_most(self) -> int | None:
        """See `BodyReader.left_at_most`."""
        return self.left

    def _plain(self, count: int) -> bool:
        return self.source.end - self.source.pos >= count

    def _consumed(self, count: int) -> None:
        self.bytes_read += count
        self.left -= count
        if not self.left:
            self.finished = True


class ChunkedBody(BodyReader):
    """A body in chunked transfer coding; `trailers` is filled when the end was reached."""

    __slots__ = ("_after_data", "left")

    def __init__(self, source: Source) -> None:
        BodyReader.__init__(self, source)
        self.left = 0
        self._after_data = 0

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """See `BodyReader.readinto`; crosses chunk borders as long as no waiting is needed."""
        if self.finished:
            return 0
        view = _byte_view(buffer)
        source = self.source
        size = len(view)
        done = 0
        while done < size:
            left = self.left
            if not left:
                if not self._next_chunk(wait=not done):
                    break
                left = self.left
            count = size - done
            if count > left:
                count = left
            buffered = source.end - source.pos
            if buffered:
                if count > buffered:
                    count = buffered
                source.take(view[done:] if done else view, count)
            elif done:
                break
            elif count < DIRECT_BYTES_MIN:
                if not source.fill():
                    raise source.truncated()
                continue
            else:
                count = source.recv_split(view[:count])
                if not count:
                    raise source.truncated()
            done += count
            self.left = left - count
        self.bytes_read += done
        if done and not self.left and not self.finished:
            # When the end is already here, see it now: the trailers are then known without another read.
            self._next_chunk(wait=False)
        return done

    def skip_buffered(self) -> bool:
        """Forget what was already received of the body; True when that was all of it. Never waits."""
        source = self.source
        while not self.finished and source.pos < source.end:
            if self.left:
                count = min(self.left, source.end - source.pos)
                source.pos += count
                self.left -= count
            elif not self._next_chunk(wait=False):
                break
        return self.finished

    def _next_chunk(self, wait: bool) -> bool:
        """Go to the data of the next chunk; False at the end of the body, or when `wait` is False and its
        size line has not been received whole."""
        source = self.source
        while True:
            pos = source.pos + self._after_data
            line_end = source.buf.find(b"\r\n", pos, source.end)
            if line_end >= 0:
                break
            if source.end - pos > CHUNK_LINE_BYTES_MAX or (
                source.buf.find(b"\n", pos, source.end) >= 0
            ):
                raise source.malformed("malformed chunk size")
            self._check_data_end()
            if not wait:
                return False
            if not source.fill():
                raise source.truncated()
        self._check_data_end()
        if line_end - pos > CHUNK_LINE_BYTES_MAX:
            raise source.malformed("chunk size line too long")
        try:
            size = wire.parse_chunk_size(source.buf[pos:line_end])
        except HeadError as error:
            raise source.malformed(error.message) from None
        if size:
            source.pos = line_end + 2
            self.left = size
            self._after_data = 2
            return True
        if self._read_trailers(line_end, wait):
            self.finished = True
        return False

    def _check_data_end(self) -> None:
        """The data of a chunk must be followed by CRLF."""
        if self._after_data:
            source = self.source
            seen = source.buf[source.pos : min(source.pos + 2, source.end)]
            if seen != b"\r\n"[: len(seen)]:
                raise source.malformed("chunk data not followed by CRLF")

    def _read_trailers(self, line_end: int, wait: bool) -> bool:
        """Read what follows the last chunk; `line_end` is where its size line ends in the buffer."""
        source = self.source
        offset = line_end - source.pos
        while True:
            start = source.pos + offset
            block_end = source.buf.find(b"\r\n\r\n", start, source.end)
            if block_end >= 0:
                break
            if source.end - start > TRAILERS_BYTES_MAX:
                raise source.malformed("trailers too large")
            if wire.looks_broken(source.buf[start : source.end]):
                raise source.malformed("malformed trailers")
            if not wait:
                return False
            if not source.fill():
                raise source.truncated()
        if block_end > start:
            try:
                self.trailers = wire.parse_trailers(source.buf[start + 2 : block_end])
            except HeadError as error:
                raise source.malformed(error.message) from None
        source.pos = block_end + 4
        return True

    def _plain(self, count: int) -> bool:
        return self.left >= count and self.source.end - self.source.pos >= count

    def _consumed(self, count: int) -> None:
        self.bytes_read += count
        self.left -= count
        if not self.left:
            self._next_chunk(wait=False)


class CloseBody(BodyReader):
    """The body of an answer that ends when the peer closes; it can't be told from a truncated one."""

    __slots__ = ()

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """See `BodyReader.readinto`."""
        if self.finished:
            return 0
        view = _byte_view(buffer)
        source = self.source
        buffered = source.end - source.pos
        if buffered:
            count = min(len(view), buffered)
            source.take(view, count)
        else:
            count = source.recv_into(view)
            if not count:
                self.finished = True
        self.bytes_read += count
        return count

    def _consumed(self, count: int) -> None:
        self.bytes_read += count


def _byte_view(buffer: bytearray | memoryview) -> memoryview:
    view = memoryview(buffer)
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    return view
