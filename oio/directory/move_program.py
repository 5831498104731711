# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-meta2-mover NS BASE SRC [DST]``: moves the bases of a container from a meta2 to another one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from oio.common.exceptions import OioException
from oio.common.service import command_line
from oio.directory.meta2 import Meta2Database


def main(argv: Sequence[str] | None = None) -> int:
    """Print the bases that were moved; 1 when one was not."""
    parser = command_line("oio-meta2-mover", "Move the bases of a container. Deprecated.")
    parser.add_argument("namespace", metavar="NS", help="namespace")
    parser.add_argument("base", metavar="BASE", help="container id, maybe with a sequence number: CID.1")
    parser.add_argument("src", metavar="SRC", help="service that holds the base")
    parser.add_argument("dst", metavar="DST", nargs="?", help="service that shall hold it (default: chosen)")
    words = parser.parse_args(argv)
    print(f"{parser.prog} is deprecated, it stays for those who call it", file=sys.stderr)
    failed = 0
    try:
        database = Meta2Database({"namespace": words.namespace})
        for result in database.move(words.base, words.src, words.dst):
            if result["err"] is None:
                print(f"{result['base']} {result['src']} {result['dst']}", flush=True)
            else:
                failed += 1
                print(f"ERROR: {result['base']}: {result['err']}", file=sys.stderr)
    except OioException as exc:
        print(f"ERROR: {exc}", file=sys.stderr)
        return 1
    return 1 if failed else 0
