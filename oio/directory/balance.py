# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Balance of bases between services, moving at most one copy of each base.

Services of which a base may not have two copies are in the same *zone*. A service that has too many bases gives
one to a service that has too few: directly, or through others (A gives a base to B, and B another one to C); the
shortest way is taken. A base that was moved may be moved again. Another of its copies may only go where the moved
one came from, which is to move that one instead of the former. So the search finds what a greedy one misses.

Bases are sorted by which other zones they are in (their *pattern*): a service that looks for a base that may go to
some zone looks at patterns, not at thousands of bases.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

#: A service gives that part of its excess in one turn.
PART = 4

_Pattern = frozenset[int]


class Quota(NamedTuple):
    """Bases that a service should have: ``low`` to ``high``, around ``ideal``."""

    low: int
    ideal: float
    high: int


class _Step(NamedTuple):
    """A service gives a base to another one."""

    base: str
    source: str
    target: str


class Balance:
    """Bases, who holds them, and who should hold how many.

    :param holders: services of each base. Changed in place.
    :param zones: zone of each service.
    :param quotas: quota of each service that takes part; others keep what they have.
    """

    def __init__(
        self, holders: dict[str, list[str]], zones: Mapping[str, int], quotas: Mapping[str, Quota]
    ) -> None:
        self.holders = holders
        self.zones = zones
        self.quotas = quotas
        #: Where the moved copy of a base was, and where it is.
        self.moved: dict[str, tuple[str, str]] = {}
        self.load = dict.fromkeys([*zones, *quotas], 0)
        # Bases that a service may give to any zone, by pattern. Dictionaries are sets that keep their order.
        self._movable: dict[str, dict[_Pattern, dict[str, None]]] = {name: {} for name in self.load}
        # Bases that a service may give back to where their moved copy came from, by that service.
        self._exchangeable: dict[str, dict[str, dict[str, None]]] = {name: {} for name in self.load}
        self._members: dict[int, list[str]] = {}
        for name in sorted(quotas):
            self._members.setdefault(zones[name], []).append(name)
        for base in sorted(holders):
            for name in holders[base]:
                self.load[name] += 1
            for bases in self._places(base):
                bases[base] = None

    # --- what may move ----------------------------------------------------------------------------------

    def _pattern(self, base: str, name: str) -> _Pattern:
        return frozenset(self.zones[other] for other in self.holders[base] if other != name)

    def _places(self, base: str) -> Iterator[dict[str, None]]:
        """Where a base stands in the indexes."""
        home, place = self.moved.get(base, ("", ""))
        for name in self.holders[base]:
            pattern = self._pattern(base, name)
            if not home or name == place:
                yield self._movable[name].setdefault(pattern, {})
            elif self.zones[home] not in pattern:
                yield self._exchangeable[name].setdefault(home, {})

    def _move(self, step: _Step) -> None:
        base, source, target = step
        for bases in self._places(base):
            del bases[base]
        holders = self.holders[base]
        home, place = self.moved.pop(base, (source, source))
        holders[holders.index(source)] = target
        if source == place:
            place = target
        else:
            home = source
        if home != place:
            self.moved[base] = (home, place)
        for bases in self._places(base):
            bases[base] = None
        self.load[source] -= 1
        self.load[target] += 1

    # --- search -----------------------------------------------------------------------------------------

    def _over_ideal(self, name: str) -> float:
        return self.load[name] - self.quotas[name].ideal

    def _gifts(self, source: str, wanted: set[int], used: set[str]) -> Iterator[tuple[int, str]]:
        """For each wanted zone that the source can give a base to: the zone, and the base."""
        left = set(wanted)
        for pattern, bases in self._movable[source].items():
            zones = left - pattern
            if not zones:
                continue
            base = next((one for one in bases if one not in used), None)
            if base is None:
                continue
            for zone in sorted(zones):
                yield zone, base
            left -= zones
            if not left:
                return

    def _exchanges(self, source: str, used: set[str]) -> Iterator[tuple[str, str]]:
        """Services that the source can give a base back to, and the base."""
        for name, bases in self._exchangeable[source].items():
            base = next((one for one in bases if one not in used), None)
            if base is not None:
                yield name, base

    def _find_way(self, source: str, wants: Callable[[str], bool]) -> list[_Step]:
        """The shortest way to give a base of the source to a service that wants one; empty when there is none."""
        reached: dict[str, _Step] = {}
        zones_left = {zone: set(names) for zone, names in self._members.items()}
        if self.zones[source] in zones_left:
            zones_left[self.zones[source]].discard(source)
        queue = deque([source])
        while queue:
            here = queue.popleft()
            used = {step.base for step in _way(reached, here)}
            wanted = {zone for zone, names in zones_left.items() if names}
            new = []
            for zone, base in self._gifts(here, wanted, used):
                for name in sorted(zones_left[zone] - {*self.holders[base]}):
                    zones_left[zone].discard(name)
                    reached[name] = _Step(base, here, name)
                    new.append(name)
            for name, base in self._exchanges(here, used):
                if name in zones_left.get(self.zones[name], ()):
                    zones_left[self.zones[name]].discard(name)
                    reached[name] = _Step(base, here, name)
                    new.append(name)
            welcome = [name for name in new if wants(name)]
            if welcome:
                return _way(reached, min(welcome, key=lambda name: (self._over_ideal(name), name)))
            queue.extend(sorted(new, key=lambda name: (self._over_ideal(name), name)))
        return []

    def _give(self, source: str, wants: Callable[[str], bool], count: int) -> bool:
        """Move as many bases away from a service; False when it is impossible."""
        for _ in range(count):
            way = self._find_way(source, wants)
            if not way:
                return False
            # From the end: nobody gets more than it gives on the way.
            for step in reversed(way):
                self._move(step)
        return True

    # --- the three stages ---------------------------------------------------------------------------------

    def separate(self) -> None:
        """Move a copy of each base that has two in a zone."""
        for base in sorted(self.holders):
            holders = self.holders[base]
            if base in self.moved or len({self.zones[name] for name in holders}) == len(holders):
                continue
            crowded = [
                name for name in holders if self.zones[name] in self._pattern(base, name)
            ]
            ranked = sorted(crowded, key=lambda name: (-self._excess(name), name))
            for source in ranked:
                target = self._best_target(base, source)
                if target is not None:
                    self._move(_Step(base, source, target))
                    break

    def _excess(self, name: str) -> float:
        # Of those that take no part, a copy is moved before others.
        return self._over_ideal(name) if name in self.quotas else float("inf")

    def _best_target(self, base: str, source: str) -> str | None:
        taken = self._pattern(base, source)
        free = [
            name
            for zone, names in self._members.items()
            if zone not in taken
            for name in names
            if name != source
        ]
        return min(free, key=lambda name: (self._over_ideal(name), name), default=None)

    def relieve(self, loops: int) -> int:
        """Take bases from the services that have more than their quota; the number of loops that are left."""
        quotas, load = self.quotas, self.load
        return self._each(
            loops, lambda name: load[name] - quotas[name].high, lambda name: load[name] < quotas[name].high
        )

    def fill(self, loops: int) -> int:
        """Give bases to the services that have less than their quota; the number of loops that are left."""
        quotas, load = self.quotas, self.load
        return self._each(
            loops, lambda name: load[name] - quotas[name].low, lambda name: load[name] < quotas[name].low
        )

    def _each(self, loops: int, excess: Callable[[str], int], wants: Callable[[str], bool]) -> int:
        """By turns, take a part of its excess from the service that has most.

        Taken at once, it could use up the moves of bases that others can give away too.
        """
        givers = {*self.quotas}
        while loops > 0 and any(wants(name) for name in self.quotas):
            source = max(givers, key=lambda name: (excess(name), name), default="")
            if not source or excess(source) <= 0:
                break
            if not self._give(source, wants, -(-excess(source) // PART)):
                givers.discard(source)
            loops -= 1
        return loops


def _way(reached: Mapping[str, _Step], name: str) -> list[_Step]:
    """The steps from the source to a service that was reached."""
    steps = []
    while name in reached:
        steps.append(reached[name])
        name = steps[-1].source
    return steps[::-1]


def zones_of(names: Iterable[str], near: Callable[[str, str], bool]) -> dict[str, int]:
    """Number the groups of services that are near each other, directly or through others."""
    zones: dict[str, int] = {}
    members: dict[int, list[str]] = {}
    for number, name in enumerate(sorted(names)):
        joined = {zones[other] for other in zones if near(name, other)}
        zones[name] = number
        members[number] = [name]
        for zone in joined:
            for other in members.pop(zone):
                zones[other] = number
                members[number].append(other)
    return zones


def share_evenly(copies: int, zones: Mapping[str, int], names: Sequence[str]) -> dict[str, Quota]:
    """Quotas of services when all zones hold as many copies, and all services of a zone too."""
    sizes: dict[int, int] = {}
    for name in names:
        sizes[zones[name]] = sizes.get(zones[name], 0) + 1
    quotas = {}
    for name in names:
        parts = len(sizes) * sizes[zones[name]]
        quotas[name] = Quota(copies // parts, copies / parts, -(-copies // parts))
    return quotas
