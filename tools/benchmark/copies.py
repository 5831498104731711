# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What several copies of containers cost, and what they are worth: creates, lost masters, lost copies."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

from oio.common.exceptions import OioException
from oio.common.utils import cid_from_name
from oio.directory.admin import AdminClient
from oio.meta.meta2.schema import META2, base_name
from oio.sandbox import Sandbox
from oio.sandbox.layout import Service
from tools.benchmark import large
from tools.benchmark.clusters import BenchCluster
from tools.benchmark.series import Series, rate_of
from tools.benchmark.workload import ACCOUNT

TESTS = ("failover", "resync")
#: How a master is lost, and what brings it back.
LOSSES: dict[str, tuple[Callable[[Sandbox, Service], None], Callable[[Sandbox, Service], None]]] = {
    # The supervisor starts it again by itself, as it would on any host.
    "kill": (lambda sandbox, service: sandbox.kill(service.name), lambda sandbox, service: None),
    "pause": (
        lambda sandbox, service: sandbox.pause(service.name),
        lambda sandbox, service: sandbox.resume(service.name),
    ),
    "stop": (
        lambda sandbox, service: sandbox.stop(service.name),
        lambda sandbox, service: sandbox.start(service.name),
    ),
    "cut": (
        lambda sandbox, service: sandbox.cut(f"@{service.group}"),
        lambda sandbox, service: sandbox.heal(f"@{service.group}"),
    ),
}
#: Turns of the comparison: each cluster goes first in half of them.
_TURNS = 6
#: Prefixes of the names in a large base.
_PREFIXES = 1000
#: Longest time without a successful write, and longest wait for all copies to follow.
_PATIENCE_S = 120.0
#: Between two attempts.
_PAUSE_S = 0.005
#: What a copy answers when it did what it was asked for.
_DONE = 200


def measure(sandbox: Sandbox, durable: bool, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of the tests of copies that were asked for, on a cluster that runs."""
    records = []
    if "failover" in options.tests:
        records.append(Copies(sandbox, "failover", durable).failover(options.kills, options.loss))
    if "resync" in options.tests:
        records.append(Copies(sandbox, "resync", durable).resync(options.base_objects))
    return records


class Copies:
    """The copies of one container."""

    def __init__(self, sandbox: Sandbox, container: str, durable: bool) -> None:
        from oio import ObjectStorageApi

        self.sandbox = sandbox
        self.container = container
        self.durable = durable
        self.api = ObjectStorageApi(sandbox.namespace, endpoint=sandbox.proxy)
        self.admin = AdminClient({"namespace": sandbox.namespace}, endpoint=sandbox.proxy)
        self.services = {one.id: one for one in sandbox.services("meta2")}
        self.api.container_create(ACCOUNT, container)

    # --- lost masters -----------------------------------------------------------------------------

    def failover(self, losses: int, kind: str) -> dict[str, Any]:
        """Lose masters one after the other, and measure how long each loss keeps everybody from writing."""
        lose, bring_back = LOSSES[kind]
        spent: list[float] = []
        refused = 0
        for number in range(losses):
            master = self._wait_for_all()
            self._write(f"before-{number}")
            begin = time.perf_counter()
            lose(self.sandbox, master)
            refused += self._write_at_last(f"after-{number}")
            spent.append(time.perf_counter() - begin)
            bring_back(self.sandbox, master)
            print(f"failover    {kind} of {master.id}: {spent[-1]:.3f} s", flush=True)
        record = {
            "test": "failover", "loss": kind, "durable": self.durable, "losses": losses,
            "median_s": round(statistics.median(spent), 3), "max_s": round(max(spent), 3),
            "seconds": [round(one, 3) for one in spent], "refused": refused,
        }  # fmt: skip
        print(
            f"failover    {losses} x {kind}  {'durable' if self.durable else 'relaxed'}  to the next write:"
            f" median {record['median_s']} s, max {record['max_s']} s, {refused} writes refused meanwhile",
            flush=True,
        )
        return record

    def _write(self, value: str) -> None:
        self.api.container_set_properties(ACCOUNT, self.container, {"turn": value})

    def _write_at_last(self, value: str) -> int:
        """Write until it succeeds; gives the number of failures."""
        deadline = time.monotonic() + _PATIENCE_S
        for failures in itertools.count():
            try:
                self._write(value)
                return failures
            except OioException as err:
                if time.monotonic() > deadline:
                    raise SystemExit(f"a master is lost, no write for {_PATIENCE_S:.0f} s: {err}") from err
                time.sleep(_PAUSE_S)
        raise AssertionError("unreachable")

    def _wait_for_all(self) -> Service:
        """Wait until every copy is there and follows; gives the master."""
        wanted = min(len(self.services), self.sandbox.layout.options.container_replicas)
        deadline = time.monotonic() + _PATIENCE_S
        found: dict[str, Any] = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(OioException):
                self.admin.election_ping("meta2", account=ACCOUNT, reference=self.container)
                found = self.admin.election_status("meta2", account=ACCOUNT, reference=self.container)
                if found.get("master") in self.services and len(found.get("slaves", ())) == wanted - 1:
                    return self.services[found["master"]]
            time.sleep(0.05)
        raise SystemExit(f"the copies do not agree after {_PATIENCE_S:.0f} s: {found}")

    # --- lost copies ------------------------------------------------------------------------------

    def resync(self, objects: int) -> dict[str, Any]:
        """Lose one copy of a large base, and measure how fast the master gives it again."""
        master = self._wait_for_all()
        path = self._load(objects)
        size_mib = os.path.getsize(os.path.join(master.volume, path)) / 2**20
        master = self._wait_for_all()
        loser = next(one for one in self._holders(path) if one.id != master.id)
        self.sandbox.stop(loser.name)
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(loser.volume, path + end))
        self.sandbox.start(loser.name)
        copy = os.path.join(loser.volume, path)
        if os.path.exists(copy):
            raise SystemExit("the copy came back before it was asked for")
        begin = time.perf_counter()
        told = self.admin.election_sync(
            "meta2", account=ACCOUNT, reference=self.container, service_id=loser.id, read_timeout=_PATIENCE_S
        )
        spent = time.perf_counter() - begin
        if told[loser.id]["status"]["status"] != _DONE or os.path.getsize(copy) < size_mib * 2**20 / 2:
            raise SystemExit(f"no copy was made: {told}")
        record = {
            "test": "resync", "durable": self.durable, "objects": objects, "size_mib": round(size_mib, 1),
            "seconds": round(spent, 2), "mib_s": round(size_mib / spent, 1),
        }  # fmt: skip
        print(
            f"resync      {'durable' if self.durable else 'relaxed'}  {size_mib:.0f} MiB in {spent:.1f} s:"
            f" {record['mib_s']} MiB/s",
            flush=True,
        )
        return record

    def _load(self, objects: int) -> str:
        """Write the rows of objects into all copies, while nobody has them open; gives their path in a volume."""
        path = str(META2.relative_path(base_name(cid_from_name(ACCOUNT, self.container))))
        self.sandbox.stop("@meta2")
        first, *others = self._holders(path)
        source = os.path.join(first.volume, path)
        large.load(source, _PREFIXES, max(1, objects // _PREFIXES))
        for other in others:
            for end in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(other.volume, path + end))
            shutil.copyfile(source, os.path.join(other.volume, path))
        self.sandbox.start("@meta2")
        return path

    def _holders(self, path: str) -> list[Service]:
        return [one for one in self.services.values() if os.path.exists(os.path.join(one.volume, path))]


# --- cost of copies -----------------------------------------------------------------------------------


def compare(durable: bool, options: argparse.Namespace, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Creates on a cluster with copies and on one without, in turns: the same machine at the same moments."""
    records = []
    fields = {**fields, "prepare_directories": False}
    with (
        BenchCluster(durable, "BENCHCOPIES", **fields) as several,
        BenchCluster(durable, "BENCHONE", **{**fields, "replicas": 1, "isolate_hosts": False}) as one,
    ):
        for policy in options.policies:
            for clients in options.clients:
                records.append(_ratio({"several": several, "one": one}, policy, clients, durable, options))
    return records


def _ratio(
    clusters: dict[str, Sandbox], policy: str, clients: int, durable: bool, options: argparse.Namespace
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in clusters}
    for turn in range(_TURNS):
        for name in sorted(clusters, reverse=bool(turn % 2)):
            os.environ.update(clusters[name].environment)
            series = Series(clusters[name], policy, clients, durable, options)
            series.run_id = f"copies-{turn}-{clients}"
            rates[name].append(rate_of(series.run_clients("create_4k")))
            series.events.settle()
            series.events.close()
    pairs = sorted(a / b for a, b in zip(rates["several"], rates["one"], strict=True))
    record = {
        "test": "copies_cost", "policy": policy, "clients": clients, "durable": durable,
        "replicas": options.replicas,
        "ops_s": round(statistics.median(rates["several"]), 1),
        "ops_s_one_copy": round(statistics.median(rates["one"]), 1),
        "ratio": round(statistics.median(pairs), 3), "ratios": [round(pair, 3) for pair in pairs],
    }  # fmt: skip
    print(
        f"copies_cost {policy:12}{clients} client(s)  {'durable' if durable else 'relaxed'}  creates/s"
        f" {record['ops_s']} with {options.replicas} copies, {record['ops_s_one_copy']} with one:"
        f" ratio {record['ratio']} ({pairs[0]:.3f} to {pairs[-1]:.3f})",
        flush=True,
    )
    return record
