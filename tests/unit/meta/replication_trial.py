# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What clients do to simulated services, what is done to these meanwhile, and what must be true of it all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from replication_history import History, Violation
from replication_simulation import TOY, Cluster, Service, Weather, enter
from simulated_world import Stuck, World

from oio.common import status
from oio.common.status import StatusError
from oio.meta.base_messages import BaseCopyFrom, BaseLeave, BaseRemove
from oio.meta.base_type import PEERS
from oio.meta.client import Route
from oio.meta.context import Context
from oio.meta.replication.operations import AlreadyDone
from oio.meta.transaction import Reader, Transaction

BIRTH = "user.birth"
#: Codes after which nobody knows whether a write was made.
UNKNOWN = frozenset({*range(2, 10), 303, 500, 503, 504, 509})
ABSENT = status.CONTAINER_NOT_FOUND


class Client:
    """One caller: knows who leads each base, or finds out."""

    def __init__(self, trial: Trial, name: str) -> None:
        self.trial = trial
        self.name = name
        self.masters: dict[str, str] = {}
        self._count = 0

    def fresh(self) -> str:
        self._count += 1
        return f"{self.name}{self._count}"

    def ask(
        self,
        base: str,
        act: Callable[[Service, Route, float], object],
        operation: str = "",
        patience_s: float = 25.0,
        check_absent: bool = True,
    ) -> tuple[object, bool]:
        """Ask until somebody answers; (answer or error, may it have been done?)"""
        trial = self.trial
        world = trial.world
        unknown = False
        suspects: set[str] = set()
        error = StatusError(status.UNAVAILABLE, "nobody")
        limit = world.now + patience_s
        while world.now < limit:
            peers = trial.directory[base]
            target = self.masters.get(base, "")
            if target not in trial.cluster.services:
                target = world.random.choice(peers)
            route = Route(tuple(peers), tuple(sorted(suspects)), operation)
            begun_at = world.now
            try:
                answer = trial.cluster.network.call(
                    self.name, target, lambda service, route=route: act(service, route, 5.0), 6.0
                )
                self.masters[base] = target
                return answer, unknown
            except AlreadyDone as exc:
                return msgspec.msgpack.decode(exc.reply) if exc.reply else None, True
            except StatusError as exc:
                error = exc
            world.note(f"{self.name}: {base} on {target}: {error}")
            self.masters.pop(base, None)
            if error.code == status.REDIRECT:
                self.masters[base] = error.message
            elif error.code == ABSENT:
                if "not managed" in error.message:
                    world.sleep(0.2)
                    continue
                if check_absent:
                    trial.histories[base].absent(begun_at)
                return error, unknown
            elif error.code in UNKNOWN:
                if error.code != status.CONNECTION_REFUSED:
                    unknown = True
                if error.code in range(2, 10):
                    suspects.add(target)
            else:
                return error, unknown
            world.sleep(world.random.uniform(0.01, 0.3))
        return error, unknown

    # --- operations ---------------------------------------------------------------------------------------

    def create(self, base: str) -> None:
        history = self.trial.histories[base]
        world = self.trial.world
        begun_at = world.now

        def act(service: Service, route: Route, timeout_s: float) -> object:
            birth = f"{service.name}-{self.fresh()}"
            history.asked(birth)

            def init(tx: Transaction) -> None:
                tx.set(BIRTH, birth)
                tx.emit({"event": "birth", "op": birth})

            limit = world.clock() + timeout_s
            return birth if service.repository.create(base, init, limit, route) else ""

        answer, _ = self.ask(base, act)
        world.note(f"{self.name}: create {base} -> {answer!r}")
        if isinstance(answer, str) and answer:
            history.created(answer, begun_at)
        elif answer == "":
            history.existed(begun_at)

    def write(self, base: str) -> None:
        history = self.trial.histories[base]
        world = self.trial.world
        op, begun_at = self.fresh(), world.now
        key, erase = world.random.randrange(6), world.random.random() < 0.3
        refuses = world.random.random() < 0.05

        def fn(tx: Transaction) -> str:
            tx.execute("INSERT INTO done(op) VALUES(?)", (op,))
            if erase:
                tx.execute("DELETE FROM items WHERE k = ?", (key,))
            else:
                tx.execute("INSERT OR REPLACE INTO items(k, v) VALUES(?, ?)", (key, op))
            tx.emit({"event": "write", "op": op})
            if refuses:
                raise StatusError(status.CONTAINER_FROZEN, "refused")
            return tx.get(BIRTH) or ""

        def act(service: Service, route: Route, timeout_s: float) -> object:
            limit = world.clock() + timeout_s
            return service.repository.write(base, fn, deadline=limit, route=route)

        answer, unknown = self.ask(base, act, f"{op:0>32}")
        world.note(f"{self.name}: write {op} to {base} -> {answer!r}")
        if isinstance(answer, str):
            history.acknowledged(answer, op, begun_at)
        elif isinstance(answer, StatusError) and answer.code not in UNKNOWN and not unknown:
            history.refused(op)

    def read(self, base: str) -> None:
        history = self.trial.histories[base]
        world = self.trial.world
        while True:
            begun_at = world.now
            seen = {birth: life.seen for birth, life in history.lives.items()}

            def fn(reader: Reader) -> tuple[str, list[str]]:
                world.point("reading")
                ops = [op for (op,) in reader.execute("SELECT op FROM done ORDER BY n").fetchall()]
                return reader.get(BIRTH) or "", ops

            def act(service: Service, route: Route, timeout_s: float) -> object:
                limit = world.clock() + timeout_s
                return service.repository.read(base, fn, deadline=limit, route=route)

            answer, _ = self.ask(base, act, patience_s=8.0)
            if isinstance(answer, tuple):
                birth, ops = answer
                world.note(f"{self.name}: read {base} {birth} {len(ops)} from {begun_at - 1000:.3f}")
                history.read(birth, ops, begun_at, seen.get(birth, []))
            return

    def destroy(self, base: str) -> None:
        history = self.trial.histories[base]
        world = self.trial.world
        op = self.fresh()
        births: set[str] = set()

        def last(tx: Transaction) -> None:
            birth = tx.get(BIRTH) or ""
            births.add(birth)
            history.dying(birth)
            tx.emit({"event": "death", "op": birth})

        def act(service: Service, route: Route, timeout_s: float) -> object:
            service.repository.destroy(base, last, world.clock() + timeout_s, route)
            return None

        answer, _ = self.ask(base, act, f"{op:0>32}")
        world.note(f"{self.name}: destroy {base} {sorted(births)} -> {answer!r}")
        if answer is None or (isinstance(answer, StatusError) and answer.code == ABSENT):
            history.destroyed(births)

    def vacuum(self, base: str) -> None:
        world = self.trial.world

        def act(service: Service, route: Route, timeout_s: float) -> object:
            service.repository.vacuum(base, world.clock() + timeout_s, route._replace(operation=""))
            return None

        self.ask(base, act)

    # --- administration -----------------------------------------------------------------------------------

    def handled(self, target: str, request: Any, patience_s: float = 10.0) -> bool:
        """Have a service do something, whoever is master; did it?"""
        world = self.trial.world

        def act(service: Service) -> object:
            context = Context(deadline=world.clock() + 5.0)
            return service.handlers[type(request)](request, context)

        limit = world.now + patience_s
        while world.now < limit:
            try:
                self.trial.cluster.network.call(self.name, target, act, 6.0)
                return True
            except StatusError as exc:
                world.note(f"{self.name}: {type(request).__name__} of {request.base} on {target}: {exc}")
                if exc.code == ABSENT:
                    return False
            world.sleep(0.3)
        return False

    def move(self, base: str) -> None:
        """Exchange one of the services of a base, as the tools do."""
        trial = self.trial
        world = trial.world
        before = trial.directory[base]
        spare = sorted(set(trial.cluster.services) - set(before))
        if not spare or base in trial.moving:
            return
        trial.moving.add(base)
        try:
            old, new = world.random.choice(before), world.random.choice(spare)
            after = sorted([*(peer for peer in before if peer != old), new])
            world.note(f"{self.name}: move {base} from {old} to {new}")
            if not self._set_peers(base, after):
                self._settle_peers(base)
                return
            source = self.masters.get(base, before[0])
            if not self.handled(new, BaseCopyFrom(base=base, source=source)) and not self._set_peers(base, before):
                self._settle_peers(base)
                return
            self._settle_peers(base)
            if trial.directory[base] == after:
                for peer in before:
                    self.handled(peer, BaseLeave(base=base), 1.0)
                self.handled(old, BaseRemove(base=base))
        finally:
            trial.moving.discard(base)

    def _set_peers(self, base: str, peers: list[str]) -> bool:
        def act(service: Service, route: Route, timeout_s: float) -> object:
            limit = self.trial.world.clock() + timeout_s
            return service.repository.write(
                base, lambda tx: tx.set(PEERS, ",".join(peers)), deadline=limit, route=route
            )

        answer, _ = self.ask(base, act, f"{self.fresh():0>32}")
        return answer is None

    def _settle_peers(self, base: str) -> None:
        """Write in the directory what the base says of its peers."""
        trial = self.trial
        everybody = sorted(trial.cluster.services)
        limit = trial.world.now + 60.0
        while trial.world.now < limit:
            for name in everybody:
                try:
                    found = trial.cluster.network.call(
                        self.name, name,
                        lambda service: service.repository.read(
                            base, lambda reader: reader.get(PEERS), deadline=trial.world.clock() + 5.0
                        ),
                    )  # fmt: skip
                except StatusError:
                    continue
                if isinstance(found, str):
                    trial.directory[base] = found.split(",")
                    return
            trial.world.sleep(0.5)


class Trial:
    """One simulation.

    :param seed: decides everything.
    :param acts: how many things happen at most: fewer make a failure easier to read.
    """

    def __init__(self, seed: int, directory: Path, peers: int = 3, acts: int = 30) -> None:
        self.world = World(seed)
        self.peers = peers
        self.acts = acts
        rng = self.world.random
        self.world.switching = rng.choice((0.05, 0.3, 0.6))
        self.world.stalling = rng.choice((0.0, 0.002, 0.02))
        names = [chr(ord("a") + index) for index in range(peers + 1)]
        self.cluster = Cluster(self.world, directory, names)
        self.bases = [f"base{index}" for index in range(rng.choice((1, 1, 2, 3)))]
        self.histories = {base: History(base, self.world) for base in self.bases}
        self.directory = {base: sorted(rng.sample(names, peers)) for base in self.bases}
        self.moving: set[str] = set()
        self.calm = False
        self.moves = rng.random() < 0.3
        self.destroys = rng.random() < 0.5
        self._broken: list[str] = []

    def run(self) -> None:
        """:raises Violation: when something happens that must not."""
        self.world.on_death = lambda host: self._restart_later(host.name)
        self.world.run(self._main)

    def _main(self) -> None:
        world = self.world
        self.cluster.start()
        first = Client(self, "first")
        for base in self.bases:
            first.create(base)
        self.cluster.network.weather = Weather.rough(world.random)
        self.cluster.queue.failing = world.random.choice((0.0, 0.3))
        running = [0]

        def live(client: Client, count: int) -> None:
            try:
                for _ in range(count):
                    self._act(client)
                    world.sleep(world.random.choice((0.0, 0.01, 0.1, 0.5, 2.0)))
            except Violation as exc:
                self._broken.append(str(exc))
            finally:
                running[0] -= 1

        clients = world.random.choice((1, 2, 4))
        for index in range(clients):
            running[0] += 1
            client = Client(self, f"c{index}-")
            world.spawn(lambda client=client: live(client, self.acts // clients), world.nobody, f"client{index}")
        while running[0]:
            self._check()
            world.sleep(world.random.choice((0.05, 0.2, 1.0, 3.0)))
            if running[0]:
                self._trouble()
        self._check()
        self._heal()
        self._check()

    def _check(self) -> None:
        if self._broken:
            raise Violation(self._broken[0])
        if self.world.surprises:
            raise Violation(self.world.surprises[0])

    def _act(self, client: Client) -> None:
        base = self.world.random.choice(self.bases)
        chance = self.world.random.random()
        if chance < 0.5:
            client.write(base)
        elif chance < 0.8:
            client.read(base)
        elif chance < 0.86:
            client.create(base)
        elif chance < 0.92:
            if self.destroys:
                client.destroy(base)
        elif chance < 0.95:
            client.vacuum(base)
        elif self.moves:
            client.move(base)

    # --- trouble --------------------------------------------------------------------------------------------

    def _trouble(self) -> None:
        world, cluster = self.world, self.cluster
        rng = world.random
        service = cluster.services[rng.choice(sorted(cluster.services))]
        what = rng.choice(
            ("crash", "pause", "cut", "mend", "mend", "zookeeper", "line", "resume", "weather", "split", "lost")
        )
        host = service.host
        world.note(f"trouble: {what} {service.name}")
        if what == "crash" and not host.dead:
            host.fuse = rng.choice((1, 3, 10, 30, 100))
        elif what == "pause" and not host.dead:
            world.pause(host)
            world.spawn(
                lambda: (world.sleep(rng.choice((0.5, 2.0, 5.0))), world.resume(host)), world.nobody, "resume"
            )
        elif what == "cut":
            for other in cluster.services:
                if other != service.name and rng.random() < 0.7:
                    cluster.network.cut |= {(service.name, other), (other, service.name)}
        elif what == "split":
            other = rng.choice(sorted(cluster.services))
            cluster.network.cut |= (
                {(service.name, other)} if rng.random() < 0.3 else {(service.name, other), (other, service.name)}
            )
        elif what == "mend":
            cluster.network.cut.clear()
            cluster.zookeeper.cut.clear()
        elif what == "zookeeper":
            cluster.zookeeper.cut.add(service.name)
        elif what == "line":
            cluster.zookeeper.slow_s = rng.choice((0.02, 1.0, 3.0))
            for key in list(cluster.zookeeper.lines):
                cluster.zookeeper.remove(key, lambda node: node[1] == service.name)
        elif what == "weather":
            cluster.network.weather = Weather.rough(rng)
        elif what == "lost":
            self._lose_file(service)

    def _lose_file(self, service: Service) -> None:
        """The file of a copy vanishes, while all copies are the same and nobody is at work."""
        base = self.world.random.choice(self.bases)
        if service.host.dead or service.name not in self.directory[base] or base in self.moving:
            return
        if any(service.host.tasks and not service.host.dead for service in ()):
            return
        contents = [self.cluster.services[peer].content(base) for peer in self.directory[base]]
        if contents[0] is None or any(content != contents[0] for content in contents):
            return
        self.world.kill(service.host)
        path = os.path.join(service.volume, TOY.relative_path(base))
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(path + suffix):
                os.unlink(path + suffix)
        service.acknowledged.pop(base, None)
        self.world.note(f"the file of {base} on {service.name} is lost")

    def _restart_later(self, name: str) -> None:
        service = self.cluster.services[name]

        def restart() -> None:
            self.world.sleep(self.world.random.choice((0.1, 1.0, 4.0, 10.0)))
            self.world.note(f"{name} starts")
            service.boot()

        self.world.spawn(restart, self.world.nobody, f"restart {name}")

    def _heal(self) -> None:
        world, cluster = self.world, self.cluster
        world.note("heal")
        cluster.network.weather = Weather()
        cluster.network.cut.clear()
        cluster.zookeeper.cut.clear()
        cluster.zookeeper.slow_s = 0.02
        cluster.queue.failing = 0.0
        world.stalling = 0.0
        for service in cluster.services.values():
            service.host.fuse = None
        world.sleep(25.0)
        for service in cluster.services.values():
            if service.host.dead or service.host.paused:
                raise Violation(f"{service.name} does not live")
        last = Client(self, "last")
        for base in self.bases:
            self._last_look(last, base)
        world.sleep(12.0)
        for base in self.bases:
            last.read(base)
        self._check()
        world.sleep(3.0)
        for base in self.bases:
            self._compare(base)
        self._check_events()

    def _last_look(self, client: Client, base: str) -> None:
        """Somebody must be able to read the base, and to write it."""

        def act(service: Service, route: Route, timeout_s: float) -> object:
            limit = self.world.clock() + timeout_s
            return service.repository.read(base, lambda reader: reader.get(BIRTH), deadline=limit, route=route)

        client._settle_peers(base)
        answer, _ = client.ask(base, act, patience_s=20.0)
        if isinstance(answer, StatusError) and answer.code != ABSENT:
            raise Violation(f"{base} cannot be read when all is well: {answer}")
        if not isinstance(answer, StatusError):
            op = client.fresh()
            answer, _ = client.ask(
                base, lambda service, route, timeout_s: service.repository.write(
                    base, lambda tx: tx.set("user.last", op), deadline=self.world.clock() + timeout_s, route=route)
            )  # fmt: skip
            if answer is not None:
                raise Violation(f"{base} cannot be written when all is well: {answer}")

    def _compare(self, base: str) -> None:
        graves = [service.replication.ledger.grave(base) for service in self.cluster.services.values()]
        last = max(
            (grave for grave in graves if grave is not None), key=lambda grave: grave.position.rank, default=None
        )
        # One that was destroyed while it moved left its copy on a former peer.
        copies = [service.content(base) for service in self.cluster.services.values()]
        ranks = [copy["position"][0].rank for copy in copies if copy is not None]  # type: ignore[attr-defined]
        dead = last is not None and last.reason == "destroyed" and last.position.rank > max(ranks, default=(0, 0))
        dead = dead and last.peers
        services = [self.cluster.services[peer] for peer in (last.peers if dead else self.directory[base])]
        contents = {service.name: service.content(base) for service in services}
        first = next(iter(contents.values()))
        for name, content in contents.items():
            if content != first:
                self._tell(base)
                raise Violation(f"{base} differs on {name}: {_difference(first, content)}")
        history = self.histories[base]
        if first is None:
            history.absent(self.world.now)
            return
        birth = dict(first["admin"]).get(BIRTH)
        life = history.exists(str(birth), self.world.now)
        ops = [op for _, op in first["done"]]
        history.read(life.birth, ops, self.world.now, life.seen)
        for service in services:
            position = first["position"][0]
            acknowledged = service.acknowledged.get(base)
            if acknowledged is not None and acknowledged.rank > position.rank:  # type: ignore[attr-defined]
                raise Violation(f"{base} went back on {service.name}")

    def _tell(self, base: str) -> None:
        for name, service in self.cluster.services.items():
            content, ledger = service.content(base), service.replication.ledger
            position = content and content["position"]
            marks = {peer: ledger.late(peer) for peer in ledger.late_peers()}
            self.world.note(f"{name}: {base} at {position}, grave {ledger.grave(base)}, late {marks}")

    def _check_events(self) -> None:
        told = {msgspec.json.decode(event)["op"] for event in self.cluster.queue.events}
        for history in self.histories.values():
            for life in history.lives.values():
                # Of a base that is destroyed, those that a lost master had left to send go with its copies.
                missing = sorted(set(life.acknowledged) - told) if life.dying_at is None else []
                if missing:
                    raise Violation(f"events of {missing} were never delivered")


def _difference(one: Any, other: Any) -> str:
    if one is None or other is None:
        return f"{'absent' if one is None else 'there'} and {'absent' if other is None else 'there'}"
    tables = [table for table in one if one[table] != other[table]]
    return "; ".join(f"{table}: {set(one[table]) ^ set(other[table])}" for table in tables)


@contextmanager
def trial_of(seed: int, directory: Path, peers: int = 3, acts: int = 30) -> Iterator[Trial]:
    """A trial whose world the code sees until the end."""
    trial = Trial(seed, directory, peers, acts)
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, trial.cluster)
        try:
            yield trial
        finally:
            trial.world.close([service.host for service in trial.cluster.services.values()])


__all__ = ["Stuck", "Trial", "Violation", "trial_of"]
