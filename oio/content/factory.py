# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""How maintenance gets objects: from the directory, or new."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from oio.blob.client import BlobClient
from oio.common.exceptions import ContentNotFound, NotFound
from oio.common.logger import get_logger
from oio.common.storage_method import STORAGE_METHODS
from oio.container.client import ContainerClient
from oio.content.content import Content
from oio.content.ec import ECContent
from oio.content.plain import PlainContent


class ContentFactory:
    """Makes :class:`Content` objects, which share its clients.

    >>> factory = ContentFactory({"namespace": "NS"})  # doctest: +SKIP
    >>> content = factory.get_by_path_and_version(cid, "cat.jpg", None)  # doctest: +SKIP

    :param conf: must hold ``namespace``.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        container_client: ContainerClient | None = None,
        blob_client: BlobClient | None = None,
        logger: Any = None,
        **kwargs: Any,
    ) -> None:
        self.conf = conf
        self.logger = logger or get_logger(dict(conf), "oio.content")
        self.container_client = container_client or ContainerClient(conf, logger=self.logger, **kwargs)
        self.blob_client = blob_client or BlobClient(
            conf, logger=self.logger, connection_pool=self.container_client.pool_manager, **kwargs
        )

    def get(
        self,
        container_id: str,
        content_id: str,
        account: str | None = None,
        container_name: str | None = None,
        **kwargs: Any,
    ) -> Content:
        """The object of that id. :raises ContentNotFound: when there is none."""
        try:
            meta, chunks = self.container_client.content_locate(cid=container_id, content=content_id, **kwargs)
        except NotFound as err:
            raise ContentNotFound(f"Content {container_id}/{content_id} not found: {err}") from err
        return self._make(container_id, meta, chunks, account, container_name, **kwargs)

    def get_by_path_and_version(
        self,
        container_id: str,
        path: str,
        version: Any,
        account: str | None = None,
        container_name: str | None = None,
        **kwargs: Any,
    ) -> Content:
        """The object of that name. :param version: None for the latest.

        :raises ContentNotFound: when there is none.
        """
        try:
            meta, chunks = self.container_client.content_locate(
                cid=container_id, path=path, version=version, **kwargs
            )
        except NotFound as err:
            raise ContentNotFound(f"Content {container_id}/{path}/{version} not found: {err}") from err
        return self._make(container_id, meta, chunks, account, container_name, **kwargs)

    def new(
        self,
        container_id: str,
        path: str,
        size: int,
        policy: str | None,
        account: str | None = None,
        container_name: str | None = None,
        content_id: str | None = None,
        version: Any = None,
        **kwargs: Any,
    ) -> Content:
        """An object to be, with services chosen for all its chunks. Nothing is stored until ``create()``."""
        meta, chunks = self._prepare(container_id, path, size, policy, content_id, version, **kwargs)
        return self._make(container_id, meta, chunks, account, container_name, **kwargs)

    def copy(self, origin: Content, policy: str | None = None, **kwargs: Any) -> Content:
        """An unsaved copy of an object under the same name: new id, next version, another policy if told."""
        content_id = os.urandom(16).hex().upper()
        version = int(origin.version) + 1
        prepared, chunks = self._prepare(
            origin.container_id, origin.path, origin.length, policy or origin.policy, content_id, version, **kwargs
        )
        # What the object says of itself is the origin's; where and how it is stored, what was prepared.
        meta = {key: value for key, value in origin.metadata.items() if key != "full_path"}
        for key in ("chunk_method", "chunk_size", "policy"):
            if key in prepared:
                meta[key] = prepared[key]
        meta["id"] = content_id
        meta["version"] = str(version)
        meta["properties"] = {**_user_properties(origin), **(prepared.get("properties") or {})}
        return self._make(origin.container_id, meta, chunks, origin.account, origin.container_name, **kwargs)

    def _prepare(
        self,
        container_id: str,
        path: str,
        size: int,
        policy: str | None,
        content_id: str | None,
        version: Any,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        meta, chunks = self.container_client.content_prepare(
            cid=container_id, path=path, size=size, stgpol=policy, content_id=content_id, version=version, **kwargs
        )
        meta["length"] = str(size)
        meta.setdefault("name", path)
        meta.setdefault("hash", None)
        return meta, chunks

    def _make(
        self,
        container_id: str,
        meta: dict[str, Any],
        chunks: list[dict[str, Any]],
        account: str | None,
        container_name: str | None,
        **kwargs: Any,
    ) -> Content:
        method = STORAGE_METHODS.load(meta["chunk_method"])
        if not account or not container_name:
            system = self.container_client.container_get_properties(cid=container_id, **kwargs)["system"]
            account = account or system["sys.account"]
            container_name = container_name or system["sys.user.name"]
        kind = ECContent if method.ec else PlainContent
        return kind(
            self.conf, container_id, meta, chunks, method, account, container_name,
            blob_client=self.blob_client, container_client=self.container_client, logger=self.logger,
        )  # fmt: skip


def _user_properties(content: Content) -> dict[str, Any]:
    """Properties of an object, without what concerns its chunks."""
    return {key: value for key, value in content.properties.items() if not key.startswith("__OIO_CHUNK__")}
