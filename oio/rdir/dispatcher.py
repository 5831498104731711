# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``RdirDispatcher``: gives each volume an rdir, and tells who has which.

The rdir of a volume is the service of type ``rdir`` linked to the reference named after the volume, in the hidden
account ``_RDIR``. Choices balance the number of databases: no rdir gets more than the average plus one.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from typing import Any

from oio.common import status
from oio.common.exceptions import (
    BadRequest,
    ClientException,
    NotFound,
    OioException,
    ServiceUnavailable,
)
from oio.common.logger import get_logger
from oio.conscience.client import ConscienceClient
from oio.directory.client import DirectoryClient
from oio.rdir.client import RDIR_ACCT, RdirClient

JOKER_SVC_TARGET = "__any_slot"
POOL = "__rawx_rdir"
LINK_ATTEMPTS_MAX = 7
_BASES = "stat.opened_db_count"
# What passes by itself: a meta1 that is not ready, or not the right one yet.
_PASSING = frozenset({status.REFERENCE_NOT_FOUND, status.PREFIX_NOT_MANAGED, 503, 504})
_UNIQUE = "UNIQUE constraint"


def _make_id(ns: str, srv_type: str, addr: str) -> str:
    """Key of a service for the load balancer."""
    return f"{ns}|{srv_type}|{addr}"


def volume_id_of(service: Mapping[str, Any]) -> str:
    """Id of the volume of a service: its service id, else its address."""
    return str(service.get("tags", {}).get("tag.service_id") or service["addr"])


class RdirDispatcher:
    """Assigns rdir services to volumes.

    >>> dispatcher = RdirDispatcher({"namespace": "OPENIO"})  # doctest: +SKIP
    >>> dispatcher.assign_services("rawx")[0]["rdir"]["addr"]  # doctest: +SKIP
    '10.0.0.1:6301'

    :param rdir_client: to create the databases with.
    :keyword endpoint: location of the proxy.
    """

    def __init__(
        self, conf: Mapping[str, Any], rdir_client: RdirClient | None = None, **kwargs: Any
    ) -> None:
        self.conf = conf
        self.ns = conf["namespace"]
        self.logger = kwargs.get("logger") or get_logger(dict(conf), "oio.rdir")
        self._kwargs = kwargs
        if rdir_client is not None:
            self.rdir = rdir_client
            self._kwargs = {"pool_manager": rdir_client.pool_manager, **kwargs}
        self._pool_options: dict[str, Any] | None = None

    @functools.cached_property
    def cs(self) -> ConscienceClient:
        """Client of the registry of services."""
        return ConscienceClient(self.conf, **self._kwargs)

    @functools.cached_property
    def rdir(self) -> RdirClient:
        """Client of the reverse directory."""
        return RdirClient(self.conf, directory_client=self.directory, **self._kwargs)

    @functools.cached_property
    def directory(self) -> DirectoryClient:
        """Client of the directory."""
        return DirectoryClient(self.conf, **self._kwargs)

    # --- reading ---

    def get_assignments(
        self, service_type: str, **kwargs: Any
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The services of a type and all the rdir; each service that has an rdir has it under ``rdir``."""
        services = self.cs.all_services(service_type, **kwargs)
        rdirs = self.cs.all_services("rdir", **kwargs)
        known = _by_host(rdirs)
        for service in services:
            try:
                host = self._linked_host(volume_id_of(service), **kwargs)
            except OioException as exc:
                self.logger.warning("rdir of %s not known: %s", volume_id_of(service), exc)
                continue
            if host:
                service["rdir"] = known.get(host) or _unknown_rdir(host)
        return services, rdirs

    def _linked_host(self, volume: str, **kwargs: Any) -> str | None:
        """The rdir linked to a volume, None when there is none. :raises OioException: when it is not known."""
        try:
            found = self.directory.list(RDIR_ACCT, volume, service_type="rdir", **kwargs)
        except NotFound:
            return None
        hosts = [link["host"] for link in found.get("srv") or () if link.get("type") == "rdir"]
        return str(hosts[0]) if hosts else None

    # --- assigning ---

    def assign_all_rawx(self, max_per_rdir: int | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Give an rdir to each rawx that has none."""
        return self.assign_services("rawx", max_per_rdir, **kwargs)

    def assign_all_meta2(self, max_per_rdir: int | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Give an rdir to each meta2 that has none."""
        return self.assign_services("meta2", max_per_rdir, **kwargs)

    def assign_services(
        self,
        service_type: str,
        max_per_rdir: int | None = None,
        min_dist: int | None = None,
        service_id: str | None = None,
        reassign: bool = False,
        dry_run: bool = False,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Give an rdir to each service of a type that has none.

        :param max_per_rdir: databases of an rdir at most.
        :param min_dist: least distance between a service and its rdir.
        :param service_id: only this service.
        :param reassign: choose again for those that have one.
        :param dry_run: choose, and change nothing.
        :returns: the services, those that have an rdir with it under ``rdir``.
        :raises ValueError: when `service_id` is not a service of the type.
        :raises ServiceUnavailable: when there is no rdir.
        :raises OioException: at the end, when some services could not get one: the error itself, when all
            have the same type.
        """
        services = self.cs.all_services(service_type, **kwargs)
        rdirs = self.cs.all_services("rdir", full=True, **kwargs)
        if not rdirs:
            raise ServiceUnavailable(f"No rdir service found in {self.ns}")
        if service_id is not None:
            services = [
                service for service in services if service_id in (volume_id_of(service), service["addr"])
            ]
            if not services:
                raise ValueError(f"{service_id} isn't a {service_type}")
        known = _by_host(rdirs)
        errors: list[Exception] = []
        for service in services:
            volume = volume_id_of(service)
            try:
                host = self._linked_host(volume, **kwargs)
                if host:
                    service["rdir"] = known.get(host) or _unknown_rdir(host)
                    if host not in known:
                        self.logger.warning("rdir %s of %s is not known to the conscience", host, volume)
                    if not reassign:
                        continue
                former = service.get("rdir")
                rdir = self._choose(service_type, volume, rdirs, max_per_rdir, min_dist, **kwargs)
                if not dry_run:
                    # Linked meanwhile by somebody else: theirs holds.
                    rdir = self._link(volume, rdir, service_type, known, replace=reassign, **kwargs)
                service["rdir"] = rdir
                _count(rdir, 1)
                if former is not None:
                    _count(former, -1)
            except OioException as exc:
                self.logger.error("no rdir could be given to %s: %s", volume, exc)
                errors.append(exc)
        _raise_all(errors)
        return services

    def _choose(
        self,
        service_type: str,
        volume: str,
        rdirs: list[dict[str, Any]],
        max_per_rdir: int | None,
        min_dist: int | None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Choose an rdir among those that have not too many databases."""
        alive = [rdir for rdir in rdirs if rdir.get("score", 0) > 0]
        if not alive:
            raise ServiceUnavailable("No valid rdir service found: all have a score of 0")
        mean = sum(map(_bases, alive)) / len(alive)
        full = max_per_rdir - 1 if max_per_rdir else math.inf
        known = [_make_id(self.ns, service_type, volume)]
        try:
            found = self._poll(self._above(rdirs, min(mean, full)), known, min_dist, **kwargs)
        except ClientException as exc:
            if exc.status != status.POLICY_NOT_SATISFIABLE or full <= mean:
                raise
            # Balance gives way to distance, the maximum does not.
            found = self._poll(self._above(rdirs, full), known, min_dist, **kwargs)
        by_key = {key: rdir for rdir in rdirs for key in self._keys(rdir)}
        for choice in found:
            if choice["id"] in by_key:
                return by_key[choice["id"]]
        raise ServiceUnavailable(f"The load balancer gave no rdir for {volume}: {found}")

    def _above(self, rdirs: list[dict[str, Any]], limit: float) -> list[str]:
        """Keys of the rdir that have more databases."""
        return [key for rdir in rdirs if _bases(rdir) > limit for key in sorted(self._keys(rdir))]

    def _keys(self, rdir: Mapping[str, Any]) -> set[str]:
        """The names under which the load balancer may know an rdir."""
        return {_make_id(self.ns, "rdir", host) for host in (rdir["addr"], volume_id_of(rdir))}

    def _poll(
        self, avoid: list[str], known: list[str], min_dist: int | None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Poll our own pool of the load balancer, which is made when it is missing, or not as we want it."""
        options = {"min_dist": str(min_dist)} if min_dist is not None else {}
        # The proxy may hold a pool of other options, made by somebody else.
        if options != self._pool_options:
            self._create_pool(options, **kwargs)
        try:
            return self.cs.poll(POOL, avoid=avoid, known=known, **kwargs)
        except BadRequest:
            self._create_pool(options, **kwargs)
            return self.cs.poll(POOL, avoid=avoid, known=known, **kwargs)

    def _create_pool(self, options: dict[str, Any], **kwargs: Any) -> None:
        targets = [(1, JOKER_SVC_TARGET), (1, "rdir")]
        self.cs.lb.create_pool(POOL, targets, force=True, options=options, **kwargs)
        self._pool_options = options

    def _link(
        self,
        volume: str,
        rdir: dict[str, Any],
        service_type: str,
        known: Mapping[str, dict[str, Any]],
        replace: bool,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Link an rdir to a volume and create the database; gives the rdir that is linked in the end."""
        link = {
            "host": rdir["addr"],
            "type": "rdir",
            "seq": 1,
            "args": "",
            "id": _make_id(self.ns, "rdir", rdir["addr"]),
        }
        for attempt in range(LINK_ATTEMPTS_MAX):
            try:
                self.directory.force(
                    RDIR_ACCT, volume, "rdir", link, autocreate=True, replace=replace, **kwargs
                )
                break
            except ClientException as exc:
                if _is_linked_already(exc):
                    host = self._linked_host(volume, **kwargs)
                    if host and host != rdir["addr"]:
                        rdir = known.get(host) or _unknown_rdir(host)
                    break
                passing = exc.status in _PASSING or exc.http_status in _PASSING
                if not passing or attempt + 1 == LINK_ATTEMPTS_MAX:
                    raise
                self.logger.info("linking an rdir to %s, again: %s", volume, exc)
                time.sleep(attempt)
        try:
            self.rdir._clear_cache(volume)
            self.rdir.create(volume, service_type=service_type, **kwargs)
        except OioException as exc:
            # The first push creates it as well.
            self.logger.warning("database of %s not created on %s: %s", volume, rdir["addr"], exc)
        return rdir


def _is_linked_already(exc: ClientException) -> bool:
    return exc.status == status.SERVICE_ALREADY_LINKED or _UNIQUE in str(exc.message)


def _by_host(rdirs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rdir by what a link may call them: address or service id."""
    return {host: rdir for rdir in rdirs for host in (volume_id_of(rdir), rdir["addr"])}


def _unknown_rdir(host: str) -> dict[str, Any]:
    return {"addr": host, "score": 0, "tags": {}}


def _bases(rdir: Mapping[str, Any]) -> float:
    return float(rdir["tags"].get(_BASES) or 0)


def _count(rdir: dict[str, Any], change: int) -> None:
    """Count a database that the statistics do not know yet."""
    rdir["tags"][_BASES] = max(0.0, _bases(rdir) + change)


def _raise_all(errors: list[Exception]) -> None:
    """Raise the only kind of error there is, or one that tells them all."""
    if not errors:
        return
    first = errors[0]
    if len(errors) == 1:
        raise first
    text = f"{len(errors)} services without rdir: {'; '.join(map(str, errors))}"
    if len({type(error) for error in errors}) > 1:
        raise OioException(text) from first
    if isinstance(first, ClientException):
        raise type(first)(first.http_status, first.status, text) from first
    raise type(first)(text) from first
