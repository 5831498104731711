# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Telling the rest of the cluster that a chunk appeared or went.

An event is in the journal (:mod:`oio.rawx.journal`) before its request is answered. Its time ``when`` orders it
among the events of its chunk, even when requests overlap: that of a new chunk is taken after its upload began
and before it has its name, that of a deleted one while it still has its name.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

import msgspec

from oio.rawx.metadata import ChunkMeta

CHUNK_NEW = "storage.chunk.new"
CHUNK_DELETED = "storage.chunk.deleted"
KINDS = (CHUNK_NEW, CHUNK_DELETED)


class EventLog(Protocol):
    """What is needed of a journal."""

    def append(self, event: bytes) -> None:
        """Keep an event; never raises, never waits for anybody."""

    def counters(self) -> dict[str, int]:
        """Numbers of events."""

    def close(self, timeout_s: float) -> None:
        """Hand over what waits."""


def now_us() -> int:
    """Current time, for ``when``."""
    return time.time_ns() // 1000


class EventSender:
    """Writes the events of one volume, each kind in its journal."""

    def __init__(self, journals: Mapping[str, EventLog], volume_id: str, service_id: str) -> None:
        self._journals = journals
        self._volume_id = volume_id
        self._service_id = service_id

    def emit(self, kind: str, meta: ChunkMeta, reqid: str, whole: bool, when_us: int) -> None:
        """Tell one event. ``whole`` tells every field, not only whose chunk it is."""
        self._journals[kind].append(self._encode(kind, meta, reqid, whole, when_us))

    def counters(self) -> dict[str, int]:
        """Sums of the counters of the journals."""
        total: Counter[str] = Counter()
        for journal in set(self._journals.values()):
            total.update(journal.counters())
        return dict(total)

    def close(self, timeout_s: float = 5.0) -> None:
        """Close the journals, within a bound."""
        for journal in set(self._journals.values()):
            journal.close(timeout_s)

    def _encode(
        self, kind: str, meta: ChunkMeta, reqid: str, whole: bool, when_us: int
    ) -> bytes:
        data = {
            "volume_id": self._volume_id,
            "volume_service_id": self._service_id,
            "full_path": meta.fullpath,
            "container_id": meta.container_id,
            "content_path": _utf8(meta.content_path),
            "content_version": meta.content_version,
            "content_id": meta.content_id,
            "content_storage_policy": _utf8(meta.policy) if whole else "",
            "metachunk_hash": meta.metachunk_hash if whole else "",
            "metachunk_size": meta.metachunk_size if whole else "",
            "chunk_id": meta.chunk_id,
            "content_chunk_method": _utf8(meta.method) if whole else "",
            "chunk_position": _utf8(meta.position) if whole else "",
            "chunk_hash": meta.chunk_hash if whole else "",
            "chunk_size": meta.chunk_size if whole else "",
            "oio_version": meta.version if whole else "",
        }
        event = {
            "event": kind,
            "when": when_us,
            "request_id": reqid or "-",
            "data": data,
        }
        return _encode(event) + b"\n"


class _ChunkName(msgspec.Struct):
    chunk_id: str = ""


class _ChunkEvent(msgspec.Struct):
    data: _ChunkName


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_ChunkEvent).decode


def chunk_of(event: bytes) -> str:
    """The chunk that an event tells of."""
    return _decode(event).data.chunk_id


def _utf8(text: str) -> str:
    """Texts of headers are latin-1 views of bytes; events show them as the UTF-8 they mostly are."""
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "replace")
