# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio volume``: what the reverse directory knows of a volume, and its administration."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from oio.cli.common.base import ListCommand, ShowCommand
from oio.cli.rdir import add_aggregated, add_max_per_rdir, assign, read_assignments
from oio.common.exceptions import OioException

STATUS_TIMEOUT_S = 60.0
CLEAR_TIMEOUT_S = 600.0
STATUS_PAGE = 10000


class ShowVolume(ShowCommand):
    """Count the chunks of a volume, by container."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        return _with_volume(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Add up all the pages."""
        found = self.app.client_manager.rdir.status(
            parsed_args.volume, max=STATUS_PAGE, read_timeout=STATUS_TIMEOUT_S, reqid=self.app.request_id(),
        )
        rows = [("chunk", found["chunk"])]
        rows += [
            (f"container.{container}", json.dumps(counters))
            for container, counters in sorted(found["container"].items())
        ]
        return tuple(zip(*rows, strict=True))


class ShowVolumeAdmin(ShowCommand):
    """Show the lock and the incident of a volume."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        return _with_volume(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the rdir of the volume."""
        entries = self.app.client_manager.rdir.admin_show(
            parsed_args.volume, reqid=self.app.request_id()
        )
        return tuple(zip(("volume", parsed_args.volume), *sorted(entries.items()), strict=True))


class IncidentVolume(ListCommand):
    """Declare an incident: the chunks that are not younger are to rebuild."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = _with_volumes(super().get_parser(prog_name))
        parser.add_argument(
            "--date", metavar="EPOCH", type=int, action="append",
            help="Date of the incident in seconds, one per volume (default: now)",
        )  # fmt: skip
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Set the date of each volume."""
        return ("Volume", "Date"), self._rows(parsed_args)

    def _rows(self, parsed: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
        dates = parsed.date or []
        for index, volume in enumerate(parsed.volumes):
            date = dates[index] if index < len(dates) else int(time.time())
            self.app.client_manager.rdir.admin_incident_set(volume, date, reqid=self.app.request_id())
            yield volume, date


class LockVolume(ListCommand):
    """Take the lock of volumes."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = _with_volumes(super().get_parser(prog_name))
        parser.add_argument("--key", metavar="TEXT", required=True, help="Owner of the lock")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Lock each volume; the first that somebody else holds ends the command."""
        return ("Volume", "Success"), self._rows(parsed_args)

    def _rows(self, parsed: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
        for volume in parsed.volumes:
            self.app.client_manager.rdir.admin_lock(volume, parsed.key, reqid=self.app.request_id())
            yield volume, True


class UnlockVolume(ListCommand):
    """Release the lock of volumes, whoever has it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        return _with_volumes(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Unlock each volume."""
        return ("Volume", "Success"), self._rows(parsed_args)

    def _rows(self, parsed: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
        for volume in parsed.volumes:
            self.app.client_manager.rdir.admin_unlock(volume, reqid=self.app.request_id())
            yield volume, True


class ClearVolume(ListCommand):
    """Remove or repair the records of volumes; ends their incident in any case."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = _with_volumes(super().get_parser(prog_name))
        parser.add_argument("--all", dest="clear_all", action="store_true", help="Remove all the records")
        parser.add_argument(
            "--before-incident", action="store_true", help="Remove the records not younger than the incident"
        )
        parser.add_argument("--repair", action="store_true", help="Repair the records that remain")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Clear each volume; one that fails lowers the exit code."""
        return ("Volume", "Success", "Message"), self._rows(parsed_args)

    def _rows(self, parsed: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
        for volume in parsed.volumes:
            try:
                answer = self.app.client_manager.rdir.admin_clear(
                    volume,
                    clear_all=parsed.clear_all,
                    before_incident=parsed.before_incident,
                    repair=parsed.repair,
                    read_timeout=CLEAR_TIMEOUT_S,
                    reqid=self.app.request_id(),
                )
            except OioException as exc:
                self.success = False
                yield volume, False, self.app.describe_error(exc)
            else:
                yield volume, True, answer


class BootstrapVolume(ListCommand):
    """Give an rdir to each rawx that has none (deprecated: rdir bootstrap rawx)."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_max_per_rdir(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Assign, and list the outcome."""
        self.app.log.warning("Deprecated command, use 'openio rdir bootstrap rawx' instead")
        return assign(self, "rawx", max_per_rdir=parsed_args.max_per_rdir)


class VolumeAssignation(ListCommand):
    """Tell which rdir each rawx has (deprecated: rdir assignments rawx)."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_aggregated(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Read the links of all the rawx."""
        self.app.log.warning("Deprecated command, use 'openio rdir assignments rawx' instead")
        return read_assignments(self, "rawx", parsed_args.aggregated)


def _with_volume(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("volume", metavar="<volume>", help="Service id, or address, of the rawx")
    return parser


def _with_volumes(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "volumes", metavar="<volume>", nargs="+", help="Service ids, or addresses, of the rawx"
    )
    return parser
