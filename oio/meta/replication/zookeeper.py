# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Sessions with ZooKeeper, for elections that outlive every failure of ZooKeeper itself.

An :class:`Ensemble` is one session with one ZooKeeper cluster. It connects in the background and for ever: a
ZooKeeper that is down neither prevents a service from starting nor floods its log. All the elections of a process
share one thread of the ensemble (the *loop*), on which every reply and every event arrives in order; what callers
want to be told is told on a few other threads, so that a slow listener delays nobody.

What kazoo, the client beneath, does not do by itself:

* Only some requests are handed to it at a time. It wakes its thread through a socket pair that holds a few hundred
  bytes, one per request; beyond, the caller would wait, for ever if the connection is lost.
* It may not leave a server that hangs before the session is over: see :mod:`oio.zk.handler`.
* After a loss it insists on the session and on the last transaction that it saw. A ZooKeeper that restarted from
  an empty disk refuses both, always. So a session that has not come back within its own timeout is given up: to
  the servers it is over as well.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from oio.zk.tree import Tree, ensembles_of

if TYPE_CHECKING:
    from kazoo.client import KazooClient

__all__ = ["CONNECTED", "LOST", "SUSPENDED", "Ensemble", "Mailbox", "Tree", "ZooKeepers", "ensembles_of"]

#: The session is alive and the connection works.
CONNECTED = "CONNECTED"
#: The connection is lost; the session, and the nodes that it holds, may be alive or not.
SUSPENDED = "SUSPENDED"
#: The session is over, and its nodes are gone.
LOST = "LOST"

#: Requests that kazoo is given at once. Its socket pair holds at least 250 wake-ups, and those of requests that a
#: lost connection cancelled stay in it until the next connection.
REQUESTS_AT_ONCE = 64
#: Threads that call listeners: elections of one process are told of changes by that many at once.
NOTIFYING_THREADS = 4
#: The connection is tried again after 0.1 s, and less and less often up to this delay in seconds.
RETRY_DELAY_MAX_S = 1.0
#: A server that does not confirm the end of a session is not waited for longer than that (seconds): the session
#: ends by its timeout then.
STOP_S = 3.0

logger = logging.getLogger("oio.zookeeper")
# Kazoo tells every attempt to connect. What matters is told here, once.
_quiet = logging.getLogger("oio.zookeeper.kazoo")
_quiet.setLevel(logging.ERROR)

T = TypeVar("T")


class Watcher(Protocol):
    """What an ensemble tells about its connection, on the loop."""

    def connection_changed(self, state: str) -> None:
        """The session is now in this state."""


class Mailbox(Generic[T]):
    """Delivers items to one function, in order and one at a time, on the threads of a pool."""

    __slots__ = ("_busy", "_deliver", "_items", "_lock", "_pool")

    def __init__(self, pool: ThreadPoolExecutor, deliver: Callable[[T], None]) -> None:
        self._pool = pool
        self._deliver = deliver
        self._items: deque[T] = deque()
        self._lock = threading.Lock()
        self._busy = False

    def put(self, item: T) -> None:
        """Have an item delivered after those that were put before. Never waits."""
        with self._lock:
            self._items.append(item)
            if self._busy:
                return
            self._busy = True
        try:
            self._pool.submit(self._drain)
        except RuntimeError:
            logger.debug("Not told after the end: %s", item)

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._items:
                    self._busy = False
                    return
                item = self._items.popleft()
            try:
                self._deliver(item)
            except Exception:
                logger.exception("A listener of an election failed, told of %s", item)


class Ensemble:
    """One session with one ZooKeeper cluster.

    :param hosts: ``host:port,host:port``, maybe with a root (``…/root``) behind.
    :param session_timeout_s: without news for so long, ZooKeeper removes the nodes of this process. The servers
        bound it (2 to 20 times their tick).
    :param shuffle: begin with any of the hosts, not always with the first.
    :param reconnections_max: a session whose connection comes back more often than that within ``window_s`` is
        given up, with all its nodes: others shall lead. 0: as often as it happens.
    """

    def __init__(
        self,
        hosts: str,
        session_timeout_s: float = 10.0,
        *,
        shuffle: bool = True,
        reconnections_max: int = 0,
        window_s: float = 30.0,
    ) -> None:
        self.hosts = hosts
        self.session_timeout_s = session_timeout_s
        self._shuffle = shuffle
        self._reconnections_max, self._window_s = reconnections_max, window_s
        #: Id of the session; 0 before the first.
        self.session = 0
        self._connected = False
        self._losses = 0
        self._lock = threading.Lock()
        self._client: KazooClient | None = None
        self._inbox: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._loop: threading.Thread | None = None
        self._pool = ThreadPoolExecutor(NOTIFYING_THREADS, thread_name_prefix="zookeeper-news")
        self._watchers: dict[Watcher, None] = {}
        self._listeners: dict[Callable[[str], None], Mailbox[str]] = {}
        # Only the loop touches what follows.
        self._generation = 0
        self._waiting: deque[tuple[str, tuple[Any, ...], dict[str, Any], Callable[[Any], None]]] = deque()
        self._sent = 0
        self._had_session = False
        self._warned = False
        #: When the connection came back.
        self._returns: deque[float] = deque()

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect; comes back at once."""
        if self._loop is None:
            self._loop = threading.Thread(target=self._run, name="zookeeper-loop", daemon=True)
            self._loop.start()
            self.post(self._open)

    def stop(self) -> None:
        """End the session: its nodes disappear at once. Comes back within seconds, even without connection."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        was_connected, self._connected = self._connected, False
        self._inbox.put(None)
        if threading.current_thread() is not loop:
            loop.join()
        client, self._client = self._client, None
        if client is not None:
            # Kazoo waits for the attempt under way, or for a server that hangs, as long as the session lasts.
            end = threading.Thread(target=_discard, args=(client,), daemon=True)
            end.start()
            if was_connected:
                end.join(STOP_S)
        self._pool.shutdown(wait=False)

    @property
    def connected(self) -> bool:
        """Is the session known to be alive, now? A suspended connection is none."""
        return self._connected

    @property
    def client(self) -> KazooClient:
        """The client beneath, for requests that may wait. :raises RuntimeError: before the start."""
        if self._client is None:
            raise RuntimeError(f"Not started: session with ZooKeeper {self.hosts}")
        return self._client

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until the session is alive; tells whether it is."""
        arrived = threading.Event()

        def listen(state: str) -> None:
            if state == CONNECTED:
                arrived.set()

        self.add_listener(listen)
        try:
            return self._connected or arrived.wait(timeout_s)
        finally:
            self.remove_listener(listen)

    def add_listener(self, listener: Callable[[str], None]) -> None:
        """Have a function told of each CONNECTED, SUSPENDED and LOST, in order, on a thread that may wait."""
        self._listeners[listener] = Mailbox(self._pool, listener)

    def remove_listener(self, listener: Callable[[str], None]) -> None:
        """Forget a listener."""
        self._listeners.pop(listener, None)

    # -- what elections stand on ---------------------------------------------------------------

    def attach(self, watcher: Watcher) -> None:
        """Have an election told of changes of the connection, on the loop."""
        self._watchers[watcher] = None

    def detach(self, watcher: Watcher) -> None:
        """Forget an election."""
        self._watchers.pop(watcher, None)

    def mailbox(self, deliver: Callable[[T], None]) -> Mailbox[T]:
        """A box that tells one function of news, in order, on the threads of this ensemble."""
        return Mailbox(self._pool, deliver)

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function on the loop. It must not wait for anything."""
        self._inbox.put((function, args))

    def call_later(self, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        """Call a function on the loop after a delay. From the loop only."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._numbers), function, args))

    def request(self, method: str, *args: Any, then: Callable[[Any], None], **kwargs: Any) -> None:
        """Send a request, and give its reply to ``then`` on the loop. From the loop only.

        :param method: ``create``, ``delete``, ``get``, ``get_children``, ``ensure_path``.
        :param then: called with kazoo's result, whose ``get()`` gives the reply or raises. Never called when the
            connection changes before the reply: those who wait for one are told of the change.
        """
        self._waiting.append((method, args, kwargs, then))
        self._send_waiting()

    # -- the loop ------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            timeout_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            try:
                item = self._inbox.get(timeout=timeout_s)
            except queue.Empty:
                _, _, function, args = heapq.heappop(self._timers)
            else:
                if item is None:
                    return
                function, args = item
            try:
                function(*args)
            except Exception:
                logger.exception("An event of ZooKeeper %s was not handled", self.hosts)

    def _open(self) -> None:
        """Make a client of our own, without session."""
        from oio.zk.handler import open_client

        client = open_client(
            self.hosts,
            self.session_timeout_s,
            _quiet,
            shuffle=self._shuffle,
            connection_retry={"max_tries": -1, "delay": 0.1, "backoff": 1.5, "max_delay": RETRY_DELAY_MAX_S},
        )
        self._client = client
        self._had_session = False
        self._returns.clear()
        client.add_listener(lambda state: self._on_state(client, state))
        client.start_async()
        self._watch_for_failure(client)

    def _on_state(self, client: KazooClient, state: str) -> None:
        """Kazoo's own thread tells a change: nobody may believe in the session from here on."""
        if not self._is_present(client):
            return
        with self._lock:
            if state != CONNECTED:
                self._connected = False
                self._losses += 1
            losses = self._losses
        # The session's id is set before it is announced, by this very thread.
        self.post(self._changed, client, state, client._session_id or 0, losses)

    def _is_present(self, client: KazooClient) -> bool:
        """A client that was given up may still have something to tell."""
        return client is self._client

    def _changed(self, client: KazooClient, state: str, session: int, losses: int) -> None:
        if not self._is_present(client) or self._loop is None:
            return
        self._generation += 1
        self._waiting.clear()
        self._sent = 0
        if state == CONNECTED:
            from oio.zk.handler import make_root

            logger.info("ZooKeeper %s: connected, session 0x%x", self.hosts, session & (2**64 - 1))
            if self._had_session and self._comes_back_too_often():
                self._give_up(client)
                return
            if session != self.session:
                make_root(client)
            self.session = session
            self._had_session = True
            self._warned = False
            with self._lock:
                # It may have been lost again meanwhile, which is about to be told.
                self._connected = losses == self._losses
        else:
            what = "connection lost" if state == SUSPENDED else "session over"
            logger.warning("ZooKeeper %s: %s", self.hosts, what)
            self._watch_for_failure(client)
        self._tell(state)

    def _tell(self, state: str) -> None:
        for watcher in list(self._watchers):
            watcher.connection_changed(state)
        for box in list(self._listeners.values()):
            box.put(state)

    def _watch_for_failure(self, client: KazooClient) -> None:
        self.call_later(self.session_timeout_s, self._check_failure, client, self._generation)

    def _check_failure(self, client: KazooClient, generation: int) -> None:
        """The connection did not come back within the timeout of the session."""
        if not self._is_present(client) or generation != self._generation:
            return
        if not self._had_session and client.client_state != "CLOSED":
            # It is still at its first connection, and it holds nothing that could be refused.
            if not self._warned:
                self._warned = True
                logger.warning("ZooKeeper %s: no answer yet; it is tried for ever", self.hosts)
            self._watch_for_failure(client)
            return
        self._give_up(client)

    def _comes_back_too_often(self) -> bool:
        now = time.monotonic()
        self._returns.append(now)
        while self._returns[0] < now - self._window_s:
            self._returns.popleft()
        return 0 < self._reconnections_max < len(self._returns)

    def _give_up(self, client: KazooClient) -> None:
        """End the session, and begin another one: behind all others in each election."""
        logger.warning("ZooKeeper %s: the session is given up", self.hosts)
        threading.Thread(target=_discard, args=(client,), daemon=True).start()
        self._generation += 1
        self._tell(LOST)
        self._open()

    def _send_waiting(self) -> None:
        while self._waiting and self._sent < REQUESTS_AT_ONCE and self._connected and self._client is not None:
            method, args, kwargs, then = self._waiting.popleft()
            self._sent += 1
            result = getattr(self._client, method + "_async")(*args, **kwargs)
            result.rawlink(_Forward(self, self._generation, then))

    def _replied(self, generation: int, then: Callable[[Any], None], result: Any) -> None:
        if generation == self._generation:
            self._sent -= 1
            try:
                then(result)
            finally:
                self._send_waiting()


class _Forward:
    """Brings a reply from the thread of kazoo to the loop."""

    __slots__ = ("_ensemble", "_generation", "_then")

    def __init__(self, ensemble: Ensemble, generation: int, then: Callable[[Any], None]) -> None:
        self._ensemble = ensemble
        self._generation = generation
        self._then = then

    def __call__(self, result: Any) -> None:
        self._ensemble.post(self._ensemble._replied, self._generation, self._then, result)


class ZooKeepers:
    """The sessions of a service with all the ZooKeeper clusters of its namespace.

    :param conf: options of the namespace.
    :param options: those of :class:`Ensemble`.
    :raises ValueError: when no ZooKeeper is configured.
    """

    def __init__(
        self,
        conf: Mapping[str, str],
        namespace: str,
        service_type: str,
        session_timeout_s: float = 10.0,
        **options: Any,
    ) -> None:
        self.namespace = namespace
        self.service_type = service_type
        self.ensembles = [
            Ensemble(hosts, session_timeout_s, **options) for hosts in ensembles_of(conf, service_type)
        ]
        if not self.ensembles:
            raise ValueError(f"No ZooKeeper is configured for {service_type} of {namespace}")

    def ensemble_of(self, key: str) -> Ensemble:
        """The cluster that holds an election: the same for all who have the same configuration."""
        digest = hashlib.sha256(key.encode()).digest()
        return self.ensembles[int.from_bytes(digest[:8], "big") % len(self.ensembles)]

    def start(self) -> None:
        """Begin to connect; comes back at once."""
        for ensemble in self.ensembles:
            ensemble.start()

    def stop(self) -> None:
        """End all sessions: the nodes of this process disappear at once."""
        with ThreadPoolExecutor(len(self.ensembles)) as pool:
            list(pool.map(Ensemble.stop, self.ensembles))

    @property
    def connected(self) -> bool:
        """Are all the sessions alive?"""
        return all(ensemble.connected for ensemble in self.ensembles)


def _discard(client: KazooClient) -> None:
    """End a client; it may wait for an attempt to connect."""
    from kazoo.exceptions import KazooException

    try:
        client.stop()
        client.close()
    except (KazooException, OSError) as exc:
        logger.debug("End of a session with ZooKeeper: %s", exc)
