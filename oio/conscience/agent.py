# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-conscience-agent``: checks the services of this host and registers them through the local proxy.

One cycle of one service: its checks in order until one fails; when all passed, its statistics; then it is
registered, up or down, with the last statistics known. Services of the same interval are started together,
and what is ready at the same moment is registered in one request: watching a whole host costs the proxy one
request per second.

A service that hangs holds one worker thread until its timeout and delays nobody else: threads are added, up
to ``WORKERS_MAX``, when work waits. Whatever happens inside a cycle, the service is tried again at the next
one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import optparse
import os
import queue
import sys
import threading
import time
from collections import deque
from typing import Any

import msgspec

from oio import __version__
from oio.common import service, utils
from oio.common.configuration import load_namespace_conf, parse_options
from oio.common.exceptions import OioException
from oio.common.logger import syslog_handler
from oio.conscience.agent_settings import AgentSettings, ServiceSettings, load_agent_settings
from oio.conscience.checkers import Checker, make_checker
from oio.conscience.plugins import AgentContext
from oio.conscience.stats import Collector, make_collector
from oio.http.client import HttpClientError
from oio.http.server import RequestIdFilter

# Checks take about a millisecond: a few threads are enough for a host where nothing hangs.
WORKERS_MIN = 2
WORKERS_MAX = 64
# Work that waits longer than this gets one more thread.
WORK_WAIT_MAX_S = 0.2
# The services that finish within this time of the first one are registered together.
BATCH_WAIT_S = 0.2
REGISTER_TIMEOUT_S = 10.0
# The same failure to register is said again after this long.
COMPLAINT_PERIOD_S = 60.0

_KEPT_TAGS = ("stat.", "tag.")


class Watcher:
    """One service: its checks, its statistics, and what was last known of it."""

    def __init__(
        self, agent: AgentContext, settings: ServiceSettings, logger: logging.Logger
    ) -> None:
        """:raises ValueError, KeyError, TypeError: when a check or a collector cannot be made."""
        self.settings = settings
        self.up: bool | None = None
        self.due_s = 0.0
        self._agent = agent
        self._logger = logger
        self._tags = _static_tags(settings)
        self._checkers: list[Checker] = []
        self._collectors: list[Collector] = []
        self.build()

    def build(self) -> None:
        """Make the checks and collectors anew."""
        where = {"host": self.settings.host, "port": self.settings.port}
        timing = {"rise": self.settings.rise, "fall": self.settings.fall}
        self._checkers = [
            make_checker(self._agent, {**where, **timing, **conf}, self._logger)
            for conf in self.settings.checks
        ]
        self._collectors = [
            make_collector(self._agent, {**where, **conf}, self._logger)
            for conf in self.settings.stats
        ]

    def cycle(self) -> dict[str, Any]:
        """Check, collect; returns what to register."""
        up = all(checker.check() for checker in self._checkers) and self._collect()
        if up is not self.up:
            say = self._logger.info if up else self._logger.warning
            say("service %s %s is now %s", self.settings.type, self.settings.address, "up" if up else "down")
            self.up = up
        return self.registration(up)

    def registration(self, up: bool) -> dict[str, Any]:
        """Body of a registration with the last known tags."""
        return {
            "ns": self._agent.namespace,
            "type": self.settings.type,
            "addr": self.settings.address,
            "score": 0,
            "tags": {**self._tags, "tag.up": up},
        }

    def _collect(self) -> bool:
        for collector in self._collectors:
            try:
                stats = collector.get_stats()
            except Exception as exc:
                # By contract: a service that cannot tell its statistics is down for this cycle.
                say = self._logger.warning if self.up is not False else self._logger.debug
                say(
                    "no %s statistics of %s %s: %s",
                    collector.conf.get("type"), self.settings.type, self.settings.address, exc,
                )
                return False
            for name, value in stats.items():
                if name.startswith(_KEPT_TAGS) and _is_told(value):
                    self._tags[name] = value if isinstance(value, (bool, int, float, str)) else False
        return True


class Workers:
    """Threads that run cycles; grows when work waits."""

    def __init__(self, run: Any, logger: logging.Logger) -> None:
        self._run = run
        self._logger = logger
        self._work: deque[tuple[float, Watcher]] = deque()
        self._ready = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self.busy = 0

    def submit(self, watcher: Watcher) -> None:
        """Run a cycle soon."""
        with self._ready:
            self._work.append((time.monotonic(), watcher))
            self.busy += 1
            if len(self._threads) < WORKERS_MIN:
                self._add_thread()
            self._ready.notify()

    def grow(self) -> None:
        """Add a thread when work has been waiting; called at each turn of the scheduler."""
        with self._ready:
            if not self._work or len(self._threads) >= WORKERS_MAX:
                return
            if time.monotonic() - self._work[0][0] > WORK_WAIT_MAX_S:
                self._add_thread()

    def stop(self) -> None:
        """Let the threads end; those that wait for a dead service are not waited for."""
        with self._ready:
            self._stopped = True
            self._work.clear()
            self._ready.notify_all()

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._loop, name="watcher", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _loop(self) -> None:
        while True:
            with self._ready:
                while not self._work and not self._stopped:
                    self._ready.wait()
                if self._stopped:
                    return
                _, watcher = self._work.popleft()
            try:
                self._run(watcher)
            finally:
                with self._ready:
                    self.busy -= 1


class Agent:
    """The scheduler; ``start`` and ``stop`` suit :func:`oio.common.service.run_until_stopped`."""

    def __init__(self, settings: AgentSettings, proxy: str, logger: logging.Logger) -> None:
        self._logger = logger
        self.context = AgentContext(settings.namespace, proxy, settings.options)
        self._registrar = Registrar(self.context, logger)
        self.watchers = []
        for srv in settings.services:
            try:
                self.watchers.append(Watcher(self.context, srv, logger))
            except (KeyError, TypeError, ValueError) as exc:
                reason = f"missing field {exc}" if isinstance(exc, KeyError) else exc
                logger.error("service %s is ignored: %s", srv.name, reason)
        self._running: set[Watcher] = set()
        self._results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._workers = Workers(self._cycle, logger)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._schedule, name="scheduler", daemon=True),
            threading.Thread(target=self._register, name="registrar", daemon=True),
        ]

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop watching; services that ask for it are registered as down, once."""
        deadline = time.monotonic() + grace_s
        self._stopping.set()
        self._workers.stop()
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        leaving = [w.registration(False) for w in self.watchers if w.settings.deregister_on_exit]
        if leaving:
            self._registrar.register(leaving)
        self.context.close()

    def _schedule(self) -> None:
        now = time.monotonic()
        for watcher in self.watchers:
            watcher.due_s = now
        while not self._stopping.is_set():
            now = time.monotonic()
            for watcher in self.watchers:
                if watcher.due_s > now:
                    continue
                # From the planned time, not from now: services of one interval stay together.
                interval_s = watcher.settings.interval_s
                watcher.due_s += interval_s * max(1, math.ceil((now - watcher.due_s) / interval_s))
                if watcher not in self._running:
                    self._running.add(watcher)
                    self._workers.submit(watcher)
            self._workers.grow()
            next_s = min((w.due_s for w in self.watchers), default=now + 1.0)
            pause_s = next_s - time.monotonic()
            if self._workers.busy:
                pause_s = min(pause_s, WORK_WAIT_MAX_S)
            self._stopping.wait(max(0.001, pause_s))

    def _cycle(self, watcher: Watcher) -> None:
        try:
            self._results.put(watcher.cycle())
        except Exception:
            self._logger.exception("watcher of %s crashed, rebuilt", watcher.settings.name)
            with contextlib.suppress(KeyError, TypeError, ValueError):
                watcher.build()
        finally:
            self._running.discard(watcher)

    def _register(self) -> None:
        while not self._stopping.is_set():
            try:
                batch = [self._results.get(timeout=0.5)]
            except queue.Empty:
                continue
            deadline = time.monotonic() + BATCH_WAIT_S
            while (left_s := deadline - time.monotonic()) > 0:
                # Nothing more comes soon when no cycle is running.
                if not self._running and self._results.empty():
                    break
                with contextlib.suppress(queue.Empty):
                    batch.append(self._results.get(timeout=left_s))
            self._registrar.register(batch)


class Registrar:
    """Posts registrations to the proxy; failures are logged and repaired by the next cycle."""

    def __init__(self, context: AgentContext, logger: logging.Logger) -> None:
        self._url = f"{context.proxy_url}/v3.0/{context.namespace}/conscience/register"
        self._pool = context.proxy_pool
        self._logger = logger
        self._complaints: dict[str, tuple[str, float]] = {}
        self.requests = 0

    def register(self, batch: list[dict[str, Any]]) -> bool:
        """Register several services at once; one by one when the proxy refuses the batch."""
        error = self._post(batch)
        if error is None:
            self._complaints.pop("", None)
            return True
        status, message = error
        if len(batch) == 1:
            self._complain(batch[0]["addr"], f"cannot register {batch[0]['addr']}: {message}")
            return False
        if not 400 <= status < 500:
            self._complain("", f"cannot register {len(batch)} services: {message}")
            return False
        # One bad service must not keep the others out.
        results = [self.register([one]) for one in batch]
        return all(results)

    def _post(self, batch: list[dict[str, Any]]) -> tuple[int, str] | None:
        self.requests += 1
        headers = {
            "Content-Type": "application/json",
            "x-oio-req-id": utils.request_id("reg-"),
        }
        try:
            response = self._pool.request(
                "POST", self._url, headers=headers, body=msgspec.json.encode(batch),
                timeout=REGISTER_TIMEOUT_S, idempotent=True,
            )
        except HttpClientError as exc:
            return 0, str(exc)
        if response.status < 400:
            return None
        return response.status, f"{response.status} {bytes(response.data[:200])!r}"

    def _complain(self, key: str, message: str) -> None:
        last, when_s = self._complaints.get(key, ("", 0.0))
        now = time.monotonic()
        if message != last or now - when_s >= COMPLAINT_PERIOD_S:
            self._complaints[key] = (message, now)
            self._logger.warning("%s", message)


def _static_tags(settings: ServiceSettings) -> dict[str, Any]:
    tags: dict[str, Any] = {}
    if settings.location:
        tags["tag.loc"] = settings.location
    if settings.slots:
        tags["tag.slots"] = ",".join(settings.slots)
    if settings.service_id:
        tags["tag.service_id"] = settings.service_id
    if settings.tls:
        tags["tag.tls"] = settings.tls
    return tags


def _is_told(value: Any) -> bool:
    """What JSON cannot say is left out. Neither text nor number nor boolean: false, by contract."""
    return not isinstance(value, float) or math.isfinite(value)


def _drop_privileges(settings: AgentSettings) -> None:
    """As root, become the configured user; the default one only where it exists."""
    if os.getuid() != 0:
        return
    import pwd

    if "user" not in settings.options:
        try:
            pwd.getpwnam(settings.user)
        except KeyError:
            return
    utils.drop_privileges(settings.user)


def _setup_logging(options: dict[str, Any], level: str) -> None:
    """Standard error, and syslog when the configuration names an identifier or a destination."""
    root = service.setup_logging(None, level)
    if not any(options.get(key) for key in ("syslog_prefix", "log_facility", "log_address", "log_udp_host")):
        return
    syslog = syslog_handler(options)
    if syslog is not None:
        prefix = options.get("syslog_prefix") or "oio-conscience-agent"
        syslog.setFormatter(logging.Formatter(f"{prefix}: {service.SYSLOG_FORMAT}"))
        syslog.addFilter(RequestIdFilter())
        root.addHandler(syslog)


def main() -> int:
    """Entry point of ``oio-conscience-agent CONFIG [-v]``."""
    parser = optparse.OptionParser("%prog CONFIG [options]", version=f"%prog {__version__}")
    path, options = parse_options(parser)
    try:
        logger = logging.getLogger("oio.conscience.agent")
        service.setup_logging(None, "DEBUG" if options["verbose"] else "INFO")
        settings = load_agent_settings(path, logger)
        level = "DEBUG" if options["verbose"] else str(settings.options.get("log_level", "INFO"))
        _setup_logging(settings.options, level.upper())
        proxy = settings.options.get("proxy")
        if not proxy:
            proxy = load_namespace_conf(settings.namespace)["proxy"]
        _drop_privileges(settings)
    except (OioException, ValueError) as exc:
        print(f"oio-conscience-agent: {exc}", file=sys.stderr)
        return 1
    logger.info("%d services to watch", len(settings.services))
    return service.run_until_stopped([Agent(settings, str(proxy), logger)], name="conscience.agent")


if __name__ == "__main__":
    sys.exit(main())
