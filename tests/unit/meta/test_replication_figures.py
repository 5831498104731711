# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the metrics of a service tell of its copies and elections."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from oio.common.metrics import render
from oio.meta.replication.engine import Replication
from oio.meta.replication.figures import metrics
from oio.meta.replication.ledger import Ledger


class Zookeepers:
    def __init__(self, **ensembles: bool) -> None:
        self.ensembles = [SimpleNamespace(hosts=hosts, connected=alive) for hosts, alive in ensembles.items()]


def engine(tmp_path: Path, states: list[str], silent: list[str], **zookeepers: bool) -> Replication:
    links: Any = SimpleNamespace(benched_peers=lambda: silent)
    known: Any = Zookeepers(**zookeepers)
    open_candidacy: Any = None
    replication = Replication(
        "meta2", ["m1"], Ledger(str(tmp_path), fsync=False), links, open_candidacy, zookeepers=known
    )
    groups: Any = {str(number): SimpleNamespace(state=state) for number, state in enumerate(states)}
    replication._groups = groups
    return replication


def test_metrics(tmp_path: Path) -> None:
    states = ["MASTER", "MASTER", "SLAVE", "WATCHING", "NONE", "FAILED"]
    replication = engine(tmp_path, states, ["m3"], zk1=True, zk2=False)
    for peer, base in (("m2", "A.1"), ("m2", "B.1"), ("m3", "A.1"), ("m3", "C.1"), ("m2", "A.1")):
        replication.ledger.add_late(peer, base)
    for base in ("A.1", "C.1"):
        replication.ledger.clear_late("m3", base)
    lines = render(metrics(replication)).decode().splitlines()
    replication.ledger.close()
    assert {line for line in lines if line.startswith("oio_")} == {
        'oio_meta_elections{state="none"} 1.0',
        'oio_meta_elections{state="pending"} 1.0',
        'oio_meta_elections{state="failed"} 1.0',
        'oio_meta_elections{state="slave"} 1.0',
        'oio_meta_elections{state="master"} 2.0',
        'oio_meta_late_copies{peer="m2"} 2.0',
        "oio_meta_silent_peers 1.0",
        'oio_meta_zookeeper_connected{servers="zk1"} 1.0',
        'oio_meta_zookeeper_connected{servers="zk2"} 0.0',
    }
