# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-meta2-rebuilder``: gives the bases of containers to the services that should have them and lack them."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator, Mapping, Sequence
from logging import Logger
from typing import Any

from oio.common import status
from oio.common.exceptions import ConfigurationException, OioException
from oio.common.tool import TaskResult, Tool, ToolWorker
from oio.common.utils import request_id
from oio.directory.meta2 import SERVICE_TYPE, Meta2Database
from oio.rdir.client import RdirClient
from oio.rebuilder.program import check_input, conf_of, errors_of, lines_of, logger_of, run_tool, tool_parser

DEFAULT_RDIR_FETCH_LIMIT = 100
#: The master of a base that is told to take its own state says that there is nothing to do.
SYNCHRONIZED = frozenset({200, status.BAD_OPERATION})
_REQID_PREFIX = "meta2-rebuilder-"

#: Namespace and container id.
Item = tuple[str, str]


class Meta2Rebuilder(Tool):
    """Rebuilds the bases of the containers of a service, or those that a file lists.

    :param conf: ``namespace``; ``rdir_fetch_limit``: containers per request to the reverse directory; and those
        of :class:`~oio.common.tool.Tool`.
    :param input_file: container ids, one per line.
    :param service_id: the service that lost bases.
    :raises ConfigurationException: when neither is given.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        input_file: str | None = None,
        service_id: str | None = None,
        logger: Logger | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(conf, logger=logger, **kwargs)
        if not input_file and not service_id:
            raise ConfigurationException("A service or an input file is needed")
        self.input_file = input_file
        self.service_id = service_id
        self.rdir_fetch_limit = int(conf.get("rdir_fetch_limit") or DEFAULT_RDIR_FETCH_LIMIT)
        self.rdir_client = RdirClient({"namespace": self.namespace}, logger=self.logger)
        self.meta2_database = Meta2Database({"namespace": self.namespace}, logger=self.logger)

    @staticmethod
    def string_from_item(item: Item) -> str:
        """``NS|CID``."""
        return "|".join(item)

    def _fetch_items(self) -> Iterator[Item]:
        cids = lines_of(self.input_file) if self.input_file else self._indexed()
        for cid in cids:
            yield self.namespace, cid

    def _indexed(self) -> Iterator[str]:
        """The containers that the reverse directory knows of the service."""
        marker = None
        while True:
            page = self.rdir_client.meta2_index_fetch(
                self.service_id or "", marker=marker, limit=self.rdir_fetch_limit
            )
            for record in page["records"]:
                yield record["container_id"]
            if not page["truncated"] or not page["records"]:
                return
            marker = page["records"][-1]["container_url"]

    def create_worker(
        self, queue_workers: queue.Queue[Any], queue_reply: queue.Queue[Any]
    ) -> Meta2RebuilderWorker:
        """Make a worker."""
        return Meta2RebuilderWorker(self, queue_workers, queue_reply)


class Meta2RebuilderWorker(ToolWorker):
    """Rebuilds one container after the other."""

    tool: Meta2Rebuilder

    def _process_item(self, item: Item) -> None:
        namespace, cid = item
        if namespace != self.tool.namespace:
            raise ValueError(f"Invalid namespace {namespace}, {self.tool.namespace} is expected")
        reqid = request_id(_REQID_PREFIX)
        errors = []
        for result in self.tool.meta2_database.rebuild(cid, reqid=reqid):
            base, error = result["base"], result["err"]
            if error is None:
                error = "; ".join(self._sync(base, reqid)) or None
            if error is not None:
                errors.append(f"{base}: {error}")
        if errors:
            raise OioException("; ".join(errors))

    def _sync(self, base: str, reqid: str) -> list[str]:
        """Have all the copies take the state of the master; what went wrong."""
        answers = self.tool.meta2_database.admin.election_sync(SERVICE_TYPE, cid=base, reqid=reqid)
        return errors_of(answers, SYNCHRONIZED)


def main(argv: Sequence[str] | None = None) -> int:
    """``oio-meta2-rebuilder [options] NS``; 0 when all the bases are there."""
    parser = tool_parser("oio-meta2-rebuilder", "Rebuild the lost bases of containers.")
    parser.add_argument(
        "--service-id", "--volume", dest="service_id", metavar="ID", help="service that lost bases"
    )
    parser.add_argument(
        "--rdir-fetch-limit", type=int, default=DEFAULT_RDIR_FETCH_LIMIT, metavar="N",
        help="containers per request to the reverse directory (default: %(default)s)",
    )  # fmt: skip
    words = parser.parse_args(argv)
    if not words.service_id and not words.input_file:
        parser.error("one of --service-id and --input-file is needed")
    logger = logger_of(words, "meta2-rebuilder")
    conf = {**conf_of(words), "rdir_fetch_limit": words.rdir_fetch_limit}
    try:
        check_input(words.input_file)
        tool = Meta2Rebuilder(conf, input_file=words.input_file, service_id=words.service_id, logger=logger)

        def tell(result: TaskResult) -> None:
            item, _, error = result
            if error is None:
                logger.info("%s rebuilt", tool.string_from_item(item))
            else:
                logger.error("%s: %s", tool.string_from_item(item), error)

        return run_tool(tool, tell)
    except OioException as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
