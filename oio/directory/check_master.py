# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-check-master``: does each base of some containers have exactly one master?"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from logging import Logger
from typing import Any

from oio.common.exceptions import OioException
from oio.common.logger import get_logger
from oio.common.service import command_line
from oio.directory.admin import MASTER, AdminClient

TYPES = ("meta0", "meta1", "meta2")


class MasterChecker:
    """Checks the elections of bases.

    :param fix: have all the services of a base leave its election when there is not one master.
    """

    def __init__(self, admin: AdminClient, logger: Logger, fix: bool = False) -> None:
        self.admin = admin
        self.logger = logger
        self.fix = fix

    def check(self, service_type: str, item: str, **location: Any) -> bool:
        """Look at one base; what is wrong is logged.

        :param item: how messages call it.
        :raises OioException: when the services cannot be asked.
        """
        peers = self.admin.election_status(service_type, **location)["peers"]
        masters = sorted(name for name, answer in peers.items() if answer["status"]["status"] == MASTER)
        if len(masters) == 1:
            self.logger.info("%s %s: one master, %s", service_type, item, masters[0])
            return True
        said = "; ".join(
            f"{name}: {answer['status']['status']} {answer['status']['message']}"
            for name, answer in sorted(peers.items())
        )
        self.logger.error("%s %s: %d masters (%s)", service_type, item, len(masters), said)
        if self.fix:
            self.admin.election_leave(service_type, **location)
            self.logger.warning("%s %s: all services left the election", service_type, item)
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """``oio-check-master [options] ITEM…``; 0 whatever is found, 1 when something cannot be found out."""
    env = os.environ.get
    parser = command_line("oio-check-master", "Check that bases have exactly one master.")
    parser.add_argument("items", metavar="ITEM", nargs="+", help="name of a container")
    parser.add_argument("--cid", dest="is_cid", action="store_true", help="items are container ids")
    parser.add_argument("--oio-account", default=env("OIO_ACCOUNT"), metavar="NAME", help="account (OIO_ACCOUNT)")
    parser.add_argument("--oio-ns", default=env("OIO_NS"), metavar="NS", help="namespace (OIO_NS)")
    parser.add_argument(
        "-t", "--type", dest="types", action="append", choices=TYPES, help="type of bases, repeatable (all)"
    )
    parser.add_argument("-x", "--fix", action="store_true", help="leave elections without exactly one master")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what is right too")
    words = parser.parse_args(argv)
    if not words.oio_ns:
        parser.error("a namespace is needed: --oio-ns, OIO_NS")
    if not words.is_cid and not words.oio_account:
        parser.error("an account is needed: --oio-account, OIO_ACCOUNT")
    level = "INFO" if words.verbose else "WARNING"
    logger = get_logger({"log_level": level}, "check-master", verbose=True)
    return _check_all(words, logger)


def _check_all(words: argparse.Namespace, logger: Logger) -> int:
    checker = MasterChecker(AdminClient({"namespace": words.oio_ns}, logger=logger), logger, words.fix)
    code = 0
    for item in words.items:
        location = {"cid": item} if words.is_cid else {"account": words.oio_account, "reference": item}
        for service_type in words.types or TYPES:
            try:
                checker.check(service_type, item, **location)
            except OioException as exc:
                logger.error("%s %s: %s", service_type, item, exc)
                code = 1
    return code
