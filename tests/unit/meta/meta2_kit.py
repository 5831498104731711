# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Short ways to ask meta2 what happened: which error, which events, which counters."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from meta2_bench import CID, FakeQueue, Meta2Bench

from oio.common.status import StatusError
from oio.meta import messages as m

_sentinels = itertools.count()


def refused(code: int, function: Any, *args: Any, **kwargs: Any) -> str:
    """The call fails with this internal code; returns the message."""
    with pytest.raises(StatusError) as caught:
        function(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value.message


def told(bench: Meta2Bench, queue: FakeQueue) -> list[dict[str, Any]]:
    """Events of contents since the last call, in order."""
    mark = f"mark-{next(_sentinels)}"
    bench.set(user__sentinel=mark)

    def is_mark(event: dict[str, Any]) -> bool:
        return (
            event["event"] == "storage.container.update"
            and event["data"]["properties"].get("sentinel") == mark
        )

    queue.wait_for(lambda: any(map(is_mark, queue.events)))
    index = next(i for i, event in enumerate(queue.events) if is_mark(event))
    events = queue.events[:index]
    del queue.events[: index + 1]
    return [event for event in events if event["event"].startswith("storage.content.")]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """``new``, ``deleted``…: last word of the type of each event."""
    return [event["event"].rpartition(".")[2] for event in events]


def beans(event: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Beans of one type in an event."""
    return [bean for bean in event["data"] if bean["type"] == kind]


def damage(bench: Meta2Bench) -> tuple[int, int]:
    """(damaged objects, missing chunks) as told, verified against a new count."""
    keys = ("sys.m2.objects.damaged", "sys.m2.chunks.missing")
    admin = bench.properties()
    found = tuple(int(admin.get(key, "0")) for key in keys)
    bench.call(m.ContainerTouch(cid=CID, damaged_objects=True, missing_chunks=True))
    again = bench.properties()
    assert found == tuple(int(again.get(key, "0")) for key in keys)
    return found[0], found[1]


def same_chunk(url: str, position: str, size: int) -> m.Chunk:
    """A chunk whose URL is chosen."""
    return m.Chunk(url=url, pos=position, size=size, hash="CD" * 16)


def state(bench: Meta2Bench) -> tuple[Any, ...]:
    """All that a refused request must leave as it was."""
    def rows(reader: Any) -> list[Any]:
        return [
            sorted(reader.execute(f"SELECT * FROM {table}"), key=repr)
            for table in ("aliases", "contents", "chunks", "properties")
        ]

    admin = {k: v for k, v in bench.properties().items() if not k.startswith("version:")}
    return bench.repository.read(CID + ".1", rows), admin
