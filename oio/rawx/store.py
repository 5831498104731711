# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The chunks of one volume: where they lie, how they appear, how they go.

Guarantees, with ``fsync`` and ``fsync_dir`` on (the default):

- when :meth:`Upload.commit`, :meth:`Volume.link` or :meth:`Volume.delete` returns, the change
  survives a power failure;
- a file under a final name is complete: data and attributes were flushed before the rename;
- an existing chunk is never replaced;
- a failure leaves nothing under the final name and is never retried as if nothing had happened.

With ``fsync`` off, a chunk acknowledged shortly before a power failure may come back empty or
short; with ``fsync_dir`` off it may be gone, or a deleted one may be back. A crash of the process
alone loses nothing in any case.

Failures are OSError; FileExistsError means that the chunk, or an upload of it, exists.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from oio.rawx import metadata, syscalls
from oio.rawx.dirsync import DirectorySyncer, DirectoryTree
from oio.rawx.metadata import LEGACY_XATTRS, XATTR_BLOCK_SUMS, XATTR_FULLPATH, ChunkMeta

PENDING = ".pending"
# The disk starts to write a chunk each time this much was received, so that the final flush is short.
WRITEBACK_STEP_BYTES = 2 << 20
PREALLOCATION_STEP_BYTES = 16 << 20
# An attribute that does not fit: ext4 says ENOSPC, others E2BIG, ERANGE or EDQUOT.
_NO_ROOM = frozenset({errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EDQUOT})
# The attributes of a file have one block on ext4: longer ones are to blame themselves, not a full disk.
ATTRIBUTE_SAFE_BYTES = 2048
_CREATE = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME

_READ_XATTRS = frozenset(
    (
        metadata.XATTR_METACHUNK_HASH,
        metadata.XATTR_METACHUNK_SIZE,
        metadata.XATTR_CHUNK_HASH,
        metadata.XATTR_CHUNK_SIZE,
        metadata.XATTR_POSITION,
        metadata.XATTR_METHOD,
        metadata.XATTR_POLICY,
        metadata.XATTR_VERSION,
        metadata.XATTR_COMPRESSION,
        XATTR_BLOCK_SUMS,
    )
)

# Widest level whose directories are created ahead of need: 3 digits are 4096 directories.
PREPARED_WIDTH_MAX = 3

logger = logging.getLogger("oio.rawx")


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a volume writes and reads; see the keys of the same names in the configuration."""

    hash_width: int = 3
    hash_depth: int = 1
    fsync: bool = True
    fsync_dir: bool = True
    fallocate: bool = False
    fadvise_upload: str = ""
    fadvise_download: str = ""
    open_nonblock: bool = False
    exclusive: bool = True
    """Does this process hold the lock of the volume? Then a temporary file that no request of
    this process owns is the leftover of a crash."""


class ChunkIsNewer(Exception):
    """Raised when a chunk that should only go if it is old was written since."""


class Deletion(NamedTuple):
    """What was removed, and a time (microseconds) at which it was still there."""

    meta: ChunkMeta
    when_us: int


class Volume:
    """A directory full of chunks. Safe to use from many threads."""

    def __init__(self, root: str, options: StoreOptions | None = None) -> None:
        self.root = root
        self.options = options or StoreOptions()
        self.syncer = DirectorySyncer()
        self._tree = DirectoryTree(root, self.syncer)
        self._claims: dict[str, object] = {}
        width, depth = self.options.hash_width, self.options.hash_depth
        self._levels = [slice(i * width, (i + 1) * width) for i in range(depth)]
        self._read_flags = _READ | (os.O_NONBLOCK if self.options.open_nonblock else 0)

    # -- where ---------------------------------------------------------------------------------

    def directory_of(self, chunk_id: str) -> str:
        """The directory that holds a chunk."""
        if len(self._levels) == 1:
            return f"{self.root}/{chunk_id[self._levels[0]]}"
        return "/".join([self.root, *(chunk_id[level] for level in self._levels)])

    def path_of(self, chunk_id: str) -> str:
        """The final path of a chunk."""
        return f"{self.directory_of(chunk_id)}/{chunk_id}"

    # -- reading -------------------------------------------------------------------------------

    def open(self, chunk_id: str, lean: bool = False) -> StoredChunk:
        """Open a chunk and read its attributes, only its block sums when ``lean`` (and when it has some).

        The caller closes it.
        """
        fd = os.open(self.path_of(chunk_id), self._read_flags)
        try:
            stat = os.fstat(fd)
            meta = _read_sums(fd, chunk_id, stat.st_size) if lean else None
            chunk = StoredChunk(fd, stat, meta or _read_metadata(fd, chunk_id), lean=meta is not None)
            if self.options.fadvise_download:
                chunk.advise(self.options.fadvise_download)
            return chunk
        except BaseException:
            os.close(fd)
            raise

    # -- writing -------------------------------------------------------------------------------

    def upload(self, chunk_id: str) -> Upload:
        """Start an upload; FileExistsError when the chunk, or another upload of it, exists."""
        directory = self.directory_of(chunk_id)
        path = f"{directory}/{chunk_id}"
        self._claim(chunk_id)
        try:
            fd = self._create_pending(directory, path + PENDING)
            try:
                if _exists(path):
                    raise FileExistsError(errno.EEXIST, "the chunk exists", path)
                return Upload(self, chunk_id, directory, path, fd)
            except BaseException:
                os.close(fd)
                _unlink_quietly(path + PENDING)
                raise
        except BaseException:
            self._release(chunk_id)
            raise

    def link(self, source_id: str, target_id: str, fullpath: str) -> None:
        """Give a second name to a chunk, with the full path of the object that will own it."""
        source = self.path_of(source_id)
        directory = self.directory_of(target_id)
        target = f"{directory}/{target_id}"
        fd = os.open(source, self._read_flags)
        try:
            self._claim(target_id)
            try:
                self._link_pending(source, directory, target + PENDING)
                try:
                    if not os.path.samestat(os.fstat(fd), os.stat(target + PENDING)):
                        raise FileNotFoundError(errno.ENOENT, "the source was replaced", source)
                    if _exists(target):
                        raise FileExistsError(errno.EEXIST, "the chunk exists", target)
                    name = XATTR_FULLPATH + target_id
                    _name_inode(fd, name, fullpath.encode("latin-1"))
                    try:
                        if self.options.fsync:
                            os.fsync(fd)
                        self._publish(directory, target)
                    except BaseException:
                        with contextlib.suppress(OSError):
                            os.removexattr(fd, name)
                        raise
                except BaseException:
                    _unlink_quietly(target + PENDING)
                    raise
            finally:
                self._release(target_id)
        finally:
            os.close(fd)

    def delete(self, chunk_id: str, created_before_us: int | None = None) -> Deletion:
        """Remove a chunk; gives back what was known of it.

        The attribute that names the chunk must not stay on an inode that other names share.
        When the inode has several names it is removed first, so that a crash leaves an unnamed
        chunk, which a second delete removes, rather than a name without chunk. With a single name
        there is nothing to clean, unless a link was made between the count and the unlink: the
        second count, which no link through this name can follow, tells.

        With ``created_before_us`` a chunk whose bytes were written later stays: :class:`ChunkIsNewer`.
        No upload of the chunk begins between the look at its time and the unlink. Another name of old
        bytes (a link) is as old as they are.
        """
        if created_before_us is None:
            return self._delete(chunk_id, None)
        self._claim(chunk_id)
        try:
            return self._delete(chunk_id, created_before_us)
        finally:
            self._release(chunk_id)

    def _delete(self, chunk_id: str, created_before_us: int | None) -> Deletion:
        directory = self.directory_of(chunk_id)
        path = f"{directory}/{chunk_id}"
        name = XATTR_FULLPATH + chunk_id
        fd = os.open(path, self._read_flags)
        try:
            if created_before_us is not None:
                created_us = os.fstat(fd).st_mtime_ns // 1000
                if created_us > created_before_us:
                    raise ChunkIsNewer(f"chunk {chunk_id} was written at {created_us}")
            meta = _read_owner(fd, chunk_id)
            when_us = time.time_ns() // 1000
            named = bool(meta.fullpath)
            if named and os.fstat(fd).st_nlink > 1:
                _remove_xattr_quietly(fd, name)
                named = False
            os.unlink(path)
            if named and os.fstat(fd).st_nlink:
                _remove_xattr_quietly(fd, name)
        finally:
            os.close(fd)
        if self.options.fsync_dir:
            self._tree.sync(directory)
        return Deletion(meta, when_us)

    # -- leftovers -----------------------------------------------------------------------------

    def remove_leftovers(self, stop: threading.Event | None = None) -> int:
        """Remove the temporary files of a crash; gives their number.

        Only for the process that holds the lock of the volume: nobody else may be writing, so a
        temporary file whose chunk is not claimed here belongs to nobody. It is claimed during the
        removal, so that an upload that starts meanwhile cannot lose its own file.
        """
        removed = 0
        for path in _pending_files(self.root, len(self._levels), stop):
            chunk_id = os.path.basename(path)[: -len(PENDING)]
            try:
                self._claim(chunk_id)
            except FileExistsError:
                continue
            try:
                os.unlink(path)
                removed += 1
                logger.warning("removed %s, left by an interrupted upload", path)
            except FileNotFoundError:
                continue
            except OSError as err:
                logger.error("cannot remove the leftover %s: %s", path, err)
            finally:
                self._release(chunk_id)
        return removed

    def spread_directories(self) -> None:
        """Let the hashed directories spread over the disk; before the first one is created."""
        if self._levels:
            syscalls.spread_subdirectories(self.root)

    def prepare_directories(self, stop: threading.Event) -> None:
        """Create the hashed directories of a volume with one level, at most 4096 of them.

        The first chunk of a directory costs a creation and a flush of the root more than the next
        ones; a volume in use has them all.
        """
        width = self.options.hash_width
        if self.options.hash_depth != 1 or not 1 <= width <= PREPARED_WIDTH_MAX:
            return
        try:
            self._tree.prepare((f"{n:0{width}X}" for n in range(16**width)), stop)
        except OSError as err:
            logger.warning("directories not prepared, uploads will create them: %s", err)

    # -- helpers -------------------------------------------------------------------------------

    def _claim(self, chunk_id: str) -> None:
        """Become the only request that makes this chunk; setdefault is atomic."""
        token = object()
        if self._claims.setdefault(chunk_id, token) is not token:
            raise FileExistsError(errno.EEXIST, "an upload is in progress", chunk_id)

    def _release(self, chunk_id: str) -> None:
        self._claims.pop(chunk_id, None)

    def _create_pending(self, directory: str, pending: str) -> int:
        try:
            return os.open(pending, _CREATE, 0o644)
        except FileNotFoundError:
            self._tree.create(directory)
        except FileExistsError:
            self._discard_leftover(pending)
        return os.open(pending, _CREATE, 0o644)

    def _link_pending(self, source: str, directory: str, pending: str) -> None:
        try:
            os.link(source, pending)
            return
        except FileNotFoundError:
            if not _exists(source):
                raise
            self._tree.create(directory)
        except FileExistsError:
            self._discard_leftover(pending)
        os.link(source, pending)

    def _discard_leftover(self, pending: str) -> None:
        """The caller holds the claim, so no request of this process owns the temporary file."""
        if not self.options.exclusive:
            raise FileExistsError(errno.EEXIST, "another process may be writing it", pending)
        logger.warning("removing %s, left by an interrupted upload", pending)
        _unlink_quietly(pending)

    def _publish(self, directory: str, path: str) -> None:
        """Rename the temporary file; on failure nothing is left under the final name."""
        syscalls.rename_noreplace(path + PENDING, path)
        if self.options.fsync_dir:
            try:
                self._tree.sync(directory)
            except BaseException:
                _unlink_quietly(path)
                raise


class StoredChunk:
    """An open chunk. :ivar fd: open for reading; :ivar meta: its attributes; :ivar lean: only its sums."""

    __slots__ = ("fd", "file_size", "lean", "meta", "mtime")

    def __init__(self, fd: int, stat: os.stat_result, meta: ChunkMeta, lean: bool = False) -> None:
        self.fd = fd
        self.lean = lean
        self.file_size: int = stat.st_size
        self.mtime = stat.st_mtime
        self.meta = meta

    def advise(self, advice: str) -> None:
        """Tell the kernel how the file will be read."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        if advice == "cache":
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_WILLNEED)

    def take_fd(self) -> int:
        """Give the descriptor away: closing it becomes the business of the caller."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close the file, unless it was given away."""
        if self.fd >= 0:
            os.close(self.take_fd())

    def __del__(self) -> None:
        self.close()  # an answer may be given up before its body was asked for

    def __enter__(self) -> StoredChunk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Upload:
    """A chunk that is being written: ``write`` many times, then ``commit`` or ``abort``.

    As a context manager, leaving without :meth:`commit` removes everything.
    """

    __slots__ = ("_allocated", "_begun", "_directory", "_volume", "chunk_id", "fd", "path", "size")

    def __init__(self, volume: Volume, chunk_id: str, directory: str, path: str, fd: int) -> None:
        self._volume = volume
        self._directory = directory
        self._allocated = 0
        self._begun = 0  # the disk was asked to write up to here
        self.chunk_id = chunk_id
        self.path = path
        self.fd = fd
        self.size = 0

    def expect(self, size: int) -> None:
        """Reserve space for a file of that size, when the volume is configured to."""
        if self._volume.options.fallocate and syscalls.preallocate(self.fd, 0, size):
            self._allocated = size

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        length = len(data)
        if self._volume.options.fallocate and self.size + length > self._allocated:
            step = max(length, PREALLOCATION_STEP_BYTES)
            if syscalls.preallocate(self.fd, self.size, step):
                self._allocated = self.size + step
        written = os.write(self.fd, data)
        while written < length:  # a signal, or a disk about to be full
            written += os.write(self.fd, memoryview(data)[written:])
        self.size += length
        if self.size - self._begun >= WRITEBACK_STEP_BYTES and self._volume.options.fsync:
            syscalls.start_writeback(self.fd, self._begun, self.size - self._begun)
            self._begun = self.size

    def commit(self, attributes: Iterable[tuple[str, bytes]]) -> None:
        """Set the attributes, flush, and give the chunk its name. On failure, nothing is left."""
        volume, fd = self._volume, self.fd
        try:
            for name, value in attributes:
                try:
                    os.setxattr(fd, name, value)
                except OSError as err:
                    if err.errno not in _NO_ROOM:
                        raise
                    if name != XATTR_BLOCK_SUMS:
                        if len(value) > ATTRIBUTE_SAFE_BYTES and err.errno != errno.EDQUOT:
                            raise metadata.BadHeader(f"{name}: {len(value)} bytes do not fit here") from None
                        raise
                    # The bytes were verified; only later verifications will be coarser. If the
                    # disk is really full, the flush below says so.
                    logger.warning("no room for the block sums of %s: %s", self.path, err)
            if self._allocated > self.size:
                os.ftruncate(fd, self.size)
            if volume.options.fsync:
                os.fsync(fd)
            if volume.options.fadvise_upload == "nocache":
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            volume._publish(self._directory, self.path)
        except BaseException:
            self.abort()
            raise
        self.fd = -1
        volume._release(self.chunk_id)
        os.close(fd)

    def abort(self) -> None:
        """Remove the temporary file; harmless after a commit."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            _unlink_quietly(self.path + PENDING)
            os.close(fd)
        finally:
            self._volume._release(self.chunk_id)

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


def _read_metadata(fd: int, chunk_id: str) -> ChunkMeta:
    """Attributes of an open chunk."""
    fullpath_name = XATTR_FULLPATH + chunk_id
    names = os.listxattr(fd)
    owner: Iterable[str] = (fullpath_name,) if fullpath_name in names else LEGACY_XATTRS
    attributes: dict[str, bytes] = {}
    for name in names:
        if name in _READ_XATTRS or name in owner:
            value = _get_xattr(fd, name)
            if value is not None:
                attributes[name] = value
    return metadata.stored_metadata(chunk_id, attributes)


def _read_sums(fd: int, chunk_id: str, size: int) -> ChunkMeta | None:
    """Block sums of an open chunk; None when it has none, or is compressed: all its attributes are needed."""
    sums = _get_xattr(fd, XATTR_BLOCK_SUMS)
    if not sums or (_get_xattr(fd, metadata.XATTR_COMPRESSION) or b"off") != b"off":
        return None
    return ChunkMeta(chunk_id, chunk_size=str(size), block_sums=sums.decode("latin-1"))


def _read_owner(fd: int, chunk_id: str) -> ChunkMeta:
    """Only what says which object owns an open chunk."""
    name = XATTR_FULLPATH + chunk_id
    fullpath = _get_xattr(fd, name)
    if fullpath:
        return metadata.stored_metadata(chunk_id, {name: fullpath})
    values = [(legacy, _get_xattr(fd, legacy)) for legacy in LEGACY_XATTRS]
    return metadata.stored_metadata(
        chunk_id, {legacy: value for legacy, value in values if value is not None}
    )


def _name_inode(fd: int, name: str, fullpath: bytes) -> None:
    """Set the attribute of one more name; the block sums make room when there is none for both."""
    try:
        os.setxattr(fd, name, fullpath)
        return
    except OSError as err:
        sums = _get_xattr(fd, XATTR_BLOCK_SUMS) if err.errno in _NO_ROOM else None
        if not sums:
            raise
    os.removexattr(fd, XATTR_BLOCK_SUMS)
    try:
        os.setxattr(fd, name, fullpath)
    except OSError:
        with contextlib.suppress(OSError):
            os.setxattr(fd, XATTR_BLOCK_SUMS, sums)
        raise
    # Every name loses them; the hash is still there.
    logger.warning("no room for %s beside the block sums, which were removed", name)


def _get_xattr(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError as err:
        if err.errno != errno.ENODATA:
            raise
        return None


def _exists(path: str) -> bool:
    """Unlike os.path.exists, only says no when the file is known to be absent."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def _unlink_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as err:
        logger.error("cannot remove %s: %s", path, err)


def _remove_xattr_quietly(fd: int, name: str) -> None:
    try:
        os.removexattr(fd, name)
    except OSError as err:
        if err.errno != errno.ENODATA:
            logger.warning("cannot remove the attribute %s: %s", name, err)


def _pending_files(root: str, depth: int, stop: threading.Event | None) -> Iterator[str]:
    """Temporary files of uploads at the right depth below the root."""
    if stop is not None and stop.is_set():
        return
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if depth:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _pending_files(entry.path, depth - 1, stop)
                elif _is_pending(entry.name):
                    yield entry.path
    except FileNotFoundError:
        return


def _is_pending(name: str) -> bool:
    stem, dot, suffix = name.partition(".")
    return dot + suffix == PENDING and metadata.parse_chunk_id(stem) is not None
