# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A cluster that the fault tests break, and a client of it."""

import os
import time

import pytest
from support import ACCOUNT, start_cluster


@pytest.fixture(scope="session")
def broken(tmp_path_factory):
    """A cluster that tests break; each test puts it back in order."""
    home = tmp_path_factory.mktemp("broken")
    sandbox = start_cluster(home, f"FAULT{os.getpid()}", chunk_size=2**20)
    yield sandbox
    sandbox.destroy()


@pytest.fixture
def fault_api(broken):
    """A client of the cluster that tests break."""
    from oio import ObjectStorageApi

    return ObjectStorageApi(broken.namespace, endpoint=broken.proxy)


@pytest.fixture
def box(fault_api, request):
    """A container of the test's own."""
    name = f"{request.node.name[:60]}-{time.time_ns()}"
    fault_api.container_create(ACCOUNT, name)
    return name
