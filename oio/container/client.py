# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``ContainerClient``: the ``container/*`` and ``content/*`` routes of the proxy, one method each.

A container is designated by ``account, reference`` or by the keyword ``cid``; an object by its ``path``, or
by its id (``content``). Unknown keywords go down to the HTTP layer, which ignores what it does not know.
Methods that read an object may be served from the keyword ``cache``; methods that change one drop its entry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from oio.api.base import text_of_json
from oio.common.cache import (
    del_cached_object_metadata,
    get_cached_object_metadata,
    set_cached_object_metadata,
)
from oio.common.easy_value import debinarize
from oio.common.exceptions import NotFound, OioException, TooLarge
from oio.conscience.client import ConscienceClient
from oio.container.metadata import (
    CHUNK_SYSMETA_PREFIX,
    CONTENT_HEADER_PREFIX,
    SYSMETA_KEYS,
    condition_headers,
    extract_chunk_qualities,
    extract_content_headers_meta,
)
from oio.container.routes import HTTP_NO_CONTENT, UNSET, ContainerRoutes

__all__ = [
    "CHUNK_SYSMETA_PREFIX",
    "CONTENT_HEADER_PREFIX",
    "SYSMETA_KEYS",
    "ContainerClient",
    "extract_chunk_qualities",
    "extract_content_headers_meta",
]

# Scores only weigh the choice between replicas of cached objects: half a minute of age does no harm.
REFRESH_RAWX_SCORES_DELAY_S = 30.0

# What HTTP clients say of a head with too many or too large properties (ours, and the standard one).
_HEAD_TOO_LARGE = ("got more than", "head of the answer too large", "too many headers")

_encode_json = msgspec.json.Encoder().encode


class ContainerClient(ContainerRoutes):
    """Client of containers and objects.

    >>> client = ContainerClient({"namespace": "OPENIO"})  # doctest: +SKIP
    >>> client.container_create("acme", "photos")  # doctest: +SKIP
    True

    :param refresh_rawx_scores_delay: seconds between two readings of the scores given to cached chunks.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        refresh_rawx_scores_delay: float = REFRESH_RAWX_SCORES_DELAY_S,
        **kwargs: Any,
    ) -> None:
        super().__init__(conf, **kwargs)
        kwargs["pool_manager"] = self.pool_manager
        self.conscience_client = ConscienceClient(conf, **kwargs)
        self.rawx_scores: dict[str, int] = {}
        self._refresh_rawx_scores_delay = float(refresh_rawx_scores_delay)
        self._rawx_scores_time: float | None = None
        self._rawx_scores_lock = threading.Lock()

    # --- objects: listing ---

    def content_list(
        self,
        account: str | None = None,
        reference: str | None = None,
        limit: int | None = None,
        marker: str | None = None,
        end_marker: str | None = None,
        prefix: str | None = None,
        delimiter: str | None = None,
        properties: bool = False,
        cid: str | None = None,
        versions: bool = False,
        deleted: bool = False,
        version_marker: int | None = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """List objects. :returns: headers of the answer, and its body."""
        path = kwargs.pop("path", None)
        params = self._extract_params(account, reference, path, cid, kwargs)
        params.update(
            {
                "max": limit,
                "marker": marker,
                "end_marker": end_marker,
                "prefix": prefix,
                "delimiter": delimiter,
                "properties": properties,
            }
        )
        if versions:
            params["all"] = "1"
        if deleted:
            params["deleted"] = "1"
        if version_marker is not None:
            params["version_marker"] = version_marker
        if kwargs.pop("local", False):
            params["local"] = "1"
        resp, body = self._direct_request(
            "GET", self._make_uri("container/list"), params=params, path=path, **kwargs
        )
        return resp.headers, body

    # --- objects: writing ---

    def content_prepare(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        position: int = 0,
        size: int | None = None,
        cid: str | None = None,
        stgpol: str | None = None,
        content_id: str | None = None,
        version: Any = UNSET,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Ask where to write. :returns: metadata of the object to be, and chunks of its metachunks."""
        params = self._make_params(account, reference, path, cid, content_id)
        if version is not UNSET:
            params["version"] = version
        more = kwargs.pop("params", None)
        if more:
            params.update(more)
        if stgpol:
            data = text_of_json({"size": size, "position": position, "policy": stgpol})
        else:
            data = f'{{"size": {"null" if size is None else size}, "position": {position}}}'
        try:
            resp, body = self._direct_request(
                "POST", self._base_uri + "content/prepare2", params=params, data=data, **kwargs
            )
        except NotFound:
            resp, chunks = self._direct_request(
                "POST", self._base_uri + "content/prepare", params=params, data=data, **kwargs
            )
            return extract_content_headers_meta(resp.headers), chunks
        meta = extract_content_headers_meta(resp.headers)
        meta["properties"] = body.get("properties") or {}
        return meta, body["chunks"]

    def content_create(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        size: int | None = None,
        checksum: str | None = None,
        data: Any = None,
        cid: str | None = None,
        content_id: str | None = None,
        stgpol: str | None = None,
        version: Any = None,
        mime_type: str | None = None,
        chunk_method: str | None = None,
        headers: dict[str, Any] | None = None,
        append: bool = False,
        change_policy: bool = False,
        force: bool = False,
        if_match: Any = None,
        if_none_match: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Declare an object whose chunks are written.

        :param data: ``{"chunks": […], "properties": {…}, "container_properties": {…}}``.
        :param if_match: hash that the object in place must have (or several, or ``*`` for any).
        :param if_none_match: hash that it must not have, ``*`` when there must be none.
            :raises ClientPreconditionFailed: when a condition does not hold.
        :keyword meta_pos: replace the chunks of these positions, instead of making a new version.
        """
        params = self._make_params(account, reference, path, cid)
        # A copy: what describes this object must not follow the caller's headers to another one.
        sent = dict(headers) if headers else {}
        sent["x-oio-content-meta-length"] = str(size)
        for name, value in (
            ("x-oio-content-meta-hash", checksum),
            ("x-oio-content-meta-id", content_id),
            ("x-oio-content-meta-policy", stgpol),
            ("x-oio-content-meta-version", version),
            ("x-oio-content-meta-mime-type", mime_type),
            ("x-oio-content-meta-chunk-method", chunk_method),
        ):
            if value is not None:
                sent[name] = str(value)
        if if_match is not None or if_none_match is not None:
            sent.update(condition_headers(if_match, if_none_match))
        if isinstance(data, (list, tuple)):
            data = {"chunks": data}
        if kwargs.pop("meta_pos", None) is not None:
            params["id"] = content_id
            body = _encode_body(data["chunks"])
            target = "content/update"
        else:
            if append:
                params["append"] = "1"
            if change_policy:
                params["change_policy"] = "1"
            body = _encode_body(data)
            target = "content/create"
        forget = (account, reference, path, cid)
        return self._change(target, params, body, forget, headers=sent, **kwargs)

    def content_delete(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        cid: str | None = None,
        version: Any = None,
        if_match: Any = None,
        if_none_match: Any = None,
        **kwargs: Any,
    ) -> bool:
        """Delete an object, or one version of it; conditions as in ``content_create``."""
        if if_match is not None or if_none_match is not None:
            conditions = condition_headers(if_match, if_none_match)
            kwargs["headers"] = {**(kwargs.get("headers") or {}), **conditions}
        return self._change_content("content/delete", account, reference, path, cid, version, kwargs)

    def content_delete_many(
        self,
        account: str | None = None,
        reference: str | None = None,
        paths: Iterable[str] = (),
        cid: str | None = None,
        **kwargs: Any,
    ) -> list[tuple[str, bool]]:
        """Delete objects. :returns: pairs (name, was it deleted?), in order."""
        names = list(paths)
        try:
            _resp, body = self._change(
                "content/delete_many",
                self._make_params(account, reference, cid=cid),
                text_of_json({"contents": [{"name": name} for name in names]}),
                **kwargs,
            )
        except TooLarge:
            if len(names) < 2:
                raise
            half = len(names) // 2
            return [
                pair
                for part in (names[:half], names[half:])
                for pair in self.content_delete_many(account, reference, part, cid=cid, **kwargs)
            ]
        except NotFound:
            return [(name, self._try_delete(account, reference, name, cid, kwargs)) for name in names]
        finally:
            for name in names:
                del_cached_object_metadata(account, reference, name, cid, cache=kwargs.get("cache"))
        if body is None:
            # The first, unanswered request did it.
            return [(name, True) for name in names]
        return [(item["name"], item["status"] == HTTP_NO_CONTENT) for item in body["contents"]]

    def _try_delete(
        self, account: Any, reference: Any, name: str, cid: str | None, kwargs: dict[str, Any]
    ) -> bool:
        try:
            return self.content_delete(account, reference, name, cid=cid, **kwargs)
        except OioException as exc:
            self.logger.debug("Failed to delete %s: %s", name, exc)
            return False

    def content_drain(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        cid: str | None = None,
        version: Any = None,
        **kwargs: Any,
    ) -> bool:
        """Remove the data of an object, keep its metadata."""
        return self._change_content("content/drain", account, reference, path, cid, version, kwargs)

    def content_touch(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        cid: str | None = None,
        version: Any = None,
        **kwargs: Any,
    ) -> None:
        """Have the event of the object's creation sent again."""
        params = self._make_params(account, reference, path, cid, version=version)
        self._change("content/touch", params, **kwargs)

    def content_truncate(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        cid: str | None = None,
        version: Any = None,
        size: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Drop what lies beyond ``size``, which must be a boundary of metachunks."""
        params = self._make_params(account, reference, path, cid, version=version)
        params["size"] = size
        forget = (account, reference, path, cid)
        _resp, body = self._change("content/truncate", params, forget=forget, **kwargs)
        return body

    def content_purge(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        cid: str | None = None,
        maxvers: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Remove the exceeding versions of an object."""
        params = self._make_params(account, reference, path, cid)
        if maxvers is not None:
            params["maxvers"] = maxvers
        self._change("content/purge", params, forget=(account, reference, path, cid), **kwargs)

    def _change_content(
        self,
        target: str,
        account: Any,
        reference: Any,
        path: Any,
        cid: str | None,
        version: Any,
        kwargs: dict[str, Any],
    ) -> bool:
        params = self._make_params(account, reference, path, cid, version=version)
        forget = (account, reference, path, cid)
        resp, _body = self._change(target, params, forget=forget, **kwargs)
        return resp is None or resp.status == HTTP_NO_CONTENT

    # --- objects: reading ---

    def content_locate(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        cid: str | None = None,
        content: str | None = None,
        version: Any = UNSET,
        properties: bool = True,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Find an object. :returns: its metadata and its chunks."""
        params = self._make_params(account, reference, path, cid, content or kwargs.pop("content_id", None))
        if version is not UNSET:
            params["version"] = version
        else:
            version = None
        params["properties"] = properties
        cached = kwargs.get("cache") is not None and bool(path) and not params.get("content")
        if cached:
            meta, chunks = get_cached_object_metadata(
                account=account,
                reference=reference,
                path=path,
                cid=cid,
                version=version,
                properties=properties,
                **kwargs,
            )
            if meta is not None and chunks is not None:
                return meta, self._add_replica_scores(chunks, **kwargs)
        more = kwargs.pop("params", None)
        if more:
            params.update(more)
        try:
            meta, chunks = self._locate(params, **kwargs)
        except OioException as exc:
            # Properties travel as headers, and clients bound the size of a head.
            if not properties or not any(text in str(exc) for text in _HEAD_TOO_LARGE):
                raise
            params["properties"] = False
            meta, chunks = self._locate(params, **kwargs)
            asked = {"cid": cid, "content": content, "version": version, **kwargs, "cache": None}
            shown = self.content_get_properties(account, reference, path, **asked)
            meta["properties"] = shown["properties"]
        if cached:
            set_cached_object_metadata(
                meta,
                chunks,
                account=account,
                reference=reference,
                path=path,
                cid=cid,
                version=version,
                properties=properties,
                **kwargs,
            )
        return meta, chunks

    def _locate(self, params: dict[str, Any], **kwargs: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        resp, chunks = self._direct_request(
            "GET", self._base_uri + "content/locate", params=params, **kwargs
        )
        return extract_content_headers_meta(resp.headers), chunks

    def content_get_properties(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        properties: Sequence[str] | None = None,
        cid: str | None = None,
        content: str | None = None,
        version: Any = UNSET,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Metadata of an object, with its properties."""
        params = self._make_params(account, reference, path, cid, content or kwargs.pop("content_id", None))
        if version is not UNSET:
            params["version"] = version
        else:
            version = None
        cached = kwargs.get("cache") is not None and bool(path) and not params.get("content")
        names: dict[str, Any] = {"account": account, "reference": reference, "path": path, "cid": cid}
        if cached:
            meta, _chunks = get_cached_object_metadata(**names, version=version, properties=True, **kwargs)
            if meta is not None:
                return meta
        more = kwargs.pop("params", None)
        if more:
            params.update(more)
        resp, body = self._direct_request(
            "POST",
            self._base_uri + "content/get_properties",
            params=params,
            data=text_of_json(properties) if properties else None,
            **kwargs,
        )
        meta = extract_content_headers_meta(resp.headers)
        if body:
            meta["properties"].update(body.get("properties") or {})
        if cached:
            set_cached_object_metadata(meta, None, **names, version=version, properties=True, **kwargs)
        return meta

    def _add_replica_scores(self, chunks: list[dict[str, Any]], **kwargs: Any) -> list[dict[str, Any]]:
        """Give their present score to chunks that come from the cache."""
        self._maybe_refresh_rawx_scores(kwargs)
        scores = self.rawx_scores
        for chunk in chunks:
            chunk["score"] = scores.get(chunk["url"].split("/", 3)[2], 0)
        return chunks

    def _maybe_refresh_rawx_scores(self, kwargs: Mapping[str, Any]) -> None:
        """Start reading the scores again when they are old; never waits."""
        now_s = time.monotonic()
        with self._rawx_scores_lock:
            last_s = self._rawx_scores_time
            if last_s is not None and now_s - last_s < self._refresh_rawx_scores_delay:
                return
            self._rawx_scores_time = now_s
        thread = threading.Thread(target=self._refresh_rawx_scores, args=(kwargs.get("reqid"),), daemon=True)
        thread.start()

    def _refresh_rawx_scores(self, reqid: str | None = None, **_kwargs: Any) -> None:
        try:
            services = self.conscience_client.all_services("rawx", reqid=reqid)
        except OioException as exc:
            self.logger.warning("Failed to refresh the scores of rawx services: %s", exc)
            return
        scores: dict[str, int] = {}
        for service in services:
            scores[service["addr"]] = scores[service["id"]] = service["score"]
        self.rawx_scores = scores

    # --- objects: properties ---

    def content_set_properties(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        properties: Mapping[str, str] | None = None,
        cid: str | None = None,
        version: Any = None,
        clear: bool = False,
        **kwargs: Any,
    ) -> None:
        """Set properties; an empty value deletes. :param clear: remove the others first."""
        params = self._make_params(account, reference, path, cid, version=version)
        if clear:
            params["flush"] = 1
        data = text_of_json({"properties": properties or {}})
        forget = (account, reference, path, cid)
        self._change("content/set_properties", params, data, forget, **kwargs)

    def content_del_properties(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        properties: Iterable[str] = (),
        cid: str | None = None,
        version: Any = None,
        **kwargs: Any,
    ) -> bool:
        """Delete properties, all of them when the list is empty."""
        params = self._make_params(account, reference, path, cid, version=version)
        data = text_of_json(list(properties))
        forget = (account, reference, path, cid)
        resp, _body = self._change("content/del_properties", params, data, forget, **kwargs)
        return resp is None or resp.status == HTTP_NO_CONTENT

    # --- objects: repair ---

    def content_spare(
        self,
        account: str | None = None,
        reference: str | None = None,
        path: str | None = None,
        version: Any = UNSET,
        data: Mapping[str, Any] | None = None,
        cid: str | None = None,
        stgpol: str | None = None,
        position: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Ask for replacements of chunks.

        :param data: ``{"notin": [good chunks], "broken": [chunks to replace]}``.
        :returns: ``{"chunks": [{"id": url, …}], "properties": [{"key": …, "value": …}]}``.
        """
        if stgpol is None or position is None:
            raise ValueError("stgpol and position cannot be None")
        params = self._make_params(account, reference, path, cid, kwargs.pop("content_id", None))
        if version is not UNSET:
            params["version"] = version
        params["stgpol"] = stgpol
        params["position"] = position
        more = kwargs.pop("params", None)
        if more:
            params.update(more)
        _resp, body = self._change("content/spare", params, text_of_json(data), **kwargs)
        return body


def _encode_body(value: Any) -> bytes:
    try:
        return _encode_json(value)
    except (TypeError, UnicodeEncodeError):
        return text_of_json(debinarize(value)).encode()
