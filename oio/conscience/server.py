# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-conscience``: the registry of services, over HTTP.

    oio-conscience -O PersistencePath=/var/lib/oio/conscience.json -s OIO,NS,cs,1 conscience.conf

Routes are those of :mod:`oio.conscience.messages`, plus ``GET /status`` (JSON), ``GET /metrics`` (Prometheus)
and ``/v1/ping``. Failures answer ``{"status": code, "message": text}``. A lock, an unlock or a deregistration
is on disk when it is answered, unless the disk fails: then it holds in memory, the log says so, and
``persistence_failures`` of ``/status`` grows until a later save succeeds.

With ``param_hub.*`` the consciences of a namespace tell each other what they learn: see
:mod:`oio.conscience.hub`.

``oio-daemon`` is the same program under its old name, and takes the same files: sections and keys that mean
nothing here (``[General]``, ``plugins``, numbers of workers…) are left aside.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from oio.common import service, status
from oio.common.exceptions import ConfigurationException
from oio.common.status import StatusError
from oio.conscience.hub import Hub
from oio.conscience.messages import ServiceDef, Services
from oio.conscience.persistence import Persistence
from oio.conscience.registry import Registry
from oio.conscience.settings import Settings, load_settings
from oio.http.router import Router
from oio.http.server import Request, Response, Server, ServerConfig

# A registration of 10,000 services (the most per request) is about 5 MiB.
BODY_MAX_BYTES = 16 << 20
EXPIRATION_PERIOD_S = 1.0
PERSISTENCE_PERIOD_DEFAULT_S = 30.0
# Each busy connection holds a thread; requests last well under a millisecond.
THREADS_MAX = 32

_JSON = [("Content-Type", "application/json")]
_decode_services = msgspec.json.Decoder(Services).decode
_FLAG_VALUES = frozenset(("1", "true", "yes", "on", ""))


class ConscienceServer:
    """Routes on top of a registry; give :attr:`router` to an HTTP server."""

    def __init__(
        self,
        registry: Registry,
        persistence: Persistence | None,
        logger: logging.Logger,
    ) -> None:
        self._registry = registry
        self._persistence = persistence
        #: What is followed of the other consciences, shown by ``/status``.
        self.hub: Hub | None = None
        self._logger = logger
        self._cache: dict[bool, tuple[int, bytes]] = {}
        self.router = Router()
        for method, path, handler in (
            ("GET", "/v1/snapshot", self.snapshot),
            ("GET", "/v1/services", self.services),
            ("GET", "/v1/types", self.types),
            ("GET", "/v1/info", self.info),
            ("POST", "/v1/push", self.push),
            ("POST", "/v1/deregister", self.deregister),
            ("POST", "/v1/flush", self.flush),
            ("GET", "/v1/ping", self.ping),
            ("POST", "/v1/ping", self.ping),
            ("GET", "/status", self.status),
            ("GET", "/metrics", self.metrics),
        ):
            self.router.add(method, path, _guarded(handler))

    def snapshot(self, request: Request) -> Response:
        """Everything at one generation, or 304 when the caller has it already."""
        full = _flag(request.query.get("full", "1"))
        known = request.query.get("generation")
        if known is not None and known == str(self._registry.generation):
            return Response(304)
        cached = self._cache.get(full)
        if cached is None or cached[0] != self._registry.generation:
            snapshot = self._registry.snapshot(full)
            cached = (snapshot.generation, msgspec.json.encode(snapshot))
            self._cache[full] = cached
        return Response(200, cached[1], _JSON)

    def services(self, request: Request) -> Response:
        """Services of one type."""
        full = _flag(request.query.get("full", "0"))
        return _json(self._registry.services_of(_type_of(request), full))

    def types(self, request: Request) -> Response:
        """Names of the service types."""
        return _json(self._registry.types)

    def info(self, request: Request) -> Response:
        """Policies, pools and securities."""
        return _json(self._registry.namespace_info())

    def push(self, request: Request) -> Response:
        """Register, lock or unlock services, each according to its score."""
        services = _services_of(request)
        important = self._registry.push(services)
        if important:
            self._save()
        return Response(204)

    def deregister(self, request: Request) -> Response:
        """Forget services."""
        count = self._registry.deregister(_services_of(request))
        if count:
            self._save()
        return Response(204)

    def flush(self, request: Request) -> Response:
        """Forget all services of a type."""
        kind = _type_of(request)
        count = self._registry.flush(kind)
        self._logger.info("flushed %d services of type %s [%s]", count, kind, request.reqid)
        self._save()
        return Response(204)

    def ping(self, request: Request) -> Response:
        """Alive."""
        return Response(204)

    def status(self, request: Request) -> Response:
        """Counts, for people and tools."""
        return _json(self._statistics())

    def metrics(self, request: Request) -> Response:
        """Counts and scores, for Prometheus."""
        from oio.common.metrics import CONTENT_TYPE, Metric, render

        counts = self._statistics()
        families = [
            Metric("conscience_pushes", "counter", "Services pushed", [({}, counts["pushes"])]),
            Metric(
                "conscience_expirations", "counter", "Services zeroed for their silence",
                [({}, counts["expirations"])],
            ),
            Metric(
                "conscience_persistence_failures", "counter", "Saves that failed",
                [({}, counts["persistence_failures"])],
            ),
            Metric(
                "conscience_services", "gauge", "Known services by type and state",
                [
                    ({"type": kind, "state": state}, count)
                    for kind, states in counts["services"].items()
                    for state, count in states.items()
                ],
            ),
            Metric(
                "conscience_score", "gauge", "Score of each service",
                [
                    ({"type": kind, "addr": addr}, score)
                    for kind, scores in self._registry.scores().items()
                    for addr, score in scores.items()
                ],
            ),
        ]
        if self.hub is not None:
            peers = self.hub.status().items()
            families.append(
                Metric(
                    "conscience_hub_connected", "gauge", "Whether each other conscience is followed",
                    [({"peer": peer}, int(state["connected"])) for peer, state in peers],
                )
            )
        return Response(200, render(families), [("Content-Type", CONTENT_TYPE)])

    def _statistics(self) -> dict[str, Any]:
        counts = self._registry.statistics()
        counts["saves"] = self._persistence.saves if self._persistence else 0
        counts["persistence_failures"] = self._persistence.failures if self._persistence else 0
        counts["hub"] = self.hub.status() if self.hub else {}
        return counts

    def _save(self) -> None:
        if self._persistence is not None:
            self._persistence.save()


class Clockwork:
    """The background thread: expires silent services and saves the state periodically."""

    def __init__(
        self, registry: Registry, persistence: Persistence | None, save_period_s: float,
        logger: logging.Logger,
    ) -> None:
        self._registry = registry
        self._persistence = persistence
        self._save_period_s = save_period_s
        self._logger = logger
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clockwork", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """End; the last state is saved."""
        self._stopping.set()
        self._thread.join(grace_s)
        if self._persistence is not None:
            self._persistence.save_if_changed()

    def _run(self) -> None:
        since_save_s = 0.0
        while not self._stopping.wait(EXPIRATION_PERIOD_S):
            since_save_s += EXPIRATION_PERIOD_S
            try:
                self._registry.expire()
                if self._persistence is not None and since_save_s >= self._save_period_s:
                    since_save_s = 0.0
                    self._persistence.save_if_changed()
            except Exception:
                # A defect here must not silently end expirations for good: say it, and go on.
                self._logger.exception("expiration or save failed")


def make_server(
    conscience: ConscienceServer, listen: tuple[str, int], threads_max: int = THREADS_MAX
) -> Server:
    """HTTP server of a conscience, not started."""
    config = ServerConfig(
        max_body_bytes=BODY_MAX_BYTES, max_threads=threads_max, access_log=_log_refusal
    )
    return Server(conscience.router, [listen], config)


def _log_refusal(request: Request, response: Response, _duration_us: int) -> None:
    """Registrations come every second from everywhere: only what fails is worth a line."""
    if response.status >= 400:
        logging.getLogger("oio.conscience").warning(
            "%s %s from %s answered %d %s [%s]",
            request.method, request.target, request.peer, response.status, response.body, request.reqid,
        )  # fmt: skip


def _guarded(handler: Callable[[Request], Response]) -> Callable[[Request], Response]:
    def guarded(request: Request) -> Response:
        try:
            return handler(request)
        except StatusError as exc:
            body = {"status": exc.code, "message": exc.message}
            return Response(status.http_status(exc.code), msgspec.json.encode(body), _JSON)

    return guarded


def _json(value: object) -> Response:
    return Response(200, msgspec.json.encode(value), _JSON)


def _flag(text: str) -> bool:
    return text.lower() in _FLAG_VALUES


def _type_of(request: Request) -> str:
    kind = request.query.get("type")
    if not kind:
        raise StatusError(status.BAD_REQUEST, "Missing service type")
    return kind


def _services_of(request: Request) -> list[ServiceDef]:
    body = request.read_all(BODY_MAX_BYTES)
    if body.lstrip()[:1] == b"{":
        body = b"[" + body + b"]"
    try:
        return _decode_services(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise StatusError(status.BAD_REQUEST, f"Invalid service: {exc}") from None


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``oio-conscience`` (and of ``oio-daemon``, its old name)."""
    parser = service.command_line("oio-conscience", "Registry of the services of a namespace")
    parser.add_argument("-O", dest="options", action="append", default=[], metavar="KEY=VALUE",
                        help="PersistencePath=FILE, PersistencePeriod=SECONDS")
    parser.add_argument("-s", dest="syslog_id", metavar="ID", help="identifier of the lines sent to syslog")
    parser.add_argument("-v", "--verbose", action="store_true", help="debug logs")
    parser.add_argument("config", help="INI file")
    args = parser.parse_args(argv)
    service.setup_logging(args.syslog_id, "DEBUG" if args.verbose else "INFO")
    try:
        options = {key.lower(): value for key, value in service.parse_dash_o(args.options)}
        period_s = float(options.pop("persistenceperiod", PERSISTENCE_PERIOD_DEFAULT_S))
        path = options.pop("persistencepath", "")
        if options:
            raise ValueError(f"unknown option {', '.join(sorted(options))}")
        return _serve(load_settings(args.config), path, period_s)
    except (ValueError, OSError, ConfigurationException) as exc:
        print(f"oio-conscience: {exc}", file=sys.stderr)
        return 1


def _serve(settings: Settings, path: str, period_s: float) -> int:
    logger = logging.getLogger("oio.conscience")
    registry = Registry(settings, logger)
    persistence = Persistence(registry, path, settings.namespace, logger) if path else None
    if persistence is not None:
        logger.info("%d services restored from %s", persistence.load(), path)
    conscience = ConscienceServer(registry, persistence, logger)
    hub, threads = None, THREADS_MAX
    if settings.hub is not None and settings.hub.listen == settings.listen:
        hub = Hub(settings.hub, registry, persistence, conscience.router)
        threads += Hub.threads_of(settings.hub)
    elif settings.hub is not None:
        hub = Hub(settings.hub, registry, persistence)
    conscience.hub = hub
    server = make_server(conscience, settings.listen, threads)
    clockwork = Clockwork(registry, persistence, period_s, logger)
    # The hub starts first: nobody is answered before the other consciences told what they know. The clockwork
    # stops last, so that the last save holds the last registration.
    if hub is None:
        return service.run_until_stopped([server, clockwork], name="conscience")
    return service.run_until_stopped([hub, server, clockwork], [hub.close], name="conscience")


if __name__ == "__main__":
    sys.exit(main())
