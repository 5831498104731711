# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Output formats: loaded one at a time, lists of any length in constant memory, colours on terminals only.

``value`` and ``csv`` write rows as they come. ``json`` and ``yaml`` write nothing unless the whole list could be
made, so rows wait in a file once they are many; so does ``table``, which needs the widths of all cells.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, TextIO

LIST_FORMATS = ("csv", "json", "table", "value", "yaml")
SHOW_FORMATS = ("json", "shell", "table", "value", "yaml")

# Text that waits in memory before it goes to a temporary file.
SPOOL_BYTES = 8 * 2**20
_YAML_ROWS = 256

_RED, _GREEN, _YELLOW = "31", "32", "33"
# Colours of states, by title of the column (or key).
_STATES = {
    "Ok": _GREEN, "OK": _GREEN, "Enabled": _GREEN, "True": _GREEN, "flushed": _GREEN, "unlocked": _GREEN,
    "Failed": _RED, "Error": _RED, "error": _RED, "False": _RED, "Disabled": _RED,
    "Interrupted": _YELLOW, "Skipped": _YELLOW, "Frozen": _YELLOW, "Suspended": _YELLOW,
}  # fmt: skip
_STATE_TITLES = frozenset(("Status", "status", "Up", "Result", "Success", "Deleted", "Versioning"))


class Formatters:
    """The formats of one kind of command, by name; each is imported when it is used."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def names(self) -> Sequence[str]:
        """Names of the formats."""
        return self._names

    def __iter__(self) -> Iterator[_Plugin]:
        yield _Plugin(_Options(self._names))

    def __getitem__(self, name: str) -> _Plugin:
        if name == "table":
            from oio.cli.common.table import StateTableFormatter

            return _Plugin(StateTableFormatter())
        if name == "json":
            return _Plugin(JsonFormatter())
        if name == "yaml":
            return _Plugin(YamlFormatter())
        if name == "csv":
            from cliff.formatters.commaseparated import CSVLister

            return _Plugin(CSVLister())
        if name == "shell":
            return _Plugin(ShellFormatter())
        return _Plugin(ValueFormatter())


class _Plugin:
    """What cliff expects around a formatter."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj


class _Options:
    """Options of formats, without importing them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("options of formats")
        group.add_argument(
            "--max-width", metavar="<integer>", type=int,
            default=_environment_int("CLIFF_MAX_TERM_WIDTH"),
            help="table: widest line, <1 for any (environment: CLIFF_MAX_TERM_WIDTH)",
        )
        group.add_argument(
            "--fit-width", action="store_true", default=bool(_environment_int("CLIFF_FIT_WIDTH")),
            help="table: fit the width of the terminal (environment: CLIFF_FIT_WIDTH=1)",
        )
        group.add_argument("--print-empty", action="store_true", help="table: draw empty tables too")
        group.add_argument("--noindent", action="store_true", help="json: on one line")
        if "csv" in self._names:
            group.add_argument(
                "--quote", choices=("all", "minimal", "none", "nonnumeric"), dest="quote_mode",
                default="nonnumeric", help="csv: cells that get quotes (nonnumeric)",
            )
        if "shell" in self._names:
            group.add_argument(
                "--variable", action="append", default=[], dest="variables", metavar="NAME",
                help="shell: only this variable (repeatable)",
            )
            group.add_argument("--prefix", default="", help="shell: start of the names of variables")


def _environment_int(name: str) -> int:
    try:
        return int(os.environ.get(name) or 0)
    except ValueError:
        return 0


class ValueFormatter:
    """Cells joined by a space, a row per line."""

    def emit_list(
        self, column_names: Sequence[str], data: Iterable[Any], stdout: TextIO, parsed: argparse.Namespace
    ) -> None:
        """Write rows as they come."""
        clean = printable if stdout.isatty() else str
        for row in data:
            stdout.write(" ".join(map(clean, row)) + "\n")

    def emit_one(
        self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed: argparse.Namespace
    ) -> None:
        """Write a line per value."""
        clean = printable if stdout.isatty() else str
        for value in data:
            stdout.write(clean(value) + "\n")


class ShellFormatter:
    """Assignments that a shell can evaluate, whatever the values are."""

    def emit_one(
        self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed: argparse.Namespace
    ) -> None:
        """Write an assignment per value."""
        for key, value in zip(column_names, data, strict=False):
            name = re.sub(r"\W", "_", key.lower(), flags=re.ASCII)
            if not parsed.variables or name in parsed.variables:
                quoted = re.sub(r'([\\"$`])', r"\\\1", str(value))
                stdout.write(f'{parsed.prefix}{name}="{quoted}"\n')


class JsonFormatter:
    """An array of objects, or one object."""

    def emit_list(
        self, column_names: Sequence[str], data: Iterable[Any], stdout: TextIO, parsed: argparse.Namespace
    ) -> None:
        """Write all the rows, once the last one is there."""
        indent = None if parsed.noindent else 2
        start, between, end = ("[", ", ", "]") if indent is None else ("[\n  ", ",\n  ", "\n]")
        with open_spool() as spool:
            separator = start
            for row in data:
                text = json.dumps(dict(zip(column_names, row, strict=False)), indent=indent, default=str)
                spool.write(separator)
                # Strings have no line feed in JSON: these are all ours.
                spool.write(text if indent is None else text.replace("\n", "\n  "))
                separator = between
            spool.write("[]" if separator is start else end)
            spool.write("\n")
            _pour(spool, stdout)

    def emit_one(
        self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed: argparse.Namespace
    ) -> None:
        """Write the object."""
        indent = None if parsed.noindent else 2
        stdout.write(json.dumps(dict(zip(column_names, data, strict=False)), indent=indent, default=str) + "\n")


class YamlFormatter:
    """A list of mappings, or one mapping; columns keep their order."""

    def emit_list(
        self, column_names: Sequence[str], data: Iterable[Any], stdout: TextIO, parsed: argparse.Namespace
    ) -> None:
        """Write all the rows, once the last one is there."""
        with open_spool() as spool:
            rows = iter(data)
            empty = True
            # Some at once: each dump has a cost of its own, and they add up to one list.
            while some := list(itertools.islice(rows, _YAML_ROWS)):
                _dump_yaml([dict(zip(column_names, map(_plain, row), strict=False)) for row in some], spool)
                empty = False
            if empty:
                spool.write("[]\n")
            _pour(spool, stdout)

    def emit_one(
        self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed: argparse.Namespace
    ) -> None:
        """Write the mapping."""
        _dump_yaml(dict(zip(column_names, map(_plain, data), strict=False)), stdout)


def _dump_yaml(value: Any, stream: IO[str]) -> None:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    yaml.dump(value, stream, Dumper=dumper, default_flow_style=False, sort_keys=False)


def _plain(value: Any) -> Any:
    """A value that YAML can tell: errors become texts."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


def open_spool() -> IO[str]:
    """A text file of its own, in memory until it is large."""
    return tempfile.SpooledTemporaryFile(
        max_size=SPOOL_BYTES, mode="w+", encoding="utf-8", errors="surrogateescape", newline=""
    )  # type: ignore[return-value, unused-ignore]


def _pour(spool: IO[str], stdout: TextIO) -> None:
    spool.seek(0)
    shutil.copyfileobj(spool, stdout)


def use_colours(stream: TextIO) -> bool:
    """Whether colours are welcome: a terminal, and no ``NO_COLOR`` (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(title: str, value: Any) -> Any:
    """The cell, with a colour when it is a state or a score."""
    colour = None
    if title in _STATE_TITLES:
        colour = _STATES.get(str(value))
    elif title == "Score" and isinstance(value, int):
        colour = _GREEN if value > 0 else _RED
    return value if colour is None else f"\x1b[{colour}m{value}\x1b[0m"


def printable(value: Any, keep: str = "") -> str:
    """Text that cannot drive a terminal: control characters are written as escapes.

    :param keep: control characters to leave.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def prepare_streams() -> None:
    """Let any name be written: what is not UTF-8 in a name comes out as it came in, and a character that the
    locale cannot show as an escape.
    """
    # A stream that was closed by whoever started the program gives nothing, takes everything and keeps nothing.
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream, utf8_errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors=utf8_errors if encoding == "utf8" else "backslashreplace")  # type: ignore[union-attr]
