# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the programs that rebuild have in common: options, logs, exit code, lists of items in files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from logging import Logger
from typing import Any

from oio.common.exceptions import OioException
from oio.common.logger import get_logger
from oio.common.service import command_line
from oio.common.tool import TaskResult, Tool

_LOG_OPTIONS = ("log_level", "log_facility", "log_address")


def tool_parser(
    program: str, description: str, rate_option: str = "--items-per-second"
) -> argparse.ArgumentParser:
    """Parser with the namespace and the options of all tools.

    :param rate_option: name of the option that limits the rate; stored as ``items_per_second``.
    """
    parser = command_line(program, description)
    parser.add_argument("namespace", metavar="NS", help="namespace")
    parser.add_argument("--input-file", metavar="FILE", help="items, one per line; # begins a comment")
    parser.add_argument(
        "--report-interval", type=int, default=Tool.DEFAULT_REPORT_INTERVAL, metavar="SECONDS",
        help="between two reports (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency", type=int, default=Tool.DEFAULT_CONCURRENCY, metavar="N",
        help="items at once (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        rate_option, dest="items_per_second", type=int, default=Tool.DEFAULT_ITEM_PER_SECOND, metavar="N",
        help="items per second at most, 0: no limit (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--log-level", choices=["DEBUG", "INFO", "WARN", "ERROR"], help="default: INFO")
    parser.add_argument("--log-syslog-prefix", dest="syslog_prefix", metavar="TEXT", help="name in syslog")
    parser.add_argument("--log-facility", metavar="NAME", help="facility of syslog")
    parser.add_argument("--log-address", metavar="PATH", help="socket of syslog")
    parser.add_argument("-q", "--quiet", action="store_true", help="no logs on standard error")
    return parser


def conf_of(words: argparse.Namespace) -> dict[str, Any]:
    """Configuration of a tool, from its options."""
    conf: dict[str, Any] = {
        "namespace": words.namespace,
        "report_interval": words.report_interval,
        "concurrency": words.concurrency,
        "items_per_second": words.items_per_second,
        "syslog_prefix": words.syslog_prefix or "",
    }
    conf.update({name: getattr(words, name) for name in _LOG_OPTIONS if getattr(words, name)})
    return conf


def logger_of(words: argparse.Namespace, name: str) -> Logger:
    """Logger of a program."""
    conf = conf_of(words)
    if conf.get("log_level") == "WARN":
        conf["log_level"] = "WARNING"
    return get_logger(conf, name, verbose=not words.quiet)


def check_input(path: str | None) -> None:
    """:raises OioException: when the file of the items cannot be read."""
    if path:
        try:
            open(path, encoding="utf-8").close()
        except OSError as exc:
            raise OioException(f"{path}: {exc.strerror}") from exc


def run_tool(tool: Tool, each: Callable[[TaskResult], None]) -> int:
    """Process all the items of a tool; the exit code.

    :param each: is given each result.
    """
    tool.prepare_local_dispatcher()
    for result in tool.run():
        each(result)
    return 0 if tool.is_success() else 1


def lines_of(path: str) -> Iterator[str]:
    """The lines of a file, without blanks and comments. :raises OSError: when it cannot be read."""
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            text = line.strip()
            if text and not text.startswith("#"):
                yield text


def errors_of(answers: Mapping[str, Any], accepted: frozenset[int]) -> list[str]:
    """What the services of a base that did not answer well said."""
    return [
        f"{service}: {answer['status']['message']} ({answer['status']['status']})"
        for service, answer in sorted(answers.items())
        if answer["status"]["status"] not in accepted
    ]
