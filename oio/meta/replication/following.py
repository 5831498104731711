# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What a peer does when the master of a base tells it something: obey its voice, then follow its history.

A copy goes forward by entries; what it holds beyond the point from which the master goes on never reached a
majority, and is rolled back. When its history does not meet that of the master, or an entry does not fit, it
takes an image of the base instead. No answer says "done" before the disk holds it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import apsw

from oio.common import status
from oio.common.durable import write_file
from oio.common.status import StatusError
from oio.meta import dump
from oio.meta.base_type import TOMBSTONE, peers_in
from oio.meta.replication import journal
from oio.meta.replication.images import carry_on, position_of_image, tail_of_file
from oio.meta.replication.journal import CannotRollBack, Diverged
from oio.meta.replication.ledger import DESTROYED, REMOVED, Ledger
from oio.meta.replication.links import Links
from oio.meta.replication.positions import NOWHERE, Entry, Position, after
from oio.meta.replication.voter import Voter
from oio.meta.replication.wire import (
    CopyAppend,
    CopyBury,
    CopyEntries,
    CopyInstall,
    CopyReply,
    CopyState,
    Voice,
    Vote,
)

if TYPE_CHECKING:
    from oio.meta.repository import Repository

logger = logging.getLogger("oio.meta.replication")

#: Positions told to a master that looks for the point where histories part.
TAIL_MAX = 64
#: Entries sent in one request (bytes).
ENTRIES_MAX_BYTES = 4 << 20
#: How long a master waits for the writes that were under way when it came (seconds).
SETTLED_S = 2.0
#: Images that a service gets at a time.
IMAGES_MAX = 4


class ImageSettings(NamedTuple):
    """How images are got: longest time (seconds), and how they are checked (see :func:`oio.meta.dump.verify`)."""

    timeout_s: float = 241.0
    check_type: int = 1


class Refused(Exception):
    """The copy cannot go on from where the master wants: the answer tells where it stands."""


class Follower:
    """The copies of one service. Thread-safe."""

    def __init__(
        self,
        repository: Repository,
        ledger: Ledger,
        voter: Voter,
        links: Links,
        log_max: tuple[int, int],
        images: ImageSettings,
    ) -> None:
        self._repository = repository
        self._ledger = ledger
        self._voter = voter
        self._links = links
        self._log_max = log_max
        self._image_settings = images
        self._images = threading.BoundedSemaphore(IMAGES_MAX)
        self._getting: set[str] = set()
        self._getting_lock = threading.Lock()

    # --- requests of masters ----------------------------------------------------------------------------

    def state(self, request: CopyState) -> CopyReply:
        """What do we hold?"""
        vote = self._voter.vote(request.voice)
        if not vote.granted:
            return CopyReply(vote=vote)
        return self.settled(request.base, vote)

    def append(self, request: CopyAppend) -> CopyReply:
        """Go on with entries. The answer is ``done``, or tells where the copy stands."""
        vote = self._voter.vote(request.voice)
        if not vote.granted:
            return CopyReply(vote=vote)
        try:
            reached = self.follow(request, request.voice.epoch, request.voice.key)
        except (Refused, StatusError) as exc:
            if isinstance(exc, StatusError) and exc.code != status.CONTAINER_NOT_FOUND:
                raise
            return self.describe(request.base, vote)
        return CopyReply(vote=vote, held=True, position=reached, done=True)

    def install(self, request: CopyInstall) -> CopyReply:
        """Take an image: now when it came along, else behind the answer (``later``)."""
        vote = self._voter.vote(request.voice)
        if not vote.granted:
            return CopyReply(vote=vote)
        if request.image:
            if self.take_image(request):
                return CopyReply(vote=vote, held=True, position=request.position, done=True)
            return self.describe(request.base, vote)
        self._get_later(request)
        reply = self.describe(request.base, vote)
        reply.later = True
        return reply

    def bury(self, request: CopyBury) -> CopyReply:
        """The base is destroyed."""
        vote = self._voter.vote(request.voice)
        if not vote.granted:
            return CopyReply(vote=vote)
        here = self.describe(request.base, vote)
        if here.grave != DESTROYED or not self._repository.end_destruction(request.base):
            self._repository.drop_copy(request.base, request.position, DESTROYED, here.peers)
        here = self.describe(request.base, vote)
        here.done = not here.held and here.position.rank >= request.position.rank
        return here

    def entries(self, request: CopyEntries) -> CopyAppend:
        """What follows a position of a peer that is behind us; no entry when it needs an image.

        :raises StatusError: 303 when we obey another than the one that asks.
        """
        vote = self._voter.vote(request.voice)
        if not vote.granted:
            raise StatusError(status.REDIRECT, vote.owner)
        nothing = CopyAppend(base=request.base, voice=request.voice, previous=NOWHERE, entries=[])
        with self._repository.opened(request.base) as base:
            found = base.read(lambda reader: path_from(reader.connection, request.after))
        if found is None:
            return nothing
        nothing.previous, nothing.entries = found
        return nothing

    # --- what others here need ------------------------------------------------------------------------------

    def settled(self, base_name: str, vote: Vote) -> CopyReply:
        """As :meth:`describe`, once what was allowed before we gave our promise is done, or has failed.

        A master that is told where we stand must know all that we answered for to former ones: a write that waits
        for its commit belongs to it.
        """
        while True:
            reply = self.describe(base_name, vote, settled=True)
            if reply.held or reply.tail or not self._repository.placed(base_name):
                return reply

    def describe(self, base_name: str, vote: Vote, settled: bool = False) -> CopyReply:
        """Where our copy stands, or our grave."""
        self._repository.close_lost(base_name)
        try:
            with self._repository.opened(base_name) as base:
                if settled:
                    limit = time.monotonic() + SETTLED_S
                    tail = base.exclusively(lambda connection: journal.tail(connection, TAIL_MAX), deadline=limit)
                else:
                    tail = base.read(lambda reader: journal.tail(reader.connection, TAIL_MAX))
                peers = peers_in(base.admin)
                position = tail[0] if tail else NOWHERE
                grave = DESTROYED if TOMBSTONE in base.admin else ""
        except StatusError as exc:
            if exc.code != status.CONTAINER_NOT_FOUND:
                raise
            buried = self._ledger.grave(base_name)
            if buried is None:
                return CopyReply(vote=vote)
            return CopyReply(vote=vote, position=buried.position, grave=buried.reason, peers=buried.peers)
        return CopyReply(vote=vote, held=not grave, position=position, peers=peers, tail=tail, grave=grave)

    def follow(self, history: CopyAppend, epoch: int, key: str) -> Position:
        """Make our copy follow a history. :raises Refused: when it does not meet ours.

        :raises StatusError: 431 without copy.
        """
        self._repository.close_lost(history.base)
        with self._repository.opened(history.base) as base:

            def run(connection: apsw.Connection) -> Position:
                # The promise is looked at again in the turn of the writer: nothing of a later epoch can be undone.
                if self._voter.highest(key) > epoch:
                    raise Refused("a later epoch was promised")
                tables = self._repository.type.replicated
                return go_on(connection, history.previous, history.entries, tables, self._log_max)

            try:
                reached = base.exclusively(run, history.relaxed, follows=True)
            except (Diverged, CannotRollBack) as exc:
                logger.error("base %s: %s; an image of the master will replace it", history.base, exc)
                raise Refused(str(exc)) from exc
            destroyed = TOMBSTONE in base.admin
            peers = peers_in(base.admin)
        if destroyed:
            self._repository.drop_copy(history.base, reached, DESTROYED, peers, spare=True)
        return reached

    def take_image(self, request: CopyInstall) -> bool:
        """Put an image that came with a request in the place of our copy; do we hold its position now?"""
        with self._repository.workshop_file() as path:
            try:
                write_file(path, request.image)
            except OSError as exc:
                raise StatusError(status.UNAVAILABLE, f"cannot write {path}: {exc}") from exc
            return self._put_in_place(request.base, path, request.position, voice=request.voice)

    def get_image(
        self,
        base_name: str,
        source: str,
        draft: str = "",
        deadline: float | None = None,
        whole: bool = False,
        check_type: int = -1,
        voice: Voice | None = None,
    ) -> Position:
        """Get an image from another peer, and put it in the place of our copy.

        :param voice: of the master that wants it; not done once we obey another.
        :param whole: also when our copy says that it stands at the same position.
        :param check_type: how it is checked (:func:`oio.meta.dump.verify`), -1: as the settings say.
        :raises StatusError: 471 when our copy, or the grave of one, is more advanced than the image.
        """
        settings = self._image_settings
        limit = time.monotonic() + settings.timeout_s
        with self._images, self._repository.workshop_file() as path:
            dump.fetch(
                self._links.pool, self._links.address_of(source), self._repository.type, base_name, path,
                draft=draft, deadline=limit if deadline is None else min(deadline, limit),
                check_type=check_type if check_type >= 0 else settings.check_type,
            )
            position = position_of_image(path)
            if not self._put_in_place(base_name, path, position, whole, voice):
                raise StatusError(
                    status.PEER_AHEAD, f"base {base_name}: the image of {source} is older than what was here"
                )
        logger.info("base %s: image of %s, entry %d", base_name, source, position.seq)
        return position

    def _put_in_place(
        self, base_name: str, path: str, position: Position, whole: bool = False, voice: Voice | None = None
    ) -> bool:
        """Does our copy hold the position of the image at the end?"""
        known = False

        def still_wanted() -> bool:
            # Nobody has the base open. An older image would undo what we answered for.
            nonlocal known
            if voice is not None and self._voter.highest(voice.key) > voice.epoch:
                return False
            here = tail_of_file(self._repository.path(base_name), TAIL_MAX)
            if here is None:
                grave = self._ledger.grave(base_name)
                if grave is None:
                    return True
                if grave.reason == REMOVED:
                    return grave.position.rank <= position.rank
                return grave.position.rank < position.rank
            known = position.digest in {former.digest for former in here}
            if known:
                # Our copy went on while the image was on its way.
                own_path, tables = self._repository.path(base_name), self._repository.type.replicated
                return whole and (here[0] == position or carry_on(path, own_path, tables))
            return not here or here[0].rank < position.rank

        return self._repository.replace(base_name, path, still_wanted) or (known and not whole)

    def _get_later(self, request: CopyInstall) -> None:
        with self._getting_lock:
            if request.base in self._getting:
                return
            self._getting.add(request.base)

        def get() -> None:
            try:
                self.get_image(request.base, request.source, request.draft, voice=request.voice)
            except (StatusError, OSError) as exc:
                logger.error("base %s: no image from %s: %s", request.base, request.source, exc)
            finally:
                with self._getting_lock:
                    self._getting.discard(request.base)

        threading.Thread(target=get, name=f"image-{request.base[:8]}", daemon=True).start()


def go_on(
    connection: apsw.Connection,
    previous: Position,
    entries: Sequence[Entry],
    tables: Sequence[str],
    log_max: tuple[int, int] = (256, 4 << 20),
) -> Position:
    """Bring a base to the end of a history, rolling back what is not part of it.

    What arrives twice or late changes nothing: a base never goes back to a lower rank.

    :param log_max: entries and bytes that the journal keeps.

    :raises Refused: when the base does not hold ``previous``, or stands at something later than the end.
    """
    here = journal.position(connection)
    if here == previous and entries:
        return _apply(connection, entries, tables, log_max)
    path = [previous]
    for entry in entries:
        path.append(after(path[-1], entry))
    end = path[-1]
    if here == end:
        return here
    known = {position.seq: position.digest for position in journal.tail(connection, TAIL_MAX)}
    if known.get(end.seq) == end.digest:
        return here
    if end.rank <= here.rank:
        raise Refused(f"it stands at entry {here.seq} of term {here.term}, later than what was sent")
    common = max(
        (index for index, position in enumerate(path) if known.get(position.seq) == position.digest), default=None
    )
    if common is None:
        raise Refused(f"it stands at entry {here.seq} of term {here.term}, without what was sent as former state")
    if path[common].seq < here.seq:
        logger.warning(
            "entries %d to %d never reached a majority: rolled back", path[common].seq + 1, here.seq
        )
        journal.roll_back(connection, path[common].seq)
    if common == len(entries):
        return path[common]
    return _apply(connection, entries[common:], tables, log_max)


def _apply(
    connection: apsw.Connection, entries: Sequence[Entry], tables: Sequence[str], log_max: tuple[int, int]
) -> Position:
    for entry in entries:
        reached = journal.apply(connection, entry, tables)
    if reached.seq % journal.TRIM_PERIOD < len(entries):
        journal.trim(connection, log_max[0], log_max[1])
    return reached


def path_from(
    connection: apsw.Connection, positions: Sequence[Position]
) -> tuple[Position, list[Entry]] | None:
    """The latest of these positions that is in our history, and what follows it; None when none is."""
    for position in positions:
        entries = journal.entries_after(connection, position, ENTRIES_MAX_BYTES)
        if entries is not None:
            return position, entries
    return None

