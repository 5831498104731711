# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""How the client of ZooKeeper waits: not as long as a session lasts for one server that does not answer.

Kazoo gives each attempt to connect the whole timeout of the session. A server whose host is gone, or that accepts
connections while it starts and never answers them, would make it lose the session although another server is well,
or although the same one would answer a second attempt.
"""

from __future__ import annotations

from typing import Any

from kazoo.handlers.threading import SequentialThreadingHandler

#: Longest wait for the first attempt, in seconds; each one that waited in vain doubles it, for servers under load.
FIRST_ATTEMPT_S = 3.0


class ImpatientHandler(SequentialThreadingHandler):
    """Bounds the waits of attempts to connect.

    :ivar connected: set by the owner: once it is, waits are those that the client asks for.
    :param session_timeout_s: what an attempt takes at most.
    """

    def __init__(self, session_timeout_s: float) -> None:
        super().__init__()
        self._longest_s = session_timeout_s
        self._limit_s = 0.0
        self.connected = False
        self.reset()

    def reset(self) -> None:
        """The connection works: the next loss begins with short attempts."""
        self._limit_s = min(FIRST_ATTEMPT_S, max(1.0, self._longest_s / 3), self._longest_s)

    def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Connect; may wait as long as an attempt lasts."""
        kwargs["timeout"] = min(self._limit_s, kwargs.get("timeout") or self._limit_s)
        try:
            return super().create_connection(*args, **kwargs)
        except TimeoutError:
            self._waited_in_vain()
            raise

    def select(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for sockets; before the session is there, this waits for the answer to our greeting."""
        if self.connected or len(args) < 4 or args[3] is None or args[3] <= self._limit_s:
            return super().select(*args, **kwargs)
        found = super().select(*args[:3], self._limit_s, *args[4:], **kwargs)
        if not any(found):
            self._waited_in_vain()
        return found

    def _waited_in_vain(self) -> None:
        self._limit_s = min(self._limit_s * 2, self._longest_s)
