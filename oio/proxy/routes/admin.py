# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``admin/*``: bases of meta0, meta1 and meta2, below what they hold (contract: "admin/* - low-level base
administration").

Routes of the kind *all* ask every peer of the base and give one entry for each, whatever it answered; those of the
kind *master* change the base, and say nothing but ``{}``, unless ``service_id`` names the peers to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.conscience.messages import valid_address
from oio.http.client import HttpClientError
from oio.http.messages import Response
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
    BaseVacuum,
)
from oio.meta.client import network_code
from oio.meta.messages import ContainerSetStatus, Operation, Properties
from oio.proxy.app import RouteDefinition
from oio.proxy.bases import Base, ask_peer, base_of, container_base, per_peer
from oio.proxy.call import Call, Errand, bad_request, json_reply
from oio.proxy.routes.container_properties import (
    check_peers,
    deletion_of,
    names_to_delete,
    properties_to_set,
    remember_setting,
    settings_of,
    split_properties,
)

#: What moves or rewrites a whole base takes its time: only the deadline of the client bounds it (seconds).
_WHOLE_BASE_S = 3600.0

#: Value of ``check_type`` that leaves the choice to the service, as its absence does.
_CHECK_AS_SET = -1

#: Time for the master to tell the properties of a base; beyond, any copy is good enough (seconds).
_MASTER_WAIT_S = 5.0


# --- routes of the kind "all" -------------------------------------------------------------------------


def has(call: Call) -> Response:
    """``admin/has``: path of the file of the base on each peer."""
    base = base_of(call)

    def ask(peer: str, errand: Errand) -> str:
        found: BaseFile = ask_peer(call, base, peer, BaseFind(base=base.name), errand)
        return found.path

    return per_peer(call, base.asked, ask, admin=True)


def ping(call: Call) -> Response:
    """``admin/ping``: have the election begin, or go on."""
    return _election(call, BasePing)


def show_status(call: Call) -> Response:
    """``admin/status``: 200 for the master, 303 naming it for the others."""
    return _election(call, BaseStatus)


def _election(call: Call, kind: type[BasePing] | type[BaseStatus]) -> Response:
    base = base_of(call)
    return _tell_each(call, base, kind(base=base.name))


def _tell_each(
    call: Call, base: Base, request: Operation, ceiling_s: float | None = None, in_turn: bool = False
) -> Response:
    """Send an operation without reply to each peer."""

    def ask(peer: str, errand: Errand) -> str:
        ask_peer(call, base, peer, request, errand, write=True, ceiling_s=ceiling_s)
        return ""

    return per_peer(call, base.asked, ask, admin=True, in_turn=in_turn)


def sync(call: Call) -> Response:
    """``admin/sync``: the slaves take the state of the master, which answers 301."""
    check_type = call.number("check_type", _CHECK_AS_SET)
    if not _CHECK_AS_SET <= check_type <= 2:
        raise bad_request("Invalid parameter 'check_type': 0, 1, 2, or -1 (as services are set) is expected")
    base = base_of(call)
    return _tell_each(call, base, BaseSync(base=base.name, check_type=check_type), _WHOLE_BASE_S)


def leave(call: Call) -> Response:
    """``admin/leave``: each peer leaves the election."""
    base = base_of(call)
    return _tell_each(call, base, BaseLeave(base=base.name))


def remove(call: Call) -> Response:
    """``admin/remove``: delete the copies of the peers that are named, in turn.

    A peer keeps its copy when too few others have one, and those that are asked at once would count each other.
    """
    if not call.only:
        raise bad_request("Missing parameter 'service_id': the copies to remove")
    base = base_of(call)
    return _tell_each(call, base, BaseRemove(base=base.name), in_turn=True)


def debug(call: Call) -> Response:
    """``admin/debug``: the election as each peer sees it, ``{}`` without replication."""
    base = base_of(call)

    def ask(peer: str, errand: Errand) -> Any:
        told: BaseDescription = ask_peer(call, base, peer, BaseDebug(base=base.name), errand)
        return told.election

    return per_peer(call, base.asked, ask, admin=True)


def info(call: Call) -> Response:
    """``admin/info``: what each peer says of itself."""
    base = base_of(call)

    def ask(peer: str, errand: Errand) -> msgspec.Raw:
        return msgspec.Raw(_exchange(call, base, peer, errand, "GET", "/status"))

    return per_peer(call, base.asked, ask)


def drop_cache(call: Call) -> Response:
    """``admin/drop_cache``: each peer gives back what memory it can."""
    base = base_of(call)

    def ask(peer: str, errand: Errand) -> str:
        _exchange(call, base, peer, errand, "POST", "/v1/lean_sqlx")
        return ""

    return per_peer(call, base.asked, ask)


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


def _change(
    call: Call,
    base: Base,
    requests: list[Operation],
    *,
    admin: bool | None = None,
    ceiling_s: float | None = None,
) -> Response:
    """Change a base, by its master or by the peers that the request names."""
    if call.only:

        def ask(peer: str, errand: Errand) -> str:
            for request in requests:
                ask_peer(call, base, peer, request, errand, write=True, ceiling_s=ceiling_s)
            return ""

        return per_peer(call, base.asked, ask, admin=admin)
    errand = Errand(call, admin=admin)
    for request in requests:
        call.proxy.resolver.call_services(
            base.service_type, base.peers, request, errand, write=True, ceiling_s=ceiling_s
        )
    return json_reply({})


def vacuum(call: Call) -> Response:
    """``admin/vacuum``: defragment the base, everywhere."""
    base = base_of(call)
    return _change(call, base, [BaseVacuum(base=base.name)], admin=True, ceiling_s=_WHOLE_BASE_S)


def freeze(call: Call) -> Response:
    """``admin/freeze``: objects can be read, and do not change."""
    return _set_status(call, "frozen")


def enable(call: Call) -> Response:
    """``admin/enable``: the end of a freeze, or of a disablement."""
    return _set_status(call, "enabled")


def disable(call: Call) -> Response:
    """``admin/disable``: objects cannot even be read."""
    return _set_status(call, "disabled")


def _set_status(call: Call, wanted: Literal["enabled", "frozen", "disabled"]) -> Response:
    base = container_base(call)
    return _change(call, base, [ContainerSetStatus(**call.container(), status=wanted)])


def set_properties(call: Call) -> Response:
    """``admin/set_properties``: body and flag of ``container/set_properties``."""
    base = base_of(call)
    if base.service_type != "meta2":
        properties, clear = properties_to_set(call)
        check_peers(call, base.service_type, properties)
        return _change(call, base, [BaseSetProperties(base=base.name, properties=properties, clear=clear)])
    requests = settings_of(call)
    response = _change(call, base, requests)
    remember_setting(call, requests)
    return response


def del_properties(call: Call) -> Response:
    """``admin/del_properties``: body of ``container/del_properties``."""
    base = base_of(call)
    if base.service_type != "meta2":
        return _change(call, base, [BaseDelProperties(base=base.name, names=names_to_delete(call))])
    return _change(call, base, [deletion_of(call)])


def get_properties(call: Call) -> Response:
    """``admin/get_properties``: of the copy that is named, else of the master, else of any peer that answers.

    The statistics of the base are there too.
    """
    base = base_of(call)
    user, system = split_properties(_read_properties(call, base).properties)
    return json_reply({"properties": user, "system": system})


def _read_properties(call: Call, base: Base) -> Properties:
    request = BaseGetProperties(base=base.name, stats=True)

    def ask(errand: Errand) -> Properties:
        reply: Properties = call.proxy.resolver.call_services(
            base.service_type, base.asked, request, errand, write=False, peers=base.peers
        )
        return reply

    if call.only or base.single:
        return ask(Errand(call, admin=True, only=call.only))
    try:
        return ask(Errand(call, admin=True, grace_s=min(_MASTER_WAIT_S, call.timeout_s(_MASTER_WAIT_S) / 2)))
    except StatusError as exc:
        if exc.code != status.UNAVAILABLE:
            raise
    # Without a majority of its peers a base has no master, but its copies can still be looked at.
    return ask(Errand(call, admin=True, only=base.asked))


# --- copies ------------------------------------------------------------------------------------------------


def copy(call: Call) -> Response:
    """``admin/copy``: have the service ``to`` make a copy of a base, from the service ``from`` or the master."""
    body = call.json_object_or_nothing()
    base = base_of(call)
    target = _service(call, base, body, "to")
    if target is None:
        raise bad_request("Missing 'to': the id or the address of a service is expected")
    source = _service(call, base, body, "from")
    found = source
    if found is None:
        errand = Errand(call, admin=True)
        peers = base.peers or base.asked
        found = call.proxy.resolver.master_of(base.service_type, peers, base.name, errand)
    address = call.proxy.resolver.address(base.service_type, found)
    request = BaseCopyFrom(base=base.name, source=address)
    errand = Errand(call, admin=True, only=[target])
    ask_peer(call, base, target, request, errand, write=True, ceiling_s=_WHOLE_BASE_S)
    return json_reply({}) if source is None else Response(204)


def _service(call: Call, base: Base, body: dict[str, Any], field: str) -> str | None:
    """A service that a body names, None when it does not. :raises StatusError: 400 when there is no such one."""
    name = body.get(field)
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise bad_request(f"Invalid '{field}': the id or the address of a service is expected")
    world = call.proxy.feed.world
    if (world is None or world.find(base.service_type, name) is None) and not valid_address(name):
        raise bad_request(f"Invalid '{field}': no service {name!r} of type {base.service_type} is known")
    return name


def _post(name: str, handler: Callable[[Call], Response]) -> RouteDefinition:
    return RouteDefinition("POST", f"admin/{name}", handler)


ROUTES = [
    _post("ping", ping),
    _post("status", show_status),
    _post("has", has),
    _post("info", info),
    _post("drop_cache", drop_cache),
    _post("sync", sync),
    _post("leave", leave),
    _post("debug", debug),
    _post("vacuum", vacuum),
    _post("freeze", freeze),
    _post("enable", enable),
    _post("disable", disable),
    _post("copy", copy),
    _post("remove", remove),
    _post("get_properties", get_properties),
    _post("set_properties", set_properties),
    _post("del_properties", del_properties),
]
