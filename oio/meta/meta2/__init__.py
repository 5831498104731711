# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""meta2: the service of containers and objects."""
