# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The consciences of a namespace tell each other what they learn.

Each one follows all the others: it asks them, over HTTP on the address of ``param_hub.me`` (which may be the one
where proxies find it), what changed since the last answer, and the request waits there until something did::

    GET /v1/hub/changes?instance=I&since=N&wait=SECONDS      200 Changes (see oio/conscience/replica.py)

An instance that is not the one that answers (it was restarted) is told everything: a conscience that comes back
with nothing knows everything again after one answer, and a conscience that was away catches up in the same way.
Nothing is lost by a connection that breaks, since what was not received is asked again.

What a conscience learns from another one is in its own changes too, hence the group converges even where not
all of its members see each other.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from urllib.parse import quote

import msgspec

from oio.conscience.persistence import Persistence
from oio.conscience.registry import Registry
from oio.conscience.replica import Changes
from oio.conscience.settings import HubSettings
from oio.http.client import HttpClientError, HttpPool
from oio.http.router import Router
from oio.http.server import Request, Response, Server, ServerConfig

logger = logging.getLogger("oio.conscience.hub")

# A request without news is answered after this long: it notices a peer that vanished.
WAIT_S = 5.0
WAIT_MAX_S = 60.0
# Time allowed to a peer beyond what it was asked to wait; everything it knows may be in the answer.
ANSWER_TIMEOUT_S = 10.0
# At start, how long the peers may take to tell what they know before this conscience answers without them.
FILL_TIMEOUT_S = 3.0
# Between two requests to a peer, so that many registrations travel together.
PAUSE_S = 0.05
RETRY_MIN_S, RETRY_MAX_S = 0.2, 1.0

_decode = msgspec.json.Decoder(Changes).decode


class HubError(Exception):
    """Raised when what a peer answers cannot be used."""


class Hub:
    """Serves the changes of a registry, and follows those of its peers.

    :param router: of a server that listens on the address of the hub already; None makes a server.
    """

    def __init__(
        self,
        settings: HubSettings,
        registry: Registry,
        persistence: Persistence | None,
        router: Router | None = None,
    ) -> None:
        self._registry = registry
        self._pool = HttpPool(max_idle_per_address=1)
        self._server: Server | None = None
        if router is None:
            router = Router()
            config = ServerConfig(max_threads=self.threads_of(settings), access_log=None)
            self._server = Server(router, [settings.listen], config)
        router.add("GET", "/v1/hub/changes", self._changes)
        self.followers = [Follower(peer, registry, persistence, self._pool) for peer in settings.peers]

    @staticmethod
    def threads_of(settings: HubSettings) -> int:
        """Threads of a server that the requests of the peers hold: each has one waiting, and maybe a second one
        for a moment after its connection broke.
        """
        return 4 + 4 * len(settings.peers)

    def start(self) -> None:
        """Begin; returns when every peer told what it knows, or failed to, or let too much time pass."""
        if self._server is not None:
            self._server.start()
        for follower in self.followers:
            follower.start()
        deadline = time.monotonic() + FILL_TIMEOUT_S
        for follower in self.followers:
            follower.tried.wait(max(0.0, deadline - time.monotonic()))

    def stop(self, grace_s: float = 10.0) -> None:
        """Learn nothing more; the peers are still told what happens here, until :meth:`close`."""
        for follower in self.followers:
            follower.stop()
        if self._server is None:
            self._registry.close()  # the server that is stopped next must not wait for the peers

    def close(self, grace_s: float = 2.0) -> None:
        """End."""
        self._registry.close()
        if self._server is not None:
            self._server.stop(grace_s)
        self._pool.close()

    def status(self) -> dict[str, Any]:
        """State of the link with each peer."""
        return {follower.peer: follower.status() for follower in self.followers}

    def _changes(self, request: Request) -> Response:
        query = request.query
        try:
            since, instance = int(query.get("since", "0")), int(query.get("instance", "0"))
            wait_s = min(WAIT_MAX_S, max(0.0, float(query.get("wait", "0"))))
        except ValueError as exc:
            return Response(400, f"{exc}\n".encode())
        if instance != self._registry.instance or not 0 <= since <= self._registry.sequence:
            since, wait_s = 0, 0.0
        body = msgspec.json.encode(self._registry.changes_since(since, wait_s))
        return Response(200, body, [("Content-Type", "application/json")])


class Follower:
    """Keeps a registry up to date with one peer."""

    def __init__(
        self, peer: str, registry: Registry, persistence: Persistence | None, pool: HttpPool
    ) -> None:
        self.peer = peer
        #: Set after the first answer, or the first failure.
        self.tried = threading.Event()
        self._registry = registry
        self._persistence = persistence
        self._pool = pool
        self._stopping = threading.Event()
        self._connected: bool | None = None
        self._instance = 0
        self._sequence = 0
        self._received = 0
        self._heard_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"hub-{peer}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the request that is under way."""
        self._stopping.set()

    def status(self) -> dict[str, Any]:
        """State of the link: ``{"connected", "received", "silence_s"}``."""
        heard_s = self._heard_s
        return {
            "connected": self._connected is True,
            "received": self._received,
            "silence_s": round(time.monotonic() - heard_s, 3) if heard_s else None,
        }

    def _run(self) -> None:
        retry_s = RETRY_MIN_S
        while not self._stopping.is_set():
            try:
                # After a failure the peer must not wait for news: being there is the news.
                self._follow(WAIT_S if self._connected else 0.0)
                retry_s, pause_s = RETRY_MIN_S, PAUSE_S
            except (HttpClientError, HubError) as exc:
                self._lost(exc)
                pause_s, retry_s = retry_s, min(RETRY_MAX_S, retry_s * 2)
            except Exception:
                # Without this thread nothing of this peer is ever known again.
                logger.exception("changes of the conscience %s not applied", self.peer)
                pause_s = RETRY_MAX_S
            self.tried.set()
            self._stopping.wait(pause_s)

    def _follow(self, wait_s: float) -> None:
        target = f"/v1/hub/changes?instance={self._instance}&since={self._sequence}&wait={quote(str(wait_s))}"
        timeout_s = wait_s + ANSWER_TIMEOUT_S
        response = self._pool.request("GET", f"http://{self.peer}{target}", timeout=timeout_s)
        if response.status != 200:
            raise HubError(f"status {response.status}")
        try:
            changes = _decode(response.data)
        except msgspec.DecodeError as exc:
            raise HubError(f"unreadable answer: {exc}") from exc
        if changes.instance == self._registry.instance:
            # The address of the group that leads back here, written in another way than param_hub.me.
            logger.warning("%s of param_hub.group is this conscience itself", self.peer)
            self._connected = True
            self.stop()
            return
        self._check_namespace(changes)
        important = self._registry.merge(changes)
        self._instance, self._sequence = changes.instance, changes.sequence
        self._received += len(changes.services) + len(changes.removals)
        self._heard_s = time.monotonic()
        if not self._connected:
            self._connected = True
            logger.info("following the conscience %s, which told %d services", self.peer, len(changes.services))
        if important and self._persistence is not None:
            self._persistence.save()

    def _check_namespace(self, changes: Changes) -> None:
        if changes.namespace != self._registry.namespace:
            raise HubError(f"it serves the namespace {changes.namespace}")

    def _lost(self, error: Exception) -> None:
        if self._connected is not False and not self._stopping.is_set():
            logger.warning("conscience %s cannot be followed, tried again: %s", self.peer, error)
        self._connected = False
