# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``reference/*``: the directory of references (contract: "reference/* - the directory of references")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from oio.common.status import (
    POLICY_NOT_SATISFIABLE,
    REFERENCE_IN_USE,
    REFERENCE_NOT_FOUND,
    UNAVAILABLE,
    StatusError,
)
from oio.http.messages import Response
from oio.meta.messages import (
    ContainerTarget,
    Created,
    ReferenceCreate,
    ReferenceDelProperties,
    ReferenceDestroy,
    ReferenceForce,
    ReferenceRelink,
    ReferenceReply,
    ReferenceSetProperties,
    ReferenceShow,
    ReferenceUnlink,
    ServiceLink,
    ServiceLinks,
)
from oio.proxy.app import RouteDefinition, mapped_error
from oio.proxy.call import INT64_MAX, Call, bad_request, json_reply, string_list, string_map
from oio.proxy.linking import IMPOSSIBLE_CODES, link_services, renew_services


class _Link(msgspec.Struct):
    """A link as clients send it: the four keys must be there."""

    seq: int
    type: str
    host: str
    args: str


def create(call: Call) -> Response:
    """``reference/create``: 201, or 202 when it existed."""
    target = call.target
    body = call.json()
    if body is not None and not isinstance(body, dict):
        raise bad_request("Invalid body: an object is expected")
    properties = string_map((body or {}).get("properties"), "properties", "")
    if not target.account or not target.name:
        raise bad_request("Invalid oio url: parameters 'acct' and 'ref' are needed to create a reference")
    reply: Created = _write(
        call,
        ReferenceCreate(
            cid=target.cid, account=target.account, name=target.name, properties=properties
        ),
    )
    return Response(201 if reply.created else 202)


def destroy(call: Call) -> Response:
    """``reference/destroy``: 403 when services are still linked, unless ``force``."""
    target = call.target
    resolver = call.proxy.resolver
    try:
        _write(
            call,
            ReferenceDestroy(
                cid=target.cid, account=target.account, name=target.name, force=call.flag("force")
            ),
        )
    except StatusError as exc:
        if exc.code == REFERENCE_IN_USE:
            return mapped_error(403, exc)
        raise
    world = call.proxy.feed.world
    for service_type in world.types if world is not None else ():
        resolver.forget(target.cid, service_type)
    return Response(204)


def has(call: Call) -> Response:
    """``reference/has``: 204 when the reference exists, 404 when it does not."""
    target = call.target
    _read(
        call,
        ReferenceShow(
            cid=target.cid, account=target.account, name=target.name, with_properties=False
        ),
    )
    return Response(204)


def show(call: Call) -> Response:
    """``reference/show``: directory services in charge, services linked."""
    target = call.target
    resolver = call.proxy.resolver
    try:
        # The mapping may be forgotten and learnt again by the call below: what is told is what answered.
        resolver.meta1(target.cid, call)
    except StatusError as exc:
        raise StatusError(exc.code, f"No META1: {exc.message.removeprefix('No META1: ')}") from exc
    try:
        reply = _read(
            call,
            ReferenceShow(
                cid=target.cid,
                account=target.account,
                name=target.name,
                type=call.args.get("type", ""),
                with_properties=False,
            ),
        )
    except StatusError as exc:
        if exc.code in (REFERENCE_NOT_FOUND, UNAVAILABLE):
            raise
        raise StatusError(exc.code, f"META1 error: {exc.message}") from exc
    directory = [
        _link_item(1, "meta0", resolver.address("meta0", service), "") for service in resolver.meta0()
    ]
    for service in resolver.meta1(target.cid, call):
        directory.append(_link_item(1, "meta1", resolver.address("meta1", service), ""))
    return json_reply(
        {
            "dir": directory,
            "srv": _link_items(reply.services),
            "cid": target.cid,
            "account": reply.account or target.account,
            "name": reply.name or target.name,
        }
    )


def get_properties(call: Call) -> Response:
    """``reference/get_properties``: all of them, or those named in the body."""
    target = call.target
    body = call.json()
    names = string_list(body, "body") if body is not None else []
    reply = _read(call, ReferenceShow(cid=target.cid, account=target.account, name=target.name))
    properties = reply.properties
    if names:
        properties = {name: properties[name] for name in names if name in properties}
    return json_reply({"cid": target.cid, "properties": properties})


def set_properties(call: Call) -> Response:
    """``reference/set_properties``: an empty value deletes; ``flush`` removes the others first."""
    target = call.target
    properties = string_map(call.json_object().get("properties"), "properties", "")
    _write(
        call,
        ReferenceSetProperties(
            cid=target.cid,
            account=target.account,
            name=target.name,
            properties=properties,
            clear="flush" in call.args,
        ),
    )
    return Response(204)


def del_properties(call: Call) -> Response:
    """``reference/del_properties``: an empty array deletes all."""
    target = call.target
    names = string_list(call.json(), "body")
    _write(
        call,
        ReferenceDelProperties(
            cid=target.cid, account=target.account, name=target.name, names=names
        ),
    )
    return Response(204)


def link(call: Call) -> Response:
    """``reference/link``: services linked, chosen when there was none."""
    return _linked(call, link_services)


def renew(call: Call) -> Response:
    """``reference/renew``: link again, after the update policy of the type."""
    return _linked(call, renew_services)


def unlink(call: Call) -> Response:
    """``reference/unlink``: 454 when nothing was linked."""
    service_type, target = call.required("type"), call.target
    _write(
        call,
        ReferenceUnlink(
            cid=target.cid, account=target.account, name=target.name, type=service_type
        ),
    )
    call.proxy.resolver.forget(target.cid, service_type)
    return Response(204)


def force(call: Call) -> Response:
    """``reference/force``: store the link of the body as it is."""
    service_type, target = call.required("type"), call.target
    body = call.json_object()
    try:
        wanted = msgspec.convert(body, _Link)
    except msgspec.ValidationError as exc:
        raise bad_request(f"Invalid service link: {exc}") from None
    if not wanted.host or not all(wanted.host.split(",")):
        raise bad_request("Invalid service link: empty 'host'")
    if not 0 < wanted.seq <= INT64_MAX:
        raise bad_request("Invalid service link: 'seq' is not above 0")
    if wanted.type != service_type:
        raise bad_request("Invalid service link: its 'type' differs from the parameter 'type'")
    request = ReferenceForce(
        cid=target.cid,
        account=target.account,
        name=target.name,
        service=ServiceLink(seq=wanted.seq, type=wanted.type, host=wanted.host, args=wanted.args),
        replace=call.flag("replace"),
        autocreate=call.flag("autocreate"),
    )
    try:
        _write(call, request)
    except StatusError as exc:
        if exc.code in IMPOSSIBLE_CODES:
            return mapped_error(403, exc)
        raise
    call.proxy.resolver.forget(target.cid, service_type)
    return Response(204)


def relink(call: Call) -> Response:
    """``reference/relink``: keep some services of a set, choose others in the place of the rest.

    The set must be the one that the body tells, which meta1 checks in the transaction of the change.
    """
    service_type, target = call.required("type"), call.target
    kept, replaced, seq = _relinked_sets(call, service_type)
    chosen = _services_beside(call, service_type, kept, replaced)
    dryrun = call.flag("dryrun")
    links: ServiceLinks = _write(
        call,
        ReferenceRelink(
            cid=target.cid,
            account=target.account,
            name=target.name,
            type=service_type,
            seq=seq,
            kept=kept,
            replaced=replaced,
            chosen=chosen,
            dryrun=dryrun,
        ),
    )
    if not dryrun:
        call.proxy.resolver.forget(target.cid, service_type)
    return json_reply(_link_items(links.services))


def _relinked_sets(call: Call, service_type: str) -> tuple[list[str], list[str], int]:
    """Hosts to keep, hosts to replace, and their sequence number. :raises StatusError: 400 on a bad body."""
    body = call.json_object()
    try:
        links = [msgspec.convert(body.get(key), _Link | None) for key in ("kept", "replaced")]
    except msgspec.ValidationError as exc:
        raise bad_request(f"Invalid service link: {exc}") from None
    given = [link for link in links if link is not None]
    if not given:
        raise bad_request("Missing 'kept' or 'replaced'")
    if any((link.type, link.seq) != (service_type, given[0].seq) for link in given):
        raise bad_request("'kept', 'replaced' and the parameter 'type' do not agree on type and seq")
    kept, replaced = ([] if link is None else [host for host in link.host.split(",") if host] for link in links)
    return kept, replaced, given[0].seq


def _services_beside(call: Call, service_type: str, kept: list[str], replaced: list[str]) -> list[str]:
    """Services chosen for the places that ``kept`` leaves, none where ``replaced`` are."""
    call.proxy.feed.check_type(service_type)
    world = call.proxy.world
    pool = world.pool(service_type)
    if pool is None or len(kept) >= len(pool.targets):
        raise StatusError(POLICY_NOT_SATISFIABLE, "Too many services kept")
    known = [item.location for host in kept if (item := world.find(service_type, host)) is not None]
    avoid = [item.location for host in replaced if (item := world.find(service_type, host)) is not None]
    selection = pool.poll(avoid=avoid, known=known, known_elsewhere=len(kept) - len(known))
    return [choice.item.id for choice in selection.choices]


def _read(call: Call, request: ReferenceShow) -> ReferenceReply:
    """Ask the meta1 of the reference, or those that the request names."""
    reply: ReferenceReply = call.proxy.resolver.call_meta1(request, call, write=False, only=call.only)
    return reply


def _write(call: Call, request: ContainerTarget) -> Any:
    """Have the meta1 of the reference, or those that the request names, change it."""
    return call.proxy.resolver.call_meta1(request, call, write=True, only=call.only)


def _linked(call: Call, choose: Callable[..., ServiceLinks]) -> Response:
    service_type, target = call.required("type"), call.target
    autocreate, dryrun = call.flag("autocreate"), call.flag("dryrun")
    try:
        links = choose(
            call, target, service_type, autocreate=autocreate, dryrun=dryrun, only=call.only
        )
    except StatusError as exc:
        if exc.code in IMPOSSIBLE_CODES:
            return mapped_error(403, exc)
        raise
    return json_reply(_link_items(links.services))


def _link_items(links: list[ServiceLink]) -> list[dict[str, Any]]:
    """Links as clients see them: one host each."""
    return [
        _link_item(link.seq, link.type, host, link.args)
        for link in links
        for host in link.host.split(",")
    ]


def _link_item(seq: int, service_type: str, host: str, args: str) -> dict[str, Any]:
    return {"seq": seq, "type": service_type, "host": host, "args": args}


ROUTES = [
    RouteDefinition("POST", "reference/create", create),
    RouteDefinition("POST", "reference/destroy", destroy),
    RouteDefinition("GET", "reference/has", has),
    RouteDefinition("GET", "reference/show", show),
    RouteDefinition("POST", "reference/get_properties", get_properties),
    RouteDefinition("POST", "reference/set_properties", set_properties),
    RouteDefinition("POST", "reference/del_properties", del_properties),
    RouteDefinition("POST", "reference/link", link),
    RouteDefinition("POST", "reference/unlink", unlink),
    RouteDefinition("POST", "reference/force", force),
    RouteDefinition("POST", "reference/renew", renew),
    RouteDefinition("POST", "reference/relink", relink),
]
