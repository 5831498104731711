# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What listings share: the options that choose names and pages, and the list of the containers of an account."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from oio.cli.common.base import ValueFormatAction

# Services give no more entries at once, however many are asked for.
PAGE_MAX = 10000
_RANGE = ("prefix", "delimiter", "marker", "end_marker")


def add_range(parser: argparse.ArgumentParser, *, grouped: bool = True) -> None:
    """Add the options that choose names.

    :param grouped: the listing has a delimiter and an end too.
    """
    parser.add_argument("--prefix", metavar="PREFIX", help="Only names that start so")
    if grouped:
        parser.add_argument("--delimiter", metavar="CHARACTER", help="Group names at this character")
    parser.add_argument("--marker", metavar="MARKER", help="Only names after this one")
    if grouped:
        parser.add_argument("--end-marker", metavar="MARKER", help="Only names before this one")


def range_of(parsed: argparse.Namespace) -> dict[str, str]:
    """Those of the options of :func:`add_range` that were given, as keyword arguments of a listing."""
    return {key: value for key in _RANGE if (value := getattr(parsed, key, None))}


def add_paging(parser: argparse.ArgumentParser, things: str = "Names", **limit: Any) -> None:
    """Add ``--limit`` (``limit``: how it is parsed), and the option that lists all the pages."""
    parser.add_argument("--limit", metavar="N", help=f"{things} at most", **limit)
    parser.add_argument(
        "--no-paging", "--full", dest="full_listing", default=False, action=ValueFormatAction,
        help="List everything, page after page (output format: value)",
    )  # fmt: skip


def account_containers(
    app: Any,
    *,
    full: bool = True,
    limit: int | None = None,
    account: str | None = None,
    request_prefix: str = "CLI-",
    **kwargs: Any,
) -> Iterator[list[Any]]:
    """Yield the containers of an account, by name: ``[name, objects, bytes, is it a prefix?, mtime]``.

    One page at a time is held in memory.

    :param full: all of them, else ``limit``, else those of one page.
    :param limit: with ``full``, the size of pages.
    :param account: that of the command line when None.
    :param kwargs: those of :func:`range_of`.
    """
    manager = app.client_manager
    left = None if full else limit
    while left is None or left > 0:
        page = manager.storage.container_list(
            manager.account if account is None else account,
            limit=limit if left is None else min(left, PAGE_MAX),
            reqid=app.request_id(request_prefix), **kwargs,
        )  # fmt: skip
        yield from page
        if not page or not (full or limit):
            return
        if left is not None:
            left -= len(page)
        kwargs["marker"] = page[-1][0]
