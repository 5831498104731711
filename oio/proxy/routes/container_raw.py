# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/raw_*``: rows of a base, as tools rewrite them (contract: "container/* - container databases", "Raw
routes").

Every item of a body is checked before anything is sent; the error names its index and its field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

import msgspec

from oio.http.messages import Response
from oio.meta.messages import RawAlias, RawBean, RawChunk, RawDelete, RawHeader, RawInsert, RawUpdate
from oio.proxy.app import RouteDefinition
from oio.proxy.call import INT64_MAX, PATH_MAX_BYTES, Call, StatusError, bad_request, is_hex
from oio.proxy.routes.content_create import CHUNK_URL_MAX

#: Digits of the hash of a content: md5.
HASH_DIGITS = 32

_POSITION = re.compile(r"^[0-9]{1,9}(?:\.[0-9]{1,4})?\Z", re.ASCII)
_Count = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]


class _Alias(msgspec.Struct, tag_field="type", tag="alias"):
    name: str
    version: _Count
    header: str
    ctime: _Count | None = None
    mtime: _Count | None = None
    deleted: bool | None = None


class _Header(
    msgspec.Struct,
    tag_field="type",
    tag="header",
    rename={"chunk_method": "chunk-method", "mime_type": "mime-type"},
):
    id: str
    chunk_method: str
    mime_type: str
    hash: str | None = None
    size: _Count | None = None
    ctime: _Count | None = None
    mtime: _Count | None = None
    policy: str | None = None


class _Chunk(msgspec.Struct, tag_field="type", tag="chunk"):
    id: str
    hash: str
    size: _Count
    content: str
    pos: str
    ctime: _Count | None = None


_Bean = _Alias | _Header | _Chunk


class _Pairs(msgspec.Struct):
    old: list[_Bean]
    new: list[_Bean]


_decode_beans = msgspec.json.Decoder(list[_Bean]).decode
_decode_pairs = msgspec.json.Decoder(_Pairs).decode


def raw_insert(call: Call) -> Response:
    """``container/raw_insert``: 421 when a row exists, unless ``force``.

    ``strict`` (here and for updates) is for chunks that were made from a view of the object that may be old: 420
    when size or hash are others by now, 421 when the service has another chunk of the metachunk.
    """
    request = RawInsert(
        **call.container(),
        beans=_beans(call),
        force=call.flag("force"),
        frozen=call.flag("frozen"),
        strict=call.flag("strict"),
    )
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def raw_update(call: Call) -> Response:
    """``container/raw_update``: each row of ``old`` becomes the row of ``new`` at the same index."""
    container = call.container()
    raw = call.raw_body()
    if not raw:
        raise bad_request("Missing body: an object with 'old' and 'new' is expected")
    pairs: _Pairs = _decode_pairs(raw)
    if len(pairs.old) != len(pairs.new):
        raise bad_request(f"'old' has {len(pairs.old)} beans and 'new' {len(pairs.new)}, as many are expected")
    if not pairs.old:
        raise bad_request("Invalid 'old': empty array")
    for index, (old, new) in enumerate(zip(pairs.old, pairs.new, strict=True)):
        if type(old) is not type(new):
            raise bad_request(f"Invalid 'type' of new[{index}]: it differs from that of old[{index}]")
    request = RawUpdate(
        **container,
        old=[_checked(bean, f"old[{index}]") for index, bean in enumerate(pairs.old)],
        new=[_checked(bean, f"new[{index}]") for index, bean in enumerate(pairs.new)],
        frozen=call.flag("frozen"),
        strict=call.flag("strict"),
    )
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def raw_delete(call: Call) -> Response:
    """``container/raw_delete``: rows that are absent are not an error."""
    request = RawDelete(**call.container(), beans=_beans(call))
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def _beans(call: Call) -> list[RawBean]:
    raw = call.raw_body()
    if not raw:
        raise bad_request("Missing body: an array of beans is expected")
    beans = _decode_beans(raw)
    if not beans:
        raise bad_request("Invalid body: empty array")
    return [_checked(bean, f"bean[{index}]") for index, bean in enumerate(beans)]


def _checked(bean: _Bean, where: str) -> RawBean:
    """A bean as meta2 takes it. :raises StatusError: 400 naming the item and the field."""

    def refused(field: str, reason: str) -> StatusError:
        return bad_request(f"Invalid '{field}' of {where}: {reason}")

    if isinstance(bean, _Alias):
        if not bean.name or len(bean.name.encode()) > PATH_MAX_BYTES or "\0" in bean.name:
            raise refused("name", f"1 to {PATH_MAX_BYTES} bytes without NUL are expected")
        if bean.version <= 0:
            raise refused("version", "a positive number is expected")
        return RawAlias(
            name=bean.name,
            version=bean.version,
            header=_hex(bean.header, "header", refused),
            ctime=bean.ctime,
            mtime=bean.mtime,
            deleted=bool(bean.deleted),
        )
    if isinstance(bean, _Header):
        if bean.hash and len(bean.hash) != HASH_DIGITS:
            raise refused("hash", f"{HASH_DIGITS} hexadecimal digits are expected")
        for field, text in (("chunk-method", bean.chunk_method), ("mime-type", bean.mime_type)):
            if not text:
                raise refused(field, "empty")
        return RawHeader(
            id=_hex(bean.id, "id", refused),
            chunk_method=bean.chunk_method,
            mime_type=bean.mime_type,
            hash=_hex(bean.hash, "hash", refused) if bean.hash else "",
            size=bean.size or 0,
            ctime=bean.ctime,
            mtime=bean.mtime,
            policy=bean.policy or "",
        )
    if not bean.id or len(bean.id) > CHUNK_URL_MAX or not bean.id.isprintable():
        raise refused("id", f"the URL of a chunk is expected, of {CHUNK_URL_MAX} characters at most")
    if not _POSITION.match(bean.pos):
        raise refused("pos", "a position such as '0' or '0.1' is expected")
    return RawChunk(
        id=bean.id,
        hash=_hex(bean.hash, "hash", refused) if bean.hash else "",
        size=bean.size,
        content=_hex(bean.content, "content", refused),
        pos=bean.pos,
        ctime=bean.ctime,
    )


def _hex(text: str, field: str, refused: Callable[[str, str], StatusError]) -> str:
    if not is_hex(text):
        raise refused(field, "an even number of hexadecimal digits is expected")
    return text.upper()


ROUTES = [
    RouteDefinition("POST", "container/raw_insert", raw_insert, meta2=True),
    RouteDefinition("POST", "container/raw_update", raw_update, meta2=True),
    RouteDefinition("POST", "container/raw_delete", raw_delete, meta2=True),
]
