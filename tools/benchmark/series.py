# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The tests of one policy with one number of clients, each record with the calibration of its own moment."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import Any

from oio.sandbox import Sandbox
from tools.benchmark import calibration
from tools.benchmark.events import EventChain, wrong_counters
from tools.benchmark.resources import Usage, usage_by_kind
from tools.benchmark.workload import LARGE_BYTES, LISTED_OBJECTS, Outcome, Task, client_main

#: Tests of a series, in order.
TESTS = ("create_4k", "fetch_4k", "delete_4k", "create_100m", "fetch_100m", "list_10k")
# Tests that use the objects of another one.
_NEEDS = {"fetch_4k": "create_4k", "delete_4k": "create_4k", "fetch_100m": "create_100m"}
_UNITS = ("ops_s", "mib_s", "entries_s")
# Copies written per policy, and bytes of each per user byte: what the disk is asked for.
_DISK_LOAD = {"SINGLE": (1, 1.0), "TWOCOPIES": (2, 1.0), "THREECOPIES": (3, 1.0), "EC": (9, 1 / 6)}


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
            if test == "list_10k" and test in self.options.tests:
                self.run_clients("fill_10k")
                self.settle_events()
            if test in self.options.tests and (needed is None or needed in self.names):
                records.append(self._measure(test))
        return records

    def _measure(self, test: str) -> dict[str, Any]:
        size = test.rpartition("_")[2]
        names = self.names.get(f"create_{size}")
        volume = self.sandbox.home
        before = calibration.round_trips_s(0.5), calibration.durable_files_s(volume, 0.5)
        used_before = usage_by_kind(self.sandbox.pids())
        outcomes = self.run_clients(test, names)
        backlog = self.events.backlog()
        used = usage_by_kind(self.sandbox.pids())
        after = calibration.round_trips_s(0.5), calibration.durable_files_s(volume, 0.5)
        self.names[f"create_{size}"] = [outcome.names for outcome in outcomes]
        record = self._record(test, outcomes)
        record["events_pending"], record["events_oldest_s"] = backlog.events, round(backlog.oldest_s, 2)
        record["events_settled_s"] = round(self.settle_events(), 1)
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

    def settle_events(self) -> float:
        """Wait until all events are handled; gives the seconds. :raises SystemExit: when counters are wrong."""
        seconds = self.events.settle()
        if wrong := wrong_counters():
            raise SystemExit("counters are wrong:\n" + "\n".join(wrong))
        return seconds

    def run_clients(self, test: str, names: list[list[str]] | None = None) -> list[Outcome]:
        """Run a test in client processes.

        :param names: for each client, the objects that it finds.
        """
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(self.clients)
        running = []
        for client in range(self.clients):
            task = Task(
                test, self.sandbox.namespace, self.policy, client, self.run_id, self.options.duration,
                names[client] if names else [],
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
        rate = rate_of(outcomes)
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


def rate_of(outcomes: list[Outcome]) -> float:
    """Operations per second of clients that ran at the same time."""
    elapsed = max(one.end for one in outcomes) - min(one.begin for one in outcomes)
    return sum(one.operations for one in outcomes) / elapsed


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
