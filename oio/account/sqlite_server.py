# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Routes of the account service: accounts, and the containers that events make known."""

from __future__ import annotations

import configparser
import logging
import sys
from collections.abc import Callable
from typing import Any

import apsw
import msgspec

from oio.account.store import (
    AccountNotEmpty,
    AccountStore,
    ContainerUpdate,
    StaleUpdate,
    UnknownAccount,
    UnknownContainer,
    normalize_time,
)
from oio.common.easy_value import true_value
from oio.common.metrics import CONTENT_TYPE, Metric, render
from oio.common.service import command_line, run_until_stopped, setup_logging
from oio.http.router import Router
from oio.http.server import HttpError, Request, Response, Server, ServerConfig

JSON_TYPE = [("Content-Type", "text/json")]
# Properties of accounts may be large (contract: 2048 properties, values up to 1 MiB).
BODY_MAX_BYTES = 64 * 2**20
# Programs look for "No update needed" in it.
_STALE = "No update needed, event older than last container update"

log = logging.getLogger("oio.account")


class _MetadataBody(msgspec.Struct):
    metadata: dict[str, str] | None = None
    to_delete: list[str] | None = None


class _ContainerBody(msgspec.Struct):
    name: str
    mtime: float | str | None = None
    dtime: float | str | None = None
    objects: int = 0
    bytes: int = 0
    damaged_objects: int = 0
    missing_chunks: int = 0
    bucket: str | None = None


class _ResetBody(msgspec.Struct):
    name: str
    mtime: float | str


class AccountService:
    """Handlers of the account service over one store."""

    def __init__(self, store: AccountStore) -> None:
        self.store = store
        self.router = Router(method_not_allowed=self._method_not_allowed)
        route = self._route
        route("/status", self.status, "GET", "HEAD", "POST", "PUT")
        route("/metrics", self.metrics, "GET")
        route("/v1.0/account/create", self.create, "PUT")
        route("/v1.0/account/delete", self.delete, "POST")
        route("/v1.0/account/list", self.list_accounts, "GET", "HEAD")
        route("/v1.0/account/update", self.update, "PUT", "POST")
        route("/v1.0/account/show", self.show, "GET", "HEAD")
        route("/v1.0/account/refresh", self.refresh, "POST")
        route("/v1.0/account/flush", self.flush, "POST")
        route("/v1.0/account/containers", self.list_containers, "GET", "HEAD")
        route("/v1.0/account/container/update", self.update_container, "PUT", "POST")
        route("/v1.0/account/container/reset", self.reset_container, "PUT", "POST")
        route("/v1.0/account/container/show", self.show_container, "GET", "HEAD")
        route("/v1.0/account/show-container", self.show_container, "GET", "HEAD")

    def _route(self, path: str, handler: Callable[[Request], Response], *methods: str) -> None:
        def guarded(request: Request) -> Response:
            try:
                return handler(request)
            except UnknownAccount as exc:
                return _text(404, f"Account {exc} not found")
            except apsw.Error as exc:
                log.error("%s: %s: %s [%s]", request.path, type(exc).__name__, exc, request.reqid)
                return _text(503, f"Could not satisfy the request: {exc}")

        for method in methods:
            self.router.add(method, path, guarded)

    def _method_not_allowed(self, request: Request) -> Response:
        allowed = ", ".join(self.router.methods(request.path))
        return Response(405, b"Method not allowed", [("Allow", allowed)])

    def status(self, _request: Request) -> Response:
        """How many accounts there are."""
        return _json({"account_count": self.store.count()})

    def metrics(self, _request: Request) -> Response:
        """Prometheus metrics."""
        families = [Metric("oio_account_accounts", "gauge", "Accounts", [({}, self.store.count())])]
        return Response(200, render(families), [("Content-Type", CONTENT_TYPE)])

    def create(self, request: Request) -> Response:
        """201 with the name, 202 when it existed."""
        account = _needed(request, "id", "account")
        return _text(201, account) if self.store.create(account) else Response(202)

    def delete(self, request: Request) -> Response:
        """204, or 409 while there are containers."""
        try:
            self.store.delete(_needed(request, "id", "account"))
        except AccountNotEmpty:
            return _text(409, "Account not empty")
        return Response(204)

    def list_accounts(self, _request: Request) -> Response:
        """Names of all accounts."""
        return _json(self.store.names())

    def update(self, request: Request) -> Response:
        """Change the metadata of an account."""
        account = _needed(request, "id", "account")
        body = _body(request, _MetadataBody)
        self.store.update_metadata(account, body.metadata or {}, body.to_delete or [])
        return Response(204)

    def show(self, request: Request) -> Response:
        """Counters and metadata."""
        return _json(self.store.show(_needed(request, "id", "account")))

    def refresh(self, request: Request) -> Response:
        """Compute the counters again from the containers."""
        self.store.refresh(_needed(request, "id", "account"))
        return Response(204)

    def flush(self, request: Request) -> Response:
        """Forget the containers."""
        self.store.flush(_needed(request, "id", "account"))
        return Response(204)

    def list_containers(self, request: Request) -> Response:
        """The account, with one page of its containers."""
        account = _needed(request, "id", "account")
        query = request.query
        try:
            limit = int(query.get("limit") or 0)
        except ValueError:
            raise HttpError(400, f"limit: not a number: {query['limit']!r}") from None
        info = self.store.show(account)
        words = [query.get(key, "") for key in ("marker", "end_marker", "prefix", "delimiter")]
        buckets_only = true_value(query.get("s3_buckets_only"))
        info["listing"] = self.store.list_containers(account, limit, *words, s3_buckets_only=buckets_only)
        return _json(info)

    def update_container(self, request: Request) -> Response:
        """Take the state of a container as an event tells it; 409 when it is not news."""
        account = _needed(request, "id", "account")
        body = _body(request, _ContainerBody)
        if not body.name:
            raise HttpError(400, "Missing container ID")
        try:
            update = ContainerUpdate(
                body.name, normalize_time(body.mtime), normalize_time(body.dtime), body.objects,
                body.bytes, body.damaged_objects, body.missing_chunks,
            )
            self.store.update_container(account, update)
        except ValueError as exc:
            raise HttpError(400, f"mtime, dtime: {exc}") from None
        except StaleUpdate:
            return _text(409, _STALE)
        return Response(200, msgspec.json.encode(body.name))

    def reset_container(self, request: Request) -> Response:
        """Set the counters of a container to 0; 404 when it is not known, 409 when it is not news."""
        account = _needed(request, "id", "account")
        body = _body(request, _ResetBody)
        if not body.name:
            raise HttpError(400, "Missing container ID")
        try:
            self.store.reset_container(account, body.name, normalize_time(body.mtime))
        except ValueError as exc:
            raise HttpError(400, f"mtime: {exc}") from None
        except UnknownContainer:
            return _text(404, f"Container {body.name} not found")
        except StaleUpdate:
            return _text(409, _STALE)
        return Response(204)

    def show_container(self, request: Request) -> Response:
        """Counters of one container."""
        account = _needed(request, "id", "account")
        return _json(self.store.show_container(account, _needed(request, "container", "container")))


def _needed(request: Request, key: str, what: str) -> str:
    value = request.query.get(key)
    if not value:
        raise HttpError(400, f"Missing {what} ID")
    return value


def _body(request: Request, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(request.read_all(BODY_MAX_BYTES) or b"{}", type=kind)
    except msgspec.MsgspecError as exc:
        raise HttpError(400, f"Bad body: {exc}") from None


def _json(data: Any) -> Response:
    return Response(200, msgspec.json.encode(data), JSON_TYPE)


def _text(status: int, message: str) -> Response:
    return Response(status, message.encode(), [("Content-Type", "text/plain; charset=utf-8")])


def main(argv: list[str] | None = None) -> int:
    """``oio-account-server CONFIG``"""
    parser = command_line("oio-account-server", "Account service")
    parser.add_argument("config", help="configuration file, section [account-server]")
    options = parser.parse_args(argv)
    try:
        section = _configuration(options.config)
        setup_logging(section.get("syslog_prefix"), section.get("log_level", "INFO").upper())
        address = (section.get("bind_addr", "127.0.0.1"), section.getint("bind_port", 8000))
        store = AccountStore(section["db_path"], section.get("synchronous", "FULL").upper())
    except (ValueError, OSError, configparser.Error, apsw.Error) as exc:
        print(f"oio-account-server: {options.config}: {exc}", file=sys.stderr)
        return 1
    service = AccountService(store)
    server = Server(service.router, [address], ServerConfig(generate_reqid_prefix="account-"))
    return run_until_stopped([server], [store.close], name="account")


def _configuration(path: str) -> configparser.SectionProxy:
    """Read the configuration file. :raises ValueError: when something is missing in it."""
    conf = configparser.ConfigParser(interpolation=None)
    with open(path, encoding="utf-8") as stream:
        conf.read_file(stream)
    if "account-server" not in conf:
        raise ValueError("section [account-server] is missing")
    if not conf["account-server"].get("db_path"):
        raise ValueError("key db_path is missing")
    return conf["account-server"]


if __name__ == "__main__":
    sys.exit(main())
