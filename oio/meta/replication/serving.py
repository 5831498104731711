# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What a service whose bases have copies answers: to its peers, and to those who administrate the copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from oio.common import status
from oio.common.status import StatusError
from oio.meta.base_messages import (
    BaseCopyFrom,
    BaseDebug,
    BaseDescription,
    BaseLeave,
    BasePing,
    BaseRemove,
    BaseStatus,
    BaseSync,
    BaseTarget,
)
from oio.meta.client import Route
from oio.meta.context import Context
from oio.meta.messages import Operation
from oio.meta.replication.engine import Replication
from oio.meta.replication.groups import Group
from oio.meta.replication.ledger import REMOVED
from oio.meta.replication.wire import (
    CopyAppend,
    CopyBury,
    CopyDescribe,
    CopyEntries,
    CopyForget,
    CopyInstall,
    CopyLead,
    CopyReply,
    CopyState,
    CopyVacuum,
    GroupVote,
    Vote,
)
from oio.meta.repository import Repository

Handler = Callable[[Any, Context], Any]

#: What taking a lead for a peer may take (seconds): less than it waits for an answer (``Links``).
LEAD_TIMEOUT_S = 4.0


class Copies:
    """Handlers of one service."""

    def __init__(self, repository: Repository, replication: Replication) -> None:
        self._repository = repository
        self._replication = replication
        self._follower = replication.follower

    def handlers(self) -> dict[type[Operation], Handler]:
        """What to call for each operation."""
        follower = self._follower
        return {
            GroupVote: self.vote,
            CopyState: lambda request, context: follower.state(request),
            CopyDescribe: lambda request, context: follower.describe(request.base, Vote(granted=True)),
            CopyAppend: lambda request, context: follower.append(request),
            CopyEntries: lambda request, context: follower.entries(request),
            CopyInstall: lambda request, context: follower.install(request),
            CopyBury: lambda request, context: follower.bury(request),
            CopyForget: self.forget_spares,
            CopyLead: self.lead,
            CopyVacuum: self.vacuum_copy,
            BasePing: self.ping,
            BaseStatus: self.status,
            BaseLeave: self.leave,
            BaseSync: self.sync,
            BaseDebug: self.debug,
            BaseCopyFrom: self.copy_from,
            BaseRemove: self.remove,
        }

    # --- peers ---------------------------------------------------------------------------------------------

    def vote(self, request: GroupVote, context: Context) -> Vote:
        """Promise; a group in which an election goes on is one that we take part in."""
        vote = self._replication.voter.vote(request.voice)
        self._replication.take_part(request.peers, request.shard)
        return vote

    def forget_spares(self, request: CopyForget, context: Context) -> None:
        """The events of a destroyed base are delivered."""
        self._repository.outbox.leftovers.drop_spares(request.base, request.last_entry)

    def lead(self, request: CopyLead, context: Context) -> None:
        """Take the lead of a base. :raises StatusError: 303 when another is master."""
        deadline = time.monotonic() + LEAD_TIMEOUT_S
        self._replication.prepare(request.base, Route(peers=request.peers), deadline)

    def vacuum_copy(self, request: CopyVacuum, context: Context) -> CopyReply:
        """Give the unused space of our copy back."""
        vote = self._replication.voter.vote(request.voice)
        if vote.granted:
            self._repository.defragment(request.base)
        return CopyReply(vote=vote, done=vote.granted)

    # --- administration -------------------------------------------------------------------------------------

    def ping(self, request: BasePing, context: Context) -> None:
        """Take part in the election."""
        group = self._group(request, context)
        if group is not None:
            group.used_at = time.monotonic()
            group.touch()

    def status(self, request: BaseStatus, context: Context) -> None:
        """:raises StatusError: 303 naming the master, when that is another service."""
        group = self._group(request, context)
        if group is not None:
            group.require_master(context.deadline, context.route.suspects)
            group.check_lease(context.deadline)
        elif not self._repository.exists(request.base):
            raise self._absent(request)

    def leave(self, request: BaseLeave, context: Context) -> None:
        """Leave the election; who is no peer any more has left."""
        try:
            group = self._group(request, context)
        except StatusError as exc:
            if exc.code != status.CONTAINER_NOT_FOUND:
                raise
            return
        if group is not None:
            group.leave()

    def sync(self, request: BaseSync, context: Context) -> None:
        """Take the state of the master. :raises StatusError: 301 when we are the master."""
        group = self._group(request, context)
        if group is None:
            if not self._repository.exists(request.base):
                raise self._absent(request)
            raise StatusError(status.BAD_OPERATION, "this service is the master: the base has one copy")
        try:
            group.require_master(context.deadline, context.route.suspects)
        except StatusError as exc:
            if exc.code != status.REDIRECT:
                raise
            self._replication.sync_from(request.base, exc.message, request.check_type)
            return
        raise StatusError(status.BAD_OPERATION, "this service is the master")

    def debug(self, request: BaseDebug, context: Context) -> BaseDescription:
        """The election as this service sees it."""
        try:
            group = self._group(request, context)
        except StatusError:
            group = None
        if group is None or group.state == "NONE":
            return BaseDescription(election=None)
        return BaseDescription(election=self._described(request.base, group))

    def _described(self, base_name: str, group: Group) -> dict[str, Any]:
        replication = self._replication
        master = group.master_id()
        now = time.monotonic()
        return {
            "local": self._service(group.own_name) | {"state": group.state},
            "master": self._service(master) if master else {},
            "base": {
                "name": base_name,
                "type": replication.service_type,
                "zk": group.name,
                "zk_server": replication.ensemble_name(group.name),
            },
            "#": {
                "refcount": 1,
                "pipefrom": 0,
                "getvers": 0,
                "seconds_since_last_access": int(now - group.used_at),
                "seconds_since_last_status": int(now - group.changed_at),
            },
            "peers": list(group.others),
            "log": list(group.candidacy.log),
        }

    def _service(self, name: str) -> dict[str, str]:
        try:
            return {"id": name, "url": self._replication.links.address_of(name)}
        except StatusError:
            return {"id": name, "url": ""}

    def copy_from(self, request: BaseCopyFrom, context: Context) -> None:
        """Make a copy here from that of another service."""
        self._follower.get_image(request.base, request.source, deadline=context.deadline)

    def remove(self, request: BaseRemove, context: Context) -> None:
        """Delete this copy; its grave says how far it had come.

        :raises StatusError: 431 without copy, 503 when the other peers may not hold all that this one does.
        """
        reply = self._follower.describe(request.base, Vote(granted=True))
        if not reply.held:
            raise self._absent(request)
        self._check_dispensable(request.base, reply)
        if not self._repository.drop_copy(request.base, reply.position, REMOVED, reply.peers):
            raise self._absent(request)

    def _check_dispensable(self, base_name: str, own: CopyReply) -> None:
        """Would all that this copy holds still win an election without it?"""
        replication = self._replication
        if not replication.own_name(own.peers):
            return
        others = [peer for peer in own.peers if not replication.own_name([peer])]
        needed = len(own.peers) // 2 + 1
        answers = replication.links.ask_all(dict.fromkeys(others, CopyDescribe(base=base_name)))
        told = [answer for answer in answers.values() if isinstance(answer, CopyReply)]
        # A copy that went on may know that this one is not wanted any more.
        latest = max(told, key=lambda one: one.position.rank, default=own)
        if latest.position.rank > own.position.rank and not replication.own_name(latest.peers):
            return
        holders = [one for one in told if one.held and one.position.rank >= own.position.rank]
        if len(holders) < needed:
            raise StatusError(
                status.UNAVAILABLE,
                f"the copy of base {base_name} is needed: {len(holders)} of the {len(others)} others hold all"
                f" that it does, {needed} have to",
            )

    def _group(self, request: BaseTarget, context: Context) -> Group | None:
        return self._replication.group_for(request.base, context.route)

    def _absent(self, request: BaseTarget) -> StatusError:
        service_type = self._replication.service_type
        return StatusError(status.CONTAINER_NOT_FOUND, f"no base {request.base}.{service_type} here")
