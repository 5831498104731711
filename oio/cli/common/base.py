# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Base classes of commands, and the argument groups that several of them share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cliff._argparse import SmartHelpFormatter
from cliff.command import Command
from cliff.lister import Lister
from cliff.show import ShowOne

from oio.cli.common.examples import epilog_of
from oio.cli.common.formatters import LIST_FORMATS, SHOW_FORMATS, Formatters
from oio.common.easy_value import FALSE_VALUES, TRUE_VALUES
from oio.common.exceptions import CommandError, OioException


class _HelpFormatter(SmartHelpFormatter):
    """Folds all but the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


class _WithSuccess:
    """Commands whose rows may fail: the exit code is 1 once all is written."""

    success = True
    cmd_name: str | None
    _hooks: Any

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command; its examples keep their lines."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)  # type: ignore[misc]
        parser.formatter_class = _HelpFormatter
        return parser

    def get_epilog(self) -> str:
        """What follows the help: examples. Cliff would name the distribution of the command here, and read the
        metadata of every installed package at each start to find it.
        """
        return epilog_of(self.cmd_name or "")

    def _load_hooks(self) -> None:
        # Cliff would look for extensions of the command in all installed packages.
        self._hooks = []

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; the code counts rows that failed while they were produced."""
        status = super().run(parsed_args)  # type: ignore[misc]
        return status or (0 if self.success else 1)


class ListCommand(_WithSuccess, Lister):
    """Command that gives rows. They may come from a generator: lists of any length take little memory."""

    app: Any
    # What the rows are, for the count shown while they come; empty when the command shows its progress itself.
    rows_name = "rows"

    def _load_formatter_plugins(self) -> Any:
        return Formatters(LIST_FORMATS)

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Write the rows, counting them on the terminal when they take long."""
        if not self.rows_name:
            return super().produce_output(parsed_args, column_names, data)
        from oio.cli.common.progress import counted

        streamed = parsed_args.formatter in ("value", "csv")
        with counted(data, self.rows_name, self.app.stdout, streamed) as rows:
            return super().produce_output(parsed_args, column_names, rows)


class ShowCommand(_WithSuccess, ShowOne):
    """Command that gives keys and values."""

    app: Any

    def _load_formatter_plugins(self) -> Any:
        return Formatters(SHOW_FORMATS)


class PlainCommand(_WithSuccess, Command):
    """Command that prints nothing when all is well."""

    app: Any


class KeyValueAction(argparse.Action):
    """``KEY=VALUE`` adds to a dictionary; ``KEY`` alone removes what was added before."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        properties: dict[str, str] = getattr(namespace, self.dest, None) or {}
        key, equal, value = str(values).partition("=")
        if equal:
            properties[key] = value
        else:
            properties.pop(key, None)
        setattr(namespace, self.dest, properties)


class ValueFormatAction(argparse.Action):
    """Flag that also selects the ``value`` output format (a later ``-f`` wins)."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, True)
        namespace.formatter = "value"


def add_properties(parser: argparse.ArgumentParser, help_text: str, short: bool = False) -> None:
    """Add ``--property KEY=VALUE`` (``-p`` too when ``short``)."""
    parser.add_argument(
        *(("-p",) if short else ()), "--property", dest="property", metavar="KEY=VALUE", action=KeyValueAction,
        help=help_text,
    )  # fmt: skip


def boolean_argument(text: str) -> bool:
    """Type of the arguments that are booleans. An empty text is none: a variable of a script was not set."""
    word = text.lower()
    if word not in TRUE_VALUES | FALSE_VALUES:
        raise argparse.ArgumentTypeError(f"invalid boolean {text!r}")
    return word in TRUE_VALUES


def positive_number(option: str, text: str | int | None) -> int | None:
    """Number of an option that is a count. :raises CommandError: when it is none."""
    if text is None:
        return None
    digits = str(text)
    if not (digits.isascii() and digits.isdigit() and int(digits) > 0):
        raise CommandError(f"{option} wants a positive number, not {text!r}")
    return int(digits)


def add_container(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the container(s) of a container command, by name or by id."""
    parser.add_argument(
        "containers" if several else "container",
        metavar="<container>",
        nargs="+" if several else None,
        help="Name of the container",
    )
    parser.add_argument("--cid", dest="is_cid", action="store_true", help="Names are container ids")


def container_kwargs(name: str, is_cid: bool) -> tuple[str | None, dict[str, Any]]:
    """(container name or None, keyword arguments) to address a container."""
    return (None, {"cid": name}) if is_cid else (name, {})


def for_each(app: Any, names: Sequence[str], act: Callable[[str], Any]) -> None:
    """Act on each name. The first error stops; it tells which one it was when there are several."""
    for name in names:
        try:
            act(name)
        except OioException as exc:
            if len(names) == 1 or f"'{name}'" in str(exc):
                raise
            raise CommandError(f"{name}: {app.describe_error(exc)}") from exc


def sorted_columns(data: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Keys and values of a show command, sorted by key."""
    keys = sorted(data)
    return tuple(keys), tuple(data[key] for key in keys)


def format_properties(properties: Mapping[str, str], formatter: str) -> Any:
    """Cell of properties: lines in a table, one line in value and csv, else the dictionary."""
    separator = {"table": "\n", "value": " ", "csv": " "}.get(formatter)
    if separator is None:
        return dict(properties)
    return separator.join(f"{key}={value}" for key, value in properties.items())


def single_line(texts: Iterable[Any]) -> str:
    """Join texts with commas."""
    return ", ".join(str(text) for text in texts)
