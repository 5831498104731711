# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The copies of the bases of one service: who leads which base, and how a base comes to be led here.

:meth:`Replication.prepare` stands before each use of a base. It answers at once when we lead the base already;
otherwise it goes through the election of its group and takes the lead, which may bring the base here from another
peer. A base with one copy needs none of it.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.base_type import PEERS, SCHEMA_VERSION
from oio.meta.client import Route
from oio.meta.context import NO_ROUTE
from oio.meta.replication import journal, operations
from oio.meta.replication.following import Follower, ImageSettings, Refused
from oio.meta.replication.groups import Group, GroupKey, GroupSettings, OpenCandidacy, group_of
from oio.meta.replication.leading import Census, Lead, failures, not_master, take_census
from oio.meta.replication.ledger import DESTROYED, Ledger
from oio.meta.replication.links import Links
from oio.meta.replication.positions import Position, epoch_of, term_of
from oio.meta.replication.registration import Registration
from oio.meta.replication.upkeep import Upkeep
from oio.meta.replication.voter import Voter
from oio.meta.replication.wire import (
    CopyBury,
    CopyEntries,
    CopyForget,
    CopyInstall,
    CopyReply,
    CopyState,
    Voice,
    Vote,
)

if TYPE_CHECKING:
    from oio.meta.replication.zookeeper import ZooKeepers
    from oio.meta.repository import Repository

logger = logging.getLogger("oio.meta.replication")

#: Leads remembered for bases that are closed; beyond, the next use of a base takes the lead again.
LEADS_MAX = 100_000
#: Answers to a census (seconds): it waits for all peers that seem to live.
CENSUS_TIMEOUT_S = 2.0
#: A caller that knows the other peers is not kept waiting for a master that they may know (seconds).
ROUTED_WAIT_S = 2.0
#: Images up to this size travel in the request itself (bytes).
INLINE_MAX_BYTES = 1 << 20
#: Between two looks at a peer that is getting an image (seconds).
IMAGE_PERIOD_S = 0.05
#: Rounds of taking the lead: each one ends with a copy that is more advanced.
ROUNDS_MAX = 8

_STATES = {"NONE": "none", "FAILED": "failed", "SLAVE": "slave", "MASTER": "master"}

_SETTINGS = GroupSettings()
_IMAGES = ImageSettings()

#: Makes the image of a new base in a file, given the position that it must tell.
MakeImage = Callable[[str, Position], None]
#: Puts it in its place, unless the function that it is given says no at the last moment; did it?
PlaceImage = Callable[[Callable[[], bool]], bool]


class OtherPeers(Exception):
    """The base has other peers than our copy says."""

    def __init__(self, peers: list[str]) -> None:
        super().__init__(peers)
        self.peers = peers


class Replication:
    """Copies and leads of one service. Thread-safe.

    :param names: under which others know this service: its id, its address.
    """

    def __init__(
        self,
        service_type: str,
        names: Sequence[str],
        ledger: Ledger,
        links: Links,
        open_candidacy: OpenCandidacy,
        *,
        lease_s: float = 1.0,
        shards: int = 8,
        settings: GroupSettings = _SETTINGS,
        log_max_entries: int = 256,
        log_max_bytes: int = 4 << 20,
        zookeepers: ZooKeepers | None = None,
        idle_slave_s: float = 12600.0,
        idle_master_s: float = 14400.0,
        images: ImageSettings = _IMAGES,
    ) -> None:
        self.service_type = service_type
        self.names = tuple(names)
        self.ledger = ledger
        self.links = links
        self.log_max_entries = log_max_entries
        self.log_max_bytes = log_max_bytes
        self.voter = Voter(ledger, lease_s, self._on_promise)
        self.drafts: dict[str, str] = {}
        self._zookeepers = zookeepers
        self._open_candidacy = open_candidacy
        self._shards = shards
        self._settings = settings
        self._groups: dict[str, Group] = {}
        self._groups_lock = threading.Lock()
        #: None for a base that has one copy.
        self._leads: OrderedDict[str, Lead | None] = OrderedDict()
        self._leads_lock = threading.Lock()
        self._name_locks = [threading.RLock() for _ in range(64)]
        self._idle_s = idle_slave_s, idle_master_s
        self._images = images
        self._repository: Repository
        self._upkeep: Upkeep

    def attach(self, repository: Repository) -> None:
        """Serve the bases of this repository."""
        self._repository = repository
        self.follower = Follower(
            repository, self.ledger, self.voter, self.links, (self.log_max_entries, self.log_max_bytes),
            self._images,
        )
        self._upkeep = Upkeep(self, repository, *self._idle_s)

    def start(self) -> None:
        """Begin what goes on behind the requests."""
        self._repository.outbox.leftovers.on_delivered = self._tell_delivered
        self._upkeep.start()

    def _tell_delivered(self, base_name: str, last_entry: int) -> None:
        """The events of a base that we destroyed are delivered: the others need not keep theirs."""
        grave = self.ledger.grave(base_name)
        peers = [peer for peer in grave.peers if peer not in self.names] if grave is not None else []
        request = CopyForget(base=base_name, last_entry=last_entry)
        # Those who do not hear it deliver them once more.
        self.links.ask_all({peer: request for peer in peers if not self.links.benched(peer)})

    # --- groups ------------------------------------------------------------

    def group(self, peers: Sequence[str], base_name: str) -> Group:
        """The group of a base with these peers."""
        return self._group(group_of(self.service_type, peers, base_name, self._shards))

    def take_part(self, peers: Sequence[str], shard: int) -> None:
        """Another peer of a group has an election going: take part."""
        if self.own_name(peers):
            self._group(GroupKey(self.service_type, tuple(sorted(peers)), shard)).touch()

    def groups(self) -> list[Group]:
        """The groups that were used."""
        with self._groups_lock:
            return list(self._groups.values())

    def _group(self, key: GroupKey) -> Group:
        name = key.text()
        group = self._groups.get(name)
        if group is None:
            with self._groups_lock:
                group = self._groups.get(name)
                if group is None:
                    group = self._groups[name] = Group(
                        key, self.own_name(key.peers), self.voter, self.links, self._open_candidacy,
                        self._settings, self._on_master,
                    )
        return group

    def _on_promise(self, group_name: str, vote: Vote) -> None:
        group = self._groups.get(group_name)
        if group is not None and vote.owner not in self.names:
            group.depose(vote)

    def _on_master(self, group: Group) -> None:
        """Events that a former master of the group did not deliver wait in our copies: lead their bases."""
        threading.Thread(target=self._resume_events, args=(group,), name="events", daemon=True).start()

    def _resume_events(self, group: Group) -> None:
        for base_name in self._repository.outbox.followed():
            try:
                if self.group_for(base_name) is group:
                    self.prepare(base_name)
            except StatusError as exc:
                logger.debug("base %s: its events wait: %s", base_name, exc)

    # --- leads ------------------------------------------------------------

    def prepare(self, base_name: str, route: Route = NO_ROUTE, deadline: float | None = None) -> Lead | None:
        """Our lead of a base, None when it has one copy only.

        :raises StatusError: 303 naming the master, 431 when the base does not exist or is not ours, 503.
        """
        try:
            lead = self._leads[base_name]
        except KeyError:
            return self._take(base_name, route, deadline)
        if lead is None:
            return None
        if lead.valid:
            lead.group.used_at = time.monotonic()
            return lead
        return self._take(base_name, route, deadline)

    def forget(self, base_name: str) -> None:
        """The base, or its peers, changed behind the lead."""
        with self._leads_lock:
            lead = self._leads.pop(base_name, None)
        if lead is not None:
            lead.broken = True

    def peers_of(self, base_name: str, route: Route = NO_ROUTE) -> list[str]:
        """Peers of a base: those written in it, else those that the caller knows."""
        own = self.follower.describe(base_name, Vote(granted=True))
        return own.peers or list(route.peers)

    def group_for(self, base_name: str, route: Route = NO_ROUTE) -> Group | None:
        """Group of a base, None when it has one copy. :raises StatusError: 431 when it is not ours."""
        peers = self.peers_of(base_name, route)
        if len(peers) > 1 and not self.own_name(peers):
            raise StatusError(status.CONTAINER_NOT_FOUND, f"Base not managed: {base_name} is on {','.join(peers)}")
        return self.group(peers, base_name) if len(peers) > 1 else None

    def _check_ours(self, peers: Sequence[str]) -> None:
        """Send those elsewhere who come for a base that has moved away: it exists, and not here."""
        if not self.own_name(peers):
            raise StatusError(status.REDIRECT, peers[0])

    def own_name(self, peers: Sequence[str]) -> str:
        """Our name among these peers, '' when we are none of them."""
        return next((name for name in self.names if name in peers), "")

    def _remember(self, base_name: str, lead: Lead | None) -> None:
        with self._leads_lock:
            self._leads[base_name] = lead
            self._leads.move_to_end(base_name)
            while len(self._leads) > LEADS_MAX:
                self._leads.popitem(last=False)

    def _name_lock(self, base_name: str) -> threading.RLock:
        return self._name_locks[hash(base_name) % len(self._name_locks)]

    def _take(self, base_name: str, route: Route, deadline: float | None) -> Lead | None:
        """Take the lead; what is found out on the way (a better copy, other peers) begins another round."""
        later_peers: list[str] = []
        for _ in range(ROUNDS_MAX):
            own = self.follower.describe(base_name, Vote(granted=True))
            # A grave tells what the peers were when the base died: a caller may know better.
            former = [] if own.held or not route.peers else list(route.peers)
            peers = later_peers or former or own.peers or list(route.peers)
            if not self.own_name(peers) and self.own_name(route.peers):
                # Our copy may have missed that the base came back to us.
                peers = list(route.peers)
            if len(peers) < 2:
                if own.held:
                    self._remember(base_name, None)
                return None
            self._check_ours(peers)
            group = self.group(peers, base_name)
            group.require_master(_patience(route, deadline), route.suspects)
            with self._name_lock(base_name):
                lead = self._leads.get(base_name)
                if lead is not None and lead.valid and lead.group is group:
                    return lead
                try:
                    lead = self._take_as_master(base_name, group, lead, deadline)
                except OtherPeers as exc:
                    later_peers = exc.peers
                    continue
                if lead is not None:
                    return lead
        raise StatusError(status.UNAVAILABLE, f"base {base_name}: its copies change all the time")

    def _take_as_master(
        self, base_name: str, group: Group, former: Lead | None, deadline: float | None
    ) -> Lead | None:
        """One round; None when the local copy changed. :raises StatusError: 431 when there is no base."""
        voice = group.voice
        own, census = self._census(base_name, group, voice)
        if census.best.grave == DESTROYED:
            self._settle_grave(base_name, group, voice, own, census)
        # What we failed to write in this very epoch is known to nobody: our own committed state stands.
        failed = (
            former is not None and former.broken and own.held and epoch_of(former.term) == voice.epoch
            and own.position.rank >= former.position.rank
        )  # fmt: skip
        if not failed and self._improve(base_name, group, voice, own, census):
            return None
        if not own.held:
            raise StatusError(
                status.CONTAINER_NOT_FOUND, f"no base {base_name}.{self.service_type} here, nor elsewhere"
            )
        if not own.tail:
            self._begin_history(base_name, group)
            return None
        if former is not None:
            # Whoever waits for a turn with it must not write.
            former.broken = True
        used = former.term if former is not None else 0
        lead = self._new_lead(base_name, group, voice.epoch, census, own.position, used)
        if lead is None:
            return None
        self._bring_up(lead, census, deadline)
        # When its first entry finds no majority, its term is used all the same.
        self._remember(base_name, lead)
        self._open_term(lead, deadline)
        self._upgrade(lead, deadline)
        lead.opened = True
        self._repository.outbox.rediscover(base_name)
        return lead

    def _begin_history(self, base_name: str, group: Group) -> None:
        """A base that lived without copies gets its first position: from here on the others can follow it."""
        position = Position(term_of(group.epoch), 1, uuid.uuid4().bytes)

        def begin(connection: apsw.Connection) -> None:
            journal.set_position(connection, position)
            operations.install(connection)
            peers = ",".join(group.key.peers)
            connection.execute("INSERT OR REPLACE INTO admin(k, v) VALUES(?, ?)", (PEERS, peers))

        with self._repository.opened(base_name) as base:
            base.exclusively(begin)

    def _census(self, base_name: str, group: Group, voice: Voice) -> tuple[CopyReply, Census]:
        """Where all copies stand, as told to one voice: what another one was told may be over."""
        own = self.follower.settled(base_name, Vote(granted=True))
        if not group.obeys(voice):
            raise not_master(group)
        return own, take_census(self.links, group, voice, base_name, own, CENSUS_TIMEOUT_S)

    def _settle_grave(
        self, base_name: str, group: Group, voice: Voice, own: CopyReply, census: Census
    ) -> None:
        """A base that one peer buried is dead: a majority must know, before anybody is told.

        :raises StatusError: always: 431, or 503 without a majority.
        """
        position = census.best.position
        peers = list(group.key.peers)
        if own.held or own.position != position:
            self._repository.drop_copy(base_name, position, DESTROYED, peers)
        else:
            self.ledger.bury(base_name, position, DESTROYED, peers)
        done = [
            peer for peer, reply in census.replies.items()
            if reply.grave == DESTROYED and not reply.tail and reply.position.rank >= position.rank
        ]  # fmt: skip
        request = CopyBury(base=base_name, voice=voice, position=position)
        rest = [peer for peer in census.replies if peer not in done]
        answers = self.links.ask_all(dict.fromkeys(rest, request)) if rest else {}
        done += [peer for peer, reply in answers.items() if isinstance(reply, CopyReply) and reply.done]
        for peer in group.others:
            if peer not in done:
                self.ledger.add_late(peer, base_name)
        if len(done) + 1 < group.majority:
            raise StatusError(
                status.UNAVAILABLE, f"base {base_name} is destroyed, no quorum: {failures(answers, peers, done)}"
            )
        raise StatusError(status.CONTAINER_NOT_FOUND, f"base {base_name} is destroyed")

    def _improve(self, base_name: str, group: Group, voice: Voice, own: CopyReply, census: Census) -> bool:
        """Take over what a peer knows better; did our copy change?"""
        best = census.best
        if best is own:
            if own.held and own.peers and tuple(sorted(own.peers)) != group.key.peers:
                self._check_ours(own.peers)
                raise OtherPeers(own.peers)
            return False
        if best.peers and tuple(sorted(best.peers)) != group.key.peers:
            # Our copy missed that the base has moved: the peers it has now decide.
            self._check_ours(best.peers)
            raise OtherPeers(best.peers)
        if not best.held and len(census.replies) < len(group.others):
            # The copy that was removed knew more than those that we see; somebody may hold as much.
            raise StatusError(
                status.UNAVAILABLE, f"base {base_name}: the latest copy may be on a peer that is down"
            )
        source = census.source()
        if not source:
            return False
        self._adopt(base_name, voice, source, own)
        return True

    def _adopt(self, base_name: str, voice: Voice, source: str, own: CopyReply) -> None:
        """Make our copy that of a peer that is more advanced."""
        if own.held and own.tail:
            request = CopyEntries(base=base_name, voice=voice, after=own.tail)
            history = self.links.ask(source, request)
            if getattr(history, "entries", None):
                try:
                    self.follower.follow(history, voice.epoch, voice.key)  # type: ignore[arg-type]
                    return
                except (Refused, StatusError) as exc:
                    logger.warning("base %s: %s; an image of %s follows", base_name, exc, source)
        self.follower.get_image(base_name, source, voice=voice)

    def _new_lead(
        self, base_name: str, group: Group, epoch: int, census: Census, position: Position, used: int = 0
    ) -> Lead | None:
        """A lead whose term is higher than all those that were ever used for the base; ``used`` by us at least.

        None when the group must have a later epoch first: the base comes from other peers, with more elections.
        """
        terms = [reply.position.term for reply in census.replies.values()] + [census.own.position.term]
        highest = max(terms)
        if epoch_of(highest) > epoch:
            group.outbid(epoch_of(highest))
            return None
        term = max(term_of(epoch), highest + 1, used + 1)
        return Lead(self, base_name, group, epoch, term, position)

    def _bring_up(self, lead: Lead, census: Census, deadline: float | None) -> None:
        """Give an image to the peers without which there is no majority, and wait for it."""
        known = {position.digest for position in census.own.tail}

        def follows(reply: CopyReply) -> bool:
            return reply.held and any(position.digest in known for position in reply.tail)

        ready = [peer for peer, reply in census.replies.items() if follows(reply)]
        rest = [peer for peer in census.replies if peer not in ready]
        if not rest:
            return
        request = CopyInstall(
            base=lead.base_name, voice=lead.voice, position=lead.position, source=lead.group.own_name
        )
        self._install(rest, request, lead.group.majority - 1 - len(ready), deadline)

    def _install(self, peers: list[str], request: CopyInstall, needed: int, deadline: float | None) -> list[str]:
        """Give an image to peers; wait until enough of them have it. :raises StatusError: 503 when they do not."""
        limit = time.monotonic() + self._settings.wait_s
        if deadline is not None:
            limit = min(limit, deadline)
        living = [peer for peer in peers if not self.links.benched(peer)]
        answers = self.links.ask_all(
            dict.fromkeys(living if len(living) >= needed else peers, request),
            lambda heard: sum(isinstance(one, CopyReply) and (one.done or one.later) for one in heard.values())
            >= needed,
        )
        done = {peer for peer, reply in answers.items() if isinstance(reply, CopyReply) and reply.done}
        waiting = {peer for peer, reply in answers.items() if isinstance(reply, CopyReply) and reply.later}
        asked = CopyState(base=request.base, voice=request.voice)
        while waiting and len(done) < needed and time.monotonic() < limit:
            time.sleep(IMAGE_PERIOD_S)
            for peer, reply in self.links.ask_all(dict.fromkeys(waiting, asked)).items():
                if isinstance(reply, CopyReply) and reply.held and reply.position.rank >= request.position.rank:
                    done.add(peer)
                    waiting.discard(peer)
        for peer in peers:
            if peer not in done:
                self.ledger.add_late(peer, request.base)
        if len(done) < needed:
            raise StatusError(
                status.UNAVAILABLE,
                f"no quorum for base {request.base}, images are on their way:"
                f" {failures(answers, peers, list(done))}",
            )
        return list(done)

    def _open_term(self, lead: Lead, deadline: float | None) -> None:
        """The first entry of a term: once a majority has it, nothing older can win over it."""
        with self._repository.opened(lead.base_name) as base:

            def write(connection: apsw.Connection) -> None:
                journal.install(connection)
                operations.install(connection)
                lead.begin()
                # A write that was under way when the copies were asked may have been committed since.
                lead.position = journal.position(connection)
                lead.replicate(connection, b"")

            base.exclusively(write, deadline=deadline)
            lead.committed()

    def _upgrade(self, lead: Lead, deadline: float | None) -> None:
        """Bring the tables of a base to what this version of the service wants, on all copies."""
        base_type = self._repository.type
        with self._repository.opened(lead.base_name) as base:
            while script := base_type.upgrade_from(base.admin.get(SCHEMA_VERSION, "")):

                def write(connection: apsw.Connection, script: str = script) -> None:
                    lead.begin()
                    connection.execute(script)
                    lead.replicate(connection, b"", script=script)

                base.exclusively(write, deadline=deadline)
                lead.committed()

    # --- new bases ------------------------------------------------------------

    def create(
        self, base_name: str, route: Route, path: str, make: MakeImage, place: PlaceImage,
        deadline: float | None = None,
    ) -> bool:
        """Create a base on all its peers; False when it exists.

        :param path: where ``make`` puts the image; ``place`` makes a base of it here, if it still may.
        """
        group = self.group(route.peers, base_name)
        self._check_ours(route.peers)
        group.require_master(_patience(route, deadline), route.suspects)
        with self._name_lock(base_name):
            voice = group.voice
            _own, census = self._census(base_name, group, voice)
            if census.best.held:
                return False
            former = census.best.position
            if self._repository.exists(base_name):
                # It was destroyed while we did not see it.
                self._repository.drop_copy(base_name, former, census.best.grave, list(route.peers))
            lead = self._new_lead(base_name, group, voice.epoch, census, former)
            if lead is None:
                raise StatusError(status.UNAVAILABLE, f"base {base_name}: its peers are electing")
            term = lead.term
            position = Position(term, former.seq + 1, uuid.uuid4().bytes)
            make(path, position)
            self._spread_image(base_name, group, voice, path, position, deadline)
            if not place(lambda: group.obeys(voice)):
                raise not_master(group)
            lead = Lead(self, base_name, group, epoch_of(term), term, position)
            lead.opened = True
            self._remember(base_name, lead)
        return True

    def _spread_image(
        self, base_name: str, group: Group, voice: Voice, path: str, position: Position, deadline: float | None
    ) -> None:
        with open(path, "rb") as file:
            image = file.read(INLINE_MAX_BYTES + 1)
        peers, needed = list(group.others), group.majority - 1
        if len(image) <= INLINE_MAX_BYTES:
            request = CopyInstall(base=base_name, voice=voice, position=position, image=image)
            self._install(peers, request, needed, deadline)
            return
        draft = uuid.uuid4().hex
        self.drafts[draft] = path
        try:
            request = CopyInstall(
                base=base_name, voice=voice, position=position, source=group.own_name, draft=draft
            )
            # Nobody can get the draft later: all that live have their time now.
            self._install(peers, request, needed, deadline)
        finally:
            del self.drafts[draft]

    def register(self, address: str) -> None:
        """Show this service in ZooKeeper, for tools."""
        if self._zookeepers is not None:
            ensemble = self._zookeepers.ensembles[0]
            Registration(ensemble, self._zookeepers.namespace, self.service_type, address).start()

    # --- administration ------------------------------------------------------------

    def sync_from(self, base_name: str, master: str, check_type: int) -> None:
        """Make our copy that of the master: by entries, or by an image when ``check_type`` is not negative."""
        own = self.follower.describe(base_name, Vote(granted=True))
        peers = own.peers
        if check_type >= 0 or not own.held or len(peers) < 2:
            self.follower.get_image(base_name, master, whole=True, check_type=check_type)
            return
        # In the name of whoever we obey now.
        key = self.group(peers, base_name).name
        self._adopt(base_name, Voice(key=key, epoch=self.voter.highest(key), owner=master), master, own)

    def balance(self, leave_max: int, idle_s: float) -> int:
        """Leave up to so many elections of which we are master; how many were left."""
        limit = time.monotonic() - idle_s
        masters = [group for group in self.groups() if group.is_master and group.used_at <= limit]
        for group in masters[:leave_max]:
            group.rejoin()
        return len(masters[:leave_max])

    def ensemble_name(self, key: str) -> str:
        """Addresses of the ZooKeeper that holds an election."""
        return self._zookeepers.ensemble_of(key).hosts if self._zookeepers is not None else ""

    def elections(self) -> dict[str, int]:
        """Number of elections by state (contract: "Answer of forward/info")."""
        counts = dict.fromkeys(("total", "none", "pending", "failed", "slave", "master"), 0)
        for group in self.groups():
            counts["total"] += 1
            counts[_STATES.get(group.state, "pending")] += 1
        return counts

    @property
    def sessions(self) -> dict[str, bool]:
        """Is the session with each ZooKeeper cluster alive?"""
        ensembles = self._zookeepers.ensembles if self._zookeepers is not None else ()
        return {ensemble.hosts: ensemble.connected for ensemble in ensembles}

    def stop(self) -> None:
        """Leave all elections: the sessions end, and with them our places."""
        self._upkeep.stop()
        if self._zookeepers is not None:
            self._zookeepers.stop()
        self.links.close()
        self.ledger.close()


def _patience(route: Route, deadline: float | None) -> float | None:
    """Moment until which a caller waits for a master at this service: a cut-off one must not hold it back."""
    if not route.peers:
        return deadline
    limit = time.monotonic() + ROUTED_WAIT_S
    return limit if deadline is None else min(limit, deadline)
