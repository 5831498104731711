# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio container``: settings, counters and contents of containers that exist."""

from __future__ import annotations

import argparse
import time
from typing import Any

from oio.cli.common.base import (
    ListCommand,
    PlainCommand,
    add_container,
    container_kwargs,
    for_each,
)
from oio.cli.container import add_settings, system_properties
from oio.common.constants import (
    M2_PROP_BUCKET_NAME,
    M2_PROP_DEL_EXC_VERSIONS,
    M2_PROP_OBJECTS,
    M2_PROP_QUOTA,
    M2_PROP_STORAGE_POLICY,
    M2_PROP_VERSIONING_POLICY,
    OIO_DB_DISABLED,
    OIO_DB_ENABLED,
    OIO_DB_FROZEN,
)
from oio.common.easy_value import int_value
from oio.common.exceptions import CommandError

STATUSES = {"enabled": OIO_DB_ENABLED, "frozen": OIO_DB_FROZEN, "disabled": OIO_DB_DISABLED}


class _OneContainer(PlainCommand):
    """Command on one container, by name or by id."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_container(parser)
        return parser


def resolve(command: Any, parsed: argparse.Namespace) -> tuple[str, str]:
    """(account, name) of a container; an id is looked up in the directory."""
    manager = command.app.client_manager
    if not parsed.is_cid:
        return manager.account, parsed.container
    account, name = manager.storage.resolve_cid(parsed.container, reqid=command.app.request_id())
    return account, name


class FlushContainer(_OneContainer):
    """Delete all the objects of a container."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--quickly", action="store_true",
            help="Have the container delete everything by itself, versions included",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete them; the count of those that are left is shown meanwhile on a terminal."""
        from oio.cli.common.progress import countdown

        account, container = resolve(self, parsed_args)
        storage = self.app.client_manager.storage

        def left() -> int:
            system = storage.container_get_properties(account, container, reqid=self.app.request_id())["system"]
            return int(int_value(system.get(M2_PROP_OBJECTS), 0))

        with countdown("Flushing", "objects", left):
            storage.container_flush(
                account, container, fast=parsed_args.quickly, reqid=self.app.request_id()
            )


class PurgeContainer(_OneContainer):
    """Delete the versions in excess of each object."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--max-versions", type=int, metavar="N",
            help="Versions to keep (0: one, negative: all) instead of what the container or the namespace says",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete the oldest ones."""
        manager = self.app.client_manager
        container, kwargs = container_kwargs(parsed_args.container, parsed_args.is_cid)
        manager.storage.container_purge(
            manager.account, container, maxvers=parsed_args.max_versions, reqid=self.app.request_id(),
            **kwargs,
        )  # fmt: skip


class RefreshContainer(_OneContainer):
    """Have the account service take the counters of a container again."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Reset what it knows, then have the container tell."""
        account, container = resolve(self, parsed_args)
        self.app.client_manager.storage.container_refresh(
            account, container, reqid=self.app.request_id()
        )


class SetContainer(_OneContainer):
    """Set properties, settings or the status of a container."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_settings(parser)
        parser.add_argument("--clear", action="store_true", help="Remove the former user properties")
        parser.add_argument("--status", metavar="STATUS", help=f"One of {', '.join(STATUSES)}")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Set them in one request."""
        system = system_properties(parsed_args)
        if parsed_args.status is not None:
            status = STATUSES.get(parsed_args.status.lower())
            if status is None:
                raise CommandError(
                    f"Unknown status {parsed_args.status!r}, one of {', '.join(STATUSES)} is expected"
                )
            system["sys.status"] = str(status)
        manager = self.app.client_manager
        container, kwargs = container_kwargs(parsed_args.container, parsed_args.is_cid)
        kwargs["reqid"] = self.app.request_id()
        if parsed_args.clear and not system and not parsed_args.property:
            # A change to nothing is refused; a deletion of everything is not.
            manager.storage.container_del_properties(manager.account, container, [], **kwargs)
            return
        manager.storage.container_set_properties(
            manager.account, container, properties=parsed_args.property or {}, clear=parsed_args.clear,
            system=system, **kwargs,
        )  # fmt: skip


class SnapshotContainer(ListCommand):
    """Copy a container as it is now, without moving data. The copy is frozen."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_container(parser)
        parser.add_argument("--dst-account", metavar="NAME", help="Account of the copy (default: the same)")
        parser.add_argument(
            "--dst-container", metavar="NAME", help="Name of the copy (default: made of the name and the time)"
        )
        parser.add_argument(
            "--chunk-batch-size", type=int, default=100, metavar="N", help="Chunks changed by one request (100)"
        )
        parser.add_argument(
            "--timeout", type=float, default=60.0, metavar="SECONDS", help="Time allowed to each request (60.0)"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Copy it."""
        if parsed_args.chunk_batch_size <= 0:
            raise CommandError(
                f"--chunk-batch-size wants a positive number, not {parsed_args.chunk_batch_size}"
            )
        account, container = resolve(self, parsed_args)
        copy_account = parsed_args.dst_account or account
        copy = parsed_args.dst_container or f"{container}-{time.time():016.5f}"
        self.app.client_manager.storage.container_snapshot(
            account, container, copy_account, copy, batch_size=parsed_args.chunk_batch_size,
            timeout=parsed_args.timeout, reqid=self.app.request_id(),
        )  # fmt: skip
        return ("Account", "Container", "Status"), [(copy_account, copy, "OK")]


class TouchContainer(PlainCommand):
    """Have containers tell their counters again."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_container(parser, several=True)
        parser.add_argument(
            "--recompute", action="store_true",
            help="Have them count their objects, damaged objects and missing chunks before",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Touch them in turn; the first error stops the command."""
        manager = self.app.client_manager

        def touch(name: str) -> None:
            container, kwargs = container_kwargs(name, parsed_args.is_cid)
            manager.storage.container_touch(
                manager.account, container, recompute=parsed_args.recompute, reqid=self.app.request_id(),
                **kwargs,
            )  # fmt: skip

        for_each(self.app, parsed_args.containers, touch)


class UnsetContainer(_OneContainer):
    """Remove properties or settings of a container."""

    _settings = (
        ("bucket_name", M2_PROP_BUCKET_NAME),
        ("storage_policy", M2_PROP_STORAGE_POLICY),
        ("max_versions", M2_PROP_VERSIONING_POLICY),
        ("quota", M2_PROP_QUOTA),
        ("delete_exceeding_versions", M2_PROP_DEL_EXC_VERSIONS),
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--property", dest="keys", metavar="KEY", action="append", default=[],
            help="Property to remove (repeatable; no option at all: all of them)",
        )  # fmt: skip
        parser.add_argument("--bucket-name", action="store_true", help="Take it out of its bucket")
        parser.add_argument(
            "--storage-policy", "--stgpol", dest="storage_policy", action="store_true",
            help="Use the storage policy of the namespace",
        )
        parser.add_argument(
            "--max-versions", "--versioning", dest="max_versions", action="store_true",
            help="Keep as many versions as the namespace says",
        )
        parser.add_argument("--quota", action="store_true", help="Use the quota of the namespace")
        parser.add_argument(
            "--delete-exceeding-versions", action="store_true",
            help="Do as the namespace says with versions in excess",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Remove settings, then properties; without option, every property."""
        manager = self.app.client_manager
        container, kwargs = container_kwargs(parsed_args.container, parsed_args.is_cid)
        system = {key: "" for option, key in self._settings if getattr(parsed_args, option)}
        if system:
            manager.storage.container_set_properties(
                manager.account, container, system=system, reqid=self.app.request_id(), **kwargs
            )
        if parsed_args.keys or not system:
            manager.storage.container_del_properties(
                manager.account, container, parsed_args.keys, reqid=self.app.request_id(), **kwargs
            )
