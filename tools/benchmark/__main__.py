# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Run the benchmarks: ``python -m tools.benchmark [options]``.

For each durability a cluster of its own is started in ``build/``; for each policy and number of client
processes the operations are timed, and each record carries the calibration of its own moment. Figures go to
the terminal and to ``build/bench.json``. Nothing here asserts on time.

What writes makes events: how many wait when the load stops, the age of the oldest, and the seconds until all
are handled stand in the record of the test. The next test begins after that, and once the counters of the
account are those of its containers: if they are not, the benchmark fails.

With ``--replicas`` the directory and the containers have several copies. ``failover`` measures how long nobody
can write to a container whose master is lost, ``resync`` how fast a copy of a large base is made again, and
``--compare`` prints the rate of creates divided by that of a cluster with one copy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from oio.sandbox import Sandbox
from tools.benchmark import copies, series
from tools.benchmark.clusters import BUILD, BenchCluster
from tools.benchmark.events import cost_of_events
from tools.benchmark.resources import usage_by_kind

#: Tests that compare two clusters of their own.
_OWN_CLUSTERS = ("events_cost", "copies_cost")
TESTS = (*series.TESTS, *copies.TESTS, *_OWN_CLUSTERS)
#: What is measured unless told otherwise: with one copy, and with several.
_DEFAULT_TESTS = {False: [*series.TESTS, "events_cost"], True: [*series.TESTS, "failover"]}
POLICIES = ("SINGLE", "THREECOPIES", "EC")
CLIENTS = (1, 4)


def main(argv: list[str] | None = None) -> int:
    """Measure what the options select; returns the exit code."""
    options = _parser().parse_args(argv)
    options.tests = options.tests or _DEFAULT_TESTS[options.replicas > 1]
    if options.compare:
        options.tests = [*options.tests, "copies_cost"]
    if "copies_cost" in options.tests and options.replicas < 2:
        raise SystemExit("--compare needs --replicas, two or more")
    BUILD.mkdir(exist_ok=True)
    records: list[dict[str, Any]] = []
    for durable in options.durability:
        if set(options.tests) - set(_OWN_CLUSTERS):
            with BenchCluster(durable, **_fields(options)) as sandbox:
                os.environ.update(sandbox.environment)
                for policy in options.policies:
                    for clients in options.clients:
                        records += series.Series(sandbox, policy, clients, durable, options).run()
                        _save(records, options.output)
                records += copies.measure(sandbox, durable, options)
                _save(records, options.output)
                _report_memory(sandbox)
        if "copies_cost" in options.tests:
            records += copies.compare(durable, options, _fields(options))
            _save(records, options.output)
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
    add("--tests", type=_words(TESTS), help=f"among {','.join(TESTS)}")
    add("--replicas", type=int, default=1, metavar="N", help="copies of the directory and of containers")
    add("--compare", action="store_true", help="copies_cost too: creates with these copies against one, in turns")
    add("--kills", type=int, default=10, metavar="K", help="masters lost in the test failover")
    add("--loss", choices=sorted(copies.LOSSES), default="kill", help="how a master is lost (kill)")
    add("--base-objects", type=int, default=1_500_000, metavar="N", help="in the base of resync (1 GiB)")
    add("--policies", type=lambda text: text.split(","), default=list(POLICIES), help="storage policies")
    add("--clients", type=lambda text: [int(n) for n in text.split(",")], default=list(CLIENTS),
        help="numbers of client processes")  # fmt: skip
    add("--durability", type=_durability, default=[True, False], help="durable, relaxed (default: both)")
    add("--duration", type=float, default=4.0, metavar="S", help="of each test, in seconds")
    add("--chunk-size", type=int, default=None, metavar="BYTES", help="chunk size of the cluster")
    add("--output", type=Path, default=BUILD / "bench.json", help="where the records go")
    return parser


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    fields: dict[str, Any] = {"replicas": options.replicas}
    if options.chunk_size:
        fields["chunk_size"] = options.chunk_size
    if options.loss == "cut" and "failover" in options.tests:
        fields["isolate_hosts"] = True
    if not set(options.tests) & set(series.TESTS):
        # What is left does not ask the chunk servers for their best.
        fields["prepare_directories"] = False
    return fields


def _durability(text: str) -> list[bool]:
    return [word == "durable" for word in _words(("durable", "relaxed"))(text)]


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
