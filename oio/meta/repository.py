# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The bases of one volume: create, read, write, destroy.

>>> repository = Repository(volume, META2)                            # doctest: +SKIP
>>> repository.create(name, lambda tx: tx.set("sys.account", "acme"))  # doctest: +SKIP
>>> repository.write(name, lambda tx: tx.execute("INSERT …"))          # doctest: +SKIP

A base is a file; it is opened at its first use and stays open until others need its place (least recently
used first). A base appears in the volume complete or not at all: it is built in memory, written beside its
place, made durable, then linked to its name.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.base import Base, BaseOptions
from oio.meta.base_type import ENGINE_SCHEMA, PEERS, SCHEMA_VERSION, TOMBSTONE, BaseType
from oio.meta.client import Route
from oio.meta.context import NO_ROUTE
from oio.meta.deadlines import remaining, wait_within
from oio.meta.outbox import TIDY_DELAY_S, EventSink, Outbox, fsync_directory
from oio.meta.replication import journal
from oio.meta.replication.images import declare_position, look_at_image, tail_of_file
from oio.meta.replication.ledger import DESTROYED
from oio.meta.replication.positions import Position
from oio.meta.sqlite_files import HEAP_MAX_BYTES, memory_is_short, translate
from oio.meta.transaction import Reader, Transaction

if TYPE_CHECKING:
    from oio.meta.replication.engine import Replication
    from oio.meta.replication.leading import Lead

logger = logging.getLogger("oio.meta.repository")

T = TypeVar("T")

#: Open bases at most, when nothing else is said.
OPEN_MAX = 1024
#: Directory of the volume where bases are built.
WORKSHOP = ".new"
#: Admin key: when a base was defragmented by request (seconds).
LAST_VACUUM = "sys.last_vacuum"
_SIDE_FILES = ("-wal", "-shm", "-journal")
# Offsets of the "file format" bytes in a SQLite header; 2 says WAL.
_FORMAT_BYTES = (18, 19)


def _always() -> bool:
    return True


class Repository:
    """All the bases of one type in one volume. Thread-safe."""

    def __init__(
        self,
        volume: str,
        base_type: BaseType,
        *,
        options: BaseOptions | None = None,
        open_max: int = OPEN_MAX,
        queue: EventSink | None = None,
        events_memory_max: int = 10000,
        state_delay_s: float = TIDY_DELAY_S,
        replication: Replication | None = None,
    ) -> None:
        #: The copies of the bases; None when each base has one copy.
        self.replication = replication
        if replication is not None:
            replication.attach(self)
        self.volume = os.path.abspath(volume)
        self.type = base_type
        self._options = options or BaseOptions()
        self._fsync = self._options.sync != "off"
        self._open_max = open_max
        self._lock = threading.Condition(threading.Lock())
        self._bases: OrderedDict[str, Base] = OrderedDict()
        self._name_locks = [threading.Lock() for _ in range(64)]
        #: Evicted bases whose connections are not closed yet.
        self._closing: set[str] = set()
        self._temporary = 0
        self._workshop = os.path.join(self.volume, WORKSHOP)
        self._template: bytes | None = None
        self._closed = False
        self.evictions = 0
        self._clean_workshop()
        self.outbox = Outbox(
            self, self.volume, base_type, queue, events_memory_max,
            fsync=self._fsync, state_delay_s=state_delay_s,
        )
        self.outbox.start()
        apsw.soft_heap_limit(HEAP_MAX_BYTES)
        if replication is not None:
            replication.start()

    # --- using bases -------------------------------------------------------------------------------

    def read(
        self,
        base_name: str,
        fn: Callable[[Reader], T],
        short: bool = False,
        deadline: float | None = None,
        route: Route = NO_ROUTE,
    ) -> T:
        """Run a function on a consistent view of a base. :raises StatusError: 431 when it is absent.

        ``short`` promises that the function needs well below a millisecond. Waits end with ``deadline``
        (monotonic clock), with 503 or 504; the function has not run then. ``route``: what the caller knows
        of the copies of the base; unless it wants this very one, 303 tells who leads it.
        """
        lead = self._lead(base_name, route, deadline)
        base = self._pin(base_name, deadline)
        try:
            self._open(base, alone=lead is None and not route.local)
            if TOMBSTONE in base.admin:
                raise StatusError(status.CONTAINER_NOT_FOUND, f"base {base_name} is destroyed")
            result = base.read(fn, short, deadline)
        finally:
            self._unpin(base)
        if lead is not None:
            # Whoever is master now, it was not somebody else when we read.
            lead.confirm(deadline)
        return result

    def write(
        self,
        base_name: str,
        fn: Callable[[Transaction], T],
        relaxed: bool = False,
        deadline: float | None = None,
        route: Route = NO_ROUTE,
    ) -> T:
        """Run a function in a group commit of a base; returns after the commit is durable.

        The function may run in another thread, must not block, and must change nothing but its
        transaction: it is rolled back when it raises. ``deadline`` as for :meth:`read`; ``route``: what the
        caller knows of the copies of the base, which all get the change.

        :raises AlreadyDone: when the copies know the operation of the route: it was sent before.
        """
        lead = self._lead(base_name, route, deadline)
        base = self._pin(base_name, deadline)
        try:
            self._open(base, alone=lead is None)
            base.replicate_with(lead)
            return base.write(fn, relaxed, deadline, route.operation)
        finally:
            self._unpin(base)

    def create(
        self,
        base_name: str,
        init: Callable[[Transaction], object],
        deadline: float | None = None,
        route: Route = NO_ROUTE,
    ) -> bool:
        """Create a base that ``init`` fills; False (and nothing done) when it exists.

        Events that ``init`` emits leave once the base is in place. With several peers in ``route`` all of them
        get it.
        """

        def init_copies(tx: Transaction) -> None:
            init(tx)
            if len(route.peers) > 1:
                tx.set(PEERS, ",".join(sorted(route.peers)))

        def make(path: str) -> bool:
            image, has_events = self._build_image(base_name, init_copies)
            _write_file(path, image)
            return has_events

        with self.workshop_file() as temporary:
            return self._create(base_name, temporary, make, deadline, route)

    def install(
        self,
        base_name: str,
        image_path: str,
        change: Callable[[Transaction], object],
        deadline: float | None = None,
        route: Route = NO_ROUTE,
    ) -> bool:
        """Make a base of an image in the workshop, as :meth:`create` does; False when the base exists.

        ``change`` runs first on the image, without the events that waited in its outbox. The file of the
        image belongs to the caller, as :meth:`workshop_file` says, and is changed.
        """
        return self._create(
            base_name, image_path, lambda path: self._change_image(base_name, path, change), deadline, route
        )

    def _create(
        self, base_name: str, path: str, make: Callable[[str], bool], deadline: float | None, route: Route
    ) -> bool:
        """Place a base that ``make`` builds in a file (and tells whether it holds events)."""
        has_events = False

        def make_copy(target: str, position: Position) -> None:
            nonlocal has_events
            has_events = make(target)
            declare_position(target, position)

        if self.replication is not None and len(route.peers) > 1:
            place = partial(self._place, base_name, path, lambda: has_events)
            return self.replication.create(base_name, route, path, make_copy, place, deadline)
        if os.path.exists(self.path(base_name)) and not self.end_destruction(base_name):
            return False
        has_events = make(path)
        return self._place(base_name, path, lambda: has_events)

    def replace(self, base_name: str, image_path: str, wanted: Callable[[], bool]) -> bool:
        """Put an image in the place of a base, or of no base, as one step; False when it is not wanted any more.

        It waits until nobody uses the base; ``wanted`` is asked then.
        """
        path = self.path(base_name)
        admin, has_events = look_at_image(image_path)
        with self._name_lock(base_name):
            base = self._doom(base_name)
            try:
                base.close()
                if not wanted():
                    return False
                self._sync_place(path)
                _fsync_file(image_path) if self._fsync else None
                if has_events and self.outbox.enabled:
                    self.outbox.follow(base_name)
                for suffix in _SIDE_FILES:
                    with suppress(FileNotFoundError):
                        os.unlink(path + suffix)
                os.rename(image_path, path)
                self._sync_directory(os.path.dirname(path))
                self._exhume(base_name)
                if not has_events and self.outbox.enabled:
                    self.outbox.follow_nothing(base_name)
            except OSError as exc:
                raise StatusError(status.UNAVAILABLE, f"cannot replace {path}: {exc}") from exc
            finally:
                self._undoom(base_name)
        if self.replication is not None:
            self.replication.forget(base_name)
        if TOMBSTONE in admin:
            self.end_destruction(base_name)
        return True

    def drop_copy(self, base_name: str, position: Position, reason: str, peers: list[str]) -> bool:
        """Delete our copy of a base, and leave a grave that tells where the base stood; was there a copy?

        What waits in its outbox is delivered by the master of the base.
        """
        assert self.replication is not None
        with self._name_lock(base_name):
            self.replication.forget(base_name)
            if not self.exists(base_name):
                self.replication.ledger.bury(base_name, position, reason, peers)
                return False
            return self._discard(base_name, lambda: self._bury(base_name, position, reason, peers))

    def _bury(self, base_name: str, position: Position, reason: str, peers: list[str]) -> bool:
        """Leave a grave for a base that nobody has open; False when one lives that was created since."""
        assert self.replication is not None
        here = tail_of_file(self.path(base_name), 1)
        if here and here[0].rank > position.rank:
            if reason == DESTROYED:
                return False
            position = here[0]
        self.replication.ledger.bury(base_name, position, reason, peers)
        return True

    def _discard(self, base_name: str, allowed: Callable[[], bool] = _always) -> bool:
        base = self._doom(base_name)
        try:
            base.close()
            if not allowed():
                return False
            self._unlink_base(self.path(base_name))
            self.outbox.forget(base_name)
        finally:
            self._undoom(base_name)
        return True

    def remove_copy(self, base_name: str) -> None:
        """Delete the only copy of a base, without a trace."""
        with self._name_lock(base_name):
            self._discard(base_name)

    def _lead(self, base_name: str, route: Route, deadline: float | None) -> Lead | None:
        if self.replication is None or route.local:
            return None
        lead = self.replication.prepare(base_name, route, deadline)
        if lead is not None and self.close_lost(base_name):
            # The other peers have it.
            self.replication.forget(base_name)
            lead = self.replication.prepare(base_name, route, deadline)
        return lead

    def placed(self, base_name: str) -> bool:
        """Is there a file for this base, once nobody is putting one in its place or taking it away?"""
        with self._name_lock(base_name):
            return self.exists(base_name)

    def close_lost(self, base_name: str) -> bool:
        """Close a base whose file was removed by somebody else: what is written to it would be lost.

        :returns: is there no file?
        """
        if self.exists(base_name):
            return False
        with self._lock:
            if base_name not in self._bases:
                return True
        with self._name_lock(base_name):
            if self.exists(base_name):
                return False
            logger.error("the file of base %s was removed", base_name)
            base = self._doom(base_name)
            try:
                base.close()
                for suffix in _SIDE_FILES:
                    with suppress(FileNotFoundError):
                        os.unlink(self.path(base_name) + suffix)
            finally:
                self._undoom(base_name)
        return True

    def copy_out(self, base_name: str, path: str, deadline: float | None = None) -> None:
        """Write a consistent image of a base to a file, while others read and write the base."""
        with self.opened(base_name) as base:
            if TOMBSTONE in base.admin:
                raise StatusError(status.CONTAINER_NOT_FOUND, f"base {base_name} is destroyed")
            base.copy_to(path, deadline)

    @contextmanager
    def workshop_file(self) -> Iterator[str]:
        """Path of a new file of the workshop; what is there goes away at the end."""
        with self._lock:
            self._temporary += 1
            path = os.path.join(self._workshop, f"{self._temporary}.new")
        try:
            yield path
        finally:
            for suffix in ("", *_SIDE_FILES):
                with suppress(FileNotFoundError):
                    os.unlink(path + suffix)

    def exists(self, base_name: str) -> bool:
        """Is there a file for this base?"""
        return os.path.exists(self.path(base_name))

    def present(self, base_name: str, deadline: float | None = None, route: Route = NO_ROUTE) -> bool:
        """Does this base exist, here or on its other peers? :raises StatusError: 303, 503 as for :meth:`read`."""
        try:
            self._lead(base_name, route, deadline)
        except StatusError as exc:
            if exc.code != status.CONTAINER_NOT_FOUND:
                raise
            return False
        return self.exists(base_name)

    def destroy(
        self,
        base_name: str,
        last: Callable[[Transaction], object] | None = None,
        deadline: float | None = None,
        route: Route = NO_ROUTE,
    ) -> None:
        """Delete a base after ``last`` ran in its last transaction (and may have refused by raising)."""

        def bury(tx: Transaction) -> None:
            if last is not None:
                last(tx)
            tx.tidying = True
            tx.set(TOMBSTONE, str(time.time_ns() // 1000))

        self.write(base_name, bury, deadline=deadline, route=route)
        self.end_destruction(base_name)

    def vacuum(self, base_name: str, deadline: float | None = None, route: Route = NO_ROUTE) -> None:
        """Give the space that a base does not use any more back to the disk, on all that hold copies.

        It waits for its turn as a write does; other writers wait meanwhile, readers do not.
        """
        lead = self._lead(base_name, route, deadline)
        if lead is not None:
            now = str(int(time.time()))
            self.write(base_name, lambda tx: tx.set(LAST_VACUUM, now), deadline=deadline, route=route)
            lead.vacuum()
        self.defragment(base_name)

    def defragment(self, base_name: str) -> None:
        """Give the space that our copy of a base does not use any more back to the disk."""
        with self.opened(base_name) as base:
            base.exclusively(lambda connection: None, after=base.defragment)

    def end_destruction(self, base_name: str) -> bool:
        """Remove a base whose destruction was committed but interrupted; False when it lives."""
        with self._name_lock(base_name):
            try:
                with self.opened(base_name) as base:
                    if TOMBSTONE not in base.admin:
                        return False
                    peers = [peer for peer in base.admin.get(PEERS, "").split(",") if peer]
                    position = base.read(lambda reader: journal.position(reader.connection))
            except StatusError:
                return False
            if self.replication is not None and len(peers) > 1:
                self.replication.ledger.bury(base_name, position, "destroyed", peers)
                self.replication.forget(base_name)
            self._remove(base_name)
        return True

    def _name_lock(self, base_name: str) -> threading.Lock:
        """Creation and removal of one base exclude each other."""
        return self._name_locks[hash(base_name) % len(self._name_locks)]

    def forget_absent(self, base_name: str) -> bool:
        """Forget the outbox of a base that was never created; False when the base is there."""
        with self._name_lock(base_name):
            if self.exists(base_name):
                return False
            self.outbox.forget(base_name)
        return True

    def _remove(self, base_name: str) -> None:
        """Take away the file of a base whose tombstone is committed, once nobody has it open.

        SQLite finds the WAL of a file by its name: a connection that outlives the file would meet the WAL
        of the next base of that name. So the base stays registered, doomed, which keeps everybody
        from opening the file until it is gone.
        """
        base = self._doom(base_name)
        try:
            base.close()
            self._take_file_away(base_name, self.path(base_name))
        finally:
            self._undoom(base_name)

    def _doom(self, base_name: str) -> Base:
        """Keep everybody from a base, once those who use it are done; :meth:`_undoom` must follow."""
        path = self.path(base_name)
        with self._lock:
            base = self._bases.get(base_name)
            if base is None:
                base = Base(base_name, path, self.type, self._options, self.outbox)
                self._bases[base_name] = base
            base.doomed = True
            free = self._lock.wait_for(
                lambda: not base.pins and base_name not in self._closing, self._options.wait_s
            )
            if not free:
                base.doomed = False
                raise StatusError(status.UNAVAILABLE, f"the file of base {base_name} is still in use")
        return base

    def _undoom(self, base_name: str) -> None:
        with self._lock:
            del self._bases[base_name]
            self._lock.notify_all()

    def _take_file_away(self, base_name: str, path: str) -> None:
        if self.outbox.enabled:
            leftover = self.outbox.leftover_path(base_name)
            try:
                os.rename(path, leftover)
            except FileNotFoundError:
                return
            for suffix in _SIDE_FILES:
                if os.path.exists(path + suffix):
                    os.rename(path + suffix, leftover + suffix)
            self._sync_directory(self.outbox.directory)
            self._sync_directory(os.path.dirname(path))
            self.outbox.forget(base_name)
            self.outbox.adopt(leftover)
        else:
            self._unlink_base(path)

    def _unlink_base(self, path: str) -> None:
        for suffix in ("", *_SIDE_FILES):
            with suppress(FileNotFoundError):
                os.unlink(path + suffix)
        self._sync_directory(os.path.dirname(path))

    def path(self, base_name: str) -> str:
        """File of a base. :raises StatusError: 400 for a name that cannot be one."""
        try:
            return os.path.join(self.volume, self.type.relative_path(base_name))
        except ValueError as exc:
            raise StatusError(status.BAD_REQUEST, str(exc)) from exc

    def names(self) -> Iterator[str]:
        """Names of all the bases in the volume, in no order. It walks through the directories."""
        suffix = f".{self.type.name}"
        for _directory, subdirectories, files in os.walk(self.volume):
            subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
            for name in files:
                if name.endswith(suffix):
                    yield name[: -len(suffix)]

    def stats(self) -> dict[str, int]:
        """Open bases, those in use, the limit, evictions."""
        with self._lock:
            used = sum(1 for base in self._bases.values() if base.pins)
            return {
                "max": self._open_max,
                "open": len(self._bases),
                "used": used,
                "evictions": self.evictions,
            }

    def close(self) -> None:
        """Stop the outbox and close every base that is not in use."""
        self.outbox.stop()
        with self._lock:
            self._closed = True
            bases = [base for base in self._bases.values() if not base.pins]
            for base in bases:
                del self._bases[base.name]
        for base in bases:
            base.close()

    def _open(self, base: Base, alone: bool) -> None:
        """Open a base; the tables of one that is ``alone``, without copies, are brought to the present version."""
        base.open()
        if alone and self.type.upgrades and self.type.upgrade_from(base.admin.get(SCHEMA_VERSION, "")):
            base.exclusively(self._upgrade)

    def _upgrade(self, connection: apsw.Connection) -> None:
        """Run in the turn of the writer: another thread may have done it meanwhile."""
        while True:
            ((version,),) = connection.execute("SELECT v FROM admin WHERE k = ?", (SCHEMA_VERSION,))
            script = self.type.upgrade_from(version)
            if not script:
                return
            connection.execute(script)

    # --- open bases --------------------------------------------------------------------------------

    @contextmanager
    def opened(self, base_name: str) -> Iterator[Base]:
        """Hold an open base (for replication and administration)."""
        base = self._pin(base_name)
        try:
            base.open()
            yield base
        finally:
            self._unpin(base)

    def _pin(self, base_name: str, deadline: float | None = None) -> Base:
        victim = None
        with self._lock:
            base = self._bases.get(base_name)
            if base is None:
                if len(self._bases) >= self._open_max:
                    victim = self._make_room(wait_within(self._options.wait_s, deadline))
                    base = self._bases.get(base_name)
                elif memory_is_short():
                    victim = self._take_idle()
            if base is None and base_name in self._closing:
                self._wait_closed(base_name, victim, deadline)
                victim = None
                base = self._bases.get(base_name)
            if base is None:
                base = Base(
                    base_name, self.path(base_name), self.type, self._options, self.outbox
                )
                if self.replication is not None:
                    base.on_peers = partial(self.replication.forget, base_name)
                self._bases[base_name] = base
            else:
                self._bases.move_to_end(base_name)
            doomed = base.doomed
            if not doomed:
                base.pins += 1
        if victim is not None:
            self._close_victim(victim)
        if doomed:
            # Its file goes away, or another takes its place: what is there afterwards is the answer.
            self._wait_undoomed(base_name, deadline)
            return self._pin(base_name, deadline)
        return base

    def _wait_undoomed(self, base_name: str, deadline: float | None) -> None:
        def free() -> bool:
            base = self._bases.get(base_name)
            return base is None or not base.doomed

        with self._lock:
            if not self._lock.wait_for(free, wait_within(self._options.wait_s, deadline)):
                raise StatusError(status.UNAVAILABLE, f"base {base_name} is being removed or replaced")

    def _wait_closed(self, base_name: str, victim: Base | None, deadline: float | None) -> None:
        """Wait until an evicted base is closed: its last connection deletes the WAL by its name."""
        if victim is not None:
            # Others may wait for our own victim as we wait for theirs: end it first.
            self._lock.release()
            try:
                self._close_victim(victim)
            finally:
                self._lock.acquire()
        wait_s = wait_within(self._options.wait_s, deadline)
        if not self._lock.wait_for(lambda: base_name not in self._closing, wait_s):
            raise StatusError(status.UNAVAILABLE, f"base {base_name} is still being closed")

    def _close_victim(self, victim: Base) -> None:
        victim.close()
        with self._lock:
            self._closing.discard(victim.name)
            self._lock.notify_all()

    def _make_room(self, wait_s: float) -> Base | None:
        """Take the least recently used base out, waiting for one that nobody uses."""
        deadline = time.monotonic() + wait_s
        while len(self._bases) >= self._open_max:
            idle = self._take_idle()
            if idle is not None:
                return idle
            left = remaining(deadline)
            if not left:
                raise StatusError(
                    status.UNAVAILABLE,
                    f"all {self._open_max} open bases are in use since {wait_s:.3g} s",
                )
            self._lock.wait(left)
        return None

    def _take_idle(self) -> Base | None:
        """Take out the least recently used base that nobody uses; the caller closes it."""
        for name, base in self._bases.items():
            if not base.pins and not base.doomed and name not in self._closing:
                del self._bases[name]
                self._closing.add(name)
                self.evictions += 1
                return base
        return None

    def _unpin(self, base: Base) -> None:
        with self._lock:
            base.pins -= 1
            if base.pins:
                return
            if not base.is_open and self._bases.get(base.name) is base:
                # It could not be opened: nothing to keep.
                del self._bases[base.name]
            self._lock.notify_all()

    # --- new bases ---------------------------------------------------------------------------------

    def _build_image(
        self, base_name: str, init: Callable[[Transaction], object]
    ) -> tuple[bytes, bool]:
        connection = apsw.Connection(":memory:")
        try:
            if self._template is None:
                connection.execute(f"PRAGMA page_size={self._options.page_size}")
                connection.execute(ENGINE_SCHEMA + self.type.schema)
                self._template = connection.serialize("main")
            else:
                connection.deserialize("main", self._template)
            connection.execute("BEGIN")
            tx = Transaction(base_name, connection, {}, self.outbox.enabled)
            for key, value in self.type.first_admin(base_name).items():
                tx.set(key, value)
            init(tx)
            tx.keep_member()
            # The first versions of the tables are written by first_admin: nothing to count yet.
            connection.executemany("INSERT INTO admin(k, v) VALUES(?, ?)", tx.all_admin().items())
            has_events = _store_events(connection, tx)
            connection.execute("COMMIT")
            image = bytearray(connection.serialize("main"))
        except apsw.Error as exc:
            raise translate(exc, base_name) from exc
        finally:
            connection.close()
        for offset in _FORMAT_BYTES:
            image[offset] = 2
        return bytes(image), has_events

    def _change_image(
        self, base_name: str, image_path: str, change: Callable[[Transaction], object]
    ) -> bool:
        try:
            connection = apsw.Connection(image_path, flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                # When it fails nobody needs the file any more.
                connection.execute("PRAGMA journal_mode=OFF")
                connection.execute("PRAGMA synchronous=OFF")
                connection.execute("BEGIN")
                connection.execute("DELETE FROM events")
                admin = dict(connection.execute("SELECT k, v FROM admin"))
                tx = Transaction(base_name, connection, admin, self.outbox.enabled)
                change(tx)
                tx.keep_member()
                tx.flush_admin()
                has_events = _store_events(connection, tx)
                connection.execute("COMMIT")
            finally:
                connection.close()
        except apsw.Error as exc:
            raise translate(exc, base_name) from exc
        with open(image_path, "r+b", buffering=0) as file:
            for offset in _FORMAT_BYTES:
                os.pwrite(file.fileno(), b"\2", offset)
        return has_events

    def _place(
        self, base_name: str, image_path: str, events: Callable[[], bool], allowed: Callable[[], bool] = _always
    ) -> bool:
        """Link a whole image to the name of its base; False when the base exists, or when it is not allowed."""
        has_events = events()
        path = self.path(base_name)
        directory = os.path.dirname(path)
        try:
            self._sync_place(path)
            if self._fsync:
                _fsync_file(image_path)
        except OSError as exc:
            raise StatusError(status.UNAVAILABLE, f"cannot create {path}: {exc}") from exc
        with self._name_lock(base_name):
            if os.path.exists(path) or not allowed():
                return False
            if has_events:
                self.outbox.mark(base_name)
            try:
                os.link(image_path, path)
            except OSError as exc:
                raise StatusError(status.UNAVAILABLE, f"cannot create {path}: {exc}") from exc
            self._sync_directory(directory)
            self._exhume(base_name)
            if has_events:
                self.outbox.discover(base_name)
        return True

    def _exhume(self, base_name: str) -> None:
        """There is a base again: the grave of the former one is over. In the lock of its name."""
        if self.replication is not None and self.replication.ledger.grave(base_name) is not None:
            self.replication.ledger.exhume(base_name)

    def _sync_place(self, path: str) -> None:
        """Make the directory of a base."""
        directory = os.path.dirname(path)
        if not os.path.isdir(directory):
            os.makedirs(directory, exist_ok=True)
            self._sync_directory(os.path.dirname(directory))

    def _clean_workshop(self) -> None:
        """What a former process left unfinished there was never a base."""
        os.makedirs(self._workshop, exist_ok=True)
        for entry in list(os.scandir(self._workshop)):
            os.unlink(entry.path)

    def _sync_directory(self, path: str) -> None:
        if self._fsync:
            fsync_directory(path)


def _store_events(connection: apsw.Connection, tx: Transaction) -> bool:
    """Fill the outbox of a base that is not in its place yet; is there anything?"""
    rows: list[tuple[int, bytes | None]] = list(enumerate(tx.events, 1))
    if tx.state_wanted:
        rows.insert(0, (0, None))
    connection.executemany("INSERT INTO events(id, event) VALUES(?, ?)", rows)
    return bool(rows)


def _write_file(path: str, content: bytes) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(content)
    except OSError as exc:
        raise StatusError(status.UNAVAILABLE, f"cannot write {path}: {exc}") from exc


def _fsync_file(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
