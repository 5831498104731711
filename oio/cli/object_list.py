# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio object list``: the objects of a container, or of all the computed containers of an account."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from oio.cli.common.autocontainer import add_object_container, check_object_container
from oio.cli.common.base import ListCommand, format_properties, positive_number
from oio.cli.common.listing import PAGE_MAX, account_containers, add_paging, add_range, range_of
from oio.cli.common.objects import ObjectCommand
from oio.common.exceptions import OioException
from oio.common.timestamp import Timestamp


class ListObject(ObjectCommand, ListCommand):
    """List the objects of a container."""

    rows_name = "objects"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object_container(parser)
        add_range(parser)
        parser.add_argument(
            "--concurrency", type=int, default=100, metavar="N", help="Containers listed at once (--auto)"
        )
        parser.add_argument("--attempts", type=int, default=0, metavar="N", help="Tries when busy")
        add_paging(parser, "Objects", type=int, default=1000)
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
            positive_number(f"--{name}", getattr(parsed_args, name))
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
        kwargs: dict[str, Any] = dict(range_of(parsed))
        if parsed.local:
            kwargs["local"] = True
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
        left = parsed.limit
        while left > 0:
            page = self._page(container, limit=min(left, PAGE_MAX), **kwargs)
            yield from _items(page)
            if not page["truncated"]:
                return
            left -= len(page["objects"]) + len(page["prefixes"])
            kwargs.update(_next_page(page))
        self.app.log.info("Next marker: %s", kwargs["marker"])

    def _all_objects(self, container: str | None, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kwargs = dict(kwargs)
        while True:
            page = self._page(container, **kwargs)
            yield from _items(page)
            if not page["truncated"]:
                return
            kwargs.update(_next_page(page))

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
        builder = self.container_rule(parsed)
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
        if first is not None:
            yield first
        found = account_containers(self.app, marker=first)
        yield from (entry[0] for entry in found if builder.verify(entry[0]))

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


def _next_page(page: dict[str, Any]) -> dict[str, Any]:
    """Keywords of the page after this one, which may have ended amid the versions of a name."""
    return {"marker": page["next_marker"], "version_marker": page.get("next_version_marker")}


def _items(page: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from page["objects"]
    yield from ({"name": prefix, "is_prefix": True} for prefix in page["prefixes"])
