# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/*``: properties of containers (contract: "container/* - container databases")."""

from __future__ import annotations

import re

from oio.common.status import StatusError
from oio.http.messages import Response
from oio.meta.base_messages import BaseSetProperties
from oio.meta.messages import (
    ContainerDelProperties,
    ContainerGetProperties,
    ContainerSetProperties,
    Operation,
    Properties,
)
from oio.proxy.app import RouteDefinition
from oio.proxy.call import JSON_HEADERS, Call, bad_request, encode_json, escape, json_reply, string_list
from oio.proxy.policies import STORAGE_POLICY, policy_changed
from oio.proxy.routes.container import SYSTEM, USER, check_policy, prefixed_properties

_NOT_ALPHANUMERIC = re.compile(r"[^A-Za-z0-9]")
_META = "x-oio-container-meta-"

#: Services that hold the copies of a base, as it says itself.
PEERS = "sys.peers"

#: User properties beyond this number, or this number of bytes, are in the body only: common clients refuse an
#: answer of 100 headers, or a line of 64 KiB, and could not list the container any more.
USER_HEADERS_MAX, USER_HEADERS_MAX_BYTES = 64, 32768


def show(call: Call) -> Response:
    """``container/show``: properties as headers."""
    properties = _properties(call)
    user = {key[len(USER) :]: value for key, value in properties.items() if key.startswith(USER)}
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


def set_properties(call: Call) -> Response:
    """``container/set_properties``: 200 with an empty object."""
    requests = settings_of(call)
    resolver = call.proxy.resolver
    for request in requests:
        if isinstance(request, BaseSetProperties):
            services, _ = resolver.services(call.target.cid, "meta2", call)
            resolver.call_services("meta2", call.only or services, request, call, write=True, peers=services)
        else:
            resolver.call_meta2(request, call, write=True)
    remember_setting(call, requests)
    return json_reply({})


def del_properties(call: Call) -> Response:
    """``container/del_properties``: names of user properties, an empty array for all of them."""
    call.proxy.resolver.call_meta2(deletion_of(call), call, write=True)
    return json_reply({})


def properties_to_set(call: Call) -> tuple[dict[str, str], bool]:
    """Complete keys of the body, and whether user properties that are not there go away.

    :raises StatusError: 400 when it says nothing.
    """
    properties = prefixed_properties(call.json_object_or_nothing())
    if not properties:
        raise bad_request("No properties found in the body")
    return properties, call.flag("flush") or call.args.get("flush") == ""


def check_peers(call: Call, service_type: str, properties: dict[str, str]) -> None:
    """Refuse peers without which a base could never be written again, not even to name better ones.

    A few may be unknown: those that are lost and have not been replaced yet.

    :raises StatusError: 400 unless the conscience knows the majority of them.
    """
    peers = [name.strip() for name in properties.get(PEERS, "").split(",") if name.strip()]
    unknown = [name for name in peers if not _is_known(call, service_type, name)]
    if peers and len(unknown) * 2 >= len(peers):
        raise bad_request(f"Invalid property {PEERS}: no {service_type} service {', '.join(unknown)} is known")


def _is_known(call: Call, service_type: str, name: str) -> bool:
    try:
        call.proxy.resolver.address(service_type, name)
    except StatusError:
        return False
    return True


def settings_of(call: Call) -> list[Operation]:
    """What a request to set properties of a container asks of meta2, one operation after the other.

    The services that hold the base are a matter of the base, not of the container, and are set last: those who set
    the rest are the ones before.

    :raises StatusError: 400 when it says nothing, or names peers that nobody knows, 480.
    """
    container = call.container()
    properties, clear = properties_to_set(call)
    check_policy(call, properties)
    check_peers(call, "meta2", properties)
    peers = properties.pop(PEERS, None)
    requests: list[Operation] = []
    if properties or clear:
        requests.append(ContainerSetProperties(**container, properties=properties, clear=clear))
    if peers is not None:
        requests.append(BaseSetProperties(base=f"{container['cid']}.1", properties={PEERS: peers}))
    return requests


def remember_setting(call: Call, requests: list[Operation]) -> None:
    """Have this proxy follow properties that were set."""
    cid = call.target.cid
    for request in requests:
        if isinstance(request, BaseSetProperties):
            call.proxy.resolver.forget_base("meta2", cid)
        elif isinstance(request, ContainerSetProperties) and STORAGE_POLICY in request.properties:
            policy_changed(call, cid)


def names_to_delete(call: Call) -> list[str]:
    """Complete keys that a body names. :raises StatusError: 400 unless it is an array of names."""
    return [USER + name for name in string_list(call.json(), "body")]


def deletion_of(call: Call) -> ContainerDelProperties:
    """What a request to delete properties says. :raises StatusError: 400 unless it is an array of names."""
    return ContainerDelProperties(**call.container(), names=names_to_delete(call))


def split_properties(properties: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Properties of users without their prefix, and all the others."""
    user, system = {}, {}
    for key, value in properties.items():
        if key.startswith(USER):
            user[key[len(USER) :]] = value
        else:
            system[key] = value
    return user, system


def property_headers(properties: dict[str, str]) -> list[tuple[str, str]]:
    """Properties of a container as headers; those of the user all together, or none when they are too many."""
    headers, user = [], []
    for key, value in properties.items():
        name = _NOT_ALPHANUMERIC.sub("-", key)
        if key.startswith(USER):
            user.append((_META + name, escape(value)))
            continue
        if not key.startswith(SYSTEM):
            name = "x-" + name
        headers.append((_META + name, escape(value)))
    size = sum(len(name) + len(value) for name, value in user)
    if len(user) > USER_HEADERS_MAX or size > USER_HEADERS_MAX_BYTES:
        return headers
    return headers + user


ROUTES = [
    RouteDefinition("GET", "container/show", show, meta2=True),
    RouteDefinition("POST", "container/get_properties", get_properties, meta2=True),
    RouteDefinition("POST", "container/set_properties", set_properties, meta2=True),
    RouteDefinition("POST", "container/del_properties", del_properties, meta2=True),
]
