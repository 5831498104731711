# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What checkers and collectors have in common and share, and those that other packages bring by entry point."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from oio.conscience.hoststats import CpuSampler, DiskSampler
from oio.http.client import HttpPool


class AgentContext:
    """What checkers and collectors may use."""

    def __init__(self, namespace: str, proxy: str, options: dict[str, Any]) -> None:
        self.namespace = namespace
        self.proxy_url = f"http://{proxy}"
        self.options = options
        # Nothing stays idle in the pool of the checks: each opens its connection (see checkers.py), and so do
        # the statistics.
        self.check_pool = HttpPool(max_idle_per_address=0)
        self.proxy_pool = HttpPool(max_idle_per_address=4)
        self.cpu = CpuSampler()
        self.disks = DiskSampler()
        # The first reading only sets the start of the period.
        self.cpu.idle_ratio()

    def close(self) -> None:
        """Close the connections."""
        self.check_pool.close()
        self.proxy_pool.close()


class Plugin:
    """Looks at one service. ``conf``: options of this look, over ``host, port, rise, fall`` of the service."""

    #: Time allowed to one look when the configuration says nothing (seconds).
    timeout_default_s: ClassVar[float]

    def __init__(self, agent: AgentContext, conf: dict[str, Any], logger: logging.Logger) -> None:
        self.agent = agent
        self.conf = conf
        self.logger = logger
        self.host = str(conf["host"])
        self.port = int(conf["port"])
        self.timeout = float(conf.get("timeout", self.timeout_default_s))
        self.configure()

    def configure(self) -> None:
        """Read the options of this kind of look. :raises ValueError, KeyError: on a bad one."""


def load_plugin(group: str, name: str) -> Any:
    """Object registered under ``name``. :raises ValueError: when no installed package registers it."""
    # Scanning the installed packages takes 10 ms and 2 MiB, hence only for names that are not built in.
    from importlib.metadata import entry_points

    for entry in entry_points(group=group, name=name):
        return entry.load()
    raise ValueError(f"no {name!r} in {group}")
