# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Reads thousands of nodes of ZooKeeper in one round trip.

ZooKeeper answers many readings at once since 3.6 (operation ``multiRead``). Kazoo does not know it: it asks for
one node after the other, and spends 0.2 ms of our processor on each. Looking into the 65,536 directories of a type
takes a second this way, and fifteen the other. Older servers refuse the operation, and end the session that asked
for it; they are asked the other way in another session. So this is for tools, whose sessions hold nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from kazoo.exceptions import EXCEPTIONS, KazooException, UnimplementedError
from kazoo.protocol.paths import _prefix_root
from kazoo.protocol.serialization import GetChildren, GetData

if TYPE_CHECKING:
    from kazoo.client import KazooClient

#: Nodes per request. A request must stay below the limit of the servers, 1 MiB by default.
NODES_PER_REQUEST = 2048
_MULTI_READ = 22
_ERROR = -1
# Before each operation and each result: type, is it the end, error.
_HEADER = struct.Struct("!i?i")
_INTEGER = struct.Struct("!i")
_STAT_BYTES = 68

#: Clients of servers before 3.6.
_old: WeakSet[KazooClient] = WeakSet()


def children(client: KazooClient, paths: Sequence[str]) -> list[list[str] | KazooException]:
    """Names below each of these nodes; an exception in the place of those that cannot be read."""
    return _read(client, GetChildren, client.get_children_async, lambda names: names, paths)


def values(client: KazooClient, paths: Sequence[str]) -> list[bytes | KazooException]:
    """Value of each of these nodes; an exception in the place of those that cannot be read."""
    return _read(client, GetData, client.get_async, lambda found: found[0], paths)


def gather(request: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """Send one request per path, all before the first reply. Exceptions stand in the place of values.

    :param request: an asynchronous method of the client.
    """
    replies = [request(path) for path in paths]
    found: list[Any] = []
    for reply in replies:
        try:
            found.append(reply.get())
        except KazooException as exc:
            found.append(exc)
    return found


class _MultiRead:
    """Request in the form that the client wants."""

    type = _MULTI_READ

    def __init__(self, operations: list[Any]) -> None:
        self._operations = operations

    def serialize(self) -> bytearray:
        """Body of the request."""
        body = bytearray()
        for operation in self._operations:
            body += _HEADER.pack(operation.type, False, -1)
            body += operation.serialize()
        body += _HEADER.pack(-1, True, -1)
        return body

    @classmethod
    def deserialize(cls, data: bytes, offset: int) -> list[Any]:
        """Results, in the order of the operations."""
        results: list[Any] = []
        while True:
            kind, is_end, _ = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size
            if is_end:
                return results
            if kind == _ERROR:
                (code,) = _INTEGER.unpack_from(data, offset)
                offset += _INTEGER.size
                results.append(EXCEPTIONS[code]())
            elif kind == GetChildren.type:
                names, offset = _names(data, offset)
                results.append(names)
            else:
                value, offset = _bytes(data, offset)
                offset += _STAT_BYTES
                results.append((value,))


def _read(
    client: KazooClient,
    operation: Any,
    request: Callable[[str], Any],
    part: Callable[[Any], Any],
    paths: Sequence[str],
) -> list[Any]:
    found: list[Any] = []
    for start in range(0, len(paths), NODES_PER_REQUEST):
        some = paths[start : start + NODES_PER_REQUEST]
        results = gather(request, some) if client in _old else _read_at_once(client, operation, request, some)
        found += [result if isinstance(result, KazooException) else part(result) for result in results]
    return found


def _read_at_once(
    client: KazooClient, operation: Any, request: Callable[[str], Any], paths: Sequence[str]
) -> list[Any]:
    reply = client.handler.async_result()
    client._call(_MultiRead([operation(_prefix_root(client.chroot, path), None) for path in paths]), reply)
    try:
        results: list[Any] = reply.get()
    except UnimplementedError:
        _old.add(client)
        client.restart()
        results = gather(request, paths)
    return results


def _bytes(data: bytes, offset: int) -> tuple[bytes, int]:
    (length,) = _INTEGER.unpack_from(data, offset)
    offset += _INTEGER.size
    # A length below zero stands for nothing.
    end = offset + max(length, 0)
    return bytes(data[offset:end]), end


def _names(data: bytes, offset: int) -> tuple[list[str], int]:
    (count,) = _INTEGER.unpack_from(data, offset)
    offset += _INTEGER.size
    names = []
    for _ in range(count):
        name, offset = _bytes(data, offset)
        names.append(name.decode("utf-8"))
    return names, offset
