# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What a cluster keeps in Redis about its accounts and buckets, and how it is repaired."""

import itertools
import json
import threading
import time

import pytest
import redis
from support import eventually

from oio import ObjectStorageApi
from oio.account.client import AccountClient
from oio.common import exceptions as exc

_serial = itertools.count()
COUNTERS = ("objects", "bytes")


@pytest.fixture(scope="module")
def store(cluster):
    """The Redis of the cluster."""
    service = cluster.services("redis")[0]
    client = redis.Redis(service.host, service.port, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def account(api):
    """An account of the test's own."""
    name = f"account-cluster-{time.time_ns()}-{next(_serial)}"
    api.account_create(name)
    return name


def create(api, account, container, *sizes, bucket=None):
    system = {"sys.m2.bucket.name": bucket} if bucket else None
    api.container_create(account, container, system=system)
    for number, size in enumerate(sizes):
        api.object_create(account, container, data=b"x" * size, obj_name=f"o{number}")


def counters(shown):
    return tuple(shown[counter] for counter in COUNTERS)


def bucket_is(api, bucket, expected):
    try:
        return counters(api.bucket_show(bucket)) == expected
    except exc.NotFound:
        return False


def test_a_bucket_counts_its_containers(api, account, store):
    bucket = f"bucket-{time.time_ns()}"
    assert api.bucket_update(bucket, {"replication_enabled": "true"})["replication_enabled"] is True
    create(api, account, bucket, 10, 20, bucket=bucket)
    create(api, account, f"{bucket}%2Ffolder", 5, bucket=bucket)
    create(api, account, f"{bucket}+segments", 100, 200, bucket=bucket)
    create(api, account, "elsewhere", 1000)
    eventually(lambda: bucket_is(api, bucket, (3, 335)), what="counters of the bucket")
    eventually(lambda: counters(api.account_show(account)) == (6, 1335), what="counters of the account")
    assert api.account_show(account)["buckets"] == 1
    shown = api.bucket_show(bucket)
    assert (shown["account"], shown["replication_enabled"]) == (account, True)
    assert api.account.container_show(account, f"{bucket}+segments")["replication_enabled"] is True
    listed = api.bucket_list(account)
    assert [(one["name"], counters(one)) for one in listed["listing"]] == [(bucket, (3, 335))]
    assert listed["truncated"] is False
    # Keys that tools read.
    assert store.zrange(f"buckets:{account}", 0, -1) == [bucket]
    assert store.zscore("buckets:", bucket) == 0
    assert store.hget(f"container:{account}:{bucket}+segments", "bucket") == bucket
    # Tampered, and repaired.
    store.hset(f"bucket:{bucket}", mapping={"objects": 77, "bytes": -1})
    assert api.bucket_refresh(bucket) is None
    assert bucket_is(api, bucket, (3, 335))
    assert not store.exists(f"bucketlock:{bucket}")
    # The deletion of the root ends the bucket.
    for name in ("o0", "o1"):
        api.object_delete(account, bucket, name)
    eventually(lambda: bucket_is(api, bucket, (1, 305)), what="deletions")
    api.container_delete(account, bucket)
    eventually(lambda: api.bucket_list(account)["listing"] == [], what="no bucket")
    with pytest.raises(exc.NotFound):
        api.bucket_show(bucket)
    with pytest.raises(exc.NotFound):
        api.bucket_refresh(bucket)


def test_a_deleted_container_is_remembered_for_a_minute(api, account, store):
    create(api, account, "c", 7)
    key = f"container:{account}:c"
    eventually(lambda: store.hget(key, "bytes") == "7")
    assert store.ttl(key) == -1
    api.container_flush(account, "c")
    eventually(lambda: counters(api.account_show(account)) == (0, 0))
    api.container_delete(account, "c")
    eventually(lambda: store.ttl(key) >= 1, what="tombstone")
    assert api.container_list(account) == []
    assert api.account_show(account)["containers"] == 0
    create(api, account, "c", 9)
    eventually(lambda: store.ttl(key) == -1, what="created again")
    eventually(lambda: counters(api.account_show(account)) == (1, 9))
    with pytest.raises(exc.Conflict):
        api.account_delete(account)


def test_a_fast_flush_empties_counters(api, account):
    create(api, account, "c", *range(1, 20))
    eventually(lambda: counters(api.account_show(account)) == (19, 190))
    api.container_flush(account, "c", fast=True)
    eventually(lambda: counters(api.account_show(account)) == (0, 0))
    eventually(lambda: api.container_list(account)[0][:3] == ["c", 0, 0])


@pytest.mark.parametrize("everything", [False, True])
def test_a_refresh_repairs_what_was_tampered_with(cluster, api, account, store, everything):
    create(api, account, "a", 1, 2)
    create(api, account, "b", 3)
    eventually(lambda: counters(api.account_show(account)) == (3, 6))
    store.hset(f"account:{account}", mapping={"objects": 1000, "bytes": 0})
    store.hset(f"container:{account}:b", "bytes", 44)
    # An account whose last container is a lie, and one that vanishes while it is its turn.
    ghost = f"ghost-{account}"
    api.account.container_update(ghost, "nothing", {"mtime": time.time(), "objects": 4})
    api.account_refresh(None if everything else account)
    eventually(lambda: counters(api.account_show(account)) == (3, 6), what="right counters")
    if everything:
        eventually(lambda: api.account_show(ghost)["containers"] == 0, what="no ghost")
    api.account.container_update(ghost, "nothing", {"dtime": time.time()})
    api.account_delete(ghost)


def test_a_container_refresh_for_what_does_not_exist(api, account):
    api.account.container_update(account, "ghost", {"mtime": time.time(), "objects": 7})
    assert api.container_refresh(account, "ghost") is None
    assert counters(api.account_show(account)) == (0, 0)
    assert api.container_list(account) == []
    with pytest.raises(exc.NoSuchContainer):
        api.container_refresh(account, "ghost")
    with pytest.raises(exc.NoSuchContainer):
        api.container_refresh(account + "-missing", "ghost")
    # The account knows something newer: tried again, then told.
    api.account.container_update(account, "late", {"mtime": time.time() + 3600})
    with pytest.raises(exc.Conflict):
        api.container_refresh(account, "late", attempts=2)
    api.account.container_update(account, "zombie", {"mtime": time.time(), "objects": 7})
    api.account_refresh(account)
    assert [entry[:2] for entry in api.container_list(account)] == [["late", 0]]


@pytest.mark.slow
def test_the_client_finds_the_service_again(cluster, api, account):
    """The service is killed and started again by its supervisor: nothing is lost but the requests meanwhile."""
    service = cluster.services("account")[0]
    client = AccountClient({"namespace": cluster.namespace}, proxy_endpoint=cluster.proxy)
    assert client.account_show(account)["containers"] == 0
    writer = ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy)
    stop, made = threading.Event(), []

    def write():
        while not stop.is_set():
            name = f"c{len(made)}"
            create(writer, account, name, 3)
            made.append(name)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        eventually(lambda: len(made) > 3)
        pid = cluster.pids()[service.name]
        cluster.kill(service.name)
        eventually(lambda: len(made) > 6)
        cluster.wait_restarted(service.name, pid)
    finally:
        stop.set()
        thread.join()
    # The proxy is asked for an account service, once the conscience has scored it again.
    eventually(lambda: shows(client, account) == (len(made), 3 * len(made)), 60, "counters after the restart")
    assert [entry[0] for entry in api.container_list(account)] == sorted(made)


def shows(client, account):
    try:
        return counters(client.account_show(account))
    except exc.OioException:
        return None


def test_the_answers_are_those_of_the_routes(cluster, api, account):
    """Plain HTTP, as programs in other languages speak it."""
    service = cluster.services("account")[0]
    pool = api.account.pool_manager
    base = f"http://{service.addr}/v1.0/account/"
    shown = pool.request("GET", f"{base}show?id={account}&force_master=yes")
    assert shown.status == 200
    assert json.loads(shown.data)["id"] == account
    assert pool.request("GET", f"{base}list").status == 200
    assert pool.request("PUT", f"{base}container/update?id={account}", body=b"{").status == 400
