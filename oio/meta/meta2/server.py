# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-meta2-server``: containers and objects of one volume."""

from __future__ import annotations

from collections.abc import Sequence

from oio.meta.meta2.schema import META2
from oio.meta.meta2.service import Meta2Service
from oio.meta.server import open_process, open_repository, serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service until it is told to stop; returns the exit code."""
    process = open_process("meta2", argv)
    repository = open_repository(process, META2)
    service = Meta2Service(repository, process.variables, process.service_id)
    return serve(process, service.handlers(), repository)
