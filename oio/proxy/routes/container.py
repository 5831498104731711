# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/*``: life of containers (contract: "container/* - container databases")."""

from __future__ import annotations

import logging
from typing import Any

from oio.common import status
from oio.common.status import StatusError, http_status
from oio.http.messages import Response
from oio.meta.messages import (
    ContainerCreate,
    ContainerDestroy,
    ContainerGetProperties,
    ContainerSetStatus,
    ContainerTouch,
    Created,
    Operation,
    ReferenceForce,
    ReferenceReply,
    ReferenceShow,
    ReferenceUnlink,
    ServiceLink,
    ServiceLinks,
)
from oio.proxy.app import RouteDefinition, mapped_error
from oio.proxy.call import Call, Errand, Target, bad_request, json_reply, string_map
from oio.proxy.linking import IMPOSSIBLE_CODES, link_services, whole_sets
from oio.proxy.policies import STORAGE_POLICY, policy_changed
from oio.proxy.resolver import hosts_of

logger = logging.getLogger(__name__)

#: The base that was to be destroyed is not there: there is none, or another one.
_GONE = frozenset({status.CONTAINER_NOT_FOUND, status.CONTAINER_ENABLED})
#: What tells that a container is not there: no reference, or no base.
CONTAINER_MISSING = frozenset({status.REFERENCE_NOT_FOUND, status.CONTAINER_NOT_FOUND})

#: Time allowed to put things back after a failure, whatever is left of the deadline of the client (seconds).
ROLLBACK_S = 10.0

#: Times that a new base is linked again while others create and destroy the same container.
RELINK_ATTEMPTS = 3

USER = "user."
SYSTEM = "sys."


# --- create ---------------------------------------------------------------------------------------------


def create(call: Call) -> Response:
    """``container/create``: 201 when created, 204 when it was there."""
    target = call.target
    properties = prefixed_properties(call.json_object_or_nothing())
    try:
        created = create_container(call, target, properties)
    except StatusError as exc:
        # An unknown policy is found before anything is linked, and keeps its own status.
        impossible = exc.code in IMPOSSIBLE_CODES and exc.code != status.POLICY_NOT_SUPPORTED
        if impossible or http_status(exc.code, meta2=True) == 404:
            return mapped_error(403, exc)
        raise
    return Response(201 if created else 204)


def create_many(call: Call) -> Response:
    """``container/create_many``: each container on its own, outcomes in the order of the request."""
    account = call.required("acct")
    containers = call.named_items("containers", call.proxy.variables["proxy.bulk.max.create_many"])
    wanted = [
        (call.named_target(account, item["name"]), prefixed_properties(item)) for item in containers
    ]
    outcomes = []
    for target, properties in wanted:
        try:
            created = create_container(call, target, properties)
            code, message = (201, "ok") if created else (status.CONTAINER_EXISTS, "Container already exists")
        except StatusError as exc:
            code, message = exc.code, exc.message
        outcomes.append({"name": target.name, "status": code, "message": message})
    return json_reply({"containers": outcomes})


def create_container(call: Call, target: Target, properties: dict[str, str]) -> bool:
    """Make the reference, its links and the base, as far as they are missing; was the base created?"""
    proxy = call.proxy
    if not target.account or not target.name:
        raise bad_request("Invalid oio url: parameters 'acct' and 'ref' are needed to create a container")
    refuse_slave(call)
    check_policy(call, properties)
    links: ServiceLinks = link_services(call, target, "meta2", autocreate=True)
    hosts = hosts_of(links.services)
    proxy.resolver.learn(target.cid, "meta2", hosts)
    reply: Created = proxy.resolver.call_meta2(
        ContainerCreate(
            cid=target.cid,
            account=target.account,
            name=target.name,
            namespace=proxy.namespace,
            peers=sorted(hosts),
            properties=properties,
        ),
        call,
        write=True,
    )
    if reply.created:
        _keep_linked(call, target, links)
        if STORAGE_POLICY in properties:
            policy_changed(call, target.cid)
    return reply.created


def _keep_linked(call: Call, target: Target, links: ServiceLinks) -> None:
    """Link a new base again when a destruction removed its link meanwhile, so that what enters it stays in sight.

    The destruction may have begun after the link was read and ended before the base was made. It unlinks before it
    deletes, and the base could be made since the former one was deleted: no unlinking of that one is to come.

    :raises StatusError: 455 when the reference was linked to other services meanwhile; 503 when others create and
        destroy it all the time.
    """
    made = sorted(hosts_of(links.services))
    for _ in range(RELINK_ATTEMPTS):
        linked = sorted(_linked_hosts(call, target))
        if linked == made:
            return
        if linked:
            raise StatusError(
                status.SERVICE_ALREADY_LINKED,
                f"{target.cid} was linked to {','.join(linked)} while its base was made on {','.join(made)}",
            )
        try:
            for link in whole_sets(links.services):
                request = ReferenceForce(
                    cid=target.cid, account=target.account, name=target.name, service=link, autocreate=True
                )
                call.proxy.resolver.call_meta1(request, call, write=True)
            return
        except StatusError as exc:
            if exc.code != status.SERVICE_ALREADY_LINKED:
                raise
    raise StatusError(
        status.UNAVAILABLE, f"the link of {target.cid} to {','.join(made)} comes and goes: it is being destroyed"
    )


def _linked_hosts(call: Call, target: Target) -> list[str]:
    """Services that meta1 says to hold a container, [] without reference."""
    request = ReferenceShow(cid=target.cid, type="meta2", with_properties=False)
    try:
        shown: ReferenceReply = call.proxy.resolver.call_meta1(request, call, write=False)
    except StatusError as exc:
        if exc.code != status.REFERENCE_NOT_FOUND:
            raise
        return []
    return hosts_of(shown.services)


def check_policy(call: Call, properties: dict[str, str]) -> None:
    """Refuse a storage policy that the namespace does not have. :raises StatusError: 480."""
    policy = properties.get(STORAGE_POLICY)
    if policy:
        call.proxy.world.policy(policy)


def prefixed_properties(body: dict[str, Any]) -> dict[str, str]:
    """Complete keys of the ``properties`` and ``system`` of a body. :raises StatusError: 400 on a bad name."""
    result = {
        USER + key: value for key, value in string_map(body.get("properties"), "properties", "").items()
    }
    for key, value in string_map(body.get("system"), "system", "").items():
        if not key.startswith((SYSTEM, USER)):
            raise bad_request(f"Invalid property name: {key!r} in 'system' does not begin with 'sys.'")
        result[key] = value
    return result


# --- destroy -----------------------------------------------------------------------------------------------


def destroy(call: Call) -> Response:
    """``container/destroy``: freeze the base, unlink it, delete it; what was done is undone when a step fails.

    The base is frozen and found empty in one transaction, so that nothing can enter it afterwards. It is unlinked
    before it is deleted: whoever creates the container again meanwhile gets a new link, which stays; the other way
    round the link of a new base would be removed.
    """
    proxy, target = call.proxy, call.target
    if proxy.variables["ns.worm"] and not call.admin:
        raise StatusError(status.NOT_ALLOWED, "NS wormed! Cannot destroy a container.")
    refuse_slave(call)
    resolver = proxy.resolver
    resolver.forget(target.cid, "meta2")
    shown: ReferenceReply = resolver.call_meta1(
        ReferenceShow(cid=target.cid, type="meta2"), call, write=False
    )
    links = shown.services
    hosts = hosts_of(links)
    if not hosts:
        raise StatusError(status.CONTAINER_NOT_FOUND, "No service located")
    names: dict[str, Any] = {
        "cid": target.cid,
        "account": target.account or shown.account,
        "name": target.name or shown.name,
    }
    force = call.flag("force")
    there, frozen = _freeze(call, hosts, names, only_empty=not force)
    unlinked = False
    try:
        resolver.call_meta1(ReferenceUnlink(**names, type="meta2"), call, write=True)
        unlinked = True
        # A request that is sent again must not hit a base that somebody made after it was done.
        request = ContainerDestroy(**names, force=force, sealed=there)
        resolver.call_services("meta2", hosts, request, call, write=True)
    except StatusError as exc:
        if exc.code in _GONE and unlinked and there and exc.resent:
            # Done by the request whose answer was lost on the way: others find no link to remove, but in the rare
            # case of one that was put back meanwhile.
            return Response(204)
        if exc.code == status.NO_SERVICE_LINKED:
            # Somebody else is destroying it: the link is theirs to put back.
            links = []
        if exc.code not in CONTAINER_MISSING:
            _put_back(call, names, links, hosts, frozen)
        raise
    return Response(204)


def _freeze(call: Call, hosts: list[str], names: dict[str, Any], only_empty: bool) -> tuple[bool, bool]:
    """Make sure that a base does not change any more; is there a base, and did this freeze it?

    :raises StatusError: 438 when it is not empty.
    """
    request = ContainerSetStatus(**names, status="frozen", only_empty=only_empty)
    try:
        call.proxy.resolver.call_services("meta2", hosts, request, call, write=True)
    except StatusError as exc:
        # Frozen or disabled already: as good. Linked but absent: what remains is the link, to be removed.
        if exc.code in (status.CONTAINER_FROZEN, status.CONTAINER_DISABLED, status.CONTAINER_NOT_FOUND):
            return exc.code != status.CONTAINER_NOT_FOUND, False
        raise
    return True, True


def _put_back(
    call: Call, names: dict[str, Any], links: list[ServiceLink], hosts: list[str], frozen: bool
) -> None:
    """Enable the base of a container when it was ``frozen`` for its destruction, and link it again.

    Nothing is linked when there is no base any more: somebody else destroyed it meanwhile. Its account took the
    removal of the link for the end of the container: the base tells that it lives.
    """
    resolver, errand = call.proxy.resolver, Errand(call, grace_s=ROLLBACK_S)
    if not _stands(call, names, hosts, frozen, errand):
        return
    for link in whole_sets(links):
        try:
            resolver.call_meta1(ReferenceForce(**names, service=link), errand, write=True)
        except StatusError as exc:
            if exc.code == status.SERVICE_ALREADY_LINKED:
                continue
            logger.error(
                "container %s (%s/%s) could not be destroyed, and its link to %s is lost: %s, request %s",
                names["cid"], names["account"], names["name"], link.host, exc, call.reqid,
            )
    if links:
        _order(call, names, hosts, ContainerTouch(**names), errand, "out of its account until it changes")


def _stands(call: Call, names: dict[str, Any], hosts: list[str], frozen: bool, errand: Errand) -> bool:
    """Enable a base that was frozen; is it there, as far as anybody knows?"""
    if frozen:
        thaw = ContainerSetStatus(**names, status="enabled", tolerant=True)
        return _order(call, names, hosts, thaw, errand, "frozen")
    try:
        request = ContainerGetProperties(**names, stats=False)
        call.proxy.resolver.call_services("meta2", hosts, request, errand, write=False)
    except StatusError as exc:
        return exc.code != status.CONTAINER_NOT_FOUND
    return True


def _order(
    call: Call, names: dict[str, Any], hosts: list[str], request: Operation, errand: Errand, otherwise: str
) -> bool:
    """Have the base of a container do something; False when there is no base.

    :param otherwise: what the container stays when this fails, for the log.
    """
    try:
        call.proxy.resolver.call_services("meta2", hosts, request, errand, write=True)
    except StatusError as exc:
        if exc.code == status.CONTAINER_NOT_FOUND:
            return False
        logger.error(
            "container %s (%s/%s) could not be destroyed, and stays %s: %s, request %s",
            names["cid"], names["account"], names["name"], otherwise, exc, call.reqid,
        )
    return True


def refuse_slave(call: Call) -> None:
    """Refuse a change of several steps before the first one, when the namespace is a slave."""
    if not call.proxy.variables["ns.master"] and not call.admin:
        raise StatusError(status.INTERNAL_ERROR, "NS slave!")


ROUTES = [
    RouteDefinition("POST", "container/create", create, meta2=True),
    RouteDefinition("POST", "container/create_many", create_many, meta2=True),
    RouteDefinition("POST", "container/destroy", destroy, meta2=True),
]
