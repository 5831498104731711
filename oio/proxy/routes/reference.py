# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``reference/*``: the directory of references (contract: "reference/* - the directory of references")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from oio.common.status import POLICY_NOT_SATISFIABLE, REFERENCE_IN_USE, StatusError
from oio.http.messages import Response
from oio.meta.messages import (
    Created,
    ReferenceCreate,
    ReferenceDelProperties,
    ReferenceDestroy,
    ReferenceForce,
    ReferenceReply,
    ReferenceSetProperties,
    ReferenceShow,
    ReferenceUnlink,
    ServiceLink,
    ServiceLinks,
)
from oio.proxy.app import RouteDefinition, mapped_error
from oio.proxy.call import Call, bad_request, json_reply, string_list, string_map
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
    reply: Created = call.proxy.resolver.call_meta1(
        ReferenceCreate(
            cid=target.cid, account=target.account, name=target.name, properties=properties
        ),
        call,
        write=True,
    )
    return Response(201 if reply.created else 202)


def destroy(call: Call) -> Response:
    """``reference/destroy``: 403 when services are still linked, unless ``force``."""
    target = call.target
    resolver = call.proxy.resolver
    try:
        resolver.call_meta1(
            ReferenceDestroy(
                cid=target.cid, account=target.account, name=target.name, force=call.flag("force")
            ),
            call,
            write=True,
        )
    except StatusError as exc:
        if exc.code == REFERENCE_IN_USE:
            return mapped_error(403, exc)
        raise
    world = call.proxy.feed.world
    for service_type in world.types if world is not None else ():
        resolver.forget(target.cid, service_type)
    return Response(204)


def show(call: Call) -> Response:
    """``reference/show``: directory services in charge, services linked."""
    target = call.target
    resolver = call.proxy.resolver
    reply: ReferenceReply = resolver.call_meta1(
        ReferenceShow(cid=target.cid, type=call.args.get("type", "")), call, write=False
    )
    directory = [_link_item(1, "meta0", address, "") for address in resolver.meta0()]
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
    reply: ReferenceReply = call.proxy.resolver.call_meta1(
        ReferenceShow(cid=target.cid), call, write=False
    )
    properties = reply.properties
    if names:
        properties = {name: properties[name] for name in names if name in properties}
    return json_reply({"cid": target.cid, "properties": properties})


def set_properties(call: Call) -> Response:
    """``reference/set_properties``: an empty value deletes; ``flush`` removes the others first."""
    target = call.target
    properties = string_map(call.json_object().get("properties"), "properties", "")
    call.proxy.resolver.call_meta1(
        ReferenceSetProperties(
            cid=target.cid,
            account=target.account,
            name=target.name,
            properties=properties,
            clear="flush" in call.args,
        ),
        call,
        write=True,
    )
    return Response(204)


def del_properties(call: Call) -> Response:
    """``reference/del_properties``: an empty array deletes all."""
    target = call.target
    names = string_list(call.json(), "body")
    call.proxy.resolver.call_meta1(
        ReferenceDelProperties(
            cid=target.cid, account=target.account, name=target.name, names=names
        ),
        call,
        write=True,
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
    call.proxy.resolver.call_meta1(
        ReferenceUnlink(
            cid=target.cid, account=target.account, name=target.name, type=service_type
        ),
        call,
        write=True,
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
    if not wanted.host or not wanted.type:
        raise bad_request("Invalid service link: empty 'host' or 'type'")
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
        call.proxy.resolver.call_meta1(request, call, write=True)
    except StatusError as exc:
        if exc.code in IMPOSSIBLE_CODES:
            return mapped_error(403, exc)
        raise
    call.proxy.resolver.forget(target.cid, service_type)
    return Response(204)


def relink(call: Call) -> Response:
    """``reference/relink``: keep some services of a set, choose others in the place of the rest.

    The set must be the one that the body tells; between that look and the change nothing is locked.
    """
    service_type, target = call.required("type"), call.target
    kept, replaced, seq = _relinked_sets(call, service_type)
    resolver = call.proxy.resolver
    reply: ReferenceReply = resolver.call_meta1(
        ReferenceShow(cid=target.cid, type=service_type), call, write=False
    )
    current = next((link for link in reply.services if link.type == service_type and link.seq == seq), None)
    if current is None or sorted(current.host.split(",")) != sorted(kept + replaced):
        raise StatusError(REFERENCE_IN_USE, "Services changed since they were read")
    hosts = kept + _services_beside(call, service_type, kept, replaced)
    link = ServiceLink(seq=seq, type=service_type, host=",".join(hosts), args=current.args)
    if not call.flag("dryrun"):
        resolver.call_meta1(
            ReferenceForce(
                cid=target.cid, account=target.account, name=target.name, service=link, replace=True
            ),
            call,
            write=True,
        )
        resolver.forget(target.cid, service_type)
    return json_reply(_link_items([link]))


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


def _linked(call: Call, choose: Callable[..., ServiceLinks]) -> Response:
    service_type, target = call.required("type"), call.target
    autocreate, dryrun = call.flag("autocreate"), call.flag("dryrun")
    try:
        links = choose(call, target, service_type, autocreate=autocreate, dryrun=dryrun)
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
