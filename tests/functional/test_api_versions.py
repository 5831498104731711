# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Versions through the API: modes, retention, listings, headers of requests, on a cluster."""

import pytest
from support import ACCOUNT

from oio.common import exceptions as exc
from oio.common.utils import cid_from_name

VERSIONING = "sys.m2.policy.version"
EXCEEDING = "sys.m2.policy.version.delete_exceeding"


def write(api, container, data=b"x", name="o", **kwargs):
    return int(api.object_create_ext(ACCOUNT, container, data=data, obj_name=name, **kwargs)[3]["version"])


def listed(api, container, **kwargs):
    kwargs.setdefault("versions", True)
    return api.object_list(ACCOUNT, container, **kwargs)["objects"]


def versions(api, container, name="o"):
    return [item["version"] for item in listed(api, container) if item["name"] == name]


def system_of(api, container):
    return api.container_get_properties(ACCOUNT, container)["system"]


def set_system(api, container, **system):
    names = {"version": VERSIONING, "exceeding": EXCEEDING, "delay": "sys.m2.keep_deleted_delay"}
    api.container_set_properties(ACCOUNT, container, system={names[key]: value for key, value in system.items()})


def read(api, container, name="o", **kwargs):
    return b"".join(api.object_fetch(ACCOUNT, container, name, **kwargs)[1])


# --- modes ---


@pytest.mark.parametrize("mode", ["-1", "2", "5"])
def test_an_enabled_mode_keeps_versions_and_adds_markers(api, container, mode):
    set_system(api, container, version=mode)
    made = [write(api, container, b"x" * size) for size in range(4)]
    assert versions(api, container) == made[::-1]
    assert api.object_delete(ACCOUNT, container, "o") is True
    assert versions(api, container) == [made[-1] + 1, *made[::-1]]
    assert api.object_delete(ACCOUNT, container, "o", version=made[-1] + 1) is True
    assert versions(api, container) == made[::-1]


@pytest.mark.parametrize("mode", [None, "1", "0"])
def test_other_modes_keep_one_version(api, container, mode):
    if mode is not None:
        set_system(api, container, version=mode)
    assert system_of(api, container).get(VERSIONING) == mode
    write(api, container, b"old")
    newest = write(api, container, b"new")
    assert versions(api, container) == [newest]
    assert system_of(api, container)["sys.m2.objects"] == "1"
    assert api.object_delete(ACCOUNT, container, "o") is True
    assert versions(api, container) == []
    with pytest.raises(exc.NoSuchObject):
        api.object_delete(ACCOUNT, container, "o")


def test_without_versions_none_can_be_named(api, container):
    set_system(api, container, version="0")
    version = write(api, container)
    with pytest.raises(exc.BadRequest):
        api.object_delete(ACCOUNT, container, "o", version=version)
    set_system(api, container, version="")
    assert VERSIONING not in system_of(api, container)
    assert api.object_delete(ACCOUNT, container, "o", version=version) is True


def test_the_creation_date_of_a_name_is_kept(api, container):
    set_system(api, container, version="-1")
    write(api, container)
    first = api.object_get_properties(ACCOUNT, container, "o")
    api.container.container_raw_update(
        [_alias(first)], [{**_alias(first), "ctime": 1000, "mtime": 1000}], ACCOUNT, container
    )
    write(api, container)
    newest = api.object_get_properties(ACCOUNT, container, "o")
    assert newest["ctime"] == "1000"
    assert int(newest["mtime"]) > 1000
    assert {item["ctime"] for item in listed(api, container)} == {1000}


def _alias(meta):
    return {
        "type": "alias", "name": meta["name"], "version": int(meta["version"]), "header": meta["id"],
        "ctime": int(meta["ctime"]), "mtime": int(meta["mtime"]), "deleted": False,
    }  # fmt: skip


def test_counters_count_versions_not_markers(api, container):
    set_system(api, container, version="-1")
    for size in (3, 4):
        write(api, container, b"x" * size)
    api.object_delete(ACCOUNT, container, "o")
    system = system_of(api, container)
    assert (system["sys.m2.objects"], system["sys.m2.usage"]) == ("2", "7")


# --- versions and ids that are given ---


def test_given_versions(api, container):
    set_system(api, container, version="-1")
    newest = write(api, container)
    for version in (newest, str(newest)):
        with pytest.raises(exc.Conflict) as caught:
            write(api, container, version=version)
        assert caught.value.status == 421
    assert write(api, container, version=newest - 5) == newest - 5
    assert versions(api, container) == [newest, newest - 5]
    set_system(api, container, version="1")
    with pytest.raises(exc.Conflict) as caught:
        write(api, container, version=newest - 1)
    assert caught.value.status == 424
    assert read(api, container) == b"x"


def test_the_chunks_in_place_survive_a_second_creation_of_their_version(api, container):
    """Chunk ids follow from the version: the refused upload has the same ones."""
    version = write(api, container, b"in place", policy="THREECOPIES")
    for _ in range(6):
        with pytest.raises(exc.OioException):
            write(api, container, b"too late", version=version, policy="THREECOPIES")
    assert read(api, container) == b"in place"
    assert api.object_head(ACCOUNT, container, "o", trust_level=2) is True


def test_a_content_id_is_used_once(api, container):
    write(api, container, content_id="AB" * 16)
    assert api.object_get_properties(ACCOUNT, container, "o")["id"] == "AB" * 16
    with pytest.raises(exc.Conflict):
        write(api, container, name="other", content_id="ab" * 16)
    assert read(api, container) == b"x"


@pytest.mark.parametrize("version", [1, "1"])
def test_reading_an_unknown_version(api, container, version):
    write(api, container)
    for call in (api.object_fetch, api.object_locate, api.object_get_properties, api.object_delete):
        with pytest.raises(exc.NoSuchObject):
            call(ACCOUNT, container, "o", version=version)
    with pytest.raises(exc.NoSuchObject):
        api.object_set_properties(ACCOUNT, container, "o", {"k": "v"}, version=version)
    assert api.object_head(ACCOUNT, container, "o", version=version) is False
    for call in (api.object_touch, api.object_drain):
        with pytest.raises(exc.NotFound):
            call(ACCOUNT, container, "o", version=version)


def test_properties_belong_to_a_version(api, container):
    set_system(api, container, version="-1")
    old = write(api, container, properties={"k": "old"})
    new = write(api, container, properties={"k": "new"})
    api.object_set_properties(ACCOUNT, container, "o", {"l": "m"}, version=old)
    assert api.object_get_properties(ACCOUNT, container, "o", version=old)["properties"] == {"k": "old", "l": "m"}
    api.object_set_properties(ACCOUNT, container, "o", {"only": "this"}, version=old, clear=True)
    assert api.object_get_properties(ACCOUNT, container, "o", version=old)["properties"] == {"only": "this"}
    assert api.object_del_properties(ACCOUNT, container, "o", [], version=old) is True
    assert api.object_get_properties(ACCOUNT, container, "o", version=old)["properties"] == {}
    assert api.object_get_properties(ACCOUNT, container, "o", version=new)["properties"] == {"k": "new"}


# --- retention ---


def test_exceeding_versions_are_trimmed_while_the_container_says_so(api, container):
    set_system(api, container, version="2")
    made = [write(api, container) for _ in range(3)]
    assert len(versions(api, container)) == 3
    set_system(api, container, exceeding="1")
    made.append(write(api, container))
    assert versions(api, container) == made[:1:-1]
    api.object_delete(ACCOUNT, container, "o")
    made.append(write(api, container))
    assert [item["version"] for item in listed(api, container) if not item["deleted"]] == made[:2:-1]
    assert any(item["deleted"] for item in listed(api, container))
    set_system(api, container, exceeding="0")
    write(api, container)
    assert len([item for item in listed(api, container) if not item["deleted"]]) == 3


def test_purge_of_one_object(api, container):
    set_system(api, container, version="3")
    made = [write(api, container) for _ in range(6)]
    others = [write(api, container, name="p") for _ in range(5)]
    assert api.container.content_purge(ACCOUNT, container, "o") is None
    assert versions(api, container) == made[:2:-1]
    assert versions(api, container, "p") == others[::-1]
    api.container.content_purge(ACCOUNT, container, "o", maxvers=1)
    assert versions(api, container) == made[:-2:-1]
    api.container.content_purge(ACCOUNT, container, "missing")
    with pytest.raises(exc.NotFound):
        api.container.content_purge(ACCOUNT, container + "-missing", "o")
    api.container.container_purge(ACCOUNT, container)
    assert versions(api, container, "p") == others[:1:-1]


def test_old_markers_take_the_object_away(api, container):
    set_system(api, container, version="-1", delay="0")
    write(api, container)
    write(api, container, name="kept")
    api.object_delete(ACCOUNT, container, "o")
    marker = listed(api, container)[1]
    assert marker["deleted"]
    rows = [
        {"type": "alias", "name": "o", "version": marker["version"], "header": marker["id"], "deleted": True,
         "ctime": 1000, "mtime": 1000} for _ in range(2)
    ]  # fmt: skip
    api.container.container_raw_update(rows[:1], rows[1:], ACCOUNT, container)
    api.container.content_purge(ACCOUNT, container, "o")
    assert versions(api, container) == []
    assert len(versions(api, container, "kept")) == 1


# --- headers ---


def test_versioning_is_forced_by_a_header(api, container):
    write(api, container)
    assert VERSIONING not in system_of(api, container)
    write(api, container, headers={"x-oio-force-versioning": "-1"})
    assert system_of(api, container)[VERSIONING] == "-1"
    assert len(versions(api, container)) == 2
    api.object_delete(ACCOUNT, container, "o", headers={"x-oio-force-versioning": "1"})
    assert system_of(api, container)[VERSIONING] == "1"
    assert len(versions(api, container)) == 1
    api.object_delete(ACCOUNT, container, "o", headers={"x-oio-force-versioning": "-1"})
    assert [item["deleted"] for item in listed(api, container)] == [True, False]


def test_versioning_is_simulated_by_a_header(api, container):
    simulate = {"x-oio-simulate-versioning": "1"}
    for _ in range(2):
        write(api, container, headers=dict(simulate))
    api.object_delete(ACCOUNT, container, "o", headers=dict(simulate))
    assert [item["deleted"] for item in listed(api, container)] == [True, False, False]
    assert VERSIONING not in system_of(api, container)


# --- listings ---


def test_shape_of_a_listing(api, container):
    version = write(api, container, b"12345", name="docs/a", mime_type="text/plain", properties={"k": "v"})
    write(api, container, name="docs/b")
    write(api, container, name="other")
    api.container_set_properties(ACCOUNT, container, {"color": "blue"})
    page = api.object_list(ACCOUNT, container, properties=True)
    assert set(page) == {"objects", "prefixes", "properties", "system", "truncated"}
    assert (page["prefixes"], page["truncated"], page["properties"]) == ([], False, {"color": "blue"})
    assert page["system"]["sys.user.name"] == container
    first, second, _third = page["objects"]
    assert set(first) == {
        "name", "version", "ctime", "mtime", "deleted", "id", "content", "policy", "chunk_method", "hash", "size",
        "mime_type", "is_latest", "properties",
    }  # fmt: skip
    assert "properties" not in second
    told = [first[key] for key in ("name", "version", "deleted", "size", "mime_type", "is_latest", "properties")]
    assert told == ["docs/a", version, False, 5, "text/plain", True, {"k": "v"}]
    assert first["id"] == first["content"]
    assert {type(first[key]) for key in ("version", "ctime", "mtime", "size")} == {int}
    assert "properties" not in api.object_list(ACCOUNT, container)["objects"][0]
    page = api.object_list(ACCOUNT, container, delimiter="/")
    assert ([item["name"] for item in page["objects"]], page["prefixes"]) == (["other"], ["docs/"])
    page = api.object_list(ACCOUNT, container, delimiter="/", marker="docs/")
    assert ([item["name"] for item in page["objects"]], page["prefixes"]) == (["other"], [])


def test_pages_give_each_name_once(api, container):
    names = [f"{letter}/{number}" for letter in "ab" for number in range(5)] + ["a%", "é\n"]
    for name in names:
        write(api, container, name=name)
    found, marker = [], None
    while True:
        page = api.object_list(ACCOUNT, container, limit=4, marker=marker)
        found += [item["name"] for item in page["objects"]]
        if not page["truncated"]:
            break
        marker = page["next_marker"]
    assert found == sorted(names, key=str.encode)
    assert "next_marker" not in page
    page = api.object_list(ACCOUNT, container, limit=len(names))
    assert page["truncated"] is False
    assert [item["name"] for item in listed(api, container, versions=False, marker="a/3", end_marker="b/1")] == [
        "a/4", "b/0",
    ]  # fmt: skip
    few = listed(api, container, versions=False, prefix="b/", limit=2)
    assert [item["name"] for item in few] == ["b/0", "b/1"]


def test_a_marker_skips_the_versions_that_are_left(api, container):
    set_system(api, container, version="-1")
    made = [write(api, container) for _ in range(3)]
    other = write(api, container, name="p")
    page = api.object_list(ACCOUNT, container, versions=True, limit=2)
    assert [item["version"] for item in page["objects"]] == made[:0:-1]
    assert (page["truncated"], page["next_marker"]) == (True, "o")
    assert [item["is_latest"] for item in page["objects"]] == [True, False]
    page = api.object_list(ACCOUNT, container, versions=True, limit=2, marker="o")
    assert ([item["version"] for item in page["objects"]], page["truncated"]) == ([other], False)


def test_listing_of_a_missing_container(api, container):
    with pytest.raises(exc.NoSuchContainer) as caught:
        api.object_list(ACCOUNT, container + "-missing")
    assert not hasattr(caught.value, "status")


@pytest.mark.parametrize(
    "name",
    ["a b", "50%", "back\\slash", "cr\r", "lf\n", "tab\t", "a//b", "/a", "éà€😀", "x" * 1023, "a?b=c&d#e", "+%2F"],
)
def test_names_round_trip(api, container, name):
    chunks = api.object_create(ACCOUNT, container, data=b"x", obj_name=name, properties={name[:100]: name})[0]
    meta = api.object_get_properties(ACCOUNT, container, name)
    assert (meta["name"], meta["properties"]) == (name, {name[:100]: name})
    assert api.object_locate(ACCOUNT, container, name)[0]["properties"] == {name[:100]: name}
    assert read(api, container, name) == b"x"
    assert api.blob_client.chunk_head(chunks[0]["url"])["content_path"] == name
    assert [item["name"] for item in listed(api, container)] == [name]
    assert api.object_delete_many(ACCOUNT, container, [name, "missing"]) == [(name, True), ("missing", False)]


def test_properties_that_no_head_can_carry(api, container):
    """Properties travel as headers at ``locate``; too many of them are loaded aside."""
    many = {f"key-{number}": "v" * 100 for number in range(2048)}
    large = {"large": "é" * 2**19}
    write(api, container, name="many", properties=many)
    write(api, container, name="large", properties=large)
    for name, properties in (("many", many), ("large", large)):
        assert api.object_locate(ACCOUNT, container, name)[0]["properties"] == properties
        assert api.object_fetch(ACCOUNT, container, name)[0]["properties"] == properties
        assert api.object_get_properties(ACCOUNT, container, name)["properties"] == properties
    api.container_set_properties(ACCOUNT, container, many)
    assert api.container_get_properties(ACCOUNT, container)["properties"] == many


def test_an_object_by_its_content_id(api, container):
    write(api, container, b"data")
    content_id = api.object_get_properties(ACCOUNT, container, "o")["id"]
    meta, _chunks = api.object_locate(ACCOUNT, container, None, content=content_id)
    assert meta["name"] == "o"
    assert meta["id"] == content_id


def test_chunks_as_their_rawx_know_them(api, container):
    write(api, container, b"data", policy="EC")
    meta, chunks = api.object_locate(ACCOUNT, container, "o", chunk_info=True)
    told = list(chunks)
    assert [chunk["pos"] for chunk in told] == [f"0.{number}" for number in range(9)]
    keys = {"url", "real_url", "pos", "size", "hash", "score", "chunk_size", "chunk_hash", "full_path"}
    for chunk in told:
        assert set(chunk) == keys
        assert chunk["full_path"].endswith(f"/o/{meta['version']}/{meta['id']}")
    api.blob_client.chunk_delete(told[3]["url"])
    told = list(api.object_locate(ACCOUNT, container, "o", chunk_info=True)[1])
    assert [number for number, chunk in enumerate(told) if "error" in chunk] == [3]
    assert isinstance(told[3]["error"], str)
    assert api.object_head(ACCOUNT, container, "o") is True
    assert api.object_head(ACCOUNT, container, "o", trust_level=2) is False
    for level, error in ((1, NotImplementedError), (3, ValueError), (-1, ValueError)):
        with pytest.raises(error):
            api.object_head(ACCOUNT, container, "o", trust_level=level)


def test_many_objects_are_deleted_at_once(api, container):
    names = [f"n{number}" for number in range(3)]
    for name in names:
        write(api, container, name=name)
    wanted = [*names, "missing", names[0]]
    results = api.object_delete_many(ACCOUNT, container, wanted)
    assert results == [("n0", True), ("n1", True), ("n2", True), ("missing", False), ("n0", False)]
    missing = container + "-missing"
    assert api.object_delete_many(ACCOUNT, missing, ["a", "b"]) == [("a", False), ("b", False)]
    many = [f"absent{number}" for number in range(250)]
    assert api.object_delete_many(ACCOUNT, container, many) == [(name, False) for name in many]
    assert cid_from_name(ACCOUNT, container) + ".1" == system_of(api, container)["sys.name"]


@pytest.mark.parametrize("maximum", ["0", "1", "2"])
def test_purge_deletes_versions_from_before_versioning_was_limited(api, container, maximum):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    for _ in range(4):
        api.object_create(ACCOUNT, container, obj_name="o", data=b"x", policy="SINGLE")
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": maximum})
    api.container_purge(ACCOUNT, container)
    left = api.object_list(ACCOUNT, container, versions=True)["objects"]
    assert len(left) == max(1, int(maximum))
