# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``noop``: does nothing, and goes on with the next filter."""

from __future__ import annotations

from oio.event.filters.base import Filter, make_filter_factory


class NoopFilter(Filter):
    """Calls the next filter."""


filter_factory = make_filter_factory(NoopFilter)
