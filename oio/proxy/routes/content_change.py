# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``content/*``: deletion, and other changes of objects in place (contract: "content/* - objects")."""

from __future__ import annotations

from oio.common.constants import RETRIED_HEADER
from oio.http.messages import Response
from oio.meta.messages import (
    BulkReply,
    ContentDelete,
    ContentDeleteMany,
    ContentDrain,
    ContentPurge,
    ContentTouch,
    ContentTruncate,
)
from oio.proxy.app import RouteDefinition
from oio.proxy.call import Call, bad_request, json_reply
from oio.proxy.conditions import condition_of


def delete(call: Call) -> Response:
    """``content/delete``."""
    request = ContentDelete(
        **call.designation(),
        delete_marker=call.flag("delete_marker"),
        condition=condition_of(call),
        force_versioning=call.header_number("x-oio-force-versioning"),
        simulate_versioning=call.header_boolean("x-oio-simulate-versioning"),
        retried=call.header_boolean(RETRIED_HEADER),
    )
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def delete_many(call: Call) -> Response:
    """``content/delete_many``: the outcome of each object, in the order of the request."""
    container = call.container()
    contents = call.named_items("contents", call.proxy.variables["proxy.bulk.max.delete_many"])
    paths = [content["name"] for content in contents]
    request = ContentDeleteMany(
        **container,
        paths=paths,
        force_versioning=call.header_number("x-oio-force-versioning"),
        simulate_versioning=call.header_boolean("x-oio-simulate-versioning"),
        retried=call.header_boolean(RETRIED_HEADER),
    )
    reply: BulkReply = call.proxy.resolver.call_meta2(request, call, write=True)
    items = [
        {"name": path, "status": item.status, "message": item.message}
        for path, item in zip(paths, reply.items, strict=True)
    ]
    return json_reply({"contents": items})


def touch(call: Call) -> Response:
    """``content/touch``: emit the event of the object again."""
    call.proxy.resolver.call_meta2(ContentTouch(**call.designation()), call, write=True)
    return Response(204)


def drain(call: Call) -> Response:
    """``content/drain``: remove the chunks, keep the rest."""
    call.proxy.resolver.call_meta2(ContentDrain(**call.designation()), call, write=True)
    return Response(204)


def truncate(call: Call) -> Response:
    """``content/truncate``: drop what lies beyond ``size``, the end of a metachunk."""
    designation = call.designation()
    size = call.optional_number("size")
    if size is None:
        raise bad_request("Missing parameter 'size'")
    if size < 0:
        raise bad_request("Invalid parameter 'size', negative")
    call.proxy.resolver.call_meta2(ContentTruncate(**designation, size=size), call, write=True)
    return Response(204)


def purge(call: Call) -> Response:
    """``content/purge``: apply the retention of versions to one name; it need not exist."""
    request = ContentPurge(
        **call.container(), path=call.object_name(), max_versions=call.optional_number("maxvers")
    )
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


ROUTES = [
    RouteDefinition("POST", "content/delete", delete, meta2=True),
    RouteDefinition("POST", "content/delete_many", delete_many, meta2=True),
    RouteDefinition("POST", "content/touch", touch, meta2=True),
    RouteDefinition("POST", "content/drain", drain, meta2=True),
    RouteDefinition("POST", "content/truncate", truncate, meta2=True),
    RouteDefinition("POST", "content/purge", purge, meta2=True),
]
