# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What the attributes of volumes and of chunk files tell, for tools that read volumes directly."""

from __future__ import annotations

from typing import Any

from oio.common.constants import (
    CHUNK_XATTR_CONTENT_FULLPATH_PREFIX,
    CHUNK_XATTR_KEYS,
    CHUNK_XATTR_KEYS_OPTIONAL,
    VOLUME_XATTR_KEYS,
)
from oio.common.exceptions import FaultyChunk, MissingAttribute, OioException
from oio.common.fullpath import decode_fullpath
from oio.common.utils import cid_from_name
from oio.common.xattr import read_user_xattr

# From this version on, the full path replaces the other attributes about the object.
_FULLPATH_VERSION = (4, 2)


def check_volume_for_service_type(volume_path: str, required_type: str) -> tuple[str, str]:
    """Whose volume this is. :returns: namespace, service id.

    :raises OioException: when an attribute is missing, or tells another type of service.
    """
    try:
        attributes = read_user_xattr(volume_path)
    except OSError as err:
        raise OioException(f"Cannot read the attributes of {volume_path}: {err.strerror}") from err
    for name in ("namespace", "type", "id"):
        if not attributes.get(VOLUME_XATTR_KEYS[name]):
            raise OioException(f"Missing attribute user.{VOLUME_XATTR_KEYS[name]} on {volume_path}")
    found = attributes[VOLUME_XATTR_KEYS["type"]]
    if found != required_type:
        raise OioException(
            f"Wrong attribute user.{VOLUME_XATTR_KEYS['type']} on {volume_path}: "
            f"{found!r} instead of {required_type!r}"
        )
    return attributes[VOLUME_XATTR_KEYS["namespace"]], attributes[VOLUME_XATTR_KEYS["id"]]


def check_volume(volume_path: str) -> tuple[str, str]:
    """Same as :func:`check_volume_for_service_type`, for the volume of a rawx."""
    return check_volume_for_service_type(volume_path, "rawx")


def read_chunk_metadata(
    fd: Any, chunk_id: str, for_conversion: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """Describe a chunk from the attributes of its file.

    The full path of the chunk, when it is there, tells the object; older attributes do otherwise.

    :param fd: open file, or path.
    :param chunk_id: name of the file: hard links share their attributes.
    :param for_conversion: accept attributes of the older format that name another chunk.
    :returns: texts under the keys of ``CHUNK_XATTR_KEYS``, ``full_path``, and ``links``, the full paths of the
        other names of the file by chunk id; and the attributes, without their prefix.
    :raises FaultyChunk: something mandatory is missing; ``args`` has one ``MissingAttribute`` for each.
    :raises MissingAttribute: the attributes are those of another chunk.
    """
    attributes = read_user_xattr(fd)
    chunk_id = chunk_id.upper()
    meta: dict[str, Any] = {key: attributes[name] for key, name in CHUNK_XATTR_KEYS.items() if name in attributes}
    missing: list[MissingAttribute] = []
    links: dict[str, str] = {}
    own_name = CHUNK_XATTR_CONTENT_FULLPATH_PREFIX + chunk_id
    for name, value in attributes.items():
        if not name.startswith(CHUNK_XATTR_CONTENT_FULLPATH_PREFIX):
            continue
        owner = name[len(CHUNK_XATTR_CONTENT_FULLPATH_PREFIX) :]
        if owner.upper() != chunk_id:
            links[owner] = value
            continue
        try:
            meta.update(_of_full_path(value))
        except ValueError:
            missing.append(MissingAttribute(own_name))
        else:
            meta["chunk_id"] = chunk_id
    if "full_path" not in meta and not missing and _version_of(meta) >= _FULLPATH_VERSION:
        missing.append(MissingAttribute(own_name))
    missing += [
        MissingAttribute(name)
        for key, name in CHUNK_XATTR_KEYS.items()
        if key not in CHUNK_XATTR_KEYS_OPTIONAL and key not in meta
    ]
    if missing:
        raise FaultyChunk(*missing)
    if meta["chunk_id"].upper() != chunk_id and not for_conversion:
        raise MissingAttribute(CHUNK_XATTR_KEYS["chunk_id"])
    meta["links"] = links
    return meta, attributes


def _of_full_path(full_path: str) -> dict[str, str]:
    account, container, path, version, content_id = decode_fullpath(full_path)
    return {
        "full_path": full_path,
        "container_id": cid_from_name(account, container),
        "content_path": path,
        "content_version": version,
        "content_id": content_id,
    }


def _version_of(meta: dict[str, Any]) -> tuple[int, ...]:
    """Version of the attributes; that of the oldest format when it is not told, or cannot be read."""
    try:
        return tuple(int(part) for part in meta.get("oio_version", "").split("."))
    except ValueError:
        return (0,)
