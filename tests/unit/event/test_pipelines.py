# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The handlers file: what it means, what is wrong in it, what filters are given."""

import importlib.metadata
import logging
from pathlib import Path

import pytest

from oio.common.exceptions import ConfigurationException, ExplicitBury
from oio.event import pipelines as pipelines_module
from oio.event.filters.base import Filter, make_filter_factory
from oio.event.pipelines import Answer, MeasuredFilter, Pipelines, load_factory

ETC = Path(__file__).parents[3] / "etc"


class Spy(Filter):
    """Remembers its options and writes its name in the event."""

    made: list = []

    def init(self):
        Spy.made.append(self)
        self.closed = 0

    def process(self, env, beanstalkd, cb):
        env.setdefault("path", []).append(self.conf.get("name"))
        if env.get("stop") == self.conf.get("name"):
            return cb(503, "stopped")
        return self.app(env, beanstalkd, cb)

    def close(self):
        self.closed += 1


class FakeDistribution:
    metadata = {"Name": "My.Shop_Filters"}


@pytest.fixture
def points(monkeypatch):
    """Entry points of a distribution that is not there."""
    Spy.made = []

    def point(name, value):
        found = importlib.metadata.EntryPoint(name, value, "oio.event.filter_factory")
        vars(found)["dist"] = FakeDistribution()
        return found

    found = [
        point("spy", f"{__name__}:filter_factory"),
        point("main", f"{__name__}:filter_factory"),
        point("function", f"{__name__}:function_factory"),
        point("nothing", f"{__name__}:NOT_THERE"),
        point("five", f"{__name__}:FIVE"),
        point("broken", "no_such_module:x"),
        point("raising", f"{__name__}:raising_factory"),
    ]
    real = pipelines_module.entry_points
    monkeypatch.setattr(pipelines_module, "entry_points", lambda group: [*real(group=group), *found])


def function_factory(global_conf, **local_conf):
    return lambda app: lambda env, beanstalkd, cb: app(env, beanstalkd, cb)


def raising_factory(global_conf, **local_conf):
    raise RuntimeError("no shop")


FIVE = 5
filter_factory = make_filter_factory(Spy)


@pytest.fixture
def load(tmp_path, points):
    def load(text, conf=None, env=None):
        path = tmp_path / "100% handlers.conf"
        path.write_text(text)
        return Pipelines(env or {}, conf or {}, str(path))

    return load


def run(pipelines, kind, **more):
    answer = Answer()
    event = {"event": kind, **more}
    pipelines.by_type[kind].call(event, None, answer)
    return event, answer


def test_filters_are_called_in_order(load):
    pipelines = load(
        "[handler:a]\npipeline = one two\n\tone\n[handler:b]\npipeline =\n[handler:c]\n"
        "[filter:one]\nuse = egg:my-shop-filters#spy\nname = 1\n"
        "[filter:two]\nuse = egg:My.Shop_Filters\nname = 2\n"
    )
    assert set(pipelines.by_type) == {"a", "b", "c"}
    event, answer = run(pipelines, "a")
    assert event["path"] == ["1", "2", "1"] and answer.status == 200
    for kind in ("b", "c"):
        event, answer = run(pipelines, kind)
        assert answer.status == 200 and "path" not in event
    # An instance for each place in each pipeline.
    assert len(Spy.made) == 3 and len(set(map(id, Spy.made))) == 3


def test_a_filter_may_end_the_pipeline(load):
    pipelines = load(
        "[handler:a]\npipeline = one two\n"
        "[filter:one]\nuse = egg:my-shop-filters#spy\nname = 1\n"
        "[filter:two]\nuse = one\nname = 2\n"
    )
    event, answer = run(pipelines, "a", stop="1")
    assert event["path"] == ["1"] and (answer.status, answer.message) == (503, "stopped")
    assert answer.failed_in == "one"
    run(pipelines, "a", stop="2")
    run(pipelines, "a")
    one, two = pipelines.by_type["a"].filters
    assert [(step.name, step.calls, step.errors) for step in (one, two)] == [("one", 3, 1), ("two", 2, 1)]
    assert one.seconds >= two.seconds > 0


def test_options(load, caplog):
    caplog.set_level(logging.WARNING)
    pipelines = load(
        "[DEFAULT]\nshared = default\nmine = default\n"
        "[handler:a]\npipeline = one two three\n"
        "[filter:one]\nuse = egg:my-shop-filters#spy\nname = %(shared)s/100%%\nCase = Kept\ntube = own\nmine = x\n"
        "[filter:two]\nuse = one\nname = 2\n"
        "[filter:three]\nuse = two\nextra = %(__file__)s\n",
        {"shared": "agent", "tube": "oio"},
        {"pool": "the pool"},
    )
    assert [step.name for step in pipelines.by_type["a"].filters] == ["one", "two", "three"]
    three, two, one = Spy.made
    # The values of the agent come before those of [DEFAULT], those of the section before both; but a section
    # cannot change what [DEFAULT] has.
    assert one.conf["shared"] == "agent" and one.conf["tube"] == "own" and one.conf["mine"] == "default"
    assert any("mine" in record.getMessage() for record in caplog.records)
    assert one.conf["name"] == "default/100%" and one.conf["Case"] == "Kept"
    assert (two.conf["name"], two.conf["Case"], two.conf["tube"]) == ("2", "Kept", "own")
    assert three.conf["name"] == "2" and three.conf["extra"].endswith("/100% handlers.conf")
    assert "use" not in three.own_conf
    assert one.app_env == {"pool": "the pool"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("junk", "Cannot read"),
        ("[handler:a]\npipeline = %(missing)s\n", "Cannot read"),
        ("[handler:a]\n[handler:a]\n", "Cannot read"),
        ("[handler:a]\npipeline = x\n", r"\[filter:x\] is missing"),
        ("[handler:a]\npipeline = x\n[filter:x]\n", "no use="),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = y\n", r"\[filter:y\] is missing \(used by x\)"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = y\n[filter:y]\nuse = x\n", "x -> y -> x is a loop"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:nobody#x\n", "no distribution nobody"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:oio#none\n", "cannot load.*none"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:oio#base\n", "cannot load.*base"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:my.shop.filters#no\n", "has only broken, five"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:my.shop.filters#nothing\n", "cannot load"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:my.shop.filters#broken\n", "cannot load"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:my.shop.filters#five\n", "cannot be called"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = call:x#y\n", "is not egg:"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:\n", "is not egg:"),
        ("[filter:x]\nuse = egg:a#b\n[filter: x]\nuse = egg:a#b\n", "several"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:oio#content_cleaner\ntimeout = soon\n", "timeout"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:oio#notify\n", "queue_url"),
        ("[handler:a]\npipeline = x\n[filter:x]\nuse = egg:my.shop.filters#raising\n", "RuntimeError: no shop"),
    ],
)
def test_mistakes(load, text, reason):
    with pytest.raises(ConfigurationException, match=reason) as caught:
        load(text)
    assert "\n" not in str(caught.value)


def test_a_mistake_closes_what_was_made(load):
    with pytest.raises(ConfigurationException):
        load(
            "[handler:a]\npipeline = one\n[handler:b]\npipeline = none\n"
            "[filter:one]\nuse = egg:my-shop-filters#spy\n"
        )
    assert [step.closed for step in Spy.made] == [1]


def test_unknown_sections_are_told(load, caplog):
    pipelines = load("[handlers:a]\npipeline = x\n[handler:b]\n")
    assert set(pipelines.by_type) == {"b"}
    assert any("handlers:a" in record.getMessage() for record in caplog.records)


def test_usual_consumers():
    env = {"source": None}
    pipelines = Pipelines(env, {"namespace": "NS", "proxy": "127.0.0.1:1"})
    names = {kind: [step.name for step in one.filters] for kind, one in pipelines.by_type.items()}
    assert names["storage.content.deleted"] == names["storage.content.drained"] == ["content_cleaner"]
    assert names["storage.chunk.new"] == ["volume_index"]
    assert names["account.services"] == ["account_update", "volume_index"]
    assert names["storage.content.new"] == []
    pipelines.close()


def test_the_sample_can_be_loaded():
    pipelines = Pipelines(
        {}, {"namespace": "NS", "proxy": "127.0.0.1:1", "tube": "oio"}, str(ETC / "event-handlers.conf-sample")
    )
    notifiers = [
        step
        for kind in ("storage.content.broken", "storage.content.perfectible")
        for step in pipelines.by_type[kind].filters
    ]
    assert [step.inner.conf["tube"] for step in notifiers] == ["oio-rebuild", "oio-improve"]
    assert set(pipelines.by_type) == set(pipelines_module.DEFAULT_PIPELINES)
    pipelines.close()


def test_installed_entry_points():
    """What is declared is what is found by name, installed or not."""
    assert load_factory("egg:oio#default", pipelines_module.HANDLER_GROUP, "x").__module__ == "oio.event.handlers"
    for name in ("account_update", "bury", "content_cleaner", "dump", "logger", "meta2_index", "noop", "notify",
                 "replicate", "volume_index", "webhook"):  # fmt: skip
        assert callable(load_factory(f"egg:oio#{name}", pipelines_module.FILTER_GROUP, "x"))


def test_the_failure_is_blamed_on_the_right_filter():
    def inner(env, beanstalkd, cb):
        raise ExplicitBury("no")

    second = MeasuredFilter("second", inner)
    first = MeasuredFilter("first", lambda env, beanstalkd, cb: second(env, beanstalkd, cb))
    answer = Answer()
    with pytest.raises(ExplicitBury):
        first({}, None, answer)
    assert (first.errors, second.errors, answer.failed_in) == (0, 1, "second")
    assert second.counts() == {}
    second.close()


def test_the_handler_answers():
    from oio.event.handlers import Handler

    class App:
        app_env: dict = {}

    class Broken(Handler):
        def process(self, env):
            raise ValueError("x")

    answer = Answer()
    Broken(App(), {})({"event": "x"}, None, answer)
    assert answer.status == 500
    Handler(App(), {})({"event": "x"}, None, answer)
    assert answer.status == 200 and answer.is_done


def test_the_variables_of_all_sections_are_replaced_as_their_options(load, caplog):
    load(
        "[DEFAULT]\nroom = 100%%\nroot = /srv\npath = %(root)s/x\nmine = %(name)s\n"
        "[handler:a]\npipeline = one\n[filter:one]\nuse = egg:my-shop-filters#spy\nname = 1\nlocal = %(path)s\n"
    )
    (spy,) = Spy.made
    assert (spy.conf["room"], spy.conf["path"], spy.conf["local"]) == ("100%", "/srv/x", "/srv/x")
    assert spy.conf["__file__"].endswith("/100% handlers.conf")
    assert "has no effect" not in caplog.text


def test_a_filter_before_a_function_has_what_all_share(load):
    """A function keeps nothing, and must not hide it."""
    env = {"account_client": object()}
    load(
        "[handler:a]\npipeline = one two three\n[filter:one]\nuse = egg:my-shop-filters#spy\n"
        "[filter:two]\nuse = egg:my-shop-filters#function\n[filter:three]\nuse = one\n", env=env,
    )  # fmt: skip
    assert [spy.app_env for spy in Spy.made] == [env, env]
