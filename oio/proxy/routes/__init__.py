# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Routes of the proxy, one module per family; each module lists its own in ``ROUTES``."""

from __future__ import annotations

from oio.proxy.app import RouteDefinition
from oio.proxy.routes import (
    admin,
    admin_mapping,
    conscience,
    container,
    container_list,
    container_properties,
    container_raw,
    container_upkeep,
    content_change,
    content_create,
    content_prepare,
    content_properties,
    content_read,
    lb,
    process,
    reference,
    snapshot,
)

_MODULES = (
    process,
    lb,
    conscience,
    reference,
    container,
    container_properties,
    container_list,
    container_upkeep,
    container_raw,
    snapshot,
    content_prepare,
    content_create,
    content_read,
    content_properties,
    content_change,
    admin,
    admin_mapping,
)


def all_routes() -> list[RouteDefinition]:
    """Every route that the proxy answers."""
    return [route for module in _MODULES for route in module.ROUTES]
