# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A reverse directory that is killed, or whose disk is full: what was acknowledged stays."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest
from processes import free_port
from support import ROOT, eventually

from oio.common.exceptions import OioException, ServiceBusy
from oio.http.client import HttpClientError, HttpPool
from oio.rdir.client import RdirClient

CID, CONTENT = "A" * 64, "B" * 32


class RdirProcess:
    """An rdir on a directory; `start` and `kill` as often as wanted."""

    def __init__(self, tmp_path):
        self.home = tmp_path
        (tmp_path / "db").mkdir()
        (tmp_path / "sds.conf").write_text("[TEST]\nproxy = 127.0.0.1:6000\n")
        self.port = free_port()
        (tmp_path / "rdir.conf").write_text(
            f"[rdir-server]\nnamespace = TEST\ndb_path = {tmp_path}/db\nbind_addr = 127.0.0.1\n"
            f"bind_port = {self.port}\n"
        )
        self.popen = None

    def start(self, file_bytes_max=None):
        """Start, maybe with a limit of the size of files."""

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

        environment = {**os.environ, "OIO_SDS_CONF": str(self.home / "sds.conf"), "PYTHONPATH": str(ROOT)}
        words = [sys.executable, str(ROOT / "bin/oio-rdir-server"), str(self.home / "rdir.conf")]
        self.popen = subprocess.Popen(
            words, env=environment, stderr=subprocess.DEVNULL, preexec_fn=limit if file_bytes_max else None
        )
        pool = HttpPool()

        def answers():
            assert self.popen.poll() is None
            with contextlib.suppress(HttpClientError):
                return pool.request("GET", f"http://127.0.0.1:{self.port}/status").status == 200
            return False

        eventually(answers, what="an answer of the rdir")
        pool.close()

    def stop(self, signum=signal.SIGTERM):
        """End the process."""
        self.popen.send_signal(signum)
        return self.popen.wait(20)

    def client(self):
        """A client that asks no directory."""
        client = RdirClient({"namespace": "TEST"}, endpoint="127.0.0.1:1")
        client._get_rdir_addr = lambda _volume, **_kwargs: f"127.0.0.1:{self.port}"
        return client


@pytest.fixture
def rdir(tmp_path):
    """An rdir that is not started."""
    process = RdirProcess(tmp_path)
    yield process
    if process.popen is not None and process.popen.poll() is None:
        process.stop(signal.SIGKILL)


def record(number):
    return {"container_id": CID, "content_id": CONTENT, "chunk_id": f"{number:064X}", "mtime": 5}


def test_what_was_acknowledged_before_a_kill_is_there(rdir):
    """Writers push and delete until the process is killed; then each one's last acknowledged change holds."""
    rdir.start()
    rdir.client().create("v")
    acknowledged: dict[int, bool | None] = {}
    enough = threading.Event()

    def write(first):
        client, round_ = rdir.client(), 0
        while True:
            numbers = range(first * 1000, first * 1000 + 20)
            present = round_ % 2 == 0
            try:
                for number in numbers:
                    acknowledged[number] = None  # unknown until the answer comes
                    if present:
                        client.chunk_push("v", CID, CONTENT, f"{number:064X}", mtime=5)
                    else:
                        client.chunk_delete("v", CID, CONTENT, f"{number:064X}")
                    acknowledged[number] = present
                many = [record(number) for number in range(first * 1000 + 100, first * 1000 + 400)]
                acknowledged.update(dict.fromkeys(range(first * 1000 + 100, first * 1000 + 400)))
                (client.chunk_push_many if present else client.chunk_delete_many)("v", many)
                acknowledged.update(dict.fromkeys(range(first * 1000 + 100, first * 1000 + 400), present))
            except OioException:
                return
            round_ += 1
            if round_ == 5:
                enough.set()

    threads = [threading.Thread(target=write, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    assert rdir.stop(signal.SIGKILL) == -signal.SIGKILL
    for thread in threads:
        thread.join()
    rdir.start()
    found = {int(chunk, 16) for _cid, _content, chunk, _value in rdir.client().chunk_fetch("v")}
    known = {number: present for number, present in acknowledged.items() if present is not None}
    assert len(known) > 100
    assert {number for number in known if known[number] != (number in found)} == set()
    assert rdir.stop() == 0


def test_a_full_disk_refuses_changes_and_loses_nothing(rdir):
    rdir.start(file_bytes_max=4 << 20)
    client, acknowledged = rdir.client(), 0
    client.create("v")
    with pytest.raises(ServiceBusy):
        for first in range(0, 200_000, 500):
            client.chunk_push_many("v", [record(number) for number in range(first, first + 500)])
            acknowledged += 500
    assert acknowledged >= 5000
    assert sum(1 for _ in client.chunk_fetch("v", limit=10000)) == acknowledged
    with pytest.raises(ServiceBusy):
        client.chunk_push_many("v", [record(number) for number in range(500_000, 505_000)])
    assert client.status("v", max=10000)["chunk"]["total"] == acknowledged
    assert rdir.stop() == 0
    rdir.start()
    client = rdir.client()
    assert sum(1 for _ in client.chunk_fetch("v", limit=10000)) == acknowledged
    client.chunk_push_many("v", [record(number) for number in range(500_000, 505_000)])
    assert client.status("v", max=10000)["chunk"]["total"] == acknowledged + 5000
    assert rdir.stop() == 0
