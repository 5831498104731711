# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Finds a ZooKeeper server that local clusters and tests can start.

>>> find_zookeeper()   # doctest: +SKIP
['/usr/bin/java', …, '-cp', '/usr/share/java/zookeeper.jar', 'org.apache.zookeeper.server.ZooKeeperServerMain']

The last argument to append is the path of a configuration file (:func:`standalone_configuration`). A machine needs a
Java runtime and ZooKeeper 3.5 or later: on Debian ``apt-get install default-jre-headless libzookeeper-java``;
elsewhere unpack the distribution of ZooKeeper, and name it in the environment variable ``ZOOKEEPER_HOME``.
"""

from __future__ import annotations

import glob
import os
import shutil

#: Where ZooKeeper is looked for, after ``ZOOKEEPER_HOME``: files of packages, then unpacked distributions.
_PLACES = ("/usr/share/java/zookeeper.jar", "/opt/zookeeper/lib/zookeeper-*.jar", "/usr/share/zookeeper/*.jar")
_MAIN = "org.apache.zookeeper.server.ZooKeeperServerMain"
#: A small server that starts fast: half a second, 80 MB.
_JAVA_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dzookeeper.jmx.log4j.disable=true")


def find_zookeeper(heap: str = "512m") -> list[str] | None:
    """Command line of a standalone server, without its configuration; None when there is none on this machine.

    :param heap: largest heap of the Java machine.
    """
    java = _find_java()
    classes = _find_classes()
    if java is None or classes is None:
        return None
    options = [f"-Xmx{heap}" if option.startswith("-Xmx") else option for option in _JAVA_OPTIONS]
    return [java, *options, "-cp", classes, _MAIN]


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
    home = os.environ.get("ZOOKEEPER_HOME")
    places = [os.path.join(home, "lib", "zookeeper-*.jar"), *_PLACES] if home else list(_PLACES)
    for place in places:
        found = [path for path in sorted(glob.glob(place)) if not path.endswith("-jute.jar")]
        if found:
            return found[-1] if os.path.dirname(found[-1]) == "/usr/share/java" else f"{os.path.dirname(found[-1])}/*"
    return None
