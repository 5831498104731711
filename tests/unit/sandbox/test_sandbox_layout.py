# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Layout, ports and configuration of local clusters; no process is started."""

import configparser
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from support import ROOT

from oio.conscience.settings import load_settings
from oio.sandbox import Options, Sandbox, SandboxError, cluster, generate, layout, ports
from oio.sandbox.main import main
from oio.sandbox.options import from_map, load_file, merge


@pytest.fixture(autouse=True)
def _own_reservations(tmp_path, monkeypatch):
    """Keep the reservations of ports of the tests apart from those of the user."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(directory))


@pytest.fixture
def home(tmp_path):
    return str(tmp_path / "home")


def test_default_layout(home):
    found = layout.compute(home, Options())
    assert [service.name for service in found.of_type("rawx")] == [
        f"OPENIO-rawx-{n}" for n in range(1, 13)
    ]
    listening = [service for service in found.services if service.port]
    assert len({service.port for service in listening}) == len(listening) == 21
    rawx = found.of_type("rawx")[1]
    assert rawx.service_id == "OPENIO-rawx-2"
    assert rawx.volume == os.path.join(home, "sds", "data", "OPENIO-rawx-2")
    assert rawx.location == "rack.127-0-0-1.2"
    assert rawx.slots == ["rawx", "rawx-even"]
    assert found.of_type("meta1")[0].service_id == ""


def test_layout_is_found_again(home):
    computed = layout.compute(home, Options(rawx=3))
    assert layout.load(home) == computed


def test_damaged_layout_is_told(home):
    layout.compute(home, Options(rawx=0))
    with open(layout.layout_path(home), "w", encoding="utf-8") as out:
        out.write("{")
    with pytest.raises(SandboxError, match="damaged"):
        layout.load(home)


def test_ports_in_use_are_skipped(tmp_path):
    owner = tmp_path / "layout.json"
    owner.touch()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(1)
        port = busy.getsockname()[1]
        assert not ports.is_free("127.0.0.1", port)
        found = ports.reserve(["127.0.0.1"], port, 3, str(owner))
    assert port not in found
    assert found == sorted(found)


def test_two_layouts_do_not_share_ports(tmp_path):
    one = layout.compute(str(tmp_path / "one"), Options(namespace="ONE", rawx=3))
    two = layout.compute(str(tmp_path / "two"), Options(namespace="TWO", rawx=3))
    assert not {s.port for s in one.services if s.port} & {s.port for s in two.services if s.port}


def test_reservations_end_with_their_layout(tmp_path):
    owner, other = tmp_path / "one", tmp_path / "two"
    owner.touch()
    other.touch()
    first = ports.reserve(["127.0.0.1"], 20000, 1, str(owner))
    assert ports.reserve(["127.0.0.1"], first[0], 1, str(other)) != first
    owner.unlink()
    assert ports.reserve(["127.0.0.1"], first[0], 1, str(other)) == first
    ports.release(first, str(other))


def test_too_few_ports(tmp_path):
    with pytest.raises(SandboxError, match="needed"):
        ports.reserve(["127.0.0.1"], 65535, 2, str(tmp_path))


def test_init_is_idempotent_and_keeps_ports(home):
    sandbox = Sandbox(home, Options(namespace="DEMO", rawx=3))
    first = sandbox.init()
    before = {service.name: service.port for service in first.services}
    again = Sandbox(home).init()
    assert {service.name: service.port for service in again.services} == before
    assert Sandbox(home).namespace == "DEMO"


def test_ports_taken_before_the_first_start_are_replaced(home):
    sandbox = Sandbox(home, Options(namespace="DEMO", rawx=1))
    before = sandbox.init().of_type("rawx")[0].port
    reports = []
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        busy.bind(("127.0.0.1", before))
        busy.listen(1)
        sandbox._init_with_free_ports(reports.append)
        assert len(reports) == 1
        after = sandbox.layout.of_type("rawx")[0]
        assert after.port != before
        assert Sandbox(home).layout == sandbox.layout
        with open(os.path.join(sandbox.layout.conf_dir, "DEMO-rawx-1.conf"), encoding="utf-8") as conf:
            assert f"listen {after.addr}" in conf.read()


def test_ports_are_kept_once_there_is_data(home, monkeypatch):
    monkeypatch.setattr(cluster, "_PORTS_FREE_S", 0.0)
    sandbox = Sandbox(home, Options(namespace="DEMO", rawx=1))
    found = sandbox.init()
    with open(os.path.join(found.log_dir, "supervisord.log"), "w", encoding="utf-8"), socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        busy.bind(("127.0.0.1", found.of_type("rawx")[0].port))
        busy.listen(1)
        with pytest.raises(SandboxError, match="In use by another program"):
            sandbox.start()
        assert Sandbox(home).layout == found


def test_a_start_waits_for_the_ports_of_processes_that_were_killed(home, monkeypatch):
    sandbox = Sandbox(home, Options(namespace="DEMO", rawx=1))
    service = sandbox.init().of_type("rawx")[0]
    with socket.socket() as dying:
        dying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        dying.bind((service.host, service.port))
        dying.listen(1)
        monkeypatch.setattr(cluster.time, "sleep", lambda _: dying.close())
        sandbox._check_ports([service], sandbox._supervision())
        assert dying.fileno() < 0, "it waited"


def test_another_namespace_in_the_same_home_is_refused(home):
    Sandbox(home, Options(namespace="DEMO", rawx=0)).init()
    with pytest.raises(SandboxError, match="DEMO"):
        Sandbox(home, Options(namespace="OTHER")).init()


def test_a_namespace_file_of_somebody_else_is_left_alone(home):
    os.makedirs(home)
    path = os.path.join(home, "sds.conf")
    with open(path, "w", encoding="utf-8") as out:
        out.write("[PROD]\nproxy=10.0.0.1:6000\n")
    with pytest.raises(SandboxError, match="not written by this tool"):
        Sandbox(home).init()
    with open(path, encoding="utf-8") as stream:
        assert "PROD" in stream.read()


def test_namespace_file(home):
    sandbox = Sandbox(
        home,
        Options(namespace="DEMO", rawx=3, config={"meta2.max_versions": 5, "x": True, "y": "5%"}),
    )
    sandbox.init()
    parser = configparser.ConfigParser()
    parser.read(os.path.join(home, "sds.conf"))
    section = parser["DEMO"]
    assert section["proxy"] == sandbox.proxy
    assert section["conscience"] == sandbox.services("conscience")[0].addr
    assert section["ns.chunk_size"] == "10485760"
    assert section["ns.storage_policy"] == "THREECOPIES"
    assert section["meta2.max_versions"] == "5"
    assert section["x"] == "true"
    assert section["y"] == "5%"
    assert "meta2=KEEP|1|1" in section["ns.service_update_policy"]
    assert "sqliterepo.sync" not in section


def test_durability(home, tmp_path):
    durable = Sandbox(home, Options(namespace="DEMO", rawx=1)).init()
    assert "fsync on\nfsync_dir on" in generate.rawx_conf(durable, durable.of_type("rawx")[0])
    relaxed = Sandbox(str(tmp_path / "r"), Options(rawx=1, durability="relaxed")).init()
    assert "fsync off\nfsync_dir off" in generate.rawx_conf(relaxed, relaxed.of_type("rawx")[0])
    assert "sqliterepo.sync=normal" in generate.sds_conf(relaxed)


@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
def test_the_conscience_accepts_its_configuration(home, hosts):
    found = Sandbox(home, Options(namespace="DEMO", rawx=3, hosts=hosts)).init()
    conscience = found.of_type("conscience")[0]
    settings = load_settings(os.path.join(found.conf_dir, f"{conscience.name}.conf"))
    assert {"SINGLE", "TWOCOPIES", "THREECOPIES", "17COPIES", "EC", "EC21", "ECX21"} <= set(
        settings.storage.policies
    )
    assert settings.types["rawx"].lock_at_first_register
    assert not settings.types["meta1"].lock_at_first_register


def test_scores(home):
    found = Sandbox(home, Options(namespace="DEMO", rawx=0)).init()
    conscience = found.of_type("conscience")[0]
    settings = load_settings(os.path.join(found.conf_dir, f"{conscience.name}.conf"))
    evaluate = settings.types["rawx"].evaluate

    def score(cpu, io, space):
        return int(evaluate({"stat.cpu": cpu, "stat.io": io, "stat.space": space}))

    assert score(100, 100, 100) >= 100
    assert score(0, 0, 50) > 0, "a busy machine must not lose all its services"
    assert score(100, 100, 0) == 0, "a full disk must"
    assert score(100, 100, 80) > score(20, 100, 80)
    for type_, cpu_only in (("echo", 50), ("redis", 50), ("oiofs", 50), ("account", 51), ("oioproxy", 51)):
        assert int(settings.types[type_].evaluate({"stat.cpu": 50})) == cpu_only


def test_watch_files_and_test_conf(home):
    sandbox = Sandbox(home, Options(namespace="DEMO", rawx=2))
    found = sandbox.init()
    watch = os.path.join(found.conf_dir, "watch")
    with open(os.path.join(watch, "DEMO-rawx-1.yml"), encoding="utf-8") as stream:
        conf = yaml.safe_load(stream)
    rawx = found.of_type("rawx")[0]
    assert (conf["host"], conf["port"], conf["type"]) == (rawx.host, rawx.port, "rawx")
    assert conf["service_id"] == "DEMO-rawx-1"
    assert conf["slots"] == ["rawx", "rawx-odd"]
    assert sorted(os.listdir(watch)) == [
        f"DEMO-{name}.yml" for name in (
            "account-1", "meta0-1", "meta1-1", "meta2-1", "proxy-1", "rawx-1", "rawx-2", "rdir-1",
            "redis-1",
        )
    ]
    with open(sandbox.environment["SDS_TEST_CONFIG_FILE"], encoding="utf-8") as stream:
        assert yaml.safe_load(stream) == sandbox.conf
    assert sandbox.conf["services"]["rawx"][0]["path"] == rawx.volume


def test_services_put_temporary_files_into_the_cluster():
    found = layout.compute("/srv/demo", Options())
    assert generate.service_environment(found)["TMPDIR"] == found.run_dir


def test_temporary_files_stay_elsewhere_when_the_path_is_too_long_for_sockets():
    found = layout.compute("/srv/" + "d" * 80, Options())
    assert "TMPDIR" not in generate.service_environment(found)


def test_supervisor_conf_is_accepted_by_the_supervisor(home):
    from supervisor.options import ServerOptions

    home += " with spaces"
    found = Sandbox(home, Options(namespace="DEMO", rawx=2)).init()
    options = ServerOptions()
    options.realize(["-c", os.path.join(found.conf_dir, "supervisord.conf")])
    names = {
        process.name for group in options.process_group_configs for process in group.process_configs
    }
    assert names == {service.name for service in found.services}
    rawx = next(g for g in options.process_group_configs if g.name == "rawx").process_configs[0]
    assert os.path.join(found.conf_dir, "DEMO-rawx-1.conf") in shlex.split(rawx.command)
    assert rawx.environment["OIO_SDS_CONF"] == found.sds_conf


@pytest.mark.parametrize(
    "name", ["with spaces", "it's", 'a"b', "100%s %(here)s", "a ;b", "a #b", "a\\b", "$HOME {x} [y]", "ünï"]
)
def test_the_program_may_be_anywhere(home, tmp_path, monkeypatch, name):
    from supervisor.options import ServerOptions

    root = str(tmp_path / name)
    monkeypatch.setattr(generate, "source_root", lambda: root)
    monkeypatch.setattr(generate.sys, "executable", os.path.join(root, "python"))
    found = Sandbox(home, Options(namespace="DEMO", rawx=1)).init()
    options = ServerOptions()
    options.realize(["-c", os.path.join(found.conf_dir, "supervisord.conf")])
    rawx = next(g for g in options.process_group_configs if g.name == "rawx").process_configs[0]
    conf = os.path.join(found.conf_dir, "DEMO-rawx-1.conf")
    program = os.path.join(root, "bin", "oio-rawx")
    assert shlex.split(rawx.command) == [os.path.join(root, "python"), program, "-f", conf]
    assert generate.service_environment(found)["PYTHONPATH"] == root


@pytest.mark.parametrize("name", ["100%", "a*", "a[b]", 'a"b', "a;b", "a\nb"])
def test_a_home_that_configuration_files_cannot_hold_gets_another_name(tmp_path, name):
    home = str(tmp_path / name)
    sandbox = Sandbox(home)
    found = sandbox.init()
    try:
        assert os.path.samefile(found.home, home)
        assert layout.is_plain(found.home)
        assert os.path.exists(os.path.join(home, "sds.conf"))
        assert Sandbox(home).layout.home == found.home
    finally:
        sandbox.destroy()
    assert not os.path.lexists(found.home)
    assert not os.path.lexists(home)


def test_the_other_name_is_not_taken_from_somebody(tmp_path, monkeypatch):
    monkeypatch.setattr(layout.tempfile, "gettempdir", lambda: str(tmp_path))
    home = str(tmp_path / "100%")
    os.symlink("/etc", layout.plain_home(home))
    with pytest.raises(SandboxError, match="in the way"):
        Sandbox(home).init()


def test_volumes_cannot_be_where_configuration_files_cannot_point_to(tmp_path):
    with pytest.raises(SandboxError, match="cannot hold"):
        Sandbox(str(tmp_path), data_dir=str(tmp_path / "100%")).init()


def test_supervisor_socket_is_short(tmp_path):
    deep = str(tmp_path / ("d" * 100))
    found = layout.compute(deep, Options(rawx=0))
    assert len(found.supervisor_socket) < 100


def test_supervisor_socket_is_short_below_a_long_temporary_directory(tmp_path, monkeypatch):
    deep = str(tmp_path / ("d" * 100))
    monkeypatch.setattr("tempfile.gettempdir", lambda: deep)
    found = layout.compute(deep, Options(rawx=0))
    assert len(found.supervisor_socket) < 100


def test_select(home):
    found = layout.compute(home, Options(namespace="DEMO", rawx=3))
    assert len(found.select([])) == len(found.select(["@DEMO"])) == len(found.services)
    assert [s.name for s in found.select(["@rawx"])] == [f"DEMO-rawx-{n}" for n in (1, 2, 3)]
    assert [s.name for s in found.select(["DEMO-rawx-2", "@meta0"])] == ["DEMO-rawx-2", "DEMO-meta0-1"]
    with pytest.raises(SandboxError, match="nothing"):
        found.select(["nothing"])


def test_destroy_removes_everything_and_no_more(home):
    sandbox = Sandbox(home, Options(namespace="DEMO", rawx=1))
    found = sandbox.init()
    keep = os.path.join(home, "keep")
    with open(keep, "w", encoding="utf-8"):
        sandbox.destroy()
    assert os.listdir(home) == ["keep"]
    assert ports.reserve(["127.0.0.1"], found.services[0].port, 1, keep) == [found.services[0].port]
    sandbox.destroy()  # nothing to do


@pytest.mark.parametrize(("was_there", "other"), [(False, ""), (True, ""), (False, "keep"), (False, "sds/keep")])
def test_destroy_removes_a_home_of_its_own_when_it_is_empty(home, was_there, other):
    if was_there:
        os.mkdir(home)
    command = [sys.executable, ROOT / "bin" / "oio-sandbox", "--home", home, "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(Path(home).parent / "tmp")}
    subprocess.run([*command, "--rawx", "0", "init"], env=environment, check=True)
    Sandbox(home).init()
    if other:
        Path(home, other).write_text("of the user", encoding="utf-8")
    subprocess.run([*command, "destroy"], env=environment, check=True)
    left = {str(path.relative_to(home)) for path in Path(home).rglob("*") if path.is_file()}
    assert left == ({other} if other else set())
    assert os.path.lexists(home) == (was_there or bool(other))


def test_a_home_that_is_no_directory_is_left_alone(home):
    Path(home).write_text("of the user", encoding="utf-8")
    command = [sys.executable, ROOT / "bin" / "oio-sandbox", "--home", home, "--rawx", "0", "init"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(Path(home).parent / "tmp")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and home in done.stderr and "Traceback" not in done.stderr
    assert Path(home).read_text(encoding="utf-8") == "of the user"


def test_a_home_made_by_a_start_that_failed_is_removed_as_well(home):
    with pytest.raises(SandboxError, match="no address of this machine"):
        Sandbox(home, Options(hosts=["192.0.2.1"])).init()
    sandbox = Sandbox(home, Options(rawx=0))
    sandbox.init()
    sandbox.destroy()
    assert not os.path.lexists(home)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"namespace": "../x"}, "namespace"),
        ({"rawx": -1}, "rawx"),
        ({"meta1": 0}, "meta1"),
        ({"base_port": 0}, "port"),
        ({"durability": "no"}, "urability"),
        ({"meta1_digits": 5}, "meta1_digits"),
        ({"storage_policy": "NOPE"}, "NOPE"),
        ({"container_replicas": 3, "meta2": 2}, "container_replicas"),
        ({"hosts": []}, "host"),
        ({"rawx": "many"}, "rawx"),
        ({"chunk_size": 0}, "chunk"),
    ],
)
def test_bad_options(fields, message):
    with pytest.raises(SandboxError, match=message):
        merge(fields)


def test_option_files(tmp_path):
    path = tmp_path / "options.yml"
    path.write_text(
        "storage_policy: EC\nrawx: {count: 9, params: {}}\nrdir: {count: 2}\nrawx_fsync: false\n"
        "config:\n  ns.chunk_size: 1Mi\n  meta2.max_versions: -1\n"
    )
    fields = load_file(str(path))
    assert len(fields[""]) == 1  # rawx.params
    options = merge(fields, {"rawx": 12, "config": {"ns.flat_bits": 8}})
    assert options.rdir == 2
    assert (options.rawx, options.storage_policy, options.durability) == (12, "EC", "relaxed")
    assert options.chunk_size == 1048576
    assert options.config["meta2.max_versions"] == -1
    assert options.config["ns.flat_bits"] == 8
    with pytest.raises(SandboxError, match="unknown option"):
        from_map({"rawks": 3}, "file")
    with pytest.raises(SandboxError, match="Cannot read"):
        load_file(str(tmp_path / "absent.yml"))


def test_command_line(home, capsys):
    assert main(["--home", home, "init", "-n", "DEMO", "--rawx", "2", "--set", "a.b=c"]) == 0
    assert Sandbox(home).layout.options.config == {"a.b": "c"}
    assert main(["--home", home, "status", "--json"]) == 1
    text = capsys.readouterr().out
    entries = json.loads(text[text.index("[") :])
    assert {entry["state"] for entry in entries} == {"STOPPED"}
    # Options may stand between the command and its targets.
    for target, names in (("@rawx", ["DEMO-rawx-1", "DEMO-rawx-2"]), ("DEMO-meta2-1", ["DEMO-meta2-1"])):
        assert main(["--home", home, "status", "--json", target]) == 1
        assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == names
    assert main(["--home", home, "status", "@nothing"]) == 1
    assert "no service of this cluster" in capsys.readouterr().err
    for command in ("init", "env", "destroy"):
        assert main(["--home", home, command, "DEMO-rawx-1"]) == 1
        assert "whole cluster" in capsys.readouterr().err
    assert Sandbox(home).initialised
    assert main(["--home", home, "env"]) == 0
    assert f"export OIO_SDS_CONF={home}/sds.conf" in capsys.readouterr().out
    assert main(["--home", home, "stop"]) == 0
    assert main(["--home", home, "destroy"]) == 0
    assert main(["--home", home, "status"]) == 1
    assert "No cluster" in capsys.readouterr().err


def test_a_home_that_cannot_be_made_is_one_clear_line(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert main(["--home", str(file / "home"), "init"]) == 1
    assert capsys.readouterr().err == f"oio-sandbox: [Errno 20] Not a directory: '{file}/home'\n"


def test_reader_of_the_test_configuration(home, capsys):
    layout = Sandbox(home, namespace="DEMO", rawx=3).init()
    path = os.path.join(layout.conf_dir, "test.yml")

    def ask(*words):
        command = [sys.executable, str(ROOT / "tools/oio-test-config.py"), *words]
        environment = {**os.environ, "SDS_TEST_CONFIG_FILE": path}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        return done.returncode, done.stdout.split()

    rawx = [service.addr for service in layout.of_type("rawx")]
    assert ask("-n") == (0, ["DEMO"])
    assert ask("-v", "storage_policy") == (0, ["THREECOPIES"])
    assert ask("-t", "rawx") == (0, rawx)
    assert ask("-t", "rawx", "-1") == (0, rawx[:1])
    assert ask("-t", "rawx", "-t", "meta2", "-c") == (0, ["4"])
    assert ask("-t", "event-agent", "-c") == (0, ["1"])
    assert ask("-t", "nothing") == (0, [])
    assert ask("-v", "nothing") == (1, [])
    assert ask("-n", "-f", "/no/such/file") == (1, [])


def test_volumes_of_an_option_file_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert merge({"data_dir": "here"}).data_dir == str(tmp_path / "here")
    assert merge({"data_dir": "~/there"}).data_dir == os.path.expanduser("~/there")


def test_a_type_may_have_hosts_of_its_own(home):
    fields = from_map({"hosts": ["127.0.0.1"], "rawx": {"count": 3, "hosts": ["127.0.0.2", "127.0.0.3"]}}, "f")
    assert "" not in fields, "nothing is ignored"
    found = layout.compute(home, merge(fields))
    assert [one.host for one in found.of_type("rawx")] == ["127.0.0.2", "127.0.0.3", "127.0.0.2"]
    assert [one.host for one in found.of_type("meta2")] == ["127.0.0.1"]
    with pytest.raises(SandboxError, match="No host"):
        merge(from_map({"rawx": {"hosts": []}}, "f"))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"config: [a]", b"- a", b"1: 2"])
def test_an_option_file_that_makes_no_sense_is_named_in_one_line(tmp_path, capsys, content):
    path = tmp_path / "options.yml"
    path.write_bytes(content)
    assert main(["--home", str(tmp_path / "home"), "-c", str(path), "init"]) == 1
    said = capsys.readouterr().err
    assert str(path) in said and said.count("\n") == 1


def test_nothing_is_laid_out_on_an_address_of_another_machine(home):
    with pytest.raises(SandboxError, match=r"192\.0\.2\.1 is no address of this machine"):
        Sandbox(home, Options(hosts=["192.0.2.1"])).init()
    assert not Sandbox(home).initialised
    Sandbox(home, Options(rawx=0)).init()


def test_a_layout_whose_computation_was_interrupted_is_computed_again(home):
    found = layout.compute(home, Options(rawx=1))
    found.of_type("rawx")[0].port = 0
    found.save()
    assert layout.load(home) is None
    assert all(one.port or not one.host for one in Sandbox(home, Options(rawx=1)).init().services)


def test_a_home_may_have_a_name_that_is_no_text(tmp_path):
    home = os.fsdecode(bytes(tmp_path) + b"/\xff")
    words = [sys.executable, ROOT / "bin" / "oio-sandbox", "--home", home, "--rawx", "0", "init"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(words, stdout=subprocess.PIPE, env=environment, check=True)
    assert os.fsencode(home) in done.stdout
    assert os.path.samefile(layout.load(home).home, home)
    subprocess.run([*words[:4], "destroy"], env=environment, check=True)
    assert not os.path.lexists(home)


def test_no_reservation_is_left_of_clusters_that_are_gone(tmp_path):
    directory = tmp_path / "tmp" / f"oio-sandbox-{os.getuid()}"
    removed, kept = str(tmp_path / "removed"), Sandbox(str(tmp_path / "kept"), Options(rawx=0))
    Sandbox(removed, Options(rawx=0)).init()
    shutil.rmtree(removed)
    kept.init()
    assert len(list(directory.iterdir())) == 1 + sum(one.port > 0 for one in kept.services())
    kept.destroy()
    assert not directory.exists()


def test_a_lock_that_was_removed_meanwhile_excludes_nobody_and_is_taken_again(tmp_path):
    owner = tmp_path / "layout.json"
    owner.touch()
    with ports._locked() as directory:
        waiting = threading.Thread(target=ports.reserve, args=(["127.0.0.1"], 20000, 1, str(owner)))
        waiting.start()
        os.unlink(os.path.join(directory, "lock"))
    waiting.join(20)
    assert not waiting.is_alive()
    assert "lock" in os.listdir(directory), "of the one who waited"


def test_who_reads_less_than_is_printed_gets_no_error_message(home):
    Sandbox(home, Options(rawx=100)).init()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, ROOT / "bin" / "oio-sandbox", "--home", home, "status"],
        stdout=writer, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
