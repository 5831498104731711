# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Container events become counters of accounts, whatever their order, their number and their age."""

import random
import threading
import time
from types import SimpleNamespace

import pytest
from filter_kit import Chain, WebServer, account_server, event
from support import eventually, held_port

from oio.account.client import AccountClient, BatchingAccountClient
from oio.common.exceptions import ExplicitBury
from oio.event.filters import account_update, clients

NEW, STATE, DELETED = "storage.container.new", "storage.container.state", "storage.container.deleted"
SERVICES = "account.services"
NOW_S = int(time.time())


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with account_server(tmp_path_factory.mktemp("account")) as server:
        yield server


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """It is always the moment when this module was loaded, for the filter."""
    frozen = SimpleNamespace(time=lambda: float(NOW_S), monotonic=time.monotonic)
    monkeypatch.setattr(account_update, "time", frozen)


@pytest.fixture
def account(running):
    running.connection.conn.flushdb()
    return running


@pytest.fixture
def proxy():
    """A proxy that knows the containers that ``exists`` names."""
    with WebServer(lambda request, _body: _answer(request, server)) as server:
        server.exists = set()
        yield server


def _answer(request, server):
    name = "{acct}/{ref}".format(**request.query)
    if name in server.exists:
        return 200, {"system": {}, "properties": {}}
    return 404, {"status": 431, "message": "no such container"}


def chain_of(account, proxy=None, **options):
    env = dict(account.env)
    conf = {"proxyd_url": proxy.url} if proxy else {"proxyd_url": "http://127.0.0.1:1"}
    return Chain("account_update", env, global_conf=conf, **options)


def state(when_s, objects, size, **more):
    data = {"bucket": None, "object-count": objects, "bytes-count": size, **more}
    return event(STATE, when_s, data)


def test_the_life_of_a_container(account):
    chain = chain_of(account)
    assert chain.run(event(SERVICES, NOW_S, [{"seq": 1, "type": "meta2", "host": "m2-1", "args": ""}])) == 200
    assert account.client.account_list() == ["acct"]
    assert chain.run(event(NEW, NOW_S + 1, {"system": {}, "properties": {}, "bucket": None})) == 200
    assert account.container() == (0, 0)
    assert chain.run(state(NOW_S + 2, 3, 30, **{"damaged-objects": 1, "missing-chunks": 2})) == 200
    shown = account.client.container_show("acct", "c")
    assert (shown["objects"], shown["bytes"], shown["damaged_objects"], shown["missing_chunks"]) == (3, 30, 1, 2)
    assert float(shown["mtime"]) == NOW_S + 2
    assert chain.run(event(DELETED, NOW_S + 3, {"bucket": None})) == 200
    assert account.container() is None
    assert account.totals() == (0, 0, 0)


def test_buckets_are_told(account):
    chain = chain_of(account)
    assert chain.run(event(NEW, NOW_S, {"bucket": "c"})) == 200
    one = state(NOW_S + 1, 3, 30)
    one["data"]["bucket"] = "c"
    assert chain.run(one) == 200
    assert account.client.bucket_show("c")["objects"] == 3
    assert chain.run(event(DELETED, NOW_S + 2, {"bucket": "c"})) == 200
    assert account.client.bucket_list("acct")["listing"] == []


def test_services_without_meta2_delete_the_container(account):
    chain = chain_of(account)
    assert chain.run(state(NOW_S, 3, 30)) == 200
    assert chain.run(event(SERVICES, NOW_S + 1, {"services": [{"type": "meta2"}], "deleted": []})) == 200
    assert account.container() == (3, 30)
    assert chain.run(event(SERVICES, NOW_S + 2, [{"type": "other", "host": "x"}])) == 200
    assert account.container() is None


def test_hidden_accounts_and_other_events_are_left_alone(account):
    chain = chain_of(account)
    hidden = state(NOW_S, 3, 30)
    hidden["url"]["account"] = "_RDIR"
    assert chain.run(hidden) == 200
    assert chain.run(event("storage.content.new", NOW_S, [])) == 200
    assert chain.run(event("storage.content.new", NOW_S, [], url=None)) == 200
    assert account.client.account_list() == []


def test_deliveries_again_and_out_of_order_change_nothing(account):
    chain = chain_of(account)
    for one in (state(NOW_S + 2, 2, 20), state(NOW_S + 1, 1, 10), state(NOW_S + 2, 2, 20), event(NEW, NOW_S)):
        assert chain.run(one) == 200
    assert account.container() == (2, 20)
    assert chain.counts == {"updated": 1, "stale": 3}


@pytest.mark.parametrize(
    "wrong",
    [
        event(STATE, NOW_S, {}, url=None),
        event(STATE, NOW_S, {}, url="c"),
        event(STATE, NOW_S, {}, url={"account": "acct"}),
        event(STATE, NOW_S, {}, url={"account": "acct", "user": 5}),
        event(STATE, NOW_S, ["no object"]),
        event(STATE, NOW_S, {"object-count": "many"}),
        event(SERVICES, NOW_S, "no list"),
        event(SERVICES, NOW_S, ["no service"]),
    ],
)
def test_what_makes_no_sense_is_buried(account, wrong):
    with pytest.raises(ExplicitBury):
        chain_of(account).run(wrong)


def test_a_service_that_is_down_brings_the_event_back():
    sock, port = held_port()
    with sock:
        client = AccountClient({"namespace": "NS"}, f"127.0.0.1:{port}", proxy_endpoint="127.0.0.1:1")
        chain = Chain("account_update", {"account_client": client})
        assert chain.run(state(NOW_S, 1, 1)) == 503
        chain.forget_pauses()
        assert chain.run(event(SERVICES, NOW_S, [{"type": "meta2"}])) == 503


@pytest.mark.parametrize("status", [500, 503, 404, 403, 409])
def test_an_error_of_the_service_brings_the_event_back(status):
    with WebServer(lambda request, _body: (status, {"status": 1, "message": "not now"})) as server:
        client = AccountClient({"namespace": "NS"}, server.address, proxy_endpoint="127.0.0.1:1")
        chain = Chain("account_update", {"account_client": client})
        assert chain.run(state(NOW_S, 1, 1)) == 503
        assert server.requests[0].headers["x-oio-req-id"] == "REQ-1"


def test_a_service_that_cannot_be_found_for_a_moment_is_not_left_alone_for_long(monkeypatch):
    """After its restart, when the proxy does not know it yet."""
    monkeypatch.setattr(clients, "PAUSE_MIN_S", 0.0)
    with WebServer(lambda request, _body: (500, {"status": 481, "message": "none"})) as proxy:
        client = AccountClient({"namespace": "NS"}, proxy_endpoint=proxy.address)
        chain = Chain("account_update", {"account_client": client})
        clients.pauses_of(chain.filter).failed(account_update.ACCOUNT)
        assert [chain.run(state(NOW_S, 1, 1)) for _ in range(4)] == [503] * 4
    assert len(proxy.requests) == 4
    assert "paused" not in chain.counts


def test_a_request_without_id_gets_one():
    with WebServer(lambda request, _body: 200) as server:
        client = AccountClient({"namespace": "NS"}, server.address, proxy_endpoint="127.0.0.1:1")
        chain = Chain("account_update", {"account_client": client})
        assert chain.run(event(NEW, NOW_S, request_id=None)) == 200
        (request,) = server.requests
        assert request.headers["x-oio-req-id"].startswith("account-update-")
        assert (request.method, request.query["id"]) == ("PUT", "acct")
        assert request.json == {"name": "c", "mtime": float(NOW_S), "bucket": None}


def test_a_frozen_service_is_a_retry_but_not_for_the_creation_of_an_account():
    release = threading.Event()

    def frozen(_request, _body):
        release.wait(10)
        return 200

    with WebServer(frozen) as server:
        client = AccountClient({"namespace": "NS"}, server.address, proxy_endpoint="127.0.0.1:1")
        chain = Chain("account_update", {"account_client": client}, read_timeout="0.2")
        assert chain.run(state(NOW_S, 1, 1)) == 503
        # The others do not wait.
        others = [chain.answer(state(NOW_S, 1, 1)) for _ in range(20)]
        assert [other.status for other in others] == [503] * 20
        assert all(0 < other.delay_s < 4 for other in others)
        assert chain.counts["paused"] == 20
        chain.forget_pauses()
        assert chain.run(event(SERVICES, NOW_S, [{"type": "meta2"}])) == 200
        assert chain.run(state(NOW_S, 1, 1)) == 503
        assert chain.counts["paused"] == 21
        release.set()


# --- events that come late ---


def test_a_late_event_does_not_bring_a_deleted_container_back(account, proxy):
    chain = chain_of(account, proxy)
    assert chain.run(state(NOW_S - 100, 3, 30)) == 200
    assert account.totals() == (0, 0, 0)
    assert chain.run(event(DELETED, NOW_S - 50, {})) == 200
    account.forget_tombstones()
    assert chain.run(state(NOW_S - 60, 3, 30)) == 200
    assert account.container() is None
    assert chain.counts["outlived"] == 2
    assert chain.run(event(SERVICES, NOW_S - 60, [{"type": "meta2"}])) == 200
    assert chain.counts["outlived"] == 3


def test_a_late_event_of_a_container_that_exists_is_told(account, proxy):
    proxy.exists.add("acct/c")
    chain = chain_of(account, proxy)
    assert chain.run(state(NOW_S - 100, 3, 30)) == 200
    assert account.container() == (3, 30)
    (request,) = proxy.requests
    assert request.path == "/v3.0/NS/container/get_properties"
    assert request.headers["x-oio-force-master"] == "1"


def test_a_late_event_of_a_container_that_the_service_knows_costs_no_question(account, proxy):
    chain = chain_of(account, proxy)
    assert chain.run(state(NOW_S - 20, 3, 30)) == 200
    assert chain.run(state(NOW_S - 40, 2, 20)) == 200
    assert chain_of(account, proxy).run(state(NOW_S - 50, 2, 20)) == 200
    assert account.container() == (3, 30)
    assert proxy.requests == []


def test_a_late_event_from_before_a_known_deletion_is_dropped_without_question(account, proxy):
    chain = chain_of(account, proxy)
    assert chain.run(event(DELETED, NOW_S - 40, {})) == 200
    assert chain.run(state(NOW_S - 50, 3, 30)) == 200
    assert proxy.requests == []
    assert account.container() is None


@pytest.mark.parametrize("status", [436, 437])
def test_a_container_that_refuses_to_answer_exists(account, status):
    with WebServer(lambda request, _body: (503, {"status": status, "message": "frozen"})) as proxy:
        assert chain_of(account, proxy).run(state(NOW_S - 100, 3, 30)) == 200
    assert account.container() == (3, 30)


def test_a_late_event_waits_until_the_proxy_tells(account):
    chain = chain_of(account)
    assert chain.run(state(NOW_S - 100, 3, 30)) == 503
    with WebServer(lambda request, _body: (404, {"status": 404, "message": "no such route"})) as other:
        assert chain_of(account, other).run(state(NOW_S - 100, 3, 30)) == 503
    assert account.client.account_list() == []


# --- grouping ---


class Recorder:
    """An account client that can be held, and remembers how it was used."""

    def __init__(self, client, gate):
        self._client, self._gate = client, gate
        self.batches, self.singles = [], 0

    def container_update_many(self, updates, **kwargs):
        self.batches.append(len(updates))
        return self._client.container_update_many(updates, **kwargs)

    def container_update(self, *args, **kwargs):
        self.singles += 1
        self._gate.wait(10)
        return self._client.container_update(*args, **kwargs)


def run_together(chain, gate, events):
    """Answers to events of which all but the first come while the first is being told."""
    answers = [None] * len(events)

    def one(number):
        answers[number] = chain.run(events[number])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(events))]
    threads[0].start()
    env = chain.app_env
    (batching,) = eventually(lambda: [one for one in env.values() if isinstance(one, BatchingAccountClient)])
    eventually(lambda: batching._client.singles)
    for thread in threads[1:]:
        thread.start()
    eventually(lambda: len(batching._batcher._group._queue) == len(events) - 1)
    gate.set()
    for thread in threads:
        thread.join(10)
    return answers


def test_updates_that_come_together_leave_together(account):
    gate = threading.Event()
    recorder = Recorder(account.client, gate)
    chain = Chain("account_update", {**account.env, "account_client": recorder})
    events = []
    for number in range(20):
        one = state(NOW_S + number, number, 10 * number)
        one["url"]["user"] = f"c{number % 5}"
        events.append(one)
    assert run_together(chain, gate, events) == [200] * 20
    assert recorder.batches == [19]
    assert recorder.singles == 1
    assert account.totals() == (5, 15 + 16 + 17 + 18 + 19, 10 * (15 + 16 + 17 + 18 + 19))
    assert chain.counts["updated"] + chain.counts.get("stale", 0) == 20


def test_one_bad_update_does_not_harm_its_batch(account):
    gate = threading.Event()
    chain = Chain("account_update", {**account.env, "account_client": Recorder(account.client, gate)})
    good = [state(NOW_S, 1, 10), state(NOW_S + 1, 2, 20)]
    bad = state(NOW_S + 2, 1, 10)
    bad["data"]["object-count"] = {"many": 1}
    errors = []

    def process(env, beanstalkd, cb, real=chain.filter.process):
        try:
            return real(env, beanstalkd, cb)
        except ExplicitBury:
            errors.append(env)
            chain.passed.append(env)
            return cb(200)

    chain.filter.process = process
    assert run_together(chain, gate, [*good, bad]) == [200] * 3
    assert errors == [bad]
    assert account.container() == (2, 20)


def test_a_service_without_the_batch_route_gets_them_one_by_one():
    def classic(request, _body):
        return 200 if request.path.endswith("/container/update") else 404

    with WebServer(classic) as server:
        client = AccountClient({"namespace": "NS"}, server.address, proxy_endpoint="127.0.0.1:1")
        gate = threading.Event()
        chain = Chain("account_update", {"account_client": Recorder(client, gate)})
        assert run_together(chain, gate, [state(NOW_S + n, 1, 1) for n in range(4)]) == [200] * 4
        assert len(server.asked("/container/update")) == 4
        assert len(server.asked("/container/update-many")) == 1


# --- any order, any number of deliveries ---


@pytest.mark.parametrize("seed", range(12))
def test_any_deliveries_end_in_the_same_state(account, proxy, seed):
    """Histories of containers, delivered by several threads, twice and shuffled, also after a minute."""
    rng = random.Random(seed)
    chain = chain_of(account, proxy)
    events, expected = [], {}
    for number in range(6):
        history, last = _history(rng, f"c{number}")
        events += history
        if last is not None:
            expected[f"c{number}"] = last
            proxy.exists.add(f"acct/c{number}")
    deliveries = events + rng.choices(events, k=len(events))
    rng.shuffle(deliveries)
    cut = rng.randrange(len(deliveries))
    _deliver(chain, deliveries[:cut])
    # Tombstones disappear once everything that is younger than half a minute has been told.
    _deliver(chain, [one for one in events if NOW_S - one["when"] / 1e6 < 30])
    account.forget_tombstones()
    chain.app_env.pop("known_containers", None)
    # A fresh delivery cannot come so late: only old ones are left.
    _deliver(chain, [one for one in deliveries[cut:] if NOW_S - one["when"] / 1e6 > 30])
    _deliver(chain, [one for one in events if _is_last(one, events)])
    assert account.containers() == expected
    totals = [sum(column) for column in zip(*expected.values(), strict=True)] or [0, 0]
    assert account.totals() == (len(expected), *totals)


def _history(rng, name):
    """What happened to a container in the last two minutes: its events, and its last counters if it is alive."""
    dates = sorted(rng.sample(range(1, 120_000), rng.randrange(2, 12)))
    events, alive, counters = [], False, None
    for milliseconds in dates:
        when_s = NOW_S - 120 + milliseconds / 1000
        if not alive:
            events.append(event(NEW, when_s, {"bucket": None}))
            alive, counters = True, (0, 0)
        elif rng.random() < 0.3:
            events.append(event(DELETED, when_s, {"bucket": None}))
            alive, counters = False, None
        else:
            counters = (rng.randrange(100), rng.randrange(10**9))
            events.append(state(when_s, *counters))
    for one in events:
        one["url"]["user"] = name
    return events, counters


def _is_last(one, events):
    same = [other["when"] for other in events if other["url"]["user"] == one["url"]["user"]]
    return one["when"] == max(same)


def _deliver(chain, events):
    def some(part):
        for one in part:
            answers.append(chain.filter(one, None, lambda status, message="", delay_s=None: status))

    answers = []
    threads = [threading.Thread(target=some, args=(events[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [200] * len(events)
