# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""ecd: a gateway to chunks for programs that have no erasure coding library. See :mod:`oio.ecd.gateway`."""
