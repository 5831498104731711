# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ``table`` format: what cliff draws, with coloured states on a terminal, and names that cannot drive it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from cliff.formatters.table import TableFormatter

from oio.cli.common.formatters import coloured, printable, use_colours


class StateTableFormatter(TableFormatter):
    """Draws tables."""

    _colours = False

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Draw the rows."""
        self._colours = use_colours(stdout)
        super().emit_list(column_names, data, stdout, parsed_args)

    def add_rows(self, table: Any, column_names: Sequence[str], data: Iterable[Sequence[Any]]) -> None:
        """Add the rows; numbers go to the right."""
        for number, row in enumerate(data):
            if not number:
                for title, value in zip(column_names, row, strict=False):
                    table.align[title] = self.ALIGNMENTS.get(type(value), "l")
            table.add_row(self._cells(column_names, row))

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Draw keys and values."""
        self._colours = use_colours(stdout)
        names = [printable(name) for name in column_names]
        super().emit_one(names, self._cells(column_names, data), stdout, parsed_args)

    def _cells(self, titles: Sequence[str], row: Sequence[Any]) -> list[Any]:
        cells = []
        for title, value in zip(titles, row, strict=False):
            if isinstance(value, str):
                value = printable(value, keep="\n")
            cells.append(coloured(title, value) if self._colours else value)
        return cells
