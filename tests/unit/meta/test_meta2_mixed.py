# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever is mixed with raw rows, the counters of a container are those of its rows after each operation."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from meta2_bench import CID, Meta2Bench

from oio.common.status import StatusError
from oio.meta import messages as m

STEPS = 150
KEYS = ("usage", "objects", "objects.damaged", "chunks.missing")
#: What a request may be refused with; anything else is a defect.
REFUSALS = {400, 420, 421, 424, 425, 427}


class Mixer:
    """Draws operations on few names, versions and contents, so that they meet."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.contents = [f"{number:02X}" * 4 for number in range(6)]
        self.plain: list[Callable[[], m.Operation]] = [
            self.put, self.put, self.put, self.delete, self.update, self.truncate, self.drain, self.purge,
        ]  # fmt: skip
        self.raw: list[Callable[[], m.Operation]] = [self.insert, self.insert, self.remove, self.replace]

    def operation(self) -> m.Operation:
        if self.draw.random() < 0.02:
            return m.ContainerFlush(cid=CID)
        return self.draw.choice(self.draw.choice((self.plain, self.raw)))()

    def name(self) -> str:
        return self.draw.choice("xyz")

    def version(self) -> int:
        return self.draw.randint(1, 6)

    def chunks(self, position: str, size: int) -> list[m.Chunk]:
        copies = self.draw.randint(1, 3)
        return [
            m.Chunk(url=f"http://r{copy}/{self.draw.randrange(3)}", pos=position, size=size, hash="CD")
            for copy in range(copies)
        ]

    def put(self) -> m.Operation:
        size = self.draw.randint(0, 30)
        chunks = self.chunks("0", size)
        if self.draw.random() < 0.4:
            chunks += self.chunks("1", 5)
            size += 5
        content = f"{self.draw.randrange(2**32):08X}"
        self.contents = [*self.contents[-11:], content]
        kind = self.draw.choice(("", "", "", "append", "force", "change_policy"))
        fields = {kind: True} if kind else {}
        return m.ContentPut(
            cid=CID, path=self.name(), version=self.version(), content_id=content, size=size,
            hash="AB" * 16, chunk_method="plain/nb_copy=3", security=m.Security(nb_copy=3), chunks=chunks,
            **fields,
        )  # fmt: skip

    def delete(self) -> m.Operation:
        version = self.draw.choice((0, self.version()))
        marker = self.draw.random() < 0.2
        return m.ContentDelete(cid=CID, path=self.name(), version=version, delete_marker=marker)

    def update(self) -> m.Operation:
        chunks = self.chunks(self.draw.choice("01"), self.draw.choice((0, 5, 30)))
        return m.ContentUpdate(cid=CID, path=self.name(), chunks=chunks, security=m.Security(nb_copy=3))

    def truncate(self) -> m.Operation:
        return m.ContentTruncate(cid=CID, path=self.name(), size=self.draw.choice((0, 5, 10)))

    def drain(self) -> m.Operation:
        return m.ContentDrain(cid=CID, path=self.name(), version=self.draw.choice((0, self.version())))

    def purge(self) -> m.Operation:
        return m.ContentPurge(cid=CID, path=self.name(), max_versions=self.draw.randint(1, 3))

    def bean(self, kind: int | None = None) -> m.RawBean:
        kind = self.draw.randrange(3) if kind is None else kind
        content = self.draw.choice(self.contents)
        if kind == 0:
            deleted = self.draw.random() < 0.2
            return m.RawAlias(name=self.name(), version=self.version(), header=content, deleted=deleted)
        if kind == 1:
            method = self.draw.choice(("plain/nb_copy=3", "drained", "ec/k=2,m=1"))
            size = self.draw.randint(0, 30)
            return m.RawHeader(id=content, chunk_method=method, mime_type="x", size=size)
        return m.RawChunk(
            id=f"http://r{self.draw.randrange(3)}/{self.draw.randrange(3)}", hash="CD" * 16,
            size=self.draw.randint(0, 3), content=content, pos=self.draw.choice(("0", "1", "0.1", "0.2")),
        )  # fmt: skip

    def beans(self) -> list[m.RawBean]:
        return [self.bean() for _ in range(self.draw.randint(1, 3))]

    def insert(self) -> m.Operation:
        return m.RawInsert(cid=CID, beans=self.beans(), force=self.draw.random() < 0.5)

    def remove(self) -> m.Operation:
        return m.RawDelete(cid=CID, beans=self.beans())

    def replace(self) -> m.Operation:
        old = self.beans()
        kinds = [(m.RawAlias, m.RawHeader, m.RawChunk).index(type(bean)) for bean in old]  # type: ignore[arg-type]
        return m.RawUpdate(cid=CID, old=old, new=[self.bean(kind) for kind in kinds])


def counters(bench: Meta2Bench) -> list[int]:
    admin = bench.properties()
    return [int(admin.get(f"sys.m2.{key}", "0")) for key in KEYS]


@pytest.mark.parametrize("seed", range(8))
def test_counters_are_those_of_the_rows(bench: Meta2Bench, seed: int) -> None:
    mixer = Mixer(seed)
    bench.set(sys__m2__policy__version=("-1", "0", "1", "3")[seed % 4])
    outcomes: Counter[bool] = Counter()
    for _ in range(STEPS):
        operation = mixer.operation()
        try:
            bench.call(operation)
            outcomes[True] += 1
        except StatusError as refused:
            assert refused.code in REFUSALS, operation
            outcomes[False] += 1
        told = counters(bench)
        bench.call(
            m.ContainerTouch(cid=CID, recompute=True, damaged_objects=True, missing_chunks=True)
        )
        assert told == counters(bench), operation
    assert min(outcomes.values()) > STEPS / 10
