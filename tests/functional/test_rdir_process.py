# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The process of a reverse directory: what keeps it from starting, its lock, its stop."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from support import ROOT, eventually, held_port

from oio.common import volume_lock
from oio.http.client import HttpClientError, HttpPool


class Home:
    """A directory with a database directory and a namespace configuration."""

    def __init__(self, path):
        self.path = path
        self.db = path / "db"
        self.db.mkdir()
        self.environment = {**os.environ, "OIO_SDS_CONF": str(path / "sds.conf"), "PYTHONPATH": str(ROOT)}
        (path / "sds.conf").write_text("[TEST]\nproxy = 127.0.0.1:6000\nserver.pool.max_threads = 9\n")
        self.started = []

    def configure(self, port, name="rdir.conf", **changes):
        keys = {
            "namespace": "TEST", "db_path": str(self.db), "bind_addr": "127.0.0.1", "bind_port": port, **changes
        }  # fmt: skip
        lines = [f"{key} = {value}" for key, value in keys.items() if value is not None]
        path = self.path / name
        path.write_text("\n".join(["[rdir-server]", *lines, ""]))
        return path

    def run(self, *words, **kwargs):
        return subprocess.Popen(
            [sys.executable, str(ROOT / "bin/oio-rdir-server"), *map(str, words)],
            env=self.environment, stderr=subprocess.PIPE, text=True, **kwargs,
        )  # fmt: skip

    def refused(self, *words):
        """What a process that must not start says."""
        process = self.run(*words)
        try:
            _out, error = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode in (1, 2), error
        assert "Traceback" not in error
        return error

    def start(self, port, *words, **kwargs):
        """Start, and wait until it answers."""
        process = self.run(*words, **kwargs)
        self.started.append(process)
        pool = HttpPool()

        def answers():
            assert process.poll() is None, process.stderr.read()
            try:
                return pool.request("GET", f"http://127.0.0.1:{port}/status")
            except HttpClientError:
                return None

        status = json.loads(eventually(answers, what="an answer").data)
        pool.close()
        return process, status


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def port():
    sock, number = held_port()
    sock.close()
    return number


def test_wrong_command_lines(home, port):
    assert "config" in home.refused()
    assert "unrecognized" in home.refused(home.configure(port), "more")
    assert "-O wants KEY=VALUE" in home.refused("-O", "Bind", home.configure(port))
    assert "unknown option" in home.refused("-O", "Nothing=1", home.configure(port))
    assert "no-such-file" in home.refused(home.path / "no-such-file")
    (home.path / "empty").write_text("[other]\na = b\n")
    assert "[rdir-server] is missing" in home.refused(home.path / "empty")
    (home.path / "broken").write_text("no section\n")
    assert "broken" in home.refused(home.path / "broken")


@pytest.mark.parametrize("key", ["namespace", "db_path", "bind_addr", "bind_port"])
def test_mandatory_keys(home, port, key):
    assert f"{key} is missing" in home.refused(home.configure(port, **{key: None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"db_path": "/nonexistent"}, "not a directory"),
        ({"db_path": __file__}, "not a directory"),
        ({"bind_port": "http"}, "is not IP:PORT"),
        ({"bind_port": "70000"}, "the port is not in"),
        ({"namespace": "UNKNOWN"}, "namespace UNKNOWN is unknown"),
        ({"syslog_prefix": "x" * 64}, "syslog_prefix"),
        ({"volume_size_max_mib": "many"}, "many"),
    ],
)
def test_wrong_values(home, port, changes, message):
    assert message in home.refused(home.configure(port, **changes))
    assert not list(home.db.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_directory_without_rights(home, port):
    home.db.chmod(0o500)
    assert "cannot be read" in home.refused(home.configure(port))


def test_a_port_that_is_taken(home):
    sock, port = held_port()
    sock.listen()
    with sock:
        assert "cannot listen" in home.refused(home.configure(port))


def test_the_marks_and_the_lock_of_the_directory(home, port):
    process, _ = home.start(port, home.configure(port, service_id="TEST-rdir-1"))
    marks = {name: os.getxattr(home.db, name).decode() for name in os.listxattr(home.db) if "server" in name}
    assert marks == {
        volume_lock.XATTR_ID: f"127.0.0.1:{port}",
        volume_lock.XATTR_NS: "TEST",
        volume_lock.XATTR_TYPE: "rdir",
    }
    # The same service twice, then another one; also after the first is gone.
    assert "another process" in home.refused(home.configure(port))
    sock, other_port = held_port()
    sock.close()
    other = home.configure(other_port, "other.conf")
    assert "another process" in home.refused(other)
    process.terminate()
    assert process.wait(20) == 0
    assert "user.server.id" in home.refused(other)


def test_a_directory_without_marks_may_be_refused(home, port):
    (home.path / "sds.conf").write_text("[TEST]\nproxy = 127.0.0.1:6000\nvolume.lazy_lock = false\n")
    assert "has no mark" in home.refused(home.configure(port))
    os.setxattr(home.db, volume_lock.XATTR_ID, f"127.0.0.1:{port}".encode())
    os.setxattr(home.db, volume_lock.XATTR_NS, b"TEST")
    os.setxattr(home.db, volume_lock.XATTR_TYPE, b"rdir")
    home.start(port, home.configure(port))


def test_the_namespace_may_come_from_a_file_of_its_own(home, port):
    (home.path / "own.conf").write_text("[OWN]\nserver.pool.max_threads = 17\n")
    conf = home.configure(port, namespace="OWN")
    assert "is unknown" in home.refused(conf)
    assert "is unknown" in home.refused("-O", "SysConfig=off", home.configure(port, "t.conf"))
    home.start(port, "-O", f"Config={home.path}/own.conf", "-O", "SysConfig=false", conf)
    pool = HttpPool()
    config = json.loads(pool.request("GET", f"http://127.0.0.1:{port}/config").data)
    pool.close()
    assert config["server.pool.max_threads"] == "17"


def test_more_addresses_and_what_is_kept_over_a_restart(home, port):
    sock, second = held_port()
    sock.close()
    conf = home.configure(port, service_id="TEST-rdir-1", workers=4, log_level="INFO", threads=1)
    process, status = home.start(second, "-O", f"Bind=127.0.0.1:{second}", conf)
    assert status == {"opened_db_count": 0, "service_id": "TEST-rdir-1"}
    pool = HttpPool()
    body = json.dumps({"container_id": "a", "content_id": "b", "chunk_id": "c", "mtime": 5}).encode()
    for number in (port, second):
        url = f"http://127.0.0.1:{number}/v1/rdir/push?vol=v{number}&create=1"
        assert pool.request("POST", url, body=body).status == 204
    pool.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process, status = home.start(port, home.configure(port))
    assert status == {"opened_db_count": 2}
    pool = HttpPool()
    answer = pool.request("POST", f"http://127.0.0.1:{port}/v1/rdir/fetch?vol=v{second}")
    assert json.loads(answer.data) == [["a|b|c", {"mtime": 5}]]
    assert "x-oio-req-id" not in answer.headers
    pool.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_volumes_never_use_up_the_files_that_connections_need(home, port):
    (home.path / "sds.conf").write_text("[TEST]\nproxy = 127.0.0.1:6000\nrdir.fd_reserve = 190\n")

    def few_files():
        # The lower limit is the one of the shell, the service may raise it.
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 250))

    process, _ = home.start(port, home.configure(port), preexec_fn=few_files)
    for round_ in range(2):
        statuses = []
        for number in range(25):
            # A new connection each time.
            pool = HttpPool()
            answer = pool.request("POST", f"http://127.0.0.1:{port}/v1/rdir/create?vol=v{number}")
            pool.close()
            statuses.append(answer.status)
        assert statuses == [201] * 20 + [503] * 5, round_
        assert len(os.listdir(home.db)) == 20
        assert b"20 databases" in answer.data
        process.terminate()
        assert process.wait(20) == 0
        process, status = home.start(port, home.configure(port), preexec_fn=few_files)
        assert status["opened_db_count"] == 20


def test_a_reserve_of_files_that_leaves_none_for_a_database(home, port):
    (home.path / "sds.conf").write_text("[TEST]\nproxy = 127.0.0.1:6000\nrdir.fd_reserve = 2000000000\n")
    assert "rdir.fd_reserve" in home.refused(home.configure(port))
