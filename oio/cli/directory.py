# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio directory``: which meta1 services hold which part of the directory.

Commands that change the mapping plan the whole change first, and apply it only when every base keeps its number of
services. Results of ``dump`` go to standard output, everything else to the log.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from typing import Any

from oio.cli.common.base import PlainCommand
from oio.cli.common.errors import short_error
from oio.common.configuration import load_namespace_conf
from oio.common.easy_value import int_value
from oio.common.exceptions import CommandError, ConfigurationException, OioException, ServiceBusy
from oio.directory.admin import AdminClient
from oio.directory.meta0 import Meta0PrefixMapping
from oio.directory.prefixes import DIGITS_MAX, count_prefixes, generate_prefixes
from oio.directory.spread import LEVELS

WARMUP_ATTEMPTS = 5
_CID_CHARS = 64


class _DirectoryCommand(PlainCommand):
    """Commands about the mapping."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--no-rdir", action="store_true", help="Deprecated, no effect")
        parser.add_argument(
            "--replicas", type=int, default=3, metavar="N", help="Services of each base (default: 3)"
        )
        parser.add_argument(
            "--min-dist", type=int, default=1, metavar="N",
            help="Least distance between the services of a base, 1 to 4 (default: 1)",
        )  # fmt: skip
        parser.add_argument(
            "--meta0-timeout", type=float, default=60.0, metavar="SECONDS",
            help="Longest wait for meta0 (default: 60)",
        )  # fmt: skip
        return parser

    @cached_property
    def digits(self) -> int:
        """Significant digits of prefixes, from the configuration of the namespace.

        :raises ConfigurationException: when it is not a number from 0 to 4.
        """
        conf = load_namespace_conf(self.app.client_manager.namespace)
        text = conf.get("ns.meta1_digits") or conf.get("meta1_digits")
        if text is None:
            self.app.log.warning("ns.meta1_digits is not in the configuration of the namespace: %d", DIGITS_MAX)
            return DIGITS_MAX
        try:
            digits = int_value(text, DIGITS_MAX)
            count_prefixes(digits)
        except (TypeError, ValueError) as exc:
            raise ConfigurationException(
                f"Invalid ns.meta1_digits {text!r}: 0 to {DIGITS_MAX} is expected"
            ) from exc
        return digits

    def new_mapping(self, parsed: argparse.Namespace) -> Meta0PrefixMapping:
        """A mapping without bases."""
        manager = self.app.client_manager
        return Meta0PrefixMapping(
            manager.meta0,
            replicas=parsed.replicas,
            digits=self.digits,
            min_dist=parsed.min_dist,
            admin_client=manager.admin,
            conscience_client=manager.conscience,
            logger=self.app.log,
            reqid=self.app.request_id(),
        )

    def load(self, parsed: argparse.Namespace) -> Meta0PrefixMapping:
        """The mapping of the namespace."""
        mapping = self.new_mapping(parsed)
        mapping.load_meta0(**self.kwargs(parsed))
        return mapping

    def kwargs(self, parsed: argparse.Namespace) -> dict[str, Any]:
        """Keywords of the requests."""
        return {"read_timeout": parsed.meta0_timeout, "reqid": self.app.request_id()}

    def report(self, mapping: Meta0PrefixMapping) -> None:
        """Log how many prefixes each service has."""
        for address, count in mapping.count_pfx_by_svc().items():
            self.app.log.info("%s: %d prefixes", address, count)

    def move(self, mapping: Meta0PrefixMapping, moved: Iterable[str], parsed: argparse.Namespace) -> int:
        """Apply what was planned for these bases; the exit code."""
        planned = [*moved]
        done = mapping.apply(moved=planned, **self.kwargs(parsed))
        self.app.log.info("%d bases moved", len(done))
        self.report(mapping)
        if len(done) < len(planned):
            self.app.log.error("%d bases of %d could not be moved", len(planned) - len(done), len(planned))
            return 1
        return 0


class DirectoryInit(_DirectoryCommand):
    """Spread the directory over the meta1 services, the first time."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--level", choices=[*LEVELS], default="volume",
            help="Services of a base are on different ones of these (default: volume)",
        )  # fmt: skip
        parser.add_argument(
            "--degradation", type=int, metavar="N",
            help="How many of those may be lost while all bases keep a majority"
            " (default: as many as there are copies without the majority)",
        )  # fmt: skip
        parser.add_argument("--force", action="store_true", help="Replace the mapping that exists")
        parser.add_argument(
            "--check", action="store_true", help="When a mapping exists, check its numbers of services"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Plan, check, upload."""
        mapping = self.load(parsed_args)
        if mapping and not parsed_args.force:
            self.app.log.info("The directory is filled already")
            if parsed_args.check and not mapping.check_replicas():
                raise OioException("Bad number of services in the mapping of the directory")
            return 0
        if not mapping.services:
            raise OioException("No meta1 service known")
        quorum = mapping.replicas // 2 + 1
        degradation = mapping.replicas - quorum if parsed_args.degradation is None else parsed_args.degradation
        mapping.bootstrap(parsed_args.level, degradation)
        if not mapping.check_replicas():
            raise OioException("Bad number of services in the planned mapping, nothing is changed")
        mapping.apply(None, **self.kwargs(parsed_args))
        self.report(mapping)
        return 0


class DirectoryCheck(_DirectoryCommand):
    """Check that every base has its services."""

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Read the mapping."""
        if self.load(parsed_args).check_replicas():
            return 0
        self.app.log.warning("Bad number of services in the mapping of the directory")
        return 1


class DirectoryList(_DirectoryCommand):
    """Print the mapping as JSON."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Read the mapping."""
        table = self.app.client_manager.meta0.list(**self.kwargs(parsed_args))
        self.app.stdout.write(json.dumps(table, indent=0, sort_keys=True) + "\n")


class DirectoryRebalance(_DirectoryCommand):
    """Move bases so that all meta1 services have their share; one service of a base changes at most."""

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Plan, check, move."""
        mapping = self.load(parsed_args)
        moved = mapping.rebalance()
        if not mapping.check_replicas():
            self.app.log.warning("Bad number of services in the planned mapping, nothing is changed")
            return 1
        return self.move(mapping, moved, parsed_args)


class DirectoryDecommission(_DirectoryCommand):
    """Take bases away from a meta1 service."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("addr", metavar="<addr>", help="Address of the service")
        parser.add_argument("bases", metavar="<base>", nargs="*", help="Prefixes of bases (default: all)")
        parser.add_argument(
            "--ignore-replicas-number-errors", action="store_true",
            help="Go on when some bases are left with too few services",
        )  # fmt: skip
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Plan, check, move."""
        _log_at_least(logging.INFO)
        mapping = self.load(parsed_args)
        forced = parsed_args.ignore_replicas_number_errors
        moved = mapping.decommission(
            parsed_args.addr, bases_to_remove=parsed_args.bases or None, compute_upper_limit=not forced
        )
        if not mapping.check_replicas():
            if not forced:
                self.app.log.error("Bad number of services in the planned mapping, nothing is changed")
                return 1
            self.app.log.warning("Bad number of services in the planned mapping, applied all the same")
        return self.move(mapping, moved, parsed_args)


class DirectoryRestore(_DirectoryCommand):
    """Put a mapping that was dumped in the place of the present one."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backup", metavar="<backup>", help="File of the mapping, - for standard input")
        parser.add_argument(
            "--I-know-what-I-am-doing", dest="sure", action="store_true",
            help="Upload the mapping, even with a bad number of services; without it, only check it",
        )  # fmt: skip
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Check, and upload if the user is sure."""
        mapping = self.new_mapping(parsed_args)
        try:
            mapping.load_json(_read(parsed_args.backup))
        except ValueError as exc:
            raise CommandError(f"{parsed_args.backup} holds no mapping: {exc}") from exc
        if not mapping.check_replicas() and not parsed_args.sure:
            raise OioException("Bad number of services in this mapping, nothing is changed")
        if not parsed_args.sure:
            self.app.log.warning("The mapping is good. It is uploaded with --I-know-what-I-am-doing only")
            return
        mapping.apply(None, **self.kwargs(parsed_args))


class DirectoryWarmup(_DirectoryCommand):
    """Have all the bases of the directory opened, and their masters elected."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--concurrency", "--workers", dest="concurrency", type=int, default=1, metavar="N",
            help="Requests at once (default: 1)",
        )  # fmt: skip
        # The value of --proxy of the program is another one.
        parser.add_argument("--proxy", dest="warmup_proxy", metavar="IP:PORT", help="Proxy to send them to")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Ask for the status of each base; those that fail lower the exit code at the end."""
        if parsed_args.concurrency < 1:
            raise CommandError("--concurrency must be positive")
        admin, reqid = self._admin(parsed_args), self.app.request_id()
        names = [*generate_prefixes(self.digits)]
        done = failed = 0
        stop = threading.Event()
        pool = ThreadPoolExecutor(parsed_args.concurrency)
        try:
            futures = [pool.submit(_warm, admin, name, reqid, stop) for name in names]
            for future in as_completed(futures):
                error = future.result()
                if error is not None:
                    failed += 1
                    self.app.log.error("%s", error)
                done += 1
                if done * 100 // len(names) != (done - 1) * 100 // len(names):
                    self.app.log.info("%d %%: %d bases", done * 100 // len(names), done)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        if failed:
            self.app.log.error("%d bases of %d are not ready", failed, len(names))
        return 1 if failed else 0

    def _admin(self, parsed: argparse.Namespace) -> AdminClient:
        manager = self.app.client_manager
        if not parsed.warmup_proxy:
            return manager.admin  # type: ignore[no-any-return]
        return AdminClient(manager.conf, endpoint=parsed.warmup_proxy, logger=manager.logger)


def _warm(admin: AdminClient, base: str, reqid: str, stop: threading.Event) -> str | None:
    """Ask for the status of a base; the text of the error, if any."""
    for attempt in range(1, WARMUP_ATTEMPTS + 1):
        if stop.is_set():
            return None
        try:
            admin.election_status("meta1", cid=base.ljust(_CID_CHARS, "0"), reqid=reqid)
            return None
        except ServiceBusy as exc:
            if attempt == WARMUP_ATTEMPTS:
                return f"Base {base}: {short_error(exc)}"
            time.sleep(attempt * 0.5)
        except OioException as exc:
            return f"Base {base}: {short_error(exc)}"
    return None


def _read(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def _log_at_least(level: int) -> None:
    """Have the console show messages of this level, whatever the options say."""
    root = logging.getLogger("")
    root.setLevel(min(root.level or level, level))
    for handler in root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.level > level:
            handler.setLevel(level)
