# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Spools as a source: many producers, one consuming process, a base for what must wait."""

import json
import os
import subprocess
import sys
import textwrap
import time

import apsw
import pytest

from oio.event.queue import EventsRefused, open_queue, producer_url
from oio.event.source import SourceError, TubeStats, open_source


def drain(source, timeout_s=0.3):
    bodies = []
    while job := source.reserve(timeout_s):
        bodies.append(job.body)
        assert source.delete(job)
    return bodies


def test_all_producers_of_a_host_are_read(tmp_path):
    url = f"spool://{tmp_path}"
    queues = [open_queue(producer_url(url, "rawx", str(n))) for n in range(3)]
    with open_source(url) as source:
        for n, queue in enumerate(queues):
            queue.put(b"%d" % n)
        assert sorted(drain(source)) == [b"0", b"1", b"2"]
        late = open_queue(producer_url(url, "meta2", "late"))
        late.put(b"late")
        job = source.reserve(5)
        assert job.body == b"late"
        # What is not settled yet keeps its place.
        for queue in (*queues, late):
            queue.put(b"x")
    with open_source(url) as source:
        assert sorted(drain(source)) == [b"late", b"x", b"x", b"x", b"x"]


def test_one_process_reads_and_another_takes_over(tmp_path):
    url = f"spool://{tmp_path}"
    code = f"""
        import sys, time
        from oio.event.source import open_source
        source = open_source({url!r})
        job = source.reserve(5)
        print(job.body.decode(), flush=True)
        sys.stdin.read()
    """
    with open_queue(url + "/p") as queue:
        queue.put_many([b"1", b"2"])
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert child.stdout.readline() == b"1\n"
            with open_source(url) as source:
                assert source.reserve(0.1) is None
                with pytest.raises(SourceError):
                    source.stats()
                child.kill()
                child.wait()
                assert sorted([source.reserve(5).body, source.reserve(5).body]) == [b"1", b"2"]
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()


def test_what_is_released_does_not_hold_its_spool(tmp_path):
    url = f"spool://{tmp_path}"
    with open_queue(url + "/p?segment_bytes=1000") as queue, open_source(url) as source:
        for n in range(100):
            queue.put(b"%d " % n + b"x" * 100)
        first = source.reserve(2)
        assert source.release(first, 1000)
        assert len(drain(source)) == 99
        assert source.stats() == TubeStats(delayed=1)
        segments = [name for name in os.listdir(tmp_path / "p") if name.endswith(".seg")]
        assert len(segments) == 1
    with open_source(url) as source:
        assert source.stats() == TubeStats(delayed=1)
        assert source.kick(10) == 1
        job = source.reserve(2)
        assert (job.body, source.attempts(job)) == (first.body, 2)
        assert source.release(job, 0.1)
        job = source.reserve(3)
        assert source.attempts(job) == 3


def test_chunks_of_former_versions_become_events(tmp_path):
    (tmp_path / ".event-agent").mkdir()
    base = apsw.Connection(str(tmp_path / ".event-agent" / "retry.db"))
    base.execute("CREATE TABLE chunk (service, chunk, due_s, attempts, request_id)")
    base.execute("INSERT INTO chunk VALUES ('rawx-1', ?, 0, 3, 'r1')", ("A" * 64,))
    base.execute("INSERT INTO chunk VALUES ('rawx-2', ?, 0, 0, '')", ("B" * 64,))
    base.close()
    with open_source(f"spool://{tmp_path}") as source:
        events = [json.loads(body) for body in drain(source, 2)]
    assert [(event["event"], event["data"], event["request_id"]) for event in events] == [
        ("storage.content.deleted", [{"type": "chunks", "id": f"http://rawx-1/{'A' * 64}"}], "r1"),
        ("storage.content.deleted", [{"type": "chunks", "id": f"http://rawx-2/{'B' * 64}"}], ""),
    ]
    assert all(abs(event["when"] / 1e6 - time.time()) < 60 for event in events)
    with open_source(f"spool://{tmp_path}") as source:
        assert source.stats() == TubeStats()


def test_a_directory_that_does_not_exist_yet(tmp_path):
    url = f"spool://{tmp_path}/a/b"
    with open_source(url) as source:
        assert source.reserve(0.1) is None
        with open_queue(url + "/p") as queue:
            queue.put(b"x")
            assert source.reserve(3).body == b"x"


def test_a_base_that_cannot_be_opened_is_told(tmp_path):
    (tmp_path / ".event-agent").write_text("a file")
    with open_source(f"spool://{tmp_path}") as source:
        with pytest.raises(SourceError):
            source.stats()
        with pytest.raises(SourceError):
            source.reserve(0)


def test_bad_events_do_not_hold_the_others(tmp_path):
    with open_queue(f"spool://{tmp_path}") as queue, open_source(f"spool://{tmp_path}") as source:
        with pytest.raises(EventsRefused) as caught:
            queue.put_many([b"1", b"", b"2"])
        assert caught.value.events == [b""]
        assert drain(source) == [b"1", b"2"]
