# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Clusters of a benchmark: fresh, below ``build/``, and removed afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from oio.sandbox import Sandbox

BUILD = Path("build")
DIRECTORIES_TIMEOUT_S = 300.0


class BenchCluster:
    """A cluster in a directory of its own, as a context manager.

    :param fields: of :class:`oio.sandbox.Options`.
    """

    def __init__(self, durable: bool, namespace: str = "BENCH", **fields: Any) -> None:
        self.home = tempfile.mkdtemp(prefix=f"{namespace.lower()}-", dir=BUILD)
        durability = "durable" if durable else "relaxed"
        self.sandbox = Sandbox(self.home, namespace=namespace, durability=durability, **fields)

    def __enter__(self) -> Sandbox:
        try:
            self.sandbox.start()
            if self.sandbox.layout.options.prepare_directories:
                self._wait_for_directories()
        except BaseException:
            self.__exit__()
            raise
        return self.sandbox

    def _wait_for_directories(self) -> None:
        """The steady state of a volume has all the directories of its chunks."""
        volumes = [service.volume for service in self.sandbox.services("rawx")]
        deadline = time.monotonic() + DIRECTORIES_TIMEOUT_S
        while any(len(os.listdir(volume)) < 4096 for volume in volumes):
            if time.monotonic() > deadline:
                raise SystemExit("the rawx did not prepare their directories")
            time.sleep(0.5)

    def __exit__(self, *_exc: object) -> None:
        self.sandbox.destroy()
        shutil.rmtree(self.home, ignore_errors=True)
