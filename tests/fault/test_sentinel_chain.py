# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Accounts and events behind Sentinels: the master of Redis dies again and again under load, and nothing is lost.

``OIO_CHAOS_SEED`` and ``OIO_SENTINEL_KILLS`` choose another run.
"""

import os
import random

import pytest
from chaos import Chaos
from redis_servers import SET, ReplicatedRedis
from support import eventually, start_cluster

from oio import ObjectStorageApi

KILLS = int(os.environ.get("OIO_SENTINEL_KILLS", "4"))


@pytest.fixture
def servers(tmp_path):
    """Two servers, three Sentinels. A master that nobody follows takes no write: it may be the master no more."""
    servers = ReplicatedRedis(tmp_path / "redis", "min-replicas-to-write 1", sentinels=3)
    yield servers
    servers.stop()


@pytest.fixture
def cluster(servers, tmp_path):
    sentinels = ",".join(one.addr for one in servers.sentinels)
    sandbox = start_cluster(
        tmp_path, f"SENT{os.getpid()}", rawx=3, chunk_size=2**20, redis=0, redis_host=f"{sentinels}/{SET}"
    )
    yield sandbox
    sandbox.destroy()


def failover(servers, rng):
    """The master dies, the replica takes its place, the former master follows it. One Sentinel may miss it all."""
    master, replica = servers.master, servers.replica
    absent = rng.choice([None, *servers.sentinels])
    if absent is not None:
        absent.kill()
    master.kill()
    eventually(lambda: servers.masters() == {replica.port}, 60, "another master")
    if absent is not None:
        absent.start()
    master.start()
    eventually(servers.in_step, 60, "a replica in step")
    return f"master:{master.port}" + (f"+sentinel:{absent.port}" if absent else "")


def restart(servers, rng):
    """A server or a Sentinel dies and comes back at once."""
    victim = rng.choice([*servers.servers, *servers.sentinels])
    victim.kill()
    victim.start()
    eventually(servers.in_step, 60, "a replica in step")
    return f"redis:{victim.port}"




def test_counters_agree_after_changes_of_the_master(servers, cluster):
    seed = os.environ.get("OIO_CHAOS_SEED") or str(random.randrange(10**6))
    print(f"OIO_CHAOS_SEED={seed} OIO_SENTINEL_KILLS={KILLS}")
    api = ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy)
    strikes = [lambda rng: failover(servers, rng), lambda rng: restart(servers, rng)]
    chaos = Chaos(cluster, "sentinels", seed, actors=1, victims=("account", "event-agent"), strikes=strikes)
    chaos.run(KILLS)
    print(f"killed: {' '.join(chaos.kills)}")
    chaos.verify(api)
    chaos.verify_agreement()
