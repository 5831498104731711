# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio bucket``: groups of containers that the account service counts together."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from oio.cli.common.base import (
    ListCommand,
    PlainCommand,
    ShowCommand,
    boolean_argument,
    positive_number,
    sorted_columns,
)
from oio.cli.common.listing import PAGE_MAX, account_containers, add_paging, add_range
from oio.common.constants import M2_PROP_VERSIONING_POLICY
from oio.common.easy_value import convert_size, int_value
from oio.common.exceptions import CommandError, NoSuchContainer, OioException
from oio.common.timestamp import Timestamp

REQUEST_PREFIX = "CLI-BUCKET-"
# What separates a bucket from the folders that it is made of, and its large uploads from their parts.
FOLDER = "%2F"
SEGMENTS = "+segments"
# Touched containers between two messages.
REPORT_EVERY = 100


def _add_bucket(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("bucket", metavar="<bucket>", help="Name of the bucket")
    return parser


class ListBucket(ListCommand):
    """List the buckets of the account."""

    rows_name = "buckets"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_range(parser, grouped=False)
        add_paging(parser)
        parser.add_argument(
            "--versioning", action="store_true", help="Show whether the bucket keeps versions of its objects"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the account service."""
        columns: tuple[str, ...] = ("Name", "Bytes", "Objects", "Mtime")
        if parsed_args.versioning:
            columns += ("Versioning",)
        limit = positive_number("--limit", parsed_args.limit)
        return columns, self._rows(parsed_args, self.app.client_manager.account, limit)

    def _rows(
        self, parsed: argparse.Namespace, account: str, limit: int | None
    ) -> Iterator[tuple[Any, ...]]:
        human = parsed.formatter == "table"
        for bucket in self._buckets(parsed, account, limit):
            size, mtime = bucket["bytes"], bucket["mtime"]
            if human:
                size, mtime = convert_size(size), Timestamp(mtime).isoformat
            row = (bucket["name"], size, bucket["objects"], mtime)
            yield (*row, self._versioning(account, bucket["name"])) if parsed.versioning else row

    def _buckets(
        self, parsed: argparse.Namespace, account: str, limit: int | None
    ) -> Iterator[dict[str, Any]]:
        marker = parsed.marker
        left = None if parsed.full_listing else limit
        while left is None or left > 0:
            page = self.app.client_manager.storage.bucket_list(
                account, limit=limit if left is None else min(left, PAGE_MAX), marker=marker,
                prefix=parsed.prefix, reqid=self.app.request_id(REQUEST_PREFIX),
            )  # fmt: skip
            yield from page["listing"]
            if not (parsed.full_listing or limit) or not page.get("truncated"):
                return
            if left is not None:
                left -= len(page["listing"])
            marker = page["next_marker"]

    def _versioning(self, account: str, bucket: str) -> str:
        """State of the container named like the bucket."""
        try:
            system = self.app.client_manager.storage.container_get_properties(
                account, bucket, reqid=self.app.request_id(REQUEST_PREFIX)
            )["system"]
        except NoSuchContainer:
            return "Error"
        return "Enabled" if int_value(system.get(M2_PROP_VERSIONING_POLICY), 0) else "Suspended"


class ShowBucket(ShowCommand):
    """Show the counters and the settings of a bucket."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        return _add_bucket(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the account service."""
        shown = self.app.client_manager.storage.bucket_show(
            parsed_args.bucket, reqid=self.app.request_id(REQUEST_PREFIX)
        )
        return describe(shown, human=parsed_args.formatter == "table")


class SetBucket(ShowCommand):
    """Change the settings of a bucket, which may have no container yet."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = _add_bucket(super().get_parser(prog_name))
        parser.add_argument(
            "--replicate", "--replication", type=boolean_argument, metavar="BOOLEAN",
            help="Whether events of the bucket are replicated",
        )  # fmt: skip
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Tell the account service; without any option the bucket is only described."""
        metadata = {}
        if parsed_args.replicate is not None:
            metadata["replication_enabled"] = str(parsed_args.replicate)
        shown = self.app.client_manager.storage.bucket_update(
            parsed_args.bucket, metadata=metadata, reqid=self.app.request_id(REQUEST_PREFIX)
        )
        return describe(shown, human=parsed_args.formatter == "table")


def describe(shown: dict[str, Any], human: bool) -> Any:
    """Keys and values of a bucket.

    :param human: write sizes and dates for people, as tables do.
    """
    if human:
        shown = dict(shown)
        if "bytes" in shown:
            shown["bytes"] = convert_size(shown["bytes"])
        if "mtime" in shown:
            shown["mtime"] = Timestamp(shown["mtime"]).isoformat
    return sorted_columns(shown)


class RefreshBucket(PlainCommand):
    """Have the counters of a bucket computed again."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = _add_bucket(super().get_parser(prog_name))
        parser.add_argument(
            "--touch", action="store_true", help="Then have each container of the bucket tell its counters"
        )
        parser.add_argument(
            "--recompute", action="store_true",
            help="Have each container count its objects before (with --touch)",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Add up what the account service knows; touching repairs what it knows."""
        if parsed_args.recompute and not parsed_args.touch:
            raise CommandError("--recompute goes with --touch: nothing is recounted without it")
        storage = self.app.client_manager.storage
        storage.bucket_refresh(parsed_args.bucket, reqid=self.app.request_id(REQUEST_PREFIX))
        if not parsed_args.touch:
            return
        account = storage.bucket_show(
            parsed_args.bucket, reqid=self.app.request_id(REQUEST_PREFIX)
        )["account"]  # fmt: skip
        if not account:
            raise CommandError(f"Bucket {parsed_args.bucket} has no container that could be touched")
        touched = 0
        for container in self._containers(account, parsed_args.bucket):
            if not self._touch(account, container, parsed_args.recompute):
                continue
            touched += 1
            if not touched % REPORT_EVERY:
                self.app.log.warning("%d events triggered so far", touched)
        self.app.log.warning("%d events triggered", touched)
        self.app.log.warning(
            "Once they are handled, refresh the bucket again, without --touch: openio bucket refresh %s",
            parsed_args.bucket,
        )

    def _containers(self, account: str, bucket: str) -> Iterator[str]:
        for root in (bucket, bucket + SEGMENTS):
            yield root
            folders = account_containers(
                self.app, account=account, prefix=root + FOLDER, request_prefix=REQUEST_PREFIX
            )
            yield from (entry[0] for entry in folders)

    def _touch(self, account: str, container: str, recompute: bool) -> bool:
        """Touch a container; a failure is told, and the others follow."""
        try:
            self.app.client_manager.storage.container_touch(
                account, container, recompute=recompute, reqid=self.app.request_id(REQUEST_PREFIX)
            )
        except OioException as exc:
            self.app.log.error(
                "Failed to touch %s/%s: %s", account, container, self.app.describe_error(exc)
            )
            return False
        return True
