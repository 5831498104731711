# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Loggers: to syslog, to standard error, or both; one line per record."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

DEFAULT_FORMAT = "%(process)d %(thread)X %(name)s %(levelname)s %(message)s"
_OWN = "_oio_handler"
# Console handlers in use, and whether there ever was one.
_consoles: weakref.WeakSet[logging.StreamHandler[Any]] = weakref.WeakSet()
_console_used = False


def get_logger(
    conf: Mapping[str, Any] | None,
    name: str | None = None,
    verbose: bool = False,
    fmt: str = DEFAULT_FORMAT,
) -> logging.Logger:
    """Configure and return a logger (``log`` without a name).

    :param conf: keys ``syslog_prefix``, ``log_facility``, ``log_address``, ``log_udp_host``,
        ``log_udp_port``, ``log_level``, ``is_cli``.
    :param verbose: also write to standard error. Calling it again does not add handlers twice.
    """
    global _console_used
    conf = conf or {}
    logger = logging.getLogger(name or "log")
    logger.propagate = False
    level = logging.getLevelName(str(conf.get("log_level") or "INFO").upper())
    level = level if isinstance(level, int) else logging.INFO
    for handler in list(logger.handlers):
        if hasattr(handler, _OWN):
            logger.removeHandler(handler)
            handler.close()

    prefix = conf.get("syslog_prefix") or ""
    syslog = syslog_handler(conf)
    if syslog is not None:
        syslog.setFormatter(logging.Formatter(f"{prefix}: {fmt}" if prefix else fmt))
        _attach(logger, syslog)
    if verbose or conf.get("is_cli") or level < logging.INFO or _console_used:
        console = logging.StreamHandler(sys.stderr)
        console.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d " + fmt, "%F %T"))
        _attach(logger, console)
        _consoles.add(console)
        _console_used = True
    if not logger.handlers:
        _attach(logger, logging.NullHandler())
    logger.setLevel(level)
    return logger


def _attach(logger: logging.Logger, handler: logging.Handler) -> None:
    setattr(handler, _OWN, True)
    logger.addHandler(handler)


def syslog_handler(conf: Mapping[str, Any]) -> logging.handlers.SysLogHandler | None:
    """Handler that a configuration asks for (see :func:`get_logger`); None when it cannot be had."""
    names = logging.handlers.SysLogHandler.facility_names
    facility = str(conf.get("log_facility") or "LOG_LOCAL0").lower().removeprefix("log_")
    code = names.get(facility, logging.handlers.SysLogHandler.LOG_LOCAL0)
    host = conf.get("log_udp_host")
    try:
        if host:
            port = int(conf.get("log_udp_port") or logging.handlers.SYSLOG_UDP_PORT)
            return logging.handlers.SysLogHandler((host, port), code)
        address = conf.get("log_address") or "/dev/log"
        if os.path.exists(address):
            return logging.handlers.SysLogHandler(address, code)
        # No local socket: datagrams to the default address, which cost nothing when nobody listens.
        return logging.handlers.SysLogHandler(facility=code)
    except OSError:
        return None


class StreamToLogger:
    """File-like object that sends what is written to a logger.

    What the logger itself writes on failure (of a handler, say) is dropped: it would come back here for ever.
    """

    _writing = threading.local()

    def __init__(self, logger: logging.Logger, log_type: str = "STDOUT") -> None:
        self.logger = logger
        self.log_type = log_type

    def write(self, value: str) -> int:
        """Log one line, unless blank."""
        line = value.strip()
        if line and not getattr(self._writing, "now", False):
            self._writing.now = True
            try:
                self.logger.error("%s: %s", self.log_type, line)
            finally:
                self._writing.now = False
        return len(value)

    def writelines(self, values: Iterable[str]) -> None:
        """Log several lines as one record."""
        self.write("#012".join(values))

    def close(self) -> None:
        """Nothing is held open."""

    def flush(self) -> None:
        """Nothing is buffered."""

    def isatty(self) -> bool:
        """Never a terminal."""
        return False


def redirect_stdio(logger: logging.Logger) -> None:
    """Send standard output, error and uncaught exceptions of a daemon to its logger."""

    def on_exception(exc_type: Any, exc: Any, traceback: Any) -> None:
        logger.critical("uncaught exception", exc_info=(exc_type, exc, traceback))

    sys.excepthook = on_exception
    sys.stdout = StreamToLogger(logger)  # type: ignore[assignment]
    sys.stderr = StreamToLogger(logger, "STDERR")  # type: ignore[assignment]


def detach_stdio() -> None:
    """Put ``/dev/null`` in place of the standard files of this process, but for those that loggers write to."""
    null = os.open(os.devnull, os.O_RDWR)
    kept = {handler.stream.fileno() for handler in _consoles}
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for fd in {0, 1, 2} - kept:
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
