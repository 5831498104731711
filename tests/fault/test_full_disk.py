# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""File systems that are really full: what cannot be written is refused, everything else goes on."""

import contextlib
import hashlib
import json
import os
import random

import pytest
from faults import chunk_path, read
from processes import files_below, fill, small_disk
from support import ACCOUNT, eventually

from oio.api.replication import SMALL_MAX
from oio.common.exceptions import NoSuchObject, OioException, ServiceBusy
from oio.common.status import StatusError
from oio.http.client import HttpPool
from oio.meta import messages as m
from oio.meta.client import MetaClient


def chunk_ids(count):
    return [hashlib.sha256(str(number).encode()).hexdigest().upper() for number in range(count)]


def test_a_full_rawx_refuses_what_it_cannot_write_and_keeps_what_it_has(tmp_path, start_rawx):
    volume = tmp_path / "small"
    volume.mkdir()
    with small_disk(volume, 4):
        service = start_rawx(volume=volume)
        ids = chunk_ids(8)
        data = os.urandom(900 * 1024)
        statuses = [service.call("PUT", chunk_id, data)[0] for chunk_id in ids]
        stored = [chunk_id for chunk_id, status in zip(ids, statuses, strict=True) if status == 201]
        assert 1 <= len(stored) < len(ids)
        assert set(statuses) == {201, 500}
        assert service.files() == sorted(stored)
        for chunk_id in stored:
            assert service.call("GET", chunk_id) == (200, data)
        assert service.call("DELETE", stored[0])[0] == 204
        assert service.call("PUT", ids[-1], data)[0] == 201
        service.stop()


@pytest.mark.parametrize("leave_bytes", [0, 4096, 12288], ids=["no room", "one page", "three pages"])
def test_small_chunks_on_a_full_rawx(tmp_path, start_rawx, leave_bytes):
    """Whatever fails first, the directory, the data or the attributes: whole, or nothing."""
    volume = tmp_path / "small"
    volume.mkdir()
    with small_disk(volume, 2):
        service = start_rawx(volume=volume)
        filler = fill(volume, leave_bytes)
        ids = chunk_ids(6)
        statuses = [service.call("PUT", chunk_id, b"x" * 3000)[0] for chunk_id in ids]
        assert set(statuses) <= {201, 500}
        assert 500 in statuses
        stored = [chunk_id for chunk_id, status in zip(ids, statuses, strict=True) if status == 201]
        assert service.files() == sorted([*stored, "filler"])
        filler.unlink()
        for chunk_id, status in zip(ids, statuses, strict=True):
            if status != 201:
                assert service.call("PUT", chunk_id, b"x" * 3000)[0] == 201
            assert service.call("GET", chunk_id) == (200, b"x" * 3000)
        service.stop()


# -- a cluster one of whose disks is full --------------------------------------------------------


@contextlib.contextmanager
def on_small_disk(broken, service, size_mib):
    """The service on an empty disk of its own; afterwards it finds its former data again."""
    broken.stop(service.name)
    try:
        with small_disk(service.volume, size_mib):
            broken.start(service.name)
            try:
                yield
            finally:
                broken.stop(service.name)
    finally:
        broken.start(service.name)


@contextlib.contextmanager
def only(api, broken, chosen):
    """Chunks are placed on this rawx only: the scores of the others are locked to zero."""
    definitions = [
        {"type": "rawx", "addr": service.addr, "id": service.service_id,
         "score": 100 if service.name == chosen.name else 0, "tags": {"tag.service_id": service.service_id}}
        for service in broken.services("rawx")
    ]  # fmt: skip
    conscience = api.container.conscience_client
    conscience.lock_score(definitions)
    try:
        eventually(lambda: placed(api) == {chosen.service_id}, what=f"placement on {chosen.service_id} only")
        yield
    finally:
        conscience.unlock_score(definitions)
        eventually(lambda: len(placed(api, 40)) > 8, what="placement everywhere")


def placed(api, tries=8):
    """Where some chunks would be placed now."""
    found = set()
    for _ in range(tries):
        with contextlib.suppress(OioException):
            found.add(api.container.conscience_client.next_instance("rawx")["addr"])
    return found


@pytest.fixture
def full_rawx(broken, fault_api, box):
    """A rawx that holds two objects and has no room left, the file that fills it, and the objects' data."""
    service = broken.services("rawx")[4]
    with on_small_disk(broken, service, 6):
        data = random.Random(1).randbytes(500_000)
        with only(fault_api, broken, service):
            for name in ("kept", "deleted"):
                fault_api.object_create(ACCOUNT, box, obj_name=name, data=data, policy="SINGLE")
        yield service, fill(service.volume), data
        for entry in fault_api.object_list(ACCOUNT, box)["objects"]:
            fault_api.object_delete(ACCOUNT, box, entry["name"])


def test_a_full_rawx_among_others(broken, fault_api, box, full_rawx):
    service, filler, data = full_rawx
    before = files_below(service.volume)
    stored = {"kept": data}
    for number in range(25):
        name = f"{number}"
        payload = random.Random(name).randbytes(1_500_000 if number % 5 == 0 else 20_000)
        policy = ("THREECOPIES", "EC", "TWOCOPIES", "EC21")[number % 4]
        try:
            fault_api.object_create(ACCOUNT, box, obj_name=name, data=payload, policy=policy)
        except ServiceBusy:
            # Too large to be sent again, under a policy that needs every chunk: a clean failure.
            assert len(payload) > SMALL_MAX and policy in ("TWOCOPIES", "EC21")
            with pytest.raises(NoSuchObject):
                fault_api.object_get_properties(ACCOUNT, box, name)
            continue
        stored[name] = payload
    # An upload that goes on with the other servers does not wait for what the full one cleans up.
    eventually(lambda: files_below(service.volume) == before, what="nothing left on the full disk")
    for name, payload in stored.items():
        assert read(fault_api, box, name) == payload

    _meta, chunks = fault_api.object_locate(ACCOUNT, box, "deleted")
    fault_api.object_delete(ACCOUNT, box, "deleted")
    eventually(lambda: not chunk_path(broken, chunks[0]).exists(), what="deletion on a full disk")
    assert filler.exists()


def test_an_upload_that_only_a_full_rawx_could_take_fails_cleanly(broken, fault_api, box, full_rawx):
    service, filler, data = full_rawx
    before = files_below(service.volume)
    with only(fault_api, broken, service):
        for size in (10, 100_000, 2_500_000):
            with pytest.raises(OioException):
                fault_api.object_create(ACCOUNT, box, obj_name="o", data=b"x" * size, policy="SINGLE")
        with pytest.raises(NoSuchObject):
            fault_api.object_locate(ACCOUNT, box, "o")
        eventually(lambda: files_below(service.volume) == before, what="nothing left of failed uploads")
        system = fault_api.container_get_properties(ACCOUNT, box)["system"]
        assert (int(system["sys.m2.objects"]), int(system["sys.m2.usage"])) == (2, 2 * len(data))
        filler.unlink()
        fault_api.object_create(ACCOUNT, box, obj_name="o", data=b"x" * 10, policy="SINGLE")
        assert read(fault_api, box, "o") == b"x" * 10


# -- meta2 ---------------------------------------------------------------------------------------

CID = "C0" * 32


def put(number, size_bytes=0):
    return m.ContentPut(
        cid=CID, path=f"{number:04d}", version=1_000_000 + number, content_id=f"{number:032X}", size=10,
        hash="00" * 16, policy="SINGLE", chunk_method="plain/nb_copy=1",
        chunks=[m.Chunk(url=f"http://NS-rawx-1/{number:064X}", pos="0", size=10, hash="00" * 16)],
        properties={"p": "x" * size_bytes} if size_bytes else {},
    )  # fmt: skip


def test_a_container_whose_base_has_no_room_is_not_made(tmp_path, start_meta2):
    """A write of which the disk takes a part is no base."""
    volume = tmp_path / "small"
    volume.mkdir()
    with small_disk(volume, 4):
        service = start_meta2(volume=volume)
        client = MetaClient(HttpPool())
        refused, made = [], []
        for number, leave_bytes in enumerate(range(0, 400_000, 20_000)):
            filler = fill(volume, leave_bytes)
            cid = f"{number:064X}"
            try:
                client.call(service.addr, m.ContainerCreate(cid=cid, account="a", name="c", namespace="NS"))
                made.append(cid)
            except StatusError as exc:
                assert exc.code == 503
                refused.append(cid)
            filler.unlink()
        assert made and refused
        for cid in refused:
            client.call(service.addr, m.ContainerCreate(cid=cid, account="a", name="c", namespace="NS"))
        for cid in made + refused:
            assert client.call(service.addr, m.ContainerGetProperties(cid=cid)).properties["sys.user.name"] == "c"
        service.stop()


def test_a_full_meta2_acknowledges_nothing_that_it_did_not_write(tmp_path, start_meta2):
    volume = tmp_path / "small"
    volume.mkdir()
    pool = HttpPool()
    with small_disk(volume, 4):
        service = start_meta2(volume=volume)
        client = MetaClient(pool)
        client.call(service.addr, m.ContainerCreate(cid=CID, account="a", name="c", namespace="NS"))
        acknowledged, refused = [], []
        number = 0
        filler = fill(volume, leave_bytes=200_000)
        while len(refused) < 5:
            number += 1
            assert number < 1000, "the disk does not get full"
            try:
                client.call(service.addr, put(number, size_bytes=5000))
                acknowledged.append(f"{number:04d}")
            except StatusError as err:
                assert err.code >= 500, err
                refused.append(f"{number:04d}")
        assert acknowledged
        assert listed(client, service.addr) == acknowledged
        filler.unlink()
        client.call(service.addr, put(number + 1))
        acknowledged.append(f"{number + 1:04d}")
        assert listed(client, service.addr) == acknowledged
        assert counters(client, service.addr) == (len(acknowledged), 10 * len(acknowledged))
        service.popen.kill()
        service.popen.wait()
        again = start_meta2(volume=volume)
        assert listed(client, again.addr) == acknowledged
        again.stop()
    pool.close()


def listed(client, addr):
    reply = client.call(addr, m.ContentList(cid=CID, max=1000))
    return [entry["name"] for entry in json.loads(reply.objects)]


def counters(client, addr):
    properties = client.call(addr, m.ContainerGetProperties(cid=CID)).properties
    return int(properties["sys.m2.objects"]), int(properties["sys.m2.usage"])


def test_a_cluster_whose_meta2_is_full(broken, fault_api, request):
    service = broken.services("meta2")[0]
    with on_small_disk(broken, service, 8):
        name = request.node.name
        fault_api.container_create(ACCOUNT, name)
        fault_api.object_create(ACCOUNT, name, obj_name="before", data=b"x" * 100)
        filler = fill(service.volume)
        with pytest.raises(OioException):
            for number in range(200):
                fault_api.object_create(
                    ACCOUNT, name, obj_name=f"{number}", data=b"x" * 100, properties={"p": "x" * 4000}
                )
        acknowledged = {"before", *(f"{one}" for one in range(number))}
        assert {entry["name"] for entry in fault_api.object_list(ACCOUNT, name)["objects"]} == acknowledged
        assert read(fault_api, name, "before") == b"x" * 100
        filler.unlink()
        fault_api.object_create(ACCOUNT, name, obj_name="after", data=b"x" * 100)
        acknowledged.add("after")
        assert {entry["name"] for entry in fault_api.object_list(ACCOUNT, name)["objects"]} == acknowledged
        for one in acknowledged:
            fault_api.object_delete(ACCOUNT, name, one)
        fault_api.container_delete(ACCOUNT, name)
