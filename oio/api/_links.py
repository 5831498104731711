# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Shallow copies: new objects made of hard links to the chunks of another.

No data is moved: each chunk gets a second name on its own rawx, and the new object is declared with these
names. The two objects then live and die apart. When a step fails the links made so far are deleted; the
chunks they were made from are never touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from oio.api._objects_write import ObjectWriteMethods, was_refused
from oio.api.io import LinkHandler
from oio.common.constants import OIO_VERSION
from oio.common.decorators import api_call, raise_no_such_object
from oio.common.exceptions import (
    BadRequest,
    ClientException,
    ClientPreconditionFailed,
    DeadlineReached,
    NotFound,
    UnfinishedUploadException,
)
from oio.common.fullpath import encode_fullpath
from oio.common.storage_functions import _sort_chunks
from oio.common.storage_method import STORAGE_METHODS
from oio.common.utils import cid_from_name, set_deadline_from_read_timeout

# What a shallow copy has in common with its source.
_COPIED_KEYS = ("policy", "chunk_method", "length", "size", "hash", "hash_method", "mime_type")


class LinkMethods(ObjectWriteMethods):
    """Methods that link objects."""

    @api_call()
    def object_link(
        self,
        target_account: str,
        target_container: str,
        target_obj: str | None,
        link_account: str,
        link_container: str,
        link_obj: str,
        target_version: Any = None,
        target_content_id: str | None = None,
        link_content_id: str | None = None,
        properties_directive: str = "COPY",
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Make an object (the link) of the chunks of another (the target), without moving data.

        The link may have the name of an existing object, even the target's: it is then a new version of it.

        :param target_version: version to link, instead of the latest; ``target_content_id`` likewise.
        :param link_content_id: id to give to the new object.
        :param properties_directive: ``COPY`` the properties of the target, or ``REPLACE`` them by the
            keyword ``metadata``, else by the keyword ``properties``, else by none.
        :keyword if_match: condition on the object that has the name of the link; ``if_none_match`` likewise.
        :returns: metadata of the new object.
        :raises NoSuchObject: when the target is missing. A missing container of the link is ``NotFound``.
        """
        metadata, properties = kwargs.pop("metadata", None), kwargs.pop("properties", None)
        if properties_directive not in ("COPY", "REPLACE"):
            raise BadRequest(
                message=f"Invalid properties_directive {properties_directive!r}: COPY or REPLACE is expected"
            )
        # These are the target's, or would be ambiguous.
        for name in ("cid", "policy", "mime_type"):
            kwargs.pop(name, None)
        version = kwargs.pop("version", None)
        try:
            target, chunks = self.container.content_locate(
                target_account,
                target_container,
                target_obj,
                version=target_version,
                content=target_content_id,
                properties=properties_directive == "COPY",
                **{**kwargs, "cache": None},
            )
        except NotFound as err:
            raise_no_such_object(err, target_account, target_container, target_obj)
        if properties_directive == "COPY":
            properties = target["properties"]
        else:
            properties = dict(metadata or properties or {})
        given = {**kwargs, "version": version, "content_id": link_content_id}
        link = self._link_meta(target, link_account, link_container, link_obj, given)
        link["properties"] = properties
        self._link_and_commit(link, link_account, link_container, chunks, kwargs)
        return link

    def object_fastcopy(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Make a shallow copy (deprecated: ``object_link``)."""
        warnings.warn("object_fastcopy: use object_link", DeprecationWarning, stacklevel=2)
        return self.object_link(*args, **kwargs)

    def _link_meta(
        self,
        target: Mapping[str, Any],
        account: str,
        container: str,
        obj: str,
        kwargs: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Metadata of the object to be. Its version comes from the proxy, like those of uploads: clocks of
        clients may differ, and the order of versions must not.
        """
        link, _chunks = self.container.content_prepare(
            account, container, obj, size=1, stgpol=target["policy"], **kwargs
        )
        link.update({key: target[key] for key in _COPIED_KEYS if key in target})
        link["content_path"] = obj
        link["container_id"] = cid_from_name(account, container)
        link["ns"] = self.namespace
        link["full_path"] = encode_fullpath(account, container, obj, link["version"], link["id"])
        link["oio_version"] = link.get("oio_version") or OIO_VERSION
        return link

    def _link_and_commit(
        self,
        link: dict[str, Any],
        account: str,
        container: str,
        chunks: list[dict[str, Any]],
        kwargs: dict[str, Any],
    ) -> None:
        cid = link["container_id"]
        try:
            linked = self._link_chunks(
                chunks, link["full_path"], link["chunk_method"], link["policy"], **kwargs
            )
        except UnfinishedUploadException as exc:
            self.logger.warning("Link to %s failed, deleting its chunks: %s", link["full_path"], exc.exception)
            self._delete_orphan_chunks(exc.chunks_already_uploaded, cid, **kwargs)
            exc.reraise()
        commit = {**kwargs, "version": link["version"], "content_id": link["id"]}
        set_deadline_from_read_timeout(commit, force=True)
        try:
            self.container.content_create(
                account,
                container,
                link["content_path"],
                size=link["length"],
                checksum=link["hash"] or None,
                data={"chunks": linked, "properties": link["properties"]},
                stgpol=link["policy"],
                mime_type=link["mime_type"],
                chunk_method=link["chunk_method"],
                **commit,
            )
        except (ClientException, DeadlineReached) as exc:
            if isinstance(exc, ClientPreconditionFailed) and exc.retried:
                if self._is_in_place(account, container, link["content_path"], commit):
                    return
                exc.retried = False
            if was_refused(exc):
                self.logger.warning("Failed to commit %s, deleting its chunks: %s", link["full_path"], exc)
                self._delete_orphan_chunks(linked, cid, **kwargs)
            raise

    def _link_chunks(
        self, chunks: list[dict[str, Any]], full_path: str, chunk_method: str, policy: str, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Make a hard link to each chunk of an object.

        :param full_path: full path of the new object.
        :returns: the new chunks; those whose link failed are left out, as far as the quorum allows.
        :raises UnfinishedUploadException: below the quorum, with the links made so far.
        """
        method = STORAGE_METHODS.load(chunk_method)
        groups = _sort_chunks(chunks, method.ec, self.logger)
        passed = {**kwargs, "logger": self.logger}
        return LinkHandler(full_path, groups, method, self.blob_client, policy, **passed).link()
