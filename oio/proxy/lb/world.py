# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""An immutable picture of the namespace: services, slots, pools, storage policies.

Whoever refreshes builds a new world and replaces the reference; whoever polls takes the reference once and works
on it. Compiled pools are kept with the world they were compiled for, hence vanish with it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from oio.common import status
from oio.common.status import StatusError
from oio.conscience.messages import NamespaceInfo, Service
from oio.proxy.lb.location import (
    DISTANCE_MAX,
    SHIFTS,
    areas_of,
    distance,
    djb2,
    location_from_address,
    location_from_text,
)
from oio.proxy.lb.poll import CompiledPool
from oio.proxy.lb.pool import (
    BUILTIN_POLICIES,
    JOKER_SLOT,
    PolicyDefinition,
    PoolDefinition,
    UpdatePolicy,
    builtin_policy,
    make_pool,
    parse_policy,
    parse_pool,
    parse_update_policy,
    unknown_policy,
)

logger = logging.getLogger(__name__)

#: What a service id may contain: it is written in URLs and JSON texts without further quoting.
_SAFE_ID = re.compile(r"^[A-Za-z0-9._:\[\]\-]{1,63}\Z")

#: Pools compiled for ``lb/choose`` are made on demand from request parameters: no more than that are kept.
_TEMPORARY_POOLS_MAX = 256


class Item:
    """A service that can be chosen."""

    __slots__ = ("addr", "areas", "id", "key", "location", "score", "tls", "type")

    def __init__(self, namespace: str, service: Service) -> None:
        self.type = service.type
        self.id = service.service_id
        self.addr = service.addr
        self.key = f"{namespace}|{service.type}|{self.id}"
        self.score = service.score
        tls = service.tags.get("tag.tls")
        self.tls = tls if isinstance(tls, str) and tls else ""
        self.location = location_of(service)
        self.areas = areas_of(self.location)

    def __repr__(self) -> str:
        return f"<Item {self.key} at {self.location:#x} score {self.score}>"


class Slot:
    """The services of one slot, with what a weighted draw needs."""

    __slots__ = ("areas", "cumulated", "items", "name", "near", "total")

    def __init__(self, name: str, items: Sequence[Item], proxy_location: int | None) -> None:
        self.name = name
        self.items = tuple(items)
        self.cumulated = list(accumulate(item.score for item in self.items))
        self.total = self.cumulated[-1] if self.cumulated else 0
        #: For each level (volume, host, rack, room): area -> number of items there.
        self.areas: tuple[dict[int, int], ...] = ({}, {}, {}, {})
        for item in self.items:
            for population, area in zip(self.areas, item.areas, strict=True):
                population[area] = population.get(area, 0) + 1
        #: Indices of the items grouped by distance to the proxy, nearest first.
        self.near: tuple[tuple[int, ...], ...] = ()
        if proxy_location is not None:
            groups: dict[int, list[int]] = {}
            for index, item in enumerate(self.items):
                groups.setdefault(distance(proxy_location, item.location), []).append(index)
            self.near = tuple(tuple(groups[dist]) for dist in sorted(groups))


class World:
    """Everything that polling and policy resolution need. Immutable, but for the memory of compiled pools."""

    def __init__(
        self,
        namespace: NamespaceInfo,
        types: Iterable[str],
        items: Sequence[Item],
        slots: Mapping[str, Slot],
        pools: Mapping[str, PoolDefinition],
        policies: Mapping[str, PolicyDefinition],
        *,
        eligible: Mapping[str, frozenset[str]],
        attempts: int,
        bypass: bool,
        proxy_location: int | None,
    ) -> None:
        self.namespace = namespace
        self.types = tuple(types)
        self.items = tuple(items)
        self.slots = dict(slots)
        self.pools = dict(pools)
        self.policies = dict(policies)
        #: Keys of the only services that the pool of a type may give, for types where not all may be linked.
        self._eligible = eligible
        self.proxy_location = proxy_location
        self.by_key = {item.key: item for item in items}
        self.by_id: dict[tuple[str, str], Item] = {}
        for item in items:
            # A service that moved stays known at its former address until that one is too old.
            if item.score > 0 or (item.type, item.id) not in self.by_id:
                self.by_id[item.type, item.id] = item
        self.by_address = {(item.type, item.addr): item for item in items}
        self.rawx = {item.id: item for item in items if item.type == "rawx"}
        self.widest = _widest(item.location for item in items if item.score > 0)
        self._attempts, self._bypass = attempts, bypass
        self._compiled: dict[str, CompiledPool] = {}
        self._temporary: dict[PoolDefinition, CompiledPool] = {}

    def has_type(self, service_type: str) -> bool:
        """Is this service type managed by the namespace?"""
        return service_type in self.types

    def find(self, service_type: str, service_id: str) -> Item | None:
        """A service by its id or by its address."""
        return self.by_id.get((service_type, service_id)) or self.by_address.get(
            (service_type, service_id)
        )

    def pool(self, name: str) -> CompiledPool | None:
        """The pool of that name, None when there is none."""
        compiled = self._compiled.get(name)
        if compiled is None:
            definition = self.pools.get(name)
            if definition is None:
                return None
            # Racing threads compile equal pools; the last one stays.
            compiled = self._compiled[name] = self._compile(definition)
        return compiled

    def policy(self, name: str) -> PolicyDefinition:
        """A storage policy. :raises StatusError: 480 when the namespace does not have it."""
        policy = self.policies.get(name)
        if policy is None:
            raise unknown_policy(name)
        return policy

    def policy_pool(self, policy: PolicyDefinition) -> CompiledPool:
        """The pool of a policy. :raises StatusError: 481 when it does not exist."""
        compiled = self._compiled.get(policy.pool) or self.pool(policy.pool)
        if compiled is None:
            raise StatusError(
                status.POLICY_NOT_SATISFIABLE, f"pool [{policy.pool}] not found for policy [{policy.name}]"
            )
        return compiled

    def temporary_pool(self, slot: str, fallback: str, size: int) -> CompiledPool:
        """A pool of ``size`` services of a slot, else of another one."""
        names = (slot,) if slot == fallback else (slot, fallback)
        definition = PoolDefinition("temporary", (names,) * size)
        compiled = self._temporary.get(definition)
        if compiled is None:
            if len(self._temporary) >= _TEMPORARY_POOLS_MAX:
                self._temporary.clear()
            compiled = self._temporary[definition] = self._compile(definition)
        return compiled

    def with_pool(self, definition: PoolDefinition) -> World:
        """The same world with one pool more (or replaced)."""
        return World(
            self.namespace,
            self.types,
            self.items,
            self.slots,
            {**self.pools, definition.name: definition},
            self.policies,
            eligible=self._eligible,
            attempts=self._attempts,
            bypass=self._bypass,
            proxy_location=self.proxy_location,
        )

    def _compile(self, definition: PoolDefinition) -> CompiledPool:
        slots = self.slots
        eligible = self._eligible.get(definition.name)
        if eligible is not None:
            slots = {
                name: Slot(name, [item for item in slot.items if item.key in eligible], self.proxy_location)
                for name, slot in slots.items()
                if any(name in names for names in definition.targets)
            }
        if any(JOKER_SLOT in names for names in definition.targets):
            everything = [item for item in self.items if item.score > 0]
            slots = {**slots, JOKER_SLOT: Slot(JOKER_SLOT, everything, self.proxy_location)}
        return CompiledPool(definition, slots, self.widest, self._attempts, self._bypass)


def build_world(
    namespace: NamespaceInfo,
    services: Mapping[str, Iterable[Service]],
    types: Iterable[str],
    *,
    update_policy: str = "",
    extra_pools: Iterable[PoolDefinition] = (),
    attempts: int = 8,
    bypass: bool = True,
    proxy_location: str = "",
) -> World:
    """Make a world from what the conscience says.

    What cannot be understood (a service with an impossible id, a pool or a policy that cannot be read) is logged
    and left out: the rest of the namespace must go on.

    :param update_policy: replicas, distances and tags of the pools named after service types.
    :param extra_pools: pools created by requests.
    """
    here = location_from_text(proxy_location) if proxy_location else None
    items: list[Item] = []
    members: dict[str, list[Item]] = {}
    for service_type, group in services.items():
        for service in group:
            if not _SAFE_ID.match(service.service_id):
                logger.warning("service %s of type %s left out: bad id", service.addr, service_type)
                continue
            item = Item(namespace.ns, service)
            items.append(item)
            if service.score > 0:
                for name in _slots_of(service):
                    members.setdefault(name, []).append(item)
    slots = {name: Slot(name, group, here) for name, group in members.items()}
    type_names = tuple(types)
    updates = parse_update_policy(update_policy)
    pools = _pools(namespace, type_names, updates)
    eligible = {
        service_type: frozenset(
            f"{namespace.ns}|{service_type}|{one.service_id}"
            for one in services.get(service_type, ())
            if update.takes(one.tags)
        )
        for service_type, update in updates.items()
        if update.tag
    }
    policies = {name: builtin_policy(name) for name in BUILTIN_POLICIES}
    for name, text in namespace.storage_policy.items():
        try:
            policy, pool = parse_policy(name, text, namespace.data_security)
        except ValueError as exc:
            logger.warning("storage policy %s left out: %s", name, exc)
            continue
        policies[name] = policy
        pools.setdefault(pool.name, pool)
    for pool in extra_pools:
        pools[pool.name] = pool
    return World(
        namespace,
        type_names,
        items,
        slots,
        pools,
        policies,
        eligible=eligible,
        attempts=attempts,
        bypass=bypass,
        proxy_location=here,
    )


def location_of(service: Service) -> int:
    """Location told by a service, else made of its address."""
    text = service.tags.get("tag.loc")
    try:
        if isinstance(text, str) and text:
            return location_from_text(text)
        return location_from_address(service.addr)
    except ValueError:
        return djb2(service.addr)


def qualified_slot(service_type: str, name: str) -> str:
    """Full name of a slot: it always begins with the type of its services."""
    return name if name.startswith(service_type) else f"{service_type}-{name}"


def _slots_of(service: Service) -> set[str]:
    names = {service.type}
    declared = service.tags.get("tag.slots")
    if isinstance(declared, str):
        for name in declared.split(","):
            if name.strip():
                names.add(qualified_slot(service.type, name.strip()))
    return names


def _pools(
    namespace: NamespaceInfo, types: Iterable[str], updates: Mapping[str, UpdatePolicy]
) -> dict[str, PoolDefinition]:
    """Pools of the namespace, and one named after each type."""
    pools: dict[str, PoolDefinition] = {}
    for name, text in namespace.service_pools.items():
        try:
            pools[name] = parse_pool(name, text)
        except ValueError as exc:
            logger.warning("pool %s left out: %s", name, exc)
    for service_type in types:
        update = updates.get(service_type, UpdatePolicy())
        pools.setdefault(
            service_type,
            make_pool(service_type, ((service_type,),) * update.replicas, {"min_dist": update.distance}),
        )
    return pools


def _widest(locations: Iterable[int]) -> int:
    """Largest distance between two of the locations, within the distances that pools use."""
    known = set(locations)
    for dist in range(DISTANCE_MAX, 0, -1):
        if len({location >> SHIFTS[dist] for location in known}) > 1:
            return dist
    return 0
