# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Objects as maintenance sees them: their chunks, how to rebuild one, how to move one."""
