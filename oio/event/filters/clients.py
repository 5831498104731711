# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What the filters of a process share: connections, clients, and what was learned through them.

A filter exists once per handler; what costs connections or memory is kept in ``app_env``, under the names that
the agent gives (``account_client``, ``rdir_client``, ``pool``) or, when it did not, is made at the first use.
"""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from oio.common.exceptions import OioException
from oio.conscience.client import ConscienceClient
from oio.container.client import ContainerClient
from oio.directory.client import DirectoryClient
from oio.event.filters.base import Filter
from oio.http.client import HttpPool

# Connections kept per service by a process: more than its green threads would need in parallel.
POOL_IDLE_MAX = 64
# A service that moves keeps its id: its address is asked again after this long, or after a failure.
ADDRESS_AGE_MAX_S = 30.0
ADDRESSES_MAX = 10000
# A service that does not answer is left alone at first for this long, and at most.
PAUSE_MIN_S = 1.0
PAUSE_MAX_S = 60.0
# Events that need it come again over this long at most once it is tried again.
SPREAD_MAX_S = 300.0
# Who tries a service has this long to tell whether it answered.
TRY_MAX_S = 60.0
RESOLVE_TIMEOUTS = {"connection_timeout": 2.0, "read_timeout": 5.0}
_HAS_PORT = re.compile(r":\d{1,5}\Z")

Value = TypeVar("Value")


def shared(step: Filter, key: str, make: Callable[[], Any]) -> Any:
    """What ``app_env`` holds under a name, made when there is nothing."""
    found = step.app_env.get(key)
    if found is None:
        # Two threads may make it at once: one of both is kept, the other has done nothing yet.
        found = step.app_env.setdefault(key, make())
    return found


def pool_of(step: Filter) -> HttpPool:
    """Connections."""
    pool: HttpPool = shared(step, "pool", lambda: HttpPool(max_idle_per_address=POOL_IDLE_MAX))
    return pool


def account_of(step: Filter) -> Any:
    """Client of the account service."""

    def make() -> Any:
        from oio.account.client import AccountClient

        return AccountClient(_conf(step), proxy_endpoint=_proxy(step), **_common(step))

    return shared(step, "account_client", make)


def rdir_of(step: Filter) -> Any:
    """Client of the reverse directory, which groups what concurrent threads push and delete."""

    def make() -> Any:
        from oio.rdir.client import BatchingRdirClient

        return BatchingRdirClient(_conf(step), endpoint=_proxy(step), **_common(step))

    return shared(step, "rdir_client", make)


def pauses_of(step: Filter) -> ServicePauses:
    """Services that are left alone."""
    pauses: ServicePauses = shared(step, "service_pauses", ServicePauses)
    return pauses


@contextlib.contextmanager
def asking(step: Filter, service: str) -> Iterator[None]:
    """While a service is asked; inside, ``pauses_of(step)`` is told whether it answered.

    Who leaves without having told, because something else failed, does not keep the others from trying.

    :raises LeftAlone: when it must not be asked.
    """
    check_pause(step, service)
    try:
        yield
    finally:
        pauses_of(step).unsure(service)


def check_pause(step: Filter, service: str) -> None:
    """Called before a service is asked; ``pauses_of(step)`` must be told the outcome, see :func:`asking`.

    :raises LeftAlone: when it must not be asked.
    """
    wait_s = pauses_of(step).wait_s(service)
    if wait_s:
        step.count("paused")
        raise LeftAlone(service, wait_s)


def retry_after(exc: Exception) -> float | None:
    """When an event that failed is to come again, in seconds; None: as the agent decides."""
    return exc.wait_s if isinstance(exc, LeftAlone) else None


def conscience_of(step: Filter) -> ConscienceClient:
    """Client of the registry of services."""
    client: ConscienceClient = shared(
        step, "conscience_client", lambda: ConscienceClient(_conf(step), endpoint=_proxy(step), **_common(step))
    )
    return client


def container_of(step: Filter) -> ContainerClient:
    """Client of containers and objects."""
    client: ContainerClient = shared(
        step, "container_client", lambda: ContainerClient(_conf(step), endpoint=_proxy(step), **_common(step))
    )
    return client


def directory_of(step: Filter) -> DirectoryClient:
    """Client of the directory."""
    client: DirectoryClient = shared(
        step, "directory_client", lambda: DirectoryClient(_conf(step), endpoint=_proxy(step), **_common(step))
    )
    return client


def rawx_address(step: Filter, service: str) -> str:
    """Address of a rawx, given its address or its id.

    :raises OioException: when the proxy does not tell, or does not know it.
    """
    if _HAS_PORT.search(service):
        return service
    known, fresh = _addresses(step).get(service)
    if known is None or not fresh:
        known = str(conscience_of(step).resolve("rawx", service, **RESOLVE_TIMEOUTS)["addr"])
        _addresses(step).put(service, known)
    return known


def forget_rawx(step: Filter, service: str) -> None:
    """Have the address of a rawx asked again: it did not answer there, it may have moved."""
    _addresses(step).drop(service)


def _addresses(step: Filter) -> TimedCache[str]:
    cache: TimedCache[str] = shared(step, "rawx_addresses", lambda: TimedCache(ADDRESS_AGE_MAX_S, ADDRESSES_MAX))
    return cache


class LeftAlone(OioException):
    """Raised when a service is not asked because it did not answer a moment ago.

    :ivar wait_s: when to try again, in seconds from now.
    """

    def __init__(self, service: str, wait_s: float) -> None:
        super().__init__(service, wait_s)
        self.wait_s = wait_s

    def __str__(self) -> str:
        return f"{self.args[0]} is left alone, it did not answer"


class ServicePauses:
    """Which services are left alone because they did not answer; thread-safe.

    The green threads of an agent are few. If each waited for the timeout of a service that is dead, the events
    that do not need it would wait too. So the events that need it are sent back at once, but for one try per
    period, which doubles up to ``PAUSE_MAX_S``; the first answer ends it. Those that are sent back may say when to
    come again, all the more spread the longer it lasts. Not kept: a restart tries each service.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By service: failures in a row, monotonic end of the pause, whether somebody is trying meanwhile.
        self._failures: dict[str, tuple[int, float, bool]] = {}

    def wait_s(self, service: str) -> float:
        """How long an event that needs a service has to wait; 0: the caller tries it, and tells the outcome."""
        if service not in self._failures:
            return 0.0
        now = time.monotonic()
        with self._lock:
            failures, end_s, trying = self._failures.get(service, (0, 0.0, False))
            if now >= end_s:
                if failures:
                    # This caller tries for all; if it is never heard of again, somebody else does.
                    self._failures[service] = (failures, now + TRY_MAX_S, True)
                return 0.0
        pause_s = PAUSE_MIN_S if trying else end_s - now
        return pause_s + random.uniform(0.0, min(SPREAD_MAX_S, 2.0 ** min(failures, 30)))

    def failed(self, service: str) -> float | None:
        """The service did not answer: returns the pause, None when that was known."""
        with self._lock:
            failures, end_s, trying = self._failures.get(service, (0, 0.0, False))
            now = time.monotonic()
            if now < end_s and not trying:
                return None
            pause_s = min(PAUSE_MAX_S, PAUSE_MIN_S * 2.0 ** min(failures, 30)) * random.uniform(0.5, 1.0)
            self._failures[service] = (failures + 1, now + pause_s, False)
            return pause_s

    def unsure(self, service: str) -> None:
        """Whoever tried the service cannot tell whether it answers: the next one tries. Else nothing happens."""
        if service in self._failures:
            with self._lock:
                failures, _end_s, trying = self._failures.get(service, (0, 0.0, False))
                if trying:
                    self._failures[service] = (failures, time.monotonic(), False)

    def answered(self, service: str) -> None:
        """The service answered, whatever it said."""
        if service in self._failures:
            with self._lock:
                self._failures.pop(service, None)


class TimedCache(Generic[Value]):
    """What was learned, by key, for a while; the oldest entries leave when it is full. Thread-safe."""

    def __init__(self, duration_s: float, size: int) -> None:
        self._duration_s = duration_s
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[Any, tuple[float, Value]] = OrderedDict()

    def get(self, key: Any) -> tuple[Value | None, bool]:
        """What is known, or None, and whether it is still fresh."""
        with self._lock:
            found = self._entries.get(key)
        if found is None:
            return None, False
        return found[1], time.monotonic() - found[0] < self._duration_s

    def drop(self, key: Any) -> None:
        """Forget something."""
        with self._lock:
            self._entries.pop(key, None)

    def put(self, key: Any, value: Value, learned_s: float | None = None) -> None:
        """Keep something. :param learned_s: monotonic time from which it counts; else now."""
        with self._lock:
            self._entries[key] = (time.monotonic() if learned_s is None else learned_s, value)
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)


def _conf(step: Filter) -> dict[str, Any]:
    """What clients are made from: what the agent gives for that, else the options."""
    conf: dict[str, Any] = step.app_env.get("conf") or step.conf
    return conf


def _proxy(step: Filter) -> str | None:
    """Where the proxy is, when something else than the namespace configuration tells."""
    return _conf(step).get("proxyd_url") or step.conf.get("proxy") or None


def _common(step: Filter) -> dict[str, Any]:
    return {"pool_manager": pool_of(step), "logger": step.logger}
