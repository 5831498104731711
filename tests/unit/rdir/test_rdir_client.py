# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Clients of the reverse directory, against a real service."""

import json
import subprocess
import sys
import threading

import pytest
from support import eventually

from oio.common.exceptions import (
    BadRequest,
    Forbidden,
    NotFound,
    OioNetworkException,
    ServiceBusy,
    VolumeException,
)
from oio.common.utils import cid_from_name
from oio.rdir import client as module
from oio.rdir.client import RdirClient
from oio.rdir.server import failure

CID, CONTENT = "A" * 64, "B" * 32


def chunk_id(number):
    return f"{number:064X}"


def fill(client, count, volume="v"):
    client.chunk_push_many(
        volume,
        [
            {"container_id": CID, "content_id": CONTENT, "chunk_id": chunk_id(n), "mtime": n + 1}
            for n in range(count)
        ],
    )


def counted(rdir):
    """Count the requests that the service gets from now on."""
    before = rdir.service.requests
    return lambda: rdir.service.requests - before


def test_the_life_of_a_record(rdir):
    client = rdir.client()
    client.create("v")
    assert list(client.chunk_fetch("v")) == []
    client.chunk_push("v", CID, CONTENT, chunk_id(1), mtime=5, reqid="x", read_timeout=5.0)
    assert list(client.chunk_fetch("v")) == [(CID, CONTENT, chunk_id(1), {"mtime": 5})]
    full = list(client.chunk_fetch("v", full_urls=True))
    assert full == [(CID, CONTENT, f"http://v/{chunk_id(1)}", {"mtime": 5})]
    client.chunk_delete("v", CID, CONTENT, chunk_id(1))
    assert list(client.chunk_fetch("v")) == []
    client.chunk_delete("v", CID, CONTENT, chunk_id(1), when=9)
    client.chunk_push("v", CID, CONTENT, chunk_id(1), mtime=5, when=8)
    assert list(client.chunk_fetch("v")) == []


@pytest.mark.parametrize(("count", "limit", "requests"), [(0, 3, 1), (6, 3, 2), (7, 3, 3), (5, 10, 1)])
def test_a_listing_takes_the_least_number_of_requests(rdir, count, limit, requests):
    client = rdir.client()
    client.create("v")
    fill(client, count)
    asked = counted(rdir)
    assert [item[2] for item in client.chunk_fetch("v", limit=limit)] == [chunk_id(n) for n in range(count)]
    assert asked() == requests
    asked = counted(rdir)
    assert client.status("v", max=limit)["chunk"] == {"total": count}
    assert asked() == requests


def test_filters_of_listings(rdir):
    client = rdir.client()
    fill(client, 6)
    client.chunk_push("v", "é", "日", "x|y", mtime=50)
    after = f"{CID}|{CONTENT}|{chunk_id(4)}"
    found = [item[:3] for item in client.chunk_fetch("v", limit=1, start_after=after)]
    assert found == [(CID, CONTENT, chunk_id(5)), ("é", "日", "x|y")]
    assert len(list(client.chunk_fetch("v", limit=1, container_id=CID))) == 6
    assert list(client.chunk_fetch("v", rebuild=True)) == []
    client.admin_incident_set("v", 3.9)
    assert client.admin_incident_get("v") == 3
    assert [item[2] for item in client.chunk_fetch("v", limit=2, rebuild=True)] == [chunk_id(n) for n in range(3)]
    assert sorted(client.chunk_fetch("v", limit=4, shuffle=True)) == list(client.chunk_fetch("v"))
    assert client.status("v", max=2) == {
        "chunk": {"total": 7, "to_rebuild": 3},
        "container": {CID: {"total": 6, "to_rebuild": 3}, "é": {"total": 1}},
    }
    assert client.status("v", prefix="é")["chunk"] == {"total": 1, "to_rebuild": 0}
    assert client.status("v", marker=f"{CID}|{CONTENT}|{chunk_id(3)}", max=1)["chunk"]["total"] == 3


def test_a_service_that_does_not_tell_whether_there_is_more(rdir, monkeypatch):
    """Very old services: the listing goes on until nothing comes."""
    client = rdir.client()
    fill(client, 5)
    direct = client._direct_request

    def without_header(*args, **kwargs):
        resp, body = direct(*args, **kwargs)
        resp.headers = {}
        return resp, body

    monkeypatch.setattr(client, "_direct_request", without_header)
    asked = counted(rdir)
    assert len(list(client.chunk_fetch("v", limit=2))) == 5
    assert asked() == 4


def test_administration(rdir):
    client = rdir.client()
    fill(client, 4)
    client.admin_incident_set("v", 2)
    client.admin_lock("v", "me")
    assert client.admin_show("v") == {"incident_date": "2", "lock": "me"}
    with pytest.raises(Forbidden, match="Already locked by me"):
        client.admin_clear("v", clear_all=True)
    client.admin_unlock("v")
    assert client.admin_clear("v", before_incident=True, repair=True) == {"removed": 2, "repaired": 2, "errors": 0}
    assert client.admin_clear("v", clear_all=True)["removed"] == 2
    assert client.admin_clear("v") == {"removed": 0, "repaired": 0, "errors": 0}
    with pytest.raises(NotFound):
        client.admin_show("unknown")


def test_containers(rdir):
    client = rdir.client()
    client.meta2_index_create("m")
    for number in range(5):
        client.meta2_index_push("m", f"TEST/acme/{number}", CID, mtime=1.5, when=10)
    assert client.meta2_index_fetch("m", limit=2)["truncated"]
    urls = [item["container_url"] for item in client.meta2_index_fetch_all("m", limit=2)]
    assert urls == [f"TEST/acme/{number}" for number in range(5)]
    client.meta2_index_delete("m", container_path="TEST/acme/0", when=9)
    client.meta2_index_delete("m", container_path="TEST/acme/1")
    client.directory = Directory({"account": "acme", "name": "2"})
    client.meta2_index_delete("m", container_id=cid_from_name("acme", "2"))
    with pytest.raises(ValueError):
        client.meta2_index_delete("m")
    page = client.meta2_index_fetch("m", prefix="TEST/")
    assert [item["container_url"][-1] for item in page["records"]] == ["0", "3", "4"]
    assert page["records"][0]["mtime"] == 1


class Directory:
    """A directory that knows one thing, or raises it."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0

    def list(self, *_args, **_kwargs):
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def links(*hosts, kind="rdir"):
    return {"srv": [{"seq": 1, "type": kind, "host": host, "args": ""} for host in hosts]}


def test_the_rdir_of_a_volume_is_found_and_remembered(rdir):
    directory = Directory(links(rdir.address, "1.2.3.4:5"))
    client = RdirClient({"namespace": "TEST"}, directory_client=directory, endpoint="127.0.0.1:1")
    client.create("v")
    client.create("v")
    assert directory.asked == 1
    directory.answer = links("127.0.0.1:1")
    client._clear_cache("v")
    with pytest.raises(OioNetworkException):
        client.create("v")
    directory.answer = links(rdir.address)
    client.create("v")
    assert directory.asked == 3


def test_an_address_is_asked_again_from_time_to_time(rdir, monkeypatch):
    directory, now = Directory(links("127.0.0.1:1")), [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    client = RdirClient({"namespace": "TEST"}, directory_client=directory, endpoint="127.0.0.1:1")
    assert client._get_rdir_addr("v") == "127.0.0.1:1"
    directory.answer = links(rdir.address)
    assert client._get_rdir_addr("v") == "127.0.0.1:1"
    now[0] += module.ADDRESS_AGE_MAX_S
    assert client._get_rdir_addr("v") == rdir.address
    now[0] += module.ADDRESS_AGE_MAX_S
    directory.answer = ServiceBusy(503, 503, "down")
    assert client._get_rdir_addr("v") == rdir.address
    assert directory.asked == 3
    with pytest.raises(ServiceBusy):
        client._get_rdir_addr("other")
    now[0] += module.ADDRESS_AGE_MAX_S
    directory.answer = links()
    with pytest.raises(VolumeException):
        client._get_rdir_addr("v")


@pytest.mark.parametrize("answer", [NotFound(404, 406, "no reference"), links(), links("h:1", kind="meta2"), {}])
def test_a_volume_without_rdir(answer):
    client = RdirClient({"namespace": "TEST"}, directory_client=Directory(answer), endpoint="127.0.0.1:1")
    with pytest.raises(VolumeException, match="No rdir assigned to volume v"):
        client.chunk_push("v", CID, CONTENT, "c")


def test_reads_are_tried_again_after_network_errors(rdir, monkeypatch):
    client = rdir.client()
    fill(client, 3)
    pauses, failures = [], [OioNetworkException("lost")] * 2
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    direct = client._direct_request

    def failing(*args, **kwargs):
        if failures:
            raise failures.pop()
        return direct(*args, **kwargs)

    monkeypatch.setattr(client, "_direct_request", failing)
    assert len(list(client.chunk_fetch("v"))) == 3
    assert pauses == [0, 1]
    failures += [OioNetworkException("lost")] * 3
    with pytest.raises(OioNetworkException):
        client.status("v")


def concurrently(functions, begun=None):
    """Call functions at once, or once what the first one does has begun; gives what they raised, in order."""
    raised = [None] * len(functions)

    def call(index):
        try:
            functions[index]()
        except Exception as exc:
            raised[index] = exc

    threads = [threading.Thread(target=call, args=(index,), daemon=True) for index in range(len(functions))]
    threads[0].start()
    assert begun is None or begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def held(rdir, client, monkeypatch, count):
    """Have the first request of a client wait until `count` more callers queue behind it.

    Gives what counts the requests, and the event that the first one has begun.
    """
    direct, begun = client._direct_request, threading.Event()

    def waiting(*args, **kwargs):
        if not begun.is_set():
            begun.set()
            eventually(lambda: sum(len(one._group._queue) for one in client._batchers.values()) == count)
        return direct(*args, **kwargs)

    monkeypatch.setattr(client, "_direct_request", waiting)
    return counted(rdir), begun


def test_concurrent_callers_share_requests(rdir, monkeypatch):
    client = rdir.batching_client()
    client.create("v")
    asked, begun = held(rdir, client, monkeypatch, 49)
    pushes = [
        lambda n=n: client.chunk_push("v", CID, CONTENT, chunk_id(n), mtime=5, reqid=f"r{n}") for n in range(50)
    ]
    assert concurrently(pushes, begun) == [None] * 50
    assert asked() == 2
    assert len(list(client.chunk_fetch("v"))) == 50
    asked, begun = held(rdir, client, monkeypatch, 39)
    deletes = [lambda n=n: client.chunk_delete("v", CID, CONTENT, chunk_id(n)) for n in range(40)]
    assert concurrently(deletes, begun) == [None] * 40
    assert asked() == 2
    assert len(list(client.chunk_fetch("v"))) == 10


def test_a_bad_record_fails_alone(rdir, monkeypatch):
    client = rdir.batching_client()
    client.create("v")
    _, begun = held(rdir, client, monkeypatch, 9)
    mtimes = [5] * 5 + ["bad"] + [5] * 4
    pushes = [
        lambda n=n, m=m: client.chunk_push("v", CID, CONTENT, chunk_id(n), mtime=m) for n, m in enumerate(mtimes)
    ]
    raised = concurrently(pushes, begun)
    assert [type(exc) for exc in raised] == [type(None)] * 5 + [BadRequest] + [type(None)] * 4
    assert len(list(client.chunk_fetch("v"))) == 9
    assert not client._without_batches


def test_a_service_without_batches_is_asked_one_by_one(rdir, monkeypatch):
    client = rdir.batching_client()
    del rdir.service._routes["/v1/rdir/push-many"]
    client.create("v")
    asked, begun = held(rdir, client, monkeypatch, 4)
    pushes = [lambda n=n: client.chunk_push("v", CID, CONTENT, chunk_id(n), mtime=5) for n in range(5)]
    assert concurrently(pushes, begun) == [None] * 5
    assert asked() == 6
    assert client._without_batches == {"v"}


def test_all_the_callers_of_a_batch_learn_that_it_failed(rdir, monkeypatch):
    client = rdir.batching_client()
    client.create("v")
    _, begun = held(rdir, client, monkeypatch, 7)
    monkeypatch.setitem(
        rdir.service._routes, "/v1/rdir/push-many", {"POST": lambda *_: failure(503, 503, "full")}
    )
    pushes = [lambda n=n: client.chunk_push("v", CID, CONTENT, chunk_id(n), mtime=5) for n in range(8)]
    raised = concurrently(pushes, begun)
    assert sorted(type(exc).__name__ for exc in raised) == ["NoneType"] + ["ServiceBusy"] * 7
    assert isinstance(raised[-1], ServiceBusy | None)


GREEN = """
import eventlet
eventlet.monkey_patch()
import sys
from oio.rdir.client import BatchingRdirClient
client = BatchingRdirClient({"namespace": "TEST"}, endpoint="127.0.0.1:1")
client._get_rdir_addr = lambda _volume, **_kwargs: sys.argv[1]
direct = client._direct_request
def held(*args, **kwargs):
    client._direct_request = direct
    with eventlet.Timeout(30):
        while sum(len(one._group._queue) for one in client._batchers.values()) < 99:
            eventlet.sleep(0.001)
    return direct(*args, **kwargs)
client._direct_request = held
def push(number):
    client.chunk_push("v", "A" * 64, "B" * 32, f"{number:064X}", mtime=5)
pool = eventlet.GreenPool(100)
list(pool.imap(push, range(100)))
"""


def test_green_threads_share_requests(rdir):
    """The first request waits until all the others queue behind it; they leave together."""
    asked = counted(rdir)
    subprocess.run([sys.executable, "-c", GREEN, rdir.address], check=True, timeout=60)
    assert asked() == 2
    assert len(list(rdir.client().chunk_fetch("v"))) == 100


def test_values_of_the_service_are_those_of_the_client(rdir):
    """What one pushes through the library is read in plain HTTP, and the reverse."""
    rdir.client().chunk_push("v", CID, CONTENT, chunk_id(1), mtime=5, content_path="ignored")
    assert json.loads(rdir.ask("POST", "/v1/rdir/fetch?vol=v").data) == [
        [f"{CID}|{CONTENT}|{chunk_id(1)}", {"mtime": 5}]
    ]
