# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The link with the conscience: services and policies come down, registrations go up.

Down: a thread asks for the state every ``proxy.period.cs.downstream``; when it changed, a new
:class:`~oio.proxy.lb.world.World` replaces the former one. While no conscience answers the last good world stays.
A conscience that was restarted may have lost what it knew: for a moment, the services known before stay beside
those that it knows again.

Up: registrations wait in a queue where the last one of each service wins (a plain registration never erases a lock
or an unlock that waits), sent every ``proxy.period.cs.upstream``. What cannot be sent waits for the next turn; a
registration refused by the conscience is logged and dropped, since it would be refused again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.common.variables import Variables
from oio.conscience.messages import SCORE_COMPUTE, NamespaceInfo, Service, ServiceDef, Snapshot
from oio.conscience.registry_client import RegistryClient
from oio.proxy.lb import PoolDefinition, World, build_world

logger = logging.getLogger(__name__)

#: Services waiting to be registered while no conscience answers: a whole large cluster fits.
QUEUE_MAX = 100_000

FIRST_TIME_TAG = "tag.1"

#: How long the services known before stay after another run of a conscience answers: every agent registers again
#: within a few seconds.
RESTART_GRACE_S = 10.0
#: The part of a generation that tells the runs apart.
_RUN_SHIFT = 32


class LocalService(NamedTuple):
    """A service that registered through this proxy."""

    service: ServiceDef
    seen: float


class Feed:
    """State shared by the threads of one worker process. ``world`` is None until a conscience answered."""

    def __init__(self, namespace: str, variables: Variables, registry: RegistryClient) -> None:
        self.namespace = namespace
        self.variables = variables
        self.registry = registry
        self.world: World | None = None
        self.snapshot: Snapshot | None = None
        self.extra_pools: dict[str, PoolDefinition] = {}
        self.local: dict[tuple[str, str], LocalService] = {}
        #: What the conscience told last, and what the former run of it told last while that still counts.
        self._told: dict[str, list[Service]] = {}
        self._former: dict[str, list[Service]] = {}
        self._former_until = 0.0
        self.conscience_addresses: Callable[[], list[str]] | None = None
        self._queue: dict[tuple[str, str], ServiceDef] = {}
        self._known: dict[tuple[str, str], float] = {}
        self._queue_lock = threading.Lock()
        self._refresh_lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Try a first refresh, then keep the picture up to date in the background."""
        try:
            self.refresh()
        except StatusError as exc:
            logger.warning("no picture of the namespace yet: %s", exc)
        for name, loop in (("downstream", self._down), ("upstream", self._up)):
            thread = threading.Thread(target=loop, name=f"conscience-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Send what waits, and end the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)

    # --- down -----------------------------------------------------------------------------------------------

    def try_refresh(self) -> None:
        """Read everything again, unless no conscience answers: then the last known state stays."""
        try:
            self.refresh(force=True)
        except StatusError as exc:
            logger.warning("services not refreshed, the last known ones stay in use: %s", exc)

    def refresh(self, force: bool = False) -> bool:
        """Ask the conscience for its state and replace the world when it changed; was it replaced?

        :param force: rebuild even when nothing changed.
        :raises StatusError: 503 when no conscience answers; the world stays as it is.
        """
        with self._refresh_lock:
            grace_over = bool(self._former) and time.monotonic() >= self._former_until
            last = self.snapshot
            known = None if last is None or force or grace_over else last.generation
            snapshot = self.registry.snapshot(known_generation=known, full=False)
            if snapshot is None:
                return False
            self.snapshot = self._completed(last, snapshot)
            self._rebuild()
            return True

    def _completed(self, last: Snapshot | None, snapshot: Snapshot) -> Snapshot:
        """The new state, with what a conscience that was restarted may not know yet."""
        now = time.monotonic()
        with self._queue_lock:
            if last is not None and last.generation >> _RUN_SHIFT != snapshot.generation >> _RUN_SHIFT:
                self._former, self._former_until = self._told, now + RESTART_GRACE_S
            elif now >= self._former_until:
                self._former = {}
            self._told = snapshot.services
            services, count = _with_former(snapshot, self._former)
        if not count:
            return snapshot
        logger.info("%d services of the former run of the conscience are kept for a moment", count)
        return msgspec.structs.replace(snapshot, services=services)

    def rebuild(self) -> None:
        """Make a new world from the last known state: variables or pools of requests changed."""
        with self._refresh_lock:
            self._rebuild()

    def add_pool(self, pool: PoolDefinition, force: bool) -> bool:
        """Create a pool in the memory of this process; False when there is one of that name and not ``force``."""
        with self._refresh_lock:
            world = self.world
            if not force and world is not None and pool.name in world.pools:
                return False
            self.extra_pools[pool.name] = pool
            if world is not None:
                self.world = world.with_pool(pool)
            return True

    def _rebuild(self) -> None:
        snapshot = self.snapshot
        if snapshot is None:
            return
        variables = self.variables
        self.world = build_world(
            msgspec.structs.replace(snapshot.namespace, ns=self.namespace),
            snapshot.services,
            snapshot.types,
            update_policy=variables["ns.service_update_policy"],
            extra_pools=self.extra_pools.values(),
            attempts=variables["core.lb.weighted_random_attempts"],
            bypass=variables["core.lb.allow_distance_bypass"],
            proxy_location=variables["proxy.location"],
        )

    def _down(self) -> None:
        addresses_read = time.monotonic()
        while not self._stop.wait(self.variables["proxy.period.cs.downstream"]):
            now = time.monotonic()
            if self.conscience_addresses is not None and (
                now - addresses_read >= self.variables["proxy.period.refresh.csurl"]
            ):
                addresses_read = now
                addresses = self.conscience_addresses()
                if addresses and addresses != self.registry.addresses:
                    logger.info("conscience addresses are now %s", ", ".join(addresses))
                    self.registry.addresses = addresses
            try:
                self.refresh()
            except StatusError as exc:
                logger.warning("services not refreshed, the last known ones stay in use: %s", exc)
            except Exception:
                # Whatever a conscience says, the thread must live: it is the only source of services.
                logger.exception("services not refreshed, the last known ones stay in use")

    # --- what is served from the picture ---------------------------------------------------------------------

    def types(self) -> tuple[str, ...]:
        """Service types of the namespace. :raises StatusError: 503 when they are not known yet."""
        if self.world is None:
            raise StatusError(status.UNAVAILABLE, "Service types not loaded yet")
        return self.world.types

    def check_type(self, service_type: str) -> None:
        """:raises StatusError: 453 when the namespace does not manage this type (once types are known)."""
        if self.world is not None and not self.world.has_type(service_type):
            raise StatusError(status.TYPE_NOT_MANAGED, f"Service type [{service_type}] not managed")

    def services(
        self, service_type: str, full: bool, *, reqid: str = "", within_s: float | None = None
    ) -> Iterable[Service]:
        """Services of a type: the last known ones, or those of the conscience when statistics are wanted.

        :param within_s: time allowed when the conscience must be asked.
        """
        snapshot = self.snapshot
        if snapshot is None or full or not self.variables["proxy.cache.enabled"]:
            return self.registry.services(service_type, full=full, reqid=reqid, within_s=within_s)
        return snapshot.services.get(service_type, [])

    def namespace_info(self) -> NamespaceInfo:
        """Policies and pools. :raises StatusError: 503 before a conscience answered."""
        if self.world is None:
            raise StatusError(status.UNAVAILABLE, "Namespace information not loaded yet")
        return self.world.namespace

    # --- up -------------------------------------------------------------------------------------------------

    def note(self, services: Iterable[ServiceDef]) -> list[ServiceDef]:
        """Remember the services as local ones; marks those that this proxy never saw."""
        now = time.monotonic()
        known_ttl_s = self.variables["proxy.ttl.services.known"]
        marked = []
        with self._queue_lock:
            for service in services:
                key = _key(service)
                if service.score == SCORE_COMPUTE:
                    self.local[key] = LocalService(service, now)
                    if now - self._known.get(key, -known_ttl_s - 1.0) > known_ttl_s:
                        service = msgspec.structs.replace(
                            service, tags={**service.tags, FIRST_TIME_TAG: True}
                        )
                    self._known[key] = now
                marked.append(service)
            oldest = now - self.variables["proxy.ttl.services.local"]
            if any(entry.seen < oldest for entry in self.local.values()):
                self.local = {key: entry for key, entry in self.local.items() if entry.seen >= oldest}
        return marked

    def push(
        self, services: list[ServiceDef], *, reqid: str = "", within_s: float | None = None
    ) -> None:
        """Queue registrations, locks and unlocks; sends them at once when caches are off.

        :raises StatusError: 503 when the queue is full, or the error of the conscience.
        """
        services = self.note(services)
        if not self.variables["proxy.cache.enabled"]:
            self.registry.push(services, reqid=reqid, within_s=within_s)
            return
        with self._queue_lock:
            if len(self._queue) + len(services) > QUEUE_MAX:
                raise StatusError(status.UNAVAILABLE, "Too many registrations waiting for the conscience")
            for service in services:
                self._queue[_key(service)] = merged(self._queue.get(_key(service)), service)

    def discard(self, addresses: Iterable[tuple[str, str]]) -> None:
        """Drop what waits of these services (type, address), and forget that they registered here."""
        gone = set(addresses)
        self._discard(lambda service: (service.type, service.addr) in gone)

    def discard_type(self, service_type: str) -> None:
        """Drop what waits of the services of a type, and forget that they registered here."""
        self._discard(lambda service: service.type == service_type)

    def _discard(self, gone: Callable[[ServiceDef | Service], bool]) -> None:
        with self._queue_lock:
            self._told, self._former = (
                {kind: [one for one in group if not gone(one)] for kind, group in known.items()}
                for known in (self._told, self._former)
            )
            self._queue = {key: one for key, one in self._queue.items() if not gone(one)}
            self.local = {key: one for key, one in self.local.items() if not gone(one.service)}

    def flush_queue(self) -> None:
        """Send what waits now. :raises StatusError: 503 when no conscience answers; everything waits again."""
        with self._queue_lock:
            waiting, self._queue = self._queue, {}
        if not waiting:
            return
        try:
            self.registry.push(waiting.values())
        except StatusError as exc:
            if exc.code != status.UNAVAILABLE:
                self._push_one_by_one(list(waiting.values()), exc)
                return
            with self._queue_lock:
                newer, self._queue = self._queue, waiting
                for key, service in newer.items():
                    self._queue[key] = merged(self._queue.get(key), service)
            raise

    def _push_one_by_one(self, services: list[ServiceDef], refusal: StatusError) -> None:
        """One bad registration must not take the others with it: find it, and say so."""
        for service in services:
            if len(services) > 1:
                try:
                    self.registry.push([service])
                    continue
                except StatusError as exc:
                    refusal = exc
            logger.error(
                "registration of %s %s refused by the conscience: %s", service.type, service.addr, refusal
            )

    def local_services(self, service_type: str = "") -> list[ServiceDef]:
        """What registered through this proxy lately."""
        oldest = time.monotonic() - self.variables["proxy.ttl.services.local"]
        with self._queue_lock:
            return [
                entry.service
                for entry in self.local.values()
                if entry.seen >= oldest and service_type in ("", entry.service.type)
            ]

    def _up(self) -> None:
        while not self._stop.wait(self.variables["proxy.period.cs.upstream"]):
            self._flush_and_log()
        self._flush_and_log()

    def _flush_and_log(self) -> None:
        try:
            self.flush_queue()
        except StatusError as exc:
            logger.warning("registrations wait for a conscience: %s", exc)
        except Exception:
            # Same reason as in the other direction: without this thread no service is ever registered.
            logger.exception("registrations not sent, they are dropped")


def merged(waiting: ServiceDef | None, service: ServiceDef) -> ServiceDef:
    """What to send of a service when a registration waits and another arrives."""
    if waiting is None:
        return service
    keep_lock = service.score == SCORE_COMPUTE and waiting.score != SCORE_COMPUTE
    return msgspec.structs.replace(
        service,
        score=waiting.score if keep_lock else service.score,
        tags={**waiting.tags, **service.tags},
    )


def _with_former(
    snapshot: Snapshot, former: dict[str, list[Service]]
) -> tuple[dict[str, list[Service]], int]:
    """The services, with those of ``former`` that are missing from the types that still exist; how many were?"""
    count = 0
    completed = dict(snapshot.services)
    for kind in former.keys() & set(snapshot.types):
        services = completed.get(kind, [])
        present = {service.addr for service in services} | {service.service_id for service in services}
        missing = [
            service
            for service in former[kind]
            if service.addr not in present and service.service_id not in present
        ]
        if missing:
            completed[kind] = services + missing
            count += len(missing)
    return completed, count


def _key(service: ServiceDef) -> tuple[str, str]:
    return service.type, str(service.tags.get("tag.service_id") or service.addr)
