# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A meta2 service without HTTP, on real files."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oio.common.variables import Variables
from oio.event.queue import EventsRefused
from oio.meta import messages as m
from oio.meta.base import BaseOptions
from oio.meta.context import Context
from oio.meta.meta2.schema import META2, base_name
from oio.meta.meta2.service import Meta2Service
from oio.meta.repository import Repository

CID = "C0" * 32
ADMIN = Context("NS", "reqid-1", "agent", admin=True)
USER = Context("NS", "reqid-1", "agent")


class FakeQueue:
    """Keeps the events it accepts; refuses them while ``down``."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.event_max_bytes = 1 << 30
        self.down = False
        self.calls = 0
        self._changed = threading.Condition()

    def put_many(
        self, events: Sequence[bytes], timeout_s: float | None = None, keys: Sequence[str] | None = None
    ) -> None:
        assert keys is not None and len(keys) == len(events)
        with self._changed:
            self.calls += 1
            if self.down:
                raise OSError("the queue is down")
            refused = [event for event in events if len(event) > self.event_max_bytes]
            taken = [item for item in zip(events, keys, strict=True) if item[0] not in refused]
            self.events += [json.loads(event) for event, _ in taken]
            self.keys += [key for _, key in taken]
            self._changed.notify_all()
        if refused:
            raise EventsRefused("too large", refused)

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float = 10.0) -> None:
        with self._changed:
            assert self._changed.wait_for(predicate, timeout_s), self.kinds()

    def kinds(self) -> list[str]:
        return [event["event"].removeprefix("storage.") for event in self.events]


class Meta2Bench:
    """One container in one service; short ways to call the operations."""

    def __init__(self, volume: str, queue: FakeQueue | None, sync: str = "off") -> None:
        self.volume = volume
        self.queue = queue
        self.variables = Variables({})
        self.repository = Repository(
            volume, META2, queue=queue, options=BaseOptions(sync=sync, wait_s=5.0)
        )
        self.handlers = Meta2Service(self.repository, self.variables, "NS-meta2-1").handlers()
        self._versions = itertools.count(1000)

    def call(self, request: m.Operation, context: Context = USER) -> Any:
        kind = type(request)
        # Through the wire format, as a server gets it.
        decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=kind)
        return self.handlers[kind](decoded, context)

    def create(self, **properties: str) -> bool:
        created: bool = self.call(
            m.ContainerCreate(
                cid=CID, account="acme", name="photos", namespace="NS", peers=["p2", "p1"],
                properties=properties,
            )
        ).created
        return created

    def put(self, path: str, version: int = 0, size: int = 10, **fields: Any) -> int:
        version = version or next(self._versions)
        context = fields.pop("context", USER)
        copies = fields.pop("copies", 3)
        fields.setdefault("chunks", self.chunks("0", size, copies))
        fields.setdefault("security", m.Security(nb_copy=3))
        fields.setdefault("chunk_method", "plain/nb_copy=3")
        fields.setdefault("content_id", os.urandom(16).hex().upper())
        fields.setdefault("hash", "AB" * 16)
        self.call(
            m.ContentPut(
                cid=CID, path=path, version=version, size=size, policy="THREE", **fields
            ),
            context,
        )
        return version

    @staticmethod
    def chunks(position: str, size: int, copies: int) -> list[m.Chunk]:
        return [
            m.Chunk(
                url=f"http://rawx-{i}/{os.urandom(32).hex().upper()}",
                pos=position, size=size, hash="CD" * 16,
            )
            for i in range(copies)
        ]

    def show(self, path: str, **fields: Any) -> m.ContentReply:
        reply: m.ContentReply = self.call(m.ContentShow(cid=CID, path=path, **fields))
        return reply

    def delete(self, path: str, context: Context = USER, **fields: Any) -> None:
        self.call(m.ContentDelete(cid=CID, path=path, **fields), context)

    def listing(self, **fields: Any) -> m.ListReply:
        reply: m.ListReply = self.call(m.ContentList(cid=CID, **fields))
        return reply

    def objects(self, **fields: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.listing(**fields).objects)
        return found

    def versions(self, path: str) -> list[tuple[int, bool]]:
        return [
            (item["version"], item["deleted"])
            for item in self.objects(all_versions=True)
            if item["name"] == path
        ]

    def properties(self) -> dict[str, str]:
        found: dict[str, str] = self.call(m.ContainerGetProperties(cid=CID)).properties
        return found

    def set(self, **properties: str) -> None:
        keys = {key.replace("__", "."): value for key, value in properties.items()}
        self.call(m.ContainerSetProperties(cid=CID, properties=keys))

    def check_counters(self) -> tuple[int, int]:
        """Counters of the container, verified against the tables."""
        admin = self.properties()
        found = (int(admin["sys.m2.usage"]), int(admin["sys.m2.objects"]))

        def count(reader: Any) -> tuple[int, int]:
            row = reader.execute(
                "SELECT coalesce(sum(size), 0), count(*) FROM aliases JOIN contents ON id = content"
                " WHERE NOT deleted"
            ).fetchone()
            return row[0], row[1]

        assert found == self.repository.read(base_name(CID), count)
        return found


def wait_until(predicate: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition that another thread makes true."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)


@pytest.fixture
def event_queue() -> FakeQueue:
    return FakeQueue()


@pytest.fixture
def bench(tmp_path: Path, event_queue: FakeQueue) -> Iterator[Meta2Bench]:
    bench = Meta2Bench(str(tmp_path / "volume"), event_queue)
    assert bench.create()
    yield bench
    bench.repository.close()
