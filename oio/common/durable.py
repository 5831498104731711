# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Write files whole, and make what was written to a disk stay there after a power cut."""

from __future__ import annotations

import os


def fsync_directory(path: str) -> None:
    """Make the names of a directory durable."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def fsync_file(path: str) -> None:
    """Make the content of a file durable, whoever wrote it."""
    _fsync(path, os.O_RDWR)


def write_file(path: str, data: bytes) -> None:
    """Make a file of these bytes, all of them or an error: a disk that is nearly full takes a part without a word.

    :raises OSError: the file is then what it may be.
    """
    with open(path, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def _fsync(path: str, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
