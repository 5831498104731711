# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``ObjectStorageApi``: the public API of the object store.

>>> from oio import ObjectStorageApi
>>> api = ObjectStorageApi("OPENIO", endpoint="127.0.0.1:6000")
>>> api.object_create("acme", "notes", data=b"hello", obj_name="a.txt")  # doctest: +SKIP
>>> meta, stream = api.object_fetch("acme", "notes", "a.txt")  # doctest: +SKIP

Methods raise the exceptions of ``oio.common.exceptions``. Every method accepts the keywords ``headers``,
``reqid``, ``deadline``, ``connection_timeout``, ``read_timeout``, ``write_timeout``, ``perfdata``, ``cache``,
``autocreate``, ``tls``, ``admin_mode``, ``force_master`` and ``request_attempts``; others are ignored.
"""

from __future__ import annotations

import warnings
from typing import Any

from oio.api._accounts import AccountMethods
from oio.api._policy import PolicyMethods
from oio.api._snapshot import SnapshotMethods
from oio.api._truncate import TruncateMethods
from oio.common.storage_functions import _sort_chunks

__all__ = ["ObjectStorageAPI", "ObjectStorageApi", "_sort_chunks"]


class ObjectStorageApi(AccountMethods, SnapshotMethods, PolicyMethods, TruncateMethods):
    """The public API of the object store."""


class ObjectStorageAPI(ObjectStorageApi):
    """Former name of ``ObjectStorageApi`` (deprecated)."""

    def __init__(self, namespace: str, endpoint: str | None = None, **kwargs: Any) -> None:
        warnings.warn("ObjectStorageAPI: use ObjectStorageApi", DeprecationWarning, stacklevel=2)
        super().__init__(namespace, endpoint=endpoint, **kwargs)
