# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-meta0-server -O Endpoint=IP:PORT NS VOLUME``: serves the prefix table of a namespace."""

from __future__ import annotations

from collections.abc import Sequence

from oio.meta.meta0.service import META0, Meta0Service
from oio.meta.server import open_process, open_repository, serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service until it is stopped; returns the exit code."""
    process = open_process(META0.name, argv)
    repository = open_repository(process, META0)
    if repository.replication is not None:
        repository.replication.register(f"{process.host}:{process.port}")
    service = Meta0Service(repository, process.namespace)
    return serve(process, service.handlers(), repository)
