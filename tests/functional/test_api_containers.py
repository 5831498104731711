# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Whole containers: flush, purge, snapshot, recount, and the repair of accounts, on a cluster."""

import itertools
import time

import pytest
from support import ACCOUNT, eventually

from oio import ObjectStorageApi
from oio.common import exceptions as exc
from oio.common.fullpath import encode_fullpath
from oio.common.utils import cid_from_name

_serial = itertools.count()


@pytest.fixture
def account(cluster, api):
    """An account of the test's own."""
    name = f"api-containers-{time.time_ns()}-{next(_serial)}"
    api.account_create(name)
    return name


def fill(api, account, container, count, **kwargs):
    for number in range(count):
        api.object_create(account, container, data=b"x" * number, obj_name=f"o{number:03}", **kwargs)


def read(api, account, container, name, **kwargs):
    return b"".join(api.object_fetch(account, container, name, **kwargs)[1])


def system_of(api, account, container):
    return api.container_get_properties(account, container)["system"]


def versions(api, account, container):
    return [
        (item["name"], item["version"], item["deleted"])
        for item in api.object_list(account, container, versions=True)["objects"]
    ]


def exists(api, chunk):
    try:
        api.blob_client.chunk_head(chunk["url"])
    except exc.NotFound:
        return False
    return True


# --- flush ---


@pytest.mark.parametrize("fast", [False, True])
def test_flush(api, container, fast):
    fill(api, ACCOUNT, container, 7)
    chunks = api.object_locate(ACCOUNT, container, "o003")[1]
    assert api.container_flush(ACCOUNT, container, fast=fast, limit=3) is None
    assert versions(api, ACCOUNT, container) == []
    system = system_of(api, ACCOUNT, container)
    assert (system["sys.m2.objects"], system["sys.m2.usage"]) == ("0", "0")
    eventually(lambda: not any(exists(api, chunk) for chunk in chunks), what="chunks are deleted")
    assert api.container_flush(ACCOUNT, container, fast=fast) is None
    api.container_delete(ACCOUNT, container)
    with pytest.raises(exc.NoSuchContainer):
        api.container_flush(ACCOUNT, container, fast=fast)


def test_fast_flush_takes_every_version(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    for name in "aab":
        api.object_create(ACCOUNT, container, data=b"x", obj_name=name)
    api.object_delete(ACCOUNT, container, "b")
    api.container_flush(ACCOUNT, container, fast=True)
    assert versions(api, ACCOUNT, container) == []


def test_flush_of_more_names_than_a_batch(api, container):
    target = api.object_create_ext(ACCOUNT, container, data=b"x", obj_name="target", policy="SINGLE")[3]
    for number in range(120):
        api.container.content_create(
            ACCOUNT, container, f"n{number}", size=1, checksum=target["etag"], version=number + 1,
            content_id=f"{number:032X}", stgpol="SINGLE", chunk_method=target["chunk_method"],
            data={"chunks": api.object_locate(ACCOUNT, container, "target")[1]},
        )  # fmt: skip
    api.container_flush(ACCOUNT, container)
    assert versions(api, ACCOUNT, container) == []


# --- purge ---


@pytest.mark.parametrize(
    ("maxvers", "policy", "left"),
    [(2, None, 2), (None, "3", 3), (None, None, 1), (0, "-1", 1), (-1, "1", 5), (9, "1", 5)],
)
def test_purge(api, container, maxvers, policy, left):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    made = [
        int(api.object_create_ext(ACCOUNT, container, data=b"1", obj_name=name)[3]["version"]) for name in "aaaaab"
    ]
    api.object_delete(ACCOUNT, container, "b")
    marker = (("b", made[5] + 1, True), ("b", made[5], False))
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": policy or ""})
    assert api.container_purge(ACCOUNT, container, maxvers=maxvers) is None
    kept = [("a", version, False) for version in made[4::-1][:left]]
    assert versions(api, ACCOUNT, container) == [*kept, *marker]


def test_purge_of_a_missing_container(api, container):
    with pytest.raises(exc.NoSuchContainer):
        api.container_purge(ACCOUNT, container + "-missing")


# --- recount ---


def test_touch_recounts_what_is_missing(api, container):
    fill(api, ACCOUNT, container, 3, policy="THREECOPIES")
    api.object_create(ACCOUNT, container, data=b"x", obj_name="drained", policy="THREECOPIES")
    api.object_drain(ACCOUNT, container, "drained")
    meta, chunks = api.object_locate(ACCOUNT, container, "o001")
    beans = api._prepare_meta2_raw_update(chunks[:2], chunks[:2], meta["id"])[0]
    api.container.container_raw_delete(ACCOUNT, container, beans)
    api.container_touch(ACCOUNT, container)
    api.container_touch(ACCOUNT, container, recompute=True)
    system = system_of(api, ACCOUNT, container)
    assert (system["sys.m2.objects.damaged"], system["sys.m2.chunks.missing"]) == ("1", "2")
    assert (system["sys.m2.objects"], system["sys.m2.usage"]) == ("4", "4")
    for bean in beans:
        api.container.container_raw_insert(bean, ACCOUNT, container)
    api.container_touch(ACCOUNT, container, recompute=True)
    system = system_of(api, ACCOUNT, container)
    assert (system["sys.m2.objects.damaged"], system["sys.m2.chunks.missing"]) == ("0", "0")
    with pytest.raises(exc.Forbidden) as caught:
        api.container_touch(ACCOUNT, container + "-missing", recompute=True)
    assert (caught.value.http_status, caught.value.status) == (403, 406)


# --- repair of accounts ---


def counters(api, account):
    shown = api.account_show(account)
    return shown["containers"], shown["objects"], shown["bytes"]


def test_repair_of_an_account(api, account):
    for name in ("a", "b"):
        api.container_create(account, name)
        fill(api, account, name, 3)
    eventually(lambda: counters(api, account) == (2, 6, 6), what="counters are known")
    api.account.container_update(account, "b", {"mtime": time.time(), "objects": 99, "bytes": 5})
    assert counters(api, account) == (2, 102, 8)
    assert api.container_refresh(account, "b") is None
    eventually(lambda: counters(api, account) == (2, 6, 6), what="container b is refreshed")
    api.account.container_update(account, "ghost", {"mtime": time.time(), "objects": 7})
    api.account.container_update(account, "a", {"mtime": time.time(), "objects": 50})
    assert api.account_refresh(account) is None
    eventually(lambda: counters(api, account) == (2, 6, 6), what="the account is refreshed, the ghost removed")
    assert api.account_flush(account) is None
    assert counters(api, account) == (0, 0, 0)
    assert [item["size"] for item in api.object_list(account, "a")["objects"]] == [0, 1, 2]
    with pytest.raises(exc.NoSuchContainer):
        api.container_refresh(account, "a")
    for name in ("a", "b"):
        api.container_touch(account, name)
    eventually(lambda: counters(api, account) == (2, 6, 6), what="the containers told their state")


def test_repair_of_unknown_accounts(api, account):
    for call in (api.account_refresh, api.account_flush):
        with pytest.raises(exc.NoSuchAccount):
            call(account + "-missing")


@pytest.mark.parametrize("properties", [{f"key-{n}": f"v{n}" for n in range(2048)}, {"large": "é" * 2**19}])
def test_properties_of_an_account_round_trip(api, account, properties):
    assert api.account_set_properties(account, properties) is None
    assert api.account_get_properties(account)["properties"] == properties
    assert api.account_del_properties(account, properties.keys()) is None
    assert api.account_get_properties(account)["properties"] == {}
    with pytest.raises(exc.NoSuchAccount):
        api.account_get_properties(account + "-missing")


def test_listing_of_an_account(api, account):
    names = ["A", "a%b", "a/1", "a/2", "b", "é"]
    for name in names:
        api.container_create(account, name)
    eventually(lambda: len(api.container_list(account)) == len(names), what="all are listed")
    listed = api.container_list(account, delimiter="/")
    assert [(entry[0], entry[3]) for entry in listed] == [("A", 0), ("a%b", 0), ("a/", 1), ("b", 0), ("é", 0)]
    assert listed[2] == ["a/", 0, 0, 1, 0]
    some = api.container_list(account, limit=2, marker="a/1", end_marker="é")
    assert [entry[0] for entry in some] == ["a/2", "b"]
    assert [entry[0] for entry in api.container_list(account, prefix="a")] == ["a%b", "a/1", "a/2"]
    with pytest.raises(exc.NoSuchAccount):
        api.container_list(account + "-missing")


# --- snapshot ---


@pytest.fixture
def source(api, container):
    """A container with several versions, policies, a marker, a drained object, properties."""
    api.container_set_properties(ACCOUNT, container, {"color": "blue"}, system={"sys.m2.policy.version": "-1"})
    given = {"policy": "THREECOPIES", "properties": {"k": "v"}}
    for data in (b"one", b"two"):
        api.object_create(ACCOUNT, container, data=data, obj_name="é/o", **given)
    api.object_create(ACCOUNT, container, data=b"ec" * 5000, obj_name="ec", policy="EC")
    api.object_create(ACCOUNT, container, data=b"", obj_name="empty")
    api.object_create(ACCOUNT, container, data=b"gone", obj_name="marked")
    api.object_delete(ACCOUNT, container, "marked")
    api.object_create(ACCOUNT, container, data=b"dry", obj_name="drained")
    api.object_drain(ACCOUNT, container, "drained")
    return container


def all_chunks(api, container):
    urls = {}
    for name, version, deleted in versions(api, ACCOUNT, container):
        if not deleted and name != "drained":
            urls[name, version] = sorted(
                chunk["url"] for chunk in api.object_locate(ACCOUNT, container, name, version=version)[1]
            )
    return urls


@pytest.mark.parametrize("batch_size", [100, 1])
def test_snapshot(api, source, batch_size):
    copy = source + "-copy"
    before = all_chunks(api, source)
    assert api.container_snapshot(ACCOUNT, source, ACCOUNT, copy, batch_size=batch_size) is None
    assert system_of(api, ACCOUNT, source)["sys.status"] == "0"
    api.object_create(ACCOUNT, source, data=b"after", obj_name="after")
    api.object_delete(ACCOUNT, source, "after")
    system = system_of(api, ACCOUNT, copy)
    assert (system["sys.account"], system["sys.user.name"]) == (ACCOUNT, copy)
    assert system["sys.name"] == cid_from_name(ACCOUNT, copy) + ".1"
    assert system["sys.status"] == "4294967295"
    assert api.container_get_properties(ACCOUNT, copy)["properties"] == {"color": "blue"}
    original = api.object_list(ACCOUNT, source, versions=True, properties=True)["objects"]
    copied = api.object_list(ACCOUNT, copy, versions=True, properties=True)["objects"]
    assert copied == [item for item in original if item["name"] != "after"]
    chunks = all_chunks(api, copy)
    assert {key: len(urls) for key, urls in chunks.items()} == {key: len(urls) for key, urls in before.items()}
    for key, urls in chunks.items():
        assert not set(urls) & set(before[key])
        assert [url.split("/")[2] for url in urls] == [url.split("/")[2] for url in before[key]]
    with pytest.raises(exc.ServiceBusy) as caught:
        api.object_create(ACCOUNT, copy, data=b"x", obj_name="x")
    assert caught.value.status == 436
    eventually(lambda: api.container_list(ACCOUNT, prefix=copy), what="the copy is listed")
    api.container_flush(ACCOUNT, source, fast=True)
    assert read(api, ACCOUNT, copy, "ec") == b"ec" * 5000
    assert read(api, ACCOUNT, copy, "é/o") == b"two"
    oldest = [version for name, version, _ in versions(api, ACCOUNT, copy) if name == "é/o"][-1]
    assert read(api, ACCOUNT, copy, "é/o", version=oldest) == b"one"
    head = api.blob_client.chunk_head(chunks["é/o", oldest][0])
    assert (head["container_id"], head["content_path"]) == (cid_from_name(ACCOUNT, copy), "é/o")
    api.container_set_properties(ACCOUNT, copy, system={"sys.status": "0"})
    api.container_flush(ACCOUNT, copy, fast=True)
    api.container_delete(ACCOUNT, copy)


def test_snapshots_that_are_refused(api, source):
    missing = source + "-missing"
    with pytest.raises(exc.NoSuchContainer):
        api.container_snapshot(ACCOUNT, missing, ACCOUNT, source + "-x")
    for target in ((ACCOUNT, source), ("", "x"), (ACCOUNT, ""), (None, "x")):
        with pytest.raises(exc.ClientException) as caught:
            api.container_snapshot(ACCOUNT, source, *target)
        assert caught.value.http_status == 400
    api.container_create(ACCOUNT, source + "-there")
    api.object_create(ACCOUNT, source + "-there", data=b"kept", obj_name="o")
    with pytest.raises(exc.ClientException):
        api.container_snapshot(ACCOUNT, source, ACCOUNT, source + "-there")
    assert read(api, ACCOUNT, source + "-there", "o") == b"kept"
    assert system_of(api, ACCOUNT, source)["sys.status"] == "0"
    api.container.container_freeze(ACCOUNT, source)
    with pytest.raises(exc.ServiceBusy):
        api.container_snapshot(ACCOUNT, source, ACCOUNT, source + "-x")
    assert system_of(api, ACCOUNT, source)["sys.status"] == "4294967295"
    api.container.container_enable(ACCOUNT, source)
    with pytest.raises(exc.NoSuchContainer):
        api.container_get_properties(ACCOUNT, source + "-x")


@pytest.mark.parametrize("step", ["_link_chunks", "container_raw_update", "container_touch"])
def test_a_snapshot_that_fails_leaves_nothing(api, source, step):
    copy = source + "-broken"
    before = all_chunks(api, source)
    owner = api if step == "_link_chunks" else api.container
    real, calls, linked = getattr(owner, step), [], []

    def fail_at_last(*args, **kwargs):
        calls.append(args)
        if step != "_link_chunks" or len(calls) == 3:
            raise exc.OioNetworkException("killed")
        links = real(*args, **kwargs)
        linked.extend(links)
        return links

    setattr(owner, step, fail_at_last)
    with pytest.raises(exc.OioNetworkException, match="killed"):
        api.container_snapshot(ACCOUNT, source, ACCOUNT, copy, batch_size=2)
    delattr(owner, step)
    assert system_of(api, ACCOUNT, source)["sys.status"] == "0"
    assert not any(exists(api, chunk) for chunk in linked)
    with pytest.raises(exc.NoSuchContainer):
        api.container_get_properties(ACCOUNT, copy)
    assert all_chunks(api, source) == before
    assert read(api, ACCOUNT, source, "ec") == b"ec" * 5000
    assert api.container_snapshot(ACCOUNT, source, ACCOUNT, copy) is None
    api.container_flush(ACCOUNT, copy, fast=True)
    api.container_delete(ACCOUNT, copy)
    assert read(api, ACCOUNT, source, "ec") == b"ec" * 5000


# --- others ---


def test_a_container_is_found_by_its_id(api, container):
    api.object_create(ACCOUNT, container, data=b"x", obj_name="o")
    cid = cid_from_name(ACCOUNT, container)
    assert api.resolve_cid(cid) == (ACCOUNT, container)
    for designation in (cid, cid.lower(), cid + ".1"):
        meta, stream = api.object_fetch(None, None, "o", cid=designation)
        assert (b"".join(stream), meta["container_id"]) == (b"x", cid)
    for bad in ("xyz", cid[:-1], cid + ".", cid + ".a"):
        with pytest.raises(exc.OioException, match="Invalid cid"):
            api.object_fetch(None, None, "o", cid=bad)


def test_the_id_of_a_container_stands_for_its_names_in_every_change(api, container):
    by_id = {"cid": cid_from_name(ACCOUNT, container)}
    api.container_set_properties(None, None, {"k": "v"}, system={"sys.m2.policy.version": "-1"}, **by_id)
    api.object_create(None, None, data=b"one", obj_name="o", policy="SINGLE", **by_id)
    api.object_create(None, None, data=b"12345", obj_name="o", policy="SINGLE", **by_id)
    api.object_change_policy(None, None, "o", "THREECOPIES", **by_id)
    api.object_truncate(None, None, "o", size=3, **by_id)
    assert read(api, ACCOUNT, container, "o") == b"123"
    head = api.blob_client.chunk_head(api.object_locate(ACCOUNT, container, "o")[1][0]["url"])
    assert head["full_path"].startswith(encode_fullpath(ACCOUNT, container, "o", 1, "id").rpartition("/1/id")[0])
    api.container_purge(None, None, maxvers=1, **by_id)
    assert len(versions(api, ACCOUNT, container)) == 1
    api.object_drain(None, None, "o", **by_id)
    api.container_touch(None, None, recompute=True, **by_id)
    api.container_flush(None, None, fast=True, **by_id)
    assert versions(api, ACCOUNT, container) == []
    api.object_create(None, None, data=b"x", obj_name="o", **by_id)
    api.container_flush(None, None, **by_id)
    assert api.object_list(ACCOUNT, container)["objects"] == []
    missing = {"cid": "00" * 32}
    for call in (api.container_flush, api.container_purge, api.container_show):
        with pytest.raises(exc.NoSuchContainer):
            call(None, None, **missing)
    with pytest.raises(exc.NoSuchContainer):
        api.object_truncate(None, None, "o", size=1, **missing)


def test_properties_of_a_container_made_on_the_way(api, container):
    made = container + "-made"
    given = {"properties": {"color": "blue"}, "system": {"sys.m2.quota": "12345"}}
    api.object_create(ACCOUNT, made, data=b"x", obj_name="o", container_properties=given)
    told = api.container_get_properties(ACCOUNT, made)
    assert told["properties"] == {"color": "blue"}
    assert told["system"]["sys.m2.quota"] == "12345"
    given["properties"]["color"] = "red"
    api.object_create(ACCOUNT, made, data=b"x", obj_name="o2", container_properties=given)
    assert api.container_get_properties(ACCOUNT, made)["properties"] == {"color": "blue"}
    api.container_flush(ACCOUNT, made)
    api.container_delete(ACCOUNT, made)


def test_creation_of_containers(api, container):
    names = [f"{container}-{number}" for number in range(3)]
    assert api.container_create(ACCOUNT, names[0]) is True
    assert api.container_create(ACCOUNT, names[0], properties={"a": "b"}) is False
    assert api.container_get_properties(ACCOUNT, names[0])["properties"] == {}
    made = api.container_create_many(ACCOUNT, names, properties={"k": "v"})
    assert made == [(names[0], False), (names[1], True), (names[2], True)]
    assert api.container_get_properties(ACCOUNT, names[1])["properties"] == {"k": "v"}
    with pytest.raises(exc.ClientException) as caught:
        api.container_create(ACCOUNT, container + "-x", system={"sys.m2.policy.storage": "UNKNOWN"})
    assert caught.value.status == 480
    with pytest.raises(exc.ClientException):
        api.container_create(ACCOUNT, "\udcff")
    for name in names:
        api.container_delete(ACCOUNT, name)
        with pytest.raises(exc.NoSuchContainer):
            api.container_show(ACCOUNT, name)
        with pytest.raises(exc.NoSuchContainer):
            api.container_delete(ACCOUNT, name)


def test_many_containers_at_once(cluster, api, container):
    names = [f"{container}-{number}" for number in range(130)]
    assert api.container_create_many(ACCOUNT, names) == [(name, True) for name in names]
    other = ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy, force_master=True)
    for name in names:
        other.container_delete(ACCOUNT, name)
