# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The table of the directory, which tells the meta1 services of each prefix: its client, and plans of changes."""

from __future__ import annotations

import builtins
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from oio.api.base import text_of_json
from oio.common.client import ProxyClient
from oio.common.exceptions import ClientException, ConfigurationException, OioException
from oio.directory.balance import Balance, share_evenly, zones_of
from oio.directory.meta_mapping import MetaMapping, Service
from oio.directory.moves import Change
from oio.directory.prefixes import (
    DIGITS_MAX,
    base_of,
    count_prefixes,
    generate_prefixes,
    generate_short_prefixes,
    siblings,
)
from oio.directory.spread import LEVELS
from oio.directory.spread import bootstrap as _bootstrap
from oio.directory.spread import slice_services as _slice_services  # noqa: F401 — for programs

__all__ = [
    "Meta0Client", "Meta0PrefixMapping", "count_prefixes", "generate_prefixes", "generate_short_prefixes",
]  # fmt: skip

SERVICE_TYPE = "meta1"
DISTANCE_MAX = 4
FORCE_ATTEMPTS = 7
_WARNINGS_MAX = 10
_PREFIX = re.compile(r"^[0-9A-Fa-f]{4}\Z")
# Answers that pass by themselves.
_PASSING = frozenset({503, 504})
_STATUS_MIN = 400


class Meta0Client(ProxyClient):
    """Client of the table of prefixes.

    >>> Meta0Client({"namespace": "OPENIO"}).list()["00FF"]  # doctest: +SKIP
    ['10.0.0.1:6001', '10.0.0.2:6001', '10.0.0.3:6001']
    """

    def __init__(self, conf: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(conf, request_prefix="/admin", **kwargs)

    def force(self, mapping: str | bytes | Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        """Replace the services of some prefixes (of all of them, the first time).

        :param mapping: services by prefix of 4 digits, or its JSON.
        """
        data = mapping if isinstance(mapping, (str, bytes)) else text_of_json(mapping)
        self._request("POST", "/meta0_force", data=data, **kwargs)

    def list(self, **kwargs: Any) -> dict[str, builtins.list[str]]:
        """Read the whole table: services by prefix of 4 digits."""
        _, body = self._request("GET", "/meta0_list", **kwargs)
        return dict(body or {})


class Meta0PrefixMapping(MetaMapping):
    """The table of the directory, to plan changes in.

    >>> mapping = Meta0PrefixMapping(Meta0Client({"namespace": "OPENIO"}), replicas=3)  # doctest: +SKIP
    >>> mapping.load_meta0()  # doctest: +SKIP
    >>> mapping.apply(moved=mapping.rebalance())  # doctest: +SKIP

    Methods that change the mapping only plan, until :meth:`apply`. A service is a dictionary, as the conscience
    describes it, with ``bases`` (a set of names), ``location`` and ``upper_limit``.

    :param replicas: meta1 services of each base.
    :param digits: significant digits of prefixes, 4 by default.
    :param min_dist: least distance between two copies of a base, 1 to 4.
    :raises ConfigurationException: when one of these numbers cannot be.
    """

    def __init__(
        self,
        meta0_client: Meta0Client,
        replicas: int = 3,
        digits: int | None = None,
        min_dist: int = 1,
        **kwargs: Any,
    ) -> None:
        self.m0 = meta0_client
        self.replicas = int(replicas)
        if self.replicas < 1:
            raise ConfigurationException(f"At least one copy of a base is needed, not {replicas}")
        self.digits = DIGITS_MAX if digits is None else int(digits)
        if not 0 <= self.digits <= DIGITS_MAX:
            raise ConfigurationException(f"A prefix has 0 to {DIGITS_MAX} significant digits, not {digits}")
        self.min_dist = int(min_dist)
        if not 1 <= self.min_dist <= DISTANCE_MAX:
            raise ConfigurationException(f"The least distance is 1 to {DISTANCE_MAX}, not {min_dist}")
        super().__init__(meta0_client.conf, [SERVICE_TYPE], **kwargs)

    def __bool__(self) -> bool:
        return bool(self.services_by_base)

    # --- services ---------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the bases, and list the services again."""
        super().reset()
        self._forget_bases()

    @property
    def services(self) -> dict[str, Service]:
        """The meta1 services, by id."""
        return self.services_by_service_type[SERVICE_TYPE]

    def get_loc(self, svc: Service, default: str | None = None) -> str:
        """Location of a service; without one the default, else its address."""
        location = (svc.get("tags") or {}).get("tag.loc") or default or svc["addr"]
        return str(location)

    @staticmethod
    def dist_between(loc1: str, loc2: str) -> int:
        """Distance between two locations: how many of their last tokens make the difference.

        >>> Meta0PrefixMapping.dist_between("paris.rack1.host1", "paris.rack2.host1")
        2
        """
        return _distance(loc1, loc2)

    def get_score(self, svc: Service) -> int:
        """Score of a service; it is given no base when it is 0."""
        return int(svc.get("score") or 0)

    def get_managed_bases(self, svc: Service | str) -> set[str]:
        """Bases of a service. What is done to the set is not done to the mapping."""
        return set(self._service(svc).get("bases") or ())

    def _service(self, svc: Service | str) -> Service:
        """A service by its id or address. :raises ValueError: when there is none."""
        if not isinstance(svc, str):
            return svc
        for one in (self.services.get(svc), *self.services.values()):
            if one is not None and svc in (one["id"], one["addr"]):
                return one
        raise ValueError(f"{svc} is not a known meta1 service")

    def _near(self, one: Service, other: Service) -> bool:
        return self.dist_between(self.get_loc(one), self.get_loc(other)) < self.min_dist

    # --- prefixes ---------------------------------------------------------------------------------------

    def num_bases(self) -> int:
        """Number of bases of a whole mapping."""
        return count_prefixes(self.digits)

    def prefix_to_base(self, pfx: str) -> str:
        """Name of the base of a prefix, of a container id as well."""
        return base_of(pfx, self.digits)

    def prefix_siblings(self, pfx: str) -> Iterable[str]:
        """All the prefixes of the base of a prefix."""
        return siblings(self.prefix_to_base(pfx), self.digits)

    # --- reading and writing ------------------------------------------------------------------------------

    def to_json(self, bases: Iterable[str] | None = None) -> str:
        """Table of these bases (default: of all), as meta0 takes it: ``{"0000": ["10.0.0.1:6001", …], …}``."""
        table = {}
        for base in self.services_by_base if bases is None else bases:
            addresses = [service["addr"] for service in self.services_by_base[base]]
            for prefix in self.prefix_siblings(base):
                table[prefix] = addresses
        return text_of_json(table)

    def load_json(self, json_mapping: str | bytes | Mapping[str, Iterable[str]] | None) -> None:
        """Take the bases of a table in the place of those of the mapping.

        :raises ValueError: when it is not a table of prefixes.
        """
        table: Any = json_mapping or {}
        if isinstance(table, (str, bytes)):
            table = json.loads(table)
        if not isinstance(table, Mapping):
            raise ValueError("A mapping is a table of services by prefix")
        self._forget_bases()
        names = self._names()
        # The prefix that has the name of the base is there, or the first one speaks for all.
        for prefix, services in sorted(table.items()):
            if not _PREFIX.match(prefix) or not _is_list_of_texts(services):
                raise ValueError(f"Not an entry of a mapping: {prefix!r}: {services!r}")
            base = self.prefix_to_base(prefix.upper())
            if base in self.services_by_base:
                continue
            self.raw_services_by_base[base] = [*services]
            self.assign_services(base, [self._known_or_absent(names, name) for name in services])

    def _names(self) -> dict[str, Service]:
        return {name: svc for svc in self.services.values() for name in (svc["addr"], svc["id"])}

    def _known_or_absent(self, names: dict[str, Service], name: str) -> Service:
        """A service by its name; those that the conscience has forgotten stay in the mapping, without score."""
        service = names.get(name)
        if service is None:
            service = names[name] = self.services[name] = {"addr": name, "id": name, "score": 0, "tags": {}}
        return service

    def _forget_bases(self) -> None:
        self.services_by_base.clear()
        self.raw_services_by_base.clear()
        for service in self.services.values():
            service["bases"] = set()

    def load_meta0(self, **kwargs: Any) -> None:
        """Take the table of meta0."""
        self.load_json(self.m0.list(**kwargs))

    # --- planning -----------------------------------------------------------------------------------------

    def assign_services(
        self, base: str, services: Iterable[Service], fail_if_already_set: bool = False
    ) -> None:
        """Give a base to services, in the place of those that have it.

        :raises ValueError: when it has some, and this is not wanted.
        """
        former = self.services_by_base.get(base)
        if former and fail_if_already_set:
            raise ValueError(f"Base {base} has services already")
        for service in former or ():
            service["bases"].discard(base)
        self.services_by_base[base] = [*services]
        for service in self.services_by_base[base]:
            service.setdefault("bases", set()).add(base)

    def find_services_less_bases(
        self, known: Iterable[Service] | None = None, min_score: int = 1, **_kwargs: Any
    ) -> list[Service]:
        """Complete a set of services with those that have fewest bases for their share.

        :param known: services of the set.
        :returns: as many services as a base has copies, fewer when no other is far enough.
        """
        return self._complete(known, min_score, lambda svc: (_fullness(svc), -self.get_score(svc)))

    def find_services_more_availability(
        self, known: Iterable[Service] | None = None, min_score: int = 1, **_kwargs: Any
    ) -> list[Service]:
        """The same with those that have the best score."""
        return self._complete(known, min_score, lambda svc: (-self.get_score(svc), *_fullness(svc)))

    def _complete(
        self, known: Iterable[Service] | None, min_score: int, rank: Callable[[Service], Any]
    ) -> list[Service]:
        chosen = [*(known or ())]
        while len(chosen) < self.replicas:
            able = [
                svc
                for svc in self.services.values()
                if self.get_score(svc) >= min_score
                and not any(svc is one or self._near(svc, one) for one in chosen)
            ]
            if not able:
                break
            chosen.append(min(able, key=lambda svc: (rank(svc), svc["addr"])))
        return chosen

    def _compute_upper_limits(self) -> None:
        """Set what each service should hold. :raises ValueError: when there are too few locations."""
        self._zones = zones_of(
            self.services, lambda one, other: self._near(self.services[one], self.services[other])
        )
        scored = [name for name, svc in self.services.items() if self.get_score(svc) > 0]
        locations = {self._zones[name] for name in scored}
        if len(locations) < self.replicas:
            raise ValueError(
                f"{self.replicas} copies of a base need as many locations with a positive score, "
                f"{len(locations)} found"
            )
        self._quotas = share_evenly(self.num_bases() * self.replicas, self._zones, scored)
        for name, svc in self.services.items():
            svc["location"] = ".".join(self.get_loc(svc).split(".")[: 1 - self.min_dist or None])
            svc["upper_limit"] = self._quotas[name].high if name in self._quotas else 0

    def count_pfx_by_svc(self) -> dict[str, int]:
        """Number of prefixes of each service, by address, smallest first."""
        width = count_prefixes(DIGITS_MAX - self.digits)
        counts = {svc["addr"]: len(svc.get("bases") or ()) * width for svc in self.services.values()}
        return dict(sorted(counts.items(), key=lambda item: (item[1], item[0])))

    def check_replicas(self) -> bool:
        """Is every base there, on as many different services as it should (or more)? Tells which are not."""
        wrong = 0
        for base in generate_prefixes(self.digits):
            count = len({service["id"] for service in self.services_by_base.get(base, ())})
            if count < self.replicas:
                wrong += 1
                if wrong <= _WARNINGS_MAX:
                    self.logger.warning("Base %s has %d services, %d expected", base, count, self.replicas)
        if wrong > _WARNINGS_MAX:
            self.logger.warning("%d bases have fewer than %d services", wrong, self.replicas)
        return not wrong

    def bootstrap(self, level: str = "volume", degradation: int = 0) -> None:
        """Spread all the bases over the services, wherever they were.

        :param level: copies of a base are on different sites, racks, hosts or volumes, as far as possible.
        :param degradation: how many of those may be lost while every base keeps a majority of its copies.
        :raises PreconditionFailed: when there are too few of them for that.
        :raises ConfigurationException: when locations are missing or too long, or the level is unknown.
        """
        if level not in LEVELS:
            raise ConfigurationException(f"Invalid level {level!r}: one of {', '.join(LEVELS)} is expected")
        names = [*generate_prefixes(self.digits)]
        placed = _bootstrap(self.services.values(), names, self.replicas, LEVELS[level], degradation)
        holders: dict[str, list[Service]] = {}
        for one in placed:
            for base in one["bases"]:
                holders.setdefault(base, []).append(self.services[one["id"]])
        for base in names:
            self.assign_services(base, holders[base])

    def decommission(
        self,
        svc: Service | str,
        bases_to_remove: Iterable[str] | None = None,
        strategy: Callable[..., list[Service]] | None = None,
        try_: bool = False,
        compute_upper_limit: bool = True,
    ) -> set[str]:
        """Give bases of a service to others; the other services of these bases keep them.

        :param bases_to_remove: all the bases of the service by default.
        :param strategy: completes a set of services, :meth:`find_services_less_bases` by default.
        :param try_: leave the bases for which there is no other service; else they have a copy less.
        :param compute_upper_limit: share the bases anew between the other services.
        :returns: names of the bases that were moved.
        :raises ValueError: when it has not all these bases, or there are too few other services.
        """
        svc = self._service(svc)
        managed = self.get_managed_bases(svc)
        bases = managed
        if bases_to_remove is not None:
            bases = {self.prefix_to_base(base.upper()) for base in bases_to_remove}
        if bases - managed:
            raise ValueError(f"{svc['addr']} does not have {', '.join(sorted(bases - managed)[:_WARNINGS_MAX])}")
        choose = strategy or self.find_services_less_bases
        score = svc.get("score")
        svc["score"] = 0
        moved = set()
        try:
            if compute_upper_limit:
                self._compute_upper_limits()
            for base in sorted(bases):
                others = [one for one in self.services_by_base[base] if one is not svc]
                chosen = choose(known=others)
                if try_ and len(chosen) < self.replicas:
                    self.logger.warning("Base %s stays on %s: no other service can have it", base, svc["addr"])
                    continue
                self.assign_services(base, chosen)
                moved.add(base)
        finally:
            svc["score"] = score
        return moved

    def rebalance(self, max_loops: int = 4096) -> set[str]:
        """Have all services hold their share of the bases.

        Bases whose services are too near each other are moved first. A base gets one other service at most.

        :param max_loops: services to take bases from, at most.
        :returns: names of the bases that were moved.
        :raises ValueError: when there are fewer locations with a positive score than copies.
        """
        self._compute_upper_limits()
        holders = {base: [svc["id"] for svc in services] for base, services in self.services_by_base.items()}
        balance = Balance(holders, self._zones, self._quotas)
        balance.separate()
        balance.fill(balance.relieve(max_loops))
        for base in balance.moved:
            self.assign_services(base, [self.services[name] for name in holders[base]])
        return {*balance.moved}

    # --- applying a plan ----------------------------------------------------------------------------------

    #: A base comes to be with its first reference.
    may_be_missing = True
    #: Proxies read the whole table again after each change.
    batch = 32

    def change_of(self, base: str) -> Change:
        """What has to be done with a base."""
        cid, _ = self.get_cid_and_seq(base)
        before = tuple(sorted(self.raw_services_by_base.get(base, ())))
        after = tuple(sorted(service["addr"] for service in self.services_by_base[base]))
        return Change(SERVICE_TYPE, cid, before, after)

    def link(self, bases: Iterable[str], **kwargs: Any) -> None:
        """Upload bases to meta0, again when it is busy. :raises OioException: when it does not take them."""
        table = self.to_json(bases)
        for attempt in range(FORCE_ATTEMPTS):
            try:
                self.m0.force(table, **kwargs)
                break
            except OioException as exc:
                if attempt + 1 == FORCE_ATTEMPTS or _is_final(exc):
                    raise
                self.logger.warning("Mapping not uploaded, attempt %d of %d: %s", attempt + 1, FORCE_ATTEMPTS, exc)
                time.sleep(attempt)

    def stayed(self, base: str) -> None:
        """A base could not be moved: it has the services that it had."""
        names = self._names()
        services = [self._known_or_absent(names, name) for name in self.raw_services_by_base[base]]
        self.assign_services(base, services)

    def linked(self, change: Change, **kwargs: Any) -> None:
        """Tell a service that had the only copy of a base that it is in charge no more: no election does it."""
        for address in change.removed if len(change.before) == 1 else ():
            try:
                self.admin.service_flush_cache(address, **kwargs)
            except OioException as exc:
                self.logger.warning("%s not told that the base %s is elsewhere: %s", address, change.cid, exc)


@functools.lru_cache(maxsize=1 << 16)
def _distance(loc1: str, loc2: str) -> int:
    tokens1, tokens2 = loc1.split("."), loc2.split(".")
    shared = 0
    for one, other in zip(tokens1, tokens2, strict=False):
        if one != other:
            break
        shared += 1
    return max(len(tokens1), len(tokens2)) - shared


def _fullness(svc: Service) -> tuple[float, int]:
    """How much of its share a service has, and how many bases."""
    count = len(svc.get("bases") or ())
    limit = svc.get("upper_limit") or 1
    return count / limit, count


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)


def _is_final(exc: OioException) -> bool:
    """Is there no use in sending the same again?"""
    if not isinstance(exc, ClientException):
        return False
    code = exc.status if isinstance(exc.status, int) else 0
    return code >= _STATUS_MIN and code not in _PASSING
