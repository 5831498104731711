# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``admin/meta0_*``: the mapping from prefixes to meta1 services (contract: "meta0 mapping")."""

from __future__ import annotations

import msgspec

from oio.directory.prefixes import DIGITS_MAX, PREFIXES, base_of, siblings
from oio.http.client import HttpClientError
from oio.http.messages import Response
from oio.meta.messages import Meta0Get, Meta0Set, PrefixMapping
from oio.proxy.app import RouteDefinition
from oio.proxy.bases import in_parallel
from oio.proxy.call import Call, bad_request, json_reply


class _Replication(msgspec.Struct):
    replication: str = "NONE"


def meta0_list(call: Call) -> Response:
    """``admin/meta0_list``: the meta1 services of each prefix, as the master has them or those that are named."""
    resolver = call.proxy.resolver
    reply: PrefixMapping = resolver.call_services(
        "meta0", call.only or resolver.meta0(), Meta0Get(), call, write=False, peers=resolver.meta0()
    )
    return json_reply(reply.mapping)


def meta0_force(call: Call) -> Response:
    """``admin/meta0_force``: replace the meta1 services of the prefixes of the body.

    The master of meta0 has it copied; services that replicate nothing are told one after the other.
    """
    request = Meta0Set(mapping=_complete(_mapping_of(call), call.proxy.variables["ns.meta1_digits"]))
    resolver = call.proxy.resolver
    services = resolver.meta0()
    if _replicate(call, services):
        resolver.call_services("meta0", services, request, call, write=True)
    else:
        for service in services:
            resolver.call_services("meta0", [service], request, call, write=True)
    resolver.csm0.clear()
    call.proxy.tell_siblings(call, target="/v3.0/cache/flush/high")
    return Response(204)


def _mapping_of(call: Call) -> dict[str, list[str]]:
    """The body, with upper-case prefixes. :raises StatusError: 400 when it is not a mapping."""
    try:
        given = msgspec.json.decode(call.raw_body(), type=dict[str, list[str]])
    except msgspec.MsgspecError as exc:
        raise bad_request(f"Invalid mapping: {exc}") from None
    if not given:
        raise bad_request("Invalid mapping: it names no prefix")
    mapping = {prefix.upper(): services for prefix, services in given.items()}
    if len(mapping) < len(given):
        raise bad_request("Invalid mapping: a prefix is there twice, in upper and lower case")
    return mapping


def _complete(mapping: dict[str, list[str]], digits: int) -> dict[str, list[str]]:
    """Add the prefixes that share their significant digits with those of a mapping, with the same services."""
    if digits >= DIGITS_MAX or len(mapping) == PREFIXES:
        return mapping
    complete = dict(mapping)
    for base, prefix in {base_of(prefix, digits): prefix for prefix in sorted(mapping, reverse=True)}.items():
        for sibling in siblings(base, digits):
            complete.setdefault(sibling, mapping[prefix])
    return complete


def _replicate(call: Call, services: list[str]) -> bool:
    """Do these services copy from one another what they are told? One that does not answer tells nothing."""
    if len(services) == 1:
        return False
    timeout_s = call.timeout_s(call.proxy.variables["proxy.outgoing.timeout.info"])

    def one(service: str) -> bool:
        address = call.proxy.resolver.address("meta0", service)
        try:
            answer = call.proxy.http.request("GET", f"http://{address}/status", timeout=timeout_s)
            return msgspec.json.decode(answer.data, type=_Replication).replication != "NONE"
        except (HttpClientError, msgspec.MsgspecError):
            return False

    return any(in_parallel(one, services))


ROUTES = [
    RouteDefinition("GET", "admin/meta0_list", meta0_list),
    RouteDefinition("POST", "admin/meta0_force", meta0_force),
]
