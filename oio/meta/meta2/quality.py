# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Events about chunks that were just written: those that lack, those that could be placed better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import Chunk, ContainerTarget
from oio.meta.meta2 import checks, events
from oio.meta.transaction import Transaction

#: Properties that tell how well each chunk was placed; they are not kept.
QUALITY_PREFIX = "__OIO_CHUNK__"


class _Quality(msgspec.Struct):
    """How well a chunk was placed, as far as decisions need it."""

    final_dist: int = 1
    warn_dist: int = 0
    expected_slot: str = ""
    final_slot: str = ""


_decode_quality = msgspec.json.Decoder(_Quality).decode


def kept_properties(properties: Mapping[str, str]) -> list[tuple[str, str]]:
    """The properties to store: neither the empty ones nor the qualities."""
    return [
        (key, value)
        for key, value in properties.items()
        if value and not key.startswith(QUALITY_PREFIX)
    ]


def emit(
    tx: Transaction,
    context: Context,
    target: ContainerTarget,
    alias: events.Bean,
    chunks: Iterable[Chunk],
    missing: list[str],
    properties: Mapping[str, str],
) -> None:
    """Say what can be repaired (lacking chunks) or improved (badly placed ones)."""
    if missing:
        data = {
            "present_chunks": [_chunk_data(chunk) for chunk in chunks],
            "missing_chunks": missing,
        }
        events.emit_content_data(tx, context, target, "broken", alias, data)
    qualities: dict[str, msgspec.Raw] = {}
    flawed: set[str] = set()
    for key, value in properties.items():
        if value and key.startswith(QUALITY_PREFIX):
            url = key[len(QUALITY_PREFIX) :]
            qualities[url] = msgspec.Raw(value.encode())
            if _is_flawed(url, value):
                flawed.add(url)
    if flawed:
        _emit_perfectible(tx, context, target, alias, chunks, qualities, flawed)


def _is_flawed(url: str, text: str) -> bool:
    try:
        quality = _decode_quality(text)
    except msgspec.MsgspecError as exc:
        raise StatusError(status.BAD_REQUEST, f"Invalid quality of {url}: {exc}") from exc
    return quality.final_dist <= quality.warn_dist or quality.final_slot != quality.expected_slot


def _emit_perfectible(
    tx: Transaction,
    context: Context,
    target: ContainerTarget,
    alias: events.Bean,
    chunks: Iterable[Chunk],
    qualities: dict[str, msgspec.Raw],
    flawed: set[str],
) -> None:
    """One event for each metachunk that holds a flawed chunk, with all its chunks."""
    metachunks: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        metachunks.setdefault(checks.split_position(chunk.pos)[0], []).append(chunk)
    for number in sorted(metachunks):
        group = metachunks[number]
        if not any(chunk.url in flawed for chunk in group):
            continue
        described = [
            {**_chunk_data(chunk), "quality": qualities.get(chunk.url)} for chunk in group
        ]
        data = {"pos": number, "chunks": described}
        events.emit_content_data(tx, context, target, "perfectible", alias, data)


def _chunk_data(chunk: Chunk) -> dict[str, Any]:
    return {"id": chunk.url, "pos": chunk.pos, "hash": chunk.hash, "size": chunk.size}
