# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One connection to beanstalkd: commands are sent, replies are read, in order; many may be under way.

Not thread-safe. After any error but :class:`TimeoutError` of a read that may be repeated, close the connection.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

DEFAULT_PORT = 11300
DEFAULT_PRIORITY = 2**31
DEFAULT_TTR = 120
# Priority at which services put their events: the least urgent.
SERVICE_PRIORITY = 2**32 - 1
TUBE_MAX_BYTES = 200

# Options of the URL of a server; producers and consumers take the same one.
OPTIONS: dict[str, Callable[[str], Any]] = {
    "timeout_s": float,
    "connect_timeout_s": float,
    "ttr": int,
    "priority": int,
    "max_jobs": int,
}

RECV_BYTES = 256 << 10
# A line is a word and some numbers; tubes have names of 200 bytes.
LINE_MAX_BYTES = 1024
# Replies that are followed by a body, whose length is their last argument.
_WITH_BODY = {"RESERVED", "FOUND", "OK"}


class BeanstalkError(Exception):
    """Base of the errors of this client."""


class ConnectionError(BeanstalkError):
    """Raised when the server cannot be reached or has closed the connection."""


class TimeoutError(BeanstalkError):
    """Raised when the server does not answer in time."""


class ResponseError(BeanstalkError):
    """Raised when the server answers that it cannot do what is asked."""

    def __init__(self, command: str, status: str, results: list[str] | None = None) -> None:
        super().__init__(command, status, results or [])
        self.command = command
        self.status = status
        self.results = results or []

    def __str__(self) -> str:
        return f"{self.command}: {' '.join([self.status, *self.results])}"


class InvalidResponse(BeanstalkError):
    """Raised when what was received is no reply to what was asked."""


class Reply(NamedTuple):
    """First word of a reply, the others, and the body of those that have one."""

    word: str
    args: list[str]
    body: bytes = b""


class Wire:
    """A connected socket; green when the process is."""

    def __init__(self, host: str, port: int, connect_timeout_s: float, timeout_s: float | None) -> None:
        """:param timeout_s: for sending, and for replies unless told otherwise; None: for ever.

        :raises ConnectionError, TimeoutError: when there is no connection.
        """
        self.address = f"{host}:{port}"
        self.timeout_s = timeout_s
        self._buffer = bytearray()
        try:
            self._sock = socket.create_connection((host, port), connect_timeout_s)
        except socket.timeout as exc:  # noqa: UP041 - the name of the built-in one is taken here
            raise TimeoutError(f"{self.address}: no connection in {connect_timeout_s} s") from exc
        except OSError as exc:
            raise ConnectionError(f"{self.address}: {exc}") from exc
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, data: bytes) -> None:
        """Send commands. :raises ConnectionError, TimeoutError: when they did not (all) leave."""
        try:
            self._sock.settimeout(self.timeout_s)
            self._sock.sendall(data)
        except socket.timeout as exc:  # noqa: UP041
            raise TimeoutError(f"{self.address}: does not read in {self.timeout_s} s") from exc
        except OSError as exc:
            raise ConnectionError(f"{self.address}: {exc}") from exc

    def read(self, timeout_s: float | None = None) -> Reply:
        """The next reply.

        :param timeout_s: instead of the usual one.
        :raises TimeoutError: when it is not there in time; it may be read later.
        :raises ConnectionError: when there will be none.
        :raises InvalidResponse: when it is not understood.
        """
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = None if limit_s is None else time.monotonic() + limit_s
        buffer = self._buffer
        while (end := buffer.find(b"\r\n")) < 0:
            if len(buffer) > LINE_MAX_BYTES:
                raise InvalidResponse(f"{self.address}: {bytes(buffer[:100])!r}")
            self._receive(deadline)
        word, *args = buffer[:end].decode("latin-1").split(" ")
        start = end + 2
        body = b""
        if word in _WITH_BODY:
            if not args or not args[-1].isdigit():
                raise InvalidResponse(f"{self.address}: {bytes(buffer[:end])!r}")
            size = int(args[-1])
            while len(buffer) < start + size + 2:
                self._receive(deadline)
            body = bytes(buffer[start : start + size])
            start += size + 2
        del buffer[:start]
        return Reply(word, args, body)

    def call(self, command: str, expected: str, timeout_s: float | None = None) -> Reply:
        """Send a command and read its reply. :raises ResponseError: when it is another than expected."""
        self.send(command.encode() + b"\r\n")
        return check(command, self.read(timeout_s), expected)

    def shutdown(self) -> None:
        """End the connection, under the feet of a thread that reads: it gets a ConnectionError."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it had ended

    def close(self) -> None:
        """End the connection; idempotent."""
        self._sock.close()

    def _receive(self, deadline: float | None) -> None:
        # A reply that came already is read even when it is too late to wait.
        left_s = None if deadline is None else max(1e-6, deadline - time.monotonic())
        try:
            self._sock.settimeout(left_s)
            data = self._sock.recv(RECV_BYTES)
        except socket.timeout as exc:  # noqa: UP041
            raise TimeoutError(f"{self.address}: no answer in time") from exc
        except OSError as exc:
            raise ConnectionError(f"{self.address}: {exc}") from exc
        if not data:
            raise ConnectionError(f"{self.address}: closed by the server")
        self._buffer += data


# Replies that say no; any other unexpected one (BAD_FORMAT...) means that the two sides do not understand each
# other: the server may take the body of the command for further commands, and answer those too.
REFUSALS = {
    "NOT_FOUND", "TIMED_OUT", "DEADLINE_SOON", "BURIED", "DRAINING", "JOB_TOO_BIG", "OUT_OF_MEMORY",
    "NOT_IGNORED",
}  # fmt: skip


def check(command: str, reply: Reply, expected: str) -> Reply:
    """Give a reply back if it is the expected one. :raises ResponseError, InvalidResponse: if it is not."""
    if reply.word == expected:
        return reply
    if reply.word in REFUSALS:
        raise ResponseError(command.partition("\r\n")[0], reply.word, reply.args)
    raise InvalidResponse(f"{command.split(' ')[0]}: {reply.word} {' '.join(reply.args)}"[:200])


def parse_url(url: str) -> tuple[str, int]:
    """Host and port of ``beanstalk://host:port``. :raises ValueError: when it is something else."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme != "beanstalk" or not parts.hostname or port == -1 or parts.path.strip("/"):
        raise ValueError(f"{url!r} must be beanstalk://host:port")
    return parts.hostname, port or DEFAULT_PORT


def check_tube(tube: str) -> str:
    """Give back the name of a tube. :raises ValueError: when no tube can have it."""
    name_ok = tube and not tube.startswith("-") and len(tube) <= TUBE_MAX_BYTES
    if not name_ok or not all(char.isascii() and (char.isalnum() or char in "-+/;.$_()") for char in tube):
        raise ValueError(f"{tube!r} cannot be the name of a tube")
    return tube


def parse_stats(body: bytes) -> dict[str, str]:
    """Decode the YAML of ``stats...``: ``name: value`` lines, after a ``---``."""
    lines = body.decode("latin-1").splitlines()
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def parse_list(body: bytes) -> list[str]:
    """Decode the YAML of ``list-tubes``: ``- item`` lines, after a ``---``."""
    return [line[2:] for line in body.decode("latin-1").splitlines() if line.startswith("- ")]
