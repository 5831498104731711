# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the meta services share: command line, volume, HTTP routes, errors, statistics.

>>> process = open_process("meta2")                       # doctest: +SKIP
>>> repository = open_repository(process, META2)          # doctest: +SKIP
>>> serve(process, handlers, repository)                  # doctest: +SKIP

``handlers`` maps each operation (see :mod:`oio.meta.messages`) to a function of (request, context). The
function returns the reply or raises ``StatusError``; everything else about HTTP is done here.
"""

from __future__ import annotations

import configparser
import ctypes
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import apsw
import msgspec

from oio import __version__
from oio.common import status
from oio.common.configuration import load_namespace_conf, one_line
from oio.common.metrics import CONTENT_TYPE, Metric, render
from oio.common.open_files import raise_files_limit
from oio.common.service import command_line, parse_address, parse_dash_o, run_until_stopped, setup_logging
from oio.common.status import StatusError, http_status
from oio.common.variables import Variables, parse_boolean
from oio.common.volume_lock import VolumeLock, lock_volume
from oio.event.queue import producer_url
from oio.event.routing import RoutedQueue, emission_url
from oio.http.errors import HttpError
from oio.http.messages import Request, Response
from oio.http.server import Server, ServerConfig
from oio.meta import bases
from oio.meta.base import SYNC_LEVELS, BaseOptions
from oio.meta.base_type import BaseType
from oio.meta.client import LOCAL_HEADER, OPERATION_HEADER, PEERS_HEADER, SUSPECTS_HEADER, Route
from oio.meta.context import NO_ROUTE, Context
from oio.meta.dump import ROUTE, Dumps, requested_base
from oio.meta.messages import ErrorReply, Operation
from oio.meta.outbox import EventSink
from oio.meta.replication.operations import AlreadyDone
from oio.meta.replication.wire import CopyRequest, GroupVote
from oio.meta.repository import Repository
from oio.zk.tree import ensembles_of

if TYPE_CHECKING:
    from oio.meta.replication.engine import Replication

logger = logging.getLogger("oio.meta.server")

Handler = Callable[[Any, Context], Any]

MSGPACK = [("Content-Type", "application/msgpack")]
JSON = [("Content-Type", "application/json")]
#: Files that an open base uses at most: base, WAL and index of its writer, base and WAL of its readers.
FILES_PER_BASE = 12
#: Descriptors wanted by the process: the soft limit is raised up to this when the system allows it.
FILES_WANTED = 65536

#: malloc.h
_M_ARENA_MAX = -8

#: Elections that are left at once, when nothing else is said.
BALANCE_MAX = 100

_NO_ELECTION = {"total": 0, "none": 0, "pending": 0, "failed": 0, "slave": 0, "master": 0}
_OPERATION = re.compile(r"^[0-9A-Za-z-]{0,64}\Z")

_encode = msgspec.msgpack.Encoder().encode


# --- the routes ---------------------------------------------------------------------------------------


class _Route:
    """One operation: how to decode it, what answers, and what it cost so far."""

    __slots__ = ("count", "decode", "handler", "seconds")

    def __init__(self, operation: type[Operation], handler: Handler) -> None:
        self.decode = msgspec.msgpack.Decoder(operation).decode
        self.handler = handler
        self.count = 0
        self.seconds = 0.0


class MetaApplication:
    """The HTTP side of a meta service: give it to :class:`oio.http.server.Server`."""

    def __init__(
        self,
        service_type: str,
        namespace: str,
        handlers: Mapping[type[Operation], Handler],
        variables: Variables,
        repository: Repository | None = None,
        on_config: Callable[[str], None] | None = None,
    ) -> None:
        self._type = service_type
        self._namespace = namespace
        self._meta2 = service_type == "meta2"
        self._variables = variables
        self._repository = repository
        self._on_config = on_config
        if repository is not None:
            handlers = {**bases.handlers(repository), **_copies(repository), **handlers}
        #: Requests that may wait for peers at a time; None when no base has copies.
        self._callers: threading.BoundedSemaphore | None = None
        if repository is not None and repository.replication is not None:
            threads = variables["server.pool.max_threads"]
            self._callers = threading.BoundedSemaphore(max(1, threads * 2 // 3))
        self._routes = {
            "/v1/" + operation.operation(): _Route(operation, handler)
            for operation, handler in handlers.items()
        }
        self._errors: dict[int, int] = {}
        self._others: dict[tuple[str, str], Callable[[Request], Response]] = {
            ("GET", "/status"): self._status,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/stats"): self._stats,
            ("POST", "/v1/ping"): self._ping,
            ("GET", "/v1/ping"): self._ping,
            ("GET", "/config"): self._get_config,
            ("POST", "/config"): self._set_config,
            ("POST", "/v1/kill"): self._kill,
            ("POST", "/v1/lean_glib"): self._lean_glib,
            ("POST", "/v1/lean_sqlx"): self._lean_sqlx,
            ("POST", "/v1/balance_masters"): self._balance_masters,
        }
        if repository is not None:
            self._dumps = Dumps(repository)
            self._others["GET", ROUTE] = self._dump
        #: The server itself, once it exists: only for the number of its connections.
        self.server: Server | None = None

    def __call__(self, request: Request) -> Response:
        """Answer one request."""
        route = self._routes.get(request.path)
        if route is None or request.method != "POST":
            return self._answer_other(request)
        begin = time.monotonic()
        headers = request.headers
        try:
            message = route.decode(request.read_all())
            context = Context(
                self._namespace,
                request.reqid,
                headers.get("user-agent", ""),
                "x-oio-admin" in headers and parse_boolean(headers["x-oio-admin"]),
                _deadline(request, begin),
                _route(headers) if PEERS_HEADER in headers or LOCAL_HEADER in headers else NO_ROUTE,
            )
            if self._callers is None:
                reply = route.handler(message, context)
            else:
                reply = self._answer_or_refuse(route, message, context)
        except AlreadyDone as exc:
            return Response(200, exc.reply, MSGPACK) if exc.reply else Response(204)
        except StatusError as exc:
            return self._failure(exc.code, exc.message)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            return self._failure(status.BAD_REQUEST, f"Invalid request: {exc}")
        except HttpError:
            raise
        except Exception as exc:
            logger.exception("%s failed, request %s", request.path, request.reqid or "-")
            return self._failure(status.INTERNAL_ERROR, f"Internal error: {type(exc).__name__}")
        finally:
            route.count += 1
            route.seconds += time.monotonic() - begin
        if reply is None:
            return Response(204)
        return Response(200, _encode(reply), MSGPACK)

    def _answer_or_refuse(self, route: _Route, message: Any, context: Context) -> Any:
        """Answer a request that may wait for peers, unless too many do: peers that wait for us need threads."""
        assert self._callers is not None
        if isinstance(message, CopyRequest | GroupVote):
            return route.handler(message, context)
        if not self._callers.acquire(blocking=False):
            raise StatusError(status.EXCESSIVE_LOAD, "too many requests wait for the peers of their bases")
        try:
            return route.handler(message, context)
        finally:
            self._callers.release()

    def _failure(self, code: int, message: str) -> Response:
        self._errors[code] = self._errors.get(code, 0) + 1
        body = _encode(ErrorReply(status=code, message=message))
        return Response(http_status(code, self._meta2), body, MSGPACK)

    def _answer_other(self, request: Request) -> Response:
        answer = self._others.get((request.method, request.path))
        if answer is None:
            return self._failure(status.NO_HANDLER, "No handler found")
        return answer(request)

    def _ping(self, request: Request) -> Response:
        return Response(204)

    def _kill(self, request: Request) -> Response:
        logger.warning("told to end by %s, request %s", request.peer, request.reqid or "-")
        return Response(204, after_sent=lambda: os.kill(os.getpid(), signal.SIGTERM))

    def _lean_glib(self, request: Request) -> Response:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        return Response(204)

    def _lean_sqlx(self, request: Request) -> Response:
        apsw.release_memory(apsw.memory_used())
        return Response(204)

    def _balance_masters(self, request: Request) -> Response:
        left = 0
        replication = self._repository.replication if self._repository is not None else None
        if replication is not None:
            try:
                leave_max, idle_s = int(request.query.get("max", "0")), float(request.query.get("inactivity", "0"))
            except ValueError:
                return self._json_failure("Invalid parameter 'max' or 'inactivity', not a number")
            left = replication.balance(leave_max or BALANCE_MAX, idle_s)
        return Response(200, str(left).encode(), [("Content-Type", "text/plain")])

    def _status(self, request: Request) -> Response:
        return Response(200, msgspec.json.encode(self.information()), JSON)

    def _metrics(self, request: Request) -> Response:
        return Response(200, render(self.metrics()), [("Content-Type", CONTENT_TYPE)])

    def _stats(self, request: Request) -> Response:
        lines = [f"{name} {value}" for name, value in self.statistics()]
        return Response(200, ("\n".join(lines) + "\n").encode(), [("Content-Type", "text/plain")])

    def _dump(self, request: Request) -> Response:
        begin = time.monotonic()
        try:
            base_name, draft = requested_base(request)
            return self._dumps.answer(base_name, _deadline(request, begin), draft)
        except StatusError as exc:
            return self._failure(exc.code, exc.message)

    def _get_config(self, request: Request) -> Response:
        return Response(200, msgspec.json.encode(self._variables.as_text()), JSON)

    def _set_config(self, request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(request.read_all(), type=dict[str, str | int | float | bool])
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            return self._json_failure(f"Invalid configuration: {exc}")
        if not wanted:
            return self._json_failure("Empty configuration")
        done = {name: self._variables.set(name, value) for name, value in wanted.items()}
        if self._on_config is not None:
            for name, changed in done.items():
                if changed:
                    self._on_config(name)
        return Response(200, msgspec.json.encode(done), JSON)

    @staticmethod
    def _json_failure(message: str) -> Response:
        body = {"status": status.BAD_REQUEST, "message": message}
        return Response(400, msgspec.json.encode(body), JSON)

    # --- what the service says of itself ----------------------------------------------------------

    def information(self) -> dict[str, Any]:
        """The answer of ``/status`` (contract: "Answer of forward/info")."""
        bases = self._repository.stats() if self._repository is not None else {}
        replication = self._repository.replication if self._repository is not None else None
        return {
            "sqlite": [
                f"VERSION_COMPILED={apsw.SQLITE_VERSION_NUMBER}",
                f"VERSION_RUNTIME={apsw.sqlite_lib_version()}",
                "THREADSAFE=1",
            ],
            "sqliterepo": {
                "width": self._repository.type.directory_width if self._repository else 0,
                "depth": 1,
                "vacuum": "none",
                "delete": "on",
            },
            "replication": "NONE" if replication is None else "QUORUM",
            "elections": dict(_NO_ELECTION) if replication is None else replication.elections(),
            "cache": {
                "max": bases.get("max", 0),
                "soft_max": bases.get("max", 0),
                "hot": 0,
                "cold": bases.get("open", 0) - bases.get("used", 0),
                "used": bases.get("used", 0),
            },
            "server": {
                "threads": {"active": bases.get("used", 0)},
                "connections": {"clients": self.server.connections_count if self.server else 0},
            },
            "version": __version__,
        }

    def statistics(self) -> list[tuple[str, str]]:
        """Counters as (name, value), times in microseconds."""
        lines = []
        hits, spent = 0, 0.0
        for path, route in self._routes.items():
            name = path[4:]
            hits, spent = hits + route.count, spent + route.seconds
            lines.append((f"counter req.hits.{name}", str(route.count)))
            lines.append((f"counter req.time.{name}", str(int(route.seconds * 1e6))))
        lines.append(("counter req.hits", str(hits)))
        lines.append(("counter req.time", str(int(spent * 1e6))))
        if self._repository is not None:
            lines += [(f"gauge bases.{k}", str(v)) for k, v in self._repository.stats().items()]
            lines += [(f"gauge events.{k}", str(v)) for k, v in self._repository.outbox.depth().items()]
        return lines

    def metrics(self) -> list[Metric]:
        """Families of ``/metrics``."""
        routes = {path[4:]: route for path, route in self._routes.items()}
        families = [
            Metric(
                "oio_meta_requests", "counter", "Requests answered, by operation",
                [({"operation": name}, route.count) for name, route in routes.items()],
            ),
            Metric(
                "oio_meta_request_seconds", "counter", "Time spent on requests, by operation",
                [({"operation": name}, route.seconds) for name, route in routes.items()],
            ),
            Metric(
                "oio_meta_errors", "counter", "Errors answered, by internal code",
                [({"code": str(code)}, count) for code, count in dict(self._errors).items()],
            ),
        ]
        if self._repository is not None:
            families.append(
                Metric(
                    "oio_meta_bases", "gauge", "Bases: limit, open, used, evicted so far",
                    [({"state": k}, v) for k, v in self._repository.stats().items()],
                )
            )
            families.append(
                Metric(
                    "oio_meta_outbox", "gauge", "Events on their way to the queue",
                    [({"what": k}, v) for k, v in self._repository.outbox.depth().items()],
                )
            )
            if self._repository.replication is not None:
                from oio.meta.replication import figures

                families += figures.metrics(self._repository.replication)
        return families


def _copies(repository: Repository) -> bases.Handlers:
    """Handlers of what concerns copies and elections."""
    if repository.replication is None:
        return bases.single_copy_handlers(repository)
    from oio.meta.replication.serving import Copies

    return Copies(repository, repository.replication).handlers()


def _route(headers: Mapping[str, str]) -> Route:
    """What a caller says of the copies of the base. :raises StatusError: 400 for what makes no sense."""
    operation = headers.get(OPERATION_HEADER, "")
    if not _OPERATION.match(operation):
        raise StatusError(status.BAD_REQUEST, f"Invalid header {OPERATION_HEADER!r}: {operation[:64]!r}")
    return Route(
        _words(headers.get(PEERS_HEADER, "")),
        _words(headers.get(SUSPECTS_HEADER, "")),
        operation,
        parse_boolean(headers.get(LOCAL_HEADER, "")),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(sorted({word for word in text.split(",") if word})) if text else ()


def _deadline(request: Request, begin: float) -> float | None:
    """Moment set by ``x-oio-timeout`` (microseconds). :raises StatusError: 400 when it is no number."""
    text = request.headers.get("x-oio-timeout")
    if text is None:
        return None
    try:
        return begin + int(text) / 1e6
    except ValueError:
        raise StatusError(status.BAD_REQUEST, f"Invalid header 'x-oio-timeout': {text[:32]!r}") from None


# --- the process --------------------------------------------------------------------------------------


@dataclass
class MetaProcess:
    """What the command line and the configuration say of a meta service."""

    type: str
    namespace: str
    volume: str
    host: str
    port: int
    service_id: str
    conf: dict[str, str]
    variables: Variables
    locks: list[VolumeLock] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Under which others know the service: its id, its address."""
        address = f"{self.host}:{self.port}"
        return [self.service_id] if self.service_id == address else [self.service_id, address]


def open_process(service_type: str, argv: Sequence[str] | None = None) -> MetaProcess:
    """Read command line and configuration, set the logs up, lock the volume.

    Leaves the program with a message when something is wrong.
    """
    parser = command_line(f"oio-{service_type}-server", f"{service_type} service of one volume.")
    parser.add_argument(
        "-O", dest="options", action="append", default=[], metavar="KEY=VALUE",
        help="Endpoint=IP:PORT (mandatory), ServiceId=ID, Config=FILE, SysConfig=on|off",
    )
    parser.add_argument("-s", "--syslog-id", default="", help="identifier in syslog")
    parser.add_argument("-v", "--verbose", action="store_true", help="debug logs")
    parser.add_argument("namespace", metavar="NS")
    parser.add_argument("volume", metavar="VOLUME")
    words = parser.parse_args(argv)
    try:
        options = {key.lower(): value for key, value in parse_dash_o(words.options)}
        try:
            host, port = parse_address(options.pop("endpoint", ""))
        except ValueError as exc:
            raise ValueError(f"-O Endpoint=IP:PORT is wanted: {exc}") from exc
        service_id = options.pop("serviceid", "") or f"{host}:{port}"
        conf = read_configuration(
            words.namespace, options.pop("config", ""), parse_boolean(options.pop("sysconfig", "on"))
        )
        if options:
            raise ValueError(f"unknown option {', '.join(options)}")
        setup_logging(words.syslog_id or None, "DEBUG" if words.verbose else "INFO")
        if not words.verbose:
            # A line per request costs as much as a small read: wanted only when one looks for something.
            logging.getLogger("oio.access").setLevel(logging.WARNING)
        variables = Variables(conf)
        for error in variables.errors:
            logger.error("configuration: %s", error)
        if variables["sqliterepo.sync"] not in SYNC_LEVELS:
            raise ValueError(f"sqliterepo.sync: {variables['sqliterepo.sync']!r}")
        os.makedirs(words.volume, exist_ok=True)
        lock = lock_volume(words.volume, words.namespace, service_type, service_id)
    except (ValueError, OSError, configparser.Error) as exc:
        print(f"{parser.prog}: {one_line(exc)}", file=sys.stderr)
        sys.exit(1)
    return MetaProcess(
        service_type, words.namespace, words.volume, host, port, service_id, conf, variables, [lock]
    )


def read_configuration(namespace: str, path: str, use_system: bool) -> dict[str, str]:
    """Options of the namespace: those of the system, then those of a file of our own."""
    conf: dict[str, str] = {}
    if use_system:
        conf.update(load_namespace_conf(namespace, failsafe=True))
    if path:
        parser = configparser.ConfigParser(default_section="default", interpolation=None)
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
        section = namespace if parser.has_section(namespace) else "default"
        conf.update(parser.items(section))
    return conf


def _open_replication(process: MetaProcess) -> Replication | None:
    """The copies of the bases of a service; None without ZooKeeper, whose client is then not even loaded."""
    if not ensembles_of(process.conf, process.type):
        return None
    from oio.meta.replication.assembly import open_replication

    return open_replication(
        process.type, process.namespace, process.names, process.volume, process.conf, process.variables
    )


def open_repository(process: MetaProcess, base_type: BaseType) -> Repository:
    """The bases of the volume. Without ``event-agent`` in the configuration no event is stored."""
    _share_heap()
    variables = process.variables
    url = process.conf.get("event-agent", "").strip()
    queue: EventSink | None = None
    if url:
        target = emission_url(producer_url(url, process.type, process.service_id), variables)
        queue = RoutedQueue(target, variables)
    else:
        logger.warning("no event-agent in the configuration: events are not emitted")
    open_max = min(variables["sqliterepo.repo.hard_max"], raise_files_limit(FILES_WANTED) // FILES_PER_BASE)
    return Repository(
        process.volume,
        base_type,
        options=BaseOptions(
            sync=variables["sqliterepo.sync"],
            wait_s=variables["sqliterepo.cache.timeout.open"],
            waiting_max=variables["sqliterepo.cache.waiting.max"],
            page_size=variables["sqliterepo.page_size"],
        ),
        open_max=max(1, open_max),
        queue=queue,
        events_memory_max=variables["events.common.pending.max"],
        state_delay_s=variables["events.common.pending.delay"],
        replication=_open_replication(process),
    )


def serve(
    process: MetaProcess,
    handlers: Mapping[type[Operation], Handler],
    repository: Repository | None = None,
    on_stop: Iterable[Callable[[], object]] = (),
) -> int:
    """Answer until SIGTERM; then close the bases and release the volume."""
    variables = process.variables
    application = MetaApplication(
        process.type, process.namespace, handlers, variables, repository
    )
    config = ServerConfig(
        max_threads=variables["server.pool.max_threads"],
        timeout_idle_s=variables["server.cnx.timeout.idle"],
        max_body_bytes=variables["server.request.max_size"],
    )
    server = application.server = Server(application, [(process.host, process.port)], config)
    last: list[Callable[[], object]] = [*on_stop]
    if repository is not None:
        if repository.replication is not None:
            # The outbox deletes what it delivered, and what is led here can only be written while peers are asked.
            last += [repository.outbox.stop, repository.replication.stop]
        last.append(repository.close)
    last += [lock.release for lock in process.locks]
    return run_until_stopped(
        [server], last, name=process.type, verbose_s=lambda: variables["common.verbosity.reset_delay"]
    )


def _share_heap() -> None:
    """One heap for all threads: with one each, memory freed by a thread stays unused by the others (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


