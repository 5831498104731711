# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The ``oio-proxy`` daemon: command line, configuration, start and stop."""

from __future__ import annotations

import configparser
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from oio.common import service
from oio.common.configuration import CONF_FILE_VARIABLE, load_namespace_conf, one_line
from oio.common.exceptions import ConfigurationException
from oio.common.variables import Variables, parse_boolean
from oio.conscience.messages import valid_address
from oio.conscience.registry_client import RegistryClient
from oio.http.client import HttpPool
from oio.http.server import Server, ServerConfig
from oio.http.workers import WorkerGroup, run_workers
from oio.proxy.app import Proxy, refusal
from oio.proxy.feed import Feed
from oio.proxy.routes import all_routes

logger = logging.getLogger("oio.proxy")

#: Idle connections kept to each backend: as many requests may wait for the same meta2 at once.
IDLE_CONNECTIONS_MAX = 128

WORKERS_MAX = 64


@dataclass
class Options:
    """What the command line says."""

    listen: list[str]
    namespace: str
    workers: int = 1
    system_configuration: bool = True
    files: list[str] = field(default_factory=list)
    syslog_id: str | None = None
    verbose: bool = False


def read_configuration(options: Options) -> dict[str, str]:
    """Options of the namespace: system files, then those of the command line.

    :raises ConfigurationException: when the namespace is unknown or has no conscience.
    """
    conf: dict[str, str] = {}
    known = False
    if options.system_configuration or CONF_FILE_VARIABLE in os.environ:
        loaded = load_namespace_conf(options.namespace, failsafe=True, fresh=True)
        conf.update({key: str(value) for key, value in loaded.items() if key != "namespace"})
        known = bool(conf)
    for path in options.files:
        parser = configparser.ConfigParser(default_section="default", interpolation=None)
        try:
            with open(path, encoding="utf-8") as stream:
                parser.read_file(stream)
        except (OSError, configparser.Error, UnicodeDecodeError) as exc:
            raise ConfigurationException(f"Cannot read {path}: {one_line(exc)}") from exc
        if parser.has_section(options.namespace):
            conf.update(parser.items(options.namespace))
            known = True
        else:
            conf = {**parser.defaults(), **conf}
    if not known:
        raise ConfigurationException(f"Namespace {options.namespace} is not configured")
    if not conscience_addresses(conf):
        raise ConfigurationException(f"Namespace {options.namespace} has no 'conscience' address")
    return conf


def conscience_addresses(conf: Mapping[str, str]) -> list[str]:
    """Addresses of the consciences, in order. :raises ConfigurationException: when one is not IP:PORT."""
    addresses = [address.strip() for address in conf.get("conscience", "").split(",") if address.strip()]
    for address in addresses:
        if not valid_address(address):
            raise ConfigurationException(f"'conscience' is not a list of IP:PORT: {address!r}")
    return addresses


class ProxyProcess:
    """One worker of the proxy, with all it needs; the daemon runs one or several, tests run it in a thread."""

    def __init__(
        self,
        namespace: str,
        conf: Mapping[str, str],
        options: Options | None = None,
    ) -> None:
        self._options = options
        self.variables = Variables(conf)
        if not self.variables["server.access_log"] and not (options and options.verbose):
            logging.getLogger("oio.access").setLevel(logging.WARNING)
        for error in self.variables.errors:
            logger.warning("configuration: %s", error)
        self.http = HttpPool(max_idle_per_address=IDLE_CONNECTIONS_MAX)
        registry = RegistryClient(
            conscience_addresses(conf), self.http, self.variables["proxy.outgoing.timeout.conscience"]
        )
        self.feed = Feed(namespace, self.variables, registry)
        if options is not None:
            self.feed.conscience_addresses = self._addresses_now
        self.app = Proxy(namespace, self.variables, self.feed, self.http, all_routes())

    def start(self) -> None:
        """Begin to follow the conscience."""
        self.feed.start()

    def stop(self) -> None:
        """Send the registrations that wait, close the connections."""
        self.feed.stop()
        self.http.close()

    def reload(self) -> None:
        """Variables go back to their defaults, then to what the configuration says now."""
        if self._options is None:
            return
        try:
            conf = read_configuration(self._options)
        except ConfigurationException as exc:
            logger.error("configuration not reloaded: %s", exc)
            return
        self.variables.reset(conf)
        for error in self.variables.errors:
            logger.warning("configuration: %s", error)
        self.feed.registry.addresses = conscience_addresses(conf)
        self.app.apply_variables()
        logger.info("configuration reloaded")

    def verbose_period_s(self) -> float:
        """How long SIGUSR1 makes logs verbose."""
        seconds: float = self.variables["common.verbosity.reset_delay"]
        return seconds

    def _addresses_now(self) -> list[str]:
        assert self._options is not None
        try:
            return conscience_addresses(read_configuration(self._options))
        except ConfigurationException as exc:
            logger.warning("conscience addresses not read again: %s", exc)
            return []


def server_config(variables: Variables, reuse_port: bool = False) -> ServerConfig:
    """Settings of the HTTP server. Properties of objects travel in headers, hence the large heads."""
    return ServerConfig(
        max_head_bytes=1 << 20,
        max_target_bytes=1 << 16,
        max_body_bytes=variables["server.request.max_size"],
        timeout_idle_s=variables["server.cnx.timeout.idle"],
        max_threads=variables["server.pool.max_threads"],
        reuse_port=reuse_port,
        refusal=refusal,
    )


def listen_address(text: str) -> tuple[str, int] | str:
    """``IP:PORT``, or the path of a Unix socket. :raises ValueError: when it is neither."""
    if text.startswith("/"):
        return f"unix:{text}"
    if text.startswith("unix:/"):
        return text
    return service.parse_address(text)


def parse_arguments(argv: list[str] | None) -> Options:
    """Read the command line. :raises SystemExit: after a message, when it is wrong."""
    parser = service.command_line("oio-proxy", "HTTP door of a namespace")
    parser.add_argument(
        "-O", dest="options", action="append", default=[], metavar="KEY=VALUE",
        help="Bind=ADDRESS (repeatable), SysConfig=BOOL, Config=PATH (repeatable), Workers=NUMBER",
    )  # fmt: skip
    parser.add_argument("-s", dest="syslog_id", metavar="ID", help="identifier of the lines sent to syslog")
    parser.add_argument("-v", "--verbose", action="store_true", help="debug logs")
    parser.add_argument("address", metavar="IP:PORT")
    parser.add_argument("namespace", metavar="NS")
    args = parser.parse_args(argv)
    options = Options([args.address], args.namespace)
    try:
        for key, value in service.parse_dash_o(args.options):
            match key.lower():
                case "bind":
                    options.listen.append(value)
                case "sysconfig":
                    options.system_configuration = parse_boolean(value, True)
                case "config":
                    options.files.append(value)
                case "workers":
                    options.workers = int(value)
                    if not 1 <= options.workers <= WORKERS_MAX:
                        raise ValueError(f"Workers must be within 1..{WORKERS_MAX}")
                case _:
                    raise ValueError(f"unknown option {key!r}")
        for address in options.listen:
            listen_address(address)
    except ValueError as exc:
        parser.error(str(exc))
    options.syslog_id, options.verbose = args.syslog_id, args.verbose
    return options


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``oio-proxy``."""
    options = parse_arguments(argv)
    try:
        conf = read_configuration(options)
    except ConfigurationException as exc:
        print(f"oio-proxy: {exc}", file=sys.stderr)
        return 1
    service.setup_logging(options.syslog_id, "DEBUG" if options.verbose else "INFO")
    if options.workers > 1:
        return _run_group(options, conf)
    process, server = make_process(options, conf)
    return service.run_until_stopped(
        [server], on_stop=[process.stop], name="proxy", verbose_s=process.verbose_period_s
    )


def make_process(
    options: Options, conf: Mapping[str, str], group: WorkerGroup | None = None
) -> tuple[ProxyProcess, Server]:
    """Build what one process runs; it follows the conscience already, its server is not started."""
    process = ProxyProcess(options.namespace, conf, options)
    if group is not None:
        process.app.broadcast = group.broadcast_bodies
    signal.signal(signal.SIGHUP, lambda *_: process.reload())
    server = Server(
        process.app,
        [listen_address(address) for address in options.listen],
        server_config(process.variables, reuse_port=group is not None),
    )
    process.start()
    return process, server


def _run_group(options: Options, conf: Mapping[str, str]) -> int:
    """Run several processes on the same port."""
    running: list[ProxyProcess] = []

    def start(group: WorkerGroup) -> Server:
        service.install_verbosity_signals(
            lambda: running[0].verbose_period_s() if running else service.VERBOSE_PERIOD_S
        )
        process, server = make_process(options, conf, group)
        running.append(process)
        return server

    def stop(_group: WorkerGroup) -> None:
        for process in running:
            process.stop()

    addresses = [listen_address(address) for address in options.listen]
    shared = [address for address in addresses if not isinstance(address, str)]
    return run_workers(
        start, options.workers, addresses=shared, grace_s=service.STOP_GRACE_S, on_stop=stop
    )


if __name__ == "__main__":
    sys.exit(main())
