# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Events of a chunk server: what they say, and that none is lost between a request and the queue."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from rawx_harness import CHUNK, OTHER, PREFIX, headers_for, wait_for

from oio.common.exceptions import ConfigurationException
from oio.event.queue import EventsRefused, QueueError, open_queue
from oio.event.transport.spool import SpoolQueue, list_segments, segment_path
from oio.event.transport.spool_reader import SpoolReader
from oio.rawx import config, journal, main, recall
from oio.rawx.config import RawxConfig
from oio.rawx.events import CHUNK_DELETED, CHUNK_NEW, KINDS, EventSender, chunk_of
from oio.rawx.journal import Journal
from oio.rawx.metadata import ChunkMeta

BEFORE = "x-oio-chunk-created-before"
META = ChunkMeta(CHUNK, policy="P", method="M", position="0", chunk_hash="AB", chunk_size="1",
                 fullpath="a/b/c/1/AA", container_id="CID", content_path="\xc3\xa9",
                 content_version="1", content_id="AA", version="4.2")  # fmt: skip


class FakeQueue:
    """A queue that is down, refuses, or never answers."""

    def __init__(self):
        self.events, self.keys = [], []
        self.down = False
        self.refused = ()
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()

    def put_many(self, events, timeout_s=None, keys=None):
        self.calls += 1
        if self.down:
            raise QueueError("unreachable")
        assert self.gate.wait(10)
        refused = [event for event in events if any(word in event for word in self.refused)]
        self.events += [event for event in events if event not in refused]
        self.keys += keys or []
        if refused:
            raise EventsRefused("too large", refused)

    def close(self):
        self.gate.set()


@pytest.fixture
def quick(monkeypatch):
    """Pauses are short."""
    for name in ("LINGER_S", "RETRY_MIN_S", "RETRY_MAX_S", "SYNC_PERIOD_S", "SAVE_PERIOD_S"):
        monkeypatch.setattr(journal, name, 0.02)


@pytest.fixture
def queue():
    return FakeQueue()


@pytest.fixture
def open_journal(tmp_path, queue, quick):
    """Opens journals in one directory; they are closed at the end."""
    opened = []

    def opener(**options):
        keys = options.pop("keys", None)
        spool = SpoolQueue(str(tmp_path / "journal"), fsync=False, **options)
        opened.append(Journal(spool, lambda: queue, keys))
        return opened[-1]

    yield opener
    for one in opened:
        one.close(0.1)


def put_in(directory, count, first=0):
    """Events that a former process left."""
    with SpoolQueue(str(directory), fsync=False) as spool:
        for number in range(first, first + count):
            spool.put(b"%d" % number)


# -- what they say -----------------------------------------------------------------------------


class Lines:
    """A journal in memory."""

    def __init__(self):
        self.events = []

    append = property(lambda self: self.events.append)


def test_event_envelope():
    lines = Lines()
    sender = EventSender(dict.fromkeys(KINDS, lines), "127.0.0.1:6201", "NS-rawx-1")
    sender.emit(CHUNK_NEW, META, "REQ-77", True, 1700000000123456)
    sender.emit(CHUNK_DELETED, META, "", False, 1700000000123457)
    assert all(event.endswith(b"\n") and event.count(b"\n") == 1 for event in lines.events)
    assert [chunk_of(event) for event in lines.events] == [CHUNK, CHUNK]
    new, deleted = map(json.loads, lines.events)
    data = {
        "volume_id": "127.0.0.1:6201", "volume_service_id": "NS-rawx-1", "full_path": "a/b/c/1/AA",
        "container_id": "CID", "content_path": "é", "content_version": "1", "content_id": "AA",
        "content_storage_policy": "P", "metachunk_hash": "", "metachunk_size": "",
        "chunk_id": CHUNK, "content_chunk_method": "M", "chunk_position": "0", "chunk_hash": "AB",
        "chunk_size": "1", "oio_version": "4.2",
    }  # fmt: skip
    assert new == {"event": CHUNK_NEW, "when": 1700000000123456, "request_id": "REQ-77", "data": data}
    assert (deleted["event"], deleted["when"]) == (CHUNK_DELETED, 1700000000123457)
    assert deleted["request_id"] == "-"
    kept = ("volume_id", "volume_service_id", "full_path", "container_id", "content_path",
            "content_version", "content_id", "chunk_id")  # fmt: skip
    assert deleted["data"] == {k: v if k in kept else "" for k, v in data.items()}


def test_times_order_the_events_of_a_chunk_even_when_requests_overlap(service, client, monkeypatch):
    """The deletion begins once the chunk has its name, and ends before the upload is told."""
    told, emit = [], service.rawx._emit

    def slow_emit(kind, meta, reqid, whole, when_us):
        if kind == CHUNK_NEW and not told:
            told.append((kind, when_us))
            assert client.delete().status == 204
            return
        told.append((kind, when_us))
        emit(kind, meta, reqid, whole, when_us)

    monkeypatch.setattr(service.rawx, "_emit", slow_emit)
    assert client.put(b"x").status == 201
    assert [kind for kind, _ in told] == [CHUNK_NEW, CHUNK_DELETED]
    assert told[0][1] < told[1][1]


# -- the way to the queue ----------------------------------------------------------------------


def test_events_leave_in_their_order(open_journal, queue):
    log = open_journal(keys=lambda event: event.decode() + "!")
    for number in range(2500):
        log.append(b"%d" % number)
    wait_for(lambda: len(queue.events) == 2500)
    assert queue.events == [b"%d" % number for number in range(2500)]
    assert queue.keys == [f"{number}!" for number in range(2500)]
    wait_for(lambda: log.counters()["forwarded"] == 2500)
    wait_for(lambda: log.depth() == 0)
    assert log.counters() == {"appended": 2500, "forwarded": 2500, "dropped": 0, "failures": 0}


def test_requests_do_not_wait_for_a_queue_that_does_not_answer(open_journal, queue):
    queue.gate.clear()
    log = open_journal()
    log.append(b"0")
    wait_for(lambda: queue.calls)
    for number in range(1, 100):
        log.append(b"%d" % number)
    assert queue.events == []
    queue.gate.set()
    wait_for(lambda: len(queue.events) == 100)


def test_a_queue_that_was_down_gets_everything(open_journal, queue):
    queue.down = True
    log = open_journal()
    for number in range(50):
        log.append(b"%d" % number)
    wait_for(lambda: log.counters()["failures"] > 2)
    queue.down = False
    wait_for(lambda: len(queue.events) >= 50)
    assert list(dict.fromkeys(queue.events)) == [b"%d" % number for number in range(50)]


def test_what_a_stop_leaves_is_for_the_next_start(open_journal, queue):
    queue.down = True
    log = open_journal()
    log.append(b"kept")
    wait_for(lambda: queue.calls)
    log.close(0.1)
    queue.down = False
    open_journal()
    wait_for(lambda: queue.events == [b"kept"])


def test_a_stop_hands_over_what_waits(open_journal, queue):
    log = open_journal()
    for number in range(20):
        log.append(b"%d" % number)
    log.close(5.0)
    assert len(queue.events) == 20


def test_an_event_that_the_queue_refuses_does_not_hold_the_others(open_journal, queue, caplog):
    queue.refused = (b"large",)
    log = open_journal()
    for event in (b"1", b"large one", b"2"):
        log.append(event)
    wait_for(lambda: queue.events == [b"1", b"2"])
    wait_for(lambda: log.counters()["dropped"] == 1)
    wait_for(lambda: "event large one" in caplog.text)


def test_a_full_journal_drops_what_comes_and_keeps_what_it_has(open_journal, queue, caplog):
    queue.down = True
    log = open_journal(max_bytes=4000, segment_bytes=1000)
    for number in range(200):
        log.append(b"%03d" % number + b"." * 97)
    counters = log.counters()
    assert counters["appended"] + counters["dropped"] == 200 and counters["dropped"] > 150
    assert caplog.text.count("event 199...") == 1
    size = sum(os.stat(segment_path(log.directory, n)).st_size for n in list_segments(log.directory))
    assert size <= 4000 + 8 * len(list_segments(log.directory))
    assert caplog.text.count("events are dropped") == 1
    queue.down = False
    wait_for(lambda: len(queue.events) >= counters["appended"])
    kept = list(dict.fromkeys(event[:3] for event in queue.events))
    assert kept == [b"%03d" % number for number in range(counters["appended"])]

    def room_again():
        log.append(b"after")
        return b"after" in queue.events

    wait_for(room_again)


def test_events_in_the_files_survive_the_process(tmp_path, open_journal, queue):
    """The process dies without any clean-up just after the append."""
    program = (
        "import os, sys\n"
        "from oio.event.transport.spool import SpoolQueue\n"
        "from oio.rawx.journal import Journal\n"
        "log = Journal(SpoolQueue(sys.argv[1], fsync=False))\n"
        "for n in range(300): log.append(b'%d' % n)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "journal")], env=environment)
    assert done.returncode == -9
    open_journal()
    wait_for(lambda: queue.events == [b"%d" % number for number in range(300)])


def test_the_journal_is_synced_behind_the_requests(open_journal, queue, monkeypatch):
    synced = threading.Event()
    monkeypatch.setattr(journal, "_sync_file", lambda path: synced.set())
    queue.down = True
    log = open_journal()
    log.append(b"x")
    assert synced.wait(5)


def test_two_services_cannot_share_a_journal(open_journal):
    open_journal()
    with pytest.raises(QueueError):
        open_journal()


# -- the service -------------------------------------------------------------------------------


def namespace(tmp_path, monkeypatch, text):
    conf = tmp_path / "sds.conf"
    conf.write_text(f"[NS]\nproxy = 127.0.0.1:1\n{text}")
    monkeypatch.setenv("OIO_SDS_CONF", str(conf))


@pytest.fixture
def open_journals(tmp_path):
    """``main.open_journals``, and its clean-up."""
    opened = []

    def opener(**options):
        found = main.open_journals(RawxConfig("127.0.0.1:1", "NS", str(tmp_path), **options))
        opened.extend(found.values())
        return found

    yield opener
    for one in opened:
        one.close(0.1)


def test_events_are_off_when_told_so(tmp_path, monkeypatch, open_journals):
    namespace(tmp_path, monkeypatch, "rawx.events_allowed = off\n")
    assert open_journals(event_queue=f"spool://{tmp_path}/own") == {}
    namespace(tmp_path, monkeypatch, f"event-agent = spool://{tmp_path}/common\n")
    assert open_journals(events=False) == {}
    assert not (tmp_path / "own").exists() and not (tmp_path / "common").exists()


def test_a_queue_is_wanted(tmp_path, monkeypatch, open_journals):
    namespace(tmp_path, monkeypatch, "")
    with pytest.raises(ConfigurationException, match="event-agent"):
        open_journals()
    for wrong in ("x://y", "spool://relative", f"spool://{tmp_path}/a;spool://{tmp_path}/b"):
        with pytest.raises(ConfigurationException, match="event queue"):
            open_journals(event_queue=wrong)


def test_a_spool_is_its_own_journal(tmp_path, monkeypatch, open_journals):
    namespace(tmp_path, monkeypatch, f"event-agent = spool://{tmp_path}/common\n")
    open_journals()[CHUNK_NEW].append(b"event")
    reader = SpoolReader(str(tmp_path / "common" / "rawx-127.0.0.1_1"))
    assert [delivery.payload for delivery in reader.reserve(9)] == [b"event"]
    reader.close()
    assert len(set(open_journals(event_queue=f"spool://{tmp_path}/own").values())) == 1
    assert (tmp_path / "own").is_dir()


def test_each_kind_has_its_tube(tmp_path, monkeypatch, open_journals):
    namespace(tmp_path, monkeypatch, "rawx.tube.chunk_deleted = gone\n")
    url = f"spool://{tmp_path}/own"
    found = open_journals(event_queue=url)
    sender = EventSender(found, "V", "")
    sender.emit(CHUNK_NEW, META, "", True, 1)
    sender.emit(CHUNK_DELETED, META, "", False, 2)
    assert sender.counters()["appended"] == 2
    sender.close()
    for tube in ("oio", "gone"):
        with open_queue(url, tube) as spool:
            assert spool.depth() == 1


def test_keys_of_the_configuration():
    minimal = "listen 127.0.0.1:6201\nnamespace NS\ndocroot /tmp\n"
    parsed = config.parse(minimal)
    assert (parsed.events_journal, parsed.events_journal_size) == ("", 1 << 30)
    parsed = config.parse(minimal + "events_journal /srv/j\nevents_journal_size 64\n")
    assert (parsed.events_journal, parsed.events_journal_size) == ("/srv/j", 64 << 20)
    with pytest.raises(ConfigurationException):
        config.parse(minimal + "events_journal_size 1\n")


# -- conditional deletion ----------------------------------------------------------------------


def file_time_us(service, chunk_id=CHUNK):
    return os.stat(service.path(chunk_id)).st_mtime_ns // 1000


def delete_before(client, moment, chunk_id=CHUNK):
    return client.request("DELETE", f"/{chunk_id}", {BEFORE: str(moment)}).status


def test_only_old_chunks_go(service, client):
    assert client.put(b"x").status == 201
    written = file_time_us(service)
    assert delete_before(client, written - 1) == 412
    assert service.events[1:] == [] and client.get().body == b"x"
    assert delete_before(client, written) == 204
    assert [event[0] for event in service.events] == [CHUNK_NEW, CHUNK_DELETED]
    assert delete_before(client, written) == 404


@pytest.mark.parametrize("moment", ["", "x", "1.5", "0x10", "9" * 30, "1 2"])
def test_a_time_that_is_none_is_refused(client, moment):
    assert client.put(b"x").status == 201
    assert delete_before(client, moment) == 400
    assert client.get().status == 200


def test_a_late_deletion_leaves_the_next_chunk_of_that_name(service, client):
    assert client.put(b"old").status == 201
    deleted_at = file_time_us(service) + 1
    assert delete_before(client, deleted_at) == 204
    assert client.put(b"new").status == 201
    os.utime(service.path(), ns=(0, (deleted_at + 1) * 1000))
    assert delete_before(client, deleted_at) == 412
    assert client.get().body == b"new"


def test_a_deletion_waits_for_no_upload(service, client):
    """A conditional deletion of a chunk that is being written is told to come back."""
    with service.rawx.volume.upload(CHUNK):
        assert delete_before(client, 1) == 409
    assert delete_before(client, 1) == 404


def test_a_link_is_as_old_as_its_bytes(service, client):
    assert client.put(b"x").status == 201
    written = file_time_us(service)
    assert client.copy().status == 201
    assert delete_before(client, written - 1, OTHER) == 412
    assert delete_before(client, written, OTHER) == 204
    assert client.get().body == b"x"
    assert PREFIX + "full-path" in client.head_chunk().headers


# -- after a power cut -------------------------------------------------------------------------


def test_only_a_stop_in_good_order_leaves_no_mark(open_journal, queue):
    log = open_journal()
    assert log.interrupted_at is None
    log.append(b"x")
    mark = os.path.join(log.directory, journal.SYNC_MARK)
    os.utime(mark, (1, 1))
    wait_for(lambda: abs(os.stat(mark).st_mtime - time.time()) < 10)
    log.close(1.0)
    assert not os.path.exists(mark)


def test_the_mark_of_an_interruption_stays_until_its_chunks_are_told(tmp_path, open_journal, queue):
    (tmp_path / "journal").mkdir()
    mark = tmp_path / "journal" / journal.SYNC_MARK
    mark.touch()
    os.utime(mark, (1000, 1000))
    log = open_journal()
    assert log.interrupted_at == 1000
    log.append(b"x")
    log.close(1.0)
    assert mark.stat().st_mtime == 1000
    log = open_journal()
    assert log.interrupted_at == 1000
    log.recalled()
    wait_for(lambda: mark.stat().st_mtime > 1000)
    log.close(1.0)
    assert not mark.exists()


def test_chunks_since_the_last_sync_are_told_again(start):
    service = start(hash_depth=2)
    client = service.client
    for number in range(5):
        chunk_id = f"{number}{CHUNK[1:]}"
        assert client.request("PUT", f"/{chunk_id}", headers_for(chunk_id), b"x").status == 201
    old = f"0{CHUNK[1:]}"
    told = []
    volume = service.rawx.volume
    (service.root / ".events").mkdir()
    since = time.time() + recall.MARGIN_S
    # The directory of an old chunk may have changed since: its file did not.
    os.utime(service.path(old))
    for path in (service.path(f"1{CHUNK[1:]}"), service.path(old)):
        os.utime(os.path.dirname(path), (1, 1))
    os.unlink(service.path(f"2{CHUNK[1:]}"))
    count = recall.recall(volume, lambda *event: told.append(event), since - 30, threading.Event())
    assert count == len(told) == 2
    assert sorted(meta.chunk_id for _, meta, _, _, _ in told) == [f"3{CHUNK[1:]}", f"4{CHUNK[1:]}"]
    kind, meta, reqid, whole, when_us = told[0]
    assert (kind, reqid, whole) == (CHUNK_NEW, "", True) and meta.fullpath and meta.chunk_size == "1"
    assert abs(when_us / 1e6 - time.time()) < 60
    assert recall.recall(volume, lambda *event: told.append(event), since + 30, threading.Event()) == 0
