# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Objects on the cluster, seen as their chunks: ``pytest_plugins = ["content_fixtures"]``."""

import json

import pytest
from content_harness import Disk, some_bytes
from support import ACCOUNT, CHUNK_SIZE

from oio.common.utils import cid_from_name
from oio.content.factory import ContentFactory
from oio.http.client import HttpPool

# Several metachunks with copies; several segments, the last one short, with fragments.
SIZE = 2 * CHUNK_SIZE + 12345


@pytest.fixture
def factory(cluster, api):
    conf = {"namespace": cluster.namespace}
    return ContentFactory(conf, container_client=api.container, blob_client=api.blob_client)


@pytest.fixture
def cid(container):
    return cid_from_name(ACCOUNT, container)


@pytest.fixture
def store(api, container, factory, cid):
    """Stores an object; gives its data and its content."""

    def make(policy, size=SIZE, name="some object"):
        data = some_bytes(size)
        api.object_create(ACCOUNT, container, obj_name=name, data=data, policy=policy)
        return data, factory.get_by_path_and_version(cid, name, None)

    return make


@pytest.fixture
def random_ids():
    """Each chunk has an id of its own (the default)."""


@pytest.fixture
def predictable_ids(cluster):
    """The copies of a position share their chunk id, which follows from the name of the object."""
    pool = HttpPool()

    def set_random(value):
        body = json.dumps({"core.lb.generate_random_chunk_ids": value})
        assert pool.request("POST", f"http://{cluster.proxy}/v3.0/config", body=body).status in (200, 204)

    set_random("false")
    yield
    set_random("true")
    pool.close()


@pytest.fixture
def disk(cluster):
    return Disk(cluster)
