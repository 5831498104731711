# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio cluster top``: what all the services are doing, live on a terminal, or once for a program."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from oio.cli.common.base import PlainCommand
from oio.cli.common.formatters import printable, use_colours
from oio.cli.common.screen import CTRL_C, Screen, is_usable
from oio.cli.common.watch import ClusterWatch, ServiceView, Snapshot

INTERVAL_S = 2.0
INTERVAL_MIN_S, INTERVAL_MAX_S = 0.5, 3600.0
# Between the two looks of a single snapshot: rates are counted meanwhile.
SAMPLE_S = 1.0
# Shares above these are worth a colour.
WARNING_PERCENT, ALARM_PERCENT = 80.0, 95.0
# Age of the oldest event from which the queue is worth a colour.
LATE_S = 60.0
_LEAVE_KEYS = ("q", "Q", CTRL_C)
_RED, _GREEN, _YELLOW, _BOLD, _REVERSE = "31", "32", "33", "1", "7"
_COLUMNS = (
    ("TYPE", False), ("SERVICE", False), ("UP", False), ("SCORE", True), ("REQ/S", True), ("CPU%", True),
    ("DISK%", True), ("I/O%", True), ("NOTE", False), ("LOCATION", False),
)  # fmt: skip
# Left out in narrow terminals, in this order.
_SPARED = ("I/O%", "CPU%", "DISK%", "REQ/S")
_GAP = "  "
Paint = Callable[[str, str], str]


class ClusterTop(PlainCommand):
    """Watch the services live: scores, requests, load, events that wait, elections."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "srv_types", metavar="<type>", nargs="*", help="Types of services shown (default: all)"
        )
        parser.add_argument(
            "--interval", type=_interval, default=INTERVAL_S, metavar="SECONDS",
            help=f"Time between two pictures, and longest wait for a service (default: {INTERVAL_S:g})",
        )
        parser.add_argument(
            "--once", action="store_true",
            help="Show one picture, without escape sequences (default when the output is no terminal)",
        )
        parser.add_argument(
            "-f", "--format", dest="formatter", choices=("table", "json"), default="table",
            help="json: one picture, as one object (default: table)",
        )  # fmt: skip
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Show the cluster until the user has seen enough, or once."""
        manager = self.app.client_manager
        watch = ClusterWatch(
            manager.namespace, manager.conscience, manager.queue_urls, self.app.request_id("CLI-top-")
        )
        types = frozenset(parsed_args.srv_types)
        stdout = self.app.stdout
        if parsed_args.formatter == "table" and not parsed_args.once and is_usable(stdout):
            with Screen(stdout) as screen:
                _Live(watch, screen, types, parsed_args.interval, _painter(use_colours(stdout))).run()
            return
        snapshot = only(types, look_once(watch, parsed_args.interval))
        if parsed_args.formatter == "json":
            stdout.write(json.dumps(as_json(snapshot), indent=2) + "\n")
        else:
            stdout.write("\n".join(line.rstrip() for line in [*head(snapshot, _plain), *table(snapshot, _plain)]))
            stdout.write("\n")
        # Nothing is known of the services: that is no picture.
        if not snapshot.services and snapshot.problems:
            self.success = False


class _Live:
    """Pictures on a terminal. Another thread looks at the cluster, so that keys are heard all the time."""

    def __init__(
        self, watch: ClusterWatch, screen: Screen, types: frozenset[str], interval_s: float, paint: Paint
    ) -> None:
        self._watch = watch
        self._screen = screen
        self._types = types
        self._interval_s = interval_s
        self._paint = paint
        self._snapshot: Snapshot | None = None
        self._news = threading.Event()
        self._over = threading.Event()
        self._first = 0

    def run(self) -> None:
        """Until a key ends it."""
        threading.Thread(target=self._look, daemon=True).start()
        try:
            while True:
                self._draw()
                self._news.clear()
                key = self._screen.wait_key(math.inf, self._news.is_set)
                if key in _LEAVE_KEYS:
                    return
                self._scroll(key)
        finally:
            self._over.set()

    def _look(self) -> None:
        # The first picture comes at once; rates need two of them.
        pause_s = min(SAMPLE_S, self._interval_s)
        while not self._over.is_set():
            start = time.monotonic()
            self._snapshot = only(self._types, self._watch.look(start + self._interval_s))
            self._news.set()
            self._over.wait(max(0.0, start + pause_s - time.monotonic()))
            pause_s = self._interval_s

    def _draw(self) -> None:
        columns, height = self._screen.size
        snapshot = self._snapshot
        if snapshot is None:
            self._screen.draw([_cut("Looking at the services…", columns)])
            return
        title, *rows = table(snapshot, self._paint, columns)
        above = [*head(snapshot, self._paint, columns), "", title]
        room = max(1, height - len(above) - 1)
        self._first = max(0, min(self._first, len(rows) - room))
        shown = rows[self._first : self._first + room]
        keys = f"every {self._interval_s:g} s; q: quit"
        if len(rows) > room:
            keys = f"{self._first + 1}-{self._first + len(shown)} of {len(rows)}, arrows to move; {keys}"
        blank = [""] * (height - len(above) - len(shown) - 1)
        self._screen.draw([*above, *shown, *blank, _cut(keys, columns)])

    def _scroll(self, key: str) -> None:
        page = max(1, self._screen.size[1] // 2)
        steps = {"up": -1, "down": 1, "page up": -page, "page down": page, "home": -(10**9), "end": 10**9}
        # The end is known where the picture is drawn.
        self._first = max(0, self._first + steps.get(key, 0))


def look_once(watch: ClusterWatch, interval_s: float) -> Snapshot:
    """A single snapshot, with rates; takes ``interval_s`` at most, about a second when all goes well."""
    start = time.monotonic()
    half = start + interval_s / 2
    watch.look(half)
    time.sleep(max(0.0, min(half, time.monotonic() + SAMPLE_S) - time.monotonic()))
    return watch.look(start + interval_s)


def only(types: Iterable[str], snapshot: Snapshot) -> Snapshot:
    """The same with services of these types; types without any are told. No types: all of them."""
    wanted = frozenset(types)
    if not wanted:
        return snapshot
    shown = [service for service in snapshot.services if service.type in wanted]
    missing: list[str] = []
    if snapshot.services or not snapshot.problems:
        missing = [f"No service of type {name}" for name in sorted(wanted - {service.type for service in shown})]
    return dataclasses.replace(snapshot, services=shown, problems=[*snapshot.problems, *missing])


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot for programs. Unknown numbers are null."""
    services = [dataclasses.asdict(service) for service in snapshot.services]
    for service in services:
        service["problem"] = service["problem"] or None
    return {
        "namespace": snapshot.namespace,
        "date": snapshot.date,
        "services": services,
        "events": [{**dataclasses.asdict(queue), "pending": queue.pending} for queue in snapshot.queues],
        "elections": snapshot.elections,
        "problems": snapshot.problems,
    }


def head(snapshot: Snapshot, paint: Paint, columns: int = 0) -> list[str]:
    """The lines above the services; cut at ``columns`` unless that is 0."""
    date = datetime.fromtimestamp(snapshot.date, UTC)
    down = sum(not service.up for service in snapshot.services)
    silent = sum(bool(service.problem) and service.up for service in snapshot.services)
    zero = sum(service.up and service.score <= 0 for service in snapshot.services)
    known = f"{len(snapshot.services)} services"
    states = ((down, "down"), (silent, "silent"), (zero, "at score 0"))
    known += "".join(f", {number} {state}" for number, state in states if number)
    texts = [(f"{snapshot.namespace}  {date:%Y-%m-%dT%H:%M:%SZ}  {known}", _RED if down or silent else _BOLD)]
    for queue in snapshot.queues:
        oldest = "" if queue.oldest_s is None else f", oldest {_age(queue.oldest_s)}"
        name = f" {queue.queue}" if len(snapshot.queues) > 1 else ""
        colour = _RED if queue.buried else _YELLOW if (queue.oldest_s or 0) > LATE_S else ""
        counts = f"pending {queue.pending} (delayed {queue.delayed}){oldest}, buried {queue.buried}"
        texts.append((f"Events{name}: {counts}", colour))
    elections = snapshot.elections
    if any(elections.values()):
        counts = ", ".join(f"{state} {number}" for state, number in elections.items())
        colour = _RED if elections["failed"] else _YELLOW if elections["pending"] else ""
        texts.append((f"Elections: {counts}", colour))
    texts += [(problem, _RED) for problem in snapshot.problems]
    return [paint(_cut(printable(text), columns), colour) for text, colour in texts]


def table(snapshot: Snapshot, paint: Paint, columns: int = 0) -> list[str]:
    """The title line, then a line for each service; cut at ``columns`` unless that is 0.

    Where there is little room, what is wrong comes before how much is used.
    """
    rows = [_cells(service) for service in snapshot.services]
    titles = [title for title, _right in _COLUMNS]
    widths = [max(_width(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    shown = list(range(len(titles)))
    for column in map(titles.index, _SPARED):
        # The last one may be cut.
        if columns and sum(widths[number] + len(_GAP) for number in shown[:-1]) - len(_GAP) > columns:
            shown.remove(column)
    lines = [paint(_cut(_line(titles, widths, shown), columns), _REVERSE)]
    for service, row in zip(snapshot.services, rows, strict=True):
        lines.append(paint(_cut(_line(row, widths, shown), columns), _colour(service)))
    return lines


def _cells(service: ServiceView) -> list[str]:
    notes = [service.problem] if service.problem else []
    if service.locked:
        notes.append("locked")
    if service.elections:
        notes.append(" ".join(f"{state} {number}" for state, number in service.elections.items() if number))
    shares = [_number(share, 0) for share in (service.cpu, service.disk, service.io)]
    cells = [
        service.type, service.id, "yes" if service.up else "no", str(service.score), _number(service.rate, 1),
        *shares, ", ".join(notes), service.location,
    ]  # fmt: skip
    return [printable(cell) for cell in cells]


def _colour(service: ServiceView) -> str:
    if not service.up or service.problem:
        return _RED
    shares = [share for share in (service.disk,) if share is not None]
    if max(shares, default=0.0) >= ALARM_PERCENT:
        return _RED
    if service.score <= 0 or service.locked or max(shares, default=0.0) >= WARNING_PERCENT:
        return _YELLOW
    return ""


def _line(cells: list[str], widths: list[int], shown: list[int]) -> str:
    parts = []
    for column in shown:
        cell, (_title, right) = cells[column], _COLUMNS[column]
        room = " " * (widths[column] - _width(cell))
        parts.append(room + cell if right else cell + room)
    return _GAP.join(parts)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return max(0, wcswidth(text))


def _cut(text: str, columns: int) -> str:
    """The beginning that fits a line."""
    if not columns or _width(text) <= columns:
        return text
    if text.isascii():
        return text[:columns]
    while _width(text) > columns:
        text = text[:-1]
    return text


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _age(seconds: float) -> str:
    """
    >>> _age(7.4), _age(200), _age(10000)
    ('7 s', '3 min', '2.8 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _plain(text: str, _colour: str) -> str:
    return text


def _painter(colours: bool) -> Paint:
    if not colours:
        return _plain
    return lambda text, colour: f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not INTERVAL_MIN_S <= seconds <= INTERVAL_MAX_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {INTERVAL_MIN_S:g} to {INTERVAL_MAX_S:g}"
        )
    return seconds
