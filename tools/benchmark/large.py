# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A container of a million objects: ``python -m tools.benchmark.large [options]``.

On a cluster of its own, the rows of the objects are written into the base of a container while its service
is stopped. Then listings of that container are timed at the service, and reads and writes are compared with
those of a container that began empty: the two take turns, so that both meet the same moments of the machine.
Figures go to the terminal and to ``build/bench-large.json``. Nothing here asserts on time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from oio.common.utils import cid_from_name
from oio.http.client import HttpPool
from oio.meta import messages as m
from oio.meta.client import MetaClient
from oio.meta.meta2.schema import META2, base_name
from oio.sandbox import Sandbox
from oio.sandbox.layout import Service

ACCOUNT, LARGE, EMPTY = "benchmark", "large", "empty"
POLICY, COPIES = "THREECOPIES", 3
OBJECT_BYTES = 4096
BUILD = Path("build")
DIRECTORIES_TIMEOUT_S = 300.0
#: Operations that come before the measured ones.
WARM_UP = 20

_ALIASES = """
WITH RECURSIVE prefix(p) AS (SELECT 0 UNION ALL SELECT p + 1 FROM prefix WHERE p + 1 < ?1),
               object(o) AS (SELECT 0 UNION ALL SELECT o + 1 FROM object WHERE o + 1 < ?2)
INSERT INTO aliases(alias, version, content, deleted, ctime, mtime)
SELECT printf('prefix-%05d/object-%05d', p, o), 1600000000000000 + p * ?2 + o, randomblob(16), 0,
       1600000000, 1600000000
FROM prefix, object
"""
_CONTENTS = """
INSERT INTO contents(id, hash, size, ctime, mtime, mime_type, chunk_method, policy)
SELECT content, randomblob(16), ?, 1600000000, 1600000000, 'application/octet-stream', ?, ?
FROM aliases ORDER BY content
"""
_CHUNKS = """
WITH RECURSIVE copy(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy WHERE n < ?)
INSERT INTO chunks(id, content, position, hash, size, ctime)
SELECT 'http://BENCH-rawx-' || n || '/' || hex(randomblob(32)), id, '0', hash, size, ctime
FROM contents CROSS JOIN copy ORDER BY id
"""
_INDEX = "SELECT sql FROM sqlite_schema WHERE type = 'index' AND name = 'aliases_by_content'"


class Pair(NamedTuple):
    """Latencies of one operation on both containers, in seconds."""

    large: list[float]
    empty: list[float]


def load(path: str, prefixes: int, per_prefix: int) -> None:
    """Write the rows of ``prefixes`` times ``per_prefix`` objects into a base that nobody has open."""
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    for pragma in ("journal_mode=DELETE", "synchronous=OFF", "cache_size=-200000", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN")
    # Entries that come in no order are slow: the index is made of all of them at once.
    index = str(connection.execute(_INDEX).fetchall()[0][0])
    connection.execute("DROP INDEX aliases_by_content")
    connection.execute(_ALIASES, (prefixes, per_prefix))
    connection.execute(index)
    connection.execute(_CONTENTS, (OBJECT_BYTES, f"plain/nb_copy={COPIES}", POLICY))
    connection.execute(_CHUNKS, (COPIES,))
    objects = prefixes * per_prefix
    counters = {"sys.m2.objects": objects, "sys.m2.usage": objects * OBJECT_BYTES}
    for key, value in counters.items():
        connection.execute("UPDATE admin SET v = ? WHERE k = ?", (str(value), key))
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


class Benchmark:
    """One cluster with the two containers."""

    def __init__(self, sandbox: Sandbox, options: argparse.Namespace) -> None:
        from oio import ObjectStorageApi

        self.options = options
        self.sandbox = sandbox
        self.service: Service = sandbox.services("meta2")[0]
        self.pool = HttpPool()
        self.client = MetaClient(self.pool)
        self.api = ObjectStorageApi(sandbox.namespace)
        self.cids = {name: cid_from_name(ACCOUNT, name) for name in (LARGE, EMPTY)}
        self.draw = random.Random(1)
        self.records: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """All the records, in order."""
        self._prepare()
        self._measure_listings()
        for name, operation in (
            ("content_put, service", self._put_at_service), ("content_show, service", self._show_at_service),
            ("create 4 KiB, API", self._create), ("fetch 4 KiB, API", self._fetch),
        ):  # fmt: skip
            self._compare(name, operation)
        return self.records

    def _prepare(self) -> None:
        for container in (LARGE, EMPTY):
            self.api.container_create(ACCOUNT, container)
        self.sandbox.stop(self.service.name)
        path = os.path.join(self.service.volume, META2.relative_path(base_name(self.cids[LARGE])))
        begin = time.perf_counter()
        load(path, self.options.prefixes, self.options.per_prefix)
        size_mib = os.path.getsize(path) / 2**20
        print(
            f"{self.options.prefixes * self.options.per_prefix:,} objects of {COPIES} chunks loaded in"
            f" {time.perf_counter() - begin:.1f} s, base of {size_mib:.0f} MiB", flush=True,
        )  # fmt: skip
        self.sandbox.start(self.service.name)
        self.records.append({"what": "base", "size_mib": round(size_mib, 1)})

    # --- listings ---------------------------------------------------------------------------------

    def _measure_listings(self) -> None:
        pages: dict[str, Callable[[], dict[str, Any]]] = {
            "first page of 1000": dict,
            "deep page by marker": lambda: {"marker": self._some_name()},
            "delimiter at the root": lambda: {"delimiter": "/"},
            "delimiter below a prefix": lambda: {
                "delimiter": "/", "prefix": self._some_name().partition("/")[0] + "/",
            },
            "page with properties": lambda: {"properties": True, "marker": self._some_name()},
        }  # fmt: skip
        for what, parameters in pages.items():
            self._measure_listing(what, parameters, self.options.listings)
        self._measure_listing("first page after a start", dict, 1, restart=True)
        reply = self._show(LARGE, self._some_name())
        url, hash_ = reply.chunks[0].url, reply.hash
        self._measure_listing("look-up by chunk", lambda: {"chunk_id": url.rpartition("/")[2]}, 3)
        self._measure_listing("look-up by hash", lambda: {"content_hash": hash_}, 3)

    def _measure_listing(
        self, what: str, parameters: Callable[[], dict[str, Any]], count: int, restart: bool = False
    ) -> None:
        if restart:
            self.sandbox.restart(self.service.name)
        at_service: list[float] = []
        with_trip: list[float] = []
        for _ in range(count):
            request = m.ContentList(cid=self.cids[LARGE], **parameters())
            before = self._service_time()
            begin = time.perf_counter()
            reply = self.client.call(self.service.addr, request)
            with_trip.append(time.perf_counter() - begin)
            at_service.append(self._service_time() - before)
        names = len(json.loads(reply.objects)) + len(reply.prefixes)
        record = {
            "what": what, "entries": names, "service_ms": _milliseconds(at_service),
            "service_ms_max": _ms(max(at_service)), "round_trip_ms": _milliseconds(with_trip),
        }  # fmt: skip
        self.records.append(record)
        print(
            f"{what:28}{names:>6} entries  at the service: median {record['service_ms']} ms,"
            f" max {record['service_ms_max']} ms;  with the round trip {record['round_trip_ms']} ms",
            flush=True,
        )

    def _service_time(self) -> float:
        """Seconds that the service spent on listings since its start."""
        text = self.pool.request("GET", f"http://{self.service.addr}/stats").data.decode()
        for line in text.splitlines():
            if line.startswith("counter req.time.content_list "):
                return int(line.rpartition(" ")[2]) / 1e6
        raise SystemExit("the service does not tell the time of its listings")

    # --- comparisons ------------------------------------------------------------------------------

    def _compare(self, what: str, operation: Callable[[str, int], None]) -> None:
        pair = Pair([], [])
        for number in range(-WARM_UP, self.options.operations):
            # Each goes first half of the time.
            order = (LARGE, EMPTY) if number % 2 else (EMPTY, LARGE)
            for container in order:
                begin = time.perf_counter()
                operation(container, number)
                spent = time.perf_counter() - begin
                if number >= 0:
                    (pair.large if container == LARGE else pair.empty).append(spent)
        ratio = statistics.median(pair.large) / statistics.median(pair.empty)
        means = statistics.mean(pair.large) / statistics.mean(pair.empty)
        record = {
            "what": what, "operations": self.options.operations, "large_ms": _milliseconds(pair.large),
            "empty_ms": _milliseconds(pair.empty), "median_ratio": round(ratio, 3),
            "mean_ratio": round(means, 3),
        }  # fmt: skip
        self.records.append(record)
        print(
            f"{what:28}large {record['large_ms']} ms  empty {record['empty_ms']} ms (medians)"
            f"  ratio of medians {ratio:.3f}, of means {means:.3f}", flush=True,
        )  # fmt: skip

    def _some_name(self) -> str:
        prefix = self.draw.randrange(self.options.prefixes)
        return f"prefix-{prefix:05d}/object-{self.draw.randrange(self.options.per_prefix):05d}"

    def _show(self, container: str, path: str) -> m.ContentReply:
        request = m.ContentShow(cid=self.cids[container], path=path)
        reply: m.ContentReply = self.client.call(self.service.addr, request)
        return reply

    def _put_at_service(self, container: str, number: int) -> None:
        chunks = [
            m.Chunk(
                url=f"http://BENCH-rawx-{copy}/{os.urandom(32).hex().upper()}", pos="0",
                size=OBJECT_BYTES, hash="AB" * 16,
            )
            for copy in range(COPIES)
        ]  # fmt: skip
        request = m.ContentPut(
            cid=self.cids[container], path=self._new_name("put", number), version=1 + time.time_ns() // 1000,
            content_id=os.urandom(16).hex().upper(), size=OBJECT_BYTES, hash="AB" * 16, policy=POLICY,
            chunk_method=f"plain/nb_copy={COPIES}", security=m.Security(nb_copy=COPIES), chunks=chunks,
        )  # fmt: skip
        self.client.call(self.service.addr, request)

    def _show_at_service(self, container: str, number: int) -> None:
        if container == LARGE:
            self._show(container, self._some_name())
        else:
            self._show(container, self._new_name("put", number))

    def _create(self, container: str, number: int) -> None:
        self.api.object_create(
            ACCOUNT, container, data=b"x" * OBJECT_BYTES, obj_name=self._new_name("created", number),
            policy=POLICY,
        )  # fmt: skip

    def _fetch(self, container: str, number: int) -> None:
        _meta, stream = self.api.object_fetch(ACCOUNT, container, self._new_name("created", number))
        if sum(map(len, stream)) != OBJECT_BYTES:
            raise SystemExit("a short object")

    def _new_name(self, kind: str, number: int) -> str:
        """Names spread over the container; the same in both containers, and again when asked again."""
        spread = (number * 7919 + 13) % self.options.prefixes
        return f"prefix-{spread:05d}/{kind}-{number}"


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _milliseconds(latencies: list[float]) -> float:
    return _ms(statistics.median(latencies))


def _wait_for_directories(sandbox: Sandbox) -> None:
    """The steady state of a volume has all the directories of its chunks."""
    volumes = [service.volume for service in sandbox.services("rawx")]
    deadline = time.monotonic() + DIRECTORIES_TIMEOUT_S
    while any(len(os.listdir(volume)) < 4096 for volume in volumes):
        if time.monotonic() > deadline:
            raise SystemExit("the rawx did not prepare their directories")
        time.sleep(0.5)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.benchmark.large", description=__doc__)
    add = parser.add_argument
    add("--prefixes", type=int, default=1000, help="common prefixes of the names")
    add("--per-prefix", type=int, default=1000, help="objects of each prefix")
    add("--operations", type=int, default=1000, help="of each comparison, on each container")
    add("--listings", type=int, default=30, help="repetitions of each listing")
    add("--durability", choices=("durable", "relaxed"), default="durable")
    add("--output", type=Path, default=BUILD / "bench-large.json", help="where the records go")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code."""
    options = _parser().parse_args(argv)
    BUILD.mkdir(exist_ok=True)
    home = tempfile.mkdtemp(prefix="bench-large-", dir=BUILD)
    sandbox = Sandbox(home, namespace="BENCH", rawx=COPIES, durability=options.durability)
    try:
        sandbox.start()
        _wait_for_directories(sandbox)
        os.environ.update(sandbox.environment)
        records = Benchmark(sandbox, options).run()
    finally:
        sandbox.destroy()
        shutil.rmtree(home, ignore_errors=True)
    summary = {"objects": options.prefixes * options.per_prefix, "durability": options.durability}
    options.output.write_text(json.dumps({**summary, "records": records}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(records)} records in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
