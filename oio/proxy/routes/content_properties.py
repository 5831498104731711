# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``content/*_properties`` (contract: "content/* - objects", "Properties")."""

from __future__ import annotations

from oio.http.messages import Response
from oio.meta.messages import ContentDelProperties, ContentReply, ContentSetProperties, ContentShow
from oio.proxy.app import RouteDefinition
from oio.proxy.call import Call, bad_request, encode_json, string_list, string_map
from oio.proxy.routes.content_read import object_headers


def get_properties(call: Call) -> Response:
    """``content/get_properties``: works on delete markers and drained objects too."""
    request = ContentShow(**call.designation(), deleted=True, drained=True, chunks=False)
    reply: ContentReply = call.proxy.resolver.call_meta2(request, call, write=False)
    headers = object_headers(reply, call.proxy.variables["ns.chunk_size"])
    return Response(200, encode_json({"properties": reply.properties}), headers)


def set_properties(call: Call) -> Response:
    """``content/set_properties``: an empty value deletes; ``flush`` removes the others first."""
    if "content" in call.args:
        raise bad_request("Parameter 'content' is forbidden here, use 'path'")
    body = call.json_object()
    clear = "flush" in call.args
    properties = string_map(body.get("properties"), "properties")
    if not properties and not clear:
        raise bad_request("No properties found in the body")
    request = ContentSetProperties(**call.designation(), properties=properties, clear=clear)
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def del_properties(call: Call) -> Response:
    """``content/del_properties``: an empty array deletes all."""
    names = string_list(call.json(), "body")
    request = ContentDelProperties(**call.designation(), names=names)
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


ROUTES = [
    RouteDefinition("POST", "content/get_properties", get_properties, meta2=True),
    RouteDefinition("POST", "content/set_properties", set_properties, meta2=True),
    RouteDefinition("POST", "content/del_properties", del_properties, meta2=True),
]
