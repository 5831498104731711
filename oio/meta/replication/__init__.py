# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Bases with several copies: one peer leads, the others follow, a majority decides."""
