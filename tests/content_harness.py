# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Files of chunks, to be lost or corrupted, and the proof that an object is whole again."""

import random
from pathlib import Path

from support import ACCOUNT

from oio.blob.utils import read_chunk_metadata
from oio.common import blocksums
from oio.common.constants import CHUNK_XATTR_BLOCK_SUMS


def some_bytes(size):
    return random.Random(size).randbytes(size)


class Disk:
    """Files of chunks."""

    def __init__(self, cluster):
        self.volumes = {service.service_id: service.volume for service in cluster.services("rawx")}

    def path(self, chunk):
        return Path(self.volumes[chunk.host], chunk.id[:3], chunk.id)

    def lose(self, chunk):
        self.path(chunk).unlink()

    def corrupt(self, chunk, offset):
        with open(self.path(chunk), "r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 0xFF]))


def urls(content):
    return sorted(chunk.url for chunk in content.chunks)


def check_whole(api, factory, disk, content, data):
    """The directory, the files and the data of an object are as if nothing had ever happened to it."""
    again = factory.get(content.container_id, content.content_id)
    assert urls(again) == urls(content)
    positions = {}
    for chunk in again.chunks:
        positions.setdefault(chunk.pos, set()).add(chunk.host)
        head = api.blob_client.chunk_head(chunk.url, check_hash=True)
        assert (head["full_path"], head["chunk_pos"]) == (content.full_path, chunk.pos)
        assert (head["content_version"], head["content_id"]) == (content.version, content.content_id)
        meta, attributes = read_chunk_metadata(disk.path(chunk), chunk.id)
        stored = disk.path(chunk).read_bytes()
        assert meta["chunk_size"] == str(len(stored))
        blocksums.verify(attributes[CHUNK_XATTR_BLOCK_SUMS], stored)
        if content.storage_method.ec:
            assert (meta["metachunk_size"], meta["metachunk_hash"]) == (str(chunk.size), chunk.checksum)
    copies = 1 if content.storage_method.ec else content.storage_method.expected_chunks
    assert {len(hosts) for hosts in positions.values()} == {copies}
    assert len(again.chunks) == len(positions) * copies
    assert (again.checksum, again.length) == (content.checksum, len(data))
    assert b"".join(again.fetch()) == data
    assert b"".join(api.object_fetch(ACCOUNT, content.container_name, content.path)[1]) == data


def forget(api, cid, content, chunk):
    """Remove the row of a chunk from its container."""
    bean = {
        "type": "chunk", "id": chunk.url, "hash": chunk.checksum, "size": chunk.size, "pos": chunk.pos,
        "content": content.content_id,
    }  # fmt: skip
    api.container.container_raw_delete(data=[bean], cid=cid)
