# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Clients of the account service.

``AccountClient`` sends one request per call. ``BatchingAccountClient`` sends in one request what concurrent
threads (or green threads) tell of containers at the same time: a lone caller waits for nobody.
"""

from __future__ import annotations

import time
from typing import Any

from oio.api.base import HttpApi, text_of_json
from oio.common.batching import ITEMS_MAX, Batcher
from oio.common.exceptions import (
    ClientException,
    MethodNotAllowed,
    NotFound,
    OioException,
    OioNetworkException,
    StatusMessageException,
    from_status,
)
from oio.common.logger import get_logger
from oio.common.utils import request_id
from oio.conscience.client import ConscienceClient

_TIMEOUTS = ("connection_timeout", "read_timeout", "write_timeout")


class AccountClient(HttpApi):
    """Talks to one account service, found through the proxy unless an endpoint is given.

    :param refresh_delay: seconds after which the service is chosen again.
    """

    def __init__(
        self,
        conf: dict[str, Any],
        endpoint: str | None = None,
        proxy_endpoint: str | None = None,
        refresh_delay: float = 3600.0,
        logger: Any = None,
        **kwargs: Any,
    ) -> None:
        self.logger = logger or get_logger(conf)
        super().__init__(
            endpoint=f"http://{endpoint.removeprefix('http://')}/v1.0/account" if endpoint else None,
            service_type="account-service", **kwargs,
        )
        self.cs = ConscienceClient(
            conf, endpoint=proxy_endpoint, logger=self.logger, **{**kwargs, "pool_manager": self.pool_manager}
        )
        self._global_kwargs = {
            key: float(kwargs[key]) for key in _TIMEOUTS if kwargs.get(key) not in (None, "", "None")
        }
        self._refresh_delay_s = refresh_delay if not endpoint else -1.0
        self._last_refresh = 0.0

    def _get_account_addr(self, **kwargs: Any) -> str:
        """Address of one account service, chosen by the load balancer."""
        addr = str(self.cs.next_instance("account", **kwargs)["addr"])
        return addr if ":" in addr else str(self.cs.resolve_service_id("account", addr))

    def _refresh_endpoint(self, **kwargs: Any) -> None:
        self.endpoint = f"http://{self._get_account_addr(**kwargs)}/v1.0/account"
        self._last_refresh = time.monotonic()

    def _maybe_refresh_endpoint(self, **kwargs: Any) -> None:
        if self._refresh_delay_s < 0 and self.endpoint:
            return
        age_s = time.monotonic() - self._last_refresh
        if not self.endpoint or age_s > self._refresh_delay_s:
            self._refresh_endpoint(**kwargs)

    def account_request(
        self,
        account: str | None,
        method: str,
        action: str,
        params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Send a request about an account; returns (response, body).

        :raises OioNetworkException: and the service is chosen again, for the calls that follow.
        """
        for key, value in self._global_kwargs.items():
            kwargs.setdefault(key, value)
        self._maybe_refresh_endpoint(reqid=kwargs.get("reqid"))
        query = {"id": account, **(params or {})}
        try:
            return self._request(method, action, params=query, **kwargs)
        except OioNetworkException as exc:
            if self._refresh_delay_s >= 0:
                self._leave_endpoint(exc, kwargs.get("reqid"))
            raise

    def _leave_endpoint(self, reason: OioNetworkException, reqid: str | None) -> None:
        """Choose a service again, at the next call when none can be had now."""
        self.logger.info("Choosing another account service than %s: %s", self.endpoint, reason)
        self.endpoint = None
        try:
            self._refresh_endpoint(reqid=reqid)
        except OioException as exc:
            self.logger.warning("No account service can be chosen now: %s (reqid=%s)", exc, reqid)

    def account_create(self, account: str, **kwargs: Any) -> bool:
        """Create an account; False when it existed."""
        resp, _body = self.account_request(account, "PUT", "create", **kwargs)
        return bool(resp.status == 201)

    def account_delete(self, account: str, **kwargs: Any) -> None:
        """Delete an account without containers."""
        self.account_request(account, "POST", "delete", **kwargs)

    def account_list(self, **kwargs: Any) -> list[str]:
        """Names of all accounts."""
        _resp, body = self.account_request(None, "GET", "list", **kwargs)
        return list(body)

    def account_show(self, account: str, **kwargs: Any) -> dict[str, Any]:
        """Counters and metadata."""
        _resp, body = self.account_request(account, "GET", "show", **kwargs)
        return dict(body)

    def account_update(
        self, account: str, metadata: dict[str, str] | None, to_delete: list[str] | None, **kwargs: Any
    ) -> None:
        """Delete, then set properties."""
        data = {"metadata": metadata, "to_delete": to_delete}
        self.account_request(account, "PUT", "update", data=text_of_json(data), **kwargs)

    def account_refresh(self, account: str, **kwargs: Any) -> None:
        """Have the counters of an account computed again from its containers."""
        self.account_request(account, "POST", "refresh", **kwargs)

    def account_flush(self, account: str, **kwargs: Any) -> None:
        """Have an account forget its containers, which themselves are left alone."""
        self.account_request(account, "POST", "flush", **kwargs)

    # --- buckets ---

    def bucket_list(
        self,
        account: str,
        limit: int | None = None,
        marker: str | None = None,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Buckets of an account: ``listing`` (dictionaries), ``truncated``, maybe ``next_marker``."""
        params = {"limit": limit, "marker": marker, "prefix": prefix}
        _resp, body = self.account_request(account, "GET", "buckets", params=params, **kwargs)
        return dict(body)

    def bucket_show(self, bucket: str, **kwargs: Any) -> dict[str, Any]:
        """Counters and metadata of a bucket."""
        _resp, body = self.account_request(bucket, "GET", "show-bucket", **kwargs)
        return dict(body)

    def bucket_update(
        self, bucket: str, metadata: dict[str, str] | None, to_delete: list[str] | None, **kwargs: Any
    ) -> dict[str, Any]:
        """Delete, then set metadata of a bucket. :returns: the bucket."""
        data = text_of_json({"metadata": metadata, "to_delete": to_delete})
        _resp, body = self.account_request(bucket, "PUT", "update-bucket", data=data, **kwargs)
        return dict(body)

    def bucket_refresh(self, bucket: str, **kwargs: Any) -> None:
        """Have the counters of a bucket computed again from its containers."""
        self.account_request(bucket, "POST", "refresh-bucket", **kwargs)

    # --- containers ---

    def container_list(
        self,
        account: str,
        limit: int | None = None,
        marker: str | None = None,
        end_marker: str | None = None,
        prefix: str | None = None,
        delimiter: str | None = None,
        s3_buckets_only: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The account, with ``listing``: entries ``[name, objects, bytes, is_prefix, mtime]``."""
        params = {
            "limit": limit, "marker": marker, "end_marker": end_marker, "prefix": prefix,
            "delimiter": delimiter, "s3_buckets_only": s3_buckets_only,
        }  # fmt: skip
        _resp, body = self.account_request(account, "GET", "containers", params=params, **kwargs)
        return dict(body)

    def container_show(self, account: str, container: str, **kwargs: Any) -> dict[str, Any]:
        """Counters of a container."""
        params = {"container": container}
        _resp, body = self.account_request(account, "GET", "show-container", params=params, **kwargs)
        return dict(body)

    def container_update(self, account: str, container: str, metadata: dict[str, Any], **kwargs: Any) -> Any:
        """Tell the state of a container. :raises Conflict: when it is older than what is known."""
        data = {**metadata, "name": container}
        _resp, body = self.account_request(account, "PUT", "container/update", data=text_of_json(data), **kwargs)
        return body

    def container_update_many(self, updates: list[dict[str, Any]], **kwargs: Any) -> list[dict[str, Any]]:
        """Tell the states of many containers, of any accounts, in one request.

        :param updates: what :meth:`container_update` sends, with ``account`` and ``name``.
        :returns: ``{"status": 200, "message": ""}`` for each, in order; 409 when it is older than what is known.
        """
        data = text_of_json(updates)
        _resp, body = self.account_request(None, "POST", "container/update-many", data=data, **kwargs)
        return list(body)

    def container_reset(self, account: str, container: str, mtime: float, **kwargs: Any) -> None:
        """Set the counters of a container to 0, as of this time.

        :raises NotFound: when the account does not know it. :raises Conflict: when it knows something newer.
        """
        data = text_of_json({"name": container, "mtime": mtime})
        self.account_request(account, "PUT", "container/reset", data=data, **kwargs)


class BatchingAccountClient:
    """The updates of containers that concurrent threads tell the account service, grouped.

    :param client: an ``AccountClient``.
    :param options: keywords of every request, such as ``read_timeout``.
    """

    def __init__(self, client: Any, batch_max: int = ITEMS_MAX, **options: Any) -> None:
        self._client = client
        self._options = options
        self._batcher: Batcher[tuple[str, str, dict[str, Any], str | None], None] = Batcher(self._send, batch_max)
        # False once the service told that it takes updates only one by one.
        self._grouped = True

    def container_update(
        self, account: str, container: str, metadata: dict[str, Any], reqid: str | None = None
    ) -> None:
        """Tell the state of a container.

        :raises Conflict: when it is older than what is known.
        :raises OioException: as ``AccountClient.container_update``.
        """
        self._batcher.submit((account, container, metadata, reqid))

    def _send(self, items: list[tuple[str, str, dict[str, Any], str | None]]) -> list[Any]:
        if self._grouped and len(items) > 1:
            body = [{**metadata, "account": account, "name": name} for account, name, metadata, _ in items]
            try:
                replies = self._client.container_update_many(
                    body, reqid=request_id("account-update-"), **self._options
                )
                return [_outcome(reply) for reply in replies]
            except (NotFound, MethodNotAllowed):
                self._grouped = False
        return [self._send_one(*item) for item in items]

    def _send_one(
        self, account: str, container: str, metadata: dict[str, Any], reqid: str | None
    ) -> OioException | None:
        try:
            self._client.container_update(account, container, metadata, reqid=reqid, **self._options)
        except OioException as exc:
            return exc
        return None


def _outcome(reply: dict[str, Any]) -> StatusMessageException | None:
    status = int(reply["status"])
    if status < 400:
        return None
    error: ClientException = from_status(status, str(reply.get("message") or "n/a"))
    return error
