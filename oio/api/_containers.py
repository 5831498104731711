# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Methods of ``ObjectStorageApi`` on containers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from oio.api._objects_read import ObjectReadMethods
from oio.api._objects_write import ObjectWriteMethods
from oio.common.constants import M2_PROP_VERSIONING_POLICY, SIMULATEVERSIONING_HEADER
from oio.common.decorators import CONTAINER_NOT_FOUND_CODES, api_call, raise_no_such_container
from oio.common.exceptions import ClientException, NotFound, OioException
from oio.common.utils import list_of_names

# Most entries that a service gives in one page.
LISTING_PAGE = 10000
# Most names that the proxy takes in one deletion (variable ``proxy.bulk.max.delete_many``, default).
DELETION_BATCH = 100

_LISTING_KEYWORDS = (
    "limit", "marker", "version_marker", "end_marker", "prefix", "delimiter", "properties", "versions", "deleted",
)  # fmt: skip


class ContainerMethods(ObjectReadMethods, ObjectWriteMethods):
    """Methods on containers."""

    @api_call()
    def resolve_cid(self, cid: str, **kwargs: Any) -> tuple[str, str]:
        """Find the account and the name of a container. :raises NoSuchContainer: when there is no such id."""
        try:
            reference = self.directory.list(cid=cid, **kwargs)
        except NotFound as err:
            raise_no_such_container(err, None, cid)
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
        if recompute:
            # Flags: the container counts, in one transaction, what would take one request per object here.
            kwargs.update(recompute=True, damaged_objects=True, missing_chunks=True)
        self.container.container_touch(account, container, **kwargs)

    @api_call(raise_no_such_container)
    def container_flush(self, account: str, container: str, fast: bool = False, **kwargs: Any) -> None:
        """Delete all the objects of a container.

        :param fast: have the container delete everything, every version included, in a few requests. Else
            objects are listed (keywords as in ``object_list``) and deleted like ``object_delete_many`` does.
        :raises OioException: when nothing in a page of objects can be deleted.
        """
        if fast:
            while self.container.container_flush(account, container, **kwargs)["truncated"]:
                self.logger.debug("Container %s/%s is being flushed", account, container)
            return
        listing = {key: value for key, value in kwargs.items() if key not in ("versions", "deleted")}
        for key in _LISTING_KEYWORDS:
            kwargs.pop(key, None)
        while True:
            page = self.object_list(account, container, **listing)
            names = [item["name"] for item in page["objects"]]
            if not names and page.get("truncated"):
                # Only names that are hidden by delete markers so far.
                listing["marker"] = page["next_marker"]
                continue
            if not names:
                return
            done = False
            for start in range(0, len(names), DELETION_BATCH):
                batch = names[start : start + DELETION_BATCH]
                for name, deleted in self.object_delete_many(account, container, batch, **kwargs):
                    done = done or deleted
                    if not deleted:
                        self.logger.warning("Failed to delete %s from %s/%s", name, account, container)
            if not done:
                raise OioException(f"None of the {len(names)} objects of {account}/{container} could be deleted")

    @api_call(raise_no_such_container)
    def container_purge(
        self, account: str, container: str, maxvers: int | None = None, **kwargs: Any
    ) -> None:
        """Delete the exceeding versions of each object. Delete markers are neither counted nor deleted.

        :param maxvers: versions to keep (0: one, negative: all), instead of what the container's property
            ``sys.m2.policy.version`` says, or else the variable ``meta2.max_versions``.
        """
        keep = self._versions_to_keep(account, container, maxvers, kwargs)
        if keep < 0:
            return
        name, kept = None, 0

        def purge_at_once(crowded: str) -> None:
            self.container.content_purge(account, container, crowded, maxvers=max(keep, 1), **kwargs)

        # A container that keeps no versions any more would refuse to delete one by its number.
        deletion = {**kwargs, "headers": {**(kwargs.get("headers") or {}), SIMULATEVERSIONING_HEADER: "1"}}
        for item in self._all_versions(account, container, kwargs, purge_at_once):
            if item["deleted"]:
                continue
            if item["name"] != name:
                name, kept = item["name"], 0
            kept += 1
            if kept <= max(keep, 1):
                continue
            try:
                self.container.content_delete(account, container, name, version=item["version"], **deletion)
            except NotFound as exc:
                if exc.status in CONTAINER_NOT_FOUND_CODES:
                    raise
                self.logger.debug("Version %d of %s was deleted meanwhile", item["version"], name)

    def _versions_to_keep(
        self, account: str, container: str, maxvers: int | None, kwargs: Mapping[str, Any]
    ) -> int:
        if maxvers is not None:
            return int(maxvers)
        system = self.container_get_properties(account, container, **{**kwargs, "cache": None})["system"]
        told = system.get(M2_PROP_VERSIONING_POLICY)
        if told is None:
            passed = {key: kwargs[key] for key in ("headers", "reqid", "deadline") if key in kwargs}
            _resp, variables = self.proxy_client._request("GET", "v3.0/config", **passed)
            told = variables["meta2.max_versions"]
        return int(told)

    def _all_versions(
        self,
        account: str,
        container: str,
        kwargs: Mapping[str, Any],
        on_crowded: Callable[[str], None] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield every version of every object, by name, the latest first.

        A page may end amid the versions of a name, and markers are names: the last name of a page is left
        to the next one.

        :param on_crowded: takes care of a name that has more versions than a page; then none is yielded.
        :raises OioException: when there is such a name and nobody to take care of it.
        """
        marker = None
        while True:
            page = self.object_list(
                account, container, limit=LISTING_PAGE, marker=marker, versions=True, **kwargs
            )
            items = page["objects"]
            if not page["truncated"] or not items:
                yield from items
                return
            last = items[-1]["name"]
            whole = [item for item in items if item["name"] != last]
            yield from whole
            marker = whole[-1]["name"] if whole else last
            if not whole:
                if on_crowded is None:
                    raise OioException(f"{last} has more than {len(items)} versions in {account}/{container}")
                on_crowded(last)
