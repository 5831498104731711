# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Methods of ``ObjectStorageApi`` on containers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from oio.api._core import ApiCore
from oio.common.decorators import api_call, raise_no_such_container
from oio.common.exceptions import ClientException, OioException
from oio.common.storage_method import STORAGE_METHODS
from oio.common.utils import list_of_names

# Most entries that a service gives in one page.
LISTING_PAGE = 10000


class ContainerMethods(ApiCore):
    """Methods on containers."""

    @api_call()
    def resolve_cid(self, cid: str, **kwargs: Any) -> tuple[str, str]:
        """Find the account and the name of a container."""
        reference = self.directory.list(cid=cid, **kwargs)
        return reference["account"], reference["name"]

    @api_call(raise_no_such_container)
    def container_create(
        self,
        account: str,
        container: str,
        properties: Mapping[str, str] | None = None,
        system: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> bool:
        """Create a container.

        :param system: properties of the system, e.g. ``{"sys.m2.policy.version": "-1"}``.
        :returns: False when the container existed (it is then left unchanged).
        """
        return self.container.container_create(account, container, properties=properties, system=system, **kwargs)

    @api_call(raise_no_such_container)
    def container_create_many(
        self,
        account: str,
        containers: Iterable[str],
        properties: Mapping[str, str] | None = None,
        system: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> list[tuple[str, bool]]:
        """Create containers. :returns: pairs (name, was it created?)."""
        return self.container.container_create_many(
            account, list_of_names(containers), properties=properties, system=system, **kwargs
        )

    @api_call(raise_no_such_container)
    def container_delete(self, account: str, container: str, **kwargs: Any) -> None:
        """Delete a container and its reference.

        :raises ContainerNotEmpty: when it holds objects.
        """
        self.container.container_delete(account, container, **kwargs)
        # The container is gone: what may still be linked to the reference is no reason to fail.
        try:
            self.directory.delete(account, container, **kwargs)
        except ClientException as exc:
            self.logger.debug("Reference %s/%s was not deleted: %s", account, container, exc)
        except OioException as exc:
            self.logger.warning("Reference %s/%s was not deleted: %s", account, container, exc)

    @api_call(raise_no_such_container)
    def container_show(self, account: str, container: str, **kwargs: Any) -> dict[str, Any]:
        """Describe a container."""
        return self.container.container_show(account, container, **kwargs)

    @api_call(raise_no_such_container)
    def container_get_properties(
        self, account: str, container: str, properties: Sequence[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Properties of a container.

        :returns: ``{"properties": {"color": "blue"}, "system": {"sys.m2.objects": "3", …}}``.
        """
        return self.container.container_get_properties(account, container, properties=properties, **kwargs)

    @api_call(raise_no_such_container)
    def container_set_properties(
        self,
        account: str,
        container: str,
        properties: Mapping[str, str] | None = None,
        clear: bool = False,
        system: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Set properties of a container; an empty value deletes.

        :param clear: remove the other user properties.
        """
        return self.container.container_set_properties(
            account, container, properties, clear=clear, system=system, **kwargs
        )

    @api_call(raise_no_such_container)
    def container_del_properties(
        self, account: str, container: str, properties: Iterable[str], **kwargs: Any
    ) -> Any:
        """Delete user properties of a container; all of them when the list is empty."""
        return self.container.container_del_properties(
            account, container, list_of_names(properties), **kwargs
        )

    def container_update(
        self,
        account: str,
        container: str,
        metadata: Mapping[str, str],
        clear: bool = False,
        **kwargs: Any,
    ) -> None:
        """Set properties, or delete them all when there is none (deprecated)."""
        warnings.warn("container_update: use container_set_properties", DeprecationWarning, 2)
        if metadata:
            self.container_set_properties(account, container, metadata, clear, **kwargs)
        else:
            self.container_del_properties(account, container, [], **kwargs)

    @api_call(raise_no_such_container)
    def container_touch(self, account: str, container: str, recompute: bool = False, **kwargs: Any) -> None:
        """Have a container tell its state.

        :param recompute: count its objects, bytes, damaged objects and missing chunks again.
        :raises Forbidden: when the container does not exist.
        """
        if not recompute:
            self.container.container_touch(account, container, **kwargs)
            return
        damaged, missing = self._count_missing_chunks(account, container, kwargs)
        self.container.container_touch(
            account,
            container,
            recompute=True,
            damaged_objects=damaged,
            missing_chunks=missing,
            **kwargs,
        )

    def _count_missing_chunks(self, account: str, container: str, kwargs: dict[str, Any]) -> tuple[int, int]:
        """Count the objects that lack chunks, and the chunks they lack, from the directory."""
        kwargs = {**kwargs, "cache": None}
        damaged = missing = 0
        for item in self._all_versions(account, container, kwargs):
            if item["deleted"] or not item.get("chunk_method"):
                continue
            lacking = self._lacking_chunks(account, container, item, kwargs)
            if lacking:
                damaged += 1
                missing += lacking
        return damaged, missing

    def _all_versions(self, account: str, container: str, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield every version of every object.

        A page may end amid the versions of a name, and markers are names: the last name of a page is left
        to the next one, unless it fills the page alone.
        """
        marker = None
        while True:
            page = self.object_list(  # type: ignore[attr-defined]
                account, container, limit=LISTING_PAGE, marker=marker, versions=True, **kwargs
            )
            items = page["objects"]
            if not page["truncated"] or not items:
                yield from items
                return
            last = items[-1]["name"]
            whole = [item for item in items if item["name"] != last]
            yield from whole or items
            marker = whole[-1]["name"] if whole else page["next_marker"]

    def _lacking_chunks(
        self, account: str, container: str, item: Mapping[str, Any], kwargs: dict[str, Any]
    ) -> int:
        try:
            _meta, chunks = self.container.content_locate(
                account,
                container,
                item["name"],
                version=item["version"],
                properties=False,
                **kwargs,
            )
        except ClientException as exc:
            if exc.http_status in (404, 410):
                # Deleted or drained since the listing.
                return 0
            raise
        expected = STORAGE_METHODS.load(item["chunk_method"]).expected_chunks
        found: dict[str, int] = {}
        for chunk in chunks:
            position = str(chunk["pos"]).split(".", 1)[0]
            found[position] = found.get(position, 0) + 1
        return sum(max(expected - count, 0) for count in found.values())
