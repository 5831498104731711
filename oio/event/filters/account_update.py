# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``account_update``: keeps the counters of accounts, by telling the account service what happens to
containers.

Options: ``connection_timeout`` (2 s) and ``read_timeout`` (30 s).

Repeated deliveries, and most late ones, are harmless: the service orders updates by time, and remembers a deleted
container for a minute. Past that minute, an event from before the deletion would bring the container back. So
an event that is old, about a container that the service does not know, is only told when the namespace
says that the container exists.
"""

from __future__ import annotations

import time
from typing import Any, TypeGuard

from oio.account.client import BatchingAccountClient
from oio.common.constants import HIDDEN_ACCOUNTS
from oio.common.exceptions import (
    BadRequest,
    ClientException,
    Conflict,
    ExplicitBury,
    NotFound,
    OioException,
    OioNetworkException,
    OioTimeout,
    ServiceBusy,
)
from oio.common.status import (
    CONTAINER_DISABLED,
    CONTAINER_FROZEN,
    CONTAINER_NOT_FOUND,
    REFERENCE_NOT_FOUND,
)
from oio.event.filters.base import Callback, Env, Filter, make_filter_factory
from oio.event.filters.clients import (
    TimedCache,
    account_of,
    asking,
    container_of,
    pauses_of,
    retry_after,
    shared,
)

CONNECTION_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 30.0

CONTAINER_NEW = "storage.container.new"
CONTAINER_STATE = "storage.container.state"
CONTAINER_DELETED = "storage.container.deleted"
ACCOUNT_SERVICES = "account.services"

# From this age on, an event may come after the tombstone of its container is gone. The account service keeps it
# for 60 s after it was told the deletion; the difference is what clocks of different hosts may differ by.
LATE_S = 30.0
# A container that the service has just taken an update of is either still known, or its tombstone is younger
# than this: an old event cannot bring it back. Shorter than the life of a tombstone, for the same reason.
KNOWN_S = 30.0
KNOWN_MAX = 10000
# Under which name the account service is left alone, also by the filter replicate.
ACCOUNT = "account service"
_STALE = "No update needed"
_REQID_PREFIX = "account-update-"


class AccountUpdateFilter(Filter):
    """Tells the account service, and goes on."""

    def init(self) -> None:
        """Read the options."""
        self._timeouts: dict[str, Any] = self.timeouts(CONNECTION_TIMEOUT_S, READ_TIMEOUT_S)

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event."""
        url = env.get("url") or {}
        if not isinstance(url, dict):
            self.bury(f"url of {env.get('event')} is not an object")
        if env.get("event") in _ACTIONS and url.get("account") not in HIDDEN_ACCOUNTS:
            try:
                with asking(self, ACCOUNT):
                    self._tell(env, url)
            except ExplicitBury:
                raise
            except BadRequest as exc:
                self.bury(f"refused: {exc}")
            except (OioNetworkException, ServiceBusy) as exc:
                pauses_of(self).failed(ACCOUNT)
                return self.retry(cb, f"account service: {exc}")
            except OioException as exc:
                return self.retry(cb, f"account service: {exc}", retry_after(exc))
        return self.app(env, beanstalkd, cb)

    def _tell(self, env: Env, url: dict[str, Any]) -> None:
        """:raises OioException: when the event has to come again, or makes no sense."""
        kind, account, container = env["event"], url.get("account"), url.get("user")
        if not _is_name(account) or not _is_name(container):
            self.bury(f"{kind} without account or container: {url}")
        when_s = self.when_of(env) / 1e6
        reqid = self.reqid_of(env, _REQID_PREFIX)
        metadata = _ACTIONS[kind](self, env, when_s)
        late = time.time() - when_s > LATE_S
        if metadata is None:
            self._create_account(account, container, late, reqid)
            return
        if late and "mtime" in metadata and not self._may_live(account, container, metadata["mtime"], reqid):
            self.logger.info("%s of %s/%s ignored: it has been deleted since", kind, account, container)
            self.count("outlived")
            return
        self._update(account, container, metadata, reqid)

    def _update(self, account: str, container: str, metadata: dict[str, Any], reqid: str) -> None:
        start_s = time.monotonic()
        try:
            self._batching().container_update(account, container, metadata, reqid=reqid)
            pauses_of(self).answered(ACCOUNT)
        except Conflict as exc:
            pauses_of(self).answered(ACCOUNT)
            if _STALE not in exc.message:
                raise
            self.count("stale")
            self.logger.info("%s/%s: %s", account, container, exc.message)
            return
        self.count("updated")
        if "mtime" in metadata:
            self._known().put((account, container), True, start_s)

    def _create_account(self, account: str, container: str, late: bool, reqid: str) -> None:
        if late and not self._exists(account, container, reqid):
            self.count("outlived")
            return
        try:
            account_of(self).account_create(account, reqid=reqid, **self._timeouts)
            pauses_of(self).answered(ACCOUNT)
        except OioTimeout as exc:
            # The first container that has something to tell creates its account as well.
            self.logger.warning("account %s not created: %s", account, exc)
            pauses_of(self).failed(ACCOUNT)

    # --- events that come late ---

    def _may_live(self, account: str, container: str, when_s: float, reqid: str) -> bool:
        """Can an old event be told without bringing back what was deleted?"""
        if self._known().get((account, container))[1]:
            return True
        try:
            seen = account_of(self).container_show(account, container, reqid=reqid, **self._timeouts)
        except NotFound:
            seen = {}
        mtime_s, dtime_s = _number(seen.get("mtime")), _number(seen.get("dtime"))
        if mtime_s > 0 and mtime_s >= dtime_s:
            return True  # whatever happens to it from now on leaves a tombstone, or a date to compare with
        if when_s < dtime_s:
            return False
        return self._exists(account, container, reqid)

    def _exists(self, account: str, container: str, reqid: str) -> bool:
        """:raises OioException: when that cannot be told for sure."""
        try:
            container_of(self).container_get_properties(
                account, container, force_master=True, reqid=reqid, **self._timeouts
            )
        except BadRequest:
            raise  # no container can have this name
        except ClientException as exc:
            if isinstance(exc, NotFound) and exc.status in (REFERENCE_NOT_FOUND, CONTAINER_NOT_FOUND):
                return False
            if exc.status not in (CONTAINER_FROZEN, CONTAINER_DISABLED):
                raise OioException(f"the proxy does not tell: {exc}") from exc
        except OioNetworkException as exc:
            # Not the account service, which is no reason to leave it alone.
            raise OioException(f"the proxy does not tell: {exc}") from exc
        return True

    # --- shared by the handlers of a process ---

    def _batching(self) -> BatchingAccountClient:
        key = f"batching_account_client {sorted(self._timeouts.items())}"
        client: BatchingAccountClient = shared(
            self, key, lambda: BatchingAccountClient(account_of(self), **self._timeouts)
        )
        return client

    def _known(self) -> TimedCache[bool]:
        cache: TimedCache[bool] = shared(self, "known_containers", lambda: TimedCache(KNOWN_S, KNOWN_MAX))
        return cache

    # --- what each type of event says: the body of an update, or None to create the account ---

    def _state(self, env: Env, when_s: float) -> dict[str, Any]:
        data = self._data(env)
        return {
            "mtime": when_s,
            "bucket": data.get("bucket"),
            "objects": data.get("object-count") or 0,
            "bytes": data.get("bytes-count") or 0,
            "damaged_objects": data.get("damaged-objects") or 0,
            "missing_chunks": data.get("missing-chunks") or 0,
        }

    def _new(self, env: Env, when_s: float) -> dict[str, Any]:
        return {"mtime": when_s, "bucket": self._data(env).get("bucket")}

    def _deleted(self, env: Env, when_s: float) -> dict[str, Any]:
        return {"dtime": when_s, "bucket": self._data(env).get("bucket")}

    def _services(self, env: Env, when_s: float) -> dict[str, Any] | None:
        data = env.get("data") or []
        if isinstance(data, dict):
            data = data.get("services") or []
        if not isinstance(data, list) or not all(isinstance(service, dict) for service in data):
            self.bury(f"data of {env['event']} is not a list of services")
        if any(service.get("type") == "meta2" for service in data):
            return None
        return {"dtime": when_s}

    def _data(self, env: Env) -> dict[str, Any]:
        data = env.get("data") or {}
        if not isinstance(data, dict):
            self.bury(f"data of {env['event']} is not an object")
        return data


_ACTIONS = {
    CONTAINER_STATE: AccountUpdateFilter._state,
    CONTAINER_NEW: AccountUpdateFilter._new,
    CONTAINER_DELETED: AccountUpdateFilter._deleted,
    ACCOUNT_SERVICES: AccountUpdateFilter._services,
}

filter_factory = make_filter_factory(AccountUpdateFilter)


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value)


def _number(text: Any) -> float:
    try:
        return float(text or 0)
    except (TypeError, ValueError):
        return 0.0
