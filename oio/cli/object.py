# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio object``: upload, list, read and delete objects."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from oio.cli.common.autocontainer import add_object, add_object_container, check_object_container
from oio.cli.common.base import (
    ListCommand,
    PlainCommand,
    ShowCommand,
    ValueFormatAction,
    add_properties,
    format_properties,
    sorted_columns,
)
from oio.cli.common.progress import Progress
from oio.common.exceptions import CommandError, OioException
from oio.common.timestamp import Timestamp

TAGGING_KEY = "x-object-sysmeta-swift3-tagging"


class _ObjectCommand:
    """What the commands on objects share: how the container is found."""

    app: Any

    def resolve_container(self, parsed: argparse.Namespace, name: str) -> tuple[str | None, dict[str, Any]]:
        """(container name or None, keyword arguments) for an object name."""
        if parsed.auto:
            return self.app.client_manager.flat_builder(parsed.flat_bits)(name), {}
        if parsed.is_cid:
            return None, {"cid": parsed.container}
        return parsed.container, {}

    def resolve_name(self, parsed: argparse.Namespace, name: str) -> str:
        """Name of the container of an object; a container id is looked up in its properties."""
        container, kwargs = self.resolve_container(parsed, name)
        if container is not None:
            return container
        manager = self.app.client_manager
        data = manager.storage.container_get_properties(
            manager.account, None, reqid=self.app.request_id(), **kwargs
        )
        return str(data["system"]["sys.user.name"])


class CreateObject(_ObjectCommand, ListCommand):
    """Upload files."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object_container(parser)
        parser.add_argument("filenames", metavar="<filename>", nargs="+", help="Files to upload")
        parser.add_argument(
            "--no-autocreate", dest="autocreate", action="store_false",
            help="Fail when the container does not exist",
        )
        parser.add_argument(
            "--name", dest="names", metavar="NAME", action="append", default=[],
            help="Name of the object, in the order of the files (default: name of the file)",
        )
        parser.add_argument("--policy", metavar="NAME", help="Storage policy")
        add_properties(parser, "Property of the objects (repeatable)")
        parser.add_argument("--key-file", metavar="FILE", help="Keys of the storage back-end")
        parser.add_argument("--mime-type", metavar="TYPE", help="Type of the content")
        parser.add_argument("--tls", action="store_true", help="Send chunks through TLS")
        parser.add_argument("--perfdata-column", action="store_true", help="Show performance data")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Upload each file in turn; a file that fails is a row, and the command fails at the end."""
        check_object_container(parsed_args)
        if "" in parsed_args.names:
            raise CommandError("--name wants a name, not an empty text")
        manager = self.app.client_manager
        # What is missing is an error of the command, not of each file.
        self._account, self._storage = manager.account, manager.storage
        columns: tuple[str, ...] = ("Name", "Size", "Hash", "Status")
        if parsed_args.perfdata_column:
            columns += ("Perfdata",)
        rows: Iterable[tuple[Any, ...]] = self._upload_all(parsed_args)
        if parsed_args.perfdata_column:
            perfdata = self.app.perfdata if self.app.options.dump_perfdata else None
            rows = ((*row, json.dumps(perfdata, sort_keys=True, indent=4)) for row in rows)
        return columns, list(rows)

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Print the table before failing."""
        status = super().run(parsed_args)
        if not self.success:
            raise CommandError("Too many errors occured")
        return status

    def _upload_all(self, parsed: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
        names = list(parsed.names)
        for path in parsed.filenames:
            name = names.pop(0) if names else os.path.basename(path)
            try:
                size_bytes, checksum = self._upload(parsed, path, name)
                yield name, size_bytes, checksum.upper(), "Ok"
            except KeyboardInterrupt:
                self.success = False
                yield name, 0, None, "Interrupted"
                return
            except (OioException, CommandError, OSError) as exc:
                self.success = False
                self.app.log.error("%s", self.app.describe_error(exc))
                yield path if isinstance(exc, OSError) else name, 0, None, "Failed"

    def _upload(self, parsed: argparse.Namespace, path: str, name: str) -> tuple[int, str]:
        container = self.resolve_name(parsed, name)
        kwargs: dict[str, Any] = {"tls": True} if parsed.tls else {}
        if parsed.key_file:
            kwargs["key_file"] = os.path.abspath(parsed.key_file)
        with open(path, "rb") as source, Progress(name, os.fstat(source.fileno()).st_size) as progress:
            _chunks, size_bytes, checksum = self._storage.object_create(
                self._account,
                container,
                file_or_path=progress.reader(source),
                obj_name=name,
                policy=parsed.policy,
                properties=parsed.property,
                mime_type=parsed.mime_type,
                autocreate=parsed.autocreate,
                reqid=self.app.request_id(),
                **kwargs,
            )
        return size_bytes, checksum


class DeleteObject(_ObjectCommand, ListCommand):
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
        check_object_container(parsed_args)
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


class ShowObject(_ObjectCommand, ShowCommand):
    """Show an object and its properties."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Read the metadata of one version."""
        check_object_container(parsed_args)
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


class ListObject(_ObjectCommand, ListCommand):
    """List the objects of a container."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object_container(parser)
        parser.add_argument("--prefix", metavar="PREFIX", help="Only names that start so")
        parser.add_argument("--delimiter", metavar="CHARACTER", help="Group names at this character")
        parser.add_argument("--marker", metavar="MARKER", help="Only names after this one")
        parser.add_argument("--end-marker", metavar="MARKER", help="Only names before this one")
        parser.add_argument(
            "--concurrency", type=int, default=100, metavar="N", help="Containers listed at once (--auto)"
        )
        parser.add_argument("--attempts", type=int, default=0, metavar="N", help="Tries when busy")
        parser.add_argument("--limit", type=int, default=1000, metavar="N", help="Objects at most")
        parser.add_argument(
            "--no-paging", "--full", dest="full_listing", default=False, action=ValueFormatAction,
            help="List everything, page after page (output format: value)",
        )
        parser.add_argument(
            "--properties", "--long", dest="long_listing", action="store_true",
            help="Show all columns and the properties",
        )
        parser.add_argument(
            "--versions", "--all-versions", dest="versions", action="store_true",
            help="List every version",
        )
        parser.add_argument(
            "--local", action="store_true", help="Read a local copy of the base, without election"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """List a page, or everything; with ``--auto``, all the computed containers."""
        check_object_container(parsed_args)
        for name in ("limit", "concurrency"):
            if getattr(parsed_args, name) <= 0:
                raise CommandError(f"--{name} wants a positive number, not {getattr(parsed_args, name)}")
        if parsed_args.long_listing:
            columns: tuple[str, ...] = (
                "Name", "Size", "Hash", "Version", "Deleted", "Content-Type", "Last-Modified",
                "Policy", "Properties",
            )
        else:
            columns = ("Name", "Size", "Hash", "Version")
        objects = self._auto_objects(parsed_args) if parsed_args.auto else self._objects(parsed_args)
        return columns, self._rows(parsed_args, objects)

    def _listing_kwargs(self, parsed: argparse.Namespace) -> dict[str, Any]:
        kwargs: dict[str, Any] = {
            key: value
            for key in ("prefix", "delimiter", "marker", "end_marker", "local")
            if (value := getattr(parsed, key))
        }
        if parsed.attempts:
            kwargs["request_attempts"] = parsed.attempts
        kwargs["properties"] = parsed.long_listing
        kwargs["versions"] = parsed.versions
        return kwargs

    def _objects(self, parsed: argparse.Namespace) -> Iterator[dict[str, Any]]:
        container, kwargs = self.resolve_container(parsed, "")
        kwargs.update(self._listing_kwargs(parsed))
        if parsed.full_listing:
            yield from self._all_objects(container, kwargs)
            return
        page = self._page(container, limit=parsed.limit, **kwargs)
        yield from _items(page)
        if page["truncated"]:
            self.app.log.info("Next marker: %s", page.get("next_marker"))

    def _all_objects(self, container: str | None, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kwargs = dict(kwargs)
        while True:
            page = self._page(container, **kwargs)
            yield from _items(page)
            if not page["truncated"]:
                return
            kwargs["marker"] = page["next_marker"]

    def _page(self, container: str | None, **kwargs: Any) -> dict[str, Any]:
        manager = self.app.client_manager
        page: dict[str, Any] = manager.storage.object_list(
            manager.account, container, reqid=self.app.request_id(), **kwargs
        )
        return page

    def _auto_objects(self, parsed: argparse.Namespace) -> Iterator[dict[str, Any]]:
        """Objects of all the computed containers, in the order of the containers."""
        from itertools import islice

        from oio.cli.auto_listing import list_containers

        kwargs = self._listing_kwargs(parsed)
        marker = kwargs.pop("marker", None)
        builder = self.app.client_manager.flat_builder(parsed.flat_bits)
        first = builder(marker) if marker else None

        def list_one(container: str) -> Iterator[dict[str, Any]]:
            rest = {"marker": marker} if container == first else {}
            return self._all_objects(container, {**kwargs, **rest})

        def on_failure(container: str, exc: OioException) -> None:
            self.app.log.warning("Listing may be incomplete, container %s failed: %s", container, exc)
            self.success = False

        found = list_containers(
            self._auto_containers(builder, first), list_one, on_failure, parsed.concurrency
        )
        return found if parsed.full_listing else islice(found, parsed.limit)

    def _auto_containers(self, builder: Any, first: str | None) -> Iterator[str]:
        """Names of the computed containers of the account, from one of them on."""
        manager = self.app.client_manager
        marker = first
        if first is not None:
            yield first
        while True:
            page = manager.storage.container_list(
                manager.account, marker=marker, reqid=self.app.request_id()
            )
            if not page:
                return
            yield from (entry[0] for entry in page if builder.verify(entry[0]))
            marker = page[-1][0]

    def _rows(
        self, parsed: argparse.Namespace, items: Iterable[dict[str, Any]]
    ) -> Iterator[tuple[Any, ...]]:
        for item in items:
            try:
                yield self._row(parsed, item)
            except KeyError as exc:
                self.app.log.warning("Entry %r skipped, it has no field %s", item.get("name"), exc)
                self.success = False

    @staticmethod
    def _row(parsed: argparse.Namespace, item: dict[str, Any]) -> tuple[Any, ...]:
        if item.get("is_prefix"):
            return (item["name"], 0, *[None] * (7 if parsed.long_listing else 2))
        size = "deleted" if item["deleted"] else item["size"]
        row = (item["name"], size, item["hash"], item["version"])
        if not parsed.long_listing:
            return row
        return (
            *row,
            item["deleted"],
            item["mime_type"],
            Timestamp(item["mtime"]).isoformat,
            item["policy"],
            format_properties(item.get("properties") or {}, parsed.formatter),
        )


def _items(page: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from page["objects"]
    yield from ({"name": prefix, "is_prefix": True} for prefix in page["prefixes"])


class SaveObject(_ObjectCommand, PlainCommand):
    """Download an object to a file."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        parser.add_argument("--file", metavar="FILE", help="Where to write (default: name of the object)")
        parser.add_argument("--key-file", metavar="FILE", help="Keys of the storage back-end")
        parser.add_argument("--tls", action="store_true", help="Read chunks through TLS")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Write beside the target, then rename: an interrupted download leaves nothing half-written."""
        check_object_container(parsed_args)
        manager = self.app.client_manager
        container, kwargs = self.resolve_container(parsed_args, parsed_args.object)
        if parsed_args.tls:
            kwargs["tls"] = True
        metadata, stream = manager.storage.object_fetch(
            manager.account, container, parsed_args.object, version=parsed_args.object_version,
            reqid=self.app.request_id(), **kwargs,
        )
        target = parsed_args.file or parsed_args.object
        if os.path.exists(target) and not os.path.isfile(target):
            # A pipe or a device cannot be replaced: write to it as it is.
            with open(target, "wb") as out, Progress(target, int(metadata["length"])) as progress:
                out.writelines(progress.blocks(stream))
            return
        directory = os.path.dirname(target)
        if directory:
            os.makedirs(directory, exist_ok=True)
        partial = f"{target}.{os.getpid()}.part"
        try:
            with open(partial, "xb") as out, Progress(target, int(metadata["length"])) as progress:
                for block in progress.blocks(stream):
                    out.write(block)
            os.replace(partial, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(partial)
            raise


class LocateObject(_ObjectCommand, ListCommand):
    """Show where the chunks of an object lie."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        parser.add_argument("--chunk-info", action="store_true", help="Ask the chunk servers too")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """List the chunks by position."""
        check_object_container(parsed_args)
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


class SetObject(_ObjectCommand, PlainCommand):
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
        check_object_container(parsed_args)
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


class UnsetObject(_ObjectCommand, PlainCommand):
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
        check_object_container(parsed_args)
        manager = self.app.client_manager
        container, kwargs = self.resolve_container(parsed_args, parsed_args.object)
        keys = [*parsed_args.keys, *([TAGGING_KEY] if parsed_args.tagging else [])]
        manager.storage.object_del_properties(
            manager.account, container, parsed_args.object, keys,
            version=parsed_args.object_version, reqid=self.app.request_id(), **kwargs,
        )
