# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the meta services."""

from meta2_bench import bench, event_queue

__all__ = ["bench", "event_queue"]
