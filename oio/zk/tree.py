# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Names of the nodes that a namespace has in ZooKeeper (contract: "ZooKeeper tree").

Under ``/hc/ns/<namespace>`` lie the members of elections (``el/<type>/…``) and the registrations of services
(``srv/meta0``). Directories of elections are spread over hash directories, so that none grows large.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

ROOT = "/hc/ns"
#: Digits of each level of the directories that hold the elections of a type.
LEVELS = {"meta0": (), "meta1": (3,), "meta2": (2, 2)}
#: Types of services that register themselves.
REGISTERED = ("meta0",)
_HEX = "0123456789ABCDEF"
_MEMBER = re.compile(r"^(.+?)-(-?[0-9]{10})\Z")


class Member(NamedTuple):
    """Name of a member's node. :ivar sequence: given by ZooKeeper; the lowest of a key is the master."""

    key: str
    sequence: int


class Tree:
    """Paths and names; nothing here talks to ZooKeeper."""

    @staticmethod
    def namespace_directory(namespace: str) -> str:
        """What holds all the nodes of a namespace."""
        return f"{ROOT}/{namespace}"

    @staticmethod
    def election_root(namespace: str, service_type: str) -> str:
        """What holds all the elections of a type of services."""
        return f"{ROOT}/{namespace}/el/{service_type}"

    @staticmethod
    def election_directory(namespace: str, service_type: str, key: str) -> str:
        """Parent of the members of an election.

        :param key: upper-case hex digits.
        :raises ValueError: when services of the type have no elections, or the key is too short.
        """
        path = Tree.election_root(namespace, service_type)
        start = 0
        for digits in _levels_of(service_type):
            part = key[start : start + digits]
            if len(part) < digits:
                raise ValueError(f"Key of an election too short: {key!r}")
            path += f"/{part}"
            start += digits
        return path

    @staticmethod
    def member_prefix(key: str) -> str:
        """Beginning of the names of the members of an election; ZooKeeper appends ten digits."""
        return f"{key}-"

    @staticmethod
    def parse_member(name: str) -> Member | None:
        """Key and sequence of a node's name; None when it is not the name of a member."""
        found = _MEMBER.match(name)
        return Member(found[1], int(found[2])) if found else None

    @staticmethod
    def registration_directory(namespace: str, service_type: str) -> str:
        """What holds one node per running service of a type."""
        return f"{ROOT}/{namespace}/srv/{service_type}"

    @staticmethod
    def election_directories(namespace: str, service_type: str) -> Iterator[str]:
        """All the parents of members of a type, sorted."""
        root = Tree.election_root(namespace, service_type)
        parts = [["".join(digits) for digits in product(_HEX, repeat=level)] for level in _levels_of(service_type)]
        for names in product(*parts):
            yield "/".join((root, *names))

    @staticmethod
    def directories(namespace: str) -> Iterator[str]:
        """Everything that has to exist before services start: parents come before children."""
        parents: list[str] = []
        for part in (*ROOT.strip("/").split("/"), namespace):
            parents.append(f"{parents[-1] if parents else ''}/{part}")
        yield from parents
        yield f"{parents[-1]}/srv"
        for service_type in REGISTERED:
            yield Tree.registration_directory(namespace, service_type)
        yield f"{parents[-1]}/el"
        for service_type, levels in LEVELS.items():
            root = Tree.election_root(namespace, service_type)
            yield root
            if len(levels) > 1:
                yield from (f"{root}/{''.join(digits)}" for digits in product(_HEX, repeat=levels[0]))
            if levels:
                yield from Tree.election_directories(namespace, service_type)


def ensembles_of(conf: Mapping[str, str], service_type: str = "") -> list[str]:
    """Addresses of the ZooKeeper clusters that services of a type use.

    :param conf: options of the namespace: ``zookeeper.<type>``, else ``zookeeper``.
    :returns: one text per cluster (``host:port,host:port``), empty when there is no ZooKeeper.

    >>> ensembles_of({"zookeeper": "a:2181,b:2181;c:2181"}, "meta2")
    ['a:2181,b:2181', 'c:2181']
    """
    text = (conf.get(f"zookeeper.{service_type}") if service_type else None) or conf.get("zookeeper") or ""
    return [cluster.strip() for cluster in text.split(";") if cluster.strip()]


def _levels_of(service_type: str) -> tuple[int, ...]:
    try:
        return LEVELS[service_type]
    except KeyError:
        raise ValueError(f"No elections of type {service_type!r}: only of {', '.join(LEVELS)}") from None
