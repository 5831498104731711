# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The ZooKeeper of a local cluster with replicated services: its configuration and its command line.

Small (one server, little memory), quick to notice that a client is gone, and on the volume of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable

from oio.common.exceptions import OioException
from oio.common.zookeeper_server import find_zookeeper
from oio.sandbox.errors import SandboxError
from oio.sandbox.layout import Layout, Service

#: Heart beat (milliseconds). Sessions end at multiples of it.
TICK_MS = 200
#: Bounds of what clients may ask for as session timeout (milliseconds).
SESSION_MIN_MS, SESSION_MAX_MS = 500, 60_000
#: Heap (MiB): a few thousand nodes and watches need far less.
_HEAP_MIB = 96
#: While all services start, a small machine may lose a connection.
_TREE_ATTEMPTS = 3


def configuration(layout: Layout, service: Service) -> str:
    """The file ``zoo.cfg``."""
    keys = {
        "tickTime": TICK_MS,
        "minSessionTimeout": SESSION_MIN_MS,
        "maxSessionTimeout": SESSION_MAX_MS,
        "dataDir": service.volume,
        "clientPort": service.port,
        "clientPortAddress": service.host,
        "maxClientCnxns": 0,
        # It would listen on a port of its own.
        "admin.enableServer": "false",
        "4lw.commands.whitelist": "ruok,srvr,stat,mntr,cons",
        # A relaxed cluster does not wait for the disk. What an election holds ends with its session anyway.
        "forceSync": "yes" if layout.options.durability == "durable" else "no",
        "preAllocSize": 1024,
        "autopurge.purgeInterval": 1,
        "autopurge.snapRetainCount": 3,
    }
    return "".join(f"{key}={value}\n" for key, value in keys.items())


def make_tree(layout: Layout, report: Callable[[str], None]) -> None:
    """Make the directories of the elections, as tools expect them. Services make those that they miss."""
    from oio.zk import admin  # it needs a library that clusters of one copy do not

    problem = ""
    for _ in range(_TREE_ATTEMPTS):
        try:
            with admin.connection(layout.zookeeper) as client:
                if not admin.seems_complete(client, layout.options.namespace):
                    made = admin.bootstrap(client, layout.options.namespace)
                    report(f"ZooKeeper: {made} directories made")
                return
        except OioException as err:
            problem = str(err)
    report(f"ZooKeeper: not all directories made: {problem}")


def command(path: str) -> list[str]:
    """Command line for a configuration. :raises SandboxError: when there is no ZooKeeper on this machine."""
    words = find_zookeeper(heap=f"{_HEAP_MIB}m")
    if words is None:
        raise SandboxError(
            "No ZooKeeper on this machine, and copies need one for their elections: install the packages"
            " libzookeeper-java and default-jre-headless, or unpack a distribution and name it in ZOOKEEPER_HOME;"
            " or use one that runs (zookeeper_host in an option file)"
        )
    return [*words, path]
