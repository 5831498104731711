# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``logger``: writes every event to the log."""

from __future__ import annotations

from typing import Any

from oio.event.filters.base import Callback, Env, Filter, make_filter_factory


class LoggerFilter(Filter):
    """Logs the event, and goes on."""

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event."""
        self.logger.info("got event: %s", env)
        return self.app(env, beanstalkd, cb)


filter_factory = make_filter_factory(LoggerFilter)
