# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio zk``: the nodes of a namespace in ZooKeeper."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from oio.cli.common.base import ListCommand, PlainCommand
from oio.common.exceptions import CommandError, OioException
from oio.zk.tree import LEVELS, ensembles_of

if TYPE_CHECKING:
    from kazoo.client import KazooClient

    from oio.zk.admin import Group


class Bootstrap(PlainCommand):
    """Make the tree that the services of a namespace need in ZooKeeper."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--slow", action="store_true", help="Small steps, for servers that are in use")
        parser.add_argument("--lazy", action="store_true", help="Do nothing where the tree seems to exist")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Make it in each cluster."""
        from oio.zk.admin import BATCH, SLOW_BATCH, bootstrap, seems_complete

        namespace = self.app.client_manager.namespace

        def make(client: KazooClient) -> None:
            if parsed_args.lazy and seems_complete(client, namespace):
                self.app.log.info("The tree of %s exists", namespace)
                return
            made = bootstrap(client, namespace, SLOW_BATCH if parsed_args.slow else BATCH)
            self.app.log.info("%d nodes made for %s", made, namespace)

        _everywhere(self, make)


class Armageddon(PlainCommand):
    """Remove all that a namespace has in ZooKeeper. Its services must be stopped."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--fuck-the-world", dest="confirmed", action="store_true", help="Confirm: without it nothing is done"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Remove it from each cluster."""
        from oio.zk.admin import destroy

        namespace = self.app.client_manager.namespace
        if not parsed_args.confirmed:
            self.app.log.warning("Nothing was removed: this destroys the tree of %s, and needs the flag"
                                 " --fuck-the-world", namespace)  # fmt: skip
            return
        _everywhere(self, lambda client: destroy(client, namespace))


class _OverElections(ListCommand):
    """Commands that go over all the elections of a type."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "service_type", metavar="<service_type>", choices=sorted(LEVELS),
            help=f"Type of services: {', '.join(sorted(LEVELS))}",
        )  # fmt: skip
        return parser

    def rows(
        self, parsed_args: argparse.Namespace, handle: Callable[[KazooClient, Group], Iterator[tuple[Any, ...]]]
    ) -> Iterator[tuple[Any, ...]]:
        """Rows of each election of each cluster; a cluster that fails gives none, and an error."""
        from oio.zk.admin import connection, groups

        namespace = self.app.client_manager.namespace
        for hosts in _ensembles(self, parsed_args.service_type):
            try:
                with connection(hosts) as client:
                    for group in groups(client, namespace, parsed_args.service_type):
                        yield from handle(client, group)
            except OioException as exc:
                self.app.log.error("%s", exc)
                self.success = False


class Stat(_OverElections):
    """List the members of elections, the master of each one first."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Read them."""
        return ("group", "member", "size", "value"), self.rows(parsed_args, self._of_group)

    def _of_group(self, _client: KazooClient, group: Group) -> Iterator[tuple[Any, ...]]:
        for node in group.nodes:
            yield group.key, _digits(node.sequence), node.size, node.value


class Smudge(_OverElections):
    """Add a member without a service to each election, after the last: for tests."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--value", default="", help="Id of the service that it pretends to be (default: none)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Add them."""
        from oio.zk.admin import smudge

        def add(client: KazooClient, group: Group) -> Iterator[tuple[Any, ...]]:
            outcome = smudge(client, group, parsed_args.value)
            if outcome.failed:
                self.success = False
            yield group.key, "" if outcome.failed else _digits(outcome.node.sequence), outcome.status

        return ("group", "member", "status"), self.rows(parsed_args, add)


class Reset(_OverElections):
    """Remove members of elections: the services behind them join again, and masters change."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "-s", "--smart", action="store_true", help="Only members followed by a younger one of the same service"
        )
        parser.add_argument("--dry-run", action="store_true", help="Show, and change nothing")
        parser.add_argument(
            "--min-services", type=int, default=4, metavar="N",
            help="Spare the elections with less members (default: 4)",
        )  # fmt: skip
        parser.add_argument("--alone", action="store_true", help="Also the elections with a single member")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Remove them."""
        from oio.zk.admin import reset

        def remove(client: KazooClient, group: Group) -> Iterator[tuple[Any, ...]]:
            outcomes = reset(
                client,
                group,
                smart=parsed_args.smart,
                dry_run=parsed_args.dry_run,
                min_services=parsed_args.min_services,
                alone=parsed_args.alone,
            )
            for outcome in outcomes:
                if outcome.failed:
                    self.success = False
                yield group.key, outcome.node.name, outcome.status

        return ("group", "node", "status"), self.rows(parsed_args, remove)


def _everywhere(command: PlainCommand, act: Callable[[KazooClient], Any]) -> None:
    """Act on each cluster, even if another fails."""
    from oio.zk.admin import connection

    for hosts in _ensembles(command):
        try:
            with connection(hosts) as client:
                act(client)
        except OioException as exc:
            command.app.log.error("%s", exc)
            command.success = False


def _ensembles(command: Any, service_type: str | None = None) -> list[str]:
    """Clusters of the services of a type, or of all. :raises CommandError: when there is none."""
    from oio.common.configuration import load_namespace_conf

    namespace = command.app.client_manager.namespace
    conf = load_namespace_conf(namespace, failsafe=True)
    found: dict[str, None] = {}
    for one in [service_type] if service_type else ["", *LEVELS]:
        found.update(dict.fromkeys(ensembles_of(conf, one)))
    if not found:
        where = ", ".join(conf.files) or "no file"
        raise CommandError(f"Missing key 'zookeeper' of namespace {namespace}, looked up in {where}")
    return list(found)


def _digits(sequence: int) -> str:
    return f"{sequence:010d}"
