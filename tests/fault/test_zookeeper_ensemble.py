# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Containers with three copies and an ensemble of three ZooKeeper servers, of which some die or hang."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults import Background, why_not_isolated
from support import ACCOUNT, ROOT, eventually

from oio import ObjectStorageApi
from oio.common.exceptions import OioException
from oio.common.zookeeper_server import find_zookeeper
from oio.directory.admin import AdminClient
from oio.meta.replication.zookeeper import Ensemble
from oio.sandbox import Sandbox, zookeeper
from oio.zk import admin

pytestmark = pytest.mark.skipif(find_zookeeper() is None, reason="ZooKeeper is not installed")

#: Of the services: an ensemble needs a second for another leader, three to find one that hangs.
SESSION_S = 6.0
#: Enough to have elections in both clusters: names decide, those of services and of the namespace as well.
CONTAINERS = 6
#: What a write may take when a server of ZooKeeper is lost, on a machine that is busy.
WRITE_S = 15.0


class Cluster:
    """The cluster under test, and what is asked of it."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.hosts = sandbox.layout.zookeeper
        self.clusters = clusters_of_meta2(self.hosts)
        self.api = ObjectStorageApi(sandbox.namespace, endpoint=sandbox.proxy)
        self.admin = AdminClient({"namespace": sandbox.namespace, "proxyd_url": f"http://{sandbox.proxy}"})
        self.names = [f"box{number}" for number in range(CONTAINERS)]

    @property
    def sessions(self):
        """How many there are of the meta2 when all is well."""
        return len(self.sandbox.services("meta2")) * len(self.clusters)

    def servers(self, mode=""):
        return [one for one in self.sandbox.services("zookeeper") if mode in ("", zookeeper.mode(one))]

    def leader(self):
        """The server that leads, when there is one."""
        return next(iter(self.servers("leader")), None)

    def members(self):
        """Nodes and services of all elections of meta2, in order, by the key of the election."""
        found = {}
        for hosts in self.clusters:
            with admin.connection(hosts) as client:
                groups = admin.groups(client, self.sandbox.namespace, "meta2")
                some = {group.key: [(node.name, node.value) for node in group.nodes] for group in groups}
            assert some and not found.keys() & some.keys()
            found |= some
        return found

    def masters(self):
        statuses = [self.admin.election_status("meta2", account=ACCOUNT, reference=name) for name in self.names]
        return [status["master"] for status in statuses]

    def get(self, name, **options):
        return self.api.container_get_properties(ACCOUNT, name, **options)["properties"].get("k")

    def value_of_copy(self, name, service):
        """What the copy of a service holds, through the proxy, whoever leads."""
        query = urllib.parse.urlencode({"acct": ACCOUNT, "ref": name, "service_id": service})
        url = f"http://{self.sandbox.proxy}/v3.0/{self.sandbox.namespace}/container/get_properties?{query}"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=WRITE_S) as answer:
            return json.load(answer)["properties"].get("k")

    def connected(self):
        """How many sessions of the meta2 are alive?"""
        values = []
        for service in self.sandbox.services("meta2"):
            with urllib.request.urlopen(f"http://{service.addr}/metrics", timeout=WRITE_S) as answer:
                lines = answer.read().decode().splitlines()
            for hosts in self.clusters:
                start = f'oio_meta_zookeeper_connected{{servers="{hosts}"}} '
                values += [float(line.removeprefix(start)) for line in lines if line.startswith(start)]
        assert len(values) == self.sessions
        return int(sum(values))

    def openio(self, *words):
        """Output of a command, which must succeed."""
        environment = {**os.environ, **self.sandbox.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "oio.cli.openio", *words], env=environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout


class Writing(Background):
    """One thread for each container, which writes numbers that grow.

    ``acknowledged`` is the last number of each that was; ``errors`` tells what was refused.
    """

    def __init__(self, cluster):
        super().__init__(self._write, cluster.names)
        self._cluster = cluster
        self.acknowledged = dict.fromkeys(cluster.names, -1)
        self.counts = dict.fromkeys(cluster.names, 0)
        self.errors = []
        self.longest_s = 0.0

    def __enter__(self):
        super().__enter__()
        self.progress()
        return self

    def __exit__(self, *exc):
        super().__exit__(*exc)
        for name in self._cluster.names:
            assert int(self._cluster.get(name)) >= self.acknowledged[name]

    def _write(self, name):
        sandbox = self._cluster.sandbox
        api = ObjectStorageApi(sandbox.namespace, endpoint=sandbox.proxy)
        while not self._stop.wait(0.02):
            begin, number = time.monotonic(), time.time_ns()
            try:
                api.container_set_properties(ACCOUNT, name, {"k": str(number)}, read_timeout=WRITE_S)
            except OioException as exc:
                self.errors.append((name, str(exc)))
            else:
                self.acknowledged[name] = number
                self.counts[name] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - begin)

    def progress(self):
        """Wait until something more was acknowledged everywhere."""
        wanted = {name: count + 2 for name, count in self.counts.items()}
        eventually(
            lambda: all(self.counts[name] >= count for name, count in wanted.items()),
            what=f"writes go on {self.errors}", timeout_s=3 * WRITE_S,
        )  # fmt: skip


def clusters_of_meta2(hosts):
    """Elections of meta2 lie in two clusters, which are the same servers here; those of others in a third."""
    return [f"{hosts}/first/half", f"{hosts}/second/half"]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    sandbox = Sandbox(
        str(tmp_path_factory.mktemp("ensemble")), namespace="ENSEMBLE", base_port=20000,
        replicas=3, zookeeper=3, rawx=0, prepare_directories=False, isolate_hosts=not why_not_isolated(),
        # Connections break more often here than where services are to leave their elections for that.
        config={"sqliterepo.zk.timeout": f"{SESSION_S:g}s", "sqliterepo.zk.rrd.threshold": "0"},
    )  # fmt: skip
    try:
        layout = sandbox.init()
        layout.options.config["zookeeper.meta2"] = ";".join(clusters_of_meta2(layout.zookeeper))
        layout.save()
        sandbox.start()
        found = Cluster(sandbox)
        for name in found.names:
            found.api.container_create(ACCOUNT, name)
            found.api.container_set_properties(ACCOUNT, name, {"k": "0"})
        yield found
    finally:
        sandbox.destroy()


@pytest.fixture
def cluster(started):
    """The cluster, with all servers again whatever a test did to them."""
    yield started
    started.sandbox.resume("@zookeeper")
    if started.sandbox.layout.subnet:
        started.sandbox.heal()
    started.sandbox.start()


@contextlib.contextmanager
def session(cluster, first):
    """A session of our own, whose first server is this one."""
    others = [one.addr for one in cluster.servers() if one is not first]
    ensemble = Ensemble(",".join([first.addr, *others]), SESSION_S)
    ensemble.start()
    try:
        assert ensemble.wait_connected(20)
        yield ensemble
    finally:
        ensemble.stop()


def server_of(ensemble):
    """Port of the server that a session is connected to now, 0: none."""
    connection = ensemble.client._connection._socket
    with contextlib.suppress(OSError, AttributeError):
        return connection.getpeername()[1] if ensemble.connected else 0
    return 0


def test_services_know_all_servers_and_one_of_them_leads(cluster):
    assert cluster.hosts == ",".join(one.addr for one in cluster.servers())
    assert sorted(map(zookeeper.mode, cluster.servers())) == ["follower", "follower", "leader"]
    assert cluster.connected() == cluster.sessions == 6
    status = cluster.sandbox.status("@zookeeper")
    assert [(one["group"], one["state"]) for one in status] == [
        (f"zookeeper{number}", "RUNNING") for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("lose", ["kill", "pause"])
def test_a_leader_that_dies_or_hangs_stops_no_write_and_changes_no_master(cluster, lose):
    with Writing(cluster) as writing:
        before = cluster.members(), cluster.masters()
        leader = cluster.leader()
        others = [one for one in cluster.servers() if one is not leader]
        getattr(cluster.sandbox, lose)(leader.name)
        eventually(lambda: "leader" in map(zookeeper.mode, others), what="another leader")
        writing.progress()
        eventually(lambda: cluster.connected() == cluster.sessions, what="sessions go on")
        assert (cluster.members(), cluster.masters()) == before, "no session was lost"
        cluster.sandbox.resume(leader.name)
        eventually(lambda: zookeeper.mode(leader) == "follower", what="the former leader follows")
        writing.progress()
    assert not writing.errors
    print(f"longest write: {writing.longest_s:.1f} s")


def test_who_is_connected_to_a_server_that_hangs_moves_to_another(cluster, monkeypatch):
    monkeypatch.setattr("oio.zk.handler.random.shuffle", lambda servers: None)
    hanging = cluster.servers("follower")[0]
    with Writing(cluster) as writing, session(cluster, hanging) as idle, session(cluster, hanging) as busy:
        before = cluster.members()
        assert server_of(idle) == server_of(busy) == hanging.port
        sessions = idle.session, busy.session
        busy.client.create("/hung", b"", ephemeral=True)
        # It asks again before a sign of life would be asked for.
        stop = threading.Event()

        def ask():
            while not stop.wait(SESSION_S / 20):
                busy.client.exists_async("/hung")

        asking = threading.Thread(target=ask)
        asking.start()
        cluster.sandbox.pause(hanging.name)
        begin = time.monotonic()
        try:
            eventually(
                lambda: all(server_of(one) not in (0, hanging.port) for one in (idle, busy)),
                what="moved to another server",
            )
            moved_s = time.monotonic() - begin
            # Those of services that were there are over by now, if they did not move.
            eventually(lambda: time.monotonic() - begin > SESSION_S + 1)
        finally:
            stop.set()
            asking.join()
        assert (idle.session, busy.session) == sessions, "in time"
        assert busy.client.exists("/hung").ephemeralOwner == busy.session
        assert moved_s < SESSION_S
        eventually(lambda: cluster.connected() == cluster.sessions, what="services moved")
        assert cluster.members() == before
        cluster.sandbox.resume(hanging.name)
        eventually(lambda: zookeeper.mode(hanging) == "follower", what="it follows again")
        writing.progress()
    assert not writing.errors
    print(f"longest write: {writing.longest_s:.1f} s, moved after {moved_s:.1f} s")


def test_without_a_majority_of_servers_nothing_is_led_until_it_is_back(cluster):
    leader = cluster.leader()
    gone = [leader.name, cluster.servers("follower")[0].name]
    name, services = cluster.names[0], [service.name for service in cluster.sandbox.services("meta2")]
    with Writing(cluster) as writing:
        cluster.sandbox.stop(*gone)
        begin = time.monotonic()
        eventually(lambda: cluster.connected() == 0, what="SUSPENDED everywhere")
        acknowledged, counts = writing.acknowledged[name], dict(writing.counts)
        with pytest.raises(OioException):
            cluster.api.container_set_properties(ACCOUNT, name, {"k": str(time.time_ns())}, read_timeout=1)
        with pytest.raises(OioException):
            cluster.get(name, read_timeout=1)
        # A majority of the copies holds what was acknowledged.
        copies = [int(cluster.value_of_copy(name, service)) for service in services]
        assert sum(copy >= acknowledged for copy in copies) >= 2
        eventually(lambda: time.monotonic() - begin > SESSION_S + 1, what="the end of all sessions")
        assert sum(writing.counts.values()) <= sum(counts.values()) + CONTAINERS, "but for those under way then"
        cluster.sandbox.start(*gone)
        eventually(lambda: cluster.connected() == cluster.sessions, what="sessions")
        writing.progress()
        # Those of the former sessions are gone.
        eventually(
            lambda: all(sorted(one for _, one in some) == services for some in cluster.members().values()),
            what="one member for each service",
        )


def test_a_leader_that_loses_the_others_is_left_by_its_clients(cluster, monkeypatch):
    if obstacle := why_not_isolated():
        pytest.skip(obstacle)
    monkeypatch.setattr("oio.zk.handler.random.shuffle", lambda servers: None)
    leader = cluster.leader()
    with Writing(cluster) as writing, session(cluster, leader) as client:
        before = cluster.members()
        former = client.session
        assert server_of(client) == leader.port
        cluster.sandbox.cut(f"@{leader.group}", "@zookeeper")
        eventually(lambda: cluster.leader() not in (None, leader), what="another leader")
        eventually(lambda: server_of(client) not in (0, leader.port), what="moved to another server")
        assert client.session == former
        eventually(lambda: cluster.connected() == cluster.sessions, what="sessions go on")
        assert cluster.members() == before
        cluster.sandbox.heal(f"@{leader.group}")
        eventually(lambda: zookeeper.mode(leader) == "follower", what="the former leader follows")
        writing.progress()
    assert not writing.errors
    print(f"longest write: {writing.longest_s:.1f} s")


def test_commands_find_the_servers_that_are_left(cluster):
    first = cluster.servers()[0]
    expected = cluster.members()
    masters = dict(zip(cluster.names, cluster.masters(), strict=True))

    def stat():
        rows = json.loads(cluster.openio("zk", "stat", "meta2", "-f", "json"))
        assert {row["group"] for row in rows} == set(expected)

    def status():
        rows = json.loads(cluster.openio("election", "status", "meta2", name, "-f", "json"))
        assert masters[name] in {row["Id"] for row in rows if row["Status"] == 200}, rows

    def reset():
        rows = json.loads(cluster.openio("zk", "reset", "meta2", "--dry-run", "--min-services", "1", "-f", "json"))
        assert {row["status"] for row in rows} == {"Skipped"} and len(rows) == sum(map(len, expected.values()))

    name = cluster.names[0]
    commands = [stat, status, reset]
    for lose in (cluster.sandbox.stop, cluster.sandbox.pause):
        lose(first.name)
        eventually(cluster.leader, what="a leader")
        with ThreadPoolExecutor(len(commands)) as pool:
            for done in [pool.submit(command) for command in commands]:
                done.result()
        cluster.sandbox.resume(first.name)
        cluster.sandbox.start(first.name)


def test_servers_are_restarted_in_turn_and_no_client_sees_it(cluster):
    with Writing(cluster) as writing:
        before = cluster.members()
        for server in cluster.servers():
            cluster.sandbox.restart(server.name)
            writing.progress()
        eventually(lambda: cluster.connected() == cluster.sessions, what="sessions go on")
        assert cluster.members() == before
    assert not writing.errors
    print(f"longest write: {writing.longest_s:.1f} s")
