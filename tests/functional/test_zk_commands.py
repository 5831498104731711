# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio zk``, run as a user runs it, on real ZooKeepers."""

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from kazoo.exceptions import NoNodeError
from kazoo.security import make_acl
from support import ROOT, held_port
from zookeeper_servers import ZooKeeperProcess

from oio.common.exceptions import OioException
from oio.zk import bulk
from oio.zk.admin import Group, bootstrap, connection, destroy, groups, smudge
from oio.zk.tree import Tree

FIRST, SECOND, THIRD = ("00A1" + "0" * 60, "00A2" + "0" * 60, "FFFF" + "F" * 60)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    started = [ZooKeeperProcess(tmp_path_factory.mktemp("zookeeper") / "server") for _ in range(2)]
    yield started
    for server in started:
        server.stop()


@pytest.fixture
def clients(servers):
    """Sessions with both, which are left as they were found."""
    found = [server.client() for server in servers]
    yield found
    for client in found:
        for namespace in client.get_children("/hc/ns") if client.exists("/hc/ns") else []:
            destroy(client, namespace)
        client.stop()
        client.close()


@pytest.fixture
def run(servers, tmp_path):
    """Run ``openio`` with these arguments; returns the finished process."""

    def openio(*args, code=0, zookeeper=None, namespace="NS"):
        conf = tmp_path / "sds.conf"
        addresses = ";".join(server.addr for server in servers) if zookeeper is None else zookeeper
        conf.write_text("[NS]\n" + (f"zookeeper = {addresses}\n" if addresses else ""))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OIO_SDS_CONF": str(conf), "OIO_NS": namespace}
        done = subprocess.run(
            [sys.executable, "-m", "oio.cli.openio", *args], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False, timeout=150,
        )  # fmt: skip
        assert done.returncode == code, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        return done

    def rows(*args, **kwargs):
        return json.loads(openio(*args, "-f", "json", **kwargs).stdout)

    openio.rows = rows
    return openio


def elect(client, key, *values):
    """An election with these members; gives the names of their nodes."""
    directory = Tree.election_directory("NS", "meta2", key)
    client.ensure_path(directory)
    start = f"{directory}/{key}-"
    paths = [client.create(start, value.encode(), ephemeral=True, sequence=True) for value in values]
    return [path.rpartition("/")[2] for path in paths]


def members(client, key):
    directory = Tree.election_directory("NS", "meta2", key)
    return [client.get(f"{directory}/{name}")[0].decode() for name in sorted(client.get_children(directory))]


def test_a_tree_is_made_and_removed(run, clients):
    assert run("zk", "bootstrap").stdout == ""
    for client in clients:
        assert sorted(client.get_children("/hc/ns/NS")) == ["el", "srv"]
        assert client.get_children("/hc/ns/NS/srv") == ["meta0"]
        assert sorted(client.get_children("/hc/ns/NS/el")) == ["meta0", "meta1", "meta2"]
        assert client.get_children("/hc/ns/NS/el/meta0") == []
        assert set(client.get_children("/hc/ns/NS/el/meta1")) == {f"{number:03X}" for number in range(4096)}
        bytes_in_hex = {f"{number:02X}" for number in range(256)}
        assert set(client.get_children("/hc/ns/NS/el/meta2")) == bytes_in_hex
        assert set(client.get_children("/hc/ns/NS/el/meta2/FF")) == bytes_in_hex
        (acl,) = client.get_acls("/hc/ns/NS/el/meta2/FF/FF")[0]
        assert (acl.acl_list, acl.id.scheme, acl.id.id) == (["ALL"], "world", "anyone")
    # What is missing is made, what is there stays.
    elect(clients[0], FIRST, "a")
    clients[0].delete("/hc/ns/NS/el/meta2/AB", recursive=True)
    clients[0].delete("/hc/ns/NS/srv/meta0")
    assert "exists" in run("-v", "zk", "bootstrap", "--lazy").stderr
    assert clients[0].exists("/hc/ns/NS/el/meta2/AB") is None
    assert "258 nodes" in run("-v", "zk", "bootstrap").stderr
    assert clients[0].exists("/hc/ns/NS/el/meta2/AB/CD") and clients[0].exists("/hc/ns/NS/srv/meta0")
    assert members(clients[0], FIRST) == ["a"]
    # Removal.
    clients[0].ensure_path("/hc/ns/NS/something/else")
    warned = run("zk", "armageddon")
    assert "--fuck-the-world" in warned.stderr and warned.stdout == ""
    assert clients[0].exists("/hc/ns/NS/el/meta1/FFF")
    assert run("zk", "armageddon", "--fuck-the-world").stdout == ""
    assert [client.exists("/hc/ns/NS") for client in clients] == [None, None]
    assert run("zk", "armageddon", "--fuck-the-world").stderr == ""


def test_small_steps_make_the_same_tree(run, servers, clients):
    run("zk", "bootstrap", zookeeper=servers[0].addr)
    clients[0].delete("/hc/ns/NS/el/meta2/00", recursive=True)
    run("zk", "bootstrap", "--slow", zookeeper=servers[0].addr)
    assert len(clients[0].get_children("/hc/ns/NS/el/meta2/00")) == 256


def test_bootstraps_at_the_same_time_do_not_disturb_each_other(servers, clients):
    clients[0].ensure_path("/hc/ns")

    def make(_number):
        with connection(servers[0].addr) as client:
            return bootstrap(client, "NS")

    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(make, range(3)))
    assert sum(made) == 69897 - 2, "two directories are above all namespaces"
    assert len(clients[0].get_children("/hc/ns/NS/el/meta2/FF")) == 256


def test_members_are_listed(run, clients):
    a, b = elect(clients[0], FIRST, "a", "bé")
    (c,) = elect(clients[1], THIRD, "c")
    rows = run.rows("zk", "stat", "meta2")
    assert rows == [
        {"group": FIRST, "member": a[-10:], "size": 1, "value": "a"},
        {"group": FIRST, "member": b[-10:], "size": 3, "value": "bé"},
        {"group": THIRD, "member": c[-10:], "size": 1, "value": "c"},
    ]
    lines = run("zk", "stat", "meta2", "-f", "value").stdout.splitlines()
    assert lines == [" ".join(str(cell) for cell in row.values()) for row in rows]
    text = run("zk", "stat", "meta2", "-f", "csv").stdout
    assert list(csv.reader(text.splitlines())) == [
        ["group", "member", "size", "value"], *([str(cell) for cell in row.values()] for row in rows)
    ]  # fmt: skip
    assert yaml.safe_load(run("zk", "stat", "meta2", "-f", "yaml").stdout) == rows
    table = run("zk", "stat", "meta2").stdout
    assert table.count("\n") == 3 + 4 and FIRST in table and "bé" in table
    # Nobody is there.
    assert run.rows("zk", "stat", "meta0") == []
    assert run("zk", "stat", "meta1").stdout == "\n"
    assert "rawx" in run("zk", "stat", "rawx", code=2).stderr


def test_fake_members_come_last(run, clients):
    elect(clients[0], FIRST, "a", "b")
    elect(clients[0], SECOND, "c")
    rows = run.rows("zk", "smudge", "meta2", "--value", "fake")
    assert [(row["group"], row["status"]) for row in rows] == [(FIRST, "Created"), (SECOND, "Created")]
    assert members(clients[0], FIRST) == ["a", "b", "fake"] and members(clients[0], SECOND) == ["c", "fake"]
    listed = [row["member"] for row in run.rows("zk", "stat", "meta2") if row["value"] == "fake"]
    assert listed == [row["member"] for row in rows]
    run("zk", "smudge", "meta2")
    assert members(clients[0], SECOND) == ["c", "fake", ""]


def test_elections_are_reset(run, clients):
    client = clients[0]
    four = elect(client, FIRST, "a", "b", "a", "c")
    two = elect(client, SECOND, "a", "b")
    (one,) = elect(client, THIRD, "a")
    spared = [(SECOND, name, "Too few nodes") for name in two]
    also_spared = [*spared, (THIRD, one, "Too few nodes")]

    def reset(*args):
        return [tuple(row.values()) for row in run.rows("zk", "reset", "meta2", *args)]

    assert reset("--dry-run") == [*((FIRST, name, "Skipped") for name in four), *also_spared]
    assert reset("--smart") == [(FIRST, four[0], "Deleted"), *also_spared]
    assert members(client, FIRST) == ["b", "a", "c"] and members(client, THIRD) == ["a"]
    assert reset("-s", "--dry-run", "--alone", "--min-services", "2") == [(THIRD, one, "Skipped")]
    assert reset("--alone") == [
        *((FIRST, name, "Too few nodes") for name in four[1:]), *spared, (THIRD, one, "Deleted")
    ]  # fmt: skip
    assert reset("--min-services", "2") == [
        *((FIRST, name, "Deleted") for name in four[1:]), *((SECOND, name, "Deleted") for name in two)
    ]  # fmt: skip
    assert reset() == []


def test_what_cannot_be_done_is_an_error(run, clients):
    client = clients[0]
    (name,) = elect(client, FIRST, "a")
    directory = Tree.election_directory("NS", "meta2", FIRST)
    client.set_acls(directory, [make_acl("world", "anyone", read=True, admin=True)])
    (row,) = run.rows("zk", "smudge", "meta2", code=1)
    assert row == {"group": FIRST, "member": "", "status": "NoAuthError"}
    (row,) = run.rows("zk", "reset", "meta2", "--alone", code=1)
    assert row == {"group": FIRST, "node": name, "status": "NoAuthError"}
    assert "NoAuthError" in run("zk", "armageddon", "--fuck-the-world", code=1).stderr
    client.set_acls(directory, [make_acl("world", "anyone", all=True)])


def test_a_cluster_that_is_down_is_told_and_the_others_are_served(run, servers, clients):
    elect(clients[1], FIRST, "a")
    held, port = held_port()
    addresses = f"127.0.0.1:{port};{servers[1].addr}"
    try:
        done = run("zk", "stat", "meta2", "-f", "value", code=1, zookeeper=addresses)
        assert f"127.0.0.1:{port}" in done.stderr and len(done.stderr.splitlines()) == 1
        assert done.stdout.startswith(FIRST)
        run("zk", "bootstrap", code=1, zookeeper=addresses)
        assert clients[1].exists("/hc/ns/NS/el/meta2/FF/FF")
    finally:
        held.close()


def test_a_namespace_without_zookeeper_is_an_error(run):
    assert "Missing key 'zookeeper' of namespace NS" in run("zk", "bootstrap", code=1, zookeeper="").stderr
    done = run("zk", "stat", "meta2", code=1, namespace="OTHER")
    assert "Missing key 'zookeeper' of namespace OTHER" in done.stderr
    assert "Set a namespace" in run("zk", "stat", "meta2", code=1, namespace="").stderr


def test_services_that_come_back_stop_the_removal(servers, clients):
    """A member appears each time that its directory was emptied."""
    directory = Tree.election_directory("NS", "meta2", FIRST)
    with connection(servers[0].addr) as client:
        elect(clients[0], FIRST, "a")
        removed = client.delete

        def delete(path, **kwargs):
            removed(path, **kwargs)
            if path.startswith(directory):
                elect(clients[0], FIRST, "a")

        client.delete = delete
        with pytest.raises(OioException, match="in use"):
            destroy(client, "NS")
        client.delete = removed
        assert destroy(client, "NS")
        assert not destroy(client, "NS")


def test_fake_members_need_an_election(servers, clients):
    with connection(servers[0].addr) as client:
        outcome = smudge(client, Group(FIRST, "/hc/ns/NS/el/meta2/XX", []), "a")
    assert outcome.failed and outcome.status == "NoNodeError"


def test_servers_that_read_one_node_at_a_time_are_asked_so(servers, clients, monkeypatch):
    elect(clients[0], FIRST, "a", "b")
    clients[0].ensure_path("/a directory")
    paths = ["/hc/ns/NS/el/meta2", "/nowhere", "/a directory"]
    answers = []
    with connection(servers[0].addr) as client:
        for operation in (bulk._MULTI_READ, 2222):
            monkeypatch.setattr(bulk._MultiRead, "type", operation)
            found = bulk.children(client, paths)
            assert (found[0], type(found[1]), found[2]) == (["00"], NoNodeError, [])
            answers.append(next(groups(client, "NS", "meta2")))
    assert answers[0] == answers[1]
    assert [node.value for node in answers[0].nodes] == ["a", "b"]
