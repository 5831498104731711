# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A ZooKeeper whose lines a seed decides: hosts hear of changes late, or not at all while they are cut off."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from simulated_world import Host, World

from oio.meta.replication.candidacy import DISCONNECTED, JOINING, MEMBER, View

#: A ZooKeeper session ends after so long without its client (seconds).
SESSION_S = 3.0


class ZooKeeper:
    """Lines of all the elections; each host hears of changes late, or not at all while it is cut off."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lines: dict[str, list[tuple[int, str, int]]] = {}
        self.candidacies: list[SimCandidacy] = []
        self.cut: set[str] = set()
        self.slow_s = 0.02
        self._sequence = 0

    def add(self, candidacy: SimCandidacy) -> None:
        line = self.lines.setdefault(candidacy.key, [])
        if all(session != candidacy.session for _, _, session in line):
            # Nodes of a former process of the service go away.
            line[:] = [node for node in line if node[1] != candidacy.name]
            self._sequence += 1
            line.append((self._sequence, candidacy.name, candidacy.session))
            self.changed(candidacy.key)

    def remove(self, key: str, unwanted: Callable[[tuple[int, str, int]], bool]) -> None:
        line = self.lines.get(key, [])
        kept = [node for node in line if not unwanted(node)]
        if kept != line:
            self.lines[key] = kept
            self.changed(key)

    def expire(self, name: str) -> None:
        """The session of a host is over."""
        for key in list(self.lines):
            self.remove(key, lambda node: node[1] == name)

    def changed(self, key: str) -> None:
        for candidacy in self.candidacies:
            if candidacy.key == key and not candidacy.host.dead:
                candidacy.hear()

    def watch(self) -> None:
        """End the sessions of those that are away for too long."""
        away: dict[str, float] = {}
        while True:
            self.world.sleep(0.25)
            hosts = {candidacy.name: candidacy.host for candidacy in self.candidacies}
            for name, host in hosts.items():
                if host.dead or host.paused or name in self.cut:
                    since = away.setdefault(name, self.world.now)
                    if self.world.now - since > SESSION_S:
                        self.expire(name)
                elif away.pop(name, None) is not None:
                    self.returned(name)

    def returned(self, name: str) -> None:
        for candidacy in self.candidacies:
            if candidacy.name == name and not candidacy.host.dead:
                candidacy.hear()


class SimCandidacy:
    """The place of one host in one election, with the interface of Candidacy."""

    _sessions = 0

    def __init__(
        self, zookeeper: ZooKeeper, host: Host, key: str, name: str, on_change: Callable[[View], None]
    ) -> None:
        self.key, self.name, self.host = key, name, host
        self.view = View()
        self.log: deque[str] = deque(maxlen=64)
        self.state = "NONE"
        SimCandidacy._sessions += 1
        self.session = SimCandidacy._sessions
        self._zookeeper = zookeeper
        self._world = zookeeper.world
        self._on_change = on_change
        self._wanted = False
        self._hears = False
        self._again = False
        zookeeper.candidacies.append(self)

    def join(self) -> None:
        self._wanted = True
        self.hear()

    def leave(self) -> None:
        self._wanted = False
        self._later(lambda: self._zookeeper.remove(self.key, lambda node: node[1] == self.name))
        self.hear()

    def rejoin(self) -> None:
        if self._wanted:
            self._later(lambda: self._zookeeper.remove(self.key, lambda node: node[1] == self.name))

    def impeach(self, service_id: str) -> None:
        self._later(lambda: self._zookeeper.remove(self.key, lambda node: node[1] == service_id))

    def note(self, event: str, state: str) -> None:
        self._world.note(f"{self.name}: election {self.key[:4]} {self.state} {event} {state}")
        self.state = state

    def _later(self, act: Callable[[], object]) -> None:
        def run() -> None:
            self._world.sleep(self._world.random.uniform(0.001, self._zookeeper.slow_s))
            if self.name not in self._zookeeper.cut:
                act()

        self._world.spawn(run, self._world.nobody, "zookeeper")

    def hear(self) -> None:
        """Something changed: see it, some time later."""
        if self._hears:
            self._again = True
            return
        self._hears = True
        self._world.spawn(self._listen, self.host, "line")

    def _listen(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            self._world.sleep(self._world.random.uniform(0.001, self._zookeeper.slow_s))
            view = self._look()
            if view is not None and view != self.view:
                self.view = view
                self._on_change(view)
        self._hears = False

    def _look(self) -> View | None:
        if not self._wanted:
            return View()
        if self.name in self._zookeeper.cut:
            # It may find out, or believe for a while what it knew.
            if self._world.random.random() < 0.5:
                return View(DISCONNECTED, self.view.master, False, self.view.members)
            return None
        line = self._zookeeper.lines.get(self.key, [])
        if all(session != self.session for _, _, session in line):
            self._later(lambda: self._wanted and not self.host.dead and self._zookeeper.add(self))
        members = tuple((str(number), name) for number, name, _ in line)
        member = any(session == self.session for _, _, session in line)
        master = members[0][1] if members else ""
        return View(MEMBER if member else JOINING, master, member and master == self.name, members)

    def wait_for(self, predicate: Callable[[View], bool], timeout_s: float) -> bool:
        limit = self._world.clock() + timeout_s
        while not predicate(self.view):
            if self._world.clock() >= limit:
                return False
            self._world.sleep(0.01)
        return True
