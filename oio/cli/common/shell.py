# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Commands read from standard input, one per line: a prompt on a terminal, a batch otherwise.

Lines are split as a shell splits words; ``#`` at the start of a line makes a comment. A line that fails is told
and the next one is read. ``exit`` or ``quit`` ends the session. Nothing else is interpreted: no pipes, no
redirections, no variables. Options of the program (``--ns``, ``--account``…) are those that it was started with.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

PROMPT = "(openio) "
_LEAVE = ("exit", "quit")


def run_lines(
    stdin: TextIO,
    run: Callable[[list[str]], Any],
    on_error: Callable[[str], None],
    words: Callable[[], list[str]],
) -> None:
    """Run the commands of a stream until its end.

    :param run: runs the words of a line. What it raises to leave a command (``SystemExit``) ends the line only.
    :param on_error: told of a line that cannot be split.
    :param words: names of the commands, for completion on a terminal.
    :raises KeyboardInterrupt: in a batch. On a terminal, an interrupted command gives the prompt back.
    """
    terminal = stdin.isatty()
    if terminal:
        _complete_with(words)
    for line in _prompted() if terminal else _lines(stdin):
        try:
            argv = [] if line.lstrip().startswith("#") else shlex.split(line)
        except ValueError as exc:
            on_error(f"{exc}: {line.strip()}")
            continue
        if not argv:
            continue
        if argv[0] in _LEAVE and len(argv) == 1:
            return
        if argv[0].startswith("-"):
            on_error(f"A line begins with a command, and openio takes {argv[0]} when it starts: {line.strip()}")
            continue
        try:
            run(argv)
        except SystemExit:
            # Usage or help was written: that was the answer.
            continue
        except KeyboardInterrupt:
            if not terminal:
                raise
            print(file=sys.stderr)


def _lines(stdin: TextIO) -> Iterator[str]:
    # Not iter(stdin): it would read ahead of what the commands themselves may read.
    while line := stdin.readline():
        yield line


def _prompted() -> Iterator[str]:
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def _complete_with(words: Callable[[], list[str]]) -> None:
    """Complete the words of commands with the key Tab, and keep the lines of the session."""
    try:
        import readline
    except ImportError:  # Python may be built without it: lines are read all the same.
        return

    def complete(_text: str, state: int) -> str | None:
        before = readline.get_line_buffer()[: readline.get_begidx()].split()
        found = completions(words(), before, _text)
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")


def completions(commands: list[str], before: list[str], text: str) -> list[str]:
    """What may follow: the next words of the commands that start so.

    >>> completions(["object list", "object locate", "volume show"], ["object"], "l")
    ['list ', 'locate ']
    """
    position = len(before)
    following = {
        parts[position]
        for parts in (command.split() for command in commands)
        if parts[:position] == before and len(parts) > position and parts[position].startswith(text)
    }
    return [f"{word} " for word in sorted(following)]
