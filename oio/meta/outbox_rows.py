# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of the outbox of one base: what a transaction does to its table ``events``, and what is read from it.

Events have ids from 1 on, in the order of the changes. The row 0 says that the state of the base changed, and that
an event will tell it: many changes cost one event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from oio.meta.base_type import TOMBSTONE, StateEvent
from oio.meta.transaction import Transaction

#: Delivered rows are deleted by the next write once there are this many of them.
PIGGYBACK_ROWS = 64
#: Events handed to the queue in one call, and their bytes (a single event may be larger).
DELIVERY_MAX, DELIVERY_MAX_BYTES = 1000, 8 << 20

_INSERT = "INSERT INTO events(id, event) VALUES(?, ?)"
_INSERT_STATE = "INSERT OR IGNORE INTO events(id, event) VALUES(0, NULL)"
_DELETE_STATE = "DELETE FROM events WHERE id = 0"
_DELETE_DELIVERED = "DELETE FROM events WHERE id BETWEEN 1 AND ?"
_SELECT = "SELECT id, event FROM events WHERE id > ? ORDER BY id LIMIT ?"
_BOUNDS = "SELECT max(id), min(id) FROM events"

Row = tuple[int, bytes]


class BaseOutbox:
    """What is known of the outbox of one base, from its first event until it is empty again."""

    __slots__ = (
        "backlog", "dead", "deleted", "delivered", "last_id", "loaded", "name", "pending", "queued",
        "state_row", "state_since",
    )

    def __init__(self, name: str, loaded: bool) -> None:
        self.name = name
        #: False after a restart, until the table was looked at.
        self.loaded = loaded
        self.last_id = 0
        self.delivered = 0
        self.deleted = 0
        #: Committed and not delivered; unused while ``backlog``: then the table is read instead.
        self.pending: list[Row] = []
        self.backlog = not loaded
        self.state_row = False
        self.state_since = 0.0
        self.queued = False
        self.dead = False


class Batch:
    """What one transaction does to the outbox; takes effect in memory after the commit."""

    __slots__ = ("deleted", "rows", "state", "state_row", "tidying")

    def __init__(self, state: BaseOutbox, tidying: bool) -> None:
        self.state = state
        self.rows: list[Row] = []
        self.state_row = state.state_row
        self.deleted = state.deleted
        self.tidying = tidying


def bounds(tx: Transaction) -> tuple[int, bool]:
    """The last id of the table, and whether a state waits to be told."""
    last, first = tx.connection.execute(_BOUNDS).fetchone() or (0, None)
    return last or 0, first == 0


def write_state(
    tx: Transaction,
    batch: Batch,
    admin: dict[str, str],
    state_event: StateEvent | None,
    due: bool,
    now: float,
) -> list[bytes]:
    """Note that the state of the base changed, or tell it when that is ``due``.

    :returns: the events to write.
    """
    execute = tx.connection.execute
    if TOMBSTONE in admin:
        # A state told after the end would bring the container back to life in its account.
        if batch.state_row:
            execute(_DELETE_STATE)
            batch.state_row = False
    elif batch.state_row and due and state_event is not None:
        execute(_DELETE_STATE)
        batch.state_row = False
        return [*tx.events, msgspec.json.encode(state_event(admin))]
    elif tx.state_wanted and not batch.state_row:
        execute(_INSERT_STATE)
        batch.state_row = True
        batch.state.state_since = now
    return tx.events


def write_events(tx: Transaction, batch: Batch, events: list[bytes]) -> None:
    """Add the events of a transaction, and delete rows that are delivered: all when tidying, else when many."""
    state = batch.state
    last = state.last_id
    if len(events) == 1:
        batch.rows = [(last + 1, events[0])]
        tx.connection.execute(_INSERT, batch.rows[0])
    elif events:
        batch.rows = list(enumerate(events, last + 1))
        tx.connection.executemany(_INSERT, batch.rows)
    delivered = state.delivered
    if delivered - state.deleted >= (1 if batch.tidying else PIGGYBACK_ROWS):
        tx.connection.execute(_DELETE_DELIVERED, (delivered,))
        batch.deleted = delivered


def read_after(execute: Callable[..., Iterable[Any]], after: int) -> list[Row]:
    """The first events after this one, as many as fit into one delivery."""
    return first_rows(execute(_SELECT, (after, DELIVERY_MAX)))


def first_rows(rows: Iterable[Row]) -> list[Row]:
    """The first rows, as many as fit into one delivery, but one at least."""
    some: list[Row] = []
    size = 0
    for row in rows:
        some.append(row)
        size += len(row[1])
        if len(some) >= DELIVERY_MAX or size >= DELIVERY_MAX_BYTES:
            break
    return some


def size_of(rows: Iterable[Row]) -> int:
    """Bytes of events."""
    return sum([len(event) for _, event in rows])
