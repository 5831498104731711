# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Events in whole local clusters: through either kind of queue, which may be killed meanwhile."""

import json
import os
import shutil

import pytest
from support import ACCOUNT, eventually, start_cluster

from oio import ObjectStorageApi
from oio.common.exceptions import OioException
from oio.event.source import open_source
from oio.rdir.client import RdirClient
from oio.sandbox.event_conf import queue_urls

OBJECTS = 6
COPIES = 3
needs_beanstalkd = pytest.mark.skipif(shutil.which("beanstalkd") is None, reason="beanstalkd is not installed")


@pytest.fixture(scope="module", params=["redis", pytest.param("beanstalkd", marks=needs_beanstalkd)])
def queued(request, tmp_path_factory):
    """A cluster whose events go through one kind of queue, and are kept for tests."""
    fields = {"beanstalkd": 2} if request.param == "beanstalkd" else {}
    sandbox = start_cluster(
        tmp_path_factory.mktemp(request.param), f"Q{os.getpid()}{request.param[0].upper()}", rawx=3, rdir=2,
        preserve_events=True, **fields,
    )  # fmt: skip
    yield sandbox
    sandbox.destroy()


def indexed_chunks(sandbox):
    rdir = RdirClient({"namespace": sandbox.namespace}, endpoint=sandbox.proxy)
    return sum(rdir.status(one.service_id)["chunk"]["total"] for one in sandbox.services("rawx"))


def counted_objects(api):
    """What the account tells; nothing while it waits for its Redis."""
    try:
        return api.account_show(ACCOUNT)["objects"]
    except OioException:
        return None


def test_events_are_handled_and_kept_whatever_is_killed(queued):
    api = ObjectStorageApi(queued.namespace, endpoint=queued.proxy)
    for number in range(OBJECTS):
        api.object_create(ACCOUNT, "box", obj_name=f"o{number}", data=b"some bytes", policy="THREECOPIES")
        if number == OBJECTS // 2:
            for service in queued.services("redis", "beanstalkd", "event-agent"):
                queued.kill(service.name)
    queued.wait_ready()
    eventually(lambda: counted_objects(api) == OBJECTS, 60, "the account counts the objects")
    eventually(lambda: indexed_chunks(queued) == OBJECTS * COPIES, 60, "the chunks are indexed")
    kinds = set()

    def all_kept():
        # One that failed while something was down comes again a while later.
        with open_source(queue_urls(queued.layout)[0], "oio-preserved") as source:
            while job := source.reserve(timeout_s=0.5):
                kinds.add(json.loads(job.body)["event"])
                source.delete(job)
        return {"storage.container.new", "storage.content.new", "storage.chunk.new", "account.services"} <= kinds

    eventually(all_kept, 60, kinds)
    for number in range(OBJECTS):
        api.object_delete(ACCOUNT, "box", f"o{number}")
    eventually(lambda: counted_objects(api) == 0, 60, "the account counts no object")
    eventually(lambda: indexed_chunks(queued) == 0, 60, "no chunk is indexed")


def test_each_volume_has_an_index_and_keeps_it(queued):
    from oio.rdir.dispatcher import RdirDispatcher

    def assigned():
        dispatcher = RdirDispatcher({"namespace": queued.namespace}, endpoint=queued.proxy)
        return {
            one["id"]: one["rdir"]["addr"]
            for kind in ("rawx", "meta2") for one in dispatcher.get_assignments(kind)[0]
        }  # fmt: skip

    before = assigned()
    assert set(before) == {one.id for one in queued.services("rawx", "meta2")}
    assert set(before.values()) == {one.addr for one in queued.services("rdir")}
    queued.restart("@rdir", "@meta2")
    assert assigned() == before
