# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Consumers of a tube of beanstalkd: one connection per thread (real or green) that calls.

A job belongs to the connection that reserved it, and beanstalkd makes it ready again when that connection
ends. The deletion of a job carries along the reservation of the next one, so that a job costs one round trip. A
thread that stops consuming without ending must hence close the source, or the job that is reserved ahead for
it waits for its time to run.

The time to run is what the producer has chosen. Delays and timeouts are whole seconds for beanstalkd; they are
rounded up. beanstalkd counts releases from the first put and for ever. A job is hence buried with a priority
that tells how many it had: after a kick, which leaves the priority alone, they do not count any more.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import weakref
from typing import Any

from oio.event.queue import DEFAULT_TUBE, url_options
from oio.event.source import EventSource, Job, SourceClosed, SourceError, TubeStats
from oio.event.transport.beanstalk_wire import (
    DEFAULT_PRIORITY,
    OPTIONS,
    BeanstalkError,
    Reply,
    ResponseError,
    TimeoutError,
    Wire,
    check,
    check_tube,
    parse_stats,
    parse_url,
)

# Contract: ``events.beanstalkd.timeout``.
TIMEOUT_S = 4.0
CONNECT_TIMEOUT_S = 2.0
# When the time of another job of the connection is nearly over, beanstalkd refuses to wait for a new one.
DEADLINE_PAUSE_S = 0.1
KICK_MAX = 1_000_000
# Failures before a burial that its priority, DEFAULT_PRIORITY and so many, can tell.
FORMER_MAX = 1_000_000

logger = logging.getLogger("oio.event.beanstalk")


class BeanstalkSource(EventSource):
    """Thread-safe; open it after forking."""

    def __init__(self, url: str, tube: str = DEFAULT_TUBE) -> None:
        """``beanstalk://host:port?timeout_s=&connect_timeout_s=``. :raises ValueError: on anything else."""
        address, options = url_options(url, OPTIONS)
        self.url = url
        self.tube = check_tube(tube)
        self._host, self._port = parse_url(address)
        self._timeout_s = float(options.get("timeout_s", TIMEOUT_S))
        self._connect_timeout_s = float(options.get("connect_timeout_s", CONNECT_TIMEOUT_S))
        self._local = threading.local()
        self._lock = threading.Lock()
        # Those of threads that ended disappear with them, and give their jobs back.
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._closed = False

    def reserve(self, timeout_s: float) -> Job | None:
        """Wait on the connection of this thread."""
        # A green thread whose server answers before it asks for the answer would never let the others run, else.
        time.sleep(0)
        connection = self._mine()
        deadline = time.monotonic() + timeout_s
        with self._errors(), connection.using():
            while True:
                fresh = connection.idle
                reply = connection.next_job(deadline)
                if reply is None:
                    return None
                if reply.word == "RESERVED":
                    connection.held += 1
                    return Job(reply.args[0], reply.body, connection)
                if reply.word not in ("TIMED_OUT", "DEADLINE_SOON"):
                    raise ResponseError("reserve", reply.word, reply.args)
                if not fresh:
                    continue  # what was true when the former job was deleted
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                if reply.word == "DEADLINE_SOON":
                    time.sleep(min(left_s, DEADLINE_PAUSE_S))

    def delete(self, job: Job) -> bool:
        """Delete on the connection that reserved the job, and reserve another one."""
        connection: _Connection = job.token
        with self._errors(), connection.using():
            # With another job at hand, beanstalkd could answer that its time is nearly over.
            ahead = connection.held <= 1 and connection is getattr(self._local, "connection", None)
            return self._settled(connection, f"delete {job.id}", "DELETED", ahead=ahead)

    def release(self, job: Job, delay_s: float = 0) -> bool:
        """Release on the connection that reserved the job."""
        connection: _Connection = job.token
        with self._errors(), connection.using():
            former, _ = connection.failures(job.id)
            command = f"release {job.id} {DEFAULT_PRIORITY + former} {max(0, math.ceil(delay_s))}"
            return self._settled(connection, command, "RELEASED")

    def bury(self, job: Job) -> bool:
        """Bury on the connection that reserved the job."""
        connection: _Connection = job.token
        with self._errors(), connection.using():
            _, so_far = connection.failures(job.id)
            priority = DEFAULT_PRIORITY + min(so_far, FORMER_MAX)
            return self._settled(connection, f"bury {job.id} {priority}", "BURIED")

    def touch(self, job: Job) -> bool:
        """Start the time to run anew."""
        connection: _Connection = job.token
        with self._errors(), connection.using():
            return not connection.lost and connection.ask(f"touch {job.id}").word == "TOUCHED"

    def attempts(self, job: Job) -> int:
        """Deliveries since the last burial, but for those that were given back with their connection."""
        connection: _Connection = job.token
        with self._errors(), connection.using():
            former, so_far = connection.failures(job.id, ask=True)
            return max(1, 1 + so_far - former)

    def stats(self) -> TubeStats:
        """Counts of the tube; a tube that does not exist is empty."""
        with self._errors(), contextlib.closing(self._connect()) as wire:
            wire.send(f"stats-tube {self.tube}\r\n".encode())
            found = parse_stats(wire.read().body)
            return TubeStats(
                *(int(found.get(f"current-jobs-{s}", 0)) for s in ("ready", "reserved", "delayed", "buried"))
            )

    def kick(self, limit: int) -> int:
        """Kick buried, else delayed jobs."""
        if limit <= 0:
            return 0
        with self._errors(), contextlib.closing(self._connect()) as wire:
            wire.call(f"use {self.tube}", "USING")
            return int(wire.call(f"kick {min(limit, KICK_MAX)}", "KICKED").args[0])

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        for connection in connections:
            connection.end()

    def _mine(self) -> _Connection:
        """Connection of this thread, made if need be."""
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is not None and not connection.lost:
            return connection
        with self._errors():
            wire = self._connect()
            try:
                wire.call(f"watch {self.tube}", "WATCHING")
                if self.tube != "default":
                    wire.call("ignore default", "WATCHING")
            except BaseException:
                wire.close()
                raise
        connection = self._local.connection = _Connection(wire, self._timeout_s)
        with self._lock:
            self._connections.add(connection)
            closed = self._closed
        if closed:
            connection.end()
            raise SourceClosed(f"{self.url} is closed")
        return connection

    def _connect(self) -> Wire:
        if self._closed:
            raise SourceClosed(f"{self.url} is closed")
        return Wire(self._host, self._port, self._connect_timeout_s, self._timeout_s)

    def _settled(self, connection: _Connection, command: str, expected: str, ahead: bool = False) -> bool:
        if connection.lost:
            return False  # beanstalkd has given the job back
        reply = connection.ask(command, ahead)
        if reply.word == "NOT_FOUND":
            connection.held -= 1
            return False
        if reply.word == "BURIED" and expected == "RELEASED":
            logger.warning("%s: no memory to release a job, it is buried: %s", self.url, command)
            expected = "BURIED"
        check(command, reply, expected)
        connection.held -= 1
        return True

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except (BeanstalkError, ValueError) as exc:
            if self._closed:
                raise SourceClosed(f"{self.url} is closed") from exc
            raise SourceError(f"{self.url}: {exc}") from exc


class _Connection:
    """A connection that watches the tube, and the reservation that may be under way on it."""

    def __init__(self, wire: Wire, timeout_s: float) -> None:
        self._wire = wire
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self.lost = False
        # Jobs given out and not settled, as far as this side knows.
        self.held = 0
        # A reservation was sent and not answered; when beanstalkd ends it.
        self._reserving = False
        self._ends_s = 0.0
        # Its answer, read by a command that came after it.
        self._ahead: Reply | None = None
        # The job that was asked about last, and what :meth:`failures` gives.
        self._known: tuple[str, tuple[int, int]] = ("", (0, 0))

    @property
    def idle(self) -> bool:
        """No reservation is under way, or answered and not looked at."""
        return not self._reserving and self._ahead is None

    @contextlib.contextmanager
    def using(self) -> Any:
        """Exclusive use. A failure in an exchange, also the death of a green thread, ends the connection."""
        with self._lock:
            try:
                yield
            except BaseException:
                self.lost = True
                self._wire.close()
                raise

    def end(self) -> None:
        """Close, also when a thread waits for an answer."""
        self.lost = True
        self._wire.shutdown()
        if self._lock.acquire(blocking=False):
            self._wire.close()
            self._lock.release()

    def ask(self, command: str, ahead: bool = False) -> Reply:
        """Send a command and return its reply; with ``ahead``, begin to reserve a job behind it."""
        ahead = ahead and self.idle
        behind = "reserve-with-timeout 0\r\n" if ahead else ""
        self._wire.send(f"{command}\r\n{behind}".encode())
        if self._reserving:
            self._ahead = self._wire.read(max(0.0, self._ends_s - time.monotonic()) + self._timeout_s)
            self._reserving = False
        reply = self._wire.read()
        if ahead:
            self._reserving, self._ends_s = True, time.monotonic()
        return reply

    def failures(self, job_id: str, ask: bool = False) -> tuple[int, int]:
        """Times that a job was released, or late, before its last burial, and up to now; zeros when unknown.

        How often it was reserved says less: a job of a worker that ends goes through the connections of all its
        threads that wait, one after the other, as they end.

        :param ask: also when it was just asked.
        """
        if self.lost:
            return 0, 0
        if ask or self._known[0] != job_id:
            stats = parse_stats(self.ask(f"stats-job {job_id}").body)
            former = int(stats.get("pri", 0)) - DEFAULT_PRIORITY
            so_far = int(stats.get("releases", 0)) + int(stats.get("timeouts", 0))
            self._known = job_id, (former if 0 < former <= FORMER_MAX else 0, so_far)
        return self._known[1]

    def next_job(self, deadline: float) -> Reply | None:
        """Answer of the reservation under way, or of a new one; None when it is not there in time."""
        self._known = "", (0, 0)
        if self._ahead is not None:
            reply, self._ahead = self._ahead, None
            return reply
        now_s = time.monotonic()
        if not self._reserving:
            wait_s = max(0, math.ceil(deadline - now_s))
            self._wire.send(b"reserve-with-timeout %d\r\n" % wait_s)
            self._reserving, self._ends_s = True, now_s + wait_s
        # beanstalkd answers when the reservation ends: later than that, it is in trouble. The caller may be in
        # more of a hurry; then the reservation stays under way, and the next call gets the job, if there is one.
        answered_s = self._ends_s + self._timeout_s
        hurried = now_s < self._ends_s and deadline < answered_s
        try:
            reply = self._wire.read((deadline if hurried else answered_s) - now_s)
        except TimeoutError:
            if hurried:
                return None
            raise
        self._reserving = False
        return reply
