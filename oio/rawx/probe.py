# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Is the volume still usable? A thread creates and removes something on it now and then.

The verdict is a comparison of times, so that a probe that hangs in the kernel is a failure too.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

PERIOD_S = 5.0
# Without success for that long, the volume is considered stalled.
STALL_S = 60.0

logger = logging.getLogger("oio.rawx")


def touch_volume(root: str) -> None:
    """Create then remove a directory and a file at the root of the volume."""
    path = f"{root}/probe-{os.urandom(8).hex()}"
    os.mkdir(path, 0o755)
    os.rmdir(path)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        os.unlink(path)
    finally:
        os.close(fd)


class VolumeProbe:
    """Runs `check` on the volume periodically, and remembers how it went."""

    def __init__(
        self,
        root: str,
        check: Callable[[str], None] = touch_volume,
        clock: Callable[[], float] = time.monotonic,
        period_s: float = PERIOD_S,
    ) -> None:
        self.root = root
        self._check = check
        self._clock = clock
        self._period_s = period_s
        self._last_success = clock()  # OK until proven otherwise
        self._failed = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def healthy(self) -> bool:
        """Did the last probe succeed, less than a minute ago?"""
        return not self._failed and self._clock() - self._last_success <= STALL_S

    def run_once(self) -> None:
        """Probe now."""
        try:
            self._check(self.root)
        except OSError as err:
            if not self._failed:
                logger.error("the volume %s does not work: %s", self.root, err)
            self._failed = True
            return
        if self._failed:
            logger.info("the volume %s works again", self.root)
        self._last_success = self._clock()
        self._failed = False

    def start(self) -> None:
        """Probe in the background until :meth:`stop`."""
        self._thread = threading.Thread(target=self._loop, name="rawx-probe", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop probing; a probe stuck in the kernel is not waited for."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _loop(self) -> None:
        while not self._stop.wait(self._period_s):
            self.run_once()
