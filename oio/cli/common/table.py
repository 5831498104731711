# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ``table`` format: the drawing of cliff, in constant memory, with coloured states on a terminal.

Rows are kept as text, in a file once they are many, until the widths of the columns are known. Only a table that
is too wide for its terminal is drawn by cliff, which folds cells and keeps all of them in memory.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, TextIO

from oio.cli.common.formatters import coloured, open_spool, printable, use_colours

_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_RIGHT = (int, float)
# Titles of names: a line feed in one of them must not look like a row.
_NAMES = frozenset(("Name", "container", "object"))


class StateTableFormatter:
    """Draws tables."""

    def emit_list(
        self, column_names: Sequence[str], data: Iterable[Any], stdout: TextIO, parsed: argparse.Namespace
    ) -> None:
        """Draw rows, once the last one is there."""
        _draw(list(column_names), iter(data), None, stdout, parsed)

    def emit_one(
        self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed: argparse.Namespace
    ) -> None:
        """Draw keys and values."""
        pairs = zip(column_names, data, strict=False)
        _draw(["Field", "Value"], ((printable(key), value) for key, value in pairs), column_names, stdout, parsed)


def _draw(
    titles: list[str],
    rows: Iterator[Sequence[Any]],
    states: Sequence[str] | None,
    stdout: TextIO,
    parsed: argparse.Namespace,
) -> None:
    """:param states: titles of the values when these are in rows; else columns have titles of their own."""
    colours = use_colours(stdout)
    widths = [_width(title) for title in titles]
    right = [False] * len(titles)
    empty = True
    with open_spool() as spool:
        for number, row in enumerate(rows):
            if number == 0 and states is None:
                right = [type(value) in _RIGHT for value in row]
            names = titles if states is None else ["", states[number]]
            cells = [_cell(name, value, colours) for name, value in zip(names, row, strict=False)]
            for column, cell in enumerate(cells):
                for line in cell.split("\n"):
                    if len(line) > widths[column] or not line.isascii():
                        widths[column] = max(widths[column], _width(line))
            spool.write(json.dumps(cells) + "\n")
            empty = False
        if empty and not parsed.print_empty:
            stdout.write("\n")
            return
        spool.seek(0)
        limit = _limit(stdout, parsed)
        if limit and sum(widths) + 3 * len(widths) + 1 > limit:
            _fold(titles, right, spool, 16 if states is not None else 8, stdout, parsed)
        else:
            _write(titles, right, widths, spool, stdout)


def _cell(title: str, value: Any, colours: bool) -> str:
    text = printable(value, keep="" if title in _NAMES else "\n") if isinstance(value, str) else str(value)
    if not colours:
        return text
    shown = coloured(title, value)
    return text if shown is value else str(shown)


def _write(titles: list[str], right: list[bool], widths: list[int], spool: IO[str], stdout: TextIO) -> None:
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+\n"
    stdout.write(rule + _lines(titles, right, widths) + rule)
    for line in spool:
        stdout.write(_lines(json.loads(line), right, widths))
    stdout.write(rule)


def _lines(cells: list[str], right: list[bool], widths: list[int]) -> str:
    """The lines of a row: as many as its highest cell has."""
    columns = [cell.split("\n") for cell in cells]
    text = ""
    for level in range(max(map(len, columns), default=0)):
        for column, lines in enumerate(columns):
            line = lines[level] if level < len(lines) else ""
            room = " " * (widths[column] - _width(line))
            text += f"| {room}{line} " if right[column] else f"| {line}{room} "
        text += "|\n"
    return text


def _width(line: str) -> int:
    """Columns of a terminal that a line takes."""
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
    if line.isascii():
        return len(line)
    from wcwidth import wcswidth

    return max(0, wcswidth(line))


def _limit(stdout: TextIO, parsed: argparse.Namespace) -> int:
    """Widest line, 0 for any."""
    if parsed.max_width > 0:
        return int(parsed.max_width)
    if not stdout.isatty() and not parsed.fit_width:
        return 0
    return shutil.get_terminal_size((0, 0)).columns


def _fold(
    titles: list[str], right: list[bool], spool: IO[str], least: int, stdout: TextIO, parsed: argparse.Namespace
) -> None:
    import prettytable
    from cliff.formatters.table import TableFormatter

    table = prettytable.PrettyTable(titles)
    table.padding_width = 1
    for title, to_right in zip(titles, right, strict=True):
        table.align[title] = "r" if to_right else "l"
    for line in spool:
        table.add_row(json.loads(line))
    TableFormatter._assign_max_widths(table, int(parsed.max_width), least, parsed.fit_width)
    stdout.write(table.get_string() + "\n")
