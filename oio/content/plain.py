# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Objects whose chunks are whole copies."""

from __future__ import annotations

from typing import Any

from oio.api.replication import ReplicatedWriteHandler
from oio.common import exceptions as exc
from oio.common.decorators import ensure_request_id2
from oio.content.chunks import Chunk
from oio.content.content import Content, best_first


class PlainContent(Content):
    """A replicated object."""

    _write_handler = ReplicatedWriteHandler

    def _stored_checksum(self, checksum: str) -> str:
        return checksum.upper()

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
        """See :meth:`Content.rebuild_chunk`. The new chunk is a copy of another one of its position."""
        lost = None if chunk_id is None else self.chunks.filter(id=chunk_id, host=service_id).one()
        if lost is None and not str(chunk_pos).isdecimal():
            raise self._orphan(chunk_id or f"position {chunk_pos}", service_id)
        position = str(chunk_pos) if lost is None else lost.pos
        copies = best_first(
            chunk for chunk in self.chunks.filter(pos=position)
            if chunk is not lost and _is_another(chunk, None if lost is None else chunk_id, service_id)
        )  # fmt: skip
        if not copies:
            raise exc.UnrecoverableContent(
                f"No copy of position {position} of {self.full_path} is left to rebuild from"
            )
        new = lost or Chunk({"pos": position, "url": "", "hash": copies[0].checksum, "size": copies[0].size})
        avoided = [] if lost is None or allow_same_rawx else [lost]
        spare_url = self._write_copy(copies, avoided, position, **kwargs)
        self._register(new, spare_url, insert=lost is None, frozen=allow_frozen_container, **kwargs)
        self._take_in(new, spare_url, lost is None)
        self.logger.debug("chunk %s of %s rebuilt as %s", chunk_id or position, self.full_path, spare_url)
        return int(new.size)

    def _write_copy(self, copies: list[Chunk], avoided: list[Chunk], position: str, **kwargs: Any) -> str:
        """Write a copy where the proxy says; once more elsewhere when it is there already.

        Several copies of one position may be rebuilt at the same time. As they share their id, the first service
        proposed may have got one meanwhile.
        """
        spare_url = self._get_spare_chunk(copies, avoided, position, **kwargs)[0][0]
        try:
            self._copy_from_any(copies, spare_url, **kwargs)
            return spare_url
        except exc.Conflict as err:
            if len(copies) > self.storage_method.expected_chunks - 2:
                raise
            self.logger.info("%s exists, looking for another service: %s", spare_url, err)
        taken = Chunk({**copies[0].raw(), "url": spare_url})
        spare_url = self._get_spare_chunk([*copies, taken], avoided, position, **kwargs)[0][0]
        self._copy_from_any(copies, spare_url, **kwargs)
        return spare_url


def _is_another(chunk: Chunk, lost_id: str | None, lost_host: str | None) -> bool:
    """Whether a chunk is not the lost one: it is elsewhere, or has another id when nobody tells where it was."""
    if lost_host is not None:
        return chunk.host != lost_host
    return lost_id is None or chunk.id != lost_id
