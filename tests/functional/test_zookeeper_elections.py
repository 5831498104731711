# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Elections in a real ZooKeeper, which is killed, frozen and emptied; members die, leave and are removed."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from hashlib import sha256
from itertools import pairwise

import pytest
from kazoo.exceptions import ConnectionLoss, NoNodeError, NotEmptyError, SessionExpiredError
from support import ROOT, eventually
from zookeeper_servers import ZooKeeperProcess

from oio.meta.replication.candidacy import Candidacy, View
from oio.meta.replication.registration import Registration
from oio.meta.replication.zookeeper import CONNECTED, LOST, SUSPENDED, Ensemble, ZooKeepers
from oio.zk.tree import Tree

KEY = "0A1B" + "F" * 60
# A session that ends soon, and yet not when this machine does something else for a second.
SHORT_S, LONG_S = 5.0, 60.0


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = ZooKeeperProcess(tmp_path_factory.mktemp("zookeeper") / "server")
    yield server
    server.stop()


@pytest.fixture
def server(running):
    """A ZooKeeper that runs, whatever former tests did to it."""
    if running.process.poll() is not None:
        running.start()
    running.thaw()
    return running


@pytest.fixture
def key(request):
    """An election of the test's own."""
    return sha256(request.node.name.encode()).hexdigest().upper()


@pytest.fixture
def services(server, key):
    """Makes services that take part in the election: ``services("a", session_timeout_s)``."""
    ensembles = []

    def make(name, session_s=LONG_S, on_change=None, peers=()):
        ensemble = Ensemble(server.addr, session_s)
        ensembles.append(ensemble)
        ensemble.start()
        return Candidacy(ensemble, "NS", "meta2", key, name, on_change, peers)

    yield make
    for ensemble in ensembles:
        ensemble.stop()


@pytest.fixture
def member(services):
    """Makes services that are members already."""

    def make(name, *args, **kwargs):
        candidacy = services(name, *args, **kwargs)
        candidacy.join()
        reached(candidacy, lambda view: view.status == "member")
        return candidacy

    return make


def reached(candidacy, predicate, timeout_s=20.0):
    assert candidacy.wait_for(predicate, timeout_s), f"{candidacy.view}\n" + "\n".join(candidacy.log)
    return candidacy.view


def order(view):
    return [service_id for _, service_id in view.members]


def has_order(*names):
    return lambda view: order(view) == list(names)


def nodes(client, key):
    """(name, value) in order, without those that leave meanwhile."""
    directory = Tree.election_directory("NS", "meta2", key)
    found = []
    for name in sorted(client.get_children(directory)):
        with contextlib.suppress(NoNodeError):
            found.append((name, client.get(f"{directory}/{name}")[0].decode()))
    return found


def seen(client, key):
    """The same, None while the server does not answer."""
    try:
        return nodes(client, key)
    except (ConnectionLoss, SessionExpiredError):
        return None


def remove(client, path):
    """Tells whether it was done, before living members came back."""
    try:
        client.delete(path, recursive=True)
    except NotEmptyError:
        return False
    return True


def expire(ensemble):
    """End a session as ZooKeeper does, behind the back of its owner."""
    from kazoo.client import KazooClient

    thief = KazooClient(ensemble.hosts, client_id=ensemble.client.client_id)
    thief.start(20)
    thief.stop()
    thief.close()


CHILD = """
import sys, threading
from oio.meta.replication.candidacy import Candidacy
from oio.meta.replication.zookeeper import Ensemble
hosts, key, name, session_s = sys.argv[1:]
ensemble = Ensemble(hosts, float(session_s))
ensemble.start()
candidacy = Candidacy(ensemble, "NS", "meta2", key, name)
candidacy.join()
assert candidacy.wait_for(lambda view: view.status == "member", 30)
print("member", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def process(server, key):
    """Makes services that are processes of their own."""
    started = []

    def make(name, session_s=LONG_S):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, server.addr, key, name, str(session_s)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        started.append(child)
        assert child.stdout.readline() == "member\n"
        return child

    yield make
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


# -- the line --------------------------------------------------------------------------------------


def test_the_first_to_come_is_the_master(member, services, hands, key):
    first, second, third = member("a"), member("b"), member("c")
    for candidacy in (first, second, third):
        view = reached(candidacy, has_order("a", "b", "c"))
        assert view.master == "a" and view.status == "member"
        assert view.leads is (candidacy is first)
        assert [name for name, _ in view.members] == [name for name, _ in nodes(hands, key)]
        assert all(name.startswith(f"{key}-") and len(name) == 75 for name, _ in view.members)
    assert services("d").view == View(status="none", master="", leads=False, members=())


def test_joining_again_changes_nothing(member, hands, key):
    candidacy = member("a")
    candidacy.join()
    candidacy.join()
    member("b")
    assert order(reached(candidacy, has_order("a", "b"))) == [value for _, value in nodes(hands, key)]


def test_a_member_that_leaves_gives_the_place_to_the_next(member):
    first, second = member("a"), member("b")
    first.leave()
    assert reached(second, lambda view: view.leads).members[0][1] == "b"
    assert first.view.status == "none" and not first.view.leads
    first.join()
    reached(first, has_order("b", "a"))
    second.leave()
    second.join()
    reached(second, has_order("a", "b"))


def test_one_may_go_to_the_end_of_the_line(member, hands, key):
    first, second, third = member("a"), member("b"), member("c")
    reached(first, has_order("a", "b", "c"))
    first.rejoin()
    for candidacy in (first, second, third):
        reached(candidacy, lambda view: view.status == "member" and order(view) == ["b", "c", "a"])
    assert len(nodes(hands, key)) == 3
    assert third.view.master == "b"
    third.rejoin()
    reached(third, has_order("b", "a", "c"))


def test_members_that_refuse_to_lead_do_not_turn_around_at_full_speed(services):
    def refuse(name):
        candidacy = services(name, on_change=lambda view: candidacy.rejoin() if view.leads else None)
        candidacy.join()
        return candidacy

    alone = refuse("a")
    reached(alone, lambda view: view.leads)
    before = list(alone.log)
    alone.rejoin()
    other = refuse("b")
    for candidacy in (alone, other):
        eventually(lambda candidacy=candidacy: sum("REMOVED" in line for line in candidacy.log) >= 3)
    stamps = [int(line.split(":")[0]) for line in other.log if ":REMOVED:" in line]
    assert stamps[2] - stamps[0] >= 100
    assert not any("REJOIN" in line for line in before)


def test_the_end_of_a_session_removes_its_members_at_once(member):
    first, second = member("a"), member("b")
    first._ensemble.stop()
    reached(second, has_order("b"))
    assert first.view.status == "disconnected" and not first.view.leads


# -- deaths ----------------------------------------------------------------------------------------


def test_a_killed_master_is_followed_when_its_session_ends(process, member):
    master = process("a", SHORT_S)
    second = member("b")
    assert reached(second, has_order("a", "b")).master == "a"
    master.kill()
    reached(second, lambda view: view.leads and order(view) == ["b"])


def test_a_dead_master_that_is_impeached_is_followed_at_once(process, member):
    master = process("a")
    second, third = member("b"), member("c")
    reached(third, has_order("a", "b", "c"))
    master.kill()
    third.impeach("a")
    # Its session lasts a minute.
    reached(second, lambda view: view.leads)
    assert reached(third, has_order("b", "c")).master == "b"


def test_nodes_of_those_who_are_no_peers_do_not_count(member, hands, key):
    peers = ("a", "b")
    member("stranger")
    first, second = member("a", peers=peers), member("b", peers=peers)
    assert reached(first, has_order("a", "b")).leads
    assert reached(second, has_order("a", "b")).master == "a"
    assert len(nodes(hands, key)) == 3


def test_a_process_replaces_the_nodes_of_the_former_one(process, member, hands, key):
    other = member("b")
    master = process("a")
    reached(other, has_order("b", "a"))
    other.rejoin()
    reached(other, has_order("a", "b"))
    master.kill()
    process("a")
    reached(other, lambda view: view.leads and order(view) == ["b", "a"])
    assert [value for _, value in nodes(hands, key)] == ["b", "a"]


def test_a_living_member_that_is_impeached_joins_again_at_the_end(member):
    first, second = member("a"), member("b")
    reached(second, has_order("a", "b"))
    second.impeach("a")
    for candidacy in (first, second):
        reached(candidacy, has_order("b", "a"))
    second.impeach("b")
    second.impeach("nobody")
    reached(second, has_order("b", "a"))


def test_a_member_that_is_removed_again_and_again_comes_back_later_and_later(member, hands, key):
    candidacy = member("a")
    directory = Tree.election_directory("NS", "meta2", key)
    for _ in range(3):
        (name, _value), *others = eventually(lambda: nodes(hands, key))
        assert others == []
        hands.delete(f"{directory}/{name}")
        reached(candidacy, lambda view, name=name: view.status == "member" and view.members[0][0] > name)
    assert sum(":REMOVED:DELAYED_CREATING" in line for line in candidacy.log) == 2


def test_two_services_with_one_id_do_not_chase_each_other(member, hands, key):
    first, second = member("a"), member("a")
    reached(first, lambda view: len(view.members) == 2)
    assert {value for _, value in nodes(hands, key)} == {"a"}
    quiet = len(first.log) + len(second.log)
    member("b")
    for candidacy in (first, second):
        reached(candidacy, has_order("a", "a", "b"))
    assert len(first.log) + len(second.log) <= quiet + 2


# -- sessions --------------------------------------------------------------------------------------


def test_a_lost_session_is_replaced_and_the_member_joins_again(member):
    told = []
    first, second = member("a"), member("b")
    reached(first, has_order("a", "b"))
    first._ensemble.add_listener(told.append)
    before = first._ensemble.session
    expire(first._ensemble)
    reached(second, lambda view: view.leads)
    reached(first, lambda view: view.status == "member" and order(view) == ["b", "a"])
    assert first._ensemble.session != before
    eventually(lambda: told[-1:] == [CONNECTED])
    assert LOST in told


def test_who_left_before_a_session_was_lost_stays_away(member, hands, key, server):
    candidacy = member("a")
    server.kill()
    reached(candidacy, lambda view: view.status == "disconnected")
    candidacy.leave()
    reached(candidacy, lambda view: view.status == "none")
    server.start()
    eventually(lambda: seen(hands, key) == [])
    eventually(lambda: candidacy.state == "NONE")


def test_a_restarted_zookeeper_finds_the_same_members(member, server):
    told = []
    first, second = member("a"), member("b")
    before = reached(first, has_order("a", "b"))
    first._ensemble.add_listener(told.append)
    server.kill()
    view = reached(first, lambda view: view.status == "disconnected")
    assert not view.leads and view.master == "a" and view.members == before.members
    assert not first._ensemble.connected
    server.start()
    assert reached(first, lambda view: view.leads) == before
    reached(second, has_order("a", "b"))
    eventually(lambda: told == [SUSPENDED, CONNECTED])


def test_an_emptied_zookeeper_is_filled_again(member, server, hands, key):
    # So much has happened before that an empty server is far behind what its clients saw.
    for _ in range(200):
        hands.set("/hc", b"")
    first, second = member("a", SHORT_S), member("b", SHORT_S)
    server.restart(empty=True)
    for candidacy in (first, second):
        reached(candidacy, lambda view: view.status == "member" and len(view.members) == 2, 40)
    assert first.view.leads != second.view.leads
    assert first.view.master == second.view.master == ("a" if first.view.leads else "b")


def test_a_removed_tree_is_made_again(member, hands, key):
    first, second = member("a"), member("b")
    eventually(lambda: remove(hands, Tree.election_root("NS", "meta2")))
    for candidacy in (first, second):
        reached(candidacy, lambda view: view.status == "member" and sorted(order(view)) == ["a", "b"])
    assert first.view.leads != second.view.leads


def test_a_frozen_zookeeper_is_noticed(member, server):
    candidacy = member("a", SHORT_S)
    server.freeze()
    try:
        reached(candidacy, lambda view: view.status == "disconnected" and not view.leads)
    finally:
        server.thaw()
    reached(candidacy, lambda view: view.leads)


def test_a_server_that_accepts_and_says_nothing_does_not_hold_for_long(server):
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        # Kazoo tries the servers in any order, and begins again with the other.
        ensemble = Ensemble(f"127.0.0.1:{mute.getsockname()[1]},{server.addr}", LONG_S)
        started = time.monotonic()
        ensemble.start()
        try:
            assert ensemble.wait_connected(LONG_S / 2), time.monotonic() - started
        finally:
            ensemble.stop()


def test_a_creation_whose_reply_is_lost_is_not_made_twice(services, server, hands, key):
    candidacy = services("a", SHORT_S)
    ensemble = candidacy._ensemble
    assert ensemble.wait_connected(20)
    request, stopped = ensemble.request, threading.Event()

    def freeze_at_creation(method, *args, **kwargs):
        if method == "create" and not stopped.is_set():
            server.freeze()
            stopped.set()
        request(method, *args, **kwargs)

    ensemble.request = freeze_at_creation
    candidacy.join()
    try:
        assert stopped.wait(20)
        reached(candidacy, lambda view: view.status == "disconnected")
    finally:
        server.thaw()
    view = reached(candidacy, lambda view: view.leads and len(view.members) == 1)
    eventually(lambda: seen(hands, key) == list(view.members))


def test_services_start_without_zookeeper_and_say_so_once(tmp_path, caplog):
    server = ZooKeeperProcess(tmp_path / "late", start=False)
    ensemble = Ensemble(server.addr, SHORT_S)
    candidacy = Candidacy(ensemble, "NS", "meta2", KEY, "a")
    try:
        with caplog.at_level("INFO"):
            ensemble.start()
            candidacy.join()
            assert reached(candidacy, lambda view: view.status == "disconnected").master == ""
            eventually(lambda: "no answer yet" in caplog.text)
            assert not ensemble.wait_connected(0.1)
            server.start()
            reached(candidacy, lambda view: view.leads)
        messages = [record.getMessage().split(": ", 1)[1] for record in caplog.records]
        assert [text.split(",")[0] for text in messages] == ["no answer yet; it is tried for ever", "connected"]
    finally:
        ensemble.stop()
        server.stop()


# -- several clusters, many elections ---------------------------------------------------------------


def test_elections_are_spread_over_clusters_and_fail_apart(server, tmp_path):
    other = ZooKeeperProcess(tmp_path / "other")
    sessions = ZooKeepers({"zookeeper.meta2": f"{server.addr};{other.addr}"}, "NS", "meta2", LONG_S)
    assert not sessions.connected
    sessions.start()
    try:
        keys = [f"{number:04X}" + "A" * 60 for number in range(64)]
        per_cluster = [[key for key in keys if sessions.ensemble_of(key) is one] for one in sessions.ensembles]
        assert all(len(some) > 10 for some in per_cluster)
        here, there = (
            Candidacy(sessions.ensemble_of(some[0]), "NS", "meta2", some[0], "a") for some in per_cluster
        )
        for candidacy in (here, there):
            candidacy.join()
            reached(candidacy, lambda view: view.leads)
        assert sessions.connected
        other.kill()
        reached(there, lambda view: view.status == "disconnected")
        assert here.view.leads and not sessions.connected
    finally:
        started = time.monotonic()
        sessions.stop()
        assert time.monotonic() - started < 5
        other.stop()


def test_services_without_zookeeper_cannot_have_elections():
    with pytest.raises(ValueError, match="meta2 of NS"):
        ZooKeepers({}, "NS", "meta2")


def test_a_thousand_elections_take_no_thread_of_their_own(server, hands):
    ensemble = Ensemble(server.addr, LONG_S)
    candidacies = [
        Candidacy(ensemble, "NS", "meta2", f"{number:04X}" + "B" * 60, "a", lambda view: None)
        for number in range(1000)
    ]
    before = threading.active_count()
    ensemble.start()
    try:
        for candidacy in candidacies:
            candidacy.join()
        for candidacy in candidacies:
            reached(candidacy, lambda view: view.leads, 60)
        assert threading.active_count() <= before + 8
        server.restart()
        for candidacy in candidacies:
            reached(candidacy, lambda view: view.leads, 60)
    finally:
        ensemble.stop()


def test_nothing_is_asked_while_nothing_happens(member, server):
    member("a")
    member("b")
    eventually(lambda: _requests(server) == _requests(server, after_s=0.5))


def _requests(server, after_s=0.0):
    threading.Event().wait(after_s)
    # Sessions of a minute are not heard of for 20 s; each question of ours is a packet as well.
    return int(server.figures()["zk_packets_received"]) - server.asked


# -- news ------------------------------------------------------------------------------------------


def test_changes_are_told_in_order_and_one_at_a_time(member):
    told, inside = [], threading.Lock()

    def listen(view):
        assert inside.acquire(blocking=False), "told twice at once"
        told.append(view)
        inside.release()

    first = member("a", on_change=listen)
    for name in "bcd":
        member(name)
    last = reached(first, has_order("a", "b", "c", "d"))
    eventually(lambda: told[-1] == last)
    assert all(one != two for one, two in pairwise(told))
    counts = [len(view.members) for view in told]
    assert counts == sorted(counts) and told[-1].status == "member"


def test_a_listener_that_waits_or_fails_delays_nobody(server, key):
    ensemble = Ensemble(server.addr, LONG_S)
    ensemble.start()
    gate, told = threading.Event(), []

    def fail(view):
        raise RuntimeError("on purpose")

    def call_zookeeper(state):
        told.append(ensemble.client.exists("/hc"))

    ensemble.add_listener(call_zookeeper)
    slow = Candidacy(ensemble, "NS", "meta2", key, "a", lambda view: gate.wait(60))
    failing = Candidacy(ensemble, "NS", "meta2", key[::-1], "b", fail)
    quick = Candidacy(ensemble, "NS", "meta2", KEY, "c", told.append)
    try:
        for candidacy in (slow, failing, quick):
            candidacy.join()
            reached(candidacy, lambda view: view.leads)
        eventually(lambda: len(told) >= 2 and told[-1] == quick.view)
    finally:
        gate.set()
        ensemble.stop()


def test_the_log_tells_what_happened(member):
    candidacy = member("a")
    candidacy.note("CHECK_OK", "MASTER")
    fields = [line.split(":") for line in candidacy.log]
    assert [event for _, _, event, _ in fields] == ["JOIN", "CREATE", "CREATE_OK", "LIST_OK", "CHECK_OK"]
    states = [(before, after) for _, before, _, after in fields]
    assert states[0][0] == "NONE" and states[-1] == ("CHECKING_SLAVES", "MASTER")
    assert all(one[1] == two[0] for one, two in pairwise(states))
    assert all(abs(int(ms) / 1000 - time.time()) < 60 for ms, *_ in fields)


# -- registrations ---------------------------------------------------------------------------------


def test_services_show_themselves(server, hands):
    ensembles = [Ensemble(server.addr, LONG_S) for _ in range(2)]
    first, second = (Registration(one, "NS", "meta0", "127.0.0.1:6001") for one in ensembles)
    path = "/hc/ns/NS/srv/meta0/127.0.0.1:6001"

    def is_held_by(ensemble):
        stat = hands.exists(path)
        return stat is not None and stat.ephemeralOwner == ensemble.session

    try:
        for one in ensembles:
            one.start()
        first.start()
        eventually(lambda: is_held_by(ensembles[0]))
        assert hands.get(path)[0] == b"127.0.0.1:6001"
        hands.delete(path)
        eventually(lambda: is_held_by(ensembles[0]))
        expire(ensembles[0])
        eventually(lambda: is_held_by(ensembles[0]))
        # A former process whose session has not ended.
        first._ensemble.post(first._ensemble.detach, first)
        first._wanted = False
        second.start()
        eventually(lambda: is_held_by(ensembles[1]))
        second.stop()
        eventually(lambda: hands.exists(path) is None)
    finally:
        for one in ensembles:
            one.stop()
