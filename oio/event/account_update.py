# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Keeps the counters of accounts: tells the account service what happens to containers.

Repeated and late deliveries are harmless: the service orders updates by time and refuses what is not news.
"""

from __future__ import annotations

import threading
import time
from typing import Any
from urllib.parse import quote

import msgspec

from oio.common.constants import HIDDEN_ACCOUNTS
from oio.common.exceptions import OioException
from oio.event.filters import BuryEvent, Event, Filter, FilterContext
from oio.http.errors import HttpClientError

CONTAINER_NEW = "storage.container.new"
CONTAINER_STATE = "storage.container.state"
CONTAINER_DELETED = "storage.container.deleted"
ACCOUNT_SERVICES = "account.services"
# The account service is looked up again after this long, and after every failure.
ADDRESS_TTL_S = 60.0


class AccountUnreachable(OioException):
    """Raised when no account service takes the update; the event is delivered again later."""


class AccountUpdate(Filter):
    """Filter ``account_update``; options ``connection_timeout`` (2 s) and ``read_timeout`` (30 s)."""

    def __init__(self, context: FilterContext, options: dict[str, str]) -> None:
        super().__init__(context, options)
        self._timeout = (
            float(options.get("connection_timeout", 2.0)), float(options.get("read_timeout", 30.0)),
        )  # fmt: skip
        self._address: tuple[str, float] | None = None
        self._lock = threading.Lock()
        self._counts = {"updated": 0, "stale": 0}

    def metrics(self) -> dict[str, int]:
        """Updates taken by the service, and updates that were not news."""
        return dict(self._counts)

    def process(self, event: Event) -> None:
        """Send what the event tells. :raises AccountUnreachable: to have it delivered again."""
        kind = event["event"]
        url = event.get("url") or {}
        account, container = url.get("account"), url.get("user")
        if not account or not container:
            raise BuryEvent(f"{kind} without account or container: {url}")
        if account in HIDDEN_ACCOUNTS:
            return
        when_s = event["when"] / 1e6
        data = event.get("data") or {}
        if kind == CONTAINER_DELETED:
            self._update(account, {"name": container, "dtime": when_s})
        elif kind == CONTAINER_NEW:
            self._update(account, {"name": container, "mtime": when_s})
        elif kind == CONTAINER_STATE:
            counters = {
                "objects": data.get("object-count", 0),
                "bytes": data.get("bytes-count", 0),
                "damaged_objects": data.get("damaged-objects", 0),
                "missing_chunks": data.get("missing-chunks", 0),
            }
            self._update(account, {"name": container, "mtime": when_s, **counters})
        elif kind == ACCOUNT_SERVICES:
            if any(service.get("type") == "meta2" for service in data):
                self._send("PUT", f"create?id={quote(account, safe='')}", b"")
            else:
                self._update(account, {"name": container, "dtime": when_s})

    def _update(self, account: str, body: dict[str, Any]) -> None:
        path = f"container/update?id={quote(account, safe='')}"
        status = self._send("PUT", path, msgspec.json.encode(body))
        with self._lock:
            self._counts["stale" if status == 409 else "updated"] += 1

    def _send(self, method: str, path: str, body: bytes) -> int:
        address = self._find()
        try:
            response = self.context.pool.request(
                method, f"http://{address}/v1.0/account/{path}", body=body, timeout=self._timeout
            )
        except HttpClientError as exc:
            self._address = None
            raise AccountUnreachable(f"account service {address}: {exc}") from exc
        if response.status >= 500:
            self._address = None
            raise AccountUnreachable(f"account service {address} answered {response.status}")
        if response.status >= 400 and response.status != 409:
            raise BuryEvent(f"account service {address} answered {response.status} {response.data[:200]!r}")
        return int(response.status)

    def _find(self) -> str:
        now = time.monotonic()
        known = self._address
        if known is not None and now - known[1] < ADDRESS_TTL_S:
            return known[0]
        base = f"{self.context.proxy_url}/v3.0/{self.context.namespace}"
        try:
            response = self.context.pool.request(
                "GET", f"{base}/conscience/list?type=account", timeout=self._timeout
            )
            if response.status != 200:
                raise AccountUnreachable(f"cannot find an account service: {response.data[:200]!r}")
            services = msgspec.json.decode(response.data, type=list[dict[str, Any]])
        except (HttpClientError, msgspec.DecodeError) as exc:
            raise AccountUnreachable(f"cannot find an account service: {exc}") from exc
        alive = [service["addr"] for service in services if service.get("score", 0) > 0]
        if not alive:
            raise AccountUnreachable("no account service has a score")
        self._address = (alive[0], now)
        return str(alive[0])
