# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``oio-meta2-indexer``: tells the reverse directory again which containers each meta2 volume holds.

It reads the names of the base files of a volume, asks the directory whose they are, and pushes those that this
volume is a peer of. What events lost, or a new rdir lacks, is there after one pass. It removes nothing, unless
told to remove the records of containers whose peers are others.
"""

from __future__ import annotations

import argparse
import configparser
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oio.blob.utils import check_volume_for_service_type
from oio.common.configuration import one_line, read_conf
from oio.common.daemon import Daemon
from oio.common.easy_value import boolean_value, float_value, int_value
from oio.common.exceptions import NotFound, OioException
from oio.common.http_urllib3 import get_pool_manager
from oio.common.logger import get_logger
from oio.common.ratelimit import ratelimit
from oio.common.service import command_line
from oio.common.utils import cid_from_name, request_id
from oio.directory.client import DirectoryClient
from oio.rdir.client import RdirClient

SECTION = "meta2-indexer"
SERVICE_TYPE = "meta2"
INTERVAL_S, REPORT_INTERVAL_S, SCANNED_PER_SECOND = 1800, 300, 3000
CID_CHARS = 64
_REQID_PREFIX = "meta2-indexer-"
_SUFFIX = f".{SERVICE_TYPE}"


class Meta2IndexingWorker:
    """Indexes the containers of one volume.

    :param volume_path: directory of a meta2, which carries its namespace, type and id.
    :param conf: ``namespace``, ``interval``, ``report_interval``, ``scanned_per_second``,
        ``try_removing_faulty_indexes``.
    :raises OioException: when the volume is not one of a meta2.
    """

    def __init__(self, volume_path: str, conf: Mapping[str, Any], pool_manager: Any = None) -> None:
        self.conf = conf
        self.volume = volume_path
        self.namespace, self.volume_id = check_volume_for_service_type(volume_path, SERVICE_TYPE)
        self.logger = get_logger(conf, SECTION)
        self.interval_s = float_value(conf.get("interval"), INTERVAL_S)
        self.report_interval_s = float_value(conf.get("report_interval"), REPORT_INTERVAL_S)
        self.scanned_per_second = int_value(conf.get("scanned_per_second"), SCANNED_PER_SECOND)
        self.attempt_bad_index_removal = boolean_value(conf.get("try_removing_faulty_indexes"), False)
        kwargs = {"logger": self.logger, "pool_manager": pool_manager or get_pool_manager()}
        client_conf = {**conf, "namespace": self.namespace}
        self.dir_client = DirectoryClient(client_conf, **kwargs)
        self.index_client = RdirClient(client_conf, directory_client=self.dir_client, **kwargs)
        self.passes = self.success_nb = self.failed_nb = 0
        self._asked = threading.Event()
        self._pass_begin = self._last_report = 0.0
        self._reported = 0

    def stop(self) -> None:
        """End the pass that runs after its present container, and make no other."""
        self._asked.set()

    def run(self) -> None:
        """Make passes, one per interval, until :meth:`stop`."""
        while not self._asked.is_set():
            begin = time.monotonic()
            try:
                self.crawl_volume()
            except Exception:  # a pass that fails must not end the following ones
                self.logger.exception("volume_id=%s pass %d failed", self.volume_id, self.passes)
            self._asked.wait(max(0.0, self.interval_s - (time.monotonic() - begin)))

    def crawl_volume(self) -> None:
        """Make one pass: index every base of the volume."""
        self.passes += 1
        self.success_nb = self.failed_nb = self._reported = 0
        self._pass_begin = self._last_report = time.monotonic()
        self.report("starting")
        run_time = 0.0
        for path in self._paths():
            if self._asked.is_set():
                break
            database = self._database_of(path)
            if database is not None:
                try:
                    self.index_meta2_database(database)
                    self.success_nb += 1
                except OioException as exc:
                    self.failed_nb += 1
                    self.warn(f"not indexed: {exc}", database)
            if time.monotonic() - self._last_report >= self.report_interval_s:
                self.report("running")
            run_time = ratelimit(run_time, self.scanned_per_second)
        self.report("ended")

    def index_meta2_database(self, db_id: str) -> None:
        """Index one base, ``<container id>.<sequence>``.

        :raises OioException: when the directory or the reverse directory does not answer, or nobody knows this
            container, or it belongs to other services.
        """
        container_id = db_id.partition(".")[0]
        if len(container_id) != CID_CHARS:
            raise OioException(f"{db_id} is not the name of a base")
        reqid = request_id(_REQID_PREFIX)
        try:
            found = self.dir_client.list(cid=container_id, reqid=reqid)
        except NotFound as exc:
            raise OioException(f"the directory does not know it: {exc}") from exc
        account, container = found["account"], found["name"]
        if cid_from_name(account, container) != container_id:
            raise OioException(f"the directory gave another container: {account}/{container}")
        url = f"{self.namespace}/{account}/{container}"
        peers = [link["host"] for link in found.get("srv") or () if link.get("type") == SERVICE_TYPE]
        if self.volume_id not in peers:
            if self.attempt_bad_index_removal:
                self._remove_index(url, container_id, reqid)
            raise OioException(f"{url} belongs to {', '.join(peers) or 'no service'}, not to {self.volume_id}")
        self.index_client.meta2_index_push(
            volume_id=self.volume_id,
            container_url=url,
            container_id=container_id,
            mtime=time.time(),
            reqid=reqid,
        )

    def warn(self, msg: str, db_id: str) -> None:
        """Log a warning about a base."""
        self.logger.warning("volume_id=%s container_id=%s %s", self.volume_id, db_id, msg)

    def report(self, tag: str) -> None:
        """Log how far the pass is."""
        now = time.monotonic()
        count = self.success_nb + self.failed_nb
        rate = (count - self._reported) / max(now - self._last_report, 1e-3)
        self.logger.info(
            "volume_id=%s %s=%s elapsed=%.2f pass=%d errors=%d containers_indexed=%d %.2f/s",
            self.volume_id,
            tag,
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
            now - self._pass_begin,
            self.passes,
            self.failed_nb,
            self.success_nb,
            rate,
        )
        self._last_report, self._reported = now, count

    def _remove_index(self, url: str, container_id: str, reqid: str) -> None:
        try:
            self.index_client.meta2_index_delete(
                volume_id=self.volume_id, container_path=url, container_id=container_id, reqid=reqid
            )
        except OioException as exc:
            self.warn(f"not removed from the index: {exc}", container_id)

    def _paths(self) -> Iterator[str]:
        for directory, subdirectories, names in os.walk(self.volume):
            # Those are not of bases: queues of events, temporary files.
            subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
            for name in sorted(names):
                yield os.path.join(directory, name)

    def _database_of(self, path: str) -> str | None:
        """``<container id>.<sequence>`` of a base file; None for the files of SQLite beside it, and others."""
        name = os.path.basename(path)
        if not name.endswith(_SUFFIX):
            return None
        database = name.removesuffix(_SUFFIX)
        container_id, dot, sequence = database.partition(".")
        if len(container_id) == CID_CHARS and dot and sequence.isdigit():
            return database
        self.failed_nb += 1
        self.warn("malformed name of a base", name)
        return None


class Meta2Indexer(Daemon):
    """Runs a worker per volume.

    :raises OioException: when no volume is named, or one of them is not a volume of a meta2.
    """

    def __init__(self, conf: Mapping[str, Any]) -> None:
        super().__init__(conf)
        volumes = [path.strip() for path in (conf.get("volume_list") or "").split(",")]
        volumes = [path for path in volumes if path]
        if not volumes:
            raise OioException("No meta2 volumes provided to index: volume_list is missing")
        self.pool_manager = get_pool_manager(pool_connections=len(volumes))
        self.volume_workers = [Meta2IndexingWorker(path, conf, self.pool_manager) for path in volumes]

    def run(self, **kwargs: Any) -> None:
        """Work until :meth:`stop`."""
        threads = [
            threading.Thread(target=worker.run, name=f"indexer-{worker.volume_id}", daemon=True)
            for worker in self.volume_workers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """End the workers."""
        for worker in self.volume_workers:
            worker.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """``oio-meta2-indexer [options] CONFIG``; gives the exit code of the process."""
    parser = command_line("oio-meta2-indexer", "Index the containers of meta2 volumes.")
    parser.add_argument("config", help=f"configuration file, section [{SECTION}]")
    parser.add_argument("--namespace", help="namespace")
    parser.add_argument("--user", help="user to become")
    parser.add_argument("--volume-list", nargs="+", metavar="PATH", help="volumes to index")
    parser.add_argument("--interval", type=int, metavar="SECONDS", help="from a pass to the next")
    parser.add_argument("--report-interval", type=int, metavar="SECONDS", help="between two reports")
    parser.add_argument("--scanned-per-second", type=int, metavar="N", help="bases per second at most")
    parser.add_argument(
        "--try-removing-faulty-indexes", action="store_true", default=None,
        help="remove the records of containers that belong to other services",
    )  # fmt: skip
    parser.add_argument(
        "--generate-config", action="store_true", help="write these options to CONFIG, and leave"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also log on standard error")
    words = parser.parse_args(argv)
    options = _options(words)
    if words.generate_config:
        return _generate(words.config, options)
    conf = {**read_conf(words.config, SECTION), **options}
    logger = get_logger(conf, SECTION, verbose=words.verbose)
    try:
        daemon = Meta2Indexer(conf)
    except (OioException, ValueError, OSError) as exc:
        logger.error("cannot start: %s", exc)
        print(f"{parser.prog}: {words.config}: {one_line(exc)}", file=sys.stderr)
        return 1
    try:
        daemon.start()
    except Exception:
        logger.exception("%s failed", SECTION)
        return 1
    return 0


def _options(words: argparse.Namespace) -> dict[str, str]:
    """The options of the command line under the names of the configuration."""
    found = {}
    for name in (
        "namespace", "user", "volume_list", "interval", "report_interval", "scanned_per_second",
        "try_removing_faulty_indexes",
    ):  # fmt: skip
        value = getattr(words, name)
        if value is not None:
            found[name] = ",".join(value) if isinstance(value, list) else str(value)
    return found


def _generate(path: str, options: Mapping[str, str]) -> int:
    parser = configparser.ConfigParser(interpolation=None)
    parser[SECTION] = dict(options)
    try:
        with open(path, "w", encoding="utf-8") as stream:
            parser.write(stream)
    except OSError as exc:
        print(f"oio-meta2-indexer: {path}: {exc.strerror}", file=sys.stderr)
        return 1
    return 0
