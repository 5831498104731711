# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The private network of isolated hosts: what would be asked of the kernel. Nothing is made."""

import os

import pytest

from oio.sandbox import Sandbox, SandboxError, generate, network, subnet
from oio.sandbox.main import main
from oio.sandbox.network import Network
from oio.sandbox.options import merge

OPTIONS = {"namespace": "DEMO", "rawx": 3, "host_groups": 3, "isolate_hosts": True}


class Machine:
    """Takes note of commands; some routes exist."""

    def __init__(self):
        self.commands = []
        self.routes = "default via 192.168.1.1 dev eth0"
        self.links = ""
        self.failing = ""

    def run(self, words, text=None):
        for line in text.splitlines() if text else [""]:
            self.commands.append(" ".join([*words, line]).strip())
            if self.failing and self.failing in self.commands[-1]:
                raise SandboxError("refused")
        if "route" in words:
            return self.routes
        return self.links if "show" in words else ""

    def changes(self):
        """What was asked since the last time, without the name of the program and of namespaces."""
        told, self.commands = self.commands, []
        return [one.partition("oio-")[2].partition("-")[2].replace(" -batch -", "") for one in told]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    found = Machine()
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(directory))
    for module in (network, subnet):
        monkeypatch.setattr(module, "run", found.run)
    monkeypatch.setattr(subnet.os, "geteuid", lambda: 0)
    monkeypatch.setattr(subnet.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(network, "_NAMESPACES", str(tmp_path / "netns"))
    return found


@pytest.fixture
def home(tmp_path):
    return str(tmp_path / "home")


@pytest.fixture
def cluster(machine, home):
    return Sandbox(home, **OPTIONS).init()


@pytest.fixture
def running(machine, cluster, monkeypatch):
    """A network that is there."""
    monkeypatch.setattr(Network, "exists", lambda self: True)
    machine.changes()
    return Network(cluster)


def test_every_host_has_an_address_and_the_centre_another(cluster):
    def hosts(*types):
        return [one.host for one in cluster.of_type(*types)]

    net = cluster.subnet
    assert net.startswith("10.") and 128 <= int(net.split(".")[1]) <= 255
    assert hosts("rawx") == [f"{net}.{number}" for number in (11, 12, 13)]
    assert set(hosts("proxy", "conscience", "redis", "account", "rdir", "event-agent")) == {f"{net}.1"}
    assert "bind 127" not in generate.sds_conf(cluster) and f"proxy={net}.1:6000" in generate.sds_conf(cluster)
    assert cluster.of_type("rawx")[1].location == "rack.host2.2"
    ports = [one.port for one in cluster.services if one.port]
    assert ports == list(range(6000, 6000 + len(ports))), "nobody else is there"


def test_clusters_have_different_subnets(machine, tmp_path):
    one, two = (Sandbox(str(tmp_path / name), **OPTIONS).init() for name in ("one", "two"))
    assert one.subnet != two.subnet
    assert Network(one).interface != Network(two).interface


def test_a_subnet_that_is_in_use_is_not_taken(machine, home):
    first = subnet.choose(home)
    machine.routes = f"{first}.0/24 dev eth7 scope link"
    assert subnet.choose(home) != first
    assert subnet.in_use(first) and not subnet.in_use(first[:-1])


def test_services_run_in_their_namespaces(cluster):
    net = Network(cluster)
    meta2 = cluster.of_type("meta2")[0]
    path = f"{network._NAMESPACES}/{net.namespace('host1')}"
    assert net.prefix(meta2) == ["/bin/nsenter", f"--net={path}"]
    with open(f"{cluster.conf_dir}/supervisord.conf", encoding="utf-8") as conf:
        commands = [line for line in conf if line.startswith("command=")]
    assert all(line.startswith(f"command=/bin/nsenter --net={network._NAMESPACES}/oio-") for line in commands)
    assert len(net.interface) <= 15


def test_redis_may_be_asked_from_other_namespaces(cluster, tmp_path):
    path = f"{cluster.conf_dir}/DEMO-redis-1.conf"
    with open(path, encoding="utf-8") as stream:
        assert "protected-mode no" in stream.read()


def test_the_network_is_made_once(machine, cluster, monkeypatch):
    machine.changes()
    Network(cluster).create()
    asked = machine.changes()
    assert "host2 addr add " + cluster.address_of("host2") + "/24 dev eth0" in asked
    assert any(one.startswith("centre link add host2 type veth peer name eth0 netns oio-") for one in asked)
    monkeypatch.setattr(Network, "exists", lambda self: True)
    Network(cluster).create()
    assert machine.changes() == []


def test_half_a_network_is_removed(machine, cluster, monkeypatch):
    removed = []
    monkeypatch.setattr(network, "_remove", removed.append)
    machine.failing = "dev eth0"
    with pytest.raises(SandboxError, match="refused"):
        Network(cluster).create()
    assert len(removed) == 2  # what a crash left, then what was made


def test_a_subnet_that_was_taken_meanwhile_is_told(machine, cluster):
    machine.routes = f"{cluster.subnet}.0/24 dev eth7"
    with pytest.raises(SandboxError, match="in use on this machine"):
        Network(cluster).create()


def test_what_is_removed_is_ours(machine, cluster):
    os.mkdir(network._NAMESPACES)
    net = Network(cluster)
    for name in (net.namespace("host1"), net.namespace("centre"), "oio-00000000-host1", "other"):
        open(f"{network._NAMESPACES}/{name}", "wb").close()
    machine.commands.clear()
    net.remove()
    assert sorted(machine.commands) == [
        f"ip netns delete {net.namespace('centre')}", f"ip netns delete {net.namespace('host1')}",
    ]  # fmt: skip


def test_a_host_is_cut_off_by_its_link(machine, running):
    running.cut("host2")
    assert machine.changes() == ["centre link set host2 down"]
    running.heal("host2")
    assert machine.changes()[0] == "centre link set host2 up"


def test_one_way_and_both_ways(machine, running, cluster):
    def lost(receiver, device):
        return f"neigh replace {cluster.address_of(receiver)} lladdr {network._NOBODY} dev {device} nud permanent"

    running.cut("host1", "host2", one_way=True)
    assert machine.changes() == [f"host1 {lost('host2', 'eth0')}"]
    running.cut("host1", "centre")
    assert machine.changes() == [f"host1 {lost('centre', 'eth0')}", f"centre {lost('host1', 'bridge')}"]
    running.heal("host1")
    healed = machine.changes()
    assert "host1 neigh flush dev eth0 nud permanent" in healed
    assert f"centre neigh flush to {cluster.address_of('host1')} dev bridge nud permanent" in healed


def test_each_server_of_an_ensemble_has_a_host_of_its_own(machine, home, monkeypatch):
    cluster = Sandbox(home, replicas=3, zookeeper=3, **OPTIONS).init()
    servers = cluster.of_type("zookeeper")
    assert [one.host.rpartition(".")[2] for one in servers] == ["2", "3", "4"]
    monkeypatch.setattr(Network, "exists", lambda self: True)
    net = Network(cluster)
    machine.changes()
    net.cut("zookeeper")
    assert machine.changes() == [f"centre link set zookeeper{num} down" for num in (1, 2, 3)]
    net.cut("zookeeper2", "zookeeper", one_way=True)
    addresses = [line.split()[3] for line in machine.changes()]
    assert addresses == [servers[0].host, servers[2].host]
    net.cut("host1", "zookeeper")
    assert len(machine.changes()) == 6
    net.heal("zookeeper")
    healed = machine.changes()
    assert all(f"centre link set zookeeper{num} up" in healed for num in (1, 2, 3))


def test_hosts_without_link_are_known(machine, running):
    machine.links = (
        "4: host1@if2: <BROADCAST,UP> master bridge state UP mode DEFAULT\n"
        "5: host2@if2: <BROADCAST> master bridge state DOWN mode DEFAULT\n"
    )
    assert running.cuts() == ["host2"]


def test_what_cannot_be_cut(running):
    with pytest.raises(SandboxError, match="no link of its own"):
        running.cut("centre")
    for groups in (("host9",), ("host1", "rawx")):
        with pytest.raises(SandboxError, match=r"no host of this cluster.*@host3"):
            running.cut(*groups)


def test_a_cluster_that_does_not_run_has_no_network(cluster):
    with pytest.raises(SandboxError, match="does not run"):
        Network(cluster).cut("host1")
    assert Network(cluster).cuts() == []


def test_hosts_that_are_not_isolated_cannot_be_cut_off(home, capsys):
    assert main(["--home", home, "--host-groups", "2", "-q", "init"]) == 0
    assert main(["--home", home, "cut", "@host1"]) == 1
    assert "--isolate-hosts" in capsys.readouterr().err
    assert main(["--home", home, "cut"]) == 1
    assert "Name targets" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["ip", "nsenter"])
def test_what_is_missing_is_named(machine, home, monkeypatch, program):
    monkeypatch.setattr(subnet.shutil, "which", lambda name: None if name == program else name)
    with pytest.raises(SandboxError, match=f"program {program}"):
        Sandbox(home, **OPTIONS).init()


def test_without_root_the_error_is_clear(machine, home, monkeypatch):
    monkeypatch.setattr(subnet.os, "geteuid", lambda: 1000)
    with pytest.raises(SandboxError, match="need root"):
        Sandbox(home, **OPTIONS).init()


@pytest.mark.parametrize(
    "fields", [{"host_groups": 1}, {"hosts": ["127.0.0.2"]}, {"type_hosts": {"rawx": ["::1"]}}]
)
def test_options_that_do_not_go_together(fields):
    with pytest.raises(SandboxError, match="isolate"):
        merge({"host_groups": 2, "isolate_hosts": True, **fields})
