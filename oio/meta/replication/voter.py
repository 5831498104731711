# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""To whom a service gave its word: one promise per group, on disk, and the lease that goes with it.

A promise of an epoch is a promise to refuse whatever comes in the name of a former one, or of another service in
the same one. Two masters of one group thus never find a majority each, however wrong their view of the world is.

A lease is a promise to give no promise to anybody else for a while. A master that has the leases of a majority
knows that nobody else is master, and may answer reads from its own copy. It needs clocks that advance at about the
same rate, not clocks that agree. Leases are in memory: after its start a service waits for as long as those
that a former process of it may have given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from oio.meta.replication.ledger import Ledger
from oio.meta.replication.wire import Voice, Vote


class Voter:
    """The promises of one service. Thread-safe.

    :param on_deposed: called with the key of a group in which a later epoch than before, or the first one, was
        promised; and with the promise.
    """

    def __init__(
        self,
        ledger: Ledger,
        lease_s: float,
        on_deposed: Callable[[str, Vote], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self.lease_s = lease_s
        self._on_deposed = on_deposed
        self._clock = clock
        self._born = clock()
        self._lock = threading.Lock()
        #: Key -> end of the lease of the owner of the stored promise.
        self._leases: dict[str, float] = {}

    def vote(self, voice: Voice) -> Vote:
        """Obey a voice, or refuse. :raises StatusError: when the promise cannot be stored."""
        with self._lock:
            # Read in turn: a lease never becomes shorter than the one that a later request was granted.
            now = self._clock()
            stored = self._ledger.promise(voice.key)
            if stored is not None:
                if stored.epoch == voice.epoch and stored.owner == voice.owner:
                    self._leases[voice.key] = now + self.lease_s
                    return Vote(granted=True, epoch=voice.epoch, owner=voice.owner)
                if voice.epoch <= stored.epoch:
                    return Vote(granted=False, epoch=stored.epoch, owner=stored.owner)
                if voice.owner != stored.owner:
                    wait_s = self._leases.get(voice.key, self._born + self.lease_s) - now
                    if wait_s > 0:
                        return Vote(granted=False, epoch=stored.epoch, owner=stored.owner, wait_s=wait_s)
            self._ledger.store_promise(voice.key, voice.epoch, voice.owner)
            self._leases[voice.key] = self._clock() + self.lease_s
        granted = Vote(granted=True, epoch=voice.epoch, owner=voice.owner)
        self._on_deposed(voice.key, granted)
        return granted

    def lease_left_s(self, key: str) -> float:
        """How long the lease that we gave in a group still lasts."""
        return max(0.0, self._leases.get(key, 0.0) - self._clock())

    def promised(self, voice: Voice) -> bool:
        """Is this the last promise that we gave?"""
        stored = self._ledger.promise(voice.key)
        return stored is not None and (stored.epoch, stored.owner) == (voice.epoch, voice.owner)

    def highest(self, key: str) -> int:
        """The epoch that was promised, 0 when none was."""
        return self._ledger.highest_epoch(key)
