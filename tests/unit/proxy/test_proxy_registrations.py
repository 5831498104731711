# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Registrations on their way to the conscience, and services on their way back."""

import logging

import pytest
from proxy_cluster import NS, rawx

from oio.common.status import StatusError
from oio.conscience.messages import SCORE_COMPUTE, SCORE_UNLOCK, ServiceDef
from oio.proxy import feed as feed_module
from oio.proxy.feed import merged

ADDR = "127.0.0.1:7001"
TYPE = {"type": "rawx"}


def definition(score=SCORE_COMPUTE, addr=ADDR, **tags):
    return ServiceDef(type="rawx", addr=addr, ns=NS, score=score, tags=tags)


@pytest.fixture
def lazy(make_cluster):
    """A proxy that sends its registrations when told to."""
    return make_cluster(**{"proxy.period.cs.upstream": "1h"})


def sent(cluster):
    """What the conscience gets now."""
    cluster.conscience.pushed.clear()
    cluster.process.feed.flush_queue()
    return cluster.conscience.pushed


@pytest.mark.parametrize(
    ("waiting", "arriving", "kept"),
    [
        (SCORE_COMPUTE, SCORE_COMPUTE, SCORE_COMPUTE), (SCORE_COMPUTE, 50, 50),
        (SCORE_COMPUTE, SCORE_UNLOCK, SCORE_UNLOCK), (50, SCORE_COMPUTE, 50), (50, SCORE_UNLOCK, SCORE_UNLOCK),
        (50, 70, 70), (0, SCORE_COMPUTE, 0), (SCORE_UNLOCK, SCORE_COMPUTE, SCORE_UNLOCK), (SCORE_UNLOCK, 50, 50),
    ],
)  # fmt: skip
def test_the_last_wins_but_a_registration_erases_no_lock(waiting, arriving, kept):
    one = merged(definition(waiting, a="old", b="1"), definition(arriving, a="new"))
    assert one.score == kept
    assert one.tags == {"a": "new", "b": "1"}


def test_one_message_for_each_service(lazy):
    for number in range(3):
        lazy.post("conscience/register", {**TYPE, "addr": ADDR, "tags": {"tag.n": number}})
    lazy.post("conscience/lock", {**TYPE, "addr": ADDR, "score": 12})
    lazy.post("conscience/register", {**TYPE, "addr": "127.0.0.1:7002"})
    pushed = {one.addr: one for one in sent(lazy)}
    assert {addr: one.score for addr, one in pushed.items()} == {ADDR: 12, "127.0.0.1:7002": SCORE_COMPUTE}
    assert pushed[ADDR].tags == {"tag.n": 2, "tag.1": True}
    assert list(sent(lazy)) == [], "sent once"


def test_only_the_first_registration_is_marked(lazy):
    service = {**TYPE, "addr": ADDR, "tags": {"tag.service_id": "s"}}
    lazy.post("conscience/register", service)
    assert sent(lazy)[0].tags["tag.1"] is True
    lazy.post("conscience/register", service)
    assert "tag.1" not in sent(lazy)[0].tags
    lazy.process.variables.set("proxy.ttl.services.known", "0")
    lazy.post("conscience/register", service)
    assert sent(lazy)[0].tags["tag.1"] is True, "forgotten"


def test_locks_are_not_marked_nor_local(lazy):
    lazy.post("conscience/lock", {**TYPE, "addr": ADDR})
    lazy.post("conscience/unlock", {**TYPE, "addr": "127.0.0.1:7002"})
    assert [one.tags for one in sent(lazy)] == [{}, {}]
    assert lazy.get("local/list").json == []


def test_what_cannot_be_sent_waits(lazy):
    lazy.post("conscience/lock", {**TYPE, "addr": ADDR, "score": 5})
    lazy.conscience.failure = 503
    with pytest.raises(StatusError):
        lazy.process.feed.flush_queue()
    lazy.post("conscience/register", {**TYPE, "addr": ADDR})
    lazy.conscience.failure = None
    assert [(one.addr, one.score) for one in sent(lazy)] == [(ADDR, 5)]


def test_what_is_refused_is_told_and_forgotten(lazy, caplog):
    lazy.post("conscience/register", {**TYPE, "addr": ADDR})
    lazy.conscience.failure = 400
    with caplog.at_level(logging.ERROR):
        lazy.process.feed.flush_queue()
    assert ADDR in caplog.text and "refused" in caplog.text
    lazy.conscience.failure = None
    assert list(sent(lazy)) == []


def test_the_queue_is_bounded(lazy, monkeypatch):
    monkeypatch.setattr(feed_module, "QUEUE_MAX", 2)
    services = [{**TYPE, "addr": f"127.0.0.1:{7000 + number}"} for number in range(3)]
    assert lazy.post("conscience/register", services).code == (503, 503)
    assert lazy.post("conscience/register", services[:2]).status == 204
    assert lazy.post("conscience/register", services[2]).code == (503, 503)
    assert len(sent(lazy)) == 2


def test_an_empty_array_registers_nothing(lazy):
    assert lazy.post("conscience/register", []).status == 204
    assert list(sent(lazy)) == []


# --- back


def test_scores_of_local_services(cluster):
    tags = {"tag.service_id": f"{NS}-rawx-1"}
    cluster.post("conscience/register", {**TYPE, "addr": "127.0.0.1:6201", "tags": tags})
    assert [item["score"] for item in cluster.get("local/list?type=rawx").json] == [0]
    cluster.process.variables.set("proxy.quirk.local_scores", "on")
    assert [item["score"] for item in cluster.get("local/list?type=rawx").json] == [80]
    cluster.process.feed.discard_type("rawx")


def test_without_caches_lists_come_from_the_conscience(cluster):
    cluster.conscience.put(rawx(9))
    addresses = [item["addr"] for item in cluster.get("conscience/list?type=rawx").json]
    assert "127.0.0.1:6209" not in addresses
    cluster.process.variables.set("proxy.cache.enabled", "off")
    addresses = [item["addr"] for item in cluster.get("conscience/list?type=rawx").json]
    assert "127.0.0.1:6209" in addresses
    cluster.conscience.failure = 503
    assert cluster.get("conscience/list?type=rawx").code == (503, 503)


def test_values_of_tags_keep_their_types(cluster):
    tags = {"tag.a": "text", "tag.b": 3, "tag.c": 2.5, "tag.d": True, "stat.e": 99.5}
    cluster.conscience.put(rawx(1, **tags))
    cluster.reload()
    shown = {item["addr"]: item["tags"] for item in cluster.get("conscience/list?type=rawx&full=yes").json}
    found = {name: shown["127.0.0.1:6201"][name] for name in tags}
    assert found == tags and [type(value) for value in found.values()] == [str, int, float, bool, float]


def test_description_of_pools_and_policies(cluster):
    info = cluster.get("conscience/info").json
    assert info["service_pools"] == {"rawx3": "3,rawx", "fast": "3,rawx-fast,rawx;warn_dist=0"}
    assert info["data_security"]["DUP3"] == "plain/nb_copy=3,min_dist=1"
    assert all(isinstance(value, str) for key, value in info["options"].items() if key != "flat_bitlength")
    cluster.request("POST", "/v3.0/config", {"ns.flat_bits": 12, "ns.storage_policy": "THREE"}, raw=True)
    options = cluster.get("conscience/info").json["options"]
    assert (options["flat_bitlength"], options["storage_policy"]) == (12, "THREE")


# --- a conscience that was restarted


def restart(cluster, *services):
    """Another run of the conscience, that knows these services only."""
    cluster.conscience.services = {}
    for service in services:
        cluster.conscience.put(service)
    cluster.conscience.generation += 1 << 32


def known(cluster):
    return {item["addr"] for item in cluster.get("conscience/list?type=rawx").json}


def test_a_conscience_that_forgot_everything_is_not_believed_at_once(cluster):
    before = known(cluster)
    assert len(before) > 1 and "127.0.0.1:6201" in before
    restart(cluster, rawx(1), rawx(9))
    cluster.reload()
    assert known(cluster) == before | {"127.0.0.1:6209"}
    assert cluster.get(f"conscience/resolve?type=rawx&service_id={NS}-rawx-2").json == {"addr": "127.0.0.1:6202"}
    cluster.process.feed._former_until = 0.0
    assert cluster.process.feed.refresh(), "although the conscience did not change"
    assert known(cluster) == {"127.0.0.1:6201", "127.0.0.1:6209"}
    assert not cluster.process.feed.refresh()


def test_what_is_removed_does_not_come_back_from_the_former_run(cluster):
    gone = "127.0.0.1:6201"
    before = known(cluster)
    assert cluster.post("conscience/deregister", {**TYPE, "addr": gone}).status == 204
    restart(cluster)
    cluster.reload()
    assert known(cluster) == before - {gone}
    cluster.post("conscience/deregister", {**TYPE, "addr": "127.0.0.1:6202"})
    cluster.reload()
    assert known(cluster) == before - {gone, "127.0.0.1:6202"}
    assert cluster.post("conscience/flush?type=rawx").status == 204
    cluster.reload()
    assert known(cluster) == set()


def test_a_service_that_moved_is_not_kept_at_its_former_address(cluster):
    moved = rawx(1)
    moved.addr = "127.0.0.1:6301"
    restart(cluster, moved)
    cluster.reload()
    assert "127.0.0.1:6201" not in known(cluster)
    assert "127.0.0.1:6301" in known(cluster)


def test_consciences_that_take_turns_keep_nothing_for_ever(cluster):
    assert len(known(cluster)) > 1
    restart(cluster, rawx(1))
    cluster.reload()
    for _ in range(2):
        restart(cluster, rawx(1))
        cluster.reload()
    assert known(cluster) == {"127.0.0.1:6201"}


def test_the_living_address_of_an_id_counts(cluster):
    dead, alive = rawx(1), rawx(1)
    dead.addr, dead.score, alive.addr = "127.0.0.1:6301", 0, "127.0.0.1:6302"
    for pair in ((dead, alive), (alive, dead)):
        cluster.conscience.services["rawx"] = list(pair)
        cluster.conscience.generation += 1
        cluster.reload()
        where = cluster.get(f"conscience/resolve?type=rawx&service_id={NS}-rawx-1")
        assert where.json == {"addr": alive.addr}
