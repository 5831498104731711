# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Container events become counters of accounts, whatever their order and however often they come."""

import json
import logging
from types import SimpleNamespace

import pytest
from support import eventually

from oio.account.sqlite_server import AccountService
from oio.account.store import AccountStore
from oio.event import agent as agent_module
from oio.event.account_update import AccountUnreachable, AccountUpdate
from oio.event.agent import EventAgent, EventAgentSettings
from oio.event.filters import BuryEvent, FilterContext
from oio.event.spool import SpoolQueue
from oio.http.client import HttpPool
from oio.http.router import Router
from oio.http.server import Response, Server


@pytest.fixture
def account(tmp_path):
    """An account service, and a proxy that knows it."""
    store = AccountStore(str(tmp_path / "account.db"), "OFF")
    service = Server(AccountService(store).router, [("127.0.0.1", 0)])
    service.start()
    known = []
    router = Router()
    router.add("GET", "/v3.0/NS/conscience/list", lambda _request: Response(200, json.dumps(known).encode()))
    proxy = Server(router, [("127.0.0.1", 0)])
    proxy.start()
    host, port = service.addresses[0]
    known.append({"addr": f"{host}:{port}", "score": 50, "tags": {}})
    context = FilterContext("NS", "{}:{}".format(*proxy.addresses[0]), HttpPool(), None)
    yield SimpleNamespace(
        store=store, filter=AccountUpdate(context, {}), known=known, server=service, proxy=context.proxy_url
    )
    service.stop(1)
    proxy.stop(1)
    store.close()


def event(kind, when, data=None, account="acct", container="c"):
    return {
        "event": kind, "when": when * 10**6, "url": {"ns": "NS", "account": account, "user": container},
        "data": data or {},
    }  # fmt: skip


def state(when, objects, size):
    return event("storage.container.state", when, {"object-count": objects, "bytes-count": size})


def test_states_in_any_order_give_the_latest_counters(account):
    for one in (state(20, 2, 20), state(10, 1, 10), state(20, 2, 20)):
        account.filter.process(one)
    info = account.store.show("acct")
    assert (info["objects"], info["bytes"], info["containers"]) == (2, 20, 1)
    assert account.filter.metrics() == {"updated": 1, "stale": 2}


def test_a_deleted_container_leaves_the_account(account):
    account.filter.process(event("storage.container.new", 5))
    account.filter.process(state(10, 1, 10))
    account.filter.process(event("storage.container.deleted", 11))
    account.filter.process(state(10, 1, 10))
    info = account.store.show("acct")
    assert (info["objects"], info["containers"]) == (0, 0)


def test_linking_services_creates_the_account(account):
    services = [{"seq": 1, "type": "meta2", "host": "h", "args": ""}]
    account.filter.process(event("account.services", 5, services))
    assert account.store.names() == ["acct"]


def test_hidden_accounts_are_left_alone(account):
    account.filter.process(event("storage.container.new", 5, account="_RDIR"))
    assert account.store.names() == []


def test_an_event_without_container_is_buried(account):
    with pytest.raises(BuryEvent):
        account.filter.process({"event": "storage.container.new", "when": 1, "url": {}})


def test_a_service_that_is_away_is_tried_again_later(account):
    account.filter.process(state(10, 1, 10))
    account.server.stop(1)
    with pytest.raises(AccountUnreachable):
        account.filter.process(state(11, 1, 10))
    account.known[0]["score"] = 0
    with pytest.raises(AccountUnreachable, match="score"):
        account.filter.process(state(11, 1, 10))


def test_while_the_service_is_away_one_warning_is_enough(account, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(agent_module, "RETRY_DELAY_S", 0.05)
    monkeypatch.setattr(agent_module, "RETRY_DELAY_MAX_S", 0.1)
    monkeypatch.setattr(agent_module, "SAVE_PERIOD_S", 0.05)
    there, account.known[0]["addr"] = account.known[0]["addr"], "127.0.0.1:1"
    settings = EventAgentSettings("NS", str(tmp_path / "spools"), str(tmp_path / "state"), concurrency=2)
    agent = EventAgent(settings, account.proxy.removeprefix("http://"), logging.getLogger("test"))
    queue = SpoolQueue(str(tmp_path / "spools" / "NS-meta2-1"), fsync=False)
    services = [{"seq": 1, "type": "meta2", "host": "h", "args": ""}]
    names = [f"c{n}" for n in range(10)]
    for name in names:
        for one in (
            event("account.services", 5, services, container=name),
            event("storage.container.new", 6, container=name),
            event("storage.container.state", 7, {"object-count": 1, "bytes-count": 2}, container=name),
        ):
            queue.put(json.dumps(one).encode())
    agent.start()
    try:
        eventually(lambda: sum(n for (_, out), n in agent.counts().items() if out == "retry") > 3 * 30)
        complaints = [(one.levelname, one.exc_info) for one in caplog.records if one.levelno > logging.INFO]
        assert complaints == [("WARNING", None)]
        account.known[0]["addr"] = there
        eventually(lambda: agent.store.counts()["postponed"] == 0)
    finally:
        agent.stop(2)
        queue.close()
    info = account.store.show("acct")
    assert (info["containers"], info["objects"], info["bytes"]) == (10, 10, 20)
