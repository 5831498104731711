# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""After a stop that was none: tell again of the chunks whose events a power cut may have taken.

The journal of events is synced every second, not for each event, while chunks are on the disk before they are
acknowledged. So when the service comes back, the chunks that appeared since shortly before the last sync are
told once more. Consumers stand events that come twice. Deletions cannot be found this way: the reverse directory
may know a chunk that is gone, which whoever wants to use it finds out.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator

from oio.rawx import metadata
from oio.rawx.events import CHUNK_NEW
from oio.rawx.metadata import ChunkMeta, MalformedFullpath
from oio.rawx.store import Volume

#: A chunk has its name before its event is in the journal: a sync of its directory comes in between, which
#: takes that long on a disk in trouble.
MARGIN_S = 60.0

Emit = Callable[[str, ChunkMeta, str, bool, int], None]

logger = logging.getLogger("oio.rawx")


def recall(volume: Volume, emit: Emit, since_s: float, stop: threading.Event) -> int:
    """Tell of the chunks that appeared since a time, less the margin; gives their number."""
    told = 0
    for chunk_id in appeared_since(volume, since_s - MARGIN_S):
        if stop.is_set():
            break
        try:
            with volume.open(chunk_id) as chunk:
                emit(CHUNK_NEW, chunk.meta, "", True, int(chunk.mtime * 1e6))
            told += 1
        except FileNotFoundError:
            continue  # deleted meanwhile
        except (OSError, MalformedFullpath) as err:
            logger.error("chunk %s cannot be told again: %s", chunk_id, err)
    logger.warning("the service did not stop in good order: %d chunks are told again", told)
    return told


def appeared_since(volume: Volume, since_s: float) -> Iterator[str]:
    """Ids of the chunks whose file appeared, or changed its names, since a time."""
    for directory in _directories(volume.root, volume.options.hash_depth):
        # A name that appears or goes changes the time of its directory.
        if os.stat(directory).st_mtime < since_s:
            continue
        with os.scandir(directory) as entries:
            for entry in entries:
                if metadata.parse_chunk_id(entry.name) and entry.stat(follow_symlinks=False).st_ctime >= since_s:
                    yield entry.name


def _directories(root: str, depth: int) -> Iterator[str]:
    if not depth:
        yield root
        return
    with os.scandir(root) as entries:
        names = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
    for path in names:
        yield from _directories(path, depth - 1)
