# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A service whose connection to ZooKeeper breaks again and again leaves its elections to others."""

import socket
import threading

import pytest
from support import eventually
from zookeeper_servers import ZooKeeperProcess

from oio.meta.replication.candidacy import Candidacy
from oio.meta.replication.zookeeper import Ensemble

KEY = "0B1C" + "E" * 60
SESSION_S = 60.0


class Relay:
    """Passes connections on to an address, and breaks them when told to."""

    def __init__(self, target):
        self._target = target
        self._pairs = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.addr = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            host, _, port = self._target.rpartition(":")
            far = socket.create_connection((host, int(port)))
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pour, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pour(source, sink):
        try:
            while piece := source.recv(65536):
                sink.sendall(piece)
        except OSError:
            return

    def cut(self):
        """Break what is connected now."""
        while self._pairs:
            for sock in self._pairs.pop():
                sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = ZooKeeperProcess(tmp_path_factory.mktemp("zookeeper") / "server")
    yield made
    made.stop()


@pytest.fixture
def relay(server):
    made = Relay(server.addr)
    yield made
    made.close()


def test_elections_are_left_after_too_many_reconnections(server, relay):
    shaky = Ensemble(relay.addr, SESSION_S, reconnections_max=3, window_s=3600.0)
    steady = Ensemble(server.addr, SESSION_S)
    members = {}
    try:
        for name, ensemble in (("shaky", shaky), ("steady", steady)):
            ensemble.start()
            members[name] = Candidacy(ensemble, "NS", "meta2", KEY, name)
            members[name].join()
            assert members[name].wait_for(lambda view: view.status == "member", 20.0)
        steady_view = members["steady"]

        def order():
            return [name for _, name in steady_view.view.members]

        def lose_connection():
            losses = shaky._losses
            relay.cut()
            eventually(lambda: shaky._losses > losses and shaky.connected, what="the connection comes back")

        session = shaky.session
        for _ in range(3):
            lose_connection()
            assert shaky.session == session and order() == ["shaky", "steady"]
        relay.cut()
        eventually(lambda: order() == ["steady", "shaky"], what="the other one leads")
        assert members["shaky"].wait_for(lambda view: view.status == "member", 20.0)
        assert shaky.session != session
        session = shaky.session
        # It starts anew.
        lose_connection()
        assert shaky.session == session
    finally:
        shaky.stop()
        steady.stop()


def test_only_reconnections_within_the_window_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("oio.meta.replication.zookeeper.time.monotonic", lambda: now[0])
    ensemble = Ensemble("127.0.0.1:1", reconnections_max=2, window_s=30.0)
    told = []
    for moment in (0.0, 10.0, 31.0, 41.0, 60.0, 200.0):
        now[0] = moment
        told.append(ensemble._comes_back_too_often())
    assert told == [False, False, False, False, True, False]
    for always in (Ensemble("127.0.0.1:1"), Ensemble("127.0.0.1:1", reconnections_max=0)):
        assert not any(always._comes_back_too_often() for _ in range(100))
