# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A whole terminal to draw on: the alternate screen, keys as they are typed, everything put back at the end.

Only standard escape sequences are used, so that there is no terminal data base to look for. The size is looked at
each time: a terminal that changes it gets the next picture in the new one.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import sys
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
# How often a change of the size is looked for, in seconds.
LOOK_S = 0.2
CTRL_C, CTRL_Z = "\x03", "\x1a"
# Keys may come several at a time: escape sequences, or single characters.
_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|.", re.DOTALL)
_NAMES = {
    "\x1b[A": "up", "\x1bOA": "up", "k": "up", "\x1b[B": "down", "\x1bOB": "down", "j": "down",
    "\x1b[5~": "page up", "\x1b[6~": "page down", " ": "page down", "\x1b[H": "home", "\x1b[F": "end",
    "g": "home", "G": "end", "\x1b[1~": "home", "\x1b[4~": "end",
}  # fmt: skip


def is_usable(stdout: TextIO) -> bool:
    """Whether there is a terminal that understands escape sequences."""
    return stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "")


class Screen:
    """Context manager that owns the terminal.

    >>> with Screen(sys.stdout) as screen:                       # doctest: +SKIP
    ...     screen.draw(["hello"])
    ...     screen.wait_key(time.monotonic() + 2)
    'q'
    """

    def __init__(self, stdout: TextIO, stdin: TextIO | None = None) -> None:
        self._stdout = stdout
        self._stdin = sys.stdin if stdin is None else stdin
        self._saved: list[Any] | None = None
        self._typed: list[str] = []

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, now."""
        columns, lines = shutil.get_terminal_size((80, 24))
        try:
            size = os.get_terminal_size(self._stdout.fileno())
        except (OSError, ValueError):
            return columns, lines
        return size.columns or columns, size.lines or lines

    def draw(self, lines: list[str]) -> None:
        """Show lines from the top; those below the screen are left out. They must not be wider than it."""
        shown = lines[: self.size[1]]
        # No line feed after the last one: it would scroll. The rest of each line, and of the screen, is cleared.
        self._write("\x1b[H" + "\r\n".join(f"{line}\x1b[0m\x1b[K" for line in shown) + "\x1b[J")

    def wait_key(self, deadline: float, until: Callable[[], bool] = lambda: False) -> str:
        """The next key (``up``, ``page down``… or its character), ``resize``, or nothing at the deadline.

        :param until: looked at now and then; when true, the wait is over.
        """
        size = self.size
        while self._typed or not until():
            if self._typed:
                key = self._typed.pop(0)
                if key == CTRL_Z:
                    self._suspend()
                    return "resize"
                return _NAMES.get(key, key)
            left_s = min(LOOK_S, deadline - time.monotonic())
            if left_s <= 0:
                break
            if self._saved is None:
                time.sleep(left_s)
            elif select.select([self._stdin], [], [], left_s)[0]:
                # An empty read is the end of the terminal.
                text = os.read(self._stdin.fileno(), 256).decode("utf-8", "replace") or CTRL_C
                self._typed += _KEY.findall(text)
            elif self.size != size:
                return "resize"
        return ""

    def __enter__(self) -> Screen:
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._give_back()

    def _take(self) -> None:
        if self._stdin.isatty():
            descriptor = self._stdin.fileno()
            self._saved = termios.tcgetattr(descriptor)
            mode = termios.tcgetattr(descriptor)
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            # Ctrl-C and Ctrl-Z come as characters: the terminal is put in order before they have their effect.
            # Ctrl-\\ stays what it is, in case of need.
            for character in (termios.VINTR, termios.VSUSP):
                mode[6][character] = b"\x00"
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
        self._write(_ENTER)

    def _give_back(self) -> None:
        try:
            self._write(_LEAVE)
        finally:
            if self._saved is not None:
                termios.tcsetattr(self._stdin.fileno(), termios.TCSADRAIN, self._saved)
                self._saved = None

    def _suspend(self) -> None:
        self._give_back()
        os.kill(0, signal.SIGTSTP)
        self._take()

    def _write(self, text: str) -> None:
        self._stdout.write(text)
        self._stdout.flush()
