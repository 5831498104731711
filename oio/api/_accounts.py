# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Methods of ``ObjectStorageApi`` on accounts, and the list of the containers of an account.

Accounts are counters fed by events: what they tell follows the containers after a short while. The
``refresh`` methods repair what was lost.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from oio.api._core import ApiCore
from oio.common.decorators import (
    CONTAINER_NOT_FOUND_CODES,
    api_call,
    raise_no_such_account,
    raise_no_such_container,
)
from oio.common.exceptions import ClientException, Conflict, NoSuchAccount, NoSuchContainer
from oio.common.utils import list_of_names


class AccountMethods(ApiCore):
    """Methods on accounts."""

    @api_call(raise_no_such_account)
    def account_create(self, account: str, **kwargs: Any) -> bool:
        """Create an account. :returns: False when it existed."""
        return self.account.account_create(account, **kwargs)

    @api_call(raise_no_such_account)
    def account_delete(self, account: str, **kwargs: Any) -> None:
        """Delete an account. :raises Conflict: when it has containers."""
        self.account.account_delete(account, **kwargs)

    @api_call(raise_no_such_account)
    def account_show(self, account: str, **kwargs: Any) -> dict[str, Any]:
        """Describe an account: ``id``, ``ctime``, ``bytes``, ``objects``, ``containers``, ``metadata``…"""
        return self.account.account_show(account, **kwargs)

    @api_call()
    def account_list(self, **kwargs: Any) -> list[str]:
        """Names of the accounts."""
        return self.account.account_list(**kwargs)

    @api_call(raise_no_such_account)
    def account_get_properties(self, account: str, **kwargs: Any) -> dict[str, Any]:
        """Describe an account, its metadata under ``properties``."""
        described = self.account.account_show(account, **kwargs)
        described["properties"] = described.pop("metadata", {})
        return described

    @api_call(raise_no_such_account)
    def account_set_properties(self, account: str, properties: Mapping[str, str], **kwargs: Any) -> None:
        """Set properties of an account."""
        self.account.account_update(account, dict(properties), None, **kwargs)

    @api_call(raise_no_such_account)
    def account_del_properties(self, account: str, properties: Iterable[str], **kwargs: Any) -> None:
        """Delete properties of an account."""
        self.account.account_update(account, None, list_of_names(properties), **kwargs)

    @api_call(raise_no_such_account)
    def account_refresh(self, account: str | None = None, **kwargs: Any) -> None:
        """Compute the counters of an account again, then have each of its containers tell its own.

        :param account: all accounts when None; what vanishes meanwhile is ignored.
        """
        if account is None:
            for name in self.account_list(**kwargs):
                try:
                    self.account_refresh(name, **kwargs)
                except NoSuchAccount:
                    self.logger.info("Account %s was deleted while accounts were refreshed", name)
            return
        self.account.account_refresh(account, **kwargs)
        marker = None
        while page := self.container_list(account, marker=marker, **kwargs):
            for container, *_counters in page:
                try:
                    self.container_refresh(account, container, **kwargs)
                except NoSuchContainer:
                    self.logger.info("Container %s of account %s was deleted meanwhile", container, account)
                except Conflict as exc:
                    # What the account knows is later than now: it needs no repair, and others may.
                    self.logger.info("Container %s of account %s is not refreshed: %s", container, account, exc)
            marker = page[-1][0]

    def all_accounts_refresh(self, **kwargs: Any) -> None:
        """Refresh all accounts (deprecated: ``account_refresh``)."""
        warnings.warn("all_accounts_refresh: use account_refresh", DeprecationWarning, stacklevel=2)
        self.account_refresh(**kwargs)

    @api_call(raise_no_such_account)
    def account_flush(self, account: str, **kwargs: Any) -> None:
        """Have an account forget all its containers, which themselves are left alone."""
        self.account.account_flush(account, **kwargs)

    # --- buckets ---

    @api_call(raise_no_such_account)
    def bucket_list(
        self,
        account: str,
        limit: int | None = None,
        marker: str | None = None,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """List the buckets of an account, by name.

        :returns: ``{"listing": [{"name": "b", "objects": 3, "bytes": 42, "mtime": 1.5}, …], "truncated": False,
            …}``, with ``next_marker`` when it is truncated.
        """
        return self.account.bucket_list(account, limit=limit, marker=marker, prefix=prefix, **kwargs)

    @api_call()
    def bucket_show(self, bucket: str, **kwargs: Any) -> dict[str, Any]:
        """Describe a bucket: ``account``, ``objects``, ``bytes``, ``replication_enabled``…

        :raises NotFound: when nothing is known of it.
        """
        return self.account.bucket_show(bucket, **kwargs)

    @api_call()
    def bucket_update(
        self,
        bucket: str,
        metadata: Mapping[str, str] | None = None,
        to_delete: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Delete, then set metadata of a bucket, which may not exist yet. :returns: the bucket."""
        names = None if to_delete is None else list_of_names(to_delete)
        return self.account.bucket_update(bucket, dict(metadata or {}), names, **kwargs)

    @api_call()
    def bucket_refresh(self, bucket: str, **kwargs: Any) -> None:
        """Compute the counters of a bucket again from what the account knows of its containers.

        :raises NotFound: when nothing is known of it. :raises Conflict: when this is under way already.
        """
        self.account.bucket_refresh(bucket, **kwargs)

    # --- containers of an account ---

    @api_call(raise_no_such_container)
    def container_refresh(self, account: str, container: str, attempts: int = 3, **kwargs: Any) -> None:
        """Have the account take the counters of a container again.

        :param attempts: tries while the account takes other news of the container.
        :raises NoSuchContainer: when the account does not know it. A container that the account knows
            and that does not exist is removed from the account.
        """
        for attempt in range(1, attempts + 1):
            try:
                self.account.container_reset(account, container, time.time(), **kwargs)
                break
            except Conflict:
                if attempt >= attempts:
                    raise
        try:
            self.container.container_touch(account, container, **kwargs)
        except ClientException as exc:
            if exc.status not in CONTAINER_NOT_FOUND_CODES:
                raise
            self.account.container_update(account, container, {"dtime": time.time()}, **kwargs)

    @api_call(raise_no_such_account)
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
    ) -> list[list[Any]]:
        """List the containers of an account, by name.

        :returns: ``[[name, objects, bytes, is it a prefix? (0 or 1), mtime], …]``.
        """
        body = self.account.container_list(
            account,
            limit=limit,
            marker=marker,
            end_marker=end_marker,
            prefix=prefix,
            delimiter=delimiter,
            s3_buckets_only=s3_buckets_only,
            **kwargs,
        )
        listing: list[list[Any]] = body["listing"]
        return listing
