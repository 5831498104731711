# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Chunks of what is deleted, overwritten or failed vanish from the volumes; chunks of what lives never do."""

import contextlib
import hashlib
import random

import pytest
from faults import Hurry, chunk_path, kill_one, read, servers_of, stopped
from processes import files_below
from support import ACCOUNT, eventually

from oio.common.exceptions import NoSuchObject, OioException

POLICIES = ["SINGLE", "THREECOPIES", "EC"]
SIZE = 1_300_000  # two chunks


def create(api, box, name, policy="THREECOPIES", size=SIZE):
    """Store an object; gives its chunks as the container knows them."""
    data = random.Random(name).randbytes(size)
    api.object_create(ACCOUNT, box, obj_name=name, data=data, policy=policy)
    return api.object_locate(ACCOUNT, box, name)[1]


def files(broken, chunks):
    """Those of the chunks that are on the volumes, whole or not."""
    paths = [chunk_path(broken, chunk) for chunk in chunks]
    return [path for path in paths if path.exists() or path.with_name(f"{path.name}.pending").exists()]


def vanish(broken, chunks, timeout_s=20.0):
    hurry = Hurry(broken, given_up=True)

    def vanished():
        with contextlib.suppress(OioException):  # a queue that a former test killed
            hurry()
        return not files(broken, chunks)

    eventually(vanished, timeout_s, "deletion of chunks")


def volumes(broken):
    """All the files of the rawx."""
    found = set()
    for service in broken.services("rawx"):
        found.update(f"{service.name}/{name}" for name in files_below(service.volume))
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_chunks_of_a_deleted_object_vanish(broken, fault_api, box, policy):
    kept = create(fault_api, box, "kept", policy)
    chunks = create(fault_api, box, "o", policy)
    assert len(files(broken, chunks)) == len(chunks)
    fault_api.object_delete(ACCOUNT, box, "o")
    vanish(broken, chunks)
    assert len(files(broken, kept)) == len(kept)


def test_chunks_of_objects_deleted_together_vanish(broken, fault_api, box):
    chunks = [chunk for number in range(30) for chunk in create(fault_api, box, f"{number}", size=100)]
    kept = create(fault_api, box, "kept")
    fault_api.object_delete_many(ACCOUNT, box, [f"{number}" for number in range(30)])
    vanish(broken, chunks)
    assert len(files(broken, kept)) == len(kept)


def test_chunks_of_an_overwritten_object_vanish_and_those_of_the_new_one_stay(broken, fault_api, box):
    former = create(fault_api, box, "o", "THREECOPIES")
    for policy in POLICIES:
        data = policy.encode() * 100_000
        fault_api.object_create(ACCOUNT, box, obj_name="o", data=data, policy=policy)
        current = fault_api.object_locate(ACCOUNT, box, "o")[1]
        vanish(broken, former)
        assert len(files(broken, current)) == len(current)
        assert read(fault_api, box, "o") == data
        former = current


def test_the_chunks_of_a_version_live_as_long_as_the_version(broken, fault_api, box):
    fault_api.container_set_properties(ACCOUNT, box, system={"sys.m2.policy.version": "-1"})
    versions = []
    for number in range(3):
        fault_api.object_create(ACCOUNT, box, obj_name="o", data=b"%d" % number * 1000, policy="THREECOPIES")
        metadata, chunks = fault_api.object_locate(ACCOUNT, box, "o")
        versions.append((metadata["version"], chunks))
    fault_api.object_delete(ACCOUNT, box, "o")
    doomed = versions.pop(1)
    fault_api.object_delete(ACCOUNT, box, "o", version=doomed[0])
    vanish(broken, doomed[1])
    for version, chunks in versions:
        assert len(files(broken, chunks)) == len(chunks)
        assert read_version(fault_api, box, version)


def read_version(api, box, version):
    _metadata, stream = api.object_fetch(ACCOUNT, box, "o", version=version)
    return b"".join(stream)


def test_chunks_of_a_server_that_was_away_vanish_when_it_is_back(broken, fault_api, box):
    chunks = create(fault_api, box, "o", size=5000)
    others = create(fault_api, box, "other", size=5000)
    away = servers_of(chunks)[0]
    there = [chunk for chunk in chunks if chunk["url"].split("/")[2] != away]
    with stopped(broken, away):
        fault_api.object_delete(ACCOUNT, box, "o")
        vanish(broken, there)
        assert len(files(broken, chunks)) == 1
    vanish(broken, chunks)
    assert len(files(broken, others)) == len(others)


class Failing:
    """A source that breaks after so many bytes."""

    def __init__(self, good_bytes):
        self.left = good_bytes

    def read(self, size=-1):
        if not self.left:
            raise OSError("the source broke")
        count = self.left if size < 0 else min(size, self.left)
        self.left -= count
        return b"x" * count


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("good_bytes", [0, 4096, 2_500_000])
def test_a_source_that_breaks_leaves_nothing(broken, fault_api, box, policy, good_bytes):
    before = volumes(broken)
    with pytest.raises((OioException, OSError)):
        fault_api.object_create(ACCOUNT, box, Failing(good_bytes), obj_name="o", policy=policy)
    with pytest.raises(NoSuchObject):
        fault_api.object_locate(ACCOUNT, box, "o")
    eventually(lambda: not volumes(broken) - before, what="nothing left of the upload")


@pytest.mark.parametrize(("policy", "down"), [("THREECOPIES", 11), ("EC", 6)])
def test_an_upload_without_enough_servers_leaves_nothing(broken, fault_api, box, policy, down):
    names = [service.service_id for service in broken.services("rawx")]
    before = volumes(broken)
    with stopped(broken, *names[:down]), pytest.raises(OioException):
        fault_api.object_create(ACCOUNT, box, obj_name="o", data=b"x" * SIZE, policy=policy)
    assert fault_api.object_list(ACCOUNT, box)["objects"] == []
    eventually(lambda: not volumes(broken) - before, what="nothing left of the upload")


@pytest.mark.parametrize("victim", ["event-agent-1", "meta2-1"])
def test_kills_between_deletion_and_cleaning_lose_no_event(broken, fault_api, box, victim):
    """Half of the objects are deleted while a service is killed again and again; the other half lives."""
    doomed, kept = {}, {}
    for number in range(60):
        group = doomed if number % 2 else kept
        group[f"{number}"] = create(fault_api, box, f"{number}", size=3000)
    name = f"{broken.namespace}-{victim}"
    deleted = set()
    for number, one in enumerate(doomed):
        if number % 10 == 5:
            kill_one(broken, name)

        def gone(one=one):
            try:
                fault_api.object_delete(ACCOUNT, box, one)
            except NoSuchObject:
                return True  # a former try, whose answer was lost
            except OioException:
                return False  # the service is not back yet
            return True

        eventually(gone, what=f"deletion of {one}")
        deleted.add(one)
    kill_one(broken, name)
    broken.wait_ready()
    assert deleted == set(doomed)
    vanish(broken, [chunk for chunks in doomed.values() for chunk in chunks], 40)
    for one, chunks in kept.items():
        assert len(files(broken, chunks)) == len(chunks)
        data = random.Random(one).randbytes(3000)
        assert hashlib.md5(read(fault_api, box, one)).digest() == hashlib.md5(data).digest()


def test_events_wait_for_the_agent_even_when_their_producer_is_killed(broken, fault_api, box):
    doomed = [chunk for number in range(10) for chunk in create(fault_api, box, f"{number}", size=3000)]
    kept = create(fault_api, box, "kept")
    meta2 = f"{broken.namespace}-meta2-1"
    with stopped(broken, f"{broken.namespace}-event-agent-1"):
        fault_api.object_delete_many(ACCOUNT, box, [f"{number}" for number in range(10)])
        kill_one(broken, meta2)
        assert len(files(broken, doomed)) == len(doomed)
    broken.wait_ready()
    vanish(broken, doomed)
    assert len(files(broken, kept)) == len(kept)
