# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Truncation of objects.

Metachunks beyond the new size are dropped by the directory. When the size falls inside a metachunk, what is
kept of it is downloaded and written again at the same position. Steps are ordered so that the object is a
prefix of what it was at every moment, whatever step fails.
"""

from __future__ import annotations

from typing import Any

from oio.api._objects_write import ObjectWriteMethods, was_refused
from oio.common.constants import REQID_HEADER
from oio.common.decorators import api_call, raise_no_such_object
from oio.common.exceptions import ClientException, DeadlineReached, OioException
from oio.common.storage_functions import _sort_chunks, open_stream
from oio.common.storage_method import STORAGE_METHODS
from oio.common.utils import GeneratorIO, set_deadline_from_read_timeout

Groups = dict[int, list[dict[str, Any]]]

# What the requests made on the way are given otherwise.
_OWN_KEYWORDS = frozenset({"version", "content_id", "policy", "meta_pos", "if_match", "if_none_match"})


class TruncateMethods(ObjectWriteMethods):
    """Truncation of objects."""

    @api_call(raise_no_such_object)
    def object_truncate(
        self,
        account: str,
        container: str,
        obj: str,
        version: Any = None,
        size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Keep the first ``size`` bytes of an object. Its hash is then unknown.

        :param version: version to truncate, instead of the latest.
        :returns: body of the answer.
        :raises OioException: when the size is not between 0 and the length of the object.
        """
        meta, raw_chunks = self.container.content_locate(
            account, container, obj, version=version, properties=False, **{**kwargs, "cache": None}
        )
        method = STORAGE_METHODS.load(meta["chunk_method"])
        groups = _sort_chunks(raw_chunks, method.ec, self.logger)
        position = _metachunk_at(groups, size)
        if position is None or size is None:
            raise OioException(
                f"Cannot truncate {obj} to {size} bytes: a size from 0 to {meta['length']} is expected"
            )
        first, end = _extent(groups[position])
        # The very version that was located, even when another one comes meanwhile.
        exact = {**kwargs, "version": meta["version"]}
        if size in (first, end):
            return self.container.content_truncate(account, container, obj, size=size, **exact)
        return self._cut_metachunk(account, container, obj, meta, groups, position, size, kwargs)

    def _cut_metachunk(
        self,
        account: str,
        container: str,
        obj: str,
        meta: dict[str, Any],
        groups: Groups,
        position: int,
        size: int,
        kwargs: dict[str, Any],
    ) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if key not in _OWN_KEYWORDS}
        first, end = _extent(groups[position])
        method = STORAGE_METHODS.load(meta["chunk_method"])
        reading = {**kwargs, "headers": {REQID_HEADER: kwargs["reqid"]}}
        kept = GeneratorIO(open_stream(groups, [(first, size - 1)], method, **reading))
        written, handler, preparer = self._object_prepare(
            account,
            container,
            obj,
            kept,
            {"mime_type": meta.get("mime_type")},
            policy=meta["policy"],
            in_place=meta,
            content_id=meta["id"],
            meta_pos=position,
            **kwargs,
        )
        cid = written["container_id"]
        upload_kwargs = {name: value for name, value in kwargs.items() if name != "cid"}
        chunks, length, checksum = self._object_upload(handler, preparer, cid, **upload_kwargs)
        set_deadline_from_read_timeout(kwargs, force=True)
        try:
            if end < int(meta["length"]):
                self.container.content_truncate(
                    account, container, obj, version=meta["version"], size=end, **kwargs
                )
            _resp, body = self.container.content_create(
                account,
                container,
                obj,
                size=length,
                checksum=checksum,
                data={"chunks": chunks, "properties": written["properties"]},
                content_id=meta["id"],
                version=meta["version"],
                stgpol=meta["policy"],
                mime_type=meta.get("mime_type"),
                chunk_method=meta["chunk_method"],
                meta_pos=position,
                **kwargs,
            )
        except (ClientException, DeadlineReached) as exc:
            if was_refused(exc):
                self.logger.warning("Failed to truncate %s, deleting the new chunks: %s", obj, exc)
                self._delete_orphan_chunks(chunks, cid, **upload_kwargs)
            raise
        return body


def _extent(group: list[dict[str, Any]]) -> tuple[int, int]:
    """Offsets of the beginning and of the end of a metachunk."""
    first = int(group[0]["offset"])
    return first, first + int(group[0]["size"])


def _metachunk_at(groups: Groups, size: Any) -> int | None:
    """Position of the first metachunk that begins at or before ``size``, and ends at or after it."""
    if not isinstance(size, int):
        return None
    for position in sorted(groups):
        first, end = _extent(groups[position])
        if first <= size <= end:
            return position
    return None
