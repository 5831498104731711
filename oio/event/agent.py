# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-event-agent``: consumes the events of a queue, with several processes of many green threads.

The parent, this module, consumes nothing: it starts the workers (see :mod:`oio.event.worker`), starts those that
end again, passes signals on, adds up what they count and answers ``/metrics``. It is not green; only workers are.

Exit codes: 0 after SIGTERM, SIGINT or SIGQUIT; 1 when the configuration file, the user or the address of the
metrics cannot be used; 3 when a worker cannot begin (handlers file, filter, queue URL).

An event stays in the queue until a worker has settled it: whatever dies, it is delivered again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import msgspec

import oio
from oio.common import service
from oio.common.exceptions import OioException
from oio.common.metrics import CONTENT_TYPE, Metric, render
from oio.common.utils import drop_privileges
from oio.event.agent_metrics import Report, Totals, decode_report
from oio.event.agent_settings import (
    AgentSettings,
    load_agent_settings,
    setup_logs,
    warn_about_obsolete_keys,
)
from oio.event.worker import running
from oio.http.router import Router
from oio.http.server import Request, Response, Server

PROGRAM = "oio-event-agent"
USER_DEFAULT = "openio"
EXIT_BAD_CONFIGURATION = 1
EXIT_WORKER_CANNOT_START = 3
# Workers that ended are started again after this long (contract).
RESTART_PERIOD_S = 1.0
# Workers do not start all at once.
START_PAUSE_MAX_S = 0.05
# Beyond its own grace, a worker has this long to be gone before it is killed.
KILL_MARGIN_S = 1.0
# Workers that are told to leave at once have this long (contract).
LEAVE_GRACE_S = 5.0
REPORT_MAX_BYTES = 1 << 20

_WATCHED = {
    signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
}  # fmt: skip
_PASSED_ON = {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


class _Child:
    """A worker, seen by its parent: its process, and the socket on which it reports."""

    def __init__(self, process: subprocess.Popen[bytes], reports: socket.socket, running_fd: int) -> None:
        self.process = process
        self.reports = reports
        self.running_fd = running_fd
        self.ready = False

    def close(self) -> None:
        """Release what the parent has of it."""
        self.reports.close()
        os.close(self.running_fd)


class EventAgent:
    """The parent process; see the module.

    :param path: the configuration file, which workers read too.
    """

    def __init__(self, settings: AgentSettings, path: str, logger: logging.Logger, verbose: bool = False) -> None:
        self._settings = settings
        self._path = os.path.abspath(path)
        self._logger = logger
        self._verbose = verbose
        self._children: dict[int, _Child] = {}
        self._totals = Totals()
        # Reports are taken by the main loop and by those who read the metrics.
        self._lock = threading.Lock()
        self._restarts = 0
        self._suspects = running.Suspects()
        self._told_ready = False

    def run(self) -> int:
        """Run the workers until a signal ends them; returns the exit code. Main thread only."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        server = None
        try:
            if self._settings.listen:
                router = Router()
                router.add("GET", "/metrics", self.metrics)
                server = Server(router, [self._settings.listen])
                try:
                    server.start()
                except OSError as exc:
                    return _complain(f"cannot listen on {self._settings.listen}: {exc}", EXIT_BAD_CONFIGURATION)
            return self._loop()
        finally:
            self._stop(signal.SIGKILL, 1.0)
            if server is not None:
                server.stop(1.0)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def metrics(self, request: Request) -> Response:
        """Numbers of all workers, for Prometheus."""
        self._take_reports()
        with self._lock:
            families = self._totals.metrics()
            ready = sum(child.ready for child in self._children.values())
        families += [
            Metric("event_agent_workers", "gauge", "Workers that consume", [({}, ready)]),
            Metric("event_agent_restarts", "counter", "Workers that were started again", [({}, self._restarts)]),
        ]
        return Response(200, render(families), [("Content-Type", CONTENT_TYPE)])

    def _loop(self) -> int:
        restart_s = 0.0
        while True:
            now = time.monotonic()
            if len(self._children) < self._settings.workers and now >= restart_s:
                restart_s = now + RESTART_PERIOD_S
                self._start_missing()
            info = signal.sigtimedwait(_WATCHED, RESTART_PERIOD_S if self._told_ready else 0.05)
            number = info.si_signo if info is not None else 0
            if number == signal.SIGTERM:
                self._logger.info("stop asked by SIGTERM")
                self._stop(signal.SIGTERM, self._settings.stop_grace_s + KILL_MARGIN_S)
                return 0
            if number in (signal.SIGINT, signal.SIGQUIT):
                self._stop(signal.SIGQUIT, LEAVE_GRACE_S)
                return 0
            if number in _PASSED_ON:
                self._send(signal.Signals(number))
            self._take_reports()
            if self._collect():
                self._stop(signal.SIGTERM, self._settings.stop_grace_s + KILL_MARGIN_S)
                return EXIT_WORKER_CANNOT_START

    def _start_missing(self) -> None:
        for index in range(self._settings.workers):
            if index not in self._children:
                try:
                    self._children[index] = self._start(index)
                except OSError as exc:
                    # No memory or no process left: perhaps there is in a second.
                    self._logger.error("worker %d cannot be started: %s", index, exc)
                    return
                if self._settings.workers > 1:
                    time.sleep(random.uniform(0, START_PAUSE_MAX_S))

    def _start(self, index: int) -> _Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        running_fd = running.create(self._settings.consumers)
        command = [
            sys.executable, "-P", "-m", "oio.event.worker", self._path,
            "--index", str(index), "--parent", str(os.getpid()), "--report-fd", str(theirs.fileno()),
            "--running-fd", str(running_fd), *(["--verbose"] if self._verbose else []),
            *(word for job_id in self._suspects.guilty() for word in ("--guilty", job_id)),
            *(word for job_id in self._suspects.suspects() for word in ("--suspect", job_id)),
        ]  # fmt: skip
        with theirs:
            try:
                process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno(), running_fd], env=_environment()
                )
            except OSError:
                ours.close()
                os.close(running_fd)
                raise
        return _Child(process, ours, running_fd)

    def _take_reports(self) -> None:
        with self._lock:
            for index, child in self._children.items():
                for report in _reports(child.reports):
                    if report.error:
                        _complain(report.error, EXIT_WORKER_CANNOT_START)
                    child.ready = child.ready or report.ready
                    self._totals.put(index, report.samples)
            ready = sum(child.ready for child in self._children.values())
        if not self._told_ready and ready == self._settings.workers:
            self._told_ready = True
            self._logger.info("ready: %d workers", ready)

    def _collect(self) -> bool:
        """Take note of the workers that ended; True when one of them could not begin."""
        hopeless = False
        ended = [(index, child) for index, child in self._children.items() if child.process.poll() is not None]
        for index, child in ended:
            # What it said before it ended counts.
            self._take_reports()
            code = child.process.returncode
            with self._lock:
                del self._children[index]
                self._totals.retire(index)
            if code:
                self._suspects.died(running.read(child.running_fd))
            child.close()
            if code == EXIT_WORKER_CANNOT_START:
                hopeless = True
                continue
            self._restarts += 1
            self._logger.error("worker %d (pid %d) ended with %d", index, child.process.pid, code)
        return hopeless

    def _send(self, number: signal.Signals) -> None:
        for child in self._children.values():
            # Never to a process that was already waited for: its number may be somebody else's.
            if child.process.poll() is None:
                child.process.send_signal(number)

    def _stop(self, number: signal.Signals, grace_s: float) -> None:
        """Tell all workers to end, wait, and kill those that do not."""
        self._send(number)
        deadline = time.monotonic() + grace_s
        while any(child.process.poll() is None for child in self._children.values()):
            if time.monotonic() > deadline:
                self._logger.error("workers that do not end are killed")
                self._send(signal.SIGKILL)
                deadline = float("inf")
            signal.sigtimedwait(_WATCHED, 0.05)
        with self._lock:
            for child in self._children.values():
                child.close()
            self._children.clear()


def _reports(sock: socket.socket) -> list[Report]:
    """The reports that are there."""
    found = []
    while select.select([sock], [], [], 0)[0]:
        try:
            data = sock.recv(REPORT_MAX_BYTES)
            if not data:
                break
            found.append(decode_report(data))
        except (OSError, msgspec.DecodeError):
            break
    return found


def _environment() -> dict[str, str]:
    """Environment of workers: they find this package where the parent found it."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(oio.__file__)))
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root not in paths:
        # Last: an installed package that the operator put first stays first.
        paths.append(root)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "EVENTLET_NO_GREENDNS": "yes"}


def _become(user: str | None) -> None:
    """Leave the rights of root, if we have them. :raises OioException: when the user cannot be become."""
    if user is None:
        # Only a default: who runs the agent without it, or without being root, stays what he is.
        if os.geteuid() != 0 or not _exists(USER_DEFAULT):
            return
        user = USER_DEFAULT
    elif _exists(user) and pwd.getpwnam(user).pw_uid == os.geteuid():
        return
    drop_privileges(user)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _complain(message: str, code: int) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)
    return code


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``oio-event-agent CONFIG [-v]``."""
    parser = service.command_line(PROGRAM, "Consumes events")
    parser.add_argument("-v", "--verbose", action="store_true", help="debug logs")
    parser.add_argument("config", nargs="?", help="INI file with a section [event-agent]")
    args = parser.parse_args(argv)
    if args.config is None:
        # Contract: not the 2 of other mistakes of the command line.
        parser.print_usage(sys.stderr)
        return _complain("CONFIG is missing", EXIT_BAD_CONFIGURATION)
    try:
        settings = load_agent_settings(args.config)
        logger = setup_logs(settings, args.verbose)
        warn_about_obsolete_keys(settings, logger)
        path = os.path.abspath(args.config)
        _become(settings.user)
    except (OioException, ValueError) as exc:
        return _complain(str(exc), EXIT_BAD_CONFIGURATION)
    code = EventAgent(settings, path, logger, args.verbose).run()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
