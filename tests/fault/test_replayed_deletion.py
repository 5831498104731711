# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The deletion of chunks whose ids live again: an object that changes its policy, and changes it back."""

import json
import os

import pytest
from faults import chunk_path, read, stopped
from support import ACCOUNT, eventually, start_cluster

from oio import ObjectStorageApi
from oio.common.exceptions import OioException
from oio.consistency.main import check_namespace
from oio.event.queue import open_queue
from oio.event.source import open_source
from oio.http.client import HttpPool
from oio.sandbox.event_conf import queue_urls

DATA = b"some bytes" * 1000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three chunk servers: three copies are everywhere, so the same servers get the same ids again."""
    sandbox = start_cluster(
        tmp_path_factory.mktemp("changes"), f"AGAIN{os.getpid()}", rawx=3,
        config={"core.lb.generate_random_chunk_ids": "false"},
    )  # fmt: skip
    yield sandbox
    sandbox.destroy()


@pytest.fixture
def api(cluster):
    return ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy)


@pytest.fixture
def box(request):
    return request.node.name


def chunks_of(api, box):
    return api.object_locate(ACCOUNT, box, "o")[1]


def urls(chunks):
    return {chunk["url"] for chunk in chunks}


def files(cluster, chunks):
    return [path for path in (chunk_path(cluster, chunk) for chunk in chunks) if path.exists()]


def deletions(url):
    """Events of deleted chunks that wait; they go on waiting."""
    found = []
    with open_source(url) as source:
        while job := source.reserve(0.5):
            if json.loads(job.body)["event"] == "storage.content.deleted":
                found.append(bytes(job.body))
    return found


def spared(cluster):
    """How many chunks were newer than their deletion."""
    pool = HttpPool()
    try:
        text = pool.request("GET", f"http://{cluster.services('event-agent')[0].addr}/metrics").data.decode()
    finally:
        pool.close()
    lines = [line for line in text.splitlines() if 'counter="newer"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_a_deletion_that_comes_again_spares_the_chunk_that_has_its_id_now(cluster, api, box):
    url = queue_urls(cluster.layout)[0]
    api.object_create(ACCOUNT, box, obj_name="o", data=DATA, policy="THREECOPIES")
    first = chunks_of(api, box)
    with stopped(cluster, f"{cluster.namespace}-event-agent-1"):
        api.object_change_policy(ACCOUNT, box, "o", "SINGLE")
        event = eventually(lambda: deletions(url), what="the deletion of three chunks")[0]
    cluster.wait_ready()
    eventually(lambda: not files(cluster, first), what="deletion of chunks")
    single = chunks_of(api, box)
    api.object_change_policy(ACCOUNT, box, "o", "THREECOPIES")
    again = chunks_of(api, box)
    assert urls(again) == urls(first)
    eventually(lambda: not files(cluster, single), what="deletion of the chunk meanwhile")
    assert spared(cluster) == 0
    with open_queue(url) as queue:
        queue.put(event)
    eventually(lambda: spared(cluster) == 3, what="a deletion that spares three chunks")
    assert len(files(cluster, again)) == 3
    assert read(api, box, "o") == DATA


def test_a_change_back_before_the_cleaning_harms_nothing(cluster, api, box):
    """The former chunks still have the ids that the new ones need."""
    api.object_create(ACCOUNT, box, obj_name="o", data=DATA, policy="THREECOPIES")
    first = chunks_of(api, box)
    with stopped(cluster, f"{cluster.namespace}-event-agent-1"):
        api.object_change_policy(ACCOUNT, box, "o", "SINGLE")
        with pytest.raises(OioException):
            api.object_change_policy(ACCOUNT, box, "o", "THREECOPIES")
        assert read(api, box, "o") == DATA
    cluster.wait_ready()
    eventually(lambda: not files(cluster, first), what="deletion of chunks")
    api.object_change_policy(ACCOUNT, box, "o", "THREECOPIES")
    assert urls(chunks_of(api, box)) == urls(first)
    assert read(api, box, "o") == DATA
    eventually(lambda: check_namespace(cluster.namespace, cluster.proxy, passes=1).findings == [], 30, "agreement")
