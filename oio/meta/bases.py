# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What every meta service answers about its bases, whatever they hold (contract: "Per-peer answers")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oio.common import status
from oio.common.status import StatusError
from oio.http.client import HttpPool
from oio.meta import dump
from oio.meta.base_messages import (
    BaseCopyFrom,
    BaseDebug,
    BaseDelProperties,
    BaseDescription,
    BaseFile,
    BaseFind,
    BaseGetProperties,
    BaseLeave,
    BasePing,
    BaseRemove,
    BaseSetProperties,
    BaseStatus,
    BaseSync,
    BaseTarget,
    BaseVacuum,
)
from oio.meta.base_type import PEERS
from oio.meta.context import Context
from oio.meta.messages import Operation, Properties
from oio.meta.repository import Repository
from oio.meta.transaction import Reader, Transaction

_STATISTICS = ("page_count", "freelist_count", "page_size")
#: Keys that tell what a base is: nobody sets them.
_FIXED = frozenset({"sys.name", "sys.type", "schema_version"})
#: Keys that a caller may set and delete.
_PREFIXES = ("user.", "sys.")

Handlers = dict[type[Operation], Callable[[Any, Context], Any]]


def handlers(repository: Repository) -> Handlers:
    """What to call for each operation."""

    def find(request: BaseFind, context: Context) -> BaseFile:
        _check_there(repository, request.base)
        return BaseFile(path=repository.path(request.base))

    def get_properties(request: BaseGetProperties, context: Context) -> Properties:
        return repository.read(
            request.base,
            lambda reader: Properties(properties=admin_keys(reader, request.stats)),
            deadline=context.deadline,
            route=context.route,
        )

    def set_properties(request: BaseSetProperties, context: Context) -> None:
        _check_keys(request.properties)
        repository.write(
            request.base,
            lambda tx: _set(tx, request.properties, request.clear),
            deadline=context.deadline,
            route=context.route,
        )

    def del_properties(request: BaseDelProperties, context: Context) -> None:
        _check_keys(request.names)
        repository.write(
            request.base, lambda tx: _delete(tx, request.names), deadline=context.deadline, route=context.route
        )

    def vacuum(request: BaseVacuum, context: Context) -> None:
        repository.vacuum(request.base, context.deadline, context.steps)

    return {
        BaseFind: find,
        BaseGetProperties: get_properties,
        BaseSetProperties: set_properties,
        BaseDelProperties: del_properties,
        BaseVacuum: vacuum,
    }


def single_copy_handlers(repository: Repository) -> Handlers:
    """Answers about copies and elections of a service whose bases have one copy: whoever has it is the master."""

    def present(request: BaseTarget, context: Context) -> None:
        _check_there(repository, request.base)

    def leave(request: BaseLeave, context: Context) -> None:
        """There is no election to leave."""

    def sync(request: BaseSync, context: Context) -> None:
        present(request, context)
        raise StatusError(status.BAD_OPERATION, "this service is the master: the base has one copy")

    def debug(request: BaseDebug, context: Context) -> BaseDescription:
        return BaseDescription(election={})

    def copy_from(request: BaseCopyFrom, context: Context) -> None:
        with repository.workshop_file() as path, HttpPool(max_idle_per_address=0) as pool:
            dump.fetch(
                pool, request.source, repository.type, request.base, path,
                reqid=context.reqid, deadline=context.deadline,
            )
            repository.replace(request.base, path, lambda: True)
        # Nobody else delivers the events that wait in it.
        repository.outbox.rediscover(request.base)

    def remove(request: BaseRemove, context: Context) -> None:
        _check_there(repository, request.base)
        repository.remove_copy(request.base)

    return {
        BasePing: present, BaseStatus: present, BaseLeave: leave, BaseSync: sync, BaseDebug: debug,
        BaseCopyFrom: copy_from, BaseRemove: remove,
    }  # fmt: skip


def admin_keys(reader: Reader, stats: bool) -> dict[str, str]:
    """The admin table of a base, and the sizes of its file when ``stats`` are wanted."""
    properties = reader.all_admin()
    if stats:
        for name in _STATISTICS:
            for (value,) in reader.execute(f"PRAGMA {name}"):
                properties[f"stats.{name}"] = str(value)
    return properties


def _check_keys(keys: Any) -> None:
    for key in keys:
        if key in _FIXED or not key.startswith(_PREFIXES):
            raise StatusError(status.BAD_REQUEST, f"Invalid property name: {key!r} cannot be set")


def _set(tx: Transaction, properties: dict[str, str], clear: bool) -> None:
    if clear:
        _delete(tx, [])
    for key, value in properties.items():
        if key == PEERS:
            value = _peers(value)
        if value:
            tx.set(key, value)
        else:
            tx.unset(key)


def _peers(text: str) -> str:
    """Ids of peers, sorted. :raises StatusError: 400 when one is there twice."""
    peers = [peer.strip() for peer in text.split(",") if peer.strip()]
    if len(set(peers)) < len(peers):
        raise StatusError(status.BAD_REQUEST, f"Invalid property {PEERS}: a service is there twice")
    return ",".join(sorted(peers))


def _delete(tx: Transaction, names: list[str]) -> None:
    for key in names or [key for key in tx.all_admin() if key.startswith("user.")]:
        tx.unset(key)


def _check_there(repository: Repository, base: str) -> None:
    if not repository.exists(base):
        raise StatusError(status.CONTAINER_NOT_FOUND, f"no base {base}.{repository.type.name} here")
