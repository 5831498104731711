# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Shallow copies, truncation, draining and change of policy, on a cluster."""

from hashlib import md5

import pytest
from support import ACCOUNT, CHUNK_SIZE, eventually

from oio.common import exceptions as exc
from oio.common.fullpath import encode_fullpath
from oio.common.utils import cid_from_name, compute_chunk_id

# Metachunks of one and two chunks.
POLICIES = ["THREECOPIES", "EC21"]
DATA = bytes(index % 251 for index in range(2 * CHUNK_SIZE + 1000))


def read(api, container, name, account=ACCOUNT, **kwargs):
    return b"".join(api.object_fetch(account, container, name, **kwargs)[1])


def chunk_urls(api, container, name, **kwargs):
    return {chunk["url"] for chunk in api.object_locate(ACCOUNT, container, name, **kwargs)[1]}


def counters(api, container):
    system = api.container_get_properties(ACCOUNT, container)["system"]
    return system["sys.m2.objects"], system["sys.m2.usage"]


# --- links ---


@pytest.mark.parametrize("policy", POLICIES)
def test_a_link_lives_apart_from_its_target(api, container, policy):
    api.object_create(
        ACCOUNT, container, data=DATA, obj_name="é/target", policy=policy, mime_type="text/x",
        properties={"k": "v"},
    )  # fmt: skip
    target, chunks = api.object_locate(ACCOUNT, container, "é/target")
    told = api.object_link(ACCOUNT, container, "é/target", ACCOUNT, container, "link")
    link, links = api.object_locate(ACCOUNT, container, "link")
    for key in ("policy", "chunk_method", "length", "hash", "mime_type", "properties"):
        assert link[key] == target[key] == told[key], key
    assert (told["id"], told["version"], told["name"]) == (link["id"], link["version"], "link")
    assert link["id"] != target["id"] and link["version"] != target["version"]
    assert told["full_path"] == encode_fullpath(ACCOUNT, container, "link", link["version"], link["id"])
    hosts = sorted(chunk["url"].split("/")[2] for chunk in chunks)
    assert sorted(chunk["url"].split("/")[2] for chunk in links) == hosts
    cid = cid_from_name(ACCOUNT, container)
    for chunk in links:
        expected = compute_chunk_id(cid, "link", link["version"], chunk["pos"], policy)
        assert chunk["url"].rpartition("/")[2] == expected
    assert counters(api, container) == ("2", str(2 * len(DATA)))
    api.object_delete(ACCOUNT, container, "é/target")
    head = api.blob_client.chunk_head(links[0]["url"])
    shown = (head["content_path"], head["content_version"], head["content_id"], head["full_path"])
    assert shown == ("link", link["version"], link["id"], told["full_path"])
    assert head["container_id"] == cid
    assert read(api, container, "link") == DATA


def test_links_across_accounts_and_onto_an_existing_name(api, container):
    other = ACCOUNT + "-2"
    api.object_create(ACCOUNT, container, data=b"new", obj_name="o")
    with pytest.raises(exc.NotFound) as caught:
        api.object_link(ACCOUNT, container, "o", other, container, "o", autocreate=False)
    assert type(caught.value) is exc.NotFound
    api.object_link(ACCOUNT, container, "o", other, container, "o")
    assert read(api, container, "o", account=other) == b"new"
    api.object_create(ACCOUNT, container, data=b"old one", obj_name="existing")
    api.object_link(ACCOUNT, container, "o", ACCOUNT, container, "existing", link_content_id="AB" * 16)
    assert read(api, container, "existing") == b"new"
    assert api.object_get_properties(ACCOUNT, container, "existing")["id"] == "AB" * 16
    assert counters(api, container) == ("2", "6")
    api.container_flush(other, container)
    api.container_delete(other, container)


def test_a_link_to_itself_is_a_new_version(api, container):
    before = api.object_create_ext(ACCOUNT, container, data=DATA, obj_name="o", properties={"a": "b"})[3]
    old_urls = chunk_urls(api, container, "o")
    told = api.object_link(
        ACCOUNT, container, "o", ACCOUNT, container, "o", properties_directive="REPLACE", metadata={"c": "d"}
    )
    meta = api.object_get_properties(ACCOUNT, container, "o")
    assert (meta["version"], meta["properties"]) == (told["version"], {"c": "d"})
    assert int(meta["version"]) > int(before["version"])
    assert read(api, container, "o") == DATA
    assert not old_urls & chunk_urls(api, container, "o")
    assert counters(api, container) == ("1", str(len(DATA)))


def test_a_link_to_a_version(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    versions = [
        api.object_create_ext(ACCOUNT, container, data=data, obj_name="o")[3] for data in (b"first", b"second")
    ]
    api.object_link(ACCOUNT, container, "o", ACCOUNT, container, "x", target_version=versions[0]["version"])
    assert read(api, container, "x") == b"first"
    api.object_link(ACCOUNT, container, None, ACCOUNT, container, "y", target_content_id=versions[0]["id"])
    assert read(api, container, "y") == b"first"
    with pytest.raises(exc.NoSuchObject):
        api.object_link(ACCOUNT, container, "o", ACCOUNT, container, "z", target_version=1)
    with pytest.raises(exc.NoSuchObject):
        api.object_link(ACCOUNT, container, "missing", ACCOUNT, container, "z")
    with pytest.raises(exc.NoSuchContainer):
        api.object_link(ACCOUNT, container + "-missing", "o", ACCOUNT, container, "z")
    assert not api.object_head(ACCOUNT, container, "z")


def test_a_link_that_cannot_be_committed_leaves_no_chunk(api, container):
    api.object_create(ACCOUNT, container, data=b"data", obj_name="o", policy="THREECOPIES")
    api.object_create(ACCOUNT, container, data=b"data", obj_name="there", content_id="CD" * 16)
    linked = []
    create = api.container.content_create

    def spy(*args, **kwargs):
        linked.extend(kwargs["data"]["chunks"])
        return create(*args, **kwargs)

    api.container.content_create = spy
    with pytest.raises(exc.Conflict):
        api.object_link(ACCOUNT, container, "o", ACCOUNT, container, "x", link_content_id="CD" * 16)
    assert len(linked) == 3
    for chunk in linked:
        with pytest.raises(exc.NotFound):
            api.blob_client.chunk_head(chunk["url"])
    assert read(api, container, "o") == b"data"
    assert all(api.blob_client.chunk_head(url) for url in chunk_urls(api, container, "o"))


def test_fastcopy_is_the_former_name_of_link(api, container):
    api.object_create(ACCOUNT, container, data=b"data", obj_name="o")
    with pytest.warns(DeprecationWarning):
        api.object_fastcopy(ACCOUNT, container, "o", ACCOUNT, container, "x")
    assert read(api, container, "x") == b"data"


# --- truncate ---


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 5, 2 * CHUNK_SIZE, len(DATA)])
def test_truncate(api, container, policy, size):
    name = f"o-{size}"
    meta = api.object_create_ext(
        ACCOUNT, container, data=DATA, obj_name=name, policy=policy, mime_type="text/x", properties={"k": "v"}
    )[3]
    api.object_truncate(ACCOUNT, container, name, size=size)
    assert read(api, container, name) == DATA[:size]
    after = api.object_get_properties(ACCOUNT, container, name)
    assert (after["length"], after["hash"], after["mime_type"]) == (str(size), "", "text/x")
    for key in ("id", "version", "policy", "properties"):
        assert after[key] == (meta[key] if key != "properties" else {"k": "v"})
    assert counters(api, container) == ("1", str(size))
    located = api.object_locate(ACCOUNT, container, name)[1]
    assert all(api.blob_client.chunk_head(chunk["url"]) for chunk in located)
    assert len(located) == 3 * len({chunk["pos"].partition(".")[0] for chunk in located})


def test_truncate_bad_sizes(api, container):
    api.object_create(ACCOUNT, container, data=b"12345", obj_name="o")
    for size in (-1, 6, None, "2"):
        with pytest.raises(exc.OioException, match="Cannot truncate"):
            api.object_truncate(ACCOUNT, container, "o", size=size)
    assert read(api, container, "o") == b"12345"
    with pytest.raises(exc.NoSuchObject):
        api.object_truncate(ACCOUNT, container, "missing", size=1)


def test_truncate_honours_the_version(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    old = api.object_create_ext(ACCOUNT, container, data=b"the old one", obj_name="o")[3]["version"]
    api.object_create(ACCOUNT, container, data=b"the new one", obj_name="o")
    api.object_truncate(ACCOUNT, container, "o", version=old, size=7)
    assert read(api, container, "o", version=old) == b"the old"
    assert read(api, container, "o") == b"the new one"


def test_append_after_truncate(api, container):
    api.object_create(ACCOUNT, container, data=b"0123456789", obj_name="o")
    api.object_truncate(ACCOUNT, container, "o", size=4)
    api.object_create(ACCOUNT, container, data=b"abc", obj_name="o", append=True)
    api.object_truncate(ACCOUNT, container, "o", size=6)
    assert read(api, container, "o") == b"0123ab"


# --- drain ---


def test_drain_keeps_all_but_the_data(api, container):
    api.object_create(ACCOUNT, container, data=b"12345", obj_name="o", properties={"k": "v"})
    before = api.object_get_properties(ACCOUNT, container, "o")
    chunks = api.object_locate(ACCOUNT, container, "o")[1]
    assert api.object_drain(ACCOUNT, container, "o") is None
    assert api.object_drain(ACCOUNT, container, "o") is None
    after = api.object_get_properties(ACCOUNT, container, "o")
    assert after["chunk_method"] == "drained"
    for key in ("length", "hash", "version", "id", "properties"):
        assert after[key] == before[key]
    for call in (
        lambda: api.object_locate(ACCOUNT, container, "o"),
        lambda: api.object_fetch(ACCOUNT, container, "o"),
        lambda: api.object_truncate(ACCOUNT, container, "o", size=1),
        lambda: api.object_create(ACCOUNT, container, data=b"x", obj_name="o", append=True),
        lambda: api.object_change_policy(ACCOUNT, container, "o", "THREECOPIES"),
        lambda: api.object_link(ACCOUNT, container, "o", ACCOUNT, container, "x"),
    ):
        with pytest.raises(exc.ClientException) as caught:
            call()
        assert (caught.value.http_status, caught.value.status) == (410, 427)
    api.object_touch(ACCOUNT, container, "o")
    api.object_set_properties(ACCOUNT, container, "o", {"k": "w"})
    eventually(lambda: not any(exists(api, chunk) for chunk in chunks), what="chunks are deleted")
    with pytest.raises(exc.NotFound) as caught:
        api.object_drain(ACCOUNT, container, "missing")
    assert type(caught.value) is exc.NotFound
    assert api.object_delete(ACCOUNT, container, "o") is True


def exists(api, chunk):
    try:
        api.blob_client.chunk_head(chunk["url"])
    except exc.NotFound:
        return False
    return True


# --- change of policy ---


@pytest.mark.parametrize(("old", "new"), [("THREECOPIES", "EC"), ("EC", "SINGLE"), ("SINGLE", "THREECOPIES")])
@pytest.mark.parametrize("size", [0, 11, CHUNK_SIZE + 11])
def test_change_of_policy(api, container, old, new, size):
    data = DATA[:size]
    api.object_create(
        ACCOUNT, container, data=data, obj_name="o", policy=old, mime_type="text/x", properties={"k": "v"}
    )
    before, chunks = api.object_locate(ACCOUNT, container, "o")
    count = counters(api, container)
    made, length, checksum, meta = api.object_change_policy(ACCOUNT, container, "o", new)
    assert (length, checksum, meta["policy"]) == (size, md5(data).hexdigest(), new)
    after = api.object_get_properties(ACCOUNT, container, "o")
    for key in ("name", "version", "ctime", "mtime", "hash", "length", "mime_type", "properties"):
        assert after[key] == before[key], key
    assert after["policy"] == new and after["id"] == meta["id"] != before["id"]
    assert chunk_urls(api, container, "o") == {chunk["url"] for chunk in made}
    assert read(api, container, "o") == data
    assert counters(api, container) == count
    eventually(lambda: not any(exists(api, chunk) for chunk in chunks), what="former chunks are deleted")
    with pytest.raises(exc.Conflict):
        api.object_change_policy(ACCOUNT, container, "o", new)


def test_change_of_policy_of_one_version(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    old = api.object_create_ext(ACCOUNT, container, data=b"old", obj_name="o", policy="SINGLE")[3]["version"]
    new = api.object_create_ext(ACCOUNT, container, data=b"new", obj_name="o", policy="SINGLE")[3]["version"]
    api.object_change_policy(ACCOUNT, container, "o", "THREECOPIES", version=old)
    listed = api.object_list(ACCOUNT, container, versions=True)["objects"]
    policies = {item["version"]: item["policy"] for item in listed}
    assert policies == {int(old): "THREECOPIES", int(new): "SINGLE"}
    assert (read(api, container, "o", version=old), read(api, container, "o")) == (b"old", b"new")


def test_change_of_policy_of_an_appended_object(api, container):
    api.object_create(ACCOUNT, container, data=b"one", obj_name="o", policy="SINGLE")
    api.object_create(ACCOUNT, container, data=b"two", obj_name="o", append=True)
    api.object_change_policy(ACCOUNT, container, "o", "THREECOPIES")
    meta = api.object_get_properties(ACCOUNT, container, "o")
    assert (meta["policy"], meta["hash"], meta["length"]) == ("THREECOPIES", "", "6")
    assert read(api, container, "o") == b"onetwo"


def test_changes_of_policy_that_are_refused(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    version = api.object_create_ext(ACCOUNT, container, data=b"data", obj_name="o", policy="SINGLE")[3]["version"]
    with pytest.raises(exc.NoSuchObject):
        api.object_change_policy(ACCOUNT, container, "missing", "EC")
    with pytest.raises(exc.NoSuchContainer):
        api.object_change_policy(ACCOUNT, container + "-missing", "o", "EC")
    with pytest.raises(exc.ClientException) as caught:
        api.object_change_policy(ACCOUNT, container, "o", "UNKNOWN")
    assert caught.value.status == 480
    low = {"obj_name": "o", "change_policy": True, "policy": "THREECOPIES"}
    for kwargs in (
        {"data": b"data", "version": int(version) - 1},
        {"data": b"data", "version": version, "obj_name": "missing"},
        {"data": b"data"},
    ):
        with pytest.raises(exc.NoSuchContainer):
            api.object_create(ACCOUNT, container, **{**low, **kwargs})
    with pytest.raises(exc.NoSuchContainer):
        api.object_create(ACCOUNT, container + "-missing", data=b"data", version=version, **low)
    with pytest.raises(exc.NoSuchContainer):
        api.container_get_properties(ACCOUNT, container + "-missing")
    with pytest.raises(exc.ClientException) as caught:
        api.object_create(ACCOUNT, container, data=b"DATA", version=version, **low)
    assert caught.value.http_status == 400
    api.object_delete(ACCOUNT, container, "o")
    with pytest.raises(exc.NoSuchObject):
        api.object_change_policy(ACCOUNT, container, "o", "EC")
    with pytest.raises(exc.ClientException) as caught:
        api.object_create(ACCOUNT, container, data=b"data", version=int(version) + 1, **low)
    assert caught.value.http_status == 400
    assert read(api, container, "o", version=version) == b"data"


def test_the_low_level_form_keeps_the_version(api, container):
    version = api.object_create_ext(ACCOUNT, container, data=b"data", obj_name="o", policy="SINGLE")[3]["version"]
    api.object_create(
        ACCOUNT, container, data=b"data", obj_name="o", version=version, policy="THREECOPIES", change_policy=True
    )
    meta = api.object_get_properties(ACCOUNT, container, "o")
    assert (meta["version"], meta["policy"]) == (version, "THREECOPIES")
