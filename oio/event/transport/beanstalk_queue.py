# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Producers of a tube on one or several beanstalkd.

Events of the same key go to the same server while it is up, in order; without keys, each call goes to the next
server. A server that fails is left alone for a moment, which doubles while it keeps failing; meanwhile its events
go to the following one. Only what was confirmed counts as put: what was under way when a server failed is put
again elsewhere, and may be delivered twice.

What beanstalkd confirmed is as durable as it is configured: with ``-b DIR -f 0``, synchronously on disk.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any

from oio.event.queue import (
    DEFAULT_TUBE,
    EventQueue,
    EventsRefused,
    QueueError,
    QueueFull,
    QueueTimeout,
    split_urls,
    url_options,
)
from oio.event.transport.beanstalk_wire import (
    DEFAULT_TTR,
    OPTIONS,
    SERVICE_PRIORITY,
    BeanstalkError,
    ConnectionError,
    ResponseError,
    TimeoutError,
    Wire,
    check_tube,
    parse_stats,
    parse_url,
)

# Contract: ``events.beanstalkd.timeout``.
TIMEOUT_S = 4.0
# A frozen server still accepts connections: its first answers are awaited for so long, too.
CONNECT_TIMEOUT_S = 1.0
# A server that failed is tried again after the first, then after twice as long, up to the last.
RETRY_MIN_S = 0.5
RETRY_MAX_S = 15.0
# Jobs sent before their confirmations are read: these must fit into the buffers of the sockets.
WINDOW_JOBS = 512
WINDOW_BYTES = 1 << 20
# With max_jobs: how often the depth of a server is asked for.
CHECK_PERIOD_S = 1.0
IDLE_CONNECTIONS_MAX = 4

logger = logging.getLogger("oio.event.beanstalk")


def beanstalk_queue_from_url(url: str, tube: str = DEFAULT_TUBE) -> BeanstalkQueue:
    """``beanstalk://h:p;beanstalk://h:p?timeout_s=&ttr=&priority=&max_jobs=``. :raises ValueError: if not."""
    return BeanstalkQueue(url, tube)


class BeanstalkQueue(EventQueue):
    """Thread-safe; usable after a fork if nothing was put before."""

    def __init__(self, url: str, tube: str = DEFAULT_TUBE) -> None:
        """See :func:`beanstalk_queue_from_url`."""
        check_tube(tube)
        options: dict[str, Any] = {}
        addresses = []
        for part in split_urls(url):
            address, own = url_options(part, OPTIONS)
            addresses.append(parse_url(address))
            options.update(own)
        self._timeout_s = float(options.get("timeout_s", TIMEOUT_S))
        connect_timeout_s = float(options.get("connect_timeout_s", CONNECT_TIMEOUT_S))
        ttr = int(options.get("ttr", DEFAULT_TTR))
        priority = int(options.get("priority", SERVICE_PRIORITY))
        self._head = b"put %d 0 %d %%d\r\n" % (priority, ttr)
        self.servers = [
            _Server(host, port, tube, connect_timeout_s, self._timeout_s, int(options.get("max_jobs", 0)))
            for host, port in addresses
        ]
        self._next = itertools.count()
        self._closed = False

    def put_many(
        self, events: Sequence[bytes], timeout_s: float | None = None, keys: Sequence[str] | None = None
    ) -> None:
        """Put events; those of one key in order, on one server.

        A server that syncs each event may need long for many: without ``timeout_s``, it is enough that each
        confirmation comes in the time of the URL.
        """
        if self._closed:
            raise QueueError("the queue is closed")
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        refused: list[bytes] = []
        for first, share in self._shares(events, keys):
            self._put_share(first, share, refused, deadline)
        if refused:
            raise EventsRefused(f"{len(refused)} events are larger than beanstalkd takes", refused)

    def depth(self) -> int:
        """Jobs that are ready, reserved or delayed, where it can be asked. :raises QueueError: when nowhere."""
        found: list[int] = []
        errors: list[str] = []
        for server in self.servers:
            try:
                found.append(server.depth())
            except BeanstalkError as exc:
                errors.append(str(exc))
        if not found:
            raise QueueError("; ".join(errors))
        return sum(found)

    def close(self) -> None:
        """End the connections; idempotent."""
        self._closed = True
        for server in self.servers:
            server.close()

    def _shares(
        self, events: Sequence[bytes], keys: Sequence[str] | None
    ) -> list[tuple[int, Sequence[bytes]]]:
        count = len(self.servers)
        if count == 1:
            return [(0, events)]
        if keys is None:
            return [(next(self._next) % count, events)]
        shares: dict[int, list[bytes]] = {}
        for event, key in zip(events, keys, strict=True):
            shares.setdefault(zlib.crc32(key.encode()) % count, []).append(event)
        return list(shares.items())

    def _put_share(self, first: int, events: Sequence[bytes], refused: list[bytes], deadline: float) -> None:
        """Put events on their server, or on those that follow it while they fail."""
        left: deque[bytes] = deque(events)
        errors: list[str] = []
        full = timeout = False
        for step in range(len(self.servers)):
            if not left:
                return
            server = self.servers[(first + step) % len(self.servers)]
            if time.monotonic() >= deadline:
                errors.append("no time is left")
                timeout = True
                break
            if not server.usable():
                errors.append(f"{server.address} failed a moment ago: {server.failure}")
                continue
            try:
                server.put(left, self._head, refused, deadline)
            except BeanstalkError as exc:
                server.failed(exc)
                errors.append(str(exc))
                full = full or isinstance(exc, ResponseError)
                timeout = timeout or isinstance(exc, TimeoutError)
        if left:
            kind = QueueFull if full else QueueTimeout if timeout else QueueError
            raise kind(f"0 of {len(self.servers)} beanstalkd took {len(left)} events: {'; '.join(errors)}")


class _Server:
    """A beanstalkd: idle connections, and whether it may be used now."""

    def __init__(
        self, host: str, port: int, tube: str, connect_timeout_s: float, timeout_s: float, jobs_max: int
    ) -> None:
        self.address = f"{host}:{port}"
        self.failure = ""
        self._host = host
        self._port = port
        self._tube = tube
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._jobs_max = jobs_max
        self._lock = threading.Lock()
        self._idle: list[_Producer] = []
        self._retry_s = 0.0
        self._pause_s = 0.0
        self._checked_s = 0.0

    def usable(self) -> bool:
        """Not after a failure, but for one caller from time to time."""
        with self._lock:
            now_s = time.monotonic()
            if not self._pause_s:
                return True
            if now_s < self._retry_s:
                return False
            self._retry_s = now_s + self._pause_s  # the others wait for the outcome
            return True

    def failed(self, exc: BeanstalkError) -> None:
        """Leave the server alone for a while."""
        with self._lock:
            if not self._pause_s:
                logger.warning("beanstalkd %s is left out: %s", self.address, exc)
            self.failure = str(exc)
            self._pause_s = min(RETRY_MAX_S, max(RETRY_MIN_S, 2 * self._pause_s))
            self._retry_s = time.monotonic() + self._pause_s
            idle, self._idle = self._idle, []
        for producer in idle:
            producer.wire.close()

    def put(self, events: deque[bytes], head: bytes, refused: list[bytes], deadline: float) -> None:
        """Put events, taking them off the left as they are confirmed; ``refused`` gets those that are too large.

        :raises BeanstalkError: when some are left.
        """
        producer, reused = self._take()
        try:
            self._put_on(producer, events, head, refused, deadline)
        except ConnectionError:
            if not reused:
                raise
            # The server was restarted, perhaps: then all idle connections are dead.
            self.close()
            producer, _ = self._take()
            self._put_on(producer, events, head, refused, deadline)
        with self._lock:
            if self._pause_s:
                logger.info("beanstalkd %s is used again", self.address)
                self._pause_s = 0.0
        self._give(producer)

    def depth(self) -> int:
        """Jobs of the tube that are not done. :raises BeanstalkError: when it does not tell."""
        producer, _ = self._take()
        try:
            depth = producer.depth(self._tube)
        except BaseException:
            producer.wire.close()
            raise
        self._give(producer)
        return depth

    def close(self) -> None:
        """End the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for producer in idle:
            producer.wire.close()

    def _put_on(
        self, producer: _Producer, events: deque[bytes], head: bytes, refused: list[bytes], deadline: float
    ) -> None:
        try:
            if self._jobs_max:
                self._check_depth(producer)
            while events:
                producer.put_window(events, head, refused, max(0.1, deadline - time.monotonic()))
        except BaseException:
            producer.wire.close()
            raise

    def _take(self) -> tuple[_Producer, bool]:
        """A connection, and whether it was used before."""
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        return _Producer(self._host, self._port, self._tube, self._connect_timeout_s, self._timeout_s), False

    def _give(self, producer: _Producer) -> None:
        with self._lock:
            if len(self._idle) < IDLE_CONNECTIONS_MAX:
                self._idle.append(producer)
                return
        producer.wire.close()

    def _check_depth(self, producer: _Producer) -> None:
        now_s = time.monotonic()
        if now_s < self._checked_s + CHECK_PERIOD_S:
            return
        depth = producer.depth(self._tube)
        if depth >= self._jobs_max:
            raise ResponseError("put", "FULL", [f"({self.address}: {depth} jobs)"])
        self._checked_s = now_s


class _Producer:
    """A connection that uses the tube."""

    def __init__(self, host: str, port: int, tube: str, connect_timeout_s: float, timeout_s: float) -> None:
        self.wire = Wire(host, port, connect_timeout_s, timeout_s)
        try:
            self.wire.send(b"use %b\r\nstats\r\n" % tube.encode())
            self.wire.read(connect_timeout_s)
            stats = parse_stats(self.wire.read(connect_timeout_s).body)
            self._job_bytes_max = int(stats.get("max-job-size", 65535))
            if stats.get("draining") == "true":
                raise ResponseError("put", "DRAINING")
        except BaseException:
            self.wire.close()
            raise

    def put_window(self, events: deque[bytes], head: bytes, refused: list[bytes], timeout_s: float) -> None:
        """Put the first events, as many as may be under way at once."""
        parts: list[bytes] = []
        sent: list[bool] = []
        size = 0
        for event in events:
            if len(sent) == WINDOW_JOBS or (size and size + len(event) > WINDOW_BYTES):
                break
            sent.append(len(event) <= self._job_bytes_max)
            if sent[-1]:
                parts += (head % len(event), event, b"\r\n")
                size += len(event)
        if parts:
            self.wire.send(b"".join(parts))
        deadline = time.monotonic() + timeout_s
        reply_s = self.wire.timeout_s or TIMEOUT_S
        for was_sent in sent:
            if was_sent:
                reply = self.wire.read(min(reply_s, max(0.0, deadline - time.monotonic())))
                # A job is buried when there was no memory to sort it: it is kept, for somebody to kick.
                if reply.word == "JOB_TOO_BIG":
                    was_sent = False
                elif reply.word not in ("INSERTED", "BURIED"):
                    raise ResponseError("put", reply.word, reply.args)
            event = events.popleft()
            if not was_sent:
                refused.append(event)

    def depth(self, tube: str) -> int:
        """Jobs of the tube that are ready, reserved or delayed."""
        self.wire.send(b"stats-tube %b\r\n" % tube.encode())
        found = parse_stats(self.wire.read().body)
        return sum(int(found.get(f"current-jobs-{state}", 0)) for state in ("ready", "reserved", "delayed"))
