# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What meta1 does with references, as functions of a transaction.

A base holds every reference whose container id starts with its prefix. Each function takes a transaction
of the base (:class:`Transaction`) and the request, and either returns the reply or raises ``StatusError``,
in which case nothing is changed. All functions named in :data:`WRITES` run one at a time under the writer
of the base: that is what makes ``link`` idempotent (two proxies that propose different services at the same
time both get the ones that were stored first).

Changes of links emit the event ``account.services`` in the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any, Protocol

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import (
    ContainerTarget,
    Created,
    ReferenceCreate,
    ReferenceDelProperties,
    ReferenceDestroy,
    ReferenceForce,
    ReferenceLink,
    ReferenceRelink,
    ReferenceReply,
    ReferenceSetProperties,
    ReferenceShow,
    ReferenceUnlink,
    ServiceLink,
    ServiceLinks,
)

#: Tables of one base. ``services.url`` is the comma-separated list of the hosts of one set.
SCHEMA = """
CREATE TABLE users (
    cid BLOB NOT NULL PRIMARY KEY,
    account TEXT NOT NULL,
    user TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE services (
    cid BLOB NOT NULL,
    srvtype TEXT NOT NULL,
    seq INTEGER NOT NULL,
    url TEXT NOT NULL,
    args TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (cid, srvtype, seq)
) WITHOUT ROWID;
CREATE TABLE properties (
    cid BLOB NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (cid, name)
) WITHOUT ROWID;
"""
SCHEMA_VERSION = "1.0"

EVENT_SERVICES = "account.services"


class Transaction(Protocol):
    """What the functions below need of the engine."""

    def execute(self, sql: str, bindings: tuple[Any, ...] = ...) -> Iterable[tuple[Any, ...]]:
        """Run one statement and return its rows."""

    def emit(self, event: dict[str, Any]) -> None:
        """Add an event to the outbox of the transaction."""


# --- reads ----------------------------------------------------------------------------------------


def show(tx: Transaction, request: ReferenceShow, context: Context) -> ReferenceReply:
    """Names, links (of one type when given) and properties."""
    cid = bytes.fromhex(request.cid)
    account, name = _require(tx, cid, request)
    return ReferenceReply(
        cid=request.cid,
        account=account,
        name=name,
        services=_links(tx, cid, request.type),
        properties=_properties(tx, cid) if request.with_properties else {},
    )


def linked(tx: Transaction, request: ReferenceLink, context: Context) -> ServiceLinks | None:
    """Answer of ``link`` when something is linked already, which needs no write; else ``None``."""
    if request.renew:
        return None
    links = _links(tx, bytes.fromhex(request.cid), request.type)
    return ServiceLinks(services=links) if links else None


# --- writes ---------------------------------------------------------------------------------------


def create(tx: Transaction, request: ReferenceCreate, context: Context) -> Created:
    """Create a reference; of one that exists nothing is changed, properties included."""
    cid = bytes.fromhex(request.cid)
    if _names(tx, cid) is not None:
        return Created(created=False)
    _insert(tx, cid, request)
    _put_properties(tx, cid, request.properties)
    _emit_services(tx, cid, request, context)
    return Created(created=True)


def destroy(tx: Transaction, request: ReferenceDestroy, context: Context) -> None:
    """Delete a reference and its properties; 407 while services are linked, unless ``force``."""
    cid = bytes.fromhex(request.cid)
    _require(tx, cid, request)
    links = _links(tx, cid)
    if links and not request.force:
        raise StatusError(
            status.REFERENCE_IN_USE,
            f"Reference {request.cid} is linked to {links[0].type} {links[0].host}"
            f" ({len(links)} links)",
        )
    if links:
        tx.execute("DELETE FROM services WHERE cid = ?", (cid,))
        _emit_services(tx, cid, request, context)
    for table in ("properties", "users"):
        tx.execute(f"DELETE FROM {table} WHERE cid = ?", (cid,))


def link(tx: Transaction, request: ReferenceLink, context: Context) -> ServiceLinks:
    """Link the proposed services, unless some of this type are linked already: then these are returned.

    With ``renew`` the proposed services are added under the next ``seq`` whatever is linked; with ``replace``
    they are then the only ones of their type.
    """
    if not request.type:
        raise StatusError(status.BAD_REQUEST, "Missing service type")
    cid = bytes.fromhex(request.cid)
    known = _names(tx, cid) is not None
    if not known and not request.autocreate:
        raise not_found(request)
    links = _links(tx, cid, request.type) if known else []
    if links and not request.renew:
        return ServiceLinks(services=links)
    if not request.proposed:
        raise StatusError(
            status.NO_SERVICE_LINKED,
            f"No service of type {request.type} linked to {request.cid}, none proposed",
        )
    seq = links[-1].seq + 1 if links else 1
    hosts = ",".join(request.proposed)
    if request.replace:
        links = []
    if not request.dryrun:
        if not known:
            _insert(tx, cid, request)
        if request.replace:
            tx.execute("DELETE FROM services WHERE cid = ? AND srvtype = ?", (cid, request.type))
        tx.execute(
            "INSERT INTO services (cid, srvtype, seq, url, args) VALUES (?, ?, ?, ?, '')",
            (cid, request.type, seq, hosts),
        )
        _emit_services(tx, cid, request, context)
    links += _expand(request.type, seq, hosts, "")
    return ServiceLinks(services=links)


def relink(tx: Transaction, request: ReferenceRelink, context: Context) -> ServiceLinks:
    """Replace some services of a set; 407 when it is not made of those kept and those replaced any more."""
    cid = bytes.fromhex(request.cid)
    _require(tx, cid, request)
    current = [one for one in _links(tx, cid, request.type) if one.seq == request.seq]
    if not current or sorted(one.host for one in current) != sorted(request.kept + request.replaced):
        raise StatusError(
            status.REFERENCE_IN_USE,
            f"Services changed: {request.cid} has {','.join(one.host for one in current) or 'nothing'}"
            f" of type {request.type} with seq {request.seq}",
        )
    hosts = ",".join([*request.kept, *request.chosen])
    if not hosts:
        raise StatusError(status.BAD_REQUEST, "No service would be left in the set")
    if not request.dryrun:
        tx.execute(
            "UPDATE services SET url = ? WHERE cid = ? AND srvtype = ? AND seq = ?",
            (hosts, cid, request.type, request.seq),
        )
        _emit_services(tx, cid, request, context)
    return ServiceLinks(services=_expand(request.type, request.seq, hosts, current[0].args))


def unlink(tx: Transaction, request: ReferenceUnlink, context: Context) -> None:
    """Remove the links of a type (of one ``seq`` when it is given); 454 when there is none."""
    cid = bytes.fromhex(request.cid)
    _require(tx, cid, request)
    if not any(not request.seq or one.seq == request.seq for one in _links(tx, cid, request.type)):
        raise StatusError(
            status.NO_SERVICE_LINKED, f"No service of type {request.type} linked to {request.cid}"
        )
    tx.execute(
        "DELETE FROM services WHERE cid = ?1 AND srvtype = ?2 AND (?3 = 0 OR seq = ?3)",
        (cid, request.type, request.seq),
    )
    _emit_services(tx, cid, request, context)


def force(tx: Transaction, request: ReferenceForce, context: Context) -> None:
    """Store a link as it is given; 455 when its ``seq`` is taken, unless ``replace``."""
    cid = bytes.fromhex(request.cid)
    service = request.service
    if not service.type or not service.host or service.seq <= 0:
        raise StatusError(status.BAD_REQUEST, "A link needs a type, a host and a seq above 0")
    if _names(tx, cid) is None:
        if not request.autocreate:
            raise not_found(request)
        _insert(tx, cid, request)
    elif not request.replace and any(
        one.seq == service.seq for one in _links(tx, cid, service.type)
    ):
        raise StatusError(
            status.SERVICE_ALREADY_LINKED,
            f"{request.cid} has a link of type {service.type} with seq {service.seq} already",
        )
    tx.execute(
        "INSERT OR REPLACE INTO services (cid, srvtype, seq, url, args) VALUES (?, ?, ?, ?, ?)",
        (cid, service.type, service.seq, service.host, service.args),
    )
    _emit_services(tx, cid, request, context)


def set_properties(tx: Transaction, request: ReferenceSetProperties, context: Context) -> None:
    """Set properties; an empty value deletes, ``clear`` removes the former ones first."""
    cid = bytes.fromhex(request.cid)
    _require(tx, cid, request)
    if request.clear:
        tx.execute("DELETE FROM properties WHERE cid = ?", (cid,))
    _put_properties(tx, cid, request.properties)


def del_properties(tx: Transaction, request: ReferenceDelProperties, context: Context) -> None:
    """Delete properties by name (unknown names are ignored); an empty list deletes all."""
    cid = bytes.fromhex(request.cid)
    _require(tx, cid, request)
    if not request.names:
        tx.execute("DELETE FROM properties WHERE cid = ?", (cid,))
    for name in request.names:
        tx.execute("DELETE FROM properties WHERE cid = ? AND name = ?", (cid, name))


Function = Callable[[Any, Any, Context], Any]

#: Operations that only read.
READS: dict[type[ContainerTarget], Function] = {ReferenceShow: show}

#: Operations that change the base.
WRITES: dict[type[ContainerTarget], Function] = {
    ReferenceCreate: create,
    ReferenceDestroy: destroy,
    ReferenceLink: link,
    ReferenceRelink: relink,
    ReferenceUnlink: unlink,
    ReferenceForce: force,
    ReferenceSetProperties: set_properties,
    ReferenceDelProperties: del_properties,
}


def may_create(request: ContainerTarget) -> bool:
    """May this request create a reference, hence the base it belongs to?"""
    if isinstance(request, ReferenceCreate):
        return True
    return isinstance(request, (ReferenceLink, ReferenceForce)) and request.autocreate


def not_found(request: ContainerTarget) -> StatusError:
    """Error of a reference that does not exist."""
    return StatusError(status.REFERENCE_NOT_FOUND, f"Reference not found: {_label(request)}")


# --- helpers --------------------------------------------------------------------------------------


def _label(request: ContainerTarget) -> str:
    if request.name:
        return f"{request.account}/{request.name} ({request.cid})"
    return request.cid


def _names(tx: Transaction, cid: bytes) -> tuple[str, str] | None:
    for account, name in tx.execute("SELECT account, user FROM users WHERE cid = ?", (cid,)):
        return account, name
    return None


def _require(tx: Transaction, cid: bytes, request: ContainerTarget) -> tuple[str, str]:
    names = _names(tx, cid)
    if names is None:
        raise not_found(request)
    return names


def _insert(tx: Transaction, cid: bytes, request: ContainerTarget) -> None:
    """Store a new reference, after a check that its id is the one of its names.

    A reference under a wrong id could never be found by name again.
    """
    if not request.account or not request.name:
        raise StatusError(status.BAD_REQUEST, "Account and name are needed to create a reference")
    if sha256(f"{request.account}\0{request.name}".encode()).digest() != cid:
        raise StatusError(
            status.BAD_REQUEST,
            f"{request.cid} is not the id of {request.account}/{request.name}",
        )
    tx.execute(
        "INSERT INTO users (cid, account, user) VALUES (?, ?, ?)",
        (cid, request.account, request.name),
    )


def _links(tx: Transaction, cid: bytes, type_: str = "") -> list[ServiceLink]:
    """Links of a reference by type and increasing ``seq``, one host each."""
    rows = tx.execute(
        "SELECT srvtype, seq, url, args FROM services"
        " WHERE cid = ?1 AND (?2 = '' OR srvtype = ?2) ORDER BY srvtype, seq",
        (cid, type_),
    )
    return [one for type_, seq, hosts, args in rows for one in _expand(type_, seq, hosts, args)]


def _expand(type_: str, seq: int, hosts: str, args: str) -> list[ServiceLink]:
    return [ServiceLink(seq=seq, type=type_, host=host, args=args) for host in hosts.split(",")]


def _properties(tx: Transaction, cid: bytes) -> dict[str, str]:
    rows = tx.execute("SELECT name, value FROM properties WHERE cid = ?", (cid,))
    return dict(rows)  # type: ignore[arg-type]


def _put_properties(tx: Transaction, cid: bytes, properties: dict[str, str]) -> None:
    for name, value in properties.items():
        if value:
            tx.execute(
                "INSERT OR REPLACE INTO properties (cid, name, value) VALUES (?, ?, ?)",
                (cid, name, value),
            )
        else:
            tx.execute("DELETE FROM properties WHERE cid = ? AND name = ?", (cid, name))


def _emit_services(
    tx: Transaction, cid: bytes, request: ContainerTarget, context: Context
) -> None:
    """Tell what is linked to the reference now."""
    account, name = _require(tx, cid, request)
    event: dict[str, Any] = {
        "event": EVENT_SERVICES,
        "when": time.time_ns() // 1000,
        "url": {"ns": context.namespace, "account": account, "user": name, "id": request.cid},
        "data": [
            {"seq": one.seq, "type": one.type, "host": one.host, "args": one.args}
            for one in _links(tx, cid)
        ],
    }
    if context.reqid:
        event["request_id"] = context.reqid
    if context.origin:
        event["origin"] = context.origin
    tx.emit(event)
