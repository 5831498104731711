# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What all the daemons have in common: routes for operators, request ids, signals, command lines, samples."""

import json
import logging
import os
import pwd
import re
import subprocess
import sys

import pytest
from processes import Meta2Process, Process, RawxProcess, free_port
from prometheus_client.parser import text_string_to_metric_families
from support import ROOT, eventually

from oio import __version__
from oio.common.configuration import load_namespace_conf
from oio.conscience.agent_settings import load_agent_settings
from oio.conscience.settings import load_settings
from oio.http.client import HttpPool

STATUS = {
    "proxy": "/v3.0/status",
    "conscience": "/status",
    "meta0": "/status",
    "meta1": "/status",
    "meta2": "/status",
    "rawx": "/stat",
    "account": "/status",
    "ecd": "/status",
}
PROGRAMS = sorted(path.name for path in (ROOT / "bin").glob("oio-*"))
ETC = ROOT / "etc"


@pytest.fixture
def pool():
    pool = HttpPool()
    yield pool
    pool.close()


# -- routes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", STATUS)
def test_metrics_can_be_scraped(cluster, pool, type_):
    service = cluster.services(type_)[0]
    response = pool.request("GET", f"http://{service.addr}/metrics")
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(bytes(response.data).decode())}
    assert families
    assert all(family.documentation for family in families.values())
    assert all(family.type in ("counter", "gauge") for family in families.values())
    samples = [sample for family in families.values() for sample in family.samples]
    assert len({(sample.name, *sorted(sample.labels.items())) for sample in samples}) == len(samples)


@pytest.mark.parametrize("type_", STATUS)
def test_status(cluster, pool, type_):
    service = cluster.services(type_)[0]
    response = pool.request("GET", f"http://{service.addr}{STATUS[type_]}")
    assert response.status == 200
    text = bytes(response.data).decode()
    if type_ in ("proxy", "rawx"):
        assert all(re.fullmatch(r"(counter|gauge|config) \S+ .+", line) for line in text.splitlines())
    else:
        assert isinstance(json.loads(text), dict)


# -- request ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["status", "/no/such/route"])
@pytest.mark.parametrize("type_", STATUS)
def test_request_ids_come_back(cluster, pool, type_, path):
    service = cluster.services(type_)[0]
    url = f"http://{service.addr}{STATUS[type_] if path == 'status' else path}"
    response = pool.request("GET", url, headers={"X-oio-req-id": f"id-of-{type_}"})
    assert response.headers["x-oio-req-id"] == f"id-of-{type_}"


@pytest.fixture
def verbose(cluster, tmp_path):
    """Starts one service of a type with debug logs."""
    started = []

    def start(type_):
        if type_ == "rawx":
            process = RawxProcess(tmp_path, words=["-v"])
        elif type_ == "meta2":
            process = Meta2Process(tmp_path, words=["-v"])
        elif type_ == "proxy":
            port = free_port()
            process = Process(tmp_path, ["oio-proxy", "-v", f"127.0.0.1:{port}", cluster.namespace], port)
        else:
            conf, port = account_conf(cluster, tmp_path, "[account-server]\nlog_level = DEBUG\n")
            process = Process(tmp_path, ["oio-account-server", conf], port)
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop()


def account_conf(cluster, tmp_path, text, port=None):
    """A configuration file of the account service with values that fit here; gives its path and the port."""
    port = port or free_port()
    store = cluster.services("redis")[0].addr
    for key, value in (("bind_addr", "127.0.0.1"), ("bind_port", port), ("redis_host", store)):
        text = re.sub(rf"(?m)^{key} *=.*\n", "", text) + f"{key} = {value}\n"
    path = tmp_path / "account.conf"
    path.write_text(text)
    return str(path), port


@pytest.mark.parametrize("type_", ["rawx", "meta2", "proxy", "account"])
def test_request_ids_are_in_the_logs(verbose, pool, type_):
    process = verbose(type_)
    pool.request("GET", f"http://{process.addr}{STATUS[type_]}", headers={"X-oio-req-id": "look-for-me"})
    eventually(lambda: "look-for-me" in process.log.read_text(), what="the id of the request in the log")


# -- signals -------------------------------------------------------------------------------------------


def test_a_daemon_that_is_told_to_stop_ends_with_zero(cluster):
    names = [
        services[0].name
        for services in ([one for one in cluster.services() if one.type == type_] for type_ in (
            "proxy", "meta0", "meta1", "meta2", "rawx", "account", "ecd", "conscience-agent", "event-agent",
            "conscience",
        ))
    ]  # fmt: skip
    log = os.path.join(cluster.layout.log_dir, "supervisord.log")
    begin = os.path.getsize(log)
    try:
        cluster.stop(*names)
        with open(log, encoding="utf-8") as stream:
            stream.seek(begin)
            text = stream.read()
    finally:
        cluster.start()
        cluster.wait_ready()
    ends = dict(re.findall(r"stopped: (\S+) \((.*)\)", text))
    assert ends == dict.fromkeys(names, "exit status 0")


# -- command lines ---------------------------------------------------------------------------------------


def run(program, *words):
    return subprocess.run(
        [sys.executable, str(ROOT / "bin" / program), *words],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_usage(program):
    done = run(program, "-h")
    assert done.returncode == 0
    assert done.stdout.lower().startswith("usage: ")
    done = run(program, "--version")
    assert done.returncode == 0
    assert done.stdout == f"{'oio-conscience' if program == 'oio-daemon' else program} {__version__}\n"
    for words in (["--no-such-option"], []):
        done = run(program, *words)
        # contract: both agents leave with 1 when the path is missing
        missing = program in ("oio-conscience-agent", "oio-event-agent") and not words
        assert done.returncode == (1 if missing else 2)
        assert "usage: " in (done.stdout + done.stderr).lower()
        assert "Traceback" not in done.stderr


BROKEN_FILES = {
    "nothing": "",
    "not text": "\x00\xff\xfe",
    "no section": "key = value\n",
    "nonsense": (
        "[account-server]\nbind_port = many\nredis_host = nowhere\n[event-agent]\nnamespace = \n"
        "[Server.conscience]\nlisten = nowhere\n[Plugin.conscience]\nparam_namespace = X\n"
        "[ecd]\nendpoint = nowhere\n"
    ),
    "wrong directories": (
        "[account-server]\nbind_port = 0\n[event-agent]\nnamespace = X\n"
        "proxy = 127.0.0.1:1\nqueue_url = spool:///proc/nothing/here\nhandlers_conf = /proc/nothing/here\n"
    ),
}


@pytest.mark.parametrize("text", BROKEN_FILES.values(), ids=BROKEN_FILES)
@pytest.mark.parametrize(
    "program",
    ["oio-account-server", "oio-conscience", "oio-conscience-agent", "oio-ecd", "oio-event-agent", "oio-rawx"],
)
def test_a_broken_configuration_file_is_one_clear_line(cluster, tmp_path, program, text):
    path = tmp_path / "broken.conf"
    path.write_bytes(text.encode("latin-1"))
    done = run(program, *(["-f"] if program == "oio-rawx" else []), str(path))
    # 3: the event agent whose workers cannot begin.
    assert done.returncode in ((1, 3) if program == "oio-event-agent" else (1,))
    assert program in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", ["oio-meta0-server", "oio-meta1-server", "oio-meta2-server"])
def test_a_meta_service_says_what_is_wrong(cluster, tmp_path, program):
    volume = str(tmp_path / "volume")
    for words in (
        ["NS", volume],
        ["-O", "Endpoint=nowhere", "NS", volume],
        ["-O", "Endpoint=127.0.0.1:1", "-O", "Nonsense=1", "NS", volume],
        ["-O", "Endpoint=127.0.0.1:1", "-O", "Config=/no/such/file", "NS", volume],
        ["-O", "Endpoint=127.0.0.1:1", "-O", "SysConfig=off", "NS", "/proc/nothing/here"],
    ):
        done = run(program, *words)
        assert done.returncode == 1, words
        assert done.stderr.startswith(f"{program}: "), done.stderr
        assert "Traceback" not in done.stderr


def test_a_taken_port_is_said(cluster, tmp_path):
    """The message of each daemon that cannot listen names the reason."""
    taken = cluster.services("rawx")[0]
    volume = tmp_path / "volume"
    volume.mkdir()
    conf = tmp_path / "conf"
    conf.write_text(f"listen {taken.addr}\nnamespace NS\ndocroot {volume}\nevents off\n")
    account, _port = account_conf(cluster, tmp_path, "[account-server]\n", taken.port)
    ecd = tmp_path / "ecd.conf"
    ecd.write_text(f"[ecd]\nendpoint = {taken.addr}\n")
    meta2 = ["-O", f"Endpoint={taken.addr}", "-O", "SysConfig=off", "NS", str(tmp_path / "meta2")]
    for program, words in (
        ("oio-rawx", ["-f", str(conf)]),
        ("oio-account-server", [account]),
        ("oio-ecd", [str(ecd)]),
        ("oio-meta2-server", meta2),
        ("oio-proxy", [taken.addr, cluster.namespace]),
        ("oio-proxy", ["-O", "Workers=2", taken.addr, cluster.namespace]),
    ):
        done = run(program, *words)
        assert done.returncode == 1, program
        assert f"cannot listen on {taken.addr}: Address already in use" in done.stderr, program
        assert "Traceback" not in done.stderr, f"{program}: {done.stderr}"


# -- samples -----------------------------------------------------------------------------------------------


def everything_of(sample, separator):
    """Text of a sample whose commented keys count too: they are documented to be the defaults."""
    return re.sub(rf"(?m)^#([a-z][a-z0-9_.]*{separator}\S+)$", r"\1", (ETC / sample).read_text())


def test_rawx_sample(tmp_path, pool):
    volume = tmp_path / "volume"
    volume.mkdir()
    text = everything_of("rawx.conf-sample", " ")
    addr = f"127.0.0.1:{free_port()}"
    for key, value in (("listen", addr), ("docroot", volume), ("event_queue", f"spool://{tmp_path}/spool")):
        text, found = re.subn(rf"(?m)^{key} .*$", f"{key} {value}", text)
        assert found, key
    path = tmp_path / "rawx.conf"
    path.write_text(re.sub(r"(?m)^tls_.*\n", "", text))
    process = Process(tmp_path, ["oio-rawx", "-f", str(path)], int(addr.rpartition(":")[2]))
    try:
        assert pool.request("GET", f"http://{addr}/info").status == 200
    finally:
        assert process.terminate() == 0


def test_account_sample(cluster, tmp_path, pool):
    conf, port = account_conf(cluster, tmp_path, everything_of("account-server.conf-sample", " = "))
    process = Process(tmp_path, ["oio-account-server", conf], port)
    try:
        assert pool.request("GET", f"http://{process.addr}/status").status == 200
    finally:
        assert process.terminate() == 0


def test_ecd_sample(tmp_path, pool):
    port = free_port()
    path = tmp_path / "ecd.conf"
    text = everything_of("ecd.conf-sample", " = ")
    path.write_text(re.sub(r"(?m)^endpoint *=.*$", f"endpoint = 127.0.0.1:{port}", text))
    process = Process(tmp_path, ["oio-ecd", str(path)], port)
    try:
        assert pool.request("GET", f"http://{process.addr}/status").status == 200
        assert b"oio_ecd_requests_total" in pool.request("GET", f"http://{process.addr}/metrics").data
        assert "key_file is ignored" in process.log.read_text()
    finally:
        assert process.terminate() == 0


@pytest.mark.parametrize("type_", ["meta0", "meta1", "meta2"])
def test_meta_samples(tmp_path, pool, type_):
    path = tmp_path / "meta.conf"
    text = everything_of(f"{type_}.conf-sample", " = ")
    path.write_text(re.sub(r"(?m)^event-agent *=.*$", f"event-agent = spool://{tmp_path}/spool", text))
    port = free_port()
    options = [f"Endpoint=127.0.0.1:{port}", "SysConfig=off", f"Config={path}"]
    words = [word for option in options for word in ("-O", option)]
    process = Process(tmp_path, [f"oio-{type_}-server", *words, "OPENIO", str(tmp_path / "volume")], port)
    try:
        assert pool.request("GET", f"http://{process.addr}/status").status == 200
        assert "ERROR" not in process.log.read_text()
    finally:
        assert process.terminate() == 0


def test_proxy_sample(cluster, tmp_path, pool):
    path = tmp_path / "proxy.conf"
    text = everything_of("proxy.conf-sample", "=")
    text = text.replace("[OPENIO]", f"[{cluster.namespace}]")
    path.write_text(re.sub(r"(?m)^conscience=.*$", f"conscience={cluster.services('conscience')[0].addr}", text))
    port = free_port()
    words = ["-O", "SysConfig=off", "-O", f"Config={path}", f"127.0.0.1:{port}", cluster.namespace]
    process = Process(tmp_path, ["oio-proxy", *words], port)
    try:
        url = f"http://{process.addr}/v3.0/{cluster.namespace}/conscience/info"
        eventually(lambda: pool.request("GET", url).status == 200, what="a namespace")
        assert "ERROR" not in process.log.read_text()
        assert "configuration:" not in process.log.read_text()
    finally:
        assert process.terminate() == 0


def replaced(sample, changes, separator="="):
    """Text of a sample in which some keys, maybe commented ones, have values that fit here."""
    text = (ETC / sample).read_text()
    for key, value in changes.items():
        text, found = re.subn(rf"(?m)^#?{re.escape(key)}{separator}.*$", f"{key}{separator}{value}", text)
        assert found == 1, key
    return text


def test_conscience_samples(tmp_path, pool):
    for name in ("conscience-policies.conf", "conscience-services.conf"):
        (tmp_path / name).write_text((ETC / f"{name}-sample").read_text())
    port = free_port()
    path = tmp_path / "conscience.conf"
    path.write_text(
        replaced(
            "conscience.conf-sample",
            {
                "listen": f"127.0.0.1:{port}",
                "param_storage_conf": tmp_path / "conscience-policies.conf",
                "param_service_conf": f"{tmp_path}/{{conscience-services.conf,services.d/*.conf}}",
            },
        )
    )
    process = Process(tmp_path, ["oio-conscience", "-O", f"PersistencePath={tmp_path}/saved", str(path)], port)
    try:
        found = json.loads(pool.request("GET", f"http://{process.addr}/v1/snapshot").data)
        assert found["namespace"]["ns"] == "OPENIO"
        assert "rawx" in found["types"]
        assert "ERROR" not in process.log.read_text()
    finally:
        assert process.terminate() == 0
    assert load_settings(str(path)).namespace == "OPENIO"


def test_event_agent_sample(tmp_path, pool):
    port = free_port()
    path = tmp_path / "event-agent.conf"
    path.write_text(
        replaced(
            "event-agent.conf-sample",
            {
                "queue_url": f"spool://{tmp_path}/spool",
                "state_dir": tmp_path / "state",
                "listen": f"127.0.0.1:{port}",
                "proxy": f"127.0.0.1:{free_port()}",
            },
        )
    )
    process = Process(tmp_path, ["oio-event-agent", str(path)], port)
    try:
        assert b"event_agent_workers" in pool.request("GET", f"http://{process.addr}/metrics").data
        assert "ERROR" not in process.log.read_text()
    finally:
        assert process.terminate() == 0


def test_conscience_agent_sample(tmp_path):
    (tmp_path / "watch").mkdir()
    path = tmp_path / "conscience-agent.yml"
    changes = {
        "include_dir": tmp_path / "watch",
        "proxy": f"127.0.0.1:{free_port()}",
        "user": pwd.getpwuid(os.getuid()).pw_name,
    }
    path.write_text(replaced("conscience-agent.yml-sample", changes, ": "))
    log = tmp_path / "log"
    with open(log, "wb") as stream:
        agent = subprocess.Popen(
            [sys.executable, str(ROOT / "bin/oio-conscience-agent"), str(path)],
            stdout=stream, stderr=stream, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        eventually(lambda: agent.poll() is not None or "ready" in log.read_text(), what="the agent serves")
        agent.terminate()
        assert agent.wait(15) == 0, log.read_text()
    finally:
        if agent.poll() is None:
            agent.kill()
            agent.wait()
    settings = load_agent_settings(str(path), logging.getLogger("test"))
    assert [service.type for service in settings.services] == ["rawx"]


def test_namespace_sample(monkeypatch):
    monkeypatch.setenv("OIO_SDS_CONF", str(ETC / "sds.conf-sample"))
    assert load_namespace_conf("OPENIO", fresh=True)["proxy"]
    monkeypatch.undo()
    load_namespace_conf("OPENIO", failsafe=True, fresh=True)
