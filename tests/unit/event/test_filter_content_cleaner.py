# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Chunks of deleted contents are deleted, unless that would delete something else."""

import socket
import threading
import time

import pytest
from filter_kit import CID, Chain, WebServer, event, rdir_server
from support import held_port

from oio.common.exceptions import ConfigurationException, ExplicitBury

DELETED = "storage.content.deleted"


def chunk(server, number):
    host = server if isinstance(server, str) else server.address
    return {"type": "chunks", "id": f"http://{host}/{number:064X}", "pos": "0", "hash": "", "size": 1}


def header(method="plain/nb_copy=3"):
    return {"type": "contents_headers", "id": "AB", "chunk-method": method}


@pytest.fixture
def rawx():
    with WebServer(lambda request, _body: 204) as server:
        yield server


@pytest.mark.parametrize("kind", [DELETED, "storage.content.drained"])
def test_chunks_are_deleted_with_what_proves_it(rawx, kind):
    chain = Chain("content_cleaner")
    assert chain.run(event(kind, data=[header(), *[chunk(rawx, number) for number in range(8)]])) == 200
    assert sorted(request.path for request in rawx.requests) == [f"/{number:064X}" for number in range(8)]
    for request in rawx.requests:
        assert request.method == "DELETE"
        assert request.headers["x-oio-req-id"] == "REQ-1"
        assert request.headers["x-oio-chunk-created-before"] == "1700000000000000"
        assert request.headers["x-oio-chunk-meta-container-id"] == CID
        assert request.headers.get("connection", "keep-alive").lower() == "keep-alive"
    assert chain.counts == {"deleted": 8}


def test_events_without_chunks_and_other_events_go_on(rawx):
    chain = Chain("content_cleaner")
    assert chain.run(event(DELETED, data=[{"type": "aliases", "name": "x", "deleted": True}])) == 200
    assert chain.run(event(DELETED, data=None)) == 200
    assert chain.run(event("storage.content.new", data=[chunk(rawx, 1)])) == 200
    assert rawx.requests == []


@pytest.mark.parametrize("method", ["plain/nb_copy=3", "ec/algo=isa_l_rs_cauchy,k=6,m=3", "drained", None])
def test_chunks_of_all_these_methods_are_deleted(rawx, method):
    assert Chain("content_cleaner").run(event(DELETED, data=[header(method), chunk(rawx, 1)])) == 200
    assert len(rawx.requests) == 1


def test_a_chunk_without_header_bean_is_deleted(rawx):
    assert Chain("content_cleaner").run(event(DELETED, data=[chunk(rawx, 1)])) == 200
    assert len(rawx.requests) == 1


@pytest.mark.parametrize("status, name", [(404, "missing"), (412, "newer"), (200, "deleted")])
def test_a_chunk_that_is_gone_or_newer_is_done(rawx, status, name):
    rawx.answers = lambda request, _body: status
    chain = Chain("content_cleaner")
    assert chain.run(event(DELETED, data=[header(), chunk(rawx, 1)])) == 200
    assert chain.counts == {name: 1}


@pytest.mark.parametrize("status", [500, 503, 403, 418])
def test_a_refusal_brings_the_event_back_and_the_other_chunks_are_deleted(rawx, status):
    rawx.answers = lambda request, _body: status if request.path.endswith("1") else 204
    chain = Chain("content_cleaner")
    data = [header(), *[chunk(rawx, number) for number in range(4)]]
    answer = chain.answer(event(DELETED, data=data))
    assert answer.status == 503
    assert "1 of 4 chunks not deleted" in answer.message
    assert chain.counts["deleted"] == 3
    rawx.answers = lambda request, _body: 204 if request.path.endswith("1") else 404
    chain.forget_pauses()
    assert chain.run(event(DELETED, data=data)) == 200


def test_a_dead_rawx_does_not_keep_the_others_waiting(rawx):
    sock, port = held_port()
    with sock:
        chain = Chain("content_cleaner")
        data = [header(), chunk(f"127.0.0.1:{port}", 9), chunk(rawx, 1), chunk(rawx, 2), chunk(rawx, 3)]
        assert chain.run(event(DELETED, data=data)) == 503
        assert chain.counts["deleted"] == 3
        assert chain.run(event(DELETED, data=data)) == 503
        assert chain.counts["paused"] == 1
        assert chain.counts["failures"] == 1


def test_a_rawx_that_is_frozen_costs_one_timeout(rawx):
    release = threading.Event()

    def frozen(_request, _body):
        release.wait(10)
        return 204

    with WebServer(frozen) as stuck:
        chain = Chain("content_cleaner", timeout="0.5")
        start_s = time.monotonic()
        assert chain.run(event(DELETED, data=[header(), *[chunk(stuck, number) for number in range(12)]])) == 503
        assert time.monotonic() - start_s < 3
        assert chain.counts["paused"] == 9
        assert chain.run(event(DELETED, data=[header(), chunk(rawx, 1)])) == 200
        release.set()


def test_requests_of_a_group_are_on_their_way_together(rawx):
    together = threading.Barrier(3)

    def answer(_request, _body):
        together.wait(5)
        return 204

    rawx.answers = answer
    data = [header(), *[chunk(rawx, number) for number in range(6)]]
    assert Chain("content_cleaner", global_conf={"concurrency": "50"}).run(event(DELETED, data=data)) == 200
    together = threading.Barrier(2)
    assert Chain("content_cleaner", concurrency="2").run(event(DELETED, data=data)) == 200


def test_a_connection_closed_while_idle_is_no_failure():
    """The rawx closes a kept connection just when the next request leaves: the request is sent again."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen = []

    def serve(connection, answers):
        with connection:
            for _ in range(answers):
                connection.recv(65536)
                seen.append("answered")
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            if connection.recv(65536):
                seen.append("closed")

    def accept():
        for answers in (1, 1):
            serve(listener.accept()[0], answers)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    with listener:
        chain = Chain("content_cleaner")
        data = [header(), chunk(f"127.0.0.1:{listener.getsockname()[1]}", 1)]
        assert chain.run(event(DELETED, data=data)) == 200
        assert chain.run(event(DELETED, data=data)) == 200
        chain.app_env["pool"].close()
        thread.join(5)
    assert seen == ["answered", "closed", "answered"]
    assert chain.counts == {"deleted": 2}


@pytest.fixture
def rdir(tmp_path):
    with rdir_server(tmp_path) as server:
        yield server


def test_the_index_forgets_a_chunk_whose_rawx_died_before_it_could_tell(rawx, rdir):
    """The chunk is gone, the event of its deletion was lost: the second delivery meets a 404."""
    chain = Chain("content_cleaner", rdir.env)
    for number, when in ((1, 10), (2, 10), (3, 10), (4, 30)):
        ids = (CID, "AB", f"{number:064X}")
        rdir.client.chunk_push(rawx.address, *ids, mtime=when, when=when * 1000000)
    rawx.answers = lambda request, _body: 204 if request.path.endswith("1") else 404
    url = {"ns": "NS", "account": "acct", "user": "c", "id": CID, "content": "AB"}
    one = event(DELETED, 20, [header(), *[chunk(rawx, number) for number in (1, 2, 3, 4, 5)]], url=url)
    assert chain.run(one) == 200
    # The first one is told by its rawx; the fourth one took the same id after the deletion.
    assert rdir.chunks(rawx.address) == {f"{1:064X}": 10, f"{4:064X}": 30}
    # What was pushed before the deletion does not come back.
    rdir.client.chunk_push(rawx.address, CID, "AB", f"{5:064X}", mtime=10, when=10 * 1000000)
    assert f"{5:064X}" not in rdir.chunks(rawx.address)


def test_an_rdir_that_is_down_brings_the_event_of_a_missing_chunk_back(rawx, rdir):
    chain = Chain("content_cleaner", rdir.env)
    url = {"ns": "NS", "account": "acct", "user": "c", "id": CID, "content": "AB"}
    one = event(DELETED, 20, [header(), chunk(rawx, 1)], url=url)
    sock, port = held_port()
    with sock:
        rdir.address, alive = f"127.0.0.1:{port}", rdir.address
        assert chain.run(one) == 200
        rawx.answers = lambda request, _body: 404
        assert chain.run(one) == 503
        assert chain.answer(one).delay_s > 0
        chain.forget_pauses()
        rdir.address = alive
        assert chain.run(one) == 200
        rdir.client._clear_cache(rawx.address)
        rdir.assigned = False
        assert chain.run(one) == 200


def test_service_ids_are_resolved_once_and_again_after_a_failure(rawx):
    other = WebServer(lambda request, _body: 204)
    places = {"rawx-1": rawx.address}

    def proxy(request, _body):
        return 200, {"addr": places[request.query["service_id"]]}

    with WebServer(proxy) as registry:
        chain = Chain("content_cleaner", global_conf={"proxyd_url": registry.url})
        data = [header(), chunk("rawx-1", 1), chunk("rawx-1", 2)]
        assert chain.run(event(DELETED, data=data)) == 200
        assert chain.run(event(DELETED, data=data)) == 200
        assert len(registry.requests) == 1
        rawx.answers = lambda request, _body: 418
        places["rawx-1"] = other.address
        assert chain.run(event(DELETED, data=data)) == 503
        assert chain.run(event(DELETED, data=data)) == 200
    assert len(other.requests) == 2
    other.stop()


@pytest.mark.parametrize(
    "data",
    [
        {"not": "a list"},
        ["no bean"],
        [{"type": "chunks", "id": "file:///etc/passwd"}],
        [{"type": "chunks", "id": "http://127.0.0.1:1/../x"}],
        [{"type": "chunks", "id": "http://user@127.0.0.1:1/AB"}],
        [header("backblaze/account_id=x"), {"type": "chunks", "id": "http://127.0.0.1:1/AB"}],
    ],
)
def test_what_makes_no_sense_is_buried(data):
    with pytest.raises(ExplicitBury):
        Chain("content_cleaner").run(event(DELETED, data=data))


def test_chunks_live_on_for_the_delay(rawx):
    chain = Chain("content_cleaner", delay="3600")
    answer = chain.answer(event(DELETED, time.time(), data=[chunk(rawx, 1)]))
    assert answer.status == 503
    assert 3590 < answer.delay_s <= 3600
    assert rawx.requests == []
    assert chain.run(event(DELETED, time.time() - 3601, data=[chunk(rawx, 1)])) == 200


def test_wrong_options_are_refused():
    for options in ({"concurrency": "0"}, {"timeout": "x"}, {"delay": "-1"}):
        with pytest.raises(ConfigurationException):
            Chain("content_cleaner", **options)

