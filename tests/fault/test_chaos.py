# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Random kills during a mixed workload: what was acknowledged is there, what was refused is not.

Afterwards containers, accounts, reverse directory and chunk files agree: no event was lost, in either queue.

``OIO_CHAOS_SEED`` and ``OIO_CHAOS_KILLS`` choose another run (``make chaos``).
"""

import os
import shutil

import pytest
from chaos import Chaos
from support import chosen_seed, start_cluster

from oio import ObjectStorageApi

KILLS = int(os.environ.get("OIO_CHAOS_KILLS", "12"))


@pytest.fixture(params=["redis", "beanstalkd"])
def cluster(request, tmp_path):
    """A cluster of its own: others leave damage behind."""
    if request.param == "beanstalkd" and not shutil.which("beanstalkd"):
        pytest.skip("beanstalkd is not installed")
    queues = {"beanstalkd": 2} if request.param == "beanstalkd" else {}
    sandbox = start_cluster(tmp_path, f"CHAOS{os.getpid()}", rawx=6, chunk_size=2**20, **queues)
    yield sandbox
    sandbox.destroy()


def test_random_kills_lose_nothing_that_was_acknowledged(cluster):
    seed = chosen_seed()
    print(f"OIO_CHAOS_SEED={seed} OIO_CHAOS_KILLS={KILLS}")
    api = ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy)
    chaos = Chaos(cluster, "chaos", seed)
    chaos.run(KILLS)
    print(f"killed: {' '.join(chaos.kills)}")
    chaos.verify(api)
    chaos.verify_agreement()
