# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""System calls that the standard library lacks: renameat2 and fallocate with KEEP_SIZE."""

from __future__ import annotations

import ctypes
import errno
import os

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_FALLOC_FL_KEEP_SIZE = 1
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
