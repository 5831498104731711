# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The draw itself (contract: "Selection algorithm (what must hold)").

A :class:`CompiledPool` is a pool definition joined with the slots of one world. What depends only on these two
is computed when it is made, so that a poll is: draw a weighted item of the slot, accept or refuse it, note where
it is.

An item is accepted at distance *d* when nothing chosen or known lies in its area at that distance, its location is
not avoided, and no wider area gets more than its share: ``1 + (targets - 1) // (items // items of the area)``. The
share of an area that cannot be exceeded is not checked at all.

Guarantees: two choices never share a service nor a location. A target is given a fallback slot before its distance
is lowered. When one target cannot be satisfied the whole poll fails: the draws of the first targets may have been
unlucky, so it is tried again a few times, the scarcest targets first, before the failure is told.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from math import gcd
from random import random, randrange
from typing import TYPE_CHECKING, NamedTuple

from oio.common import status
from oio.common.status import StatusError
from oio.proxy.lb.location import DISTANCE_MAX, DISTANCE_MIN, areas_of, distance, distance_of_difference
from oio.proxy.lb.pool import JOKER_SLOT, PoolDefinition

if TYPE_CHECKING:
    from oio.proxy.lb.world import Item, Slot

#: Whole polls tried before "not satisfiable". An unlucky beginning can make the end impossible when the slots of
#: a pool overlap; with the scarcest targets first a few tries find what exists. Costs time only on failures.
TRIES_MAX = 4

_ALL_SHARES = 1 << 30


class Choice(NamedTuple):
    """A service given to one target, and how good that is."""

    item: Item
    expected_slot: str
    final_slot: str
    final_dist: int


class Selection(NamedTuple):
    """The answer to a poll: one choice per target that was not known, in the order of the targets."""

    choices: list[Choice]
    expected_dist: int
    warn_dist: int
    flawed: bool


class NotEnoughServices(StatusError):
    """Raised when a target of a pool cannot be satisfied.

    :ivar found: number of targets that were.
    :ivar reason: the message without the name of the pool.
    """

    def __init__(self, pool: str, found: int, reason: str) -> None:
        super().__init__(
            status.POLICY_NOT_SATISFIABLE,
            f"did not find enough services matching the criteria for pool [{pool}]: {reason}",
        )
        self.found = found
        self.reason = reason


class _Target(NamedTuple):
    """One target joined with the world: what to try, in order."""

    name: str
    slots: tuple[_PoolSlot, ...]
    distances: tuple[int, ...]
    scarcity: int


class _PoolSlot:
    """A slot as one pool sees it: its items, and the shares of the areas for that many targets."""

    __slots__ = ("areas", "cumulated", "items", "limits", "name", "near", "slot", "steps", "total")

    def __init__(self, slot: Slot, targets: int, spread: bool = True) -> None:
        self.slot = slot
        self.name = slot.name
        self.items = slot.items
        self.cumulated = slot.cumulated
        self.total = slot.total
        self.areas = slot.areas
        self.near = slot.near
        count = len(slot.items)
        self.steps = [step for step in range(1, min(count, 64) + 1) if gcd(step, count) == 1] or [1]
        #: For each distance, the (level, shares by item) that remain to be checked: at distance d the areas of
        #: the levels below d are checked by the distance itself.
        shares: list[list[int] | None] = [None]
        for level in (1, 2, 3):
            population = slot.areas[level]
            limit = {
                area: 1 + (targets - 1) // (count // members) for area, members in population.items()
            }
            binding = spread and any(share < targets for share in limit.values())
            shares.append([limit[item.areas[level]] for item in slot.items] if binding else None)
        limits: list[tuple[tuple[int, list[int]], ...]] = [()]
        for dist in range(1, DISTANCE_MAX + 1):
            pairs = [(level, shares[level]) for level in range(max(dist, 1), 4)]
            limits.append(tuple((level, table) for level, table in pairs if table is not None))
        self.limits = limits


class CompiledPool:
    """A pool ready to be polled in one world. Immutable: threads share it."""

    def __init__(
        self,
        definition: PoolDefinition,
        slots: dict[str, Slot],
        widest: int,
        attempts: int,
        bypass: bool,
    ) -> None:
        self.definition = definition
        self.name = definition.name
        self.warn_dist = definition.warn_dist
        self.nearby = definition.nearby_mode
        self.attempts = attempts
        low = definition.min_dist
        high = max(min(definition.max_dist, widest), low)
        self.start = low if self.nearby else high
        count = len(definition.targets)
        # What is found beside a known service of any type is one service, not a crowd to spread.
        self._beside = any(JOKER_SLOT in names for names in definition.targets)
        compiled: dict[str, _PoolSlot] = {}
        crowd: dict[str, int] = {}
        for names in definition.targets:
            crowd[names[0]] = crowd.get(names[0], 0) + 1
            for name in names:
                slot = slots.get(name)
                if slot is not None and slot.items and name not in compiled:
                    compiled[name] = _PoolSlot(slot, count, not self._beside)
        known_targets: dict[tuple[str, ...], _Target] = {}
        self.targets: list[_Target] = []
        for names in definition.targets:
            target = known_targets.get(names)
            if target is None:
                mine = tuple(compiled[name] for name in names if name in compiled)
                if self.nearby:
                    distances = tuple(range(low, max(definition.max_dist, low) + 1))
                else:
                    first = high
                    main = compiled.get(names[0])
                    crowded = main is not None and crowd[names[0]] > len(main.areas[first - 1])
                    if bypass and first > low and crowded:
                        first -= 1
                    distances = tuple(range(first, low - 1, -1))
                scarcity = sum(len(slot.items) for slot in mine)
                target = known_targets[names] = _Target(names[0], mine, distances, scarcity)
            self.targets.append(target)
        self._overlapping = len(known_targets) > 1

    def poll(
        self,
        avoid: Collection[int] = (),
        known: Sequence[int] = (),
        near_first: int = 0,
        known_elsewhere: int = 0,
    ) -> Selection:
        """Choose one service per target that the ``known`` locations do not satisfy.

        :param avoid: locations that must not be chosen.
        :param known: locations already in use by the same metachunk; they count for distances and shares.
        :param known_elsewhere: number of known services of which nobody knows the location any more; each
            satisfies some target.
        :param near_first: 1 to have the first service near the proxy, 2 to have as many as possible.
        :raises StatusError: 400 when everything is known already, 481 when a target cannot be satisfied.
        """
        targets: list[_Target] = self.targets
        if known or known_elsewhere:
            count = len(known) + known_elsewhere
            if count >= len(targets):
                raise StatusError(
                    status.BAD_REQUEST,
                    f"too many locations already known ({count}), maximum {len(targets) - 1} "
                    f"for pool [{self.name}]",
                )
            targets = self._left_to_find(known, known_elsewhere)
        selection = self._try(targets, range(len(targets)), avoid, known, near_first)
        if isinstance(selection, Selection):
            return selection
        if self._overlapping or self.start > self.definition.min_dist:
            order = sorted(range(len(targets)), key=lambda index: targets[index].scarcity)
            for _ in range(TRIES_MAX - 1):
                again = self._try(targets, order, avoid, known, near_first)
                if isinstance(again, Selection):
                    return again
        if self._beside and known and self.definition.min_dist == DISTANCE_MIN:
            # Services of different types may carry one location: the same place, but not the same volume.
            again = self._try(targets, range(len(targets)), avoid, (), near_first)
            if isinstance(again, Selection):
                return again
        name, done = selection
        raise NotEnoughServices(
            self.name,
            done,
            f"no service polled from [{name}], {done}/{len(targets)} services polled, "
            f"{len(known)} known services, {len(avoid)} services in avoids",
        )

    def _try(
        self,
        targets: list[_Target],
        order: Iterable[int],
        avoid: Collection[int],
        known: Sequence[int],
        near_first: int,
    ) -> Selection | tuple[str, int]:
        """One poll: the selection, or the slot that failed and how many targets were satisfied before."""
        used: tuple[dict[int, int], ...] = ({}, {}, {}, {})
        for location in known:
            for taken, area in zip(used, areas_of(location), strict=True):
                taken[area] = taken.get(area, 0) + 1
        volumes, hosts, racks, rooms = used
        picked: list[tuple[Item, _PoolSlot] | None] = [None] * len(targets)
        for done, index in enumerate(order):
            target = targets[index]
            if near_first and (near_first > 1 or done == 0):
                found = self._pick_near(target, used, avoid) or self._pick(target, used, avoid)
            else:
                found = self._pick(target, used, avoid)
            if found is None:
                return target.name, done
            picked[index] = found
            volume, host, rack, room = found[0].areas
            volumes[volume] = 1
            hosts[host] = hosts.get(host, 0) + 1
            racks[rack] = racks.get(rack, 0) + 1
            rooms[room] = rooms.get(room, 0) + 1
        return self._conclude(targets, picked, known)

    def _pick(
        self, target: _Target, used: tuple[dict[int, int], ...], avoid: Collection[int]
    ) -> tuple[Item, _PoolSlot] | None:
        """Draw an item for a target: every distance in turn, every slot at each distance."""
        if self.nearby:
            return self._pick_nearby(target, used, avoid)
        attempts = self.attempts
        for dist in target.distances:
            level = dist - 1
            taken = used[level]
            for slot in target.slots:
                areas = slot.areas[level]
                if len(taken) >= len(areas) and areas.keys() <= taken.keys():
                    continue
                items, cumulated, total, limits = slot.items, slot.cumulated, slot.total, slot.limits[dist]
                for _ in range(attempts):
                    index = bisect(cumulated, random() * total)
                    item = items[index]
                    mine = item.areas
                    if mine[level] in taken or mine[0] in avoid:
                        continue
                    for at, table in limits:
                        if used[at].get(mine[at], 0) >= table[index]:
                            break
                    else:
                        return item, slot
                index = self._walk(slot, used, avoid, level, limits)
                if index >= 0:
                    return items[index], slot
        return None

    @staticmethod
    def _walk(
        slot: _PoolSlot,
        used: tuple[dict[int, int], ...],
        avoid: Collection[int],
        level: int,
        limits: tuple[tuple[int, list[int]], ...],
    ) -> int:
        """Look at every item once, from anywhere, by a step prime with their number; -1 when none fits."""
        items, taken = slot.items, used[level]
        count = len(items)
        index, step = randrange(count), slot.steps[randrange(len(slot.steps))]
        for _ in range(count):
            index = (index + step) % count
            mine = items[index].areas
            if mine[level] in taken or mine[0] in avoid:
                continue
            for at, table in limits:
                if used[at].get(mine[at], 0) >= table[index]:
                    break
            else:
                return index
        return -1

    def _pick_nearby(
        self, target: _Target, used: tuple[dict[int, int], ...], avoid: Collection[int]
    ) -> tuple[Item, _PoolSlot] | None:
        """As :meth:`_pick`, for services close to each other: the distance grows, shares do not apply."""
        others = list(used[0])
        for dist in target.distances:
            for slot in target.slots:
                fitting = [
                    item
                    for item in slot.items
                    if item.location not in used[0]
                    and item.location not in avoid
                    and all(distance(item.location, other) <= dist for other in others)
                ]
                if fitting:
                    return _weighted(fitting), slot
        return None

    def _pick_near(
        self, target: _Target, used: tuple[dict[int, int], ...], avoid: Collection[int]
    ) -> tuple[Item, _PoolSlot] | None:
        """As :meth:`_pick`, the services closest to the proxy first within each slot."""
        for dist in target.distances:
            level = dist - 1
            for slot in target.slots:
                for group in slot.near:
                    fitting = []
                    for index in group:
                        mine = slot.items[index].areas
                        if (mine[0] if self.nearby else mine[level]) in used[0 if self.nearby else level]:
                            continue
                        if mine[0] in avoid:
                            continue
                        if self.nearby:
                            if any(distance(mine[0], other) > dist for other in used[0]):
                                continue
                        elif any(
                            used[at].get(mine[at], 0) >= table[index] for at, table in slot.limits[dist]
                        ):
                            continue
                        fitting.append(slot.items[index])
                    if fitting:
                        return _weighted(fitting), slot
        return None

    def _conclude(
        self,
        targets: list[_Target],
        picked: Sequence[tuple[Item, _PoolSlot] | None],
        known: Sequence[int],
    ) -> Selection:
        """Measure the distance of each choice to all the others, and tell whether something is not as wished."""
        warn, nearby = self.warn_dist, self.nearby
        locations = sorted([found[0].location for found in picked if found is not None] + list(known))
        flawed = False
        choices = []
        if len(locations) < 2:
            reached = dict.fromkeys(locations, self.start)
        elif nearby:
            low, high = locations[0], locations[-1]
            reached = {at: max(distance(at, low), distance(at, high)) for at in locations}
        else:
            # The nearest location by exclusive or is a neighbour in the sorted order.
            reached = {}
            gaps = [one ^ other for one, other in pairwise(locations)]
            before = gaps[0]
            for at, gap in zip(locations, gaps, strict=False):
                reached[at] = min(distance_of_difference(before if before < gap else gap), DISTANCE_MAX)
                before = gap
            reached[locations[-1]] = min(distance_of_difference(before), DISTANCE_MAX)
        for target, found in zip(targets, picked, strict=True):
            assert found is not None
            item, slot = found
            dist = reached[item.location]
            if slot.name != target.name or (dist >= warn > 0 if nearby else dist <= warn):
                flawed = True
            choices.append(Choice(item, target.name, slot.name, dist))
        return Selection(choices, self.start, warn, flawed)

    def _left_to_find(self, known: Sequence[int], homeless: int) -> list[_Target]:
        """Targets that the known locations leave: each consumes the first target it fits, by main slot, then
        by fallback, then (a service that left its slots) any target. The joker is there for what is known."""
        left = list(self.targets)
        for _ in range(len(known) + homeless):
            joker = next((index for index, one in enumerate(left) if one.name == JOKER_SLOT), None)
            if joker is None:
                break
            del left[joker]
            if known:
                known = known[1:]
            else:
                homeless -= 1
        for location in known:
            fit = _first(left, location, main=True)
            if fit < 0:
                fit = _first(left, location, main=False)
            if fit < 0:
                homeless += 1
            else:
                del left[fit]
        return left[: len(left) - homeless]


def _first(targets: list[_Target], location: int, main: bool) -> int:
    for index, target in enumerate(targets):
        for slot in target.slots:
            if (slot.name == target.name) is main and location in slot.areas[0]:
                return index
    return -1


def _weighted(items: list[Item]) -> Item:
    """One item, drawn by its score."""
    left = random() * sum(item.score for item in items)
    for item in items:
        left -= item.score
        if left < 0:
            return item
    return items[-1]
