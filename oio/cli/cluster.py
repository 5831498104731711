# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio cluster``: what the conscience knows of the namespace and its services."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from typing import Any

from oio.cli.common.base import ListCommand, ShowCommand
from oio.common.exceptions import OioException, OioNetworkException, ServiceBusy

# Pauses between two looks of ``cluster wait``, in seconds; the last one repeats.
WAIT_PAUSES_S = (0.0, 1.0, 2.0, 4.0)
# Services unlocked by one request.
BATCH = 1000


class ClusterShow(ShowCommand):
    """Show the policies, pools and options of the namespace."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the conscience, through the proxy."""
        info = self.app.client_manager.conscience.info(reqid=self.app.request_id())
        rows = [("namespace", info["ns"]), ("chunksize", info["chunksize"])]
        families = (
            ("storage_policy", "storage_policy"),
            ("data_security", "data_security"),
            ("service_pools", "service_pool"),
        )
        for key, title in families:
            rows += [(f"{title}.{name}", value) for name, value in sorted(info.get(key, {}).items())]
        rows += sorted(info.get("options", {}).items())
        return tuple(zip(*rows, strict=True))


class ClusterList(ListCommand):
    """List the services and their scores."""

    columns: tuple[str, ...] = (
        "Type", "Addr", "Service Id", "Volume", "Location", "Slots", "Up", "Score", "Locked"
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("srv_types", metavar="<type>", nargs="*", help="Types of services (default: all)")
        parser.add_argument("--stats", "--full", dest="stats", action="store_true", help="Show statistics")
        parser.add_argument("--tags", action="store_true", help="Show the other tags")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """List each type; a type that fails is logged and lowers the exit code."""
        columns = self.columns
        if parsed_args.stats:
            columns += ("Stats",)
        if parsed_args.tags:
            columns += ("Tags",)
        return columns, self._rows(parsed_args)

    def _rows(self, parsed: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
        client = self.app.client_manager.conscience
        types = parsed.srv_types or client.service_types(reqid=self.app.request_id("CLI-list-"))
        for number, srv_type in enumerate(types):
            reqid = self.app.request_id(f"CLI-list-{number}-")
            try:
                services = client.all_services(srv_type, parsed.stats, reqid=reqid)
            except OioException as exc:
                self.app.log.error(
                    "Failed to list services of type %s: %s", srv_type, self.app.describe_error(exc)
                )
                self.success = False
                continue
            for service in services:
                yield self.row(srv_type, service, parsed)

    @staticmethod
    def row(srv_type: str, service: dict[str, Any], parsed: argparse.Namespace) -> tuple[Any, ...]:
        """Cells of a service; ``parsed`` says whether ``stats`` and ``tags`` are shown."""
        tags = dict(service["tags"])
        cells = [srv_type, service["addr"]]
        cells += [tags.pop(f"tag.{name}", "n/a") for name in ("service_id", "vol", "loc", "slots", "up")]
        cells += [service["score"], bool(tags.pop("tag.lock", False))]
        if parsed.stats:
            cells.append(_pairs(tags, "stat."))
        if parsed.tags:
            cells.append(_pairs(tags, "tag."))
        return tuple(cells)


def _pairs(tags: dict[str, Any], prefix: str) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(tags.items()) if key.startswith(prefix))


class ClusterWait(ListCommand):
    """Wait until services have a score."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("types", metavar="<type>", nargs="*", help="Types of services (default: all)")
        parser.add_argument(
            "-n", "--count", type=int, default=0, metavar="N", help="Services that must be there"
        )
        parser.add_argument(
            "-d", "--delay", type=float, default=15.0, metavar="SECONDS", help="Longest wait"
        )
        parser.add_argument("-s", "--score", type=int, default=1, metavar="N", help="Lowest good score")
        parser.add_argument("-u", "--unlock", action="store_true", help="Unlock the services seen")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Look again and again until all is well. :raises OioException: when the delay is over."""
        self._deadline = time.monotonic() + parsed_args.delay
        self._delay_s = parsed_args.delay
        self._score = parsed_args.score
        types = parsed_args.types or self._wait_for_types()
        services = self._wait_for_scores(types, parsed_args.count, parsed_args.unlock)
        rows = [(service["type"], service["id"], service["score"]) for service in services]
        return ("Type", "Service", "Score"), rows

    def _wait_for_types(self) -> list[str]:
        while True:
            try:
                return list(
                    self.app.client_manager.conscience.service_types(reqid=self.app.request_id("CLI-wait-"))
                )
            except (OioNetworkException, ServiceBusy) as exc:
                if time.monotonic() >= self._deadline:
                    raise OioException(self._timeout_text(None)) from exc
                time.sleep(0.2)

    def _list(self, types: list[str], reqid: str) -> list[dict[str, Any]]:
        services = []
        for srv_type in types:
            for service in self.app.client_manager.conscience.all_services(srv_type, reqid=reqid):
                service["type"] = srv_type
                services.append(service)
        return services

    def _wait_for_scores(self, types: list[str], count: int, unlock: bool) -> list[dict[str, Any]]:
        services: list[dict[str, Any]] | None = None
        for attempt in itertools.count():
            reqid = self.app.request_id(f"CLI-wait-{attempt}-")
            try:
                if unlock and services:
                    self._unlock(services, reqid)
                services = self._list(types, reqid)
            except (OioNetworkException, ServiceBusy) as exc:
                self.app.log.debug("Services cannot be listed yet: %s", exc)
                services = None
            low = [service for service in services or () if service["score"] < self._score]
            good = len(services or ()) - len(low)
            if services is not None and (good >= count if count else not low):
                return services
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                for service in low:
                    self.app.log.warning(
                        "%s %s: score %s", service["type"], service["id"], service["score"]
                    )
                if count and services is not None:
                    raise OioException(self._timeout_text(None, f", only {good} of {count} have it."))
                raise OioException(self._timeout_text(None if services is None else len(low)))
            time.sleep(min(WAIT_PAUSES_S[min(attempt, len(WAIT_PAUSES_S) - 1)], left_s))
        raise AssertionError("unreachable")

    def _unlock(self, services: list[dict[str, Any]], reqid: str) -> None:
        client = self.app.client_manager.conscience
        definitions = [
            client.get_service_definition(service["type"], service["addr"]) for service in services
        ]
        for first in range(0, len(definitions), BATCH):
            client.unlock_score(definitions[first : first + BATCH], reqid=reqid)

    def _timeout_text(self, still_low: int | None, short: str | None = None) -> str:
        text = f"Timeout ({self._delay_s}s) while waiting for the services to get a score >= {self._score}"
        if short:
            return text + short
        if still_low is None:
            return text + ", proxy and/or conscience not ready"
        return text + f", still {still_low} are not."
