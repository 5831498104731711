# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The load balancer: which services receive the chunks, the bases and the connections.

:class:`~oio.proxy.lb.world.World` is an immutable picture of the services and of the storage policies, built
from what the conscience says and replaced as a whole when that changes: polling takes no lock.
"""

from __future__ import annotations

from oio.proxy.lb.poll import Choice, NotEnoughServices, Selection
from oio.proxy.lb.pool import PoolDefinition
from oio.proxy.lb.world import Item, World, build_world

__all__ = ["Choice", "Item", "NotEnoughServices", "PoolDefinition", "Selection", "World", "build_world"]
