# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""From a flat list of chunks and byte ranges to a stream of bytes.

``_sort_chunks`` groups the chunks of an object by position; ``fetch_stream`` and ``fetch_stream_ec`` read
ranges of the object from such groups. The streams are lazy: nothing is contacted before the first block is
asked for, and errors are raised by the iteration.

A stream either gives every byte that was asked for or raises: it never ends early.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from oio.common import exceptions as exc
from oio.common.constants import CHUNK_ATTRIBUTES_HEADER, OBJECT_METADATA_PREFIX
from oio.common.http import http_header_from_ranges
from oio.common.utils import compute_perfdata_stats

Chunk = dict[str, Any]
Range = tuple[int | None, int | None]
MetaRanges = dict[int, tuple[int, int]]

# Scores are at most 100: this much randomness spreads the load over chunks of about the same score
# without ever preferring a bad service to a good one.
_SCORE_JITTER_MAX = 9


# --- groups of chunks -------------------------------------------------------------------------------


def wrand_choice_index(scores: Sequence[float]) -> int:
    """Index drawn at random, with the scores as weights; uniform when all are 0."""
    total = sum(scores)
    if total <= 0:
        return random.randrange(len(scores))
    draw = random.random() * total
    for index, score in enumerate(scores):
        draw -= score
        if draw < 0:
            return index
    return max(index for index, score in enumerate(scores) if score > 0)


def _get_weighted_random_score(chunk: Mapping[str, Any]) -> int:
    """Score of a chunk plus 0..9; 0 when the score is 0 or absent."""
    score = int(chunk.get("score") or 0)
    return score + random.randint(0, _SCORE_JITTER_MAX) if score > 0 else 0


def _keep_largest_group(position: int, chunks: list[Chunk], logger: Any) -> list[Chunk]:
    """Only the largest group of chunks that share a hash."""
    groups: dict[Any, list[Chunk]] = {}
    for chunk in chunks:
        groups.setdefault(chunk.get("hash"), []).append(chunk)
    if len(groups) < 2:
        return chunks
    kept = max(groups.values(), key=len)
    if logger is not None:
        logger.warning(
            "position %d: chunks disagree on their hash, keeping %d of %d",
            position, len(kept), len(chunks),
        )  # fmt: skip
    return kept


def _sort_chunks(
    raw_chunks: Iterable[Chunk], ec_security: bool, logger: Any = None
) -> dict[int, list[Chunk]]:
    """Group chunks by position, best score first, and add ``offset`` (and ``num`` with EC) to them."""
    groups: dict[int, list[Chunk]] = {}
    for chunk in raw_chunks:
        meta_text, _, sub_text = str(chunk["pos"]).partition(".")
        position = int(meta_text)
        group = groups.setdefault(position, [])
        if ec_security:
            num = int(sub_text)
            if any(other["num"] == num for other in group):
                if logger is not None:
                    logger.warning("duplicate chunk %s at position %s", chunk["url"], chunk["pos"])
                continue
            chunk["num"] = num
        group.append(chunk)
    result: dict[int, list[Chunk]] = {}
    offset = 0
    for position in sorted(groups):
        group = groups[position]
        if len(group) > 1:
            group = _keep_largest_group(position, group, logger)
            # The sort is stable: chunks without score keep their order.
            group.sort(key=_get_weighted_random_score, reverse=True)
        size = int(group[0]["size"])
        for chunk in group:
            chunk["offset"] = offset
        result[position] = group
        offset += size
    return result


# --- ranges -----------------------------------------------------------------------------------------


def obj_range_to_meta_chunk_range(
    obj_start: int | None, obj_end: int | None, meta_sizes: Sequence[int]
) -> MetaRanges:
    """Cut an inclusive range of an object into ranges of its metachunks.

    >>> obj_range_to_meta_chunk_range(49, 99, [50, 30, 20])
    {0: (49, 49), 1: (0, 29), 2: (0, 19)}
    """
    total = sum(meta_sizes)
    if obj_start is None:
        start = 0 if obj_end is None else max(0, total - obj_end)
        end = total - 1
    else:
        start = obj_start
        end = total - 1 if obj_end is None else min(obj_end, total - 1)
    result: MetaRanges = {}
    offset = 0
    for index, size in enumerate(meta_sizes):
        first = max(start - offset, 0)
        last = min(end - offset, size - 1)
        if first <= last:
            result[index] = (first, last)
        offset += size
    return result


def get_meta_ranges(
    ranges: Iterable[Range] | None, chunks: Mapping[int, list[Chunk]]
) -> list[MetaRanges]:
    """One dictionary of metachunk ranges for each range of the object.

    :raises OioException: when a position is missing.
    """
    missing = [pos for pos in range(len(chunks)) if pos not in chunks]
    if missing:
        raise exc.UnrecoverableContent(
            f"Cannot download position {missing[0]}: no chunk known "
            f"(positions {sorted(chunks)} are known)"
        )
    sizes = [int(chunks[pos][0]["size"]) for pos in range(len(chunks))]
    return [
        obj_range_to_meta_chunk_range(start, end, sizes) for start, end in ranges or [(None, None)]
    ]


# --- metadata ---------------------------------------------------------------------------------------


def _make_object_metadata(headers: Mapping[str, str]) -> dict[str, Any]:
    """Object metadata found in response headers; ``x-oio-content-meta-x-*`` are properties."""
    metadata: dict[str, Any] = {}
    properties: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        if not key.startswith(OBJECT_METADATA_PREFIX):
            continue
        short = key[len(OBJECT_METADATA_PREFIX) :]
        if short.startswith("x-"):
            properties[short[2:]] = value
        else:
            metadata[short.replace("-", "_")] = value
    metadata["properties"] = properties
    return metadata


# --- streams ----------------------------------------------------------------------------------------


def _cannot_open(position: int, err: BaseException) -> exc.OioException:
    """What the caller sees when no source of a position could be opened."""
    if isinstance(err, (exc.NotFound, exc.UnrecoverableContent)):
        return exc.UnrecoverableContent(f"Cannot download position {position}: {err}")
    return exc.ServiceUnavailable(f"Error while downloading position {position}: {err}")


class _Perf:
    """Download figures of section ``perfdata``; does nothing without a dictionary."""

    __slots__ = ("bytes", "perfdata", "start_s")

    def __init__(self, perfdata: dict[str, Any] | None) -> None:
        self.perfdata = perfdata
        self.bytes = 0
        self.start_s = time.monotonic() if perfdata is not None else 0.0

    def block(self, size: int) -> None:
        """Count a block that is about to be given to the caller."""
        if self.perfdata is not None:
            if not self.bytes:
                self.perfdata["ttfb"] = time.monotonic() - self.start_s
            self.bytes += size

    def done(self) -> None:
        """The stream has been read to its end."""
        if self.perfdata is None:
            return
        elapsed_s = time.monotonic() - self.start_s
        self.perfdata.setdefault("ttfb", elapsed_s)
        self.perfdata["ttlb"] = elapsed_s
        self.perfdata["data_size"] = self.bytes
        rawx = self.perfdata.setdefault("rawx", {})
        rawx["overall"] = rawx.get("overall", 0.0) + elapsed_s
        for prefix in ("connect.", "download."):
            compute_perfdata_stats(self.perfdata, prefix)


def fetch_stream(
    chunks: Mapping[int, list[Chunk]],
    ranges: Iterable[Range] | None,
    storage_method: Any,
    headers: dict[str, str] | None = None,
    **kwargs: Any,
) -> Iterator[bytes]:
    """Read ranges of a replicated object, in the order given, from the groups of ``_sort_chunks``.

    :raises UnrecoverableContent: every copy of a position is missing.
    :raises ServiceUnavailable: a position cannot be opened for another reason.
    :raises CorruptedChunk: no copy of a block has the right checksum.
    """
    from oio.api.io import ChunkReader

    perf = _Perf(kwargs.get("perfdata"))
    for meta_ranges in get_meta_ranges(ranges, chunks):
        for position, (start, end) in meta_ranges.items():
            group = chunks[position]
            request_headers = dict(headers or {})
            request_headers[CHUNK_ATTRIBUTES_HEADER] = "block-sums"
            if start or end + 1 < int(group[0]["size"]):
                request_headers["Range"] = http_header_from_ranges([(start, end)])
            reader = ChunkReader(
                iter(group), None, request_headers, expected=(start, end), **_reader_kwargs(kwargs)
            )
            try:
                stream = reader.stream()
            except exc.OioException as err:
                raise _cannot_open(position, err) from err
            for data in stream:
                perf.block(len(data))
                yield data
    perf.done()


def fetch_stream_ec(
    chunks: Mapping[int, list[Chunk]],
    ranges: Iterable[Range] | None,
    storage_method: Any,
    **kwargs: Any,
) -> Iterator[bytes]:
    """Same as :func:`fetch_stream`, for an erasure-coded object."""
    from oio.api.ec import ECChunkDownloadHandler

    perf = _Perf(kwargs.get("perfdata"))
    kwargs = dict(kwargs)
    headers = kwargs.pop("headers", None)
    for meta_ranges in get_meta_ranges(ranges, chunks):
        for position, (start, end) in meta_ranges.items():
            handler = ECChunkDownloadHandler(
                storage_method, chunks[position], start, end, dict(headers or {}), **kwargs
            )
            try:
                stream = handler.get_stream()
            except exc.OioException as err:
                raise _cannot_open(position, err) from err
            try:
                for part in stream:
                    for data in part["iter"]:
                        perf.block(len(data))
                        yield data
            finally:
                stream.close()
    perf.done()


def open_stream(
    chunks: Mapping[int, list[Chunk]], ranges: Iterable[Range] | None, storage_method: Any, **kwargs: Any
) -> Iterator[bytes]:
    """Read ranges of an object after its chunk method: :func:`fetch_stream` or :func:`fetch_stream_ec`."""
    fetch = fetch_stream_ec if storage_method.ec else fetch_stream
    return fetch(chunks, ranges, storage_method, **kwargs)


_READER_KEYS = ("connection_timeout", "read_timeout", "perfdata", "resp_by_chunk", "logger")


def _reader_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: kwargs[key] for key in _READER_KEYS if kwargs.get(key) is not None}
