# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-meta1-server -O Endpoint=IP:PORT NS VOLUME``: serves the references of some prefixes.

Which prefixes is read from meta0, whose address is asked to the conscience of the configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from oio.conscience.registry_client import RegistryClient
from oio.http.client import HttpPool
from oio.meta.client import MetaClient
from oio.meta.meta1.prefixes import Prefixes, load_from_meta0
from oio.meta.meta1.service import META1, Meta1Service
from oio.meta.server import MetaProcess, open_process, open_repository, serve

logger = logging.getLogger("oio.meta1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service until it is stopped; returns the exit code."""
    process = open_process(META1.name, argv)
    repository = open_repository(process, META1)
    prefixes = open_prefixes(process)
    service = Meta1Service(repository, prefixes, process.variables["ns.meta1_digits"])
    prefixes.start()
    return serve(process, service.handlers(), repository, on_stop=[prefixes.stop])


def open_prefixes(process: MetaProcess) -> Prefixes:
    """The prefixes of a service; nothing is read before the first request."""
    addresses = [text.strip() for text in process.conf.get("conscience", "").split(",")]
    pool = HttpPool()
    registry = RegistryClient([address for address in addresses if address], pool)
    client = MetaClient(pool)
    own = {f"{process.host}:{process.port}", process.service_id}
    digits = process.variables["ns.meta1_digits"]
    return Prefixes(lambda: load_from_meta0(registry, client, own, digits))
