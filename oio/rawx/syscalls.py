# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""System calls that the standard library lacks: renameat2, fallocate with KEEP_SIZE, sync_file_range,
flags of inodes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_FALLOC_FL_KEEP_SIZE = 1
_SYNC_FILE_RANGE_WRITE = 2
# linux/fs.h
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000
# What a kernel or a file system without the call answers.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})

_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = getattr(_libc, "renameat2", None)
if _renameat2 is not None:
    _renameat2.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )
    _renameat2.restype = ctypes.c_int
_fallocate = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    _fallocate.restype = ctypes.c_int
_sync_file_range = getattr(_libc, "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    _sync_file_range.restype = ctypes.c_int


def rename_noreplace(source: str, target: str) -> None:
    """Rename, or raise FileExistsError and change nothing when the target exists.

    Where the kernel cannot do it at once, a hard link (which never replaces) followed by the
    removal of the source gives the same guarantee; a crash between the two leaves both names.
    """
    if _renameat2 is not None:
        result = _renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
        if result == 0:
            return
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code), source, None, target)
    os.link(source, target)
    os.unlink(source)


def preallocate(fd: int, offset: int, length: int) -> bool:
    """Reserve blocks without changing the size of the file; False where it is not supported."""
    if _fallocate is None or length <= 0:
        return False
    if _fallocate(fd, _FALLOC_FL_KEEP_SIZE, offset, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code))


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Let the disk begin to write a range, without waiting: a later fsync has less to wait for.

    It promises nothing; fsync does, and reports the errors of what was begun here too.
    """
    if _sync_file_range is None or _sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE) == 0:
        return
    code = ctypes.get_errno()
    if code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))


def spread_subdirectories(path: str) -> bool:
    """Ask ext4 to put each sub-directory where it finds room, as it does below the root of a disk.

    Elsewhere it gathers them, and their files, in a few block groups; each creation then walks over the
    inodes that were freed there during the last minutes, one by one: it can cost twenty times more.
    False where it cannot be asked.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        (flags,) = struct.unpack_from("I", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
        if not flags & _FS_TOPDIR_FL:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("Q", flags | _FS_TOPDIR_FL))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
