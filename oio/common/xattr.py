# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Extended attributes of chunks and volumes.

>>> read_user_xattr("/srv/rawx-1/ABC/ABC0...")  # doctest: +SKIP
{'grid.chunk.size': '12', ...}

Only attributes of the ``user`` name space are handled. The names ``setxattr``, ``getxattr``,
``removexattr``, ``listxattr`` and ``get_all`` have the shape of the ``xattr`` library that older
programs import through this module. OSError propagates.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from typing import IO, Any

PREFIX = "user."
FULLPATH_PREFIX = "oio.content.fullpath:"
OIO_VERSION = "4.2"
# What the fullpath attribute replaced.
LEGACY_KEYS = (
    "grid.chunk.id",
    "grid.content.container",
    "grid.content.path",
    "grid.content.version",
    "grid.content.id",
)
VERSION_KEY = "grid.oio.version"

# For programs that write ``from oio.common.xattr import xattr`` and call ``xattr.setxattr`` and the like.
xattr = sys.modules[__name__]

Target = int | str | bytes | os.PathLike[str] | IO[Any]


def read_user_xattr(fd: Target) -> dict[str, str]:
    """All the ``user.`` attributes of a file, without the prefix, decoded as UTF-8.

    ENOTSUP and ENOENT propagate; an attribute that disappears meanwhile is left out.
    """
    return {
        name: value.decode("utf-8", "surrogateescape") for name, value in _user_items(_target(fd))
    }


def set_fullpath_xattr(
    fd: Target,
    new_fullpaths: Mapping[str, str],
    remove_old_xattr: bool = False,
    xattr_to_remove: str | None = None,
) -> None:
    """Name a chunk file after the objects that own it.

    `new_fullpaths` is ``{chunk id: fullpath}``. With `remove_old_xattr`, the attributes of the
    older format are removed once the new ones are written, and the version becomes 4.2.
    `xattr_to_remove` is the name (without prefix) of one more attribute to remove.
    """
    target = _target(fd)
    for chunk_id, fullpath in new_fullpaths.items():
        name = PREFIX + FULLPATH_PREFIX + chunk_id.upper()
        os.setxattr(target, name, fullpath.encode("utf-8", "surrogateescape"))
    if remove_old_xattr:
        for key in LEGACY_KEYS:
            _remove_quietly(target, PREFIX + key)
        os.setxattr(target, PREFIX + VERSION_KEY, OIO_VERSION.encode())
    if xattr_to_remove is not None:
        _remove_quietly(target, PREFIX + xattr_to_remove)


def setxattr(fd: Target, name: str | bytes, value: bytes, options: int = 0) -> None:
    """Set one attribute, given with its prefix."""
    os.setxattr(_target(fd), name, value, options)


def getxattr(fd: Target, name: str | bytes) -> bytes:
    """Value of one attribute, given with its prefix."""
    return os.getxattr(_target(fd), name)


def removexattr(fd: Target, name: str | bytes) -> None:
    """Remove one attribute, given with its prefix."""
    os.removexattr(_target(fd), name)


def listxattr(fd: Target) -> list[str]:
    """Names of all the attributes, with their prefix."""
    return os.listxattr(_target(fd))


def get_all(fd: Target, namespace: bytes | str | None = None) -> list[tuple[bytes, bytes]]:
    """Names and values of all the attributes.

    With a `namespace` (``b"user"``) only its attributes are returned, without the prefix.
    """
    target = _target(fd)
    if namespace is not None:
        space = namespace.decode() if isinstance(namespace, bytes) else namespace
        if space == "user":
            return [
                (name.encode("utf-8", "surrogateescape"), value)
                for name, value in _user_items(target)
            ]
        raise ValueError(f"name space {space!r} is not supported, only 'user' is")
    return [(os.fsencode(name), os.getxattr(target, name)) for name in os.listxattr(target)]


def _user_items(target: int | str | bytes) -> list[tuple[str, bytes]]:
    items = []
    for name in os.listxattr(target):
        if not name.startswith(PREFIX):
            continue
        try:
            items.append((name[len(PREFIX) :], os.getxattr(target, name)))
        except OSError as err:
            if err.errno != errno.ENODATA:
                raise
    return items


def _remove_quietly(target: int | str | bytes, name: str) -> None:
    try:
        os.removexattr(target, name)
    except OSError as err:
        if err.errno != errno.ENODATA:
            raise


def _target(fd: Target) -> int | str | bytes:
    """A file descriptor or a path, whatever way the caller names the file."""
    if isinstance(fd, int | str | bytes):
        return fd
    if isinstance(fd, os.PathLike):
        return os.fspath(fd)
    return fd.fileno()
