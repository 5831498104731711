# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``volume_index``: keeps the reverse directory, which tells what each volume holds.

Chunks are indexed by the rawx that holds them, containers by the meta2 services that hold their base. Options:
``connection_timeout`` (2 s) and ``read_timeout`` (30 s).

Events may repeat and overtake each other: pushes and deletes carry the time of what they tell, in microseconds,
and the reverse directory drops what is not newer than what it knows. It remembers deletions for some time only:
an event that is old is indexed after the service in charge told that the chunk, or the base, is still there.

When the reverse directory does not answer, the event comes again later.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from oio.common.constants import REQID_HEADER
from oio.common.exceptions import (
    BadRequest,
    ExplicitBury,
    NotFound,
    OioException,
    OioNetworkException,
    ServiceBusy,
    StatusMessageException,
    VolumeException,
)
from oio.common.status import CONTAINER_NOT_FOUND, REFERENCE_NOT_FOUND
from oio.event.filters.base import Callback, Env, Filter, make_filter_factory
from oio.event.filters.clients import (
    asking,
    directory_of,
    forget_rawx,
    pauses_of,
    pool_of,
    rawx_address,
    rdir_of,
    retry_after,
)
from oio.http.client import HttpClientError

CHUNK_NEW = "storage.chunk.new"
CHUNK_DELETED = "storage.chunk.deleted"
ACCOUNT_SERVICES = "account.services"
META2_DELETED = "storage.meta2.deleted"
CONTAINER_NEW, CONTAINER_DELETED = "storage.container.new", "storage.container.deleted"

CONNECTION_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 30.0
# From this age on, what an event adds is looked for before it is indexed. Far below the time for which the reverse
# directory remembers deletions (24 h), far above the delay of an agent that keeps up.
LATE_S = 3600.0
_REQID_PREFIX = "volume-index-"


class VolumeIndexFilter(Filter):
    """Indexes, and goes on."""

    def init(self) -> None:
        """Read the options."""
        self._timeouts: dict[str, Any] = self.timeouts(CONNECTION_TIMEOUT_S, READ_TIMEOUT_S)

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event."""
        action = self.actions.get(env.get("event", ""))
        if action is not None:
            when = self.when_of(env)
            reqid = self.reqid_of(env, _REQID_PREFIX)
            try:
                action(self, env, when, {"reqid": reqid, **self._timeouts})
            except ExplicitBury:
                raise
            except BadRequest as exc:
                self.bury(f"refused by the reverse directory: {exc}")
            except (OioException, HttpClientError) as exc:
                return self.retry(cb, f"reverse directory: {exc}", retry_after(exc))
        return self.app(env, beanstalkd, cb)

    # --- chunks ---

    def _chunk_new(self, env: Env, when: int, options: dict[str, Any]) -> None:
        volume, ids = self._chunk(env)
        if _is_late(when) and not self._chunk_exists(env, ids[2], options):
            self.count("outlived")
            self.logger.info("chunk %s of %s not indexed: it has been deleted since", ids[2], volume)
            return
        with rdir_for(self, volume) as rdir:
            rdir.chunk_push(volume, *ids, mtime=when // 1000000, when=when, **options)
        self.count("pushed")

    def _chunk_deleted(self, env: Env, when: int, options: dict[str, Any]) -> None:
        data = self._object(env)
        if any(data.get(name) == "" for name in ("container_id", "content_id")):
            # The file that was deleted did not tell what it was (contract: rawx DELETE): no index has it.
            self.logger.info("chunk %s without ids deleted: in no index", data.get("chunk_id"))
            self.count("unnamed")
            return
        volume, ids = self._chunk(env)
        forget_chunk(self, volume, ids, when, options)
        self.count("deleted")

    def _chunk(self, env: Env) -> tuple[str, tuple[str, str, str]]:
        """Volume of a chunk, and the ids of its container, its object and itself."""
        data = self._object(env)
        volume = data.get("volume_service_id") or data.get("volume_id")
        ids = tuple(data.get(name) for name in ("container_id", "content_id", "chunk_id"))
        if not all(isinstance(text, str) and text for text in (volume, *ids)):
            self.bury(f"{env['event']} without volume or ids: {data}")
        return str(volume), ids  # type: ignore[return-value]

    def _chunk_exists(self, env: Env, chunk_id: str, options: dict[str, Any]) -> bool:
        """:raises OioException, HttpClientError: when the rawx does not tell."""
        data = env["data"]
        service = data.get("volume_service_id") or data["volume_id"]
        with asking(self, service):
            return self._head(service, chunk_id, options)

    def _head(self, service: str, chunk_id: str, options: dict[str, Any]) -> bool:
        pauses = pauses_of(self)
        address = rawx_address(self, service)
        try:
            response = pool_of(self).request(
                "HEAD",
                f"http://{address}/{chunk_id}",
                headers={REQID_HEADER: options["reqid"]},
                timeout=(options["connection_timeout"], options["read_timeout"]),
            )
        except HttpClientError:
            forget_rawx(self, service)
            pauses.failed(service)
            raise
        pauses.answered(service)
        if response.status == 404:
            return False
        if response.status >= 500:
            raise OioException(f"rawx {address} answered {response.status}")
        return True

    # --- containers ---

    def _services(self, env: Env, when: int, options: dict[str, Any]) -> None:
        services = env.get("data") or []
        if isinstance(services, dict):
            services = services.get("services") or []
        if not isinstance(services, list) or not all(isinstance(service, dict) for service in services):
            self.bury(f"data of {env['event']} is not a list of services")
        self._add_bases(env, [one.get("host") for one in services if one.get("type") == "meta2"], when, options)

    def _container_new(self, env: Env, when: int, options: dict[str, Any]) -> None:
        """The link of a container may be older than the end of the former base of its name, and this is not."""
        peers = self._object(env).get("peers") or []
        if not isinstance(peers, list):
            self.bury(f"peers of {env['event']} is not a list")
        self._add_bases(env, peers, when, options)

    def _add_bases(self, env: Env, peers: list[Any], when: int, options: dict[str, Any]) -> None:
        if not peers:
            return
        path, url = self._container(env)
        if _is_late(when):
            linked = self._linked_peers(url, options)
            self.count("outlived", len([peer for peer in peers if peer not in linked]))
            peers = [peer for peer in peers if peer in linked]
        for peer in peers:
            if not isinstance(peer, str) or not peer:
                self.bury(f"{env['event']} with a service without host")
            with rdir_for(self, peer) as rdir:
                rdir.meta2_index_push(peer, path, url["id"], mtime=when // 1000000, when=when, **options)
            self.count("pushed")

    def _meta2_deleted(self, env: Env, when: int, options: dict[str, Any]) -> None:
        self._forget_base(env, self._object(env).get("peer"), when, options)

    def _container_deleted(self, env: Env, when: int, options: dict[str, Any]) -> None:
        peers = self._object(env).get("peers") or []
        if not isinstance(peers, list):
            self.bury(f"peers of {env['event']} is not a list")
        for peer in peers:
            self._forget_base(env, peer, when, options)

    def _forget_base(self, env: Env, peer: Any, when: int, options: dict[str, Any]) -> None:
        path, url = self._container(env)
        if not isinstance(peer, str) or not peer:
            self.bury(f"{env['event']} without peer")
        record = {"container_path": path, "container_id": url["id"], "when": when, **options}
        try:
            with rdir_for(self, peer) as rdir:
                try:
                    rdir.meta2_index_delete(peer, **record)
                except NotFound:
                    # See forget_chunk.
                    rdir.meta2_index_create(peer, **options)
                    rdir.meta2_index_delete(peer, **record)
        except VolumeException as exc:
            self.logger.info("%s not removed from the index of %s: %s", path, peer, exc)
            return
        self.count("deleted")

    def _container(self, env: Env) -> tuple[str, dict[str, Any]]:
        """Path of a container in the reverse directory, and its url."""
        url = env.get("url")
        if not isinstance(url, dict) or not all(
            isinstance(url.get(key), str) and url[key] for key in ("ns", "account", "user", "id")
        ):
            self.bury(f"{env['event']} without container: {url!r}")
        return f"{url['ns']}/{url['account']}/{url['user']}", url

    def _linked_peers(self, url: dict[str, Any], options: dict[str, Any]) -> set[str]:
        """Services that hold the base of a container now. :raises OioException: when that is not known."""
        try:
            found = directory_of(self).list(
                url["account"], url["user"], service_type="meta2", force_master=True, **options
            )
        except NotFound as exc:
            if exc.status in (REFERENCE_NOT_FOUND, CONTAINER_NOT_FOUND):
                return set()
            raise
        return {service["host"] for service in found["srv"]}

    def _object(self, env: Env) -> dict[str, Any]:
        data = env.get("data")
        if not isinstance(data, dict):
            self.bury(f"data of {env['event']} is not an object")
        return data

    actions = {
        CHUNK_NEW: _chunk_new,
        CHUNK_DELETED: _chunk_deleted,
        ACCOUNT_SERVICES: _services,
        CONTAINER_NEW: _container_new,
        META2_DELETED: _meta2_deleted,
        CONTAINER_DELETED: _container_deleted,
    }


filter_factory = make_filter_factory(VolumeIndexFilter)


@contextlib.contextmanager
def rdir_for(step: Filter, volume: str) -> Iterator[Any]:
    """Client of the reverse directory, to be used for one volume.

    :raises LeftAlone: when the one in charge of the volume did not answer a moment ago.
    """
    pauses, name = pauses_of(step), f"rdir of {volume}"
    with asking(step, name):
        try:
            yield rdir_of(step)
        except (OioNetworkException, ServiceBusy):
            pauses.failed(name)
            raise
        except StatusMessageException:
            pauses.answered(name)
            raise
        pauses.answered(name)


def forget_chunk(step: Filter, volume: str, ids: tuple[str, str, str], when: int, options: dict[str, Any]) -> None:
    """Remove a chunk, named by the ids of its container, its content and itself, from the index of a volume.

    :param when: date of the deletion; a chunk that took the same id later stays.
    :param options: keywords of the requests.
    :raises OioException: when that is not done.
    """
    with rdir_for(step, volume) as rdir:
        try:
            rdir.chunk_delete(volume, *ids, when=when, **options)
        except NotFound:
            # No index yet. The deletion must be known before what was pushed earlier comes, late.
            rdir.create(volume, **options)
            rdir.chunk_delete(volume, *ids, when=when, **options)


def _is_late(when: int) -> bool:
    return time.time() - when / 1e6 > LATE_S
