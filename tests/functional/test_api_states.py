# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""States of containers and modes of namespaces, as the API sees them."""

import json
import os
from contextlib import contextmanager

import pytest
from support import ACCOUNT, CHUNK_SIZE, start_cluster

from oio import ObjectStorageApi
from oio.common import exceptions as exc

FROZEN, DISABLED = "4294967295", "4294967294"


def read(api, container, name="o", **kwargs):
    return b"".join(api.object_fetch(ACCOUNT, container, name, **kwargs)[1])


def writes(api, container):
    """Every way to change an object: (name of the method, call)."""
    where = (ACCOUNT, container)
    return {
        "create": lambda **kw: api.object_create(*where, data=b"y", obj_name="new", **kw),
        "append": lambda **kw: api.object_create(*where, data=b"y", obj_name="o", append=True, **kw),
        "delete": lambda **kw: api.object_delete(*where, "o", **kw),
        "drain": lambda **kw: api.object_drain(*where, "o", **kw),
        "truncate": lambda **kw: api.object_truncate(*where, "o", size=0, **kw),
        "cut": lambda **kw: api.object_truncate(*where, "o", size=2, **kw),
        "set properties": lambda **kw: api.object_set_properties(*where, "o", {"k": "w"}, **kw),
        "delete properties": lambda **kw: api.object_del_properties(*where, "o", ["k"], **kw),
        "change policy": lambda **kw: api.object_change_policy(*where, "o", "THREECOPIES", **kw),
        "link": lambda **kw: api.object_link(*where, "o", *where, "new", **kw),
    }


@pytest.fixture
def filled(api, container):
    api.object_create(ACCOUNT, container, data=b"data", obj_name="o", policy="SINGLE", properties={"k": "v"})
    return container


# --- states of containers ---


def refused_by_the_state(call, word):
    with pytest.raises(exc.ServiceBusy, match=word) as caught:
        call()
    assert (caught.value.http_status, caught.value.status) == (503, 436)


def test_a_frozen_container_can_be_read(api, filled):
    api.container.container_freeze(ACCOUNT, filled)
    assert api.container_get_properties(ACCOUNT, filled)["system"]["sys.status"] == FROZEN
    for call in writes(api, filled).values():
        refused_by_the_state(call, "frozen")
    assert read(api, filled) == b"data"
    assert [item["name"] for item in api.object_list(ACCOUNT, filled)["objects"]] == ["o"]
    assert api.object_get_properties(ACCOUNT, filled, "o")["properties"] == {"k": "v"}
    assert api.object_head(ACCOUNT, filled, "o", trust_level=2) is True
    api.object_touch(ACCOUNT, filled, "o")
    api.container_set_properties(ACCOUNT, filled, {"color": "blue"})
    assert api.container_get_properties(ACCOUNT, filled)["properties"] == {"color": "blue"}
    with pytest.raises(exc.ServiceBusy):
        api.container.container_freeze(ACCOUNT, filled)
    api.container.container_enable(ACCOUNT, filled)
    with pytest.raises(exc.ClientException) as caught:
        api.container.container_enable(ACCOUNT, filled)
    assert (caught.value.http_status, caught.value.status) == (500, 439)
    api.object_delete(ACCOUNT, filled, "o")


def test_nothing_is_left_of_refused_uploads(api, filled):
    sent = []
    create = api.container.content_create

    def spy(*args, **kwargs):
        sent.extend(kwargs["data"]["chunks"])
        return create(*args, **kwargs)

    api.container.content_create = spy
    api.container.container_freeze(ACCOUNT, filled)
    for name in ("create", "append", "change policy", "link", "cut"):
        refused_by_the_state(writes(api, filled)[name], "frozen")
    assert len(sent) == 3 + 1 + 3 + 1 + 1
    for chunk in sent:
        with pytest.raises(exc.NotFound):
            api.blob_client.chunk_head(chunk["url"])
    assert read(api, filled) == b"data"
    api.container.container_enable(ACCOUNT, filled)


def test_raw_rows_of_a_frozen_container(api, filled):
    meta, chunks = api.object_locate(ACCOUNT, filled, "o")
    old, _ = api._prepare_meta2_raw_update(chunks, chunks, meta["id"])
    new = [{**old[0], "id": old[0]["id"][:-4] + "0000"}]
    api.container.container_freeze(ACCOUNT, filled)
    for call in (
        lambda: api.container.container_raw_update(old, new, ACCOUNT, filled),
        lambda: api.container.container_raw_insert(new[0], ACCOUNT, filled),
        lambda: api.container.container_raw_delete(ACCOUNT, filled, old),
    ):
        refused_by_the_state(call, "frozen")
    api.container.container_raw_insert(new[0], ACCOUNT, filled, frozen=True)
    assert len(api.object_locate(ACCOUNT, filled, "o")[1]) == 2
    api.container.container_enable(ACCOUNT, filled)
    api.container.container_raw_delete(ACCOUNT, filled, new)
    api.container.container_freeze(ACCOUNT, filled)
    api.container.container_raw_update(old, new, ACCOUNT, filled, frozen=True)
    assert [chunk["url"] for chunk in api.object_locate(ACCOUNT, filled, "o")[1]] == [new[0]["id"]]
    api.container.container_raw_update(new, old, ACCOUNT, filled, frozen=True)
    assert read(api, filled) == b"data"
    api.container_flush(ACCOUNT, filled, fast=True)
    api.container_delete(ACCOUNT, filled)


def test_a_disabled_container_only_shows_its_properties(api, filled):
    api.container_set_properties(ACCOUNT, filled, system={"sys.status": DISABLED})
    where = (ACCOUNT, filled)
    reads = {
        "fetch": lambda: api.object_fetch(*where, "o"),
        "locate": lambda: api.object_locate(*where, "o"),
        "get properties": lambda: api.object_get_properties(*where, "o"),
        "list": lambda: api.object_list(*where),
        "touch": lambda: api.object_touch(*where, "o"),
        "flush": lambda: api.container_flush(*where, fast=True),
    }
    for call in {**writes(api, filled), **reads}.values():
        refused_by_the_state(call, "disabled")
    api.container_touch(*where)
    api.container_set_properties(*where, {"color": "blue"}, system={"sys.status": "0"})
    assert read(api, filled) == b"data"


# --- modes of the namespace ---


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A small cluster whose mode can be changed."""
    sandbox = start_cluster(
        tmp_path_factory.mktemp("modes"), f"MODES{os.getpid()}", chunk_size=CHUNK_SIZE, rawx=3, proxy_workers=1
    )
    yield sandbox
    sandbox.destroy()


@pytest.fixture
def own_api(own):
    return ObjectStorageApi(own.namespace, endpoint=own.proxy)


@contextmanager
def mode(sandbox, api, **variables):
    """Set variables of the proxy and of the meta services, for a while."""
    addresses = [service.addr for service in sandbox.services("meta1", "meta2")]

    def set_all(values):
        client = api.proxy_client
        client._request("POST", "v3.0/config", data=json.dumps(values))
        for address in addresses:
            client._request("POST", "v3.0/forward/config", params={"id": address}, data=json.dumps(values))

    names = {name.replace("_", "."): value for name, value in variables.items()}
    set_all(names)
    try:
        yield
    finally:
        set_all({"ns.worm": "off", "ns.master": "on"})


@pytest.fixture
def own_container(own_api, request):
    name = request.node.name
    own_api.container_create(ACCOUNT, name)
    own_api.object_create(ACCOUNT, name, data=b"data", obj_name="o", policy="SINGLE", properties={"k": "v"})
    return name


def test_worm(own, own_api, own_container):
    api, where = own_api, (ACCOUNT, own_container)
    with mode(own, api, ns_worm="on"):
        calls = writes(api, own_container)
        meta, chunks = api.object_locate(*where, "o")
        beans, _ = api._prepare_meta2_raw_update(chunks, chunks, meta["id"])
        forbidden = {
            "delete": calls["delete"],
            "drain": calls["drain"],
            "truncate": calls["truncate"],
            "cut": calls["cut"],
            "purge": lambda: api.container.container_purge(*where),
            "flush": lambda: api.container_flush(*where, fast=True),
            "destroy": lambda: api.container_delete(*where),
            "raw insert": lambda: api.container.container_raw_insert(beans[0], *where),
            "raw update": lambda: api.container.container_raw_update(beans, beans, *where),
            "raw delete": lambda: api.container.container_raw_delete(*where, beans),
        }
        for name, call in forbidden.items():
            with pytest.raises(exc.MethodNotAllowed, match="worm") as caught:
                call()
            assert caught.value.status == 405, name
        overwriting = lambda **kw: api.object_create(*where, data=b"new", obj_name="o", policy="SINGLE", **kw)  # noqa: E731
        for call in (overwriting, calls["change policy"]):
            with pytest.raises(exc.Conflict) as caught:
                call()
            assert caught.value.status == 421
        assert read(api, own_container) == b"data"
        for name in ("create", "set properties", "delete properties", "append"):
            calls[name]()
        assert read(api, own_container) == b"datay"
        overwriting(admin_mode=True)
        assert read(api, own_container) == b"new"
        admin = ObjectStorageApi(own.namespace, endpoint=own.proxy, admin_mode=True)
        for name in ("change policy", "cut", "drain", "delete"):
            writes(admin, own_container)[name]()
        admin.container_flush(*where)
        admin.container_delete(*where)


def test_a_slave_namespace(own, own_api, own_container):
    api, where = own_api, (ACCOUNT, own_container)
    with mode(own, api, ns_master="off"):
        calls = writes(api, own_container)
        meta, chunks = api.object_locate(*where, "o")
        beans, _ = api._prepare_meta2_raw_update(chunks, chunks, meta["id"])
        more = {
            "create container": lambda: api.container_create(ACCOUNT, own_container + "-x"),
            "set container properties": lambda: api.container_set_properties(*where, {"k": "v"}),
            "raw insert": lambda: api.container.container_raw_insert(beans[0], *where),
            "purge": lambda: api.container.container_purge(*where),
            "flush": lambda: api.container_flush(*where, fast=True),
            "destroy": lambda: api.container_delete(*where),
        }
        for name, call in {**calls, **more}.items():
            with pytest.raises(exc.ClientException, match="NS slave!") as caught:
                call()
            assert caught.value.http_status == 500, name
        assert read(api, own_container) == b"data"
        for name in ("create", "set properties", "delete"):
            calls[name](admin_mode=True)
    assert [item["name"] for item in api.object_list(*where)["objects"]] == ["new"]


# --- quota ---


def test_a_quota(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.quota": "10"})
    assert api.container_get_properties(ACCOUNT, container)["system"]["sys.m2.quota"] == "10"
    sent = []
    create = api.container.content_create

    def spy(*args, **kwargs):
        sent.extend(kwargs["data"]["chunks"])
        return create(*args, **kwargs)

    api.object_create(ACCOUNT, container, data=b"x" * 8, obj_name="o")
    api.container.content_create = spy
    for kwargs in ({"obj_name": "p", "data": b"123"}, {"obj_name": "o", "data": b"123", "append": True},
                   {"obj_name": "o", "data": b"x" * 11}):  # fmt: skip
        with pytest.raises(exc.ClientException) as caught:
            api.object_create(ACCOUNT, container, **kwargs)
        assert (caught.value.http_status, caught.value.status) == (500, 445)
    assert sent
    for chunk in sent:
        with pytest.raises(exc.NotFound):
            api.blob_client.chunk_head(chunk["url"])
    api.object_create(ACCOUNT, container, data=b"x" * 9, obj_name="o")
    api.object_create(ACCOUNT, container, data=b"x" * 20, obj_name="o", admin_mode=True)
    api.object_create(ACCOUNT, container, data=b"x" * 12, obj_name="o")
    assert read(api, container) == b"x" * 12
