# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Containers of three copies seen through the proxy: masters that leave, die or hang, and copies that move."""

import json
import os
import threading
import time

import pytest
from proxy_http import RawContainer, RawProxy, fresh_name
from support import ACCOUNT, eventually, start_cluster

from oio.common.zookeeper_server import find_zookeeper

pytestmark = pytest.mark.skipif(find_zookeeper() is None, reason="ZooKeeper is not installed")

#: A master that dies is replaced within its lease; one that hangs is looked at first (seconds).
FAIL_OVER_S = 8.0
OK = {"status": 200, "message": "OK"}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A cluster with three copies of everything, and a meta2 more."""
    made = start_cluster(
        tmp_path_factory.mktemp("masters"), f"M{os.getpid()}", replicas=3, meta2=4, rawx=3, proxy_workers=1
    )
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def proxy(sandbox):
    made = RawProxy(sandbox.proxy, sandbox.namespace)
    made.pool.read_timeout_s = 70.0
    yield made
    made.pool.close()


class Box(RawContainer):
    """A container of three copies."""

    def __init__(self, proxy, name):
        super().__init__(proxy, ACCOUNT, fresh_name(name))
        assert self.post("container/create").status == 201

    def admin(self, route, body=None, headers=None, **query):
        """An admin request about the base."""
        where = {"type": "meta2", **self.where, **query}
        return self.proxy.post(f"admin/{route}", where, body, headers)

    def each(self, route, **query):
        """Status of each peer."""
        answer = self.admin(route, **query)
        assert answer.status == 200, answer
        return {name: entry["status"] for name, entry in answer.json.items()}

    def master(self):
        """Id of the master, '' when there is none now."""
        return next((name for name, one in self.each("status").items() if one == OK), "")

    def set(self, headers=None, **properties):
        """Set properties."""
        return self.proxy.post("container/set_properties", self.where, {"properties": properties}, headers)

    def properties(self, headers=None, **query):
        """Properties of the user, by the proxy or by a service."""
        answer = self.proxy.post("container/get_properties", {**self.where, **query}, headers=headers)
        assert answer.status == 200, answer
        return answer.json["properties"]


@pytest.fixture
def box(proxy, request):
    return Box(proxy, request.node.name)


def whole(sandbox, box):
    """Wait until all the copies of a container are the same and have a master."""

    def same():
        if not box.master():
            return False
        seen.clear()
        seen.extend(box.admin("get_properties", service_id=name) for name in box.each("has"))
        # Their files need not have the same number of pages.
        return all(one.status == 200 for one in seen) and all(content(one) == content(seen[0]) for one in seen)

    def content(answer):
        system = answer.json["system"]
        return answer.json["properties"], {key: system[key] for key in system if not key.startswith("stats.")}

    seen = []
    try:
        eventually(same, 30, "all copies are the same")
    except AssertionError:
        raise AssertionError([one.json for one in seen]) from None


# --- elections


def test_one_of_three_is_the_master(sandbox, box):
    # A majority made the container: the last one may come late to it.
    whole(sandbox, box)

    def known():
        states = box.each("status")
        masters = [name for name, one in states.items() if one == OK]
        others = [{"status": 303, "message": name} for name in masters] * 2
        return states if len(masters) == 1 and [one for one in states.values() if one != OK] == others else None

    states = eventually(known, what="a master that all know")
    master = box.master()
    assert all(one == OK for one in box.each("ping").values())
    paths = {entry["body"] for entry in box.admin("has").json.values()}
    assert len(paths) == 3 and all(os.path.exists(path) for path in paths)
    seen = box.admin("debug").json
    assert {one["body"]["local"]["state"] for one in seen.values()} == {"MASTER", "SLAVE"}
    assert {one["body"]["master"]["id"] for one in seen.values()} == {master}
    for name, one in seen.items():
        assert sorted([*one["body"]["peers"], name]) == sorted(states)
    told = box.each("sync")
    assert told.pop(master)["status"] == 301 and all(one == OK for one in told.values())


def test_a_master_that_leaves_is_replaced(box):
    former = box.master()
    assert box.each("leave", service_id=former) == {former: OK}
    assert box.set(a="1").status == 200
    assert box.properties() == {"a": "1"}
    eventually(lambda: box.master() not in ("", former), what="another master")


def test_masters_are_balanced(sandbox, proxy):
    boxes = [Box(proxy, f"balanced{number}") for number in range(6)]
    left = 0
    for service in sandbox.services("meta2"):
        answer = proxy.post("/v3.0/forward/balance-masters", {"id": service.addr, "max": 2})
        assert answer.status == 200 and 0 <= int(answer.data) <= 2
        left += int(answer.data)
    assert left >= 1
    for box in boxes:
        assert box.set(a="1").status == 200
    info = [proxy.get("/v3.0/forward/info", {"id": one.addr}).json for one in sandbox.services("meta2")]
    assert {one["replication"] for one in info} == {"QUORUM"}


# --- what is written is read


def test_what_was_written_is_read(box):
    for number in range(60):
        assert box.set(n=str(number)).status == 200
        assert box.properties() == {"n": str(number)}


def test_copies_can_be_read(sandbox, box):
    box.set(a="1")
    whole(sandbox, box)
    for name in box.each("status"):
        assert box.properties(service_id=name) == {"a": "1"}
    for _ in range(5):
        assert box.properties({"x-oio-prefer-slave": "1"}) == {"a": "1"}
    assert box.properties({"x-oio-prefer-slave": "1", "x-oio-force-master": "1"}) == {"a": "1"}


# --- failures


class Writer:
    """Sets a property after the other, and keeps what it was told."""

    def __init__(self, box, number):
        self.box, self.number = box, number
        self.written, self.failures, self.longest_s = [], [], 0.0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        count = 0
        while not self.stop.is_set():
            key = f"w{self.number}.{count}"
            begin = time.monotonic()
            answer = self.box.set(**{key: "x"})
            self.longest_s = max(self.longest_s, time.monotonic() - begin)
            if answer.status == 200:
                self.written.append(key)
            else:
                self.failures.append(answer)
            count += 1

    def end(self):
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.mark.parametrize("misfortune", ["kill", "pause"])
def test_writes_go_on_when_the_master_fails(sandbox, box, misfortune):
    former = box.master()
    pid = sandbox.pids()[former]
    writers = [Writer(box, number) for number in range(3)]
    try:
        eventually(lambda: all(len(one.written) > 5 for one in writers), what="writes")
        getattr(sandbox, misfortune)(former)
        counts = [len(one.written) for one in writers]
        eventually(
            lambda: all(len(one.written) > count + 10 for one, count in zip(writers, counts, strict=True)),
            30,
            "writes after the failure",
        )
    finally:
        for one in writers:
            one.end()
        if misfortune == "pause":
            sandbox.resume(former)
    assert not [failure for one in writers for failure in one.failures]
    assert max(one.longest_s for one in writers) < FAIL_OVER_S
    if misfortune == "kill":
        sandbox.wait_restarted(former, pid)
    assert sorted(box.properties()) == sorted(key for one in writers for key in one.written)
    whole(sandbox, box)


def test_without_a_majority_nothing_is_written_and_copies_are_read(sandbox, box):
    box.set(a="1")
    whole(sandbox, box)
    names = list(box.each("status"))
    sandbox.stop(*names[:2])
    try:
        for call in (
            lambda: box.set({"x-oio-timeout": "2500000"}, a="2"),
            lambda: box.proxy.post("container/get_properties", box.where, headers={"x-oio-timeout": "2500000"}),
        ):
            begin = time.monotonic()
            answer = call()
            assert answer.code == (503, 503) and time.monotonic() - begin < 4
            message = answer.json["message"]
            assert message.startswith("No service replied (last error: ") and names[2] in message
        assert box.properties({"x-oio-prefer-slave": "1"}) == {"a": "1"}
        answer = box.admin("get_properties", headers={"x-oio-timeout": "3000000"})
        assert answer.status == 200 and answer.json["properties"] == {"a": "1"}
        told = box.each("has")
        assert told[names[2]] == OK and {told[name]["status"] for name in names[:2]} == {503}
    finally:
        sandbox.start(*names[:2])
    assert box.set(a="3").status == 200
    assert box.properties() == {"a": "3"}


def test_references_are_found_when_a_meta1_dies(sandbox, proxy, box):
    told = proxy.post("admin/status", {"type": "meta1", **box.where}).json
    master = next(name for name, one in told.items() if one["status"] == OK)
    service = next(one for one in sandbox.services("meta1") if one.addr == master)
    pid = sandbox.pids()[service.name]
    sandbox.kill(service.name)
    begin = time.monotonic()
    other = Box(proxy, "after")
    assert proxy.post("reference/set_properties", box.where, {"properties": {"a": "b"}}).status == 204
    assert time.monotonic() - begin < 2 * FAIL_OVER_S
    assert other.set(a="1").status == 200
    sandbox.wait_restarted(service.name, pid)


# --- copies


def test_a_defragmentation_reaches_all_copies(sandbox, box):
    def versions():
        copies = [box.admin("get_properties", service_id=name).json["system"] for name in box.each("has")]
        return [(int(one["version:main.admin"].split(":")[0]), one.get("sys.last_vacuum")) for one in copies]

    whole(sandbox, box)
    before = max(version for version, _ in versions())
    assert box.admin("vacuum").json == {}
    eventually(lambda: all(version > before and when for version, when in versions()), what="all copies")


def test_a_copy_is_moved(sandbox, proxy, box):
    box.set(a="1")
    whole(sandbox, box)
    old = sorted(box.each("status"))
    source = old[0]
    target = next(one.name for one in sandbox.services("meta2") if one.name not in old)
    new = sorted([*old[1:], target])
    answer = box.admin("set_properties", {"system": {"sys.peers": ",".join(new)}})
    assert (answer.status, answer.json) == (200, {})
    assert box.admin("copy", {"from": old[1], "to": target}).status == 204
    link = {"type": "meta2", "seq": 1, "host": ",".join(new), "args": ""}
    answer = proxy.post("reference/force", {**box.where, "type": "meta2", "replace": "1"}, link)
    assert answer.status in (200, 204), answer
    box.each("leave", service_id=source)
    assert box.each("remove", service_id=source) == {source: OK}
    assert box.each("has", service_id=source)[source]["status"] == 431
    eventually(lambda: box.master() in new, what="a master")
    assert sorted(box.each("has")) == new
    assert box.set(b="2").status == 200
    assert box.properties() == {"a": "1", "b": "2"}
    assert box.admin("get_properties", service_id=target).json["system"]["sys.peers"] == ",".join(new)


def test_a_copy_without_which_writes_would_be_lost_is_not_removed(sandbox, box):
    whole(sandbox, box)
    told = box.each("status")
    master = box.master()
    slave, late = (name for name in told if name != master)
    sandbox.pause(late)
    try:
        assert box.set(a="1").status == 200
        sandbox.stop(slave)
        try:
            refused = box.each("remove", service_id=master)[master]
        finally:
            sandbox.start(slave)
    finally:
        sandbox.resume(late)
    assert refused["status"] == 503 and "is needed: 0 of the 2 others hold all" in refused["message"]
    assert box.properties() == {"a": "1"}
    whole(sandbox, box)
    eventually(lambda: box.each("remove", service_id=slave) == {slave: OK}, what="the others hold all of it")
    assert box.properties() == {"a": "1"}


def test_the_master_pushes_a_copy(sandbox, box):
    box.set(a="1")
    whole(sandbox, box)
    slave = next(name for name, one in box.each("status").items() if one["status"] == 303)
    assert box.each("remove", service_id=slave) == {slave: OK}
    assert box.each("has")[slave]["status"] == 431
    assert box.set(b="2").status == 200
    answer = box.admin("copy", {"to": slave})
    assert (answer.status, answer.json) == (200, {})
    eventually(lambda: box.each("has")[slave] == OK, what="the copy")
    whole(sandbox, box)
    assert box.properties(service_id=slave) == {"a": "1", "b": "2"}


def test_a_container_is_copied_and_destroyed_everywhere(sandbox, proxy, box):
    box.set(a="1")
    name = fresh_name("copy")
    body = {"account": ACCOUNT, "container": name}
    assert proxy.post("container/snapshot", box.where, body).status == 204
    copy = {"acct": ACCOUNT, "ref": name}
    answer = proxy.post("container/get_properties", copy)
    assert answer.json["properties"] == {"a": "1"}

    def files():
        told = proxy.post("admin/has", {"type": "meta2", **copy}).json
        return [entry["body"] for entry in told.values() if entry["status"] == OK]

    paths = eventually(lambda: len(files()) == 3 and files(), what="all copies")
    assert all(os.path.exists(path) for path in paths)
    assert proxy.post("container/destroy", copy).status == 204
    eventually(lambda: not any(os.path.exists(path) for path in paths), what="all copies are gone")
    assert proxy.post("container/destroy", copy).status == 404
    names = [fresh_name("many") for _ in range(3)]
    body = {"containers": [{"name": name} for name in names]}
    outcomes = json.loads(proxy.post("container/create_many", {"acct": ACCOUNT}, body).data)["containers"]
    assert [one["status"] for one in outcomes] == [201] * 3


# --- failures made on purpose


def test_calls_that_are_lost_on_the_way_are_made_again(proxy, box):
    """By the proxy: clients notice when all the copies are lost, and only then."""
    names = {place: f"enbug.proxy.request_failure.{place}" for place in ("first", "middle", "last")}

    def lose(**percents):
        wanted = {name: str(percents.get(place, 0)) for place, name in names.items()}
        assert proxy.post("/v3.0/config", body=wanted).json == dict.fromkeys(wanted, True)

    master = box.master()
    expected = {}
    try:
        for percents in ({"first": 100}, {"last": 100}, {"middle": 100}, dict.fromkeys(names, 50)):
            lose(**percents)
            for number in range(5):
                expected[f"k{len(expected)}"] = str(number)
                assert box.set(**expected).status == 200, percents
                assert box.properties() == expected
        lose(**dict.fromkeys(names, 100))
        refused = box.set({"X-oio-timeout": "500000"}, k="lost")
        assert refused.status == 503 and f"made on purpose ({names['first']})" in refused.json["message"]
    finally:
        lose()
    assert box.properties() == expected
    assert box.master() == master, "whoever is only lost to the proxy stays"
