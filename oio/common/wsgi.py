# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""WSGI applications served by gunicorn and written with werkzeug (extra ``wsgi``).

For programs that bring an application of theirs; the services of this package have their own HTTP server
(``oio.http.server``) and import nothing from here::

    app, conf, logger, name = init_request_processor(conf_file, "my-service", create_app)
    Application(app, conf, logger_class=ServiceLogger).run()
"""

from __future__ import annotations

import html
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from oio.common.configuration import read_conf
from oio.common.exceptions import ServiceBusy
from oio.common.logger import DEFAULT_FORMAT, get_logger, syslog_handler
from oio.common.utils import CPU_COUNT

try:
    from gunicorn.app.base import BaseApplication
    from gunicorn.glogging import Logger
    from gunicorn.workers import SUPPORTED_WORKERS
    from werkzeug.exceptions import HTTPException
    from werkzeug.wrappers import Request, Response
except ImportError as exc:
    raise ImportError(f"oio.common.wsgi needs the extra 'wsgi' (oio-sds[wsgi]): {exc}") from exc

DEFAULT_WORKER_CLASS = "eventlet"
FALLBACK_WORKER_CLASS = "gthread"
# Requests that run at once in a worker of the fallback class.
FALLBACK_THREADS = 64
KEEPALIVE_S = 30
ACCESS_LOG_FORMAT = "%(h)s %(m)s %(s)s %(D)s %(B)s %({x-oio-req-id}i)s %(U)s?%(q)s"

STATUS_PATH = "/status"
_LOCAL0 = "LOG_LOCAL0"
_LOCAL1 = "LOG_LOCAL1"


class Application(BaseApplication):  # type: ignore[misc]
    """Server of an application, set up from the configuration of a service; :meth:`run` serves until stopped.

    :param app: the WSGI callable.
    :param conf: keys ``bind_addr``, ``bind_port``, ``backlog``, ``workers``, ``worker_class``,
        ``worker_connections``, ``threads``, ``syslog_prefix``, ``log_address``, ``access_log_format``,
        ``proc_name``.
    :param logger_class: class of gunicorn loggers, such as :class:`ServiceLogger`.
    """

    def __init__(
        self, app: Callable[..., Any], conf: Mapping[str, Any], logger_class: type[Logger] | None = None
    ) -> None:
        self.conf = conf
        self.application = app
        self.logger_class = logger_class
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn: translate the configuration."""
        conf = self.conf
        address = conf.get("log_address") or "/dev/log"
        worker_class = _usable_worker_class(conf.get("worker_class") or DEFAULT_WORKER_CLASS)
        settings = {
            "bind": f"{conf.get('bind_addr') or '127.0.0.1'}:{conf.get('bind_port') or 8000}",
            "backlog": conf.get("backlog") or 2048,
            "workers": conf.get("workers") or CPU_COUNT,
            "worker_class": worker_class,
            "worker_connections": conf.get("worker_connections") or 1000,
            "keepalive": KEEPALIVE_S,
            "syslog_prefix": conf.get("syslog_prefix") or "",
            "access_log_format": conf.get("access_log_format") or ACCESS_LOG_FORMAT,
            "proc_name": conf.get("proc_name") or None,
            "logger_class": self.logger_class,
        }
        if worker_class == FALLBACK_WORKER_CLASS:
            settings["threads"] = conf.get("threads") or FALLBACK_THREADS
        tolerant = self.logger_class is not None and issubclass(self.logger_class, ServiceLogger)
        if tolerant or "://" in address or os.path.exists(address):
            settings["syslog_addr"] = address if "://" in address else f"unix://{address}"
            settings["syslog"] = True
        for name, value in settings.items():
            if value is not None:
                self.cfg.set(name, value)

    def load(self) -> Callable[..., Any]:
        """Called by gunicorn, in each worker."""
        return self.application


def _usable_worker_class(name: str) -> str:
    """Recent versions of gunicorn have no eventlet workers any more: threads serve as many requests."""
    if name == "eventlet" and (name not in SUPPORTED_WORKERS or importlib.util.find_spec(name) is None):
        return FALLBACK_WORKER_CLASS
    return name


class ServiceLogger(Logger):  # type: ignore[misc]
    """Errors to syslog as LOCAL0, accesses as LOCAL1; the monitoring (``/status``) leaves no trace."""

    def _set_syslog_handler(self, log: logging.Logger, cfg: Any, _fmt: str, name: str) -> None:
        facility = _LOCAL1 if name == "access" else _LOCAL0
        handler = syslog_handler({**_log_conf(cfg.syslog_addr), "log_facility": facility})
        if handler is None:
            return
        prefix = cfg.syslog_prefix or cfg.proc_name
        handler.setFormatter(logging.Formatter(f"{prefix}: {DEFAULT_FORMAT}"))
        handler._gunicorn = True  # type: ignore[attr-defined]  # replaced, not doubled, by a reload
        log.addHandler(handler)

    def access(self, resp: Any, req: Any, environ: Mapping[str, Any], request_time: Any) -> None:
        """Log a request, unless it is of the monitoring."""
        if environ.get("PATH_INFO") != STATUS_PATH:
            super().access(resp, req, environ, request_time)


def _log_conf(address: str) -> dict[str, str]:
    """Keys of :func:`oio.common.logger.get_logger` for an address of gunicorn: ``unix://PATH`` or ``udp://HOST:PORT``."""
    scheme, _, rest = address.partition("://")
    if scheme == "udp":
        host, _, port = rest.partition(":")
        return {"log_udp_host": host, "log_udp_port": port}
    return {"log_address": rest.partition("#")[0]}


class WerkzeugApp:
    """Application whose requests go to methods: derive, and write ``on_<endpoint>(req, **params)``.

    :param url_map: ``werkzeug.routing.Map`` of the routes; each has the name of its method, without ``on_``.
    """

    def __init__(self, url_map: Any = None, logger: logging.Logger | None = None) -> None:
        self.url_map = url_map
        self.logger = logger or get_logger(None)

    def dispatch_request(self, req: Request) -> Any:
        """Call the method of a request; every failure has an answer."""
        try:
            endpoint, params = self.url_map.bind_to_environ(req.environ).match()
            return getattr(self, "on_" + endpoint)(req, **params)
        except HTTPException as exc:
            return _response_of(exc, req.environ)
        except ServiceBusy as exc:
            self.logger.error("%s %s: %s", req.method, req.path, exc)
            return Response(f"Could not satisfy the request: {exc}", status=503)
        except Exception as exc:
            self.logger.exception("%s %s failed", req.method, req.path)
            return Response(f"Unmanaged error: {exc}", status=500)

    def wsgi_app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The WSGI callable; wrap it in middlewares here."""
        response = self.dispatch_request(Request(environ))
        return response(environ, start_response)  # type: ignore[no-any-return]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return self.wsgi_app(environ, start_response)


def _response_of(exc: HTTPException, environ: dict[str, Any]) -> Any:
    """Answer of an HTTP error: its description, and its own headers (Allow, Location, Retry-After…)."""
    if exc.response is not None:
        return exc.response
    response = Response(html.escape(exc.description or "", quote=True), status=exc.code)
    for name, value in exc.get_headers(environ):
        if name.lower() != "content-type":
            response.headers[name] = value
    return response


def init_request_processor(
    conf_file: str, app_name: str, app_factory: Callable[[Any], Any], *_args: Any, **kwargs: Any
) -> tuple[Any, Any, logging.Logger, str]:
    """Make an application from its configuration file.

    :param app_name: section of the file, and name of the logger.
    :param app_factory: called with the options of the section.
    :keyword logger: logger to use instead of a new one.
    :keyword verbose: also log on standard error.
    :returns: ``(application, options, logger, app_name)``; other arguments are ignored.
    :raises SystemExit: when the file or the section is missing.
    """
    conf = read_conf(conf_file, app_name)
    logger = kwargs.get("logger") or get_logger(conf, app_name, verbose=bool(kwargs.get("verbose")))
    return app_factory(conf), conf, logger, app_name
