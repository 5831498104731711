# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``content/create`` and ``content/update``: commit what was written (contract: "content/* - objects")."""

from __future__ import annotations

from typing import Any

import msgspec

from oio.common import status
from oio.common.constants import RETRIED_HEADER
from oio.common.status import StatusError
from oio.http.messages import Response
from oio.meta.messages import Chunk, ContentPut, ContentUpdate
from oio.proxy.app import RouteDefinition
from oio.proxy.call import INT64_MAX, Call, bad_request, is_hex
from oio.proxy.conditions import condition_of
from oio.proxy.lb.pool import PolicyDefinition
from oio.proxy.routes.container import CONTAINER_MISSING, create_container, prefixed_properties

#: Longest URL of a chunk, in characters.
CHUNK_URL_MAX = 511

_PLAIN = "plain"
_ONE_COPY = "plain/nb_copy=1"

_HASH_LENGTHS = frozenset({32, 40, 64, 128})


class _ChunkIn(msgspec.Struct):
    url: str
    pos: str
    size: int
    hash: str


class _CreateBody(msgspec.Struct):
    chunks: list[_ChunkIn]
    properties: dict[str, str] | None = None
    container_properties: dict[str, Any] | None = None


_decode_create = msgspec.json.Decoder(_CreateBody).decode
_decode_chunks = msgspec.json.Decoder(list[_ChunkIn]).decode


def create(call: Call) -> Response:
    """``content/create``: commit an object whose chunks are written."""
    request, container_properties = _put_request(call)
    proxy = call.proxy
    try:
        proxy.resolver.call_meta2(request, call, write=True)
    except StatusError as exc:
        if exc.code not in CONTAINER_MISSING or not call.flag("autocreate") or request.change_policy:
            raise
        if request.condition is not None and request.condition.if_match is not None:
            # Refused for sure: no container is left behind.
            raise StatusError(
                status.PRECONDITION_FAILED, "If-Match does not hold: there is no container"
            ) from exc
        create_container(call, call.target, container_properties)
        proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def update(call: Call) -> Response:
    """``content/update``: replace the metachunks that the body holds.

    The content id of the header designates the object, or else its version: falling back on another one when it
    was replaced meanwhile would put the chunks of one object in another.
    """
    path = call.object_name()
    container = call.container()
    content_id, version, _, _, policy = _described(call)
    body = _body(call)
    request = ContentUpdate(
        **container,
        path=path,
        version=version,
        content_id=content_id,
        chunks=[_checked_chunk(chunk) for chunk in body.chunks],
        policy=policy.name,
        security=policy.security,
        properties=_kept_properties(body),
    )
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def _put_request(call: Call) -> tuple[ContentPut, dict[str, str]]:
    headers = call.headers
    path = call.object_name()
    target = call.target
    append, force, change_policy = call.flag("append"), call.flag("force"), call.flag("change_policy")
    if append + force + change_policy > 1:
        raise bad_request("Flags 'append', 'force' and 'change_policy' exclude each other")
    content_id, version, size, digest, policy = _described(call)
    body = _body(call)
    container = body.container_properties
    request = ContentPut(
        cid=target.cid,
        account=target.account,
        name=target.name,
        path=path,
        version=version,
        content_id=content_id,
        size=size,
        hash=digest,
        mime_type=headers.get("x-oio-content-meta-mime-type") or "application/octet-stream",
        chunk_method=headers.get("x-oio-content-meta-chunk-method") or _default_chunk_method(policy),
        policy=policy.name,
        security=policy.security,
        chunks=[_checked_chunk(chunk) for chunk in body.chunks],
        properties=_kept_properties(body),
        append=append,
        force=force,
        change_policy=change_policy,
        condition=condition_of(call),
        force_versioning=call.header_number("x-oio-force-versioning"),
        simulate_versioning=call.header_boolean("x-oio-simulate-versioning"),
        retried=call.header_boolean(RETRIED_HEADER),
    )
    return request, prefixed_properties(container) if container else {}


def _described(call: Call) -> tuple[str, int, int, str, PolicyDefinition]:
    """Content id, version, size, hash and policy of the headers. :raises StatusError: 400, 480."""
    headers = call.headers
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
    return content_id.upper(), version, size, digest.upper(), call.proxy.world.policy(policy_name)


def _default_chunk_method(policy: PolicyDefinition) -> str:
    """Chunk method of an object that does not tell it.

    It is ``plain``, unless the policy makes something else than one copy: by ``plain`` nobody could read the
    object, nor see what it lacks.
    """
    return _PLAIN if policy.chunk_method == _ONE_COPY else policy.chunk_method


def _body(call: Call) -> _CreateBody:
    raw = call.raw_body()
    if not raw:
        raise bad_request("Missing body: the chunks of the object are expected")
    if raw.lstrip()[:1] == b"[":
        body = _CreateBody(_decode_chunks(raw))
    else:
        body = _decode_create(raw)
    if not body.chunks:
        raise bad_request("Invalid 'chunks': empty array")
    return body


def _kept_properties(body: _CreateBody) -> dict[str, str]:
    properties = body.properties
    if not properties:
        return {}
    if "" in properties or "" in properties.values():
        properties = {key: value for key, value in properties.items() if key and value}
    return properties


def _checked_chunk(chunk: _ChunkIn) -> Chunk:
    digest = chunk.hash
    if digest and not is_hex(digest):
        raise bad_request(f"Invalid 'hash' of chunk {chunk.url}, not hexadecimal")
    if not 0 <= chunk.size <= INT64_MAX:
        raise bad_request(f"Invalid 'size' of chunk {chunk.url}")
    if not chunk.url or len(chunk.url) > CHUNK_URL_MAX or not chunk.url.isprintable():
        raise bad_request("Invalid 'url' of a chunk")
    return Chunk(url=chunk.url, pos=chunk.pos, size=chunk.size, hash=digest.upper())


ROUTES = [
    RouteDefinition("POST", "content/create", create, meta2=True),
    RouteDefinition("POST", "content/update", update, meta2=True),
]
