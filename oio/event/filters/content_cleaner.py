# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``content_cleaner``: deletes the chunks of contents that were deleted, or drained.

Options: ``concurrency`` (3; chunks of one event deleted at the same time), ``timeout`` (5 s, per chunk),
``delay`` (0 s; chunks are deleted this long after their content, for those who are still reading it).

The event is the proof: it was written in the transaction that removed the content. It proves nothing about a
chunk that took the same id since, so each request tells the time of the event, and the rawx refuses (412) to
delete what is newer.

A chunk that the rawx does not have (404) is deleted already. Its rawx may have died before it could tell: the
reverse directory is told instead, which changes nothing when it was.

When a rawx does not answer, or fails, the event comes again later, and finds the other chunks deleted. Meanwhile
that rawx is left alone for a while (see :class:`~oio.event.filters.clients.ServicePauses`): the events that name
its chunks come back at once, so that the others never wait for it.
"""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

from oio.common.constants import REQID_HEADER
from oio.common.exceptions import BadRequest, ConfigurationException, OioException, VolumeException
from oio.event.filters.base import Callback, Env, Filter, make_filter_factory
from oio.event.filters.clients import (
    LeftAlone,
    ServicePauses,
    check_pause,
    forget_rawx,
    pauses_of,
    pool_of,
    rawx_address,
    retry_after,
)
from oio.event.filters.volume_index import forget_chunk
from oio.http.client import ClientConnection, ConnectionClosed, HttpClientError

KINDS = ("storage.content.deleted", "storage.content.drained")
CONCURRENCY = 3
TIMEOUT_S = 5.0
CONNECT_TIMEOUT_MAX_S = 2.0
CREATED_BEFORE_HEADER = "x-oio-chunk-created-before"
CONTAINER_ID_HEADER = "x-oio-chunk-meta-container-id"
# Methods whose chunks rawx services hold; the header of a content that was drained names no other any more.
METHODS = ("plain", "ec", "drained")

# What the answer of a rawx means, and under which name it is counted; all the others are failures.
_DONE = {200: "deleted", 204: "deleted", 404: "missing", 412: "newer"}
_ID = re.compile(r"[0-9A-Fa-f]{1,64}")
_REQID_PREFIX = "content-cleaner-"
_CHUNK_URL = re.compile(r"(https?)://([^/\s?#@]+)/([0-9A-Fa-f]{1,64})\Z")


class Chunk(NamedTuple):
    """A chunk to delete."""

    scheme: str
    service: str
    id: str


class ContentCleanerFilter(Filter):
    """Deletes the chunks of an event, and goes on."""

    def init(self) -> None:
        """Read the options."""
        # The agent has an option of the same name, which means something else.
        self._concurrency = self.int_option("concurrency", CONCURRENCY, minimum=1, own=True)
        timeout_s = self.float_option("timeout", TIMEOUT_S)
        self._timeout = (min(timeout_s, CONNECT_TIMEOUT_MAX_S), timeout_s)
        self._delay_s = self.float_option("delay", 0.0)

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event."""
        if env.get("event") not in KINDS:
            return self.app(env, beanstalkd, cb)
        chunks = self._chunks(env)
        if not chunks:
            return self.app(env, beanstalkd, cb)
        when = self.when_of(env)
        wait_s = when / 1e6 + self._delay_s - time.time()
        if self._delay_s and wait_s > 0:
            return self.retry(cb, f"not before {self._delay_s:g} s after the deletion", wait_s)
        missing, failures = self._delete_all(chunks, self._headers(env, when))
        try:
            self._unindex(env, when, missing)
        except OioException as exc:
            return self.retry(cb, f"reverse directory: {exc}", retry_after(exc))
        if failures:
            return self.retry(
                cb, f"{len(failures)} of {len(chunks)} chunks not deleted: {'; '.join(failures[:3])}"
            )
        return self.app(env, beanstalkd, cb)

    def _unindex(self, env: Env, when: int, missing: list[Chunk]) -> None:
        """Remove chunks from the reverse directory. :raises OioException: when it does not answer."""
        container_id, content_id = self._ids(env)
        if not container_id or not content_id:
            return
        options = {
            "reqid": self.reqid_of(env, _REQID_PREFIX),
            "connection_timeout": self._timeout[0],
            "read_timeout": self._timeout[1],
        }
        for chunk in missing:
            ids = (container_id, content_id, chunk.id.upper())
            try:
                forget_chunk(self, chunk.service, ids, when, options)
            except (BadRequest, ConfigurationException, VolumeException) as exc:
                # Nobody indexes this volume.
                self.logger.debug("chunk %s of %s not removed from an index: %s", chunk.id, chunk.service, exc)

    def _headers(self, env: Env, when: int) -> list[tuple[str, str]]:
        headers = [(CREATED_BEFORE_HEADER, str(when)), (REQID_HEADER, self.reqid_of(env, _REQID_PREFIX))]
        container_id, _ = self._ids(env)
        if container_id:
            headers.append((CONTAINER_ID_HEADER, container_id))
        return headers

    def _ids(self, env: Env) -> tuple[str, str]:
        """Ids of the container and of the content, empty when they are not told."""
        url = env.get("url") or {}
        if not isinstance(url, dict):
            self.bury(f"url of {env['event']} is not an object")
        return _id(url.get("id")), _id(url.get("content"))

    def _chunks(self, env: Env) -> list[Chunk]:
        """Chunks that an event names, each once. :raises ExplicitBury: when it cannot be understood."""
        data = env.get("data") or []
        if not isinstance(data, list) or not all(isinstance(bean, dict) for bean in data):
            self.bury(f"data of {env['event']} is not a list of beans")
        found: dict[tuple[str, str], Chunk] = {}
        method = None
        for bean in data:
            if bean.get("type") == "contents_headers":
                method = bean.get("chunk-method") or method
            if bean.get("type") != "chunks":
                continue
            match = _CHUNK_URL.match(str(bean.get("id")))
            if match is None:
                self.bury(f"{str(bean.get('id'))[:200]!r} is not the URL of a chunk")
            found[match[2], match[3].upper()] = Chunk(match[1], match[2], match[3])
        # Without a header, the URLs tell: they are those of chunks of a rawx.
        if found and method is not None and str(method).partition("/")[0] not in METHODS:
            self.bury(f"chunks of the method {method!r} cannot be deleted")
        return list(found.values())

    def _delete_all(self, chunks: list[Chunk], headers: list[tuple[str, str]]) -> tuple[list[Chunk], list[str]]:
        """Delete chunks, some at a time; returns those that were gone already, and what failed."""
        missing, failures = [], []
        for start in range(0, len(chunks), self._concurrency):
            # All the requests of a group leave before the first answer is waited for.
            group = [_Deletion(self, chunk, headers) for chunk in chunks[start : start + self._concurrency]]
            try:
                for deletion in group:
                    deletion.send()
                for deletion in group:
                    deletion.settle()
            finally:
                for deletion in group:
                    deletion.abandon()
            missing += [deletion.chunk for deletion in group if deletion.missing]
            failures += [deletion.failure for deletion in group if deletion.failure]
        return missing, failures

    @property
    def pauses(self) -> ServicePauses:
        """Which services are left alone."""
        return pauses_of(self)

    @property
    def timeout(self) -> tuple[float, float]:
        """To connect, and to read, in seconds."""
        return self._timeout


class _Deletion:
    """The request that deletes one chunk, from its departure to its outcome."""

    def __init__(self, step: ContentCleanerFilter, chunk: Chunk, headers: list[tuple[str, str]]) -> None:
        self._step = step
        self.chunk = chunk
        self._headers = headers
        self._address = ""
        self._connection: ClientConnection | None = None
        self.failure = ""
        self.missing = False

    def send(self) -> None:
        """Send the request, as far as that needs no answer."""
        try:
            check_pause(self._step, self.chunk.service)
            self._address = rawx_address(self._step, self.chunk.service)
            self._connection = self._connect()
            self._connection.put_request("DELETE", f"/{self.chunk.id}", self._headers)
            self._connection.flush()
        except LeftAlone as exc:
            # The event comes back when the agent decides: a rawx that is gone for good must not keep it for ever.
            self.failure = str(exc)
        except ConnectionClosed as exc:
            self._again(exc)
        except (HttpClientError, OioException, ValueError) as exc:
            self._fail(str(exc))

    def settle(self) -> None:
        """Read the answer."""
        connection = self._connection
        if connection is None:
            return
        try:
            response = connection.getresponse()
            body = response.read()
            response.release()
            self._connection = None
            self._judge(response.status, body)
        except ConnectionClosed as exc:
            self._again(exc)
        except HttpClientError as exc:
            self._fail(str(exc))

    def abandon(self) -> None:
        """Close what is not settled."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> ClientConnection:
        host, _, port = self._address.rpartition(":")
        connect_s, read_s = self._step.timeout
        return pool_of(self._step).acquire(
            host.strip("[]"), int(port), self.chunk.scheme, connect_timeout_s=connect_s,
            read_timeout_s=read_s, write_timeout_s=read_s,
        )  # fmt: skip

    def _again(self, reason: ConnectionClosed) -> None:
        """Send the request again, when the connection had served before: the rawx may have closed it idle."""
        reused = self._connection is not None and self._connection.reused
        self.abandon()
        if not reused:
            self._fail(str(reason))
            return
        url = f"{self.chunk.scheme}://{self._address}/{self.chunk.id}"
        try:
            response = pool_of(self._step).request("DELETE", url, self._headers, timeout=self._step.timeout)
        except HttpClientError as exc:
            self._fail(str(exc))
            return
        self._judge(response.status, response.data)

    def _judge(self, status: int, body: bytes) -> None:
        step, chunk = self._step, self.chunk
        outcome = _DONE.get(status)
        if outcome is None:
            step.count("failures")
            # Perhaps another service listens there now: ask for the address again.
            forget_rawx(step, chunk.service)
            self.failure = f"{chunk.service} answered {status} {bytes(body[:100])!r} about {chunk.id}"
            if status == 503:
                step.pauses.failed(chunk.service)
            else:
                step.pauses.answered(chunk.service)
            return
        step.pauses.answered(chunk.service)
        step.count(outcome)
        self.missing = outcome == "missing"
        if outcome == "newer":
            step.logger.info("chunk %s of %s is newer than its deletion: kept", chunk.id, chunk.service)

    def _fail(self, reason: str) -> None:
        step, service = self._step, self.chunk.service
        self.abandon()
        step.count("failures")
        forget_rawx(step, service)
        pause_s = step.pauses.failed(service)
        if pause_s is not None:
            step.logger.warning("rawx %s is left alone for %.1f s: %s", service, pause_s, reason)
        self.failure = f"{service}: {reason}"


filter_factory = make_filter_factory(ContentCleanerFilter)


def _id(text: Any) -> str:
    """What is an id, else nothing."""
    return text if isinstance(text, str) and _ID.fullmatch(text) else ""
