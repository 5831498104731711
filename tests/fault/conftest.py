# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A cluster that the fault tests break, and a client of it."""

import os
import time

import pytest
from processes import Meta2Process, RawxProcess
from support import ACCOUNT, eventually, start_cluster

from oio.common.exceptions import Forbidden


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

    def created():
        # A service that the former test killed may be seen as down after it came back.
        try:
            return fault_api.container_create(ACCOUNT, name) or True
        except Forbidden:
            return False

    eventually(created, what="a meta2 to place a container")
    return name


@pytest.fixture
def start_rawx(tmp_path):
    """Starts chunk servers; all are stopped at the end."""
    yield from _starter(RawxProcess, tmp_path)


@pytest.fixture
def start_meta2(tmp_path):
    """Starts container servers; all are stopped at the end."""
    yield from _starter(Meta2Process, tmp_path)


def _starter(kind, tmp_path):
    processes = []

    def start(**options):
        processes.append(kind(tmp_path, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.stop()
