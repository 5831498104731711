# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The ZooKeeper of a local cluster with replicated services: its configuration and its command line.

Small (one server unless told otherwise, little memory), quick to notice that a client is gone, and on the volume
of the cluster. Several servers are one ensemble: each has a name, a volume, a log and ports of its own, and they
serve while a majority of them runs.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

from oio.common.exceptions import OioException
from oio.common.zookeeper_server import find_zookeeper
from oio.sandbox.errors import SandboxError
from oio.sandbox.layout import Layout, Service

#: Heart beat (milliseconds). Sessions end at multiples of it.
TICK_MS = 200
#: Bounds of what clients may ask for as session timeout (milliseconds).
SESSION_MIN_MS, SESSION_MAX_MS = 500, 60_000
#: Beats that a server may take to join the others, and that one may be silent before they go on without it. A
#: leader that hangs is replaced after 3 seconds: far less than sessions last.
_JOIN_TICKS, _SILENCE_TICKS = 50, 15
#: Heap (MiB): a few thousand nodes and watches need far less.
_HEAP_MIB = 128
#: While all services start, a small machine may lose a connection.
_TREE_ATTEMPTS = 3
_QUESTION_TIMEOUT_S = 1.0
_MODE = re.compile(r"^Mode: (\w+)$", re.MULTILINE)


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
    if service.more_ports:
        keys |= {"initLimit": _JOIN_TICKS, "syncLimit": _SILENCE_TICKS}
        for one in layout.of_type("zookeeper"):
            keys[f"server.{one.num}"] = ":".join([one.host, *map(str, one.more_ports)])
    return "".join(f"{key}={value}\n" for key, value in keys.items())


def ask(service: Service, word: str, timeout_s: float = _QUESTION_TIMEOUT_S) -> str:
    """What a server answers to a word of four letters. :raises OSError: when it does not."""
    answer = b""
    with socket.create_connection((service.host, service.port), timeout_s) as connection:
        connection.sendall(word.encode())
        while piece := connection.recv(4096):
            answer += piece
    return answer.decode("utf-8", "replace")


def mode(service: Service) -> str:
    """``standalone``, ``leader`` or ``follower``; empty when it does not serve."""
    try:
        found = _MODE.search(ask(service, "srvr"))
    except OSError:
        return ""
    return found[1] if found else ""


def problem(service: Service, alone: bool = False) -> str:
    """Ask whether it serves: empty when it does, else what is wrong.

    :param alone: no majority of its ensemble runs. It cannot serve: it is enough that it answers.
    """
    try:
        answer = ask(service, "ruok" if alone else "srvr")
    except OSError as err:
        return f"{service.addr}: {err}"
    return "" if answer == "imok" or _MODE.search(answer) else f"{service.addr}: {answer.strip() or 'no answer'}"


def make_tree(layout: Layout, report: Callable[[str], None]) -> None:
    """Make the directories of the elections, as tools expect them. Services make those that they miss."""
    from oio.zk import admin  # it needs a library that clusters of one copy do not

    own = layout.of_type("zookeeper")
    if own and not any(map(mode, own)):
        report("ZooKeeper: no majority of its servers runs")
        return
    told = ""
    for _ in range(_TREE_ATTEMPTS):
        try:
            with admin.connection(layout.zookeeper) as client:
                if not admin.seems_complete(client, layout.options.namespace):
                    made = admin.bootstrap(client, layout.options.namespace)
                    report(f"ZooKeeper: {made} directories made")
                return
        except OioException as err:
            told = str(err)
    report(f"ZooKeeper: not all directories made: {told}")


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
