# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-meta1-rebuilder``: gives the bases of the directory to the services that should have them and lack them.

Only bases that hold something are looked for: those of the volumes that have an rdir, and those of all containers.
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from logging import Logger
from typing import Any

from oio.account.client import AccountClient
from oio.common.configuration import load_namespace_conf
from oio.common.easy_value import int_value
from oio.common.exceptions import NotFound, OioException, OioTimeout, ServiceBusy
from oio.common.tool import TaskResult, Tool, ToolWorker
from oio.common.utils import cid_from_name, request_id
from oio.conscience.client import ConscienceClient
from oio.directory.admin import AdminClient
from oio.directory.meta_mapping import CID_CHARS
from oio.directory.prefixes import DIGITS_MAX, base_of
from oio.rdir.client import RDIR_ACCT
from oio.rebuilder.program import check_input, conf_of, errors_of, lines_of, logger_of, run_tool, tool_parser

SERVICE_TYPE = "meta1"
LAST_REBUILD = "sys.last_rebuild"
#: Types of services whose volumes have an rdir.
INDEXED_TYPES = ("rawx", "meta2")
ATTEMPTS_MAX = 5
#: After the base was touched, a service gets it within this time, or is in error (seconds).
ARRIVAL_S, ARRIVAL_PERIOD_S = 20.0, 0.2
_PAGE = 1000
_OK = frozenset({200})
_REQID_PREFIX = "meta1-rebuilder-"


class Meta1Rebuilder(Tool):
    """Rebuilds the bases of the directory. Items are prefixes, with zeros up to the length of container ids.

    :param conf: ``namespace``, and those of :class:`~oio.common.tool.Tool`.
    :param input_file: container ids or prefixes, one per line, instead of all bases.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        input_file: str | None = None,
        logger: Logger | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(conf, logger=logger, **kwargs)
        self.input_file = input_file
        client_conf = {"namespace": self.namespace}
        options = load_namespace_conf(self.namespace)
        self.digits = int_value(options.get("ns.meta1_digits") or options.get("meta1_digits"), DIGITS_MAX)
        self.admin_client = AdminClient(client_conf, logger=self.logger)
        self.conscience_client = ConscienceClient(client_conf, logger=self.logger)
        self.account_client = AccountClient(client_conf, logger=self.logger)

    @staticmethod
    def string_from_item(item: str) -> str:
        """The item itself."""
        return item

    def _fetch_items(self) -> Iterator[str]:
        seen = set()
        for cid in lines_of(self.input_file) if self.input_file else self._used_cids():
            prefix = base_of(cid.upper(), self.digits)[: self.digits].ljust(CID_CHARS, "0")
            if prefix not in seen:
                seen.add(prefix)
                yield prefix

    def _used_cids(self) -> Iterator[str]:
        for service_type in INDEXED_TYPES:
            for service in self.conscience_client.all_services(service_type):
                yield cid_from_name(RDIR_ACCT, service["id"])
        for account in self.account_client.account_list():
            for container in self._containers(account):
                yield cid_from_name(account, container)

    def _containers(self, account: str) -> Iterator[str]:
        marker = None
        while True:
            page = self.account_client.container_list(account, limit=_PAGE, marker=marker)["listing"]
            for entry in page:
                yield entry[0]
            if not page:
                return
            marker = page[-1][0]

    def create_worker(
        self, queue_workers: queue.Queue[Any], queue_reply: queue.Queue[Any]
    ) -> Meta1RebuilderWorker:
        """Make a worker."""
        return Meta1RebuilderWorker(self, queue_workers, queue_reply)


class Meta1RebuilderWorker(ToolWorker):
    """Rebuilds one base after the other."""

    tool: Meta1Rebuilder

    def _process_item(self, item: str) -> None:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                self._rebuild(item, request_id(_REQID_PREFIX))
                return
            except (NotFound, OioTimeout, ServiceBusy) as exc:
                if attempt == ATTEMPTS_MAX:
                    raise
                self.logger.warning("%s, attempt %d of %d: %s", item, attempt, ATTEMPTS_MAX, exc)
                time.sleep(attempt * 0.5)

    def _rebuild(self, cid: str, reqid: str) -> None:
        admin = self.tool.admin_client
        if not self._lacking(cid, reqid):
            return
        admin.election_leave(SERVICE_TYPE, cid=cid, reqid=reqid)
        # What the next master writes goes to all the services, with what they lack.
        admin.set_properties(SERVICE_TYPE, cid=cid, system={LAST_REBUILD: str(int(time.time()))}, reqid=reqid)
        deadline = time.monotonic() + ARRIVAL_S
        while missing := self._lacking(cid, reqid):
            if time.monotonic() > deadline:
                raise OioException("; ".join(missing))
            time.sleep(ARRIVAL_PERIOD_S)

    def _lacking(self, cid: str, reqid: str) -> list[str]:
        """What the services without the base said."""
        return errors_of(self.tool.admin_client.has_base(SERVICE_TYPE, cid=cid, reqid=reqid), _OK)


def main(argv: Sequence[str] | None = None) -> int:
    """``oio-meta1-rebuilder [options] NS``; prints the bases that fail, 0 when there is none."""
    description = "Rebuild the lost bases of the directory."
    parser = tool_parser("oio-meta1-rebuilder", description, "--prefixes-per-second")
    words = parser.parse_args(argv)
    logger = logger_of(words, "meta1-rebuilder")
    try:
        check_input(words.input_file)
        tool = Meta1Rebuilder(conf_of(words), input_file=words.input_file, logger=logger)

        def tell(result: TaskResult) -> None:
            item, _, error = result
            if error is not None:
                logger.error("%s: %s", item, error)
                print(item, flush=True)

        return run_tool(tool, tell)
    except OioException as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
