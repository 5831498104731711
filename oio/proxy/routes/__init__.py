# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Routes of the proxy, one module per family; each module lists its own in ``ROUTES``."""

from __future__ import annotations

from oio.proxy.app import RouteDefinition
from oio.proxy.routes import conscience, container, content, lb, process, properties, reference


def all_routes() -> list[RouteDefinition]:
    """Every route that the proxy answers."""
    return [
        *process.ROUTES,
        *lb.ROUTES,
        *conscience.ROUTES,
        *reference.ROUTES,
        *container.ROUTES,
        *content.ROUTES,
        *properties.ROUTES,
    ]
