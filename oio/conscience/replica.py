# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""How two consciences agree on one service: what they tell each other, and which of two states wins.

Every change carries the time (µs since the epoch) at which a conscience made it. The clock that gives these
times never goes back and is always ahead of every time that this conscience was told, so that what is decided
in the knowledge of something wins over it, whatever the clocks of the hosts say.

- **Tags**: the newest registration wins; tags that only the older one has are kept, since tags are only added.
- **Lock**: the newest lock or unlock wins. The lock that a new service gets by itself has no time: any lock or
  unlock asked by somebody wins over it, and between two such states the one of the conscience that knew the
  service first wins. A conscience that lost everything thus never locks what others know as unlocked, and
  never unlocks what waits.
- **Score**: of a locked service, it belongs to the lock; else to the newest registration.
- **Removals** are remembered: only what is newer than them brings a service back.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import msgspec

from oio.conscience.messages import Message, TagValue

TAG_LOCK = "tag.lock"
TAG_UP = "tag.up"

# The year 2255: a time beyond comes from a broken clock, and would win over everything for ever.
TIME_MAX_US = 9_000_000_000_000_000
TimeUs = Annotated[int, msgspec.Meta(ge=0, le=TIME_MAX_US)]


class SavedService(Message, kw_only=True):
    """A service as it is persisted, and as it travels between consciences."""

    type: str
    addr: str
    score: int
    locked: bool = False
    lock_changed_us: TimeUs = 0
    tags_changed_us: TimeUs = 0
    created_us: TimeUs = 0
    #: Seconds since the last registration; only meaningful on the wire.
    age_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    tags: dict[str, TagValue] = {}


class Removal(Message, kw_only=True):
    """A service (or, without address, all those of a type) was forgotten on purpose."""

    type: str
    addr: str = ""
    removed_us: TimeUs


class Changes(Message, kw_only=True):
    """What changed on a conscience since a moment of its own history.

    ``sequence`` is that moment's successor, meaningful with ``instance`` only: another run has another history.
    """

    namespace: str
    instance: int
    sequence: int
    services: list[SavedService] = []
    removals: list[Removal] = []


class State(Protocol):
    """What is compared: both :class:`SavedService` and the entries of the registry are such states."""

    score: int
    locked: bool
    lock_changed_us: int
    tags_changed_us: int
    created_us: int
    tags: dict[str, TagValue]


def last_change_us(state: State) -> int:
    """Time of the newest thing known of a service."""
    return max(state.created_us, state.tags_changed_us, state.lock_changed_us)


def merge(mine: State, theirs: SavedService) -> tuple[bool, bool, bool]:
    """Bring ``mine`` up to date with ``theirs``.

    :returns: whether anything changed, whether the tags are newer, whether the score must be computed again (it is
        then neither a locked one nor the one of ``theirs``).
    """
    newer_tags = theirs.tags_changed_us > mine.tags_changed_us
    newer_lock = _lock_rank(theirs) > _lock_rank(mine)
    newer_state = _registered_or_locked_us(theirs) > _registered_or_locked_us(mine)
    older_creation = 0 < theirs.created_us < mine.created_us
    tags = _merged_tags(mine, theirs)
    if not (newer_tags or newer_lock or older_creation) and tags is None:
        return False, False, False
    same_time = tags is not None and theirs.tags_changed_us == mine.tags_changed_us
    mine.tags = mine.tags if tags is None else tags
    mine.tags_changed_us = max(mine.tags_changed_us, theirs.tags_changed_us)
    if older_creation:
        mine.created_us = theirs.created_us
    compute = False
    if newer_lock:
        mine.lock_changed_us = theirs.lock_changed_us
        mine.locked = theirs.locked
        mine.score = theirs.score if theirs.locked else mine.score
    if not mine.locked:
        if newer_state and not theirs.locked:
            mine.score = theirs.score
        else:
            compute = newer_tags or newer_lock or same_time
    mine.tags[TAG_LOCK] = mine.locked
    return True, newer_tags, compute


def _merged_tags(mine: State, theirs: SavedService) -> dict[str, TagValue] | None:
    """Tags of both, the newest ones before the others; None when they are those of ``mine``."""
    if theirs.tags_changed_us > mine.tags_changed_us:
        return {**mine.tags, **theirs.tags}
    if theirs.tags_changed_us < mine.tags_changed_us:
        return {**theirs.tags, **mine.tags} if theirs.tags.keys() - mine.tags.keys() else None
    different = [
        name
        for name, value in theirs.tags.items()
        if name != TAG_LOCK and (name not in mine.tags or mine.tags[name] != value)
    ]
    if not different:
        return None
    # Registered at the same time on both sides: anything will do, provided that both choose the same. `tag.up`
    # is only false there, not true, when one of them knows that the service fell silent.
    tags = {**mine.tags}
    for name in different:
        tags[name] = min(theirs.tags[name], mine.tags.get(name, theirs.tags[name]), key=msgspec.json.encode)
    return tags


def _registered_or_locked_us(state: State) -> int:
    return max(state.tags_changed_us, state.lock_changed_us)


def _lock_rank(state: State) -> tuple[Any, ...]:
    """States of the lock, in the order in which they win over each other."""
    since_us = -state.created_us if state.lock_changed_us == 0 else 0
    return state.lock_changed_us, since_us, state.locked, -state.score if state.locked else 0
