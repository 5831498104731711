# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/snapshot``: a copy of a container under another name (contract: "container/* - container databases",
"snapshot").

The link of the copy is stored only where there is none, in one step of meta1: whoever stored it owns the name, and
nobody else undoes what it did.
"""

from __future__ import annotations

import logging
from typing import Any

from oio.common import status
from oio.common.status import StatusError
from oio.http.messages import Response
from oio.meta.messages import (
    ContainerCopy,
    ContainerDestroy,
    ContainerGetProperties,
    Created,
    Properties,
    ReferenceCreate,
    ReferenceDestroy,
    ReferenceForce,
    ReferenceReply,
    ReferenceShow,
    ReferenceUnlink,
    ServiceLink,
)
from oio.proxy.app import RouteDefinition
from oio.proxy.call import (
    ACCOUNT_MAX_BYTES,
    REFERENCE_MAX_BYTES,
    Call,
    Errand,
    Target,
    bad_request,
)
from oio.proxy.linking import propose
from oio.proxy.routes.container import ROLLBACK_S, refuse_slave

logger = logging.getLogger(__name__)

_EXISTS = "Container already exists"
_STATUS = "sys.status"
_FROZEN = "4294967295"


def snapshot(call: Call) -> Response:
    """``container/snapshot``: copy the base of a container to a new one."""
    refuse_slave(call)
    source = call.target
    destination = _destination(call)
    if destination.cid == source.cid:
        raise bad_request("Invalid 'account' and 'container': they name the source itself")
    resolver = call.proxy.resolver
    resolver.forget(source.cid, "meta2")
    hosts, _ = resolver.services(source.cid, "meta2", call)
    # What was written is in the copy that the master has, not yet in all the others perhaps.
    master = resolver.master_of("meta2", hosts, f"{source.cid}.1", call)
    address = resolver.address("meta2", master)
    peers = propose(call, "meta2")
    created = _claim(call, destination, peers)
    names: dict[str, Any] = destination._asdict()
    request = ContainerCopy(
        **names,
        namespace=call.proxy.namespace,
        source_cid=source.cid,
        source_address=address,
        peers=sorted(peers),
    )
    try:
        resolver.call_services("meta2", peers, request, call, write=True)
    except StatusError as exc:
        # A container was created under this name meanwhile: it owns the link now.
        if exc.code != status.CONTAINER_EXISTS:
            _undo(call, names, created, peers)
        raise
    resolver.learn(destination.cid, "meta2", peers)
    return Response(204)


def _destination(call: Call) -> Target:
    """The container that the body names. :raises StatusError: 400 naming the field."""
    body = call.json_object()
    names = []
    for field, maximum in (("account", ACCOUNT_MAX_BYTES), ("container", REFERENCE_MAX_BYTES)):
        name = body.get(field)
        if not isinstance(name, str) or not name:
            raise bad_request(f"Missing or invalid '{field}': a non-empty string is expected")
        if len(name.encode()) > maximum or "\0" in name:
            raise bad_request(f"Invalid '{field}': at most {maximum} bytes without NUL are expected")
        names.append(name)
    number = body.get("seq_num")
    if number is not None and type(number) is not int:
        raise bad_request("Invalid 'seq_num': an integer is expected")
    if number not in (None, 1):
        raise StatusError(status.CONTAINER_NOT_FOUND, f"The source has no base of sequence number {number}")
    return call.named_target(*names)


def _claim(call: Call, destination: Target, peers: list[str]) -> bool:
    """Make the reference of the copy and link it to its services; was the reference created?

    :raises StatusError: 400 when it is linked already.
    """
    resolver, names = call.proxy.resolver, destination._asdict()
    reply: Created = resolver.call_meta1(ReferenceCreate(**names), call, write=True)
    try:
        if not reply.created:
            shown: ReferenceReply = resolver.call_meta1(
                ReferenceShow(cid=destination.cid, type="meta2"), call, write=False
            )
            if shown.services:
                raise bad_request(_EXISTS)
        link = ServiceLink(type="meta2", host=",".join(peers))
        resolver.call_meta1(ReferenceForce(**names, service=link), call, write=True)
    except StatusError as exc:
        if reply.created and exc.code != status.SERVICE_ALREADY_LINKED:
            _forget_reference(call, names)
        if exc.code == status.SERVICE_ALREADY_LINKED:
            raise bad_request(_EXISTS) from exc
        raise
    return reply.created


def _undo(call: Call, names: dict[str, Any], created: bool, peers: list[str]) -> None:
    """Remove what a failed copy left: perhaps its base, its link, its reference.

    The copy may have been made although its answer was lost. It is frozen: a base that is not was created by
    somebody else through the link, and stays with it.
    """
    resolver, errand = call.proxy.resolver, Errand(call, admin=True, grace_s=ROLLBACK_S)
    try:
        found: Properties = resolver.call_services(
            "meta2", peers, ContainerGetProperties(**names), errand, write=False
        )
        if found.properties.get(_STATUS) != _FROZEN:
            return
        resolver.call_services("meta2", peers, ContainerDestroy(**names, force=True), errand, write=True)
    except StatusError as exc:
        if exc.code != status.CONTAINER_NOT_FOUND:
            logger.warning("the failed copy %s may remain: %s, request %s", names["cid"], exc, call.reqid)
    try:
        resolver.forget(names["cid"], "meta2")
        resolver.call_meta1(ReferenceUnlink(**names, type="meta2"), errand, write=True)
    except StatusError as exc:
        logger.error(
            "the link of the failed copy %s (%s/%s) remains: %s, request %s",
            names["cid"], names["account"], names["name"], exc, call.reqid,
        )
        return
    if created:
        _forget_reference(call, names)


def _forget_reference(call: Call, names: dict[str, Any]) -> None:
    """Delete a reference that was created in vain, unless something was linked to it since."""
    errand = Errand(call, admin=True, grace_s=ROLLBACK_S)
    try:
        call.proxy.resolver.call_meta1(ReferenceDestroy(**names), errand, write=True)
    except StatusError as exc:
        if exc.code not in (status.REFERENCE_NOT_FOUND, status.REFERENCE_IN_USE):
            logger.error(
                "the reference %s (%s/%s) of a failed copy remains: %s, request %s",
                names["cid"], names["account"], names["name"], exc, call.reqid,
            )


ROUTES = [RouteDefinition("POST", "container/snapshot", snapshot, meta2=True)]
