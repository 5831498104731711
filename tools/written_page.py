# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Pages whose end is written from the code; what stands above a marker is written by hand and left alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


class WrittenPage:
    """A page of ``docs/``.

    :param name: of its file.
    :param source: what to change instead of the part below the marker.
    :param make: gives this part.
    """

    def __init__(self, name: str, tool: str, source: str, make: Callable[[], str]) -> None:
        self.path = DOCS / name
        self.marker = f"<!-- Below: written by tools/{tool}.py. Change {source}, not this. -->\n"
        self._make = make

    def read(self) -> str:
        """The page as it is."""
        return self.path.read_text(encoding="utf-8")

    def updated(self, page: str) -> str:
        """The page as it should be."""
        return page.partition(self.marker)[0].rstrip("\n") + "\n\n" + self.marker + "\n" + self._make()

    def main(self, description: str | None) -> int:
        """Write the page, or with ``--check`` nothing; returns the exit code, 1 when it was out of date then."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--check", action="store_true", help="only tell whether the page is up to date")
        options = parser.parse_args()
        before = self.read()
        after = self.updated(before)
        if options.check:
            return int(before != after)
        self.path.write_text(after, encoding="utf-8")
        return 0
