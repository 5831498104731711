# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Routes of the reverse directory, and its process.

Checks come in this order: the route (404), the JSON of the body if there is one (400), the method (405), the
parameters (400), then what the store says. The inner ``status`` of an error is a code of :mod:`oio.common.status`
and may differ from the HTTP one.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from oio.common import status
from oio.common.metrics import CONTENT_TYPE, Metric, render
from oio.common.status import StatusError
from oio.common.variables import FALSE_WORDS, TRUE_WORDS, Variables
from oio.http.server import BodyError, HttpError, Request, Response
from oio.rdir import messages
from oio.rdir.store import LIMIT_DEFAULT, LIMIT_MAX, Change, ChunkVolume, Store, change

BODY_BYTES_MAX = 64 * 2**20
JSON = [("Content-Type", "application/json")]
TRUNCATED_HEADER, MARKER_HEADER = "x-oio-list-truncated", "x-oio-list-marker"

# Requests that are not logged when they succeed: there would be one line per chunk of the cluster.
QUIET_ROUTES = frozenset(
    {
        "/status",
        "/config",
        "/metrics",
        "/v1/rdir/admin/show",
        "/v1/rdir/push",
        "/v1/rdir/delete",
        "/v1/rdir/push-many",
        "/v1/rdir/delete-many",
        "/v1/rdir/meta2/push",
        "/v1/rdir/meta2/delete",
    }
)
_HTTP_STATUS = {
    status.BAD_PARAMETER: 400,
    status.NO_HANDLER: 404,
    status.FORBIDDEN: 403,
    status.UNAVAILABLE: 503,
    status.EXCESSIVE_LOAD: 503,
}
_RETRY_AFTER_S = "1"
# What decoders raise; the last one of bodies that are nested too deep.
_BAD_BODY = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]").search

Handler = Callable[[Request, bytes], Response]

logger = logging.getLogger("oio.rdir")
_access_logger = logging.getLogger("oio.access")

_chunk_record = msgspec.json.Decoder(messages.ChunkRecord).decode
_chunk_records = msgspec.json.Decoder(messages.ChunkRecords).decode
_anything = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class BadParameter(Exception):
    """Raised by handlers when the request lacks something (HTTP 400)."""


class RdirService:
    """Answers requests over one store: this is the handler of the HTTP server.

    :param service_id: told by ``/status``, when there is one.
    """

    def __init__(self, store: Store, variables: Variables | None = None, service_id: str = "") -> None:
        self.store = store
        self.service_id = service_id
        self.variables = variables or Variables()
        self.requests = 0
        self.records = {"push": 0, "delete": 0, "fetch": 0}
        self.errors: dict[int, int] = {}
        self._routes: dict[str, dict[str, Handler]] = {}
        route = self._route
        route("/status", self.show_status, "GET")
        route("/config", self.show_config, "GET")
        route("/config", self.set_config, "POST")
        route("/metrics", self.metrics, "GET")
        route("/v1/status", self.show_admin, "GET")
        route("/v1/rdir/admin/show", self.show_admin, "GET")
        route("/v1/rdir/create", self.create, "POST")
        route("/v1/rdir/push", self.push, "POST")
        route("/v1/rdir/push-many", self.push_many, "POST")
        route("/v1/rdir/delete", self.delete, "DELETE")
        route("/v1/rdir/delete-many", self.delete_many, "POST")
        route("/v1/rdir/fetch", self.fetch, "POST")
        route("/v1/rdir/status", self.volume_status, "GET", "POST")
        route("/v1/rdir/admin/lock", self.lock, "POST")
        route("/v1/rdir/admin/unlock", self.unlock, "POST")
        route("/v1/rdir/admin/incident", self.incident, "GET")
        route("/v1/rdir/admin/incident", self.set_incident, "POST")
        route("/v1/rdir/admin/clear", self.clear, "POST")
        route("/v1/rdir/meta2/create", self.create_meta2, "POST")
        route("/v1/rdir/meta2/push", self.push_meta2, "POST")
        route("/v1/rdir/meta2/delete", self.delete_meta2, "POST")
        route("/v1/rdir/meta2/fetch", self.fetch_meta2, "POST")

    def _route(self, path: str, handler: Handler, *methods: str) -> None:
        for method in methods:
            self._routes.setdefault(path, {})[method] = handler

    def routes(self) -> list[tuple[str, list[str]]]:
        """All the paths, each with its methods."""
        return [(path, sorted(handlers)) for path, handlers in sorted(self._routes.items())]

    def __call__(self, request: Request) -> Response:
        """Answer a request."""
        self.requests += 1
        begin = time.perf_counter()
        response = self._answer(request)
        request.context = time.perf_counter() - begin
        if response.status >= 400:
            self.errors[response.status] = self.errors.get(response.status, 0) + 1
        return response

    def _answer(self, request: Request) -> Response:
        handlers = self._routes.get(request.path)
        if handlers is None:
            return failure(404, status.BAD_REQUEST, "Route not managed")
        body = request.read_all(BODY_BYTES_MAX)
        handler = handlers.get(request.method)
        try:
            if handler is None:
                if body:
                    _anything(body)
                return failure(405, status.BAD_REQUEST, "Bad method")
            return handler(request, body)
        except _BAD_BODY as exc:
            return failure(400, status.BAD_REQUEST, _what_is_wrong(body, exc))
        except BodyError:
            raise
        except HttpError as exc:
            return failure(exc.status, status.BAD_REQUEST, exc.message)
        except BadParameter as exc:
            return failure(400, status.BAD_REQUEST, str(exc))
        except StatusError as exc:
            return failure(_HTTP_STATUS.get(exc.code, 500), exc.code, exc.message)

    # --- the service ---

    def show_status(self, _request: Request, body: bytes) -> Response:
        """How many chunk databases are open."""
        _ignored(body)
        answer: dict[str, Any] = {"opened_db_count": self.store.opened_count}
        if self.service_id:
            answer["service_id"] = self.service_id
        return _json(answer)

    def show_config(self, _request: Request, body: bytes) -> Response:
        """All the variables."""
        _ignored(body)
        return _json(self.variables.as_text())

    def set_config(self, _request: Request, body: bytes) -> Response:
        """Change variables; tells for each whether that was possible."""
        if not body:
            raise BadParameter("Empty configuration")
        wanted = msgspec.json.decode(body, type=dict[str, str | int | float | bool])
        return _json({name: self.variables.set(name, value) for name, value in wanted.items()})

    def metrics(self, _request: Request, body: bytes) -> Response:
        """Figures in the text format of Prometheus."""
        _ignored(body)
        return Response(200, render(self._metrics()), [("Content-Type", CONTENT_TYPE)])

    def _metrics(self) -> Iterable[Metric]:
        yield Metric("oio_rdir_requests", "counter", "Requests", [({}, self.requests)])
        errors = [({"status": str(code)}, float(count)) for code, count in sorted(self.errors.items())]
        yield Metric("oio_rdir_errors", "counter", "Requests that failed, by HTTP status", errors)
        handled = [({"action": name}, float(count)) for name, count in self.records.items()]
        yield Metric("oio_rdir_records_handled", "counter", "Chunk records pushed, deleted, fetched", handled)
        engines = [
            ({"kind": kind, "volume": volume}, engine, engine.info())
            for kind, volume, engine in self.store.engines()
        ]
        for name, title in (("file_bytes", "Size of the database"), ("map_bytes", "Size of its map")):
            samples = [(labels, float(info[name])) for labels, _engine, info in engines]
            yield Metric(f"oio_rdir_{name}", "gauge", title, samples)
        entries = [
            ({**labels, "table": table}, float(info[table]))
            for labels, engine, info in engines
            for table in engine.dbs
        ]
        yield Metric("oio_rdir_entries", "gauge", "Entries of each table", entries)
        commits = [(labels, float(engine.commits)) for labels, engine, _info in engines]
        yield Metric("oio_rdir_commits", "counter", "Commits", commits)
        writes = [(labels, float(engine.writes)) for labels, engine, _info in engines]
        yield Metric("oio_rdir_writes", "counter", "Requests that these commits held", writes)

    # --- records of chunks ---

    def create(self, request: Request, body: bytes) -> Response:
        """Create the database of a volume, unless it exists."""
        _ignored(body)
        self.store.chunks(_volume(request), create=True)
        return Response(201)

    def push(self, request: Request, body: bytes) -> Response:
        """Add a record."""
        # Before the database is created: a request that is refused changes nothing.
        pushed = _change(_chunk_record(_needed(body)))
        self._chunks(request, create=_flag(request, "create")).push((pushed,))
        self.records["push"] += 1
        return Response(204)

    def push_many(self, request: Request, body: bytes) -> Response:
        """Add records, all of them or none."""
        changes = [_change(record) for record in _chunk_records(_needed(body)).records]
        self._chunks(request, create=_flag(request, "create")).push(changes)
        self.records["push"] += len(changes)
        return Response(204)

    def delete(self, request: Request, body: bytes) -> Response:
        """Remove a record."""
        record = _chunk_record(_needed(body))
        self._chunks(request).delete((_change(record),))
        self.records["delete"] += 1
        return Response(204)

    def delete_many(self, request: Request, body: bytes) -> Response:
        """Remove records, all of them or none."""
        found = _chunk_records(_needed(body)).records
        self._chunks(request).delete(map(_change, found))
        self.records["delete"] += len(found)
        return Response(204)

    def fetch(self, request: Request, body: bytes) -> Response:
        """List records: one page."""
        options = _optional(body, messages.FetchOptions)
        query = request.query
        base = self._chunks(request)
        page = base.fetch(
            query.get("marker", options.start_after),
            query.get("prefix", options.container_id or ""),
            _limit(query.get("max"), options.limit),
            _flag(request, "rebuild", bool(options.rebuild)),
        )
        self.records["fetch"] += len(page.items)
        listing = [(text, {"mtime": mtime}) for text, mtime in page.items]
        return Response(200, _encode(listing), _page_headers(page.marker))

    def volume_status(self, request: Request, body: bytes) -> Response:
        """Count the records of one page."""
        _ignored(body)
        query = request.query
        answer, marker = self._chunks(request).status(
            query.get("marker"), query.get("prefix", ""), _limit(query.get("max"), None)
        )
        return Response(200, _encode(answer), _page_headers(marker))

    # --- administration ---

    def show_admin(self, request: Request, body: bytes) -> Response:
        """All the administrative entries."""
        _ignored(body)
        return _json(self._chunks(request).show())

    def lock(self, request: Request, body: bytes) -> Response:
        """Take the lock of a volume."""
        who = msgspec.json.decode(_needed(body), type=messages.LockOwner).who
        volume = _volume(request)
        if not who:
            raise BadParameter("no lock owner")
        self.store.chunks(volume).lock(who)
        return Response(204)

    def unlock(self, request: Request, body: bytes) -> Response:
        """Release the lock of a volume."""
        _ignored(body)
        self._chunks(request).unlock()
        return Response(204)

    def incident(self, request: Request, body: bytes) -> Response:
        """Date of the incident."""
        _ignored(body)
        return _json({"date": self._chunks(request).incident()})

    def set_incident(self, request: Request, body: bytes) -> Response:
        """Declare an incident."""
        date = msgspec.json.decode(_needed(body), type=messages.IncidentDate).date
        self._chunks(request).set_incident(date)
        return Response(204)

    def clear(self, request: Request, body: bytes) -> Response:
        """Remove or repair records, and end the incident."""
        _ignored(body)
        base = self._chunks(request)
        flags = (_flag(request, name) for name in ("all", "before_incident", "repair"))
        return _json(base.clear(*flags))

    # --- records of containers ---

    def create_meta2(self, request: Request, body: bytes) -> Response:
        """Create the database of a meta2, unless it exists."""
        _ignored(body)
        self.store.containers(_volume(request), create=True)
        return Response(201)

    def push_meta2(self, request: Request, body: bytes) -> Response:
        """Add the record of a container; the database is created unless ``create`` is false."""
        volume = _meta2(request)
        record = msgspec.json.decode(_needed(body), type=messages.ContainerRecord)
        base = self.store.containers(volume, create=_flag(request, "create", True))
        base.push(
            record.container_url, record.container_id, record.mtime or 0, record.extra_data, record.when or 0
        )
        return Response(204)

    def delete_meta2(self, request: Request, body: bytes) -> Response:
        """Remove the record of a container."""
        volume = _meta2(request)
        record = msgspec.json.decode(_needed(body), type=messages.ContainerRecord)
        self.store.containers(volume).delete(record.container_url, record.when or 0)
        return Response(204)

    def fetch_meta2(self, request: Request, body: bytes) -> Response:
        """List the containers of a meta2: one page."""
        volume = _meta2(request)
        options = msgspec.json.decode(_needed(body), type=messages.ContainerFetchOptions)
        try:
            base = self.store.containers(volume)
        except StatusError as exc:
            # Clients of the 7.x series expect HTTP 400 here (contract: rdir, existence of databases).
            if exc.code != status.NO_HANDLER:
                raise
            return failure(400, exc.code, exc.message)
        records, truncated = base.fetch(
            options.prefix or "", options.marker or "", _limit(None, options.limit)
        )
        return _json({"records": records, "truncated": truncated})

    def _chunks(self, request: Request, create: bool = False) -> ChunkVolume:
        return self.store.chunks(_volume(request), create)


def failure(http_status: int, code: int, message: str) -> Response:
    """The answer that tells an error."""
    headers = JSON if http_status != 503 else [*JSON, ("Retry-After", _RETRY_AFTER_S)]
    return Response(http_status, _encode({"status": code, "message": message}), headers)


def refuse(error: HttpError) -> Response:
    """The answer to what is no request, or has a body that cannot be read."""
    return failure(error.status, status.BAD_REQUEST if error.status < 500 else error.status, error.message)


class AccessLog:
    """One line per request: our address, peer, method, status, microseconds, bytes, request id, URI, time of the
    handler.
    """

    def __init__(self, bind: str) -> None:
        self._bind = bind

    def __call__(self, request: Request, response: Response, duration_us: int) -> None:
        """Log that a request was answered."""
        if not _access_logger.isEnabledFor(logging.INFO):
            return
        if response.status < 400 and request.path in QUIET_ROUTES:
            return
        tail = ""
        if response.status >= 400 and isinstance(response.body, bytes):
            tail = f" e={response.body.decode('utf-8', 'replace')}"
        handler_us = int(request.context * 1e6) if isinstance(request.context, float) else 0
        _access_logger.info(
            "%s %s %s %d %d %d - %s %s t=%d%s",
            self._bind, request.peer or "-", request.method, response.status, duration_us, response.bytes_sent,
            request.reqid or "-", request.target, handler_us, tail,
        )  # fmt: skip


def _change(record: messages.ChunkRecord) -> Change:
    mtime = record.mtime or 0
    if record.rtime is not None:
        mtime = max(mtime, record.rtime)
    found = change(record.container_id, record.content_id, record.chunk_id, mtime, record.when or 0)
    if found.packed is None and _CONTROL(found.text):
        raise BadParameter("ids may not hold control characters: they travel in headers")
    if found.packed is None and (found.text.startswith(b" ") or found.text.endswith(b" ")):
        # A header loses them: the next page would go on elsewhere.
        raise BadParameter("a container id may not begin with a blank, a chunk id may not end with one")
    return found


def _volume(request: Request, what: str = "volume id") -> str:
    volume = request.query.get("vol")
    if not volume:
        raise BadParameter(f"no {what}")
    return volume


def _meta2(request: Request) -> str:
    return _volume(request, "meta2 id")


def _flag(request: Request, name: str, default: bool = False) -> bool:
    word = request.query.get(name, "").lower()
    if word in TRUE_WORDS:
        return True
    return False if word in FALSE_WORDS else default


def _limit(text: str | None, option: int | None) -> int:
    """Records of a page: the query has the last word; a text that is not a number counts as absent."""
    try:
        limit = int(text) if text else option or 0
    except ValueError:
        limit = option or 0
    return min(limit, LIMIT_MAX) if limit > 0 else LIMIT_DEFAULT


def _what_is_wrong(body: bytes, exc: Exception) -> str:
    """Fields are looked at while the body is read: its end may be wrong as well, which matters more."""
    try:
        _anything(body)
    except _BAD_BODY as worse:
        return f"Invalid JSON: {worse}"
    return f"Invalid field: {exc}"


def _needed(body: bytes) -> bytes:
    if not body or body.strip() == b"null":
        raise BadParameter("no body")
    return body


def _optional(body: bytes, kind: type[Any]) -> Any:
    if not body or body.strip() == b"null":
        return kind()
    return msgspec.json.decode(body, type=kind)


def _ignored(body: bytes) -> None:
    """Even a body without use must be JSON (contract: rdir, conventions)."""
    if body:
        _anything(body)


def _page_headers(marker: str | None) -> list[tuple[str, str]]:
    if marker is None:
        return [*JSON, (TRUNCATED_HEADER, "false")]
    # Headers are bytes; the key is sent as UTF-8.
    return [*JSON, (TRUNCATED_HEADER, "true"), (MARKER_HEADER, marker.encode().decode("latin-1"))]


def _json(data: Any) -> Response:
    return Response(200, _encode(data), JSON)
