# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Batch tools that share their work through a real beanstalkd."""

import json
import logging
import signal
import threading
import time

import pytest
from servers import BeanstalkdServer

from oio.common.exceptions import OioException, RetryLater
from oio.common.tool import Tool, ToolWorker, locate_tube
from oio.event.beanstalk import Beanstalk, ResponseError
from oio.event.source import open_source

TUBE = "oio-process"
CONF = {"namespace": "NS", "items_per_second": 0, "concurrency": 2}


class Squares(Tool):
    """Squares numbers that come in events."""

    def __init__(self, conf=(), items=(), **kwargs):
        super().__init__({**CONF, **dict(conf)}, logger=logging.getLogger("test"), **kwargs)
        self.items = items

    def _fetch_items(self):
        yield from self.items

    def create_worker(self, queue_workers, queue_reply):
        return SquareWorker(self, queue_workers, queue_reply)

    @staticmethod
    def items_from_task_event(task_event):
        return task_event["numbers"]

    @staticmethod
    def task_event_from_item(item):
        return {"numbers": [item]}

    @staticmethod
    def tasks_res_from_res_event(res_event):
        return [tuple(res_event["result"])]

    @staticmethod
    def res_event_from_task_res(task_res):
        return {"result": task_res}


class SquareWorker(ToolWorker):
    """Squares a number; does not like some."""

    def _process_item(self, item):
        if item == 13:
            raise RetryLater("not today")
        if item < 0:
            raise ValueError("negative")
        return item * item


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def server(tmp_path):
    if BeanstalkdServer.program is None:
        pytest.skip("no beanstalkd on this machine")
    with BeanstalkdServer(tmp_path) as server:
        yield server


@pytest.fixture
def beanstalk(server):
    client = Beanstalk.from_url(server.url, socket_timeout=5)
    yield client
    client.close()


@pytest.fixture
def services(monkeypatch, server):
    """What the conscience tells."""
    found = [{"addr": server.address, "score": 50, "tags": {}}]
    monkeypatch.setattr("oio.conscience.client.ConscienceClient.__init__", lambda *_, **__: None)
    monkeypatch.setattr("oio.conscience.client.ConscienceClient.all_services", lambda *_: found)
    return found


class Running:
    """A tool that works in a thread of its own."""

    def __init__(self, tool):
        self.tool = tool
        self.results = []
        tool.prepare_local_dispatcher()
        self.thread = threading.Thread(target=lambda: self.results.extend(tool.run()))
        self.thread.start()

    def stop(self):
        self.tool.running = False
        self.thread.join()


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_items_come_from_a_tube(server, beanstalk):
    beanstalk.use(TUBE)
    beanstalk.put(json.dumps({"numbers": [1, 2, -3]}))
    beanstalk.put("no event")
    beanstalk.put(json.dumps({"numbers": []}))
    worker = Running(Squares(beanstalkd_addr=server.address))
    wait_for(lambda: beanstalk.stats_tube(TUBE)["current-jobs-ready"] == 0)
    wait_for(lambda: beanstalk.stats_tube(TUBE)["current-jobs-reserved"] == 0)
    worker.stop()
    assert sorted(worker.results) == [(-3, None, "negative"), (1, 1, None), (2, 4, None)]
    assert beanstalk.stats_tube(TUBE)["current-jobs-buried"] == 1
    assert beanstalk.peek_ready() == (None, None)


def test_an_event_outlives_a_tool_that_dies(server):
    """It is deleted once its items are processed, not before."""
    tool = Squares(beanstalkd_addr=server.address)
    with open_source(server.url, TUBE) as source:
        client = Beanstalk.from_url(server.url)
        client.use(TUBE)
        client.put(json.dumps({"numbers": [1, 2]}))
        client.close()
        items = tool.task_input.items()
        item, task = next(items)
        assert item == 1
        task.item_done((1, 1, None))
        assert source.reserve(0) is None
        tool.task_input.close()
        assert source.delete(source.reserve(2))


def test_retried_items_are_sent_again_later(server, beanstalk):
    beanstalk.use(TUBE)
    beanstalk.put(json.dumps({"numbers": [13]}))
    worker = Running(Squares({"retry_delay": 50}, beanstalkd_addr=server.url))
    wait_for(lambda: beanstalk.stats_tube(TUBE)["current-jobs-delayed"] == 1)
    wait_for(lambda: beanstalk.stats_tube(TUBE)["current-jobs-reserved"] == 0)
    worker.stop()
    assert worker.results == [(13, None, "not today")]
    assert beanstalk.kick() == 1
    assert json.loads(beanstalk.peek_ready()[1]) == {"numbers": [13]}


def test_work_is_shared_with_the_workers(server, services, beanstalk):
    workers = [Running(Squares(beanstalkd_addr=server.address)) for _ in range(2)]
    wait_for(lambda: TUBE in beanstalk.tubes())
    numbers = [*range(-5, 200)]
    tool = Squares(items=numbers)
    tool.prepare_distributed_dispatcher()
    results = sorted(tool.run())
    assert [item for item, _, _ in results] == numbers
    assert all(info == item * item for item, info, _ in results if item >= 0 and item != 13)
    assert (13, None, "not today") in [tuple(result) for result in results]
    assert not tool.is_success()
    for worker in workers:
        worker.stop()
    assert sum(len(worker.results) for worker in workers) == len(numbers)
    assert [tube for tube in beanstalk.tubes() if "reply" in tube] == []
    with pytest.raises(ResponseError):
        beanstalk.stats_tube(TUBE)


def test_no_worker_no_dispatcher(server, services):
    with pytest.raises(OioException, match="no worker"):
        Squares().prepare_distributed_dispatcher()
    services[0]["score"] = 0
    with pytest.raises(OioException, match="No beanstalkd"):
        Squares().prepare_distributed_dispatcher()


def test_silence_is_a_failure(server, services, beanstalk, monkeypatch):
    monkeypatch.setattr("oio.common.tool._SILENCE_MAX_S", 0.3)
    beanstalk.watch(TUBE)
    beanstalk.stats()
    tool = Squares(items=[1, 2])
    tool.prepare_distributed_dispatcher()
    assert list(tool.run()) == []
    assert not tool.is_success()


def test_locating_a_tube(server, beanstalk):
    beanstalk.watch("here")
    beanstalk.stats()
    alive, dead = {"addr": server.address}, {"addr": "127.0.0.1:1"}
    assert locate_tube([dead, alive], "here") == [alive]
    assert locate_tube([dead, alive], "elsewhere") == []
