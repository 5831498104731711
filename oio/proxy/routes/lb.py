# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``lb/*``: choices of services (contract: "Load balancer and conscience routes")."""

from __future__ import annotations

import logging
from typing import Any

from oio.common import status
from oio.common.status import StatusError
from oio.http.messages import Response
from oio.proxy.app import RouteDefinition, mapped_error
from oio.proxy.call import JSON_HEADERS, Call, bad_request, encode_json
from oio.proxy.feed import Feed
from oio.proxy.lb import NotEnoughServices, Selection
from oio.proxy.lb.pool import TARGETS_MAX, make_pool, parse_targets
from oio.proxy.lb.world import qualified_slot

logger = logging.getLogger(__name__)

#: Longest name of a pool made by a request.
POOL_NAME_MAX = 256

_INT64_SPAN = 1 << 64


def choose(call: Call) -> Response:
    """``lb/choose``: some different services of a type, of one slot first."""
    service_type = call.required("type")
    size = call.number("size", 1)
    if size < 1:
        raise bad_request("Invalid parameter 'size', not above 0")
    world = call.proxy.world
    call.proxy.feed.check_type(service_type)
    if size > TARGETS_MAX:
        raise StatusError(
            status.POLICY_NOT_SATISFIABLE,
            f"found only {TARGETS_MAX} services matching the criteria: no more in one request",
        )
    slot = call.args.get("slot")
    pool = world.temporary_pool(
        qualified_slot(service_type, slot) if slot else service_type, service_type, size
    )
    try:
        return _selected(pool.poll())
    except NotEnoughServices as exc:
        raise StatusError(
            exc.code, f"found only {exc.found} services matching the criteria: {exc.reason}"
        ) from None


def poll(call: Call) -> Response:
    """``lb/poll``: one service per target of a pool."""
    world = call.proxy.world
    pool_name, policy_name = call.args.get("pool"), call.args.get("policy")
    if pool_name:
        pool = world.pool(pool_name)
        if pool is None:
            raise bad_request(f"pool [{pool_name}] not found")
    elif policy_name:
        try:
            pool = world.policy_pool(world.policy(policy_name))
        except StatusError as exc:
            raise StatusError(status.POLICY_NOT_SATISFIABLE, exc.message) from None
    else:
        return mapped_error(404, bad_request("Missing parameter 'pool' (or 'policy')"))
    body = call.json()
    if body is None:
        body = {}
    if not isinstance(body, dict):
        raise bad_request("Invalid body: null or an object is expected")
    avoid = _locations(call, body, "avoid")
    known = _locations(call, body, "known")
    return _selected(pool.poll(avoid=frozenset(avoid), known=known))


def create_pool(call: Call) -> Response:
    """``lb/create_pool``: a pool in the memory of this proxy."""
    name = call.required("name")
    if len(name) > POOL_NAME_MAX:
        raise bad_request(f"Invalid parameter 'name', more than {POOL_NAME_MAX} characters")
    raw = call.raw_body()
    body = call.json_of(raw)
    if not isinstance(body, dict):
        raise bad_request("Invalid body: an object is expected")
    targets, options = body.get("targets"), body.get("options")
    if not isinstance(targets, str):
        raise bad_request("Missing or invalid 'targets': a string is expected")
    if options is not None and not isinstance(options, dict):
        raise bad_request("Invalid 'options': an object is expected")
    try:
        pool = make_pool(name, parse_targets(targets), options or {})
    except ValueError as exc:
        raise bad_request(f"Invalid pool: {exc}") from None
    sibling = call.proxy.is_from_sibling(call)
    if not call.proxy.feed.add_pool(pool, force=sibling or call.boolean("force")):
        raise StatusError(status.CONTENT_EXISTS, f"pool [{name}] already exists")
    call.proxy.tell_siblings(call, raw)
    return Response(201)


def reload(call: Call) -> Response:
    """``lb/reload``: read services and pools again now; says 204 whatever happens.

    Registrations that wait in any worker are sent first, so that what a client registered before is seen after. A
    sibling only sends its queue in the first round (``step=push``) and reads in the second.
    """
    proxy = call.proxy
    step = call.args.get("step", "") if proxy.is_from_sibling(call) else ""
    path = call.request.path
    if step != "read":
        _flush_queue(proxy.feed)
    if step != "push":
        proxy.tell_siblings(call, target=f"{path}?step=push")
        proxy.feed.try_refresh()
        proxy.tell_siblings(call, target=f"{path}?step=read")
    return Response(204)


def _flush_queue(feed: Feed) -> None:
    try:
        feed.flush_queue()
    except StatusError as exc:
        logger.warning("registrations wait for a conscience: %s", exc)


def _selected(selection: Selection) -> Response:
    items = [{"addr": choice.item.id, "id": choice.item.key} for choice in selection.choices]
    headers = [*JSON_HEADERS, ("X-oio-lb-flawed", "1")] if selection.flawed else JSON_HEADERS
    return Response(200, encode_json(items), headers)


def _locations(call: Call, body: dict[str, Any], field: str) -> list[int]:
    """Locations of ``field`` (service keys) and of ``field_locations`` (integers), without duplicates."""
    keys, raw = body.get(field) or [], body.get(f"{field}_locations") or []
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise bad_request(f"Invalid '{field}': an array of service keys is expected")
    if not isinstance(raw, list) or not all(type(location) is int for location in raw):
        raise bad_request(f"Invalid '{field}_locations': an array of integers is expected")
    known = call.proxy.world.by_key
    found = [known[key].location for key in keys if key in known]
    for location in raw:
        if not -_INT64_SPAN // 2 <= location < _INT64_SPAN:
            raise bad_request(f"Invalid '{field}_locations': {location} does not fit in 64 bits")
        found.append(location % _INT64_SPAN)
    return list(dict.fromkeys(found))


ROUTES = [
    RouteDefinition("GET", "lb/choose", choose),
    RouteDefinition("POST", "lb/poll", poll),
    RouteDefinition("POST", "lb/create_pool", create_pool),
    RouteDefinition("POST", "lb/reload", reload),
]
