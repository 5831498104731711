# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What operators do to the tree of a namespace in one ZooKeeper cluster: make it, remove it, look, repair.

Nodes are made, read and removed thousands at a time: a whole tree has 69,897 directories.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from kazoo.exceptions import (
    KazooException,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
    RuntimeInconsistency,
)

from oio.common.exceptions import OioException
from oio.zk import bulk
from oio.zk.tree import Member, Tree

if TYPE_CHECKING:
    from kazoo.client import KazooClient

BATCH = 2048
#: Size of batches for servers that others need at the same time.
SLOW_BATCH = 8
CONNECTION_TIMEOUT_S = 5.0
#: What others change meanwhile is tried so often before we give up: living services come back to their elections.
_ATTEMPTS = 8
#: What may be wrong with an operation of a transaction: it cannot be done, or another one could not.
_REFUSALS = (NodeExistsError, NoNodeError, NotEmptyError, RolledBackError, RuntimeInconsistency)

_quiet = logging.getLogger("oio.zookeeper.kazoo")

T = TypeVar("T")


class ZooKeeperUnreachable(OioException):
    """Raised when a ZooKeeper cluster does not answer, or no more."""


class Node(NamedTuple):
    """Member of an election. :ivar value: id of its service. :ivar size: of the value, in bytes."""

    name: str
    sequence: int
    value: str
    size: int


@dataclass(frozen=True)
class Group:
    """An election and its members, the oldest first."""

    key: str
    directory: str
    nodes: list[Node]


class Outcome(NamedTuple):
    """What became of a node, in words. :ivar failed: nobody knows whether anything was done."""

    node: Node
    status: str
    failed: bool = False


@contextmanager
def connection(hosts: str) -> Iterator[KazooClient]:
    """A session with a cluster.

    :raises ZooKeeperUnreachable: when it does not answer, at the start or later.
    """
    from oio.zk.handler import open_client

    # Kazoo tells of each attempt; one error is enough.
    _quiet.setLevel(logging.CRITICAL)
    try:
        client = open_client(hosts, CONNECTION_TIMEOUT_S, _quiet)
    except ValueError as exc:
        raise ZooKeeperUnreachable(f"ZooKeeper {hosts} cannot be asked: {exc}") from exc
    try:
        if not client.start_async().wait(CONNECTION_TIMEOUT_S):
            raise ZooKeeperUnreachable(f"ZooKeeper {hosts} does not answer")
        yield client
    except KazooException as exc:
        raise ZooKeeperUnreachable(f"ZooKeeper {hosts}: {type(exc).__name__} {exc}".rstrip()) from exc
    finally:
        client.stop()
        client.close()


# -- the tree ----------------------------------------------------------------------------------


def seems_complete(client: KazooClient, namespace: str) -> bool:
    """Is the last directory there? Directories are made in order."""
    *_, last = Tree.directories(namespace)
    return client.exists(last) is not None


def bootstrap(client: KazooClient, namespace: str, batch: int = BATCH) -> int:
    """Make the directories that are missing, and tell how many.

    :param batch: directories per transaction.
    """
    from oio.zk.handler import make_root

    make_root(client)
    made = 0
    directories = Tree.directories(namespace)
    while paths := list(islice(directories, batch)):
        made += _create(client, paths)
    return made


def destroy(client: KazooClient, namespace: str) -> bool:
    """Remove everything of a namespace; tells whether there was something.

    :raises OioException: when living services come back again and again.
    """
    root = Tree.namespace_directory(namespace)
    if client.exists(root) is None:
        return False
    inside = [path for path in Tree.directories(namespace) if path.startswith(f"{root}/")]
    inside.reverse()
    for start in range(0, len(inside), BATCH):
        _remove(client, inside[start : start + BATCH])
    try:
        client.delete(root, recursive=True)
    except NotEmptyError as exc:
        raise OioException(f"{root} is in use: stop the services of the namespace first") from exc
    return True


def _create(client: KazooClient, paths: list[str]) -> int:
    """Make the nodes that are missing, given parents first, and tell how many."""
    for _ in range(_ATTEMPTS):
        found = bulk.values(client, paths)
        missing = [path for path, value in zip(paths, found, strict=True) if isinstance(value, NoNodeError)]
        if not missing:
            return 0
        transaction = client.transaction()
        for path in missing:
            transaction.create(path)
        if not _failures(transaction.commit()):
            return len(missing)
        # Somebody else makes the same tree: what is missing now?
    raise OioException(f"{paths[-1]} cannot be made: the tree changes all the time")


def _remove(client: KazooClient, paths: list[str]) -> None:
    """Remove directories, given children first, and the nodes in them."""
    for _ in range(_ATTEMPTS):
        transaction = client.transaction()
        for path in paths:
            transaction.delete(path)
        if not _failures(transaction.commit()):
            return
        listings = list(zip(paths, bulk.children(client, paths), strict=True))
        paths = [path for path, names in listings if not isinstance(names, NoNodeError)]
        known = set(paths)
        for path, names in listings:
            if path in known:
                for name in _checked(names):
                    if f"{path}/{name}" not in known:
                        client.delete(f"{path}/{name}", recursive=True)
        if not paths:
            return
    raise OioException(f"{paths[-1]} is in use: stop the services of the namespace first")


# -- elections ---------------------------------------------------------------------------------


def groups(client: KazooClient, namespace: str, service_type: str) -> Iterator[Group]:
    """All the elections of a type that have members.

    :raises ValueError: when services of the type have no elections.
    """
    directories = Tree.election_directories(namespace, service_type)
    while some := list(islice(directories, BATCH)):
        members = [
            (directory, parsed, name)
            for directory, names in zip(some, bulk.children(client, some), strict=True)
            if not isinstance(names, NoNodeError)
            for parsed, name in _members_of(_checked(names))
        ]
        yield from _groups_of(client, members)


def smudge(client: KazooClient, group: Group, value: str) -> Outcome:
    """Add a member that no service stands behind, after the last; it stays until it is removed."""
    prefix = f"{group.directory}/{Tree.member_prefix(group.key)}"
    data = value.encode()
    try:
        path = client.create(prefix, data, sequence=True)
    except KazooException as exc:
        return Outcome(Node("", -1, value, len(data)), _text(exc), failed=True)
    name = path.rpartition("/")[2]
    parsed = Tree.parse_member(name)
    return Outcome(Node(name, parsed.sequence if parsed else -1, value, len(data)), "Created")


def reset(
    client: KazooClient,
    group: Group,
    *,
    smart: bool = False,
    dry_run: bool = False,
    min_services: int = 4,
    alone: bool = False,
) -> list[Outcome]:
    """Remove members of an election: the services behind them join again at the end of the line.

    :param smart: only those that are followed by a younger one with the same value.
    :param min_services: elections with less members are left alone.
    :param alone: remove the member of an election that has only one, in spite of the above.
    """
    if len(group.nodes) == 1:
        chosen = group.nodes if alone else []
        spared = "Too few nodes" if not alone else ""
    elif len(group.nodes) < min_services:
        chosen, spared = [], "Too few nodes"
    else:
        chosen, spared = (_older_duplicates(group.nodes) if smart else group.nodes), ""
    if spared:
        return [Outcome(node, spared) for node in group.nodes]
    if dry_run:
        return [Outcome(node, "Skipped") for node in chosen]
    results = bulk.gather(client.delete_async, [f"{group.directory}/{node.name}" for node in chosen])
    return [_outcome_of_removal(node, result) for node, result in zip(chosen, results, strict=True)]


def _outcome_of_removal(node: Node, result: Any) -> Outcome:
    if isinstance(result, Exception) and not isinstance(result, NoNodeError):
        return Outcome(node, _text(result), failed=True)
    return Outcome(node, "Deleted")


def _older_duplicates(nodes: list[Node]) -> list[Node]:
    latest = {node.value: node for node in nodes}
    return [node for node in nodes if latest[node.value] is not node]


def _node(name: str, sequence: int, value: bytes) -> Node:
    return Node(name, sequence, value.decode("utf-8", "replace"), len(value))


def _members_of(names: list[str]) -> list[tuple[Member, str]]:
    """Those that are members, by election and in order."""
    return sorted((parsed, name) for name in names if (parsed := Tree.parse_member(name)) is not None)


def _groups_of(client: KazooClient, members: list[tuple[str, Member, str]]) -> Iterator[Group]:
    values = bulk.values(client, [f"{directory}/{name}" for directory, _, name in members])
    found = [
        ((directory, parsed.key), _node(name, parsed.sequence, _checked(value)))
        for (directory, parsed, name), value in zip(members, values, strict=True)
        # It may have left meanwhile.
        if not isinstance(value, NoNodeError)
    ]
    for (directory, key), pairs in groupby(found, key=lambda pair: pair[0]):
        yield Group(key, directory, [node for _, node in pairs])


# -- results -------------------------------------------------------------------------------------


def _checked(result: T | Exception) -> T:
    """A value. :raises KazooException: what stands instead of it."""
    if isinstance(result, Exception):
        raise result
    return result


def _failures(results: list[Any]) -> bool:
    """Did a transaction fail because of what is there? :raises KazooException: if for another reason."""
    errors = [result for result in results if isinstance(result, Exception)]
    for error in errors:
        if not isinstance(error, _REFUSALS):
            raise error
    return bool(errors)


def _text(exc: Exception) -> str:
    return f"{type(exc).__name__} {exc}".rstrip()
