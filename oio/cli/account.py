# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio account``: accounts, their counters and their metadata."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from oio.cli.common.base import (
    ListCommand,
    PlainCommand,
    ShowCommand,
    ValueFormatAction,
    add_properties,
    for_each,
    sorted_columns,
)
from oio.common.easy_value import convert_size
from oio.common.exceptions import CommandError, NoSuchAccount

STATISTICS = ("bytes", "containers", "objects", "ctime", "metadata")


def _add_account(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("account", metavar="<account>", help="Name of the account")
    return parser


def _add_accounts(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("accounts", metavar="<account>", nargs="+", help="Names of the accounts")
    return parser


class CreateAccount(ListCommand):
    """Create accounts."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        return _add_accounts(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Create them in turn."""
        storage = self.app.client_manager.storage
        return ("Name", "Created"), (
            (name, storage.account_create(name, reqid=self.app.request_id()))
            for name in parsed_args.accounts
        )


class DeleteAccount(PlainCommand):
    """Delete accounts that have no containers."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        return _add_accounts(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete them in turn; the first error stops the command."""
        storage = self.app.client_manager.storage
        for_each(
            self.app, parsed_args.accounts, lambda name: storage.account_delete(name, reqid=self.app.request_id())
        )


class FlushAccount(PlainCommand):
    """Have an account forget its containers, which themselves are left alone."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        return _add_account(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Empty its list, set its counters to 0."""
        self.app.client_manager.storage.account_flush(parsed_args.account, reqid=self.app.request_id())


class ListAccount(ListCommand):
    """List the accounts."""

    rows_name = "accounts"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--stats", "--long", dest="long_listing", default=False, action=ValueFormatAction,
            help="Show the counters of each account (output format: value)",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the account service."""
        names = self.app.client_manager.storage.account_list(reqid=self.app.request_id())
        if not parsed_args.long_listing:
            return ("Name",), ((name,) for name in names)
        return ("Name", *STATISTICS), self._described(names)

    def _described(self, names: list[str]) -> Iterator[tuple[Any, ...]]:
        storage = self.app.client_manager.storage
        for name in names:
            try:
                shown = storage.account_show(name, reqid=self.app.request_id())
            except NoSuchAccount:
                self.app.log.info("Account %s was deleted meanwhile", name)
                continue
            yield name, *(shown.get(key) for key in STATISTICS)


class RefreshAccount(PlainCommand):
    """Have the counters of an account computed again, and each of its containers tell its own."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("account", metavar="<account>", nargs="?", help="Name of the account")
        parser.add_argument("--all", dest="all_accounts", action="store_true", help="Refresh every account")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Refresh one account, or all of them."""
        if not parsed_args.account and not parsed_args.all_accounts:
            raise CommandError("Missing value for account or --all")
        name = None if parsed_args.all_accounts else parsed_args.account
        self.app.client_manager.storage.account_refresh(name, reqid=self.app.request_id())


class SetAccount(PlainCommand):
    """Set metadata of an account."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = _add_account(super().get_parser(prog_name))
        add_properties(parser, "Property to set (repeatable)", short=True)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Set them in one request."""
        self.app.client_manager.storage.account_set_properties(
            parsed_args.account, parsed_args.property or {}, reqid=self.app.request_id()
        )


class ShowAccount(ShowCommand):
    """Show the counters and the metadata of an account."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        return _add_account(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the account service."""
        shown = self.app.client_manager.storage.account_show(
            parsed_args.account, reqid=self.app.request_id()
        )
        shown["account"] = shown.pop("id", parsed_args.account)
        if parsed_args.formatter == "table":
            shown["ctime"] = int(float(shown["ctime"]))
            shown["bytes"] = convert_size(shown["bytes"], unit="B")
            shown["objects"] = convert_size(shown["objects"])
        return sorted_columns(shown)


class UnsetAccount(PlainCommand):
    """Delete metadata of an account."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = _add_account(super().get_parser(prog_name))
        parser.add_argument(
            "-p", "--property", dest="keys", metavar="KEY", action="append", required=True,
            help="Property to delete (repeatable)",
        )  # fmt: skip
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete them in one request."""
        self.app.client_manager.storage.account_del_properties(
            parsed_args.account, parsed_args.keys, reqid=self.app.request_id()
        )
