# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``content/*``: where to write an object, commit it, find it, delete it (contract: "content/* - objects")."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.http.messages import Response
from oio.meta.messages import (
    BulkReply,
    Chunk,
    ContentDelete,
    ContentDeleteMany,
    ContentPut,
    ContentReply,
    ContentShow,
    ContentTouch,
)
from oio.proxy.app import RouteDefinition
from oio.proxy.call import (
    INT64_MAX,
    JSON_HEADERS,
    Call,
    bad_request,
    encode_json,
    escape,
    escape_header_name,
    header_safe,
    is_hex,
    json_reply,
)
from oio.proxy.chunks import QUALITY_PREFIX, ChunkView, Maker, show_chunks
from oio.proxy.lb import World
from oio.proxy.routes.container import CONTAINER_MISSING, create_container, prefixed_properties

#: Chunks of one answer of ``prepare``: some 25 MB of JSON. Larger objects are prepared by pieces (``position``).
CHUNKS_MAX = 100_000

_META = "X-oio-content-meta-"
_HASH_LENGTHS = frozenset({32, 40, 64, 128})
_DIGITS_MAX = 19
_POSITION = re.compile(r"^[0-9]{1,19}(?:\.[0-9]{1,9})?\Z", re.ASCII)


class _PrepareBody(msgspec.Struct):
    size: Any = None
    policy: str | None = None
    position: Any = 0


class _ChunkIn(msgspec.Struct):
    url: str
    pos: str
    size: int
    hash: str


class _CreateBody(msgspec.Struct):
    chunks: list[_ChunkIn]
    properties: dict[str, str] | None = None
    container_properties: dict[str, Any] | None = None


class _PrepareReply(msgspec.Struct):
    chunks: list[ChunkView]
    properties: dict[str, str]


_decode_prepare = msgspec.json.Decoder(_PrepareBody).decode
_decode_create = msgspec.json.Decoder(_CreateBody).decode
_decode_chunks = msgspec.json.Decoder(list[_ChunkIn]).decode


# --- prepare ------------------------------------------------------------------------------------------


def prepare(call: Call) -> Response:
    """``content/prepare``: qualities in headers, for old clients."""
    headers, views, qualities = _prepare(call)
    for key, value in qualities.items():
        headers.append((_META + escape_header_name(key), escape(value)))
    return Response(200, encode_json(views), headers)


def prepare2(call: Call) -> Response:
    """``content/prepare2``: qualities in the body."""
    headers, views, qualities = _prepare(call)
    return Response(200, encode_json(_PrepareReply(views, qualities)), headers)


def _prepare(call: Call) -> tuple[list[tuple[str, str]], list[ChunkView], dict[str, str]]:
    """Choose where the chunks of an object go. Entirely local: neither container nor object are looked at."""
    proxy = call.proxy
    path = call.object_name()
    target = call.target
    raw = call.raw_body()
    body = _decode_prepare(raw) if raw and raw != b"null" else _PrepareBody()
    size = _size_of(body.size)
    position = body.position
    if type(position) is not int or not 0 <= position <= INT64_MAX:
        raise bad_request("Invalid 'position', not a positive integer")
    version = call.version()
    now_s = time.time()
    if "version" in call.args and version <= 0:
        raise bad_request("Invalid parameter 'version', not positive")
    if not version:
        version = int(now_s * 1e6)
    content_id = call.content_id() or os.urandom(16).hex().upper()
    world = proxy.world
    variables = proxy.variables
    policy = world.policy(body.policy or variables["ns.storage_policy"])
    chunk_size: int = variables["ns.chunk_size"]
    pool = world.policy_pool(policy)
    span = policy.span * chunk_size
    metachunks = -(-size // span) or 1
    if metachunks * len(pool.targets) > CHUNKS_MAX:
        raise bad_request(
            f"Invalid 'size': {metachunks} metachunks of {len(pool.targets)} chunks are too many for one request"
        )
    maker = Maker(
        chunk_size,
        call.header_boolean("x-oio-upgrade-to-tls"),
        world.proxy_location if variables["proxy.srv_local.patch"] else None,
        None
        if variables["core.lb.generate_random_chunk_ids"]
        else (target.cid, path, version, policy.name),
    )
    near_first = variables["proxy.srv_local.prepare"] if world.proxy_location is not None else 0
    views: list[ChunkView] = []
    qualities: dict[str, str] = {}
    for metachunk in range(position, position + metachunks):
        try:
            selection = pool.poll(near_first=near_first)
        except StatusError as exc:
            raise StatusError(exc.code, f"at position {metachunk}: {exc.message}") from None
        maker.make(selection, metachunk, policy.fragmented, views, qualities)
    now_text, size_text = str(int(now_s)), str(size)
    headers = [
        *JSON_HEADERS,
        ("X-oio-ns-chunk-size", str(chunk_size)),
        ("X-oio-content-meta-name", escape(path)),
        ("X-oio-content-meta-version", str(version)),
        ("X-oio-content-meta-deleted", "False"),
        ("X-oio-content-meta-ctime", now_text),
        ("X-oio-content-meta-mtime", now_text),
        ("X-oio-content-meta-size", size_text),
        ("X-oio-content-meta-length", size_text),
        ("X-oio-content-meta-policy", policy.name),
        ("X-oio-content-meta-hash-method", "md5"),
        ("X-oio-content-meta-mime-type", "application/octet-stream"),
        ("X-oio-content-meta-chunk-method", policy.chunk_method),
        ("X-oio-content-meta-id", content_id),
    ]
    return headers, views, qualities


def _size_of(value: Any) -> int:
    """The size announced by a client: a number, or its digits."""
    if value is None:
        raise bad_request("Missing size estimation")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS_MAX:
        value = int(value)
    if type(value) is not int or not 0 <= value <= INT64_MAX:
        raise bad_request("Invalid 'size', not a positive number")
    return value


# --- create -------------------------------------------------------------------------------------------


def create(call: Call) -> Response:
    """``content/create``: commit an object whose chunks are written."""
    request, container_properties = _put_request(call)
    proxy = call.proxy
    try:
        proxy.resolver.call_meta2(request, call, write=True)
    except StatusError as exc:
        if exc.code not in CONTAINER_MISSING or not call.flag("autocreate"):
            raise
        create_container(call, call.target, container_properties)
        proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def _put_request(call: Call) -> tuple[ContentPut, dict[str, str]]:
    headers = call.headers
    path = call.object_name()
    target = call.target
    for flag in ("change_policy", "force"):
        if call.flag(flag):
            raise StatusError(status.NOT_IMPLEMENTED, f"Flag '{flag}' is not available")
    content_id = headers.get("x-oio-content-meta-id") or call.args.get("content", "")
    if not content_id:
        raise bad_request("Missing header 'x-oio-content-meta-id'")
    if not is_hex(content_id):
        raise bad_request("Invalid header 'x-oio-content-meta-id', not hexadecimal")
    version = call.header_number("x-oio-content-meta-version")
    if version is None or version <= 0:
        raise bad_request("Missing or invalid header 'x-oio-content-meta-version', a positive number is expected")
    asked = call.version()
    if asked and asked != version:
        raise bad_request("Parameter 'version' differs from header 'x-oio-content-meta-version'")
    name = "x-oio-content-meta-size"
    if name not in headers:
        name = "x-oio-content-meta-length"
    size = call.header_number(name)
    if size is None or size < 0:
        raise bad_request("Missing or invalid header 'x-oio-content-meta-size', a number is expected")
    digest = headers.get("x-oio-content-meta-hash", "")
    if digest and (len(digest) not in _HASH_LENGTHS or not is_hex(digest)):
        raise bad_request("Invalid header 'x-oio-content-meta-hash', not the hexadecimal form of a known hash")
    policy_name = headers.get("x-oio-content-meta-policy")
    if not policy_name:
        raise StatusError(status.POLICY_NOT_SUPPORTED, "Missing header 'x-oio-content-meta-policy'")
    policy = call.proxy.world.policy(policy_name)
    raw = call.raw_body()
    if not raw:
        raise bad_request("Missing body: the chunks of the object are expected")
    if raw.lstrip()[:1] == b"[":
        body = _CreateBody(_decode_chunks(raw))
    else:
        body = _decode_create(raw)
    if not body.chunks:
        raise bad_request("Invalid 'chunks': empty array")
    chunks = [_checked_chunk(chunk) for chunk in body.chunks]
    properties = body.properties or {}
    if "" in properties or "" in properties.values():
        properties = {key: value for key, value in properties.items() if key and value}
    container = body.container_properties or {}
    request = ContentPut(
        cid=target.cid,
        account=target.account,
        name=target.name,
        path=path,
        version=version,
        content_id=content_id.upper(),
        size=size,
        hash=digest.upper(),
        mime_type=headers.get("x-oio-content-meta-mime-type") or "application/octet-stream",
        chunk_method=headers.get("x-oio-content-meta-chunk-method") or "plain",
        policy=policy.name,
        security=policy.security,
        chunks=chunks,
        properties=properties,
        append=call.flag("append"),
        force_versioning=call.header_number("x-oio-force-versioning"),
        simulate_versioning=call.header_boolean("x-oio-simulate-versioning"),
    )
    return request, prefixed_properties(container) if container else {}


def _checked_chunk(chunk: _ChunkIn) -> Chunk:
    digest = chunk.hash
    if digest and not is_hex(digest):
        raise bad_request(f"Invalid 'hash' of chunk {chunk.url}, not hexadecimal")
    if not 0 <= chunk.size <= INT64_MAX:
        raise bad_request(f"Invalid 'size' of chunk {chunk.url}")
    if not chunk.url or len(chunk.url) > 511 or not chunk.url.isprintable():
        raise bad_request("Invalid 'url' of a chunk")
    return Chunk(url=chunk.url, pos=chunk.pos, size=chunk.size, hash=digest.upper())


# --- show, locate -----------------------------------------------------------------------------------


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


# --- delete, touch --------------------------------------------------------------------------------------


def delete(call: Call) -> Response:
    """``content/delete``."""
    request = ContentDelete(
        **call.designation(),
        delete_marker=call.flag("delete_marker"),
        force_versioning=call.header_number("x-oio-force-versioning"),
        simulate_versioning=call.header_boolean("x-oio-simulate-versioning"),
    )
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def delete_many(call: Call) -> Response:
    """``content/delete_many``: the outcome of each object, in the order of the request."""
    target = call.target
    contents = call.named_items("contents", call.proxy.variables["proxy.bulk.max.delete_many"])
    paths = [content["name"] for content in contents]
    request = ContentDeleteMany(
        cid=target.cid,
        account=target.account,
        name=target.name,
        paths=paths,
        force_versioning=call.header_number("x-oio-force-versioning"),
        simulate_versioning=call.header_boolean("x-oio-simulate-versioning"),
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


# --- spare ----------------------------------------------------------------------------------------------


def spare(call: Call) -> Response:
    """``content/spare``: services for the chunks that a metachunk lacks."""
    policy_name = call.required("stgpol")
    target = call.target
    path = call.args.get("path", "")
    if not path:
        raise bad_request("Missing parameter 'path'")
    version, position = call.version(), call.args.get("position") or "0"
    if not _POSITION.match(position):
        raise bad_request("Invalid parameter 'position'")
    body = call.json()
    if not isinstance(body, dict) or "notin" not in body or "broken" not in body:
        raise bad_request("Invalid body: an object with 'notin' and 'broken' is expected")
    notin = _chunk_urls(body["notin"], "notin")
    broken = _chunk_urls(body["broken"], "broken")
    world = call.proxy.world
    policy = world.policy(policy_name)
    pool = world.policy_pool(policy)
    known, lost = _locations(world, notin)
    avoid = set(_locations(world, broken)[0])
    selection = pool.poll(avoid=avoid, known=known, known_elsewhere=lost)
    if not selection.choices:
        raise bad_request("too many locations in the blacklist")
    identity = None
    if not call.proxy.variables["core.lb.generate_random_chunk_ids"] and (
        "." in position or not policy.fragmented
    ):
        # A predictable id needs the whole position of the chunk; with fragments not every caller gives it.
        identity = (target.cid, path, version, policy.name)
    views: list[ChunkView] = []
    qualities: dict[str, str] = {}
    Maker(0, False, None, identity).make(selection, position, False, views, qualities)
    return json_reply(
        {
            "aliases": [],
            "headers": [],
            "chunks": [{"id": view.url, "pos": "", "hash": "", "size": 0} for view in views],
            "properties": [
                {"alias": "", "version": 0, "key": QUALITY_PREFIX + view.url,
                 "value": qualities[QUALITY_PREFIX + view.url]}
                for view in views
            ],
        }
    )


def _chunk_urls(value: Any, field: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad_request(f"Invalid '{field}': an array of chunks is expected")
    urls = []
    for chunk in value:
        url = chunk.get("url", chunk.get("id")) if isinstance(chunk, dict) else None
        if not isinstance(url, str):
            raise bad_request(f"Invalid '{field}': each chunk needs a 'url'")
        urls.append(url)
    return urls


def _locations(world: World, urls: list[str]) -> tuple[list[int], int]:
    """Locations of the services that hold chunks, and how many of the chunks are on services unknown by now."""
    locations = []
    for url in urls:
        service_id = url.partition("://")[2].partition("/")[0]
        item = world.find("rawx", service_id)
        if item is not None:
            locations.append(item.location)
    return locations, len(urls) - len(locations)


ROUTES = [
    RouteDefinition("POST", "content/prepare", prepare, meta2=True),
    RouteDefinition("POST", "content/prepare2", prepare2, meta2=True),
    RouteDefinition("POST", "content/create", create, meta2=True),
    RouteDefinition("GET", "content/show", show, meta2=True),
    RouteDefinition("GET", "content/locate", show, meta2=True),
    RouteDefinition("POST", "content/delete", delete, meta2=True),
    RouteDefinition("POST", "content/delete_many", delete_many, meta2=True),
    RouteDefinition("POST", "content/touch", touch, meta2=True),
    RouteDefinition("POST", "content/spare", spare, meta2=True),
]
