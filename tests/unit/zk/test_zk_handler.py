# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""How long one server of ZooKeeper is waited for, and which is the next."""

import logging
import socket
import time

import pytest

from oio.zk import handler as module
from oio.zk.handler import FIRST_ATTEMPT_MIN_S, ImpatientHandler, open_client


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


def test_all_the_others_can_be_tried_in_the_last_third_of_a_session(monkeypatch):
    asked = []

    def create_connection(address, timeout=None, **kwargs):
        asked.append(timeout)
        raise TimeoutError("nobody")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    handler = ImpatientHandler(30.0, servers=5)
    for _ in range(11):
        with pytest.raises(TimeoutError):
            handler.create_connection(("192.0.2.1", 2181), timeout=30.0)
    assert [round(timeout, 1) for timeout in asked] == [2.5] * 5 + [5.0] * 5 + [10.0]
    assert ImpatientHandler(6.0, servers=9)._limit_s == FIRST_ATTEMPT_MIN_S


def test_a_question_without_answer_is_not_waited_for_longer_than_two_thirds_of_a_session():
    ours, wake = socket.socketpair(), socket.socketpair()
    handler = ImpatientHandler(0.3)
    handler.state_changed("CONNECTED")

    def ask():
        assert handler.select([], [ours[0]], [], 60.0) == ([], [ours[0]], [])

    def listen(timeout_s=60.0):
        return handler.select([ours[0], wake[0]], [], [], timeout_s)[0]

    try:
        assert listen(0.5) == [], "nothing was asked"
        ask()
        ours[1].send(b"answer")
        assert listen() == [ours[0]]
        ours[0].recv(10)
        assert listen(0.5) == [], "it was answered"
        begin = time.monotonic()
        wake[1].send(b"more to ask")
        with pytest.raises(handler.timeout_exception, match="no answer"):
            while time.monotonic() < begin + 5:
                ask()
                assert listen() == [wake[0]]
        assert 0.2 <= time.monotonic() - begin < 2
        handler.state_changed("SUSPENDED")
        handler.state_changed("CONNECTED")
        assert listen() == [wake[0]], "another server was asked nothing yet"
    finally:
        for one in (*ours, *wake):
            one.close()


def test_servers_are_tried_in_turn_from_any_of_them_on():
    addresses = {("a", 1), ("b", 2), ("c", 2181)}
    orders = set()
    for _ in range(40):
        client = open_client("a:1,b:2,c/some/root", 10.0, logging.getLogger("test"))
        assert (set(client.hosts), client.chroot) == (addresses, "/some/root")
        orders.add(tuple(client.hosts))
        assert not client.randomize_hosts, "the one that was just lost would be the next with the same right"
        client.close()
    assert len(orders) > 1
    alone = open_client("name-of-several:1", 10.0, logging.getLogger("test"))
    assert alone.randomize_hosts
    alone.close()


def test_servers_are_tried_in_their_order_when_told_to():
    for _ in range(10):
        client = open_client("b:1,a:2,c/root", 10.0, logging.getLogger("test"), shuffle=False)
        assert (client.hosts, client.chroot) == ([("b", 1), ("a", 2), ("c", 2181)], "/root")
        client.close()
