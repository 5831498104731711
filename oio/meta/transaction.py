# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What a function sees of a base while it reads or writes it.

Admin keys are read from memory. Those that a writer sets are written once, at the end of the batch: ten
objects put together cost one update of the counters. They still belong to the same SQLite transaction as the
rows, so that counters and rows can never disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import apsw
import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.event.queue import EVENT_MAX_BYTES

Bindings = Sequence[Any]

_CHANGES = re.compile(r"^\s*(?:INSERT(?: OR \w+)? INTO|REPLACE INTO|UPDATE|DELETE FROM)\s+(\w+)", re.I)
#: Sets an admin key, given with its value.
UPSERT_ADMIN = "INSERT INTO admin(k, v) VALUES(?, ?) ON CONFLICT(k) DO UPDATE SET v = excluded.v"
_DELETE_ADMIN = "DELETE FROM admin WHERE k = ?"

# Statements are constants of the code: this stays small.
_changed_table: dict[str, str] = {}


def _table_changed_by(sql: str) -> str:
    """Name of the table a statement changes, empty for a query."""
    match = _CHANGES.match(sql)
    table = _changed_table[sql] = match[1] if match else ""
    return table


class Reader:
    """A consistent view of a base: one SQLite read transaction and the admin keys."""

    __slots__ = ("admin", "base_name", "connection", "execute")

    def __init__(
        self, base_name: str, connection: apsw.Connection, admin: Mapping[str, str]
    ) -> None:
        self.base_name = base_name
        self.connection = connection
        self.admin = admin
        #: ``execute(sql, bindings)``: the rows of one statement.
        self.execute: Callable[..., apsw.Cursor] = connection.execute

    def get(self, key: str, default: str | None = None) -> str | None:
        """Value of an admin key."""
        return self.admin.get(key, default)

    def all_admin(self) -> dict[str, str]:
        """A copy of all the admin keys."""
        return dict(self.admin)


class Transaction:
    """One batch of writes on a base; each member of the batch gets it in turn.

    What a member sets (admin keys, events, callbacks) is kept aside until the member returns, and is
    forgotten when it raises.
    """

    __slots__ = (
        "_batch_admin", "_batch_callbacks", "_batch_events", "_batch_state", "_committed", "_dirty",
        "_op_admin", "_op_callbacks", "_op_dirty", "_op_events", "_op_state", "_run", "base_name",
        "connection", "events_enabled", "tidying",
    )

    def __init__(
        self,
        base_name: str,
        connection: apsw.Connection,
        admin: Mapping[str, str],
        events_enabled: bool,
    ) -> None:
        self.base_name = base_name
        self.connection = connection
        #: False when the namespace has no event queue: then events need not be built.
        self.events_enabled = events_enabled
        #: Set by the outbox's own writes: delete what was delivered, send the state of the base.
        self.tidying = False
        self._run = connection.execute
        self._committed = admin
        self._batch_admin: dict[str, str | None] = {}
        self._batch_events: list[bytes] = []
        self._batch_callbacks: list[Callable[[], object]] = []
        self._batch_state = False
        self._dirty: set[str] = set()
        self._op_admin: dict[str, str | None] = {}
        self._op_events: list[bytes] = []
        self._op_callbacks: list[Callable[[], object]] = []
        self._op_state = False
        self._op_dirty: set[str] = set()

    # --- what members call ---------------------------------------------------------------------

    def execute(self, sql: str, bindings: Bindings = ()) -> apsw.Cursor:
        """Run one statement; iterate on the result for its rows."""
        table = _changed_table.get(sql)
        if table is None:
            table = _table_changed_by(sql)
        if table:
            self._op_dirty.add(table)
        return self._run(sql, bindings)

    def executemany(self, sql: str, rows: Iterable[Bindings]) -> None:
        """Run one statement for each row of values."""
        table = _changed_table.get(sql)
        if table is None:
            table = _table_changed_by(sql)
        if table:
            self._op_dirty.add(table)
        self.connection.executemany(sql, rows)

    def get(self, key: str, default: str | None = None) -> str | None:
        """Value of an admin key, as the former members and this one left it."""
        # Hot: most keys were set by nobody of this batch.
        if key in self._op_admin:
            value = self._op_admin[key]
        elif key in self._batch_admin:
            value = self._batch_admin[key]
        else:
            return self._committed.get(key, default)
        return default if value is None else value

    def set(self, key: str, value: str) -> None:
        """Set an admin key."""
        self._op_admin[key] = value

    def unset(self, key: str) -> None:
        """Delete an admin key; nothing happens when it is absent."""
        if self.get(key) is not None:
            self._op_admin[key] = None

    def all_admin(self) -> dict[str, str]:
        """A copy of all the admin keys."""
        merged = {**self._committed, **self._batch_admin, **self._op_admin}
        return {key: value for key, value in merged.items() if value is not None}

    def emit(self, event: Mapping[str, Any] | msgspec.Struct) -> None:
        """Add an event to the outbox; it leaves for the queue once the transaction is committed.

        :raises StatusError: 413 when no queue would take it, and all those after it would wait for ever.
        """
        if self.events_enabled:
            encoded = msgspec.json.encode(event)
            if len(encoded) > EVENT_MAX_BYTES:
                raise StatusError(
                    status.PAYLOAD_TOO_LARGE,
                    f"Too large: the event of this change takes {len(encoded)} bytes,"
                    f" at most {EVENT_MAX_BYTES} allowed",
                )
            self._op_events.append(encoded)

    def emit_state(self) -> None:
        """The state of the base changed: one event will tell it within about a second."""
        if self.events_enabled:
            self._op_state = True

    def on_commit(self, callback: Callable[[], object]) -> None:
        """Call this after the commit, before the answers, while no other writer runs."""
        self._op_callbacks.append(callback)

    # --- what the base calls -------------------------------------------------------------------

    def keep_member(self) -> None:
        """The member returned: what it set belongs to the batch."""
        if self._op_admin:
            self._batch_admin.update(self._op_admin)
            self._op_admin = {}
        if self._op_events:
            self._batch_events.extend(self._op_events)
            self._op_events = []
        if self._op_callbacks:
            self._batch_callbacks.extend(self._op_callbacks)
            self._op_callbacks = []
        if self._op_dirty:
            self._dirty |= self._op_dirty
            self._op_dirty = set()
        self._batch_state |= self._op_state
        self._op_state = False

    def drop_member(self) -> None:
        """The member raised: what it set is forgotten."""
        self._op_admin, self._op_events, self._op_callbacks = {}, [], []
        self._op_dirty, self._op_state = set(), False

    @property
    def events(self) -> list[bytes]:
        """Events of the batch."""
        return self._batch_events

    @property
    def state_wanted(self) -> bool:
        """Did a member change the state of the base?"""
        return self._batch_state

    @property
    def callbacks(self) -> list[Callable[[], object]]:
        """What must be called after the commit."""
        return self._batch_callbacks

    def changed(self) -> bool:
        """Is there anything to commit besides the outbox?"""
        return bool(self._dirty or self._batch_admin)

    def flush_admin(self) -> dict[str, str]:
        """Write the admin keys and the table versions; returns all the admin keys after the commit."""
        batch = self._batch_admin
        self._dirty.discard("events")
        if not batch and not self._dirty:
            return dict(self._committed)
        self._dirty.add("admin")
        for table in self._dirty:
            key = f"version:main.{table}"
            text = self.get(key)
            if text is not None:
                number, _, rest = text.partition(":")
                batch[key] = f"{int(number) + 1}:{rest}"
        after: dict[str, str] = {}
        if None in batch.values():
            for key, value in batch.items():
                if value is None:
                    self._run(_DELETE_ADMIN, (key,))
            self.connection.executemany(
                UPSERT_ADMIN, [item for item in batch.items() if item[1] is not None]
            )
            merged = {**self._committed, **batch}
            after = {key: value for key, value in merged.items() if value is not None}
        else:
            self.connection.executemany(UPSERT_ADMIN, batch.items())
            after = {**self._committed, **batch}  # type: ignore[dict-item]
        return after
