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

Workers are threads (green when the standard library has been patched). Work is shared between hosts through
beanstalkd: a tool with ``prepare_distributed_dispatcher`` sends its items as events to the tubes of the workers
and waits for their answers; a tool with ``beanstalkd_addr`` takes its items from such events. An event is deleted
when its items are processed, so that those of a tool that dies are processed by another one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from logging import Logger
from types import FrameType
from typing import Any

from oio.common.easy_value import int_value
from oio.common.exceptions import ConfigurationException, OioException, OioTimeout, RetryLater
from oio.common.logger import get_logger
from oio.common.ratelimit import ratelimit
from oio.event.beanstalk import Beanstalk, BeanstalkdListener, BeanstalkdSender, BeanstalkError
from oio.event.source import Job, SourceError, open_source

Item = Any
TaskResult = tuple[Item, Any, str | None]

# Items wait in the queue of the workers for this long at most, so that a tool that is stopped ends soon.
_QUEUED_S = 2
# Without a rate, this many items wait for each worker.
_QUEUED_PER_WORKER = 64
# A dispatcher that cannot send waits for so long, or for an answer.
_FULL_PAUSE_S = 5.0
# A dispatcher that hears nothing for so long gives up (contract).
_SILENCE_MAX_S = 300.0
# How long a worker, or a dispatcher, waits for a job before it looks whether it must stop.
_RESERVE_S = 0.5
# Pause of a worker that cannot reach its beanstalkd, and pace at which it says that it is still at its jobs.
_RECONNECT_S = 1.0
_TOUCH_PERIOD_S = 30.0
_ANSWER_TIMEOUT_S = 10.0


class Tool:
    """What a batch does: derive, and write :meth:`_fetch_items` and :meth:`create_worker`.

    :param conf: ``namespace``, and the optional keys ``report_interval``, ``retry_delay``, ``concurrency``,
        ``items_per_second`` (0 or less: no limit), ``beanstalkd_worker_tube``,
        ``distributed_beanstalkd_worker_tube``.
    :param beanstalkd_addr: take the items from the tube ``beanstalkd_worker_tube`` of this beanstalkd.
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
        self.conf = conf
        self.logger = logger or get_logger(conf)
        self.namespace = conf["namespace"]
        self.running = True
        #: Set to False when items could not be fetched.
        self.success = True
        self.dispatcher: LocalDispatcher | DistributedDispatcher | None = None

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
        tube = conf.get("beanstalkd_worker_tube") or self.DEFAULT_BEANSTALKD_WORKER_TUBE
        #: Where the items come from, when not from :meth:`_fetch_items`.
        self.task_input = TaskInput(self, beanstalkd_addr, tube) if beanstalkd_addr else None

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
        """Have the items processed by the workers of other hosts. :raises OioException: when there is none."""
        self.dispatcher = DistributedDispatcher(self.conf, self)

    def run(self) -> Iterator[TaskResult]:
        """Process all the items; yields their results as they come.

        :raises ValueError: when no dispatcher was prepared.
        """
        if self.dispatcher is None:
            raise ValueError("No dispatcher: call prepare_local_dispatcher() first")
        return self._run(self.dispatcher)

    def _run(self, dispatcher: LocalDispatcher | DistributedDispatcher) -> Iterator[TaskResult]:
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
            item, task = item_with_reply
            result = self._result_of(item, task)
            if task is not None:
                task.item_done(result)
            self.queue_reply.put(result)
            self.queue_workers.task_done()
        self.queue_workers.task_done()

    def _result_of(self, item: Item, task: Task | None) -> TaskResult:
        try:
            return item, self._process_item(item), None
        except RetryLater as exc:
            # Whoever waits for the answer decides what to do.
            if task is not None and task.reply_address is None:
                task.retry(item)
            return item, None, str(exc) or repr(exc)
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
            for item, task in self._items_with_tasks():
                if not self.tool.running:
                    break
                run_time = ratelimit(run_time, self.max_items_per_second)
                self._give(item, task)
        except Exception as exc:
            self.tool.success = False
            self.logger.error("Failed to fetch items: %s", exc, exc_info=True)
        finally:
            for _worker in threads:
                self.queue_workers.put(None)
            for thread in threads:
                thread.join()
            if self.tool.task_input is not None:
                self.tool.task_input.close()
            self.queue_reply.put(None)

    def _items_with_tasks(self) -> Iterator[tuple[Item, Task | None]]:
        if self.tool.task_input is not None:
            return self.tool.task_input.items()
        return ((item, None) for item in self.tool._fetch_items())

    def _give(self, item: Item, task: Task | None) -> None:
        while True:
            try:
                return self.queue_workers.put((item, task), timeout=None if task is None else _TOUCH_PERIOD_S)
            except queue.Full:
                # Only this thread talks to beanstalkd about the jobs.
                assert self.tool.task_input is not None
                self.tool.task_input.settle()


class Task:
    """Items that came in one event, until the last of them is processed."""

    def __init__(self, task_input: TaskInput, job: Job, reply_address: dict[str, str] | None) -> None:
        self.job = job
        #: ``{"addr", "tube"}`` of the dispatcher that waits for the results, if any.
        self.reply_address = reply_address
        self.keep = False
        self._input = task_input
        self._lock = threading.Lock()
        # Held by the thread that reads the event, too.
        self._left = 1

    def item_begun(self) -> None:
        """Note that there is one more item."""
        with self._lock:
            self._left += 1

    def item_done(self, result: TaskResult | None) -> None:
        """Answer with a result (None: that of no item), and let the job go with the last one."""
        if result is not None and self.reply_address is not None:
            self._input.answer(self.reply_address, result)
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._input.finished.append(self)

    def retry(self, item: Item) -> None:
        """Have an item processed again after the delay; the whole event when that cannot be sent."""
        try:
            self._input.send_later(item)
        except BeanstalkError as exc:
            self._input.logger.warning("Item %s cannot be sent again, its event is kept: %s", item, exc)
            self.keep = True


class TaskInput:
    """The events of a tube, as items. All but :meth:`answer` and :meth:`send_later` is for one thread."""

    def __init__(self, tool: Tool, address: str, tube: str) -> None:
        url = address if "://" in address else f"beanstalk://{address}"
        self.address = url.partition("://")[2]
        self.tube = tube
        self.logger = tool.logger
        #: Tasks whose items are all processed, to be settled by the thread that reserves.
        self.finished: deque[Task] = deque()
        self._tool = tool
        self._url = url
        self._source = open_source(url, tube)
        self._running: dict[str, Task] = {}
        self._touched_s = time.monotonic()
        self._lock = threading.Lock()
        self._clients: dict[str, Beanstalk] = {}

    def items(self) -> Iterator[tuple[Item, Task]]:
        """Yield the items of the events, while the tool runs."""
        while self._tool.running:
            self.settle()
            try:
                job = self._source.reserve(_RESERVE_S)
            except SourceError as exc:
                self.logger.warning("Tube %s: %s", self.tube, exc)
                time.sleep(_RECONNECT_S)
                continue
            if job is not None:
                yield from self._items_of(job)

    def settle(self) -> None:
        """Delete the jobs that are done, and keep the others from being given to somebody else."""
        try:
            self._settle()
        except SourceError as exc:
            self.logger.warning("Tube %s: events may be processed again: %s", self.tube, exc)

    def _settle(self) -> None:
        while self.finished:
            task = self.finished[0]
            if task.keep:
                self._source.release(task.job, self._tool.retry_delay)
            elif not self._source.delete(task.job):
                self.logger.warning("Job %s was processed too late: it may be processed again", task.job.id)
            self.finished.popleft()
            self._running.pop(task.job.id, None)
        if time.monotonic() - self._touched_s >= _TOUCH_PERIOD_S:
            self._touched_s = time.monotonic()
            for task in self._running.values():
                self._source.touch(task.job)

    def answer(self, reply_address: dict[str, str], result: TaskResult) -> None:
        """Send a result to the dispatcher that waits for it."""
        try:
            event = self._tool.res_event_from_task_res(result)
            event["beanstalkd_worker"] = {"addr": self.address, "tube": self.tube}
            self._put(reply_address["addr"], reply_address["tube"], event)
        except Exception as exc:
            # The dispatcher gives up after a while; the work itself is done.
            self.logger.error("Result of %s cannot be sent to %s: %s", result[0], reply_address, exc)

    def send_later(self, item: Item) -> None:
        """Put an event for an item, to be delivered after the delay. :raises BeanstalkError: when it is not."""
        self._put(self._url, self.tube, self._tool.task_event_from_item(item), self._tool.retry_delay)

    def close(self) -> None:
        """Settle what is done, give back the rest."""
        self.settle()
        self._source.close()
        for client in self._clients.values():
            client.close()

    def _items_of(self, job: Job) -> Iterator[tuple[Item, Task]]:
        try:
            event = json.loads(job.body)
            task = Task(self, job, event.get("beanstalkd_reply"))
            items = self._tool.items_from_task_event(event)
            self._running[job.id] = task
            for item in items:
                task.item_begun()
                yield item, task
        except (OioException, ValueError, KeyError, TypeError, AttributeError) as exc:
            self.logger.error("Job %s is buried: %r: %s", job.id, exc, job.body[:500])
            self._running.pop(job.id, None)
            with contextlib.suppress(SourceError):  # then it is delivered again, and buried again
                self._source.bury(job)
            return
        task.item_done(None)

    def _put(self, address: str, tube: str, event: dict[str, Any], delay: int = 0) -> None:
        with self._lock:
            client = self._clients.get(address)
            if client is None:
                url = address if "://" in address else f"beanstalk://{address}"
                client = self._clients[address] = Beanstalk.from_url(url, socket_timeout=_ANSWER_TIMEOUT_S)
            client.use(tube)
            client.put(json.dumps(event), delay=delay)


class DistributedDispatcher:
    """Gives the items of a tool to the workers of other hosts, through their tubes."""

    def __init__(self, conf: Mapping[str, Any], tool: Tool) -> None:
        """:raises OioException: when no beanstalkd has the tube of the workers."""
        from oio.conscience.client import ConscienceClient

        self.tool = tool
        self.logger = tool.logger
        tube = conf.get("distributed_beanstalkd_worker_tube") or tool.DEFAULT_DISTRIBUTED_BEANSTALKD_WORKER_TUBE
        self.max_items_per_second = int_value(conf.get("items_per_second"), tool.DEFAULT_ITEM_PER_SECOND)
        services = ConscienceClient(dict(conf), logger=self.logger).all_services("beanstalkd")
        available = [service for service in services if service["score"] > 0]
        if not available:
            raise OioException("No beanstalkd available")
        workers = locate_tube(available, tube)
        if not workers:
            raise OioException(f"No beanstalkd has the tube {tube}: no worker is running")
        reply_tube = f"{tube}.reply.{time.time()}"
        best = max(available, key=lambda service: (_is_local(service["addr"]), service["score"]))
        if locate_tube([best], reply_tube):
            raise OioException(f"The tube {reply_tube} exists already")
        self._replies = BeanstalkdListener(best["addr"], reply_tube, self.logger)
        self.reply_address = {"addr": best["addr"], "tube": reply_tube}
        # What each worker may have in hand, so that a dispatcher that stops leaves little behind.
        limit = _QUEUED_PER_WORKER
        if self.max_items_per_second > 0:
            limit = max(1, self.max_items_per_second * _QUEUED_S // len(workers))
        self._senders = {
            worker["addr"]: BeanstalkdSender(
                worker["addr"], tube, self.logger, low_limit=limit // 2, high_limit=limit
            )
            for worker in workers
        }
        self._all_sent = threading.Event()
        self._answered = threading.Event()

    def run(self) -> Iterator[TaskResult]:
        """Yield the results as they come, until all have come or nothing comes any more."""
        feeder = threading.Thread(target=self._feed, name="tool-feeder", daemon=True)
        feeder.start()
        heard_s = time.monotonic()
        try:
            while not (self._all_sent.is_set() and self._pending() <= 0):
                for result in self._next_results():
                    heard_s = time.monotonic()
                    yield result
                if not self._all_sent.is_set() and self._pending() <= 0:
                    heard_s = time.monotonic()
                if time.monotonic() - heard_s > _SILENCE_MAX_S:
                    self.tool.success = False
                    self.logger.error("No result for %d s, %d items are missing", _SILENCE_MAX_S, self._pending())
                    break
        finally:
            self.tool.running = self.tool.running and self._all_sent.is_set()
            self._answered.set()
            feeder.join()
            self._replies.close()
            for sender in self._senders.values():
                sender.close()

    def _pending(self) -> int:
        return sum(sender.nb_jobs for sender in self._senders.values())

    def _next_results(self) -> list[TaskResult]:
        try:
            return list(self._replies.fetch_job(self._results_of, timeout=_RESERVE_S))
        except OioTimeout:
            return []

    def _results_of(self, _job_id: str, data: str) -> Iterator[TaskResult]:
        event = json.loads(data)
        results = list(self.tool.tasks_res_from_res_event(event))
        sender = self._senders.get(event["beanstalkd_worker"]["addr"])
        if sender is not None:
            sender.job_done()
            self._answered.set()
        yield from results

    def _feed(self) -> None:
        try:
            run_time = 0.0
            turns = itertools.cycle(self._senders.values())
            for item in self.tool._fetch_items():
                run_time = ratelimit(run_time, self.max_items_per_second)
                event = self.tool.task_event_from_item(item)
                event["beanstalkd_reply"] = self.reply_address
                text = json.dumps(event)
                while self.tool.running and not any(
                    next(turns).send_job(text) for _ in range(len(self._senders))
                ):
                    self._answered.clear()
                    self._answered.wait(_FULL_PAUSE_S)
                if not self.tool.running:
                    break
        except Exception as exc:
            self.tool.success = False
            self.logger.error("Failed to fetch items: %s", exc, exc_info=True)
        finally:
            self._all_sent.set()


def locate_tube(services: Iterable[Mapping[str, Any]], tube: str) -> list[Mapping[str, Any]]:
    """The beanstalkd services that have a tube; those that do not answer are left out."""
    found = []
    for service in services:
        client = Beanstalk.from_url(f"beanstalk://{service['addr']}", socket_timeout=_ANSWER_TIMEOUT_S)
        with contextlib.suppress(BeanstalkError), contextlib.closing(client):
            if tube in client.tubes():
                found.append(service)
    return found


def _is_local(address: str) -> bool:
    """Is this an address of this host?"""
    host = address.rpartition(":")[0].strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True
