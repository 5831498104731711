# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A local cluster on free ports, in a temporary directory, started once per run by the tests that ask for it."""

import os
import signal
import time

import hypothesis
import pytest
from support import ACCOUNT, CHUNK_SIZE, start_cluster

# Whoever started the tests behind a shell made them ignore Ctrl-C, and with them all the programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in each run, so that a change of the code is what makes a test fail or pass;
# HYPOTHESIS_PROFILE=default looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The default cluster with small chunks; tests must leave it as they found it."""
    # A name with which a careless command line, configuration file or URL breaks.
    home = tmp_path_factory.mktemp("d'été, 100% [a b]")
    sandbox = start_cluster(home, f"TEST{os.getpid()}", chunk_size=CHUNK_SIZE, ecd=1)
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
