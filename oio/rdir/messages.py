# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Bodies of the requests of the reverse directory. A JSON null counts as absent, extra fields are ignored.

``when`` is ours: the time of the event that tells of a chunk, in microseconds. It makes the outcome of pushes and
deletes independent of the order in which they come.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Mtime = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
When = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

BATCH_RECORDS_MAX = 10000
"""Records of one push-many or delete-many: bounds how long the others wait for their turn."""


class ChunkRecord(msgspec.Struct):
    """Body of push and delete. ``rtime`` is an older name: the larger of both is kept."""

    container_id: str
    content_id: str
    chunk_id: str
    mtime: Mtime | None = None
    rtime: Mtime | None = None
    when: When | None = None


class ChunkRecords(msgspec.Struct):
    """Body of push-many and delete-many."""

    records: Annotated[list[ChunkRecord], msgspec.Meta(max_length=BATCH_RECORDS_MAX)]


class FetchOptions(msgspec.Struct):
    """Body of fetch; the query has the last word."""

    start_after: str | None = None
    limit: Mtime | None = None
    container_id: str | None = None
    rebuild: bool | None = None


class LockOwner(msgspec.Struct):
    """Body of admin/lock."""

    who: str


class IncidentDate(msgspec.Struct):
    """Body and answer of admin/incident, in seconds."""

    date: Mtime


class ContainerRecord(msgspec.Struct):
    """Body of meta2/push and meta2/delete."""

    container_id: str
    container_url: str
    mtime: Mtime | None = None
    extra_data: str | None = None
    when: When | None = None


class ContainerFetchOptions(msgspec.Struct):
    """Body of meta2/fetch."""

    prefix: str | None = None
    marker: str | None = None
    limit: Mtime | None = None
