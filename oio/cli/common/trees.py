# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Directories seen as objects, and objects as files: names are paths relative to the directory, with ``/``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from oio.common.exceptions import CommandError


class Leaf(NamedTuple):
    """Something of a directory that is, or should be, a file."""

    path: str
    name: str
    # Why it cannot be uploaded, and whether that is an error (None: it can).
    problem: str | None = None
    is_error: bool = True


def walk(root: str, prefix: str = "") -> Iterator[Leaf]:
    """Yield the files below a directory, in the order of their names as objects.

    Links to files are files; links to directories are not followed (they may lead anywhere, or back). Empty
    directories give nothing.

    :param prefix: start of the names.
    """
    # Names that end with a slash are directories; each has its own place on the stack while it is walked.
    stack: list[Iterator[tuple[str | None, str, os.DirEntry[str] | None]]] = [iter([(root, "/", None)])]
    starts = [""]
    while stack:
        path, name, entry = next(stack[-1], (None, "", None))
        if path is None:
            stack.pop()
            starts.pop()
        elif not name.endswith("/"):
            assert entry is not None
            yield _leaf(entry, prefix + starts[-1] + name)
        else:
            start = starts[-1] + name if name != "/" else ""
            try:
                with os.scandir(path) as entries:
                    found = sorted((_sort_name(one), one.path, one) for one in entries)
            except OSError as exc:
                yield Leaf(path, prefix + start or path, f"{exc.strerror}: {path!r}")
                continue
            stack.append(iter([(below, sort_name, one) for sort_name, below, one in found]))
            starts.append(start)


def _sort_name(entry: os.DirEntry[str]) -> str:
    return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name


def _leaf(entry: os.DirEntry[str], name: str) -> Leaf:
    if entry.is_file():
        return Leaf(entry.path, name)
    if not entry.is_symlink():
        return Leaf(entry.path, name, f"Neither a file nor a directory: {entry.path!r}")
    if entry.is_dir():
        return Leaf(entry.path, name, f"Link to a directory, not followed: {entry.path!r}", False)
    return Leaf(entry.path, name, f"Link that leads nowhere: {entry.path!r}")


def path_of(directory: str, name: str) -> str:
    """Where the object of this name goes below a directory.

    :raises CommandError: when the name is no path, or when the path leads outside of the directory.
    """
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise CommandError(f"Object {name!r} has a name that is no path below a directory")
    path = os.path.join(directory, name)
    root = os.path.realpath(directory)
    parent = os.path.realpath(os.path.dirname(path))
    if os.path.commonpath((root, parent)) != root:
        raise CommandError(f"Object {name!r} would be written outside of {directory!r}, through a link")
    return path


def total_bytes(root: str) -> int:
    """Size of the files below a directory."""
    total = 0
    for leaf in walk(root):
        if leaf.problem is None:
            try:
                total += os.stat(leaf.path).st_size
            except OSError:
                continue
    return total
