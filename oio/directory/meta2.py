# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``Meta2Database``: moves the bases of containers from a service to another one, and makes lost copies again."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from oio.common import status
from oio.common.exceptions import ClientException, OioException
from oio.conscience.client import ConscienceClient
from oio.directory.admin import AdminClient
from oio.directory.client import DirectoryClient
from oio.directory.meta_mapping import MetaMapping
from oio.directory.moves import Change, Mover
from oio.directory.tool_clients import ToolClients
from oio.rdir.client import RdirClient

SERVICE_TYPE = "meta2"

#: Answers to a freeze of what takes no writes anyway.
_CLOSED = frozenset({status.CONTAINER_FROZEN, status.CONTAINER_DISABLED})


class _Links:
    """What the directory tells of a container: who it is, and its services by sequence number."""

    def __init__(self, found: Mapping[str, Any], service_type: str) -> None:
        self.account = found["account"]
        self.name = found["name"]
        self.by_sequence: dict[int, list[str]] = {}
        self.args: dict[int, str] = {}
        for link in found["srv"]:
            if link["type"] == service_type:
                self.by_sequence.setdefault(int(link["seq"]), []).append(link["host"])
                self.args[int(link["seq"])] = link.get("args") or ""


class Meta2Database(ToolClients):
    """Bases of containers and their copies.

    >>> database = Meta2Database({"namespace": "OPENIO"})  # doctest: +SKIP
    >>> list(database.move(cid, "OPENIO-meta2-1"))  # doctest: +SKIP
    [{'base': '<cid>.1', 'src': 'OPENIO-meta2-1', 'dst': 'OPENIO-meta2-4', 'err': None}]

    A base is ``CID`` (all its sequence numbers) or ``CID.SEQUENCE``. Errors are part of the results, and are never
    raised.

    :param conf: must hold ``namespace``.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        logger: Any = None,
        admin_client: AdminClient | None = None,
        conscience_client: ConscienceClient | None = None,
        rdir_client: RdirClient | None = None,
        directory_client: DirectoryClient | None = None,
        service_type: str = SERVICE_TYPE,
        **kwargs: Any,
    ) -> None:
        given = {
            "admin": admin_client,
            "conscience": conscience_client,
            "rdir": rdir_client,
            "directory": directory_client,
        }
        super().__init__(conf, logger, given, kwargs)
        self.ns = conf["namespace"]
        self.service_type = service_type
        self._services: dict[str, dict[str, Any]] | None = None
        self._links: dict[str, _Links] = {}

    @functools.cached_property
    def mover(self) -> Mover:
        """Makes the steps of moves."""
        return _ContainerMover(self.admin, self.logger)

    # --- what is known ------------------------------------------------------------------------------------

    def reload_all_services(self, **kwargs: Any) -> None:
        """List the services again."""
        self._services = {}
        for service in self.conscience.all_services(self.service_type, **kwargs):
            for name in (service["addr"], service["id"]):
                self._services[name] = service

    def _service(self, name: str, **kwargs: Any) -> dict[str, Any] | None:
        """A service by its id or its address; None when there is none."""
        for fresh in (False, True):
            if fresh or self._services is None:
                self.reload_all_services(**kwargs)
            assert self._services is not None
            if name in self._services:
                return self._services[name]
        return None

    def reset_peers(self) -> None:
        """Forget which services hold the bases."""
        self._links.clear()

    def _links_of(self, cid: str, **kwargs: Any) -> _Links:
        links = self._links.get(cid)
        if links is None:
            found = self.directory.list(cid=cid, service_type=self.service_type, **kwargs)
            links = self._links[cid] = _Links(found, self.service_type)
        return links

    def _bases(self, base: str, **kwargs: Any) -> tuple[str, _Links, list[int]]:
        """Container id, links, and sequence numbers of a base.

        :raises ValueError: when it is not the name of one.
        :raises OioException: when the directory does not know it.
        """
        cid, sequence = MetaMapping.get_cid_and_seq(base)
        links = self._links_of(cid, **kwargs)
        sequences = sorted(links.by_sequence)
        if sequence is not None:
            sequences = [one for one in sequences if one == sequence]
        if not sequences:
            raise OioException(f"No {self.service_type} is linked to {base}")
        return cid, links, sequences

    # --- moves --------------------------------------------------------------------------------------------

    def move(self, base: str, src: str, dst: str | None = None, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Move copies of a base from a service to another one.

        :param dst: chosen far from the other services when not given.
        :returns: for each sequence number ``{"base": "CID.SEQUENCE", "src", "dst", "err"}``.
        """
        # What other tools changed meanwhile must be seen.
        self.reset_peers()
        try:
            cid, links, sequences = self._bases(base, **kwargs)
        except (OioException, ValueError) as exc:
            yield {"base": base, "src": src, "dst": dst, "err": exc}
            return
        for sequence in sequences:
            result = {"base": f"{cid}.{sequence}", "src": src, "dst": dst, "err": None}
            try:
                peers = links.by_sequence[sequence]
                self._check_source(src, peers)
                if dst is None:
                    target = self._choose(src, peers, **kwargs)
                else:
                    target = self._check_target(dst, peers, **kwargs)
                result["dst"] = target
                change = Change(
                    self.service_type,
                    f"{cid}.{sequence}",
                    tuple(sorted(peers)),
                    tuple(sorted(target if peer == src else peer for peer in peers)),
                )
                self._move(change, links, src, target, **kwargs)
            except (OioException, ValueError) as exc:
                result["err"] = exc  # type: ignore[assignment]
            yield result

    @staticmethod
    def _check_source(src: str, peers: list[str]) -> None:
        if src not in peers:
            raise ValueError(f"Source service isn't used: {src} is not one of {', '.join(peers)}")

    def _check_target(self, dst: str, peers: list[str], **kwargs: Any) -> str:
        """Name of a given target as the directory will store it."""
        service = self._service(dst, **kwargs)
        if service is None:
            raise ValueError(f"Destination service must be a known {self.service_type}: {dst} is not")
        for name in (service["id"], service["addr"], dst):
            if name in peers:
                raise ValueError(f"Destination service is already used: {dst}")
        return str(service["id"])

    def _choose(self, src: str, peers: list[str], **kwargs: Any) -> str:
        """Have the load balancer choose a service. :raises OioException: when there is none."""
        key = f"{self.ns}|{self.service_type}|"
        choices = self.conscience.poll(
            self.service_type, avoid=[key + src], known=[key + peer for peer in peers if peer != src], **kwargs
        )
        for choice in choices:
            name = (choice.get("tags") or {}).get("tag.service_id") or str(choice["id"]).rpartition("|")[2]
            if name not in peers and choice.get("addr") not in peers:
                return str(name)
        raise OioException(f"No other {self.service_type} is available")

    def _move(self, change: Change, links: _Links, src: str, dst: str, **kwargs: Any) -> None:
        self.mover.copy(change, **kwargs)
        try:
            self._link(change, links, **kwargs)
        except OioException:
            self.mover.undo(change, **kwargs)
            raise
        self._index(change, links, src, dst, **kwargs)
        self.mover.clean(change, **kwargs)

    def _link(self, change: Change, links: _Links, **kwargs: Any) -> None:
        cid, _, sequence = change.cid.partition(".")
        link = {
            "host": ",".join(change.after),
            "type": self.service_type,
            "seq": int(sequence),
            "args": links.args[int(sequence)],
        }
        self.directory.force(cid=cid, service_type=self.service_type, services=link, replace=True, **kwargs)

    def _index(self, change: Change, links: _Links, src: str, dst: str, **kwargs: Any) -> None:
        """Tell the reverse directory; the indexer of the volumes does it too."""
        cid = change.cid.partition(".")[0]
        url = f"{self.ns}/{links.account}/{links.name}"
        try:
            self.rdir.meta2_index_push(
                volume_id=dst, container_url=url, container_id=cid, mtime=time.time(), **kwargs
            )
            self.rdir.meta2_index_delete(volume_id=src, container_path=url, container_id=cid, **kwargs)
        except OioException as exc:
            self.logger.warning("Move of the base %s not told to the reverse directory: %s", change.cid, exc)

    # --- lost copies --------------------------------------------------------------------------------------

    def rebuild(self, base: str, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Give a base to the services that should have it and lack it.

        :returns: for each sequence number ``{"base": "CID.SEQUENCE", "err"}``.
        """
        self.reset_peers()
        try:
            cid, links, sequences = self._bases(base, **kwargs)
        except (OioException, ValueError) as exc:
            yield {"base": base, "err": exc}
            return
        for sequence in sequences:
            result: dict[str, Any] = {"base": f"{cid}.{sequence}", "err": None}
            try:
                self._rebuild(f"{cid}.{sequence}", links.by_sequence[sequence], **kwargs)
            except OioException as exc:
                result["err"] = exc
            yield result

    def _rebuild(self, base: str, peers: list[str], **kwargs: Any) -> None:
        sources = self.mover.copies(self.service_type, base, peers, **kwargs)
        error = None
        for peer in [peer for peer in peers if peer not in sources]:
            try:
                self.mover.copy_from_any(self.service_type, base, sources, peer, **kwargs)
                self.logger.info("Base %s copied to %s", base, peer)
            except OioException as exc:
                error = exc
        if error is not None:
            raise error


class _ContainerMover(Mover):
    """Keeps a container that has one copy from being written while another one is made.

    With several copies the masters take care of it. What was frozen or disabled before stays so.
    """

    def __init__(self, admin: AdminClient, logger: Any) -> None:
        super().__init__(admin, logger)
        #: Containers that we have frozen.
        self._frozen: set[str] = set()

    def copy(self, change: Change, **kwargs: Any) -> None:
        """Steps 1 to 3, with a freeze."""
        if len(change.before) == 1 and change.removed:
            self.copies(change.service_type, change.cid, change.before, **kwargs)
            self._freeze(change, **kwargs)
        try:
            super().copy(change, **kwargs)
        except OioException:
            self._enable(change, **kwargs)
            raise

    def undo(self, change: Change, **kwargs: Any) -> None:
        """Write the former services in the base, and let it be written again."""
        super().undo(change, **kwargs)
        self._enable(change, **kwargs)

    def clean(self, change: Change, **kwargs: Any) -> None:
        """Step 5. The new copy may be written."""
        self._enable(change, **kwargs)
        super().clean(change, **kwargs)

    def _freeze(self, change: Change, **kwargs: Any) -> None:
        try:
            self.admin.freeze_base(change.service_type, cid=change.cid, **kwargs)
        except ClientException as exc:
            if exc.status not in _CLOSED:
                raise
        else:
            self._frozen.add(change.cid)

    def _enable(self, change: Change, **kwargs: Any) -> None:
        if change.cid not in self._frozen:
            return
        self._frozen.discard(change.cid)
        try:
            self.admin.enable_base(change.service_type, cid=change.cid, **kwargs)
        except OioException as exc:
            self.logger.error("Container %s is still frozen: %s", change.cid, exc)
