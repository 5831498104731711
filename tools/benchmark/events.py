# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What becomes of the events of a load: how many wait when it stops, how old, how long until all is done.

Done means: no event is in the queue, no container keeps one, no chunk server either, and then the counters of
the account are those of its containers.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import msgspec

from oio.event.queue import DEFAULT_TUBE
from oio.event.source import EventSource, open_source
from oio.sandbox import Sandbox
from oio.sandbox.event_conf import queue_urls
from tools.benchmark.workload import ACCOUNT

#: Longest wait for the end of the events of a load, and time between two looks.
SETTLE_TIMEOUT_S = 600.0
POLL_S = 0.05
#: The queue is looked at again this much later: an event may be between its place of birth and the queue.
QUIET_S = 0.3
#: Turns of the comparison, half of which begin with events and half without.
COST_TURNS = 4


class Backlog(NamedTuple):
    """What waits at one moment: events in the queue, age of the oldest, bases that keep events."""

    events: int
    oldest_s: float
    bases: int


class EventChain:
    """The events of a cluster, seen from outside."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._sources: list[EventSource] = [open_source(url, DEFAULT_TUBE) for url in queue_urls(sandbox.layout)]

    def close(self) -> None:
        """Close the connections."""
        for source in self._sources:
            source.close()

    def backlog(self) -> Backlog:
        """What waits now."""
        events = 0
        for source in self._sources:
            stats = source.stats()
            events += stats.ready + stats.reserved + stats.delayed
        return Backlog(events, self._oldest_s(), self._bases())

    def settle(self) -> float:
        """Wait until nothing waits any more; gives the seconds. :raises SystemExit: when it takes too long."""
        begin = time.monotonic()
        since: float | None = None
        while True:
            now = time.monotonic()
            backlog = self.backlog()
            if backlog.events or backlog.bases:
                since = None
            elif since is None:
                since = now
            elif now - since >= QUIET_S:
                return since - begin
            if now - begin > SETTLE_TIMEOUT_S:
                raise SystemExit(f"events still wait after {SETTLE_TIMEOUT_S:.0f} s: {backlog}")
            time.sleep(POLL_S)

    def _oldest_s(self) -> float:
        """Age of the first event of the queue that is not done."""
        from oio.event.transport.redis_tube import RedisTube

        oldest = 0.0
        for source in self._sources:
            if not source.url.startswith("redis"):
                continue
            tube = RedisTube(source.url, source.tube)
            for _place, fields in tube.client.xrange(tube.stream, count=1):
                when = msgspec.json.decode(fields[b"b"]).get("when", 0)
                oldest = max(oldest, time.time() - when / 1e6)
            tube.close()
        return oldest

    def _bases(self) -> int:
        """Bases of the directory and of containers that hold events which the queue has not got yet."""
        return sum(
            len(os.listdir(directory))
            for service in self._sandbox.services("meta1", "meta2")
            if os.path.isdir(directory := os.path.join(service.volume, ".outbox"))
        )


def wrong_counters() -> list[str]:
    """Compare what the account tells with the containers themselves; gives what differs."""
    from oio import ObjectStorageApi

    api = ObjectStorageApi(os.environ["OIO_NS"])
    told: dict[str, tuple[int, int]] = {}
    marker = None
    while page := api.container_list(ACCOUNT, limit=1000, marker=marker):
        told.update((name, (objects, size)) for name, objects, size, *_rest in page)
        marker = page[-1][0]
    wrong, sums = [], [0, 0]
    for name, counters in told.items():
        system = api.container_get_properties(ACCOUNT, name)["system"]
        true = int(system["sys.m2.objects"]), int(system["sys.m2.usage"])
        sums = [sums[0] + true[0], sums[1] + true[1]]
        if counters != true:
            wrong.append(f"{name}: the account tells {counters}, the container {true}")
    account: dict[str, Any] = api.account_show(ACCOUNT)
    if [account["objects"], account["bytes"]] != sums:
        wrong.append(f"account: {account['objects']} objects, {account['bytes']} bytes, containers {sums}")
    return wrong


def cost_of_events(durable: bool, duration_s: float) -> dict[str, Any]:
    """Creates on a cluster with events and on one without, in turns: the same machine at the same moments.

    Both run on this machine, and so does all that handles the events.
    """
    rates: dict[str, list[float]] = {"with": [], "without": []}
    clusters = {}
    try:
        variants: list[tuple[str, dict[str, Any]]] = [
            ("with", {}),
            ("without", {"rawx_events": False, "config": {"event-agent": ""}}),
        ]
        for name, fields in variants:
            home = tempfile.mkdtemp(prefix=f"bench-{name}-", dir="build")
            clusters[name] = Sandbox(
                home, namespace=f"BENCH{name.upper()}", prepare_directories=False,
                durability="durable" if durable else "relaxed", **fields,
            )  # fmt: skip
            clusters[name].start()
        for turn in range(2 * COST_TURNS):
            # The second of a pair meets what the first one left to do: they change places.
            for name in ("with", "without") if turn % 2 else ("without", "with"):
                rates[name].append(_rate_of_creates(clusters[name], turn, duration_s))
    finally:
        for sandbox in clusters.values():
            sandbox.destroy()
            shutil.rmtree(sandbox.home, ignore_errors=True)
    pairs = [a / b for a, b in zip(rates["with"], rates["without"], strict=True)]
    return {
        "test": "events_cost", "policy": "THREECOPIES", "clients": 1, "durable": durable,
        "ops_s": round(statistics.median(rates["with"]), 1),
        "ops_s_without_events": round(statistics.median(rates["without"]), 1),
        "ratio": round(statistics.median(pairs), 3),
        "ratios": [round(pair, 3) for pair in sorted(pairs)],
    }  # fmt: skip


def _rate_of_creates(sandbox: Sandbox, turn: int, duration_s: float) -> float:
    """Objects of 4 KiB created per second by one client, in this process."""
    from tools.benchmark.workload import Task, perform

    os.environ.update(sandbox.environment)
    task = Task("create_4k", sandbox.namespace, "THREECOPIES", 0, f"cost-{turn}", duration_s)
    outcome = perform(task, lambda: None)
    rate = outcome.operations / (outcome.end - outcome.begin)
    chain = EventChain(sandbox)
    try:
        if sandbox.layout.options.rawx_events:
            chain.settle()
    finally:
        chain.close()
    return rate
