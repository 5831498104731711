# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Deletes the chunks of deleted contents.

The event is the proof: it was written in the transaction that removed the content. A chunk that its rawx
does not have (404) is deleted already. A chunk whose rawx does not answer, or refuses, goes to the retry
base, and the event is done: other events never wait for a dead rawx.

While a service does not answer, nothing is sent to it but one try per back-off period, which doubles up to
``SERVICE_BACKOFF_MAX_S``; the first success opens it again. A chunk that its rawx refuses has its own
back-off. Both carry a random part, so that what failed together is not tried again together.
"""

from __future__ import annotations

import random
import re
import threading
import time
from typing import Any
from urllib.parse import quote

import msgspec

from oio.event.filters import BuryEvent, Event, Filter, FilterContext
from oio.event.retry_store import PendingChunk, StoreError
from oio.http.client import HttpClientError

TIMEOUT_DEFAULT_S = 5.0
CONNECT_TIMEOUT_MAX_S = 2.0
SERVICE_BACKOFF_MIN_S = 1.0
SERVICE_BACKOFF_MAX_S = 60.0
CHUNK_BACKOFF_MIN_S = 5.0
CHUNK_BACKOFF_MAX_S = 3600.0
# Pause between two looks at the retry base, and chunks taken at once for a service.
RETRY_PERIOD_S = 0.5
RETRY_BATCH = 64
# A service that moves keeps its id: its address is asked again after this long, or after a failure.
ADDRESS_TTL_S = 30.0
_CHUNK_URL = re.compile(r"https?://([^/\s?#]+)/([0-9A-Fa-f]{1,64})\Z")
_ADDRESS = re.compile(r"^(\d{1,3}(\.\d{1,3}){3}|\[[0-9A-Fa-f:.]+\]):\d{1,5}\Z")


class Unreachable(Exception):
    """Raised when a service does not answer, or cannot be found."""


class Refused(Exception):
    """Raised when a service answers that it did not delete a chunk."""


class ContentCleaner(Filter):
    """Options: ``timeout`` (s, per chunk), ``delay`` (s between the event and the deletion)."""

    def __init__(self, context: FilterContext, options: dict[str, str]) -> None:
        super().__init__(context, options)
        timeout_s = float(options.get("timeout", TIMEOUT_DEFAULT_S))
        self._timeout = (min(timeout_s, CONNECT_TIMEOUT_MAX_S), timeout_s)
        self._delay_s = float(options.get("delay", 0))
        self._addresses: dict[str, tuple[str, float]] = {}
        self._closed = ServiceBackoff()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._retry_loop, name="cleaner", daemon=True)
        self._count_lock = threading.Lock()
        self._counts = {"deleted": 0, "missing": 0, "postponed": 0, "failures": 0}

    def start(self) -> None:
        """Start the retries."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """End the retries."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(grace_s)

    def metrics(self) -> dict[str, int]:
        """Chunks deleted, found missing, postponed, and failed tries."""
        with self._count_lock:
            return dict(self._counts)

    def process(self, event: Event) -> None:
        """Delete the chunks of an event, or remember them."""
        chunks = chunks_of(event)
        later = []
        if self._delay_s > 0:
            when_s = float(event.get("when") or time.time() * 1e6) / 1e6
            later = [chunk._replace(due_s=when_s + self._delay_s) for chunk in chunks]
        else:
            for chunk in chunks:
                postponed = self._try(chunk)
                if postponed is not None:
                    later.append(postponed)
        if later:
            self.context.store.add(later)
            self._count("postponed", len(later))

    def _try(self, chunk: PendingChunk) -> PendingChunk | None:
        """Delete a chunk; returns it, with its next date, when that failed."""
        if self._closed.is_closed(chunk.service):
            return chunk
        try:
            self._delete(chunk)
        except Unreachable as exc:
            self._count("failures")
            pause_s = self._closed.failed(chunk.service)
            if pause_s is not None:
                self.context.logger.warning(
                    "chunks of %s are kept for later, next try in %.1f s: %s", chunk.service, pause_s, exc
                )
            return chunk
        except Refused as exc:
            self._count("failures")
            self._closed.succeeded(chunk.service)
            pause_s = backoff(chunk.attempts, CHUNK_BACKOFF_MIN_S, CHUNK_BACKOFF_MAX_S)
            self.context.logger.warning(
                "chunk http://%s/%s not deleted, next try in %.0f s: %s [%s]",
                chunk.service, chunk.chunk, pause_s, exc, chunk.request_id,
            )
            return chunk._replace(due_s=time.time() + pause_s, attempts=chunk.attempts + 1)
        self._closed.succeeded(chunk.service)
        return None

    def _delete(self, chunk: PendingChunk) -> None:
        address = self._resolve(chunk.service)
        headers = {"x-oio-req-id": chunk.request_id} if chunk.request_id else {}
        try:
            response = self.context.pool.request(
                "DELETE", f"http://{address}/{chunk.chunk}", headers=headers, timeout=self._timeout
            )
        except HttpClientError as exc:
            self._addresses.pop(chunk.service, None)
            raise Unreachable(f"{address}: {exc}") from exc
        if response.status in (200, 204):
            self._count("deleted")
        elif response.status == 404:
            self._count("missing")
        else:
            # Perhaps another service listens there now (418): ask for the address again.
            self._addresses.pop(chunk.service, None)
            raise Refused(f"{address} answered {response.status} {bytes(response.data[:100])!r}")

    def _resolve(self, service: str) -> str:
        if _ADDRESS.match(service):
            return service
        known = self._addresses.get(service)
        now = time.monotonic()
        if known is not None and now - known[1] < ADDRESS_TTL_S:
            return known[0]
        url = (
            f"{self.context.proxy_url}/v3.0/{self.context.namespace}/conscience/resolve"
            f"?type=rawx&service_id={quote(service, safe='')}"
        )
        try:
            response = self.context.pool.request("GET", url, timeout=self._timeout)
            if response.status != 200:
                raise Unreachable(f"cannot resolve {service}: {bytes(response.data[:200])!r}")
            address = msgspec.json.decode(response.data, type=dict[str, Any])["addr"]
        except (HttpClientError, msgspec.DecodeError, KeyError) as exc:
            raise Unreachable(f"cannot resolve {service}: {exc}") from exc
        self._addresses[service] = (address, now)
        return str(address)

    def _retry_loop(self) -> None:
        while not self._stopping.wait(RETRY_PERIOD_S):
            try:
                for service in self.context.store.services():
                    while self._retry_service(service) and not self._stopping.is_set():
                        continue
            except StoreError as exc:
                self.context.logger.error("deletions to retry: %s", exc)
            except Exception:
                # A defect must not end the retries for good: say it, and go on with the next period.
                self.context.logger.exception("deletions to retry")

    def _retry_service(self, service: str) -> bool:
        """Try some chunks of a service; returns whether to go on with it now."""
        if self._closed.is_closed(service):
            return False
        chunks = self.context.store.due(service, time.time(), RETRY_BATCH)
        if not chunks:
            self.context.store.forget_service(service)
            return False
        deleted, failed = [], []
        for chunk in chunks:
            postponed = self._try(chunk)
            if postponed is None:
                deleted.append(chunk)
            elif postponed.due_s != chunk.due_s:
                failed.append(postponed)
            if self._closed.is_closed(service) or self._stopping.is_set():
                break
        self.context.store.settle(deleted, failed)
        return not self._closed.is_closed(service)

    def _count(self, name: str, more: int = 1) -> None:
        with self._count_lock:
            self._counts[name] += more


class ServiceBackoff:
    """Which services are not to be tried for now. Not persisted: a restart tries each of them once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}

    def is_closed(self, service: str) -> bool:
        """Whether to leave a service alone."""
        state = self._failures.get(service)
        return state is not None and time.monotonic() < state[1]

    def failed(self, service: str) -> float | None:
        """Note a failure; returns the pause, None when another thread has just noted the same outage."""
        with self._lock:
            if self.is_closed(service):
                return None
            failures = self._failures.get(service, (0, 0.0))[0]
            pause_s = backoff(failures, SERVICE_BACKOFF_MIN_S, SERVICE_BACKOFF_MAX_S)
            self._failures[service] = (failures + 1, time.monotonic() + pause_s)
            return pause_s

    def succeeded(self, service: str) -> None:
        """Open a service."""
        if service in self._failures:
            with self._lock:
                self._failures.pop(service, None)


def backoff(attempts: int, first_s: float, longest_s: float) -> float:
    """Exponential back-off, half of it random."""
    return min(longest_s, first_s * 2.0 ** min(attempts, 30)) * random.uniform(0.5, 1.0)


def chunks_of(event: Event) -> list[PendingChunk]:
    """Chunks named by an event, each once. :raises BuryEvent: when its data cannot be understood."""
    data = event.get("data") or []
    if not isinstance(data, list):
        raise BuryEvent("data is not an array")
    request_id = event.get("request_id") or ""
    found: dict[tuple[str, str], PendingChunk] = {}
    for bean in data:
        if not isinstance(bean, dict):
            raise BuryEvent("data holds something that is no bean")
        if bean.get("type") != "chunks":
            continue
        match = _CHUNK_URL.match(str(bean.get("id")))
        if match is None:
            raise BuryEvent(f"{str(bean.get('id'))[:200]!r} is not the URL of a chunk")
        found[match[1], match[2]] = PendingChunk(match[1], match[2], request_id=str(request_id)[:63])
    return list(found.values())
