# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What ``/metrics`` tells of copies and elections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oio.common.metrics import Metric

if TYPE_CHECKING:
    from oio.meta.replication.engine import Replication


def metrics(replication: Replication) -> list[Metric]:
    """Families about the copies of a service: what an operator should be woken up for is in the late copies."""
    elections = replication.elections()
    elections.pop("total")
    late = replication.ledger.late_counts()
    return [
        Metric(
            "oio_meta_elections", "gauge", "Elections that this service takes part in, by state",
            [({"state": state}, count) for state, count in elections.items()],
        ),
        Metric(
            "oio_meta_late_copies", "gauge", "Bases of which a peer missed writes of this service, by peer",
            [({"peer": peer}, count) for peer, count in late.items()],
        ),
        Metric(
            "oio_meta_silent_peers", "gauge", "Peers that did not answer, and have answered no ping since",
            [({}, len(replication.links.benched_peers()))],
        ),
        Metric(
            "oio_meta_zookeeper_connected", "gauge", "Is the session with each ZooKeeper cluster alive (1)?",
            [({"servers": hosts}, int(alive)) for hosts, alive in replication.sessions.items()],
        ),
    ]
