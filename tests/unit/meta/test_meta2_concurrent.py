# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Many clients change the same few objects at once: whatever the order, nothing is miscounted or lost."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Any

from meta2_bench import CID, FakeQueue, Meta2Bench
from meta2_kit import beans, damage, told

from oio.common.status import StatusError
from oio.meta import messages as m

CLIENTS, STEPS = 6, 60
#: Refusals that a client must expect when others are at work.
EXPECTED = {400, 412, 420, 421, 424, 425, 427, 445}


class Client(threading.Thread):
    """Does what comes to its mind to one of three names."""

    def __init__(self, bench: Meta2Bench, seed: int) -> None:
        super().__init__()
        self.bench = bench
        self.random = random.Random(seed)
        self.codes: Counter[int] = Counter()
        self.uploaded: set[str] = set()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(STEPS):
                self.step()
        except BaseException as exc:
            self.error = exc

    def step(self) -> None:
        name = self.random.choice("abc")
        chunks = Meta2Bench.chunks("0", 10, self.random.randint(1, 3))
        target: dict[str, Any] = {"cid": CID, "path": name}
        actions = [
            lambda: self.bench.put(name, chunks=chunks),
            lambda: self.bench.put(name, chunks=chunks, append=True),
            lambda: self.bench.put(name, chunks=chunks, condition=m.Condition(if_none_match=["*"])),
            lambda: self.bench.call(m.ContentUpdate(**target, chunks=chunks)),
            lambda: self.bench.call(m.ContentTruncate(**target, size=10)),
            lambda: self.bench.call(m.ContentDrain(**target)),
            lambda: self.bench.call(m.ContentSetProperties(**target, properties={"k": "v"})),
            lambda: self.bench.delete(name, simulate_versioning=self.random.random() < 0.5),
            lambda: self.bench.call(m.ContainerPurge(cid=CID, max_versions=2)),
        ]
        weights = [6, 4, 2, 3, 2, 1, 2, 2, 1]
        try:
            self.random.choices(actions, weights)[0]()
            self.codes[0] += 1
            self.uploaded |= {chunk.url for chunk in chunks}
        except StatusError as exc:
            self.codes[exc.code] += 1


def test_clients_at_once(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.set(sys__m2__policy__version="3", sys__m2__quota="300")
    clients = [Client(bench, seed) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert [client.error for client in clients] == [None] * CLIENTS
    codes = sum((client.codes for client in clients), Counter())
    assert codes[0] > 0
    assert codes.keys() - EXPECTED - {0} == set()
    usage, _ = bench.check_counters()
    assert usage <= 300
    damage(bench)
    lost = [
        bean["id"]
        for event in told(bench, event_queue)
        if event["event"].endswith((".deleted", ".drained"))
        for bean in beans(event, "chunks")
    ]
    present = bench.repository.read(
        CID + ".1", lambda reader: {url for (url,) in reader.execute("SELECT id FROM chunks")}
    )
    assert len(lost) == len(set(lost))
    assert not present & set(lost)
    assert present | set(lost) <= set().union(*(client.uploaded for client in clients))
