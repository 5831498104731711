# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Writes the reference of ``docs/cli.md`` from the commands themselves: ``python -m tools.cli_reference``.

What stands above the marker is written by hand and left alone. With ``--check`` nothing is written; the exit code
is 1 when the page is out of date.
"""

from __future__ import annotations

import sys
from itertools import groupby

from oio.cli.common.describe import Argument, CommandText, describe_commands, describe_program
from oio.cli.common.examples import examples_of
from tools.written_page import WrittenPage

# Every command has these; those of formats are told once.
_COMMON = frozenset(("--help", "--format", "--column", "--sort-column", "--sort-ascending", "--sort-descending"))
_FORMATS = frozenset((
    "--max-width", "--fit-width", "--print-empty", "--noindent", "--quote", "--variable",
))  # fmt: skip


def reference() -> str:
    """The reference: global options, then the commands by family."""
    from oio.cli.openio import OpenIOApp

    app = OpenIOApp()
    app.NAME = "openio"
    app.manager.load_for([])
    parts = ["## Reference\n", "Options that may stand anywhere:\n", _table(describe_program(app).options)]
    commands = [command for command in describe_commands(app) if command.name != "help"]
    for family, members in groupby(commands, key=lambda command: command.words[0]):
        parts.append(f"### {family}\n")
        parts += [_command(command) for command in members]
    return "\n".join(parts)


def _command(command: CommandText) -> str:
    options = [
        option for option in command.options
        if not _COMMON.intersection(option.names) and not _is_of_formats(option)
    ]  # fmt: skip
    lines = [f"#### {command.name}\n", " ".join(command.help.split()) + "\n"]
    arguments = [argument for argument in command.positionals if argument.help]
    if arguments or options:
        lines.append(_table([*arguments, *options]))
    if examples := examples_of(command.name):
        lines.append("```sh\n" + "\n".join(examples) + "\n```\n")
    return "\n".join(lines)


def _is_of_formats(option: Argument) -> bool:
    # Some lists have a prefix of their own.
    of_shell = option.names == ("--prefix",) and option.help.startswith("shell:")
    return bool(_FORMATS.intersection(option.names)) or of_shell


def _table(arguments: tuple[Argument, ...] | list[Argument]) -> str:
    rows = ["| | |", "|---|---|"]
    for argument in arguments:
        names = ", ".join(argument.names)
        value = "{" + ",".join(argument.choices) + "}" if argument.choices else argument.metavar
        shown = f"{names} {value}" if names and argument.takes_value else names or value
        rows.append(f"| `{shown.replace('|', '/')}` | {argument.help.replace('|', '/').replace('<', '&lt;')} |")
    return "\n".join(rows) + "\n"


PAGE = WrittenPage("cli.md", "cli_reference", "the commands", reference)

if __name__ == "__main__":
    sys.exit(PAGE.main(__doc__))
