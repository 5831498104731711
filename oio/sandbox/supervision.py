# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the services of a local cluster under ``supervisord``, and makes sure that none is left behind.

The supervisor is driven through its control socket. Should it have been killed, its services live on without
it: they are found by the mark of the cluster in their environment, which nothing else carries.
"""

from __future__ import annotations

import contextlib
import glob
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator
from typing import Any

from oio.sandbox.errors import SandboxError
from oio.sandbox.generate import service_environment
from oio.sandbox.layout import GROUND_TYPES, Layout, Service

#: The supervisor itself starts within a second; a busy machine may need much more (seconds).
_SUPERVISOR_START_S = 20.0
#: Stopping waits for the slowest service, then for the kill (seconds).
_SUPERVISOR_STOP_S = 40.0
_POLL_S = 0.05

#: What handles events gives back to the queue what it was working on; what holds them, and what they are
#: about, stops last.
_CONSUMERS = frozenset({"event-agent"})
_HOLDERS = frozenset({"account", "rdir", "webhook", *GROUND_TYPES})

_RPC_ERRORS = (OSError, http.client.HTTPException, xmlrpc.client.Error)
#: Faults that mean that there is nothing to do (supervisor.xmlrpc.Faults).
_ALREADY_STARTED, _NOT_RUNNING = 60, 70
#: States that last until somebody asks for a start; what has exited is about to be started again.
_AT_REST = frozenset({"STOPPED", "FATAL"})


class Supervision:
    """The supervisor of one cluster."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def alive(self) -> bool:
        """Does the supervisor answer?"""
        if not os.path.exists(self._layout.supervisor_socket):
            return False
        try:
            with self._rpc() as rpc:
                rpc.getState()
        except _RPC_ERRORS:
            return False
        return True

    def launch(self) -> None:
        """Start the supervisor, unless it runs. :raises SandboxError: when it does not come up."""
        if self.alive():
            return
        layout = self._layout
        for path in (layout.supervisor_socket, *map(self._given_up, layout.services)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        conf = os.path.join(layout.conf_dir, "supervisord.conf")
        log_path = os.path.join(layout.log_dir, "supervisord.out")
        with open(log_path, "ab") as log:
            done = subprocess.run(
                [sys.executable, "-m", "supervisor.supervisord", "-c", conf],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=layout.run_dir,
                env={**os.environ, **service_environment(layout)},
                check=False,
            )
        deadline = time.monotonic() + _SUPERVISOR_START_S
        while not self.alive():
            if done.returncode or time.monotonic() > deadline:
                raise SandboxError(f"The supervisor does not start:\n{tail(log_path)}")
            time.sleep(_POLL_S)

    def start(self, service: Service) -> None:
        """Ask for the start of a service, without waiting."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._given_up(service))
        with self._rpc() as rpc, _ignoring(_ALREADY_STARTED):
            rpc.startProcess(f"{service.type}:{service.name}", False)

    def stop(self, services: list[Service]) -> None:
        """Stop services and wait until they are: what makes events, what handles them, what holds them.

        Those of one step stop all at once: the supervisor by itself stops one after the other.
        """
        for types in (_CONSUMERS | _HOLDERS, _HOLDERS, frozenset[str]()):
            step = [one for one in services if one.type not in types]
            services = [one for one in services if one.type in types]
            if step:
                self._stop_at_once(step)

    def _stop_at_once(self, services: list[Service]) -> None:
        names = {service.name for service in services}
        self.resume(services)
        with self._rpc() as rpc:
            deadline = time.monotonic() + _SUPERVISOR_STOP_S
            asked = services
            while True:
                for service in asked:
                    with _ignoring(_NOT_RUNNING):
                        rpc.stopProcess(f"{service.type}:{service.name}", False)
                states = {
                    info["name"]: info["statename"]
                    for info in rpc.getAllProcessInfo()
                    if info["name"] in names and (info["pid"] or info["statename"] not in _AT_REST)
                }
                if not states:
                    return
                if time.monotonic() > deadline:
                    raise SandboxError(f"Still running: {', '.join(states)}")
                # What ended by itself a moment ago was not running, and will be.
                asked = [one for one in services if states.get(one.name, "STOPPING") != "STOPPING"]
                time.sleep(_POLL_S)

    def give_up(self, services: list[Service]) -> None:
        """Stop services that end again and again: their state is FATAL until somebody starts them.

        The supervisor does so itself, when each life is shorter than the time for which it watches a start.
        """
        self._stop_at_once(services)
        for service in services:
            with open(self._given_up(service), "wb"):
                continue

    def _given_up(self, service: Service) -> str:
        return os.path.join(self._layout.run_dir, f"{service.name}.given-up")

    def pause(self, services: list[Service]) -> None:
        """Stop all the processes of services where they are: they keep everything, and answer nothing."""
        for service in services:
            paused: set[int] = set()
            while new := [pid for pid in self.processes(service) if pid not in paused]:
                _signal_all(new, signal.SIGSTOP)
                paused.update(new)

    def resume(self, services: list[Service]) -> None:
        """Let all the processes of services go on."""
        for service in services:
            _signal_all(self.processes(service), signal.SIGCONT)

    def processes(self, service: Service) -> list[int]:
        """Process of a service, then its descendants; nothing when it does not run."""
        pid = self.states().get(service.name, {}).get("pid", 0)
        return descendants(pid) if pid else []

    def signal(self, service: Service, number: int) -> None:
        """Send a signal to a service, paused or not."""
        workers = self.processes(service)[1:]
        with self._rpc() as rpc, _ignoring(_NOT_RUNNING):
            rpc.signalProcess(f"{service.type}:{service.name}", str(int(number)))
        if number == signal.SIGKILL:
            # They end when they see that they are alone, which those that are paused do not.
            _signal_all(workers, signal.SIGCONT)

    def states(self) -> dict[str, dict[str, Any]]:
        """State of every service: ``{"NS-rawx-1": {"state": "RUNNING", "pid": 12, "uptime_s": 3}}``."""
        if not os.path.exists(self._layout.supervisor_socket):
            return {}
        try:
            with self._rpc() as rpc:
                infos = rpc.getAllProcessInfo()
        except _RPC_ERRORS:
            return {}
        given_up = {one.name for one in self._layout.services if os.path.exists(self._given_up(one))}
        return {
            info["name"]: {
                "state": "FATAL" if info["name"] in given_up else info["statename"],
                "pid": info["pid"],
                "uptime_s": max(0, info["now"] - info["start"]) if info["pid"] else 0,
                "error": info["spawnerr"],
            }
            for info in infos
        }

    def shutdown(self) -> None:
        """Stop everything, the supervisor too. Afterwards no process and no socket is left."""
        if self.alive():
            self.stop(self._layout.services)
            with self._rpc() as rpc, contextlib.suppress(*_RPC_ERRORS):
                rpc.shutdown()
            self._wait_gone(_SUPERVISOR_STOP_S)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.leftovers():
                _signal_all([pid], number)
                _signal_all([pid], signal.SIGCONT)
            if self._wait_gone(5.0):
                break
        for path in (
            self._layout.supervisor_socket,
            os.path.join(self._layout.run_dir, "supervisord.pid"),
        ):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for path in glob.glob(os.path.join(glob.escape(self._layout.run_dir), "oio-*")):
            shutil.rmtree(path, ignore_errors=True)  # control sockets of services that were killed

    def leftovers(self) -> list[int]:
        """Every process that carries the mark of this cluster."""
        mark = f"OIO_SANDBOX={self._layout.mark}".encode()
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                with open(f"/proc/{name}/environ", "rb") as stream:
                    environment = stream.read()
            except OSError:
                continue  # it belongs to somebody else, or it is gone
            if mark in environment.split(b"\0"):
                found.append(int(name))
        return found

    def _wait_gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.leftovers():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    @contextlib.contextmanager
    def _rpc(self) -> Iterator[Any]:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(
            None, None, serverurl=f"unix://{self._layout.supervisor_socket}"
        )
        try:
            yield xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor
        finally:
            transport.close()


def descendants(pid: int) -> list[int]:
    """A process, then its children and theirs."""
    children: list[int] = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as listing:
            children += map(int, listing.read().split())
    return [pid, *(one for child in children for one in descendants(child))]


def is_paused(pid: int) -> bool:
    """Was this process stopped by a signal?"""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def _ignoring(code: int) -> Iterator[None]:
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != code:
            raise SandboxError(f"Supervisor: {fault.faultString}") from fault


def tail(path: str, lines: int = 15, bytes_max: int = 8192) -> str:
    """Last lines of a log."""
    try:
        with open(path, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - bytes_max))
            text = stream.read().decode("utf-8", "replace")
    except OSError as err:
        return f"(no log: {err.strerror})"
    return "\n".join(text.splitlines()[-lines:]) or "(empty log)"
