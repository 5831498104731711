# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Objects that live through many losses, corruptions, rebuilds and moves stay whole."""

import random

import pytest
from content_harness import check_whole, forget
from support import chosen_seed

from oio.blob.operator import ChunkOperator
from oio.common import exceptions as exc

pytest_plugins = ["content_fixtures"]

STEPS = 12


def strike(rng, api, disk, content, count):
    """Lose or corrupt that many chunks; gives how the operator must be told about each."""
    told = []
    for chunk in rng.sample(list(content.chunks), count):
        path = disk.path(chunk)
        kind = rng.choice(["lost", "corrupt", "forgotten"])
        if kind == "corrupt" and path.stat().st_size:
            disk.corrupt(chunk, rng.randrange(path.stat().st_size))
            with pytest.raises(exc.ClientPreconditionFailed):
                api.blob_client.chunk_head(chunk.url, check_hash=True)
            told.append((chunk.url, {"try_chunk_delete": True, "allow_same_rawx": False}))
        elif kind == "forgotten":
            disk.lose(chunk)
            forget(api, content.container_id, content, chunk)
            told.append((chunk.pos, {}))
        else:
            disk.lose(chunk)
            told.append((chunk.url, {"allow_same_rawx": rng.random() < 0.5}))
    return told


@pytest.mark.parametrize("ids", ["random_ids", "predictable_ids"])
@pytest.mark.parametrize(("policy", "tolerance"), [("THREECOPIES", 2), ("EC21", 1), ("EC", 3)])
def test_objects_survive(request, cluster, api, store, factory, cid, disk, policy, tolerance, ids):
    request.getfixturevalue(ids)
    seed = chosen_seed()
    print("seed:", seed)
    rng = random.Random(seed)
    data, content = store(policy, size=rng.choice([0, 1, 70_000, 3_000_000]))
    operator = ChunkOperator({"namespace": cluster.namespace}, content_factory=factory)
    for _ in range(STEPS):
        content = factory.get(cid, content.content_id)
        metachunk = rng.randrange(max(chunk.metapos for chunk in content.chunks) + 1)
        part = factory.get(cid, content.content_id)
        part.chunks = part.chunks.filter(metapos=metachunk)
        for name, options in strike(rng, api, disk, part, rng.randint(1, tolerance)):
            operator.rebuild(cid, content.content_id, name, **options)
        content = factory.get(cid, content.content_id)
        if rng.random() < 0.5:
            chunk = rng.choice(list(content.chunks))
            content.move_chunk(chunk.id, service_id=chunk.host)
        check_whole(api, factory, disk, content, data)
