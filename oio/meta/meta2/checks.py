# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Do these chunks make this object? (contract: "Content check at put / append / update")

Chunks that are too few are tolerated as long as the object can be rebuilt: the caller counts them and asks
for their reconstruction. What can never be read is refused with 425.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from oio.common import status
from oio.common.status import StatusError
from oio.meta.messages import Chunk, ContentPut, Security

#: (position, size) of a chunk.
Placed = tuple[str, int]

# One way only to write each position: "0" and "00" would be two places of the same metachunk.
_PLAIN = re.compile(r"^(?:0|[1-9][0-9]{0,8})\Z")
_FRAGMENT = re.compile(r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,3})\Z")
#: Lengths of the hashes that are known: md5, sha1, sha256 and blake3, sha512.
HASH_LENGTHS = (0, 16, 20, 32, 64)
SIZE_MAX = 2**63 - 1
#: Parities of an erasure code whose policy does not say it.
EC_DEFAULT_K, EC_DEFAULT_M = 6, 3


def missing_positions(
    security: Security, chunks: Iterable[Placed], size: int | None, partial: bool = False
) -> list[str]:
    """Positions of the chunks that lack, in order (one entry per missing copy).

    :param size: size of the object, or ``None`` not to check it.
    :param partial: check only the metachunks that are present.
    :raises StatusError: 425 when the chunks cannot make the object.
    """
    if security.type == "ec":
        return _missing_fragments(security, chunks, size, partial)
    return _missing_copies(security, chunks, size, partial)


@lru_cache(maxsize=64)
def security_of(chunk_method: str) -> Security:
    """What a stored chunk method promises: ``plain/nb_copy=3``, ``ec/algo=…,k=6,m=3``."""
    kind, _, text = chunk_method.partition("/")
    options = dict(item.partition("=")[::2] for item in text.split(",") if item)
    if kind == "ec":
        return Security(
            type="ec",
            k=_int(options.get("k"), EC_DEFAULT_K),
            m=_int(options.get("m"), EC_DEFAULT_M),
        )
    return Security(nb_copy=max(1, _int(options.get("nb_copy"), 1)))


def placed(chunks: Iterable[Chunk]) -> list[Placed]:
    """Positions and sizes of the chunks of a request. :raises StatusError: 400 for what no chunk can be."""
    found = []
    for chunk in chunks:
        if not 0 <= chunk.size <= SIZE_MAX or not chunk.url:
            raise StatusError(status.BAD_REQUEST, f"Invalid chunk {chunk.url!r} at {chunk.pos!r}")
        found.append((chunk.pos, chunk.size))
    if not found:
        raise StatusError(status.BAD_REQUEST, "Missing chunks")
    return found


def count_lacking(request: ContentPut, missing: list[str], chunk_method: str) -> int:
    """How many chunks an object lacks that is stored under a chunk method; its policy says ``missing``.

    Counters follow the chunk method, which is stored: they can be counted again from the tables.
    """
    security = security_of(chunk_method)
    if security == request.security:
        return len(missing)
    return lacking(security, [(chunk.pos, chunk.size) for chunk in request.chunks])


def lacking(security: Security, chunks: Iterable[Placed]) -> int:
    """How many chunks the metachunks that are present lack; unlike the check above it refuses nothing."""
    if security.type != "ec":
        copies: dict[str, int] = {}
        for position, _ in chunks:
            copies[position] = copies.get(position, 0) + 1
        wanted = security.nb_copy
        return sum(wanted - count for count in copies.values() if count < wanted)
    total = (security.k or EC_DEFAULT_K) + (security.m or EC_DEFAULT_M)
    fragments: dict[str, set[str]] = {}
    for position, _ in chunks:
        number, _, fragment = position.partition(".")
        fragments.setdefault(number, set()).add(fragment)
    return sum(total - len(found) for found in fragments.values() if len(found) < total)


def shifted(position: str, shift: int) -> str:
    """A position, so many metachunks further. :raises StatusError: 425."""
    number, rest = split_position(position)
    return f"{number + shift}{rest}"


def split_position(position: str) -> tuple[int, str]:
    """Metachunk number, and what follows it (``".2"`` or nothing). :raises StatusError: 425."""
    number, dot, fragment = position.partition(".")
    if not _PLAIN.match(number) or (dot and not _FRAGMENT.match(position)):
        raise _corrupted(f"invalid chunk position {position!r}")
    return int(number), dot + fragment


def _int(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() else default


def _corrupted(reason: str) -> StatusError:
    return StatusError(status.CONTENT_CORRUPTED, f"Invalid content: {reason}")


def _missing_copies(
    security: Security, chunks: Iterable[Placed], size: int | None, partial: bool
) -> list[str]:
    copies: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for position, chunk_size in chunks:
        if position not in copies:
            if not _PLAIN.match(position):
                raise _corrupted(f"invalid chunk position {position!r}")
            copies[position] = 1
            sizes[position] = chunk_size
            continue
        copies[position] += 1
        if sizes[position] != chunk_size:
            raise _corrupted(f"chunks of different sizes at position {position}")
    if not partial:
        _check_whole({int(position): size_ for position, size_ in sizes.items()}, size, 1)
    wanted = security.nb_copy
    lack = [position for position, count in copies.items() if count < wanted]
    lack.sort(key=int)
    return [position for position in lack for _ in range(wanted - copies[position])]


def _missing_fragments(
    security: Security, chunks: Iterable[Placed], size: int | None, partial: bool
) -> list[str]:
    k = security.k or EC_DEFAULT_K
    total = k + (security.m or EC_DEFAULT_M)
    present: dict[int, set[int]] = {}
    sizes: dict[int, int] = {}
    for position, chunk_size in chunks:
        match = _FRAGMENT.match(position)
        if not match:
            raise _corrupted(f"invalid fragment position {position!r}")
        number, fragment = int(match[1]), int(match[2])
        if fragment >= total:
            raise _corrupted(f"fragment {position} of a set of {total}")
        fragments = present.setdefault(number, set())
        if fragment in fragments:
            raise _corrupted(f"two chunks for fragment {position}")
        fragments.add(fragment)
        if sizes.setdefault(number, chunk_size) != chunk_size:
            raise _corrupted(f"fragments of different sizes at position {number}")
    if not partial:
        _check_whole(sizes, size, k)
    missing = []
    for number in sorted(present):
        found = present[number]
        if len(found) < k:
            raise _corrupted(f"{len(found)} fragments of {k} needed at position {number}")
        if len(found) < total:
            missing += [f"{number}.{i}" for i in range(total) if i not in found]
    return missing


def _check_whole(sizes: dict[int, int], size: int | None, factor: int) -> None:
    """No hole, and enough bytes. Fragments may announce their size or that of their metachunk."""
    if not sizes:
        raise _corrupted("no chunk")
    if max(sizes) != len(sizes) - 1:
        hole = next(i for i in range(max(sizes)) if i not in sizes)
        raise _corrupted(f"no chunk at position {hole}")
    if size is not None and sum(sizes.values()) * factor < size:
        raise _corrupted(f"chunks hold {sum(sizes.values()) * factor} bytes of {size}")
