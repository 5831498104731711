# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A fake cluster, and the API in front of it."""

from collections.abc import Iterator

import pytest
from fake_cluster import NS, FakeCluster

from oio import ObjectStorageApi


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster(chunk_size=1024)
    yield fake
    fake.stop()


@pytest.fixture
def api(cluster: FakeCluster) -> ObjectStorageApi:
    return ObjectStorageApi(NS, endpoint=cluster.proxy.address)
