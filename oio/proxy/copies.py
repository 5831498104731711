# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Operations on bases that have several copies: find the master, and the next one when it fails.

What is written, and what is read unless a copy is good enough, is for the master. The one that answered last is
asked first; a slave tells who the master is (303). A service that refuses, closes or stays silent is a *suspect*:
the others are told, so that they need not wait to replace it. When nobody could do the operation yet, one waits a
little and asks all of them again, until the deadline of the client.

A write goes with an id, the same each time that it is sent, and the services make it once: after a connection that
broke it is sent again, though it may have been done. An answer about the operation itself ends all that.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from oio.common import status
from oio.common.status import StatusError
from oio.meta.base_messages import (
    BaseCopyFrom,
    BaseDebug,
    BaseLeave,
    BasePing,
    BaseRemove,
    BaseStatus,
    BaseSync,
)
from oio.meta.client import PATIENCE_S, PING_S, Route
from oio.meta.messages import Operation

if TYPE_CHECKING:
    from oio.proxy.resolver import Context, Resolver

#: First and longest pause before all the copies are asked again (seconds).
PAUSE_MIN_S, PAUSE_MAX_S = 0.02, 0.5

#: Time kept for the answer to reach the client before it gives up, and the share of the whole it may be (seconds).
MARGIN_S, MARGIN_SHARE = 0.2, 0.1
#: Least time given to an exchange: less would be a failure by itself (seconds).
EXCHANGE_MIN_S = 0.001

#: Services remember operations for 300 s: one that may have been done is not sent again later (seconds).
RESEND_MAX_S = 240.0

#: How long other copies are looked for that know a base, once one of them said that it is not there, and the
#: services that are asked are perhaps those of the past (seconds).
MISSING_PATIENCE_S = 2.0

#: Failures of the network: the next copy may do better.
NETWORK_CODES = frozenset(range(2, 10))
#: After these the request may have been executed.
UNCERTAIN_CODES = frozenset({3, 4, 5, 7})
_TIMEOUT_CODES = frozenset({status.CONNECTION_TIMEOUT, status.READ_TIMEOUT})
#: Said by a service that has not heard of the base: the others may have.
_MISSING_CODES = frozenset({status.CONTAINER_NOT_FOUND, status.PREFIX_NOT_MANAGED})

#: What is said to a service about its own copy, whatever the election.
_ABOUT_ONE_COPY = (BasePing, BaseStatus, BaseLeave, BaseSync, BaseDebug, BaseCopyFrom, BaseRemove)

_UNBOUNDED_S = 1e9
_NOT_DONE: Final = object()


def new_operation() -> str:
    """Id of a change, 32 hexadecimal digits."""
    return os.urandom(16).hex()


class Peer(NamedTuple):
    """A service as the directory names it, and where it is."""

    name: str
    address: str


class CopiesCall:
    """One operation on one base. Used once, by one thread: :meth:`run` or :meth:`ask_named`."""

    __slots__ = (
        "_asked_peer",
        "_begin",
        "_ceiling_s",
        "_context",
        "_doubtful",
        "_end",
        "_hurried",
        "_key",
        "_local",
        "_missing",
        "_operation",
        "_peers",
        "_peers_told",
        "_request",
        "_resolver",
        "_rounds",
        "_said",
        "_silent",
        "_suspects",
        "_type",
        "_uncertain",
        "_until",
        "_write",
        "answered",
    )

    def __init__(
        self,
        resolver: Resolver,
        service_type: str,
        services: Sequence[str],
        request: Operation,
        context: Context,
        *,
        write: bool,
        operation: str = "",
        told: Sequence[str] | None = None,
        ceiling_s: float | None = None,
        hurried: bool = False,
    ) -> None:
        """
        :param hurried: the caller can find out whether these are the services: it wants to hear of one that has no
            copy. Otherwise only the master, or a majority, can tell that there is no base: a copy may be late.
        :param services: who may be asked.
        :param told: services that hold the base, as the directory names them; the same by default.
        :param ceiling_s: longest exchange with one service; None for the one of the configuration.
        """
        self._resolver, self._context = resolver, context
        self._type, self._request = service_type, request
        self._write, self._operation = write, operation
        self._peers_told = tuple(sorted(services if told is None else told))
        self._ceiling_s = resolver.ceiling_s if ceiling_s is None else ceiling_s
        self._hurried = hurried
        self._key = resolver.base_key(service_type, request)
        #: Last thing that each peer said, and how many times it failed.
        self._said: dict[str, tuple[StatusError, int]] = {}
        self._peers = self._located(services)
        self._local = not write and resolver.reads_copies(context)
        self._suspects = {peer.address for peer in self._peers if resolver.is_down(peer.address)}
        self._missing: StatusError | None = None
        self._uncertain = False
        #: A service failed to do it, or to answer: it may be done all the same.
        self._doubtful = False
        self._rounds = 0
        #: Who gave the answer, once there is one.
        self.answered: Peer | None = None
        self._begin = time.monotonic()
        left_s = context.timeout_s(_UNBOUNDED_S)
        self._end = self._begin + left_s - min(MARGIN_S, left_s * MARGIN_SHARE)

    # --- the two ways to ask -----------------------------------------------------------------------

    def run(self) -> Any:
        """Have the operation done by the master, or read by a copy where that is enough.

        :raises StatusError: what the service answered about it; 503 when nobody could do it before the deadline.
        """
        try:
            return self._run()
        except StatusError as exc:
            exc.resent = self._doubtful
            raise

    def _run(self) -> Any:
        pause_s = PAUSE_MIN_S
        while True:
            self._rounds += 1
            reply = self._round()
            if reply is not _NOT_DONE:
                return reply
            if self._local and self._missing is not None:
                # The copies that answered do not know the base: the master does.
                self._local = False
                continue
            now = time.monotonic()
            if self._uncertain and self._write and now - self._begin >= RESEND_MAX_S:
                raise self._failure()
            if self._hurried and self._missing is not None and now - self._begin >= MISSING_PATIENCE_S:
                raise self._missing
            left_s = self._end - now
            if left_s < PAUSE_MIN_S:
                raise self._failure()
            time.sleep(min(random.uniform(pause_s / 2, pause_s), left_s / 2))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def run_on_master(self) -> Any:
        """The same, by the master even where a copy would be enough."""
        self._local = False
        return self.run()

    def ask_named(self) -> Any:
        """Ask the services in their order until one of them answers, whatever it is: no redirection is followed.

        :raises StatusError: what the service answered; 503 when none did.
        """
        if isinstance(self._request, _ABOUT_ONE_COPY):
            self._local, self._operation = False, ""
        else:
            self._local = not self._write and not self._resolver.wants_master(self._context)
        for place, peer in enumerate(self._peers):
            try:
                reply = self._ask(peer, place)
            except StatusError as exc:
                if exc.code not in NETWORK_CODES:
                    raise
                self._note(peer, exc)
                continue
            self.answered = peer
            return reply
        raise self._failure()

    # --- one round -------------------------------------------------------------------------------------

    def _round(self) -> Any:
        """Ask each peer once at most; gives the reply, or ``_NOT_DONE`` when nobody could do it now.

        :raises StatusError: what was answered about the operation itself.
        """
        queue = deque(self._order())
        asked: set[str] = set()
        masters: set[str] = set()
        missing: dict[str, StatusError] = {}
        while queue:
            peer = queue.popleft()
            if peer.address in asked:
                continue
            if time.monotonic() >= self._end:
                return _NOT_DONE
            asked.add(peer.address)
            if not self._is_worth_asking(peer):
                continue
            try:
                reply = self._ask(peer, len(asked) - 1)
            except StatusError as exc:
                code = exc.code
                if code == status.REDIRECT:
                    self._note(peer, exc)
                    master = self._find(exc.message.strip())
                    if master is None:
                        continue
                    if master.address in missing:
                        if master.address in masters:
                            raise missing[master.address] from None
                        # It may have become master since, and know the base by now: what it says as such counts.
                        masters.add(master.address)
                        asked.discard(master.address)
                    if master.address in self._suspects:
                        queue.append(master)
                    else:
                        queue.appendleft(master)
                elif code in _MISSING_CODES:
                    self._note(peer, exc)
                    missing[peer.address] = self._missing = exc
                    if peer.address in masters:
                        raise
                elif code == status.UNAVAILABLE:
                    self._doubtful = True
                    self._note(peer, exc)
                    self._resolver.doubt(peer.address)
                elif code in NETWORK_CODES:
                    self._note(peer, exc)
                else:
                    raise
                continue
            self._learn(peer)
            return reply
        if not self._local and len(missing) > len(self._peers_told) // 2:
            raise next(iter(missing.values()))
        return _NOT_DONE

    def _order(self) -> list[Peer]:
        """Peers in the order of preference: the known master first (last to read copies), suspects last."""
        resolver = self._resolver
        peers = list(self._peers)
        if resolver.shuffles(self._type):
            random.shuffle(peers)
        master = resolver.masters.get(self._key)
        if master is not None:
            if self._local:
                peers.sort(key=lambda peer: peer.name == master)
            elif not self._write or resolver.prefers_master_to_write:
                peers.sort(key=lambda peer: peer.name != master)
        if self._suspects or resolver.doubted:
            peers.sort(key=self._trouble)
        return peers

    def _trouble(self, peer: Peer) -> int:
        """Suspects are worse than those that had no master to tell."""
        if peer.address in self._suspects:
            return 2
        return self._resolver.doubted.get(peer.address, 0.0) > time.monotonic()

    def _is_worth_asking(self, peer: Peer) -> bool:
        """A suspect must answer a ping before an operation is entrusted to it again."""
        if peer.address not in self._suspects:
            return True
        left_s = self._end - time.monotonic()
        if left_s <= 0 or not self._resolver.meta.is_alive(peer.address, min(PING_S, left_s)):
            self._note(peer, StatusError(status.PEER_AVOIDED, f"{peer.address} does not answer a ping"))
            return False
        self._clear(peer)
        return True

    # --- one exchange ----------------------------------------------------------------------------------

    def _ask(self, peer: Peer, place: int) -> Any:
        """Send the operation to a service.

        :param place: how many were asked before.
        :raises StatusError: whatever prevents or answers it.
        """
        now = time.monotonic()
        timeout_s = max(min(self._end - now, self._ceiling_s), EXCHANGE_MIN_S)
        self._until = now + timeout_s
        self._asked_peer, self._silent = peer, False
        context = self._context
        try:
            self._resolver.lose_on_purpose(place, len(self._peers))
            reply = self._resolver.meta.call(
                peer.address,
                self._request,
                reqid=context.reqid,
                timeout_s=timeout_s,
                admin=context.admin,
                origin=context.origin,
                route=Route(self._peers_told, self._suspects_told(), self._operation, self._local),
                on_silence=self._shall_wait,
            )
        except StatusError as exc:
            if exc.code in NETWORK_CODES:
                self._lost(peer, exc.code, timeout_s)
            elif self._suspects or self._resolver.doubted:
                self._clear(peer)
            raise
        if self._suspects or self._resolver.doubted:
            self._clear(peer)
        return reply

    def _shall_wait(self) -> bool:
        """Is the service that says nothing still there? Its operation may be a long one."""
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            return True
        alive = self._resolver.meta.is_alive(self._asked_peer.address, min(PING_S, left_s))
        # A ping cut short by the deadline of the client tells nothing about the service.
        self._silent = not alive and left_s >= PING_S
        return alive

    def _lost(self, peer: Peer, code: int, timeout_s: float) -> None:
        """Remember that a service did not answer, unless it just had not the time to."""
        if code in UNCERTAIN_CODES:
            self._uncertain = self._doubtful = True
        if code == status.READ_TIMEOUT and not self._silent:
            return
        if code in _TIMEOUT_CODES and timeout_s < PATIENCE_S:
            return
        self._suspects.add(peer.address)
        self._resolver.mark_down(peer.address)

    def _clear(self, peer: Peer) -> None:
        """A service that answers is no suspect."""
        self._suspects.discard(peer.address)
        self._resolver.mark_up(peer.address)

    # --- what is known of the peers ----------------------------------------------------------------------

    def _located(self, services: Sequence[str]) -> list[Peer]:
        peers = []
        for service in services:
            try:
                peers.append(Peer(service, self._resolver.address(self._type, service)))
            except StatusError as exc:
                self._said[service] = exc, 1
        return peers

    def _find(self, master: str) -> Peer | None:
        """The service that a slave says to be the master, None when it cannot be reached."""
        for peer in self._peers:
            if master in peer:
                return peer
        try:
            address = self._resolver.address(self._type, master)
        except StatusError:
            return None
        return next((peer for peer in self._peers if peer.address == address), Peer(master, address))

    def _learn(self, peer: Peer) -> None:
        """Remember who answered: it is the master, unless a copy was enough."""
        self.answered = peer
        if self._local:
            return
        masters = self._resolver.masters
        if masters.get(self._key) != peer.name:
            masters.put(self._key, peer.name)
        if peer not in self._peers:
            # The base is not where the directory was thought to say.
            self._resolver.forget_location(self._type, self._key[1])

    def _suspects_told(self) -> Sequence[str]:
        suspects = self._suspects
        return [peer.name for peer in self._peers if peer.address in suspects] if suspects else ()

    def _note(self, peer: Peer, exc: StatusError) -> None:
        # What was said last stands last.
        _, count = self._said.pop(peer.name, (exc, 0))
        self._said[peer.name] = exc, count + 1

    def _failure(self) -> StatusError:
        """Why nobody did it: what each service said, and whether it may be done all the same."""
        said = [
            f"{name}: {exc}" + (f" ({count} times)" if count > 1 else "")
            for name, (exc, count) in self._said.items()
        ]
        last = next(reversed(self._said.values()))[0] if self._said else None
        text = f"No service replied (last error: {last})"
        if self._rounds:
            spent_s = time.monotonic() - self._begin
            text += f", {self._rounds} rounds in {spent_s:.1f} s: " + "; ".join(said)
        if self._write and self._uncertain:
            text += "; it may have been done"
        return StatusError(status.UNAVAILABLE, text)
