# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Threads, locks and clocks that one seed decides: what runs next, for how long, and who is killed when.

Each thread of the code under test is a greenlet that belongs to a *host*. It goes on until it would wait, or comes
to a *point* (before and after a commit, the renaming of a file, a request), where another may run instead, where
time may pass and where its host may die. The clock only advances when nobody can run.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import greenlet

BEGIN_S = 1_000.0
#: Timers are never shorter: the clock must advance.
TICK_S = 1e-6


class Crash(BaseException):
    """The process is killed: nothing of what follows happens."""


class Stuck(Exception):
    """Threads wait for each other."""


class Host:
    """What has threads and a clock, and may be paused or killed."""

    def __init__(self, name: str, rate: float = 1.0) -> None:
        self.name = name
        self.rate = rate
        self.dead = False
        self.paused = False
        self.frozen: list[Task] = []
        self.tasks: dict[Task, None] = {}
        #: Points left before it dies; None: it lives.
        self.fuse: int | None = None
        self.connections: list[Any] = []


class Task:
    """One thread."""

    def __init__(self, host: Host, run: Callable[[], object], name: str, hub: greenlet.greenlet) -> None:
        self.host = host
        self.name = name
        self.token = 0
        self.parked = False
        self.woken = False
        self.over = False
        self.greenlet = greenlet.greenlet(run, hub)


class World:
    """The scheduler."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = BEGIN_S
        self.nobody = Host("world")
        self.ready: deque[Task] = deque()
        self.timers: list[tuple[float, int, Task, int]] = []
        self.trace: deque[str] = deque(maxlen=4000)
        self.surprises: list[str] = []
        #: Part of the points where another thread may run, and where the disk stalls.
        self.switching, self.stalling = 0.3, 0.0
        self.current: Task | None = None
        self._hub: greenlet.greenlet | None = None
        self._count = itertools.count()
        self._dying: list[Host] = []
        self.on_death: Callable[[Host], object] = lambda host: None
        #: Called at each point with the host and what it does.
        self.on_point: Callable[[Host, str], object] = lambda host, what: None

    # --- threads ----------------------------------------------------------------------------------------

    @property
    def host(self) -> Host:
        """Whose thread runs."""
        return self.current.host if self.current is not None else self.nobody

    def spawn(self, fn: Callable[[], object], host: Host | None = None, name: str = "") -> Task:
        """Start a thread."""
        owner = host or self.host

        def run() -> None:
            try:
                fn()
            except Crash:
                return
            except Exception as exc:
                self.surprise(f"{owner.name}: thread {name} dies of {exc!r}", exc)
            finally:
                task.over = True
                owner.tasks.pop(task, None)

        assert self._hub is not None
        # It comes back to the loop when it ends, whoever started it.
        task = Task(owner, run, name, self._hub)
        owner.tasks[task] = None
        self.ready.append(task)
        return task

    def surprise(self, text: str, exc: BaseException | None = None) -> None:
        """Something that never should happen, whatever fails around."""
        self.note(f"SURPRISE {text}")
        self.surprises.append(text)
        if exc is not None:
            import traceback

            self.note("".join(traceback.format_exception(exc)))

    def park(self, timeout_s: float | None = None) -> bool:
        """Wait until another thread wakes this one; False when it was not in time."""
        task = self.current
        assert task is not None and self._hub is not None
        if task.host.dead:
            raise Crash
        task.parked, task.woken = True, False
        task.token += 1
        if timeout_s is not None:
            after_s = max(TICK_S, timeout_s / task.host.rate)
            heapq.heappush(self.timers, (self.now + after_s, next(self._count), task, task.token))
        self._hub.switch()
        if task.host.dead:
            raise Crash
        return task.woken

    def wake(self, task: Task, woken: bool = True) -> None:
        """Let a thread go on."""
        if task.parked:
            task.parked, task.woken = False, woken
            self.ready.append(task)

    def give_way(self) -> None:
        """Let others run."""
        task = self.current
        assert task is not None and self._hub is not None
        self.ready.append(task)
        self._hub.switch()
        if task.host.dead:
            raise Crash

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        if seconds <= 0:
            self.give_way()
            return
        limit = self.clock() + seconds
        while (left_s := limit - self.clock()) > 0:
            self.park(left_s)

    def point(self, what: str = "") -> None:
        """Anything may happen here."""
        task = self.current
        if task is None:
            return
        host = task.host
        if host.dead:
            raise Crash
        if host.fuse is not None:
            host.fuse -= 1
            if host.fuse <= 0:
                self.note(f"{host.name} dies at {what}")
                self.kill(host)
                raise Crash
        self.on_point(host, what)
        chance = self.random.random()
        if chance < self.stalling:
            self.note(f"{host.name} stalls at {what}")
            self.sleep(self.random.choice((0.05, 0.3, 1.5, 3.0)))
        elif chance < self.switching:
            self.give_way()

    def kill(self, host: Host) -> None:
        """End all the threads of a host, and close its files as the system does."""
        if not host.dead:
            host.dead = True
            self._dying.append(host)

    def _bury(self, host: Host) -> None:
        for task in list(host.tasks):
            self.current = task
            task.parked = False
            if task.greenlet:
                task.greenlet.throw(Crash)
            task.over = True
        self.current = None
        host.tasks.clear()
        host.frozen.clear()
        for connection in host.connections:
            connection.close(True)
        host.connections.clear()
        self.on_death(host)

    def pause(self, host: Host) -> None:
        """Stop a process."""
        host.paused = True

    def resume(self, host: Host) -> None:
        """Let it go on."""
        host.paused = False
        self.ready.extend(host.frozen)
        host.frozen.clear()

    def clock(self) -> float:
        """The monotonic clock of the host whose thread runs."""
        return self.now * self.host.rate

    def note(self, text: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{self.now - BEGIN_S:9.4f} {text}")

    # --- the loop ---------------------------------------------------------------------------------------

    def run(self, main: Callable[[], object]) -> None:
        """Run until a function, in a thread of its own, returns."""
        self._hub = greenlet.getcurrent()
        caught: list[BaseException] = []

        def guarded() -> None:
            try:
                main()
            except Exception as exc:
                caught.append(exc)

        first = self.spawn(guarded, self.nobody, "main")
        while not first.over:
            self._step()
        if caught:
            raise caught[0]

    def _step(self) -> None:
        while self._dying:
            self._bury(self._dying.pop(0))
        if not self.ready:
            self._advance()
            return
        if len(self.ready) > 1:
            self.ready.rotate(-self.random.randrange(len(self.ready)))
        task = self.ready.popleft()
        if task.over or task.host.dead:
            return
        if task.host.paused:
            task.host.frozen.append(task)
            return
        self.current = task
        task.greenlet.switch()
        self.current = None

    def _advance(self) -> None:
        while self.timers:
            when, _, task, token = heapq.heappop(self.timers)
            if task.over or not task.parked or task.token != token or task.host.dead:
                continue
            self.now = max(self.now, when)
            self.wake(task, woken=False)
            return
        raise Stuck("; ".join(sorted(f"{task.host.name}:{task.name}" for task in self.nobody.tasks)))

    def close(self, hosts: list[Host]) -> None:
        """End everything."""
        self._hub = greenlet.getcurrent()
        for host in [*hosts, self.nobody]:
            host.dead = True
            self.on_death = lambda host: None
            self._bury(host)


# --- what replaces the modules threading and time -------------------------------------------------------------


class SimLock:
    """As threading.Lock."""

    reentrant = False

    def __init__(self, world: World) -> None:
        self._world = world
        self._owner: Task | None = None
        self._depth = 0
        self._waiters: deque[Task] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        world = self._world
        task = world.current
        if self.reentrant and self._depth and self._owner is task:
            self._depth += 1
            return True
        limit = None if timeout is None or timeout < 0 else world.clock() + timeout
        while self._depth:
            if not blocking:
                return False
            left_s = None if limit is None else limit - world.clock()
            if left_s is not None and left_s <= 0:
                return False
            assert task is not None
            self._waiters.append(task)
            try:
                world.park(left_s)
            finally:
                if task in self._waiters:
                    self._waiters.remove(task)
        self._owner, self._depth = task, 1
        return True

    def release(self) -> None:
        if self._depth:
            self._depth -= 1
        if not self._depth:
            self._owner = None
            if self._waiters:
                self._world.wake(self._waiters.popleft())

    def locked(self) -> bool:
        return bool(self._depth)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class SimRLock(SimLock):
    """As threading.RLock."""

    reentrant = True


class SimCondition:
    """As threading.Condition."""

    def __init__(self, world: World, lock: SimLock | None = None) -> None:
        self._world = world
        self._lock = lock or SimRLock(world)
        self.acquire, self.release = self._lock.acquire, self._lock.release
        self._waiters: deque[Task] = deque()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        task = self._world.current
        assert task is not None
        self._waiters.append(task)
        self._lock.release()
        try:
            return self._world.park(timeout)
        finally:
            if task in self._waiters:
                self._waiters.remove(task)
            if not task.host.dead:
                self._lock.acquire()

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        limit = None if timeout is None else self._world.clock() + timeout
        while not (result := predicate()):
            left_s = None if limit is None else limit - self._world.clock()
            if left_s is not None and left_s <= 0:
                return predicate()
            self.wait(left_s)
        return result

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiters))):
            self._world.wake(self._waiters.popleft())

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


class SimEvent:
    """As threading.Event."""

    def __init__(self, world: World) -> None:
        self._condition = SimCondition(world)
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._condition.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        return bool(self._condition.wait_for(lambda: self._set, timeout))


class SimSemaphore:
    """As threading.BoundedSemaphore."""

    def __init__(self, world: World, value: int = 1) -> None:
        self._condition = SimCondition(world)
        self._value = value

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        if not self._condition.wait_for(lambda: self._value > 0, timeout if blocking else 0):
            return False
        self._value -= 1
        return True

    def release(self) -> None:
        self._value += 1
        self._condition.notify()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class SimThread:
    """As threading.Thread."""

    def __init__(
        self,
        world: World,
        target: Callable[..., object],
        name: str = "",
        args: tuple[Any, ...] = (),
        daemon: bool = True,
    ) -> None:
        self._world, self._name = world, name
        self._run = lambda: target(*args)
        self._task: Task | None = None

    def start(self) -> None:
        self._task = self._world.spawn(self._run, name=self._name)

    def join(self, timeout: float | None = None) -> None:
        while self._task is not None and not self._task.over and timeout != 0:
            self._world.sleep(0.1 if timeout is None else min(timeout, 0.1))
            timeout = None if timeout is None else max(0.0, timeout - 0.1)


def threading_of(world: World) -> SimpleNamespace:
    """What takes the place of the module threading."""

    def make(kind: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: kind(world, *args, **kwargs)

    return SimpleNamespace(
        Lock=make(SimLock), RLock=make(SimRLock), Condition=make(SimCondition), Event=make(SimEvent),
        BoundedSemaphore=make(SimSemaphore), Semaphore=make(SimSemaphore), Thread=make(SimThread),
    )  # fmt: skip


def time_of(world: World) -> SimpleNamespace:
    """What takes the place of the module time."""
    return SimpleNamespace(
        monotonic=world.clock,
        sleep=world.sleep,
        time=lambda: 1_700_000_000 + world.now,
        time_ns=lambda: int((1_700_000_000 + world.now) * 1e9),
    )
