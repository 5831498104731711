# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What can be done with an event: one module for each filter, found through entry points.

See :mod:`oio.event.filters.base` for what a filter is, and :mod:`oio.event.pipelines` for how they are chained.
"""
