# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Operations on containers: creation, destruction, properties, state."""

from __future__ import annotations

from collections.abc import Iterable

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import (
    ContainerCreate,
    ContainerDelProperties,
    ContainerDestroy,
    ContainerGetProperties,
    ContainerSetProperties,
    ContainerTarget,
    ContainerTouch,
    Created,
    Properties,
)
from oio.meta.meta2 import events, rows, rules, scans, schema, states
from oio.meta.repository import Repository
from oio.meta.transaction import Reader, Transaction

#: Keys whose change matters to the account service.
_STATE_KEYS = frozenset({schema.BUCKET, schema.POLICY, schema.USAGE, schema.OBJECTS})
#: Keys that change with the rows that are counted.
_ROW_VERSIONS = tuple(f"version:main.{table}" for table in ("aliases", "contents", "chunks"))
_STATISTICS = ("page_count", "freelist_count", "page_size")


def create(
    repository: Repository,
    settings: rules.Settings,
    context: Context,
    request: ContainerCreate,
    service_id: str,
) -> Created:
    """Create the base of a container; of one that exists nothing is changed."""
    rules.check_writable_namespace(settings, context)
    system, user = rules.container_properties(request.properties)

    def init(tx: Transaction) -> None:
        now = str(events.now_us())
        tx.set(schema.NAMESPACE, request.namespace)
        tx.set(schema.ACCOUNT, request.account)
        tx.set(schema.USER, request.name)
        if request.peers:
            tx.set(schema.PEERS, ",".join(sorted(request.peers)))
        tx.set(schema.CTIME, now)
        tx.set(schema.VERSION, "0")
        tx.set(schema.USAGE, "0")
        tx.set(schema.OBJECTS, "0")
        tx.set(schema.INIT, "1")
        rules.check_system_keys(system, tx.get)
        for key, value in (*system.items(), *user.items()):
            if value:
                tx.set(key, value)
        data = {
            "system": system,
            "properties": _short(user),
            "peers": events.peers_from(service_id, request.peers),
            "bucket": tx.get(schema.BUCKET),
        }
        events.emit_container(tx, context, request, "new", data)
        tx.emit_state()

    route = context.route._replace(peers=request.peers) if request.peers else context.route
    return Created(created=repository.create(schema.base_name(request.cid), init, context.deadline, route))


def destroy(
    repository: Repository,
    settings: rules.Settings,
    context: Context,
    request: ContainerDestroy,
    service_id: str,
) -> None:
    """Delete the base. "Empty" looks at chunks only: markers and drained objects do not count."""
    rules.check_not_worm(settings, context, "destroy a container")
    rules.check_writable_namespace(settings, context)

    def last(tx: Transaction) -> None:
        if request.sealed and states.current(tx.get) == "enabled":
            raise StatusError(status.CONTAINER_ENABLED, "The container is not the one that was frozen")
        if not request.force and tx.execute("SELECT 1 FROM chunks LIMIT 1").fetchone():
            raise StatusError(status.CONTAINER_NOT_EMPTY, "Container not empty")
        data = {"bucket": tx.get(schema.BUCKET)}
        events.emit_container(tx, context, request, "deleted", data)
        peers = tx.get(schema.PEERS) if repository.replication is not None else ""
        for peer in (peers or service_id).split(","):
            events.emit_container(tx, context, request, "meta2.deleted", {"peer": peer})

    repository.destroy(schema.base_name(request.cid), last, context.deadline, context.route)


def get_properties(reader: Reader, request: ContainerGetProperties) -> Properties:
    """All the admin keys, whatever the status of the container."""
    rules.check_initialised(reader.get)
    properties = reader.all_admin()
    if request.stats:
        for name in _STATISTICS:
            for (value,) in reader.execute(f"PRAGMA {name}"):
                properties[f"stats.{name}"] = str(value)
    return Properties(properties=properties)


def set_properties(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContainerSetProperties
) -> None:
    """Set keys; an empty value deletes; ``clear`` drops the former user keys."""
    rules.check_writable_namespace(settings, context)
    rules.check_initialised(tx.get)
    system, user = rules.container_properties(request.properties)
    rules.check_system_keys(system, tx.get)
    changed: dict[str, str | None] = {}
    if request.clear:
        for key in _user_keys(tx):
            tx.unset(key)
            changed[key] = None
    for key, value in (*system.items(), *user.items()):
        if value:
            tx.set(key, value)
            changed[key] = value
        elif tx.get(key) is not None:
            tx.unset(key)
            changed[key] = None
    if changed:
        _emit_update(tx, context, request, changed)


def del_properties(
    tx: Transaction, settings: rules.Settings, context: Context, request: ContainerDelProperties
) -> None:
    """Delete keys; an empty list deletes all user keys; unknown names are not an error."""
    rules.check_writable_namespace(settings, context)
    rules.check_initialised(tx.get)
    system, _user = rules.container_properties(dict.fromkeys(request.names, ""))
    rules.check_system_keys(system, tx.get)
    changed: dict[str, str | None] = {}
    for key in request.names or _user_keys(tx):
        if tx.get(key) is not None:
            tx.unset(key)
            changed[key] = None
    if changed:
        _emit_update(tx, context, request, changed)


def touch(repository: Repository, context: Context, request: ContainerTouch) -> None:
    """Emit the state again, after counting again when asked.

    The rows are counted by a reader, so that writers do not wait; what they change meanwhile is in the
    difference between the counters that the reader saw and those in place.
    """
    base_name = schema.base_name(request.cid)
    if not (request.recompute or request.damaged_objects or request.missing_chunks):
        repository.write(base_name, _tell_state, deadline=context.deadline, route=context.route)
        return

    def count(reader: Reader) -> tuple[dict[str, str], dict[str, int]]:
        rules.check_initialised(reader.get)
        with scans.bounded(reader, context.deadline):
            admin = {key: rows.text(value) for key, value in reader.execute("SELECT k, v FROM admin")}
            return admin, _count(reader.execute, request)

    seen, counted = repository.read(base_name, count, deadline=context.deadline, route=context.route)
    repository.write(
        base_name, lambda tx: _correct(tx, request, seen, counted), deadline=context.deadline, route=context.route
    )


def _tell_state(tx: Transaction) -> None:
    rules.check_initialised(tx.get)
    tx.emit_state()


def _count(execute: rows.Execute, request: ContainerTouch) -> dict[str, int]:
    """Counters that a request wants, as the rows say."""
    counted: dict[str, int] = {}
    if request.recompute:
        counted[schema.USAGE], counted[schema.OBJECTS] = rows.recompute(execute)
    if request.damaged_objects or request.missing_chunks:
        damaged, missing = rows.recount_missing(execute)
        if request.damaged_objects:
            counted[schema.DAMAGED] = damaged
        if request.missing_chunks:
            counted[schema.MISSING] = missing
    return counted


def _correct(
    tx: Transaction, request: ContainerTouch, seen: dict[str, str], counted: dict[str, int]
) -> None:
    """Correct the counters by what a count found wrong in those that it saw."""
    rules.check_initialised(tx.get)
    wrong = {key: value - _number(seen.get(key)) for key, value in counted.items()}
    if max(wrong.values()) > 0 and any(tx.get(key) != seen.get(key) for key in _ROW_VERSIONS):
        # A counter that is too low stops at zero, so that its changes since then are not known.
        counted = _count(tx.execute, request)
    else:
        counted = {key: max(0, rows.counter(tx, key) + wrong[key]) for key in counted}
    for key, value in counted.items():
        # Some are absent until they are needed.
        if value or tx.get(key) is not None:
            tx.set(key, str(value))
    tx.emit_state()


def _number(text: str | None) -> int:
    try:
        return int(text or "0")
    except ValueError:
        return 0


def _user_keys(tx: Transaction) -> list[str]:
    return [key for key in tx.all_admin() if key.startswith("user.")]


def _short(user: dict[str, str]) -> dict[str, str]:
    return {key[5:]: value for key, value in user.items()}


def _emit_update(
    tx: Transaction, context: Context, target: ContainerTarget, changed: dict[str, str | None]
) -> None:
    system = {key: value for key, value in changed.items() if not key.startswith("user.")}
    user = {key[5:]: value for key, value in changed.items() if key.startswith("user.")}
    data = {"system": system, "properties": user, "bucket": tx.get(schema.BUCKET)}
    events.emit_container(tx, context, target, "update", data)
    if _touches_state(changed):
        tx.emit_state()


def _touches_state(keys: Iterable[str]) -> bool:
    return any(key in _STATE_KEYS for key in keys)
