# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Logs of a rawx, in the layout that log collectors know.

Access lines go to the facility LOCAL1, the others to LOCAL0, under the identifier of the service.
Lines are formatted and sent by one thread, so that requests never wait for the log: a full queue
drops access lines. Without syslog identifier and without ``-v`` nothing is logged at all.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable

QUEUE_LINES_MAX = 4096
SYSLOG_PATH = "/dev/log"

_LOCAL0, _LOCAL1 = 16, 17
_ERR, _INFO = 3, 6
PRIORITY_ACCESS = _LOCAL1 << 3 | _INFO
PRIORITY_INFO = _LOCAL0 << 3 | _INFO
PRIORITY_ERROR = _LOCAL0 << 3 | _ERR

Output = Callable[[int, str], None]
Line = Callable[[], str]


def syslog_output(identifier: str, path: str = SYSLOG_PATH) -> Output:
    """Sends lines to the local syslog daemon; lost while it is not there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    state = {"connected": False}

    def send(priority: int, line: str) -> None:
        data = f"<{priority}>{identifier}: {line}".encode("utf-8", "replace")
        for _ in range(2):
            try:
                if not state["connected"]:
                    sock.connect(path)
                    state["connected"] = True
                sock.send(data)
                return
            except OSError:
                state["connected"] = False

    return send


def stderr_output(priority: int, line: str) -> None:
    """Writes lines to standard error."""
    del priority
    sys.stderr.write(line + "\n")


class LogWriter:
    """The thread that writes lines to its outputs."""

    def __init__(self, outputs: list[Output]) -> None:
        self._outputs = outputs
        self._lines: queue.SimpleQueue[tuple[int, str | Line] | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="rawx-log", daemon=True)
        self._thread.start()

    def access(self, line: Line) -> None:
        """Log one access; `line` is called by the thread, and is dropped when the queue is full."""
        if self._lines.qsize() < QUEUE_LINES_MAX:
            self._lines.put((PRIORITY_ACCESS, line))
        else:
            self.dropped += 1

    def put(self, priority: int, line: str) -> None:
        """Log another line; never dropped."""
        self._lines.put((priority, line))

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, within a bound."""
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._lines.get()) is not None:
            priority, line = item
            text = line if isinstance(line, str) else f"{self._pid} access INF - {line()}"
            for output in self._outputs:
                output(priority, text)


class LogHandler(logging.Handler):
    """Sends the records of the logging module to a :class:`LogWriter`."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Format one record: ``<pid> log <ERR|WRN|INF|DBG> - <message>``."""
        priority, level = PRIORITY_INFO, "DBG"
        if record.levelno >= logging.ERROR:
            priority, level = PRIORITY_ERROR, "ERR"
        elif record.levelno >= logging.WARNING:
            level = "WRN"
        elif record.levelno >= logging.INFO:
            level = "INF"
        text = self.format(record).replace("\n", "#012")
        self._writer.put(priority, f"{record.process} log {level} - {text}")


def setup(syslog_id: str, verbose: bool) -> LogWriter | None:
    """Install the logs of the process; None when there is nowhere to write to."""
    outputs: list[Output] = []
    if syslog_id:
        outputs.append(syslog_output(syslog_id))
    if verbose:
        outputs.append(stderr_output)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not outputs:
        root.addHandler(logging.NullHandler())
        return None
    writer = LogWriter(outputs)
    root.addHandler(LogHandler(writer))
    return writer
