# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Sessions below a root, as ``zookeeper = host:port/some/root`` has it, and their end when ZooKeeper hangs."""

import time

import pytest
from support import eventually
from zookeeper_servers import ZooKeeperProcess

from oio.meta.replication.candidacy import Candidacy
from oio.meta.replication.registration import Registration
from oio.meta.replication.zookeeper import STOP_S, Ensemble, ZooKeepers
from oio.zk.admin import bootstrap, connection, destroy, groups, seems_complete
from oio.zk.tree import Tree

KEY = "0A1B" + "F" * 60
LONG_S = 60.0


@pytest.fixture
def server(tmp_path):
    started = ZooKeeperProcess(tmp_path / "server")
    yield started
    started.stop()


def test_services_make_a_root_that_is_missing(server, hands):
    hosts = f"{server.addr}/deep/root"
    ensemble = Ensemble(hosts, LONG_S)
    registration = Registration(ensemble, "NS", "meta0", "127.0.0.1:6001")
    candidacy = Candidacy(ensemble, "NS", "meta2", KEY, "a")
    ensemble.start()
    try:
        candidacy.join()
        registration.start()
        assert candidacy.wait_for(lambda view: view.leads, 20.0), candidacy.view
        directory = "/deep/root" + Tree.election_directory("NS", "meta2", KEY)
        assert hands.get_children(directory) == [candidacy.view.members[0][0]]
        eventually(lambda: hands.exists("/deep/root/hc/ns/NS/srv/meta0/127.0.0.1:6001"))
        with connection(hosts) as client:
            (group,) = groups(client, "NS", "meta2")
            assert (group.key, group.nodes[0].value) == (KEY, "a")
    finally:
        ensemble.stop()


def test_tools_make_it_with_the_tree_and_do_not_need_it_to_look(server, hands):
    with connection(f"{server.addr}/other/root") as client:
        assert list(groups(client, "NS", "meta0")) == []
        assert not seems_complete(client, "NS") and hands.exists("/other") is None
        assert bootstrap(client, "NS") > 65536 and seems_complete(client, "NS")
        assert hands.exists("/other/root/hc/ns/NS/el/meta2/FF/FF")
        assert destroy(client, "NS")


def test_the_end_of_a_service_does_not_wait_for_a_frozen_zookeeper(server):
    sessions = ZooKeepers({"zookeeper": f"{server.addr};{server.addr}"}, "NS", "meta2", LONG_S)
    sessions.start()
    assert all(one.wait_connected(20) for one in sessions.ensembles)
    server.freeze()
    try:
        begin = time.monotonic()
        sessions.stop()
        assert time.monotonic() - begin < 2 * STOP_S
    finally:
        server.thaw()
