# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What a local cluster with several copies offers to break: hosts that hang, die, or are cut off."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from faults import why_not_isolated
from support import eventually, start_cluster

from oio.common.zookeeper_server import find_zookeeper
from oio.sandbox import Sandbox
from oio.sandbox.network import Network

#: Answers come within milliseconds; what is lost is lost for ever.
PATIENCE_S = 2.0
#: For answers that must come: the machine may be busy with other tests.
BUSY_S = 20.0
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]))"

pytestmark = pytest.mark.skipif(find_zookeeper() is None, reason="ZooKeeper is not installed")


@pytest.fixture(scope="module")
def obstacle():
    return why_not_isolated()


@pytest.fixture(scope="module")
def replicated(tmp_path_factory, obstacle):
    """A cluster with three copies, on isolated hosts where that is possible."""
    sandbox = start_cluster(
        tmp_path_factory.mktemp("replicated"), f"R{os.getpid()}", replicas=3, rawx=3, isolate_hosts=not obstacle
    )
    yield sandbox
    sandbox.destroy()


@pytest.fixture
def isolated(replicated, obstacle):
    """The cluster, whose hosts can be cut off; they are whole again afterwards."""
    if obstacle:
        pytest.skip(obstacle)
    yield replicated
    replicated.heal()


def answers(service, patience_s=BUSY_S):
    """Does a service answer a question now?"""
    path = "/info" if service.type == "rawx" else "/status"
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://{service.addr}{path}", timeout=patience_s).status == 200
    return False


def connects(sandbox, group, service):
    """Does a connection from a host group to a service succeed?"""
    enter = f"--net=/run/netns/{Network(sandbox.layout).namespace(group)}"
    words = ["nsenter", enter, sys.executable, "-c", CONNECT, service.host, str(service.port), str(PATIENCE_S)]
    return subprocess.run(words, capture_output=True).returncode == 0


def services_of(sandbox, group):
    return [one for one in sandbox.services() if one.group == group]


def test_every_copy_answers_and_zookeeper_too(replicated):
    assert all(answers(one) for one in replicated.services("meta0", "meta1", "meta2"))
    assert len(replicated.services("meta2")) == 3
    server = replicated.services("zookeeper")[0]
    with socket.create_connection((server.host, server.port), PATIENCE_S) as connection:
        connection.sendall(b"srvr")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b"Mode: standalone" in answer


def test_a_paused_host_keeps_its_processes_and_answers_nothing(replicated):
    before = replicated.pids()
    replicated.pause("@host2")
    try:
        assert {entry["state"] for entry in replicated.status("@host2")} == {"PAUSED"}
        assert not any(answers(one, PATIENCE_S) for one in services_of(replicated, "host2"))
        assert all(answers(one) for one in services_of(replicated, "host1"))
    finally:
        replicated.resume("@host2")
    assert all(answers(one) for one in services_of(replicated, "host2"))
    assert replicated.pids() == before


def test_paused_services_can_be_stopped_and_killed(replicated):
    name = replicated.services("meta2")[2].name
    replicated.pause("@host3")
    begin = time.monotonic()
    replicated.stop("@host3")
    assert time.monotonic() - begin < 10, "nobody waited for those who do not hear"
    replicated.start("@host3")
    former = replicated.pids()[name]
    replicated.pause(name)
    replicated.kill(name)
    replicated.wait_restarted(name, former)
    replicated.wait_ready("@host3")


def test_a_host_that_is_cut_off_is_alone(isolated):
    centre = isolated.services("conscience")[0]
    zookeeper = isolated.services("zookeeper")[0]
    meta2 = isolated.services("meta2")
    isolated.cut("@host2")
    assert isolated.cuts() == ["host2"]
    assert not answers(meta2[1], PATIENCE_S), "not even clients reach it"
    for service in (centre, zookeeper, meta2[0]):
        assert not connects(isolated, "host2", service)
        assert connects(isolated, "host3", service)
    assert connects(isolated, "host2", meta2[1]), "it still serves those who are on it"
    assert not connects(isolated, "host1", meta2[1])
    isolated.heal("@host2")
    assert isolated.cuts() == []
    eventually(lambda: answers(meta2[1]), what="the host is back")
    assert connects(isolated, "host2", zookeeper)


def test_two_hosts_may_lose_each_other_and_nobody_else(isolated):
    meta2 = isolated.services("meta2")
    zookeeper = isolated.services("zookeeper")[0]
    isolated.cut("@host1", "@host2")
    isolated.cut("@host1", "@zookeeper")
    assert not connects(isolated, "host1", meta2[1])
    assert not connects(isolated, "host2", meta2[0])
    assert not connects(isolated, "host1", zookeeper)
    assert connects(isolated, "host1", meta2[2])
    assert connects(isolated, "host2", zookeeper)
    assert answers(meta2[0]), "clients reach it"
    isolated.heal("@host2")
    assert connects(isolated, "host1", meta2[1])
    assert not connects(isolated, "host1", zookeeper), "another cut"
    isolated.heal("@host1")
    assert connects(isolated, "host1", zookeeper)


def test_what_is_lost_in_one_way_only(isolated):
    network, layout = Network(isolated.layout), isolated.layout
    isolated.cut("@host1", "@host2", one_way=True)

    def heard(sender, receiver, patience_s=BUSY_S):
        """Does one datagram arrive?"""
        address = layout.address_of(receiver)
        listen = (
            "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind((sys.argv[1], 9)); "
            "print('ready', flush=True); s.recv(1)"
        )
        send = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', (sys.argv[1], 9))"

        def enter(group, *words):
            return ["nsenter", f"--net=/run/netns/{network.namespace(group)}", sys.executable, "-c", *words]

        with subprocess.Popen(enter(receiver, listen, address), stdout=subprocess.PIPE) as listener:
            try:
                assert listener.stdout.readline() == b"ready\n"
                subprocess.run(enter(sender, send, address), check=True)
                return listener.wait(patience_s) == 0
            except subprocess.TimeoutExpired:
                return False
            finally:
                listener.kill()

    assert not heard("host1", "host2", PATIENCE_S)
    assert heard("host2", "host1")
    isolated.heal("@host1")
    assert heard("host1", "host2")


def test_services_that_are_restarted_while_cut_off_stay_alone(isolated):
    meta2 = isolated.services("meta2")
    isolated.cut("@host3")
    isolated.restart(meta2[2].name, wait=False)
    eventually(lambda: connects(isolated, "host3", meta2[2]), what="it serves on its own host")
    assert not connects(isolated, "host1", meta2[2])
    isolated.heal("@host3")
    isolated.wait_ready("@host3")


def test_nothing_is_left_of_a_cluster_that_crashed(tmp_path, obstacle):
    if obstacle:
        pytest.skip(obstacle)
    fields = {"rawx": 2, "host_groups": 2, "isolate_hosts": True}
    sandbox = Sandbox(str(tmp_path / "home"), namespace=f"C{os.getpid()}", **fields)
    try:
        sandbox.start(wait=False)
        network, layout = Network(sandbox.layout), sandbox.layout
        assert network.exists()
        with open(os.path.join(layout.run_dir, "supervisord.pid"), encoding="ascii") as stream:
            os.kill(int(stream.read()), signal.SIGKILL)
        eventually(sandbox.orphans, what="the supervisor is gone")
    finally:
        sandbox.stop()
    assert not network.exists()
    assert not [name for name in os.listdir("/run/netns") if name.startswith(network.namespace(""))]
    assert not os.path.exists(f"/sys/class/net/{network.interface}")
    assert sandbox._supervision().leftovers() == []
    sandbox.destroy()


def test_the_network_of_a_home_that_is_gone_is_removed(tmp_path, obstacle):
    if obstacle:
        pytest.skip(obstacle)
    fields = {"rawx": 0, "host_groups": 2, "isolate_hosts": True}
    gone = Sandbox(str(tmp_path / "gone"), namespace="GONE", **fields)
    other = Sandbox(str(tmp_path / "other"), namespace="OTHER", **fields)
    networks = [Network(sandbox.init()) for sandbox in (gone, other)]
    try:
        networks[0].create()
        os.unlink(os.path.join(gone.home, "sds", "layout.json"))
        networks[1].create()
        assert [network.exists() for network in networks] == [False, True]
    finally:
        for network in networks:
            network.remove()
