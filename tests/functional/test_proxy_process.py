# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The program ``oio-proxy``: addresses, configuration, signals, several processes."""

import os
import signal
import subprocess
import sys
import tempfile
from urllib.parse import quote

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
