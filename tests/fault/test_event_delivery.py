# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Events of single services and a real queue, which is frozen, killed, and comes back; the services too."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest
from processes import CHUNK, free_port
from support import eventually

from oio.common.redis_server import find_redis_server
from oio.event.source import SourceError, open_source
from oio.http.client import HttpPool
from oio.meta import messages as m
from oio.meta.client import MetaClient

CID = "C0" * 32
#: A request that waited for a frozen queue would take seconds (the queue's time-out is 4 s).
SOON_S = 2.0


class QueueServer:
    """A Redis or a beanstalkd that keeps its jobs on disk."""

    def __init__(self, kind, directory):
        self.kind, self.directory, self.port = kind, directory, free_port()
        directory.mkdir()
        self.url = f"{kind}://127.0.0.1:{self.port}" + ("/0" if kind == "redis" else "")
        self.popen = None

    def start(self):
        if self.kind == "redis":
            words = [find_redis_server(), "--bind", "127.0.0.1", "--port", str(self.port), "--save", "",
                     "--dir", str(self.directory), "--appendonly", "yes", "--appendfsync", "always"]  # fmt: skip
        else:
            words = [shutil.which("beanstalkd"), "-l", "127.0.0.1", "-p", str(self.port),
                     "-b", str(self.directory), "-f", "0"]  # fmt: skip
        self.popen = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait()

    def wait(self):
        def answers():
            try:
                with open_source(self.url) as source:
                    return source.stats() is not None
            except SourceError:
                return False

        eventually(answers, what="the queue answers")

    def send(self, number):
        os.kill(self.popen.pid, number)
        if number == signal.SIGKILL:
            self.popen.wait()

    def stop(self):
        if self.popen is not None and self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            self.popen.wait()

    def take_until(self, enough):
        """Events taken out of the queue, once they are enough."""
        taken = []
        deadline = time.monotonic() + 30.0
        with open_source(self.url) as source:
            while not enough(taken):
                assert time.monotonic() < deadline, f"{len(taken)} events only: {taken[-3:]}"
                job = source.reserve(0.5)
                if job is not None:
                    taken.append(json.loads(job.body))
                    source.delete(job)
        return taken


@pytest.fixture(params=["redis", "beanstalk"])
def queue(request, tmp_path):
    if request.param == "redis" and find_redis_server() is None:
        pytest.skip("no Redis server")
    if request.param == "beanstalk" and shutil.which("beanstalkd") is None:
        pytest.skip("beanstalkd is not installed")
    server = QueueServer(request.param, tmp_path / "queue")
    yield server
    server.stop()


# -- chunk servers -----------------------------------------------------------------------------


def chunk_id(number):
    return f"{number:03X}{CHUNK[3:]}"


def write_and_delete(service, numbers):
    """Each chunk is written, every second one deleted; the longest answer, in seconds."""
    longest = 0.0
    for number in numbers:
        for method, status in [("PUT", 201), ("DELETE", 204)][: 1 + number % 2]:
            begin = time.monotonic()
            assert service.call(method, chunk_id(number), b"data" if method == "PUT" else b"")[0] == status
            longest = max(longest, time.monotonic() - begin)
    return longest


def told(numbers):
    """Are all the changes told, the deletion of a chunk after its creation?"""

    def enough(events):
        kinds = {}
        for event in events:
            kinds.setdefault(event["data"]["chunk_id"], []).append(event["event"].removeprefix("storage.chunk."))
        for number in numbers:
            wanted = ["new", "deleted"][: 1 + number % 2]
            if list(dict.fromkeys(kinds.get(chunk_id(number), []))) != wanted:
                return False
        return True

    return enough


def test_a_rawx_killed_after_its_answer_tells_all_later(queue, start_rawx):
    """The queue is down all the time; the rawx is killed at once after each bunch of answers."""
    options = f"events on\nevent_queue {queue.url}\n"
    service, done = None, 0
    for count in (1, 2, 37):
        service = start_rawx(volume=service and service.volume, options=options)
        write_and_delete(service, range(done, done + count))
        done += count
        os.kill(service.pid, signal.SIGKILL)
        service.popen.wait()
    queue.start()
    start_rawx(volume=service.volume, options=options)
    queue.take_until(told(range(done)))


def test_a_rawx_killed_under_load_tells_all_that_it_acknowledged(queue, start_rawx):
    """Several clients, a queue that works: events are anywhere on their way when the process dies."""
    queue.start()
    options = f"events on\nevent_queue {queue.url}\n"
    service = start_rawx(options=options)
    acknowledged = []

    def work(worker):
        with contextlib.suppress(OSError, ValueError, IndexError):
            for number in range(worker, 2000, 4):
                write_and_delete(service, [number])
                acknowledged.append(number)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) >= 120, what="some answers")
    os.kill(service.pid, signal.SIGKILL)
    service.popen.wait()
    for thread in threads:
        thread.join()
    start_rawx(volume=service.volume, options=options)
    queue.take_until(told(acknowledged))


def test_a_rawx_does_not_wait_for_a_frozen_queue(queue, start_rawx):
    queue.start()
    service = start_rawx(options=f"events on\nevent_queue {queue.url}\n")
    write_and_delete(service, range(3))
    queue.take_until(told(range(3)))
    queue.send(signal.SIGSTOP)
    assert write_and_delete(service, range(3, 60)) < SOON_S
    queue.send(signal.SIGCONT)
    queue.take_until(told(range(3, 60)))


def test_a_rawx_outlives_the_death_of_its_queue(queue, start_rawx):
    queue.start()
    service = start_rawx(options=f"events on\nevent_queue {queue.url}\n")
    write_and_delete(service, range(20))
    queue.send(signal.SIGKILL)
    write_and_delete(service, range(20, 40))
    queue.start()
    queue.take_until(told(range(40)))
    assert service.terminate() == 0


def test_a_rawx_that_stops_hands_its_events_over(queue, start_rawx):
    queue.start()
    service = start_rawx(options=f"events on\nevent_queue {queue.url}\n")
    write_and_delete(service, range(20))
    assert service.terminate() == 0
    queue.take_until(told(range(20)))  # nobody else could tell them later


def test_a_rawx_stops_soon_though_its_queue_is_down(queue, start_rawx):
    options = f"events on\nevent_queue {queue.url}\n"
    service = start_rawx(options=options)
    write_and_delete(service, range(9))
    begin = time.monotonic()
    assert service.terminate() == 0
    assert time.monotonic() - begin < 8.0
    queue.start()
    start_rawx(volume=service.volume, options=options)
    queue.take_until(told(range(9)))


def test_chunks_whose_events_a_power_cut_took_are_told_again(queue, start_rawx):
    """The files of the journal were never synced."""
    options = f"events on\nevent_queue {queue.url}\n"
    service = start_rawx(options=options)
    write_and_delete(service, range(9))
    os.kill(service.pid, signal.SIGKILL)
    service.popen.wait()
    for segment in (service.volume / ".events").glob("*.seg"):
        segment.unlink()
    queue.start()
    start_rawx(volume=service.volume, options=options)
    events = queue.take_until(told(range(0, 9, 2)))
    assert {event["event"] for event in events} == {"storage.chunk.new"}


@pytest.fixture
def two_queues(tmp_path):
    """Two beanstalkd that share the events."""
    if shutil.which("beanstalkd") is None:
        pytest.skip("beanstalkd is not installed")
    servers = [QueueServer("beanstalk", tmp_path / f"queue-{number}") for number in range(2)]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.stop()


def test_the_events_of_a_chunk_stay_together_and_one_queue_stands_in_for_the_other(two_queues, start_rawx):
    first, second = two_queues
    service = start_rawx(options=f"events on\nevent_queue {first.url};{second.url}\n")
    write_and_delete(service, range(1, 30, 2))
    taken = [[], []]

    def all_seen():
        for server, events in zip(two_queues, taken, strict=True):
            with open_source(server.url) as source:
                while job := source.reserve(0.2):
                    events.append(json.loads(job.body))
                    source.delete(job)
        # What a queue accepted too late is told again.
        return len({(event["event"], event["data"]["chunk_id"]) for events in taken for event in events}) == 30

    eventually(all_seen, what="all events, in either queue")
    chunks = [{event["data"]["chunk_id"] for event in events} for events in taken]
    assert chunks[0] and chunks[1] and not chunks[0] & chunks[1]
    first.send(signal.SIGKILL)
    write_and_delete(service, range(31, 60, 2))
    second.take_until(told(range(31, 60, 2)))


# -- container servers -------------------------------------------------------------------------


class Container:
    """A container in a service of its own."""

    def __init__(self, service):
        self.service = service
        self.pool = HttpPool()
        self.client = MetaClient(self.pool)

    def create(self):
        request = m.ContainerCreate(cid=CID, account="a", name="c", namespace="NS", peers=["NS-meta2-1"])
        self.client.call(self.service.addr, request)

    def put(self, numbers):
        """Put objects; the longest answer, in seconds."""
        longest = 0.0
        for number in numbers:
            request = m.ContentPut(
                cid=CID, path=f"o{number}", version=1_000_000 + number, content_id=f"{number:032X}", size=10,
                hash="00" * 16, policy="SINGLE", chunk_method="plain/nb_copy=1",
                chunks=[m.Chunk(url=f"http://NS-rawx-1/{number:064X}", pos="0", size=10, hash="00" * 16)],
            )  # fmt: skip
            begin = time.monotonic()
            self.client.call(self.service.addr, request, reqid=f"put-{number}")
            longest = max(longest, time.monotonic() - begin)
        return longest

    def outbox(self):
        """Metrics of the outbox."""
        answer = self.pool.request("GET", f"http://{self.service.addr}/stats").data.decode()
        words = [line.split() for line in answer.splitlines() if line.startswith("gauge events.")]
        return {name.removeprefix("events."): int(value) for _, name, value in words}


@pytest.fixture
def container(queue, start_meta2):
    """Opens the container of a volume; all connections are closed at the end."""
    opened = []

    def opener(volume=None, conf=""):
        service = start_meta2(volume=volume, conf=f"event-agent = {queue.url}\n{conf}")
        opened.append(Container(service))
        return opened[-1]

    yield opener
    for one in opened:
        one.pool.close()


def objects_told(numbers):
    """Are these objects told, in their order?"""

    def enough(events):
        paths = [event["url"]["path"] for event in events if event["event"] == "storage.content.new"]
        wanted = [f"o{number}" for number in numbers]
        found = [path for path in dict.fromkeys(paths) if path in set(wanted)]
        return found == wanted

    return enough


def test_a_meta2_killed_before_the_delivery_tells_all_later(queue, container):
    box = container()
    box.create()
    box.put(range(40))
    os.kill(box.service.pid, signal.SIGKILL)
    box.service.popen.wait()
    queue.start()
    container(volume=box.service.volume)
    events = queue.take_until(objects_told(range(40)))
    assert "storage.container.new" in {event["event"] for event in events}


def test_a_meta2_does_not_wait_for_a_frozen_queue_and_keeps_few_events_in_memory(queue, container):
    queue.start()
    box = container(conf="events.common.pending.max = 10\n")
    box.create()
    box.put(range(3))
    queue.take_until(objects_told(range(3)))
    queue.send(signal.SIGSTOP)
    assert box.put(range(3, 300)) < SOON_S
    assert box.outbox()["memory"] <= 10
    queue.send(signal.SIGCONT)
    queue.take_until(objects_told(range(3, 300)))
    eventually(lambda: box.outbox()["bases"] == 0, what="an empty outbox")
    assert not os.listdir(box.service.volume / ".outbox")


def test_a_meta2_outlives_the_death_of_its_queue(queue, container):
    queue.start()
    box = container()
    box.create()
    box.put(range(20))
    queue.send(signal.SIGKILL)
    box.put(range(20, 40))
    queue.start()
    queue.take_until(objects_told(range(40)))


def test_an_event_larger_than_the_jobs_of_beanstalkd_is_kept_aside(queue, container):
    if queue.kind != "beanstalk":
        pytest.skip("jobs of Redis are as large as events")
    queue.start()
    box = container()
    box.create()
    properties = m.ContainerSetProperties(cid=CID, properties={"user.k": "x" * 70_000})
    box.client.call(box.service.addr, properties, reqid="too-large")
    box.put(range(3))
    queue.take_until(objects_told(range(3)))
    # The queue gives the accepted events of a delivery to others while the meta2 reads the refusal.
    eventually(lambda: box.outbox()["refused"] == 1, what="the refused event kept")
    kept = json.loads((box.service.volume / ".outbox" / "refused.jsonl").read_text())
    assert (kept["event"], kept["request_id"]) == ("storage.container.update", "too-large")
    assert "too-large" in box.service.log.read_text()
