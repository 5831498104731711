# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where a copy of a base stands in the history of the base.

A history is a sequence of entries, numbered from 1 without a gap. Each one was written in a *term*: the epoch
of the peer that led, and its attempt. The digest of a position covers all the entries up to it, so that two
copies with the same number and digest went through the same changes.
"""

from __future__ import annotations

import struct

import msgspec
from blake3 import blake3

#: Bits of a term that count the attempts of one epoch.
EPOCH_SHIFT = 20
DIGEST_BYTES = 16

_ATTEMPTS = 1 << EPOCH_SHIFT
#: Previous digest, term, seq, then the lengths of the script and the changeset.
_HEAD = struct.Struct(">16sQQQQ")


def term_of(epoch: int, attempt: int = 0) -> int:
    """The term of an attempt in an epoch. :raises ValueError: when the attempts of the epoch are used up."""
    if not 0 <= attempt < _ATTEMPTS or epoch < 0:
        raise ValueError(f"no term for attempt {attempt} of epoch {epoch}")
    return epoch << EPOCH_SHIFT | attempt


def epoch_of(term: int) -> int:
    """The epoch of a term."""
    return term >> EPOCH_SHIFT


class Position(msgspec.Struct, frozen=True, order=False, array_like=True):
    """A point in the history of a base.

    :ivar term: of the last entry.
    :ivar seq: number of the last entry, 0 before the first one.
    :ivar digest: of all the entries so far, 16 bytes, empty when there were none.
    """

    term: int
    seq: int
    digest: bytes

    @property
    def rank(self) -> tuple[int, int]:
        """What tells which of two positions is the more advanced one."""
        return (self.term, self.seq)


#: Before any entry. It says nothing about what the tables hold: a base may have lived without copies.
NOWHERE = Position(0, 0, b"")


class Entry(msgspec.Struct, array_like=True):
    """One step of the history of a base.

    :ivar changeset: what the transaction changed, as the session extension of SQLite writes it; may be empty.
    :ivar script: SQL to run before the changeset: schema upgrades travel this way. Cannot be undone.
    """

    term: int
    seq: int
    changeset: bytes = b""
    script: str = ""


def digest_after(previous: bytes, entry: Entry) -> bytes:
    """Digest of the position that an entry leads to. :param previous: digest of the position before it."""
    script = entry.script.encode()
    changeset = entry.changeset
    head = _HEAD.pack(previous, entry.term, entry.seq, len(script), len(changeset))
    hasher = blake3(head + script)
    hasher.update(changeset)
    return hasher.digest(length=DIGEST_BYTES)


def after(position: Position, entry: Entry) -> Position:
    """Where an entry leads to. :raises ValueError: when it does not follow the position."""
    check_follows(position, entry)
    return Position(entry.term, entry.seq, digest_after(position.digest, entry))


def check_follows(position: Position, entry: Entry) -> None:
    """:raises ValueError: when an entry has not the next number, or is of a former term."""
    if entry.seq != position.seq + 1 or entry.term < position.term:
        raise ValueError(
            f"entry {entry.seq} of term {entry.term} does not follow entry {position.seq} of term {position.term}"
        )
