# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Checks and statistics of another package: one that is really built, installed and found by the agent."""

import socket
import subprocess
import sys

import pytest
from conscience_processes import Registry
from support import eventually

SETUP = """
from setuptools import setup
setup(
    name="acme-watch", version="1.2", py_modules=["acme_watch"],
    entry_points={
        "oio.conscience.checker": ["greeting = acme_watch:GreetingChecker"],
        "oio.conscience.stats": ["weather = acme_watch:WeatherCollector"],
    },
)
"""
MODULE = '''
import socket

from oio.conscience.checkers import Checker
from oio.conscience.stats import Collector


class GreetingChecker(Checker):
    """Wants a word as soon as it connects."""

    def configure(self):
        self.word = self.conf["word"].encode()

    def _check(self):
        with socket.create_connection((self.host, self.port), self.timeout) as sock:
            return sock.recv(64).startswith(self.word)


class WeatherCollector(Collector):
    """Always the same."""

    def get_stats(self):
        return {"stat.cpu": 42, "tag.sky": self.conf["sky"], "dropped": 1}
'''


@pytest.fixture
def installed(tmp_path):
    """A directory where pip installed the package."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "setup.py").write_text(SETUP)
    (source / "acme_watch.py").write_text(MODULE)
    options = ["--no-index", "--no-build-isolation", "--no-deps", "--target", str(target), str(source)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path)
    yield registry
    registry.stop()


def greet(sock, words):
    """Answer one connection."""
    peer, _ = sock.accept()
    with peer:
        peer.sendall(words)


def test_checks_and_statistics_of_another_package(installed, registry):
    (conscience,) = registry.start_consciences(1)
    proxy = registry.start_proxy(conscience)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        port = server.getsockname()[1]
        description = {
            "host": "127.0.0.1", "port": port, "type": "echo",
            # The second check waits for its word until the score of the first was seen.
            "checks": [{"type": "greeting", "word": "hello", "timeout": 60}],
            "stats": [{"type": "weather", "sky": "clear"}],
        }  # fmt: skip
        bad = {**description, "port": proxy.port, "checks": [{"type": "greeting"}]}
        registry.start_agent(proxy, {"one": description, "bad": bad}, path=[installed])
        addr = f"127.0.0.1:{port}"
        greet(server, b"hello\n")
        eventually(lambda: addr in conscience.view(), what="the registration")
        score, tags = conscience.view()[addr]
        assert (score, tags["tag.sky"], tags["tag.up"], "dropped" in tags) == (42, "clear", True, False)
        greet(server, b"go away\n")
        eventually(lambda: conscience.view()[addr][0] == 0, what="the fall")
        assert set(conscience.view()) == {addr}, "a service whose check lacks an option is left out"


def test_without_the_package_the_service_is_left_out(registry):
    (conscience,) = registry.start_consciences(1)
    proxy = registry.start_proxy(conscience)
    where = {"host": "127.0.0.1", "type": "echo", "stats": []}
    agent = registry.start_agent(
        proxy,
        {
            "strange": {**where, "port": conscience.port, "checks": [{"type": "greeting", "word": "x"}]},
            "usual": {**where, "port": proxy.port, "checks": [{"type": "tcp"}]},
        },
    )
    eventually(lambda: f"127.0.0.1:{proxy.port}" in conscience.view(), what="the other service")
    assert f"127.0.0.1:{conscience.port}" not in conscience.view()
    assert "no 'greeting' in oio.conscience.checker" in agent.log
