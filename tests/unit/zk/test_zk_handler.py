# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""How long one attempt to connect to ZooKeeper may take."""

import socket
import time

import pytest

from oio.zk import handler as module
from oio.zk.handler import ImpatientHandler


@pytest.fixture
def quiet_socket():
    one, other = socket.socketpair()
    yield one
    one.close()
    other.close()


def waited(handler, sock, timeout_s):
    started = time.monotonic()
    assert handler.select([sock], [], [], timeout_s) == ([], [], [])
    return time.monotonic() - started


def test_greetings_wait_a_little_longer_each_time(quiet_socket, monkeypatch):
    monkeypatch.setattr(module, "FIRST_ATTEMPT_S", 0.05)
    handler = ImpatientHandler(0.2)
    assert all(waited(handler, quiet_socket, 60) >= least for least in (0.05, 0.1, 0.2, 0.2))
    assert 0.2 <= waited(handler, quiet_socket, 60) < 5, "as long as the session at most"
    handler.reset()
    assert 0.05 <= waited(handler, quiet_socket, 60) < 5


def test_a_session_waits_as_long_as_it_wants(quiet_socket, monkeypatch):
    monkeypatch.setattr(module, "FIRST_ATTEMPT_S", 0.01)
    handler = ImpatientHandler(60.0)
    handler.connected = True
    assert waited(handler, quiet_socket, 0.2) >= 0.2
    handler.connected = False
    assert waited(handler, quiet_socket, 0.005) < 5


def test_connections_are_given_as_long(monkeypatch):
    asked = []

    def create_connection(address, timeout=None, **kwargs):
        asked.append(timeout)
        raise TimeoutError("nobody")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    handler = ImpatientHandler(10.0)
    for _ in range(4):
        with pytest.raises(TimeoutError):
            handler.create_connection(("192.0.2.1", 2181), timeout=10.0)
    assert [round(timeout) for timeout in asked] == [3, 6, 10, 10]
