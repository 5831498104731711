# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The reverse directory follows what happens to chunks and bases, whatever the order in which it is told."""

import random
import threading
import time

import pytest
from filter_kit import CID, Chain, WebServer, event, rdir_server
from support import held_port

from oio.common.exceptions import ExplicitBury

CHUNK_NEW, CHUNK_DELETED = "storage.chunk.new", "storage.chunk.deleted"
SERVICES, META2_DELETED = "account.services", "storage.meta2.deleted"
CONTAINER_NEW, CONTAINER_DELETED = "storage.container.new", "storage.container.deleted"
NOW_S = int(time.time())
CHUNK = f"{7:064X}"


@pytest.fixture
def rdir(tmp_path):
    with rdir_server(tmp_path) as server:
        yield server


def chain_of(rdir, name="volume_index", **options):
    return Chain(name, dict(rdir.env), **options)


def chunk_event(kind, when_s, chunk=CHUNK, volume="rawx-1", address="127.0.0.1:1", **more):
    data = {
        "volume_id": address, "volume_service_id": volume, "full_path": "acct/c/o/1/AB", "container_id": CID,
        "content_id": "AB", "chunk_id": chunk, **more,
    }  # fmt: skip
    one = event(kind, when_s, data)
    del one["url"]
    return one


def services(when_s, *hosts, **more):
    data = [{"seq": n, "type": "meta2", "host": host, "args": ""} for n, host in enumerate(hosts)]
    return event(SERVICES, when_s, [*data, {"seq": 1, "type": "rdir", "host": "r", "args": ""}], **more)


def test_chunks_are_indexed_by_the_id_of_their_rawx(rdir):
    chain = chain_of(rdir)
    assert chain.run(chunk_event(CHUNK_NEW, NOW_S + 0.5)) == 200
    assert list(rdir.client.chunk_fetch("rawx-1")) == [(CID, "AB", CHUNK, {"mtime": NOW_S})]
    assert chain.run(chunk_event(CHUNK_DELETED, NOW_S + 1)) == 200
    assert rdir.chunks("rawx-1") == {}


def test_a_rawx_without_id_is_known_by_its_address(rdir):
    assert chain_of(rdir).run(chunk_event(CHUNK_NEW, NOW_S, volume="", address="10.0.0.1:6200")) == 200
    assert rdir.chunks("10.0.0.1:6200") == {CHUNK: NOW_S}


@pytest.mark.parametrize("unknown", [{"content_id": ""}, {"container_id": "", "content_id": "", "full_path": ""}])
def test_a_deleted_chunk_that_told_nothing_is_in_no_index(rdir, unknown):
    """A rawx deletes files without attributes too (contract: rawx DELETE)."""
    chain = chain_of(rdir)
    assert chain.run(chunk_event(CHUNK_NEW, NOW_S)) == 200
    assert chain.run(chunk_event(CHUNK_DELETED, NOW_S + 1, **unknown)) == 200
    assert rdir.chunks("rawx-1") == {CHUNK: NOW_S}
    assert chain.filter.counts == {"pushed": 1, "unnamed": 1}


def test_containers_are_indexed_by_their_meta2(rdir):
    chain = chain_of(rdir)
    assert chain.run(services(NOW_S, "m2-1", "m2-2")) == 200
    assert rdir.containers("m2-1") == rdir.containers("m2-2") == ["NS/acct/c"]
    assert rdir.containers("r") == []
    assert chain.run(event(META2_DELETED, NOW_S + 1, {"peer": "m2-1"})) == 200
    assert chain.run(services(NOW_S + 1)) == 200
    assert (rdir.containers("m2-1"), rdir.containers("m2-2")) == ([], ["NS/acct/c"])
    assert chain.run(event(CONTAINER_DELETED, NOW_S + 1, {"bucket": None})) == 200
    assert chain.run(event(CONTAINER_DELETED, NOW_S + 1, {"peers": ["m2-1", "m2-2", "m2-3"]})) == 200
    assert rdir.containers("m2-2") == []


def test_a_new_base_is_indexed_after_the_end_of_a_former_one(rdir):
    """Its link may have been there before that end: no other event tells of the base."""
    chain = chain_of(rdir)
    assert chain.run(services(NOW_S, "m2-1")) == 200
    assert chain.run(event(META2_DELETED, NOW_S + 1, {"peer": "m2-1"})) == 200
    assert rdir.containers("m2-1") == []
    assert chain.run(event(CONTAINER_NEW, NOW_S + 2, {"peers": ["m2-1"], "system": {}})) == 200
    assert rdir.containers("m2-1") == ["NS/acct/c"]
    assert chain.run(event(CONTAINER_NEW, NOW_S + 2, {"system": {}})) == 200


def test_a_dictionary_of_services_is_understood(rdir):
    one = services(NOW_S, "m2-1")
    one["data"] = {"services": one["data"], "deleted": []}
    assert chain_of(rdir).run(one) == 200
    assert rdir.containers("m2-1") == ["NS/acct/c"]


def test_meta2_index_leaves_chunks_alone(rdir):
    chain = chain_of(rdir, "meta2_index")
    assert chain.run(chunk_event(CHUNK_NEW, NOW_S)) == 200
    assert chain.run(services(NOW_S, "m2-1")) == 200
    assert rdir.chunks("rawx-1") == {}
    assert rdir.containers("m2-1") == ["NS/acct/c"]


def test_other_events_go_on(rdir):
    assert chain_of(rdir).run(event("storage.content.new", NOW_S, [])) == 200


@pytest.mark.parametrize("first", [CHUNK_NEW, CHUNK_DELETED])
def test_a_deletion_that_overtakes_a_creation_wins(rdir, first):
    """Also when it is the first thing that is told about the volume."""
    chain = chain_of(rdir)
    events = [chunk_event(CHUNK_NEW, NOW_S), chunk_event(CHUNK_DELETED, NOW_S + 1)]
    for one in sorted(events, key=lambda one: one["event"] != first):
        assert chain.run(one) == 200
    assert rdir.chunks("rawx-1") == {}
    # The same id is used again, later.
    assert chain.run(chunk_event(CHUNK_NEW, NOW_S + 2)) == 200
    assert chain.run(chunk_event(CHUNK_DELETED, NOW_S + 1)) == 200
    assert rdir.chunks("rawx-1") == {CHUNK: NOW_S + 2}


def test_a_base_that_is_deleted_before_it_is_indexed_stays_out(rdir):
    chain = chain_of(rdir)
    assert chain.run(event(META2_DELETED, NOW_S + 1, {"peer": "m2-1"})) == 200
    assert chain.run(services(NOW_S, "m2-1")) == 200
    assert rdir.containers("m2-1") == []
    assert chain.run(services(NOW_S + 2, "m2-1")) == 200
    assert rdir.containers("m2-1") == ["NS/acct/c"]


# --- failures ---


@pytest.mark.parametrize(
    "one", [chunk_event(CHUNK_NEW, NOW_S), chunk_event(CHUNK_DELETED, NOW_S), services(NOW_S, "m2-1")]
)
def test_a_volume_without_rdir_brings_the_event_back(rdir, one):
    rdir.assigned = False
    chain = chain_of(rdir)
    assert chain.run(one) == 503
    rdir.assigned = True
    assert chain.run(one) == 200


def test_a_base_of_a_volume_without_rdir_has_nothing_to_be_removed_from(rdir):
    rdir.assigned = False
    assert chain_of(rdir).run(event(META2_DELETED, NOW_S, {"peer": "m2-1"})) == 200


def test_an_rdir_that_is_down_brings_the_event_back(rdir):
    sock, port = held_port()
    chain = chain_of(rdir)
    with sock:
        rdir.address, alive = f"127.0.0.1:{port}", rdir.address
        assert chain.run(chunk_event(CHUNK_NEW, NOW_S)) == 503
        assert chain.run(services(NOW_S, "m2-1")) == 503
        assert chain.run(chunk_event(CHUNK_NEW, NOW_S)) == 503
        assert chain.counts["paused"] == 1
        chain.forget_pauses()
        rdir.address = alive
        assert chain.run(chunk_event(CHUNK_NEW, NOW_S)) == 200
        assert chain.run(services(NOW_S, "m2-1")) == 200


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_of_the_rdir_brings_the_event_back(rdir, status):
    with WebServer(lambda request, _body: (status, {"status": status, "message": "full"})) as full:
        rdir.address = full.address
        chain = chain_of(rdir)
        assert chain.run(chunk_event(CHUNK_NEW, NOW_S)) == 503
        assert chain.run(services(NOW_S, "m2-1")) == 503
        assert chain.run(event(META2_DELETED, NOW_S, {"peer": "m2-1"})) == 503


@pytest.mark.parametrize(
    "wrong",
    [
        chunk_event(CHUNK_NEW, NOW_S, chunk=""),
        chunk_event(CHUNK_NEW, NOW_S, chunk=5),
        chunk_event(CHUNK_DELETED, NOW_S, volume="", address=""),
        {**chunk_event(CHUNK_NEW, NOW_S), "data": None},
        event(META2_DELETED, NOW_S, {}),
        event(CONTAINER_NEW, NOW_S, {"peers": "m2-1"}),
        event(META2_DELETED, NOW_S, {"peer": "m2-1"}, url=None),
        services(NOW_S, "m2-1", url={"ns": "NS", "account": "acct"}),
        services(NOW_S, ""),
        event(SERVICES, NOW_S, ["no service"]),
    ],
)
def test_what_makes_no_sense_is_buried(rdir, wrong):
    with pytest.raises(ExplicitBury):
        chain_of(rdir).run(wrong)


# --- events that come late ---


@pytest.fixture
def rawx():
    """A rawx that holds the chunks of ``chunks``."""
    with WebServer(lambda request, _body: 200 if request.path[1:] in server.chunks else 404) as server:
        server.chunks = set()
        yield server


def test_an_old_chunk_is_indexed_when_its_rawx_has_it(rdir, rawx):
    rdir.rawx["rawx-1"] = rawx.address
    chain = chain_of(rdir)
    old = chunk_event(CHUNK_NEW, NOW_S - 4000)
    assert chain.run(old) == 200
    assert rdir.chunks("rawx-1") == {}
    rawx.chunks.add(CHUNK)
    assert chain.run(old) == 200
    assert rdir.chunks("rawx-1") == {CHUNK: NOW_S - 4000}
    assert [request.method for request in rawx.requests] == ["HEAD", "HEAD"]
    assert rawx.requests[0].headers["x-oio-req-id"] == "REQ-1"
    # What is not old costs no question.
    assert chain.run(chunk_event(CHUNK_NEW, NOW_S - 1000)) == 200
    assert len(rawx.requests) == 2


def test_an_old_chunk_waits_until_its_rawx_tells(rdir, rawx):
    sock, port = held_port()
    with sock:
        rdir.rawx["rawx-1"] = f"127.0.0.1:{port}"
        chain = chain_of(rdir)
        old = chunk_event(CHUNK_NEW, NOW_S - 4000)
        assert chain.run(old) == 503
        chain.forget_pauses()
        rawx.answers = lambda request, _body: 500
        rdir.rawx["rawx-1"] = rawx.address
        assert chain.run(old) == 503
        del rdir.rawx["rawx-1"]
        chain.app_env["rawx_addresses"].drop("rawx-1")
        assert chain.run(old) == 503
    assert rdir.chunks("rawx-1") == {}


def test_old_services_are_indexed_when_they_are_still_linked(rdir):
    chain = chain_of(rdir)
    old = services(NOW_S - 4000, "m2-1", "m2-2")
    assert chain.run(old) == 200
    rdir.linked["acct/c"] = ["m2-2", "m2-3"]
    assert chain.run(old) == 200
    assert [rdir.containers(f"m2-{n}") for n in (1, 2, 3)] == [[], ["NS/acct/c"], []]


# --- any order, any number of deliveries ---


@pytest.mark.parametrize("seed", range(8))
def test_any_deliveries_end_in_the_same_state(rdir, seed):
    rng = random.Random(seed)
    chain = chain_of(rdir)
    # Younger than the hour after which the filter asks the rawx, however long ago this module was loaded.
    start_s = int(time.time()) - 3500
    events, expected = [], {}
    for volume in ("rawx-1", "rawx-2"):
        for number in range(10):
            chunk = f"{number:064X}"
            dates = sorted(rng.sample(range(1, 3_000_000), rng.randrange(1, 5)))
            # A chunk id may be used again after its deletion.
            for index, milliseconds in enumerate(dates):
                kind = CHUNK_DELETED if index % 2 else CHUNK_NEW
                when_s = start_s + milliseconds / 1000
                events.append(chunk_event(kind, when_s, chunk=chunk, volume=volume))
            if len(dates) % 2:
                expected.setdefault(volume, {})[chunk] = events[-1]["when"] // 1000000
    bases = {}
    for number in range(5):
        name, peers = f"c{number}", rng.sample(["m2-1", "m2-2", "m2-3"], 2)
        when_s = start_s + 500 + number
        url = {"ns": "NS", "account": "acct", "user": name, "id": CID}
        events.append(services(when_s, *peers, url=url))
        if rng.random() < 0.5:
            events += [event(META2_DELETED, when_s + 1, {"peer": peer}, url=url) for peer in peers]
            events.append(services(when_s + 0.5, url=url))
        else:
            for peer in peers:
                bases.setdefault(peer, []).append(f"NS/acct/{name}")
    deliveries = events + rng.choices(events, k=len(events))
    rng.shuffle(deliveries)
    answers = []

    def deliver(part):
        for one in part:
            answers.append(chain.filter(one, None, lambda status, message="", delay_s=None: status))

    threads = [threading.Thread(target=deliver, args=(deliveries[number::6],)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [200] * len(deliveries)
    assert {volume: rdir.chunks(volume) for volume in ("rawx-1", "rawx-2") if rdir.chunks(volume)} == expected
    for peer in ("m2-1", "m2-2", "m2-3"):
        assert rdir.containers(peer) == sorted(bases.get(peer, []))
