# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Progress of a transfer on the terminal: rate and time left, on standard error, and only on a terminal."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from oio.common.exceptions import OioException

_log = logging.getLogger("openio.progress")

# A transfer below this size is over before a bar could tell anything.
MINIMUM_BYTES = 8 * 2**20
# A listing is not counted on the terminal before this many seconds.
QUIET_S = 1.0
# Width of a bar on a terminal that does not tell its own.
COLUMNS_UNKNOWN = 80
LABEL_COLUMNS = 30


@contextmanager
def counted(rows: Iterable[Any], label: str, stdout: Any, streamed: bool) -> Iterator[Iterable[Any]]:
    """Rows that are counted on the terminal while they come, when that takes more than a second.

    :param stdout: where they go. Nothing is shown when they scroll on the terminal themselves.
    :param streamed: they are written as they come.
    """
    if not sys.stderr.isatty() or (streamed and stdout.isatty()):
        yield rows
        return

    def passing() -> Generator[Any, None, None]:
        bar = None
        start_s = time.monotonic()
        try:
            for number, row in enumerate(rows, 1):
                if bar is None and not number % 64 and time.monotonic() - start_s > QUIET_S:
                    bar = _open_bar(total=None, initial=number - 1, unit=f" {label}", desc="Listing")
                if bar is not None:
                    bar.update()
                yield row
        finally:
            # The bar goes before the last lines of the output come.
            if bar is not None:
                bar.close()

    found = passing()
    try:
        yield found
    finally:
        found.close()


@contextmanager
def countdown(title: str, unit: str, left: Callable[[], int]) -> Iterator[None]:
    """Show on a terminal how much is left of something that somebody else does, with rate and time left.

    :param left: how many are left; called in another thread, now and then. What it raises stops the bar, not the
        work.
    """
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()

    def watch() -> None:
        try:
            if over.wait(QUIET_S) or not (total := left()):
                return
            bar = _open_bar(total=total, unit=f" {unit}", desc=title)
            with bar:
                while not over.wait(QUIET_S):
                    bar.update(max(0, total - left() - bar.n))
        except (OioException, OSError) as exc:
            _log.debug("Progress is not shown any more: %s", exc)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(QUIET_S)


def _open_bar(**options: Any) -> Any:
    from tqdm import tqdm

    # Some terminals (serial lines, programs that drive one) do not tell their size.
    size: dict[str, Any] = {"dynamic_ncols": True}
    if not os.get_terminal_size(sys.stderr.fileno()).columns:
        size = {"ncols": COLUMNS_UNKNOWN, "nrows": 2}
    return tqdm(file=sys.stderr, leave=False, **options, **size)


class Progress:
    """Context manager that counts bytes, from any thread; silent when standard error is not a terminal.

    Lines that are logged meanwhile do not run into the bar: it leaves for them, and comes back.

    >>> with Progress("file", 10) as progress:
    ...     progress.advance(10)
    """

    def __init__(self, label: str, total_bytes: int | None) -> None:
        self._bar: Any = None
        self._lock = threading.Lock()
        self._later: threading.Thread | None = None
        self._pauses = 0
        self._is_drawn = True
        self._diverted: list[tuple[Any, Any]] = []
        worth_it = total_bytes is None or total_bytes >= MINIMUM_BYTES
        if worth_it and sys.stderr.isatty():
            # Looked at for each block: the thread of tqdm that wakes slow bars would draw during a pause.
            options: dict[str, Any] = {"unit": "B", "unit_scale": True, "miniters": 1}
            self._bar = _open_bar(total=total_bytes, desc=_printable(label), **options)
            for handler in _console_handlers():
                self._diverted.append((handler, handler.stream))
                handler.setStream(_Beside(handler.stream, self))

    def advance(self, size_bytes: int) -> None:
        """Count bytes."""
        with self._lock:
            if self._bar is None:
                return
            if self._pauses:
                self._bar.n += size_bytes
            elif self._bar.update(size_bytes):
                self._is_drawn = True

    def skip(self, size_bytes: int) -> None:
        """Count bytes that were there already: they say nothing of the rate."""
        with self._lock:
            if self._bar is not None:
                for counter in ("initial", "n", "last_print_n"):
                    setattr(self._bar, counter, getattr(self._bar, counter) + size_bytes)

    def add_total(self, size_bytes: int) -> None:
        """Count bytes that are to come."""
        with self._lock:
            if self._bar is not None:
                self._bar.total = (self._bar.total or 0) + size_bytes

    def set_total_later(self, count: Callable[[], int]) -> None:
        """Have the total counted in another thread: the time left is shown from then on."""
        if self._bar is not None:
            self._later = threading.Thread(target=lambda: self.add_total(count()), daemon=True)
            self._later.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the line to what is written meanwhile; the bar comes back after it."""
        with self._lock:
            self._pauses += 1
            if self._bar is not None and self._is_drawn:
                self._bar.clear()
                _wipe()
                self._is_drawn = False
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for handler, stream in self._diverted:
            handler.setStream(stream)
        self._diverted.clear()
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
                _wipe()


class _Beside:
    """Standard error of the handlers of logs: what they write has the line for itself."""

    def __init__(self, stream: Any, progress: Progress) -> None:
        self._stream = stream
        self._progress = progress

    def write(self, text: str) -> None:
        with self._progress.paused():
            self._stream.write(text)
            self._stream.flush()

    def flush(self) -> None:
        self._stream.flush()


def _wipe() -> None:
    """Wipe the line of the bar: the terminal itself may have written there (``^C``)."""
    sys.stderr.write("\r" if os.environ.get("TERM") == "dumb" else "\r\x1b[K")
    # What is written next may go to the same terminal through another stream.
    sys.stderr.flush()


def _console_handlers() -> list[logging.StreamHandler[Any]]:
    """Those that write to the terminal where the bar is."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    return [
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
    ]


def _printable(label: str) -> str:
    """Label that cannot drive the terminal, nor leave no room for the bar."""
    from wcwidth import wcswidth

    text = "".join(char if char.isprintable() else "?" for char in label)
    if wcswidth(text) <= LABEL_COLUMNS:
        return text
    while wcswidth(text) >= LABEL_COLUMNS:
        text = text[1 - LABEL_COLUMNS :] if len(text) >= LABEL_COLUMNS else text[1:]
    return "…" + text
