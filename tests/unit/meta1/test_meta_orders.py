# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What operators order a meta service to do (contract: "forward")."""

import os
import signal

import pytest

from oio.common.variables import Variables
from oio.http.client import HttpPool
from oio.http.server import Server, ServerConfig
from oio.meta.server import MetaApplication


@pytest.fixture
def order():
    """Sends an order; gives the status and the body."""
    config = ServerConfig(linger_s=0.001, access_log=None)
    server = Server(MetaApplication("meta1", "NS", {}, Variables()), [("127.0.0.1", 0)], config)
    server.start()
    pool = HttpPool()

    def send(method, path):
        response = pool.request(method, f"http://127.0.0.1:{server.addresses[0][1]}{path}")
        return response.status, bytes(response.data)

    yield send
    pool.close()
    server.stop(0.2)


def test_orders(order):
    assert order("POST", "/v1/lean_glib") == (204, b"")
    assert order("POST", "/v1/lean_sqlx") == (204, b"")
    assert order("POST", "/v1/balance_masters?max=3&inactivity=0") == (200, b"0")
    for path in ("kill", "lean_glib", "lean_sqlx", "balance_masters"):
        assert order("GET", f"/v1/{path}")[0] == 500


def test_a_service_that_is_told_to_end_gets_the_signal_of_its_supervisor(order, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    assert order("POST", "/v1/kill") == (204, b"")
    # The answer leaves before the signal is sent: the next exchange is served after it.
    order("POST", "/v1/lean_glib")
    assert killed == [(os.getpid(), signal.SIGTERM)]
