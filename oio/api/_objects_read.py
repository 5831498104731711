# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Methods of ``ObjectStorageApi`` that read objects: download, metadata, listings.

Data errors surface while the stream of a download is read. A download whose metadata came from the cache may
have been told about chunks that are gone: it then forgets the entry and starts again, once, provided that
nothing was delivered yet.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from oio.api._core import ApiCore
from oio.common.cache import del_cached_object_metadata
from oio.common.constants import REQID_HEADER
from oio.common.decorators import api_call, raise_no_such_container, raise_no_such_object
from oio.common.easy_value import true_value
from oio.common.exceptions import (
    NoSuchContainer,
    NoSuchObject,
    NotFound,
    OioException,
    UnrecoverableContent,
)
from oio.common.storage_functions import _sort_chunks, open_stream
from oio.common.storage_method import STORAGE_METHODS
from oio.common.utils import cid_from_name

Range = tuple[int | None, int | None]

_CID_PATTERN = re.compile(r"([0-9A-Fa-f]{64})(\.[0-9]+)?")
_LISTING_KEYS = (("chunk-method", "chunk_method"), ("mime-type", "mime_type"))


class ObjectReadMethods(ApiCore):
    """Methods that read objects."""

    # --- data ---

    @api_call(raise_no_such_object)
    def object_fetch(
        self,
        account: str,
        container: str,
        obj: str,
        version: Any = None,
        ranges: Iterable[Range] | None = None,
        key_file: str | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], Iterator[bytes]]:
        """Download an object.

        >>> meta, stream = api.object_fetch("acme", "photos", "cat.jpg")  # doctest: +SKIP
        >>> data = b"".join(stream)  # doctest: +SKIP

        :param ranges: inclusive ``(start, end)`` pairs, given back in this order without separator;
            ``(None, n)`` is the last n bytes, ``(start, None)`` goes to the end.
        :returns: the metadata, and a generator of blocks of any size.
        :raises NoSuchObject: at once. While reading: ``UnrecoverableContent`` when every copy of a part is
            missing, ``ServiceUnavailable`` when it cannot be read for another reason.
        """
        meta, stream = self._object_fetch_impl(
            account, container, obj, version=version, ranges=ranges, key_file=key_file, **kwargs
        )
        if kwargs.get("cache") is not None:
            stream = self._fetch_again_if_stale(
                meta, stream, account, container, obj, version, ranges, key_file, kwargs
            )
        return meta, stream

    def _object_fetch_impl(
        self,
        account: str,
        container: str,
        obj: str,
        version: Any = None,
        ranges: Iterable[Range] | None = None,
        key_file: str | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], Iterator[bytes]]:
        cid = kwargs.get("cid")
        if cid:
            match = _CID_PATTERN.fullmatch(cid)
            if match is None:
                raise OioException(f"Invalid cid: {cid}")
            container_id = match[1].upper()
        else:
            container_id = cid_from_name(account, container)
        meta, raw_chunks = self.container.content_locate(account, container, obj, version=version, **kwargs)
        storage_method = STORAGE_METHODS.load(meta["chunk_method"])
        chunks = _sort_chunks(raw_chunks, storage_method.ec, self.logger)
        meta["container_id"] = container_id
        meta["ns"] = self.namespace
        kwargs["headers"] = {REQID_HEADER: kwargs["reqid"]} if kwargs.get("reqid") else {}
        return meta, open_stream(chunks, ranges, storage_method, **kwargs)

    def _fetch_again_if_stale(
        self,
        meta: dict[str, Any],
        stream: Iterator[bytes],
        account: str,
        container: str,
        obj: str,
        version: Any,
        ranges: Iterable[Range] | None,
        key_file: str | None,
        kwargs: dict[str, Any],
    ) -> Iterator[bytes]:
        delivered = False
        try:
            for block in stream:
                delivered = True
                yield block
            return
        except UnrecoverableContent:
            del_cached_object_metadata(
                account=account, reference=container, path=obj, **{**kwargs, "version": version}
            )
            if delivered:
                raise
        self.logger.debug("Chunks of %s/%s/%s moved since they were cached", account, container, obj)
        try:
            fresh, stream = self._object_fetch_impl(
                account, container, obj, version=version, ranges=ranges, key_file=key_file, **kwargs
            )
        except NotFound as err:
            raise_no_such_object(err, account, container, obj)
        meta.clear()
        meta.update(fresh)
        yield from stream

    # --- metadata ---

    @api_call(raise_no_such_object)
    def object_locate(
        self,
        account: str,
        container: str,
        obj: str | None,
        version: Any = None,
        chunk_info: bool = False,
        properties: bool = True,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], Any]:
        """Find the chunks of an object.

        :param chunk_info: ask every rawx about its chunk; the second element is then a generator.
        :keyword content: id of the object, instead of its name.
        :returns: metadata, and chunks ``{"url": …, "real_url": …, "pos": "0", "size": 4096, "hash": …,
            "score": 90}``.
        """
        meta, chunks = self.container.content_locate(
            account, container, obj, version=version, properties=properties, **kwargs
        )
        if chunk_info:
            return meta, self._chunks_with_info(chunks, kwargs)
        return meta, chunks

    def _chunks_with_info(
        self, chunks: list[dict[str, Any]], kwargs: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        for chunk in sorted(chunks, key=_numeric_position):
            try:
                told = self.blob_client.chunk_head(chunk["url"], **kwargs)
            except OioException as exc:
                chunk["error"] = str(exc)
            else:
                for key in ("chunk_size", "chunk_hash", "full_path"):
                    chunk[key] = told.get(key)
            yield chunk

    def object_analyze(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        """Find the chunks of an object (deprecated: ``object_locate``)."""
        warnings.warn("object_analyze: use object_locate", DeprecationWarning, stacklevel=2)
        return self.object_locate(*args, **kwargs)

    @api_call(raise_no_such_object)
    def object_get_properties(
        self, account: str, container: str, obj: str, version: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Metadata of an object: texts, and ``properties``. A delete marker can be read too."""
        return self.container.content_get_properties(account, container, obj, version=version, **kwargs)

    def object_show(
        self, account: str, container: str, obj: str, version: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Metadata of an object (deprecated: ``object_get_properties``)."""
        warnings.warn("object_show: use object_get_properties", DeprecationWarning, stacklevel=2)
        return self.object_get_properties(account, container, obj, version=version, **kwargs)

    def object_head(
        self, account: str, container: str, obj: str, trust_level: int = 0, **kwargs: Any
    ) -> bool:
        """Does an object exist?

        :param trust_level: 0 asks the directory (a delete marker exists); 2 asks every rawx too.
        """
        try:
            if trust_level == 0:
                self.object_get_properties(account, container, obj, **kwargs)
            elif trust_level == 1:
                raise NotImplementedError()
            elif trust_level == 2:
                _meta, chunks = self.object_locate(account, container, obj, **kwargs)
                for chunk in chunks:
                    self._head_chunk(chunk["url"], **kwargs)
            else:
                raise ValueError("`trust_level` must be between 0 and 2")
        except (NotFound, NoSuchObject, NoSuchContainer):
            return False
        return True

    @api_call()
    def _head_chunk(self, url: str, **kwargs: Any) -> dict[str, Any]:
        return self.blob_client.chunk_head(url, **kwargs)

    # --- listings ---

    @api_call(raise_no_such_container)
    def object_list(
        self,
        account: str,
        container: str,
        limit: int | None = None,
        marker: str | None = None,
        delimiter: str | None = None,
        prefix: str | None = None,
        end_marker: str | None = None,
        properties: bool = False,
        versions: bool = False,
        deleted: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """List the objects of a container, one page.

        :param limit: objects and prefixes of the page (default 1000, at most 10000).
        :param marker: name after which the page begins, e.g. ``next_marker`` of the previous one.
        :param delimiter: cut names after this character, into ``prefixes``.
        :param properties: with the properties of objects.
        :param versions: every version, delete markers included.
        :param deleted: also objects whose latest version is a delete marker.
        :keyword version_marker: ``next_version_marker`` of the previous page: with ``versions``, begin with the
            versions of ``marker`` that are lower. A marker alone skips what is left of them.
        :returns: ``objects``, ``prefixes``, ``properties``, ``system``, ``truncated``, ``next_marker``, and
            ``next_version_marker`` when the page ends amid the versions of a name.
        """
        version_marker: int | None = kwargs.get("version_marker")
        headers, listing = self.container.content_list(
            account,
            container,
            limit=limit,
            marker=marker,
            end_marker=end_marker,
            prefix=prefix,
            delimiter=delimiter,
            properties=properties,
            versions=versions,
            deleted=deleted,
            **kwargs,
        )
        latest = {marker: version_marker} if marker and version_marker is not None else {}
        objects = listing["objects"]
        for item in objects:
            for sent, key in _LISTING_KEYS:
                if sent in item:
                    item[key] = item.pop(sent)
            version = item.get("version")
            if version is not None:
                name = item["name"]
                version = item["version"] = int(version)
                if version > latest.get(name, -1):
                    latest[name] = version
        for item in objects:
            if item.get("version") is not None:
                item["is_latest"] = not versions or item["version"] == latest[item["name"]]
        listing["truncated"] = true_value(headers.get("x-oio-list-truncated"))
        next_marker = headers.get("x-oio-list-marker")
        if next_marker is not None:
            listing["next_marker"] = unquote(next_marker)
        next_version = headers.get("x-oio-list-version-marker")
        if next_version is not None:
            listing["next_version_marker"] = int(next_version)
        return listing


def _numeric_position(chunk: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in str(chunk["pos"]).split("."))
