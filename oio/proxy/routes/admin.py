# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``admin/*``: bases of meta0, meta1 and meta2, below what they hold (contract: "admin/* - low-level base
administration").

Routes of the kind *all* ask every peer of the base and give one entry for each, whatever it answered; those of the
kind *master* change the base, and say nothing but ``{}``, unless ``service_id`` names the peers to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.http.client import HttpClientError
from oio.http.messages import Response
from oio.meta.client import network_code
from oio.meta.messages import (
    BaseFile,
    BaseFind,
    BaseGetProperties,
    ContainerSetStatus,
    Meta0Get,
    Meta0Set,
    Operation,
    PrefixMapping,
    Properties,
)
from oio.proxy.app import RouteDefinition
from oio.proxy.call import Call, Errand, bad_request, json_reply
from oio.proxy.routes.container_properties import (
    deletion_of,
    remember_setting,
    setting_of,
    split_properties,
)

_OK = 200
TYPES = ("meta0", "meta1", "meta2")


class Base(NamedTuple):
    """The base that a request is about, and who holds it."""

    service_type: str
    name: str
    peers: list[str]


class _PeerStatus(msgspec.Struct):
    status: int
    message: str


class _PeerReply(msgspec.Struct):
    status: _PeerStatus
    body: Any = ""


#: Asks one peer and gives the body of its answer, as JSON will hold it.
Ask = Callable[[Base, str, Errand], Any]


# --- which base ---------------------------------------------------------------------------------------


def _base(call: Call) -> Base:
    """The base of the query. :raises StatusError: 400; 404 when the directory knows no peer."""
    service_type = call.args.get("type")
    if not service_type:
        raise bad_request("No service type: missing parameter 'type'")
    if service_type not in TYPES:
        raise bad_request(f"Invalid parameter 'type': one of {', '.join(TYPES)} is expected")
    resolver, only = call.proxy.resolver, call.only
    if service_type == "meta0":
        return Base(service_type, call.proxy.namespace, only or resolver.meta0())
    cid = call.target.cid
    if service_type == "meta1":
        return Base(service_type, resolver.prefix_of(cid), only or resolver.meta1(cid, call))
    if not only:
        # What is remembered serves those who work on containers; here the directory itself is asked.
        resolver.forget(cid, "meta2")
        only, _ = resolver.services(cid, "meta2", call)
    return Base(service_type, f"{cid}.1", only)


def _container_base(call: Call) -> Base:
    """The same, when it must be a container. :raises StatusError: 400 for another type."""
    base = _base(call)
    if base.service_type != "meta2":
        raise bad_request("Invalid parameter 'type': this can be done to the bases of meta2 only")
    return base


def _send(call: Call, base: Base, peer: str, request: Operation, errand: Errand, write: bool = False) -> Any:
    return call.proxy.resolver.call_services(base.service_type, [peer], request, errand, write)


def _per_peer(call: Call, base: Base, ask: Ask, admin: bool | None = None) -> Response:
    """Ask each peer; one that fails does not hide the others."""
    replies: dict[str, _PeerReply] = {}
    for peer in base.peers:
        errand = Errand(call, admin=admin, only=[peer])
        try:
            replies[peer] = _PeerReply(_PeerStatus(_OK, "OK"), ask(base, peer, errand))
        except StatusError as exc:
            replies[peer] = _PeerReply(_PeerStatus(exc.code, exc.message))
    return json_reply(replies)


# --- routes of the kind "all" -------------------------------------------------------------------------


def has(call: Call) -> Response:
    """``admin/has``: path of the file of the base on each peer."""

    def ask(base: Base, peer: str, errand: Errand) -> str:
        found: BaseFile = _send(call, base, peer, BaseFind(base=base.name), errand)
        return found.path

    return _per_peer(call, _base(call), ask, admin=True)


def present(call: Call) -> Response:
    """``admin/ping`` and ``admin/status``: with one copy of each base, whoever has it is its master."""

    def ask(base: Base, peer: str, errand: Errand) -> str:
        _send(call, base, peer, BaseFind(base=base.name), errand)
        return ""

    return _per_peer(call, _base(call), ask, admin=True)


def info(call: Call) -> Response:
    """``admin/info``: what each peer says of itself."""

    def ask(base: Base, peer: str, errand: Errand) -> msgspec.Raw:
        return msgspec.Raw(_exchange(call, base, peer, errand, "GET", "/status"))

    return _per_peer(call, _base(call), ask)


def drop_cache(call: Call) -> Response:
    """``admin/drop_cache``: each peer gives back what memory it can."""

    def ask(base: Base, peer: str, errand: Errand) -> str:
        _exchange(call, base, peer, errand, "POST", "/v1/lean_sqlx")
        return ""

    return _per_peer(call, _base(call), ask)


def _exchange(call: Call, base: Base, peer: str, errand: Errand, method: str, path: str) -> bytes:
    """Ask a service about itself. :raises StatusError: when it does not answer, or not well."""
    address = call.proxy.resolver.address(base.service_type, peer)
    try:
        answer = call.proxy.http.request(
            method,
            f"http://{address}{path}",
            headers={"x-oio-req-id": call.reqid},
            timeout=errand.timeout_s(call.proxy.variables["proxy.outgoing.timeout.info"]),
        )
    except HttpClientError as exc:
        raise StatusError(network_code(exc), str(exc)) from exc
    if answer.status not in (200, 204):
        raise StatusError(status.PROXY_ERROR, f"{address} answered HTTP {answer.status}")
    return bytes(answer.data)


# --- routes of the kind "master" ----------------------------------------------------------------------


def _change(call: Call, base: Base, request: Operation) -> Response:
    """Change a base, by its master or by the peers that the request names."""
    if call.only:
        return _per_peer(
            call, base, lambda base, peer, errand: _send(call, base, peer, request, errand, write=True) or ""
        )
    call.proxy.resolver.call_services(base.service_type, base.peers, request, call, write=True)
    return json_reply({})


def freeze(call: Call) -> Response:
    """``admin/freeze``: objects can be read, and do not change."""
    base = _container_base(call)
    return _change(call, base, ContainerSetStatus(**call.container(), status="frozen"))


def enable(call: Call) -> Response:
    """``admin/enable``: the end of a freeze, or of a disablement."""
    base = _container_base(call)
    return _change(call, base, ContainerSetStatus(**call.container(), status="enabled"))


def disable(call: Call) -> Response:
    """``admin/disable``: objects cannot even be read."""
    base = _container_base(call)
    return _change(call, base, ContainerSetStatus(**call.container(), status="disabled"))


def set_properties(call: Call) -> Response:
    """``admin/set_properties``: body and flag of ``container/set_properties``."""
    base = _container_base(call)
    request = setting_of(call)
    response = _change(call, base, request)
    remember_setting(call, request)
    return response


def del_properties(call: Call) -> Response:
    """``admin/del_properties``: body of ``container/del_properties``."""
    base = _container_base(call)
    return _change(call, base, deletion_of(call))


def get_properties(call: Call) -> Response:
    """``admin/get_properties``: of the first peer that answers, with the statistics of the base."""
    base = _base(call)
    errand = Errand(call, admin=True, only=call.only)
    reply: Properties = call.proxy.resolver.call_services(
        base.service_type, base.peers, BaseGetProperties(base=base.name, stats=True), errand, write=False
    )
    user, system = split_properties(reply.properties)
    return json_reply({"properties": user, "system": system})


# --- mapping of meta0 -----------------------------------------------------------------------------------


def meta0_list(call: Call) -> Response:
    """``admin/meta0_list``: the meta1 services of each prefix."""
    resolver = call.proxy.resolver
    reply: PrefixMapping = resolver.call_services(
        "meta0", call.only or resolver.meta0(), Meta0Get(), call, write=False
    )
    return json_reply(reply.mapping)


def meta0_force(call: Call) -> Response:
    """``admin/meta0_force``: replace the meta1 services of the prefixes of the body, on every meta0."""
    try:
        request = Meta0Set(mapping=msgspec.json.decode(call.raw_body(), type=dict[str, list[str]]))
    except msgspec.MsgspecError as exc:
        raise bad_request(f"Invalid mapping: {exc}") from None
    if not request.mapping:
        raise bad_request("Invalid mapping: it names no prefix")
    resolver = call.proxy.resolver
    for service in resolver.meta0():
        resolver.call_services("meta0", [service], request, call, write=True)
    resolver.csm0.clear()
    call.proxy.tell_siblings(call, target="/v3.0/cache/flush/high")
    return Response(204)


def _post(name: str, handler: Callable[[Call], Response]) -> RouteDefinition:
    return RouteDefinition("POST", f"admin/{name}", handler)


ROUTES = [
    _post("ping", present),
    _post("status", present),
    _post("has", has),
    _post("info", info),
    _post("drop_cache", drop_cache),
    _post("freeze", freeze),
    _post("enable", enable),
    _post("disable", disable),
    _post("get_properties", get_properties),
    _post("set_properties", set_properties),
    _post("del_properties", del_properties),
    RouteDefinition("GET", "admin/meta0_list", meta0_list),
    _post("meta0_force", meta0_force),
]
