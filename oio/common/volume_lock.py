# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One volume, one service: marks that outlive the process, and a lock that dies with it.

>>> lock = lock_volume("/srv/meta2-1", "OPENIO", "meta2", "OPENIO-meta2-1")  # doctest: +SKIP

The marks are extended attributes of the directory (contract: volume lock): they keep a service away from the
volume of another one, and tell tools what a volume is. The lock (flock) keeps a second process of the same
service away.
"""

from __future__ import annotations

import errno
import fcntl
import os

XATTR_ID = "user.server.id"
XATTR_NS = "user.server.ns"
XATTR_TYPE = "user.server.type"


class VolumeLockError(OSError):
    """Raised when the volume belongs to another service, is in use, or cannot hold the marks."""


class VolumeLock:
    """The volume is ours until :meth:`release`, or until the process dies."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Let another process have the volume; the marks stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def lock_volume(
    path: str, namespace: str, service_type: str, service_id: str, create: bool = True
) -> VolumeLock:
    """Mark a volume as ours, or verify the marks. :raises VolumeLockError: when it cannot be ours.

    :param create: mark a volume that has no marks; else it is refused.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise VolumeLockError(exc.errno, f"volume {path}: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise VolumeLockError(errno.EBUSY, f"another process serves the volume {path}") from exc
        # First look, then touch: a foreign volume is left as it was found.
        marks = ((XATTR_TYPE, service_type), (XATTR_NS, namespace), (XATTR_ID, service_id))
        missing = [(name, value) for name, value in marks if not _verify(fd, path, name, value)]
        if missing and not create:
            raise VolumeLockError(errno.ENODATA, f"volume {path} has no mark {missing[0][0]}")
        for name, value in missing:
            os.setxattr(fd, name, value.encode())
        if missing:
            os.fsync(fd)
    except VolumeLockError:
        os.close(fd)
        raise
    except OSError as exc:
        os.close(fd)
        reason = exc.strerror
        if exc.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
            reason = "its file system has no extended attributes, which are needed to lock it"
        raise VolumeLockError(exc.errno, f"volume {path}: {reason}") from exc
    return VolumeLock(path, fd)


def _verify(fd: int, path: str, name: str, wanted: str) -> bool:
    """Is the mark there? :raises VolumeLockError: when it is somebody else's."""
    try:
        found = os.getxattr(fd, name).decode("utf-8", "replace")
    except OSError as exc:
        if exc.errno == errno.ENODATA:
            return False
        raise
    if found != wanted:
        raise VolumeLockError(
            errno.EPERM, f"volume {path} has {name} = {found!r}, this service has {wanted!r}"
        )
    return True
