# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio container``: create, show, list, locate and delete containers."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from oio.cli.common.base import (
    ListCommand,
    PlainCommand,
    ShowCommand,
    add_container,
    add_properties,
    boolean_argument,
    container_kwargs,
    for_each,
    positive_number,
    single_line,
    sorted_columns,
)
from oio.cli.common.listing import account_containers, add_paging, add_range, range_of
from oio.common.constants import (
    M2_PROP_BUCKET_NAME,
    M2_PROP_CTIME,
    M2_PROP_DAMAGED_OBJECTS,
    M2_PROP_DEL_EXC_VERSIONS,
    M2_PROP_MISSING_CHUNKS,
    M2_PROP_OBJECTS,
    M2_PROP_QUOTA,
    M2_PROP_STORAGE_POLICY,
    M2_PROP_USAGE,
    M2_PROP_VERSIONING_POLICY,
    OIO_DB_STATUS_NAME,
)
from oio.common.easy_value import convert_size, float_value, int_value
from oio.common.timestamp import Timestamp
from oio.common.utils import cid_from_name

NAMESPACE_DEFAULT = "Namespace default"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add user properties, and the options that become system properties."""
    add_properties(parser, "Property to set (repeatable)")
    parser.add_argument("--quota", type=int, metavar="BYTES", help="Largest size of the container")
    parser.add_argument(
        "--storage-policy", "--stgpol", dest="storage_policy", metavar="NAME", help="Storage policy"
    )
    parser.add_argument(
        "--max-versions", "--versioning", dest="max_versions", type=int, metavar="N",
        help="Versions per object: negative unlimited, 0 disabled, 1 suspended, else at most N",
    )
    parser.add_argument(
        "--delete-exceeding-versions", type=boolean_argument, metavar="BOOLEAN",
        help="Delete the versions in excess at each upload",
    )
    parser.add_argument("--bucket-name", metavar="NAME", help="Bucket that the container belongs to")


def system_properties(parsed: argparse.Namespace) -> dict[str, str]:
    """System properties of the options that were given, as texts."""
    options = {
        M2_PROP_BUCKET_NAME: parsed.bucket_name,
        M2_PROP_QUOTA: parsed.quota,
        M2_PROP_STORAGE_POLICY: parsed.storage_policy,
        M2_PROP_VERSIONING_POLICY: parsed.max_versions,
    }
    system = {key: str(value) for key, value in options.items() if value is not None}
    if parsed.delete_exceeding_versions is not None:
        system[M2_PROP_DEL_EXC_VERSIONS] = str(int(parsed.delete_exceeding_versions))
    return system


class CreateContainer(ListCommand):
    """Create containers."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_settings(parser)
        parser.add_argument("containers", metavar="<container>", nargs="+", help="Names of containers")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Create them, in one request when there are several."""
        manager = self.app.client_manager
        kwargs: dict[str, Any] = {
            "properties": parsed_args.property,
            "system": system_properties(parsed_args),
            "reqid": self.app.request_id(),
        }
        names = parsed_args.containers
        if len(names) > 1:
            results = manager.storage.container_create_many(
                manager.account, names, on_failure=self._on_failure, **kwargs
            )
        else:
            created = manager.storage.container_create(manager.account, names[0], **kwargs)
            results = [(names[0], created)]
        return ("Name", "Created"), iter(results)

    def _on_failure(self, name: str, cause: str) -> None:
        self.app.log.error("Failed to create container %s: %s (reqid=%s)", name, cause, self.app.last_request_id)
        self.success = False


class DeleteContainer(PlainCommand):
    """Delete empty containers."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_container(parser, several=True)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete them in turn; the first error stops the command."""
        manager = self.app.client_manager

        def delete(name: str) -> None:
            container, kwargs = container_kwargs(name, parsed_args.is_cid)
            manager.storage.container_delete(
                manager.account, container, reqid=self.app.request_id(), **kwargs
            )

        for_each(self.app, parsed_args.containers, delete)


class ShowContainer(ShowCommand):
    """Show the counters, settings and properties of a container."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_container(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Read everything in administration mode, to have the statistics of the base too."""
        manager = self.app.client_manager
        container, kwargs = container_kwargs(parsed_args.container, parsed_args.is_cid)
        data = manager.storage.container_get_properties(
            manager.account, container, admin_mode=True, reqid=self.app.request_id(), **kwargs
        )
        return sorted_columns(describe(data, human=parsed_args.formatter == "table"))


def describe(data: dict[str, Any], human: bool) -> dict[str, Any]:
    """Keys and values of ``container show`` from the properties of a container.

    :param human: write sizes for people, as tables do.
    """
    system = data["system"]
    ctime_s = float_value(system.get(M2_PROP_CTIME), 0) / 1e6
    usage_bytes = int_value(system.get(M2_PROP_USAGE), 0)
    objects = int_value(system.get(M2_PROP_OBJECTS), 0)
    pages = int_value(system.get("stats.page_count"), 0)
    free_pages = int_value(system.get("stats.freelist_count"), 0)
    page_size = int_value(system.get("stats.page_size"), 0)
    wasted = 100.0 * free_pages / pages if pages else 0.0
    info: dict[str, Any] = {
        "account": system["sys.account"],
        "base_name": system["sys.name"],
        "bytes_usage": convert_size(usage_bytes, unit="B") if human else usage_bytes,
        "container": system["sys.user.name"],
        "ctime": int(ctime_s) if human else ctime_s,
        "damaged_objects": int_value(system.get(M2_PROP_DAMAGED_OBJECTS), 0),
        "max_versions": system.get(M2_PROP_VERSIONING_POLICY, NAMESPACE_DEFAULT),
        "missing_chunks": int_value(system.get(M2_PROP_MISSING_CHUNKS), 0),
        "objects": convert_size(objects) if human else objects,
        "quota": system.get(M2_PROP_QUOTA, NAMESPACE_DEFAULT),
        "stats.freelist_count": free_pages,
        "stats.page_count": pages,
        "stats.page_size": page_size,
        "stats.space_wasted": f"{wasted:5.2f}% (est. {convert_size(free_pages * page_size)})",
        "status": OIO_DB_STATUS_NAME.get(system.get("sys.status", "0"), "Unknown"),
        "storage_policy": system.get(M2_PROP_STORAGE_POLICY, NAMESPACE_DEFAULT),
    }
    if M2_PROP_BUCKET_NAME in system:
        info["bucket"] = system[M2_PROP_BUCKET_NAME]
    if M2_PROP_DEL_EXC_VERSIONS in system:
        info["delete_exceeding_versions"] = system[M2_PROP_DEL_EXC_VERSIONS] != "0"
    info.update({f"meta.{key}": value for key, value in data["properties"].items()})
    return info


class LocateContainer(ShowCommand):
    """Show the services of a container."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_container(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Compare what the directory knows with what the base recorded."""
        manager = self.app.client_manager
        container, kwargs = container_kwargs(parsed_args.container, parsed_args.is_cid)
        system = manager.storage.container_get_properties(
            manager.account, container, reqid=self.app.request_id(), **kwargs
        )["system"]
        account, name = system["sys.account"], system["sys.user.name"]
        found = manager.directory.list(account, name, reqid=self.app.request_id())
        hosts: dict[str, list[str]] = {}
        for service in [*found["dir"], *found["srv"]]:
            hosts.setdefault(service["type"], []).append(service["host"])
        peers = system.get("sys.peers")
        info = {
            "account": account,
            "base_name": system["sys.name"],
            "meta0": single_line(hosts.get("meta0", ())),
            "meta1": single_line(hosts.get("meta1", ())),
            "meta2": single_line(hosts.get("meta2", ())),
            # A base without copies records no peers.
            "meta2.sys.peers": single_line(peers.split(",") if peers else hosts.get("meta2", ())),
            "name": name,
            "status": OIO_DB_STATUS_NAME.get(system.get("sys.status", "0"), "Unknown"),
        }
        return sorted_columns(info)


class ListContainer(ListCommand):
    """List the containers of the account."""

    rows_name = "containers"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_range(parser)
        add_paging(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Ask the account service."""
        limit = positive_number("--limit", parsed_args.limit)
        found = account_containers(
            self.app, full=parsed_args.full_listing, limit=limit, **range_of(parsed_args)
        )
        rows = self._rows(found, human=parsed_args.formatter == "table")
        return ("Name", "Bytes", "Count", "Mtime", "CID"), rows

    def _rows(self, found: Iterable[list[Any]], human: bool) -> Iterator[tuple[Any, ...]]:
        account = self.app.client_manager.account
        for name, objects, size_bytes, is_prefix, mtime_s in found:
            cid = "" if is_prefix else cid_from_name(account, name)
            mtime = Timestamp(mtime_s).isoformat if human else mtime_s
            size = convert_size(size_bytes, unit="B") if human else size_bytes
            yield name, size, objects, mtime, cid
