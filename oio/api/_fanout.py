# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Sending the chunks of a metachunk to several rawx at once, from one thread.

Each destination is a *sink* with a queue of buffers. Copies share their buffers: queueing never copies data.
``Fanout.flush(limit)`` sends, without blocking on any single sink, until no sink has more than ``limit`` bytes
left; so the memory in use is bounded by the slowest sink's queue, and a small object leaves in one system call
per sink.

A sink that makes no progress during ``write_timeout`` is dropped, with the error recorded; so is one whose
connection breaks. A sink that answers before having received everything stops being fed: its answer, whatever
it is, is then read as that of the others.
"""

from __future__ import annotations

import hashlib
import queue
import selectors
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from blake3 import blake3

from oio.api._transport import (
    ChunkWriteTimeout,
    NativeConnection,
    failures,
    green_module,
    is_timeout,
    new_timeout,
)
from oio.http import errors as http_errors

# A response is waited for at most this long past the common deadline, so that an answer that is already there is
# never missed because a slower peer used up the time.
_LAST_CHANCE_S = 0.05

Buffer = bytes | bytearray | memoryview


class Sink:
    """One destination, reached through blocking calls: a connection that the package did not make itself."""

    __slots__ = ("answered", "chunk", "connection", "error", "pending", "spent_s", "timeout_s")

    def __init__(self, chunk: dict[str, Any], connection: Any, timeout_s: float) -> None:
        self.chunk = chunk
        self.connection = connection
        self.timeout_s = timeout_s
        self.pending = 0
        self.error: BaseException | None = None
        self.answered = False
        self.spent_s = 0.0

    def push(self, buffers: Sequence[Buffer]) -> None:
        """Queue buffers, in order. Here: send them at once; a failure is recorded, not raised."""
        if self.error is not None:
            return
        green = green_module()
        try:
            data = b"".join(buffers)
            if green is None:
                self.connection.send(data)
            else:
                with green.ChunkWriteTimeout(self.timeout_s):
                    self.connection.send(data)
        except failures() as err:
            self.fail(err)

    def pump(self) -> bool:
        """Send what can be sent without blocking; tell whether nothing is left."""
        return True

    def response(self, timeout_s: float) -> Any:
        """Wait for the answer. Raises what went wrong."""
        green = green_module()
        if green is None:
            return self.connection.getresponse()
        with green.ChunkWriteTimeout(timeout_s):
            return self.connection.getresponse()

    def fail(self, err: BaseException) -> None:
        """Give up on this destination."""
        if is_timeout(err) and not str(err).startswith(("Chunk", "Connection")):
            err = new_timeout(ChunkWriteTimeout, self.timeout_s)
        self.error = err
        self.pending = 0
        self.close()

    def close(self) -> None:
        """Close the connection; never fails."""
        try:
            self.connection.close()
        except failures():
            self.answered = True


class QueueSink(Sink):
    """A destination whose socket is written without blocking, several buffers per system call."""

    __slots__ = ("client", "fd", "progress_s")

    def __init__(self, chunk: dict[str, Any], connection: NativeConnection, timeout_s: float) -> None:
        super().__init__(chunk, connection, timeout_s)
        self.client = connection.client or connection.open()
        self.fd = self.client.fileno()
        self.progress_s = 0.0
        self.pending = self.client.pending

    def push(self, buffers: Sequence[Buffer]) -> None:
        """Queue buffers, in order, without copying them."""
        if self.error is None and not self.answered:
            queue = self.client.queue
            for data in buffers:
                queue(data)
            self.pending = self.client.pending

    def pump(self) -> bool:
        """Send what the socket takes."""
        try:
            done = self.client.send_nowait()
        except http_errors.ConnectionClosed:
            # The peer closed: it may have said why before.
            self.stop()
            return True
        self.pending = self.client.pending
        return done

    def response(self, timeout_s: float) -> Any:
        """Wait for the answer. Raises what went wrong."""
        client = self.client
        client.settimeout(read_s=timeout_s)
        if not self.answered:
            return client.getresponse()
        # What is left to send must stay unsent: only listen. As the request is incomplete, the connection will not
        # go back to the pool.
        deadline_s = time.monotonic() + timeout_s
        while (answer := client.try_read_response()) is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not _wait_readable(self.fd, left_s):
                raise new_timeout(ChunkWriteTimeout, self.timeout_s)
        return answer

    def stop(self) -> None:
        """Stop feeding a destination that has answered, or closed, too early."""
        self.answered = True
        self.pending = 0


def _wait_readable(fd: int, timeout_s: float) -> bool:
    selector = selectors.DefaultSelector()
    try:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))
    finally:
        selector.close()


def open_sink(chunk: dict[str, Any], connection: Any, timeout_s: float) -> Sink:
    """The kind of sink that suits a connection."""
    if isinstance(connection, NativeConnection):
        return QueueSink(chunk, connection, timeout_s)
    return Sink(chunk, connection, timeout_s)


class Fanout:
    """Feeds a set of sinks. See the module's first lines."""

    def __init__(self, write_timeout: float) -> None:
        self.sinks: list[Sink] = []
        self.write_timeout = write_timeout

    @property
    def alive(self) -> list[Sink]:
        """Sinks without error."""
        return [sink for sink in self.sinks if sink.error is None]

    def push(self, buffers: Sequence[Buffer]) -> None:
        """Queue the same buffers for every sink."""
        for sink in self.sinks:
            sink.push(buffers)

    def flush(self, limit: int = 0) -> None:
        """Send until no sink has more than ``limit`` bytes left; drop those that are stuck."""
        behind = False
        for sink in self.sinks:
            if sink.pending and not sink.pump() and sink.pending > limit:
                behind = True
        if behind:
            self._wait([s for s in self.sinks if s.pending and isinstance(s, QueueSink)], limit)

    def _wait(self, blocked: list[QueueSink], limit: int) -> None:
        # The class is looked up now: a monkey-patched program has put a green one there.
        selector = selectors.DefaultSelector()
        now = time.monotonic()
        for sink in blocked:
            sink.progress_s = now
            selector.register(sink.fd, selectors.EVENT_READ | selectors.EVENT_WRITE, sink)
        try:
            while any(sink.pending > limit for sink in blocked):
                oldest_s = min(sink.progress_s for sink in blocked if sink.pending)
                ready = selector.select(max(0.0, oldest_s + self.write_timeout - now))
                now = time.monotonic()
                for key, events in ready:
                    self._on_event(key.data, events, now)
                for sink in blocked:
                    if sink.pending and now - sink.progress_s >= self.write_timeout:
                        sink.fail(new_timeout(ChunkWriteTimeout, self.write_timeout))
                for sink in [sink for sink in blocked if not sink.pending]:
                    blocked.remove(sink)
                    selector.unregister(sink.fd)
        finally:
            selector.close()

    @staticmethod
    def _on_event(sink: QueueSink, events: int, now: float) -> None:
        if events & selectors.EVENT_READ:
            # An answer, or the end of the connection, before the end of the body.
            sink.stop()
        elif sink.pending:
            before = sink.pending
            sink.pump()
            if sink.pending != before:
                sink.progress_s = now

    def responses(self) -> list[tuple[Sink, Any]]:
        """The answer of every live sink, or the exception that stands for it, in the order of the sinks.

        All answers together are waited for ``write_timeout`` at most.
        """
        deadline_s = time.monotonic() + self.write_timeout
        result: list[tuple[Sink, Any]] = []
        remaining_s = self.write_timeout
        for sink in self.alive:
            try:
                answer = sink.response(remaining_s)
            except failures() as err:
                sink.fail(err)
                answer = sink.error
                remaining_s = max(_LAST_CHANCE_S, deadline_s - time.monotonic())
            result.append((sink, answer))
        return result

    def close(self) -> None:
        """Close every connection that is still open: the rawx then forget what they received."""
        for sink in self.sinks:
            sink.close()


# --- hashing beside sending -----------------------------------------------------------------------------

# Blocks that may wait to be hashed; with blocks of 256 KiB or 1 MiB this is a few MiB.
_HASH_QUEUE_MAX = 8
# Smaller blocks are hashed in less time than it takes to hand them over.
HASH_THREAD_BLOCK_MIN = 262144


def has_real_threads() -> bool:
    """False when eventlet has replaced threads: they would not run beside us."""
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is None or not patcher.is_monkey_patched("thread")


class HashThread:
    """Updates one hash with blocks, in order, in another thread (hashlib works without the GIL)."""

    def __init__(self, hash_: Any) -> None:
        self._hash = hash_
        self._blocks: queue.Queue[Buffer | None] = queue.Queue(_HASH_QUEUE_MAX)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="oio-hash", daemon=True)
        self._thread.start()

    def update(self, block: Buffer) -> None:
        """Hand a block over; it must not change afterwards."""
        self._blocks.put(block)

    def join(self) -> None:
        """Wait until every block has been hashed. Raises what hashing raised."""
        self.stop()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let the thread end after the blocks it was given."""
        self._blocks.put(None)
        self._thread.join()

    def _run(self) -> None:
        get, update = self._blocks.get, self._hash.update
        while (block := get()) is not None:
            if self._error is None:
                try:
                    update(block)
                except Exception as err:  # kept for join(): blocks must still be taken from the queue
                    self._error = err


# Name of the algorithm that hashlib does not have.
BLAKE3 = "blake3"


class ChunkHasher:
    """The hashes of a metachunk that is being written: the object's and the metachunk's.

    ``hashlib.new`` is called once, with the algorithm of the metachunk. When the metachunk is the beginning of the
    object and both use the same algorithm, the bytes are hashed once and both results come from the same state.
    """

    def __init__(self, checksum: Any, algorithm: str | None) -> None:
        self.checksum = checksum
        self.own: Any = None
        self.shared = False
        if algorithm == BLAKE3:
            self.own = blake3()
        elif algorithm:
            self.own = hashlib.new(algorithm)
            self.shared = (
                getattr(checksum, "name", None) == self.own.name
                and checksum.digest() == self.own.digest()
            )
        hashes = [checksum] if checksum is not None else []
        if self.own is not None and not self.shared:
            hashes.append(self.own)
        self._hashes = hashes
        self._threads: list[HashThread] = []

    def update(self, block: Buffer) -> None:
        """Add a block; large ones are hashed in other threads, so they must not change afterwards."""
        if not self._threads and len(block) >= HASH_THREAD_BLOCK_MIN and has_real_threads():
            self._threads = [HashThread(one) for one in self._hashes]
        for one in self._threads or self._hashes:
            one.update(block)

    def finish(self) -> str | None:
        """Wait for the hashes; hexadecimal digest of the metachunk, None without algorithm."""
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()
        if self.own is None:
            return None
        return self.checksum.hexdigest() if self.shared else self.own.hexdigest()

    def abort(self) -> None:
        """Stop the hashing threads, if any, without result."""
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.stop()
