# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Commands of ``openio`` on a manager that answers from memory."""

import importlib.metadata
import logging
import threading
from types import SimpleNamespace

import pytest

from oio.cli import cluster as cluster_module
from oio.cli.auto_listing import list_containers
from oio.cli.bucket import ListBucket
from oio.cli.clientmanager import ClientManager
from oio.cli.cluster import ClusterList, ClusterWait
from oio.cli.object_list import ListObject
from oio.common.autocontainer import HashedContainerBuilder
from oio.common.exceptions import NoSuchContainer, OioException, ServiceBusy

BUILDER = HashedContainerBuilder(bits=8)


class App:
    """What a command needs of the program."""

    def __init__(self, **clients):
        self.log = logging.getLogger("openio.test")
        self.client_manager = SimpleNamespace(
            account="acme", flat_builder=lambda _bits, reqid: BUILDER, **clients
        )

    def request_id(self, prefix="CLI-"):
        return prefix

    def describe_error(self, exc):
        return str(exc)


class Storage:
    """Containers in memory, listed by pages of two."""

    def __init__(self, containers):
        self.containers = containers
        self.asked = []

    def container_list(self, _account, marker=None, **_kwargs):
        names = sorted(name for name in self.containers if marker is None or name > marker)
        return [[name, 0, 0, 0, 0.0] for name in names[:2]]

    def object_list(self, _account, container, limit=2, marker=None, **kwargs):
        self.asked.append((container, kwargs))
        found = self.containers[container]
        if isinstance(found, Exception):
            raise found
        names = [name for name in found if marker is None or name > marker]
        objects = [{"name": name, "size": 1, "hash": "AB", "version": 1, "deleted": False} for name in names]
        page = {"objects": objects[:limit], "prefixes": [], "truncated": len(names) > limit}
        if page["truncated"]:
            page["next_marker"] = names[limit - 1]
        return page


def names_of(command, *args):
    parser = command.get_parser("openio object list")
    _columns, rows = command.take_action(parser.parse_args(args))
    return [row[0] for row in rows]


@pytest.fixture
def storage():
    containers = {"not-auto": ["no"], "FFF": ["no"]}
    for number in range(30):
        name = f"object-{number:02}"
        containers.setdefault(BUILDER(name), []).append(name)
    return Storage(containers)


@pytest.mark.parametrize("limit", [1, 10_000, 10_001, 24_999, 25_000, 30_000])
def test_as_many_buckets_as_asked_for_page_after_page(limit):
    names = [f"{number:06}" for number in range(25_000)]

    class Buckets:
        sizes = []

        def bucket_list(self, _account, limit, marker, **_kwargs):
            self.sizes.append(limit)
            first = int(marker) + 1 if marker else 0
            page = names[first : first + limit]
            listed = [{"name": name, "bytes": 0, "objects": 0, "mtime": 1.0} for name in page]
            return {"listing": listed, "truncated": page[-1] < names[-1], "next_marker": page[-1]}

    command = ListBucket(App(storage=Buckets()), None)
    parsed = command.get_parser("openio bucket list").parse_args(["--limit", str(limit), "-f", "value"])
    _columns, rows = command.take_action(parsed)
    assert [row[0] for row in rows] == names[:limit]
    assert max(Buckets.sizes) <= 10_000 and len(Buckets.sizes) == -(-min(limit, len(names)) // 10_000)


def in_order(storage):
    return [name for container in sorted(storage.containers)
            if BUILDER.verify(container) for name in storage.containers[container]]  # fmt: skip


@pytest.mark.parametrize("concurrency", ["1", "3", "100"])
def test_all_computed_containers_are_listed_in_order(storage, concurrency):
    command = ListObject(App(storage=storage), None)
    assert names_of(command, "--auto", "--concurrency", concurrency) == in_order(storage)
    assert command.success


def test_the_limit_cuts_the_total_unless_everything_is_asked_for(storage):
    app = App(storage=storage)
    assert names_of(ListObject(app, None), "--auto", "--limit", "3") == in_order(storage)[:3]
    assert names_of(ListObject(app, None), "--auto", "--limit", "3", "--full") == in_order(storage)


def test_a_marker_starts_in_its_container(storage):
    ordered = in_order(storage)
    for position in (0, 10, 29):
        found = names_of(ListObject(App(storage=storage), None), "--auto", "--marker", ordered[position])
        assert found == ordered[position + 1 :]


def test_a_container_that_fails_is_left_out_and_told(storage, caplog):
    broken = sorted(name for name in storage.containers if BUILDER.verify(name))[2]
    missing = storage.containers[broken]
    expected = [name for name in in_order(storage) if name not in missing]
    storage.containers[broken] = NoSuchContainer(broken)
    command = ListObject(App(storage=storage), None)
    assert names_of(command, "--auto") == expected
    assert not command.success and "Listing may be incomplete" in caplog.text


def test_filters_reach_every_listing(storage):
    names_of(ListObject(App(storage=storage), None), "--auto", "--prefix", "p", "--local", "--attempts", "2")
    for _container, kwargs in storage.asked:
        assert (kwargs["prefix"], kwargs["local"], kwargs["request_attempts"]) == ("p", True, 2)


def test_an_incomplete_entry_is_skipped(caplog):
    command = ListObject(App(), None)
    parsed = command.get_parser("openio object list").parse_args(["c"])
    assert list(command._rows(parsed, [{"name": "a"}, {"name": "p/", "is_prefix": True}])) == [
        ("p/", 0, None, None)
    ]
    assert not command.success and "'a' skipped" in caplog.text


def test_no_more_containers_are_listed_at_once_than_asked():
    running, most, lock = 0, 0, threading.Lock()

    def list_one(name):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        yield {"name": name}
        with lock:
            running -= 1

    names = [str(number) for number in range(20)]
    found = list_containers(names, list_one, lambda *_: None, 4)
    assert [item["name"] for item in found] == names
    assert 1 <= most <= 4


def test_what_came_before_a_failure_is_kept():
    failures = []

    def list_one(name):
        yield {"name": name}
        raise ServiceBusy()

    found = list(list_containers(["a", "b"], list_one, lambda name, exc: failures.append(name), 2))
    assert [item["name"] for item in found] == ["a", "b"] == failures


# --- cluster


class Conscience:
    def __init__(self, scores):
        self.scores = scores
        self.asked = []

    def all_services(self, srv_type, *_args, reqid=None):
        self.asked.append((srv_type, reqid))
        score = self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]
        if isinstance(score, Exception):
            raise score
        return [{"addr": "ip:1", "id": "s", "score": score, "tags": {}}]


@pytest.fixture
def clock(monkeypatch):
    """Time that only passes in pauses."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(cluster_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cluster_module.time, "sleep", sleep)
    return now


def wait(conscience, *args):
    command = ClusterWait(App(conscience=conscience), None)
    return command.take_action(command.get_parser("openio cluster wait").parse_args(args))


def test_the_whole_delay_is_waited(clock):
    with pytest.raises(OioException, match=r"Timeout \(5.0s\).*still 1 are not"):
        wait(Conscience([0]), "rawx", "-d", "5")
    assert clock[0] == pytest.approx(5.0)


def test_too_few_services_are_not_said_to_be_a_conscience_that_is_not_ready(clock):
    with pytest.raises(OioException, match=r"Timeout \(5.0s\).*score >= 1, only 1 of 3 have it\.$"):
        wait(Conscience([10]), "rawx", "-n", "3", "-d", "5")
    with pytest.raises(OioException, match=r"proxy and/or conscience not ready$"):
        wait(Conscience([ServiceBusy()]), "rawx", "-n", "3", "-d", "5")


def test_waiting_ends_as_soon_as_the_score_is_there(clock):
    conscience = Conscience([ServiceBusy(), 0, 10])
    assert list(wait(conscience, "rawx")[1]) == [("rawx", "s", 10)]
    assert conscience.asked == [("rawx", f"CLI-wait-{number}-") for number in range(3)]


def test_each_listing_has_its_request_id():
    conscience = Conscience([1])
    command = ClusterList(App(conscience=conscience), None)
    parsed = command.get_parser("openio cluster list").parse_args(["rawx", "meta2"])
    assert len(list(command.take_action(parsed)[1])) == 2
    assert conscience.asked == [("rawx", "CLI-list-0-"), ("meta2", "CLI-list-1-")]


# --- start


def test_a_parser_is_built_without_reading_installed_packages(monkeypatch):
    def unwanted():
        raise AssertionError("the metadata of all packages were read")

    monkeypatch.setattr("cliff.command.packages_distributions", unwanted, raising=False)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", unwanted)
    assert ListObject(App(), None).get_parser("openio object list") is not None


def test_the_logger_of_the_clients_follows_the_verbosity():
    manager = ClientManager({"namespace": "NS", "log_level": "ERROR"})
    assert manager.logger.level == logging.ERROR
    assert any(isinstance(handler, logging.StreamHandler) for handler in manager.logger.handlers)
