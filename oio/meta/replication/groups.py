# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The election of one group of peers, as one of them goes through it.

A group is a set of peers and a shard of the names of their bases. ZooKeeper says who comes first in line; the
first asks all peers for their promise of an epoch that nobody has seen yet, and is the master once a majority gave
it. What makes it safe is the promises (:mod:`oio.meta.replication.voter`), not the line: that one only keeps
several from asking at once.

A master that answers a read must know that nobody else became master meanwhile: it has leases of a majority, or
renews them first.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from oio.common import status
from oio.common.status import StatusError
from oio.meta.replication.candidacy import Candidacy, View
from oio.meta.replication.links import Answers, Links
from oio.meta.replication.voter import Voter
from oio.meta.replication.wire import GroupVote, Voice, Vote

logger = logging.getLogger("oio.meta.replication")

#: Part of a lease that its holder counts on: clocks may advance at slightly different rates.
LEASE_PART = 0.8
#: Between two attempts to get promises (seconds).
CAMPAIGN_PERIOD_S = 0.1
FAILURE_PERIOD_S = 1.0
#: A master, or the first in line, that reaches no majority for so long goes to the end of the line (seconds).
ALONE_MAX_S = 2.0
#: Answers to a candidate (seconds): a peer that is down must not hold the election back for long.
PROMISE_TIMEOUT_S = 1.0


#: Makes our place in the line of a group, given its key, our name, what to call when it changes, and the peers.
OpenCandidacy = Callable[[str, str, Callable[[View], None], tuple[str, ...]], Candidacy]


class GroupKey(NamedTuple):
    """What tells one group from another."""

    service_type: str
    peers: tuple[str, ...]
    shard: int

    def text(self) -> str:
        """Name of the group in ZooKeeper and in ledgers: 64 hexadecimal digits."""
        described = f"{self.service_type}|{','.join(self.peers)}|{self.shard}"
        return hashlib.sha256(described.encode()).hexdigest().upper()


def group_of(service_type: str, peers: Sequence[str], base_name: str, shards: int) -> GroupKey:
    """The group of a base."""
    shard = int.from_bytes(hashlib.sha256(base_name.encode()).digest()[:4]) % shards
    return GroupKey(service_type, tuple(sorted(peers)), shard)


class GroupSettings(NamedTuple):
    """How elections are waited for."""

    allow_master: bool = True
    wait_s: float = 20.0


class Group:
    """One group, on one of its peers. Thread-safe.

    :param own_name: of this service among the peers.
    """

    def __init__(
        self,
        key: GroupKey,
        own_name: str,
        voter: Voter,
        links: Links,
        open_candidacy: OpenCandidacy,
        settings: GroupSettings,
        on_master: Callable[[Group], None],
    ) -> None:
        self.key = key
        self.name = key.text()
        self.others = tuple(peer for peer in key.peers if peer != own_name)
        #: Peers that must agree, this one included.
        self.majority = len(key.peers) // 2 + 1
        self.epoch = 0
        #: Epochs below are too low for some base of the group.
        self._lowest_epoch = 1
        self.state = "NONE"
        self.used_at = self.changed_at = time.monotonic()
        self.own_name = own_name
        self._voter = voter
        self._links = links
        self._settings = settings
        self._on_master = on_master
        self._changed = threading.Condition(threading.Lock())
        self._campaigning = False
        #: The campaign under way was asked for again: what it reached may be over already.
        self._campaign_again = False
        self._suspected: set[str] = set()
        self._heard: dict[str, float] = {}
        self._lease_until = 0.0
        self._renewal = threading.Lock()
        self.candidacy = open_candidacy(self.name, own_name, self._on_view, key.peers)

    # --- what requests need ------------------------------------------------------------

    @property
    def is_master(self) -> bool:
        """Are we the master, as far as we know?"""
        return self.state == "MASTER"

    @property
    def voice(self) -> Voice:
        """In whose name we speak while we are master."""
        return Voice(key=self.name, epoch=self.epoch, owner=self.own_name)

    def touch(self) -> None:
        """The group is used: take part in its election."""
        self.used_at = time.monotonic()
        if self.state == "NONE" and self._enter("CREATING", "USED", only_from="NONE"):
            self.candidacy.join()
            if self.candidacy.view.status == "member":
                # We take part already: no news will come of it.
                self._on_view(self.candidacy.view)

    def require_master(self, deadline: float | None = None, suspects: Sequence[str] = ()) -> int:
        """The epoch in which we are master.

        :raises StatusError: 303 naming the master when it is another peer, 503 when there is none in time.
        """
        self.used_at = time.monotonic()
        if self.state == "MASTER":
            return self.epoch
        self.touch()
        limit = time.monotonic() + self._settings.wait_s
        if deadline is not None:
            limit = min(limit, deadline)
        while True:
            master = self._wait_for_end(limit)
            if master == self.own_name:
                return self.epoch
            if master not in suspects or not self._may_be_dead(master):
                raise StatusError(status.REDIRECT, master)
            self._impeach(master, limit)

    def _wait_for_end(self, limit: float) -> str:
        """Id of the master. :raises StatusError: 503 when nobody is in time."""
        if self.candidacy.view.leads:
            self._begin_campaign()
        with self._changed:
            while True:
                if self.state == "MASTER":
                    return self.own_name
                master = self.candidacy.view.master
                if self.state == "SLAVE" and master and master != self.own_name:
                    return master
                left_s = limit - time.monotonic()
                if left_s <= 0:
                    raise StatusError(
                        status.UNAVAILABLE, f"no master for this base yet, the election is at {self.state}"
                    )
                self._changed.wait(left_s)

    def check_lease(self, deadline: float | None = None) -> None:
        """Make sure that nobody else can have become master before now.

        :raises StatusError: 303 or 503 when somebody may have.
        """
        begin = time.monotonic()
        if begin < self._lease_until:
            return
        with self._renewal:
            if begin < self._lease_until:
                return
            self._renew(deadline)

    def obeys(self, voice: Voice) -> bool:
        """Have we promised nothing to anybody since we speak with this voice?"""
        return self._voter.promised(voice)

    def heard(self, peer: str, asked_at: float) -> None:
        """A peer obeyed what was sent at a moment: its lease counts from there."""
        self._heard[peer] = asked_at
        needed = self.majority - 1
        moments = sorted(self._heard.values(), reverse=True)
        if len(moments) >= needed:
            self._lease_until = moments[needed - 1] + self._voter.lease_s * LEASE_PART

    def depose(self, vote: Vote) -> None:
        """A peer obeys another: be promised an epoch that all of them can obey, if it is still our turn.

        One that only waits for the end of the lease of a former master obeys nobody else.
        """
        if vote.epoch < self.epoch:
            return
        if vote.owner != self.own_name:
            with self._changed:
                self._lowest_epoch = max(self._lowest_epoch, vote.epoch + 1)
        if vote.epoch > self.epoch or vote.owner != self.own_name:
            self._step_down("DEPOSED")

    def lost_majority(self) -> None:
        """No majority answered: a master that is alone for too long lets the next in line try."""
        if self.is_master and time.monotonic() - self._lease_until > ALONE_MAX_S:
            self._give_way()

    def _give_way(self) -> None:
        if len(self.candidacy.view.members) > 1:
            logger.warning("election %s: no majority answers us, the next one may try", self.name[:8])
            self.candidacy.rejoin()

    def outbid(self, epoch: int) -> None:
        """A base of ours knows this epoch, from the peers that it had before: get a later one promised."""
        with self._changed:
            self._lowest_epoch = max(self._lowest_epoch, epoch + 1)
        if self.epoch <= epoch:
            self._step_down("OUTBID")

    def leave(self) -> None:
        """Leave the election; the next use of the group joins it again."""
        self._step_down("LEAVE_REQ", "NONE")
        self.candidacy.leave()

    def rejoin(self) -> None:
        """Go to the end of the line: another peer becomes master, if there is one."""
        self.candidacy.rejoin()

    def master_id(self) -> str:
        """Id of the master as far as we know, '' when there is none."""
        return self.own_name if self.is_master else self.candidacy.view.master

    # --- leases ------------------------------------------------------------

    def _renew(self, deadline: float | None) -> None:
        voice = self.voice
        if not self.is_master:
            raise StatusError(status.REDIRECT, self.candidacy.view.master or self.own_name)
        asked_at = time.monotonic()
        self._voter.vote(voice)
        answers = self._ask(self._request(voice), deadline)
        votes = {peer: vote for peer, vote in answers.items() if isinstance(vote, Vote)}
        for peer, vote in votes.items():
            if vote.granted:
                self.heard(peer, asked_at)
            else:
                self.depose(vote)
        if not self.is_master or time.monotonic() >= self._lease_until:
            self.lost_majority()
            raise StatusError(status.UNAVAILABLE, "the master does not hear from a majority of the peers")

    def _ask(self, request: GroupVote, deadline: float | None) -> Answers:
        """Ask the other peers, those that are out only when a majority needs them."""
        peers = [peer for peer in self.others if not self._links.benched(peer)]
        if len(peers) + 1 < self.majority:
            peers = list(self.others)
        timeout_s = None if deadline is None else max(0.05, deadline - time.monotonic())
        return self._links.ask_all(dict.fromkeys(peers, request), self._has_majority, timeout_s)

    def _has_majority(self, answers: Answers) -> bool:
        return sum(isinstance(vote, Vote) and vote.granted for vote in answers.values()) + 1 >= self.majority

    def _request(self, voice: Voice) -> GroupVote:
        return GroupVote(voice=voice, peers=list(self.key.peers), shard=self.key.shard)

    # --- elections ------------------------------------------------------------

    def _enter(self, state: str, event: str, only_from: str = "") -> bool:
        with self._changed:
            if only_from and self.state != only_from:
                return False
            if state != self.state:
                self.candidacy.note(event, state)
                self.state = state
                self.changed_at = time.monotonic()
            self._changed.notify_all()
        return True

    def _on_view(self, view: View) -> None:
        """The line changed."""
        if view.status == "none":
            self._enter("NONE", "LEFT")
        elif view.status != "member":
            self._step_down(view.status.upper())
        elif view.leads and not self._settings.allow_master:
            self.candidacy.rejoin()
        elif view.leads:
            self._begin_campaign()
        else:
            self.epoch = 0
            self._step_down("MASTER_OK")

    def _step_down(self, event: str, state: str = "") -> None:
        view = self.candidacy.view
        if not state and view.status == "none":
            # Another peer may be heard of before we take part: whoever uses the group shall join it.
            state = "NONE"
        elif not state:
            state = "SLAVE" if view.status == "member" and not view.leads else "WATCHING"
        self._lease_until = 0.0
        self._heard = {}
        self._enter(state, event)
        if view.leads and state == "WATCHING":
            self._begin_campaign()

    def _begin_campaign(self) -> None:
        with self._changed:
            if self.state == "MASTER":
                return
            self._campaign_again = self._campaigning
            if self._campaigning:
                return
            self._campaigning = True
        threading.Thread(target=self._campaign, name=f"election-{self.name[:8]}", daemon=True).start()

    def _campaign(self) -> None:
        try:
            self._enter("CHECKING_SLAVES", "FIRST_IN_LINE")
            # Nobody asked for promises since we were master: the line was out of sight, no more.
            epoch = self.epoch if self._voter.promised(self.voice) else self._voter.highest(self.name) + 1
            epoch = max(epoch, self._lowest_epoch)
            limit = time.monotonic() + ALONE_MAX_S
            while self.candidacy.view.leads:
                if time.monotonic() > limit:
                    self._give_way()
                    limit = time.monotonic() + ALONE_MAX_S
                try:
                    seen, wait_s = self._ask_promises(epoch)
                except StatusError as exc:
                    # Our own promise could not be stored: a full disk, say.
                    logger.error("election %s: %s", self.name[:8], exc)
                    seen, wait_s = 0, FAILURE_PERIOD_S
                if self.is_master:
                    return
                epoch = max(epoch, seen + 1)
                time.sleep(wait_s or CAMPAIGN_PERIOD_S)
        finally:
            with self._changed:
                self._campaigning = False
                again, self._campaign_again = self._campaign_again, False
            if again and self.candidacy.view.leads:
                self._begin_campaign()
        if not self.candidacy.view.leads:
            self._step_down("OVERTAKEN")

    def _ask_promises(self, epoch: int) -> tuple[int, float]:
        """Ask for promises; returns the highest epoch seen, and how long to wait before the next attempt."""
        voice = Voice(key=self.name, epoch=epoch, owner=self.own_name)
        asked_at = time.monotonic()
        own = self._voter.vote(voice)
        if not own.granted:
            return own.epoch, own.wait_s
        request = self._request(voice)
        answers = self._links.ask_all(
            dict.fromkeys(self.others, request), self._has_majority, timeout_s=PROMISE_TIMEOUT_S
        )
        votes = [vote for vote in answers.values() if isinstance(vote, Vote)]
        granted = [peer for peer, vote in answers.items() if isinstance(vote, Vote) and vote.granted]
        if len(granted) + 1 >= self.majority:
            self._become_master(epoch, granted, asked_at)
            return epoch, 0.0
        # An epoch that some refused for the lease of another stays ours to ask for.
        passed = [vote.epoch for vote in votes if not vote.granted and not vote.wait_s]
        waits = [vote.wait_s for vote in votes if vote.wait_s]
        return max(passed, default=epoch - 1), min(waits, default=0.0)

    def _become_master(self, epoch: int, granted: list[str], asked_at: float) -> None:
        with self._changed:
            self.epoch = epoch
            self._heard = {}
        for peer in granted:
            self.heard(peer, asked_at)
        if not self.candidacy.view.leads:
            return
        self._enter("MASTER", "PROMISED")
        logger.info(
            "election %s: master in epoch %d, shard %d of %s",
            self.name[:8], epoch, self.key.shard, ",".join(self.key.peers),
        )  # fmt: skip
        self._on_master(self)

    # --- a master that is dead ------------------------------------------------------------

    def _may_be_dead(self, peer: str) -> bool:
        return not self._links.ping(peer)

    def _impeach(self, master: str, limit: float) -> None:
        """Take a master that does not answer out of the line, once its leases are over."""
        left_s = self._voter.lease_left_s(self.name)
        if left_s:
            time.sleep(min(left_s, max(0.0, limit - time.monotonic())))
        with self._changed:
            first = master not in self._suspected
            self._suspected.add(master)
        try:
            if first and self.candidacy.view.master == master:
                logger.warning("election %s: %s does not answer, it loses its place", self.name[:8], master)
                self.candidacy.impeach(master)
            with self._changed:
                self._changed.wait_for(
                    lambda: self.state == "MASTER" or self.candidacy.view.master != master,
                    max(0.0, min(1.0, limit - time.monotonic())),
                )
        finally:
            with self._changed:
                self._suspected.discard(master)
        if time.monotonic() >= limit:
            raise StatusError(status.UNAVAILABLE, f"the master {master} does not answer, there is no other yet")
