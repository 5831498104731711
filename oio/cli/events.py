# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio events``: the queue of events of this host."""

from __future__ import annotations

import argparse
from typing import Any

from oio.cli.common.base import ListCommand, ShowCommand


def _add_tube(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tube", default="oio", help="Tube of the events (default: oio)")


class EventsExhume(ShowCommand):
    """Have buried events handled again, or delayed ones at once when none is buried."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        _add_tube(parser)
        parser.add_argument("--limit", type=int, default=1000, help="Events at most (default: 1000)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Kick them."""
        count = self.app.client_manager.events.exhume(limit=parsed_args.limit, tube=parsed_args.tube)
        return ("Exhumed",), (count,)


class EventsStats(ShowCommand):
    """Show the counts of a tube."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        _add_tube(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the queue."""
        stats = self.app.client_manager.events.stats(tube=parsed_args.tube)
        return tuple(zip(*sorted(stats.items()), strict=True))


class EventsTubes(ListCommand):
    """List the tubes."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the queue."""
        return ("Tubes",), ((tube,) for tube in self.app.client_manager.events.list_tubes())
