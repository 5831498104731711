# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Consciences that tell each other what they learn: they end with the same picture, whatever happened."""

import itertools
import logging
import random

import msgspec
import pytest
from support import eventually, held_port

from oio.conscience.hub import Hub
from oio.conscience.messages import ServiceDef
from oio.conscience.persistence import Persistence
from oio.conscience.registry import Registry
from oio.conscience.replica import Changes, SavedService
from oio.conscience.settings import HubSettings, ServiceType, Settings, Storage

LOGGER = logging.getLogger("test")
KINDS = {
    "rawx": ServiceType("rawx", "num stat.cpu", timeout_s=60, variation_bound=100),
    "meta0": ServiceType("meta0", "num stat.cpu", timeout_s=60, lock_at_first_register=False),
}


class Node:
    """A conscience with clocks of its own, and what it knows of the histories of others."""

    def __init__(self, skew_s=0.0, namespace="NS"):
        self.now = 1000.0
        self.skew_s = skew_s
        settings = Settings(namespace, ("127.0.0.1", 0), KINDS, Storage({}, {}, {}))
        self.registry = Registry(
            settings, LOGGER, monotonic=lambda: self.now, wall=lambda: 1e9 + self.now + self.skew_s
        )
        self.heard = {}

    def learn(self, other):
        """Ask another node what is new; through bytes, as on the wire."""
        instance = other.registry.instance
        answer = other.registry.changes_since(self.heard.get(instance, 0))
        answer = msgspec.json.decode(msgspec.json.encode(answer), type=Changes)
        self.heard[instance] = answer.sequence
        return self.registry.merge(answer)

    def register(self, port, kind="rawx", first=False, **tags):
        tags = {"tag.up": True, "stat.cpu": 50, **{k.replace("_", "."): v for k, v in tags.items()}}
        self.push(port, -2, kind, {**tags, **({"tag.1": True} if first else {})})

    def push(self, port, score, kind="rawx", tags=None):
        self.registry.push([definition(port, kind, score, tags or {})])

    def view(self, kind="rawx"):
        return {one.addr.split(":")[1]: one for one in self.registry.services_of(kind, True)}


def definition(port, kind="rawx", score=-2, tags=None):
    return ServiceDef(type=kind, addr=f"127.0.0.1:{port}", score=score, tags=tags or {})


def meet(*nodes):
    """Everybody learns from everybody until there is nothing new."""
    for _ in range(10):
        before = [node.registry.sequence for node in nodes]
        for one, other in itertools.permutations(nodes, 2):
            one.learn(other)
        if before == [node.registry.sequence for node in nodes]:
            return
    raise AssertionError("the nodes never stop telling each other the same things")


def test_registrations_locks_and_removals_travel():
    one, two = Node(), Node()
    one.register(1, stat_cpu=70)
    one.register(2)
    assert two.learn(one)
    assert two.view() == one.view()
    two.push(1, 33)
    one.register(1, stat_cpu=90)
    meet(one, two)
    assert one.view() == two.view()
    assert (one.view()["1"].score, one.view()["1"].tags["tag.lock"]) == (33, True)
    assert one.view()["1"].tags["stat.cpu"] == 90
    one.push(1, -1)
    two.registry.deregister([definition(2)])
    meet(one, two)
    assert one.view() == two.view() and set(one.view()) == {"1"}
    assert one.view()["1"].tags["tag.lock"] is False
    one.registry.flush("rawx")
    meet(one, two)
    assert one.view() == two.view() == {}
    two.register(2)
    meet(one, two)
    assert set(one.view()) == {"2"}, "newer than its removal"


def test_nothing_new_is_nothing_told():
    one, two = Node(), Node()
    one.register(1)
    assert two.learn(one) and not two.learn(one)
    assert not one.learn(two), "what came back is known already"
    sequence = one.registry.sequence
    meet(one, two)
    assert one.registry.sequence == sequence
    assert one.registry.changes_since(sequence).services == []


def test_what_was_decided_later_wins_over_a_clock_that_is_late():
    late, ahead = Node(skew_s=-3600), Node(skew_s=3600)
    ahead.register(1)
    ahead.push(1, 10)
    late.learn(ahead)
    late.push(1, 20)
    meet(late, ahead)
    assert ahead.view()["1"].score == late.view()["1"].score == 20
    late.registry.deregister([definition(1)])
    meet(late, ahead)
    assert ahead.view() == {}


def test_a_conscience_that_lost_everything_does_not_lock_what_serves():
    survivor = Node()
    survivor.register(1, first=True)
    survivor.push(1, -1)
    survivor.register(2, first=True)
    survivor.register(3)
    empty = Node(skew_s=100)
    # Its proxy was restarted too: it marks all services as new.
    for port in (1, 2, 3):
        empty.register(port, first=True)
    assert {one.tags["tag.lock"] for one in empty.view().values()} == {True}
    meet(survivor, empty)
    assert survivor.view() == empty.view()
    assert {port: one.tags["tag.lock"] for port, one in empty.view().items()} == {
        "1": False, "2": True, "3": False,
    }  # fmt: skip
    assert empty.view()["1"].score > 0


def test_a_conscience_that_lost_everything_does_not_unlock_what_waits():
    survivor = Node()
    survivor.register(1, first=True)
    survivor.register(2)
    survivor.push(2, 42)
    empty = Node(skew_s=100)
    for port in (1, 2):
        empty.register(port)
    meet(survivor, empty)
    assert survivor.view() == empty.view()
    assert [one.score for one in empty.view().values()] == [0, 42]


def test_age_travels():
    one, two = Node(), Node()
    one.register(1)
    one.now += 50
    two.learn(one)
    two.now += 11
    assert two.registry.expire() == 1
    one.now += 5
    one.register(1)
    two.learn(one)
    assert two.view()["1"].score == 50
    assert two.registry.expire() == 0


def test_a_service_that_is_down_is_down_everywhere():
    one, two = Node(), Node()
    one.register(1)
    meet(one, two)
    one.register(1, tag_up=False)
    meet(one, two)
    assert two.view()["1"].score == 0


def test_types_of_others_are_left_out():
    one, two = Node(), Node()
    changes = one.registry.changes_since(0)
    changes.services.append(SavedService(type="exotic", addr="127.0.0.1:1", score=3, created_us=5))
    assert not two.registry.merge(changes)
    assert "exotic" not in two.registry.types


@pytest.mark.parametrize("seed", range(30))
def test_everybody_ends_with_the_same_picture(seed):
    chance = random.Random(seed)
    nodes = [Node(skew_s=chance.uniform(-100, 100)) for _ in range(3)]
    for _ in range(120):
        node = chance.choice(nodes)
        node.now += chance.choice((0, 0.001, 1))
        port, kind = chance.randint(1, 4), chance.choice(tuple(KINDS))
        match chance.randint(0, 9):
            case 0 | 1 | 2:
                node.register(port, kind, chance.random() < 0.5, stat_cpu=chance.randint(0, 100),
                              tag_up=chance.random() < 0.8)  # fmt: skip
            case 3:
                node.push(port, chance.randint(0, 100), kind)
            case 4:
                node.push(port, -1, kind)
            case 5 if chance.random() < 0.3:
                node.registry.deregister([definition(port, kind)])
            case 6 if chance.random() < 0.2:
                node.registry.flush(kind)
            case 7 if chance.random() < 0.1:
                # Killed, back with nothing, and filled before it answers.
                index = nodes.index(node)
                nodes[index] = Node(node.skew_s)
                for other in nodes:
                    if other is not nodes[index]:
                        nodes[index].learn(other)
            case _:
                node.learn(chance.choice([other for other in nodes if other is not node]))
    meet(*nodes)
    for kind in KINDS:
        first, *others = [facts(node, kind) for node in nodes]
        assert others == [first, first]


def facts(node, kind):
    """What must be the same everywhere: an unlocked score may be one registration late."""
    return {
        port: (one.tags, one.score if one.tags["tag.lock"] else one.score >= 0)
        for port, one in node.view(kind).items()
    }


# --- over sockets


@pytest.fixture
def ports():
    """Two ports that nobody else is given."""
    held = [held_port() for _ in range(2)]
    yield [port for _, port in held]
    for sock, _ in held:
        sock.close()


@pytest.fixture
def run_hub():
    hubs = []

    def run(registry, port, *peers, persistence=None):
        settings = HubSettings(("127.0.0.1", port), tuple(f"127.0.0.1:{peer}" for peer in peers))
        hub = Hub(settings, registry, persistence)
        hubs.append(hub)
        hub.start()
        return hub

    yield run
    for hub in hubs:
        hub.stop()
        hub.close(0.2)


def test_hubs_follow_each_other(run_hub, ports, tmp_path):
    one, two = Node(), Node()
    one.register(1)
    one.push(1, 12)
    run_hub(one.registry, ports[0], ports[1])
    saved = Persistence(two.registry, str(tmp_path / "state"), "NS", LOGGER)
    hub = run_hub(two.registry, ports[1], ports[0], persistence=saved)
    assert two.view() == one.view(), "known before the hub has started"
    assert b'"score":12' in (tmp_path / "state").read_bytes(), "a lock is kept by those who learn it"
    eventually(lambda: hub.status()[f"127.0.0.1:{ports[0]}"]["connected"])
    two.register(2)
    eventually(lambda: "2" in one.view())
    one.registry.deregister([definition(2)])
    eventually(lambda: "2" not in two.view())


def test_a_hub_that_comes_back_empty_is_filled(run_hub, ports):
    one, two, again = Node(), Node(), Node()
    run_hub(one.registry, ports[0], ports[1])
    hub = run_hub(two.registry, ports[1], ports[0])
    two.register(1)
    eventually(lambda: "1" in one.view())
    hub.stop()
    hub.close(0.2)
    run_hub(again.registry, ports[1], ports[0])
    assert again.view() == one.view()
    again.register(2)
    eventually(lambda: "2" in one.view(), what="the new run to be followed")


def test_a_hub_of_another_namespace_is_not_believed(run_hub, ports, caplog):
    one, two = Node(), Node(namespace="OTHER")
    two.register(1)
    run_hub(two.registry, ports[1], ports[0])
    run_hub(one.registry, ports[0], ports[1])
    assert one.view() == {}
    assert "serves the namespace OTHER" in caplog.text


def test_a_hub_that_names_itself_in_another_way_is_left_in_peace(run_hub, ports, caplog):
    port = ports[0]
    one = Node()
    run_hub(one.registry, port, port)
    assert "is this conscience itself" in caplog.text
