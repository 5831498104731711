# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""How one base goes from some services to others, step by step.

1. ask its services which of them have a copy;
2. write the new services in the base: from then on they elect the master;
3. have the services that lack the base copy it;
4. change the directory (the caller does it);
5. have the former services leave the election, and remove the copies that are not needed any more; look at the
   election of the new ones.

A step that fails ends the move, and the former services are written in the base again; what fails in step 5 is
logged, as the move is done by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import Logger
from typing import Any, NamedTuple

from oio.common import status
from oio.common.exceptions import OioException
from oio.directory.admin import AdminClient

_OK = 200
#: Answers of a service that has done what a former one shall do, or had done it before.
_GONE = frozenset({_OK, 204, status.REDIRECT, status.CONTAINER_NOT_FOUND})

#: Answers of one copy by service, see AdminClient.
_PerPeer = dict[str, Any]


class NoBaseToCopy(OioException):
    """Raised when the services of a base do not have it."""


class Change(NamedTuple):
    """A base, and the services that hold it before and after.

    ``cid`` designates the base, as for AdminClient. (With meta1, a prefix filled up with zeros.)
    """

    service_type: str
    cid: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def added(self) -> list[str]:
        """Services that get the base."""
        return [peer for peer in self.after if peer not in self.before]

    @property
    def removed(self) -> list[str]:
        """Services that lose the base."""
        return [peer for peer in self.before if peer not in self.after]


class Mover:
    """Makes the steps of moves.

    :param admin: client of the administration of bases.
    """

    def __init__(self, admin: AdminClient, logger: Logger) -> None:
        self.admin = admin
        self.logger = logger

    # --- who has the base ---------------------------------------------------------------------------------

    def copies(self, service_type: str, cid: str, peers: Iterable[str], **kwargs: Any) -> list[str]:
        """The services that have a copy, the master first.

        :raises NoBaseToCopy: when a majority says that it has none: a base is made, and written, by majorities.
        :raises OioException: when none has one, and too many did not answer.
        """
        asked = {*peers}
        answers = self.admin.has_base(service_type, cid=cid, service_id=sorted(asked), **kwargs)
        found = sorted(peer for peer, answer in answers.items() if _code(answer) == _OK)
        if not found:
            silent = sorted(asked - {peer for peer, answer in answers.items() if _lacks_base(answer)})
            if 2 * len(silent) >= len(asked):
                raise OioException(f"No base to copy: {_said(answers, silent)}")
            raise NoBaseToCopy("No base to copy")
        if len(found) > 1:
            master = self._master(service_type, cid, found, **kwargs)
            found.sort(key=lambda peer: peer != master)
        return found

    def _master(self, service_type: str, cid: str, peers: list[str], **kwargs: Any) -> str:
        try:
            found = self.admin.election_status(service_type, cid=cid, service_id=peers, **kwargs)
        except OioException as exc:
            self.logger.warning("Master of the base %s %s not known: %s", service_type, cid, exc)
            return ""
        return str(found.get("master", ""))

    def lacking(self, service_type: str, cid: str, peers: Iterable[str], **kwargs: Any) -> list[str]:
        """The services that do not have their copy of a base (or do not answer)."""
        answers = self.admin.has_base(service_type, cid=cid, service_id=[*peers], **kwargs)
        return sorted(peer for peer, answer in answers.items() if _code(answer) != _OK)

    # --- steps --------------------------------------------------------------------------------------------

    def copy(self, change: Change, **kwargs: Any) -> None:
        """Steps 1 to 3. :raises OioException: when the base is not there, or a service cannot have it."""
        sources = self.copies(change.service_type, change.cid, change.before, **kwargs)
        self.admin.set_peers(change.service_type, cid=change.cid, peers=change.after, **kwargs)
        try:
            for target in change.added:
                self.copy_from_any(change.service_type, change.cid, sources, target, **kwargs)
        except OioException:
            self.undo(change, **kwargs)
            raise

    def copy_from_any(
        self, service_type: str, cid: str, sources: Iterable[str], target: str, **kwargs: Any
    ) -> None:
        """Have a service copy a base from the first of the sources that can give it.

        :raises OioException: the last error, when none can.
        """
        error: OioException = NoBaseToCopy("No base to copy")
        for source in sources:
            try:
                self.admin.copy_base_from(service_type, cid=cid, svc_from=source, svc_to=target, **kwargs)
                return
            except OioException as exc:
                self.logger.warning(
                    "Base %s %s not copied from %s to %s: %s", service_type, cid, source, target, exc
                )
                error = exc
        raise error

    def undo(self, change: Change, **kwargs: Any) -> None:
        """Write the former services in a base that is not moved after all."""
        try:
            self.admin.set_peers(change.service_type, cid=change.cid, peers=change.before, **kwargs)
        except OioException as exc:
            self.logger.error(
                "Base %s %s still names %s as its services: %s",
                change.service_type, change.cid, ",".join(change.after), exc,
            )  # fmt: skip

    def clean(self, change: Change, **kwargs: Any) -> None:
        """Step 5."""
        if change.removed:
            self._try(change, "left", self._leave, **kwargs)
            self._try(change, "removed", self._remove, **kwargs)
        self._try(change, "elected", self._elect, **kwargs)

    def _try(self, change: Change, done: str, step: Callable[..., None], **kwargs: Any) -> None:
        try:
            step(change, **kwargs)
        except OioException as exc:
            self.logger.warning("Base %s %s not %s: %s", change.service_type, change.cid, done, exc)

    def _leave(self, change: Change, **kwargs: Any) -> None:
        # Those that stay are in the election of the new services by now: it must not begin again for this.
        peers = change.removed
        answers = self.admin.election_leave(change.service_type, cid=change.cid, service_id=peers, **kwargs)
        _check(answers, peers)

    def _remove(self, change: Change, **kwargs: Any) -> None:
        peers = change.removed
        answers = self.admin.remove_base(change.service_type, cid=change.cid, service_id=peers, **kwargs)
        _check(answers, peers)

    def _elect(self, change: Change, **kwargs: Any) -> None:
        found = self.admin.election_status(change.service_type, cid=change.cid, **kwargs)
        if "master" not in found:
            raise OioException(f"no master: {_said(found['peers'], found['peers'])}")


def _code(answer: Any) -> int:
    return int(answer["status"]["status"])


def _lacks_base(answer: Any) -> bool:
    return _code(answer) == status.CONTAINER_NOT_FOUND


def _said(answers: _PerPeer, peers: Iterable[str]) -> str:
    """What some services answered, as one text."""
    return "; ".join(
        f"{peer}: {answers[peer]['status']['message']}" if peer in answers else f"{peer}: no answer"
        for peer in peers
    )


def _check(answers: _PerPeer, peers: Iterable[str]) -> None:
    """:raises OioException: when a service answers an error, other than that it has the base no more."""
    wrong = [peer for peer in peers if peer in answers and _code(answers[peer]) not in _GONE]
    if wrong:
        raise OioException(_said(answers, wrong))
