# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Translation between what the proxy sends about objects and the dictionaries that callers see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from oio.common.constants import OBJECT_METADATA_PREFIX
from oio.common.exceptions import BadRequest
from oio.http.client import HeaderDict

CONTENT_HEADER_PREFIX = OBJECT_METADATA_PREFIX
SYSMETA_KEYS = (
    "chunk-method",
    "ctime",
    "mtime",
    "deleted",
    "hash",
    "hash-method",
    "id",
    "length",
    "mime-type",
    "name",
    "policy",
    "size",
    "version",
)
CHUNK_SYSMETA_PREFIX = "__OIO_CHUNK__"
# RFC 9110, section 8.8.3, with at least one character.
_ENTITY_TAG = re.compile(r'(?:W/)?"[!#-~]+"')
_CHUNK_SIZE_HEADER = "x-oio-ns-chunk-size"

_PREFIX_LENGTH = len(CONTENT_HEADER_PREFIX)
_KEY_OF_HEADER = {CONTENT_HEADER_PREFIX + key: key.replace("-", "_") for key in SYSMETA_KEYS}


def extract_content_headers_meta(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Make the metadata of an object from the headers of an answer.

    :returns: texts by name (``chunk_method``, ``hash``, ``version``…), ``properties`` (a dictionary), and
        ``chunk_size`` (int) when the answer tells it.
    """
    properties: dict[str, str] = {}
    meta: dict[str, Any] = {"properties": properties}
    has_properties = False
    for name, value in headers.items():
        name = name.lower()
        key = _KEY_OF_HEADER.get(name)
        if key is not None:
            meta[key] = unquote(value) if type(value) is str and "%" in value else value
        elif name.startswith(CONTENT_HEADER_PREFIX):
            has_properties = True
        elif name == _CHUNK_SIZE_HEADER:
            meta["chunk_size"] = int(value)
    if has_properties:
        # The case of these names means something, and names may differ by their case only.
        spelled = headers.spelled() if isinstance(headers, HeaderDict) else headers.items()
        for name, value in spelled:
            lowered = name.lower()
            if lowered.startswith(CONTENT_HEADER_PREFIX) and lowered not in _KEY_OF_HEADER:
                properties[unquote(name[_PREFIX_LENGTH:])] = unquote(str(value))
    return meta


def condition_headers(if_match: Any, if_none_match: Any) -> dict[str, str]:
    """Headers that make a change conditional (RFC 9110, section 13.1).

    >>> condition_headers(["d41d8cd98f00b204e9800998ecf8427e"], None)
    {'If-Match': '"d41d8cd98f00b204e9800998ecf8427e"'}

    :raises BadRequest: when a tag cannot be one.
    """
    headers = {}
    for name, header, tags in (
        ("if_match", "If-Match", if_match),
        ("if_none_match", "If-None-Match", if_none_match),
    ):
        if tags is not None:
            headers[header] = _entity_tags(name, [tags] if isinstance(tags, str) else tags)
    return headers


def _entity_tags(name: str, tags: Any) -> str:
    if not isinstance(tags, (list, tuple, set, frozenset)) or not tags:
        raise BadRequest(message=f"Invalid {name}: a hash, '*' or a list of hashes is expected, not {tags!r}")
    texts = []
    for tag in tags:
        text = tag if isinstance(tag, str) and tag.endswith('"') else f'"{tag}"'
        if tag != "*" and (not isinstance(tag, str) or _ENTITY_TAG.fullmatch(text) is None):
            raise BadRequest(message=f"Invalid {name}: {tag!r} is not the hash of an object")
        texts.append("*" if tag == "*" else text)
    if "*" in texts and len(texts) > 1:
        raise BadRequest(message=f"Invalid {name}: '*' stands alone")
    return ", ".join(texts)


def extract_chunk_qualities(
    properties: Mapping[str, str] | Iterable[Mapping[str, str]], raw: bool = False
) -> dict[str, dict[str, Any]]:
    """Find the placement quality of chunks among the properties of an object.

    :param raw: the properties are a list of ``{"key": …, "value": …}``.
    :returns: ``{chunk url: {"expected_dist": …, "final_dist": …, …}}``.
    """
    if raw:
        pairs = [(item["key"], item["value"]) for item in properties]  # type: ignore[index]
    else:
        pairs = list(properties.items())  # type: ignore[union-attr]
    return {
        key[len(CHUNK_SYSMETA_PREFIX) :]: json.loads(value)
        for key, value in pairs
        if key.startswith(CHUNK_SYSMETA_PREFIX)
    }
