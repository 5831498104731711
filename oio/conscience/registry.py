# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The services of the namespace, their scores and locks: the state of the conscience.

Guarantees:

- a batch is applied whole or, when one of its services is refused, not at all;
- a locked score never changes by registration or age;
- a score rises by at most the bound of its type at each registration, and falls at once;
- every change of anything visible moves :attr:`Registry.generation`, which differs between two runs;
- consciences that tell each other their changes (:meth:`Registry.changes_since`, :meth:`Registry.merge`) end
  with the same services, tags and locks, in whatever order they learn them: see
  :mod:`oio.conscience.replica`.

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
    NamespaceInfo,
    Service,
    ServiceDef,
    Snapshot,
    TagValue,
)
from oio.conscience.replica import (
    TAG_LOCK,
    TAG_UP,
    Changes,
    Removal,
    SavedService,
    last_change_us,
    merge,
)
from oio.conscience.settings import ServiceType, Settings

# Above this, something registers addresses that do not exist.
SERVICES_MAX = 100_000

# A conscience that was away for longer may bring back what was removed meanwhile.
REMOVAL_TTL_S = 7 * 86400.0
REMOVALS_MAX = SERVICES_MAX
_REMOVALS_PERIOD_S = 3600.0

TAG_FIRST = "tag.1"

_Key = tuple[str, str]


class _Entry:
    """One known service. The change times (µs since the epoch) let several consciences agree."""

    __slots__ = ("addr", "created_us", "lock_changed_us", "locked", "registered_s", "score", "tags",
                 "tags_changed_us", "type")

    def __init__(self, kind: ServiceType, addr: str, now_s: float, created_us: int = 0) -> None:
        self.type = kind
        self.addr = addr
        self.score = -1
        self.locked = False
        # 0 until somebody asks for a lock or an unlock: see replica.py.
        self.lock_changed_us = 0
        self.tags_changed_us = 0
        self.created_us = created_us
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
        self._changed = threading.Condition(self._lock)
        self._closed = False
        # Which run of this conscience the sequence numbers belong to.
        self.instance = random.getrandbits(48)
        self.sequence = 0
        # Sequence number of the last change of each service and removal, in the order of these changes.
        self._journal: dict[_Key, int] = {}
        self._removal_journal: dict[_Key, int] = {}
        self._removals: dict[_Key, int] = {}
        self._removals_checked_s = 0.0
        self._last_us = 0
        self.merges = 0
        self._services: dict[str, dict[str, _Entry]] = {name: {} for name in settings.types}
        self._alerts: dict[str, float] = {}
        # The random upper half keeps a client that talks to two consciences from taking the generation of one
        # for the generation of the other.
        self.generation = random.getrandbits(30) << 32
        self.pushes = 0
        self.expirations = 0

    @property
    def namespace(self) -> str:
        """Name of the namespace."""
        return self._settings.namespace

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
            self._changed.notify_all()
            return important

    def deregister(self, services: Iterable[ServiceDef]) -> int:
        """Forget services; returns how many were known."""
        batch = list(services)
        with self._lock:
            for service in batch:
                self._check(service)
            removed = 0
            for service in batch:
                removed += self._remove(service.type, service.addr, self._tick_us())
            self.generation += 1
            self._changed.notify_all()
            return removed

    def flush(self, kind: str) -> int:
        """Forget all services of a type; returns how many."""
        with self._lock:
            self._of_type(kind)
            count = self._remove(kind, "", self._tick_us())
            self.generation += 1
            self._changed.notify_all()
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
            if now - self._removals_checked_s > _REMOVALS_PERIOD_S:
                self._removals_checked_s = now
                self._forget_removals()
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

    def save(self) -> tuple[int, list[SavedService], list[Removal]]:
        """The generation, and what to persist of it."""
        with self._lock:
            return (
                self.generation,
                [_saved(entry) for known in self._services.values() for entry in known.values()],
                self._removals_list(self._removals),
            )

    def restore(self, services: Iterable[SavedService], removals: Iterable[Removal] = ()) -> int:
        """Bring back what :meth:`save` gave; types that are no longer configured are left out.

        The age of a restored service starts now: silence towards a conscience that was down proves nothing.
        """
        now = self._monotonic()
        count = 0
        with self._lock:
            for removal in removals:
                self._removals[removal.type, removal.addr] = removal.removed_us
                self._note_removal((removal.type, removal.addr))
                self._last_us = max(self._last_us, removal.removed_us)
            for saved in services:
                kind = self._settings.types.get(saved.type)
                if kind is None:
                    self._logger.warning(
                        "service %s left out: type %s is no longer configured",
                        saved.addr, saved.type,
                    )
                    continue
                self._adopt(kind, saved, now)
                count += 1
            self.generation += 1
            self._changed.notify_all()
        return count

    # --- other consciences ----------------------------------------------------------------------

    def changes_since(self, sequence: int, wait_s: float = 0.0) -> Changes:
        """What changed since a sequence number of this run (0: everything); waits until something did."""
        with self._lock:
            if wait_s > 0:
                self._changed.wait_for(lambda: self._closed or self.sequence != sequence, wait_s)
            now = self._monotonic()
            services = []
            for key in _newer(self._journal, sequence):
                entry = self._services[key[0]][key[1]]
                services.append(_saved(entry, max(0.0, now - entry.registered_s)))
            return Changes(
                namespace=self._settings.namespace,
                instance=self.instance,
                sequence=self.sequence,
                services=services,
                removals=self._removals_list(_newer(self._removal_journal, sequence)),
            )

    def close(self) -> None:
        """Let those who wait in :meth:`changes_since` go."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def merge(self, changes: Changes) -> bool:
        """Apply what another conscience knows.

        :returns: whether services appeared or went, or locks changed (what must be saved soon).
        """
        now = self._monotonic()
        important = changed = False
        with self._lock:
            for removal in changes.removals:
                changed |= self._merge_removal(removal)
            important = changed
            for theirs in changes.services:
                kind = self._settings.types.get(theirs.type)
                if kind is None or last_change_us(theirs) <= self._removed_us(theirs.type, theirs.addr):
                    continue
                self._last_us = max(self._last_us, last_change_us(theirs))
                entry = self._services[theirs.type].get(theirs.addr)
                if entry is None:
                    if sum(map(len, self._services.values())) >= SERVICES_MAX:
                        self._logger.error("service %s of another conscience left out: too many", theirs.addr)
                        continue
                    self._adopt(kind, theirs, now - theirs.age_s)
                    important = changed = True
                    continue
                before = entry.locked, entry.locked and entry.score
                if self._merge_entry(entry, theirs, now):
                    changed = True
                    important |= before != (entry.locked, entry.locked and entry.score)
            if changed:
                self.merges += 1
                self.generation += 1
                self._changed.notify_all()
        return important

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
            entry = known[service.addr] = _Entry(
                kind, service.addr, self._monotonic(), created_us=self._tick_us()
            )
        was_locked, old_score = entry.locked, entry.score
        if service.tags:
            entry.tags.update(service.tags)
            entry.tags.pop(TAG_FIRST, None)
            entry.registered_s = self._monotonic()
            entry.tags_changed_us = self._tick_us()

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
        if service.score != SCORE_COMPUTE:
            entry.lock_changed_us = self._tick_us()
        self._note_change(entry)
        return created or entry.locked != was_locked or (entry.locked and entry.score != old_score)

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

    def _tick_us(self) -> int:
        """Time of a change made here: later than every time known, even if the clock of the host went back."""
        self._last_us = max(self._last_us + 1, int(self._wall() * 1_000_000))
        return self._last_us

    def _note_change(self, entry: _Entry) -> None:
        """Have the other consciences told."""
        key = entry.type.name, entry.addr
        self.sequence += 1
        self._journal.pop(key, None)
        self._journal[key] = self.sequence

    def _note_removal(self, key: _Key) -> None:
        self.sequence += 1
        self._removal_journal.pop(key, None)
        self._removal_journal[key] = self.sequence

    def _remove(self, kind: str, addr: str, removed_us: int) -> int:
        """Forget a service (all those of the type without ``addr``) that did not change since; how many went?"""
        known = self._services[kind]
        gone = [
            entry
            for entry in ([known[addr]] if addr in known else [] if addr else list(known.values()))
            if last_change_us(entry) <= removed_us
        ]
        for entry in gone:
            del known[entry.addr]
            self._journal.pop((kind, entry.addr), None)
        if not addr:
            for key in [key for key, us in self._removals.items() if key[0] == kind and us <= removed_us]:
                del self._removals[key]
                self._removal_journal.pop(key, None)
        self._removals[kind, addr] = removed_us
        self._note_removal((kind, addr))
        return len(gone)

    def _removed_us(self, kind: str, addr: str) -> int:
        """When a service was last removed, alone or with its type."""
        return max(self._removals.get((kind, addr), 0), self._removals.get((kind, ""), 0))

    def _merge_removal(self, removal: Removal) -> bool:
        if removal.type not in self._services:
            return False
        self._last_us = max(self._last_us, removal.removed_us)
        if removal.removed_us <= self._removed_us(removal.type, removal.addr):
            return False
        self._remove(removal.type, removal.addr, removal.removed_us)
        return True

    def _forget_removals(self) -> None:
        oldest_us = int((self._wall() - REMOVAL_TTL_S) * 1_000_000)
        surplus = len(self._removals) - REMOVALS_MAX
        for key in list(self._removal_journal):
            if surplus > 0 or self._removals[key] < oldest_us:
                del self._removals[key], self._removal_journal[key]
                surplus -= 1

    def _removals_list(self, keys: Iterable[_Key]) -> list[Removal]:
        return [Removal(type=key[0], addr=key[1], removed_us=self._removals[key]) for key in keys]

    def _adopt(self, kind: ServiceType, saved: SavedService, registered_s: float) -> None:
        """Make an entry of a service told by a file or by another conscience."""
        entry = _Entry(kind, saved.addr, registered_s, saved.created_us)
        entry.score = max(-1, min(SCORE_MAX, saved.score))
        entry.locked = saved.locked
        entry.lock_changed_us = saved.lock_changed_us
        entry.tags_changed_us = saved.tags_changed_us
        entry.tags = dict(saved.tags)
        self._services[saved.type][saved.addr] = entry
        self._last_us = max(self._last_us, last_change_us(entry))
        self._note_change(entry)

    def _merge_entry(self, entry: _Entry, theirs: SavedService, now: float) -> bool:
        score_before = entry.score
        changed, newer_tags, compute = merge(entry, theirs)
        if not changed:
            return False
        if newer_tags:
            entry.registered_s = max(entry.registered_s, now - theirs.age_s)
        if compute:
            self._compute(entry)
        entry.score = max(-1, min(SCORE_MAX, entry.score))
        if not entry.locked and entry.tags.get(TAG_UP) is False:
            if score_before > 0:
                self._alert(entry, "reported down")
            entry.score = 0
        self._note_change(entry)
        return True

    def statistics(self) -> dict[str, Any]:
        """Counts for ``/status`` and ``/metrics``."""
        with self._lock:
            return {
                "generation": self.generation,
                "pushes": self.pushes,
                "expirations": self.expirations,
                "merges": self.merges,
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


def _saved(entry: _Entry, age_s: float = 0.0) -> SavedService:
    return SavedService(
        type=entry.type.name,
        addr=entry.addr,
        score=entry.score,
        locked=entry.locked,
        lock_changed_us=entry.lock_changed_us,
        tags_changed_us=entry.tags_changed_us,
        created_us=entry.created_us,
        age_s=age_s,
        tags=dict(entry.tags),
    )


def _newer(journal: dict[_Key, int], sequence: int) -> list[_Key]:
    """Keys of the changes after a sequence number, oldest first. A journal is in the order of its numbers."""
    found = []
    for key in reversed(journal):
        if journal[key] <= sequence:
            break
        found.append(key)
    found.reverse()
    return found
