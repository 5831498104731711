# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Which services hold which bases: plans of changes, and the table of the directory.

:class:`MetaMapping` is what plans of all types have in common. The functions are about the table of prefixes,
which tells the meta1 services of each: :func:`compute` is a function of its arguments; :func:`bootstrap` stores
its result in meta0. Bootstrapping again never changes an entry that exists: references would be lost from sight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from oio.common import status
from oio.common.exceptions import ConfigurationException
from oio.common.status import StatusError
from oio.conscience.messages import Service
from oio.conscience.registry_client import RegistryClient
from oio.directory.meta_mapping import MetaMapping
from oio.directory.prefixes import (
    DIGITS_MAX,
    PREFIXES,
    base_of,
    count_prefixes,
    generate_prefixes,
    generate_short_prefixes,
    siblings,
)
from oio.meta.client import MetaClient, Route
from oio.meta.messages import Meta0Get, Meta0Set

__all__ = [
    "DIGITS_MAX", "PREFIXES", "MetaMapping", "base_of", "bootstrap", "bootstrap_namespace", "compute",
    "count_prefixes", "expand", "generate_prefixes", "generate_short_prefixes", "load", "siblings",
]  # fmt: skip

#: Storing the whole table is one transaction of 65536 rows (seconds).
_TIMEOUT_S = 30.0


def compute(locations: Mapping[str, str], digits: int, replicas: int) -> dict[str, list[str]]:
    """Spread the bases over meta1 services.

    :param locations: location (``room.rack.host.volume``, may be empty) by address.
    :returns: services by base. Every service holds the same number of bases, give or take one per
        copy, and the copies of a base are on different services, as far apart as their number allows.
    :raises ConfigurationException: when there are fewer services than copies.
    """
    if replicas < 1:
        raise ConfigurationException(f"At least one copy of the directory is needed, not {replicas}")
    if len(locations) < replicas:
        raise ConfigurationException(
            f"{replicas} copies of the directory need as many meta1, {len(locations)} found"
        )
    ring = _spread(locations)
    size = len(ring)
    return {
        base: [ring[(index + copy) % size] for copy in range(replicas)]
        for index, base in enumerate(generate_prefixes(digits))
    }


def expand(bases: Mapping[str, Sequence[str]], digits: int) -> dict[str, list[str]]:
    """Entries of the prefix table for these bases."""
    return {
        prefix: list(services)
        for base, services in bases.items()
        for prefix in siblings(base, digits)
    }


def load(client: MetaClient, meta0: str, peers: Sequence[str] = ()) -> dict[str, list[str]]:
    """The whole prefix table, as one meta0 service knows it.

    :param peers: ids of all the meta0 services. :raises StatusError: 303 when another one is the master.
    """
    reply = client.call(meta0, Meta0Get(prefix=""), timeout_s=_TIMEOUT_S, route=Route(peers=peers))
    table: dict[str, list[str]] = reply.mapping
    return table


def bootstrap(
    client: MetaClient,
    meta0: Sequence[str],
    meta1: Iterable[Service],
    digits: int,
    replicas: int,
    peers: Sequence[str] = (),
) -> int:
    """Complete the prefix table of every meta0 service; returns the number of entries that were added.

    What one meta0 knows and another does not is copied; only then are missing bases given services. Where
    the table has copies its master passes it on.

    :param peers: ids of all the meta0 services.
    """
    if not meta0:
        raise StatusError(status.UNAVAILABLE, "No meta0 service known")
    tables = _load_all(client, meta0, peers)
    known: dict[str, list[str]] = {}
    for table in tables.values():
        for prefix, services in table.items():
            known.setdefault(prefix, services)
    if len(known) < PREFIXES:
        locations = {one.addr: str(one.tags.get("tag.loc", "")) for one in meta1}
        planned = expand(compute(locations, digits, replicas), digits)
        known = {**planned, **known}
    added = 0
    for address, table in tables.items():
        missing = {prefix: known[prefix] for prefix in known.keys() - table.keys()}
        if missing:
            request = Meta0Set(mapping=missing)
            client.call(address, request, timeout_s=_TIMEOUT_S, route=Route(peers=peers))
            added += len(missing)
    return added


def _load_all(client: MetaClient, meta0: Sequence[str], peers: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """The tables of all that have one of their own, by address."""
    tables = {}
    elsewhere: StatusError | None = None
    for address in meta0:
        try:
            tables[address] = load(client, address, peers)
        except StatusError as exc:
            if exc.code != status.REDIRECT:
                raise
            elsewhere = exc
    if not tables and elsewhere is not None:
        raise StatusError(status.UNAVAILABLE, f"the master of the prefix table, {elsewhere.message}, is not known")
    return tables


def bootstrap_namespace(
    registry: RegistryClient, client: MetaClient, digits: int, replicas: int
) -> int:
    """:func:`bootstrap` with the services that the conscience knows."""
    services = registry.services("meta0")
    peers = sorted(str(one.tags.get("tag.service_id") or one.addr) for one in services)
    meta0 = [service.addr for service in services]
    return bootstrap(
        client, meta0, registry.services("meta1"), digits, replicas, peers if len(peers) > 1 else ()
    )


def _spread(locations: Mapping[str, str]) -> list[str]:
    """Order services so that neighbours are as far apart as possible.

    Services are sorted by location, then taken by turns from each of the widest areas, and so on inside
    the areas.
    """
    return _interleave(
        [(_tokens(location), address) for address, location in sorted(locations.items())], 0
    )


def _tokens(location: str) -> tuple[str, ...]:
    tokens = location.split(".", DIGITS_MAX - 1)
    return ("",) * (DIGITS_MAX - len(tokens)) + tuple(tokens)


def _interleave(items: list[tuple[tuple[str, ...], str]], depth: int) -> list[str]:
    if len(items) < 2 or depth == DIGITS_MAX:
        return [address for _, address in items]
    areas: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for item in items:
        areas.setdefault(item[0][depth], []).append(item)
    queues = [_interleave(members, depth + 1) for members in areas.values()]
    if len(queues) == 1:
        return queues[0]
    queues.sort(key=len, reverse=True)
    # Largest areas are dealt at even intervals: position k of an area of n goes at (k + 1/2) / n.
    dealt = [
        ((rank + 0.5) / len(queue), number, address)
        for number, queue in enumerate(queues)
        for rank, address in enumerate(queue)
    ]
    return [address for _, _, address in sorted(dealt)]
