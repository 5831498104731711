# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Full path of an object: ``account/container/path/version/content_id``, each part percent-encoded."""

from __future__ import annotations

from urllib.parse import quote, quote_plus, unquote, unquote_plus


def encode_fullpath(
    account: str, container: str, path: str, version: int | str, content_id: str
) -> str:
    """Join five parts, nothing but unreserved characters left unencoded.

    >>> encode_fullpath("myaccount", "my cont", "a/b", 1600000000000000, "0123456789ABCDEF")
    'myaccount/my%20cont/a%2Fb/1600000000000000/0123456789ABCDEF'

    :raises ValueError: when a part is missing or empty.
    """
    parts = (account, container, path, version, content_id)
    if not all(parts):
        names = ("account", "container", "path", "version", "content_id")
        missing = [name for name, part in zip(names, parts, strict=True) if not part]
        raise ValueError(f"Cannot make a full path without {', '.join(missing)}")
    return "/".join([quote(str(part), "") for part in parts])


def decode_fullpath(fullpath: str) -> tuple[str, str, str, str, str]:
    """Split a full path in its five decoded parts.

    :raises ValueError: unless there are exactly five parts.
    """
    parts = fullpath.split("/")
    if len(parts) != 5:
        raise ValueError(f"Full path {fullpath!r}: {len(parts)} parts instead of 5")
    account, container, path, version, content_id = map(unquote, parts)
    return account, container, path, version, content_id


def encode_old_fullpath(account: str, container: str, path: str, version: int | str) -> str:
    """Legacy form: four parts, spaces as ``+``. :raises ValueError: on a missing part."""
    parts = (account, container, path, version)
    if not all(parts):
        raise ValueError("Cannot make a full path: missing part")
    return "/".join([quote_plus(str(part), "") for part in parts])


def decode_old_fullpath(fullpath: str) -> tuple[str, str, str, str]:
    """Split the legacy form. :raises ValueError: unless there are exactly four parts."""
    parts = fullpath.split("/")
    if len(parts) != 4:
        raise ValueError(f"Full path {fullpath!r}: {len(parts)} parts instead of 4")
    account, container, path, version = map(unquote_plus, parts)
    return account, container, path, version
