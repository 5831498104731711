# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Routes of the account service: accounts, the containers that events make known, and buckets.

The service itself keeps nothing: any number of workers and of services may stand on the same Redis. While Redis
does not answer, requests get 503 and can be sent again later.
"""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec
from redis.exceptions import RedisError

from oio.account.backend import (
    AccountBackend,
    AccountNotEmpty,
    BucketLocked,
    StaleUpdate,
    TooBig,
    UnknownAccount,
    UnknownBucket,
    UnknownContainer,
)
from oio.account.listing import LISTING_DEFAULT, Query, container_limit
from oio.account.metrics import Counts, metrics_of
from oio.account.updates import COUNTER_MAX, COUNTERS, UNKNOWN_TIME, ContainerUpdate, normalize_time
from oio.common.easy_value import true_value
from oio.common.metrics import CONTENT_TYPE, render
from oio.http.router import Router
from oio.http.server import BodyError, HttpError, Request, Response

# Properties of accounts may be large (contract: 2048 properties, values up to 1 MiB).
BODY_MAX_BYTES = 64 * 2**20
# Updates of a batch that Redis is given at once: it serves nobody else meanwhile (about 5 ms).
UPDATES_AT_ONCE = 250
# A listing goes on after a name, which must fit in a request line. The names of the proxy have 1023 bytes at most.
NAME_BYTES_MAX = 4096
# Programs look for "No update needed" in it.
STALE_MESSAGE = "No update needed, event older than last container update"
JSON_TYPE = [("Content-Type", "text/json")]
TEXT_TYPE = [("Content-Type", "text/plain; charset=utf-8")]

_READ = ("GET", "HEAD")
_WRITE = ("PUT", "POST")
_ANY = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
# Asked so often that a line for each, beside the access log, is for debugging only.
_QUIET = frozenset({"status", "metrics", "container_update", "container_update_many"})

log = logging.getLogger("oio.account")

Scalar = str | bool | int | float


class _MetadataBody(msgspec.Struct):
    metadata: dict[str, Scalar] | None = None
    to_delete: list[str] | None = None


class _ContainerBody(msgspec.Struct):
    name: str = ""
    mtime: float | str | None = None
    dtime: float | str | None = None
    objects: int | None = None
    bytes: int | None = None
    damaged_objects: int | None = None
    missing_chunks: int | None = None
    bucket: str | None = None


class _BatchItem(_ContainerBody):
    account: str = ""


class _ResetBody(msgspec.Struct):
    name: str = ""
    mtime: float | str | None = None


# One decoder each: making one costs more than a body.
_KINDS: tuple[Any, ...] = (
    _MetadataBody, _ContainerBody, _ResetBody, list[_BatchItem], list[msgspec.Raw], _BatchItem,
)  # fmt: skip
_BODIES: dict[Any, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind, strict=False) for kind in _KINDS
}
# What decoders raise; the last one of bodies that are nested too deep.
_BAD_BODY = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Outcome(msgspec.Struct):
    status: int
    message: str


class AccountService:
    """Handlers of the account service over one backend.

    :param siblings: gives the numbers of the other workers of this service, for ``/metrics``.
    """

    def __init__(
        self, backend: AccountBackend, siblings: Callable[[], list[bytes]] | None = None
    ) -> None:
        self.backend = backend
        self.counts = Counts()
        self._siblings = siblings
        self.router = Router(method_not_allowed=self._method_not_allowed)
        route = self._route
        route("/status", self.status, _ANY)
        route("/metrics", self.metrics, _READ)
        account = "/v1.0/account/"
        route(account + "create", self.account_create, ("PUT",))
        route(account + "delete", self.account_delete, ("POST",))
        route(account + "list", self.account_list, _READ)
        route(account + "update", self.account_update, _WRITE)
        route(account + "show", self.account_show, _READ)
        route(account + "containers", self.account_containers, _READ)
        route(account + "buckets", self.account_buckets, _READ)
        route(account + "refresh", self.account_refresh, ("POST",))
        route(account + "flush", self.account_flush, ("POST",))
        route(account + "container/update", self.container_update, _WRITE)
        route(account + "container/update-many", self.container_update_many, ("POST",))
        route(account + "container/reset", self.container_reset, _WRITE)
        route(account + "container/show", self.container_show, _READ)
        route(account + "show-container", self.container_show, _READ)
        for show, update, refresh in (
            ("/v1.0/bucket/show", "/v1.0/bucket/update", "/v1.0/bucket/refresh"),
            (account + "show-bucket", account + "update-bucket", account + "refresh-bucket"),
        ):
            route(show, self.bucket_show, _READ)
            route(update, self.bucket_update, ("PUT",))
            route(refresh, self.bucket_refresh, ("POST",))

    def _route(self, path: str, handler: Callable[[Request], Response], methods: tuple[str, ...]) -> None:
        name = handler.__name__
        level = logging.DEBUG if name in _QUIET else logging.INFO

        def guarded(request: Request) -> Response:
            begin = time.perf_counter()
            try:
                response = handler(request)
            except RedisError as exc:
                log.error("%s: Redis: %s: %s [%s]", request.path, type(exc).__name__, exc, request.reqid or "-")
                self.counts.redis_failed()
                response = _error(503, f"Could not satisfy the request: {exc}")
            except BodyError:
                # The server knows what to do with the connection.
                raise
            except HttpError as exc:
                response = _error(exc.status, exc.message)
            except UnknownAccount as exc:
                response = _error(404, f"Account {exc} not found")
            except UnknownContainer as exc:
                response = _error(404, f"Container {exc} not found")
            except UnknownBucket as exc:
                response = _error(404, f"Bucket {exc} not found")
            except StaleUpdate:
                response = _error(409, STALE_MESSAGE)
            except TooBig as exc:
                response = _error(400, _too_big(exc))
            except AccountNotEmpty:
                response = _error(409, "Account not empty")
            except BucketLocked:
                response = _error(409, "Refresh on bucket already in progress")
            duration_s = time.perf_counter() - begin
            self.counts.handled(name, response.status, duration_s)
            if log.isEnabledFor(level):
                log.log(level, "%s %d %.6f - - %s", name, response.status, duration_s, request.reqid or "-")
            return response

        for method in methods:
            self.router.add(method, path, guarded)

    def _method_not_allowed(self, request: Request) -> Response:
        allowed = ", ".join(self.router.methods(request.path))
        return Response(405, b"Method not allowed", [("Allow", allowed), *TEXT_TYPE])

    # --- the service ---

    def status(self, request: Request) -> Response:
        """How many accounts there are."""
        return _json({"account_count": self.backend.count(_force_master(request))})

    def metrics(self, request: Request) -> Response:
        """Prometheus metrics, of all workers together; to another worker, the numbers of this one.

        They are given while Redis does not answer, too: they tell of it.
        """
        if request.peer == "unix":
            return _json(self.counts.snapshot())
        total = self.counts.snapshot()
        for told in self._siblings() if self._siblings else ():
            total = total.plus(msgspec.json.decode(told, type=type(total)))
        try:
            accounts = self.backend.count()
        except RedisError as exc:
            log.warning("The number of accounts is not known: %s", exc)
            accounts = None
        return Response(200, render(metrics_of(total, accounts)), [("Content-Type", CONTENT_TYPE)])

    # --- accounts ---

    def account_create(self, request: Request) -> Response:
        """201 with the name, 202 when it existed."""
        account = _needed(request, "id", "account")
        return Response(201, account.encode(), TEXT_TYPE) if self.backend.create(account) else Response(202)

    def account_delete(self, request: Request) -> Response:
        """204, or 409 while there are containers."""
        self.backend.delete(_needed(request, "id", "account"))
        return Response(204)

    def account_list(self, request: Request) -> Response:
        """Names of all accounts."""
        return _json(self.backend.names(_force_master(request)))

    def account_update(self, request: Request) -> Response:
        """Change the metadata of an account."""
        account = _needed(request, "id", "account")
        self.backend.update_metadata(account, *_metadata(request))
        return Response(204)

    def account_show(self, request: Request) -> Response:
        """Counters and metadata."""
        return _json(self.backend.show(_needed(request, "id", "account"), _force_master(request)))

    def account_containers(self, request: Request) -> Response:
        """The account, with one page of its containers."""
        account, force_master = _needed(request, "id", "account"), _force_master(request)
        query = request.query
        wanted = Query(
            limit=container_limit(_limit(request, 0)),
            marker=query.get("marker", ""),
            end_marker=query.get("end_marker", ""),
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            s3_buckets_only=true_value(query.get("s3_buckets_only")),
        )
        info = self.backend.show(account, force_master)
        info["listing"] = self.backend.list_containers(account, wanted, force_master)
        return _json(info)

    def account_buckets(self, request: Request) -> Response:
        """The account, with one page of its buckets."""
        account, force_master = _needed(request, "id", "account"), _force_master(request)
        query = request.query
        wanted = Query(
            limit=_limit(request, LISTING_DEFAULT),
            marker=query.get("marker", ""),
            end_marker=query.get("end_marker", ""),
            prefix=query.get("prefix", ""),
        )
        info = self.backend.show(account, force_master)
        info["listing"], next_marker = self.backend.list_buckets(account, wanted, force_master)
        info["truncated"] = next_marker is not None
        if next_marker is not None:
            info["next_marker"] = next_marker
        return _json(info)

    def account_refresh(self, request: Request) -> Response:
        """Compute the counters again from the containers."""
        self.backend.refresh(_needed(request, "id", "account"))
        return Response(204)

    def account_flush(self, request: Request) -> Response:
        """Forget the containers."""
        self.backend.flush(_needed(request, "id", "account"))
        return Response(204)

    # --- containers ---

    def container_update(self, request: Request) -> Response:
        """Take the state of a container as an event tells it; 409 when it is not news."""
        account = _needed(request, "id", "account")
        update = _update_of(_body(request, _ContainerBody))
        self.backend.update_container(account, update)
        return Response(200, msgspec.json.encode(update.name), TEXT_TYPE)

    def container_update_many(self, request: Request) -> Response:
        """Take the states of containers of any accounts; gives a status and a message for each, in order."""
        outcomes: list[_Outcome | None] = []
        updates: list[tuple[str, ContainerUpdate]] = []
        for item in _items(request):
            try:
                if isinstance(item, msgspec.Raw):
                    item = _decoded(item, _BatchItem)
                updates.append((_name(item.account, "account"), _update_of(item)))
            except HttpError as exc:
                outcomes.append(_Outcome(exc.status, exc.message))
            else:
                outcomes.append(None)
        applied = iter(self._apply(updates))
        return _json([next(applied) if outcome is None else outcome for outcome in outcomes])

    def _apply(self, updates: list[tuple[str, ContainerUpdate]]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        for start in range(0, len(updates), UPDATES_AT_ONCE):
            for error in self.backend.update_containers(updates[start : start + UPDATES_AT_ONCE]):
                if error is None:
                    outcomes.append(_Outcome(200, ""))
                elif isinstance(error, StaleUpdate):
                    outcomes.append(_Outcome(409, STALE_MESSAGE))
                elif isinstance(error, UnknownAccount):
                    outcomes.append(_Outcome(404, f"Account {error} not found"))
                elif isinstance(error, TooBig):
                    outcomes.append(_Outcome(400, _too_big(error)))
                else:
                    outcomes.append(_Outcome(503, f"Could not satisfy the request: {error}"))
        for outcome in outcomes:
            self.counts.updated(outcome.status)
        return outcomes

    def container_reset(self, request: Request) -> Response:
        """Set the counters of a container to 0; 404 when it is not known, 409 when it is not news."""
        account = _needed(request, "id", "account")
        body = _body(request, _ResetBody)
        name = _name(body.name, "container")
        mtime = _time("mtime", body.mtime)
        if mtime == UNKNOWN_TIME:
            raise HttpError(400, "Missing mtime")
        self.backend.reset_container(account, name, mtime)
        return Response(204)

    def container_show(self, request: Request) -> Response:
        """Counters of one container, known or not."""
        account, name = _needed(request, "id", "account"), _needed(request, "container", "container")
        return _json(self.backend.show_container(account, name, _force_master(request)))

    # --- buckets ---

    def bucket_show(self, request: Request) -> Response:
        """Counters and metadata of a bucket."""
        return _json(self.backend.show_bucket(_needed(request, "id", "bucket"), _force_master(request)))

    def bucket_update(self, request: Request) -> Response:
        """Change the metadata of a bucket, which may not exist yet; gives the bucket."""
        bucket = _needed(request, "id", "bucket")
        try:
            return _json(self.backend.update_bucket(bucket, *_metadata(request)))
        except ValueError as exc:
            raise HttpError(400, f"metadata: {exc}") from None

    def bucket_refresh(self, request: Request) -> Response:
        """Compute the counters of a bucket again; 409 while somebody else does."""
        self.backend.refresh_bucket(_needed(request, "id", "bucket"))
        return Response(204)


def _needed(request: Request, key: str, what: str) -> str:
    return _name(request.query.get(key), what)


def _name(value: str | None, what: str) -> str:
    if not value:
        raise HttpError(400, f"Missing {what} ID")
    # In UTF-8, a character has 4 bytes at most.
    if len(value) > NAME_BYTES_MAX // 4 and len(value.encode()) > NAME_BYTES_MAX:
        raise HttpError(400, f"{what} ID: longer than {NAME_BYTES_MAX} bytes")
    return value


def _force_master(request: Request) -> bool:
    # Clients send the header, the contract names the query.
    asked = request.query.get("force_master") or request.headers.get("x-oio-force-master")
    return true_value(asked)


def _limit(request: Request, default: int) -> int:
    text = request.query.get("limit")
    try:
        return int(text) if text else default
    except ValueError:
        raise HttpError(400, f"limit: not a number: {text!r}") from None


def _body(request: Request, kind: Any) -> Any:
    return _decoded(request.read_all(BODY_MAX_BYTES) or b"{}", kind)


def _decoded(data: bytes | msgspec.Raw, kind: Any) -> Any:
    try:
        return _BODIES[kind].decode(data)
    except _BAD_BODY as exc:
        raise HttpError(400, f"Bad body: {exc}") from None


def _too_big(error: TooBig) -> str:
    return f"Counters of account {error} would exceed 64 bits"


def _items(request: Request) -> list[Any]:
    """Items of a batch, decoded at once, or one by one when one of them is bad."""
    data = request.read_all(BODY_MAX_BYTES) or b"[]"
    try:
        return list(_BODIES[list[_BatchItem]].decode(data))
    except _BAD_BODY:
        return list(_decoded(data, list[msgspec.Raw]))


def _metadata(request: Request) -> tuple[dict[str, str], list[str]]:
    body = _body(request, _MetadataBody)
    values = {key: _as_text(value) for key, value in (body.metadata or {}).items()}
    return values, body.to_delete or []


def _as_text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _update_of(body: _ContainerBody) -> ContainerUpdate:
    """:raises HttpError: when something in it is missing or bad."""
    name = _name(body.name, "container")
    bucket = _name(body.bucket, "bucket") if body.bucket else ""
    counters = [getattr(body, counter) or 0 for counter in COUNTERS]
    for counter, value in zip(COUNTERS, counters, strict=True):
        if not -COUNTER_MAX <= value <= COUNTER_MAX:
            raise HttpError(400, f"{counter}: out of range: {value}")
    mtime, dtime = _time("mtime", body.mtime), _time("dtime", body.dtime)
    return ContainerUpdate(name, mtime, dtime, bucket, *counters)


def _time(name: str, value: float | str | None) -> str:
    try:
        return normalize_time(value)
    except ValueError as exc:
        raise HttpError(400, f"{name}: {exc}") from None


def _json(data: Any) -> Response:
    return Response(200, msgspec.json.encode(data), JSON_TYPE)


def _error(status: int, message: str) -> Response:
    return Response(status, html.escape(message).encode(errors="replace"), TEXT_TYPE)
