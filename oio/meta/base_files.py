# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where the files of the bases of a volume are, and how they come and go.

A base is a file, and those that SQLite puts beside it (the WAL and its index). Nobody may have it open while it is
replaced, moved or removed: SQLite finds the WAL of a file by its name, so that a connection that outlives the file
would meet the WAL of the next base of that name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from oio.common import status
from oio.common.durable import fsync_directory, fsync_file
from oio.common.status import StatusError
from oio.meta.base_type import BaseType

SIDE_FILES = ("-wal", "-shm", "-journal")


class BaseFiles:
    """The files of all the bases of a volume.

    :param durable: what is done is on disk when a method returns.
    """

    def __init__(self, volume: str, base_type: BaseType, durable: bool) -> None:
        self._volume = volume
        self._type = base_type
        self._durable = durable

    def path(self, base_name: str) -> str:
        """File of a base. :raises StatusError: 400 for a name that cannot be one."""
        try:
            return os.path.join(self._volume, self._type.relative_path(base_name))
        except ValueError as exc:
            raise StatusError(status.BAD_REQUEST, str(exc)) from exc

    def exists(self, base_name: str) -> bool:
        """Is there a file for this base?"""
        return os.path.exists(self.path(base_name))

    def names(self) -> Iterator[str]:
        """Names of all the bases in the volume, in no order. It walks through the directories."""
        suffix = f".{self._type.name}"
        for _directory, subdirectories, files in os.walk(self._volume):
            subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
            for name in files:
                if name.endswith(suffix):
                    yield name[: -len(suffix)]

    def prepare(self, base_name: str, image_path: str) -> None:
        """Do what can be done before an image takes the place of a base: it, and the directory, are on disk."""
        directory = os.path.dirname(self.path(base_name))
        if not os.path.isdir(directory):
            os.makedirs(directory, exist_ok=True)
            self._sync(os.path.dirname(directory))
        if self._durable:
            fsync_file(image_path)

    def link(self, base_name: str, image_path: str) -> None:
        """Give an image the name of a base that does not exist; :meth:`sync` makes it durable."""
        os.link(image_path, self.path(base_name))

    def sync(self, base_name: str) -> None:
        """Make the name of a base durable."""
        self._sync(os.path.dirname(self.path(base_name)))

    def replace(self, base_name: str, image_path: str) -> None:
        """Put an image in the place of a base, or of none."""
        self.remove_side_files(base_name)
        os.rename(image_path, self.path(base_name))
        self.sync(base_name)

    def move(self, base_name: str, target: str) -> bool:
        """Take a base elsewhere in the volume, with what its WAL holds; False when it does not exist."""
        try:
            move_base(self.path(base_name), target)
        except FileNotFoundError:
            return False
        self._sync(os.path.dirname(target))
        self.sync(base_name)
        return True

    def remove(self, base_name: str) -> None:
        """Delete a base."""
        unlink_base(self.path(base_name))
        self.sync(base_name)

    def remove_side_files(self, base_name: str) -> None:
        """Delete what SQLite left beside a base that is gone, or about to be replaced."""
        _unlink(self.path(base_name), SIDE_FILES)

    def _sync(self, directory: str) -> None:
        if self._durable:
            fsync_directory(directory)


def unlink_base(path: str) -> None:
    """Delete a file that SQLite may have opened, and what it put beside it."""
    _unlink(path, ("", *SIDE_FILES))


def move_base(path: str, target: str) -> None:
    """Rename a file that SQLite may have opened, and what it put beside it. :raises FileNotFoundError:"""
    os.rename(path, target)
    for suffix in SIDE_FILES:
        if os.path.exists(path + suffix):
            os.rename(path + suffix, target + suffix)


def _unlink(path: str, suffixes: tuple[str, ...]) -> None:
    for suffix in suffixes:
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)
