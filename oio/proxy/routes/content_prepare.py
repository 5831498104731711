# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``content/*``: where to write the chunks of an object (contract: "content/* - objects").

Local to the proxy: neither the container nor the object needs to exist. The container is only asked for its
storage policy, when the request names none.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

import msgspec

from oio.common.status import StatusError
from oio.http.messages import Response
from oio.proxy.app import RouteDefinition
from oio.proxy.call import (
    INT64_MAX,
    JSON_HEADERS,
    Call,
    bad_request,
    encode_json,
    escape,
    escape_header_name,
    json_reply,
)
from oio.proxy.chunks import QUALITY_PREFIX, ChunkView, Maker
from oio.proxy.lb import World
from oio.proxy.lb.pool import PolicyDefinition
from oio.proxy.policies import default_policy

#: Chunks of one answer of ``prepare``: some 25 MB of JSON. Larger objects are prepared by pieces (``position``).
CHUNKS_MAX = 100_000

_META = "X-oio-content-meta-"
_DIGITS_MAX = 19
_POSITION = re.compile(r"^[0-9]{1,19}(?:\.[0-9]{1,9})?\Z", re.ASCII)


class _PrepareBody(msgspec.Struct):
    size: Any = None
    policy: str | None = None
    position: Any = 0


class _PrepareReply(msgspec.Struct):
    chunks: list[ChunkView]
    properties: dict[str, str]


_decode_prepare = msgspec.json.Decoder(_PrepareBody).decode


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
    """Choose where the chunks of an object go."""
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
    policy = world.policy(body.policy or default_policy(call))
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
    headers = _described(path, version, content_id, size, now_s, policy, chunk_size)
    return headers, views, qualities


def _described(
    path: str, version: int, content_id: str, size: int, now_s: float, policy: PolicyDefinition, chunk_size: int
) -> list[tuple[str, str]]:
    """Headers that describe the object to be."""
    now_text, size_text = str(int(now_s)), str(size)
    return [
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


def _size_of(value: Any) -> int:
    """The size announced by a client: a number, or its digits."""
    if value is None:
        raise bad_request("Missing size estimation")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS_MAX:
        value = int(value)
    if type(value) is not int or not 0 <= value <= INT64_MAX:
        raise bad_request("Invalid 'size', not a positive number")
    return value


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
    RouteDefinition("POST", "content/spare", spare, meta2=True),
]
