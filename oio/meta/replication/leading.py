# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the master of a group does with one of its bases.

It takes the lead at the first use: it asks all peers where their copies stand, brings its own copy to the most
advanced of them, and writes an entry of its own term, which a majority must hold. Everything that was
acknowledged under former masters is in that history, and nothing else can be added to it by them.

Then each transaction is one more entry: the peers hold it on their disks before it is committed here. When no
majority answers, the transaction is rolled back, and the next use takes the lead again from what is committed:
peers that hold the failed entry roll it back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.replication import journal, operations
from oio.meta.replication.following import path_from
from oio.meta.replication.groups import Group
from oio.meta.replication.ledger import DESTROYED, Ledger
from oio.meta.replication.links import Answers, Links
from oio.meta.replication.positions import Entry, Position, epoch_of
from oio.meta.replication.wire import CopyAppend, CopyReply, CopyState, CopyVacuum, Voice

logger = logging.getLogger("oio.meta.replication")

#: Rounds of giving peers what they miss within one write.
CATCH_UP_ROUNDS = 4


class Shared(Protocol):
    """What leads need of the engine."""

    links: Links
    ledger: Ledger
    log_max_entries: int
    log_max_bytes: int


class Lead:
    """The history of one base, as its master writes it. Used by the writer of the base only.

    :ivar position: of the last entry that is committed here.
    :ivar broken: an entry may be on peers that is not committed here, or another lead took the place of this one:
        it must be taken again.
    """

    __slots__ = (
        "_next", "_since_trim", "_uncertain", "_voice", "base_name", "broken", "group", "opened", "position",
        "shared", "term",
    )  # fmt: skip

    def __init__(
        self, shared: Shared, base_name: str, group: Group, epoch: int, term: int, position: Position
    ) -> None:
        self.shared = shared
        self.base_name = base_name
        self.group = group
        self.term = term
        self.position = position
        self.broken = False
        #: A majority holds the first entry of its term.
        self.opened = False
        self._voice = Voice(key=group.name, epoch=epoch, owner=group.own_name)
        self._next = position
        #: An entry left that is not committed here yet.
        self._uncertain = False
        self._since_trim = 0

    @property
    def valid(self) -> bool:
        """May the base be written in the name of this lead?"""
        return self.opened and not self.broken and self._leads

    @property
    def _leads(self) -> bool:
        return self.group.is_master and self.group.epoch == epoch_of(self.term)

    @property
    def voice(self) -> Voice:
        """In whose name the base is led."""
        return self._voice

    def confirm(self, deadline: float | None) -> None:
        """Nobody else was master before now. :raises StatusError: 303 or 503 when somebody may have been."""
        if not self.valid:
            raise not_master(self.group)
        self.group.check_lease(deadline)

    def vacuum(self) -> None:
        """Have the peers give unused space back; those that are down keep theirs."""
        request = CopyVacuum(base=self.base_name, voice=self._voice)
        peers = [peer for peer in self.group.others if not self.shared.links.benched(peer)]
        self.shared.links.ask_all(dict.fromkeys(peers, request))

    def begin(self) -> None:
        """A transaction is about to begin. :raises StatusError: 303 or 503 when we are not master any more."""
        if self._uncertain:
            self.broken = True
        if self.broken:
            raise StatusError(status.UNAVAILABLE, f"base {self.base_name}: the former write found no majority")
        # Our own copy obeys as those of the others do.
        if not self._leads or not self.group.obeys(self._voice):
            raise not_master(self.group)

    def tidy(self, connection: apsw.Connection) -> None:
        """From time to time forget old operations, here and in the copies."""
        self._since_trim = (self._since_trim + 1) % journal.TRIM_PERIOD
        if not self._since_trim:
            operations.trim(connection)

    def replicate(
        self, connection: apsw.Connection, changeset: bytes, relaxed: bool = False, script: str = ""
    ) -> None:
        """The transaction is about to be committed: have a majority hold it.

        :raises StatusError: when it does not; the transaction must be rolled back.
        """
        entry = Entry(self.term, self.position.seq + 1, changeset, script)
        self._next = journal.append(connection, self.position, entry)
        if not self._since_trim:
            journal.trim(connection, self.shared.log_max_entries, self.shared.log_max_bytes)
        self._uncertain = True
        try:
            self._spread(connection, entry, relaxed)
        except BaseException:
            self.broken = True
            raise

    def committed(self) -> None:
        """The transaction is committed here too."""
        self.position = self._next
        self._uncertain = False

    # --- giving an entry to the peers ---------------------------------------------------------------------

    def _spread(self, connection: apsw.Connection, entry: Entry, relaxed: bool) -> None:
        group, links = self.group, self.shared.links
        needed = group.majority - 1
        request = CopyAppend(
            base=self.base_name, voice=self._voice, previous=self.position, entries=[entry], relaxed=relaxed
        )
        asked_at = time.monotonic()
        peers = [peer for peer in group.others if not links.benched(peer)]
        answers = links.ask_all(dict.fromkeys(peers, request), lambda answers: _done(answers) >= needed)
        rounds = 0
        while rounds < CATCH_UP_ROUNDS and self._catch_up(connection, answers, relaxed):
            rounds += 1
        if _done(answers) < needed:
            # Those who are out may live again.
            rest = [peer for peer in group.others if peer not in answers]
            answers |= links.ask_all(dict.fromkeys(rest, request), lambda more: _done(more | answers) >= needed)
            while rounds < CATCH_UP_ROUNDS and self._catch_up(connection, answers, relaxed):
                rounds += 1
        self._conclude(answers, needed, asked_at)

    def _catch_up(self, connection: apsw.Connection, answers: Answers, relaxed: bool) -> bool:
        """Give those who stand elsewhere what they miss; is there anybody who got something?"""
        requests = {}
        for peer, reply in answers.items():
            if not isinstance(reply, CopyReply) or reply.done or not reply.vote.granted or not reply.held:
                continue
            found = path_from(connection, reply.tail)
            if found is not None and found[1]:
                previous, entries = found
                requests[peer] = CopyAppend(
                    base=self.base_name, voice=self._voice, previous=previous, entries=entries, relaxed=relaxed
                )
        if not requests:
            return False
        more = self.shared.links.ask_all(requests)
        for peer, reply in more.items():
            # Behind by more than one request holds: it says how far it is now.
            if isinstance(reply, CopyReply) and reply.done and reply.position != self._next:
                reply = CopyReply(vote=reply.vote, held=True, position=reply.position, tail=[reply.position])
            answers[peer] = reply
        return True

    def _conclude(self, answers: Answers, needed: int, asked_at: float) -> None:
        done = [peer for peer, reply in answers.items() if isinstance(reply, CopyReply) and reply.done]
        for peer in done:
            self.group.heard(peer, asked_at)
        for reply in answers.values():
            if isinstance(reply, CopyReply) and not reply.vote.granted:
                self.group.depose(reply.vote)
                if len(done) < needed:
                    raise not_master(self.group)
        for peer in self.group.others:
            if peer not in done:
                self.shared.ledger.add_late(peer, self.base_name)
        if len(done) < needed:
            self.group.lost_majority()
            raise StatusError(
                status.UNAVAILABLE,
                f"Not enough successes, no quorum ({len(done) + 1}/{needed + 1}) for base {self.base_name}:"
                f" {failures(answers, self.group.others, done)}",
            )


def not_master(group: Group) -> StatusError:
    """The error of a service that is asked to write, and is not master."""
    master = group.master_id()
    if master and not group.is_master and master != group.voice.owner:
        return StatusError(status.REDIRECT, master)
    return StatusError(status.UNAVAILABLE, "another master of this base is being elected")


def failures(answers: Answers, peers: Sequence[str], done: Sequence[str]) -> str:
    """Why peers do not count, as one text."""
    return "; ".join(f"{peer}: {_reason(answers.get(peer))}" for peer in peers if peer not in done)


def _reason(answer: object) -> str:
    if answer is None:
        return "not asked, it did not answer a moment ago"
    if isinstance(answer, CopyReply):
        return "it gets the base first" if answer.vote.granted else "it obeys another"
    return str(answer)


def _done(answers: Answers) -> int:
    return sum(1 for reply in answers.values() if isinstance(reply, CopyReply) and reply.done)


class Census:
    """Where all the copies of a base stand, and which is the most advanced one."""

    def __init__(self, own: CopyReply, answers: Answers) -> None:
        told = {peer: reply for peer, reply in answers.items() if isinstance(reply, CopyReply)}
        self.replies = {peer: reply for peer, reply in told.items() if reply.vote.granted}
        #: Of those who obey another.
        self.refusals = [reply for reply in told.values() if not reply.vote.granted]
        self.own = own
        self.best_peer = ""
        best = own
        for peer, reply in self.replies.items():
            if _rank(reply) > _rank(best):
                best, self.best_peer = reply, peer
        #: The most advanced of them all, graves included.
        self.best = best

    def source(self) -> str:
        """The peer with the most advanced copy, '' when it is ours or when there is none."""
        held = {peer: reply for peer, reply in self.replies.items() if reply.held}
        if not held:
            return ""
        peer = max(held, key=lambda peer: held[peer].position.rank)
        return peer if not self.own.held or held[peer].position.rank > self.own.position.rank else ""


def _rank(reply: CopyReply) -> tuple[int, int, bool]:
    # At the same position a copy is worth more than the grave of a removed one.
    return (*reply.position.rank, reply.held or reply.grave == DESTROYED)


def take_census(
    links: Links, group: Group, voice: Voice, base_name: str, own: CopyReply, timeout_s: float
) -> Census:
    """Ask all peers; those that are down do not count. :raises StatusError: 303, 503."""
    request = CopyState(base=base_name, voice=voice)
    needed = group.majority - 1
    asked_at = time.monotonic()
    peers = [peer for peer in group.others if not links.benched(peer)]
    if len(peers) < needed:
        peers = list(group.others)

    def enough(answers: Answers) -> bool:
        return sum(isinstance(reply, CopyReply) and reply.vote.granted for reply in answers.values()) >= needed

    answers = links.ask_all(dict.fromkeys(peers, request), enough, timeout_s)
    census = Census(own, answers)
    for refusal in census.refusals:
        group.depose(refusal.vote)
        if not group.is_master:
            raise not_master(group)
    for peer in census.replies:
        group.heard(peer, asked_at)
    if len(census.replies) < needed:
        group.lost_majority()
        raise StatusError(
            status.UNAVAILABLE,
            f"no quorum ({len(census.replies) + 1}/{needed + 1}) for base {base_name}:"
            f" {failures(answers, group.others, list(census.replies))}",
        )
    return census


