# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``conscience/*`` and ``local/list``: services and their scores."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.conscience.messages import (
    SCORE_COMPUTE,
    SCORE_MAX,
    SCORE_UNLOCK,
    SERVICES_PER_REQUEST_MAX,
    ServiceDef,
    valid_address,
)
from oio.http.messages import Response
from oio.proxy.app import Handler, RouteDefinition
from oio.proxy.call import Call, bad_request, json_reply


def info(call: Call) -> Response:
    """``conscience/info``: service types, or everything that describes the namespace."""
    feed, variables = call.proxy.feed, call.proxy.variables
    if call.args.get("what") == "types":
        return json_reply(list(feed.types()))
    namespace = feed.namespace_info()
    return json_reply(
        {
            "ns": call.proxy.namespace,
            "chunksize": variables["ns.chunk_size"],
            "options": {
                **namespace.options,
                "flat_bitlength": variables["ns.flat_bits"],
                "storage_policy": variables["ns.storage_policy"],
                "service_update_policy": variables["ns.service_update_policy"],
            },
            "storage_policy": namespace.storage_policy,
            "service_pools": namespace.service_pools,
            "data_security": namespace.data_security,
        }
    )


def list_services(call: Call) -> Response:
    """``conscience/list``: services of a type."""
    service_type = call.required("type")
    feed = call.proxy.feed
    feed.check_type(service_type)
    full = call.boolean("full")
    return json_reply(
        [
            {
                "addr": service.addr,
                "score": service.score,
                "tags": service.tags if full else _only_tags(service.tags),
            }
            for service in feed.services(service_type, full, **_bounds(call))
        ]
    )


def local_list(call: Call) -> Response:
    """``local/list``: services that registered through this proxy lately."""
    proxy = call.proxy
    service_type = call.args.get("type", "")
    if service_type:
        proxy.feed.check_type(service_type)
    world = proxy.feed.world
    real_scores = proxy.variables["proxy.quirk.local_scores"]
    items = []
    for service in proxy.feed.local_services(service_type):
        score = 0
        if real_scores and world is not None:
            service_id = service.tags.get("tag.service_id") or service.addr
            item = world.find(service.type, str(service_id))
            score = item.score if item is not None else 0
        entry: dict[str, Any] = {"addr": service.addr, "score": score, "tags": service.tags}
        if not service_type:
            entry |= {"ns": proxy.namespace, "type": service.type}
        items.append(entry)
    return json_reply(items)


def score(call: Call) -> Response:
    """``conscience/score``: what the load balancer knows of one service."""
    service_type, service_id = call.required("type"), call.required("service_id")
    item = call.proxy.world.find(service_type, service_id)
    if item is None:
        raise StatusError(status.REFERENCE_NOT_FOUND, f"Service [{service_id}] of type [{service_type}] not found")
    return json_reply({"addr": item.addr, "score": item.score})


def resolve(call: Call) -> Response:
    """``conscience/resolve``: address of a service id."""
    service_type, service_id = call.required("type"), call.required("service_id")
    item = call.proxy.world.find(service_type, service_id)
    if item is None:
        raise StatusError(status.UNAVAILABLE, f"Conscience error: Service ID [{service_id}] not found")
    return json_reply({"addr": item.addr})


def register(call: Call) -> Response:
    """``conscience/register``: the score is computed by the conscience."""
    return _push(call, lambda given: SCORE_COMPUTE)


def lock(call: Call) -> Response:
    """``conscience/lock``: the score stays at the given value."""
    return _push(call, lambda given: max(0, min(SCORE_MAX, given)))


def unlock(call: Call) -> Response:
    """``conscience/unlock``: the score is computed again."""
    return _push(call, lambda given: SCORE_UNLOCK)


def _push(call: Call, wanted: Any) -> Response:
    proxy = call.proxy
    raw = call.raw_body()
    services = _services(call, raw, wanted)
    if proxy.is_from_sibling(call):
        proxy.feed.note(services)
        return Response(204)
    proxy.feed.push(services, **_bounds(call))
    if services and wanted(0) == SCORE_COMPUTE:
        proxy.tell_siblings(call, raw)
    return Response(204)


def deregister(call: Call) -> Response:
    """``conscience/deregister``: forget services at once."""
    proxy = call.proxy
    service_type = call.args.get("type")
    if service_type:
        proxy.feed.check_type(service_type)
    raw = call.raw_body()
    services = _services(call, raw, lambda given: SCORE_COMPUTE)
    # Not sent to the conscience again by what waits here.
    proxy.feed.discard((service.type, service.addr) for service in services)
    if not proxy.is_from_sibling(call):
        proxy.tell_siblings(call, raw)
        proxy.feed.registry.deregister(services, **_bounds(call))
    return Response(204)


def flush(call: Call) -> Response:
    """``conscience/flush``: forget all the services of a type."""
    proxy = call.proxy
    service_type = call.required("type")
    proxy.feed.check_type(service_type)
    proxy.feed.discard_type(service_type)
    if not proxy.is_from_sibling(call):
        proxy.tell_siblings(call)
        proxy.feed.registry.flush(service_type, **_bounds(call))
    return Response(204)


def _sometimes_failing(handler: Handler) -> Handler:
    """The same route, failing as often as a variable tells, for those who test what stands on it."""

    def handle(call: Call) -> Response:
        rate = call.proxy.variables["enbug.proxy.cs.failure_rate"]
        if rate and random.random() * 100 < rate:
            raise StatusError(status.UNAVAILABLE, "Failure made on purpose (enbug.proxy.cs.failure_rate)")
        return handler(call)

    return handle


def _bounds(call: Call) -> dict[str, Any]:
    """What a request to the conscience takes from the one that is served."""
    return {"reqid": call.reqid, "within_s": call.timeout_s(math.inf)}


def _only_tags(tags: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tags.items() if key.startswith("tag.")}


def _services(call: Call, raw: bytes, wanted: Any) -> list[ServiceDef]:
    """Services of a body: one object, or an array of them."""
    body = call.json_of(raw)
    items = [body] if isinstance(body, dict) else body
    if not isinstance(items, list):
        raise bad_request("Invalid body: a service or an array of services is expected")
    if len(items) > SERVICES_PER_REQUEST_MAX:
        raise bad_request(f"More than {SERVICES_PER_REQUEST_MAX} services")
    return [_service(call, item, wanted) for item in items]


def _service(call: Call, item: Any, wanted: Any) -> ServiceDef:
    if not isinstance(item, dict):
        raise bad_request("Invalid service: an object is expected")
    tags, given, namespace = item.get("tags"), item.get("score", 0), item.get("ns")
    if tags is not None and not isinstance(tags, dict):
        raise bad_request("Invalid service: 'tags' is not an object")
    if given is None:
        given = 0
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise bad_request("Invalid service: 'score' is not a number")
    if namespace not in (None, "", call.proxy.namespace):
        raise bad_request(f"Invalid service: 'ns' is not {call.proxy.namespace!r}")
    for name in ("addr", "type"):
        if not isinstance(item.get(name), str):
            raise bad_request(f"Invalid service: missing or invalid '{name}'")
    service_type, addr = item["type"], item["addr"]
    world = call.proxy.feed.world
    if world is not None and not valid_address(addr):
        # What people copy from a list is often the id.
        known = world.by_id.get((service_type, addr))
        addr = known.addr if known is not None else addr
    try:
        service = msgspec.convert(
            {
                "type": service_type,
                "addr": addr,
                "ns": call.proxy.namespace,
                "score": wanted(int(max(-2, min(given, 100)))),
                # Contract: what is neither a text, a number nor a boolean becomes false.
                "tags": {
                    key: value if isinstance(value, (str, int, float)) else False
                    for key, value in (tags or {}).items()
                    if key.startswith(("tag.", "stat."))
                },
            },
            ServiceDef,
        )
    except (msgspec.ValidationError, ValueError, OverflowError) as exc:
        raise bad_request(f"Invalid service: {exc}") from None
    call.proxy.feed.check_type(service_type)
    return service


ROUTES = [
    *(
        RouteDefinition(method, f"conscience/{verb}", _sometimes_failing(handler))
        for method, verb, handler in (
            ("GET", "info", info),
            ("GET", "list", list_services),
            ("GET", "score", score),
            ("GET", "resolve", resolve),
            ("POST", "register", register),
            ("POST", "lock", lock),
            ("POST", "unlock", unlock),
            ("POST", "deregister", deregister),
            ("POST", "flush", flush),
        )
    ),
    RouteDefinition("GET", "local/list", local_list),
]
