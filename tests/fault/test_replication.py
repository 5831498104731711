# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Containers with three copies, and what happens to their services: answers stay right, waits are bounded."""

import contextlib
import os
import threading
import time

import apsw
import pytest
from support import ACCOUNT, eventually, start_cluster

from oio import ObjectStorageApi
from oio.common.exceptions import NoSuchContainer, OioException
from oio.common.status import StatusError
from oio.common.utils import cid_from_name
from oio.common.zookeeper_server import find_zookeeper
from oio.conscience.client import ConscienceClient
from oio.directory.admin import AdminClient
from oio.http.client import HttpPool
from oio.meta import messages as m
from oio.meta.base_messages import BaseFind, BasePing
from oio.meta.client import MetaClient, Route
from oio.meta.replication.journal import TRIM_PERIOD

pytestmark = pytest.mark.skipif(find_zookeeper() is None, reason="ZooKeeper is not installed")

#: Longer than leases; a master that sleeps for so long has lost them all.
LEASES_OVER_S = 2.5
#: Entries that the copies of these tests keep: a copy that missed more gets an image.
LOG_ENTRIES = 16
MISSED = 2 * TRIM_PERIOD + LOG_ENTRIES
EMPTY_MD5 = "D41D8CD98F00B204E9800998ECF8427E"
#: Kept by each copy for itself.
OWN_TABLES = {"changes"}


class Copies:
    """A container, its copies, and those who serve them."""

    def __init__(self, sandbox, name):
        self.sandbox, self.name = sandbox, name
        self.api = ObjectStorageApi(sandbox.namespace, endpoint=sandbox.proxy)
        self.admin = AdminClient({"namespace": sandbox.namespace, "proxyd_url": f"http://{sandbox.proxy}"})
        self.cid = cid_from_name(ACCOUNT, name)
        self.base = f"{self.cid}.1"
        self.peers = sorted(service.name for service in sandbox.services("meta2"))
        self._direct = MetaClient(HttpPool())

    def master(self):
        """Name of the service that leads the container, once one does."""
        return eventually(
            lambda: self.admin.election_status("meta2", cid=self.cid).get("master"), what="a master"
        )

    def slaves(self):
        master = self.master()
        return [peer for peer in self.peers if peer != master]

    def service(self, name):
        return next(one for one in self.sandbox.services("meta2") if one.name == name)

    def set(self, value, **options):
        self.api.container_set_properties(ACCOUNT, self.name, {"k": value}, **options)

    def get(self, **options):
        return self.api.container_get_properties(ACCOUNT, self.name, **options)["properties"].get("k")

    def ask(self, peer, request, **route):
        """Ask one service, past the proxy; longer than it waits for a master."""
        address = self.service(peer).addr
        return self._direct.call(address, request, timeout_s=15.0, route=Route(peers=self.peers, **route))

    def value_of_copy(self, peer):
        """What the copy of a service holds, whoever leads."""
        reply = self.ask(peer, m.ContainerGetProperties(cid=self.cid), local=True)
        return reply.properties.get("user.k")

    def holds(self, peer, value):
        """Does the copy of a service hold a value? There may be no copy yet."""
        try:
            return self.value_of_copy(peer) == value
        except StatusError:
            return False

    def rows(self, peer):
        """All the rows that a copy shares with the others, from its file."""
        path = self.ask(peer, BaseFind(base=self.base)).path
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        try:
            found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            tables = {name for (name,) in found} - OWN_TABLES
            return {table: sorted(map(repr, connection.execute(f"SELECT * FROM {table}"))) for table in tables}
        finally:
            connection.close()

    def wait_until_equal(self):
        def equal():
            try:
                rows = [self.rows(peer) for peer in self.peers]
            except (StatusError, apsw.Error):
                return False  # One has just been started, or gets an image.
            return rows.count(rows[0]) == len(rows)

        eventually(equal, what="equal copies", timeout_s=30)

    def wait_until_quiet(self):
        """Until the master has told its events, and removed them from all copies: nothing is written any more."""

        def quiet():
            try:
                return not any(pending(self, peer) for peer in self.peers)
            except (StatusError, apsw.Error):
                return False  # as above

        eventually(quiet, what="all events told", timeout_s=30)
        self.wait_until_equal()


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    sandbox = start_cluster(
        tmp_path_factory.mktemp("copies"), f"COPIES{os.getpid()}", replicas=3, rawx=3,
        config={"sqliterepo.log.max_entries": str(LOG_ENTRIES), "sqliterepo.election.wait.delay": "5s"},
    )  # fmt: skip
    yield sandbox
    sandbox.destroy()


@pytest.fixture
def copies(replicated, request):
    """A new container; whatever a test did to its services is undone behind it."""
    found = Copies(replicated, f"{request.node.name[:40]}-{time.time_ns()}")
    found.api.container_create(ACCOUNT, found.name)
    found.set("first")
    # A peer that answered late gets its copy a moment later.
    found.wait_until_equal()
    yield found
    for service in replicated.services("meta2", "zookeeper"):
        replicated.resume(service.name)
    replicated.start()
    replicated.wait_ready()


def test_all_copies_hold_what_was_acknowledged(copies):
    copies.api.object_create(ACCOUNT, copies.name, obj_name="o", data=b"data", policy="THREECOPIES")
    copies.set("second")
    assert copies.get() == "second"
    copies.wait_until_equal()
    assert [copies.value_of_copy(peer) for peer in copies.peers] == ["second"] * 3


def test_only_the_master_writes_and_the_others_name_it(copies):
    master = copies.master()
    request = m.ContainerSetProperties(cid=copies.cid, properties={"user.k": "by a slave"})
    for slave in copies.slaves():
        with pytest.raises(StatusError) as refused:
            copies.ask(slave, request)
        assert (refused.value.code, refused.value.message) == (303, master)
    assert copies.get() == "first"


def test_a_killed_master_is_replaced_and_nothing_is_lost(copies):
    copies.set("before")
    master = copies.master()
    former = copies.sandbox.pids()[master]
    copies.sandbox.kill(master)
    assert copies.get() == "before"
    copies.set("after")
    copies.sandbox.wait_restarted(master, former)
    copies.wait_until_equal()
    assert copies.get() == "after"


def test_a_master_that_slept_neither_writes_nor_tells_the_past(copies):
    master = copies.master()
    copies.sandbox.pause(master)
    copies.set("while it slept")
    time.sleep(LEASES_OVER_S)
    copies.sandbox.resume(master)
    for request in (
        m.ContainerGetProperties(cid=copies.cid),
        m.ContainerSetProperties(cid=copies.cid, properties={"user.k": "too late"}),
    ):
        try:
            reply = copies.ask(master, request)
        except StatusError as exc:
            assert exc.code in (303, 503)
        else:
            # It may have become master again meanwhile, by an election.
            assert reply is None or reply.properties["user.k"] == "while it slept"
    copies.set("last")
    copies.wait_until_equal()


def test_a_copy_that_missed_writes_gets_them_when_its_service_is_back(copies):
    late = copies.slaves()[0]
    copies.sandbox.stop(late)
    for number in range(5):
        copies.set(f"while it was away {number}")
    copies.sandbox.start(late)
    eventually(lambda: copies.holds(late, "while it was away 4"), what="the entries it missed")
    copies.wait_until_equal()


def test_a_copy_that_missed_more_than_the_log_gets_an_image(copies):
    late = copies.slaves()[0]
    copies.sandbox.stop(late)
    for number in range(MISSED):
        copies.set(str(number))
    copies.sandbox.start(late)
    eventually(lambda: copies.holds(late, str(MISSED - 1)), what="an image of the base", timeout_s=30)
    told = f"base {copies.base}: image of"
    eventually(lambda: told in log_of(copies.sandbox, late), what="the image told in the log")
    copies.wait_until_equal()


def damaged_slave(copies, key):
    """A slave of whose copy a property was changed behind its back."""
    copies.wait_until_quiet()
    slave = copies.slaves()[0]
    connection = apsw.Connection(copies.ask(slave, BaseFind(base=copies.base)).path)
    connection.execute("UPDATE admin SET v = 'damaged' WHERE k = ?", (key,))
    connection.close()
    return slave


def test_a_copy_whose_content_was_changed_behind_its_back_is_replaced(copies):
    damaged = damaged_slave(copies, "user.k")
    copies.set("repaired")
    eventually(lambda: copies.holds(damaged, "repaired"), what="the damaged copy replaced")
    copies.wait_until_equal()


def test_a_copy_is_replaced_as_a_whole_on_request_while_others_write(copies):
    damaged_slave(copies, "sys.user.name")
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            copies.set(str(number := number + 1))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        answers = copies.admin.election_sync("meta2", cid=copies.cid, check_type=2)
    finally:
        stop.set()
        writer.join()
    assert sorted(answer["status"]["status"] for answer in answers.values()) == [200, 200, 301]
    copies.wait_until_equal()


def test_a_copy_whose_file_was_removed_gets_an_image(copies):
    # The removal of events that were told would make the copy again too.
    copies.wait_until_quiet()
    poor = copies.slaves()[0]
    os.unlink(copies.ask(poor, BaseFind(base=copies.base)).path)
    has = copies.admin.has_base("meta2", cid=copies.cid)
    assert {peer for peer, answer in has.items() if answer["status"]["status"] == 200} == {*copies.peers} - {poor}
    copies.set("more")
    eventually(lambda: _there(copies, poor), what="the copy made again")
    assert copies.value_of_copy(poor) == "more"


def test_a_master_whose_file_was_removed_gets_an_image_and_loses_nothing(copies):
    copies.set("known to all")
    os.unlink(copies.ask(copies.master(), BaseFind(base=copies.base)).path)
    assert copies.get() == "known to all"
    copies.set("more")
    copies.wait_until_equal()


def test_a_destroyed_container_stays_so_when_a_copy_of_it_comes_back(copies):
    away = copies.slaves()[0]
    copies.sandbox.stop(away)
    copies.api.container_delete(ACCOUNT, copies.name)
    copies.sandbox.start(away)

    eventually(lambda: not _there(copies, away), what="the old copy gone", timeout_s=30)
    with pytest.raises(NoSuchContainer):
        copies.get()


def test_a_container_that_is_made_again_does_not_mix_with_an_old_copy(copies):
    away = copies.slaves()[0]
    with chosen_in_any_case(copies, away):
        copies.sandbox.stop(away)
        copies.api.container_delete(ACCOUNT, copies.name)
        assert copies.api.container_create(ACCOUNT, copies.name)
        assert copies.get() is None
        copies.set("new life")
        copies.sandbox.start(away)
    eventually(lambda: copies.holds(away, "new life"), what="the new base", timeout_s=30)
    copies.wait_until_equal()


def test_without_a_majority_nothing_is_acknowledged_and_copies_can_be_read(copies):
    master, slaves = copies.master(), copies.slaves()
    for slave in slaves:
        copies.sandbox.stop(slave)
    begin = time.monotonic()
    with pytest.raises(OioException):
        copies.set("by a minority", read_timeout=4)
    assert time.monotonic() - begin < 10
    assert copies.value_of_copy(master) == "first"
    copies.sandbox.start(slaves[0])
    eventually(lambda: _done(lambda: copies.set("by a majority")), what="a majority", timeout_s=20)
    assert copies.get() == "by a majority"


def test_without_zookeeper_requests_wait_and_go_on_when_it_is_back(copies):
    zookeeper = copies.sandbox.services("zookeeper")[0].name
    copies.sandbox.stop(zookeeper)
    with pytest.raises(OioException):
        eventually(lambda: not _done(lambda: copies.set("unseen", read_timeout=2)), what="SUSPENDED noticed")
        copies.set("unseen", read_timeout=2)
    copies.sandbox.start(zookeeper)
    eventually(lambda: _done(lambda: copies.set("seen")), what="elections", timeout_s=30)
    assert copies.get() == "seen"


def test_an_operation_that_is_sent_again_is_made_once(copies):
    chunk = m.Chunk(url=f"http://127.0.0.1:1/{'BB' * 32}", pos="0", size=0, hash=EMPTY_MD5)
    request = m.ContentPut(
        cid=copies.cid, path="once", version=1, content_id="AA" * 16, size=0, hash=EMPTY_MD5, chunks=[chunk],
        policy="SINGLE", chunk_method="plain/nb_copy=1",
    )  # fmt: skip
    master = copies.master()
    for _ in range(2):
        copies.ask(master, request, operation="0123456789abcdef")
    former = copies.sandbox.pids()[master]
    copies.sandbox.kill(master)
    eventually(lambda: _done(copies.get), what="another master")
    copies.ask(copies.master(), request, operation="0123456789abcdef")
    copies.sandbox.wait_restarted(master, former)
    objects = copies.api.object_list(ACCOUNT, copies.name)["objects"]
    assert [entry["name"] for entry in objects] == ["once"]


def test_events_of_a_lost_master_are_delivered_by_the_next(copies):
    """The queue is away while the master commits; then the master is."""
    redis, master = copies.sandbox.services("redis")[0].name, copies.master()
    copies.sandbox.pause(redis)
    copies.set("told later")
    copies.sandbox.stop(master)
    copies.sandbox.resume(redis)

    def delivered():
        others = [peer for peer in copies.peers if peer != master]
        try:
            for peer in others:
                copies.ask(peer, BasePing(base=copies.base))
            return not any(pending(copies, peer) for peer in others)
        except (StatusError, apsw.Error):
            return False  # The election goes on, or a copy gets an image.

    eventually(delivered, what="the events of the dead master delivered", timeout_s=30)


def pending(copies, peer):
    """Does the copy of a service hold events?"""
    connection = apsw.Connection(copies.ask(peer, BaseFind(base=copies.base)).path)
    try:
        return bool(connection.execute("SELECT 1 FROM events LIMIT 1").fetchall())
    finally:
        connection.close()


@contextlib.contextmanager
def chosen_in_any_case(copies, peer):
    """New containers need as many services as copies: a service that is down is chosen all the same."""
    conscience = ConscienceClient({"namespace": copies.sandbox.namespace, "proxyd_url": copies.sandbox.proxy})
    locked = {"type": "meta2", "addr": copies.service(peer).addr, "score": 90}
    conscience.lock_score(locked)

    def locked_everywhere():
        known = conscience.all_services("meta2")
        return any(one["addr"] == locked["addr"] and one["tags"].get("tag.lock") for one in known)

    eventually(locked_everywhere, what="the score locked")
    try:
        yield
    finally:
        conscience.unlock_score(locked)


def _there(copies, peer):
    try:
        return bool(copies.ask(peer, BaseFind(base=copies.base)))
    except StatusError:
        return False


def log_of(sandbox, name):
    with open(os.path.join(sandbox.layout.log_dir, f"{name}.log"), encoding="utf-8") as file:
        return file.read()


def _done(change):
    try:
        change()
    except OioException:
        return False
    return True


