# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``replicate``: copies the events of replicated containers to the tube of a replicator.

Options: those of ``notify``, and ``check_replication_enabled`` (false: copy the events of all containers),
``cache_duration`` (30 s) and ``cache_size`` (10000), for what the account service told about containers,
``connection_timeout`` (2 s), ``read_timeout`` (30 s), ``force_master`` (false).

While the account service does not answer, what it told last holds; events of a container that it told nothing
about come again later, rather than being missed by the replicator.
"""

from __future__ import annotations

from typing import Any

from oio.common.easy_value import boolean_value, true_value
from oio.common.exceptions import BadRequest, NotFound, OioException, OioNetworkException, ServiceBusy
from oio.event.filters.account_update import ACCOUNT
from oio.event.filters.base import Callback, Env, make_filter_factory
from oio.event.filters.clients import TimedCache, account_of, asking, pauses_of, retry_after, shared
from oio.event.filters.notify import NotifyFilter

KINDS = frozenset(
    {
        "storage.container.deleted",
        "storage.container.new",
        "storage.container.state",
        "storage.container.update",
        "storage.content.append",
        "storage.content.broken",
        "storage.content.deleted",
        "storage.content.new",
        "storage.content.perfectible",
        "storage.content.rebuilt",
        "storage.content.update",
    }
)
CACHE_DURATION_S = 30.0
CACHE_SIZE = 10000
CONNECTION_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 30.0


class ReplicateFilter(NotifyFilter):
    """Copies the event when its container is replicated, and goes on."""

    def init(self) -> None:
        """Read the options."""
        super().init()
        self._check = boolean_value(self.conf.get("check_replication_enabled"), False)
        duration_s = self.float_option("cache_duration", CACHE_DURATION_S)
        size = self.int_option("cache_size", CACHE_SIZE, minimum=1)
        self._cache: TimedCache[bool] = shared(
            self, f"replicated_containers {duration_s:g} {size}", lambda: TimedCache(duration_s, size)
        )
        self._options: dict[str, Any] = self.timeouts(CONNECTION_TIMEOUT_S, READ_TIMEOUT_S)
        self._force_master = boolean_value(self.conf.get("force_master"), False)

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event."""
        if env.get("event") not in KINDS or not self._is_wanted(env):
            return self.app(env, beanstalkd, cb)
        if self._check:
            try:
                replicated = self._is_replicated(env)
            except OioException as exc:
                return self.retry(cb, f"account service: {exc}", retry_after(exc))
            if not replicated:
                self.count("not_replicated")
                return self.app(env, beanstalkd, cb)
        return super().process(env, beanstalkd, cb)

    def _is_replicated(self, env: Env) -> bool:
        """:raises OioException: when nothing is known, and the account service does not tell."""
        url = env.get("url")
        account = url.get("account") if isinstance(url, dict) else None
        container = url.get("user") if isinstance(url, dict) else None
        if not account or not container or not isinstance(account, str) or not isinstance(container, str):
            return False
        known, fresh = self._cache.get((account, container))
        if known is not None and fresh:
            return known
        reqid = self.reqid_of(env, "replicate-")
        pauses = pauses_of(self)
        try:
            with asking(self, ACCOUNT):
                seen = self._show(account, container, reqid)
            known = true_value(seen.get("replication_enabled", False))
        except (NotFound, BadRequest) as exc:
            self.logger.info("%s/%s is not known to the account service: %s", account, container, exc)
            return bool(known)
        except OioException as exc:
            if isinstance(exc, (OioNetworkException, ServiceBusy)):
                pauses.failed(ACCOUNT)
            if known is None:
                raise
            self.logger.warning("replication of %s/%s: using the last answer: %s", account, container, exc)
            return known
        pauses.answered(ACCOUNT)
        self._cache.put((account, container), known)
        return known

    def _show(self, account: str, container: str, reqid: str) -> dict[str, Any]:
        client = account_of(self)
        if not self._force_master:
            return dict(client.container_show(account, container, reqid=reqid, **self._options))
        params = {"container": container, "force_master": True}
        _resp, body = client.account_request(
            account, "GET", "show-container", params=params, reqid=reqid, **self._options
        )
        return dict(body)


filter_factory = make_filter_factory(ReplicateFilter)
