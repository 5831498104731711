# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio election``: who is the master of a base, and how its copies see each other."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from oio.cli.common.base import ListCommand

TIMEOUT_S = 32.0
_REQID_PREFIX = "ACLI-EL-"
# Milliseconds, state before, event, state after.
_LOG_ENTRY = re.compile(r"^([0-9]+):([^:]*):(.*):([^:]*)\Z")


class _ElectionCommand(ListCommand):
    """One row per copy of a base, sorted; the answers do not change the exit code."""

    action = ""
    columns: tuple[str, ...] = ("Id", "Status", "Message")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("service_type", metavar="<service_type>", help="Type of the base: meta0, meta1, meta2")
        parser.add_argument("reference", metavar="<reference>", help="Name of the reference or container")
        parser.add_argument("--cid", dest="is_cid", action="store_true", help="The reference is a container id")
        parser.add_argument(
            "--service-id", metavar="ID", action="append", help="Ask only this service (repeatable)"
        )
        parser.add_argument(
            "--timeout", type=float, default=TIMEOUT_S, metavar="SECONDS",
            help=f"Longest wait for the answer (default: {TIMEOUT_S:g})",
        )  # fmt: skip
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the copies."""
        return self.columns, list(self._rows(parsed_args, self._ask(parsed_args)))

    def _ask(self, parsed: argparse.Namespace, **kwargs: Any) -> dict[str, Any]:
        manager = self.app.client_manager
        cid = parsed.reference if parsed.is_cid else None
        ask: Callable[..., dict[str, Any]] = getattr(manager.admin, f"election_{self.action}")
        return ask(
            parsed.service_type,
            account=None if cid else manager.account_option,
            reference=None if cid else parsed.reference,
            cid=cid,
            service_id=parsed.service_id,
            read_timeout=parsed.timeout,
            reqid=self.app.request_id(_REQID_PREFIX),
            **kwargs,
        )

    def _rows(self, parsed: argparse.Namespace, answers: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        for service, answer in sorted(answers.items()):
            yield service, answer["status"]["status"], answer["status"]["message"]


class _WithBody(_ElectionCommand):
    columns = ("Id", "Status", "Message", "Body")

    def _rows(self, parsed: argparse.Namespace, answers: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        for service, answer in sorted(answers.items()):
            body = self.readable(answer["body"], parsed)
            if parsed.formatter == "table":
                body = json.dumps(body, indent=4, sort_keys=True)
            yield service, answer["status"]["status"], answer["status"]["message"], body

    def readable(self, body: Any, parsed: argparse.Namespace) -> Any:
        """The body of an answer, for people when they ask for it."""
        return body


class ElectionPing(_ElectionCommand):
    """Start the election of a base, or keep it alive."""

    action = "ping"


class ElectionStatus(_ElectionCommand):
    """Tell who is the master (200), and who obeys it (303)."""

    action = "status"

    def _rows(self, parsed: argparse.Namespace, answers: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        return super()._rows(parsed, answers["peers"])


class ElectionLeave(_ElectionCommand):
    """Have the copies leave the election of a base."""

    action = "leave"


class ElectionSync(_WithBody):
    """Have the copies of a base take the state of the master."""

    action = "sync"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--check-type", type=int, choices=(-1, 0, 1, 2), default=-1, metavar="N",
            help="Check of the copied file: -1 as the services are set (default), 0 none, 1 quick, 2 full",
        )  # fmt: skip
        return parser

    def _ask(self, parsed: argparse.Namespace, **kwargs: Any) -> dict[str, Any]:
        check_type = parsed.check_type if parsed.check_type >= 0 else None
        return super()._ask(parsed, check_type=check_type)


class ElectionDebug(_WithBody):
    """Show the election of a base as each copy sees it."""

    action = "debug"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--human", action="store_true", help="Write the dates of the log for people")
        return parser

    def readable(self, body: Any, parsed: argparse.Namespace) -> Any:
        """The same, with dates in the log when asked for."""
        if not (parsed.human and isinstance(body, dict) and isinstance(body.get("log"), list)):
            return body
        return {**body, "log": [human_entry(entry) for entry in body["log"]]}


def human_entry(entry: Any) -> Any:
    """An entry of the log of an election with its date; what does not look like one stays.

    >>> human_entry("1000:NONE:PEERING:PEERING")
    '1970-01-01T00:00:01.000Z NONE, PEERING -> PEERING'
    """
    found = _LOG_ENTRY.match(entry) if isinstance(entry, str) else None
    if not found:
        return entry
    milliseconds, before, event, after = found.groups()
    try:
        date = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return entry
    return f"{date:%Y-%m-%dT%H:%M:%S}.{date.microsecond // 1000:03}Z {before}, {event} -> {after}"
