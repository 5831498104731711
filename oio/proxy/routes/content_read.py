# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``content/show`` and ``content/locate`` (contract: "content/* - objects")."""

from __future__ import annotations

from oio.http.messages import Response
from oio.meta.messages import ContentReply, ContentShow
from oio.proxy.app import RouteDefinition
from oio.proxy.call import JSON_HEADERS, Call, encode_json, escape, escape_header_name, header_safe
from oio.proxy.chunks import show_chunks

_META = "X-oio-content-meta-"


def show(call: Call) -> Response:
    """``content/show`` and ``content/locate``."""
    proxy = call.proxy
    with_properties = call.boolean("properties", True)
    request = ContentShow(
        **call.designation(), deleted=call.boolean("deleted"), properties=with_properties
    )
    reply: ContentReply = proxy.resolver.call_meta2(request, call, write=False)
    return located(call, reply, with_properties)


def located(call: Call, reply: ContentReply, with_properties: bool) -> Response:
    """The answer that shows an object: metadata in headers, chunks in the body."""
    proxy = call.proxy
    world = proxy.world
    views = show_chunks(
        reply.chunks,
        world,
        call.header_boolean("x-oio-upgrade-to-tls"),
        world.proxy_location if proxy.variables["proxy.srv_local.patch"] else None,
    )
    headers = object_headers(reply, proxy.variables["ns.chunk_size"])
    if with_properties:
        for key, value in reply.properties.items():
            headers.append((_META + escape_header_name(key), escape(value)))
    return Response(200, encode_json(views), headers)


def object_headers(reply: ContentReply, chunk_size: int) -> list[tuple[str, str]]:
    """Metadata of an object version as headers, its properties excepted."""
    size = str(reply.size)
    return [
        *JSON_HEADERS,
        ("X-oio-ns-chunk-size", str(chunk_size)),
        ("X-oio-content-meta-name", escape(reply.name)),
        ("X-oio-content-meta-version", str(reply.version)),
        ("X-oio-content-meta-deleted", "True" if reply.deleted else "False"),
        ("X-oio-content-meta-ctime", str(reply.ctime)),
        ("X-oio-content-meta-mtime", str(reply.mtime)),
        ("X-oio-content-meta-size", size),
        ("X-oio-content-meta-length", size),
        ("X-oio-content-meta-policy", header_safe(reply.policy)),
        ("X-oio-content-meta-hash-method", "md5"),
        ("X-oio-content-meta-mime-type", header_safe(reply.mime_type)),
        ("X-oio-content-meta-chunk-method", header_safe(reply.chunk_method)),
        ("X-oio-content-meta-id", reply.content_id),
        # Empty for what was appended to: readers expect the name.
        ("X-oio-content-meta-hash", reply.hash),
    ]


ROUTES = [
    RouteDefinition("GET", "content/show", show, meta2=True),
    RouteDefinition("GET", "content/locate", show, meta2=True),
]
