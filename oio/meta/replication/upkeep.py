# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What goes on behind the requests: late copies are brought up to date, idle elections left, old graves forgotten.

A copy is known to be late from the moment when its peer missed an entry. The master that noticed it remembers it
on disk, and gives the copy what it misses once the peer answers again.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from oio.common import status
from oio.common.status import StatusError
from oio.meta.replication.following import path_from
from oio.meta.replication.leading import Lead
from oio.meta.replication.ledger import DESTROYED
from oio.meta.replication.wire import CopyAppend, CopyBury, CopyInstall, CopyLead, CopyReply, CopyState

if TYPE_CHECKING:
    from oio.meta.replication.engine import Replication
    from oio.meta.repository import Repository

logger = logging.getLogger("oio.meta.replication")

#: Peers that do not answer are asked again, and late copies looked at, that often (seconds).
PERIOD_S = 0.5
#: Idle elections and old graves are looked at that often (seconds).
SWEEP_PERIOD_S = 60.0
#: Whoever destroyed a base has delivered its events by then, or is lost (seconds).
SPARES_KEPT_S = 60.0
#: A peer that was away for longer must be emptied before it comes back: bases may have died meanwhile (seconds).
GRAVES_KEPT_S = 30 * 86400.0
#: Late copies looked at in one turn, for each peer.
TURN_MAX = 256
#: How long one of them may wait for its election (seconds).
PATIENCE_S = 2.0
#: A copy that could not be brought up to date is left alone for so long (seconds).
PAUSE_S = 5.0


class Upkeep:
    """The thread of one service that does it."""

    def __init__(
        self, replication: Replication, repository: Repository, idle_slave_s: float, idle_master_s: float
    ) -> None:
        self._replication = replication
        self._repository = repository
        self._idle_slave_s = idle_slave_s
        self._idle_master_s = idle_master_s
        self._stopping = threading.Event()
        self._paused: dict[tuple[str, str], float] = {}
        self._swept_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what remains is remembered on disk."""
        self._stopping.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            try:
                self._turn()
            except StatusError as exc:
                logger.error("upkeep: %s", exc)
            except Exception:
                logger.exception("upkeep failed, it goes on")

    def _turn(self) -> None:
        links, ledger = self._replication.links, self._replication.ledger
        for peer in sorted({*links.benched_peers(), *ledger.late_peers()}):
            if not links.ping(peer):
                continue
            for base_name in ledger.late(peer, TURN_MAX):
                if self._stopping.is_set():
                    return
                if self._paused.get((peer, base_name), 0.0) <= time.monotonic():
                    self._serve(peer, base_name)
        self._repository.outbox.adopt_spares(SPARES_KEPT_S)
        if time.monotonic() - self._swept_at >= SWEEP_PERIOD_S:
            self._swept_at = time.monotonic()
            self._sweep()

    # --- late copies ------------------------------------------------------------------------------------

    def _serve(self, peer: str, base_name: str) -> None:
        # Before it is asked: what it misses from now on is noted anew.
        self._replication.ledger.clear_late(peer, base_name)
        try:
            done = self._bring_up(peer, base_name)
        except StatusError as exc:
            if exc.code == status.REDIRECT:
                done = self._hand_over(exc.message, base_name)
            else:
                logger.info("base %s: the copy of %s stays late: %s", base_name, peer, exc)
                done = False
        if done:
            self._paused.pop((peer, base_name), None)
        else:
            self._replication.ledger.add_late(peer, base_name)
            self._paused[peer, base_name] = time.monotonic() + PAUSE_S

    def _bring_up(self, peer: str, base_name: str) -> bool:
        """Give a peer what it misses; is it up to date?"""
        try:
            lead = self._replication.prepare(base_name, deadline=time.monotonic() + PATIENCE_S)
        except StatusError as exc:
            if exc.code != status.CONTAINER_NOT_FOUND:
                raise
            return self._bury(peer, base_name)
        if lead is None or peer not in lead.group.others:
            return True
        reply = self._ask(peer, CopyState(base=base_name, voice=lead.group.voice))
        for _ in range(TURN_MAX):
            if reply.held and reply.position == lead.position:
                return True
            more = self._give(peer, lead, reply)
            if more is None:
                return False
            reply = more
        return False

    def _hand_over(self, master: str, base_name: str) -> bool:
        """Another is master now. It asks all copies when it takes the lead, and remembers itself who is late."""
        peers = self._replication.peers_of(base_name)
        try:
            self._replication.links.ask(master, CopyLead(base=base_name, peers=peers))
        except StatusError as exc:
            logger.info("base %s: %s does not lead it: %s", base_name, master, exc)
            return False
        return True

    def _give(self, peer: str, lead: Lead, reply: CopyReply) -> CopyReply | None:
        """One step forward of a late copy; None when an image is on its way."""
        base_name, voice = lead.base_name, lead.group.voice
        found = None
        if reply.held:
            known = reply.tail or [reply.position]
            with self._repository.opened(base_name) as base:
                found = base.read(lambda reader: path_from(reader.connection, known))
        if found is not None and found[1]:
            previous, entries = found
            answer = self._ask(peer, CopyAppend(base=base_name, voice=voice, previous=previous, entries=entries))
            if answer.done:
                return answer
        logger.info("base %s: %s gets an image", base_name, peer)
        request = CopyInstall(
            base=base_name, voice=voice, position=lead.position, source=lead.group.own_name
        )
        self._ask(peer, request)
        return None

    def _bury(self, peer: str, base_name: str) -> bool:
        """The base was destroyed while the peer was away."""
        grave = self._replication.ledger.grave(base_name)
        if grave is None or grave.reason != DESTROYED or peer not in grave.peers:
            return True
        group = self._replication.group(grave.peers, base_name)
        group.require_master(time.monotonic() + PATIENCE_S)
        return self._ask(peer, CopyBury(base=base_name, voice=group.voice, position=grave.position)).done

    def _ask(self, peer: str, request: CopyState | CopyAppend | CopyInstall | CopyBury) -> CopyReply:
        reply = self._replication.links.ask(peer, request)
        assert isinstance(reply, CopyReply)
        if not reply.vote.granted:
            raise StatusError(status.REDIRECT, reply.vote.owner)
        return reply

    # --- sweeping -----------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        now = time.monotonic()
        self._paused = {late: until for late, until in self._paused.items() if until > now}
        for group in self._replication.groups():
            idle_s = now - group.used_at
            if idle_s > (self._idle_master_s if group.is_master else self._idle_slave_s):
                group.leave()
        self._replication.ledger.purge_graves(GRAVES_KEPT_S)
