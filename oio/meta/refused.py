# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Events that the queue will never take (larger than its jobs may be), kept for a person.

Those about objects go to the queue again, without the properties of the object, which are what makes events
large. What was refused is kept in lines of ``refused.jsonl`` beside the outbox, on disk before it counts as
gone. The file is renamed to ``refused.jsonl.1``, in the place of the former one, when it is full.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import msgspec

logger = logging.getLogger("oio.meta.outbox")

FILE = "refused.jsonl"
#: The two files hold twice this at most, and one event.
FILE_MAX_BYTES = 64 << 20


class _Described(msgspec.Struct):
    event: str = ""
    request_id: str | None = None
    url: dict[str, str] | None = None


class RefusedEvents:
    """The file of one volume; for one thread."""

    def __init__(self, directory: str, fsync: bool) -> None:
        self._path = os.path.join(directory, FILE)
        self._fsync = fsync
        #: Events kept since the start.
        self.total = 0

    def keep(self, events: Sequence[bytes], reason: str) -> None:
        """Keep events, and tell it in the log. :raises OSError: when they are not on disk."""
        if not events:
            return
        data = b"".join([event.rstrip(b"\n") + b"\n" for event in events])
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(fd).st_size
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if self._fsync:
                os.fsync(fd)
        finally:
            os.close(fd)
        if before + len(data) > FILE_MAX_BYTES:
            os.replace(self._path, self._path + ".1")
        for event in events:
            logger.error("event refused by the queue (%s), kept in %s: %s", reason, self._path, _described(event))
        self.total += len(events)


def without_properties(event: bytes) -> bytes | None:
    """An event about an object without the properties of the object; None when it has none."""
    decoded = msgspec.json.decode(event)
    beans = decoded.get("data")
    if not decoded["event"].startswith("storage.content.") or not isinstance(beans, list):
        return None
    kept = [bean for bean in beans if bean.get("type") != "properties"]
    return None if len(kept) == len(beans) else msgspec.json.encode({**decoded, "data": kept})


def _described(event: bytes) -> str:
    try:
        head = msgspec.json.decode(event, type=_Described)
    except msgspec.MsgspecError as exc:
        return f"{len(event)} bytes, {exc}"
    return f"{head.event} of {head.url}, {len(event)} bytes, request {head.request_id or '-'}"
