# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Batch tools: results, rates, reports, stops."""

import logging
import os
import signal
import threading
import time

import pytest

from oio.common.exceptions import ConfigurationException, OioException, RetryLater
from oio.common.tool import Tool, ToolWorker

CONF = {"namespace": "NS", "items_per_second": 0}


class Squares(Tool):
    """Squares numbers; some of them fail."""

    def __init__(self, conf, items=(), **kwargs):
        super().__init__({**CONF, **conf}, **kwargs)
        self.items = items
        self.workers = []

    def _fetch_items(self):
        yield from self.items

    def create_worker(self, queue_workers, queue_reply):
        self.workers.append(SquareWorker(self, queue_workers, queue_reply))
        return self.workers[-1]

    @staticmethod
    def string_from_item(item):
        return f"number {item}"


class SquareWorker(ToolWorker):
    """Squares a number."""

    def _process_item(self, item):
        if isinstance(item, BaseException):
            raise item
        return item * item


@pytest.fixture(autouse=True)
def handlers():
    """The tool takes signals: give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def log(caplog):
    """Logger whose records pytest sees, and the records."""
    logger = logging.getLogger("test-tool")
    with caplog.at_level(logging.INFO, "test-tool"):
        yield logger, caplog


def test_the_defaults():
    tool = Squares({"items_per_second": None})
    tool.prepare_local_dispatcher()
    assert (tool.report_interval, tool.retry_delay, tool.namespace) == (3600, 3600, "NS")
    assert (tool.dispatcher.concurrency, tool.dispatcher.max_items_per_second) == (1, 30)
    assert tool.DEFAULT_BEANSTALKD_WORKER_TUBE == "oio-process"
    assert tool.dispatcher.queue_workers.maxsize == 60


def test_each_item_has_its_result():
    class Timeout(BaseException):
        """As the green ones."""

    wrong = [ValueError("wrong"), RetryLater("later"), KeyError(), Timeout("slow")]
    tool = Squares({"concurrency": "3"}, [1, 2, 3, *wrong, 4])
    tool.prepare_local_dispatcher()
    results = {item: (info, error) for item, info, error in tool.run()}
    assert len(tool.workers) == 3
    assert {results[n] for n in (1, 2, 3, 4)} == {(1, None), (4, None), (9, None), (16, None)}
    assert [results[item] for item in wrong] == [
        (None, "wrong"), (None, "later"), (None, "KeyError()"), (None, "slow")
    ]  # fmt: skip
    assert not tool.is_success() and tool.total_items_processed == 8 and tool.total_errors == 4
    assert tool.string_from_item(2) == "number 2"


def test_a_tool_without_error_succeeds():
    tool = Squares({}, range(200))
    tool.prepare_local_dispatcher()
    assert [info for _item, info, _error in tool.run()] == [n * n for n in range(200)]
    assert tool.is_success()


def test_items_that_cannot_be_fetched_are_a_failure(log):
    def items():
        yield 1
        raise OioException("no list")

    tool = Squares({}, items(), logger=log[0])
    tool.prepare_local_dispatcher()
    assert list(tool.run()) == [(1, 1, None)]
    assert not tool.is_success() and "no list" in log[1].text


def test_a_dispatcher_is_needed():
    with pytest.raises(ValueError, match="dispatcher"):
        Squares({}).run()


def test_at_least_one_worker_is_needed():
    with pytest.raises(ConfigurationException, match="concurrency=0"):
        Squares({"concurrency": 0}).prepare_local_dispatcher()


def test_the_rate_is_kept():
    tool = Squares({"items_per_second": 50}, range(11))
    tool.prepare_local_dispatcher()
    start = time.monotonic()
    assert len(list(tool.run())) == 11
    assert time.monotonic() - start >= 9 / 50


def test_a_signal_stops_the_fetching_and_waits_for_the_rest():
    sent = []

    def items():
        for number in range(1_000_000):
            sent.append(number)
            yield number

    tool = Squares({"concurrency": 2}, items())
    tool.prepare_local_dispatcher()
    done = []
    for item, _info, _error in tool.run():
        done.append(item)
        if len(done) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
    assert not tool.running and tool.is_success()
    assert 10 <= len(done) < 1_000_000
    # All that was taken from the source, but for the one that was refused.
    assert sorted(done) in (sent, sent[:-1])


def test_a_reader_that_leaves_stops_the_workers():
    tool = Squares({}, iter(int, 1))
    tool.prepare_local_dispatcher()
    results = tool.run()
    next(results)
    results.close()
    assert not tool.running
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tool-")]


def test_a_tool_outside_the_main_thread_takes_no_signal():
    made = []
    thread = threading.Thread(target=lambda: made.append(Squares({})))
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert made and signal.getsignal(signal.SIGTERM) is before


def test_reports_tell_counts_rates_errors_and_progress(log):
    tool = Squares({"report_interval": "0"}, [1, ValueError("x")], logger=log[0])
    tool.total_expected_items = 4
    tool.prepare_local_dispatcher()
    list(tool.run())
    lines = [line.getMessage() for line in log[1].records]
    assert lines[0].startswith("START Squares started=20") and "items=0/0" in lines[0]
    assert "errors=1/1" in lines[2]
    assert "items=0/2" in lines[-1] and "errors=0/1" in lines[-1] and "progress=2/4 (50.00%)" in lines[-1]
    assert [line.split()[0] for line in lines] == ["START", "RUN", "RUN", "DONE"]


def test_between_two_reports_nothing_is_logged(log):
    tool = Squares({}, range(5), logger=log[0])
    tool.prepare_local_dispatcher()
    list(tool.run())
    assert [line.getMessage().split()[0] for line in log[1].records] == ["START", "DONE"]


def test_what_a_tool_must_write_is_named():
    for name in (
        "items_from_task_event", "task_event_from_item", "tasks_res_from_res_event", "res_event_from_task_res",
        "string_from_item",
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match=name):
            getattr(Tool, name)({})
    tool = Tool(CONF)
    with pytest.raises(NotImplementedError, match="create_worker"):
        tool.prepare_local_dispatcher()
    with pytest.raises(NotImplementedError, match="_process_item"):
        ToolWorker(tool, None, None)._process_item(1)
