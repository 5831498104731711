# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""First placement of the bases of the directory.

Services are sorted by location and cut into slices: the services of a site, a rack, a host, or single ones. Base
number *i* goes to the consecutive slices that start at number *i*, and inside a slice to its services in turn. A
base has thus at most ``ceil(replicas / slices)`` copies in a slice, and all slices hold as many bases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from oio.common.exceptions import ConfigurationException, PreconditionFailed

#: What a slice has in common, from the widest.
LEVELS = {"site": 0, "rack": 1, "host": 2, "volume": 3}
_DEPTH = len(LEVELS)

Service = dict[str, Any]


def location_tokens(service: Mapping[str, Any]) -> tuple[str, ...]:
    """The 4 tokens of the location of a service, missing ones first.

    :raises ConfigurationException: when it has none, or one of more than 4 tokens.
    """
    location = (service.get("tags") or {}).get("tag.loc") or service.get("location")
    tokens = tuple(str(location or "").split("."))
    if not location or len(tokens) > _DEPTH:
        name = service.get("addr") or service.get("id")
        raise ConfigurationException(
            f"Service poorly configured: {name} has the location {location!r}, 1 to {_DEPTH} tokens are expected"
        )
    return ("",) * (_DEPTH - len(tokens)) + tokens


def slice_services(services: Sequence[Mapping[str, Any]], level: int) -> Iterator[tuple[int, int]]:
    """Bounds (start, end) of the runs of services that share their location up to a level.

    :param services: sorted by location.
    :param level: 0 (site) to 3 (volume).
    :raises ConfigurationException: when a location is missing or too long.
    """
    start = 0
    shared: tuple[str, ...] | None = None
    for index, service in enumerate(services):
        mine = location_tokens(service)[: level + 1]
        if mine != shared and index:
            yield start, index
            start = index
        shared = mine
    if services:
        yield start, len(services)


def bootstrap(
    services: Iterable[Service],
    groups: Iterable[str],
    replicas: int,
    level: int,
    degradation: int = 0,
) -> list[Service]:
    """Spread bases over services.

    :param groups: names of the bases.
    :param level: what a slice is: 0 (site) to 3 (volume).
    :param degradation: slices that may be lost while every base keeps a majority of its copies.
    :returns: copies of the services, sorted by location, with their bases under ``bases`` (a set).
    :raises ConfigurationException: when a location is missing or too long.
    :raises PreconditionFailed: when there are too few services or slices for that.
    """
    # Of the same location: by address, so that the same services give the same result.
    found = sorted(services, key=lambda one: (location_tokens(one), str(one.get("addr"))))
    placed: list[Service] = [{**service, "bases": set()} for service in found]
    slices = list(slice_services(placed, level))
    _check(len(placed), len(slices), replicas, degradation)
    turns = [start for start, _ in slices]
    for number, base in enumerate(groups):
        missing, rank = replicas, number
        while missing:
            # A slice that has fewer services than it should take copies leaves them to the next one.
            missing -= _place(base, placed, slices, turns, rank % len(slices))
            rank += 1
    return placed


def _check(services: int, slices: int, replicas: int, degradation: int) -> None:
    if services < replicas:
        raise PreconditionFailed(f"Balance not satisfiable: {replicas} copies of a base on {services} services")
    quorum = replicas // 2 + 1
    left = replicas - -(-replicas // slices) * degradation
    if left < quorum:
        raise PreconditionFailed(
            f"Balance not satisfiable: {replicas} copies of a base in {slices} slices, "
            f"{left} of them are left without {degradation} slices, and {quorum} are needed"
        )


def _place(
    base: str, placed: list[Service], slices: list[tuple[int, int]], turns: list[int], number: int
) -> int:
    """Give a base to the next service of a slice that has not got it yet; the number of copies placed, 0 or 1."""
    start, end = slices[number]
    for _ in range(start, end):
        bases = placed[turns[number]]["bases"]
        turns[number] = start if turns[number] + 1 == end else turns[number] + 1
        if base not in bases:
            bases.add(base)
            return 1
    return 0
