# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What a container must hold after each operation on its objects, told in the simplest way: dictionaries.

Every method does to the model what the operation does to a container, or raises :class:`Refused`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

HASH, OTHER_HASH = "AB" * 16, "CD" * 16
KEEP_DELETED_S = 100


class Refused(Exception):
    """The operation fails with this internal code, and changes nothing."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Stored:
    """A version: an object, or a marker when it has no content id."""

    content_id: str = ""
    metachunks: list[tuple[int, int]] = field(default_factory=list)  #: (size, copies)
    size: int = 0
    hash: str = HASH
    wanted: int = 3
    drained: bool = False
    properties: dict[str, str] = field(default_factory=dict)
    old: bool = False  #: older than the retention of markers?

    @property
    def is_marker(self) -> bool:
        return not self.content_id

    @property
    def missing(self) -> int:
        return 0 if self.drained else sum(max(0, self.wanted - n) for _, n in self.metachunks)

    @property
    def chunks(self) -> int:
        return 0 if self.drained else sum(n for _, n in self.metachunks)


@dataclass
class Request:
    """What a put carries."""

    name: str
    version: int
    content_id: str
    metachunks: list[tuple[int, int]]
    properties: dict[str, str]
    tag: str = ""  #: ``=`` or ``!`` then a hash or ``*``: the condition
    hash: str = HASH
    simulated: bool = False

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.metachunks)


@dataclass
class Model:
    """One container."""

    mode: int = 1
    exceeding: bool = False
    quota: int = 0
    names: dict[str, dict[int, Stored]] = field(default_factory=dict)

    # --- what can be seen ---------------------------------------------------------------------------------

    def objects(self) -> list[Stored]:
        return [o for versions in self.names.values() for o in versions.values() if not o.is_marker]

    def counters(self) -> tuple[int, int]:
        objects = self.objects()
        return sum(o.size for o in objects), len(objects)

    def damage(self) -> tuple[int, int]:
        lacking = [o.missing for o in self.objects() if o.missing]
        return len(lacking), sum(lacking)

    def versions(self, name: str) -> dict[int, Stored]:
        return self.names.get(name, {})

    def target(self, name: str, version: int = 0) -> tuple[int, Stored | None]:
        versions = self.versions(name)
        number = version or max(versions, default=0)
        return number, versions.get(number)

    # --- puts ---------------------------------------------------------------------------------------------

    def put(self, request: Request) -> None:
        latest, former = self.target(request.name)
        self._check_tag(request.tag, former)
        mode = -1 if request.simulated else self.mode
        single = mode in (0, 1)
        versions = self.versions(request.name)
        if request.version in versions and (request.version == latest or not single):
            raise Refused(421)
        if request.version < latest and single:
            raise Refused(424)
        self._check_content_id(request.content_id)
        if former is not None and single:
            del versions[latest]
        self.names.setdefault(request.name, versions)[request.version] = Stored(
            request.content_id, list(request.metachunks), request.size, request.hash,
            properties=dict(request.properties),
        )
        if mode > 1 and self.exceeding:
            self._keep(request.name, mode)

    def append(self, request: Request) -> None:
        _, former = self.target(request.name)
        if former is None or former.is_marker:
            self.put(request)
            return
        self._check_tag(request.tag, former)
        self._require_chunks(former)
        former.metachunks += request.metachunks
        former.size += request.size
        former.hash = ""
        former.properties.update(request.properties)

    def force(self, request: Request, position: int, size: int, copies: int) -> None:
        """More copies of one metachunk (a request that makes a whole object when there is none)."""
        _, former = self.target(request.name, request.version)
        if former is None:
            _, former = self.target(request.name)
        if former is None or former.is_marker:
            self.put(request)
            return
        self._check_tag(request.tag, former)
        self._require_chunks(former)
        if position >= len(former.metachunks) or former.metachunks[position][0] != size:
            raise Refused(425)
        former.metachunks[position] = (size, former.metachunks[position][1] + copies)
        former.properties.update(request.properties)

    def change_policy(self, request: Request) -> None:
        former = self.versions(request.name).get(request.version)
        self._check_tag(request.tag, former)
        if former is None:
            raise Refused(420)
        if former.is_marker:
            raise Refused(400)
        self._require_chunks(former)
        if request.size != former.size or (former.hash and former.hash != request.hash):
            raise Refused(400)
        self._check_content_id(request.content_id)
        former.content_id = request.content_id
        former.metachunks = list(request.metachunks)
        former.wanted = 1

    # --- changes in place -----------------------------------------------------------------------------------

    def update(self, name: str, version: int, changes: dict[int, tuple[int, int]]) -> None:
        latest = self.target(name)[1]
        if latest is not None and version not in self.versions(name) and not latest.is_marker:
            self._require_chunks(latest)  # told whatever version is announced
        stored = self._require_object(name, version)
        self._require_chunks(stored)
        count = len(stored.metachunks)
        reach = set(range(count)) | changes.keys()
        if any(number and number >= count and number - 1 not in reach for number in changes):
            raise Refused(425)
        metachunks = dict(enumerate(stored.metachunks)) | changes
        stored.metachunks = [metachunks[number] for number in sorted(metachunks)]
        stored.size = sum(size for size, _ in stored.metachunks)
        stored.hash = ""

    def truncate(self, name: str, version: int, size: int) -> None:
        stored = self._require_object(name, version)
        self._require_chunks(stored)
        ends = [0, *itertools.accumulate(s for s, _ in stored.metachunks)]
        if size not in ends:
            raise Refused(400)
        starts = zip(stored.metachunks, ends, strict=False)
        kept = [m for i, (m, start) in enumerate(starts) if start < size or i == 0]
        stored.metachunks = kept if size else [(0, kept[0][1])]
        stored.size, stored.hash = size, ""

    def drain(self, name: str, version: int) -> None:
        self._require_object(name, version).drained = True

    def set_properties(self, name: str, version: int, changes: dict[str, str], clear: bool) -> None:
        stored = self._require_object(name, version)
        if clear:
            stored.properties.clear()
        stored.properties.update(changes)
        stored.properties = {k: v for k, v in stored.properties.items() if v}

    def del_properties(self, name: str, version: int, keys: list[str]) -> None:
        stored = self._require_object(name, version)
        for key in keys or list(stored.properties):
            stored.properties.pop(key, None)

    # --- removals -------------------------------------------------------------------------------------------

    def delete(
        self, name: str, version: int, marker: bool, tag: str = "", forced: int | None = None
    ) -> None:
        if forced is not None:
            self.mode = forced
        if self.mode == 0 and version:
            raise Refused(400)
        number, stored = self.target(name, version)
        self._check_tag(tag, stored)
        if stored is None:
            raise Refused(420)
        single = self.mode in (0, 1)
        if marker and (single or stored.is_marker):
            raise Refused(400)
        if not marker and (single or version or stored.is_marker):
            self._remove(name, [number])
        elif number + 1 in self.versions(name):
            raise Refused(421)
        else:
            self.versions(name)[number + 1] = Stored()

    def purge(self, names: Iterable[str], max_versions: int | None) -> None:
        kept = self.mode if max_versions is None else max_versions
        for name in names:
            _, stored = self.target(name)
            if stored is not None and stored.is_marker and stored.old:
                del self.names[name]
            elif kept >= 0:
                self._keep(name, max(1, kept))

    def grow_old(self) -> None:
        for versions in self.names.values():
            for stored in versions.values():
                stored.old = True

    # --- helpers --------------------------------------------------------------------------------------------

    def _keep(self, name: str, count: int) -> None:
        numbers = sorted((n for n, o in self.versions(name).items() if not o.is_marker), reverse=True)
        self._remove(name, numbers[count:])

    def _remove(self, name: str, numbers: Iterable[int]) -> None:
        for number in numbers:
            del self.names[name][number]
        if not self.names.get(name, True):
            del self.names[name]

    def _check_content_id(self, content_id: str) -> None:
        if content_id in [stored.content_id for stored in self.objects()]:
            raise Refused(421)

    @staticmethod
    def _check_tag(condition: str, stored: Stored | None) -> None:
        if not condition:
            return
        kind, tag = condition[0], condition[1:]
        there = stored is not None and not stored.is_marker
        matches = there and stored is not None and (tag == "*" or (tag != "" and tag == stored.hash))
        if matches != (kind == "="):
            raise Refused(412)

    def _require_object(self, name: str, version: int) -> Stored:
        _, stored = self.target(name, version)
        if stored is None or stored.is_marker:
            raise Refused(420)
        return stored

    @staticmethod
    def _require_chunks(stored: Stored) -> None:
        if stored.drained:
            raise Refused(427)
