# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Containers through the public API, on a real cluster."""

import pytest
from support import ACCOUNT, eventually

from oio.common.exceptions import ClientException, ContainerNotEmpty, NoSuchAccount, NoSuchContainer
from oio.common.utils import cid_from_name


def test_creating_twice_tells_that_it_existed(api, container):
    assert api.container_create(ACCOUNT, container) is False


def test_a_new_container_tells_what_it_is(api, container, cluster):
    data = api.container_get_properties(ACCOUNT, container)
    system = data["system"]
    assert data["properties"] == {}
    assert system["sys.account"] == ACCOUNT
    assert system["sys.user.name"] == container
    assert system["sys.name"] == cid_from_name(ACCOUNT, container) + ".1"
    assert system["sys.ns"] == cluster.namespace
    assert (system["sys.m2.objects"], system["sys.m2.usage"]) == ("0", "0")
    assert system["sys.status"] == "0"


def test_several_are_created_in_one_request(api, container):
    names = [f"{container}-{n}" for n in range(3)]
    assert api.container_create_many(ACCOUNT, [*names, container]) == [
        *((name, True) for name in names),
        (container, False),
    ]


def test_a_deleted_container_is_gone(api, container):
    api.container_delete(ACCOUNT, container)
    with pytest.raises(NoSuchContainer):
        api.container_get_properties(ACCOUNT, container)
    with pytest.raises(NoSuchContainer):
        api.container_delete(ACCOUNT, container)
    assert api.container_create(ACCOUNT, container) is True


def test_a_container_with_objects_is_not_deleted(api, container):
    api.object_create(ACCOUNT, container, obj_name="o", data=b"x")
    with pytest.raises(ContainerNotEmpty):
        api.container_delete(ACCOUNT, container)
    assert api.object_head(ACCOUNT, container, "o")


def test_properties_are_set_read_and_deleted(api, container):
    api.container_set_properties(ACCOUNT, container, {"colour": "bleu é", "size": "1"})
    assert api.container_get_properties(ACCOUNT, container)["properties"] == {"colour": "bleu é", "size": "1"}
    api.container_set_properties(ACCOUNT, container, {"size": "2"}, clear=True)
    assert api.container_get_properties(ACCOUNT, container)["properties"] == {"size": "2"}
    api.container_del_properties(ACCOUNT, container, ["size", "unknown"])
    assert api.container_get_properties(ACCOUNT, container)["properties"] == {}


def test_properties_may_be_many_and_large(api, container):
    properties = {f"key-{n}": "v" * 10 for n in range(2048)} | {"large": "x" * 2**20}
    api.container_set_properties(ACCOUNT, container, properties)
    assert api.container_get_properties(ACCOUNT, container)["properties"] == properties


def test_system_properties_are_set_and_unset(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    assert api.container_get_properties(ACCOUNT, container)["system"]["sys.m2.policy.version"] == "-1"
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": ""})
    assert "sys.m2.policy.version" not in api.container_get_properties(ACCOUNT, container)["system"]


def test_an_unknown_storage_policy_is_refused(api, container):
    with pytest.raises(ClientException) as refused:
        api.container_create(ACCOUNT, container + "-bad", system={"sys.m2.policy.storage": "NOPE"})
    assert refused.value.status == 480
    with pytest.raises(NoSuchContainer):
        api.container_get_properties(ACCOUNT, container + "-bad")


@pytest.mark.parametrize("name", ["a b", "%41", "é/ü", "quote'\"", "new\nline", "+plus", "日本"])
def test_any_utf8_name_will_do(api, container, name):
    name = f"{container}-{name}"
    assert api.container_create(ACCOUNT, name) is True
    assert api.container_get_properties(ACCOUNT, name)["system"]["sys.user.name"] == name


def test_a_container_can_be_named_by_its_id(api, container):
    cid = cid_from_name(ACCOUNT, container)
    assert api.container_get_properties(None, None, cid=cid)["system"]["sys.user.name"] == container
    assert api.container_get_properties(None, None, cid=f"{cid}.1")["system"]["sys.user.name"] == container
    assert api.resolve_cid(cid) == (ACCOUNT, container)


def test_counters_follow_the_objects(api, container):
    def counters():
        system = api.container_get_properties(ACCOUNT, container)["system"]
        return int(system["sys.m2.objects"]), int(system["sys.m2.usage"])

    api.object_create(ACCOUNT, container, obj_name="a", data=b"x" * 10)
    api.object_create(ACCOUNT, container, obj_name="b", data=b"x" * 5)
    assert counters() == (2, 15)
    api.object_create(ACCOUNT, container, obj_name="a", data=b"x")
    assert counters() == (2, 6)
    api.object_delete(ACCOUNT, container, "b")
    assert counters() == (1, 1)


def test_the_account_lists_its_containers(api, container):
    account = container[-25:]
    for name in ("c1", "c2", "d1"):
        api.container_create(account, name)
    api.object_create(account, "c1", obj_name="o", data=b"12345")

    def listed():
        try:
            entries = {entry[0]: entry for entry in api.container_list(account)}
        except NoSuchAccount:
            return None
        return entries if len(entries) == 3 and entries["c1"][1:3] == [1, 5] else None

    entries = eventually(listed, what="three containers and their counters")
    assert sorted(entries) == ["c1", "c2", "d1"]
    assert [entry[0] for entry in api.container_list(account, prefix="c")] == ["c1", "c2"]
