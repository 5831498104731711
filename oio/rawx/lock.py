# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One volume, one service: marks that outlive the process, and a lock that dies with it.

The marks are attributes of the directory (contract: volume lock). They prevent a service from
writing on the volume of another one. The lock (flock) prevents two processes of the same service
from running at once, which the removal of leftovers at start-up relies on.
"""

from __future__ import annotations

import errno
import fcntl
import os

from oio.common.exceptions import VolumeException

XATTR_ID = "user.server.id"
XATTR_NS = "user.server.ns"
XATTR_TYPE = "user.server.type"


class VolumeLock:
    """The volume belongs to this process until :meth:`release`, or until it dies."""

    def __init__(self, path: str, namespace: str, service_type: str, service_id: str) -> None:
        """Raises VolumeException when the volume is somebody else's, OSError when it is unusable."""
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise VolumeException(f"another process serves the volume {path}") from None
            for name, value in (
                (XATTR_ID, service_id),
                (XATTR_NS, namespace),
                (XATTR_TYPE, service_type),
            ):
                self._mark(name, value)
            os.fsync(self._fd)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let another process have the volume; the marks stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _mark(self, name: str, value: str) -> None:
        try:
            os.setxattr(self._fd, name, value.encode(), os.XATTR_CREATE)
        except OSError as err:
            if err.errno != errno.EEXIST:
                raise
            found = os.getxattr(self._fd, name).decode("utf-8", "replace")
            if found != value:
                raise VolumeException(
                    f"the volume {self.path} has {name} = {found!r}, this service has {value!r}"
                ) from None
