# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Outbox: events leave for the queue only after their change is committed, and none is ever lost.

An event is a row of the table ``events`` of its base, written in the transaction of the change it tells. A
thread hands the rows to the queue in the order of their ids, and deletes them after the queue accepted them.
Delivery is at least once: a crash between acceptance and deletion sends again.

Which bases have pending events is told by empty files, one per base, in the directory ``.outbox`` of the
volume. The file is on disk before the first event of its base is committed, and goes away when the table is
empty again: a restart looks at these files only. The base of a destroyed container moves there with the
events that it still holds.

Requests never wait for the queue: while it is slow or down, events pile up in their bases. What is held in
memory is bounded, in events and in bytes; the rest is read from the bases when its turn comes.

Events that the queue will never take are put aside (:mod:`oio.meta.refused`): the others do not wait for them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import apsw

from oio.common import status
from oio.common.durable import fsync_directory
from oio.common.status import StatusError
from oio.event.queue import EventsRefused
from oio.meta import leftovers, outbox_rows
from oio.meta.base_type import BaseType
from oio.meta.leftovers import Leftovers
from oio.meta.outbox_rows import BaseOutbox, Batch, Row, first_rows, size_of
from oio.meta.refused import RefusedEvents, without_properties
from oio.meta.timers import Timers
from oio.meta.transaction import Reader, Transaction

if TYPE_CHECKING:
    from oio.meta.repository import Repository

logger = logging.getLogger("oio.meta.outbox")

DIRECTORY = ".outbox"
#: State events of one base are sent at most once per this time, when nothing else is said; an idle base is
#: tidied after it.
TIDY_DELAY_S = 1.0
#: Bytes of the events held in memory.
MEMORY_MAX_BYTES = 64 << 20
#: Events that come within this time leave together: the queue syncs once for all of them.
LINGER_S = 0.2
#: Wait after the queue refused, growing up to the second.
RETRY_MIN_S, RETRY_MAX_S = 0.1, 5.0


class EventSink(Protocol):
    """What the outbox needs of an event queue."""

    def put_many(
        self, events: Sequence[bytes], timeout_s: float | None = None, keys: Sequence[str] | None = None
    ) -> object:
        """Return once all the events are durable; raise otherwise. Those of one key keep their order.

        :raises EventsRefused: when some will never be taken; the others are durable.
        """


class Outbox:
    """Outboxes of all the bases of a repository, and the thread that drains them."""

    def __init__(
        self,
        repository: Repository,
        volume: str,
        base_type: BaseType,
        sink: EventSink | None,
        memory_max: int = 10000,
        fsync: bool = True,
        state_delay_s: float = TIDY_DELAY_S,
    ) -> None:
        self._repository = repository
        self._type = base_type
        self._sink = sink
        self._memory_max = memory_max
        self._fsync = fsync
        self._delay_s = state_delay_s
        self.directory = os.path.join(volume, DIRECTORY)
        self._refused = RefusedEvents(self.directory, fsync)
        self._lock = threading.Lock()
        self._wakeup = threading.Condition(self._lock)
        self._bases: dict[str, BaseOutbox] = {}
        self._ready: deque[BaseOutbox] = deque()
        #: Bases whose state is to be told, or whose delivered events are to be deleted.
        self._tidy = Timers()
        #: Bases that are led elsewhere, whose events wait here in case that their master is lost.
        self._followed: set[str] = set()
        self._leftovers = Leftovers(self.directory)
        self._in_memory = 0
        self._bytes_in_memory = 0
        self._stopping = False
        self._idle = False
        self._thread: threading.Thread | None = None
        self.delivered_total = 0
        self.failures_total = 0

    @property
    def enabled(self) -> bool:
        """Is there a queue? Without one no event is stored."""
        return self._sink is not None

    def start(self) -> None:
        """Find what a former process left, and begin to drain."""
        if not self.enabled:
            return
        os.makedirs(self.directory, exist_ok=True)
        now = time.monotonic()
        for entry in os.scandir(self.directory):
            if entry.name.endswith(leftovers.SUFFIX):
                self._leftovers.add(entry.path)
            elif entry.is_file() and entry.stat().st_size == 0:
                state = self._bases[entry.name] = BaseOutbox(entry.name, loaded=False)
                with self._lock:
                    self._enqueue(state)
                self._tidy.add(entry.name, now + self._delay_s)
        self._thread = threading.Thread(target=self._drain, name="outbox", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop draining; what remains waits for the next start."""
        with self._lock:
            self._stopping = True
            self._wakeup.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def depth(self) -> dict[str, int]:
        """Bases with pending events, events waiting in memory, and totals."""
        with self._lock:
            return {
                "bases": len(self._bases),
                "memory": self._in_memory,
                "leftovers": len(self._leftovers),
                "delivered": self.delivered_total,
                "failures": self.failures_total,
                "refused": self._refused.total,
            }

    # --- called by the writer of a base, one at a time per base ----------------------------------

    def write(self, tx: Transaction, admin: dict[str, str], tidying: bool) -> Batch | None:
        """Add the outbox's part to a transaction, before its commit."""
        name = tx.base_name
        state = self._bases.get(name)
        if state is None:
            if not tx.events and not tx.state_wanted:
                return None
            state = self._mark(name)
        if not state.loaded:
            last, has_state = outbox_rows.bounds(tx)
            with self._lock:
                state.last_id, state.loaded = last, True
            state.state_row = has_state
        now = time.monotonic()
        due = tidying or (tx.state_wanted and now - state.state_since >= self._delay_s)
        batch = Batch(state, tidying)
        events = outbox_rows.write_state(tx, batch, admin, self._type.state_event, due, now)
        outbox_rows.write_events(tx, batch, events)
        return batch

    def committed(self, batch: Batch) -> None:
        """The transaction is durable: hand its events over."""
        state = batch.state
        with self._lock:
            state.state_row = batch.state_row
            state.deleted = batch.deleted
            if batch.rows:
                state.last_id = batch.rows[-1][0]
                self._remember(state, batch.rows)
                self._enqueue(state)
            if batch.rows or batch.state_row:
                self._tidy.add(state.name, time.monotonic() + self._delay_s)
            if not batch.rows and len(self._tidy) == 1:
                # The thread wakes up by itself for timers, unless it had none.
                self._wakeup.notify()
            if not batch.tidying:
                return
            if not state.state_row and state.deleted >= state.last_id and not state.queued:
                self._bases.pop(state.name, None)
                self._tidy.drop(state.name)
            else:
                # Of what is not delivered, the delivery takes care: a queue that is down costs no writes.
                if state.state_row or state.deleted < state.delivered:
                    self._tidy.add(state.name, time.monotonic() + self._delay_s)
                return
        # Still under the leadership of this base's writer: nobody can commit an event meanwhile. A
        # marker that comes back after a power cut is harmless.
        self._unlink(os.path.join(self.directory, state.name))

    def forget(self, name: str) -> None:
        """The base is destroyed: its file, if it holds events, has moved to :meth:`adopt`."""
        with self._lock:
            self._forget_state(name)
            self._followed.discard(name)
        self._unlink(os.path.join(self.directory, name))

    @property
    def leftovers(self) -> Leftovers:
        """Bases of destroyed containers."""
        return self._leftovers

    def adopt(self, path: str) -> None:
        """Drain the base of a destroyed container, then delete it."""
        with self._lock:
            self._leftovers.add(path)
            self._wakeup.notify()

    def adopt_spares(self, age_s: float) -> None:
        """Deliver what those that destroyed bases elsewhere did not deliver for so long."""
        if self.enabled and self._leftovers.adopt_spares(age_s):
            with self._lock:
                self._wakeup.notify()

    def holds(self, name: str) -> bool:
        """Does a base hold events, as far as its marker tells?"""
        return self.enabled and os.path.exists(os.path.join(self.directory, name))

    def mark(self, name: str) -> None:
        """Make the marker of a base that is about to be created with events.

        Its table must be looked at before the first write: the creation has put events there.
        """
        self._make_marker(name)
        with self._lock:
            self._bases.setdefault(name, BaseOutbox(name, loaded=False))
            self._tidy.add(name, time.monotonic() + self._delay_s)

    def discover(self, name: str) -> None:
        """A base that was marked has its place: drain what its table holds."""
        with self._lock:
            state = self._bases.get(name)
            if state is not None:
                self._enqueue(state)

    # --- bases that have copies: the master delivers, the others keep what it has not delivered yet ----------

    def follow(self, name: str) -> None:
        """A base that is led elsewhere is about to hold events."""
        if name in self._followed:
            return
        self._make_marker(name)
        with self._lock:
            self._forget_state(name)
            self._followed.add(name)

    def follow_nothing(self, name: str) -> None:
        """A base that is led elsewhere holds no event any more. Called in the turn of its writer."""
        with self._lock:
            marked = name in self._followed or name in self._bases
            self._forget_state(name)
            self._followed.discard(name)
        if marked:
            self._unlink(os.path.join(self.directory, name))

    def followed(self) -> list[str]:
        """Bases that hold events for their master to deliver."""
        with self._lock:
            return sorted(self._followed)

    def rediscover(self, name: str) -> None:
        """The base is led here from now on: deliver what its former master did not."""
        if not self.enabled:
            return
        with self._lock:
            self._forget_state(name)
            self._followed.discard(name)
            if os.path.exists(os.path.join(self.directory, name)):
                state = self._bases[name] = BaseOutbox(name, loaded=False)
                self._enqueue(state)
                self._tidy.add(name, time.monotonic() + self._delay_s)

    def _leave_to_master(self, name: str) -> None:
        """Somebody else leads the base, and delivers its events."""
        with self._lock:
            if self._forget_state(name):
                self._followed.add(name)

    def _forget_state(self, name: str) -> bool:
        state = self._bases.pop(name, None)
        self._tidy.drop(name)
        if state is None:
            return False
        state.dead = True
        self._forget_first(state, len(state.pending))
        return True

    # --- internals -----------------------------------------------------------------------------

    def _mark(self, name: str) -> BaseOutbox:
        self._make_marker(name)
        with self._lock:
            # The table of a base that was led elsewhere, were it for a moment only, may hold events.
            state = BaseOutbox(name, loaded=name not in self._followed)
            self._followed.discard(name)
            return self._bases.setdefault(name, state)

    def _make_marker(self, name: str) -> None:
        os.close(os.open(os.path.join(self.directory, name), os.O_CREAT | os.O_WRONLY, 0o644))
        if self._fsync:
            fsync_directory(self.directory)

    def _remember(self, state: BaseOutbox, rows: list[Row]) -> None:
        """Hold events in memory, unless there are too many: then they are read from the table later."""
        size = size_of(rows)
        if (
            state.backlog
            or self._in_memory + len(rows) > self._memory_max
            or self._bytes_in_memory + size > MEMORY_MAX_BYTES
        ):
            state.backlog = True
            return
        state.pending.extend(rows)
        self._in_memory += len(rows)
        self._bytes_in_memory += size

    def _forget_first(self, state: BaseOutbox, count: int) -> None:
        """Events are not needed in memory any more."""
        self._in_memory -= count
        self._bytes_in_memory -= size_of(state.pending[:count])
        del state.pending[:count]

    def _enqueue(self, state: BaseOutbox) -> None:
        if not state.queued:
            state.queued = True
            self._ready.append(state)
            if self._idle:
                self._wakeup.notify()

    def _drain(self) -> None:
        retry_s = 0.0
        more = False
        while True:
            with self._lock:
                if retry_s:
                    self._wakeup.wait_for(lambda: self._stopping, retry_s)
                self._idle = True
                while not (self._stopping or self._ready or self._leftovers):
                    wait_s = self._next_timer()
                    if wait_s is not None and wait_s <= 0:
                        break
                    self._wakeup.wait(wait_s)
                self._idle = False
                if self._ready and not retry_s and not more:
                    self._wakeup.wait_for(lambda: self._stopping, LINGER_S)
                if self._stopping:
                    return
            more = False
            try:
                more = self._deliver()
                more |= self._leftovers.deliver(self._put)
                retry_s = 0.0
            except Exception as exc:
                # Whatever the queue raises, the events are still in their bases: say it, wait, retry.
                self.failures_total += 1
                retry_s = min(RETRY_MAX_S, max(RETRY_MIN_S, retry_s * 2))
                logger.warning("event queue: %s: %s; retry in %.1f s", type(exc).__name__, exc, retry_s)
            more |= self._tidy_some()

    def _next_timer(self) -> float | None:
        due_s = self._tidy.next_s()
        return None if due_s is None else due_s - time.monotonic()

    def _deliver(self) -> bool:
        """Hand over some of what is ready; is there probably more?"""
        taken: list[tuple[BaseOutbox, list[Row], int]] = []
        count = size = 0
        while count < outbox_rows.DELIVERY_MAX and size < outbox_rows.DELIVERY_MAX_BYTES:
            with self._lock:
                if not self._ready:
                    break
                # It stays marked as queued until the delivery ends: taking it twice would send twice.
                state = self._ready.popleft()
                if state.dead:
                    continue
                rows = first_rows(state.pending)
                backlog, delivered = state.backlog, state.delivered
            if backlog:
                try:
                    rows = self._read_table(state, delivered)
                except (StatusError, apsw.Error) as exc:
                    with self._lock:
                        state.queued = False
                    self._unreadable(state, exc)
                    continue
            taken.append((state, rows, len(rows) if not backlog else 0))
            count += len(rows)
            size += size_of(rows)
        try:
            self._put(
                [event for _, rows, _ in taken for _, event in rows],
                [state.name for state, rows, _ in taken for _ in rows],
            )
        except BaseException:
            with self._lock:
                self._ready.extend(state for state, _, _ in taken)
            raise
        with self._lock:
            for state, rows, from_memory in taken:
                state.queued = False
                if state.dead:
                    continue
                self._forget_first(state, from_memory)
                if rows:
                    state.delivered = rows[-1][0]
                if state.backlog and state.loaded and state.delivered >= state.last_id:
                    state.backlog = False
                    # What was in memory when the backlog began was read from the table too.
                    self._forget_first(state, len(state.pending))
                late = state.loaded and state.delivered < state.last_id
                if state.pending or (state.backlog and (rows or late)):
                    self._enqueue(state)
                else:
                    self._tidy.add(state.name, time.monotonic() + self._delay_s)
        return count >= outbox_rows.DELIVERY_MAX or size >= outbox_rows.DELIVERY_MAX_BYTES

    def _put(self, events: list[bytes], keys: list[str]) -> None:
        """Give events to the queue; what it will never take is kept aside."""
        if not events or self._sink is None:
            return
        try:
            self._sink.put_many(events, keys=keys)
        except EventsRefused as exc:
            self._give_less(dict(zip(events, keys, strict=True)), exc)
        self.delivered_total += len(events)

    def _give_less(self, keys: dict[bytes, str], refusal: EventsRefused) -> None:
        """Keep aside what the queue will never take, and give it without what makes such events large.

        The chunks of a deleted object must be cleaned whatever its properties are.
        """
        self._refused.keep(refusal.events, str(refusal))
        shorter = [(less, keys[event]) for event in refusal.events if (less := without_properties(event))]
        if shorter and self._sink is not None:
            try:
                self._sink.put_many([event for event, _ in shorter], keys=[key for _, key in shorter])
            except EventsRefused as exc:
                self._refused.keep(exc.events, str(exc))

    def _read_table(self, state: BaseOutbox, after: int) -> list[Row]:
        def select(reader: Reader) -> list[Row]:
            return outbox_rows.read_after(reader.execute, max(0, after))

        return self._repository.read(state.name, select)

    def _unreadable(self, state: BaseOutbox, exc: Exception) -> None:
        """A base with a marker cannot be read: absent means that its creation never ended."""
        if isinstance(exc, StatusError) and exc.code == status.REDIRECT:
            self._leave_to_master(state.name)
            return
        if self._repository.forget_absent(state.name):
            return
        if state.dead or self._repository.end_destruction(state.name):
            return
        logger.error("base %s: pending events cannot be read now: %s", state.name, exc)
        with self._lock:
            self._tidy.add(state.name, time.monotonic() + RETRY_MAX_S)

    def _tidy_some(self) -> bool:
        """Tidy bases whose time has come: send their state, delete what was delivered. Are there more?

        Those that are many hold up the delivery for a moment only, and together: one delivery per base
        would let a base wait for as long as there are bases.
        """
        pause_s = time.monotonic() + LINGER_S
        while not self._stopping:
            now = time.monotonic()
            with self._lock:
                if now > pause_s and self._ready:
                    return True
                name = self._tidy.take(now)
                if name is None:
                    return False
                state = self._bases.get(name)
                if state is None or state.dead:
                    continue
                if state.backlog:
                    self._enqueue(state)
            try:
                self._repository.write(name, _mark_tidying, relaxed=True)
            except (StatusError, apsw.Error) as exc:
                self._unreadable(state, exc)
        return False

    @staticmethod
    def _unlink(path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return


def _mark_tidying(tx: Transaction) -> None:
    tx.tidying = True
