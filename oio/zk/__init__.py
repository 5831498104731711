# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The tree of a namespace in ZooKeeper: names of its nodes, and the tools of operators."""
