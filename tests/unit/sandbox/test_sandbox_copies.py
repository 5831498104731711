# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Layout and configuration of clusters whose meta services are replicated; no process is started."""

import configparser
import contextlib
import json

import pytest
from support import ROOT

from oio.sandbox import Options, Sandbox, SandboxError, generate, layout, zookeeper
from oio.sandbox.main import main
from oio.sandbox.options import from_map, merge

ZOOKEEPER = ["/opt/java", "-cp", "a.jar:b.jar", "Server"]


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path, monkeypatch):
    """Reservations of ports of our own, and a ZooKeeper that is never started."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(directory))
    install(monkeypatch, ZOOKEEPER)


def install(monkeypatch, words):
    monkeypatch.setattr(zookeeper, "find_zookeeper", lambda heap: words and [*words, heap])


@pytest.fixture
def home(tmp_path):
    return str(tmp_path / "home")


def test_one_copy_needs_no_zookeeper(home, monkeypatch):
    install(monkeypatch, None)
    found = Sandbox(home, Options()).init()
    assert found.zookeeper == "" and found.host_groups == []
    assert not found.of_type("zookeeper")
    assert "zookeeper" not in generate.sds_conf(found)
    assert {service.group for service in found.services} == {layout.CENTRE}


def test_copies_bring_what_they_need(home):
    found = Sandbox(home, Options(namespace="DEMO", replicas=3, rawx=4)).init()
    assert [len(found.of_type(type_)) for type_ in ("zookeeper", "meta0", "meta1", "meta2")] == [1, 3, 3, 3]
    server = found.of_type("zookeeper")[0]
    parser = configparser.ConfigParser()
    parser.read(found.sds_conf)
    section = parser["DEMO"]
    assert {section[f"zookeeper{end}"] for end in ("", ".meta0", ".meta1", ".meta2")} == {server.addr}
    assert "meta2=KEEP|3|1|" in section["ns.service_update_policy"]
    with open(f"{found.conf_dir}/DEMO-service-pools.conf", encoding="utf-8") as pools:
        assert {"targets=3,meta1\n", "targets=3,meta2\n"} <= set(pools)
    conf = Sandbox(home).conf
    assert (conf["directory_replicas"], conf["container_replicas"]) == (3, 3)
    assert conf["services"]["zookeeper"][0]["addr"] == server.addr


def test_services_are_spread_over_host_groups(home):
    found = Sandbox(home, Options(namespace="DEMO", replicas=3, rawx=4)).init()
    assert found.host_groups == ["host1", "host2", "host3"]
    names = {one.name for one in found.select(["@host1"])}
    assert names == {f"DEMO-{name}" for name in ("meta0-1", "meta1-1", "meta2-1", "rawx-1", "rawx-4")}
    assert [one.location for one in found.of_type("meta2")] == ["rack.host1.1", "rack.host2.2", "rack.host3.3"]
    spread = {one.name for one in found.select(["@host1", "@host2", "@host3"])}
    centre = {one.name for one in found.select(["@centre"])}
    assert [one.name for one in found.select(["@zookeeper"])] == ["DEMO-zookeeper-1"]
    assert spread | centre | {"DEMO-zookeeper-1"} == {one.name for one in found.services} and not spread & centre
    assert {"DEMO-proxy-1", "DEMO-conscience-1", "DEMO-redis-1"} <= centre
    with pytest.raises(SandboxError, match="@host3"):
        found.select(["@host4"])


def test_host_groups_follow_the_hosts(home):
    found = Sandbox(home, Options(hosts=["127.0.0.1", "127.0.0.2"], rawx=3)).init()
    assert [one.group for one in found.of_type("rawx")] == ["host1", "host2", "host1"]
    assert found.of_type("rawx")[1].location == "rack.127-0-0-2.2"


def test_zookeeper_is_small_and_quick(home):
    found = Sandbox(home, Options(namespace="DEMO", replicas=3, rawx=0)).init()
    service = found.of_type("zookeeper")[0]
    path = f"{found.conf_dir}/DEMO-zookeeper-1.cfg"
    with open(path, encoding="utf-8") as stream:
        keys = dict(line.rstrip().split("=", 1) for line in stream)
    assert (keys["clientPort"], keys["clientPortAddress"]) == (str(service.port), "127.0.0.1")
    assert keys["dataDir"] == service.volume
    assert keys["admin.enableServer"] == "false"
    assert int(keys["minSessionTimeout"]) <= 1000
    assert generate.command(found, service) == [*ZOOKEEPER, "128m", path]


def test_servers_of_an_ensemble_know_each_other(home):
    found = Sandbox(home, Options(namespace="DEMO", replicas=3, zookeeper=3, rawx=0)).init()
    servers = found.of_type("zookeeper")
    assert found.zookeeper == ",".join(one.addr for one in servers) and found.zookeeper.count(",") == 2
    assert f"zookeeper.meta2={found.zookeeper}\n" in generate.sds_conf(found)
    ports = [port for service in found.services for port in service.ports]
    assert len(set(ports)) == len(ports) and all(len(one.ports) == 3 for one in servers)
    members = {f"server.{one.num}=127.0.0.1:{one.ports[1]}:{one.ports[2]}" for one in servers}
    for one in servers:
        with open(f"{found.conf_dir}/{one.name}.cfg", encoding="utf-8") as stream:
            lines = set(stream.read().splitlines())
        assert members | {f"clientPort={one.port}", f"dataDir={one.volume}", "syncLimit=15"} <= lines
        with open(f"{one.volume}/myid", encoding="utf-8") as stream:
            assert stream.read() == f"{one.num}\n"
    assert [one.name for one in found.select(["@zookeeper2"])] == ["DEMO-zookeeper-2"]
    assert len(found.select(["@zookeeper"])) == 3
    assert layout.load(home).services == found.services


def test_a_server_without_a_majority_around_only_has_to_answer(home, monkeypatch):
    from oio.sandbox.readiness import Readiness

    class Supervised:
        """Some servers of the ensemble run."""

        running = 1

        def states(self):
            return {f"DEMO-zookeeper-{num}": {"pid": int(num <= self.running)} for num in (1, 2, 3)}

    found = Sandbox(home, Options(namespace="DEMO", replicas=3, zookeeper=3, rawx=0)).init()
    servers = found.of_type("zookeeper")
    answers = {"ruok": "imok", "srvr": "This ZooKeeper instance is not currently serving requests\n"}
    monkeypatch.setattr(zookeeper, "ask", lambda _service, word: answers[word])
    supervised = Supervised()

    def missing(*expected):
        ready = Readiness(found, supervised, 1.0, lambda _text: None)
        ready.close()
        return list(ready._missing_answers(list(expected)))

    assert missing(servers[0]) == []
    assert missing(*servers[:2]) == ["DEMO-zookeeper-1", "DEMO-zookeeper-2"], "a majority is to serve"
    supervised.running = 2
    assert missing(servers[0]) == ["DEMO-zookeeper-1"]
    answers["srvr"] = "Zookeeper version: 3.8.4\nMode: follower\nNode count: 5\n"
    assert missing(*servers) == []
    assert zookeeper.mode(servers[0]) == "follower"


@pytest.mark.parametrize(("durability", "word"), [("durable", "yes"), ("relaxed", "no")])
def test_only_a_durable_cluster_waits_for_the_disk(home, durability, word):
    found = layout.compute(home, Options(replicas=3, rawx=0, durability=durability))
    assert f"forceSync={word}\n" in zookeeper.configuration(found, found.of_type("zookeeper")[0])


def test_a_missing_tree_is_told_and_no_obstacle(home, monkeypatch):
    monkeypatch.setattr("oio.zk.admin.CONNECTION_TIMEOUT_S", 0.2)
    found = layout.compute(home, Options(replicas=3, zookeeper_host="127.0.0.1:1", rawx=0))
    told = []
    zookeeper.make_tree(found, told.append)
    assert len(told) == 1 and "127.0.0.1:1 does not answer" in told[0]


def test_without_zookeeper_on_this_machine_the_error_says_what_to_install(home, monkeypatch, capsys):
    install(monkeypatch, None)
    assert main(["--home", home, "--replicas", "3", "init"]) == 1
    assert "install the packages" in capsys.readouterr().err


def test_a_zookeeper_of_somebody_else(home, monkeypatch):
    install(monkeypatch, None)
    fields = from_map({"zookeeper": "10.0.0.1:2181,10.0.0.2:2181", "container_replicas": 3}, "file")
    found = Sandbox(home, merge(fields)).init()
    assert not found.of_type("zookeeper")
    assert "zookeeper=10.0.0.1:2181,10.0.0.2:2181\n" in generate.sds_conf(found)


@pytest.mark.parametrize("told", ["a:1/root", "a:1,b:2/deep/root;c:3"])
def test_a_zookeeper_of_somebody_else_may_have_a_root(home, told):
    assert Sandbox(home, merge({"replicas": 3, "zookeeper_host": told})).init().zookeeper == told


def test_option_files_and_command_line(home):
    raw = {"zookeeper": True, "directory_replicas": 3, "container_replicas": 3, "meta2": {"count": 4}}
    options = merge(from_map(raw, "file"))
    assert (options.zookeeper, options.meta0, options.meta1, options.meta2) == (1, 3, 3, 4)
    assert main(["--home", home, "--replicas", "3", "--meta2", "5", "--rawx", "0", "-q", "init"]) == 0
    options = Sandbox(home).layout.options
    assert (options.directory_replicas, options.container_replicas, options.meta2) == (3, 3, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": 21}, "replicas"),
        ({"replicas": 3, "zookeeper": 0}, "zookeeper"),
        ({"replicas": 3, "zookeeper": 10}, "zookeeper"),
        ({"replicas": 3, "meta1": 2}, "directory_replicas"),
        ({"zookeeper": 1, "zookeeper_host": "a:1"}, "zookeeper_host"),
        ({"replicas": 3, "zookeeper_host": "nowhere"}, "zookeeper_host"),
        ({"replicas": 3, "zookeeper_host": "a:1/root,b:2"}, "zookeeper_host"),
        ({"host_groups": 0}, "host groups"),
    ],
)
def test_contradictions(fields, message):
    with pytest.raises(SandboxError, match=message):
        merge(fields)


def test_a_layout_that_named_a_zookeeper_is_read(home):
    found = Sandbox(home, Options(rawx=0)).init()
    path = layout.layout_path(home)
    with open(path, encoding="utf-8") as stream:
        content = json.load(stream)
    del content["options"]["zookeeper_host"]
    for told in ("", "10.0.0.1:2181"):
        content["options"]["zookeeper"] = told
        with open(path, "w", encoding="utf-8") as out:
            json.dump(content, out)
        read = layout.load(home)
        assert (read.options.zookeeper, read.zookeeper, read.services) == (0, told, found.services)


def test_the_programs_are_found_in_the_source_tree():
    assert generate.source_root() == str(ROOT)
    assert zookeeper.TICK_MS * 2 <= zookeeper.SESSION_MIN_MS


def test_a_service_that_lives_too_short_again_and_again_is_given_up(home):
    from oio.sandbox.readiness import Readiness

    class Supervised:
        """Whatever is started lives for a second, and then something else is."""

        pid = 0
        given_up = ()

        def states(self):
            self.pid += 1
            return {"DEMO-rawx-1": {"state": "RUNNING", "pid": self.pid, "error": ""}}

        def give_up(self, services):
            self.given_up = [service.name for service in services]

    found = Sandbox(home, Options(namespace="DEMO", rawx=1)).init()
    supervised = Supervised()
    ready = Readiness(found, supervised, 1.0, lambda _text: None)
    for name, told in (("DEMO-rawx-2", False), ("DEMO-rawx-1", True)):
        with contextlib.nullcontext() if not told else pytest.raises(SandboxError, match="again and again"):
            for _ in range(10):
                ready._check_supervisor({name})
        assert supervised.given_up == ([name] if told else ())
    ready.close()
