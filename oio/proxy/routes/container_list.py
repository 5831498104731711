# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/list`` (contract: "container/* - container databases", "list")."""

from __future__ import annotations

from oio.common import status
from oio.common.status import StatusError
from oio.http.messages import Response
from oio.meta.messages import ContentList, ListReply
from oio.proxy.app import RouteDefinition
from oio.proxy.call import JSON_HEADERS, Call, bad_request, encode_json, escape, is_hex
from oio.proxy.routes.container_properties import property_headers, split_properties

LIST_DEFAULT = 1000
LIST_MAX = 10000


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
        version_marker=call.optional_number("version_marker"),
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
        if reply.next_version_marker is not None:
            answer.append(("X-oio-list-version-marker", str(reply.next_version_marker)))
    body = b'{"prefixes":%b,"properties":%b,"system":%b,"objects":%b}' % (
        encode_json(reply.prefixes),
        encode_json(user),
        encode_json(system),
        reply.objects,
    )
    return Response(200, body, answer)


ROUTES = [RouteDefinition("GET", "container/list", list_contents, meta2=True)]
