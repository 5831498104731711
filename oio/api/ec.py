# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Erasure coding of metachunks: writing, reading, rebuilding.

Layout: the data of a metachunk is cut in segments of 1 MiB, the last one may be short. Each segment is encoded in
k + m fragments; chunk S is the concatenation of the fragments S of all segments. Any k chunks give the data back.
"""

from oio.api._ec_read import ECChunkDownloadHandler, ECStream
from oio.api._ec_rebuild import ECRebuildHandler
from oio.api._ec_sources import meta_chunk_range_to_segment_range, segment_range_to_fragment_range
from oio.api._ec_write import EcMetachunkWriter, ECWriteHandler, ec_encode
from oio.common.storage_method import EC_SEGMENT_SIZE

__all__ = [
    "EC_SEGMENT_SIZE",
    "ECChunkDownloadHandler",
    "ECRebuildHandler",
    "ECStream",
    "ECWriteHandler",
    "EcMetachunkWriter",
    "ec_encode",
    "meta_chunk_range_to_segment_range",
    "segment_range_to_fragment_range",
]
