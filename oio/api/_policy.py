# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Change of storage policy: an object is read and written again under the same name and version."""

from __future__ import annotations

from typing import Any

from oio.api._objects_read import ObjectReadMethods
from oio.api._objects_write import ObjectCreated, ObjectWriteMethods
from oio.common.decorators import api_call, raise_no_such_object
from oio.common.exceptions import Conflict

_MD5_DIGITS = 32


class PolicyMethods(ObjectReadMethods, ObjectWriteMethods):
    """Methods that change how objects are stored."""

    @api_call(raise_no_such_object)
    def object_change_policy(
        self, account: str, container: str, obj: str, policy: str, **kwargs: Any
    ) -> ObjectCreated:
        """Store the data of an object after another storage policy.

        Name, version, times, hash, length, properties and the counters of the container stay; the id of the
        content is a new one. The former chunks are deleted after a while.

        :keyword version: version to change, instead of the latest.
        :returns: as ``object_create_ext``.
        :raises Conflict: when the object follows this policy already.
        :raises NoSuchObject: when it is missing, or is a delete marker.
        """
        version = kwargs.pop("version", None)
        meta, stream = self._object_fetch_impl(
            account, container, obj, version=version, **{**kwargs, "cache": None, "properties": False}
        )
        if meta["policy"] == policy:
            raise Conflict(message=f"The object is already using the {policy} storage policy")
        if len(meta.get("hash") or "") != _MD5_DIGITS:
            # Unknown since an append, or made by another algorithm: it stays as it is.
            kwargs["hash_in_place"] = meta.get("hash") or ""
        kwargs["version"] = meta["version"]
        return self.object_create_ext(
            account,
            container,
            obj_name=meta["name"],
            data=stream,
            mime_type=meta.get("mime_type"),
            policy=policy,
            change_policy=True,
            **kwargs,
        )
