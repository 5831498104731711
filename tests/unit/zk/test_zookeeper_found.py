# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Where the ZooKeeper of local clusters and tests is looked for."""

import pytest

from oio.common import zookeeper_server


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without anything."""
    monkeypatch.setattr(zookeeper_server, "_PACKAGED", str(tmp_path / "zookeeper.jar"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("ZOOKEEPER_HOME", str(tmp_path / "a [home]"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    (tmp_path / "bin").mkdir()
    return tmp_path


def add_java(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "java").touch(mode=0o755)
    return str(directory / "java")


def test_nothing_is_found_on_a_bare_machine(machine):
    assert zookeeper_server.find_zookeeper() is None
    add_java(machine / "bin")
    assert zookeeper_server.find_zookeeper() is None


def test_the_package_is_taken(machine, monkeypatch):
    (machine / "zookeeper.jar").touch()
    assert zookeeper_server.find_zookeeper() is None, "without java"
    java = add_java(machine / "bin")
    command = zookeeper_server.find_zookeeper("64m")
    assert command[:2] == [java, "-Xmx64m"]
    main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    assert command[-3:] == ["-cp", str(machine / "zookeeper.jar"), main]
    (machine / "slf4j-simple.jar").touch()
    assert zookeeper_server.find_zookeeper()[-2] == f"{machine}/zookeeper.jar:{machine}/slf4j-simple.jar"
    monkeypatch.setenv("JAVA_HOME", str(machine / "jre"))
    assert zookeeper_server.find_zookeeper()[0] == java, "there is no java in JAVA_HOME"
    assert add_java(machine / "jre" / "bin") == zookeeper_server.find_zookeeper()[0]


def test_a_distribution_is_taken(machine):
    add_java(machine / "bin")
    libraries = machine / "a [home]" / "lib"
    libraries.mkdir(parents=True)
    (libraries / "zookeeper-jute-3.9.2.jar").touch()
    assert zookeeper_server.find_zookeeper() is None
    (libraries / "zookeeper-3.9.2.jar").touch()
    assert zookeeper_server.find_zookeeper()[-2] == f"{libraries}/*"


def test_a_configuration_is_for_loopback():
    text = zookeeper_server.standalone_configuration("/data", 2181, tick_ms=200, fsync=False)
    for line in ("dataDir=/data", "clientPort=2181", "clientPortAddress=127.0.0.1", "tickTime=200"):
        assert line in text.splitlines()
    assert "forceSync=no" in text and "forceSync=yes" in zookeeper_server.standalone_configuration("/data", 2181)
