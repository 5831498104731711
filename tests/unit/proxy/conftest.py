# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the proxy."""

import pytest
from proxy_cluster import VARIABLES, Cluster


@pytest.fixture(scope="module")
def shared_cluster():
    cluster = Cluster()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(shared_cluster):
    """The proxy of the module, its script put back as it was at first."""
    answers, services = dict(shared_cluster.meta.answers), {**shared_cluster.conscience.services}
    shared_cluster.meta.calls.clear()
    shared_cluster.meta.headers.clear()
    shared_cluster.conscience.pushed.clear()
    yield shared_cluster
    shared_cluster.meta.answers = answers
    shared_cluster.conscience.failure = None
    shared_cluster.conscience.services = services
    shared_cluster.conscience.generation += 1
    shared_cluster.process.variables.reset(VARIABLES)
    shared_cluster.app.resolver.csm0.clear()
    shared_cluster.app.resolver.links.clear()
    shared_cluster.app.policies.clear()
    shared_cluster.app.resolver.down = {}
    shared_cluster.app.resolver.doubted = {}
    shared_cluster.process.feed.extra_pools.clear()
    shared_cluster.reload()


@pytest.fixture
def make_cluster():
    """Build proxies with their own variables."""
    made = []

    def make(**variables):
        made.append(Cluster(**variables))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()

