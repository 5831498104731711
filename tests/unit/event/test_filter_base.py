# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What all filters share, and the filters that do next to nothing."""

import json
import logging
import os
import tempfile
import threading
from importlib.metadata import entry_points

import pytest
from filter_kit import Chain, event
from support import eventually

from oio.common.exceptions import ConfigurationException, ExplicitBury
from oio.event.filters import batching, clients
from oio.event.filters.base import Filter, make_filter_factory
from oio.event.filters.batching import Batcher

CATALOGUE = {
    "account_update", "bury", "content_cleaner", "dump", "logger", "meta2_index", "noop", "notify", "replicate",
    "volume_index", "webhook",
}  # fmt: skip


def test_every_filter_of_the_catalogue_is_an_entry_point():
    found = {point.name: point for point in entry_points(group="oio.event.filter_factory")}
    assert found.keys() >= CATALOGUE
    for name in CATALOGUE:
        assert callable(found[name].load())


def test_noop_goes_on():
    chain = Chain("noop")
    assert chain.run(event("storage.content.new")) == 200


def test_logger_writes_the_event(caplog):
    chain = Chain("logger", {"logger": logging.getLogger("test.filters")})
    with caplog.at_level(logging.INFO, "test.filters"):
        assert chain.run(event("storage.content.new")) == 200
    assert "got event:" in caplog.text
    assert "storage.content.new" in caplog.text


def test_bury_buries():
    chain = Chain("bury")
    with pytest.raises(ExplicitBury):
        chain.run(event("storage.content.new"))
    assert chain.passed == []


def test_dump_writes_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    chain = Chain("dump")
    one = event("storage.content.new", job_id="12", data={"name": "é"})
    assert chain.run(one) == 200
    text = (tmp_path / "event_12").read_text()
    assert text == json.dumps(one, indent=4)


def test_dump_stays_in_its_directory_and_follows_no_link(tmp_path, monkeypatch):
    inside = tmp_path / "tmp"
    inside.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(inside))
    chain = Chain("dump")
    assert chain.run(event("storage.content.new", job_id="../x")) == 200
    assert os.listdir(inside) == ["event_.._x"]
    (inside / "event_5").symlink_to(tmp_path / "elsewhere")
    assert chain.run(event("storage.content.new", job_id="5")) == 200
    assert not (tmp_path / "elsewhere").exists()


def test_a_filter_gets_its_options_and_knows_where_they_come_from():
    class Probe(Filter):
        def init(self):
            self.width = self.float_option("width", 1.5)
            self.size = self.int_option("size", 7, own=True)

    factory = make_filter_factory(Probe)
    step = factory({"width": "2", "size": "3", "tube": "oio"}, tube="mine")(None)
    assert (step.width, step.size) == (2.0, 7)
    assert step.conf["tube"] == "mine"
    assert step.own_conf == {"tube": "mine"}
    assert step.global_conf["tube"] == "oio"
    for wrong in ({"width": "x"}, {"width": "-1"}, {"width": "inf"}, {"size": "1.5"}):
        with pytest.raises(ConfigurationException):
            factory({}, **wrong)(None)


@pytest.mark.parametrize("when", [None, "soon", True, -1, 2.0**70, float("nan")])
def test_an_event_without_date_is_buried(when):
    for name, kind in (
        ("account_update", "storage.container.new"),
        ("volume_index", "storage.chunk.new"),
    ):
        with pytest.raises(ExplicitBury):
            Chain(name).run({**event(kind, data={}), "when": when})


class Slow:
    """Something that can be held while others come."""

    def __init__(self):
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def send(self, items):
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.acquire(timeout=5)
        return [ValueError(item) if item < 0 else item * 10 for item in items]


def submit_all(batcher, items, results):
    def one(item):
        try:
            results[item] = batcher.submit(item)
        except Exception as exc:
            results[item] = exc

    threads = [threading.Thread(target=one, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    return threads


def test_what_comes_meanwhile_leaves_together():
    slow, results = Slow(), {}
    batcher = Batcher(slow.send, batch_max=4)
    threads = submit_all(batcher, [1], results)
    slow.entered.acquire()
    threads += submit_all(batcher, [2, 3, -4, 5, 6], results)
    eventually(lambda: len(batcher._waiting) == 5)
    for _ in range(3):
        slow.gate.release()
    for thread in threads:
        thread.join(5)
    assert [len(batch) for batch in slow.batches] == [1, 4, 1]
    assert {item: results[item] for item in (1, 2, 3, 5, 6)} == {1: 10, 2: 20, 3: 30, 5: 50, 6: 60}
    assert isinstance(results[-4], ValueError)
    slow.gate.release()
    assert batcher.submit(7) == 70


def test_a_failure_reaches_all_of_a_batch_and_the_next_one_goes_on():
    calls = []

    def send(items):
        calls.append(items)
        if len(calls) == 1:
            raise OSError("down")
        return items

    batcher = Batcher(send)
    with pytest.raises(OSError, match="down"):
        batcher.submit(1)
    assert batcher.submit(2) == 2
    short = Batcher(lambda items: [])
    with pytest.raises(Exception, match="0 results for 1 items"):
        short.submit(1)


@pytest.mark.parametrize("told", [False, True], ids=["before it was told to send", "after"])
def test_a_thread_that_is_killed_while_it_waits_leaves_the_others_alone(told, monkeypatch):
    slow, results = Slow(), {}
    batcher = Batcher(slow.send)
    threads = submit_all(batcher, [1], results)
    slow.entered.acquire()

    class Killed(BaseException):
        pass

    class Gate:
        """A lock whose waiter is killed, when another has come behind it."""

        def acquire(self):
            threads.extend(submit_all(batcher, [3], results))
            eventually(lambda: len(batcher._waiting) == 2)
            if told:
                slow.gate.release()
                eventually(lambda: batcher._waiting[0].lead)
            raise Killed

        def release(self):
            pass

    real = batching._Entry
    doomed = real(2)
    doomed.gate = Gate()
    monkeypatch.setattr(batching, "_Entry", lambda item: doomed if item == 2 else real(item))
    with pytest.raises(Killed):
        batcher.submit(2)
    slow.gate.release()
    slow.gate.release()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert (results[1], results[3]) == (10, 30)
    assert slow.batches == [[1], [3]]


def test_a_service_that_does_not_answer_is_tried_by_one_at_a_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clients.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(clients.random, "uniform", lambda low, high: high)
    pauses = clients.ServicePauses()
    assert pauses.wait_s("a") == 0
    assert pauses.failed("a") == 1.0
    # Those who were already asking it do not make it longer.
    assert pauses.failed("a") is None
    assert pauses.wait_s("a") == 1.0 + 2.0
    assert pauses.wait_s("b") == 0
    now[0] += 1.0
    assert [pauses.wait_s("a") for _ in range(3)] == [0, 1.0 + 2.0, 1.0 + 2.0]
    assert pauses.failed("a") == 2.0
    assert pauses.wait_s("a") == 2.0 + 4.0
    now[0] += 2.0
    # The one who tries is never heard of again.
    assert [pauses.wait_s("a") > 0 for _ in range(2)] == [False, True]
    now[0] += clients.TRY_MAX_S
    assert [pauses.wait_s("a") > 0 for _ in range(2)] == [False, True]
    pauses.answered("a")
    assert [pauses.wait_s("a") for _ in range(2)] == [0, 0]
    for _ in range(10):
        last_s = pauses.failed("a")
        longest_s = pauses.wait_s("a")
        now[0] += last_s
    assert last_s == clients.PAUSE_MAX_S
    assert longest_s == clients.PAUSE_MAX_S + clients.SPREAD_MAX_S


def test_a_try_that_says_nothing_about_the_service_lets_the_next_one_try(monkeypatch):
    monkeypatch.setattr(clients, "PAUSE_MIN_S", 0.0)
    chain = Chain("noop")
    pauses = clients.pauses_of(chain.filter)
    pauses.failed("a")
    for _ in range(3):
        with pytest.raises(KeyError), clients.asking(chain.filter, "a"):
            assert pauses.wait_s("a") > 0  # one at a time
            raise KeyError
    with clients.asking(chain.filter, "a"):
        pauses.answered("a")
    assert [pauses.wait_s("a") for _ in range(2)] == [0, 0]


def test_events_that_need_a_service_left_alone_say_when_to_come_again():
    chain = Chain("noop")
    clients.check_pause(chain.filter, "a")
    clients.pauses_of(chain.filter).failed("a")
    with pytest.raises(clients.LeftAlone, match="a is left alone") as raised:
        clients.check_pause(chain.filter, "a")
    assert 0 < clients.retry_after(raised.value) <= clients.PAUSE_MIN_S + 2
    assert clients.retry_after(ValueError()) is None
    assert chain.counts == {"paused": 1}
