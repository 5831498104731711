# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Do these chunks make this object? (contract: "Content check at put / append / update")

Chunks that are too few are tolerated as long as the object can be rebuilt: the caller counts them and asks
for their reconstruction. What can never be read is refused with 425.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from oio.common import status
from oio.common.status import StatusError
from oio.meta.messages import Security

#: (position, size) of a chunk.
Placed = tuple[str, int]

_PLAIN = re.compile(r"^\d{1,9}\Z")
_FRAGMENT = re.compile(r"^(\d{1,9})\.(\d{1,4})\Z")
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
    copies: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for position, chunk_size in chunks:
        if not _PLAIN.match(position):
            raise _corrupted(f"invalid chunk position {position!r}")
        number = int(position)
        copies[number] = copies.get(number, 0) + 1
        if sizes.setdefault(number, chunk_size) != chunk_size:
            raise _corrupted(f"chunks of different sizes at position {number}")
    if not partial:
        _check_whole(sizes, size, 1)
    wanted = security.nb_copy
    return [
        str(number)
        for number in sorted(copies)
        for _ in range(max(0, wanted - copies[number]))
    ]


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
