# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The commands of the program and their arguments as data: for completion in shells, and for the reference."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oio.cli.openio import OpenIOApp

# Placeholders of values that are files.
_FILES = re.compile(r"(^|[^a-z])(file|path|dir|directory|filename|backup)s?($|[^a-z])", re.IGNORECASE)
# Terminals fold help; here it is as wide as it likes.
_COLUMNS = "200"


@dataclass(frozen=True)
class Argument:
    """An option, or a positional when it has no ``names``."""

    names: tuple[str, ...]
    metavar: str
    help: str
    takes_value: bool
    choices: tuple[str, ...]
    files: bool
    repeatable: bool
    optional: bool
    default: Any


@dataclass(frozen=True)
class CommandText:
    """A command. ``words`` is empty for the program itself, whose options stand anywhere."""

    words: tuple[str, ...]
    help: str
    usage: str
    epilog: str
    options: tuple[Argument, ...]
    positionals: tuple[Argument, ...]

    @property
    def name(self) -> str:
        """Words of the command, separated by spaces."""
        return " ".join(self.words)


def describe_program(app: OpenIOApp) -> CommandText:
    """The global options."""
    return _describe((), app.parser, app.parser.description or "")


def describe_commands(app: OpenIOApp) -> list[CommandText]:
    """Every command that is loaded, sorted."""
    found = []
    for name, entry in sorted(app.command_manager):
        factory: Any = entry.load()
        named = {"cmd_name": name} if "cmd_name" in inspect.signature(factory.__init__).parameters else {}
        command = factory(app, None, **named)
        parser = command.get_parser(f"{app.NAME} {name}")
        found.append(_describe(tuple(name.split()), parser, command.get_description() or ""))
    return found


def _describe(words: tuple[str, ...], parser: argparse.ArgumentParser, text: str) -> CommandText:
    arguments = [
        _argument(action) for action in parser._actions if action.help is not argparse.SUPPRESS
    ]
    return CommandText(
        words=words,
        help=text.strip(),
        usage=_usage(parser),
        epilog=parser.epilog or "",
        options=tuple(argument for argument in arguments if argument.names),
        positionals=tuple(argument for argument in arguments if not argument.names),
    )


def _usage(parser: argparse.ArgumentParser) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _COLUMNS
    try:
        return parser.format_usage().removeprefix("usage: ").strip()
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _argument(action: argparse.Action) -> Argument:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest
    text = (action.help or "") % _parameters(action) if action.help else ""
    return Argument(
        names=tuple(action.option_strings),
        metavar=metavar,
        help=" ".join(text.split()),
        takes_value=action.nargs != 0,
        choices=tuple(str(choice) for choice in action.choices or ()),
        files=bool(_FILES.search(metavar)),
        repeatable=type(action).__name__ in ("_AppendAction", "KeyValueAction") or action.nargs in ("*", "+"),
        optional=action.nargs == "?",
        default=action.default,
    )


def _parameters(action: argparse.Action) -> dict[str, Any]:
    known = dict(vars(action))
    known["choices"] = ", ".join(str(choice) for choice in action.choices or ())
    return known
