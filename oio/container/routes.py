# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ``container/*`` routes of the proxy, one method each: first half of ``ContainerClient``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from oio.api.base import text_of_json
from oio.common.cache import (
    del_cached_container_metadata,
    del_cached_object_metadata,
    get_cached_container_metadata,
    set_cached_container_metadata,
)
from oio.common.client import ProxyClient
from oio.common.exceptions import (
    Conflict,
    ContainerNotEmpty,
    NotFound,
    OioException,
    TooLarge,
    from_response,
)
from oio.common.status import CONTAINER_EXISTS

HTTP_CREATED = 201
HTTP_NO_CONTENT = 204

# Default of keywords whose presence matters, even with None.
UNSET: Any = object()


class ContainerRoutes(ProxyClient):
    """Methods on containers."""

    def __init__(self, conf: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(conf, request_prefix="/container", **kwargs)
        self._base_uri = f"{self.proxy_scheme}://{self.proxy_netloc}/v3.0/{self.ns}/"

    # --- building requests ---

    def _make_uri(self, target: str) -> str:
        return self._base_uri + target

    def _make_params(
        self,
        account: Any = None,
        reference: Any = None,
        path: Any = None,
        cid: str | None = None,
        content: str | None = None,
        version: Any = None,
    ) -> dict[str, Any]:
        params: dict[str, Any] = {"cid": cid} if cid else {"acct": account, "ref": reference}
        if path:
            params["path"] = path
        if content:
            params["content"] = content
        if version:
            params["version"] = version
        return params

    def _extract_params(
        self, account: Any, reference: Any, path: Any, cid: str | None, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Build the query of the methods that accept ``params``; takes its parts out of the keywords."""
        params = self._make_params(
            account,
            reference,
            path,
            cid,
            kwargs.pop("content", None) or kwargs.pop("content_id", None),
        )
        version = kwargs.pop("version", UNSET)
        if version is not UNSET:
            params["version"] = version
        more = kwargs.pop("params", None)
        if more:
            params.update(more)
        return params

    def _change(
        self,
        target: str,
        params: dict[str, Any],
        data: Any = None,
        forget: tuple[Any, Any, Any, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Send a change.

        :param forget: account, reference, path and cid of the cache entry to drop. It is dropped after the
            answer, whatever it is: before, a concurrent reader could put the old state back.
        """
        if data is not None:
            kwargs["data"] = data
        if forget is None or kwargs.get("cache") is None:
            return self._direct_request("POST", self._base_uri + target, params=params, **kwargs)
        try:
            return self._direct_request("POST", self._base_uri + target, params=params, **kwargs)
        finally:
            account, reference, path, cid = forget
            if path is None:
                del_cached_container_metadata(account, reference, cid, kwargs["cache"])
            else:
                del_cached_object_metadata(account, reference, path, cid, cache=kwargs["cache"])

    # --- containers: life ---

    def container_create(
        self,
        account: str,
        reference: str,
        properties: Mapping[str, str] | None = None,
        system: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> bool:
        """Create a container. :returns: False when it existed (its properties are then unchanged)."""
        data = text_of_json({"properties": properties or {}, "system": system or {}})
        resp, body = self._change("container/create", self._make_params(account, reference), data, **kwargs)
        # No answer: a retried request met its own first success.
        if resp is None or resp.status == HTTP_CREATED:
            return True
        if resp.status == HTTP_NO_CONTENT:
            return False
        raise from_response(resp, body)

    def container_create_many(
        self,
        account: str,
        containers: Iterable[str],
        properties: Mapping[str, str] | None = None,
        system: Mapping[str, str] | None = None,
        on_failure: Callable[[str, str], None] | None = None,
        **kwargs: Any,
    ) -> list[tuple[str, bool]]:
        """Create containers. :returns: pairs (name, was it created?), in order.

        :param on_failure: called with the name and the cause of those that could not be created; they are
            logged when it is None. A container that was there is no failure.
        """
        names = list(containers)
        tell = on_failure or self._log_not_created
        items = [{"name": name, "properties": properties or {}, "system": system or {}} for name in names]
        try:
            _resp, body = self._change(
                "container/create_many",
                {"acct": account},
                text_of_json({"containers": items}),
                **kwargs,
            )
        except TooLarge:
            if len(names) < 2:
                raise
            half = len(names) // 2
            return [
                pair
                for part in (names[:half], names[half:])
                for pair in self.container_create_many(
                    account, part, properties=properties, system=system, on_failure=on_failure, **kwargs
                )
            ]
        except NotFound:
            # Batches are not served: one by one.
            results = []
            for name in names:
                try:
                    created = self.container_create(
                        account, name, properties=properties, system=system, **kwargs
                    )
                except OioException as exc:
                    tell(name, str(exc))
                    created = False
                results.append((name, created))
            return results
        if body is None:
            # The first, unanswered request did it.
            return [(name, True) for name in names]
        for item in body["containers"]:
            if item["status"] not in (HTTP_CREATED, CONTAINER_EXISTS):
                tell(item["name"], f"{item.get('message')} (STATUS {item['status']})")
        return [(item["name"], item["status"] == HTTP_CREATED) for item in body["containers"]]

    def _log_not_created(self, name: str, cause: str) -> None:
        self.logger.warning("Failed to create container %s: %s", name, cause)

    def container_delete(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        force: bool = False,
        **kw: Any,
    ) -> None:
        """Delete an empty container. :raises ContainerNotEmpty: when it is not.

        :param force: even when it holds objects; their chunks are then left to nobody.
        """
        params = self._make_params(account, reference, cid=cid)
        if force:
            params["force"] = 1
        try:
            self._change("container/destroy", params, forget=(account, reference, None, cid), **kw)
        except Conflict as exc:
            raise ContainerNotEmpty(*exc.args) from exc

    def container_show(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        **kw: Any,
    ) -> dict[str, Any]:
        """Describe a container: ``{"properties": {…}}``."""
        params = self._make_params(account, reference, cid=cid)
        _resp, body = self._direct_request("GET", self._make_uri("container/show"), params=params, **kw)
        return body

    def container_touch(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        recompute: bool = False,
        damaged_objects: int | None = None,
        missing_chunks: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Have the container tell its state (to the account service).

        :param recompute: count objects and bytes again first, and set the two other figures.
        """
        params = self._make_params(account, reference, cid=cid)
        if recompute:
            params["recompute"] = True
            params["damaged_objects"] = damaged_objects
            params["missing_chunks"] = missing_chunks
        self._change("container/touch", params, **kwargs)

    def container_dedup(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        **kw: Any,
    ) -> None:
        """Merge identical contents of a container (services may not support it)."""
        self._change("container/dedup", self._make_params(account, reference, cid=cid), **kw)

    def container_purge(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        maxvers: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Remove exceeding versions. :param maxvers: versions to keep, instead of the container's rule."""
        params = self._make_params(account, reference, cid=cid)
        if maxvers is not None:
            params["maxvers"] = maxvers
        self._change("container/purge", params, **kwargs)

    def container_flush(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        **kw: Any,
    ) -> dict[str, bool]:
        """Remove a batch of objects. :returns: ``{"truncated": True}`` while some remain."""
        resp, _body = self._change("container/flush", self._make_params(account, reference, cid=cid), **kw)
        return {"truncated": resp is not None and _is_true(resp.headers.get("x-oio-truncated"))}

    def container_snapshot(
        self,
        account: str | None = None,
        reference: str | None = None,
        dst_account: str | None = None,
        dst_reference: str | None = None,
        cid: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Copy the base of a frozen container under another name. :returns: the HTTP response."""
        resp, _body = self._change(
            "container/snapshot",
            self._make_params(account, reference, cid=cid),
            text_of_json({"account": dst_account, "container": dst_reference}),
            **kwargs,
        )
        return resp

    def container_enable(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        **kw: Any,
    ) -> Any:
        """Accept writes again. :returns: the HTTP response."""
        return self._set_status("admin/enable", account, reference, cid, kw)

    def container_freeze(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        **kw: Any,
    ) -> Any:
        """Refuse writes from now on. :returns: the HTTP response."""
        return self._set_status("admin/freeze", account, reference, cid, kw)

    def _set_status(
        self, target: str, account: Any, reference: Any, cid: str | None, kw: dict[str, Any]
    ) -> Any:
        params = self._make_params(account, reference, cid=cid)
        params["type"] = "meta2"
        resp, _body = self._change(target, params, forget=(account, reference, None, cid), **kw)
        return resp

    # --- containers: properties ---

    def container_get_properties(
        self,
        account: str | None = None,
        reference: str | None = None,
        properties: Sequence[str] | None = None,
        cid: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Properties of a container: ``{"properties": {…}, "system": {…}}``.

        :keyword params: more query parameters, e.g. ``service_id``; the cache is then left alone.
        """
        special = bool(kwargs.get("params"))
        if not special:
            known = get_cached_container_metadata(account=account, reference=reference, cid=cid, **kwargs)
            if known is not None:
                return known
        path = kwargs.pop("path", None)
        cache = kwargs.get("cache")
        params = self._extract_params(account, reference, path, cid, kwargs)
        _resp, body = self._direct_request(
            "POST",
            self._make_uri("container/get_properties"),
            params=params,
            data=text_of_json(properties or []),
            path=path,
            **kwargs,
        )
        if not special:
            set_cached_container_metadata(body, account=account, reference=reference, cid=cid, cache=cache)
        return body

    def container_set_properties(
        self,
        account: str | None = None,
        reference: str | None = None,
        properties: Mapping[str, str] | None = None,
        clear: bool = False,
        cid: str | None = None,
        system: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Set properties; an empty value deletes. :param clear: remove other user properties first."""
        params = self._make_params(account, reference, cid=cid)
        if clear:
            params["flush"] = 1
        data = text_of_json({"properties": properties or {}, "system": system or {}})
        forget = (account, reference, None, cid)
        _resp, body = self._change("container/set_properties", params, data, forget, **kwargs)
        return body

    def container_del_properties(
        self,
        account: str | None = None,
        reference: str | None = None,
        properties: Iterable[str] = (),
        cid: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Delete user properties, all of them when the list is empty."""
        _resp, body = self._change(
            "container/del_properties",
            self._make_params(account, reference, cid=cid),
            text_of_json(list(properties)),
            (account, reference, None, cid),
            **kwargs,
        )
        return body

    # --- containers: raw rows ---

    def container_raw_insert(
        self,
        bean: Mapping[str, Any],
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        frozen: bool = False,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        """Insert a row.

        :param frozen: even when the container is frozen.
        :param strict: raise ``NotFound`` when the chunk is not what the metachunk has by now, ``Conflict`` when
            its service has another chunk of the metachunk.
        """
        params = self._raw_params(account, reference, cid, frozen, strict)
        self._change("container/raw_insert", params, text_of_json([bean]), **kwargs)

    def container_raw_update(
        self,
        old: Sequence[Mapping[str, Any]],
        new: Sequence[Mapping[str, Any]],
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        frozen: bool = False,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        """Replace rows one for one. :param frozen: and ``strict``: see ``container_raw_insert``."""
        params = self._raw_params(account, reference, cid, frozen, strict)
        data = text_of_json({"old": old, "new": new})
        self._change("container/raw_update", params, data, **kwargs)

    def container_raw_delete(
        self,
        account: str | None = None,
        reference: str | None = None,
        data: Sequence[Mapping[str, Any]] | None = None,
        cid: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Delete rows."""
        params = self._make_params(account, reference, cid=cid)
        self._change("container/raw_delete", params, text_of_json(data), **kwargs)

    def _raw_params(
        self, account: str | None, reference: str | None, cid: str | None, frozen: bool, strict: bool
    ) -> dict[str, Any]:
        params = self._make_params(account, reference, cid=cid)
        for name, value in (("frozen", frozen), ("strict", strict)):
            if value:
                params[name] = 1
        return params


def _is_true(text: Any) -> bool:
    return isinstance(text, str) and unquote(text).strip().lower() in ("true", "1", "yes", "on")
