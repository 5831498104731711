# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What every daemon does the same way: options, logs, signals, graceful stop.

A daemon's ``main`` parses its command line, builds its server and calls :func:`run_until_stopped`: it returns
once SIGTERM or SIGINT came, the requests that were running are answered (or the grace is over), and every
``on_stop`` callback has run.
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from oio import __version__
from oio.http.server import RequestIdFilter

LOG_FORMAT = "%(asctime)s.%(msecs)03d %(process)d %(name)s %(levelname)s %(reqid)s %(message)s"
SYSLOG_FORMAT = "%(process)d %(name)s %(levelname)s %(reqid)s %(message)s"
# Running requests have this long to finish once a stop is asked for (contract: rawx, 10 s).
STOP_GRACE_S = 10.0
# SIGUSR1 makes logs more verbose for this long, where no variable tells.
VERBOSE_PERIOD_S = 300.0
# Longest time before the main thread looks at a signal that another thread received.
SIGNAL_POLL_S = 1.0
PORT_MAX = 65535


class Stoppable(Protocol):
    """A server that runs in the background."""

    def start(self) -> None:
        """Begin to answer."""

    def stop(self, grace_s: float = ...) -> object:
        """Refuse what is new, finish what runs within the grace."""


def command_line(program: str, description: str, **more: Any) -> argparse.ArgumentParser:
    """A parser with what every program understands: ``--help`` and ``--version``."""
    parser = argparse.ArgumentParser(prog=program, description=description, **more)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def setup_logging(
    syslog_id: str | None = None, level: int | str = "INFO", stderr: bool = True
) -> logging.Logger:
    """Configure the root logger of a daemon: standard error, and syslog under an identifier.

    :raises ValueError: when the level is not one of the logging module.
    """
    root = logging.getLogger()
    root.setLevel(level)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    if stderr:
        console = logging.StreamHandler(sys.stderr)
        console.setFormatter(logging.Formatter(LOG_FORMAT, "%Y-%m-%d %H:%M:%S"))
        root.addHandler(console)
    if syslog_id and os.path.exists("/dev/log"):
        syslog = logging.handlers.SysLogHandler("/dev/log")
        syslog.setFormatter(logging.Formatter(f"{syslog_id}: {SYSLOG_FORMAT}"))
        root.addHandler(syslog)
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    for handler in root.handlers:
        handler.addFilter(RequestIdFilter())
    return root


def parse_address(text: str, port_min: int = 0) -> tuple[str, int]:
    """Host and port of ``IP:PORT`` or ``[IPv6]:PORT``. :raises ValueError: when it is neither.

    >>> parse_address("127.0.0.1:6000"), parse_address("[::1]:0")
    (('127.0.0.1', 6000), ('::1', 0))
    """
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{text!r} is not IP:PORT")
    if not port_min <= int(port) <= PORT_MAX:
        raise ValueError(f"{text!r}: the port is not in {port_min}..{PORT_MAX}")
    return host.strip("[]"), int(port)


def install_verbosity_signals(period_s: float | Callable[[], float] = VERBOSE_PERIOD_S) -> None:
    """SIGUSR1: debug logs for a while; SIGUSR2: back to normal at once.

    :param period_s: that while; a function is asked at each signal.
    """
    root = logging.getLogger()
    logger = logging.getLogger("oio.service")
    normal = root.level
    timers: list[threading.Timer] = []

    def restore(*_args: object) -> None:
        if timers:
            logger.info("logs are as before")
        while timers:
            timers.pop().cancel()
        root.setLevel(normal)

    def raise_verbosity(*_args: object) -> None:
        while timers:
            timers.pop().cancel()
        root.setLevel(logging.DEBUG)
        seconds = period_s() if callable(period_s) else period_s
        logger.info("logs are verbose for %g s", seconds)
        timer = threading.Timer(seconds, restore)
        timer.daemon = True
        timers.append(timer)
        timer.start()

    signal.signal(signal.SIGUSR1, raise_verbosity)
    signal.signal(signal.SIGUSR2, restore)


def run_until_stopped(
    servers: Iterable[Stoppable],
    on_stop: Iterable[Callable[[], object]] = (),
    grace_s: float = STOP_GRACE_S,
    name: str = "service",
    verbose_s: float | Callable[[], float] = VERBOSE_PERIOD_S,
) -> int:
    """Start the servers, wait for SIGTERM or SIGINT, stop; returns the exit code of the process: 1 when
    a server could not start.

    Must be called from the main thread (signals). A second signal does not shorten the grace: a
    supervisor that cannot wait sends SIGKILL, which loses nothing that was acknowledged.

    :param verbose_s: see :func:`install_verbosity_signals`.
    """
    servers = list(servers)
    logger = logging.getLogger(f"oio.{name}")
    asked = threading.Event()

    def ask(signum: int, _frame: object) -> None:
        logger.info("%s: stop asked by %s", name, signal.Signals(signum).name)
        asked.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    install_verbosity_signals(verbose_s)
    started = _start(servers, logger, name)
    failed = len(started) < len(servers)
    if failed:
        asked.set()
    else:
        logger.info("%s: ready", name)
    # A wait without timeout would not notice a signal that the kernel hands to another thread.
    while not asked.wait(SIGNAL_POLL_S):
        continue
    begin = time.monotonic()
    for server in started:
        server.stop(max(0.1, grace_s - (time.monotonic() - begin)))
    for callback in on_stop:
        callback()
    logger.info("%s: stopped", name)
    return 1 if failed else 0


def _start(servers: list[Stoppable], logger: logging.Logger, name: str) -> list[Stoppable]:
    """Start servers until one cannot, most often because its port is taken; gives those that run."""
    for count, server in enumerate(servers):
        try:
            server.start()
        except OSError as exc:
            logger.error("%s: cannot start: %s", name, exc)
            return servers[:count]
    return servers


def parse_dash_o(values: Iterable[str]) -> list[tuple[str, str]]:
    """Split ``-O Key=Value`` options. :raises ValueError: on a value without ``=``."""
    pairs = []
    for value in values:
        key, equal, text = value.partition("=")
        if not equal or not key:
            raise ValueError(f"-O wants KEY=VALUE, not {value!r}")
        pairs.append((key.strip(), text.strip()))
    return pairs
