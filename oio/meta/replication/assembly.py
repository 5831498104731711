# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""From the configuration of a service to the engine of its copies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from oio.common import status
from oio.common.status import StatusError
from oio.common.variables import Variables
from oio.conscience.messages import valid_address
from oio.conscience.registry_client import RegistryClient
from oio.http.client import HttpPool
from oio.meta.replication.candidacy import Candidacy, View
from oio.meta.replication.engine import Replication
from oio.meta.replication.following import ImageSettings
from oio.meta.replication.groups import GroupSettings
from oio.meta.replication.ledger import Ledger
from oio.meta.replication.links import Links
from oio.meta.replication.zookeeper import ZooKeepers

#: A service that is not known is asked for not more often than that (seconds).
ADDRESSES_AGE_S = 1.0


class Addresses:
    """Addresses of services by id, as the conscience tells them."""

    def __init__(self, registry: RegistryClient, service_type: str) -> None:
        self._registry = registry
        self._type = service_type
        self._known: dict[str, str] = {}
        self._read_at = -ADDRESSES_AGE_S
        self._lock = threading.Lock()

    def __call__(self, service_id: str) -> str:
        """Address of a service. :raises StatusError: 503 when nobody knows it."""
        if valid_address(service_id):
            return service_id
        known = self._known.get(service_id)
        if known is not None:
            return known
        with self._lock:
            if time.monotonic() - self._read_at >= ADDRESSES_AGE_S:
                self._read()
        try:
            return self._known[service_id]
        except KeyError:
            raise StatusError(status.UNAVAILABLE, f"service {service_id} is not known to the conscience") from None

    def _read(self) -> None:
        services = self._registry.services(self._type)
        self._known |= {str(one.tags.get("tag.service_id") or one.addr): one.addr for one in services}
        self._read_at = time.monotonic()


def open_replication(
    service_type: str,
    namespace: str,
    names: Sequence[str],
    volume: str,
    conf: Mapping[str, str],
    variables: Variables,
) -> Replication:
    """The engine of the copies of a service. :raises ValueError: when the namespace has no ZooKeeper."""
    addresses = [text.strip() for text in conf.get("conscience", "").split(",")]
    registry = RegistryClient([address for address in addresses if address], HttpPool())
    zookeepers = ZooKeepers(
        conf, namespace, service_type, variables["sqliterepo.zk.timeout"],
        shuffle=variables["sqliterepo.zk.shuffle"],
        reconnections_max=variables["sqliterepo.zk.rrd.threshold"],
        window_s=variables["sqliterepo.zk.rrd.window"],
    )  # fmt: skip

    def open_candidacy(
        key: str, own_name: str, on_change: Callable[[View], None], peers: tuple[str, ...]
    ) -> Candidacy:
        return Candidacy(zookeepers.ensemble_of(key), namespace, service_type, key, own_name, on_change, peers)

    zookeepers.start()
    return Replication(
        service_type,
        names,
        Ledger(volume, fsync=variables["sqliterepo.sync"] != "off"),
        Links(
            Addresses(registry, service_type),
            variables["sqliterepo.outgoing.timeout.cnx.replicate"],
            variables["sqliterepo.outgoing.timeout.req.replicate"],
        ),
        open_candidacy,
        lease_s=variables["sqliterepo.election.lease"],
        shards=variables["sqliterepo.election.shards"],
        settings=GroupSettings(
            variables["sqliterepo.election.allow_master"], variables["sqliterepo.election.wait.delay"]
        ),
        log_max_entries=variables["sqliterepo.log.max_entries"],
        log_max_bytes=variables["sqliterepo.log.max_size"],
        zookeepers=zookeepers,
        idle_slave_s=variables["sqliterepo.election.delay.expire_slave"],
        idle_master_s=variables["sqliterepo.election.delay.expire_master"],
        images=ImageSettings(
            variables["sqliterepo.outgoing.timeout.req.resync"], variables["sqliterepo.dump.check_type"]
        ),
    )
