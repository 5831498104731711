# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio object``: show, locate, change and delete objects."""

from __future__ import annotations

import argparse
import json
from typing import Any

from oio.cli.common.autocontainer import add_object, add_object_container
from oio.cli.common.base import ListCommand, PlainCommand, ShowCommand, add_properties, sorted_columns
from oio.cli.common.objects import ObjectCommand
from oio.common.exceptions import CommandError

TAGGING_KEY = "x-object-sysmeta-swift3-tagging"


class ShowObject(ObjectCommand, ShowCommand):
    """Show an object and its properties."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Read the metadata of one version."""
        self.check_names(parsed_args)
        manager = self.app.client_manager
        container, kwargs = self.resolve_container(parsed_args, parsed_args.object)
        data = manager.storage.object_get_properties(
            manager.account, container, parsed_args.object, version=parsed_args.object_version,
            reqid=self.app.request_id(), **kwargs,
        )
        info = {
            "account": manager.account,
            "container": container,
            "object": parsed_args.object,
            "id": data["id"],
            "version": data["version"],
            "mime-type": data["mime_type"],
            "size": data["length"],
            "hash": data["hash"],
            "ctime": data["ctime"],
            "mtime": data["mtime"],
            "policy": data.get("policy") or "n/a",
        }
        info.update({f"meta.{key}": value for key, value in data["properties"].items()})
        return sorted_columns(info)


class LocateObject(ObjectCommand, ListCommand):
    """Show where the chunks of an object lie."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        parser.add_argument("--chunk-info", action="store_true", help="Ask the chunk servers too")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """List the chunks by position."""
        self.check_names(parsed_args)
        manager = self.app.client_manager
        container, kwargs = self.resolve_container(parsed_args, parsed_args.object)
        _metadata, chunks = manager.storage.object_locate(
            manager.account, container, parsed_args.object, version=parsed_args.object_version,
            chunk_info=parsed_args.chunk_info, reqid=self.app.request_id(), **kwargs,
        )
        columns: tuple[str, ...] = ("Pos", "Id", "Metachunk size", "Metachunk hash")
        if not parsed_args.chunk_info:
            ordered = sorted(chunks, key=lambda chunk: [int(part) for part in chunk["pos"].split(".")])
            return columns, [(c["pos"], c["url"], c["size"], c["hash"]) for c in ordered]
        rows = (
            (
                c["pos"], c["url"], c["size"], c["hash"],
                c.get("chunk_size") or "n/a", c.get("chunk_hash") or "n/a",
            )
            for c in chunks
        )
        return (*columns, "Chunk size", "Chunk hash"), rows


class DeleteObject(ObjectCommand, ListCommand):
    """Delete objects."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object_container(parser)
        parser.add_argument("objects", metavar="<object>", nargs="+", help="Objects to delete")
        parser.add_argument("--object-version", type=int, metavar="VERSION", help="Version to delete")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """One object: an error is an error. Several: one request per container, a row each."""
        self.check_names(parsed_args)
        names = parsed_args.objects
        if len(names) > 1:
            if parsed_args.object_version is not None:
                raise CommandError("Cannot specify a version for several objects")
            return ("Name", "Deleted"), self._delete_many(parsed_args)
        container, kwargs = self.resolve_container(parsed_args, names[0])
        manager = self.app.client_manager
        deleted = manager.storage.object_delete(
            manager.account, container, names[0], version=parsed_args.object_version,
            reqid=self.app.request_id(), **kwargs,
        )
        return ("Name", "Deleted"), [(names[0], deleted)]

    def _delete_many(self, parsed: argparse.Namespace) -> list[tuple[str, bool]]:
        manager = self.app.client_manager
        by_container: dict[str, list[str]] = {}
        for name in parsed.objects:
            key = self.resolve_container(parsed, name)[0] if parsed.auto else ""
            by_container.setdefault(key or "", []).append(name)
        outcome: dict[str, bool] = {}
        for container, names in by_container.items():
            target = container or self.resolve_name(parsed, names[0])
            outcome.update(
                manager.storage.object_delete_many(
                    manager.account, target, names, reqid=self.app.request_id()
                )
            )
        return [(name, outcome[name]) for name in parsed.objects]


class SetObject(ObjectCommand, PlainCommand):
    """Set properties of an object."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        add_properties(parser, "Property to set (repeatable)")
        parser.add_argument("--tagging", metavar="JSON", help="Tags, as a JSON object")
        parser.add_argument("--clear", action="store_true", help="Remove the former properties")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Set them in one request."""
        self.check_names(parsed_args)
        manager = self.app.client_manager
        container, kwargs = self.resolve_container(parsed_args, parsed_args.object)
        properties = dict(parsed_args.property or {})
        if parsed_args.tagging:
            properties[TAGGING_KEY] = _tagging_xml(parsed_args.tagging)
        manager.storage.object_set_properties(
            manager.account, container, parsed_args.object, properties,
            version=parsed_args.object_version, clear=parsed_args.clear,
            reqid=self.app.request_id(), **kwargs,
        )


def _tagging_xml(text: str) -> str:
    from xml.sax.saxutils import escape

    try:
        tags = json.loads(text)
    except ValueError:
        tags = None
    if not isinstance(tags, dict):
        raise CommandError("--tags: Not a JSON object")
    items = "".join(
        f"<Tag><Key>{escape(str(key))}</Key><Value>{escape(str(value))}</Value></Tag>"
        for key, value in tags.items()
    )
    return f"<Tagging><TagSet>{items}</TagSet></Tagging>"


class UnsetObject(ObjectCommand, PlainCommand):
    """Remove properties of an object."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        parser.add_argument(
            "--property", dest="keys", metavar="KEY", action="append", default=[],
            help="Property to remove (repeatable; none given: all of them)",
        )
        parser.add_argument("--tagging", action="store_true", help="Remove the tags")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Remove them in one request."""
        self.check_names(parsed_args)
        manager = self.app.client_manager
        container, kwargs = self.resolve_container(parsed_args, parsed_args.object)
        keys = [*parsed_args.keys, *([TAGGING_KEY] if parsed_args.tagging else [])]
        manager.storage.object_del_properties(
            manager.account, container, parsed_args.object, keys,
            version=parsed_args.object_version, reqid=self.app.request_id(), **kwargs,
        )


class DrainObject(ObjectCommand, PlainCommand):
    """Delete the data of objects, and keep the rest."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object_container(parser)
        parser.add_argument("objects", metavar="<object>", nargs="+", help="Objects to drain")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Drain them in turn; the first error stops the command."""
        self.check_names(parsed_args)
        # A container that is named is taken, with --auto too.
        parsed_args.auto = parsed_args.auto and not parsed_args.container
        manager = self.app.client_manager
        for name in parsed_args.objects:
            container, kwargs = self.resolve_container(parsed_args, name)
            manager.storage.object_drain(
                manager.account, container, name, reqid=self.app.request_id(), **kwargs
            )


class TouchObject(ObjectCommand, PlainCommand):
    """Have the event of the creation of objects sent again."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object_container(parser)
        parser.add_argument("objects", metavar="<object>", nargs="+", help="Objects to touch")
        parser.add_argument("--object-version", type=int, metavar="VERSION", help="Version of the object")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Touch them in turn; the first error stops the command."""
        self.check_names(parsed_args)
        if parsed_args.object_version is not None and len(parsed_args.objects) > 1:
            raise CommandError("Cannot specify a version for several objects")
        manager = self.app.client_manager
        for name in parsed_args.objects:
            container, kwargs = self.resolve_container(parsed_args, name)
            manager.storage.object_touch(
                manager.account, container, name, version=parsed_args.object_version,
                reqid=self.app.request_id(), **kwargs,
            )  # fmt: skip


class PurgeObject(ObjectCommand, PlainCommand):
    """Delete the versions in excess of an object."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        parser.add_argument(
            "--max-versions", type=int, metavar="N",
            help="Versions to keep instead of what the container or the namespace says",
        )  # fmt: skip
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete the oldest ones."""
        self.check_names(parsed_args)
        manager = self.app.client_manager
        container, kwargs = self.resolve_container(parsed_args, parsed_args.object)
        manager.storage.container.content_purge(
            manager.account, container, parsed_args.object, maxvers=parsed_args.max_versions,
            reqid=self.app.request_id(), **kwargs,
        )  # fmt: skip


class LinkObject(ObjectCommand, PlainCommand):
    """Make an object of the data of another one, without moving them."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        parser.add_argument("dest_object", metavar="<dest_object>", help="Name of the new object")
        parser.add_argument(
            "--dest-account", "--link-account", dest="dest_account", metavar="NAME",
            help="Account of the new object (default: the same)",
        )
        parser.add_argument(
            "--dest-container", "--link-container", dest="dest_container", metavar="NAME",
            help="Container of the new object (default: the same, or computed with --auto)",
        )
        parser.add_argument("--content-id", metavar="ID", help="Content to link, instead of the latest")
        parser.add_argument(
            "--dest-content-id", "--link-content-id", dest="dest_content_id", metavar="ID",
            help="Id to give to the new content",
        )
        add_properties(parser, "Property of the new object, instead of the same ones (repeatable)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Link it."""
        self.check_names(parsed_args, parsed_args.dest_object)
        manager = self.app.client_manager
        if parsed_args.is_cid and not parsed_args.auto:
            # The new chunks tell the full path of their object: it has to be made of names.
            account, container = manager.storage.resolve_cid(
                parsed_args.container, reqid=self.app.request_id()
            )
            dest_account, dest_container = account, container
        else:
            account = manager.account
            container = self.resolve_name(parsed_args, parsed_args.object)
            dest_account = parsed_args.dest_account or account
            dest_container = parsed_args.dest_container or self.resolve_name(
                parsed_args, parsed_args.dest_object
            )
        kwargs: dict[str, Any] = {}
        if parsed_args.property is not None:
            kwargs = {"properties_directive": "REPLACE", "properties": parsed_args.property}
        manager.storage.object_link(
            account, container, parsed_args.object,
            dest_account, dest_container, parsed_args.dest_object,
            target_version=parsed_args.object_version, target_content_id=parsed_args.content_id,
            link_content_id=parsed_args.dest_content_id, reqid=self.app.request_id(), **kwargs,
        )  # fmt: skip
