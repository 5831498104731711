# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Clients of the reverse directory.

``RdirClient`` finds the rdir in charge of a volume in the directory, and remembers it for a minute, or until a
network error. ``BatchingRdirClient`` sends in one request what concurrent threads (or green threads) push and
delete at the same time: a lone caller waits for nobody, and the more callers wait the larger the requests become.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from oio.api.base import HttpApi, split_keywords
from oio.common.batching import Batcher
from oio.common.easy_value import true_value
from oio.common.exceptions import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    OioException,
    OioNetworkException,
    VolumeException,
)
from oio.common.utils import cid_from_name, request_id
from oio.conscience.client import ConscienceClient
from oio.directory.client import DirectoryClient

RDIR_ACCT = "_RDIR"

BATCH_RECORDS_MAX = 2000
"""Records of one request: half a megabyte, which a service handles in some tens of milliseconds."""

ADDRESS_AGE_MAX_S = 60.0
"""An address is asked again after that long: another rdir may have been assigned, while the former one still
answers. When the directory does not tell, the known one stays."""

_PATHS = {"rawx": "/v1/rdir/", "meta2": "/v1/rdir/meta2/"}
_REQID_PREFIX = "rdir-"
_TRUNCATED_HEADER, _MARKER_HEADER = "x-oio-list-truncated", "x-oio-list-marker"
_META2_PAGE = 4096

# A record, and the keywords of its request.
_Record = tuple[dict[str, Any], dict[str, Any]]

_encode = msgspec.json.Encoder().encode


class RdirClient(HttpApi):
    """Client of the reverse directory.

    >>> client = RdirClient({"namespace": "OPENIO"})  # doctest: +SKIP
    >>> client.chunk_push("OPENIO-rawx-1", cid, content_id, chunk_id, mtime=1700000000)  # doctest: +SKIP
    >>> list(client.chunk_fetch("OPENIO-rawx-1"))  # doctest: +SKIP
    [('<cid>', '<content id>', '<chunk id>', {'mtime': 1700000000})]

    A volume is designated by its service id, or by its address when it has none. Keywords of requests
    (``reqid``, ``read_timeout``…) are accepted by all methods.

    :param conf: must hold ``namespace``.
    :param directory_client: to find the rdir of a volume with.
    :keyword endpoint: location of the proxy.
    """

    def __init__(
        self, conf: Mapping[str, Any], directory_client: DirectoryClient | None = None, **kwargs: Any
    ) -> None:
        endpoint = kwargs.pop("endpoint", None)
        super().__init__(service_type="rdir", **kwargs)
        self.conf = conf
        self.ns = conf["namespace"]
        self._proxy_kwargs = {**kwargs, "endpoint": endpoint, "pool_manager": self.pool_manager}
        if directory_client is not None:
            self.directory = directory_client
        self._addresses: dict[str, tuple[str, float]] = {}

    @functools.cached_property
    def directory(self) -> DirectoryClient:
        """Client of the directory, on the same connections."""
        return DirectoryClient(self.conf, **self._proxy_kwargs)

    @functools.cached_property
    def cs(self) -> ConscienceClient:
        """Client of the registry of services, on the same connections."""
        return ConscienceClient(self.conf, **self._proxy_kwargs)

    # --- finding the service ---

    def _get_rdir_addr(self, volume_id: str, reqid: str | None = None, **kwargs: Any) -> str:
        """Address of the rdir in charge of a volume. :raises VolumeException: when there is none."""
        known = self._addresses.get(volume_id)
        if known is not None and time.monotonic() - known[1] < ADDRESS_AGE_MAX_S:
            return known[0]
        try:
            address = self._find_rdir(volume_id, reqid=reqid, **kwargs)
        except VolumeException:
            raise
        except OioException as exc:
            if known is None:
                raise
            self.logger.warning("rdir of %s not asked again, still %s: %s", volume_id, known[0], exc)
            address = known[0]
        self._addresses[volume_id] = (address, time.monotonic())
        return address

    def _find_rdir(self, volume_id: str, **kwargs: Any) -> str:
        try:
            found = self.directory.list(RDIR_ACCT, volume_id, service_type="rdir", **kwargs)
        except NotFound as exc:
            raise VolumeException(f"No rdir assigned to volume {volume_id}: {exc}") from exc
        host = next((link["host"] for link in found.get("srv") or () if link.get("type") == "rdir"), None)
        if not host:
            raise VolumeException(f"No rdir assigned to volume {volume_id}")
        return self.cs.resolve_service_id("rdir", host, **kwargs)

    def _clear_cache(self, volume_id: str) -> None:
        """Forget the address of the rdir of a volume."""
        self._addresses.pop(volume_id, None)

    def _rdir_request(
        self,
        volume: str,
        method: str,
        action: str,
        create: bool = False,
        params: Mapping[str, Any] | None = None,
        service_type: str = "rawx",
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Send a request about a volume; returns (response, body)."""
        query = {"vol": volume, **(params or {})}
        if create:
            query["create"] = "1"
        reqid = kwargs.get("reqid")
        if not reqid:
            reqid = kwargs["reqid"] = request_id(_REQID_PREFIX)
        timeouts = {
            name: kwargs[name]
            for name in ("connection_timeout", "read_timeout", "timeout", "deadline")
            if kwargs.get(name) is not None
        }
        address = self._get_rdir_addr(volume, reqid=reqid, **timeouts)
        url = f"http://{address}{_PATHS[service_type]}{action}"
        try:
            return self._direct_request(method, url, params=query, **kwargs)
        except OioNetworkException:
            self._clear_cache(volume)
            raise

    # --- chunks ---

    def create(self, volume_id: str, service_type: str = "rawx", **kwargs: Any) -> None:
        """Create the database of a volume, unless it exists."""
        self._rdir_request(volume_id, "POST", "create", service_type=service_type, **kwargs)

    def chunk_push(
        self,
        volume_id: str,
        container_id: str,
        content_id: str,
        chunk_id: str,
        headers: Mapping[str, Any] | None = None,
        **data: Any,
    ) -> None:
        """Tell that a volume holds a chunk.

        :keyword mtime: in seconds.
        :keyword when: time of the event, in microseconds: the push is ignored when it is older than what the
            service knows of this chunk.
        """
        record, kwargs = _split(data, container_id, content_id, chunk_id)
        self._rdir_request(
            volume_id, "POST", "push", create=True, json=record, headers=headers, **kwargs
        )

    def chunk_delete(
        self, volume_id: str, container_id: str, content_id: str, chunk_id: str, **kwargs: Any
    ) -> None:
        """Tell that a volume does not hold a chunk any more.

        :keyword when: time of the event, in microseconds: the deletion is ignored when it is older than what
            the service knows of this chunk.
        """
        record, kwargs = _split(kwargs, container_id, content_id, chunk_id)
        self._rdir_request(volume_id, "DELETE", "delete", json=record, **kwargs)

    def chunk_push_many(
        self, volume_id: str, records: Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> None:
        """Push records (``container_id``, ``content_id``, ``chunk_id``, ``mtime``, ``when``), at most 10,000:
        all of them or none. Services of the 7.x series do not know this route.
        """
        self._send_many("push-many", volume_id, records, create=True, **kwargs)

    def chunk_delete_many(
        self, volume_id: str, records: Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> None:
        """Delete records, at most 10,000: all of them or none. Services of the 7.x series do not know this
        route.
        """
        self._send_many("delete-many", volume_id, records, **kwargs)

    def _send_many(
        self, action: str, volume_id: str, records: Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> None:
        if records:
            self._rdir_request(volume_id, "POST", action, data=_encode({"records": records}), **kwargs)

    def chunk_fetch(
        self,
        volume: str,
        limit: int = 1000,
        rebuild: bool = False,
        container_id: str | None = None,
        max_attempts: int = 3,
        start_after: str | None = None,
        shuffle: bool = False,
        full_urls: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
        """Yield (container id, content id, chunk id, value) of the chunks of a volume, in order of the ids.

        :param limit: records per request.
        :param rebuild: only those to rebuild: not younger than the incident.
        :param container_id: only those of this container.
        :param max_attempts: tries for each request when the network fails.
        :param start_after: ``CONTAINER|CONTENT|CHUNK`` to go on after.
        :param shuffle: shuffle each page.
        :param full_urls: give ``http://VOLUME/CHUNK`` instead of the chunk id.
        """
        body: dict[str, Any] = {"limit": limit}
        if rebuild:
            body["rebuild"] = True
        if container_id:
            body["container_id"] = container_id
        if start_after:
            body["start_after"] = start_after
        while True:
            resp, page = self._attempt(max_attempts, volume, "POST", "fetch", json=body, **kwargs)
            page = page or []
            told = resp.headers.get(_TRUNCATED_HEADER)
            # Very old services do not tell: they are asked until they have nothing left.
            truncated = bool(page) if told is None else true_value(told)
            if truncated:
                body["start_after"] = _marker(resp) or page[-1][0]
            if shuffle:
                random.shuffle(page)
            for key, value in page:
                container, content, chunk = key.split("|", 2)
                yield container, content, f"http://{volume}/{chunk}" if full_urls else chunk, value
            if not truncated:
                return

    def status(
        self,
        volume: str,
        max: int = 1000,
        prefix: str | None = None,
        marker: str | None = None,
        max_attempts: int = 3,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Count the chunks of a volume: ``{"chunk": {"total": 3}, "container": {"<cid>": {"total": 3}}}``, with
        ``to_rebuild`` beside ``total`` after an incident.

        :param max: records counted by one request.
        :param prefix: count only the records whose keys begin like this.
        :param marker: count only the records after this key.
        """
        params = {"max": max, "prefix": prefix, "marker": marker}
        chunks: dict[str, int] = {}
        containers: dict[str, dict[str, int]] = {}
        while True:
            resp, body = self._attempt(max_attempts, volume, "GET", "status", params=params, **kwargs)
            _add(chunks, body.get("chunk") or {})
            for container, counters in (body.get("container") or {}).items():
                _add(containers.setdefault(container, {}), counters)
            if not true_value(resp.headers.get(_TRUNCATED_HEADER)):
                return {"chunk": chunks, "container": containers}
            params["marker"] = _marker(resp)

    def _attempt(self, max_attempts: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Send a request that changes nothing, again after a network error, with growing pauses."""
        for attempt in range(max_attempts):
            try:
                return self._rdir_request(*args, **kwargs)
            except OioNetworkException:
                if attempt + 1 >= max_attempts:
                    raise
                time.sleep(attempt)
        raise ValueError("max_attempts must be positive")

    # --- administration ---

    def admin_incident_set(self, volume: str, date: float, **kwargs: Any) -> None:
        """Declare an incident: chunks that are not younger than this date (seconds) are to rebuild."""
        self._rdir_request(volume, "POST", "admin/incident", json={"date": int(date)}, **kwargs)

    def admin_incident_get(self, volume: str, **kwargs: Any) -> int:
        """Date of the incident, 0 when there is none."""
        _resp, body = self._rdir_request(volume, "GET", "admin/incident", **kwargs)
        return int(body.get("date") or 0)

    def admin_lock(self, volume: str, who: str, **kwargs: Any) -> None:
        """Take the lock of a volume. :raises Forbidden: when somebody else has it."""
        self._rdir_request(volume, "POST", "admin/lock", json={"who": who}, **kwargs)

    def admin_unlock(self, volume: str, **kwargs: Any) -> None:
        """Release the lock of a volume, whoever has it."""
        self._rdir_request(volume, "POST", "admin/unlock", **kwargs)

    def admin_show(self, volume: str, **kwargs: Any) -> dict[str, str]:
        """Administrative entries: ``{"incident_date": "1700000000", "lock": "me"}``."""
        _resp, body = self._rdir_request(volume, "GET", "admin/show", **kwargs)
        return dict(body)

    def admin_clear(
        self,
        volume: str,
        clear_all: bool = False,
        before_incident: bool = False,
        repair: bool = False,
        **kwargs: Any,
    ) -> dict[str, int]:
        """Remove records (all, or those before the incident), or repair them; the incident ends in any case.

        :returns: ``{"removed": 1, "repaired": 0, "errors": 0}``.
        """
        params = {"all": bool(clear_all), "before_incident": bool(before_incident), "repair": bool(repair)}
        _resp, body = self._rdir_request(volume, "POST", "admin/clear", params=params, **kwargs)
        return dict(body)

    # --- containers ---

    def meta2_index_create(self, volume_id: str, **kwargs: Any) -> None:
        """Create the database of a meta2, unless it exists."""
        self._rdir_request(volume=volume_id, method="POST", action="create", service_type="meta2", **kwargs)

    def meta2_index_push(
        self, volume_id: str, container_url: str, container_id: str, mtime: float, **kwargs: Any
    ) -> None:
        """Tell that a meta2 holds the base of a container.

        :param container_url: ``NS/account/container``.
        :keyword when: time of the event, in microseconds (see :meth:`chunk_push`).
        :keyword extra_data: any text.
        """
        extra, kwargs = split_keywords(kwargs)
        record = {
            "container_url": container_url, "container_id": container_id, "mtime": int(mtime), **extra
        }  # fmt: skip
        self._rdir_request(
            volume=volume_id, method="POST", action="push", create=True, json=record, service_type="meta2",
            **kwargs,
        )  # fmt: skip

    def meta2_index_delete(
        self,
        volume_id: str,
        container_path: str | None = None,
        container_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell that a meta2 does not hold the base of a container any more.

        :param container_path: ``NS/account/container``; asked to the directory when only the id is given.
        :keyword when: time of the event, in microseconds (see :meth:`chunk_push`).
        :raises ValueError: when neither is given.
        """
        extra, kwargs = split_keywords(kwargs)
        if not container_path:
            if not container_id:
                raise ValueError("container_path or container_id is needed")
            found = self.directory.list(cid=container_id, **kwargs)
            container_path = f"{self.ns}/{found['account']}/{found['name']}"
        elif not container_id:
            _ns, account, container = container_path.split("/", 2)
            container_id = cid_from_name(account, container)
        record = {"container_url": container_path, "container_id": container_id, **extra}
        self._rdir_request(
            volume=volume_id, method="POST", action="delete", create=False, json=record,
            service_type="meta2", **kwargs,
        )  # fmt: skip

    def meta2_index_fetch(
        self,
        volume_id: str,
        prefix: str | None = None,
        marker: str | None = None,
        limit: int = _META2_PAGE,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One page of the containers of a meta2: ``{"records": [{"container_url": …}], "truncated": False}``."""
        options = {"prefix": prefix, "marker": marker, "limit": limit}
        body = {name: value for name, value in options.items() if value is not None}
        _resp, page = self._rdir_request(
            volume=volume_id, method="POST", action="fetch", json=body, service_type="meta2", **kwargs
        )
        return dict(page)

    def meta2_index_fetch_all(self, volume_id: str, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Yield all the containers of a meta2, in order of their URLs."""
        marker = None
        while True:
            page = self.meta2_index_fetch(volume_id, marker=marker, **kwargs)
            yield from page["records"]
            if not page["truncated"] or not page["records"]:
                return
            marker = page["records"][-1]["container_url"]


class BatchingRdirClient(RdirClient):
    """Sends together what concurrent callers push to, or delete from, the same volume.

    Each call returns, or raises, when its own record has been dealt with. Calls made one after the other take
    effect in this order; concurrent ones in any order. Works with threads, and with green threads when eventlet
    has patched the process.

    :keyword gathers: let the green threads that are ready join before a request leaves.
    """

    def __init__(self, conf: Mapping[str, Any], *args: Any, gathers: bool = False, **kwargs: Any) -> None:
        super().__init__(conf, *args, **kwargs)
        self._gathers = gathers
        self._batchers: dict[tuple[str, str], Batcher[_Record, None]] = {}
        self._without_batches: set[str] = set()

    def chunk_push(
        self,
        volume_id: str,
        container_id: str,
        content_id: str,
        chunk_id: str,
        headers: Mapping[str, Any] | None = None,
        **data: Any,
    ) -> None:
        """See :meth:`RdirClient.chunk_push`. Calls with headers travel alone."""
        if headers:
            super().chunk_push(volume_id, container_id, content_id, chunk_id, headers, **data)
            return
        self._submit("push", volume_id, *_split(data, container_id, content_id, chunk_id))

    def chunk_delete(
        self, volume_id: str, container_id: str, content_id: str, chunk_id: str, **kwargs: Any
    ) -> None:
        """See :meth:`RdirClient.chunk_delete`."""
        self._submit("delete", volume_id, *_split(kwargs, container_id, content_id, chunk_id))

    def _submit(self, action: str, volume: str, record: dict[str, Any], kwargs: dict[str, Any]) -> None:
        batcher = self._batchers.get((action, volume))
        if batcher is None:
            send = functools.partial(self._send_batch, action, volume)
            batcher = self._batchers.setdefault(
                (action, volume), Batcher(send, BATCH_RECORDS_MAX, gathers=self._gathers)
            )
        batcher.submit((record, kwargs))

    def _send_batch(self, action: str, volume: str, batch: list[_Record]) -> list[Exception | None]:
        """Send a batch with the options of its first caller; returns the outcome of each."""
        if len(batch) > 1 and volume not in self._without_batches:
            records = [record for record, _ in batch]
            try:
                self._send_many(f"{action}-many", volume, records, create=action == "push", **batch[0][1])
                return [None] * len(batch)
            except (BadRequest, MethodNotAllowed, NotFound) as exc:
                # A record that is refused must not harm the others; and this may be a service without batches.
                if isinstance(exc, MethodNotAllowed) or "Route" in str(exc.message):
                    self._without_batches.add(volume)
        return [self._send_one(action, volume, *one) for one in batch]

    def _send_one(
        self, action: str, volume: str, record: dict[str, Any], kwargs: dict[str, Any]
    ) -> Exception | None:
        try:
            if action == "push":
                self._rdir_request(volume, "POST", "push", create=True, json=record, **kwargs)
            else:
                self._rdir_request(volume, "DELETE", "delete", json=record, **kwargs)
        except Exception as exc:
            return exc  # for its caller
        return None


def _split(
    keywords: dict[str, Any], container_id: str, content_id: str, chunk_id: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body of a chunk record, and the keywords of the request."""
    data, kwargs = split_keywords(keywords)
    return {"container_id": container_id, "content_id": content_id, "chunk_id": chunk_id, **data}, kwargs


def _marker(resp: Any) -> str | None:
    """Key to go on after; headers are read as latin-1, and this one is UTF-8."""
    marker: str | None = resp.headers.get(_MARKER_HEADER)
    return marker.encode("latin-1").decode("utf-8", "replace") if marker else None


def _add(totals: dict[str, int], counters: Mapping[str, int]) -> None:
    for name, count in counters.items():
        totals[name] = totals.get(name, 0) + count


def __getattr__(name: str) -> Any:
    if name in ("JOKER_SVC_TARGET", "RdirDispatcher", "_make_id"):
        # Where programs look for them; loaded when asked for, since the dispatcher stands on this client.
        from oio.rdir import dispatcher

        return getattr(dispatcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
