# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""How the agent asks a service whether it is alive.

``tcp`` connects; ``http`` wants a 200 from a path; ``asn1`` sends a ping in the binary protocol of the meta
services of former releases, and takes any answer for a pong. Our meta services speak HTTP and answer that
ping with a refusal, in HTTP: from then on they are asked ``GET /v1/ping``, which must answer 2xx and proves
more. Every check opens a new connection, because that is what a new client would have to do: a service that
only serves its old connections is not up.

Third parties add checkers through the entry-point group ``oio.conscience.checker``: a class made like
:class:`Checker`, found by the name written in ``type``.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from typing import Any

from oio.common.utils import request_id
from oio.conscience.plugins import AgentContext, Plugin, load_plugin
from oio.http.client import ProtocolError

PONG_MAX_BYTES = 1024
REQID_DIGITS = 32

ENTRY_POINT_GROUP = "oio.conscience.checker"


class Checker(Plugin):
    """One check of one service."""

    timeout_default_s = 5.0

    def __init__(self, agent: AgentContext, conf: dict[str, Any], logger: logging.Logger) -> None:
        self.name = f"{conf['type']}|{conf['host']}:{conf['port']}"
        rise, fall = int(conf.get("rise", 1)), int(conf.get("fall", 1))
        if rise < 1 or fall < 1:
            raise ValueError("rise and fall must be at least 1")
        self._verdict = Verdict(rise, fall)
        self._interval_s = float(conf.get("interval", 0))
        self._checked_s = -math.inf
        super().__init__(agent, conf, logger)

    def check(self) -> bool:
        """Try once; returns the status of the service, which follows ``rise`` and ``fall``.

        With an ``interval``, nothing is tried when the last time was less than so many seconds ago.
        """
        was_up = self._verdict.up
        now = time.monotonic()
        if was_up is not None and now - self._checked_s < self._interval_s:
            return was_up
        self._checked_s = now
        error = ""
        try:
            success = bool(self._check())
        except Exception as exc:
            # Whatever goes wrong while asking is the answer; told below, on the edge.
            success, error = False, f": {type(exc).__name__}: {exc}"
        up = self._verdict.add(success)
        if was_up is not False and not up:
            self.logger.warning("check %s failed%s", self.name, error)
        return up

    def _check(self) -> bool:
        raise NotImplementedError


class Verdict:
    """Applies ``rise`` and ``fall`` to a sequence of results; the first result decides alone."""

    def __init__(self, rise: int, fall: int) -> None:
        self.up: bool | None = None
        self._needed = {True: rise, False: fall}
        self._last = False
        self._run = 0

    def add(self, success: bool) -> bool:
        """Note a result; returns whether the service counts as up."""
        self._run = self._run + 1 if success is self._last else 1
        self._last = success
        if self.up is None or self._run >= self._needed[success]:
            self.up = success
        return self.up


class TcpChecker(Checker):
    """Connects."""

    def _check(self) -> bool:
        socket.create_connection((self.host, self.port), self.timeout).close()
        return True


class HttpChecker(Checker):
    """Wants exactly 200 from ``uri``."""

    def configure(self) -> None:
        """Reads ``uri`` (required)."""
        self.uri = "/" + str(self.conf["uri"]).lstrip("/")
        self.name = f"http|{self.host}:{self.port}{self.uri}"
        self.url = f"http://{self.host}:{self.port}{self.uri}"

    def _check(self) -> bool:
        status = self._get()
        if status != 200:
            raise ValueError(f"status {status}")
        return True

    def _get(self) -> int:
        # No idle connection is kept by this pool, see the top of the file.
        return self.agent.check_pool.request(
            "GET", self.url,
            headers={"Connection": "close", "x-oio-req-id": request_id("chk-")},
            timeout=self.timeout,
        ).status


class Asn1Checker(HttpChecker):
    """Pings a meta service."""

    def configure(self) -> None:
        """Takes no option."""
        self.url = f"http://{self.host}:{self.port}/v1/ping"
        self._speaks_http = False

    def _check(self) -> bool:
        if not self._speaks_http:
            pong = self._ping()
            if not pong:
                raise ValueError("the connection was closed without an answer")
            if not pong.startswith(b"HTTP/1."):
                return True
            self._speaks_http = True
        try:
            status = self._get()
        except ProtocolError:
            self._speaks_http = False  # another service took the address
            raise
        if not 200 <= status < 300:
            raise ValueError(f"status {status}")
        return True

    def _ping(self) -> bytes:
        with socket.create_connection((self.host, self.port), self.timeout) as sock:
            sock.sendall(ping_frame(request_id()[:REQID_DIGITS]))
            return sock.recv(PONG_MAX_BYTES)


def ping_frame(reqid: str) -> bytes:
    """A ``REQ_PING`` message: its length, then a BER sequence of the request id, the name and no parameter."""
    name = b"REQ_PING"
    digits = reqid.encode("ascii").ljust(REQID_DIGITS, b"0")
    fields = b"".join((b"\x80", bytes([len(digits)]), digits, b"\x81", bytes([len(name)]), name, b"\xa3\x00"))
    message = b"\x30" + bytes([len(fields)]) + fields
    return len(message).to_bytes(4, "big") + message


CHECKERS: dict[str, type[Checker]] = {
    "asn1": Asn1Checker,
    "http": HttpChecker,
    "tcp": TcpChecker,
}


def make_checker(agent: AgentContext, conf: dict[str, Any], logger: logging.Logger) -> Checker:
    """Checker of the ``type`` of ``conf``. :raises ValueError: when there is none."""
    checker_class = CHECKERS.get(conf["type"]) or load_plugin(ENTRY_POINT_GROUP, conf["type"])
    return checker_class(agent, conf, logger)
