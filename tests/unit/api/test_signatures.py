# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Names, order and defaults of the arguments of the API: programs give them by position and by keyword."""

from __future__ import annotations

import inspect

import pytest

from oio import ObjectStorageApi

_CREATE = (
    "account, container, file_or_path=None, data=None, etag=None, obj_name=None, mime_type=None, metadata=None,"
    " policy=None, key_file=None, append=False, properties=None"
)
_LIST = (
    "account, container, limit=None, marker=None, delimiter=None, prefix=None, end_marker=None,"
    " properties=False, versions=False, deleted=False"
)
SIGNATURES = {
    "account_create": "account",
    "account_del_properties": "account, properties",
    "account_delete": "account",
    "account_flush": "account",
    "account_get_properties": "account",
    "account_list": "",
    "account_refresh": "account=None",
    "account_set_properties": "account, properties",
    "account_show": "account",
    "all_accounts_refresh": "",
    "bucket_list": "account, limit=None, marker=None, prefix=None",
    "bucket_refresh": "bucket",
    "bucket_show": "bucket",
    "bucket_update": "bucket, metadata=None, to_delete=None",
    "container_create": "account, container, properties=None, system=None",
    "container_create_many": "account, containers, properties=None, system=None",
    "container_del_properties": "account, container, properties",
    "container_delete": "account, container",
    "container_flush": "account, container, fast=False",
    "container_get_properties": "account, container, properties=None",
    "container_list": (
        "account, limit=None, marker=None, end_marker=None, prefix=None, delimiter=None, s3_buckets_only=False"
    ),
    "container_purge": "account, container, maxvers=None",
    "container_refresh": "account, container, attempts=3",
    "container_set_properties": "account, container, properties=None, clear=False, system=None",
    "container_show": "account, container",
    "container_snapshot": "account, container, dst_account, dst_container, batch_size=100",
    "container_touch": "account, container, recompute=False",
    "container_update": "account, container, metadata, clear=False",
    "object_change_policy": "account, container, obj, policy",
    "object_create": _CREATE,
    "object_create_ext": _CREATE,
    "object_del_properties": "account, container, obj, properties, version=None",
    "object_delete": "account, container, obj, version=None",
    "object_delete_many": "account, container, objs",
    "object_drain": "account, container, obj, version=None",
    "object_fetch": "account, container, obj, version=None, ranges=None, key_file=None",
    "object_get_properties": "account, container, obj, version=None",
    "object_head": "account, container, obj, trust_level=0",
    "object_link": (
        "target_account, target_container, target_obj, link_account, link_container, link_obj,"
        " target_version=None, target_content_id=None, link_content_id=None, properties_directive='COPY'"
    ),
    "object_list": _LIST,
    "object_locate": "account, container, obj, version=None, chunk_info=False, properties=True",
    "object_set_properties": "account, container, obj, properties, version=None, clear=False",
    "object_show": "account, container, obj, version=None",
    "object_touch": "account, container, obj, version=None",
    "object_truncate": "account, container, obj, version=None, size=None",
    "object_update": "account, container, obj, metadata, version=None, clear=False",
    "resolve_cid": "cid",
}


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_arguments(name: str) -> None:
    parameters = list(inspect.signature(getattr(ObjectStorageApi, name)).parameters.values())
    assert parameters[0].name == "self"
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    told = [
        p.name if p.default is inspect.Parameter.empty else f"{p.name}={p.default!r}" for p in parameters[1:-1]
    ]
    assert ", ".join(told) == SIGNATURES[name]


def test_every_public_method_is_here() -> None:
    public = {
        name
        for name, _member in inspect.getmembers(ObjectStorageApi, inspect.isfunction)
        if not name.startswith("_")
    }
    assert public == {*SIGNATURES, "object_analyze", "object_fastcopy"}
