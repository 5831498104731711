# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Meta services with copies, all in one thread: real repositories, ledgers, leads and followers on real files;
a network, a ZooKeeper, clocks and disks that one seed decides.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import apsw
import msgspec
import pytest
from simulated_elections import SimCandidacy, ZooKeeper
from simulated_world import Crash, Host, Task, World, threading_of, time_of

from oio.common import batching, status
from oio.common.status import StatusError
from oio.meta import base as base_module
from oio.meta import (
    base_files,
    deadlines,
    dump,
    leftovers,
    open_bases,
    outbox,
    readers,
    repository,
    sqlite_files,
    transaction,
)
from oio.meta.base import BaseOptions
from oio.meta.base_type import BaseType
from oio.meta.context import Context
from oio.meta.messages import Operation
from oio.meta.replication import (
    engine,
    following,
    groups,
    journal,
    leading,
    ledger,
    links,
    operations,
    serving,
    upkeep,
    voter,
)
from oio.meta.replication.engine import Replication
from oio.meta.replication.groups import GroupSettings
from oio.meta.replication.ledger import Ledger
from oio.meta.replication.links import GRACE_S, Answers, Links
from oio.meta.replication.serving import Copies
from oio.meta.repository import Repository

SCHEMA = """
CREATE TABLE items (k INTEGER PRIMARY KEY NOT NULL, v TEXT NOT NULL);
CREATE TABLE done (n INTEGER PRIMARY KEY NOT NULL, op TEXT NOT NULL);
"""
TOY = BaseType("toy", SCHEMA)
_REFUSED, _RESET = status.CONNECTION_REFUSED, status.CONNECTION_RESET


class Weather:
    """How bad it is: chances of each fault of the network."""

    def __init__(self) -> None:
        self.lost = self.reply_lost = self.twice = self.late = 0.0

    @classmethod
    def rough(cls, rng: Any) -> Weather:
        weather = cls()
        weather.lost = rng.choice((0.0, 0.02, 0.1))
        weather.reply_lost = rng.choice((0.0, 0.02, 0.1))
        weather.twice = rng.choice((0.0, 0.02, 0.1))
        weather.late = rng.choice((0.0, 0.02, 0.1))
        return weather


class Network:
    """Requests between hosts."""

    def __init__(self, world: World, services: dict[str, Service]) -> None:
        self.world = world
        self.services = services
        self.weather = Weather()
        #: Directions in which nothing passes.
        self.cut: set[tuple[str, str]] = set()

    def delay_s(self) -> float:
        rng = self.world.random
        if rng.random() < self.weather.late:
            return rng.choice((0.5, 2.0, 6.0, 15.0))
        return rng.uniform(0.0002, 0.003)

    def passes(self, source: str, target: str) -> bool:
        return (source, target) not in self.cut

    def send(
        self, source: str, target: str, handle: Callable[[Service], object], then: Callable[[object], object]
    ) -> None:
        """Have a host handle a request; what it returns or raises comes back, perhaps."""
        rng = self.world.random
        times = 1 + (rng.random() < self.weather.twice)
        for _ in range(times):
            lost = rng.random() < self.weather.lost
            self.world.spawn(
                lambda lost=lost: self._carry(source, target, handle, then, lost), self.world.nobody, "carry"
            )

    def _carry(
        self,
        source: str,
        target: str,
        handle: Callable[[Service], object],
        then: Callable[[object], object],
        lost: bool,
    ) -> None:
        world = self.world
        world.sleep(self.delay_s())
        if lost or not self.passes(source, target):
            return
        service = self.services[target]
        host = service.host
        if host.dead or not service.handlers:
            if self.passes(target, source):
                then(StatusError(_REFUSED, f"{target} is down"))
            return

        def back(answer: object) -> None:
            world.sleep(self.delay_s())
            if world.random.random() >= self.weather.reply_lost and self.passes(target, source):
                then(answer)

        def run() -> None:
            answer: object
            try:
                answer = handle(service)
            except StatusError as exc:
                answer = exc
            except operations.AlreadyDone as exc:
                answer = exc
            except Exception as exc:
                world.surprise(f"{target}: a request fails with {exc!r}", exc)
                answer = StatusError(status.INTERNAL_ERROR, repr(exc))
            world.spawn(lambda: back(answer), world.nobody, "back")

        world.spawn(run, host, "request")

    def call(
        self, source: str, target: str, handle: Callable[[Service], object], timeout_s: float = 5.0
    ) -> object:
        """As :meth:`send`, and wait for the answer. :raises StatusError: what it is, or 7."""
        box: list[object] = []
        task = self.world.current
        assert task is not None

        def then(answer: object) -> None:
            box.append(answer)
            self.world.wake(task)

        self.send(source, target, handle, then)
        limit = self.world.now + timeout_s
        while not box and self.world.now < limit:
            self.world.park(limit - self.world.now)
        if not box:
            raise StatusError(status.READ_TIMEOUT, f"{target} does not answer")
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]


class SimLinks(Links):
    """Links of one host over the simulated network."""

    def __init__(self, network: Network, name: str) -> None:
        self._network = network
        self._name = name
        self._benched: dict[str, float] = {}
        self._pool = None  # type: ignore[assignment]
        self._timeout_s = 5.0

    def close(self) -> None:
        return

    def address_of(self, peer: str) -> str:
        return peer

    def ping(self, peer: str) -> bool:
        try:
            self._network.call(self._name, peer, lambda service: True, links.PING_TIMEOUT_S)
        except StatusError:
            return False
        self._benched.pop(peer, None)
        return True

    def ask_all(
        self,
        requests: Any,
        enough: Callable[[Answers], bool] | None = None,
        timeout_s: float | None = None,
        grace_s: float = GRACE_S,
    ) -> Answers:
        world = self._network.world
        task = world.current
        assert task is not None
        answers: Answers = {}
        world.point("ask")
        for peer in sorted(requests):
            self._send(task, peer, requests[peer], answers)
        limit = world.clock() + (self._timeout_s if timeout_s is None else timeout_s)
        satisfied = False
        while len(answers) < len(requests):
            left_s = limit - world.clock()
            if left_s <= 0:
                break
            if not satisfied and enough is not None and enough(answers):
                satisfied = True
                limit = min(limit, world.clock() + grace_s)
                continue
            world.park(left_s)
        collected = dict(answers)
        for peer in sorted(requests):
            answer = collected.get(peer)
            if answer is None:
                collected[peer] = StatusError(status.READ_TIMEOUT, f"{peer} did not answer in time")
                self.bench(peer)
            elif isinstance(answer, StatusError) and answer.code in range(2, 10):
                self.bench(peer)
            else:
                self._benched.pop(peer, None)
        world.point("asked")
        return collected

    def _send(self, task: Task, peer: str, request: Operation, answers: Answers) -> None:  # type: ignore[override]
        body = msgspec.msgpack.encode(request)
        kind = type(request)
        world = self._network.world

        def handle(service: Service) -> object:
            message = msgspec.msgpack.decode(body, type=kind)
            reply = service.handlers[kind](message, Context())
            service.answered(message, reply)
            return msgspec.msgpack.encode(reply)

        def then(answer: object) -> None:
            if peer not in answers:
                known = isinstance(answer, bytes) and kind.reply is not None
                answers[peer] = msgspec.msgpack.decode(answer, type=kind.reply) if known else answer
                world.wake(task)

        self._network.send(self._name, peer, handle, then)


# --- services ------------------------------------------------------------------------------------------------


class Queue:
    """Events that services gave away."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events: list[bytes] = []
        self.failing = 0.0

    def put_many(self, events: Sequence[bytes], timeout_s: float | None = None, keys: Any = None) -> None:
        self.world.point("queue")
        if self.world.random.random() < self.failing:
            raise StatusError(status.UNAVAILABLE, "the queue is down")
        self.events += events
        self.world.point("queued")


class Service:
    """One meta service: its volume, and the process that serves it now."""

    def __init__(self, cluster: Cluster, name: str, volume: str) -> None:
        self.cluster = cluster
        self.name = name
        self.volume = volume
        self.host = Host(name)
        self.host.dead = True
        self.repository: Repository
        self.replication: Replication
        self.handlers: dict[type[Operation], Callable[[Any, Context], Any]] = {}
        #: Highest position that was acknowledged, by base.
        self.acknowledged: dict[str, Any] = {}

    def boot(self) -> None:
        """Start a process, in a thread of it."""
        cluster = self.cluster
        world = cluster.world
        self.host = Host(self.name, world.random.uniform(0.98, 1.02))
        self.handlers = {}
        host = self.host

        def start() -> None:
            replication = Replication(
                TOY.name, [self.name], Ledger(self.volume, fsync=False), SimLinks(cluster.network, self.name),
                lambda key, name, on_change, _peers: SimCandidacy(cluster.zookeeper, host, key, name, on_change),  # type: ignore
                lease_s=1.0, shards=2, settings=GroupSettings(True, 4.0),
                log_max_entries=cluster.journal_max, log_max_bytes=1 << 20,
            )  # fmt: skip
            opened = Repository(
                self.volume,
                TOY,
                options=BaseOptions(sync="off", wait_s=5.0),
                queue=cluster.queue,
                state_delay_s=1.0,
                replication=replication,
                open_max=cluster.open_max,
            )
            self.repository, self.replication = opened, replication
            self.handlers = Copies(opened, replication).handlers()

        world.spawn(start, host, "boot")
        while not self.handlers and not host.dead:
            world.sleep(0.01)

    def answered(self, message: Any, reply: Any) -> None:
        """A reply leaves: remember what it says."""
        if getattr(reply, "done", False) and type(message).__name__ in ("CopyAppend", "CopyInstall"):
            former = self.acknowledged.get(message.base)
            if former is None or former.rank < reply.position.rank:
                self.acknowledged[message.base] = reply.position

    def content(self, base_name: str) -> dict[str, list[tuple[Any, ...]]] | None:
        """All rows of the copy, but what each copy keeps for itself; None without copy."""
        path = os.path.join(self.volume, TOY.relative_path(base_name))
        if not os.path.exists(path):
            return None
        connection = apsw.Connection(path)
        try:
            found = {
                table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
                for table in ("admin", "events", "items", "done", "operations")
            }
            found["position"] = [journal.position(connection)]  # type: ignore[list-item]
            return found
        finally:
            connection.close()


class Cluster:
    """The services of one simulation."""

    def __init__(self, world: World, directory: Path, names: Sequence[str]) -> None:
        self.world = world
        self.services: dict[str, Service] = {}
        self.network = Network(world, self.services)
        self.zookeeper = ZooKeeper(world)
        self.queue = Queue(world)
        self.journal_max = world.random.choice((10, 20, 256))
        self.open_max = world.random.choice((2, 100))
        for name in names:
            volume = directory / name
            volume.mkdir()
            self.services[name] = Service(self, name, str(volume))

    def start(self) -> None:
        """Start all the services."""
        self.world.spawn(self.zookeeper.watch, self.world.nobody, "sessions")
        for service in self.services.values():
            service.boot()


# --- modules that see the simulated world ---------------------------------------------------------------------

_MODULES = (
    batching, base_module, deadlines, dump, leftovers, open_bases, outbox, readers, repository, transaction,
    engine, following, groups, journal, leading, ledger, links, operations, serving, upkeep, voter,
)  # fmt: skip


class _Changed(ModuleType):
    """A module, some of whose names are others."""

    def __init__(self, module: Any, **names: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _connection_of(world: World) -> Callable[..., apsw.Connection]:
    class Connection(apsw.Connection):
        """One whose commits are points."""

        def execute(self, sql: str, *args: Any, **kwargs: Any) -> Any:
            if sql == "COMMIT" and self.writes:
                self.writes = False
                world.point("before commit")
                cursor = super().execute(sql, *args, **kwargs)
                world.point("after commit")
                return cursor
            if sql == "BEGIN IMMEDIATE":
                world.point("before begin")
                self.writes = True
            return super().execute(sql, *args, **kwargs)

        writes = False

    def connect(*args: Any, **kwargs: Any) -> apsw.Connection:
        connection = Connection(*args, **kwargs)
        world.host.connections.append(connection)
        return connection

    return connect


def _fetch_of(cluster: Cluster) -> Callable[..., None]:
    """What takes the place of dump.fetch: an image through the simulated network."""
    world, network = cluster.world, cluster.network

    def fetch(
        pool: Any, address: str, base_type: Any, base_name: str, path: str, *, draft: str = "", **_: Any
    ) -> None:
        def image(service: Service) -> bytes:
            if draft:
                source = service.replication.drafts.get(draft, "")
                if not source:
                    raise StatusError(status.CONTAINER_NOT_FOUND, "no draft")
                return Path(source).read_bytes()
            with service.repository.workshop_file() as target:
                service.repository.copy_out(base_name, target)
                return Path(target).read_bytes()

        content = network.call(world.host.name, address, image, 20.0)
        world.point("image")
        if world.random.random() < 0.2:
            world.sleep(world.random.choice((0.2, 1.0, 4.0)))
        assert isinstance(content, bytes)
        with open(path, "xb") as file:
            file.write(content)
        dump.verify(path, base_type, base_name)

    return fetch


def enter(patch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    """Have the code under test see the world of a cluster."""
    world = cluster.world
    threading, time = threading_of(world), time_of(world)
    for module in _MODULES:
        if hasattr(module, "threading"):
            patch.setattr(module, "threading", threading)
        if hasattr(module, "time"):
            patch.setattr(module, "time", time)
    connect = _connection_of(world)
    for module in (sqlite_files, readers, ledger):
        patch.setattr(module, "apsw", _Changed(apsw, Connection=connect))

    def before(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            world.point(f"before {name}")
            result = function(*args, **kwargs)
            world.point(f"after {name}")
            return result

        return call

    patch.setattr(
        base_files, "os", _Changed(os, rename=before("rename"), link=before("link"), unlink=before("unlink"))
    )
    patch.setattr(following, "dump", SimpleNamespace(fetch=_fetch_of(cluster)))
    # Names of locks and digests must be the same each time.
    patch.setattr(engine, "hash", lambda name: zlib.crc32(name.encode()), raising=False)
    patch.setattr(repository, "hash", lambda name: zlib.crc32(name.encode()), raising=False)
    patch.setattr(
        engine, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(
            bytes=world.random.randbytes(16), hex=world.random.randbytes(16).hex()))
    )  # fmt: skip
    for module in (readers, open_bases):
        if hasattr(module, "memory_is_short"):
            patch.setattr(module, "memory_is_short", lambda: False)
    real = voter.Voter
    patch.setattr(engine, "Voter", lambda *args: real(*args, clock=world.clock))


__all__ = [
    "TOY",
    "Cluster",
    "Crash",
    "Network",
    "Queue",
    "Service",
    "SimCandidacy",
    "Weather",
    "ZooKeeper",
    "enter",
]
