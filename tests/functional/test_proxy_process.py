# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The program ``oio-proxy``: addresses, configuration, signals, several processes."""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from urllib.parse import quote

import psutil
import pytest
from processes import Process, free_port
from proxy_http import RawProxy
from support import ROOT, eventually

from oio.http.client import HttpPool


@pytest.fixture
def conf(cluster, tmp_path):
    """A configuration file of the namespace; gives a function that writes options into it."""
    path = tmp_path / "own.conf"

    def write(**options):
        lines = [f"{key.replace('__', '.')}={value}" for key, value in options.items()]
        path.write_text(f"[{cluster.namespace}]\n" + "\n".join(lines) + "\n")
        return path

    write()
    return write


@pytest.fixture
def start(cluster, tmp_path):
    """Starts a proxy of the cluster."""
    started = []

    def run(*words):
        port = free_port()
        command = ["oio-proxy", *words, f"127.0.0.1:{port}", cluster.namespace]
        process = Process(tmp_path, command, port)
        started.append(process)
        process.proxy = RawProxy(process.addr, cluster.namespace)
        return process

    yield run
    for process in started:
        process.proxy.pool.close()
        process.stop()


def test_it_listens_on_every_address(start, cluster):
    other = free_port()
    # Paths of sockets are short: the directories of tests are not.
    with tempfile.TemporaryDirectory(prefix="oio-") as directory:
        check_addresses(start, cluster, other, f"{directory}/proxy.sock")


def check_addresses(start, cluster, other, path):
    process = start("-O", f"Bind=127.0.0.1:{other}", "-O", f"Bind={path}")
    pool = HttpPool()
    try:
        for base in (f"http://{process.addr}", f"http://127.0.0.1:{other}", f"http+unix://{quote(path, safe='')}"):
            answer = pool.request("GET", f"{base}/v3.0/{cluster.namespace}/conscience/info")
            assert answer.status == 200, base
    finally:
        pool.close()
    assert process.terminate() == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_sighup_brings_back_what_the_configuration_says(start, conf, workers):
    path = conf(ns__flat_bits=9)
    process = start("-O", f"Config={path}", "-O", f"Workers={workers}")
    config = "/v3.0/config"

    def bits():
        return {process.proxy.get(config).json["ns.flat_bits"] for _ in range(8)}

    assert bits() == {"9"}
    changes = {"ns.flat_bits": "30", "proxy.ttl.services.down": "7s"}
    assert process.proxy.post(config, body=changes).json == dict.fromkeys(changes, True)
    assert bits() == {"30"}
    conf(ns__flat_bits=11)
    os.kill(process.pid, signal.SIGHUP)
    eventually(lambda: bits() == {"11"}, what="the configuration read again in each process")
    assert process.proxy.get(config).json["proxy.ttl.services.down"] == "5000000", "back to its default"


def test_sigint_ends_it_cleanly(start):
    process = start()
    os.kill(process.pid, signal.SIGINT)
    assert process.popen.wait(15) == 0


def test_a_proxy_needs_a_namespace_it_knows(cluster, tmp_path):
    lonely = tmp_path / "lonely.conf"
    lonely.write_text("[LONELY]\nproxy=127.0.0.1:1\n")
    for namespace, message in (("NOWHERE", "not configured"), ("LONELY", "no 'conscience' address")):
        done = subprocess.run(
            [sys.executable, str(ROOT / "bin" / "oio-proxy"), "-O", f"Config={lonely}",
             f"127.0.0.1:{free_port()}", namespace],
            capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr


def test_registrations_reach_the_conscience_when_the_proxy_is_stopped(start, cluster):
    process = start()
    service = {"type": "echo", "addr": "127.0.0.1:19999", "tags": {"tag.up": True}}
    assert process.proxy.post("/v3.0/config", body={"proxy.period.cs.upstream": "1h"}).status == 200
    # The pause that runs now lasts a second at most: what comes after it waits for the end.
    assert process.proxy.post("conscience/register", body=service).status == 204
    assert process.terminate() == 0
    proxy = RawProxy(cluster.proxy, cluster.namespace)
    try:
        assert proxy.post("lb/reload").status == 204
        assert service["addr"] in {item["addr"] for item in proxy.get("conscience/list", {"type": "echo"}).json}
        assert proxy.post("conscience/deregister", body=service).status == 204
        proxy.post("lb/reload")
    finally:
        proxy.pool.close()


def test_calls_to_bases_fail_as_often_as_the_variable_tells(start, conf):
    name = "enbug.proxy.request_failure.alone"
    path = conf(**{name.replace(".", "__"): 100})
    process = start("-O", f"Config={path}", "-O", "Workers=2")
    where = {"acct": "failures", "ref": "none"}

    def codes():
        answers = [process.proxy.get("reference/show", where) for _ in range(40)]
        lost = [answer for answer in answers if answer.status != 404]
        assert all(f"made on purpose ({name})" in answer.json["message"] for answer in lost)
        return {answer.status for answer in answers}

    assert codes() == {503}
    assert process.proxy.get("conscience/info").status == 200, "no base is asked"
    assert process.proxy.post("/v3.0/config", body={name: "0"}).json == {name: True}
    assert codes() == {404}
    assert process.proxy.post("/v3.0/config", body={name: "50"}).json == {name: True}
    assert codes() == {404, 503}
    os.kill(process.pid, signal.SIGHUP)
    eventually(lambda: codes() == {503}, what="the configuration read again in each process")


@pytest.mark.parametrize("workers", [1, 2])
def test_logs_are_verbose_as_long_as_the_variable_tells(start, conf, workers):
    path = conf(common__verbosity__reset_delay="1h")
    process = start("-O", f"Config={path}", "-O", f"Workers={workers}")

    def lose_connections():
        # A connection that breaks is worth a line to those who want to know everything.
        for _ in range(8):
            with process.connect() as sock:
                sock.sendall(b"GET /v3.0/status")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def told(text):
        return process.log.read_text().count(text)

    def tells_everything():
        lose_connections()
        return told(" DEBUG ")

    def all_listen():
        found = psutil.Process(process.pid)
        serving = [found] if workers == 1 else found.children()
        ports = [{held.laddr.port for held in one.net_connections("tcp")} for one in serving]
        return sum(process.port in held for held in ports) == workers

    eventually(all_listen, what="all the processes")
    os.kill(process.pid, signal.SIGUSR1)
    eventually(lambda: told("logs are verbose for 3600 s") == workers, what="a longer time")
    eventually(tells_everything, what="debug logs")
    os.kill(process.pid, signal.SIGUSR2)
    eventually(lambda: told("logs are as before") == workers, what="the end by a signal")
    changed = {"common.verbosity.reset_delay": "300ms"}
    assert process.proxy.post("/v3.0/config", body=changed).json == dict.fromkeys(changed, True)
    begin = time.monotonic()
    os.kill(process.pid, signal.SIGUSR1)
    eventually(lambda: told("logs are as before") == 2 * workers, what="the end of the time")
    assert time.monotonic() - begin >= 0.3
    before = told(" DEBUG ")
    lose_connections()
    assert process.proxy.get("conscience/info").status == 200
    assert told(" DEBUG ") == before


def test_references_are_linked_to_services_with_the_tag(start, conf, cluster):
    wanted = f"{cluster.namespace}-rawx-3"
    path = conf(ns__service_update_policy=f"rawx=KEEP|1|1|service_id={wanted};rdir=KEEP|1|1|no_such_tag=1")
    process = start("-O", f"Config={path}")

    def link(number, kind):
        where = {"acct": "tagged", "ref": f"{os.getpid()}-{number}", "type": kind}
        return process.proxy.post("reference/link", where, headers={"X-oio-action-mode": "autocreate"})

    for number in range(8):
        answer = link(number, "rawx")
        assert [one["host"] for one in answer.json] == [wanted]
    assert link(0, "rdir").status == 403
    for number in range(8):
        where = {"acct": "tagged", "ref": f"{os.getpid()}-{number}", "type": "rawx"}
        assert process.proxy.post("reference/unlink", where).status == 204
        del where["type"]
        assert process.proxy.post("reference/destroy", where).status == 204
