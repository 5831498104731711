# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Finds a ZooKeeper server that local clusters and tests can start.

>>> find_zookeeper()   # doctest: +SKIP
['/usr/bin/java', …, '-cp', '/usr/share/java/zookeeper.jar', 'org.apache.zookeeper.server.quorum.QuorumPeerMain']

The argument to append is the path of a configuration file (:func:`standalone_configuration`). A machine needs a
Java runtime and ZooKeeper 3.5 or later: on Debian ``apt-get install default-jre-headless libzookeeper-java``;
elsewhere unpack the distribution of ZooKeeper, and name it in the environment variable ``ZOOKEEPER_HOME``.
"""

from __future__ import annotations

import glob
import os
import shutil

_PACKAGED = "/usr/share/java/zookeeper.jar"
#: What prints the messages of the packaged one, which says nothing without.
_PRINTER = "slf4j-simple.jar"
#: Of servers that are alone as well, which it is told by the configuration: the other one does not purge.
_MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
#: A small server that starts fast: half a second, 80 MB.
_JAVA_OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dzookeeper.jmx.log4j.disable=true",
    # Troubles, and who leads whom.
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.org.apache.zookeeper.server.quorum.QuorumPeer=info",
)


def find_zookeeper(heap: str = "512m") -> list[str] | None:
    """Command line of a server, without its configuration; None when there is none on this machine.

    :param heap: largest heap of the Java machine.
    """
    java = _find_java()
    classes = _find_classes()
    if java is None or classes is None:
        return None
    return [java, f"-Xmx{heap}", *_JAVA_OPTIONS, "-cp", classes, _MAIN]


def standalone_configuration(data_directory: str, port: int, tick_ms: int = 2000, fsync: bool = True) -> str:
    """Configuration file of a server that is alone, on loopback.

    :param tick_ms: sessions last 2 to 20 times as long.
    :param fsync: does an answer mean that the change is on disk?
    """
    lines = [
        f"dataDir={data_directory}",
        f"clientPort={port}",
        "clientPortAddress=127.0.0.1",
        f"tickTime={tick_ms}",
        "maxClientCnxns=0",
        "admin.enableServer=false",
        "4lw.commands.whitelist=ruok,srvr,mntr,cons,wchs",
        f"forceSync={'yes' if fsync else 'no'}",
        "autopurge.purgeInterval=1",
        "autopurge.snapRetainCount=3",
    ]
    return "\n".join(lines) + "\n"


def _find_java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    if home and os.access(os.path.join(home, "bin", "java"), os.X_OK):
        return os.path.join(home, "bin", "java")
    return shutil.which("java")


def _find_classes() -> str | None:
    """Class path. The manifest of a packaged jar names what it needs; a distribution has all in one directory."""
    if os.path.isfile(_PACKAGED):
        printer = os.path.join(os.path.dirname(_PACKAGED), _PRINTER)
        return f"{_PACKAGED}:{printer}" if os.path.isfile(printer) else _PACKAGED
    homes = [home for home in (os.environ.get("ZOOKEEPER_HOME"), "/opt/zookeeper") if home]
    for home in homes:
        libraries = os.path.join(home, "lib")
        if glob.glob(os.path.join(glob.escape(libraries), "zookeeper-[0-9]*.jar")):
            return f"{libraries}/*"
    return None
