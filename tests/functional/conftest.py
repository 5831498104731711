# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Containers seen in plain HTTP, for the tests that talk to the proxy without the client library."""

import pytest
from proxy_http import RawContainer, RawProxy, fresh_name
from support import ACCOUNT


@pytest.fixture(scope="module")
def raw_proxy(cluster):
    """The proxy of the cluster."""
    proxy = RawProxy(cluster.proxy, cluster.namespace)
    yield proxy
    proxy.pool.close()


@pytest.fixture
def make_box(raw_proxy, request):
    """Makes containers that do not exist yet."""
    return lambda suffix="": RawContainer(raw_proxy, ACCOUNT, fresh_name(request.node.name + suffix))


@pytest.fixture
def box(make_box):
    """A new container."""
    box = make_box()
    assert box.post("container/create").status == 201
    return box


@pytest.fixture
def hands(server):
    """A session of the test's own, with the ZooKeeper of its module."""
    client = server.client()
    yield client
    client.stop()
    client.close()
