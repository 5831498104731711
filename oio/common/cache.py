# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Cache of metadata on the client's side, in any dictionary-like object that the caller provides.

Containers are stored under ``meta/<CID>`` and objects under ``meta/<CID>/<path>``, latest version only. An
entry is a snapshot: it is copied on the way in and on the way out, so that a caller may change what it was
given. Nothing here expires; the caller's object decides (and methods that change an object drop its entry).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from oio.common.utils import cid_from_name

Cache = MutableMapping[str, Any]


# --- containers ---------------------------------------------------------------------------------


def get_cached_container_metadata(
    account: str | None = None,
    reference: str | None = None,
    cid: str | None = None,
    cache: Cache | None = None,
    **_kwargs: Any,
) -> Any:
    """Properties of a container, or None."""
    if cache is None:
        return None
    return _snapshot(cache.get(_container_key(account, reference, cid)))


def set_cached_container_metadata(
    container_meta: Any,
    account: str | None = None,
    reference: str | None = None,
    cid: str | None = None,
    cache: Cache | None = None,
    **_kwargs: Any,
) -> None:
    """Remember the properties of a container."""
    if cache is not None:
        cache[_container_key(account, reference, cid)] = _snapshot(container_meta)


def del_cached_container_metadata(
    account: str | None = None,
    reference: str | None = None,
    cid: str | None = None,
    cache: Cache | None = None,
    **_kwargs: Any,
) -> None:
    """Forget the properties of a container."""
    if cache is not None:
        cache.pop(_container_key(account, reference, cid), None)


# --- objects ------------------------------------------------------------------------------------


def get_cached_object_metadata(
    account: str | None = None,
    reference: str | None = None,
    path: str | None = None,
    cid: str | None = None,
    version: Any = None,
    properties: bool = False,
    cache: Cache | None = None,
    **_kwargs: Any,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]] | None]:
    """Metadata and chunks of the latest version of an object, ``(None, None)`` when not known.

    Chunks are None when the entry was made without them.
    """
    if cache is None or version:
        return None, None
    entry = cache.get(_object_key(account, reference, path, cid))
    if entry is None:
        return None, None
    meta = dict(entry["meta"])
    if properties:
        stored = entry.get("properties")
        if stored is None:
            return None, None
        meta["properties"] = dict(stored)
    else:
        meta["properties"] = {}
    chunks = entry.get("chunks")
    return meta, None if chunks is None else [dict(chunk) for chunk in chunks]


def set_cached_object_metadata(
    content_meta: dict[str, Any],
    content_chunks: list[dict[str, Any]] | None,
    account: str | None = None,
    reference: str | None = None,
    path: str | None = None,
    cid: str | None = None,
    version: Any = None,
    properties: bool = False,
    cache: Cache | None = None,
    **_kwargs: Any,
) -> None:
    """Remember the latest version of an object; without effect when a version is given."""
    if cache is None or version:
        return
    entry: dict[str, Any] = {
        "meta": {key: value for key, value in content_meta.items() if key != "properties"}
    }
    if properties:
        entry["properties"] = dict(content_meta.get("properties") or {})
    if content_chunks is not None:
        entry["chunks"] = [
            {key: value for key, value in chunk.items() if key != "score"} for chunk in content_chunks
        ]
    cache[_object_key(account, reference, path, cid)] = entry


def del_cached_object_metadata(
    account: str | None = None,
    reference: str | None = None,
    path: str | None = None,
    cid: str | None = None,
    version: Any = None,
    cache: Cache | None = None,
    **_kwargs: Any,
) -> None:
    """Forget an object, whatever the version."""
    if cache is not None:
        cache.pop(_object_key(account, reference, path, cid), None)


def _snapshot(container_meta: Any) -> Any:
    """Copy of ``{"properties": {…}, "system": {…}}``; anything else is left as it is."""
    if not isinstance(container_meta, dict):
        return container_meta
    return {key: dict(item) if isinstance(item, dict) else item for key, item in container_meta.items()}


# --- keys ---------------------------------------------------------------------------------------


def _container_key(account: str | None, reference: str | None, cid: str | None) -> str:
    if not cid:
        if not account or not reference:
            raise ValueError("A container is designated by its account and name, or by its cid")
        cid = cid_from_name(account, reference)
    return "meta/" + cid.upper()


def _object_key(account: str | None, reference: str | None, path: str | None, cid: str | None) -> str:
    if not path:
        raise ValueError("Missing object name")
    return f"{_container_key(account, reference, cid)}/{path}"
