# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The reverse directory: which chunks (and which containers) each volume holds."""
