# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Real ZooKeeper servers for tests, on ports of loopback that stay theirs over restarts."""

import contextlib
import shutil
import signal
import socket
import subprocess

import pytest
from kazoo.client import KazooClient
from support import eventually, held_port

from oio.common.zookeeper_server import find_zookeeper, standalone_configuration

WITHOUT = "no ZooKeeper on this machine: it takes java and zookeeper.jar (libzookeeper-java on Debian)"


class ZooKeeperProcess:
    """A standalone ZooKeeper; can be killed, frozen, emptied and started again. Sessions last 0.5 to 60 s.

    :param tick_ms: ends of sessions are noticed so often.
    """

    def __init__(self, home, tick_ms=100, heap="512m", start=True):
        self._program = find_zookeeper(heap)
        if self._program is None:
            pytest.skip(WITHOUT)
        home.mkdir(parents=True)
        self._data = home / "data"
        # While the socket is open nobody else gets the port, but a server can listen on it.
        self._held, self.port = held_port()
        self._log = home / "log"
        self._configuration = home / "zoo.cfg"
        self._configuration.write_text(
            standalone_configuration(str(self._data), self.port, tick_ms, fsync=False)
            + "minSessionTimeout=500\nmaxSessionTimeout=60000\n"
        )
        self.process = None
        self.asked = 0
        if start:
            self.start()

    @property
    def addr(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        self._data.mkdir(exist_ok=True)
        self._starting = True
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen([*self._program, str(self._configuration)], stdout=log, stderr=log)
        eventually(self._serves, what=f"answer of ZooKeeper ({self._log})", timeout_s=60)
        self._starting = False

    def _serves(self):
        assert self.process.poll() is None, self._log.read_text()
        # It listens before it serves.
        return "Mode: standalone" in self.ask("srvr")

    def ask(self, word):
        """Answer to a word of four letters, empty when there is none."""
        answer = b""
        self.asked += 1
        with contextlib.suppress(OSError), self._connect() as sock:
            sock.sendall(word.encode())
            while piece := sock.recv(65536):
                answer += piece
        return answer.decode()

    def _connect(self):
        # A server that starts may accept a connection and forget it.
        return socket.create_connection(("127.0.0.1", self.port), 0.5 if self._starting else 10)

    def client(self):
        """A session of the test's own, to look and to break things."""
        client = KazooClient(self.addr, connection_retry={"max_tries": -1, "max_delay": 0.5})
        client.start(20)
        return client

    def figures(self):
        """What the server counts: ``zk_znode_count``, ``zk_watch_count`` …"""
        return dict(line.split("\t", 1) for line in self.ask("mntr").splitlines() if "\t" in line)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self, empty=False):
        self.kill()
        if empty:
            shutil.rmtree(self._data)
        self.start()

    def stop(self):
        self.kill()
        self._held.close()
