# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Throughput and latency of a local cluster, through the public API (``make bench``)."""
