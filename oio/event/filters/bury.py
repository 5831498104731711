# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``bury``: puts every event aside, until an operator kicks it. For events that a person must look at."""

from __future__ import annotations

from typing import Any

from oio.common.exceptions import ExplicitBury
from oio.event.filters.base import Callback, Env, Filter, make_filter_factory


class BuryFilter(Filter):
    """Buries the event."""

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event. :raises ExplicitBury: always."""
        self.count("buried")
        raise ExplicitBury(f"by the filter bury: {env.get('event')}")


filter_factory = make_filter_factory(BuryFilter)
