# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Chunks as clients see them: made from the choices of the load balancer, or shown as meta2 stored them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from oio.common.utils import compute_chunk_id
from oio.meta.messages import Chunk
from oio.proxy.lb import Item, Selection, World
from oio.proxy.lb.location import distance

QUALITY_PREFIX = "__OIO_CHUNK__"
EMPTY_HASH = "0" * 32

_ID_BYTES = 32

#: Scores shown for near services when ``proxy.srv_local.patch`` is on: lowest and highest by distance.
_LOCAL_SCORES = ((91, 100), (91, 100), (51, 80), (11, 50), (5, 10), (1, 4))


class ChunkView(msgspec.Struct):
    """A chunk in the answers of ``prepare``, ``show`` and ``locate``: these six keys, no other."""

    url: str
    real_url: str
    pos: str
    size: int
    hash: str
    score: int


class Maker:
    """Makes the chunks of one request."""

    __slots__ = ("_chunk_size", "_here", "_identity", "_tls")

    def __init__(
        self,
        chunk_size: int,
        tls: bool,
        here: int | None,
        identity: tuple[str, str, int, str] | None,
    ) -> None:
        """
        :param tls: give ``https`` addresses where services have one.
        :param here: location of the proxy when scores must favour near services.
        :param identity: (cid, path, version, policy) for predictable chunk ids, None for random ones.
        """
        self._chunk_size, self._tls, self._here, self._identity = chunk_size, tls, here, identity

    def make(
        self,
        selection: Selection,
        position: int | str,
        fragmented: bool,
        views: list[ChunkView],
        qualities: dict[str, str],
    ) -> None:
        """Add the chunks of one metachunk to ``views``, and their qualities to ``qualities``."""
        choices, expected_dist, warn_dist, _ = selection
        identity, size, here = self._identity, self._chunk_size, self._here
        ids = os.urandom(_ID_BYTES * len(choices)).hex().upper() if identity is None else ""
        pos = str(position)
        for rank, (item, expected_slot, final_slot, final_dist) in enumerate(choices):
            if fragmented:
                pos = f"{position}.{rank}"
            if identity is None:
                chunk_id = ids[64 * rank : 64 * rank + 64]
            else:
                cid, path, version, policy = identity
                chunk_id = compute_chunk_id(cid, path, version, pos, policy)
            url = f"http://{item.id}/{chunk_id}"
            score = item.score if here is None else near_score(item, here)
            views.append(ChunkView(url, self._real_url(item, chunk_id), pos, size, EMPTY_HASH, score))
            qualities[QUALITY_PREFIX + url] = quality_text(
                expected_dist, final_dist, warn_dist, expected_slot, final_slot
            )

    def _real_url(self, item: Item, chunk_id: str) -> str:
        if self._tls and item.tls:
            return f"https://{item.tls}/{chunk_id}"
        return f"http://{item.addr}/{chunk_id}"


def show_chunks(chunks: Iterable[Chunk], world: World, tls: bool, here: int | None) -> list[ChunkView]:
    """Chunks of an object, with the address and the score that their services have now."""
    services = world.rawx
    views = []
    for chunk in chunks:
        url = chunk.url
        scheme, _, rest = url.partition("://")
        service_id, _, chunk_id = rest.partition("/")
        item = services.get(service_id) or world.by_address.get(("rawx", service_id))
        if item is None:
            views.append(ChunkView(url, url, chunk.pos, chunk.size, chunk.hash, 0))
            continue
        score = item.score if here is None else near_score(item, here)
        if tls and item.tls:
            real_url = f"https://{item.tls}/{chunk_id}"
        else:
            real_url = f"{scheme}://{item.addr}/{chunk_id}"
        views.append(ChunkView(url, real_url, chunk.pos, chunk.size, chunk.hash, max(score, 0)))
    return views


@lru_cache(maxsize=4096)
def quality_text(
    expected_dist: int, final_dist: int, warn_dist: int, expected_slot: str, final_slot: str
) -> str:
    """Quality of a choice as the JSON text that travels in properties."""
    return msgspec.json.encode(
        {
            "expected_dist": expected_dist,
            "final_dist": final_dist,
            "warn_dist": warn_dist,
            "expected_slot": expected_slot,
            "final_slot": final_slot,
        }
    ).decode()


def near_score(item: Item, here: int) -> int:
    """Score of a service, moved into the range of its distance to the proxy."""
    if item.score <= 0:
        return item.score
    lowest, highest = _LOCAL_SCORES[distance(item.location, here)]
    return lowest + (highest - lowest) * min(item.score, 100) // 100
