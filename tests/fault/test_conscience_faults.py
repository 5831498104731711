# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Several consciences, proxies and agents of which some die, hang, or come back with nothing."""

import contextlib
import random
import signal
import time

import pytest
from conscience_processes import Registry, service
from support import eventually


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path)
    yield registry
    registry.stop()


def same(*consciences):
    """The view that all of them share; None while they differ."""
    first, *others = [conscience.view() for conscience in consciences]
    return first if all(other == first for other in others) else None


def agree(*consciences, on=lambda view: True, what="the consciences to agree"):
    """Wait until all have the same view, and it fits; gives this view."""
    def agreed():
        view = same(*consciences)
        with contextlib.suppress(KeyError):
            return [view] if view is not None and on(view) else None

    (view,) = eventually(agreed, what=what)
    return view


@pytest.mark.parametrize("own_hubs", [True, False])
def test_what_one_conscience_learns_all_know(registry, own_hubs):
    one, two, three = registry.start_consciences(3, own_hubs)
    first, last = registry.start_proxy(one, two, three), registry.start_proxy(three, two, one)
    first.register(*(service(port) for port in (1, 2, 3)))
    agree(one, two, three, on=lambda view: len(view) == 3)
    last.lock(service(1), 12)
    agree(one, two, three, on=lambda view: view["127.0.0.1:1"][0] == 12)
    first.register(service(1, cpu=99))
    view = agree(one, two, three, on=lambda view: view["127.0.0.1:1"][1]["stat.cpu"] == 99)
    assert view["127.0.0.1:1"][0] == 12, "still locked"
    assert last.raw.post("conscience/deregister", body=service(2)).status == 204
    agree(one, two, three, on=lambda view: set(view) == {"127.0.0.1:1", "127.0.0.1:3"})
    assert first.raw.post("conscience/unlock", body=service(1, cpu=99)).status == 204
    agree(one, two, three, on=lambda view: view["127.0.0.1:1"][0] == 99)
    assert first.raw.post("conscience/flush", {"type": "echo"}).status == 204
    agree(one, two, three, on=lambda view: not view)
    assert all(state["connected"] for conscience in (one, two, three) for state in conscience.hub().values())
    begin = time.monotonic()
    assert [conscience.terminate() for conscience in (one, two, three)] == [0, 0, 0]
    assert time.monotonic() - begin < 10, "nobody waits for requests that wait"


def test_a_conscience_that_lost_everything_is_filled_before_it_answers(registry):
    one, two = registry.start_consciences(2)
    proxy = registry.start_proxy(one, two)
    proxy.register(*(service(port, kind="rawx") for port in (1, 2, 3)))
    eventually(lambda: len(one.view()) == 3)
    for port in (1, 2):
        assert proxy.raw.post("conscience/unlock", body=service(port, kind="rawx")).status == 204
    proxy.lock(service(3, kind="rawx"), 7)
    before = agree(one, two, on=lambda view: [view[f"127.0.0.1:{port}"][0] for port in (1, 2, 3)] == [50, 50, 7])
    one.kill()
    one.state.unlink(missing_ok=True)

    proxy.register(service(4, kind="rawx"))
    eventually(lambda: "127.0.0.1:4" in two.view(), what="a registration while the first conscience is dead")
    proxy.lock(service(1, kind="rawx"), 80)
    eventually(lambda: two.view()["127.0.0.1:1"][0] == 80, what="a lock while the first conscience is dead")
    eventually(lambda: (proxy.listed("rawx") or {}).get("127.0.0.1:1") == 80, what="the proxy to follow the other")

    begin = time.monotonic()
    one.start()
    assert one.view() == two.view(), "filled before the first answer"
    assert time.monotonic() - begin < 10
    assert one.view()["127.0.0.1:2"] == before["127.0.0.1:2"]
    # A proxy that was restarted too marks every service as new: this locks nothing that served.
    other = registry.start_proxy(one, two)
    other.register(service(2, kind="rawx"))
    other.register(service(5, kind="rawx"))
    view = agree(one, two, on=lambda view: "127.0.0.1:5" in view)
    assert (view["127.0.0.1:2"][0], view["127.0.0.1:5"][0]) == (50, 0)


def test_proxies_keep_the_last_good_view_when_all_consciences_are_dead(registry):
    one, two = registry.start_consciences(2)
    proxy = registry.start_proxy(one, two)
    proxy.register(service(1, **{"tag.service_id": "echo-1"}), service(2))
    proxy.lock(service(2), 33)
    eventually(lambda: proxy.listed() == {"127.0.0.1:1": 50, "127.0.0.1:2": 33})
    agree(one, two, on=lambda view: view["127.0.0.1:2"][0] == 33)
    for conscience in (one, two):
        conscience.kill()
    proxy.register(service(3))
    proxy.lock(service(1, **{"tag.service_id": "echo-1"}), 5)
    time.sleep(0.5)  # several turns of the proxy without any conscience
    assert proxy.listed() == {"127.0.0.1:1": 50, "127.0.0.1:2": 33}
    assert proxy.raw.get("lb/choose", {"type": "echo", "size": 2}).status == 200
    assert proxy.raw.get("conscience/resolve", {"type": "echo", "service_id": "echo-1"}).json == {
        "addr": "127.0.0.1:1"
    }
    assert proxy.raw.post("conscience/deregister", body=service(2)).code == (503, 503)
    two.start()
    expected = {"127.0.0.1:1": 5, "127.0.0.1:2": 33, "127.0.0.1:3": 50}
    eventually(lambda: proxy.listed() == expected, what="what waited, and what the file of the second one kept")
    one.start()
    agree(one, two, on=lambda view: {addr: score for addr, (score, _) in view.items()} == expected)


@pytest.mark.parametrize("seed", range(2))
def test_one_after_the_other_dies_and_nothing_is_forgotten(registry, seed):
    chance = random.Random(seed)
    consciences = registry.start_consciences(3)
    one, two, three = consciences
    proxies = [registry.start_proxy(one, two, three), registry.start_proxy(two, three, one)]
    locks = {}
    for turn in range(6):
        victims = chance.sample(consciences, chance.choice((1, 1, 2)))
        for victim in victims:
            victim.kill()
            if chance.random() < 0.5:
                victim.state.unlink(missing_ok=True)
        alive = [conscience for conscience in consciences if conscience not in victims]
        changed = chance.sample(range(1, 9), 3)
        for port in changed:
            locks[f"127.0.0.1:{port}"] = chance.randint(0, 100)
            chance.choice(proxies).lock(service(port), locks[f"127.0.0.1:{port}"])
        chance.choice(proxies).register(service(100 + turn))

        def known(view, turn=turn):
            return f"127.0.0.1:{100 + turn}" in view and all(view[addr][0] == locks[addr] for addr in locks)

        agree(*alive, on=known, what="the living ones to know all of it")
        begin = time.monotonic()
        for victim in victims:
            victim.start(wait=False)
        for victim in victims:
            eventually(victim.listens, what="the conscience to be back")
            assert known(victim.view()), "all of it from its first answer on"
        agree(*consciences, on=known)
        assert time.monotonic() - begin < 15


def test_a_lonely_conscience_keeps_locks_across_kills(registry):
    (one,) = registry.start_consciences(1)
    proxy = registry.start_proxy(one)
    proxy.register(service(1, **{"tag.vol": "/x"}), service(2))
    proxy.lock(service(1), 42)
    eventually(lambda: proxy.listed() == {"127.0.0.1:1": 42, "127.0.0.1:2": 50})
    for _ in range(2):
        one.kill()
        one.start()
        score, tags = one.view()["127.0.0.1:1"]
        assert (score, tags["tag.lock"], tags["tag.vol"]) == (42, True, "/x")
    proxy.register(service(1, cpu=90))
    eventually(lambda: one.view()["127.0.0.1:1"][1]["stat.cpu"] == 90)
    assert one.view()["127.0.0.1:1"][0] == 42


def test_a_lonely_conscience_that_lost_everything_does_not_empty_its_proxies(registry):
    (one,) = registry.start_consciences(1)
    proxy = registry.start_proxy(one)
    proxy.register(service(1), service(2))
    eventually(lambda: len(proxy.listed()) == 2)
    one.kill()
    one.state.unlink(missing_ok=True)
    one.start()
    eventually(lambda: proxy.raw.post("lb/reload").status == 204 and one.view() == {})
    proxy.register(service(1))
    eventually(lambda: "127.0.0.1:1" in one.view())
    assert set(proxy.listed()) == {"127.0.0.1:1", "127.0.0.1:2"}
    assert proxy.raw.get("lb/choose", {"type": "echo", "size": 2}).status == 200
    eventually(lambda: set(proxy.listed()) == {"127.0.0.1:1"}, what="what did not come back to be left out")


def test_a_conscience_that_hangs_delays_little(registry):
    one, two = registry.start_consciences(2)
    proxy = registry.start_proxy(one, two)
    proxy.register(service(1))
    agree(one, two, on=lambda view: len(view) == 1)
    one.signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        proxy.register(service(2))
        eventually(lambda: "127.0.0.1:2" in (proxy.listed() or {}), what="a registration meanwhile")
        assert time.monotonic() - begin < 15
    finally:
        one.signal(signal.SIGCONT)
    agree(one, two, on=lambda view: len(view) == 2)


def test_silence_is_measured_from_the_registration_wherever_it_was_made(registry):
    one, two = registry.start_consciences(2)
    proxy = registry.start_proxy(two, one)
    serves = "127.0.0.1:1"

    def seen_serving():
        # It is so for a second: on a busy machine nobody may look meanwhile.
        proxy.register(service(1, kind="volatile"))
        return one.view().get(serves, (0,))[0] == 50

    eventually(seen_serving, what="the registration known to the other one")
    view = agree(one, two, on=lambda view: view["127.0.0.1:1"][0] == 0, what="the silence to be noticed by both")
    assert view["127.0.0.1:1"][1]["tag.up"] is False
    eventually(seen_serving, what="the service to be back")


@pytest.fixture
def watched(registry):
    """A program to watch: a proxy, which answers HTTP and knows its own statistics."""

    def describe(program, **more):
        return {
            "host": "127.0.0.1", "port": program.port, "type": "echo",
            "checks": [{"type": "tcp"}, {"type": "http", "uri": "/v3.0/status"}],
            "stats": [{"type": "oioproxy"}, {"type": "system"}], "location": "room.rack.host.disk",
            "slots": ["echo", "quick"], "service_id": f"echo-{program.port}", **more,
        }  # fmt: skip

    return describe


def test_agents_watch_through_deaths(registry, watched):
    one, two = registry.start_consciences(2)
    proxy, other = registry.start_proxy(one, two), registry.start_proxy(two, one)
    agent = registry.start_agent(proxy, {"other": watched(other)})
    leaving = registry.start_agent(other, {"first": watched(proxy, deregister_on_exit=True)})
    first, second = f"127.0.0.1:{proxy.port}", f"127.0.0.1:{other.port}"
    view = agree(one, two, on=lambda view: set(view) == {first, second} and view[second][1]["tag.up"])
    tags = view[second][1]
    assert (tags["tag.loc"], tags["tag.slots"]) == ("room.rack.host.disk", "echo,quick")
    assert tags["tag.service_id"] == f"echo-{other.port}" and 0 <= tags["stat.cpu"] <= 100

    one.kill()
    one.state.unlink(missing_ok=True)
    pushed = two.view()
    eventually(lambda: two.view() != pushed, what="statistics beside the dead conscience")
    one.start()
    agree(one, two, on=lambda view: set(view) == {first, second})

    assert leaving.terminate() == 0
    eventually(lambda: one.view()[first][:1] == (0,) and not one.view()[first][1]["tag.up"], what="the farewell")
    assert "is now up" in leaving.log

    other.kill()
    # Not by the score, which is 0 too as long as the processors are never idle.
    eventually(lambda: not one.view()[second][1]["tag.up"], what="the fall of the service")
    assert one.view()[second][0] == 0
    assert agent.log.count("is now down") == 1
    other.start()
    eventually(lambda: one.view()[second][1]["tag.up"], what="the service to be up again")
    agent.kill()
    agent.start()
    eventually(lambda: agent.log.count("is now up") == 3, what="the new agent")
