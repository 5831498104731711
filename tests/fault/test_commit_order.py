# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What a container server asks of the kernel before it acknowledges a change."""

import itertools
import re

import pytest
from processes import can_trace, tracer, whole_calls

from oio.http.client import HttpPool
from oio.meta import messages as m
from oio.meta.client import MetaClient

pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is missing, or ptrace is not allowed")

CID = "C0" * 32
TRACED = "openat,close,pwrite64,write,fsync,fdatasync,sendto"


def put(number):
    return m.ContentPut(
        cid=CID, path=f"o{number}", version=1_000_000 + number, content_id=f"{number:032X}", size=10,
        hash="00" * 16, policy="SINGLE", chunk_method="plain/nb_copy=1",
        chunks=[m.Chunk(url=f"http://NS-rawx-1/{number:064X}", pos="0", size=10, hash="00" * 16)],
    )  # fmt: skip


def calls_of(trace, volume):
    """("write" or "sync", suffix of the file) for bases, and ("answer", status) for what is told to clients."""
    names, found = {}, []
    for line in whole_calls(trace):
        match = re.match(r"\d+\s+(\w+)\((.*)\)\s+= (-?\d+)", line)
        if match is None or match[3].startswith("-"):
            continue
        call, arguments, result = match.groups()
        if call == "openat":
            path = re.search(r'"([^"]*)"', arguments)[1]
            names.pop(result, None)
            if path.startswith(f"{volume}/"):
                names[result] = re.search(r"(-wal|-shm|)$", path)[1] or "base"
        elif call == "close":
            names.pop(arguments, None)
        elif call == "sendto" and '"HTTP/1.1 ' in arguments:
            found.append(("answer", arguments.split('"HTTP/1.1 ')[1][:3]))
        elif name := names.get(arguments.split(",")[0]):
            found.append(("sync" if "sync" in call else "write", name))
    return found


def commits(tmp_path, start_meta2, conf, count=5):
    """What happens between the answers to so many commits."""
    trace = tmp_path / "trace"
    service = start_meta2(conf=conf, wrapper=tracer(trace, TRACED))
    pool = HttpPool()
    try:
        client = MetaClient(pool)
        client.call(service.addr, m.ContainerCreate(cid=CID, account="a", name="c", namespace="NS"))
        for number in range(count):
            client.call(service.addr, put(number))
    finally:
        pool.close()
        service.terminate()
    calls = calls_of(trace, service.volume)
    answers = [index for index, call in enumerate(calls) if call[0] == "answer"]
    assert len(answers) == count + 1
    return [calls[begin + 1 : end] for begin, end in itertools.pairwise(answers)]


def test_an_object_is_acknowledged_after_the_log_is_on_disk(tmp_path, start_meta2):
    for calls in commits(tmp_path, start_meta2, ""):
        assert ("write", "-wal") in calls
        last_write = len(calls) - 1 - calls[::-1].index(("write", "-wal"))
        assert ("sync", "-wal") in calls[last_write:], calls


def test_without_syncs_the_log_is_only_written(tmp_path, start_meta2):
    """Shows that the former test can tell."""
    for calls in commits(tmp_path, start_meta2, "sqliterepo.sync = off\n"):
        assert ("write", "-wal") in calls
        assert not [call for call in calls if call[0] == "sync"]
