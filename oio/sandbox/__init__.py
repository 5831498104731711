# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A local cluster: laid out, started, watched and stopped by one tool or by a test.

>>> from oio.sandbox import Options, Sandbox
>>> with Sandbox("/tmp/cluster", Options(namespace="DEMO")) as sandbox:
...     api = ObjectStorageApi("DEMO", endpoint=sandbox.proxy)
"""

from __future__ import annotations

from oio.sandbox.cluster import Sandbox
from oio.sandbox.errors import SandboxError
from oio.sandbox.options import Options

__all__ = ["Options", "Sandbox", "SandboxError"]
