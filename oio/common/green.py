# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Green threads: the only module of the package that imports eventlet.

Programs that want to be green import this module and call :func:`patch` at their entry point, before the
others. Importing it patches nothing. The rest of the package works with plain threads, and becomes green
when the standard library has been patched.

The timeouts below derive from eventlet's ``Timeout``, hence from ``BaseException``. They are distinct from
``oio.common.exceptions.OioTimeout``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta

from oio.common.ratelimit import (
    Policy,
    ratelimit_function_curr_rate,
    ratelimit_function_next_rate,
    ratelimit_policy_from_string,
    ratelimit_validate_policy,
)
from oio.common.ratelimit import ratelimit as _ratelimit
from oio.common.ratelimit import ratelimit_function_build as _ratelimit_function_build

with warnings.catch_warnings():
    # Whoever imports this module has chosen eventlet; users of its programs need not be told at each start.
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    import eventlet
import eventlet.hubs as eventlet_hubs
from eventlet import GreenPile, GreenPool, Timeout, greenthread, patcher, sleep
from eventlet.event import Event
from eventlet.green import socket, thread, threading
from eventlet.green.http.client import _UNKNOWN, HTTPConnection, HTTPResponse, HTTPSConnection
from eventlet.queue import Empty, LifoQueue, LightQueue, Queue
from eventlet.semaphore import Semaphore

__all__ = [
    "_UNKNOWN", "ChunkReadTimeout", "ChunkWriteTimeout", "ConnectionTimeout", "ContextPool", "Empty", "Event",
    "GreenPile", "GreenPool", "HTTPConnection", "HTTPResponse", "HTTPSConnection", "LifoQueue", "LightQueue",
    "OioTimeout", "Queue", "Semaphore", "SourceReadTimeout", "Timeout", "datetime", "eventlet",
    "eventlet_hubs", "eventlet_yield", "get_hub", "greenthread", "patch", "patcher", "ratelimit",
    "ratelimit_function_build", "ratelimit_function_curr_rate", "ratelimit_function_next_rate",
    "ratelimit_policy_from_string", "ratelimit_validate_policy", "sleep", "socket", "thread", "threading",
    "time", "timedelta",
]  # fmt: skip


def patch() -> None:
    """Make the standard library green, except ``os`` (files and processes keep blocking)."""
    patcher.monkey_patch(os=False)


def eventlet_yield() -> None:
    """Let the other green threads run."""
    sleep(0)


def get_hub() -> str:
    """Name of the hub that green programs should use."""
    return "poll"


# --- timeouts -------------------------------------------------------------------------------------


class OioTimeout(Timeout):
    """Base of the green timeouts."""

    msg_prefix = ""

    def __str__(self) -> str:
        return f"{self.msg_prefix}timeout {super().__str__()}"


class ConnectionTimeout(OioTimeout):
    """Raised when a connection takes too long to be made."""

    msg_prefix = "Connection "


class SourceReadTimeout(OioTimeout):
    """Raised when the source of an upload gives nothing in time."""

    msg_prefix = "Source read "


class ChunkWriteTimeout(OioTimeout):
    """Raised when a rawx does not take data, or does not confirm, in time."""

    msg_prefix = "Chunk write "


class ChunkReadTimeout(OioTimeout):
    """Raised when a rawx does not give data in time."""

    msg_prefix = "Chunk read "


class ContextPool(GreenPool):  # type: ignore[misc]
    """Pool of green threads that kills those still running at the end of a ``with`` block."""

    def __enter__(self) -> ContextPool:
        return self

    def __exit__(self, *_exc: object) -> None:
        for running in list(self.coroutines_running):
            running.kill()


# --- rate limits ----------------------------------------------------------------------------------


def ratelimit(
    run_time: float,
    max_rate: float,
    increment: float = 1,
    rate_buffer: float = 5,
    time_time: float | None = None,
) -> float:
    """:func:`oio.common.ratelimit.ratelimit`, letting the other green threads run meanwhile."""
    return _ratelimit(run_time, max_rate, increment, rate_buffer, time_time, sleep)


def ratelimit_function_build(policy: Policy | str) -> Callable[..., float]:
    """Make a function like :func:`ratelimit` whose rate follows the time of day."""
    return _ratelimit_function_build(policy, ratelimit)
