# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A reverse directory served within the test, and requests to it."""

import json

import pytest

from oio.http.client import HttpPool
from oio.http.server import Server, ServerConfig
from oio.rdir.client import BatchingRdirClient, RdirClient
from oio.rdir.server import RdirService, refuse
from oio.rdir.store import Store


class Rdir:
    """A running service: `ask` it, or talk to it through clients that know its address."""

    def __init__(self, service, server):
        self.service = service
        self.store = service.store
        self.address = "{}:{}".format(*server.addresses[0])
        self.pool = HttpPool()

    def ask(self, method, target, body=None):
        """Send a request; the body is bytes, or something to make JSON of."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self.pool.request(method, f"http://{self.address}{target}", body=body)

    def client(self, kind=RdirClient):
        """A client that asks no directory."""
        client = kind({"namespace": "TEST"}, endpoint="127.0.0.1:1")
        client._get_rdir_addr = lambda _volume, **_kwargs: self.address
        return client

    def batching_client(self):
        """A client that groups what concurrent callers send."""
        return self.client(BatchingRdirClient)


@pytest.fixture
def rdir(tmp_path):
    """A new reverse directory without databases."""
    store = Store(str(tmp_path), sync=False)
    service = RdirService(store, service_id="TEST-rdir-1")
    server = Server(service, [("127.0.0.1", 0)], ServerConfig(echo_reqid=False, refusal=refuse))
    server.start()
    running = Rdir(service, server)
    yield running
    running.pool.close()
    server.stop(1.0)
    store.close()
