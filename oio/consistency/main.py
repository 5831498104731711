# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-check-consistency NAMESPACE``: do containers, accounts, reverse directory and chunk files agree?

A live namespace changes while it is read, and its events take a moment: what is wrong in every one of several
passes is reported, the rest is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, NamedTuple

import msgspec

from oio import __version__
from oio.common.configuration import load_namespace_conf
from oio.common.exceptions import OioException
from oio.consistency.facts import Facts
from oio.consistency.findings import QUESTIONS, Finding, findings
from oio.consistency.gather import CONCURRENCY_DEFAULT, Gatherer, Progress

PASSES_DEFAULT = 3
PAUSE_DEFAULT_S = 5.0
_CLEAN, _CONTRADICTIONS, _FAILED = 0, 1, 2
_TOLD_PERIOD_S = 1.0
_COUNTED = ("account", "container", "chunk", "indexed", "stored")


def _tell_nobody(what: str, count: int) -> None:
    """No progress is shown."""


class Report(NamedTuple):
    """Outcome of a check: contradictions that stayed, what could not be read, and how much was read."""

    findings: list[Finding]
    unchecked: list[str]
    counts: dict[str, int]
    passes: int


def check_namespace(
    namespace: str,
    proxy: str | None = None,
    passes: int = PASSES_DEFAULT,
    pause_s: float = PAUSE_DEFAULT_S,
    concurrency: int = CONCURRENCY_DEFAULT,
    progress: Progress = _tell_nobody,
) -> Report:
    """Compare all the parts of a namespace; a pass that finds nothing ends the check.

    :param proxy: its address; else that of the configuration of the namespace.
    :raises OioException: when the services of the namespace cannot be found.
    """
    remaining: dict[tuple[str, str], Finding] = {}
    for number in range(1, passes + 1):
        if number > 1:
            time.sleep(pause_s)
        facts = Facts()
        try:
            gatherer = Gatherer(namespace, proxy, facts, concurrency, progress)
            gatherer.run()
            found = {(finding.kind, finding.subject): finding for finding in findings(facts)}
            counts = {table: facts.count(table) for table in _COUNTED}
        finally:
            facts.close()
        remaining = found if number == 1 else {key: found[key] for key in remaining if key in found}
        if not remaining:
            break
    return Report(list(remaining.values()), gatherer.unchecked, counts, number)


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0: all agree, 1: contradictions, 2: not everything could be read."""
    args = _parser().parse_args(argv)
    proxy = args.proxy or load_namespace_conf(args.namespace, failsafe=True).get("proxy")
    if not proxy:
        print(f"oio-check-consistency: no proxy is configured for {args.namespace}; see --proxy", file=sys.stderr)
        return _FAILED
    try:
        report = check_namespace(
            args.namespace,
            proxy,
            passes=args.passes,
            pause_s=args.pause,
            concurrency=args.concurrency,
            progress=_Told() if sys.stderr.isatty() and not args.quiet else _tell_nobody,
        )
    except OioException as exc:
        print(f"oio-check-consistency: {args.namespace}: {exc}", file=sys.stderr)
        return _FAILED
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(_as_map(report)), indent=2).decode())
    else:
        _print(report)
    if report.findings:
        return _CONTRADICTIONS
    return _FAILED if report.unchecked else _CLEAN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oio-check-consistency",
        description="Do containers, accounts, reverse directory and chunk files agree? Changes nothing.",
        epilog="Exit code: 0 all agree, 1 contradictions, 2 something could not be read.",
    )
    add = parser.add_argument
    add("--version", action="version", version=f"%(prog)s {__version__}")
    add("namespace", help="name of the namespace")
    add("--proxy", metavar="HOST:PORT", help="address of a proxy (that of the namespace configuration)")
    add("--passes", type=_at_least(int, 1), default=PASSES_DEFAULT, metavar="N",
        help=f"report what is wrong in N passes in a row ({PASSES_DEFAULT})")  # fmt: skip
    add("--pause", type=_at_least(float, 0), default=PAUSE_DEFAULT_S, metavar="S",
        help=f"seconds between passes ({PAUSE_DEFAULT_S:g})")  # fmt: skip
    add("--concurrency", type=_at_least(int, 1), default=CONCURRENCY_DEFAULT, metavar="N",
        help=f"requests at once ({CONCURRENCY_DEFAULT})")  # fmt: skip
    add("--json", action="store_true", help="one JSON object on standard output")
    add("-q", "--quiet", action="store_true", help="no progress on a terminal")
    return parser


def _at_least(kind: type, low: float) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"at least {low}, not {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


class _Told:
    """Progress on a terminal: what is read now, how many, how fast."""

    def __init__(self) -> None:
        self._what = ""
        self._since = self._last = 0.0

    def __call__(self, what: str, count: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._since, self._last = what, now, 0.0
        if now - self._last >= _TOLD_PERIOD_S:
            self._last = now
            rate = count / (now - self._since) if now > self._since else 0.0
            print(f"\r\x1b[K{what}: {count} ({rate:.0f}/s)", end="", file=sys.stderr, flush=True)


def _as_map(report: Report) -> dict[str, Any]:
    return {
        "consistent": not report.findings and not report.unchecked,
        "passes": report.passes,
        "counts": report.counts,
        "findings": [finding._asdict() for finding in report.findings],
        "unchecked": report.unchecked,
    }


def _print(report: Report) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    counts = report.counts
    print(
        f"{counts['account']} accounts, {counts['container']} containers, {counts['chunk']} chunks of objects, "
        f"{counts['indexed']} indexed, {counts['stored']} stored; passes: {report.passes}"
    )
    kind = ""
    for finding in report.findings:
        if finding.kind != kind:
            kind = finding.kind
            print(f"{kind}: {QUESTIONS[kind][0]}")
        print(f"  {finding.subject}: {finding.detail}")
    for what in report.unchecked:
        print(f"not checked: {what}")
    if not report.findings:
        print("all agree" if not report.unchecked else "what could be read agrees")


if __name__ == "__main__":
    sys.exit(main())
