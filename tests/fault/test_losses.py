# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Lost servers, corrupt bytes, killed processes: what was acknowledged stays, and is never wrong."""

import random
from collections import Counter

import pytest
from faults import Writers, chunk_path, kill_one, read, servers_of, stopped
from support import ACCOUNT, eventually

from oio.common.exceptions import ClientException, OioException
from oio.common.status import POLICY_NOT_SATISFIABLE

# Policy, chunks that may be lost of a metachunk.
TOLERANCES = [("TWOCOPIES", 1), ("THREECOPIES", 2), ("EC21", 1), ("EC", 3)]
#: Chunks of a metachunk. A quorum of them is enough for an upload, not for losing as many afterwards.
WHOLE = {"SINGLE": 1, "TWOCOPIES": 2, "THREECOPIES": 3, "EC21": 3, "EC": 9}


def store(api, box, policy, size=300_000):
    data = random.Random(size).randbytes(size)

    def stored():
        # A server that the former test stopped may be seen as down for a moment after it came back.
        try:
            chunks = api.object_create(ACCOUNT, box, obj_name="o", data=data, policy=policy)[0]
        except ClientException as exc:
            assert exc.status == POLICY_NOT_SATISFIABLE, exc
            return None
        counts = Counter(chunk["pos"].partition(".")[0] for chunk in chunks)
        return chunks if set(counts.values()) == {WHOLE[policy]} else None

    chunks = eventually(stored, what="all servers seen up")
    return data, sorted(chunks, key=lambda chunk: chunk["pos"])


@pytest.mark.parametrize(("policy", "tolerated"), TOLERANCES)
def test_reads_go_on_without_as_many_servers_as_the_policy_tolerates(broken, fault_api, box, policy, tolerated):
    data, chunks = store(fault_api, box, policy)
    with stopped(broken, *servers_of(chunks)[:tolerated]):
        assert read(fault_api, box, "o") == data


@pytest.mark.parametrize(("policy", "tolerated"), TOLERANCES)
def test_one_server_more_is_a_clear_error_and_never_wrong_bytes(broken, fault_api, box, policy, tolerated):
    _data, chunks = store(fault_api, box, policy)
    with stopped(broken, *servers_of(chunks)[: tolerated + 1]), pytest.raises(OioException) as failed:
        read(fault_api, box, "o")
    assert str(failed.value)


@pytest.mark.parametrize(("policy", "tolerated"), TOLERANCES)
def test_chunks_that_vanished_are_read_around(broken, fault_api, box, policy, tolerated):
    data, chunks = store(fault_api, box, policy)
    for chunk in chunks[:tolerated]:
        chunk_path(broken, chunk).unlink()
    assert read(fault_api, box, "o") == data


def corrupt(path, offset):
    with open(path, "r+b") as chunk:
        chunk.seek(offset)
        byte = chunk.read(1)
        chunk.seek(offset)
        chunk.write(bytes([byte[0] ^ 0x40]))


@pytest.mark.parametrize("size", [4096, 900_000, 3_000_000], ids=["small", "one block", "several chunks"])
@pytest.mark.parametrize(("policy", "tolerated"), TOLERANCES)
def test_corrupt_bytes_are_detected_and_read_around(broken, fault_api, box, policy, tolerated, size):
    data, chunks = store(fault_api, box, policy, size)
    first = [chunk for chunk in chunks if chunk["pos"].split(".")[0] == "0"]
    for chunk in first[:tolerated]:
        path = chunk_path(broken, chunk)
        corrupt(path, path.stat().st_size // 2)
    for _ in range(4):
        assert read(fault_api, box, "o") == data


def test_corrupt_bytes_without_another_copy_are_an_error(broken, fault_api, box):
    _data, chunks = store(fault_api, box, "SINGLE", 900_000)
    corrupt(chunk_path(broken, chunks[0]), 450_000)
    with pytest.raises(OioException):
        read(fault_api, box, "o")


@pytest.mark.parametrize("size", [4096, 900_000])
def test_a_corrupt_range_is_never_served(broken, fault_api, box, size):
    data, chunks = store(fault_api, box, "THREECOPIES", size)
    for chunk in chunks[:2]:
        corrupt(chunk_path(broken, chunk), size // 2)
    for _ in range(6):
        _meta, stream = fault_api.object_fetch(ACCOUNT, box, "o", ranges=[(size // 2 - 5, size // 2 + 5)])
        assert b"".join(stream) == data[size // 2 - 5 : size // 2 + 6]


def test_a_truncated_chunk_is_read_around(broken, fault_api, box):
    data, chunks = store(fault_api, box, "THREECOPIES")
    for chunk in chunks[:2]:
        with open(chunk_path(broken, chunk), "r+b") as file:
            file.truncate(1000)
    for _ in range(6):
        assert read(fault_api, box, "o") == data


def test_uploads_go_on_while_a_server_is_away(broken, fault_api, box):
    with stopped(broken, broken.services("rawx")[0].service_id):
        for number in range(20):
            fault_api.object_create(ACCOUNT, box, obj_name=f"o{number}", data=b"x" * 5000, policy="THREECOPIES")
    assert len(fault_api.object_list(ACCOUNT, box)["objects"]) == 20


def test_a_policy_that_cannot_be_satisfied_is_said(broken, fault_api, box):
    names = [service.service_id for service in broken.services("rawx")]
    with stopped(broken, *names[:6]), pytest.raises(OioException):
        # Until the scores fall, uploads fail for want of quorum; then for want of services: both are clear.
        fault_api.object_create(ACCOUNT, box, obj_name="o", data=b"x" * 5000, policy="EC")
    assert fault_api.object_list(ACCOUNT, box)["objects"] == []


KILLED = ["rawx-1", "meta2-1", "meta1-1", "meta0-1", "proxy-1", "conscience-1"]


@pytest.mark.parametrize("victim", KILLED)
@pytest.mark.parametrize("policy", ["THREECOPIES", "EC"])
def test_a_kill_loses_nothing_that_was_acknowledged(broken, fault_api, box, victim, policy):
    name = f"{broken.namespace}-{victim}"
    with Writers(broken, box, policy) as writers:
        for _ in range(2):
            writers.progress(5)
            kill_one(broken, name)
        broken.wait_ready()
        writers.progress(5)
    writers.verify(fault_api)
