# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Chunks of an object, lists of them, and the quality of their placement.

Nothing here talks to a service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from oio.common.exceptions import SpareChunkException

RawChunk = dict[str, Any]
Quality = Mapping[str, Any]
SortKey = Callable[["Chunk"], Any]

# What is known of a chunk whose placement was not told: it may be next to another one.
_UNKNOWN_QUALITY = {"final_dist": 0, "expected_dist": 1}
# Distance of a chunk whose quality does not tell it: another service of the same host.
_DEFAULT_DIST = 1


class Chunk:
    """One chunk: a view of its dictionary, which is not copied.

    >>> chunk = Chunk({"pos": "0.1", "url": "http://rawx-1/ABCD", "hash": "ab", "size": 3})
    >>> chunk, chunk.metapos, chunk.subpos, chunk.host, chunk.checksum
    ([Chunk http://rawx-1/ABCD (0.1)], 0, 1, 'rawx-1', 'AB')

    Chunks are compared by metachunk, then by sub-position with erasure coding, else by chunk id: the copies of
    a replicated position, which share their id, are equal.
    """

    __slots__ = ("_data", "_pos", "ec", "metapos", "subpos")

    # Equal chunks may differ by their URL, which may change: there is no use of them as keys.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: RawChunk) -> None:
        self._data = data
        self._pos = str(data["pos"])
        meta, dot, sub = self._pos.partition(".")
        self.metapos = int(meta)
        self.ec = bool(dot)
        if dot:
            self.subpos = int(sub)

    @property
    def pos(self) -> str:
        """Position: ``N``, or ``N.S`` with erasure coding."""
        return self._pos

    @property
    def url(self) -> str:
        """Where the chunk is, as the directory knows it."""
        return self._data.get("url") or self._data.get("id") or ""

    @url.setter
    def url(self, new_url: str) -> None:
        """Move the chunk: what connects to it goes to the new place too."""
        self._data["url"] = new_url
        self._data["real_url"] = new_url

    @property
    def id(self) -> str:
        """Chunk id."""
        return self.url.rpartition("/")[2]

    @property
    def host(self) -> str:
        """Service id, or address, of the rawx."""
        return self.url.partition("://")[2].partition("/")[0]

    @property
    def size(self) -> Any:
        """Size of the chunk (of the metachunk with erasure coding)."""
        return self._data["size"]

    @size.setter
    def size(self, new_size: int) -> None:
        """Set the size."""
        self._data["size"] = new_size

    @property
    def checksum(self) -> str:
        """Hash of the chunk (of the metachunk with erasure coding), in upper case."""
        checksum: str = self._data["hash"]
        return checksum.upper()

    @checksum.setter
    def checksum(self, new_checksum: str) -> None:
        """Set the hash."""
        self._data["hash"] = new_checksum

    @property
    def data(self) -> RawChunk:
        """The dictionary."""
        return self._data

    def raw(self) -> RawChunk:
        """The dictionary."""
        return self._data

    @property
    def quality(self) -> dict[str, Any]:
        """How well the chunk is placed."""
        quality: dict[str, Any] = self._data.setdefault("quality", dict(_UNKNOWN_QUALITY))
        return quality

    @quality.setter
    def quality(self, new_quality: dict[str, Any]) -> None:
        """Set the quality."""
        self._data["quality"] = new_quality

    @property
    def imperfections(self) -> list[str]:
        """What is wrong with the placement: ``slot A != B``, ``dist a < b``; empty when nothing is."""
        quality = self.quality
        found = []
        final_slot, expected_slot = quality.get("final_slot"), quality.get("expected_slot")
        if final_slot != expected_slot:
            found.append(f"slot {final_slot} != {expected_slot}")
        final, expected = quality.get("final_dist", _DEFAULT_DIST), quality.get("expected_dist", _DEFAULT_DIST)
        if final < expected:
            found.append(f"dist {final} < {expected}")
        return found

    def _order(self) -> tuple[int, int, str]:
        return (self.metapos, self.subpos, "") if self.ec else (self.metapos, -1, self.id)

    def __eq__(self, other: object) -> bool:
        return self._order() == other._order() if isinstance(other, Chunk) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self._order() < other._order() if isinstance(other, Chunk) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self._order() <= other._order() if isinstance(other, Chunk) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self._order() > other._order() if isinstance(other, Chunk) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self._order() >= other._order() if isinstance(other, Chunk) else NotImplemented

    def __repr__(self) -> str:
        return f"[Chunk {self.url} ({self.pos})]"

    __str__ = __repr__


def _default_order(chunk: Chunk) -> Any:
    return chunk.pos, chunk.id, chunk.url


class ChunksHelper:
    """A sorted list of chunks that can be narrowed; all methods but ``all`` and ``raw`` give new helpers.

    >>> chunks = ChunksHelper([{"pos": "0", "url": "http://a/1"}, {"pos": "0", "url": "http://b/1"}])
    >>> chunks.filter(id="1", host="b").one()
    [Chunk http://b/1 (0)]

    :param raw_chunk: the list holds dictionaries; when false it holds ``Chunk`` objects, and is sorted in place.
    :param sort_key: default: position, id, URL.
    """

    def __init__(
        self,
        chunks: Iterable[Any],
        raw_chunk: bool = True,
        sort_key: SortKey | None = None,
        sort_reverse: bool = False,
    ) -> None:
        self.chunks: list[Chunk]
        if raw_chunk:
            self.chunks = [Chunk(chunk) for chunk in chunks]
        else:
            self.chunks = chunks if isinstance(chunks, list) else list(chunks)
        self.sort_key = sort_key
        self.sort_reverse = sort_reverse
        self.chunks.sort(key=sort_key or _default_order, reverse=sort_reverse)

    def _of(self, chunks: list[Chunk]) -> ChunksHelper:
        """Some of these chunks, in the order they are in (the key may be random)."""
        helper = ChunksHelper([], False, self.sort_key, self.sort_reverse)
        helper.chunks = chunks
        return helper

    def filter(
        self,
        id: str | None = None,
        pos: Any = None,
        metapos: int | None = None,
        subpos: int | None = None,
        host: str | None = None,
        url: str | None = None,
    ) -> ChunksHelper:
        """Keep the chunks that match every criterion given."""
        wanted = _criteria(id, pos, metapos, subpos, host, url)
        return self._of([chunk for chunk in self.chunks if all(_matches(chunk, wanted))])

    def exclude(
        self,
        id: str | None = None,
        pos: Any = None,
        metapos: int | None = None,
        subpos: int | None = None,
        host: str | None = None,
        url: str | None = None,
    ) -> ChunksHelper:
        """Drop the chunks that match any of the criteria given."""
        unwanted = _criteria(id, pos, metapos, subpos, host, url)
        return self._of([chunk for chunk in self.chunks if not any(_matches(chunk, unwanted))])

    def sort(self, key: SortKey | None = None, reverse: bool = False) -> ChunksHelper:
        """Same chunks in another order."""
        return ChunksHelper(list(self.chunks), False, key, reverse)

    def one(self) -> Chunk | None:
        """The only chunk; None when there is none, or several."""
        return self.chunks[0] if len(self.chunks) == 1 else None

    def all(self) -> list[Chunk]:
        """The list."""
        return self.chunks

    def raw(self) -> list[RawChunk]:
        """The dictionaries."""
        return [chunk.raw() for chunk in self.chunks]

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    def __getitem__(self, index: Any) -> Any:
        return self.chunks[index]


def _criteria(
    id: str | None, pos: Any, metapos: int | None, subpos: int | None, host: str | None, url: str | None
) -> list[tuple[str, Any]]:
    given = {
        "id": id,
        "pos": None if pos is None else str(pos),
        "metapos": metapos,
        "subpos": subpos,
        "host": host,
        "url": url,
    }
    return [(name, value) for name, value in given.items() if value is not None]


def _matches(chunk: Chunk, criteria: list[tuple[str, Any]]) -> Iterator[bool]:
    return (getattr(chunk, name, None) == value for name, value in criteria)


def compare_chunk_quality(current: Quality, candidate: Quality) -> int:
    """How much better a candidate is placed: difference of distances, plus or minus 1 for the slot.

    >>> compare_chunk_quality({"final_dist": 1, "expected_slot": "a", "final_slot": "b"},
    ...                       {"final_dist": 2, "expected_slot": "c", "final_slot": "a"})
    2
    """
    balance: int = candidate.get("final_dist", _DEFAULT_DIST) - current.get("final_dist", _DEFAULT_DIST)
    expected = current.get("expected_slot")
    return balance + (candidate.get("final_slot") == expected) - (current.get("final_slot") == expected)


def ensure_better_chunk_qualities(
    current_chunks: Sequence[Chunk], candidates: Mapping[str, Quality], threshold: int = 1
) -> int:
    """Sum of the comparisons of chunks with their candidates ``{url: quality}``, taken in order.

    :raises SpareChunkException: when it is below the threshold.
    """
    balance = sum(
        compare_chunk_quality(current.quality, candidate)
        for current, candidate in zip(current_chunks, candidates.values(), strict=False)
    )
    if balance < threshold:
        raise SpareChunkException(
            f"the spare chunks are not better placed (balance {balance}, at least {threshold} is wanted): "
            f"{list(candidates)} instead of {[chunk.url for chunk in current_chunks]}"
        )
    return balance
