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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.base import Base, BaseOptions
from oio.meta.base_files import BaseFiles
from oio.meta.base_type import PEERS, SCHEMA_VERSION, TOMBSTONE, BaseType, peers_in
from oio.meta.client import Route
from oio.meta.context import NO_ROUTE
from oio.meta.open_bases import OpenBases
from oio.meta.outbox import TIDY_DELAY_S, EventSink, Outbox
from oio.meta.replication import journal, operations
from oio.meta.replication.images import declare_position, look_at_image, tail_of_file
from oio.meta.replication.ledger import DESTROYED
from oio.meta.replication.positions import Position
from oio.meta.sqlite_files import HEAP_MAX_BYTES
from oio.meta.transaction import UPSERT_ADMIN, Reader, Transaction
from oio.meta.workshop import Workshop

if TYPE_CHECKING:
    from oio.meta.replication.engine import Replication
    from oio.meta.replication.leading import Lead

logger = logging.getLogger("oio.meta.repository")

T = TypeVar("T")

#: Open bases at most, when nothing else is said.
OPEN_MAX = 1024
#: Admin key: when a base was defragmented by request (seconds).
LAST_VACUUM = "sys.last_vacuum"


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
        durable = self._options.sync != "off"
        self._files = BaseFiles(self.volume, base_type, durable)
        self._workshop = Workshop(self.volume, base_type, self._options.page_size, queue is not None)
        self._open_bases = OpenBases(self._make_base, open_max, self._options.wait_s)
        self._name_locks = [threading.Lock() for _ in range(64)]
        self.outbox = Outbox(
            self, self.volume, base_type, queue, events_memory_max, fsync=durable, state_delay_s=state_delay_s
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
        base = self._open_bases.pin(base_name, deadline)
        try:
            self._open(base, alone=lead is None and not route.local)
            if TOMBSTONE in base.admin:
                raise StatusError(status.CONTAINER_NOT_FOUND, f"base {base_name} is destroyed")
            result = base.read(fn, short, deadline)
        finally:
            self._open_bases.unpin(base)
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
        base = self._open_bases.pin(base_name, deadline)
        try:
            self._open(base, alone=lead is None)
            base.replicate_with(lead)
            return base.write(fn, relaxed, deadline, route.operation)
        finally:
            self._open_bases.unpin(base)

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
            return self._workshop.build(base_name, path, init_copies)

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
            base_name, image_path, lambda path: self._workshop.change(base_name, path, change), deadline, route
        )

    def _create(
        self, base_name: str, path: str, make: Callable[[str], bool], deadline: float | None, route: Route
    ) -> bool:
        """Place a base that ``make`` builds in a file (and tells whether it holds events)."""
        has_events = False

        def make_copy(target: str, position: Position) -> None:
            nonlocal has_events
            has_events = make(target)
            declare_position(target, position, route.operation)

        if self.replication is not None and len(route.peers) > 1:
            place = partial(self._place, base_name, path, lambda: has_events)
            created = self.replication.create(base_name, route, path, make_copy, place, deadline)
            return created or self._made_by(base_name, route, deadline)
        if self.exists(base_name) and not self.end_destruction(base_name):
            return False
        has_events = make(path)
        return self._place(base_name, path, lambda: has_events)

    def _made_by(self, base_name: str, route: Route, deadline: float | None) -> bool:
        """Was a base that exists made by this very operation, which was sent before?"""
        if not route.operation:
            return False
        return self.read(
            base_name, lambda reader: operations.known(reader.connection, route.operation), deadline=deadline,
            route=route,
        )

    def replace(self, base_name: str, image_path: str, wanted: Callable[[], bool]) -> bool:
        """Put an image in the place of a base, or of no base, as one step; False when it is not wanted any more.

        It waits until nobody uses the base; ``wanted`` is asked then, and may change the image.
        """
        with self._name_lock(base_name), self._open_bases.kept_closed(base_name):
            if not wanted():
                return False
            admin, has_events = look_at_image(image_path)
            with _disk_errors(f"cannot replace {self.path(base_name)}"):
                self._files.prepare(base_name, image_path)
                if has_events and self.outbox.enabled:
                    self.outbox.follow(base_name)
                self._files.replace(base_name, image_path)
                self._exhume(base_name)
                if not has_events and self.outbox.enabled:
                    self.outbox.follow_nothing(base_name)
        if self.replication is not None:
            self.replication.forget(base_name)
        if TOMBSTONE in admin:
            self.end_destruction(base_name)
        return True

    def drop_copy(
        self, base_name: str, position: Position, reason: str, peers: list[str], spare: bool = False
    ) -> bool:
        """Delete our copy of a base, and leave a grave that tells where the base stood; was there a copy?

        What waits in its outbox is delivered by the master of the base; ``spare``: or by us, when it is lost.
        """
        assert self.replication is not None
        with self._name_lock(base_name):
            self.replication.forget(base_name)
            if not self.exists(base_name):
                self.replication.ledger.bury(base_name, position, reason, peers)
                return False
            return self._discard(
                base_name,
                lambda: self._bury(base_name, position, reason, peers),
                position.seq if spare and self.outbox.holds(base_name) else 0,
            )

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

    def _discard(self, base_name: str, allowed: Callable[[], bool] = _always, spare_entry: int = 0) -> bool:
        with self._open_bases.kept_closed(base_name):
            if not allowed():
                return False
            if spare_entry:
                self._files.move(base_name, self.outbox.leftovers.path_for(base_name, spare_entry, spare=True))
            else:
                self._files.remove(base_name)
            self.outbox.forget(base_name)
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
        if base_name not in self._open_bases:
            return True
        with self._name_lock(base_name):
            if self.exists(base_name):
                return False
            logger.error("the file of base %s was removed", base_name)
            with self._open_bases.kept_closed(base_name):
                self._files.remove_side_files(base_name)
        return True

    def copy_out(self, base_name: str, path: str, deadline: float | None = None) -> None:
        """Write a consistent image of a base to a file, while others read and write the base."""
        with self.opened(base_name) as base:
            if TOMBSTONE in base.admin:
                raise StatusError(status.CONTAINER_NOT_FOUND, f"base {base_name} is destroyed")
            base.copy_to(path, deadline)

    def workshop_file(self) -> AbstractContextManager[str]:
        """Path of a new file of the workshop; what is there goes away at the end."""
        return self._workshop.file()

    def exists(self, base_name: str) -> bool:
        """Is there a file for this base?"""
        return self._files.exists(base_name)

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
        now = str(int(time.time()))
        lead = self._lead(base_name, route, deadline)
        if lead is not None:
            self.write(base_name, lambda tx: tx.set(LAST_VACUUM, now), deadline=deadline, route=route)
            lead.vacuum()
            self.defragment(base_name)
            return

        def stamp(connection: apsw.Connection) -> None:
            # No copy could miss this change: the versions of the tables stay.
            connection.execute(UPSERT_ADMIN, (LAST_VACUUM, now))

        with self.opened(base_name) as base:
            base.exclusively(stamp, deadline=deadline, after=base.defragment)

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
                    peers = peers_in(base.admin)
                    position = base.read(lambda reader: journal.position(reader.connection))
            except StatusError:
                return False
            if self.replication is not None and len(peers) > 1:
                self.replication.ledger.bury(base_name, position, DESTROYED, peers)
                self.replication.forget(base_name)
            self._remove(base_name, position.seq)
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

    def _remove(self, base_name: str, last_entry: int) -> None:
        """Take away the file of a base whose tombstone is committed, once nobody has it open."""
        with self._open_bases.kept_closed(base_name):
            if not self.outbox.enabled:
                self._files.remove(base_name)
                return
            leftover = self.outbox.leftovers.path_for(base_name, last_entry)
            if self._files.move(base_name, leftover):
                self.outbox.forget(base_name)
                self.outbox.adopt(leftover)

    def path(self, base_name: str) -> str:
        """File of a base. :raises StatusError: 400 for a name that cannot be one."""
        return self._files.path(base_name)

    def names(self) -> Iterator[str]:
        """Names of all the bases in the volume, in no order. It walks through the directories."""
        return self._files.names()

    def stats(self) -> dict[str, int]:
        """Open bases, those in use, the limit, evictions."""
        return self._open_bases.stats()

    def close(self) -> None:
        """Stop the outbox and close every base that is not in use."""
        self.outbox.stop()
        self._open_bases.close()

    def _make_base(self, base_name: str) -> Base:
        base = Base(base_name, self.path(base_name), self.type, self._options, self.outbox)
        if self.replication is not None:
            base.on_peers = partial(self.replication.forget, base_name)
        return base

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
        base = self._open_bases.pin(base_name)
        try:
            base.open()
            yield base
        finally:
            self._open_bases.unpin(base)

    # --- placing bases -----------------------------------------------------------------------------

    def _place(
        self, base_name: str, image_path: str, events: Callable[[], bool], allowed: Callable[[], bool] = _always
    ) -> bool:
        """Link a whole image to the name of its base; False when the base exists, or when it is not allowed."""
        has_events = events()
        failure = f"cannot create {self.path(base_name)}"
        with _disk_errors(failure):
            self._files.prepare(base_name, image_path)
        with self._name_lock(base_name):
            if self.exists(base_name) or not allowed():
                return False
            if has_events:
                self.outbox.mark(base_name)
            with _disk_errors(failure):
                self._files.link(base_name, image_path)
            self._files.sync(base_name)
            self._exhume(base_name)
            if has_events:
                self.outbox.discover(base_name)
        return True

    def _exhume(self, base_name: str) -> None:
        """There is a base again: the grave of the former one is over. In the lock of its name."""
        if self.replication is not None and self.replication.ledger.grave(base_name) is not None:
            self.replication.ledger.exhume(base_name)


@contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    """Tell the errors of the volume to the caller, who may have better luck elsewhere."""
    try:
        yield
    except OSError as exc:
        raise StatusError(status.UNAVAILABLE, f"{what}: {exc}") from exc
