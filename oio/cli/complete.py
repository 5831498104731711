# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio complete``: a script that completes the commands in a shell."""

from __future__ import annotations

import argparse

from oio.cli.common.base import PlainCommand
from oio.cli.common.completion import SCRIPTS, make_tables
from oio.cli.common.describe import describe_commands, describe_program


class Complete(PlainCommand):
    """Print a script that completes commands and options in a shell."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--shell", choices=sorted(SCRIPTS), default="bash", help="Shell that reads it (default: bash)"
        )
        parser.add_argument(
            "--name", default="openio", metavar="PROGRAM", help="Word that it completes (default: openio)"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Write the script."""
        # Those of other packages as well.
        self.app.manager.load_everything()
        tables = make_tables(describe_program(self.app), describe_commands(self.app))
        self.app.stdout.write(SCRIPTS[parsed_args.shell](parsed_args.name, tables))
