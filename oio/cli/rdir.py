# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio rdir``: which reverse directory serves which volume."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from oio.cli.common.base import ListCommand
from oio.common.exceptions import OioException, ServiceUnavailable
from oio.rdir.dispatcher import volume_id_of

TIMEOUTS = {"connection_timeout": 30.0, "read_timeout": 90.0}
_NONE = "n/a"
_LOCATION = "tag.loc"

Rows = tuple[tuple[str, ...], list[tuple[Any, ...]]]


class Assignments(ListCommand):
    """Tell which rdir each service of a type has."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_service_type(parser)
        add_aggregated(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Read the links of all the services."""
        return read_assignments(self, parsed_args.service_type, parsed_args.aggregated)


class Bootstrap(ListCommand):
    """Give an rdir to each service of a type that has none."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_service_type(parser)
        add_max_per_rdir(parser)
        parser.add_argument(
            "--min-dist", type=int, metavar="N", help="Least distance between a service and its rdir"
        )
        parser.add_argument("--service-id", metavar="ID", help="Only this service")
        parser.add_argument("--dry-run", action="store_true", help="Choose, and change nothing")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Assign, and list the outcome."""
        return assign(
            self,
            parsed_args.service_type,
            max_per_rdir=parsed_args.max_per_rdir,
            min_dist=parsed_args.min_dist,
            service_id=parsed_args.service_id,
            dry_run=parsed_args.dry_run,
        )


def add_service_type(parser: argparse.ArgumentParser) -> None:
    """Add the type of services."""
    parser.add_argument("service_type", metavar="<volume_type>", help="Type of services: rawx, meta2")


def add_aggregated(parser: argparse.ArgumentParser) -> None:
    """Add the choice of one row per rdir."""
    parser.add_argument("--aggregated", action="store_true", help="One row per rdir")


def add_max_per_rdir(parser: argparse.ArgumentParser) -> None:
    """Add the limit of databases."""
    parser.add_argument("--max-per-rdir", type=int, metavar="N", help="Databases per rdir at most")


def assign(command: ListCommand, service_type: str, **options: Any) -> Rows:
    """Assign, and give the rows of the assignments, present ones when something failed."""
    dispatcher = command.app.client_manager.rdir_dispatcher
    try:
        services = dispatcher.assign_services(service_type, **options, **_kwargs(command))
    except (OioException, ServiceUnavailable) as exc:
        # A type that does not exist has no assignments either: that is told once.
        services, _rdirs = dispatcher.get_assignments(service_type, **_kwargs(command))
        command.app.log.warning("Failed to assign all %s: %s", service_type, command.app.describe_error(exc))
        command.success = False
    return columns(service_type), assignment_rows(services)


def read_assignments(command: ListCommand, service_type: str, aggregated: bool) -> Rows:
    """The rows of the present assignments."""
    services, rdirs = command.app.client_manager.rdir_dispatcher.get_assignments(
        service_type, **_kwargs(command)
    )
    if aggregated:
        return ("Rdir", "Number of bases", "Bases"), aggregated_rows(services, rdirs)
    return columns(service_type), assignment_rows(services)


def _kwargs(command: ListCommand) -> dict[str, Any]:
    """Keywords of the requests."""
    return {**TIMEOUTS, "reqid": command.app.request_id()}


def columns(service_type: str) -> tuple[str, ...]:
    """Titles of the assignments of a type."""
    title = service_type.capitalize()
    return "Rdir", title, "Rdir location", f"{title} location"


def assignment_rows(services: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """One row per service."""
    rows = []
    for service in services:
        rdir = service.get("rdir")
        rows.append(
            (
                volume_id_of(rdir) if rdir else _NONE,
                volume_id_of(service),
                rdir["tags"].get(_LOCATION, _NONE) if rdir else _NONE,
                service["tags"].get(_LOCATION, _NONE),
            )
        )
    # Texts: the tags of services may be anything.
    return sorted(rows, key=lambda row: [str(cell) for cell in row])


def aggregated_rows(
    services: Iterable[dict[str, Any]], rdirs: Iterable[dict[str, Any]]
) -> list[tuple[Any, ...]]:
    """One row per rdir, those without databases included."""
    managed: dict[str, list[str]] = {volume_id_of(rdir): [] for rdir in rdirs}
    for service in services:
        rdir = service.get("rdir")
        managed.setdefault(volume_id_of(rdir) if rdir else _NONE, []).append(volume_id_of(service))
    return [(name, len(bases), " ".join(sorted(bases))) for name, bases in sorted(managed.items())]
