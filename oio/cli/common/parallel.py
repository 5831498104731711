# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Work done by several threads, with results in the order of the items, and an orderly end at Ctrl-C."""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from oio.common.exceptions import OioException

T = TypeVar("T")
R = TypeVar("R")

# Items handed out for each thread: one under way, the others wait so that it never does.
AHEAD = 4
# What waits for a pipe looks that often whether it still has to.
STOP_LATENCY_S = 0.2
# A signal does not wake who waits for a thread when another one receives it, or when it comes a moment before the
# wait: it is looked for that often.
SIGNAL_POLL_S = 0.5


class Stopped(OioException):
    """Raised in a thread when the user interrupts the command: what it was doing is undone."""


class Workers(Generic[T, R]):
    """Threads that do the same to many items; no more than a few results wait in memory.

    >>> list(Workers(2, lambda number: number * 2).map([1, 2, 3]))
    [2, 4, 6]

    :param work: called in the threads. It should call :meth:`check` between its steps, and has to give a result,
        rather than raise, when that raises :class:`Stopped`.
    """

    def __init__(self, concurrency: int, work: Callable[[T], R]) -> None:
        self._concurrency = concurrency
        self._work = work
        self._stopped = threading.Event()
        self.interrupted = False

    def check(self) -> None:
        """:raises Stopped: when the work should end."""
        if self._stopped.is_set():
            raise Stopped("Interrupted")

    def map(self, items: Iterable[T]) -> Iterator[R]:
        """Yield the results, in order.

        At Ctrl-C no more work begins, that under way ends by itself, and its results are the last ones;
        ``interrupted`` is then true. At the next Ctrl-C nothing is waited for: whoever asks twice has seen that
        something hangs.

        :raises KeyboardInterrupt: then; threads may be alive.
        """
        pool = ThreadPoolExecutor(self._concurrency)
        pending: deque[Future[R]] = deque()
        try:
            try:
                for item in items:
                    pending.append(pool.submit(self._work, item))
                    while len(pending) >= self._concurrency * AHEAD or (pending and pending[0].done()):
                        # Looked at before it is taken out: Ctrl-C may come while waiting.
                        result = _result_of(pending[0])
                        pending.popleft()
                        yield result
                while pending:
                    result = _result_of(pending[0])
                    pending.popleft()
                    yield result
            except KeyboardInterrupt:
                self.interrupted = True
                self._stopped.set()
                for future in pending:
                    future.cancel()
                for future in pending:
                    if not future.cancelled():
                        yield _result_of(future)
        finally:
            self._stopped.set()
            hangs = self.interrupted and not all(future.done() for future in pending)
            pool.shutdown(wait=not hangs, cancel_futures=True)


def _result_of(future: Future[R]) -> R:
    """Wait for a result; Ctrl-C is heard meanwhile."""
    while not wait((future,), SIGNAL_POLL_S).done:
        continue
    return future.result()


@contextmanager
def untold_stops(logger: logging.Logger) -> Iterator[None]:
    """Leave out of a log that work failed because the user interrupted it: the results tell that."""

    def is_told(record: logging.LogRecord) -> bool:
        return not any(isinstance(arg, Stopped) for arg in record.args or ())

    logger.addFilter(is_told)
    try:
        yield
    finally:
        logger.removeFilter(is_told)


def reader(source: Any, check: Callable[[], None], advance: Callable[[int], Any]) -> Any:
    """File whose reading counts bytes, and ends when the user interrupts the command.

    :param source: opened without buffer when it may be a pipe.
    """
    return _CheckedReader(source, check, advance)


class _CheckedReader:
    def __init__(self, source: Any, check: Callable[[], None], advance: Callable[[int], Any]) -> None:
        self._source = source
        self._check = check
        self._advance = advance
        self.name = getattr(source, "name", None)
        # Reading a pipe or a terminal may take forever, and cannot be interrupted from another thread.
        self._may_block = not stat.S_ISREG(os.fstat(source.fileno()).st_mode)

    def _wait(self) -> None:
        self._check()
        while self._may_block and not select.select([self._source], [], [], STOP_LATENCY_S)[0]:
            self._check()

    def read(self, size: int = -1) -> bytes:
        self._wait()
        data: bytes = self._source.read(size)
        self._advance(len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        self._wait()
        count = int(self._source.readinto(buffer) or 0)
        self._advance(count)
        return count

    def close(self) -> None:
        self._source.close()
