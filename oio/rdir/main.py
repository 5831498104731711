# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Command line of the reverse directory: ``oio-rdir-server [-O NAME=VALUE]... CONFIG``."""

from __future__ import annotations

import configparser
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from oio.common.configuration import load_namespace_conf, one_line
from oio.common.exceptions import ConfigurationException
from oio.common.open_files import raise_files_limit
from oio.common.service import (
    command_line,
    parse_address,
    parse_dash_o,
    run_until_stopped,
    setup_logging,
)
from oio.common.variables import Variables, parse_boolean
from oio.common.volume_lock import lock_volume
from oio.http.server import Server, ServerConfig
from oio.rdir.server import BODY_BYTES_MAX, AccessLog, RdirService, refuse
from oio.rdir.store import Store

SECTION = "rdir-server"
SYSLOG_CHARS_MAX = 63
SWEEP_PERIOD_S = 3600.0
"""Tombstones are looked at that often: they live between one period less and one more than their life."""

FILES_WANTED = 65536
FILES_PER_DATABASE = 3
FILES_OF_ITS_OWN = 64
"""Logs, listeners, libraries."""
RESERVE_MAX = 4096
"""Connections that the automatic reserve allows for."""

MIB = 2**20

logger = logging.getLogger("oio.rdir")


@dataclass(frozen=True)
class RdirConfig:
    """What the configuration file says."""

    namespace: str
    db_path: str
    addresses: tuple[tuple[str, int], ...]
    service_id: str = ""
    syslog_prefix: str = ""
    sync: bool = True
    volume_bytes_max: int = 0

    @property
    def lock_id(self) -> str:
        """What the volume is marked with: the address, even when there is a service id."""
        return "{}:{}".format(*self.addresses[0])


class Sweeper:
    """The thread that removes old tombstones; stops like a server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rdir-sweep", daemon=True)

    def start(self) -> None:
        """Begin; the first look comes after a whole period."""
        self._thread.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """End soon."""
        self._asked.set()
        self._thread.join(grace_s)

    def _run(self) -> None:
        while not self._asked.wait(SWEEP_PERIOD_S):
            begin = time.monotonic()
            try:
                removed = self._store.sweep()
            except Exception:  # the next period is another chance
                logger.exception("tombstones could not be removed")
                continue
            logger.info("%d tombstones removed in %.1f s", removed, time.monotonic() - begin)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM or SIGINT; gives the exit code of the process."""
    parser = command_line("oio-rdir-server", "Which chunks and which containers the volumes hold.")
    parser.add_argument(
        "-O", dest="options", action="append", default=[], metavar="NAME=VALUE",
        help="Bind=IP:PORT (one more address), Config=FILE, SysConfig=on|off",
    )  # fmt: skip
    parser.add_argument("config", help="configuration file, section [rdir-server]")
    words = parser.parse_args(argv)
    try:
        options = [(name.lower(), value) for name, value in parse_dash_o(words.options)]
        unknown = [name for name, _ in options if name not in ("bind", "config", "sysconfig")]
        if unknown:
            raise ValueError(f"unknown option {', '.join(unknown)}")
        config = load(words.config, [value for name, value in options if name == "bind"])
        setup_logging(config.syslog_prefix or None)
        variables = Variables(_namespace_options(config.namespace, options))
        for error in variables.errors:
            logger.warning("configuration: %s", error)
        lock = lock_volume(
            config.db_path, config.namespace, "rdir", config.lock_id, create=variables["volume.lazy_lock"]
        )
        databases_max, connections_max = share_files(raise_files_limit(FILES_WANTED), variables["rdir.fd_reserve"])
    except (ValueError, OSError, configparser.Error, ConfigurationException) as exc:
        print(f"oio-rdir-server: {words.config}: {one_line(exc)}", file=sys.stderr)
        return 1
    store = Store(
        config.db_path, databases_max=databases_max, sync=config.sync, map_bytes_max=config.volume_bytes_max
    )
    store.open_all()
    service = RdirService(store, variables, config.service_id)
    server = Server(
        service,
        list(config.addresses),
        ServerConfig(
            generate_reqid_prefix="rdir-",
            echo_reqid=False,
            max_body_bytes=BODY_BYTES_MAX,
            max_connections=connections_max,
            max_threads=variables["server.pool.max_threads"],
            timeout_idle_s=variables["server.cnx.timeout.idle"],
            access_log=AccessLog(config.lock_id),
            refusal=refuse,
        ),
    )
    return run_until_stopped(
        [server, Sweeper(store)], [store.close, lock.release], name="rdir",
        verbose_s=lambda: variables["common.verbosity.reset_delay"],
    )  # fmt: skip


def share_files(limit: int, reserve: int = 0) -> tuple[int, int]:
    """Give how many databases and how many connections may be open, so that neither starves the other.

    :param reserve: files that are not for databases; 0: a quarter of the limit.
    :raises ValueError: when the reserve leaves nothing for databases, or for connections.

    >>> share_files(20000), share_files(1024)
    ((5301, 4032), (256, 192))
    """
    reserve = reserve or min(RESERVE_MAX, limit // 4)
    databases, connections = (limit - reserve) // FILES_PER_DATABASE, reserve - FILES_OF_ITS_OWN
    if databases < 1 or connections < 1:
        raise ValueError(f"rdir.fd_reserve = {reserve} does not fit in the {limit} files that may be open")
    return databases, connections


def load(path: str, more_addresses: Sequence[str] = ()) -> RdirConfig:
    """Read and check a configuration file.

    :raises ValueError: when something is missing or wrong. :raises OSError: when it cannot be read, or
        `db_path` not used.
    """
    parser = configparser.ConfigParser(interpolation=None)
    with open(path, encoding="utf-8") as stream:
        parser.read_file(stream)
    if not parser.has_section(SECTION):
        raise ValueError(f"section [{SECTION}] is missing")
    section = parser[SECTION]
    for key in ("namespace", "db_path", "bind_addr", "bind_port"):
        if not section.get(key):
            raise ValueError(f"key {key} is missing")
    syslog_prefix = section.get("syslog_prefix", "")
    if len(syslog_prefix) > SYSLOG_CHARS_MAX:
        raise ValueError(f"syslog_prefix is longer than {SYSLOG_CHARS_MAX} characters")
    db_path = os.path.abspath(section["db_path"])
    if not os.path.isdir(db_path):
        raise ValueError(f"db_path: {db_path} is not a directory")
    if not os.access(db_path, os.R_OK | os.W_OK | os.X_OK):
        raise ValueError(f"db_path: {db_path} cannot be read, written and searched")
    bind = f"{section['bind_addr']}:{section['bind_port']}"
    addresses = tuple(parse_address(text, port_min=1) for text in (bind, *more_addresses))
    return RdirConfig(
        namespace=section["namespace"],
        db_path=db_path,
        addresses=addresses,
        service_id=section.get("service_id", ""),
        syslog_prefix=syslog_prefix,
        sync=parse_boolean(section.get("sync", "on"), default=True),
        volume_bytes_max=section.getint("volume_size_max_mib", 0) * MIB,
    )


def _namespace_options(namespace: str, options: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Options of the namespace: those of the system, then those of files of our own.

    :raises ConfigurationException: when no file knows the namespace.
    """
    found: dict[str, str] = {}
    known = False
    if all(parse_boolean(value, default=True) for name, value in options if name == "sysconfig"):
        system = load_namespace_conf(namespace, failsafe=True, fresh=True)
        known = len(system) > 1  # more than its own name
        found.update(system)
    for name, path in options:
        if name != "config":
            continue
        parser = configparser.ConfigParser(default_section="default", interpolation=None)
        with open(path, encoding="utf-8") as stream:
            parser.read_file(stream)
        known = known or parser.has_section(namespace)
        found.update(parser.items(namespace if parser.has_section(namespace) else "default"))
    if not known:
        raise ConfigurationException(f"namespace {namespace} is unknown in the local configuration")
    return found


if __name__ == "__main__":
    sys.exit(main())
