# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Batch tools: many items, each processed by one of several workers, at a limited rate, with reports.

A tool derives from :class:`Tool` (what the items are) and :class:`ToolWorker` (what is done to one)::

    tool = MyTool(conf)
    tool.prepare_local_dispatcher()
    for item, info, error in tool.run():
        print(tool.string_from_item(item), info if error is None else error)
    sys.exit(0 if tool.is_success() else 1)

The result of an item is ``(item, what the worker gave or None, text of the error or None)``. SIGINT and SIGTERM
stop the fetching of items; those already given to workers are finished and yielded.

Workers are threads (green when the standard library has been patched). Work shared between hosts through
beanstalkd needs the client ``oio.event.beanstalk``, which this version does not have: asking for it raises
``OioException``.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from logging import Logger
from types import FrameType
from typing import Any, NoReturn

from oio.common.easy_value import int_value
from oio.common.exceptions import ConfigurationException, OioException
from oio.common.logger import get_logger
from oio.common.ratelimit import ratelimit

Item = Any
TaskResult = tuple[Item, Any, str | None]

# Items wait in the queue of the workers for this long at most, so that a tool that is stopped ends soon.
_QUEUED_S = 2
# Without a rate, this many items wait for each worker.
_QUEUED_PER_WORKER = 64


class Tool:
    """What a batch does: derive, and write :meth:`_fetch_items` and :meth:`create_worker`.

    :param conf: ``namespace``, and the optional keys ``report_interval``, ``retry_delay``, ``concurrency``,
        ``items_per_second`` (0 or less: no limit), ``beanstalkd_worker_tube``,
        ``distributed_beanstalkd_worker_tube``.
    :param beanstalkd_addr: take the items from this beanstalkd: not supported.
    """

    DEFAULT_BEANSTALKD_WORKER_TUBE = "oio-process"
    DEFAULT_DISTRIBUTED_BEANSTALKD_WORKER_TUBE = "oio-process"
    DEFAULT_REPORT_INTERVAL = 3600
    DEFAULT_RETRY_DELAY = 3600
    DEFAULT_ITEM_PER_SECOND = 30
    DEFAULT_CONCURRENCY = 1

    def __init__(
        self, conf: Mapping[str, Any], beanstalkd_addr: str | None = None, logger: Logger | None = None
    ) -> None:
        if beanstalkd_addr:
            _no_beanstalkd(f"items from {beanstalkd_addr}")
        self.conf = conf
        self.logger = logger or get_logger(conf)
        self.namespace = conf["namespace"]
        self.running = True
        #: Set to False when items could not be fetched.
        self.success = True
        self.dispatcher: LocalDispatcher | None = None

        # Since the last report, and in all.
        self.items_processed = 0
        self.errors = 0
        self.total_items_processed = 0
        self.total_errors = 0
        #: Number of items, when the tool knows it: reports tell percentages.
        self.total_expected_items: int | None = None

        self.report_interval = int_value(conf.get("report_interval"), self.DEFAULT_REPORT_INTERVAL)
        self.retry_delay = int_value(conf.get("retry_delay"), self.DEFAULT_RETRY_DELAY)
        self.start_time = 0.0
        self.last_report = 0.0

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self.exit_gracefully)
            signal.signal(signal.SIGTERM, self.exit_gracefully)

    # --- what derived classes write ---------------------------------------------------------------

    def _fetch_items(self) -> Iterable[Item]:
        """Yield the items to process; called once, in a thread of its own."""
        raise NotImplementedError("_fetch_items")

    def create_worker(self, queue_workers: queue.Queue[Any], queue_reply: queue.Queue[Any]) -> ToolWorker:
        """Make a worker, which takes items from the first queue and gives results to the second."""
        raise NotImplementedError("create_worker")

    @staticmethod
    def items_from_task_event(task_event: Mapping[str, Any]) -> Iterable[Item]:
        """Items that an event asks to process."""
        raise NotImplementedError("items_from_task_event")

    @staticmethod
    def task_event_from_item(item: Item) -> dict[str, Any]:
        """Event that asks to process an item."""
        raise NotImplementedError("task_event_from_item")

    @staticmethod
    def tasks_res_from_res_event(res_event: Mapping[str, Any]) -> Iterable[TaskResult]:
        """Results that an answer holds."""
        raise NotImplementedError("tasks_res_from_res_event")

    @staticmethod
    def res_event_from_task_res(task_res: TaskResult) -> dict[str, Any]:
        """Answer that tells a result."""
        raise NotImplementedError("res_event_from_task_res")

    @staticmethod
    def string_from_item(item: Item) -> str:
        """Text of an item."""
        raise NotImplementedError("string_from_item")

    # --- what programs call -----------------------------------------------------------------------

    def prepare_local_dispatcher(self) -> None:
        """Have the items processed by threads of this process."""
        self.dispatcher = LocalDispatcher(self.conf, self)

    def prepare_distributed_dispatcher(self) -> None:
        """Have the items processed by the workers of other hosts. :raises OioException: not supported."""
        _no_beanstalkd("the distributed dispatcher")

    def run(self) -> Iterator[TaskResult]:
        """Process all the items; yields their results as they come.

        :raises ValueError: when no dispatcher was prepared.
        """
        if self.dispatcher is None:
            raise ValueError("No dispatcher: call prepare_local_dispatcher() first")
        return self._run(self.dispatcher)

    def _run(self, dispatcher: LocalDispatcher) -> Iterator[TaskResult]:
        self.start_time = self.last_report = time.time()
        self.log_report("START", force=True)
        for task_res in dispatcher.run():
            self.update_counters(task_res)
            yield task_res
            self.log_report("RUN")
        self.log_report("DONE", force=True)

    def is_success(self) -> bool:
        """Were all the items fetched, and processed without error?"""
        return self.success and self.errors == 0 and self.total_errors == 0

    def exit_gracefully(self, signum: int, _frame: FrameType | None = None) -> None:
        """Signal handler: fetch no more items."""
        self.logger.info("Stopping (%s): waiting for the items under way", signal.Signals(signum).name)
        self.running = False

    # --- reports ----------------------------------------------------------------------------------

    def update_counters(self, task_res: TaskResult) -> None:
        """Count a result."""
        self.items_processed += 1
        if task_res[2] is not None:
            self.errors += 1

    def log_report(self, status: str, force: bool = False) -> None:
        """Log what was done since the last report and in all, when it is time to."""
        end_time = time.time()
        if not force and end_time - self.last_report < self.report_interval:
            return
        counters = self._update_total_counters()
        self.logger.info("%s", self._get_report(status, end_time, counters))
        self.last_report = end_time

    def _update_total_counters(self) -> tuple[int, int, int, int]:
        """Start a new period; gives (items of the last one, all items, errors of the last one, all errors)."""
        items, errors = self.items_processed, self.errors
        self.total_items_processed += items
        self.total_errors += errors
        self.items_processed = self.errors = 0
        return items, self.total_items_processed, errors, self.total_errors

    def _get_report(self, status: str, end_time: float, counters: tuple[int, int, int, int]) -> str:
        """Text of a report, from what :meth:`_update_total_counters` gave."""
        items, all_items, errors, all_errors = counters
        since_last_s = end_time - self.last_report or 1e-5
        in_all_s = end_time - self.start_time or 1e-5
        facts = [
            f"{status} {type(self).__name__}",
            f"started={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self.start_time))}",
            f"elapsed={in_all_s:.2f}s",
            f"items={items}/{all_items}",
            f"rate={items / since_last_s:.2f}/s {all_items / in_all_s:.2f}/s",
            f"errors={errors}/{all_errors}",
        ]
        if self.total_expected_items:
            percentage = 100 * all_items / self.total_expected_items
            facts.append(f"progress={all_items}/{self.total_expected_items} ({percentage:.2f}%)")
        return " ".join(facts)


class ToolWorker:
    """What is done to an item: derive, and write :meth:`_process_item`."""

    def __init__(
        self, tool: Tool, queue_workers: queue.Queue[Any], queue_reply: queue.Queue[Any]
    ) -> None:
        self.tool = tool
        self.conf = tool.conf
        self.logger = tool.logger
        self.queue_workers = queue_workers
        self.queue_reply = queue_reply

    def _process_item(self, item: Item) -> Any:
        """Process an item; what is returned is shown, what is raised is its error."""
        raise NotImplementedError("_process_item")

    def run(self) -> None:
        """Process items until the end mark (None)."""
        while (item_with_reply := self.queue_workers.get()) is not None:
            item, _reply_address = item_with_reply
            self.queue_reply.put(self._result_of(item))
            self.queue_workers.task_done()
        self.queue_workers.task_done()

    def _result_of(self, item: Item) -> TaskResult:
        try:
            return item, self._process_item(item), None
        except BaseException as exc:
            # Whatever it is (green timeouts are no Exception), it is the outcome of this item, not of the next.
            self.logger.debug("Item %s failed", item, exc_info=True)
            return item, None, str(exc) or repr(exc)


class LocalDispatcher:
    """Gives the items of a tool to threads of this process."""

    def __init__(self, conf: Mapping[str, Any], tool: Tool) -> None:
        self.tool = tool
        self.logger = tool.logger
        self.concurrency = int_value(conf.get("concurrency"), tool.DEFAULT_CONCURRENCY)
        if self.concurrency < 1:
            raise ConfigurationException(f"concurrency={self.concurrency}: at least 1 worker is needed")
        self.max_items_per_second = int_value(conf.get("items_per_second"), tool.DEFAULT_ITEM_PER_SECOND)
        if self.max_items_per_second > 0:
            size = self.max_items_per_second * _QUEUED_S
        else:
            size = self.concurrency * _QUEUED_PER_WORKER
        self.queue_workers: queue.Queue[Any] = queue.Queue(size)
        # Bounded too: a slow reader of the results slows the workers down.
        self.queue_reply: queue.Queue[Any] = queue.Queue(size)
        self.workers = [tool.create_worker(self.queue_workers, self.queue_reply) for _ in range(self.concurrency)]

    def run(self) -> Iterator[TaskResult]:
        """Yield the results as they come. A reader that leaves early waits for the items under way."""
        feeder = threading.Thread(target=self._feed, name="tool-feeder", daemon=True)
        feeder.start()
        ended = False
        try:
            while not ended:
                task_res = self.queue_reply.get()
                ended = task_res is None
                if not ended:
                    yield task_res
        finally:
            self.tool.running = self.tool.running and ended
            while not ended:
                ended = self.queue_reply.get() is None
            feeder.join()

    def _feed(self) -> None:
        threads = [
            threading.Thread(target=worker.run, name=f"tool-worker-{number}", daemon=True)
            for number, worker in enumerate(self.workers)
        ]
        for thread in threads:
            thread.start()
        try:
            run_time = 0.0
            for item in self.tool._fetch_items():
                if not self.tool.running:
                    break
                run_time = ratelimit(run_time, self.max_items_per_second)
                self.queue_workers.put((item, None))
        except Exception as exc:
            self.tool.success = False
            self.logger.error("Failed to fetch items: %s", exc, exc_info=True)
        finally:
            for _worker in threads:
                self.queue_workers.put(None)
            for thread in threads:
                thread.join()
            self.queue_reply.put(None)


def locate_tube(services: Iterable[Mapping[str, Any]], tube: str) -> NoReturn:
    """Give the beanstalkd services that host a tube. :raises OioException: not supported."""
    _no_beanstalkd(f"looking for the tube {tube}")


def _no_beanstalkd(what: str) -> NoReturn:
    raise OioException(f"Not supported: {what} needs the beanstalkd client oio.event.beanstalk, which is missing")
