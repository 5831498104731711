# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What all the tests share: a local cluster on free ports, in a temporary directory, started once per run."""

import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ACCOUNT = "test_account"
CHUNK_SIZE = 2**20


def eventually(condition, timeout_s=20.0, what="condition"):
    """Wait until ``condition()`` gives something true, and return it."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what}: not reached within {timeout_s} s"
        time.sleep(0.05)


def start_cluster(home, namespace, **fields):
    """Start a cluster of its own, whatever else runs on the machine."""
    from oio.sandbox import Sandbox

    sandbox = Sandbox(str(home), namespace=namespace, base_port=20000, **fields)
    try:
        sandbox.start()
    except BaseException:
        sandbox.stop()
        raise
    return sandbox


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The default cluster with small chunks; tests must leave it as they found it."""
    home = tmp_path_factory.mktemp("cluster")
    sandbox = start_cluster(home, f"TEST{os.getpid()}", chunk_size=CHUNK_SIZE)
    before = {key: os.environ.get(key) for key in sandbox.environment}
    os.environ.update(sandbox.environment)
    yield sandbox
    sandbox.destroy()
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@pytest.fixture
def api(cluster):
    """A client of the cluster."""
    from oio import ObjectStorageApi

    return ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy)


@pytest.fixture
def container(api, request):
    """A container of the test's own, named after it."""
    name = f"{request.node.name[:60]}-{time.time_ns()}"
    api.container_create(ACCOUNT, name)
    return name
