# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Run the benchmarks: ``python -m tools.benchmark [options]``.

For each durability a cluster of its own is started in ``build/``; for each policy and number of client
processes the operations are timed, and each record carries the calibration of its own moment. Figures go to
the terminal and to ``build/bench.json``. Nothing here asserts on time.

What writes makes events: how many wait when the load stops, the age of the oldest, and the seconds until all
are handled stand in the record of the test. The next test begins after that, and once the counters of the
account are those of its containers: if they are not, the benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from oio.sandbox import Sandbox
from tools.benchmark import calibration
from tools.benchmark.events import EventChain, cost_of_events, wrong_counters
from tools.benchmark.resources import Usage, usage_by_kind
from tools.benchmark.workload import LARGE_BYTES, LISTED_OBJECTS, Outcome, Task, client_main

TESTS = ("create_4k", "fetch_4k", "delete_4k", "create_100m", "fetch_100m", "list_10k", "events_cost")
DIRECTORIES_TIMEOUT_S = 300.0
POLICIES = ("SINGLE", "THREECOPIES", "EC")
CLIENTS = (1, 4)
BUILD = Path("build")
# Tests that use the objects of another one.
_NEEDS = {"fetch_4k": "create_4k", "delete_4k": "create_4k", "fetch_100m": "create_100m"}
_UNITS = ("ops_s", "mib_s", "entries_s")
# Copies written per policy, and bytes of each per user byte: what the disk is asked for.
_DISK_LOAD = {"SINGLE": (1, 1.0), "TWOCOPIES": (2, 1.0), "THREECOPIES": (3, 1.0), "EC": (9, 1 / 6)}


def main(argv: list[str] | None = None) -> int:
    """Measure what the options select; returns the exit code."""
    options = _parser().parse_args(argv)
    BUILD.mkdir(exist_ok=True)
    records: list[dict[str, Any]] = []
    for durable in options.durability:
        with _cluster(durable, options) as sandbox:
            os.environ.update(sandbox.environment)
            for policy in options.policies:
                for clients in options.clients:
                    records += Series(sandbox, policy, clients, durable, options).run()
                    _save(records, options.output)
            _report_memory(sandbox)
        if "events_cost" in options.tests:
            records.append(cost_of_events(durable, options.duration / 2))
            _print_cost(records[-1])
            _save(records, options.output)
    print(f"\n{len(records)} records in {options.output}")
    return 0


def _words(allowed: Iterable[str]) -> Any:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = set(chosen) - set(allowed)
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return chosen

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.benchmark", description=__doc__)
    add = parser.add_argument
    add("--tests", type=_words(TESTS), default=list(TESTS), help=f"among {','.join(TESTS)}")
    add("--policies", type=lambda text: text.split(","), default=list(POLICIES), help="storage policies")
    add("--clients", type=lambda text: [int(n) for n in text.split(",")], default=list(CLIENTS),
        help="numbers of client processes")  # fmt: skip
    add("--durability", type=_durability, default=[True, False], help="durable, relaxed (default: both)")
    add("--duration", type=float, default=4.0, metavar="S", help="of each test, in seconds")
    add("--chunk-size", type=int, default=None, metavar="BYTES", help="chunk size of the cluster")
    add("--output", type=Path, default=BUILD / "bench.json", help="where the records go")
    return parser


def _durability(text: str) -> list[bool]:
    return [word == "durable" for word in _words(("durable", "relaxed"))(text)]


class _cluster:
    """A cluster in a fresh directory below ``build/``, removed afterwards."""

    def __init__(self, durable: bool, options: argparse.Namespace) -> None:
        self.home = tempfile.mkdtemp(prefix="bench-", dir=BUILD)
        fields: dict[str, Any] = {"namespace": "BENCH", "durability": "durable" if durable else "relaxed"}
        if options.chunk_size:
            fields["chunk_size"] = options.chunk_size
        self.sandbox = Sandbox(self.home, **fields)

    def __enter__(self) -> Sandbox:
        try:
            self.sandbox.start()
            self._wait_for_directories()
        except BaseException:
            self.__exit__()
            raise
        return self.sandbox

    def _wait_for_directories(self) -> None:
        """The steady state of a volume has all the directories of its chunks."""
        volumes = [service.volume for service in self.sandbox.services("rawx")]
        deadline = time.monotonic() + DIRECTORIES_TIMEOUT_S
        while any(len(os.listdir(volume)) < 4096 for volume in volumes):
            if time.monotonic() > deadline:
                raise SystemExit("the rawx did not prepare their directories")
            time.sleep(0.5)

    def __exit__(self, *_exc: object) -> None:
        self.sandbox.destroy()
        shutil.rmtree(self.home, ignore_errors=True)


class Series:
    """All the tests of one policy with one number of clients; later tests use the objects of earlier ones."""

    def __init__(
        self, sandbox: Sandbox, policy: str, clients: int, durable: bool, options: argparse.Namespace
    ) -> None:
        self.sandbox = sandbox
        self.events = EventChain(sandbox)
        self.policy = policy
        self.clients = clients
        self.durable = durable
        self.options = options
        self.run_id = f"{int(time.time())}-{clients}"
        self.names: dict[str, list[list[str]]] = {}

    def run(self) -> list[dict[str, Any]]:
        """Records of the tests, in order."""
        records = []
        for test in TESTS:
            needed = _NEEDS.get(test)
            if test == "events_cost":
                continue
            if test == "list_10k" and test in self.options.tests:
                self._run_clients("fill_10k", [[] for _ in range(self.clients)])
                self._settle_events()
            if test in self.options.tests and (needed is None or needed in self.names):
                records.append(self._measure(test))
        return records

    def _measure(self, test: str) -> dict[str, Any]:
        size = test.rpartition("_")[2]
        names = self.names.get(f"create_{size}", [[] for _ in range(self.clients)])
        volume = self.sandbox.home
        before = calibration.round_trips_s(0.5), calibration.durable_files_s(volume, 0.5)
        used_before = usage_by_kind(self.sandbox.pids())
        outcomes = self._run_clients(test, names)
        backlog = self.events.backlog()
        used = usage_by_kind(self.sandbox.pids())
        after = calibration.round_trips_s(0.5), calibration.durable_files_s(volume, 0.5)
        self.names[f"create_{size}"] = [outcome.names for outcome in outcomes]
        record = self._record(test, outcomes)
        record["events_pending"], record["events_oldest_s"] = backlog.events, round(backlog.oldest_s, 2)
        record["events_settled_s"] = round(self._settle_events(), 1)
        record["round_trips_s"] = round((before[0] + after[0]) / 2)
        record["durable_files_s"] = round((before[1] + after[1]) / 2)
        record["cpu_s"] = _cpu(outcomes, used_before, used)
        record["rss_mib"] = {kind: round(usage.rss_mib, 1) for kind, usage in used.items()}
        if test == "create_100m" and self.durable:
            copies, overhead = _DISK_LOAD.get(self.policy, (1, 1.0))
            limit = calibration.disk_limit_mib_s(volume, LARGE_BYTES >> 20, copies, overhead)
            record["disk_limit_mib_s"] = round(limit, 1)
        _print(record)
        return record

    def _settle_events(self) -> float:
        """Wait until all events are handled; gives the seconds. :raises SystemExit: when counters are wrong."""
        seconds = self.events.settle()
        if wrong := wrong_counters():
            raise SystemExit("counters are wrong:\n" + "\n".join(wrong))
        return seconds

    def _run_clients(self, test: str, names: list[list[str]]) -> list[Outcome]:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(self.clients)
        running = []
        for client in range(self.clients):
            task = Task(
                test, self.sandbox.namespace, self.policy, client, self.run_id, self.options.duration,
                names[client],
            )  # fmt: skip
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=client_main, args=(task, barrier, theirs), daemon=True)
            process.start()
            theirs.close()
            running.append((process, ours))
        outcomes = [_outcome(pipe) for _process, pipe in running]
        for process, _pipe in running:
            process.join()
        return outcomes

    def _record(self, test: str, outcomes: list[Outcome]) -> dict[str, Any]:
        latencies = sorted(latency for outcome in outcomes for latency in outcome.latencies_s)
        elapsed = max(o.end for o in outcomes) - min(o.begin for o in outcomes)
        rate = sum(o.operations for o in outcomes) / elapsed
        record: dict[str, Any] = {
            "test": test, "policy": self.policy, "clients": self.clients, "durable": self.durable,
        }  # fmt: skip
        if test.endswith("100m"):
            record["mib_s"] = round(rate * LARGE_BYTES / 2**20, 1)
        elif test == "list_10k":
            record["entries_s"] = round(rate * LISTED_OBJECTS)
        else:
            record["ops_s"] = round(rate, 1)
        record["operations"] = len(latencies)
        record["p50_ms"] = round(statistics.median(latencies) * 1e3, 3)
        record["p99_ms"] = round(latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1e3, 3)
        record["client_peak_rss_mib"] = round(max(o.peak_rss_mib for o in outcomes), 1)
        return record


def _outcome(pipe: Any) -> Outcome:
    try:
        outcome = pipe.recv()
    except EOFError:
        raise SystemExit("a client process died") from None
    if isinstance(outcome, str):
        raise SystemExit(f"a client process failed:\n{outcome}")
    assert isinstance(outcome, Outcome)
    return outcome


def _cpu(outcomes: list[Outcome], before: dict[str, Usage], after: dict[str, Usage]) -> dict[str, float]:
    used = {"client": sum(outcome.cpu_s for outcome in outcomes)}
    for kind, usage in after.items():
        used[kind] = usage.cpu_s - before.get(kind, Usage(0, 0)).cpu_s
    return {kind: round(seconds, 2) for kind, seconds in used.items()}


def _print(record: dict[str, Any]) -> None:
    unit = next(key for key in _UNITS if key in record)
    total = sum(record["cpu_s"].values()) or 1.0
    shares = sorted(record["cpu_s"].items(), key=lambda item: -item[1])[:4]
    cells = [
        f"{record['test']:12}{record['policy']:12}{record['clients']} client(s)",
        "durable" if record["durable"] else "relaxed",
        f"{record[unit]:>10,} {unit:9} = {record[unit] / record['round_trips_s']:.4f} R",
        f"p50 {record['p50_ms']} ms  p99 {record['p99_ms']} ms",
        f"R {record['round_trips_s']}  files/s {record['durable_files_s']}",
        "[" + " ".join(f"{kind} {100 * seconds / total:.0f}%" for kind, seconds in shares) + "]",
    ]
    if record["events_pending"] or record["events_settled_s"] > 0:
        cells.append(
            f"events {record['events_pending']:,} pending, oldest {record['events_oldest_s']} s,"
            f" all handled after {record['events_settled_s']} s"
        )
    if "disk_limit_mib_s" in record:
        cells.append(f"disk limit {record['disk_limit_mib_s']} MiB/s")
    print("  ".join(cells), flush=True)


def _print_cost(record: dict[str, Any]) -> None:
    print(
        f"{record['test']:12}{record['policy']:12}1 client"
        f"  {'durable' if record['durable'] else 'relaxed'}  creates/s {record['ops_s']} with events,"
        f" {record['ops_s_without_events']} without: ratio {record['ratio']}"
        f" ({record['ratios'][0]} to {record['ratios'][-1]})",
        flush=True,
    )


def _report_memory(sandbox: Sandbox) -> None:
    usage = usage_by_kind(sandbox.pids())
    total = sum(entry.rss_mib for entry in usage.values())
    parts = ", ".join(f"{kind} {entry.rss_mib:.0f}" for kind, entry in sorted(usage.items()))
    print(f"memory: {total:.0f} MiB in all ({parts})", flush=True)


def _save(records: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
