# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/*``: bases of containers (contract: "container/* - container databases")."""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec

from oio.common import status
from oio.common.status import StatusError, http_status
from oio.http.messages import Response
from oio.meta.messages import (
    ContainerCreate,
    ContainerDelProperties,
    ContainerDestroy,
    ContainerGetProperties,
    ContainerSetProperties,
    ContainerTouch,
    ContentList,
    Created,
    ListReply,
    Properties,
    ReferenceForce,
    ReferenceReply,
    ReferenceShow,
    ReferenceUnlink,
    ServiceLink,
    ServiceLinks,
)
from oio.proxy.app import RouteDefinition, mapped_error
from oio.proxy.call import (
    JSON_HEADERS,
    Call,
    Target,
    bad_request,
    encode_json,
    escape,
    is_hex,
    json_reply,
    string_list,
    string_map,
)
from oio.proxy.linking import IMPOSSIBLE_CODES, link_services
from oio.proxy.resolver import hosts_of

logger = logging.getLogger(__name__)

#: What tells that a container is not there: no reference, or no base.
CONTAINER_MISSING = frozenset({status.REFERENCE_NOT_FOUND, status.CONTAINER_NOT_FOUND})

LIST_DEFAULT = 1000
LIST_MAX = 10000

_DRAINED = "drained"
_USER = "user."
_SYSTEM = "sys."
_STORAGE_POLICY = "sys.m2.policy.storage"
_NOT_ALPHANUMERIC = re.compile(r"[^A-Za-z0-9]")
_META = "x-oio-container-meta-"


class _Listed(msgspec.Struct):
    """What matters of a listed object to tell whether it has chunks."""

    deleted: bool = False
    chunk_method: str | None = msgspec.field(default=None, name="chunk-method")


_decode_listed = msgspec.json.Decoder(list[_Listed]).decode


# --- create ---------------------------------------------------------------------------------------------


def create(call: Call) -> Response:
    """``container/create``: 201 when created, 204 when it was there."""
    target = call.target
    properties = prefixed_properties(_object_or_nothing(call))
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
    policy = properties.get(_STORAGE_POLICY)
    if policy:
        proxy.world.policy(policy)
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
    return reply.created


def prefixed_properties(body: dict[str, Any]) -> dict[str, str]:
    """Complete keys of the ``properties`` and ``system`` of a body. :raises StatusError: 400 on a bad name."""
    result = {
        _USER + key: value for key, value in string_map(body.get("properties"), "properties", "").items()
    }
    for key, value in string_map(body.get("system"), "system", "").items():
        if not key.startswith((_SYSTEM, _USER)):
            raise bad_request(f"Invalid property name: {key!r} in 'system' does not begin with 'sys.'")
        result[key] = value
    return result


def _object_or_nothing(call: Call) -> dict[str, Any]:
    body = call.json()
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise bad_request("Invalid body: an object is expected")
    return body


# --- destroy -----------------------------------------------------------------------------------------------


def destroy(call: Call) -> Response:
    """``container/destroy``: unlink the base, then delete it; the links come back when that fails.

    In this order whoever creates the container again meanwhile gets a new link, which stays; the other way round
    the link of a new base would be removed. A container that holds something is refused before its link is
    touched: without its link it could be created a second time elsewhere.
    """
    proxy, target = call.proxy, call.target
    if proxy.variables["ns.worm"] and not call.admin:
        raise StatusError(status.NOT_ALLOWED, "NS wormed! Cannot destroy a container.")
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
    if not force and _holds_chunks(call, hosts, names):
        raise StatusError(status.CONTAINER_NOT_EMPTY, "Container not empty")
    resolver.call_meta1(ReferenceUnlink(**names, type="meta2"), call, write=True)
    try:
        resolver.call_services("meta2", hosts, ContainerDestroy(**names, force=force), call, write=True)
    except StatusError as exc:
        if exc.code not in CONTAINER_MISSING:
            _link_again(call, names, links)
        raise
    return Response(204)


def _holds_chunks(call: Call, hosts: list[str], names: dict[str, Any]) -> bool:
    """Has the container an object with chunks? Delete markers and drained objects do not count."""
    resolver = call.proxy.resolver
    marker = ""
    try:
        reply: Properties = resolver.call_services(
            "meta2", hosts, ContainerGetProperties(**names), call, write=False
        )
        truncated = reply.properties.get("sys.m2.objects") != "0"
        while truncated:
            page: ListReply = resolver.call_services(
                "meta2",
                hosts,
                ContentList(**names, all_versions=True, marker=marker, max=LIST_DEFAULT),
                call,
                write=False,
            )
            for item in _decode_listed(page.objects):
                if not item.deleted and item.chunk_method != _DRAINED:
                    return True
            truncated, marker = page.truncated, page.next_marker
    except StatusError as exc:
        if exc.code in CONTAINER_MISSING:
            return False
        raise
    return False


def _link_again(call: Call, names: dict[str, Any], links: list[ServiceLink]) -> None:
    for link in links:
        try:
            call.proxy.resolver.call_meta1(ReferenceForce(**names, service=link), call, write=True)
        except StatusError as exc:
            if exc.code == status.SERVICE_ALREADY_LINKED:
                continue
            logger.error(
                "container %s (%s/%s) could not be destroyed, and its link to %s is lost: %s, request %s",
                names["cid"], names["account"], names["name"], link.host, exc, call.reqid,
            )


# --- read ----------------------------------------------------------------------------------------------------


def show(call: Call) -> Response:
    """``container/show``: properties as headers."""
    properties = _properties(call)
    user = {key[len(_USER) :]: value for key, value in properties.items() if key.startswith(_USER)}
    return Response(
        200, encode_json({"properties": user}), [*JSON_HEADERS, *property_headers(properties)]
    )


def get_properties(call: Call) -> Response:
    """``container/get_properties``."""
    user, system = split_properties(_properties(call))
    return json_reply({"properties": user, "system": system})


def _properties(call: Call) -> dict[str, str]:
    target = call.target
    reply: Properties = call.proxy.resolver.call_meta2(
        ContainerGetProperties(
            cid=target.cid, account=target.account, name=target.name, stats=call.admin
        ),
        call,
        write=False,
    )
    return reply.properties


def list_contents(call: Call) -> Response:
    """``container/list``: the array of objects is copied as meta2 encoded it."""
    target, args, headers = call.target, call.args, call.headers
    maximum = call.number("max", LIST_DEFAULT)
    content_hash = headers.get("x-oio-list-content-hash", "")
    if content_hash and not is_hex(content_hash):
        raise bad_request("Invalid header 'x-oio-list-content-hash', not hexadecimal")
    chunk_id = headers.get("x-oio-list-chunk-id", "")
    request = ContentList(
        cid=target.cid,
        account=target.account,
        name=target.name,
        prefix=args.get("prefix", ""),
        marker=args.get("marker", ""),
        end_marker=args.get("end_marker") or args.get("marker_end", ""),
        delimiter=args.get("delimiter", "")[:1],
        max=LIST_DEFAULT if maximum <= 0 else min(maximum, LIST_MAX),
        deleted="deleted" in args,
        all_versions="all" in args,
        properties=call.boolean("properties"),
        chunk_id=chunk_id,
        content_hash=content_hash.upper(),
    )
    reply: ListReply = call.proxy.resolver.call_meta2(request, call, write=False)
    if (chunk_id or content_hash) and reply.objects == b"[]":
        raise StatusError(status.CONTENT_NOT_FOUND, "No object has this chunk or this hash")
    user, system = split_properties(reply.properties)
    answer = [
        *JSON_HEADERS,
        ("X-oio-list-truncated", "true" if reply.truncated else "false"),
        *property_headers(reply.properties),
    ]
    if reply.truncated:
        answer.append(("X-oio-list-marker", escape(reply.next_marker)))
    body = b'{"prefixes":%b,"properties":%b,"system":%b,"objects":%b}' % (
        encode_json(reply.prefixes),
        encode_json(user),
        encode_json(system),
        reply.objects,
    )
    return Response(200, body, answer)


def split_properties(properties: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Properties of users without their prefix, and all the others."""
    user, system = {}, {}
    for key, value in properties.items():
        if key.startswith(_USER):
            user[key[len(_USER) :]] = value
        else:
            system[key] = value
    return user, system


def property_headers(properties: dict[str, str]) -> list[tuple[str, str]]:
    """Properties of a container as headers."""
    headers = []
    for key, value in properties.items():
        name = _NOT_ALPHANUMERIC.sub("-", key)
        if not key.startswith((_SYSTEM, _USER)):
            name = "x-" + name
        headers.append((_META + name, escape(value)))
    return headers


# --- change -------------------------------------------------------------------------------------------------


def set_properties(call: Call) -> Response:
    """``container/set_properties``: 200 with an empty object."""
    target = call.target
    properties = prefixed_properties(_object_or_nothing(call))
    if not properties:
        raise bad_request("No properties found in the body")
    policy = properties.get(_STORAGE_POLICY)
    if policy:
        call.proxy.world.policy(policy)
    call.proxy.resolver.call_meta2(
        ContainerSetProperties(
            cid=target.cid,
            account=target.account,
            name=target.name,
            properties=properties,
            clear="flush" in call.args or call.flag("flush"),
        ),
        call,
        write=True,
    )
    return json_reply({})


def del_properties(call: Call) -> Response:
    """``container/del_properties``: names of user properties, an empty array for all of them."""
    target = call.target
    names = string_list(call.json(), "body")
    call.proxy.resolver.call_meta2(
        ContainerDelProperties(
            cid=target.cid,
            account=target.account,
            name=target.name,
            names=[_USER + name for name in names],
        ),
        call,
        write=True,
    )
    return json_reply({})


def touch(call: Call) -> Response:
    """``container/touch``: 403 when there is no such container."""
    target = call.target
    damaged, missing = call.flag("damaged_objects"), call.flag("missing_chunks")
    try:
        call.proxy.resolver.call_meta2(
            ContainerTouch(
                cid=target.cid,
                account=target.account,
                name=target.name,
                recompute=call.flag("recompute") or damaged or missing,
                damaged_objects=damaged,
                missing_chunks=missing,
            ),
            call,
            write=True,
        )
    except StatusError as exc:
        if exc.code in CONTAINER_MISSING:
            return mapped_error(403, exc)
        raise
    return Response(204)


ROUTES = [
    RouteDefinition("POST", "container/create", create, meta2=True),
    RouteDefinition("POST", "container/create_many", create_many, meta2=True),
    RouteDefinition("POST", "container/destroy", destroy, meta2=True),
    RouteDefinition("GET", "container/show", show, meta2=True),
    RouteDefinition("GET", "container/list", list_contents, meta2=True),
    RouteDefinition("POST", "container/get_properties", get_properties, meta2=True),
    RouteDefinition("POST", "container/set_properties", set_properties, meta2=True),
    RouteDefinition("POST", "container/del_properties", del_properties, meta2=True),
    RouteDefinition("POST", "container/touch", touch, meta2=True),
]
