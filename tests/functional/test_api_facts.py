# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What programs rely on: shapes of what is returned, exceptions with their codes, rules of versions and states."""

import random
import re
import types
from contextlib import contextmanager
from hashlib import md5

import pytest
from support import ACCOUNT, CHUNK_SIZE, eventually

from oio import ObjectStorageApi
from oio.common import exceptions as exc
from oio.common.utils import cid_from_name

SEGMENT = 2**20
CHUNK_KEYS = {"url", "real_url", "pos", "hash", "size", "score"}


def read(api, container, name, **kwargs):
    return b"".join(api.object_fetch(ACCOUNT, container, name, **kwargs)[1])


@contextmanager
def fails(kind, http_status=None, status=None):
    """As ``pytest.raises``, for this very class and with the codes of the answer."""
    with pytest.raises(kind) as told:
        yield told
    assert type(told.value) is kind
    assert http_status is None or (told.value.http_status, told.value.status) == (http_status, status)


# --- shapes ---


@pytest.mark.parametrize(("policy", "count", "keys"), [("THREECOPIES", 3, set()), ("EC", 9, {"num"})])
def test_what_creating_returns(api, container, policy, count, keys):
    chunks, size, checksum, meta = api.object_create_ext(
        ACCOUNT, container, data=b"hello", obj_name="o", policy=policy, properties={"k": "v"}
    )
    assert (len(chunks), size, checksum) == (count, 5, md5(b"hello").hexdigest())
    assert all(set(chunk) == CHUNK_KEYS | keys and chunk["size"] == 5 for chunk in chunks)
    assert sorted(chunk["pos"] for chunk in chunks) == (
        ["0"] * 3 if policy == "THREECOPIES" else [f"0.{number}" for number in range(9)]
    )
    cid = cid_from_name(ACCOUNT, container)
    told = {
        "etag": checksum, "name": "o", "content_path": "o", "container_id": cid, "ns": api.namespace,
        "oio_version": "4.2", "hash_method": "md5", "mime_type": None, "policy": policy,
    }  # fmt: skip
    assert told.items() <= meta.items()
    assert type(meta["version"]) is str and type(meta["chunk_size"]) is int and meta["properties"]["k"] == "v"
    names = meta["full_path"].split("/")
    assert [names[0], names[2:]] == [ACCOUNT, ["o", meta["version"], meta["id"]]]


def test_metadata_are_texts_everywhere(api, container):
    api.object_create(ACCOUNT, container, data=b"hello", obj_name="o", properties={"k": "v"})
    shown = api.object_get_properties(ACCOUNT, container, "o")
    located, chunks = api.object_locate(ACCOUNT, container, "o")
    fetched, stream = api.object_fetch(ACCOUNT, container, "o")
    assert isinstance(stream, types.GeneratorType) and stream.close() is None
    assert set(located) == set(shown) and set(fetched) == set(located) | {"ns", "container_id"}
    assert all(type(value) is str for key, value in shown.items() if key not in ("properties", "chunk_size"))
    assert shown["length"] == shown["size"] == "5" and shown["deleted"] == "False"
    assert shown["hash"] == md5(b"hello").hexdigest().upper() and shown["hash_method"] == "md5"
    assert shown["mime_type"] == "application/octet-stream" and re.fullmatch("[0-9]{10}", shown["ctime"])
    assert re.fullmatch("[0-9]{16}", shown["version"]) and shown["properties"] == {"k": "v"}
    assert all(set(chunk) == CHUNK_KEYS for chunk in chunks)
    assert {(type(c["size"]), type(c["score"]), type(c["pos"])) for c in chunks} == {(int, int, str)}
    bare, stream = api.object_fetch(ACCOUNT, container, "o", properties=False)
    assert bare["properties"] == {} and b"".join(stream) == b"hello"
    assert api.object_locate(ACCOUNT, container, None, content=shown["id"])[0]["name"] == "o"


def test_ids_of_containers_stand_for_their_names(api, container):
    api.object_create(ACCOUNT, container, data=b"hello", obj_name="o")
    cid = cid_from_name(ACCOUNT, container)
    for form in (cid, cid.lower(), cid + ".1"):
        metadata, stream = api.object_fetch(None, None, "o", cid=form)
        assert b"".join(stream) == b"hello" and metadata["container_id"] == cid
        created = api.object_create_ext(None, None, data=b"by id", obj_name="by-id", cid=form)[3]
        assert created["container_id"] == cid
        assert created["full_path"].startswith(f"{ACCOUNT}/test_ids_of_containers")
    assert read(api, container, "by-id") == b"by id"
    assert api.resolve_cid(cid) == (ACCOUNT, container)


def test_missing_things_have_no_code_but_two_arguments(api, container):
    absent = container + "-absent"
    with fails(exc.NoSuchObject) as told:
        api.object_fetch(ACCOUNT, container, "absent")
    assert told.value.args[0] == "Object 'absent' does not exist." and len(told.value.args) == 2
    assert not hasattr(told.value, "status") and not hasattr(told.value, "http_status")
    with fails(exc.NoSuchContainer) as told:
        api.object_get_properties(ACCOUNT, absent, "o")
    assert told.value.args[0] == f"Container '{absent}' does not exist."
    with fails(exc.NoSuchAccount) as told:
        api.account_show("absent")
    assert told.value.args[0] == "Account 'absent' does not exist."
    with fails(exc.Forbidden, 403, 406):
        api.container_touch(ACCOUNT, absent)
    with fails(exc.NotFound, 404, 420):
        api.object_touch(ACCOUNT, container, "absent")
    assert api.object_head(ACCOUNT, absent, "o", trust_level=2) is False
    assert api.object_delete_many(ACCOUNT, absent, ["a", "b"]) == [("a", False), ("b", False)]


def test_measures(cluster, container):
    perfdata = {}
    api = ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy, perfdata=perfdata)
    chunks, _size, _hash = api.object_create(ACCOUNT, container, data=b"x" * 100, obj_name="o", policy="EC")
    assert {"overall", "resolve", "meta2"} <= set(perfdata["proxy"]) and perfdata["data_size"] == 100
    rawx = perfdata["rawx"]
    for kind in ("connect", "upload", "upload_finish"):
        assert {f"{kind}.{chunk['url']}" for chunk in chunks} <= set(rawx)
    for kind in ("connect", "upload"):
        assert {f"{kind}.{figure}" for figure in ("AVG", "SD", "RSD")} <= set(rawx)
    assert {"overall", "ec"} <= set(rawx)
    perfdata.clear()
    _meta, stream = api.object_fetch(ACCOUNT, container, "o")
    assert set(perfdata) == {"proxy"}
    assert b"".join(stream) == b"x" * 100
    assert {"ttfb", "ttlb", "data_size", "rawx"} <= set(perfdata) and perfdata["data_size"] == 100
    asked = {key.removeprefix("connect.") for key in perfdata["rawx"] if key.startswith("connect.http")}
    assert len(asked) >= 6 and asked <= {chunk["url"] for chunk in chunks}


# --- data ---


@pytest.mark.parametrize("policy", ["SINGLE", "THREECOPIES", "EC"])
@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE, 2 * CHUNK_SIZE, 2 * CHUNK_SIZE + 1, 6 * CHUNK_SIZE])
def test_ranges_at_every_border(api, container, policy, size):
    data = random.Random(size).randbytes(size)
    api.object_create(ACCOUNT, container, data=data, obj_name="o", policy=policy)
    borders = [0, 1, SEGMENT - 1, SEGMENT, 2 * SEGMENT, size - 1, size, size + 1, 10**15]
    pairs = [(start, end) for start in borders for end in borders if 0 <= start <= end]
    for start, end in random.Random(1).sample(pairs, 8):
        assert read(api, container, "o", ranges=[(start, end)]) == data[start : end + 1], (start, end)
    for count in (0, 1, size, size + 1, 10**15):
        assert read(api, container, "o", ranges=[(None, count)]) == (data[-count:] if count else b"")
        assert read(api, container, "o", ranges=[(count, None)]) == data[count:]
    several = [(5, 9), (0, 3), (size, size + 5), (None, 4), (SEGMENT - 1, SEGMENT), (0, 0)]
    expected = data[5:10] + data[0:4] + data[-4:] + data[SEGMENT - 1 : SEGMENT + 1] + data[0:1]
    assert read(api, container, "o", ranges=several) == expected


def test_appending(api, container):
    more = {"mime_type": "text/plain", "properties": {"k": "v"}}
    api.object_create(ACCOUNT, container, data=b"hello", obj_name="o", **more)
    before = api.object_get_properties(ACCOUNT, container, "o")
    _chunks, size, checksum = api.object_create(ACCOUNT, container, data=b" world", obj_name="o", append=True)
    assert (size, checksum) == (6, md5(b" world").hexdigest())
    after = api.object_get_properties(ACCOUNT, container, "o")
    assert (after["length"], after["hash"]) == ("11", "")
    for key in ("id", "version", "mime_type", "policy", "properties", "ctime"):
        assert after[key] == before[key]
    assert read(api, container, "o", ranges=[(3, 7), (10, 20), (0, 0)]) == b"lo wodh"
    api.object_create(ACCOUNT, container, data=b"n", obj_name="new", append=True)
    assert read(api, container, "new") == b"n"


@pytest.mark.parametrize("policy", ["SINGLE", "THREECOPIES", "EC21"])
def test_appended_chunks_tell_the_object_that_they_are_part_of(api, container, policy):
    data = bytes(range(256)) * (3 * CHUNK_SIZE // 256)
    for _ in range(3):
        api.object_create(ACCOUNT, container, data=data, obj_name="o", append=True, policy=policy)
    meta, chunks = api.object_locate(ACCOUNT, container, "o")
    assert len(chunks) >= 9
    for chunk in chunks:
        told = api.blob_client.chunk_head(chunk["real_url"])
        assert (told["content_id"], told["content_version"]) == (meta["id"], meta["version"])
    assert read(api, container, "o") == data * 3


# --- versions ---


@pytest.fixture
def versioned(api, container):
    """(container, versions): three versions of ``o``, oldest first."""
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    made = [
        int(api.object_create_ext(ACCOUNT, container, data=data, obj_name="o")[3]["version"])
        for data in (b"1", b"22", b"333")
    ]
    return container, made


def versions(api, container, **kwargs):
    listing = api.object_list(ACCOUNT, container, versions=True, **kwargs)
    return [item["version"] for item in listing["objects"]]


def test_a_delete_marker(api, versioned):
    container, made = versioned
    assert api.object_delete(ACCOUNT, container, "o") is True
    marker, *rest = api.object_list(ACCOUNT, container, versions=True)["objects"]
    assert [marker["version"], *(item["version"] for item in rest)] == [made[2] + 1, *made[::-1]]
    assert [item["is_latest"] for item in (marker, *rest)] == [True, False, False, False]
    assert marker["deleted"] is True and marker["mime_type"] == "application/x-deleted;swift_versions_deleted=1"
    assert [marker[key] for key in ("policy", "chunk_method", "hash", "size")] == [None] * 4
    assert api.object_list(ACCOUNT, container)["objects"] == []
    assert [item["name"] for item in api.object_list(ACCOUNT, container, deleted=True)["objects"]] == ["o"]
    for call in (api.object_locate, api.object_fetch):
        with fails(exc.NoSuchObject):
            call(ACCOUNT, container, "o")
    assert api.object_get_properties(ACCOUNT, container, "o")["deleted"] == "True"
    assert api.object_head(ACCOUNT, container, "o") is True
    assert api.object_head(ACCOUNT, container, "o", trust_level=2) is False
    assert read(api, container, "o", version=made[0]) == b"1"
    assert read(api, container, "o", version=str(made[1])) == b"22"
    system = api.container_get_properties(ACCOUNT, container)["system"]
    assert (system["sys.m2.objects"], system["sys.m2.usage"]) == ("3", "6")
    assert api.object_delete(ACCOUNT, container, "o") is True
    assert versions(api, container) == made[::-1]


def test_one_version_is_deleted(api, versioned):
    container, made = versioned
    assert api.object_delete(ACCOUNT, container, "o", version=made[1]) is True
    assert versions(api, container) == [made[2], made[0]]
    with fails(exc.NoSuchObject):
        api.object_get_properties(ACCOUNT, container, "o", version=made[1])


def test_versions_that_are_given(api, versioned):
    container, made = versioned
    with fails(exc.Conflict, 409, 421):
        api.object_create(ACCOUNT, container, data=b"z", obj_name="o", version=made[2])
    with fails(exc.Conflict):
        api.object_create(ACCOUNT, container, data=b"z", obj_name="o", version=made[0])
    api.object_create(ACCOUNT, container, data=b"z", obj_name="o", version=made[0] + 1)
    assert versions(api, container) == [made[2], made[1], made[0] + 1, made[0]]


def test_without_versions(api, container):
    version = api.object_create_ext(ACCOUNT, container, data=b"1", obj_name="o")[3]["version"]
    with fails(exc.Conflict, 409, 424):
        api.object_create(ACCOUNT, container, data=b"2", obj_name="o", version=int(version) - 1)
    content_id = api.object_get_properties(ACCOUNT, container, "o")["id"]
    with fails(exc.Conflict):
        api.object_create(ACCOUNT, container, data=b"2", obj_name="other", content_id=content_id)
    assert read(api, container, "o") == b"1"
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "0"})
    with fails(exc.BadRequest):
        api.object_delete(ACCOUNT, container, "o", version=version)


def test_exceeding_versions_are_trimmed(api, container):
    system = {"sys.m2.policy.version": "2", "sys.m2.policy.version.delete_exceeding": "1"}
    api.container_set_properties(ACCOUNT, container, system=system)
    for size in range(4):
        api.object_create(ACCOUNT, container, data=b"x" * size, obj_name="o")
    assert [o["size"] for o in api.object_list(ACCOUNT, container, versions=True)["objects"]] == [3, 2]


def test_headers_that_change_versioning(api, container):
    for header, stored in (("x-oio-simulate-versioning", None), ("x-oio-force-versioning", "7")):
        name = header
        api.object_create(ACCOUNT, container, data=b"1", obj_name=name)
        value = stored or "1"
        api.object_create(ACCOUNT, container, data=b"2", obj_name=name, headers={header: value})
        assert len(versions(api, container, prefix=name)) == 2
        system = api.container_get_properties(ACCOUNT, container)["system"]
        assert system.get("sys.m2.policy.version") == stored


# --- states ---


def test_a_frozen_container_is_read_only(api, container):
    api.object_create(ACCOUNT, container, data=b"x", obj_name="o")
    api.container_set_properties(ACCOUNT, container, system={"sys.status": "4294967295"})
    for call, args in (
        (api.object_create, ("o2",)),
        (api.object_delete, ("o",)),
        (api.object_set_properties, ("o", {"k": "v"})),
    ):
        with fails(exc.ServiceBusy, 503, 436):
            if call == api.object_create:
                call(ACCOUNT, container, data=b"y", obj_name=args[0])
            else:
                call(ACCOUNT, container, *args)
    assert read(api, container, "o") == b"x"
    api.container_set_properties(ACCOUNT, container, system={"sys.status": "0"})
    assert api.object_delete(ACCOUNT, container, "o") is True


def test_a_disabled_container_answers_nothing(api, container):
    api.object_create(ACCOUNT, container, data=b"x", obj_name="o")
    api.container_set_properties(ACCOUNT, container, system={"sys.status": "4294967294"})
    for call, args in ((api.object_list, ()), (api.object_get_properties, ("o",)), (api.object_fetch, ("o",))):
        with pytest.raises(exc.ServiceBusy, match="disabled") as told:
            call(ACCOUNT, container, *args)
        assert (told.value.http_status, told.value.status) == (503, 436)
    assert api.container_get_properties(ACCOUNT, container)["system"]["sys.status"] == "4294967294"
    api.container_set_properties(ACCOUNT, container, system={"sys.status": "0"})
    assert read(api, container, "o") == b"x"


# --- accounts ---


def test_the_life_of_an_account(api, container):
    account = "acct-" + cid_from_name("x", container)[:16]
    assert api.account_create(account) is True
    assert api.account_create(account) is False
    assert account in api.account_list()
    api.account_set_properties(account, {"k": "v", "l": "w"})
    shown = api.account_show(account)
    assert shown["id"] == account and shown["metadata"] == {"k": "v", "l": "w"}
    assert type(shown["ctime"]) is str and float(shown["ctime"])
    for counter in ("bytes", "objects", "containers", "buckets", "damaged_objects", "missing_chunks"):
        assert shown[counter] == 0
    described = api.account_get_properties(account)
    assert described["properties"] == {"k": "v", "l": "w"} and "metadata" not in described
    assert api.account_del_properties(account, {"k": None}.keys()) is None
    assert api.account_show(account)["metadata"] == {"l": "w"}
    for name in ("Upper", "bucket", "bucket%2Fpart", "bucket+segments"):
        api.container_create(account, name)
    eventually(lambda: len(api.container_list(account)) == 4, what="all containers are listed")
    assert [entry[0] for entry in api.container_list(account, s3_buckets_only=True)] == ["bucket"]
    assert api.container_list(account, delimiter="%", prefix="b")[1] == ["bucket%", 0, 0, 1, 0]
    assert {type(entry[4]) for entry in api.container_list(account)} == {float}
    with fails(exc.Conflict, 409, None):
        api.account_delete(account)


def test_objects_take_the_policy_of_their_container(api, container):
    for policy in ("TWOCOPIES", "EC21", "SINGLE"):
        api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.storage": policy})
        *_, metadata = api.object_create_ext(ACCOUNT, container, obj_name="o", data=b"x")
        assert metadata["policy"] == policy


def test_the_policy_of_a_container_made_on_the_way_counts_from_its_second_object(api, container):
    wanted = {"system": {"sys.m2.policy.storage": "TWOCOPIES"}}
    name = container + "-auto"
    api.object_create(ACCOUNT, name, obj_name="first", data=b"x", container_properties=wanted)
    *_, metadata = api.object_create_ext(ACCOUNT, name, obj_name="second", data=b"x")
    assert metadata["policy"] == "TWOCOPIES"
