# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``oio-account-server CONFIG``: the process, its workers and its logs."""

from __future__ import annotations

import configparser
import logging
import sys

from oio.account.backend import AccountBackend
from oio.account.server import AccountService
from oio.account.settings import Settings, load_settings
from oio.common.configuration import one_line
from oio.common.logger import syslog_handler
from oio.common.service import SYSLOG_FORMAT, command_line, run_until_stopped, setup_logging
from oio.http.server import Request, RequestIdFilter, Response, Server, ServerConfig
from oio.http.workers import WorkerGroup, run_workers

# Contract: idle connections are kept this long.
KEEPALIVE_S = 30.0

access_log = logging.getLogger("oio.access")


def make_server(settings: Settings, group: WorkerGroup | None = None) -> Server:
    """The server of one worker, with a connection to Redis of its own."""
    siblings = None if group is None else (lambda: group.broadcast_bodies("GET", "/metrics"))
    backend = AccountBackend(settings.connect(), settings.prefixes, autocreate=settings.autocreate)
    config = ServerConfig(
        generate_reqid_prefix="account-",
        timeout_idle_s=KEEPALIVE_S,
        max_threads=settings.threads,
        max_connections=settings.connections,
        backlog=settings.backlog,
        reuse_port=group is not None,
        access_log=AccessLog(f"{settings.host}:{settings.port}"),
    )
    return Server(AccountService(backend, siblings).router, [(settings.host, settings.port)], config)


class AccessLog:
    """One line per request, in the form of the contract; ``/status`` is left out."""

    def __init__(self, bind: str) -> None:
        self._bind = bind

    def __call__(self, request: Request, response: Response, duration_us: int) -> None:
        """Log that a request was answered."""
        if request.path == "/status" or not access_log.isEnabledFor(logging.INFO):
            return
        arguments = (
            self._bind, request.peer or "-", request.method, response.status, duration_us, response.bytes_sent,
            request.reqid or "-", request.path, request.query_string,
        )  # fmt: skip
        # Not `info`: looking for the caller's file and line would cost as much as the rest of a request.
        record = logging.LogRecord(
            "oio.access", logging.INFO, "", 0, "%s %s %s %d %d %d - %s %s?%s", arguments, None, "AccessLog"
        )
        access_log.handle(record)


def main(argv: list[str] | None = None) -> int:
    """Run the account service; gives the exit code of the process."""
    parser = command_line("oio-account-server", "Account service")
    parser.add_argument("config", help="configuration file, section [account-server]")
    options = parser.parse_args(argv)
    try:
        settings = load_settings(options.config)
        _setup_logs(settings)
    except (ValueError, OSError, configparser.Error) as exc:
        print(f"oio-account-server: {options.config}: {one_line(exc)}", file=sys.stderr)
        return 1
    if settings.workers == 1:
        return run_until_stopped([make_server(settings)], name="account")
    return run_workers(
        lambda group: make_server(settings, group), settings.workers, addresses=[(settings.host, settings.port)]
    )


def _setup_logs(settings: Settings) -> None:
    root = setup_logging(level=settings.log_level)
    if settings.logs:
        handler = syslog_handler(settings.logs)
        if handler is not None:
            prefix = settings.logs.get("syslog_prefix", "account")
            handler.setFormatter(logging.Formatter(f"{prefix}: {SYSLOG_FORMAT}"))
            handler.addFilter(RequestIdFilter())
            root.addHandler(handler)
    for key in settings.ignored:
        logging.getLogger("oio.account").info("%s is ignored: it means nothing to this server", key)


if __name__ == "__main__":
    sys.exit(main())
