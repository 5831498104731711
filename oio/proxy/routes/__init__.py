# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Routes of the proxy, one module per family; each module lists its own in ``ROUTES``."""

from __future__ import annotations

from oio.proxy.app import RouteDefinition
from oio.proxy.routes.conscience import ROUTES as CONSCIENCE_ROUTES
from oio.proxy.routes.container import ROUTES as CONTAINER_ROUTES
from oio.proxy.routes.content import ROUTES as CONTENT_ROUTES
from oio.proxy.routes.lb import ROUTES as LB_ROUTES
from oio.proxy.routes.process import ROUTES as PROCESS_ROUTES
from oio.proxy.routes.properties import ROUTES as PROPERTIES_ROUTES
from oio.proxy.routes.reference import ROUTES as REFERENCE_ROUTES


def all_routes() -> list[RouteDefinition]:
    """Every route that the proxy answers."""
    return [
        *PROCESS_ROUTES,
        *LB_ROUTES,
        *CONSCIENCE_ROUTES,
        *REFERENCE_ROUTES,
        *CONTAINER_ROUTES,
        *CONTENT_ROUTES,
        *PROPERTIES_ROUTES,
    ]
