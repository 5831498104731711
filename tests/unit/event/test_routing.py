# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Which tube, with which options, each event goes to."""

import pytest

from oio.common.variables import DECLARED, Variables
from oio.event import routing
from oio.event.queue import EventsRefused, open_queue
from oio.event.routing import TUBE_VARIABLES, RoutedQueue, emission_url
from oio.event.transport.spool_reader import SpoolReader


def event(kind, number=0):
    return b'{"event":"%s","when":%d}' % (kind.encode(), number)


def contents(directory):
    reader = SpoolReader(str(directory))
    try:
        return [delivery.payload for delivery in reader.reserve(100)]
    finally:
        reader.close()


def test_all_events_share_one_tube_unless_told_otherwise(tmp_path):
    kinds = [*TUBE_VARIABLES, "storage.unknown"]
    with RoutedQueue(f"spool://{tmp_path}", Variables({})) as queue:
        queue.put_many([event(kind) for kind in kinds])
        assert queue.depth() == len(kinds)
    assert contents(tmp_path) == [event(kind) for kind in kinds]


def test_each_kind_has_its_tube(tmp_path):
    names = sorted(set(TUBE_VARIABLES.values()))
    variables = Variables({name: f"tube{index}" for index, name in enumerate(names)})
    with RoutedQueue(f"spool://{tmp_path}", variables) as queue:
        queue.put_many([event(kind, n) for n in range(2) for kind in [*TUBE_VARIABLES, "other"]], keys=["k"] * 32)
        assert queue.depth() == 32
    assert contents(tmp_path) == [event("other", 0), event("other", 1)]
    for index, name in enumerate(names):
        kinds = [kind for kind, variable in TUBE_VARIABLES.items() if variable == name]
        expected = [event(kind, n) for n in range(2) for kind in kinds]
        assert contents(tmp_path / f".tube-tube{index}") == expected


def test_a_change_at_run_time_is_obeyed(tmp_path):
    variables = Variables({})
    with RoutedQueue(f"spool://{tmp_path}", variables) as queue:
        queue.put(event("storage.content.new", 1))
        assert variables.set("meta2.tube.content_created", "elsewhere")
        queue.put(event("storage.content.new", 2))
    assert contents(tmp_path) == [event("storage.content.new", 1)]
    assert contents(tmp_path / ".tube-elsewhere") == [event("storage.content.new", 2)]


def test_what_one_tube_refuses_the_others_have(tmp_path, monkeypatch):
    class Refusing:
        def put_many(self, events, timeout_s=None, keys=None):
            raise EventsRefused("too large", events)

        def close(self):
            return

    def opener(url, tube):
        return Refusing() if tube == "strict" else open_queue(url, tube)

    monkeypatch.setattr(routing, "open_queue", opener)
    variables = Variables({"meta2.tube.content_created": "strict"})
    with RoutedQueue(f"spool://{tmp_path}", variables) as queue:
        with pytest.raises(EventsRefused) as caught:
            queue.put_many([event("storage.content.new"), event("storage.content.deleted")])
    assert caught.value.events == [event("storage.content.new")]
    assert contents(tmp_path) == [event("storage.content.deleted")]


def test_options_of_jobs_come_from_variables():
    variables = Variables({"events.beanstalkd.check_period": "10s", "events.beanstalkd.ttr": "60s"})
    assert emission_url("beanstalk://h:1?ttr=7", variables, 5) == (
        "beanstalk://h:1?ttr=7&priority=5&timeout_s=4.0&max_jobs=512000"
    )
    for other in ("redis://h:1/0", "spool:///d?fsync=0"):
        assert emission_url(other, variables) == other
    queue = open_queue(emission_url("beanstalk://h:1;beanstalk://h:2", Variables({})))
    queue.close()


def test_all_variables_of_tubes_are_declared():
    assert set(TUBE_VARIABLES.values()) <= DECLARED.keys()
