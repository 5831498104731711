# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Client of beanstalkd for tools, and a listener and a sender of one tube.

>>> beanstalk = Beanstalk.from_url("beanstalk://127.0.0.1:6014")     # doctest: +SKIP
>>> beanstalk.use("my-tube")                                         # doctest: +SKIP
>>> beanstalk.put("hello")                                           # doctest: +SKIP
'1'

Connections are made by the first command, and again by the next one after a failure; the tubes that were chosen
with ``use`` and ``watch`` are chosen again. One command at a time: threads wait for each other.

Services and the event agent use :func:`oio.event.queue.open_queue` and :func:`oio.event.source.open_source`
instead, which stand on the same connection.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from oio.common.exceptions import ExplicitBury, OioTimeout
from oio.event.transport.beanstalk_wire import (
    DEFAULT_PORT,
    DEFAULT_PRIORITY,
    DEFAULT_TTR,
    BeanstalkError,
    ConnectionError,
    InvalidResponse,
    Reply,
    ResponseError,
    TimeoutError,
    Wire,
    check,
    check_tube,
    parse_list,
    parse_stats,
)

__all__ = [
    "DEFAULT_PRIORITY", "DEFAULT_TTR", "Beanstalk", "BeanstalkError", "BeanstalkdListener", "BeanstalkdSender",
    "ConnectionError", "InvalidResponse", "ResponseError", "TimeoutError",
]  # fmt: skip

CONNECT_TIMEOUT_S = 4.0
# A listener that lost its server waits before the next try.
RECONNECT_PAUSE_S = 1.0
SCHEME = "beanstalk"
# Priorities, delays and times to run have 32 bits.
NUMBER_MAX = 2**32 - 1


class Beanstalk:
    """A client; see the top of the module."""

    def __init__(
        self, host: str, port: int = DEFAULT_PORT, socket_timeout: float | None = None, **_kwargs: Any
    ) -> None:
        """:param socket_timeout: for any answer (seconds), besides the time of ``reserve``; None: for ever."""
        self.host = host
        self.port = int(port)
        self.socket_timeout = socket_timeout
        self._lock = threading.RLock()
        self._wire: Wire | None = None
        self._used: str | None = None
        self._watched: list[str] = []

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Beanstalk:
        """Client of ``beanstalk://host:port``. :raises ConnectionError: when the URL is empty or has no host."""
        if not url:
            raise ConnectionError("Empty URL")
        if not url.startswith(f"{SCHEME}://"):
            warnings.warn(f"Invalid URL scheme, expecting {SCHEME}://: {url}", DeprecationWarning, stacklevel=2)
            url = f"{SCHEME}://{url.partition('://')[2] or url}"
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port or DEFAULT_PORT
        except ValueError as exc:
            raise ConnectionError(f"Invalid URL: {url}: {exc}") from exc
        if not host:
            raise ConnectionError(f"Invalid URL: {url}")
        return cls(**{"host": host, "port": port, **kwargs})

    # --- producing ----------------------------------------------------------------------------------

    def put(self, body: str, priority: int = DEFAULT_PRIORITY, delay: int = 0, ttr: int = DEFAULT_TTR) -> str:
        """Put a job into the used tube; returns its id."""
        assert isinstance(body, str), "body must be a str"
        data = body.encode()
        numbers = (int(priority), int(delay), int(ttr), len(data))
        if not all(0 <= number <= NUMBER_MAX for number in numbers):
            # The server would take the body for commands.
            raise InvalidResponse(f"put {numbers}: a number is out of range")
        head = "put {} {} {} {}".format(*numbers)
        return self._call(head, "INSERTED", data=data).args[0]

    def use(self, tube: str) -> None:
        """Choose the tube of ``put``, ``kick`` and ``peek...``.

        :raises InvalidResponse: when no tube can have this name.
        """
        _check_tube("use", tube)
        with self._lock:
            self._used = tube
            if self._wire is not None:
                self._call(f"use {tube}", "USING")

    # --- consuming ----------------------------------------------------------------------------------

    def watch(self, tube: str) -> None:
        """Add a tube to those of ``reserve``; the tube ``default`` is always one of them.

        :raises InvalidResponse: when no tube can have this name.
        """
        _check_tube("watch", tube)
        with self._lock:
            if tube not in self._watched:
                self._watched.append(tube)
            if self._wire is not None:
                self._call(f"watch {tube}", "WATCHING")

    def reserve(self, timeout: float | None = None) -> tuple[str, str]:
        """Take a job: its id and body. :raises ResponseError: TIMED_OUT, after ``timeout`` seconds."""
        if timeout is None:
            reply = self._call("reserve", "RESERVED", wait_s=math.inf)
        else:
            wait_s = max(0, math.ceil(timeout))
            reply = self._call(f"reserve-with-timeout {wait_s}", "RESERVED", wait_s=wait_s)
        return reply.args[0], reply.body.decode("utf-8", "surrogateescape")

    def delete(self, job_id: str) -> None:
        """Delete a job."""
        self._call(f"delete {job_id}", "DELETED")

    def release(self, job_id: str, priority: int = DEFAULT_PRIORITY, delay: int = 0) -> None:
        """Make a reserved job ready again, after ``delay`` seconds."""
        self._call(f"release {job_id} {priority} {int(delay)}", "RELEASED")

    def bury(self, job_id: str, priority: int = DEFAULT_PRIORITY) -> None:
        """Put a reserved job aside."""
        self._call(f"bury {job_id} {priority}", "BURIED")

    # --- operating ----------------------------------------------------------------------------------

    def kick(self, bound: int = 1000) -> int:
        """Make buried (else delayed) jobs of the used tube ready; returns how many."""
        return int(self._call(f"kick {bound}", "KICKED").args[0])

    def kick_job(self, job_id: str) -> None:
        """Make one buried or delayed job ready."""
        self._call(f"kick-job {job_id}", "KICKED")

    def peek_ready(self) -> tuple[str | None, str | None]:
        """The next ready job of the used tube, not reserved; (None, None) if there is none."""
        return self._peek("peek-ready")

    def peek_buried(self) -> tuple[str | None, str | None]:
        """The first buried job of the used tube; (None, None) if there is none."""
        return self._peek("peek-buried")

    def stats(self) -> dict[str, Any]:
        """Statistics of the server."""
        return _typed(parse_stats(self._call("stats", "OK").body))

    def stats_tube(self, tube: str) -> dict[str, Any]:
        """Statistics of a tube. :raises ResponseError: NOT_FOUND."""
        _check_tube("stats-tube", tube)
        return _typed(parse_stats(self._call(f"stats-tube {tube}", "OK").body))

    def tubes(self) -> list[str]:
        """Names of the tubes that exist."""
        return parse_list(self._call("list-tubes", "OK").body)

    def drain_tube(self, tube: str, timeout: float = 0.0) -> None:
        """Delete all jobs that become ready, until none comes for ``timeout`` seconds."""
        self.watch(tube)
        with contextlib.suppress(ResponseError):
            while True:
                self.delete(self.reserve(timeout=timeout)[0])

    def drain_buried(self, tube: str) -> None:
        """Delete all buried jobs of a tube."""
        self.use(tube)
        while True:
            job_id, _ = self.peek_buried()
            if job_id is None:
                return
            self.delete(job_id)

    def wait_until_empty(
        self, tube: str, timeout: float = math.inf, poll_interval: float = 0.2, initial_delay: float = 0.0
    ) -> None:
        """Wait until no job of the tube is ready or reserved, ``timeout`` seconds at most."""
        deadline = time.monotonic() + timeout
        time.sleep(initial_delay)
        while True:
            try:
                stats = self.stats_tube(tube)
            except ResponseError:
                return  # a tube without job is no tube
            if not stats["current-jobs-ready"] and not stats["current-jobs-reserved"]:
                return
            if time.monotonic() + poll_interval > deadline:
                return
            time.sleep(poll_interval)

    def wait_for_ready_job(
        self, tube: str, timeout: float = math.inf, poll_interval: float = 0.2
    ) -> tuple[str | None, str | None]:
        """Wait until a job of the tube is ready and give it, not reserved; (None, None) when it is too late."""
        deadline = time.monotonic() + timeout
        self.use(tube)
        while True:
            job_id, body = self.peek_ready()
            if job_id is not None or time.monotonic() + poll_interval > deadline:
                return job_id, body
            time.sleep(poll_interval)

    def close(self) -> None:
        """End the connection; reserved jobs become ready. The client may be used again.

        A thread that waits for an answer gets a ConnectionError.
        """
        wire = self._wire
        if wire is not None:
            wire.shutdown()
        with self._lock:
            if self._wire is not None:
                self._wire.close()
                self._wire = None

    # --- the connection -----------------------------------------------------------------------------

    def _peek(self, command: str) -> tuple[str | None, str | None]:
        try:
            reply = self._call(command, "FOUND")
        except ResponseError as exc:
            if exc.status == "NOT_FOUND":
                return None, None
            raise
        return reply.args[0], reply.body.decode("utf-8", "surrogateescape")

    def _call(self, command: str, expected: str, data: bytes | None = None, wait_s: float = 0.0) -> Reply:
        """Send a command and check its reply. Any failure but a refusal ends the connection."""
        if "\r" in command or "\n" in command:
            raise InvalidResponse(f"{command[:100]!r} is more than one command")
        timeout_s = None if self.socket_timeout is None else self.socket_timeout + wait_s
        with self._lock:
            try:
                wire = self._wire or self._connect()
                body = b"" if data is None else data + b"\r\n"
                wire.send(f"{command}\r\n".encode() + body)
                reply = wire.read(None if timeout_s == math.inf else timeout_s)
                return check(command, reply, expected)
            except ResponseError:
                raise
            except BaseException:
                self.close()
                raise

    def _connect(self) -> Wire:
        wire = Wire(self.host, self.port, self.socket_timeout or CONNECT_TIMEOUT_S, None)
        try:
            commands = [(f"watch {tube}", "WATCHING") for tube in self._watched]
            if self._used is not None:
                commands.append((f"use {self._used}", "USING"))
            for command, expected in commands:
                wire.call(command, expected, self.socket_timeout)
        except BaseException:
            wire.close()
            raise
        self._wire = wire
        return wire


def _check_tube(command: str, tube: str) -> None:
    """Refuse what the server would: it would refuse it again at each connection."""
    try:
        check_tube(tube)
    except (TypeError, AttributeError, ValueError) as exc:
        raise InvalidResponse(f"{command}: {exc}") from exc


class _TubeUser:
    """What listener and sender share: the connection to one tube, checked when they are made."""

    def __init__(self, addr: str, tube: str, logger: logging.Logger, **kwargs: Any) -> None:
        self.addr = addr if addr.startswith(f"{SCHEME}://") else f"{SCHEME}://{addr}"
        self.tube = tube
        self.logger = logger
        self.beanstalkd: Beanstalk = Beanstalk.from_url(self.addr, **kwargs)
        self.connected = False
        self._connect()

    def _connect(self) -> None:
        self.close()
        self.beanstalkd.use(self.tube)
        self.beanstalkd.watch(self.tube)
        self.beanstalkd.stats_tube(self.tube)
        self.connected = True

    def close(self) -> None:
        """End the connection."""
        self.beanstalkd.close()
        self.connected = False


class BeanstalkdListener(_TubeUser):
    """Takes the jobs of a tube one by one.

    ``on_job(job_id, data)`` gives the items of a job. A job is deleted once they were all consumed, or when the
    reader wants no more; it is buried when ``on_job`` raises.
    """

    def __init__(self, addr: str, tube: str, logger: logging.Logger, **kwargs: Any) -> None:
        """:raises BeanstalkError: when the tube cannot be used."""
        super().__init__(addr, tube, logger, **kwargs)
        self.running = True

    def fetch_job(
        self, on_job: Callable[..., Iterable[Any]], timeout: float | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Reserve a job and yield its items. :raises OioTimeout: when there is none for ``timeout`` seconds."""
        job_id = None
        try:
            if not self.connected:
                self._connect()
            job_id, data = self.beanstalkd.reserve(timeout=timeout)
            yield from self._items(job_id, data, on_job, kwargs)
        except ConnectionError as exc:
            self.close()
            if "Invalid URL" in str(exc):
                raise
            self.logger.warning("Disconnected from %s, tube %s (job %s): %s", self.addr, self.tube, job_id, exc)
            time.sleep(RECONNECT_PAUSE_S)
        except ExplicitBury as exc:
            self.logger.warning("Job %s of %s, tube %s, is buried: %s", job_id, self.addr, self.tube, exc)
        except ResponseError as exc:
            if exc.status == "TIMED_OUT":
                raise OioTimeout(f"{self.addr}, tube {self.tube}: {exc}") from exc
            self.logger.exception("Error on %s, tube %s (job %s)", self.addr, self.tube, job_id)
        except Exception:
            self.logger.exception("Error on %s, tube %s (job %s)", self.addr, self.tube, job_id)

    def fetch_jobs(
        self, on_job: Callable[..., Iterable[Any]], reserve_timeout: float | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Yield the items of all jobs, while ``running`` is set."""
        while self.running:
            with contextlib.suppress(OioTimeout):
                yield from self.fetch_job(on_job, timeout=reserve_timeout, **kwargs)

    def _items(
        self, job_id: str, data: str, on_job: Callable[..., Iterable[Any]], kwargs: dict[str, Any]
    ) -> Iterator[Any]:
        try:
            yield from on_job(job_id, data, **kwargs)
        except GeneratorExit:
            # The reader wants no more, which says nothing against this job.
            self.beanstalkd.delete(job_id)
            raise
        except Exception:
            try:
                self.beanstalkd.bury(job_id)
            except BeanstalkError as exc:
                self.logger.error("Job %s of %s could not be buried: %s", job_id, self.addr, exc)
            raise
        self.beanstalkd.delete(job_id)


class BeanstalkdSender(_TubeUser):
    """Puts jobs into a tube, and refuses when too many of them are not done.

    :ivar nb_jobs: jobs that were sent, and not told to be done with :meth:`job_done`.
    """

    def __init__(
        self,
        addr: str,
        tube: str,
        logger: logging.Logger,
        low_limit: int = 512,
        high_limit: int = 1024,
        **kwargs: Any,
    ) -> None:
        """:raises BeanstalkError: when the tube cannot be used."""
        self.low_limit = low_limit
        self.high_limit = high_limit
        self.nb_jobs = 0
        self._accepts = True
        self._count_lock = threading.Lock()
        super().__init__(addr, tube, logger, **kwargs)

    def send_job(self, job: str, priority: int = DEFAULT_PRIORITY, delay: int = 0) -> bool:
        """Put a job. False when it cannot be, or too many are not done (see ``high_limit`` and ``low_limit``)."""
        with self._count_lock:
            if not self._accepts:
                return False
        try:
            if not self.connected:
                self._connect()
            self.beanstalkd.put(job, priority=priority, delay=delay)
        except (ConnectionError, TimeoutError) as exc:
            self.close()
            if "Invalid URL" in str(exc):
                raise
            self.logger.warning("Disconnected from %s, tube %s: %s", self.addr, self.tube, exc)
            return False
        except BeanstalkError as exc:
            self.logger.warning("Job refused by %s, tube %s: %s", self.addr, self.tube, exc)
            return False
        with self._count_lock:
            self.nb_jobs += 1
            if self.nb_jobs >= self.high_limit:
                self._accepts = False
        return True

    def job_done(self) -> None:
        """Note that a job was done."""
        with self._count_lock:
            self.nb_jobs -= 1
            if self.nb_jobs <= self.low_limit:
                self._accepts = True


def _typed(stats: dict[str, str]) -> dict[str, Any]:
    """Turn the texts that are numbers into numbers."""
    return {name: _number(value) for name, value in stats.items()}


def _number(text: str) -> Any:
    try:
        number = json.loads(text)
    except ValueError:
        return text
    return number if isinstance(number, (int, float)) and not isinstance(number, bool) else text
