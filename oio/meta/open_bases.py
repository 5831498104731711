# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The bases that are open: as many as allowed, those that were used last."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from oio.common import status
from oio.common.status import StatusError
from oio.meta.base import Base
from oio.meta.deadlines import remaining, wait_within
from oio.meta.sqlite_files import memory_is_short


class OpenBases:
    """A cache of bases. Thread-safe.

    :param make: makes the base of a name, closed. :raises StatusError: 400 for a name that cannot be one.
    :param open_max: bases that are open at once; beyond, one that nobody uses is closed, or waited for.
    :param wait_s: longest wait, then 503.
    """

    def __init__(self, make: Callable[[str], Base], open_max: int, wait_s: float) -> None:
        self._make = make
        self._open_max = open_max
        self._wait_s = wait_s
        self._lock = threading.Condition(threading.Lock())
        self._bases: OrderedDict[str, Base] = OrderedDict()
        #: Evicted bases whose connections are not closed yet.
        self._closing: set[str] = set()
        self._evictions = 0

    def __contains__(self, base_name: str) -> bool:
        with self._lock:
            return base_name in self._bases

    def pin(self, base_name: str, deadline: float | None = None) -> Base:
        """Keep a base from being closed, and from losing its file; :meth:`unpin` must follow.

        It is not open yet when nobody else uses it. :raises StatusError: 503 after a wait in vain.
        """
        victims: list[Base] = []
        try:
            with self._lock:
                base = self._register(base_name, victims, deadline)
                doomed = base.doomed
                if not doomed:
                    base.pins += 1
        finally:
            self._close_victims(victims)
        if doomed:
            # Its file goes away, or another takes its place: what is there afterwards is the answer.
            self._wait_undoomed(base_name, deadline)
            return self.pin(base_name, deadline)
        return base

    def _register(self, base_name: str, victims: list[Base], deadline: float | None) -> Base:
        """The base, in its place among the open ones; those that made room for it are to be closed.

        Whatever waits lets others in: what was true before is looked at again.
        """
        while (base := self._bases.get(base_name)) is None:
            if base_name in self._closing:
                self._wait_closed(base_name, victims, deadline)
            elif len(self._bases) >= self._open_max:
                idle = self._make_room(wait_within(self._wait_s, deadline))
                victims += [idle] if idle is not None else []
            else:
                if memory_is_short() and (idle := self._take_idle()) is not None:
                    victims.append(idle)
                base = self._bases[base_name] = self._make(base_name)
                return base
        self._bases.move_to_end(base_name)
        return base

    def unpin(self, base: Base) -> None:
        """The end of :meth:`pin`."""
        with self._lock:
            base.pins -= 1
            if base.pins:
                return
            if not base.is_open and not base.doomed and self._bases.get(base.name) is base:
                # It could not be opened: nothing to keep. (Whoever keeps a base closed keeps its place.)
                del self._bases[base.name]
            self._lock.notify_all()

    @contextmanager
    def kept_closed(self, base_name: str) -> Iterator[None]:
        """Wait until nobody uses a base, and keep everybody from opening it meanwhile.

        :raises StatusError: 503 when it is still in use after a wait.
        """
        base = self._doom(base_name)
        try:
            base.close()
            yield
        finally:
            with self._lock:
                del self._bases[base_name]
                self._lock.notify_all()

    def stats(self) -> dict[str, int]:
        """Open bases, those in use, the limit, evictions."""
        with self._lock:
            used = sum(1 for base in self._bases.values() if base.pins)
            return {"max": self._open_max, "open": len(self._bases), "used": used, "evictions": self._evictions}

    def close(self) -> None:
        """Close every base that is not in use."""
        with self._lock:
            bases = [base for base in self._bases.values() if not base.pins]
            for base in bases:
                del self._bases[base.name]
        for base in bases:
            base.close()

    def _doom(self, base_name: str) -> Base:
        with self._lock:
            if not self._lock.wait_for(lambda: not self._is_doomed(base_name), self._wait_s):
                raise StatusError(status.UNAVAILABLE, f"base {base_name} is being removed or replaced")
            base = self._bases.get(base_name)
            if base is None:
                base = self._bases[base_name] = self._make(base_name)
            base.doomed = True
            free = self._lock.wait_for(lambda: not base.pins and base_name not in self._closing, self._wait_s)
            if not free:
                base.doomed = False
                self._lock.notify_all()
                raise StatusError(status.UNAVAILABLE, f"the file of base {base_name} is still in use")
        return base

    def _is_doomed(self, base_name: str) -> bool:
        base = self._bases.get(base_name)
        return base is not None and base.doomed

    def _wait_undoomed(self, base_name: str, deadline: float | None) -> None:
        with self._lock:
            wait_s = wait_within(self._wait_s, deadline)
            if not self._lock.wait_for(lambda: not self._is_doomed(base_name), wait_s):
                raise StatusError(status.UNAVAILABLE, f"base {base_name} is being removed or replaced")

    def _wait_closed(self, base_name: str, victims: list[Base], deadline: float | None) -> None:
        """Wait until an evicted base is closed: its last connection deletes the WAL by its name."""
        if victims:
            # Others may wait for our own victims as we wait for theirs: end them first.
            self._lock.release()
            try:
                self._close_victims(victims)
            finally:
                self._lock.acquire()
        wait_s = wait_within(self._wait_s, deadline)
        if not self._lock.wait_for(lambda: base_name not in self._closing, wait_s):
            raise StatusError(status.UNAVAILABLE, f"base {base_name} is still being closed")

    def _close_victims(self, victims: list[Base]) -> None:
        while victims:
            victim = victims.pop()
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
                self._evictions += 1
                return base
        return None
