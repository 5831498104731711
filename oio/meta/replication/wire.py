# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the services that hold the copies of a base say to each other.

A candidate or a master speaks to the other peers of its group in the name of an epoch: a peer that promised a
later one refuses (see :mod:`oio.meta.replication.voter`). Only :class:`CopyLead` goes to a master.
"""

from __future__ import annotations

from typing import ClassVar

from oio.meta.base_messages import BaseTarget
from oio.meta.messages import Message, Operation, ReplyType
from oio.meta.replication.positions import NOWHERE, Entry, Position


class Voice(Message, kw_only=True):
    """In whose name a request is made: a group, an epoch of it, and the service that holds this epoch."""

    key: str
    epoch: int
    owner: str


class Vote(Message, kw_only=True):
    """Answer to a voice. When it is refused: what was promised, and how long the present lease lasts."""

    granted: bool
    epoch: int = 0
    owner: str = ""
    wait_s: float = 0.0


class GroupVote(Operation, kw_only=True):
    """Promise to obey this epoch and none before it; repeated by a master, it renews its lease."""

    reply: ClassVar[ReplyType] = Vote
    voice: Voice
    peers: list[str]
    shard: int


class CopyReply(Message, kw_only=True):
    """What a peer holds of a base, after what it was asked.

    ``held``: there is a copy. Without one, a position may be that of a grave, and ``grave`` is its reason.
    ``tail``: the latest positions, newest first. ``done``: the copy is what the request wants it to be, on disk.
    ``later``: the peer is getting an image.
    """

    vote: Vote
    held: bool = False
    position: Position = NOWHERE
    peers: list[str] = []
    grave: str = ""
    tail: list[Position] = []
    done: bool = False
    later: bool = False


class CopyRequest(BaseTarget, kw_only=True):
    """Base of requests on the copy of a base."""

    reply: ClassVar[ReplyType] = CopyReply
    voice: Voice


class CopyState(CopyRequest, kw_only=True):
    """What do you hold of this base?"""


class CopyDescribe(BaseTarget, kw_only=True):
    """The same, asked in nobody's name: nothing is promised."""

    reply: ClassVar[ReplyType] = CopyReply


class CopyAppend(CopyRequest, kw_only=True):
    """Go on from ``previous`` with these entries; what stands after ``previous`` is rolled back first.

    ``relaxed``: needs not be on disk before the answer.
    """

    previous: Position
    entries: list[Entry]
    relaxed: bool = False


class CopyEntries(CopyRequest, kw_only=True):
    """Give what follows this position of yours, to a new master that is behind you."""

    reply: ClassVar[ReplyType] = CopyAppend
    after: list[Position] = []


class CopyInstall(CopyRequest, kw_only=True):
    """Take this image instead of what you hold: ``image`` when it is small, else that of ``source``.

    ``draft``: name of an image at the source that is not in its place yet; '' for the base itself.
    """

    position: Position
    image: bytes = b""
    source: str = ""
    draft: str = ""


class CopyBury(CopyRequest, kw_only=True):
    """The base is destroyed, as of this position."""

    position: Position


class CopyForget(BaseTarget, kw_only=True):
    """The events of this destroyed base are delivered, up to an entry: nobody needs a spare of it."""

    last_entry: int


class CopyLead(BaseTarget, kw_only=True):
    """You are the master of this base: lead it now, since one of its copies is late. It may be yours."""

    peers: list[str]


class CopyVacuum(CopyRequest, kw_only=True):
    """Give the unused space of your copy back."""
