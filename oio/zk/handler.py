# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""How the client of ZooKeeper waits: never as long as a session lasts for one server that does not answer.

An ensemble of servers is of use when a client leaves the one that fails, for another, before its session is over.
What kazoo, the client beneath, does instead:

* It gives each attempt to connect the whole timeout of the session. A server whose host is gone, or that accepts
  connections and never answers (it starts, or hangs), would make it lose the session although another server is
  well, or although the same one would answer a second attempt.
* After a loss it tries the servers in a new random order: the one that was just lost as soon as the others.
* It asks for a sign of life when it has had nothing to ask for a third of the session. So a client that asks
  something now and then waits for a server that hangs as long as that: its session is over, and nobody tells it.
"""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, Any

from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.hosts import collect_hosts
from kazoo.protocol.serialization import Create
from kazoo.protocol.states import KazooState
from kazoo.security import OPEN_ACL_UNSAFE

if TYPE_CHECKING:
    from kazoo.client import KazooClient

#: Longest wait for the first attempt, in seconds.
FIRST_ATTEMPT_S = 3.0
#: Shortest one, however many servers there are: a server under load must have the time to answer.
FIRST_ATTEMPT_MIN_S = 1.0
#: Part of a session after which a server that left a question without answer is given up.
PATIENCE = 2 / 3


class ImpatientHandler(SequentialThreadingHandler):
    """Bounds the waits of attempts to connect, and those for answers.

    One third of the session is left when a server is given up: enough to try all the others once. Each round of
    attempts that all waited in vain makes the next one twice as patient, for servers under load.

    :ivar connected: is the session there? :meth:`state_changed` is to be told.
    :param session_timeout_s: what an attempt takes at most.
    :param servers: how many of them there are to try.
    """

    def __init__(self, session_timeout_s: float, servers: int = 1) -> None:
        super().__init__()
        self._longest_s = session_timeout_s
        self._servers = servers
        self._limit_s = 0.0
        self._in_vain = 0
        #: When the question was asked that nothing was heard after; 0: none.
        self._asked_at = 0.0
        self.connected = False
        self.reset()

    def state_changed(self, state: str) -> None:
        """A listener of the client."""
        self.connected = state == KazooState.CONNECTED
        if self.connected:
            self.reset()

    def reset(self) -> None:
        """The connection works: the next loss begins with short attempts."""
        share_s = self._longest_s / 3 / max(1, self._servers - 1)
        self._limit_s = min(FIRST_ATTEMPT_S, max(FIRST_ATTEMPT_MIN_S, share_s), self._longest_s)
        self._in_vain = 0
        self._asked_at = 0.0

    def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Connect; may wait as long as an attempt lasts."""
        kwargs["timeout"] = min(self._limit_s, kwargs.get("timeout") or self._limit_s)
        try:
            return super().create_connection(*args, **kwargs)
        except TimeoutError:
            self._waited_in_vain()
            raise

    def select(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for sockets; before the session is there, this waits for the answer to our greeting.

        :raises KazooTimeoutError: when a question was not answered for too long.
        """
        if self.connected:
            return self._select_answers(*args, **kwargs)
        if len(args) < 4 or args[3] is None or args[3] <= self._limit_s:
            return super().select(*args, **kwargs)
        found = super().select(*args[:3], self._limit_s, *args[4:], **kwargs)
        if not any(found):
            self._waited_in_vain()
        return found

    def _select_answers(self, readers: Any, writers: Any, errors: Any, timeout: float | None = None) -> Any:
        if writers:  # a question is about to be sent
            self._asked_at = self._asked_at or time.monotonic()
        if not self._asked_at or not readers:
            return super().select(readers, writers, errors, timeout)
        left_s = self._asked_at + self._longest_s * PATIENCE - time.monotonic()
        timeout = max(0.0, left_s if timeout is None else min(timeout, left_s))
        found = super().select(readers, writers, errors, timeout)
        # The connection comes first, what wakes its thread second.
        if readers[0] in found[0]:
            self._asked_at = 0.0
        elif time.monotonic() - self._asked_at >= self._longest_s * PATIENCE:
            raise self.timeout_exception("no answer for two thirds of a session")
        return found

    def _waited_in_vain(self) -> None:
        self._in_vain += 1
        if self._in_vain % self._servers == 0:
            self._limit_s = min(self._limit_s * 2, self._longest_s)


def open_client(
    hosts: str, session_timeout_s: float, logger: logging.Logger, *, shuffle: bool = True, **options: Any
) -> KazooClient:
    """A client that leaves servers that fail in time; not started yet.

    :param hosts: ``host:port,host:port``, maybe with a root behind. Tried in turn.
    :param shuffle: from any of them on, in any order.
    :raises ValueError: when these are no hosts.
    """
    from kazoo.client import KazooClient

    addresses, _, root = hosts.partition("/")
    servers = addresses.split(",")
    if shuffle:
        random.shuffle(servers)
    handler = ImpatientHandler(session_timeout_s, len(collect_hosts(hosts)[0]))
    client = KazooClient(
        ",".join(servers) + (f"/{root}" if root else ""),
        timeout=session_timeout_s,
        handler=handler,
        logger=logger,
        # A name alone may stand for several addresses, of which none should be the first for everybody.
        randomize_hosts=len(servers) == 1,
        **options,
    )
    client.add_listener(handler.state_changed)
    return client


def make_root(client: KazooClient) -> None:
    """Make the root that all paths of a client are below, if it has one and it is missing.

    No reply is waited for: requests that are made later are served later, and find it.
    """
    path = ""
    for name in client.chroot.strip("/").split("/") if client.chroot else ():
        path += f"/{name}"
        client._call(Create(path, b"", OPEN_ACL_UNSAFE, 0), client.handler.async_result())
