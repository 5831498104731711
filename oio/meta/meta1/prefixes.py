# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Which prefixes a meta1 service is in charge of, as meta0 says.

The table is read again when a request comes for a prefix that is not among them: it may have been given to
this service a moment ago. So a refusal always stands on a table that was read after the request came; as it is
read once per ``REFRESH_MIN_S`` at most, the request may wait that long, and those that wait share one reading.
It is also read every ``REFRESH_PERIOD_S``, so that prefixes that were given to another service are refused. While
meta0 cannot be reached, the prefixes known so far are still served.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from oio.common import status
from oio.common.status import StatusError
from oio.conscience.registry_client import RegistryClient
from oio.directory import mapping
from oio.meta.client import MetaClient

logger = logging.getLogger("oio.meta1")

#: A wrong prefix costs one reading of the table (about 2 MB): not more often than that.
REFRESH_MIN_S = 1.0
REFRESH_PERIOD_S = 60.0

Load = Callable[[], Collection[str]]


class Prefixes:
    """The bases that this service may hold. ``load`` returns their names; it may raise StatusError."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._bases: frozenset[str] | None = None
        self._tried_at = self._read_from = -REFRESH_MIN_S
        self._error = "not read yet"
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __contains__(self, base: str) -> bool:
        """Is this service in charge of the base, as far as it knows?"""
        bases = self._bases
        return bases is not None and base in bases

    def check(self, base: str) -> None:
        """:raises StatusError: 450 when the base belongs to others, 503 while nothing is known."""
        if base in self:
            return
        came_at = time.monotonic()
        with self._lock:
            if base not in self and self._read_from <= came_at:
                self._stopping.wait(max(0.0, self._tried_at + REFRESH_MIN_S - came_at))
                self._refresh()
            bases = self._bases
        if bases is None:
            raise StatusError(status.UNAVAILABLE, f"Prefix table not known: {self._error}")
        if base not in bases:
            raise StatusError(status.PREFIX_NOT_MANAGED, f"Prefix {base} is not managed here")

    def count(self) -> int:
        """Number of bases known to be in charge of this service."""
        return len(self._bases or ())

    def start(self) -> None:
        """Read the table again from time to time."""
        self._thread = threading.Thread(target=self._run, name="prefixes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop reading it."""
        self._stopping.set()

    def refresh(self) -> None:
        """Read the table now; a failure keeps what is known."""
        with self._lock:
            self._refresh()

    def _run(self) -> None:
        while not self._stopping.wait(REFRESH_PERIOD_S):
            self.refresh()

    def _refresh(self) -> None:
        self._read_from = time.monotonic()
        try:
            self._bases = frozenset(self._load())
        except StatusError as err:
            self._error = str(err)
            logger.warning("prefix table not read: %s", err)
        # After the call: a slow meta0 must not be asked again at once.
        self._tried_at = time.monotonic()


def load_from_meta0(
    registry: RegistryClient, client: MetaClient, own: Collection[str], digits: int
) -> list[str]:
    """Bases of the services named ``own``, from the first meta0 that answers.

    One that lost its volume has an empty table until it gets a copy. So each is told who the others are, and an
    empty table counts only when all the others answer, and have none either.
    """
    services = registry.services("meta0")
    if not services:
        raise StatusError(status.UNAVAILABLE, "No meta0 service known")
    peers = sorted(one.service_id for one in services)
    table: dict[str, list[str]] = {}
    failures: list[StatusError] = []
    for service in services:
        try:
            table = mapping.load(client, service.addr, peers if len(peers) > 1 else ())
        except StatusError as err:
            failures.append(err)
        if table:
            break
    silent = [err for err in failures if err.code != status.REDIRECT]
    if not table and (silent or len(failures) == len(services)):
        raise (silent or failures)[-1]
    return sorted(
        {
            mapping.base_of(prefix, digits)
            for prefix, services_of in table.items()
            if not set(own).isdisjoint(services_of)
        }
    )
