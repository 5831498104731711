# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One service in one election: its node in ZooKeeper, and what it knows of the others.

A member of an election is an ephemeral, sequential node that holds the id of its service; the lowest is the master
(contract: "ZooKeeper tree"). ZooKeeper only tells who should try to lead. What follows is therefore allowed to be
late or wrong for a moment, and nothing here is needed for the safety of the data.

How it stays right without polling: every listing of the members sets a watch, in one step, so that no change after
it goes unseen; an event while a listing is under way causes another one. After any loss of the connection all that
was known is read again, since neither replies nor events are reliable across it:

* A creation whose reply was lost may have been done: the listing then shows a node with our id and our session.
* Nodes with our id held by another session were left by a former process of this service, or by a session that we
  gave up: a service id has one living process. They are removed once per session, before ours is created, since
  they may hold the first place until they expire. Once only: should two processes use one id by mistake, they must
  not chase each other for ever.
* A node of ours that has disappeared under a living session was removed by someone who takes us for dead: we join
  again at the end of the line, later each time when it happens again and again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from kazoo.exceptions import KazooException, NoNodeError

from oio.meta.replication.zookeeper import CONNECTED, LOST, Ensemble
from oio.zk.tree import Tree

NONE = "none"
JOINING = "joining"
MEMBER = "member"
DISCONNECTED = "disconnected"

#: Lines kept of the life of an election.
LOG_LINES = 64
#: Something else than the connection failed (a right, a limit of the server): tried again after this delay.
RETRY_DELAY_S = 1.0
#: A member that is removed, or goes, again joins after 0.1 s, then twice as long each time up to this.
REJOIN_DELAY_MAX_S = 5.0
#: A member that has been one for so long is forgiven its removals.
FORGIVEN_AFTER_S = 30.0

logger = logging.getLogger("oio.zookeeper")


@dataclass(frozen=True, slots=True)
class View:
    """What a service knows of an election.

    :ivar status: ``none``: it does not take part; ``joining``: it has no place yet; ``member``; ``disconnected``:
        ZooKeeper does not answer, and what follows was true before.
    :ivar master: id of the service of the lowest member, empty when unknown.
    :ivar leads: this service is the lowest member, and connected.
    :ivar members: (name of the node, id of the service), in order.
    """

    status: str = NONE
    master: str = ""
    leads: bool = False
    members: tuple[tuple[str, str], ...] = ()


class _Node(NamedTuple):
    name: str
    service_id: str
    session: int


_NOTHING = View()


class Candidacy:
    """The part of one service in one election. All methods come back at once, unless they say otherwise.

    :param key: names the election; upper-case hex digits.
    :param service_id: must have one living process in the namespace: former nodes of this id are removed.
    :param on_change: called after each change of :attr:`view`, in order, never twice at once, on a thread where
        it may wait (others wait behind it only when there are several such).
    :param peers: those who may be members; nodes of others do not count, whoever put them there. Empty: anybody.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        namespace: str,
        service_type: str,
        key: str,
        service_id: str,
        on_change: Callable[[View], None] | None = None,
        peers: Collection[str] = (),
    ) -> None:
        self.key = key
        self.service_id = service_id
        #: What happened: ``<ms>:<state before>:<event>:<state after>``, the last lines of it.
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        #: Name of the present state of the election (contract: "Life of an election").
        self.state = "NONE"
        self._peers = frozenset(peers)
        self._ensemble = ensemble
        self._directory = Tree.election_directory(namespace, service_type, key)
        self._prefix = Tree.member_prefix(key)
        self._mailbox = ensemble.mailbox(on_change) if on_change is not None else None
        self._view = _NOTHING
        self._waiters = threading.Condition()
        # Only the loop of the ensemble touches what follows.
        self._wanted = False
        self._leaving = False
        self._round = 0  # of listing; replies of former ones are ignored
        self._busy = False  # a listing and the readings that follow it are under way
        self._dirty = False  # something changed since that listing began
        self._listing: list[str] = []  # names of the members, being read
        self._cache: dict[str, _Node] = {}  # what was read of them: nodes never change
        self._members: list[_Node] = []  # the last complete listing
        self._current = False  # it was made since the connection is there
        self._creating = 0  # number of the creation under way, or waiting for its time
        self._creations = 0
        self._own = ""  # name of our node, once it was seen
        self._dropped: set[str] = set()  # nodes of ours that do not count any more
        self._deleting: set[str] = set()  # nodes whose removal was asked for
        self._cleaned = 0  # the session that removed the nodes of former processes
        self._removals = 0
        self._joined_at = 0.0

    # -- what owners call ----------------------------------------------------------------------

    @property
    def view(self) -> View:
        """What is known now; costs nothing."""
        view = self._view
        if view.status in (JOINING, MEMBER) and not self._ensemble.connected:
            return replace(view, status=DISCONNECTED, leads=False)
        return view

    def join(self) -> None:
        """Take part in the election, until :meth:`leave`. Does nothing when it is so already."""
        self._ensemble.post(self._join)

    def leave(self) -> None:
        """Take part no more: our node is removed, later if ZooKeeper cannot be reached."""
        self._ensemble.post(self._leave)

    def rejoin(self) -> None:
        """Go to the end of the line; later each time when it is asked again and again.

        Does nothing when we do not take part, or when nobody else does.
        """
        self._ensemble.post(self._rejoin)

    def impeach(self, service_id: str) -> None:
        """Remove the present nodes of a peer that is dead. If it is not, it joins again at the end of the line."""
        if service_id != self.service_id:
            self._ensemble.post(self._impeach, service_id)

    def wait_for(self, predicate: Callable[[View], bool], timeout_s: float) -> bool:
        """Wait until the view is as wanted; tells whether it is."""
        with self._waiters:
            return self._waiters.wait_for(lambda: predicate(self.view), timeout_s)

    def note(self, event: str, state: str) -> None:
        """Write a line of the log, and change the name of the state; for what is decided above."""
        self.log.append(f"{int(time.time() * 1000)}:{self.state}:{event}:{state}")
        self.state = state

    # -- the loop ------------------------------------------------------------------------------

    def connection_changed(self, state: str) -> None:
        """The session of the ensemble is in this state."""
        # No reply comes for what was asked before, and a name may be another node by now.
        self._busy = self._dirty = self._current = False
        self._creating = 0
        self._deleting.clear()
        self._cache.clear()
        if state == LOST:
            self._forget()
        if state == CONNECTED:
            self._refresh()
        elif self._wanted:
            self.note(LOST if state == LOST else "DISCONNECTED", "FAILED")
        self._publish()

    def _forget(self) -> None:
        """Our nodes are gone, and we know why."""
        self._cache.clear()
        self._dropped.clear()
        self._own = ""

    def _join(self) -> None:
        if self._wanted:
            return
        self._wanted = True
        self._leaving = False
        self.note("JOIN", "PEERING")
        self._ensemble.attach(self)
        self._refresh()
        self._publish()

    def _leave(self) -> None:
        if not self._wanted:
            return
        self._wanted = False
        self._leaving = True
        self.note("LEAVE", "LEAVING")
        self._own = ""
        self._abandon()

    def _rejoin(self) -> None:
        if self._wanted and any(node.service_id != self.service_id for node in self._members):
            self.note("REJOIN", "LEAVING")
            self._abandon()

    def _abandon(self) -> None:
        for node in self._members:
            if node.service_id == self.service_id:
                self._drop(node.name)
        self._refresh()
        self._publish()

    def _impeach(self, service_id: str) -> None:
        for node in self._members:
            if node.service_id == service_id and self._current:
                self.note("IMPEACH", self.state)
                logger.info("Election %s: node %s of %s is removed", self.key, node.name, service_id)
                self._delete(node.name)

    # -- reading -------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """List the members again, at once or after the listing under way."""
        if self._busy:
            self._dirty = True
        elif self._ensemble.connected and (self._wanted or self._leaving):
            self._busy = True
            self._dirty = False
            self._round += 1
            self._ensemble.request("get_children", self._directory, watch=self._on_watch, then=self._listed)

    def _on_watch(self, _event: Any) -> None:
        """Kazoo's thread: members came or left, or the watch is void."""
        self._ensemble.post(self._refresh)

    def _listed(self, result: Any) -> None:
        try:
            names = result.get()
        except NoNodeError:
            # The directory is missing: it was never made, or the tree was removed under us.
            self._forget()
            self._ensemble.request("ensure_path", self._directory, then=self._ensured)
            return
        except KazooException as exc:
            self._busy = False
            self._failed(f"cannot list {self._directory}", exc)
            return
        self._listing = sorted((name for name in names if self._is_member(name)), key=_sequence)
        self._dropped.intersection_update(self._listing)
        self._cache = {name: self._cache[name] for name in self._listing if name in self._cache}
        unknown = [name for name in self._listing if name not in self._cache]
        for name in unknown:
            reply = partial(self._read, self._round, name, name == unknown[-1])
            self._ensemble.request("get", f"{self._directory}/{name}", then=reply)
        if not unknown:
            self._all_read()

    def _read(self, number: int, name: str, is_last: bool, result: Any) -> None:
        if number != self._round or not self._busy:
            return
        try:
            data, stat = result.get()
        except NoNodeError:
            self._dirty = True
        except KazooException as exc:
            self._busy = False
            self._failed(f"cannot read {self._directory}/{name}", exc)
            return
        else:
            self._cache[name] = _Node(name, data.decode("utf-8", "replace"), stat.ephemeralOwner)
        if is_last:
            # Replies come in the order of the requests.
            self._all_read()

    def _ensured(self, result: Any) -> None:
        self._busy = False
        try:
            result.get()
        except KazooException as exc:
            self._failed(f"cannot make {self._directory}", exc)
        else:
            self._refresh()

    def _all_read(self) -> None:
        self._busy = False
        self._current = True
        found = [self._cache[name] for name in self._listing if name in self._cache]
        self._members = [node for node in found if not self._peers or node.service_id in self._peers]
        self._decide()
        self._publish()
        if self._dirty:
            self._refresh()

    def _failed(self, what: str, exc: Exception) -> None:
        """Something else than the connection failed."""
        if self.state != "FAILED":
            logger.warning("Election %s: %s: %r", self.key, what, exc)
            self.note("ERROR", "FAILED")
        self._ensemble.call_later(RETRY_DELAY_S, self._refresh)

    # -- acting --------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Compare what is there with what should be. Changes made here come back through the watch."""
        ours = [node for node in self._members if node.service_id == self.service_id]
        if not self._wanted:
            self._finish_leaving(ours)
            return
        session = self._ensemble.session
        former = [node.name for node in ours if node.session != session]
        alive = [node.name for node in ours if node.session == session and node.name not in self._dropped]
        if self._cleaned == session:
            former = []
        self._cleaned = session
        # A creation of unknown outcome was made again: the first is kept.
        for name in (*self._dropped, *former, *alive[1:]):
            self._drop(name)
        if not alive:
            if not self._creating:
                self._create()
        elif self._own != alive[0]:
            self._own = alive[0]
            self._joined_at = time.monotonic()

    def _finish_leaving(self, ours: list[_Node]) -> None:
        for node in ours:
            self._drop(node.name)
        if not ours and not self._creating and self._leaving:
            self._leaving = False
            self.note("LEAVE_OK", "NONE")
            self._ensemble.detach(self)

    def _create(self) -> None:
        delay_s = self._delay_of_creation() if self._own else 0.0
        self._own = ""
        self._creations += 1
        self._creating = self._creations
        if delay_s:
            self.note("REMOVED", "DELAYED_CREATING")
            self._ensemble.call_later(delay_s, self._create_now, self._creating)
        else:
            self._create_now(self._creating)

    def _delay_of_creation(self) -> float:
        """Our node was removed under a living session: by someone who takes us for dead, or by ourselves.

        Members that may not lead go to the end of the line again and again when all are such.
        """
        if time.monotonic() - self._joined_at > FORGIVEN_AFTER_S:
            self._removals = 0
        self._removals += 1
        if self._removals == 1:
            return 0.0
        return min(0.1 * 2.0 ** (self._removals - 2), REJOIN_DELAY_MAX_S)

    def _create_now(self, number: int) -> None:
        if number != self._creating:
            return
        if not self._wanted:
            self._creating = 0
            self._refresh()
            return
        self.note("CREATE", "CREATING")
        self._ensemble.request(
            "create",
            f"{self._directory}/{self._prefix}",
            self.service_id.encode(),
            ephemeral=True,
            sequence=True,
            then=self._created,
        )

    def _created(self, result: Any) -> None:
        self._creating = 0
        try:
            result.get()
        except NoNodeError:
            self._refresh()
        except KazooException as exc:
            self._failed(f"cannot create a node in {self._directory}", exc)
        else:
            self.note("CREATE_OK", "LISTING" if self._wanted and not self._own else self.state)

    def _drop(self, name: str) -> None:
        """Remove a node of ours, which from now on does not count."""
        self._dropped.add(name)
        self._delete(name)

    def _delete(self, name: str) -> None:
        if name not in self._deleting and self._ensemble.connected:
            self._deleting.add(name)
            self._ensemble.request("delete", f"{self._directory}/{name}", then=partial(self._deleted, name))

    def _deleted(self, name: str, result: Any) -> None:
        self._deleting.discard(name)
        try:
            result.get()
        except NoNodeError:
            self._refresh()
        except KazooException as exc:
            self._failed(f"cannot remove {self._directory}/{name}", exc)

    # -- telling -------------------------------------------------------------------------------

    def _publish(self) -> None:
        view = self._present_view()
        if view == self._view:
            return
        if view.status == MEMBER and (self._view.status != MEMBER or view.master != self._view.master):
            self.note("LIST_OK", "CHECKING_SLAVES" if view.leads else "CHECKING_MASTER")
        with self._waiters:
            self._view = view
            self._waiters.notify_all()
        if self._mailbox is not None:
            self._mailbox.put(view)

    def _present_view(self) -> View:
        if not self._wanted:
            return _NOTHING
        before = self._view
        if not self._ensemble.connected:
            return View(DISCONNECTED, before.master, False, before.members)
        if not self._current:
            # What was known may be over.
            return View(JOINING, before.master, False, before.members)
        members = tuple((node.name, node.service_id) for node in self._members if node.name not in self._dropped)
        master = members[0][1] if members else ""
        member = self._own not in self._dropped and any(name == self._own for name, _ in members)
        return View(MEMBER if member else JOINING, master, member and master == self.service_id, members)

    def _is_member(self, name: str) -> bool:
        parsed = Tree.parse_member(name)
        return parsed is not None and parsed.key == self.key


def _sequence(name: str) -> int:
    parsed = Tree.parse_member(name)
    return parsed.sequence if parsed is not None else 0
