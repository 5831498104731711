# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ``oio-ecd`` daemon: command line, configuration, start and stop."""

from __future__ import annotations

import configparser
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

from oio.common import service
from oio.common.configuration import one_line
from oio.common.metrics import CONTENT_TYPE
from oio.ecd.gateway import REQID_PREFIX, Gateway
from oio.http.server import Request, Response, Server, ServerConfig
from oio.http.workers import WorkerGroup, run_workers

WORKERS_MAX = 64
#: A request names each of its chunks in a header.
HEAD_BYTES_MAX = 1 << 18

logger = logging.getLogger("oio.ecd")


@dataclass
class Settings:
    """What the configuration file says."""

    listen: tuple[str, int]
    namespace: str = ""
    workers: int = 1
    key_file: str = ""
    log_level: str = "INFO"
    syslog_id: str | None = None
    access_log: bool = False


def read_settings(path: str) -> Settings:
    """Read the section ``[ecd]`` of a file.

    :raises ValueError: when a key is missing or wrong. :raises OSError: when the file cannot be read.
    """
    conf = configparser.ConfigParser(interpolation=None)
    with open(path, encoding="utf-8") as stream:
        conf.read_file(stream)
    if "ecd" not in conf:
        raise ValueError("section [ecd] is missing")
    section = conf["ecd"]
    endpoint = section.get("endpoint")
    if not endpoint:
        raise ValueError("key endpoint is missing")
    settings = Settings(service.parse_address(endpoint))
    settings.namespace = section.get("namespace", "")
    settings.workers = section.getint("workers", 1)
    if not 1 <= settings.workers <= WORKERS_MAX:
        raise ValueError(f"workers must be within 1..{WORKERS_MAX}")
    settings.key_file = section.get("key_file", "")
    settings.log_level = section.get("log_level", "INFO").upper()
    settings.syslog_id = section.get("syslog_prefix") or None
    settings.access_log = section.getboolean("access_log", False)
    return settings


class Ecd:
    """The gateway behind the package's own HTTP server.

    :param siblings: gives the counters of the other processes of the service.
    """

    def __init__(self, gateway: Gateway, siblings: Callable[[], list[bytes]] | None = None) -> None:
        self.gateway = gateway
        self._siblings = siblings

    def __call__(self, request: Request) -> Response:
        """Serve a request."""
        if request.path == "/metrics" and request.method == "GET" and self._siblings is not None:
            others = [json.loads(body) for body in self._siblings()]
            return Response(200, self.gateway.metrics(others), [("Content-Type", CONTENT_TYPE)])
        headers = request.headers
        if request.reqid:
            headers = {**headers, "x-oio-req-id": request.reqid}
        reply = self.gateway.answer(request.method, request.path, headers, request)
        fields = [("Content-Type", reply.content_type)]
        return Response(reply.status, reply.body, fields)


def make_server(settings: Settings, group: WorkerGroup | None = None) -> Server:
    """Build what one process runs; not started."""
    gateway = Gateway({"namespace": settings.namespace, "key_file": settings.key_file})
    siblings = None if group is None else (lambda: group.broadcast_bodies("GET", "/status"))
    config = ServerConfig(
        max_head_bytes=HEAD_BYTES_MAX,
        generate_reqid_prefix=REQID_PREFIX,
        reuse_port=group is not None,
    )
    return Server(Ecd(gateway, siblings), [settings.listen], config)


def main(argv: list[str] | None = None) -> int:
    """``oio-ecd CONFIG``"""
    parser = service.command_line("oio-ecd", "Gateway to erasure-coded chunks")
    parser.add_argument("config", help="configuration file, section [ecd]")
    options = parser.parse_args(argv)
    try:
        settings = read_settings(options.config)
        service.setup_logging(settings.syslog_id, settings.log_level)
    except (ValueError, OSError, configparser.Error) as err:
        print(f"oio-ecd: {options.config}: {one_line(err)}", file=sys.stderr)
        return 1
    if not settings.access_log:
        logging.getLogger("oio.access").setLevel(logging.WARNING)
    if settings.workers > 1:
        return run_workers(
            lambda group: make_server(settings, group),
            settings.workers,
            addresses=[settings.listen],
            grace_s=service.STOP_GRACE_S,
        )
    return service.run_until_stopped([make_server(settings)], name="ecd")


if __name__ == "__main__":
    sys.exit(main())
