# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What is known of a chunk: from request headers, to attributes, to reply headers.

Texts keep the bytes they were received with: header values, attribute values and the fields here
are all latin-1 views of the same bytes, so that any byte survives the round trip.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from oio.common import blocksums

PREFIX = "x-oio-chunk-meta-"
OIO_VERSION = "4.2"
HASH_DIGITS_MAX = 64

XATTR_FULLPATH = "user.oio.content.fullpath:"
XATTR_METACHUNK_HASH = "user.grid.metachunk.hash"
XATTR_METACHUNK_SIZE = "user.grid.metachunk.size"
XATTR_CHUNK_HASH = "user.grid.chunk.hash"
XATTR_CHUNK_SIZE = "user.grid.chunk.size"
XATTR_POSITION = "user.grid.chunk.position"
XATTR_METHOD = "user.grid.content.chunk_method"
XATTR_POLICY = "user.grid.content.storage_policy"
XATTR_VERSION = "user.grid.oio.version"
XATTR_COMPRESSION = "user.grid.compression"
XATTR_BLOCK_SUMS = "user.oio.chunk.block_sums"

XATTR_LEGACY_ID = "user.grid.chunk.id"
XATTR_LEGACY_CONTAINER = "user.grid.content.container"
XATTR_LEGACY_PATH = "user.grid.content.path"
XATTR_LEGACY_VERSION = "user.grid.content.version"
XATTR_LEGACY_CONTENT_ID = "user.grid.content.id"
LEGACY_XATTRS = (
    XATTR_LEGACY_ID,
    XATTR_LEGACY_CONTAINER,
    XATTR_LEGACY_PATH,
    XATTR_LEGACY_VERSION,
    XATTR_LEGACY_CONTENT_ID,
)

_HEX = re.compile(r"[0-9A-Fa-f]{1,64}\Z")
_CHUNK_ID = re.compile(r"[0-9A-Fa-f]{24,64}\Z")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,20}\Z")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


class BadHeader(ValueError):
    """Raised when a header or trailer of a request is missing or has a wrong value."""


class MalformedFullpath(ValueError):
    """Raised when the fullpath attribute of a stored chunk is not made of five parts."""


@dataclass(slots=True)
class ChunkMeta:
    """Metadata of one chunk; an empty text is an absent value."""

    chunk_id: str
    policy: str = ""
    method: str = ""
    position: str = ""
    metachunk_hash: str = ""
    metachunk_size: str = ""
    chunk_hash: str = ""
    chunk_size: str = ""
    fullpath: str = ""
    container_id: str = ""
    content_path: str = ""
    """Decoded (contract: content-path is encoded in headers only)."""
    content_version: str = ""
    content_id: str = ""
    version: str = ""
    compression: str = ""
    block_sums: str = ""


def parse_chunk_id(text: str) -> str | None:
    """Uppercase chunk id, or None when the text is not 24 to 64 hex digits."""
    return text.upper() if _CHUNK_ID.match(text) else None


def is_decimal64(text: str) -> bool:
    """Is this a signed 64-bit decimal number?"""
    return bool(_DECIMAL.match(text)) and _INT64_MIN <= int(text) <= _INT64_MAX


def upload_metadata(headers: Mapping[str, str], chunk_id: str) -> ChunkMeta:
    """Check the request headers of an upload, in the order of the contract.

    `headers` has lower-case names. Raises :class:`BadHeader` at the first failure.
    """
    get = headers.get
    meta = ChunkMeta(chunk_id, version=OIO_VERSION)
    meta.policy = _mandatory(get(PREFIX + "content-storage-policy"), "content-storage-policy")
    meta.method = _mandatory(get(PREFIX + "content-chunk-method"), "content-chunk-method")
    announced_id = get(PREFIX + "chunk-id")
    if announced_id and announced_id.upper() != chunk_id:
        raise BadHeader(f"chunk-id: {announced_id!r} is not the chunk of the URL, {chunk_id}")
    meta.position = _mandatory(get(PREFIX + "chunk-pos"), "chunk-pos")
    apply_measures(meta, headers)
    apply_fullpath(meta, headers)
    return meta


def apply_measures(meta: ChunkMeta, headers: Mapping[str, str]) -> None:
    """Take hashes and sizes from headers, or from trailers, which come after and win."""
    get = headers.get
    if value := get(PREFIX + "metachunk-hash"):
        meta.metachunk_hash = _hexadecimal(value, "metachunk-hash")
    if value := get(PREFIX + "metachunk-size"):
        meta.metachunk_size = _decimal(value, "metachunk-size")
    if value := get(PREFIX + "chunk-hash"):
        meta.chunk_hash = _hexadecimal(value, "chunk-hash")
    if value := get(PREFIX + "chunk-size"):
        meta.chunk_size = _decimal(value, "chunk-size")
    if value := get(PREFIX + "block-sums"):
        meta.block_sums = value


def apply_fullpath(meta: ChunkMeta, headers: Mapping[str, str]) -> None:
    """Check the full-path header against the headers that repeat its parts."""
    get = headers.get
    fullpath = _mandatory(get(PREFIX + "full-path"), "full-path")
    parts = fullpath.split("/")
    if len(parts) != 5:
        raise BadHeader(f"full-path: {len(parts)} parts instead of 5")
    account, container, path, version, content_id = parts
    if not account or not container or not path:
        raise BadHeader("full-path: empty part")
    if _BAD_ESCAPE.search(fullpath):
        raise BadHeader("full-path: invalid percent-encoding")
    announced = get(PREFIX + "container-id")
    meta.container_id = container_id_of(account, container)
    if announced and announced.upper() != meta.container_id:
        raise BadHeader("container-id: not the container of full-path")
    path_bytes = _unquote(path)
    announced = get(PREFIX + "content-path")
    if announced and (_BAD_ESCAPE.search(announced) or _unquote(announced) != path_bytes):
        raise BadHeader("content-path: not the path of full-path")
    if not is_decimal64(version):
        raise BadHeader(f"full-path: version {version!r} is not a number")
    announced = get(PREFIX + "content-version")
    if announced and announced != version:
        raise BadHeader("content-version: not the version of full-path")
    if not _HEX.match(content_id):
        raise BadHeader(f"full-path: content id {content_id[:80]!r} is not hexadecimal")
    announced = get(PREFIX + "content-id")
    if announced and announced.upper() != content_id.upper():
        raise BadHeader("content-id: not the content id of full-path")
    meta.content_path = path_bytes.decode("latin-1")
    meta.content_version = version
    meta.content_id = content_id.upper()
    meta.fullpath = f"{account}/{container}/{path}/{version}/{meta.content_id}"


def container_id_of(account: str, container: str) -> str:
    """Container id of a percent-encoded account and container."""
    name = _unquote(account) + b"\0" + _unquote(container)
    return hashlib.sha256(name, usedforsecurity=False).hexdigest().upper()


def attributes_of(meta: ChunkMeta) -> list[tuple[str, bytes]]:
    """Attributes that an upload writes, in order; empty values are not written.

    The block sums come last, because they may be left out when there is no room for them.
    """
    pairs = (
        (XATTR_FULLPATH + meta.chunk_id, meta.fullpath),
        (XATTR_METACHUNK_HASH, meta.metachunk_hash),
        (XATTR_METACHUNK_SIZE, meta.metachunk_size),
        (XATTR_CHUNK_HASH, meta.chunk_hash),
        (XATTR_CHUNK_SIZE, meta.chunk_size),
        (XATTR_POSITION, meta.position),
        (XATTR_METHOD, meta.method),
        (XATTR_POLICY, meta.policy),
        (XATTR_VERSION, meta.version),
        (XATTR_COMPRESSION, meta.compression),
        (XATTR_BLOCK_SUMS, meta.block_sums),
    )
    return [(name, value.encode("latin-1")) for name, value in pairs if value]


def stored_metadata(chunk_id: str, attributes: Mapping[str, bytes]) -> ChunkMeta:
    """Metadata of a chunk read from disk. Raises :class:`MalformedFullpath`."""

    def text(name: str) -> str:
        value = attributes.get(name)
        return value.decode("latin-1") if value else ""

    meta = ChunkMeta(
        chunk_id,
        policy=text(XATTR_POLICY),
        method=text(XATTR_METHOD),
        position=text(XATTR_POSITION),
        metachunk_hash=text(XATTR_METACHUNK_HASH),
        metachunk_size=text(XATTR_METACHUNK_SIZE),
        chunk_hash=text(XATTR_CHUNK_HASH).upper(),
        chunk_size=text(XATTR_CHUNK_SIZE),
        fullpath=text(XATTR_FULLPATH + chunk_id),
        version=text(XATTR_VERSION),
        compression=text(XATTR_COMPRESSION),
        block_sums=text(XATTR_BLOCK_SUMS),
    )
    if meta.fullpath:
        parts = meta.fullpath.split("/")
        if len(parts) != 5:
            raise MalformedFullpath(f"the fullpath of chunk {chunk_id} has {len(parts)} parts")
        meta.container_id = container_id_of(parts[0], parts[1])
        meta.content_path = _unquote(parts[2]).decode("latin-1")
        meta.content_version = parts[3]
        meta.content_id = parts[4]
    elif text(XATTR_LEGACY_ID).upper() == chunk_id:
        meta.container_id = text(XATTR_LEGACY_CONTAINER)
        meta.content_path = text(XATTR_LEGACY_PATH)
        meta.content_version = text(XATTR_LEGACY_VERSION)
        meta.content_id = text(XATTR_LEGACY_CONTENT_ID)
    return meta


def reply_headers(meta: ChunkMeta) -> list[tuple[str, str]]:
    """Headers that describe a chunk in the replies to GET and HEAD, empty values left out."""
    path = meta.content_path
    pairs = (
        ("x-oio-chunk-meta-full-path", meta.fullpath),
        ("x-oio-chunk-meta-container-id", meta.container_id),
        ("x-oio-chunk-meta-content-path", path and quote_from_bytes(path.encode("latin-1"), "")),
        ("x-oio-chunk-meta-content-version", meta.content_version),
        ("x-oio-chunk-meta-content-id", meta.content_id),
        ("x-oio-chunk-meta-content-storage-policy", meta.policy),
        ("x-oio-chunk-meta-content-chunk-method", meta.method),
        ("x-oio-chunk-meta-metachunk-hash", meta.metachunk_hash),
        ("x-oio-chunk-meta-chunk-id", meta.chunk_id),
        ("x-oio-chunk-meta-metachunk-size", meta.metachunk_size),
        ("x-oio-chunk-meta-chunk-pos", meta.position),
        ("x-oio-chunk-meta-chunk-hash", meta.chunk_hash),
        ("x-oio-chunk-meta-chunk-size", meta.chunk_size),
        ("x-oio-chunk-meta-oio-version", meta.version),
        ("x-oio-chunk-meta-block-sums", meta.block_sums),
    )
    return [pair for pair in pairs if pair[1]]


def announces_block_sums(headers: Mapping[str, str]) -> bool:
    """Will the client send block sums, in a header or in a trailer it announced?"""
    if PREFIX + "block-sums" in headers:
        return True
    trailer = headers.get("trailer")
    return trailer is not None and PREFIX + "block-sums" in trailer.lower()


def block_size_hint(headers: Mapping[str, str], content_length: int | None) -> int:
    """Block size to compute sums with, from what is known before the body."""
    if announced := headers.get(PREFIX + "block-sums"):
        try:
            return blocksums.decode(announced)[0]
        except blocksums.BadSums as err:
            raise BadHeader(f"block-sums: {err}") from None
    size = content_length
    if size is None:
        text = headers.get(PREFIX + "chunk-size", "")
        size = int(text) if is_decimal64(text) else 0
    return blocksums.block_size_for(size)


def _unquote(text: str) -> bytes:
    if "%" not in text:
        return text.encode("latin-1")
    return unquote_to_bytes(text.encode("latin-1"))


def _mandatory(value: str | None, name: str) -> str:
    if not value:
        raise BadHeader(f"{name}: missing")
    return value


def _hexadecimal(value: str, name: str) -> str:
    if not _HEX.match(value):
        raise BadHeader(f"{name}: {value[:80]!r} is not at most 64 hexadecimal digits")
    return value.upper()


def _decimal(value: str, name: str) -> str:
    if not is_decimal64(value):
        raise BadHeader(f"{name}: {value[:80]!r} is not a 64-bit decimal number")
    return value
