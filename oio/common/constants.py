# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Names, headers and attribute keys shared by clients and services (contract: ``oio.common.constants``)."""

from __future__ import annotations

HEADER_PREFIX = "x-oio-"
ADMIN_HEADER = HEADER_PREFIX + "admin"
CHECKHASH_HEADER = HEADER_PREFIX + "check-hash"
FETCHXATTR_HEADER = HEADER_PREFIX + "xattr"
FORCEMASTER_HEADER = HEADER_PREFIX + "force-master"
FORCEVERSIONING_HEADER = HEADER_PREFIX + "force-versioning"
RETRIED_HEADER = HEADER_PREFIX + "retried"
SIMULATEVERSIONING_HEADER = HEADER_PREFIX + "simulate-versioning"
PERFDATA_HEADER = HEADER_PREFIX + "perfdata"
PERFDATA_HEADER_PREFIX = PERFDATA_HEADER + "-"
REQID_HEADER = HEADER_PREFIX + "req-id"
TIMEOUT_HEADER = HEADER_PREFIX + "timeout"

CONTAINER_METADATA_PREFIX = HEADER_PREFIX + "container-meta-"
CONTAINER_USER_METADATA_PREFIX = CONTAINER_METADATA_PREFIX + "user-"
OBJECT_METADATA_PREFIX = HEADER_PREFIX + "content-meta-"
CHUNK_METADATA_PREFIX = HEADER_PREFIX + "chunk-meta-"
BLOCK_SUMS_HEADER = CHUNK_METADATA_PREFIX + "block-sums"
# On a GET of a chunk: the reader wants the bytes and their sums, not the other attributes, which cost a system
# call each. A chunk server that does not know it answers with everything.
CHUNK_ATTRIBUTES_HEADER = HEADER_PREFIX + "chunk-attributes"

# Towards the proxy and the other metadata services, in seconds.
CONNECTION_TIMEOUT = 2.0
READ_TIMEOUT = 30.0
TIMEOUT_KEYS = ("connection_timeout", "read_timeout", "write_timeout")

STRLEN_REFERENCEID = 66
STRLEN_CHUNKID = 64
STRLEN_REQID = 63

# Version of the format of chunk attributes.
OIO_VERSION = "4.2"

OIO_DB_ENABLED = 0
OIO_DB_FROZEN = 4294967295
OIO_DB_DISABLED = 4294967294
OIO_DB_STATUS_NAME: dict[int | str, str] = {
    OIO_DB_ENABLED: "Enabled",
    OIO_DB_FROZEN: "Frozen",
    OIO_DB_DISABLED: "Disabled",
    str(OIO_DB_ENABLED): "Enabled",
    str(OIO_DB_FROZEN): "Frozen",
    str(OIO_DB_DISABLED): "Disabled",
}

CHUNK_XATTR_CONTENT_FULLPATH_PREFIX = "oio.content.fullpath:"
CHUNK_XATTR_BLOCK_SUMS = "oio.chunk.block_sums"
CHUNK_SUFFIX_CORRUPT = ".corrupt"
CHUNK_SUFFIX_PENDING = ".pending"
HIDDEN_ACCOUNTS = ("_RDIR",)
CH_ENCODED_SEPARATOR = "%2F"
CH_SEPARATOR = "/"
S3_MPU_CONTAINER_SUFFIX = "+segments"

BUCKET_PROP_REPLI_ENABLED = "replication_enabled"
M2_PROP_BUCKET_NAME = "sys.m2.bucket.name"
M2_PROP_CTIME = "sys.m2.ctime"
M2_PROP_DAMAGED_OBJECTS = "sys.m2.objects.damaged"
M2_PROP_DEL_EXC_VERSIONS = "sys.m2.policy.version.delete_exceeding"
M2_PROP_MISSING_CHUNKS = "sys.m2.chunks.missing"
M2_PROP_OBJECTS = "sys.m2.objects"
M2_PROP_QUOTA = "sys.m2.quota"
M2_PROP_STORAGE_POLICY = "sys.m2.policy.storage"
M2_PROP_USAGE = "sys.m2.usage"
M2_PROP_VERSIONING_POLICY = "sys.m2.policy.version"

CONTAINER_HEADERS = {
    "size": CONTAINER_METADATA_PREFIX + "sys-m2-usage",
    "ns": CONTAINER_METADATA_PREFIX + "sys-ns",
}

OBJECT_HEADERS = {
    "name": OBJECT_METADATA_PREFIX + "name",
    "id": OBJECT_METADATA_PREFIX + "id",
    "policy": OBJECT_METADATA_PREFIX + "policy",
    "version": OBJECT_METADATA_PREFIX + "version",
    "size": OBJECT_METADATA_PREFIX + "length",
    "ctime": OBJECT_METADATA_PREFIX + "ctime",
    "hash": OBJECT_METADATA_PREFIX + "hash",
    "mime_type": OBJECT_METADATA_PREFIX + "mime-type",
    "chunk_method": OBJECT_METADATA_PREFIX + "chunk-method",
}

CHUNK_HEADERS = {
    "container_id": CHUNK_METADATA_PREFIX + "container-id",
    "chunk_id": CHUNK_METADATA_PREFIX + "chunk-id",
    "chunk_hash": CHUNK_METADATA_PREFIX + "chunk-hash",
    "chunk_mtime": "last-modified",
    "chunk_size": CHUNK_METADATA_PREFIX + "chunk-size",
    "chunk_pos": CHUNK_METADATA_PREFIX + "chunk-pos",
    "content_id": CHUNK_METADATA_PREFIX + "content-id",
    "content_chunkmethod": CHUNK_METADATA_PREFIX + "content-chunk-method",
    "content_policy": CHUNK_METADATA_PREFIX + "content-storage-policy",
    "content_path": CHUNK_METADATA_PREFIX + "content-path",
    "content_version": CHUNK_METADATA_PREFIX + "content-version",
    "metachunk_size": CHUNK_METADATA_PREFIX + "metachunk-size",
    "metachunk_hash": CHUNK_METADATA_PREFIX + "metachunk-hash",
    "full_path": CHUNK_METADATA_PREFIX + "full-path",
    "oio_version": CHUNK_METADATA_PREFIX + "oio-version",
}

CHUNK_XATTR_KEYS = {
    "container_id": "grid.content.container",
    "chunk_id": "grid.chunk.id",
    "chunk_hash": "grid.chunk.hash",
    "chunk_size": "grid.chunk.size",
    "chunk_pos": "grid.chunk.position",
    "content_id": "grid.content.id",
    "content_chunkmethod": "grid.content.chunk_method",
    "content_policy": "grid.content.storage_policy",
    "content_path": "grid.content.path",
    "content_version": "grid.content.version",
    "metachunk_size": "grid.metachunk.size",
    "metachunk_hash": "grid.metachunk.hash",
    "oio_version": "grid.oio.version",
    "compression": "grid.compression",
}

CHUNK_XATTR_KEYS_OPTIONAL = dict.fromkeys(
    (
        "content_chunksnb",
        "chunk_hash",
        "chunk_mtime",
        "chunk_size",
        "metachunk_size",
        "metachunk_hash",
        "oio_version",
        "compression",
        "container_id",
        "content_id",
        "content_path",
        "content_version",
    ),
    True,
)

VOLUME_XATTR_KEYS = {"namespace": "server.ns", "type": "server.type", "id": "server.id"}

# Lower-case names that older programs import.
chunk_xattr_keys = CHUNK_XATTR_KEYS
chunk_xattr_keys_optional = CHUNK_XATTR_KEYS_OPTIONAL
container_headers = CONTAINER_HEADERS
object_headers = OBJECT_HEADERS
volume_xattr_keys = VOLUME_XATTR_KEYS
