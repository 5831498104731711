# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Rebuilding one chunk, whatever names it: its URL, its id, or its position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from oio.api._transport import failures
from oio.common.decorators import ensure_request_id2
from oio.common.exceptions import ContentNotFound, OrphanChunk
from oio.common.logger import get_logger
from oio.content.content import Content
from oio.content.factory import ContentFactory

# Positions are short, chunk ids have 24 digits at least.
_POSITION_LENGTH_MAX = 10


class RdirClient(Protocol):
    """What the operator needs of the reverse directory of chunks."""

    def chunk_delete(
        self, volume_id: str, container_id: str, content_id: str, chunk_id: str, **kwargs: Any
    ) -> object:
        """Forget that a volume holds a chunk."""


def looks_like_chunk_position(somestring: str) -> bool:
    """Whether a text is a position (``0``, ``12.3``) and not the id of a chunk."""
    text = str(somestring)
    if len(text) > _POSITION_LENGTH_MAX:
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


class ChunkOperator:
    """Rebuilds chunks.

    :param conf: must hold ``namespace``.
    :keyword rdir_client: reverse directory whose entries about lost chunks are removed. Without one, nothing is
        removed: the entry stays until the volume is indexed again.
    :keyword content_factory: where objects come from.
    """

    def __init__(self, conf: Mapping[str, Any], logger: Any = None, **kwargs: Any) -> None:
        self.conf = conf
        self.logger = logger or get_logger(dict(conf), "oio.blob")
        self.rdir_client: RdirClient | None = kwargs.pop("rdir_client", None)
        self.content_factory: ContentFactory = kwargs.pop("content_factory", None) or ContentFactory(
            conf, logger=self.logger, **kwargs
        )

    @ensure_request_id2("rebuild-")
    def rebuild(
        self,
        container_id: str,
        content_id: str,
        chunk_id_or_pos: str,
        rawx_id: str | None = None,
        try_chunk_delete: bool = False,
        allow_frozen_container: bool = True,
        allow_same_rawx: bool = True,
        read_all_available_sources: bool = False,
        **kwargs: Any,
    ) -> int:
        """Rebuild a chunk. :returns: the number of bytes of the new one.

        :param chunk_id_or_pos: URL, id or position of the chunk; a URL tells the service too.
        :param rawx_id: service that has lost the chunk.
        :param try_chunk_delete: delete the old chunk afterwards, if it is still there.
        :raises OrphanChunk: the object does not exist, or the chunk does not belong to it.
        """
        try:
            content = self.content_factory.get(container_id, content_id, **kwargs)
        except ContentNotFound as err:
            raise OrphanChunk(f"Content not found: possible orphan chunk {chunk_id_or_pos}: {err}") from err
        options = {
            "allow_same_rawx": allow_same_rawx,
            "allow_frozen_container": allow_frozen_container,
            "read_all_available_sources": read_all_available_sources,
            **kwargs,
        }
        if looks_like_chunk_position(chunk_id_or_pos):
            return content.rebuild_chunk(None, service_id=rawx_id, chunk_pos=str(chunk_id_or_pos), **options)
        chunk_id = chunk_id_or_pos
        if "/" in chunk_id_or_pos:
            host, _, chunk_id = chunk_id_or_pos.partition("://")[2].partition("/")
            rawx_id = host or rawx_id
        candidates = content.chunks.filter(id=chunk_id, host=rawx_id)
        chunk = candidates.one()
        if chunk is None:
            where = f" on {rawx_id}" if rawx_id else ""
            raise OrphanChunk(
                f"Chunk not found in content {container_id}/{content_id}: possible orphan chunk "
                f"{chunk_id}{where} ({len(candidates)} candidates)"
            )
        old_url, old_host = chunk.url, chunk.host
        size = content.rebuild_chunk(chunk_id, service_id=old_host, **options)
        if not content.occupies(old_url):
            if try_chunk_delete:
                self._delete_old(content, old_url, **kwargs)
            self._forget_old(old_host, container_id, content_id, chunk_id, **kwargs)
        return size

    def _delete_old(self, content: Content, url: str, **kwargs: Any) -> None:
        try:
            content.blob_client.chunk_delete(url, **kwargs)
        except failures() as err:
            self.logger.warning("cannot delete the old chunk %s: %s", url, err)
        else:
            self.logger.info("old chunk %s deleted", url)

    def _forget_old(self, rawx_id: str, container_id: str, content_id: str, chunk_id: str, **kwargs: Any) -> None:
        if self.rdir_client is None:
            return
        try:
            self.rdir_client.chunk_delete(rawx_id, container_id, content_id, chunk_id, **kwargs)
        except failures() as err:
            self.logger.warning("cannot remove the chunk %s of %s from rdir: %s", chunk_id, rawx_id, err)
