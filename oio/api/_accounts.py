# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Methods of ``ObjectStorageApi`` on accounts, and the list of the containers of an account.

Accounts are counters fed by events: what they tell follows the containers after a short while.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from oio.api._core import ApiCore
from oio.common.decorators import api_call, raise_no_such_account
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
