# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Reads that look at a whole table end when nobody waits for them any more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from oio.common import status
from oio.common.status import StatusError
from oio.meta.transaction import Reader

#: Instructions of SQLite between two looks at the clock: some milliseconds.
CHECK_STEPS = 50_000


@contextmanager
def bounded(reader: Reader, deadline: float | None) -> Iterator[None]:
    """End what SQLite does on this connection at a deadline. :raises StatusError: 504."""
    if deadline is None:
        yield
        return
    connection = reader.connection
    connection.set_progress_handler(lambda: time.monotonic() > deadline, CHECK_STEPS)
    try:
        yield
    except apsw.InterruptError as exc:
        raise StatusError(status.GATEWAY_TIMEOUT, "deadline reached, the search is not over") from exc
    finally:
        connection.set_progress_handler(None)
