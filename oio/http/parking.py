# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where idle connections wait, and the threads that serve those that become ready.

All free threads wait on one epoll set; the kernel wakes exactly one of them per ready connection, so that
there is no dispatcher thread, no queue and no hand-over between threads. When all threads are busy, ready
connections simply stay in the set until one is free.

Who owns a connection: the one who takes it out of ``_parked``, a dictionary whose ``pop`` is atomic. A
connection is in the dictionary *before* its descriptor is armed, and each arming is one-shot. A thread may
hold an event of a descriptor that the reaper closed and the kernel gave to a newer connection: it then
takes this newer one, finds nothing to read and parks it again; the event that was armed for it finds nobody
in the dictionary and is dropped. Both are harmless.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from typing import Protocol

logger = logging.getLogger("oio.http")

THREADS_SPARE_MAX = 4
"""Free threads beyond this many end after `THREAD_IDLE_S`."""

THREAD_IDLE_S = 30.0

LINGERING_THREADS_MAX = 32
"""When more threads than this are taken, none waits for the next request of its connection: waiting saves a few
microseconds per request, but must not make the pool grow.
"""

_ARMED = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT


class Parkable(Protocol):
    """What the parking lot needs to know of a connection."""

    fd: int
    armed_once: bool
    deadline: float

    def serve(self) -> bool:
        """Serve what is ready; True when the connection is to be parked again, False when it was closed."""

    def close(self) -> None:
        """Close the connection."""

    def has_input(self) -> bool:
        """Tell without waiting whether the peer sent something that was not read."""


class ParkingLot:
    """An epoll set of idle connections and a bounded pool of threads that serve the ready ones."""

    def __init__(self, threads_max: int, name: str = "http") -> None:
        self.threads_max = threads_max
        self.threads_count = 0
        self.free_count = 0
        self._name = name
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._parked: dict[int, Parkable] = {}
        self._lock = threading.Lock()
        self._ending = False
        self._ended = threading.Event()
        self._epoll.register(self._wake, select.EPOLLIN)

    def start(self) -> None:
        """Start the first thread."""
        with self._lock:
            self.threads_count = self.free_count = 1
        self._start_thread()

    def park(self, connection: Parkable, deadline: float) -> None:
        """Let `connection` wait for input until `deadline` (monotonic time). The caller no longer owns it."""
        connection.deadline = deadline
        fd = connection.fd
        self._parked[fd] = connection
        try:
            if connection.armed_once:
                self._epoll.modify(fd, _ARMED)
            else:
                connection.armed_once = True
                self._epoll.register(fd, _ARMED)
        except (OSError, ValueError):
            if self._parked.pop(fd, None) is not None:
                connection.close()

    def may_linger(self) -> bool:
        """Tell whether a thread may wait for the next request of its connection while others need threads
        too.
        """
        free = self.free_count
        return free > 0 and self.threads_count - free <= LINGERING_THREADS_MAX

    def parked_count(self) -> int:
        """Give how many connections are parked."""
        return len(self._parked)

    def reap(self, now: float) -> int:
        """Close the connections parked beyond their deadline; give how many."""
        late = [fd for fd, connection in list(self._parked.items()) if connection.deadline <= now]
        return sum([self._close_parked(fd) for fd in late])

    def clear(self) -> None:
        """Close the parked connections whose peer has sent nothing; the others are served."""
        for fd, connection in list(self._parked.items()):
            if not connection.has_input():
                self._close_parked(fd)

    def end(self, deadline: float) -> bool:
        """Close everything parked and end all threads; False if some are still busy at `deadline`."""
        self._ending = True
        for fd in list(self._parked):
            self._close_parked(fd)
        os.eventfd_write(self._wake, 1)
        return self._ended.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Give the descriptors back, once no thread is left."""
        self._epoll.close()
        os.close(self._wake)

    def _close_parked(self, fd: int) -> int:
        connection = self._parked.pop(fd, None)
        if connection is None:
            return 0
        connection.close()
        return 1

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._leave(0)
            logger.error("cannot start thread %d: %s", self.threads_count + 1, error)

    def _run(self) -> None:
        while self._serve_one():
            continue

    def _leave(self, spare_min: int) -> bool:
        """Account the end of the calling (free) thread, unless fewer than `spare_min` would remain free."""
        with self._lock:
            if self.free_count <= spare_min:
                return False
            self.threads_count -= 1
            self.free_count -= 1
            last = not self.threads_count
        if last:
            self._ended.set()
        return True

    def _serve_one(self) -> bool:
        """Wait for a ready connection and serve it; False when this thread is to end."""
        events = self._epoll.poll(THREAD_IDLE_S, 1)
        if self._ending:
            return not self._leave(0)
        if not events:
            return not self._leave(THREADS_SPARE_MAX)
        connection = self._parked.pop(events[0][0], None)
        if connection is None:
            return True
        with self._lock:
            self.free_count -= 1
            grow = self.free_count == 0 and self.threads_count < self.threads_max
            if grow:
                self.threads_count += 1
                self.free_count += 1
        if grow:
            self._start_thread()
        again = False
        try:
            again = connection.serve()
        except BaseException:
            logger.exception("connection abandoned")
            connection.close()
        with self._lock:
            self.free_count += 1
        if again:
            self.park(connection, connection.deadline)
        return True
