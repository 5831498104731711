# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""From the id of a container to the services that hold it, and calls to them.

conscience -> meta0 (which meta1 serve a prefix: level "csm0") -> meta1 (which services a reference is linked to:
level "meta1") -> meta2. Each level remembers what it learnt; an answer that shows it wrong (431, 450, 453, 409)
drops the entry and the operation is tried again. Locks are held for dictionary operations only.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from oio.common import status
from oio.common.status import StatusError
from oio.common.variables import Variables
from oio.conscience.messages import valid_address
from oio.meta.base_messages import BaseStatus
from oio.meta.client import MetaClient
from oio.meta.messages import (
    Meta0Get,
    Operation,
    PrefixMapping,
    ReferenceReply,
    ReferenceShow,
    ServiceLink,
)
from oio.proxy.copies import NETWORK_CODES, UNCERTAIN_CODES, CopiesCall, new_operation

if TYPE_CHECKING:
    from oio.proxy.feed import Feed

#: Whole operations tried again after the cache showed wrong.
EXTRA_ATTEMPTS = 3

#: Redirections followed to find the master of a base, and the waits before each of them (seconds).
REDIRECTION_WAITS_S = (0.0, 0.2, 0.4, 0.8)

#: Answers that show that a remembered location is wrong.
STALE_CODES = frozenset({431, 450, 453, 409})
#: Begins the message of a failure to find the services of a container.
_DIRECTORY_ERROR = "Directory error: "

_TIMEOUT_CODES = frozenset({5, 7})

#: A service that says nothing for that long is thought to be down, whatever the deadline of the client (seconds).
_PATIENCE_S = 1.0

#: Percents of exchanges that are lost on purpose, by the place of the copy among those that can be asked.
_LOSSES = {
    "alone": "enbug.proxy.request_failure.alone",
    "first": "enbug.proxy.request_failure.first",
    "middle": "enbug.proxy.request_failure.middle",
    "last": "enbug.proxy.request_failure.last",
}

T = TypeVar("T")


class Context(Protocol):
    """What a call to a backend takes from the request that is served."""

    reqid: str

    @property
    def admin(self) -> bool:
        """Bypass the modes of the namespace."""

    @property
    def only(self) -> list[str]:
        """Services to contact, and no other; [] to follow the directory."""

    @property
    def origin(self) -> str:
        """User agent of the client."""

    @property
    def force_master(self) -> bool:
        """Read from the master, and from nobody else."""

    @property
    def prefer_slave(self) -> bool:
        """A copy that may be late is good enough to read."""

    def timeout_s(self, at_most_s: float) -> float:
        """Time left for one exchange."""

    def measure(self, name: str, seconds: float) -> None:
        """Note a duration."""


class Cache:
    """Bounded memory with expiry. ``maximum`` and ``ttl_s`` are asked at each use, 0 means no expiry."""

    def __init__(self, maximum: Callable[[], int], ttl_s: Callable[[], float]) -> None:
        self._maximum, self._ttl_s = maximum, ttl_s
        self._lock = threading.Lock()
        self._entries: dict[Any, tuple[Any, float]] = {}

    def get(self, key: Any) -> Any:
        """What is known, None when nothing is or when it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, expiry = entry
        if expiry and expiry < time.monotonic():
            self.drop(key)
            return None
        return value

    def put(self, key: Any, value: Any) -> None:
        """Remember; the oldest entries make room."""
        ttl_s, maximum = self._ttl_s(), self._maximum()
        expiry = time.monotonic() + ttl_s if ttl_s else 0.0
        with self._lock:
            self._entries.pop(key, None)
            while self._entries and len(self._entries) >= maximum:
                del self._entries[next(iter(self._entries))]
            if maximum > 0:
                self._entries[key] = (value, expiry)

    def drop(self, key: Any) -> bool:
        """Forget one entry; was there one?"""
        with self._lock:
            return self._entries.pop(key, None) is not None

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries = {}

    def describe(self) -> dict[str, int]:
        """Number of entries and limits, as ``cache/status`` shows them."""
        return {"count": len(self._entries), "max": self._maximum(), "ttl": int(self._ttl_s())}


class Resolver:
    """Finds services and calls them."""

    def __init__(self, variables: Variables, meta: MetaClient, feed: Feed) -> None:
        self._variables, self._feed = variables, feed
        self.meta = meta
        self.csm0 = Cache(
            lambda: variables["resolver.cache.csm0.max.default"],
            lambda: variables["resolver.cache.csm0.ttl.default"],
        )
        self.links = Cache(
            lambda: variables["resolver.cache.srv.max.default"],
            lambda: variables["resolver.cache.srv.ttl.default"],
        )
        #: (type, base) -> id of the master of the base, learnt from redirections.
        self.masters = Cache(
            lambda: variables["resolver.cache.srv.max.default"],
            lambda: variables["proxy.ttl.services.master"],
        )
        #: Address -> moment until which it is thought to be down.
        self.down: dict[str, float] = {}
        #: The same for those that answer, but knew no master.
        self.doubted: dict[str, float] = {}

    # --- location -------------------------------------------------------------------------------------

    def address(self, service_type: str, service_id: str) -> str:
        """Address of a service known by id or by address.

        :raises StatusError: 503 when the conscience does not know it.
        """
        world = self._feed.world
        item = world.find(service_type, service_id) if world is not None else None
        if item is not None:
            return item.addr
        if valid_address(service_id):
            return service_id
        raise StatusError(
            status.UNAVAILABLE, f"Conscience error: Service ID [{service_id}] not found"
        )

    def meta0(self) -> list[str]:
        """Ids or addresses of the meta0 services, sorted. :raises StatusError: 503 when there is none."""
        world = self._feed.world
        found = [item.id for item in world.items if item.type == "meta0"] if world is not None else []
        if not found:
            raise StatusError(status.UNAVAILABLE, "No META0: none is known to the conscience")
        return sorted(found)

    def prefix_of(self, cid: str) -> str:
        """Name of the meta1 base of a container."""
        return cid[: self._variables["ns.meta1_digits"]].ljust(4, "0")

    def meta1(self, cid: str, context: Context) -> list[str]:
        """Ids or addresses of the meta1 services in charge of a container, from the cache when it is there."""
        prefix = self.prefix_of(cid)
        if self._cached:
            known = self.csm0.get(prefix)
            if known is not None:
                return list(known)
        reply: PrefixMapping = self._call_any(
            "meta0", self.meta0(), Meta0Get(prefix=prefix), context, write=False
        )
        services = list(reply.mapping.get(prefix, []))
        if not services:
            raise StatusError(status.UNAVAILABLE, f"No META1: prefix {prefix} is not assigned")
        if self._cached:
            self.csm0.put(prefix, services)
        return services

    def services(self, cid: str, service_type: str, context: Context) -> tuple[list[str], bool]:
        """Services of a type linked to a container, and whether the cache knew them.

        :raises StatusError: 406 when the reference does not exist, 431 when nothing is linked.
        """
        key = (cid, service_type)
        if self._cached:
            known = self.links.get(key)
            if known is not None:
                return known, True
        try:
            reply: ReferenceReply = self.call_meta1(
                ReferenceShow(cid=cid, type=service_type, with_properties=False), context, write=False
            )
        except StatusError as exc:
            message = exc.message.removeprefix(_DIRECTORY_ERROR)
            raise StatusError(exc.code, f"{_DIRECTORY_ERROR}{message}") from exc
        services = hosts_of(reply.services)
        if not services:
            raise StatusError(status.CONTAINER_NOT_FOUND, "No service located")
        self.learn(cid, service_type, services)
        return services, False

    def learn(self, cid: str, service_type: str, services: list[str]) -> None:
        """Remember what a container is linked to."""
        if self._cached:
            self.links.put((cid, service_type), services)

    def forget(self, cid: str, service_type: str) -> None:
        """Drop what is remembered of a container."""
        self.links.drop((cid, service_type))

    # --- calls ---------------------------------------------------------------------------------------------

    def call_meta1(
        self, request: Any, context: Context, write: bool, only: Sequence[str] = ()
    ) -> Any:
        """Send an operation to the meta1 of ``request.cid``; forgets the mapping and retries when it is wrong.

        :param only: services to send it to, whatever the directory says.
        """
        cid: str = request.cid
        operation = ""

        def attempt() -> Any:
            nonlocal operation
            cached = self.csm0.get(self.prefix_of(cid)) is not None
            try:
                services = list(only) or self.meta1(cid, context)
            except StatusError as exc:
                raise StatusError(exc.code, f"{_DIRECTORY_ERROR}{exc.message}") from exc
            try:
                if only:
                    known = self.csm0.get(self.prefix_of(cid)) if self._cached else None
                    return self._call_named("meta1", services, request, context, write, known)
                if write and not operation and len(services) > 1:
                    operation = new_operation()
                return self._call_any("meta1", services, request, context, write, operation, hurried=cached)
            except StatusError as exc:
                if exc.code == status.UNAVAILABLE:
                    self.csm0.drop(self.prefix_of(cid))
                    raise StatusError(exc.code, f"No meta1 answered: {exc.message}") from exc
                raise

        return self._retried(attempt, lambda: self.csm0.drop(self.prefix_of(cid)) and not only)

    def call_meta2(self, request: Any, context: Context, write: bool) -> Any:
        """Send an operation to the meta2 of ``request.cid``; locates it again when it is elsewhere."""
        cid: str = request.cid
        cached = False
        operation = ""

        def attempt() -> Any:
            nonlocal cached, operation
            begin = time.perf_counter()
            only = context.only
            services, cached = (only, False) if only else self.services(cid, "meta2", context)
            middle = time.perf_counter()
            context.measure("resolve", middle - begin)
            if only:
                known = self.links.get((cid, "meta2")) if self._cached else None
                reply = self._call_named("meta2", only, request, context, write, known)
            elif len(services) == 1:
                reply = self._call_single("meta2", services, request, context, write)
            else:
                if write and not operation:
                    operation = new_operation()
                reply = self._call_any("meta2", services, request, context, write, operation, hurried=cached)
            context.measure("meta2", time.perf_counter() - middle)
            return reply

        return self._retried(attempt, lambda: self.links.drop((cid, "meta2")) and cached)

    def call_services(
        self,
        service_type: str,
        services: list[str],
        request: Operation,
        context: Context,
        write: bool,
        *,
        peers: Sequence[str] | None = None,
        ceiling_s: float | None = None,
    ) -> Any:
        """Send an operation to the master among the given services, without any resolution.

        When they are those that the context names and no other, the first of them that answers is the one.

        :param peers: services that hold the base, when they are not those that are asked.
        :param ceiling_s: longest exchange with one service; None for that of the configuration.
        """
        if context.only and services == context.only:
            return self._call_named(service_type, services, request, context, write, peers, ceiling_s)
        operation = new_operation() if write and len(services) > 1 else ""
        return self._call_any(service_type, services, request, context, write, operation, ceiling_s)

    def master_of(self, service_type: str, services: list[str], base: str, context: Context) -> str:
        """Name of the service that is the master of a base. :raises StatusError: 503 when there is none."""
        if len(services) == 1:
            return services[0]
        call = CopiesCall(self, service_type, services, BaseStatus(base=base), context, write=False)
        call.run_on_master()
        return call.answered.name if call.answered is not None else services[0]

    @staticmethod
    def _retried(attempt: Callable[[], T], forget: Callable[[], bool]) -> T:
        """Run, and run again while the answer shows that what was remembered is wrong.

        ``forget`` drops it and tells whether it came from a cache: otherwise the same answer would come again.
        """
        for _ in range(EXTRA_ATTEMPTS):
            try:
                return attempt()
            except StatusError as exc:
                if exc.code not in STALE_CODES or not forget():
                    raise
        return attempt()

    def _call_any(
        self,
        service_type: str,
        services: list[str],
        request: Operation,
        context: Context,
        write: bool,
        operation: str = "",
        ceiling_s: float | None = None,
        hurried: bool = False,
    ) -> Any:
        """Call the only service of a base, or its master."""
        if len(services) == 1:
            return self._call_single(service_type, services, request, context, write, ceiling_s)
        return CopiesCall(
            self, service_type, services, request, context,
            write=write, operation=operation, ceiling_s=ceiling_s, hurried=hurried,
        ).run()  # fmt: skip

    def _call_named(
        self,
        service_type: str,
        services: Sequence[str],
        request: Operation,
        context: Context,
        write: bool,
        peers: Sequence[str] | None,
        ceiling_s: float | None = None,
    ) -> Any:
        """Call the services that a request names; ``peers`` are those of the base, None when nobody knows."""
        if peers is not None and len(peers) == 1:
            return self._call_single(service_type, services, request, context, write, ceiling_s)
        operation = new_operation() if write else ""
        return CopiesCall(
            self, service_type, services, request, context,
            write=write, operation=operation, told=peers or (), ceiling_s=ceiling_s,
        ).ask_named()  # fmt: skip

    def _call_single(
        self,
        service_type: str,
        services: Sequence[str],
        request: Operation,
        context: Context,
        write: bool,
        ceiling_s: float | None = None,
    ) -> Any:
        """Call the service of a base that has one copy (or the first that answers of those that are named)."""
        last: StatusError | None = None
        for place, service in enumerate(services):
            try:
                address = self.address(service_type, service)
            except StatusError as exc:
                last = exc
                continue
            try:
                self.lose_on_purpose(place, len(services))
                return self._call_one(service_type, address, request, context, ceiling_s)
            except StatusError as exc:
                if exc.code not in NETWORK_CODES:
                    raise
                if exc.code in UNCERTAIN_CODES and (
                    write or self._variables["proxy.prefer.master_for_read"]
                ):
                    raise StatusError(status.UNAVAILABLE, f"No service replied (last error: {exc})") from exc
                last = exc
        raise StatusError(status.UNAVAILABLE, f"No service replied (last error: {last})") from last

    def _call_one(
        self, service_type: str, address: str, request: Operation, context: Context, ceiling_s: float | None
    ) -> Any:
        """Call a service, follow its redirections, remember that it is down."""
        ceiling = ceiling_s or self._variables["proxy.outgoing.timeout.common"]
        for wait_s in (*REDIRECTION_WAITS_S, None):
            timeout_s = context.timeout_s(ceiling)
            try:
                return self.meta.call(
                    address,
                    request,
                    reqid=context.reqid,
                    timeout_s=timeout_s,
                    admin=context.admin,
                    origin=context.origin,
                )
            except StatusError as exc:
                # A client in a hurry tells nothing about the service.
                if exc.code in NETWORK_CODES and not (
                    exc.code in _TIMEOUT_CODES and timeout_s < min(ceiling, _PATIENCE_S)
                ):
                    self.mark_down(address)
                if exc.code != status.REDIRECT or wait_s is None or context.only:
                    if exc.code == status.REDIRECT and wait_s is None:
                        raise StatusError(
                            status.TOO_MANY_REDIRECTS, f"Too many redirections, the last one to {exc.message}"
                        ) from exc
                    raise
                if wait_s:
                    time.sleep(min(wait_s, context.timeout_s(ceiling)))
                address = self.address(service_type, exc.message.strip())
        raise AssertionError("unreachable")

    # --- what a call to a base with copies wants to know --------------------------------------------------

    def lose_on_purpose(self, place: int, count: int) -> None:
        """Have an exchange fail as often as the variables tell, for those who test what stands on it.

        :param place: that of the service in the order in which ``count`` of them are asked.
        :raises StatusError: 9, nothing was sent.
        """
        where = "alone" if count == 1 else "first" if place == 0 else "last" if place >= count - 1 else "middle"
        rate = self._variables[_LOSSES[where]]
        if rate and random.random() * 100 < rate:
            raise StatusError(status.NETWORK_ERROR, f"Failure made on purpose ({_LOSSES[where]})")

    def base_key(self, service_type: str, request: Any) -> tuple[str, str]:
        """What tells the base that an operation is about."""
        cid: str = getattr(request, "cid", "") or getattr(request, "base", "")
        if service_type == "meta0":
            return service_type, ""
        return service_type, self.prefix_of(cid) if service_type == "meta1" else cid[:64]

    @property
    def ceiling_s(self) -> float:
        """Longest exchange with a meta service."""
        seconds: float = self._variables["proxy.outgoing.timeout.common"]
        return seconds

    def wants_master(self, context: Context) -> bool:
        """Must a read be answered by the master, whatever else is asked for?"""
        return context.force_master or self._variables["proxy.force.master"]

    def reads_copies(self, context: Context) -> bool:
        """Is a copy that may be late good enough for a read?"""
        variables = self._variables
        preferred = variables["proxy.prefer.slave_for_read"] and not variables["proxy.prefer.master_for_read"]
        return (preferred or context.prefer_slave) and not self.wants_master(context)

    @property
    def prefers_master_to_write(self) -> bool:
        """Shall the known master be asked first for what is written?"""
        return bool(self._variables["proxy.prefer.master_for_write"])

    def shuffles(self, service_type: str) -> bool:
        """Are services otherwise alike asked in any order?"""
        name = "proxy.dir_shuffle" if service_type == "meta1" else "proxy.srv_shuffle"
        return bool(self._variables[name])

    def forget_location(self, service_type: str, base: str) -> None:
        """Drop what is remembered of the place of a base, as its :meth:`base_key` names it."""
        if service_type == "meta2":
            self.links.drop((base, service_type))
        elif service_type == "meta1":
            self.csm0.drop(base)

    def forget_base(self, service_type: str, base: str) -> None:
        """The same, and its master."""
        self.masters.drop((service_type, base))
        self.forget_location(service_type, base)

    def is_down(self, address: str) -> bool:
        """Did a service fail to answer lately?"""
        return self.down.get(address, 0.0) > time.monotonic() if self.down else False

    def mark_up(self, address: str) -> None:
        """A service answered."""
        if address in self.down:
            self.down = {known: until for known, until in self.down.items() if known != address}
        if address in self.doubted:
            self.doubted = {known: until for known, until in self.doubted.items() if known != address}

    def doubt(self, address: str) -> None:
        """A service had no master to tell: it may be cut off from the others. Ask it after them for a while."""
        until = time.monotonic() + self._variables["proxy.ttl.services.down"]
        self.doubted = {**self.doubted, address: until}

    def mark_down(self, address: str) -> None:
        """Remember for a while that a service does not answer; what is over is swept on the way."""
        now = time.monotonic()
        ttl_s = self._variables["proxy.ttl.services.down"]
        self.down = {known: until for known, until in self.down.items() if until > now} | {
            address: now + ttl_s
        }

    @property
    def _cached(self) -> bool:
        return bool(self._variables["proxy.cache.enabled"])


def hosts_of(links: list[ServiceLink]) -> list[str]:
    """Services of the latest set of links."""
    if not links:
        return []
    last = max(link.seq for link in links)
    return [host for link in links if link.seq == last for host in link.host.split(",") if host]
