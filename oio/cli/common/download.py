# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Downloads to files that are whole or absent.

Data go to a hidden file beside the target, which takes the name of the target once it is complete. When a
download is interrupted, that file is deleted; or kept, when the download may be resumed: then it is named after
the content of the object, so that only the same content can be added to it, and the whole is checked at the end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from oio.cli.common.progress import Progress
from oio.common.exceptions import CommandError

# Written to, rather than replaced when it is a file.
STDOUT = ("-", "/dev/stdout")
_BLOCK = 2**20


class Download:
    """The objects of one container, to files.

    :param fetch: ``fetch(name, ranges, reqid)`` gives the metadata of an object and its blocks.
    :param check: called between blocks; what it raises interrupts the download.
    """

    def __init__(
        self,
        fetch: Callable[[str, Any, str], tuple[dict[str, Any], Iterator[bytes]]],
        check: Callable[[], None],
        progress: Progress,
        resume: bool,
    ) -> None:
        self._fetch = fetch
        self._check = check
        self._progress = progress
        self._resume = resume
        # Files that threads write to, and will delete.
        self._partials: set[str] = set()

    def abandon(self) -> None:
        """Delete the files of downloads that hang, and that nobody waits for: the program ends."""
        for partial in list(self._partials):
            with contextlib.suppress(OSError):
                os.unlink(partial)

    def save(self, name: str, target: str, reqid: str) -> None:
        """Download an object.

        :raises OSError: when the file cannot be written. :raises CommandError: when what was resumed is not the
            content of the object.
        """
        if target in STDOUT:
            with _telling("standard output"):
                if sys.__stdout__ is None:
                    # Closed by whoever started the program.
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                sys.stdout.flush()
                self._pour(self._fetch(name, None, reqid)[1], sys.stdout.buffer)
                sys.stdout.buffer.flush()
            return
        with _telling(target):
            self._save_file(name, target, reqid)

    def _save_file(self, name: str, target: str, reqid: str) -> None:
        is_special = _is_special(target)
        metadata, stream = self._fetch(name, None, reqid)
        if is_special:
            # A pipe or a device cannot be replaced: write to it as it is.
            with open(target, "wb") as out:
                self._pour(stream, out)
            return
        size = int(metadata["length"])
        target = os.path.realpath(target)
        if self._resume and _has_content(target, size, metadata.get("hash"), self._check):
            _close(stream)
            self._progress.skip(size)
            return
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except FileExistsError as exc:
            # Another object was saved there meanwhile.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from exc
        if self._resume and metadata.get("id"):
            _close(stream)
            self._save_rest(name, target, metadata, size, reqid)
        else:
            self._save_whole(stream, target)

    def _save_whole(self, stream: Iterator[bytes], target: str) -> None:
        partial = partial_path(target, f"{os.getpid()}-{threading.get_ident()}")
        self._partials.add(partial)
        try:
            with open(partial, "xb") as out:
                self._pour(stream, out)
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise
        finally:
            self._partials.discard(partial)

    def _save_rest(self, name: str, target: str, metadata: dict[str, Any], size: int, reqid: str) -> None:
        partial = partial_path(target, str(metadata["id"]))
        with open(partial, "ab") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise CommandError(f"Somebody else downloads {name!r} to {target!r}") from exc
            if (start := out.tell()) > size:
                out.truncate(start := 0)
            self._progress.skip(start)
            if start < size:
                _metadata, stream = self._fetch(name, [(start, None)] if start else None, reqid)
                if _metadata.get("id") != metadata["id"]:
                    _close(stream)
                    raise CommandError(f"Object {name!r} was overwritten meanwhile")
                self._pour(stream, out)
                out.flush()
            if start and not _has_content(partial, size, metadata.get("hash"), self._check):
                os.unlink(partial)
                raise CommandError(f"The beginning of {name!r}, downloaded before, is damaged: start again")
            os.replace(partial, target)

    def _pour(self, stream: Iterator[bytes], out: BinaryIO) -> None:
        try:
            for block in stream:
                self._check()
                out.write(block)
                self._progress.advance(len(block))
        finally:
            _close(stream)


def _is_special(target: str) -> bool:
    """Whether something that is no file is there. :raises OSError: when no file can be."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        if not target.endswith("/"):
            return False
        mode = stat.S_IFDIR
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return not stat.S_ISREG(mode)


@contextlib.contextmanager
def _telling(target: str) -> Iterator[None]:
    """Have errors name the target, rather than nothing or the hidden file beside it."""
    try:
        yield
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, target) from exc


def partial_path(target: str, suffix: str) -> str:
    """The hidden file that becomes the target once it is complete."""
    # Short: the name of the target may be as long as names can be.
    head, tail = os.path.split(target)
    digest = hashlib.sha256(os.fsencode(tail)).hexdigest()[:16]
    return os.path.join(head, f".openio-{digest}-{suffix}.part")


def _close(stream: Iterator[bytes]) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()


def _has_content(path: str, size: int, checksum: Any, check: Callable[[], None]) -> bool:
    """Whether a file has the size of an object, and its checksum when that is an MD5."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            told = str(checksum or "").upper()
            if len(told) != 32:
                return False
            found = hashlib.md5(usedforsecurity=False)
            while block := file.read(_BLOCK):
                check()
                found.update(block)
            return found.hexdigest().upper() == told
    except FileNotFoundError:
        return False
