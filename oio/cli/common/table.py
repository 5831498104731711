# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ``table`` format: what cliff draws, with coloured states on a terminal, and names that cannot drive it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from cliff.formatters.table import TableFormatter

from oio.cli.common.formatters import coloured, printable, use_colours


class StateTableFormatter(TableFormatter):
    """Draws tables."""

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Draw the rows."""
        colours = use_colours(stdout)
        rows = (_cells(zip(column_names, row, strict=False), colours) for row in data)
        super().emit_list(column_names, rows, stdout, parsed_args)

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Draw keys and values."""
        cells = _cells(zip(column_names, data, strict=False), use_colours(stdout))
        names = [printable(name) for name in column_names]
        super().emit_one(names, cells, stdout, parsed_args)


def _cells(pairs: Iterable[tuple[str, Any]] | Iterator[Any], colours: bool) -> list[Any]:
    cells = []
    for title, value in pairs:
        if isinstance(value, str):
            value = printable(value, keep="\n")
        cells.append(coloured(title, value) if colours else value)
    return cells
