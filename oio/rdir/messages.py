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


URL_CHARS_MAX = 4096
ID_CHARS_MAX = 1023
EXTRA_CHARS_MAX = 65536
OWNER_CHARS_MAX = 1024
"""What is longer is refused; real values are far shorter."""


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

    who: Annotated[str, msgspec.Meta(max_length=OWNER_CHARS_MAX)]


class IncidentDate(msgspec.Struct):
    """Body and answer of admin/incident, in seconds."""

    date: Mtime


class ContainerRecord(msgspec.Struct):
    """Body of meta2/push and meta2/delete."""

    container_id: Annotated[str, msgspec.Meta(max_length=ID_CHARS_MAX)]
    container_url: Annotated[str, msgspec.Meta(min_length=1, max_length=URL_CHARS_MAX)]
    mtime: Mtime | None = None
    extra_data: Annotated[str, msgspec.Meta(max_length=EXTRA_CHARS_MAX)] | None = None
    when: When | None = None


class ContainerFetchOptions(msgspec.Struct):
    """Body of meta2/fetch."""

    prefix: str | None = None
    marker: str | None = None
    limit: Mtime | None = None
