# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio reference``: references of the directory, their properties, and the services linked to them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from oio.cli.common.base import (
    ListCommand,
    PlainCommand,
    ShowCommand,
    add_properties,
    for_each,
    single_line,
    sorted_columns,
)
from oio.common.utils import cid_from_name


def _add_reference(parser: argparse.ArgumentParser, several: bool = False) -> None:
    parser.add_argument(
        "references" if several else "reference",
        metavar="<reference>",
        nargs="+" if several else None,
        help="Name of the reference",
    )


class _ReferenceMixin:
    """What the commands have in common."""

    app: Any
    several = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)  # type: ignore[misc]
        _add_reference(parser, self.several)
        return parser

    def call(self, method: str, reference: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the client of the directory for a reference of the account."""
        manager = self.app.client_manager
        ask = getattr(manager.directory, method)
        return ask(manager.account, reference, *args, reqid=self.app.request_id(), **kwargs)


class _OfServices(_ReferenceMixin, PlainCommand):
    """Commands about the services of a type."""

    method = ""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("srv_type", metavar="<srv_type>", help="Type of services: meta2, rdir…")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Do it."""
        self.call(self.method, parsed_args.reference, service_type=parsed_args.srv_type)


class CreateReference(_ReferenceMixin, ListCommand):
    """Create references."""

    several = True

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Create them in turn; the first error stops the command."""
        return ("Name", "Created"), self._rows(parsed_args.references)

    def _rows(self, references: list[str]) -> Iterator[tuple[str, bool]]:
        for reference in references:
            yield reference, self.call("create", reference)


class DeleteReference(_ReferenceMixin, PlainCommand):
    """Delete references that have no linked service."""

    several = True

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete them in turn; the first error stops the command, and tells which one it was."""
        for_each(self.app, parsed_args.references, lambda reference: self.call("delete", reference))


class ShowReference(_ReferenceMixin, ShowCommand):
    """Show the properties of a reference."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the directory."""
        reference, account = parsed_args.reference, self.app.client_manager.account
        properties = self.call("get_properties", reference)["properties"]
        shown = {"account": account, "cid": cid_from_name(account, reference), "name": reference}
        return sorted_columns(shown | {f"meta.{key}": value for key, value in properties.items()})


class ListReference(_ReferenceMixin, ListCommand):
    """List the services linked to a reference."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the directory."""
        links = self.call("list", parsed_args.reference)["srv"]
        rows = [(link["type"], link["host"], link["args"], link["seq"]) for link in links]
        return ("Type", "Host", "Args", "Seq"), rows


class LocateReference(_ReferenceMixin, ShowCommand):
    """Tell which services of the directory have a reference."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the directory about itself."""
        found = self.call("list", parsed_args.reference)
        hosts = {
            kind: single_line(link["host"] for link in found["dir"] if link["type"] == kind)
            for kind in ("meta0", "meta1")
        }
        keys = ("account", "cid", "meta0", "meta1", "name")
        return keys, (found["account"], found["cid"], hosts["meta0"], hosts["meta1"], found["name"])


class SetReference(_ReferenceMixin, PlainCommand):
    """Set properties of a reference."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_properties(parser, "Property to set (repeatable)")
        parser.add_argument("--clear", action="store_true", help="Drop the former properties first")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Change the properties in one request."""
        self.call(
            "set_properties", parsed_args.reference, properties=parsed_args.property, clear=parsed_args.clear
        )


class UnsetReference(_ReferenceMixin, PlainCommand):
    """Delete properties of a reference."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--property", metavar="KEY", action="append", required=True, help="Property to delete (repeatable)"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete them in one request."""
        self.call("del_properties", parsed_args.reference, properties=parsed_args.property)


class LinkReference(_OfServices):
    """Link services to a reference, unless some are linked already."""

    method = "link"


class UnlinkReference(_OfServices):
    """Remove the links to the services of a type."""

    method = "unlink"


class PollReference(_OfServices):
    """Link a new set of services, with the next sequence number."""

    method = "renew"


class ForceReference(_ReferenceMixin, PlainCommand):
    """Link given services to a reference."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("host", metavar="<host>", help="Services, separated by commas")
        parser.add_argument("type", metavar="<type>", help="Their type")
        parser.add_argument("--seq", type=int, default=1, metavar="N", help="Sequence number (default: 1)")
        parser.add_argument("--args", default="", metavar="TEXT", help="Text kept with the link")
        parser.add_argument("--replace", action="store_true", help="Overwrite the present link")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Store the link. Without ``--replace`` a link that exists is refused."""
        link = {
            "host": parsed_args.host,
            "type": parsed_args.type,
            "seq": parsed_args.seq,
            "args": parsed_args.args,
        }
        self.call(
            "force",
            parsed_args.reference,
            service_type=parsed_args.type,
            services=link,
            replace=parsed_args.replace,
        )
