# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Names and values that programs, and the attributes of files on disk, depend on."""

import pytest

from oio.common import constants

VALUES = {
    "HEADER_PREFIX": "x-oio-",
    "ADMIN_HEADER": "x-oio-admin",
    "CHECKHASH_HEADER": "x-oio-check-hash",
    "FETCHXATTR_HEADER": "x-oio-xattr",
    "FORCEMASTER_HEADER": "x-oio-force-master",
    "FORCEVERSIONING_HEADER": "x-oio-force-versioning",
    "SIMULATEVERSIONING_HEADER": "x-oio-simulate-versioning",
    "PERFDATA_HEADER": "x-oio-perfdata",
    "PERFDATA_HEADER_PREFIX": "x-oio-perfdata-",
    "REQID_HEADER": "x-oio-req-id",
    "TIMEOUT_HEADER": "x-oio-timeout",
    "CONTAINER_METADATA_PREFIX": "x-oio-container-meta-",
    "CONTAINER_USER_METADATA_PREFIX": "x-oio-container-meta-user-",
    "OBJECT_METADATA_PREFIX": "x-oio-content-meta-",
    "CHUNK_METADATA_PREFIX": "x-oio-chunk-meta-",
    "CONNECTION_TIMEOUT": 2.0,
    "READ_TIMEOUT": 30.0,
    "TIMEOUT_KEYS": ("connection_timeout", "read_timeout", "write_timeout"),
    "STRLEN_REFERENCEID": 66,
    "STRLEN_CHUNKID": 64,
    "STRLEN_REQID": 63,
    "OIO_VERSION": "4.2",
    "OIO_DB_ENABLED": 0,
    "OIO_DB_FROZEN": 4294967295,
    "OIO_DB_DISABLED": 4294967294,
    "OIO_DB_STATUS_NAME": {
        0: "Enabled", 4294967295: "Frozen", 4294967294: "Disabled",
        "0": "Enabled", "4294967295": "Frozen", "4294967294": "Disabled",
    },
    "CHUNK_XATTR_CONTENT_FULLPATH_PREFIX": "oio.content.fullpath:",
    "CHUNK_SUFFIX_CORRUPT": ".corrupt",
    "CHUNK_SUFFIX_PENDING": ".pending",
    "HIDDEN_ACCOUNTS": ("_RDIR",),
    "CH_ENCODED_SEPARATOR": "%2F",
    "CH_SEPARATOR": "/",
    "S3_MPU_CONTAINER_SUFFIX": "+segments",
    "BUCKET_PROP_REPLI_ENABLED": "replication_enabled",
    "M2_PROP_BUCKET_NAME": "sys.m2.bucket.name",
    "M2_PROP_CTIME": "sys.m2.ctime",
    "M2_PROP_DAMAGED_OBJECTS": "sys.m2.objects.damaged",
    "M2_PROP_DEL_EXC_VERSIONS": "sys.m2.policy.version.delete_exceeding",
    "M2_PROP_MISSING_CHUNKS": "sys.m2.chunks.missing",
    "M2_PROP_OBJECTS": "sys.m2.objects",
    "M2_PROP_USAGE": "sys.m2.usage",
    "M2_PROP_QUOTA": "sys.m2.quota",
    "M2_PROP_STORAGE_POLICY": "sys.m2.policy.storage",
    "M2_PROP_VERSIONING_POLICY": "sys.m2.policy.version",
    "CONTAINER_HEADERS": {
        "size": "x-oio-container-meta-sys-m2-usage", "ns": "x-oio-container-meta-sys-ns",
    },
    "OBJECT_HEADERS": {
        "name": "x-oio-content-meta-name", "id": "x-oio-content-meta-id",
        "policy": "x-oio-content-meta-policy", "version": "x-oio-content-meta-version",
        "size": "x-oio-content-meta-length", "ctime": "x-oio-content-meta-ctime",
        "hash": "x-oio-content-meta-hash", "mime_type": "x-oio-content-meta-mime-type",
        "chunk_method": "x-oio-content-meta-chunk-method",
    },
    "VOLUME_XATTR_KEYS": {"namespace": "server.ns", "type": "server.type", "id": "server.id"},
    "CHUNK_XATTR_KEYS_OPTIONAL": {
        "content_chunksnb": True, "chunk_hash": True, "chunk_mtime": True, "chunk_size": True,
        "metachunk_size": True, "metachunk_hash": True, "oio_version": True, "compression": True,
        "container_id": True, "content_id": True, "content_path": True, "content_version": True,
    },
}  # fmt: skip

# Key, suffix of the header, attribute on disk.
CHUNK_KEYS = [
    ("container_id", "container-id", "grid.content.container"),
    ("chunk_id", "chunk-id", "grid.chunk.id"),
    ("chunk_hash", "chunk-hash", "grid.chunk.hash"),
    ("chunk_mtime", None, None),
    ("chunk_size", "chunk-size", "grid.chunk.size"),
    ("chunk_pos", "chunk-pos", "grid.chunk.position"),
    ("content_id", "content-id", "grid.content.id"),
    ("content_chunkmethod", "content-chunk-method", "grid.content.chunk_method"),
    ("content_policy", "content-storage-policy", "grid.content.storage_policy"),
    ("content_path", "content-path", "grid.content.path"),
    ("content_version", "content-version", "grid.content.version"),
    ("metachunk_size", "metachunk-size", "grid.metachunk.size"),
    ("metachunk_hash", "metachunk-hash", "grid.metachunk.hash"),
    ("full_path", "full-path", None),
    ("oio_version", "oio-version", "grid.oio.version"),
    ("compression", None, "grid.compression"),
]


@pytest.mark.parametrize("name", VALUES)
def test_each_constant_has_its_value(name):
    value = getattr(constants, name)
    assert value == VALUES[name] and type(value) is type(VALUES[name])


@pytest.mark.parametrize(("key", "suffix", "attribute"), CHUNK_KEYS)
def test_each_fact_of_a_chunk_has_its_header_and_attribute(key, suffix, attribute):
    header = "last-modified" if key == "chunk_mtime" else suffix and "x-oio-chunk-meta-" + suffix
    assert constants.CHUNK_HEADERS.get(key) == header
    assert constants.CHUNK_XATTR_KEYS.get(key) == attribute


def test_a_chunk_has_no_other_facts():
    keys = {key for key, _suffix, _attribute in CHUNK_KEYS}
    assert constants.CHUNK_HEADERS.keys() | constants.CHUNK_XATTR_KEYS.keys() == keys


@pytest.mark.parametrize(
    "name",
    ["chunk_xattr_keys", "chunk_xattr_keys_optional", "container_headers", "object_headers", "volume_xattr_keys"],
)
def test_former_names_are_the_same_dictionaries(name):
    assert getattr(constants, name) is getattr(constants, name.upper())
