# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Outbox: events leave once their change is committed, whatever stops in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from meta2_bench import CID, FakeQueue, Meta2Bench, wait_until

from oio.common.status import StatusError
from oio.event.queue import EVENT_MAX_BYTES
from oio.meta import messages as m
from oio.meta import outbox, outbox_rows, refused

#: Writes objects until it is killed; says each acknowledged one. Its queue refuses everything.
CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from meta2_bench import CID, FakeQueue, Meta2Bench
import threading
queue = FakeQueue(); queue.down = True
bench = Meta2Bench(sys.argv[1], queue, sync="full")
bench.create()
def work(k):
    for i in range(100000):
        bench.put(f"{k}/{i}", size=i % 50 + 1)
        if i % 3 == 2:
            bench.delete(f"{k}/{i - 1}")
        sys.stdout.write(f"{k} {i}\\n"); sys.stdout.flush()
for k in range(3):
    threading.Thread(target=work, args=(k,)).start()
"""


def outbox_files(bench: Meta2Bench) -> list[str]:
    return os.listdir(os.path.join(bench.volume, ".outbox"))


def test_empty_outbox_leaves_no_trace(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.put("a")
    assert outbox_files(bench) == [CID + ".1"]
    wait_until(lambda: not outbox_files(bench))
    rows = bench.repository.read(
        CID + ".1", lambda reader: list(reader.execute("SELECT * FROM events"))
    )
    assert rows == []
    assert bench.repository.outbox.depth()["bases"] == 0
    kinds = event_queue.kinds()
    assert kinds.count("content.new") == 1
    assert kinds.count("container.new") == 1
    bench.put("b")
    event_queue.wait_for(lambda: event_queue.kinds().count("content.new") == 2)


def test_queue_down_never_blocks(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    event_queue.down = True
    for i in range(30):
        bench.put(f"o{i}")
    assert bench.check_counters()[1] == 30
    wait_until(lambda: event_queue.calls >= 2)
    event_queue.down = False
    event_queue.wait_for(lambda: event_queue.kinds().count("content.new") == 30)
    paths = [e["url"]["path"] for e in event_queue.events if e["event"] == "storage.content.new"]
    assert paths == [f"o{i}" for i in range(30)]


def test_a_base_that_seemed_to_be_led_elsewhere_is_written_on(
    bench: Meta2Bench, event_queue: FakeQueue
) -> None:
    event_queue.down = True
    bench.put("a")
    # Its events could not be read for a moment: no master was known.
    bench.repository.outbox._leave_to_master(CID + ".1")
    bench.put("b")
    event_queue.down = False
    event_queue.wait_for(lambda: event_queue.kinds().count("content.new") == 2)


def test_more_events_than_memory(tmp_path: Path, event_queue: FakeQueue) -> None:
    bench = Meta2Bench(str(tmp_path), event_queue)
    bench.repository.outbox._memory_max = 10
    bench.create()
    event_queue.down = True
    for i in range(50):
        bench.put(f"o{i}")
        assert bench.repository.outbox.depth()["memory"] <= 10
    event_queue.down = False
    event_queue.wait_for(lambda: event_queue.kinds().count("content.new") >= 50)
    paths = [e["url"]["path"] for e in event_queue.events if e["event"] == "storage.content.new"]
    assert list(dict.fromkeys(paths)) == [f"o{i}" for i in range(50)]
    bench.put("last")
    event_queue.wait_for(lambda: "last" in [e["url"].get("path") for e in event_queue.events])
    wait_until(lambda: not outbox_files(bench))
    bench.repository.close()


def test_destroyed_while_the_queue_is_down(tmp_path: Path, event_queue: FakeQueue) -> None:
    event_queue.down = True
    bench = Meta2Bench(str(tmp_path), event_queue)
    bench.create()
    bench.put("a")
    bench.call(m.ContainerDestroy(cid=CID, force=True))
    assert bench.create()  # the name is free at once
    bench.put("b")
    bench.repository.close()
    assert len(outbox_files(bench)) == 2
    event_queue.down = False
    bench = Meta2Bench(str(tmp_path), event_queue)
    event_queue.wait_for(
        lambda: {"meta2.deleted", "container.deleted"} <= set(event_queue.kinds())
        and event_queue.kinds().count("content.new") == 2
    )
    wait_until(lambda: not outbox_files(bench))
    assert [item["name"] for item in bench.objects()] == ["b"]
    bench.repository.close()


def test_properties_too_large_for_an_event_stay_out_of_it(
    bench: Meta2Bench, event_queue: FakeQueue
) -> None:
    """The queue would refuse the event for ever, and all those of the service would wait behind it."""
    bench.put("a", properties={"big": "x" * EVENT_MAX_BYTES, "small": "y"})
    bench.delete("a")
    event_queue.wait_for(lambda: "content.deleted" in event_queue.kinds())
    for event in event_queue.events:
        if event["event"].startswith("storage.content"):
            kinds = {bean["type"] for bean in event["data"]}
            assert {"aliases", "contents_headers"} <= kinds and "properties" not in kinds
        assert len(msgspec.json.encode(event)) <= EVENT_MAX_BYTES


def test_changes_of_a_container_too_large_for_an_event_are_refused(bench: Meta2Bench) -> None:
    before = bench.properties()
    with pytest.raises(StatusError, match="Too large") as caught:
        bench.call(m.ContainerSetProperties(cid=CID, properties={"user.k": "x" * EVENT_MAX_BYTES}))
    assert caught.value.code == 413
    assert bench.properties() == before


@pytest.mark.parametrize("down", [False, True])
def test_destruction_is_the_last_word(tmp_path: Path, event_queue: FakeQueue, down: bool) -> None:
    """A state told later than the deletion would create the container again in its account."""
    event_queue.down = down
    bench = Meta2Bench(str(tmp_path), event_queue)
    bench.create()
    for name in ("a", "b", "c"):
        bench.put(name)
    # The first state left at once, this one waits.
    assert bench.repository.outbox._bases[CID + ".1"].state_row
    bench.call(m.ContainerDestroy(cid=CID, force=True))
    event_queue.down = False
    event_queue.wait_for(lambda: "meta2.deleted" in event_queue.kinds())
    wait_until(lambda: not outbox_files(bench))
    assert event_queue.kinds()[-2:] == ["container.deleted", "meta2.deleted"]
    bench.repository.close()


def test_interrupted_destruction_ends_at_restart(tmp_path: Path, event_queue: FakeQueue) -> None:
    event_queue.down = True
    bench = Meta2Bench(str(tmp_path), event_queue)
    bench.create()
    bench.repository._remove = lambda base_name, last_entry: None  # type: ignore[method-assign]
    bench.call(m.ContainerDestroy(cid=CID))
    bench.repository.close()
    event_queue.down = False
    bench = Meta2Bench(str(tmp_path), event_queue)
    event_queue.wait_for(lambda: "container.deleted" in event_queue.kinds())
    wait_until(lambda: not bench.repository.exists(CID + ".1"))
    assert bench.create()
    bench.repository.close()


def test_kill_loses_nothing(tmp_path: Path, event_queue: FakeQueue) -> None:
    volume = tmp_path / "volume"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(volume), os.path.dirname(__file__)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    acknowledged = [child.stdout.readline() for _ in range(150)]
    child.send_signal(signal.SIGKILL)
    acknowledged += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    written = {tuple(map(int, line.split())) for line in acknowledged if line.endswith("\n")}
    assert len(written) >= 150

    bench = Meta2Bench(str(volume), event_queue)
    names = {item["name"] for item in bench.objects(max=10000)}
    for k, i in written:
        # A name that precedes an acknowledged number of the form 3n+2 was deleted, unless the next was cut.
        if i % 3 == 1:
            assert f"{k}/{i}" in names or (k, i + 1) not in written or f"{k}/{i + 1}" in names
            if (k, i + 1) in written:
                assert f"{k}/{i}" not in names
        else:
            assert f"{k}/{i}" in names
    usage, count = bench.check_counters()
    assert count == len(names)
    assert usage > 0

    def told() -> bool:
        paths = {
            e["url"]["path"] for e in event_queue.events if e["event"] == "storage.content.new"
        }
        return {f"{k}/{i}" for k, i in written} <= paths

    event_queue.wait_for(told)
    wait_until(lambda: not outbox_files(bench))
    bench.repository.close()


def test_destructions_and_creations_race(tmp_path: Path, event_queue: FakeQueue) -> None:
    """A base never meets the WAL of its successor, and every event comes out."""
    bench = Meta2Bench(str(tmp_path), event_queue)
    bench.repository._open_bases._open_max = 2
    cids = [digit * 64 for digit in "ABC"]
    done: Counter[str] = Counter()
    odd: list[str] = []

    def work(seed: int) -> None:
        random = Random(seed)
        for i in range(150):
            cid, draw = random.choice(cids), random.random()
            request: m.Operation
            if draw < 0.3:
                request = m.ContainerCreate(cid=cid, account="a", name="n", namespace="NS")
            elif draw < 0.45:
                request = m.ContainerDestroy(cid=cid, force=True)
            elif draw < 0.8:
                request = m.ContentPut(
                    cid=cid, path=f"{seed}/{i}", version=1, content_id=os.urandom(16).hex().upper(),
                    size=1, chunks=Meta2Bench.chunks("0", 1, 1),
                )
            else:
                request = m.ContentList(cid=cid)
            try:
                reply = bench.call(request)
            except StatusError as exc:
                if exc.code != 431:
                    odd.append(f"{type(request).__name__}: {exc}")
            else:
                if not isinstance(reply, m.Created) or reply.created:
                    done[type(request).__name__] += 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert odd == []
    wait_until(lambda: not outbox_files(bench))
    kinds = Counter(event_queue.kinds())
    assert kinds["container.new"] >= done["ContainerCreate"] > 3
    assert kinds["container.deleted"] >= done["ContainerDestroy"] > 3
    paths = {e["url"]["path"] for e in event_queue.events if e["event"] == "storage.content.new"}
    assert len(paths) >= done["ContentPut"] > 3
    bench.repository.close()


# -- queues that refuse, fail, or hang ---------------------------------------------------------


def refused_lines(bench: Meta2Bench) -> list[dict[str, Any]]:
    path = Path(bench.volume, ".outbox", "refused.jsonl")
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def test_events_carry_the_name_of_their_base(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.put("a")
    event_queue.wait_for(lambda: "content.new" in event_queue.kinds())
    assert set(event_queue.keys) == {CID + ".1"}


def test_what_the_queue_refuses_does_not_hold_the_others(
    bench: Meta2Bench, event_queue: FakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its properties the deletion passes: its chunks must be cleaned."""
    event_queue.event_max_bytes = 4000
    bench.put("a", properties={"big": "x" * 5000})
    bench.put("b")
    bench.delete("a")
    event_queue.wait_for(lambda: "content.deleted" in event_queue.kinds())
    contents = [e for e in event_queue.events if e["event"].startswith("storage.content")]
    deleted = [e for e in contents if e["event"] == "storage.content.deleted"]
    assert {bean["type"] for bean in deleted[0]["data"]} == {"aliases", "contents_headers", "chunks"}
    assert {e["url"]["path"] for e in contents} == {"a", "b"}
    assert [e["event"] for e in refused_lines(bench)] == ["storage.content.new", "storage.content.deleted"]
    assert bench.repository.outbox.depth()["refused"] == 2
    assert "request reqid-1" in caplog.text
    wait_until(lambda: outbox_files(bench) == ["refused.jsonl"])


def test_what_can_never_pass_is_kept_in_a_file(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    event_queue.event_max_bytes = 4000
    bench.call(m.ContainerSetProperties(cid=CID, properties={"user.k": "x" * 5000}))
    wait_until(lambda: bench.repository.outbox.depth()["refused"] == 1)
    assert refused_lines(bench)[0]["data"]["properties"] == {"k": "x" * 5000}
    bench.put("after")
    event_queue.wait_for(lambda: "content.new" in event_queue.kinds())


def test_the_file_of_refused_events_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "FILE_MAX_BYTES", 1000)
    kept = refused.RefusedEvents(str(tmp_path), fsync=False)
    for number in range(50):
        kept.keep([b'{"event":"e","number":%d}' % number, b"not even JSON"], "too large")
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) <= {"refused.jsonl", "refused.jsonl.1"} and max(sizes.values()) < 1200
    assert kept.total == 100


def test_bytes_in_memory_are_bounded(
    tmp_path: Path, event_queue: FakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MEMORY_MAX_BYTES", 20_000)
    monkeypatch.setattr(outbox_rows, "DELIVERY_MAX_BYTES", 5_000)
    event_queue.down = True
    bench = Meta2Bench(str(tmp_path), event_queue)
    bench.create()
    box = bench.repository.outbox
    for i in range(50):
        bench.put(f"o{i}", properties={"k": "x" * 1000})
        assert box._bytes_in_memory <= 20_000
    event_queue.down = False
    event_queue.wait_for(lambda: event_queue.kinds().count("content.new") >= 50)
    paths = [e["url"]["path"] for e in event_queue.events if e["event"] == "storage.content.new"]
    assert list(dict.fromkeys(paths)) == [f"o{i}" for i in range(50)]
    wait_until(lambda: not outbox_files(bench))
    assert (box._bytes_in_memory, box.depth()["memory"]) == (0, 0)
    bench.repository.close()


def test_the_events_of_a_destroyed_container_leave_in_slices(
    tmp_path: Path, event_queue: FakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_rows, "DELIVERY_MAX", 7)
    event_queue.down = True
    bench = Meta2Bench(str(tmp_path), event_queue)
    bench.create()
    for i in range(40):
        bench.put(f"o{i}")
    bench.call(m.ContainerDestroy(cid=CID, force=True))
    event_queue.down = False
    event_queue.wait_for(lambda: "meta2.deleted" in event_queue.kinds())
    paths = [e["url"]["path"] for e in event_queue.events if e["event"] == "storage.content.new"]
    assert paths == [f"o{i}" for i in range(40)]
    assert event_queue.kinds()[-2:] == ["container.deleted", "meta2.deleted"]
    wait_until(lambda: not outbox_files(bench))
    bench.repository.close()


def test_a_queue_that_is_down_costs_no_writes(tmp_path: Path, event_queue: FakeQueue) -> None:
    """Each base with pending events was written every second, for nothing."""
    event_queue.down = True
    bench = Meta2Bench(str(tmp_path), event_queue)
    bench.create()
    bench.put("a")
    box = bench.repository.outbox
    # The last state is told once, then nothing is left to do before the queue is back.
    wait_until(lambda: len(box._tidy) == 0)
    calls = event_queue.calls
    wait_until(lambda: event_queue.calls > calls + 1)
    assert len(box._tidy) == 0
    event_queue.down = False
    wait_until(lambda: not outbox_files(bench))
    bench.repository.close()


def test_states_wait_for_others_as_long_as_told(tmp_path: Path, event_queue: FakeQueue) -> None:
    """All the changes of this time make one state, which tells the last counters."""
    bench = Meta2Bench(str(tmp_path), event_queue)
    bench.create()
    event_queue.wait_for(lambda: "container.state" in event_queue.kinds())
    bench.repository.outbox._delay_s = 0.3
    wait_until(lambda: not outbox_files(bench))
    event_queue.events.clear()
    for number in range(10):
        bench.put(f"o{number}", size=1)
    event_queue.wait_for(lambda: "container.state" in event_queue.kinds())
    wait_until(lambda: not outbox_files(bench))
    states = [e["data"]["object-count"] for e in event_queue.events if e["event"] == "storage.container.state"]
    assert states[-1] == 10 and len(states) < 10
    bench.repository.close()


def test_the_states_of_many_bases_leave_together(tmp_path: Path, event_queue: FakeQueue) -> None:
    """One delivery for each of them made the last one wait for as long as there were others."""
    bench = Meta2Bench(str(tmp_path), event_queue)
    cids = [f"{number:064X}" for number in range(100)]
    for cid in cids:
        bench.call(m.ContainerCreate(cid=cid, account="acme", name=cid, namespace="NS", peers=["p1"]))
    event_queue.wait_for(lambda: event_queue.kinds().count("container.state") == len(cids))
    assert event_queue.calls < len(cids) / 2
    bench.repository.close()
