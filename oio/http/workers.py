# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes that serve one port.

    def make_server(worker):
        router = Router()
        config = ServerConfig(reuse_port=True)
        return Server(router, [("127.0.0.1", 6006)], config)

    sys.exit(run_workers(make_server, 4))

The calling process only watches: a worker that dies is started again (with a growing delay when it keeps
dying young), the group ends when a worker cannot listen at its first start, SIGTERM and SIGINT are passed on
and every worker finishes what it runs within the grace, a second one changes nothing. Workers die with their
parent, whatever kills it.

Each worker also serves a private unix socket, with the same handler, so that a worker that changes its
state can tell the others: `WorkerGroup.broadcast`. A request that came that way has the peer "unix".
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

from oio.http.client import Headers, HttpClientError, HttpPool, HttpResponse
from oio.http.server import Server, ServerConfig

logger = logging.getLogger("oio.http")

BROADCAST_TIMEOUT_S = 5.0
"""A sibling that does not answer within this time is left out of a broadcast's replies."""

PROBE_TIMEOUT_S = 1.0
#: Of a directory with sockets: the path of a socket has 107 bytes at most (unix(7)).
DIRECTORY_MAX_BYTES = 107 - len("/worker-9999.sock")
"""A port that gives no connection within this time is taken for free."""

PORT_WAIT_S = 5.0
"""Time for the workers of a group that was killed to leave their port."""

RESTART_DELAY_MIN_S = 0.1
RESTART_DELAY_MAX_S = 10.0
YOUNG_S = 5.0
"""A worker that dies younger than this doubles the delay before the next start."""

KILL_MARGIN_S = 2.0
"""A worker that is still there this long after the grace is killed."""

_CANNOT_LISTEN = 71
"""Exit code of a worker whose port is taken (EX_OSERR of sysexits.h)."""

_PR_SET_PDEATHSIG = 1
_WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
_PASSED_ON = {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


class WorkerGroup:
    """What a worker knows of its group: its `index`, their `count`, and how to talk to its siblings."""

    def __init__(self, index: int, count: int, directory: str) -> None:
        self.index = index
        self.count = count
        self.directory = directory
        self._pool = HttpPool(
            connect_timeout_s=1.0, read_timeout_s=BROADCAST_TIMEOUT_S, max_idle_per_address=4
        )

    def socket_path(self, index: int) -> str:
        """Give the path of the private socket of a worker."""
        return os.path.join(self.directory, f"worker-{index}.sock")

    def broadcast(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Headers | None = None,
    ) -> list[HttpResponse]:
        """Send a request to all other workers, one after the other; give the answers of those that are
        alive.
        """
        replies = []
        for index in range(self.count):
            if index == self.index:
                continue
            url = f"http+unix://{quote(self.socket_path(index), safe='')}{target}"
            try:
                replies.append(self._pool.request(method, url, headers, body, idempotent=True))
            except HttpClientError as error:
                logger.warning("worker %d does not hear %s %s: %s", index, method, target, error)
        return replies

    def broadcast_bodies(
        self, method: str, target: str, body: bytes | None = None, headers: Headers | None = None
    ) -> list[bytes]:
        """Like `broadcast`, but give only the bodies of the successful answers."""
        replies = self.broadcast(method, target, body, headers)
        return [reply.data for reply in replies if 200 <= reply.status < 300]

    def close(self) -> None:
        """Close the connections to the siblings."""
        self._pool.close()


@dataclass
class _Worker:
    index: int
    pid: int = 0
    started: float = 0.0
    starts: int = 0
    delay_s: float = RESTART_DELAY_MIN_S
    restart_at: float = field(default=0.0)


def reserve_port(host: str = "127.0.0.1") -> tuple[socket.socket, int]:
    """Choose a free port that workers can share; it stays reserved as long as the socket is open.

    The socket is bound but does not listen, thus it gets no connection.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, 0))
    return sock, int(sock.getsockname()[1])


def run_workers(
    make_server: Callable[[WorkerGroup], Server],
    count: int,
    *,
    addresses: Iterable[tuple[str, int]] = (),
    grace_s: float = 10.0,
    directory: str | None = None,
    on_start: Callable[[WorkerGroup], None] | None = None,
    on_stop: Callable[[WorkerGroup], None] | None = None,
) -> int:
    """Run `count` processes, each with the server that `make_server` gives it, until SIGTERM or SIGINT.

    Must be called from the main thread, before any other thread is started. `on_start` runs in each worker
    when its server answers, `on_stop` when it has stopped. Gives the exit code: 0 when all workers stopped
    in time, 1 when they did not, when one could not listen, or when somebody else serves one of the `addresses`.
    """
    deadline = time.monotonic() + PORT_WAIT_S
    for host, port in addresses:
        while (served := _is_served(host, port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if served:
            # Workers share their port with whoever runs as the same user: the kernel would not complain.
            logger.error("cannot start: cannot listen on %s:%d: %s", host, port, os.strerror(errno.EADDRINUSE))
            return 1
    own_directory = directory is None
    if directory is None:
        directory = _directory_of_sockets()
    os.makedirs(directory, mode=0o700, exist_ok=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    master = _Master(make_server, count, grace_s, directory, on_start, on_stop, mask)
    try:
        return master.run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if own_directory and os.getpid() == master.pid:
            shutil.rmtree(directory, ignore_errors=True)


def _directory_of_sockets() -> str:
    """A new directory for the private sockets of the workers, whose paths may not be long."""
    directory = tempfile.mkdtemp(prefix="oio-workers-")
    if len(os.fsencode(directory)) <= DIRECTORY_MAX_BYTES:
        return directory
    os.rmdir(directory)
    return tempfile.mkdtemp(prefix="oio-workers-", dir="/tmp")


def _is_served(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as sock:
            # A port that nobody listens on may be given to the very socket that asks for it.
            return bool(sock.getsockname() != sock.getpeername())
    except OSError:
        return False


class _Master:
    """The watching process. Signals are blocked and taken one by one: nothing runs in a signal handler."""

    def __init__(
        self,
        make_server: Callable[[WorkerGroup], Server],
        count: int,
        grace_s: float,
        directory: str,
        on_start: Callable[[WorkerGroup], None] | None,
        on_stop: Callable[[WorkerGroup], None] | None,
        mask: set[int],
    ) -> None:
        self.pid = os.getpid()
        self._make_server = make_server
        self._grace_s = grace_s
        self._directory = directory
        self._on_start = on_start
        self._on_stop = on_stop
        self._mask = mask
        self._workers = [_Worker(index) for index in range(count)]

    def run(self) -> int:
        """Start the workers, watch them, stop them."""
        for worker in self._workers:
            self._start(worker)
        while True:
            info = signal.sigtimedwait(_WATCHED, self._pause_s())
            number = info.si_signo if info is not None else 0
            if number in (signal.SIGTERM, signal.SIGINT):
                return self._stop()
            if number in _PASSED_ON:
                self._kill_all(number)
            if self._collect():
                self._stop()
                return 1
            now = time.monotonic()
            for worker in self._workers:
                if not worker.pid and worker.restart_at <= now:
                    self._start(worker)

    def _pause_s(self) -> float:
        now = time.monotonic()
        waits = [worker.restart_at - now for worker in self._workers if not worker.pid]
        return min(1.0, max(0.01, min(waits, default=1.0)))

    def _start(self, worker: _Worker) -> None:
        worker.started = time.monotonic()
        worker.starts += 1
        pid = os.fork()
        if pid:
            worker.pid = pid
            return
        code = 1
        try:
            code = self._run_worker(worker.index)
        except BaseException:
            traceback.print_exc()
        finally:
            logging.shutdown()
            os._exit(code)

    def _collect(self) -> bool:
        """Take note of the workers that ended; True when one could not listen at its first start."""
        hopeless = False
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            exit_code = os.waitstatus_to_exitcode(status)
            worker.pid = 0
            if exit_code == _CANNOT_LISTEN and worker.starts == 1:
                hopeless = True
                continue
            now = time.monotonic()
            if now - worker.started < YOUNG_S:
                worker.delay_s = min(RESTART_DELAY_MAX_S, worker.delay_s * 2)
            else:
                worker.delay_s = RESTART_DELAY_MIN_S
            worker.restart_at = now + worker.delay_s
            logger.error(
                "worker %d (pid %d) ended with %d, started again in %.1f s",
                worker.index,
                pid,
                exit_code,
                worker.delay_s,
            )
        return hopeless

    def _stop(self) -> int:
        """Ask all workers to stop, wait for them, kill those that take too long."""
        self._kill_all(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s + KILL_MARGIN_S
        code = 0
        while any(worker.pid for worker in self._workers):
            left = deadline - time.monotonic()
            if left <= 0:
                self._kill_all(signal.SIGKILL)
                code = 1
                deadline = float("inf")
            for worker in self._workers:
                if worker.pid and os.waitpid(worker.pid, os.WNOHANG)[0]:
                    worker.pid = 0
            if any(worker.pid for worker in self._workers):
                signal.sigtimedwait(_WATCHED, min(0.2, max(0.01, left)))
        return code

    def _kill_all(self, number: int) -> None:
        for worker in self._workers:
            if worker.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)

    def _run_worker(self, index: int) -> int:
        """Be a worker: serve until SIGTERM."""
        asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked.set())
        for number in _PASSED_ON:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if os.getppid() != self.pid:
            return 1
        group = WorkerGroup(index, len(self._workers), self._directory)
        server = self._make_server(group)
        private = Server(
            server.handler,
            [f"unix:{group.socket_path(index)}"],
            ServerConfig(
                max_head_bytes=server.config.max_head_bytes,
                max_body_bytes=server.config.max_body_bytes,
                access_log=None,
            ),
        )
        try:
            server.bind()
            private.start()
            server.start()
        except OSError as error:
            logger.error("worker %d cannot start: %s", index, error)
            return _CANNOT_LISTEN
        if self._on_start is not None:
            self._on_start(group)
        while not asked.wait(1.0):
            continue
        clean = server.stop(self._grace_s)
        private.stop(1.0)
        if self._on_stop is not None:
            self._on_stop(group)
        group.close()
        return 0 if clean else 1
