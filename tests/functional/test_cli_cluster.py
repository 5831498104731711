# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The commands of ``openio cluster`` that change services, on services that do not exist."""

import itertools
import json
import os
import subprocess
import sys

import pytest
from proxy_http import RawProxy
from support import ROOT, eventually

ports = itertools.count(3001)


@pytest.fixture
def proxy(cluster):
    proxy = RawProxy(cluster.proxy, cluster.namespace)
    yield proxy
    proxy.post("conscience/flush", {"type": "oiofs"})
    proxy.post("lb/reload")
    proxy.pool.close()


@pytest.fixture
def openio(cluster, tmp_path):
    """Run ``openio cluster``; gives rows, exit code and standard error."""

    def run(*args):
        environment = dict(os.environ) | cluster.environment | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "oio.cli.openio", "cluster", *args, "-f", "json"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return json.loads(done.stdout or "null"), done.returncode, done.stderr

    return run


@pytest.fixture
def add(proxy, cluster):
    def add():
        port = next(ports)
        tags = {"tag.service_id": f"oiofs-{port}", "tag.up": True, "stat.cpu": 50, "tag.loc": f"a.b.{port}"}
        service = {"ns": cluster.namespace, "type": "oiofs", "addr": f"127.0.0.1:{port}", "tags": tags}
        assert proxy.post("conscience/register", body=service).status == 204
        assert proxy.post("lb/reload").status == 204
        return service["addr"], tags["tag.service_id"]

    return add


def scores(proxy):
    proxy.post("lb/reload")
    listed = proxy.get("conscience/list", {"type": "oiofs"}).json
    return {item["addr"]: (item["score"], item["tags"]["tag.lock"]) for item in listed}


def test_locks(openio, proxy, add):
    (one, one_id), (two, _) = add(), add()
    rows, code, _ = openio("lock", "oiofs", one_id, two, "-s", "7")
    assert code == 0
    assert rows == [{"Type": "oiofs", "Service": name, "Result": "locked to 7"} for name in (one_id, two)]
    assert scores(proxy) == {one: (7, True), two: (7, True)}
    rows, code, _ = openio("unlock", "oiofs", one)
    assert (code, rows) == (0, [{"Type": "oiofs", "Service": one, "Result": "unlocked"}])
    assert scores(proxy) == {one: (50, False), two: (7, True)}
    rows, code, _ = openio("unlockall", "oiofs")
    assert code == 0 and {row["Service"] for row in rows} == {one, two}
    assert scores(proxy) == {one: (50, False), two: (50, False)}
    assert openio("resolve", "oiofs", one_id)[0] == {"addr": one}
    rows, code, _ = openio("deregister", "oiofs", one)
    assert (code, rows) == (0, [{"Type": "oiofs", "Service": one, "Result": "deregistered"}])
    assert set(scores(proxy)) == {two}
    assert openio("flush", "oiofs")[0] == [{"Type": "oiofs", "Result": "flushed"}]
    assert scores(proxy) == {}


def test_one_wrong_service_does_not_spare_the_others(openio, proxy, add):
    addr, _ = add()
    rows, code, _ = openio("lock", "oiofs", "no-such-id", addr, "-s", "700")
    assert code == 1 and [row["Service"] for row in rows] == ["no-such-id", addr]
    assert "not IP:PORT: 'no-such-id'" in rows[0]["Result"]
    assert rows[1]["Result"] == "locked to 100", "what holds, rather than what was asked for"
    assert scores(proxy) == {addr: (100, True)}
    assert openio("unlock", "oiofs", addr, "no-such-id")[1] == 1
    assert scores(proxy) == {addr: (50, False)}


def test_ids_that_do_not_exist_are_no_reason_to_try_again(openio):
    _, code, error = openio("resolve", "oiofs", "no-such-id")
    assert code == 1 and "Service ID [no-such-id] not found" in error
    assert "try again" not in error and "openio cluster list" in error and error.count("\n") == 1


def test_rows_of_a_proxy_that_is_away(openio):
    rows, code, _ = openio("--oio-proxy", "127.0.0.1:1", "lock", "oiofs", "127.0.0.1:9")
    assert code == 1 and rows[0]["Result"].startswith("cannot connect")


@pytest.mark.parametrize("command", ["lock", "unlock", "deregister"])
def test_services_and_types_that_do_not_exist(openio, proxy, command):
    rows, code, _ = openio(command, "oiofs", "127.0.0.1:9")
    assert code == 0 and len(rows) == 1, "the service may be unknown"
    rows, code, _ = openio(command, "nosuchtype", "127.0.0.1:9")
    assert code == 1
    assert rows[0]["Result"].startswith("Service type [nosuchtype] not managed (HTTP 404) (STATUS 453)")


def test_flush_of_an_unknown_type(openio):
    rows, code, _ = openio("flush", "nosuchtype")
    assert code == 1 and "not managed" in rows[0]["Result"]


def test_the_proxy_is_looked_into(openio, cluster, add):
    addr, service_id = add()

    def mine():
        rows, code, error = openio("local", "list", "oiofs")
        assert code == 0 and "proxy.quirk.local_scores" in error
        return [row for row in rows if row["Addr"] == addr]

    (row,) = eventually(mine)
    assert (row["Service Id"], row["Up"], row["Type"]) == (service_id, True, "oiofs")
    assert list(row) == ["Type", "Addr", "Service Id", "Volume", "Location", "Slots", "Up", "Score", "Locked"]
    conf, code, _ = openio("local", "conf")
    assert code == 0 and conf[f"{cluster.namespace}/proxy"] == cluster.proxy
