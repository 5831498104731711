# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Objects whose chunks are made of fragments."""

from __future__ import annotations

from typing import Any

from oio.api.ec import ECRebuildHandler, ECWriteHandler
from oio.common import exceptions as exc
from oio.common.constants import OIO_VERSION
from oio.common.decorators import ensure_request_id2
from oio.common.utils import GeneratorIO
from oio.content.chunks import Chunk
from oio.content.content import Content


class ECContent(Content):
    """An erasure-coded object."""

    _write_handler = ECWriteHandler

    def _move_sources(self, current: Chunk) -> list[Chunk]:
        return [current]

    @ensure_request_id2("content-")
    def rebuild_chunk(
        self,
        chunk_id: str | None,
        service_id: str | None = None,
        allow_same_rawx: bool = False,
        chunk_pos: Any = None,
        allow_frozen_container: bool = False,
        read_all_available_sources: bool = False,
        **kwargs: Any,
    ) -> int:
        """See :meth:`Content.rebuild_chunk`. The fragments are computed from those of k other chunks."""
        lost = None if chunk_id is None else self.chunks.filter(id=chunk_id, host=service_id).one()
        if lost is None and not self._is_position(chunk_pos):
            raise self._orphan(chunk_id or f"position {chunk_pos}", service_id)
        by_position = lost is None
        if lost is None:
            # The container may know the chunk all the same: there must not be two of one position.
            lost = self.chunks.filter(pos=chunk_pos).one()
        new = lost or Chunk({"pos": str(chunk_pos), "url": ""})
        others = [
            chunk for chunk in self.chunks.filter(metapos=new.metapos)
            if chunk is not lost and chunk.subpos != new.subpos
        ]  # fmt: skip
        k = self.storage_method.ec_nb_data
        if len(others) < k:
            raise exc.UnrecoverableContent(
                f"{len(others)} chunks of metachunk {new.metapos} of {self.full_path} are left, {k} are needed"
            )
        if lost is None:
            new.size, new.checksum = others[0].size, others[0].checksum
        avoided = [] if lost is None or by_position or allow_same_rawx else [lost]
        spare_url = self._get_spare_chunk(others, avoided, new.pos, **kwargs)[0][0]
        size = self._write_fragments(new, others, spare_url, read_all_available_sources, **kwargs)
        self._register(new, spare_url, insert=lost is None, frozen=allow_frozen_container, **kwargs)
        self._take_in(new, spare_url, lost is None)
        self.logger.debug("chunk %s of %s rebuilt as %s", chunk_id or new.pos, self.full_path, spare_url)
        return size

    def _is_position(self, chunk_pos: Any) -> bool:
        """Whether fragments of an object like this one can have a position: the library crashes on others."""
        meta, _, sub = str(chunk_pos).partition(".")
        if not all(part.isascii() and part.isdigit() for part in (meta, sub)):
            return False
        return int(sub) < self.storage_method.expected_chunks

    def _write_fragments(
        self, new: Chunk, others: list[Chunk], spare_url: str, read_all: bool, **kwargs: Any
    ) -> int:
        """Compute the fragments of a chunk and write them; gives their total size."""
        sources = [{**chunk.raw(), "num": chunk.subpos} for chunk in others]
        handler = ECRebuildHandler(
            sources, new.subpos, self.storage_method,
            read_all_available_sources=read_all, logger=self.logger, **kwargs,
        )  # fmt: skip
        expected_size, fragments = handler.rebuild()
        try:
            size, _hash = self.blob_client.chunk_put(
                spare_url, self._chunk_meta(new, spare_url, expected_size), GeneratorIO(fragments), **kwargs
            )
        finally:
            close = getattr(fragments, "close", None)
            if close is not None:
                close()
        if expected_size is not None and size != expected_size:
            self._delete_quietly(spare_url, **kwargs)
            raise exc.ChunkException(
                f"The chunk {new.pos} of {self.full_path} was rebuilt with {size} bytes instead of {expected_size}"
            )
        return size

    def _chunk_meta(self, new: Chunk, url: str, size: int | None) -> dict[str, Any]:
        """What describes a rebuilt chunk, under the keys that uploads use."""
        return {
            "chunk_id": url.rpartition("/")[2],
            "chunk_pos": new.pos,
            "chunk_size": size,
            "chunk_method": self.chunk_method,
            "container_id": self.container_id,
            "content_path": self.path,
            "id": self.content_id,
            "version": self.version,
            "policy": self.policy,
            "metachunk_hash": new.checksum,
            "metachunk_size": new.size,
            "full_path": self.full_path,
            "oio_version": OIO_VERSION,
        }
