# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio cluster``: what changes the services that the conscience knows, and what one proxy knows of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from oio.cli.cluster import BATCH, ClusterList
from oio.cli.common.base import ListCommand, ShowCommand, sorted_columns
from oio.cli.common.errors import short_error
from oio.common.configuration import load_namespace_conf
from oio.common.easy_value import boolean_value
from oio.common.exceptions import BadRequest, CommandError, OioException, ServiceBusy

SCORE_MAX = 100


class _ServicesCommand(ListCommand):
    """Does something to services, up to ``BATCH`` in one request. A row fails with its request; when only some
    services of a request are wrong, the others are done all the same.
    """

    _columns = ("Type", "Service", "Result")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("srv_type", metavar="<type>", help="Type of the services")
        parser.add_argument(
            "srv_ids", metavar="<service>", nargs="+", help="Addresses (IP:PORT) or ids of the services"
        )
        return parser

    def _change(
        self,
        srv_type: str,
        ids: list[str],
        request: Callable[..., Any],
        result: str,
        score: int | None = None,
    ) -> Iterator[tuple[str, str, str]]:
        client = self.app.client_manager.conscience

        def change(batch: list[str]) -> Iterator[tuple[str, str, str]]:
            definitions = [client.get_service_definition(srv_type, one, score=score) for one in batch]
            text = result
            try:
                request(definitions, reqid=self.app.request_id("CLI-cluster-"))
            except OioException as exc:
                if isinstance(exc, BadRequest) and len(batch) > 1:
                    for one in batch:
                        yield from change([one])
                    return
                text = short_error(exc)
                self.success = False
            for one in batch:
                yield srv_type, one, text

        for first in range(0, len(ids), BATCH):
            yield from change(ids[first : first + BATCH])


class ClusterLock(_ServicesCommand):
    """Lock the scores of services."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("-s", "--score", type=int, default=0, metavar="N", help="Score, 0..100 (0)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the conscience, through the proxy."""
        # As the conscience takes it: the row tells what holds.
        score = max(0, min(parsed_args.score, SCORE_MAX))
        return self._columns, self._change(
            parsed_args.srv_type,
            parsed_args.srv_ids,
            self.app.client_manager.conscience.lock_score,
            f"locked to {score}",
            score,
        )


class ClusterUnlock(_ServicesCommand):
    """Have the scores of services computed again."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the conscience, through the proxy."""
        request = self.app.client_manager.conscience.unlock_score
        return self._columns, self._change(parsed_args.srv_type, parsed_args.srv_ids, request, "unlocked")


class ClusterDeregister(_ServicesCommand):
    """Have services forgotten; those that still run register again."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the conscience, through the proxy."""
        request = self.app.client_manager.conscience.deregister
        return self._columns, self._change(parsed_args.srv_type, parsed_args.srv_ids, request, "deregistered")


class ClusterUnlockAll(_ServicesCommand):
    """Have the scores of all services computed again."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = ListCommand.get_parser(self, prog_name)
        parser.add_argument("srv_types", metavar="<type>", nargs="*", help="Types of services (default: all)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the conscience, through the proxy."""
        return self._columns, self._rows(parsed_args.srv_types)

    def _rows(self, types: list[str]) -> Iterator[tuple[str, str, str]]:
        client = self.app.client_manager.conscience
        for srv_type in types or client.service_types(reqid=self.app.request_id("CLI-unlockall-")):
            try:
                services = client.all_services(srv_type, reqid=self.app.request_id("CLI-unlockall-"))
            except OioException as exc:
                self.success = False
                yield srv_type, "n/a", short_error(exc)
                continue
            addresses = [service["addr"] for service in services]
            yield from self._change(srv_type, addresses, client.unlock_score, "unlocked")


class ClusterFlush(ListCommand):
    """Have all the services of some types forgotten; those that still run register again."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("srv_types", metavar="<type>", nargs="*", help="Types of services (default: all)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the conscience, through the proxy."""
        return ("Type", "Result"), self._rows(parsed_args.srv_types)

    def _rows(self, types: list[str]) -> Iterator[tuple[str, str]]:
        client = self.app.client_manager.conscience
        for srv_type in types or client.service_types(reqid=self.app.request_id("CLI-flush-")):
            try:
                client.flush(srv_type, reqid=self.app.request_id("CLI-flush-"))
            except OioException as exc:
                self.success = False
                yield srv_type, short_error(exc)
            else:
                yield srv_type, "flushed"


class ClusterResolve(ShowCommand):
    """Show the address of a service."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("srv_type", metavar="<type>", help="Type of the service")
        parser.add_argument("srv_id", metavar="<service>", help="Id of the service")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the proxy."""
        reqid = self.app.request_id()
        try:
            found = self.app.client_manager.conscience.resolve(
                parsed_args.srv_type, parsed_args.srv_id, reqid=reqid
            )
        except ServiceBusy as exc:
            # Contract: an id that nobody knows has this code too. To try again does not help.
            raise CommandError(
                f"{short_error(exc)} (reqid={reqid}). Hint: 'openio cluster list' tells the ids of services"
            ) from exc
        return ("addr",), (found["addr"],)


class LocalList(ListCommand):
    """List the services that registered lately through the proxy."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("srv_types", metavar="<type>", nargs="*", help="Types of services (default: all)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the proxy."""
        manager = self.app.client_manager
        conf = load_namespace_conf(manager.namespace, failsafe=True)
        if not boolean_value(conf.get("proxy.quirk.local_scores"), False):
            self.app.log.warning("'proxy.quirk.local_scores' is not set: the scores shown are not the real ones")
        services = manager.conscience.local_services(reqid=self.app.request_id("CLI-local-"))
        plain = argparse.Namespace(stats=False, tags=False)
        return ClusterList.columns, (
            ClusterList.row(service["type"], service, plain)
            for service in services
            if not parsed_args.srv_types or service["type"] in parsed_args.srv_types
        )


class LocalConf(ShowCommand):
    """Show the configuration of the namespace on this host."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Read the files."""
        namespace = self.app.client_manager.namespace
        conf = load_namespace_conf(namespace, failsafe=True)
        return sorted_columns({f"{namespace}/{key}": value for key, value in conf.items()})
