# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Options of TCP sockets that both ends set the same way."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

_TCP_CONGESTION = getattr(socket, "TCP_CONGESTION", None)
_LOOPBACK_PREFIX = "127."
_LOOPBACK = frozenset({"localhost", "::1"})


def tune(sock: Any, host: str) -> None:
    """Let small messages leave at once; on the loopback, let nothing pace large ones.

    Algorithms that pace what they send by an estimate of the bandwidth (BBR) misjudge a link whose delay is
    that of the scheduler: transfers stall for tens of milliseconds after each pause. Reno does not pace, and
    is always allowed. Elsewhere the choice is the system's.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _TCP_CONGESTION is not None and (host.startswith(_LOOPBACK_PREFIX) or host in _LOOPBACK):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, b"reno")
