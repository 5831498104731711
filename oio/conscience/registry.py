# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The services of the namespace, their scores and locks: the state of the conscience.

Guarantees:

- a batch is applied whole or, when one of its services is refused, not at all;
- a locked score never changes by registration or age;
- a score rises by at most the bound of its type at each registration, and falls at once;
- every change of anything visible moves :attr:`Registry.generation`, which differs between two runs.

Clocks are injected. Ages are measured on the monotonic one, so that setting the time cannot expire a cluster.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from oio.common.status import (
    BAD_REQUEST,
    EXCESSIVE_LOAD,
    NAMESPACE_NOT_MANAGED,
    TYPE_NOT_MANAGED,
    StatusError,
)
from oio.conscience.expression import UndefinedValue
from oio.conscience.messages import (
    SCORE_COMPUTE,
    SCORE_MAX,
    SCORE_UNLOCK,
    TAGS_MAX,
    Message,
    NamespaceInfo,
    Service,
    ServiceDef,
    Snapshot,
    TagValue,
)
from oio.conscience.settings import ServiceType, Settings

# Above this, something registers addresses that do not exist.
SERVICES_MAX = 100_000

TAG_FIRST = "tag.1"
TAG_LOCK = "tag.lock"
TAG_UP = "tag.up"


class SavedService(Message, kw_only=True):
    """What outlives a restart of the conscience."""

    type: str
    addr: str
    score: int
    locked: bool = False
    lock_changed_us: int = 0
    tags_changed_us: int = 0
    tags: dict[str, TagValue] = {}


class _Entry:
    """One known service. The change times (µs since the epoch) let several consciences agree one day."""

    __slots__ = ("addr", "lock_changed_us", "locked", "registered_s", "score", "tags",
                 "tags_changed_us", "type")

    def __init__(self, kind: ServiceType, addr: str, now_s: float) -> None:
        self.type = kind
        self.addr = addr
        self.score = -1
        self.locked = False
        self.lock_changed_us = 0
        self.tags_changed_us = 0
        self.registered_s = now_s
        self.tags: dict[str, TagValue] = {}


class Registry:
    """Thread-safe: every method takes the one lock, and none blocks while holding it."""

    def __init__(
        self,
        settings: Settings,
        logger: logging.Logger,
        monotonic: Callable[[], float] | None = None,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self._settings = settings
        self._logger = logger
        self._monotonic = monotonic or time.monotonic
        self._wall = wall or time.time
        self._lock = threading.Lock()
        self._services: dict[str, dict[str, _Entry]] = {name: {} for name in settings.types}
        self._alerts: dict[str, float] = {}
        # The random upper half keeps a client that talks to two consciences from taking the generation of one
        # for the generation of the other.
        self.generation = random.getrandbits(30) << 32
        self.pushes = 0
        self.expirations = 0

    @property
    def types(self) -> list[str]:
        """Names of the known types, sorted."""
        return sorted(self._services)

    def push(self, services: Iterable[ServiceDef]) -> bool:
        """Register, lock or unlock services according to their score.

        :returns: whether a lock changed or a service appeared (what must be saved soon).
        :raises StatusError: 453 unknown type, 418 other namespace, 400 too many tags; then nothing was
            applied.
        """
        batch = list(services)
        with self._lock:
            new = 0
            for service in batch:
                known = self._check(service)
                new += known is None
            if new and sum(map(len, self._services.values())) + new > SERVICES_MAX:
                raise StatusError(EXCESSIVE_LOAD, f"more than {SERVICES_MAX} services")
            self.generation += 1
            self.pushes += len(batch)
            important = False
            for service in batch:
                important |= self._apply(service)
            return important

    def deregister(self, services: Iterable[ServiceDef]) -> int:
        """Forget services; returns how many were known."""
        batch = list(services)
        with self._lock:
            for service in batch:
                self._check(service)
            removed = 0
            for service in batch:
                removed += self._services[service.type].pop(service.addr, None) is not None
            self.generation += 1
            return removed

    def flush(self, kind: str) -> int:
        """Forget all services of a type; returns how many."""
        with self._lock:
            known = self._of_type(kind)
            count = len(known)
            known.clear()
            self.generation += 1
            return count

    def expire(self) -> int:
        """Zero the unlocked services that did not register for too long; returns how many."""
        now = self._monotonic()
        count = 0
        with self._lock:
            for known in self._services.values():
                for entry in known.values():
                    if entry.locked or entry.score <= 0:
                        continue
                    age = now - entry.registered_s
                    if age > entry.type.timeout_s:
                        self._alert(entry, f"no registration for {age:.0f} s")
                        entry.score = 0
                        entry.tags[TAG_UP] = False
                        count += 1
            if count:
                self.generation += 1
                self.expirations += count
        return count

    def services_of(self, kind: str, full: bool) -> list[Service]:
        """Services of a type, those of score 0 included; without ``full``, without statistics."""
        with self._lock:
            return [_public(entry, full) for entry in self._of_type(kind).values()]

    def namespace_info(self) -> NamespaceInfo:
        """Policies, pools and securities."""
        storage = self._settings.storage
        return NamespaceInfo(
            ns=self._settings.namespace,
            storage_policy=storage.policies,
            service_pools=storage.pools,
            data_security=storage.securities,
        )

    def snapshot(self, full: bool) -> Snapshot:
        """Everything, at one generation."""
        with self._lock:
            return Snapshot(
                generation=self.generation,
                namespace=self.namespace_info(),
                types=self.types,
                services={
                    kind: [_public(entry, full) for entry in known.values()]
                    for kind, known in self._services.items()
                },
            )

    def scores(self) -> dict[str, dict[str, int]]:
        """``{type: {address: score}}``."""
        with self._lock:
            return {
                kind: {entry.addr: entry.score for entry in known.values()}
                for kind, known in self._services.items()
            }

    def save(self) -> tuple[int, list[SavedService]]:
        """The generation and what to persist of it."""
        with self._lock:
            return self.generation, [
                SavedService(
                    type=entry.type.name,
                    addr=entry.addr,
                    score=entry.score,
                    locked=entry.locked,
                    lock_changed_us=entry.lock_changed_us,
                    tags_changed_us=entry.tags_changed_us,
                    tags=dict(entry.tags),
                )
                for known in self._services.values()
                for entry in known.values()
            ]

    def restore(self, services: Iterable[SavedService]) -> int:
        """Bring back what :meth:`save` gave; types that are no longer configured are left out.

        The age of a restored service starts now: silence towards a conscience that was down proves nothing.
        """
        now = self._monotonic()
        count = 0
        with self._lock:
            for saved in services:
                kind = self._settings.types.get(saved.type)
                if kind is None:
                    self._logger.warning(
                        "service %s left out: type %s is no longer configured",
                        saved.addr, saved.type,
                    )
                    continue
                entry = _Entry(kind, saved.addr, now)
                entry.score = max(-1, min(SCORE_MAX, saved.score))
                entry.locked = saved.locked
                entry.lock_changed_us = saved.lock_changed_us
                entry.tags_changed_us = saved.tags_changed_us
                entry.tags = dict(saved.tags)
                self._services[saved.type][saved.addr] = entry
                count += 1
            self.generation += 1
        return count

    # --- what follows runs with the lock held -------------------------------------------------

    def _of_type(self, kind: str) -> dict[str, _Entry]:
        known = self._services.get(kind)
        if known is None:
            raise StatusError(TYPE_NOT_MANAGED, f"Service type [{kind}] not managed")
        return known

    def _check(self, service: ServiceDef) -> _Entry | None:
        """Refuse what cannot be applied; returns the known service of this address."""
        known = self._of_type(service.type).get(service.addr)
        if service.ns and service.ns != self._settings.namespace:
            raise StatusError(NAMESPACE_NOT_MANAGED, f"Namespace [{service.ns}] not managed")
        if known is not None and len(known.tags.keys() | service.tags.keys()) > TAGS_MAX:
            raise StatusError(
                BAD_REQUEST, f"Service {service.addr} would carry more than {TAGS_MAX} tags"
            )
        return known

    def _apply(self, service: ServiceDef) -> bool:
        """Apply one push; returns whether it is an administrative change or a new service."""
        known = self._services[service.type]
        entry = known.get(service.addr)
        created = entry is None
        if entry is None:
            if service.score == SCORE_UNLOCK:
                return False  # unlocking does not register
            kind = self._settings.types[service.type]
            entry = known[service.addr] = _Entry(kind, service.addr, self._monotonic())
        was_locked, old_score = entry.locked, entry.score
        if service.tags:
            entry.tags.update(service.tags)
            entry.tags.pop(TAG_FIRST, None)
            entry.registered_s = self._monotonic()
            entry.tags_changed_us = self._now_us()

        if service.score >= 0:
            entry.locked = True
            entry.score = service.score
        elif service.score == SCORE_UNLOCK:
            entry.locked = False
            self._compute(entry)
        elif not entry.locked:
            first = created and service.tags.get(TAG_FIRST) is True
            if first and entry.type.lock_at_first_register:
                entry.locked = True
                entry.score = 0
            else:
                self._compute(entry)

        if not entry.locked:
            # A registration speaks for itself; an unlock carries no news, so what is known counts.
            pushed = service.tags if service.score == SCORE_COMPUTE else entry.tags
            if pushed.get(TAG_UP) is False:
                if old_score > 0:
                    self._alert(entry, "reported down")
                entry.score = 0
        entry.tags[TAG_LOCK] = entry.locked
        if entry.locked != was_locked or (entry.locked and entry.score != old_score):
            entry.lock_changed_us = self._now_us()
            return True
        return created

    def _compute(self, entry: _Entry) -> None:
        try:
            value = entry.type.evaluate(entry.tags)
        except UndefinedValue as exc:
            self._logger.debug("score of %s %s unchanged: %s", entry.type.name, entry.addr, exc)
            return
        if math.isnan(value):
            value = 0
        score = math.floor(max(0, min(SCORE_MAX, value)))
        if entry.score >= 0:
            score = min(score, entry.score + entry.type.variation_bound)
        entry.score = score

    def _alert(self, entry: _Entry, reason: str) -> None:
        """Say that a service fell to 0, not more often than its type allows."""
        now = self._monotonic()
        last = self._alerts.get(entry.type.name)
        if last is not None and now - last < entry.type.alert_frequency_s:
            return
        self._alerts[entry.type.name] = now
        self._logger.warning("%s %s falls to score 0: %s", entry.type.name, entry.addr, reason)

    def _now_us(self) -> int:
        return int(self._wall() * 1_000_000)

    def statistics(self) -> dict[str, Any]:
        """Counts for ``/status`` and ``/metrics``."""
        with self._lock:
            return {
                "generation": self.generation,
                "pushes": self.pushes,
                "expirations": self.expirations,
                "services": {
                    kind: {
                        "count": len(known),
                        "locked": sum(entry.locked for entry in known.values()),
                        "available": sum(entry.score > 0 for entry in known.values()),
                    }
                    for kind, known in self._services.items()
                },
            }


def _public(entry: _Entry, full: bool) -> Service:
    tags = entry.tags
    if full:
        tags = dict(tags)
    else:
        tags = {name: value for name, value in tags.items() if name.startswith("tag.")}
    return Service(type=entry.type.name, addr=entry.addr, score=entry.score, tags=tags)
