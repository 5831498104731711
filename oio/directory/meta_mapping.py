# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``MetaMapping``: which services hold which bases, as it is and as it shall be."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from oio.common.exceptions import OioException
from oio.conscience.client import ConscienceClient
from oio.directory.admin import AdminClient
from oio.directory.moves import Change, Mover, NoBaseToCopy
from oio.directory.tool_clients import ToolClients
from oio.rdir.client import RdirClient

CID_CHARS = 64
_BASE = re.compile(r"^([0-9A-Fa-f]{1,64})(?:\.([0-9]+))?\Z")

#: A service, as the conscience describes it, and what plans add.
Service = dict[str, Any]


class MetaMapping(ToolClients):
    """Bases and their services.

    :param conf: must hold ``namespace``.
    :param service_types: types of services whose list is needed.
    :param rdir_client: to tell the reverse directory what moves.
    :param reqid: id of the requests that list the services.
    :ivar services_by_base: services of each base, as they shall be.
    :ivar raw_services_by_base: what the directory stores for each base.
    :ivar services_by_service_type: services by type, then by id.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        service_types: Iterable[str],
        admin_client: AdminClient | None = None,
        conscience_client: ConscienceClient | None = None,
        logger: Any = None,
        rdir_client: RdirClient | None = None,
        reqid: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"admin": admin_client, "conscience": conscience_client, "rdir": rdir_client}
        super().__init__(conf, logger, given, kwargs)
        self.service_types = [*service_types]
        self._listing: dict[str, Any] = {} if reqid is None else {"reqid": reqid}
        self.services_by_base: dict[str, list[Service]] = {}
        self.raw_services_by_base: dict[str, list[Any]] = {}
        self.services_by_service_type: dict[str, dict[str, Service]] = {}
        self.reset()

    @functools.cached_property
    def mover(self) -> Mover:
        """Makes the steps of moves."""
        return Mover(self.admin, self.logger)

    def reset(self) -> None:
        """Forget the bases, and list the services again."""
        self.services_by_base.clear()
        self.raw_services_by_base.clear()
        for service_type in self.service_types:
            services = self.services_by_service_type[service_type] = {}
            for service in self.conscience.all_services(service_type, **self._listing):
                tags = service.get("tags") or {}
                service.setdefault("id", tags.get("tag.service_id") or service["addr"])
                services[service["id"]] = service

    @staticmethod
    def get_cid_and_seq(base: str) -> tuple[str, int | None]:
        """Container id and sequence number of a base.

        >>> MetaMapping.get_cid_and_seq("AB00")[0][:8], MetaMapping.get_cid_and_seq("AB" * 32 + ".1")[1]
        ('AB000000', 1)

        :raises ValueError: when the name is not one of a base.
        """
        found = _BASE.match(base)
        if not found:
            raise ValueError(f"{base!r} is not the name of a base, CID or CID.SEQUENCE is expected")
        cid, sequence = found.groups()
        return cid.upper().ljust(CID_CHARS, "0"), None if sequence is None else int(sequence)

    # --- applying a plan ------------------------------------------------------------------------------------

    def change_of(self, base: str) -> Change:
        """What has to be done with a base."""
        raise NotImplementedError

    def link(self, bases: list[str], **kwargs: Any) -> None:
        """Change the directory for these bases, all of them or none. :raises OioException: when it fails."""
        raise NotImplementedError

    def linked(self, change: Change, **kwargs: Any) -> None:
        """The directory was changed for a base; its former services still have their copies."""

    def stayed(self, base: str) -> None:
        """A base could not be moved: the plan is changed to what is."""

    def apply(self, moved: Iterable[str] | None = None, **kwargs: Any) -> list[str]:
        """Carry the plan out: copy the bases, change the directory, reset elections.

        :param moved: bases whose services change. Without them only the directory is written, for all bases.
        :returns: those that were moved. What prevented the others is logged.
        :raises OioException: without ``moved``, when the directory cannot be written.
        """
        if moved is None:
            self.link([*self.services_by_base], **kwargs)
            return []
        done: list[str] = []
        changes = {base: self.change_of(base) for base in sorted(moved)}
        pending = [*changes]
        while pending:
            # Without election, what is written to a base between its copy and its link may be lost.
            size = self.batch if len(changes[pending[0]].before) > 1 else 1
            moved_now = self._apply_some({base: changes[base] for base in pending[:size]}, **kwargs)
            for base in pending[:size]:
                if base not in moved_now:
                    self.stayed(base)
            done += moved_now
            del pending[:size]
        return done

    def _apply_some(self, changes: Mapping[str, Change], **kwargs: Any) -> list[str]:
        """Copy some bases, change the directory once for all of them, clean up; those that were moved."""
        outcomes = {base: self._copy(base, change, **kwargs) for base, change in changes.items()}
        copied = {base: exists for base, exists in outcomes.items() if exists is not None}
        if not copied:
            return []
        try:
            self.link([*copied], **kwargs)
        except OioException as exc:
            for base, exists in copied.items():
                self.logger.error("Base %s not moved: %s", base, exc)
                if exists:
                    self.mover.undo(changes[base], **kwargs)
            return []
        for base, exists in copied.items():
            change = changes[base]
            self.linked(change, **kwargs)
            if exists:
                self.mover.clean(change, **kwargs)
            self.raw_services_by_base[base] = [*change.after]
            self.logger.info("Base %s moved from %s to %s", base, ",".join(change.before), ",".join(change.after))
        return [*copied]

    def _copy(self, base: str, change: Change, **kwargs: Any) -> bool | None:
        """Copy a base: True when it is done, False when there is nothing to copy, None when it fails."""
        try:
            self.mover.copy(change, **kwargs)
        except NoBaseToCopy as exc:
            if self.may_be_missing:
                return False
            self.logger.error("Base %s not moved: %s", base, exc)
            return None
        except OioException as exc:
            self.logger.error("Base %s not moved: %s", base, exc)
            return None
        return True

    #: May a base that was never used have no copy at all?
    may_be_missing = False
    #: Bases for which the directory is changed at once.
    batch = 1
