# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What all filters share, and the filters that do next to nothing."""

import json
import logging
import os
import tempfile
from importlib.metadata import entry_points

import pytest
from filter_kit import Chain, event

from oio.common.exceptions import ConfigurationException, ExplicitBury
from oio.event.filters import clients
from oio.event.filters.base import Filter, make_filter_factory

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
