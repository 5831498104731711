# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""OIO-SDS: a distributed object store.

>>> from oio import ObjectStorageApi
>>> api = ObjectStorageApi("OPENIO")

``ObjectStorageApi`` is loaded on first use, so that ``import oio`` alone stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oio.api.object_storage import ObjectStorageApi

__version__ = "7.0.0"
__all__ = ["ObjectStorageApi", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "ObjectStorageApi":
        from oio.api.object_storage import ObjectStorageApi

        return ObjectStorageApi
    raise AttributeError(f"module 'oio' has no attribute {name!r}")
