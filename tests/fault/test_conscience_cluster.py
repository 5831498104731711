# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A whole cluster with two consciences, one of which dies and loses its file while objects are written."""

import logging
import os
import shutil
import signal
import time

import pytest
from support import ACCOUNT, eventually, start_cluster

from oio import ObjectStorageApi
from oio.conscience.checkers import make_checker
from oio.conscience.client import ConscienceClient
from oio.conscience.plugins import AgentContext
from oio.conscience.stats import make_collector

BEANSTALKD = shutil.which("beanstalkd")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    home = tmp_path_factory.mktemp("pair")
    sandbox = start_cluster(
        home, f"PAIR{os.getpid()}", conscience=2, rawx=3, rdir=2, beanstalkd=1 if BEANSTALKD else 0,
        proxy_workers=2, durability="relaxed",
    )  # fmt: skip
    yield sandbox
    sandbox.destroy()


@pytest.fixture
def client(pair):
    return ConscienceClient({"namespace": pair.namespace}, endpoint=pair.proxy)


def scored(client, *types):
    """``{address: score}`` of the services of some types."""
    return {one["addr"]: one["score"] for kind in types for one in client.all_services(kind)}


def test_every_service_has_a_score(pair, client):
    types = ["account", "meta0", "meta1", "meta2", "rawx", "rdir", *(["beanstalkd"] if BEANSTALKD else ["redis"])]
    running = {service.addr for service in pair.services() if service.type in types}

    def all_scored():
        known = scored(client, *types)
        return running <= known.keys() and all(known[addr] > 0 for addr in running)

    eventually(all_scored, what="scores of every service")
    (rdir, *_) = client.all_services("rdir", full=True)
    assert rdir["tags"]["stat.opened_db_count"] >= 0 and "tag.vol" in rdir["tags"]


def test_every_check_and_statistic_against_the_real_services(pair):
    context = AgentContext(pair.namespace, pair.proxy, {})

    def look(kind, service, make, **more):
        conf = {"type": kind, "host": service.host, "port": service.port, **more}
        return make(context, conf, logging.getLogger("test"))

    def check(kind, service, **more):
        checker = look(kind, service, make_checker, **more)
        return checker.check() and checker.check()

    def stats(kind, service, **more):
        collector = look(kind, service, make_collector, **more)
        collector.get_stats()
        return collector.get_stats()

    try:
        for service in pair.services("meta0", "meta1", "meta2"):
            assert check("asn1", service) and check("tcp", service)
            gauges = stats("meta", service)
            assert any(name.startswith("stat.") for name in gauges), gauges
        rawx, proxy = pair.services("rawx")[0], pair.services("proxy")[0]
        assert check("http", rawx, uri="/info") and not check("http", rawx, uri="/nothing")
        assert stats("rawx", rawx).keys() >= {"stat.total_reqpersec", "stat.total_avreqtime", "tag.service_id"}
        assert any(name.startswith("stat.") for name in stats("oioproxy", proxy))
        for service in pair.services("rdir", "account"):
            assert check("tcp", service)
            assert any(name.startswith("stat.") for name in stats("http", service, path="/status", parser="json"))
        assert stats("volume", rawx, path=rawx.volume)["tag.vol"] == rawx.volume
        if BEANSTALKD:
            (queue,) = pair.services("beanstalkd")
            assert check("tcp", queue)
            assert stats("beanstalkd", queue).keys() == {
                "stat.tubes", "stat.jobs_buried", "stat.jobs_delayed", "stat.jobs_ready", "stat.jobs_reserved",
                "stat.jobs_urgent",
            }  # fmt: skip
    finally:
        context.close()


def test_the_reverse_directory_of_a_volume_is_found(pair, client):
    client.lb.create_pool("__rawx_rdir", [(1, "__any_slot"), (1, "rdir")], force=True)
    rdirs = {f"{pair.namespace}|rdir|{one['id']}" for one in client.all_services("rdir")}
    for rawx in client.all_services("rawx"):
        known = [f"{pair.namespace}|rawx|{rawx['id']}"]
        for avoid in sorted(rdirs):
            (found,) = client.poll("__rawx_rdir", known=known, avoid=[avoid])
            assert found["id"] in rdirs - {avoid}


def test_a_conscience_dies_and_comes_back_with_nothing(pair, client):
    api = ObjectStorageApi(pair.namespace, endpoint=pair.proxy)
    first = pair.services("conscience")[0]
    rawx = client.all_services("rawx")
    locked = rawx[0]
    client.lock_score(client.get_service_definition("rawx", locked["addr"], score=17))
    eventually(lambda: scored(client, "rawx")[locked["addr"]] == 17, what="the lock")
    container = f"c{time.time_ns()}"
    try:
        pair.kill(first.name, signal.SIGKILL)
        shutil.rmtree(first.volume)
        os.mkdir(first.volume)
        begin = time.monotonic()
        written = 0
        while time.monotonic() - begin < 4:  # the supervisor starts it again meanwhile
            api.object_create(ACCOUNT, container, obj_name=f"o{written}", data=b"x", policy="THREECOPIES")
            written += 1
            assert scored(client, "rawx")[locked["addr"]] == 17
        assert written > 10
        eventually(lambda: first.name in pair.pids(), what="the conscience to be back")
        assert scored(client, "rawx").keys() == {one["addr"] for one in rawx}
    finally:
        client.unlock_score(client.get_service_definition("rawx", locked["addr"]))
    eventually(lambda: scored(client, "rawx")[locked["addr"]] != 17, what="the end of the lock")
    for number in range(written):
        assert b"".join(api.object_fetch(ACCOUNT, container, f"o{number}")[1]) == b"x"
