# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Images of bases between two services, and containers made of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest
from blake3 import blake3
from meta2_bench import CID, FakeQueue, Meta2Bench, wait_until
from support import held_port

from oio.common.status import StatusError
from oio.http.client import HttpPool
from oio.http.messages import Request, Response
from oio.http.server import Server
from oio.meta import dump, readers
from oio.meta import messages as m
from oio.meta.client import MetaClient
from oio.meta.meta2.schema import META2, base_name
from oio.meta.server import MetaApplication

COPY = "D1" * 32


@dataclass
class Service:
    """A meta2 service on the loopback."""

    bench: Meta2Bench
    queue: FakeQueue
    address: str
    client: MetaClient

    def call(self, request: m.Operation, **fields: Any) -> Any:
        return self.client.call(self.address, request, **fields)


@pytest.fixture
def pool() -> Iterator[HttpPool]:
    pool = HttpPool()
    yield pool
    pool.close()


@pytest.fixture
def services(tmp_path: Path, pool: HttpPool) -> Iterator[tuple[Service, Service]]:
    made, servers = [], []
    for name in ("source", "target"):
        queue = FakeQueue()
        bench = Meta2Bench(str(tmp_path / name), queue)
        application = MetaApplication("meta2", "NS", bench.handlers, bench.variables, bench.repository)
        server = Server(application, [("127.0.0.1", 0)])
        server.start()
        host, port = server.addresses[0]
        made.append(Service(bench, queue, f"{host}:{port}", MetaClient(pool)))
        servers.append(server)
    made[0].bench.create(**{"user.color": "red", "sys.m2.quota": "100000"})
    yield made[0], made[1]
    for server in servers:
        server.stop(1)
    for service in made:
        service.bench.repository.close()


def request(source_address: str, **fields: Any) -> m.ContainerCopy:
    fields = {
        "cid": COPY, "account": "other", "name": "copy", "namespace": "NS", "peers": ["p9", "p8"],
        "source_cid": CID, "source_address": source_address, **fields,
    }  # fmt: skip
    return m.ContainerCopy(**fields)


def code_of(call: Callable[[], object]) -> int:
    with pytest.raises(StatusError) as refused:
        call()
    return refused.value.code


def leftovers(service: Service) -> list[str]:
    """Files of a volume, but for the bases that should be there."""
    return [
        str(path)
        for path in Path(service.bench.volume).glob("**/*")
        if path.is_file() and CID not in path.name and path.parent.name != ".outbox"
    ]


def listing(bench: Meta2Bench, cid: str) -> bytes:
    reply: m.ListReply = bench.call(m.ContentList(cid=cid, properties=True, all_versions=True))
    return reply.objects


def wait_for_more(items: list[int], count: int) -> None:
    enough = len(items) + count
    wait_until(lambda: len(items) >= enough)


# --- copies ---------------------------------------------------------------------------------------


def test_copy_between_two_services(services: tuple[Service, Service]) -> None:
    source, target = services
    source.bench.set(sys__m2__policy__version="-1")
    source.bench.put("a", properties={"k": "v"})
    source.bench.put("a")
    source.bench.put("b", copies=1)
    source.bench.delete("b")
    assert target.call(request(source.address)) is None
    copy, original = target.bench, source.bench
    assert listing(copy, COPY) == listing(original, CID)
    show = m.ContentShow(cid=COPY, path="a")
    assert copy.call(show).chunks == original.show("a").chunks
    admin = copy.call(m.ContainerGetProperties(cid=COPY)).properties
    expected = {
        **original.properties(),
        "sys.account": "other", "sys.user.name": "copy", "sys.name": base_name(COPY),
        "sys.peers": "p8,p9", "sys.status": "4294967295", "sys.m2.copy_of": CID,
    }  # fmt: skip
    for table in ("admin", "chunks"):
        assert admin.pop(f"version:main.{table}") != expected.pop(f"version:main.{table}")
    assert admin == expected
    assert os.listdir(os.path.join(copy.volume, ".new")) == []
    assert leftovers(source) == []


def test_a_copy_is_frozen_and_lives_its_own_life(services: tuple[Service, Service]) -> None:
    source, target = services
    source.bench.put("a")
    target.call(request(source.address))
    delete = m.ContentDelete(cid=COPY, path="a")
    assert code_of(lambda: target.call(delete)) == 436
    target.call(m.ContainerSetStatus(cid=COPY, status="enabled"))
    target.call(delete)
    assert code_of(lambda: target.call(m.ContentShow(cid=COPY, path="a"))) == 420
    assert source.bench.show("a").size == 10
    source.bench.put("b")
    assert code_of(lambda: target.call(m.ContentShow(cid=COPY, path="b"))) == 420


def deleted_chunks(service: Service) -> list[str]:
    """URL of each chunk that an event told to delete."""
    kinds = ("storage.content.deleted", "storage.content.drained")
    told = [event for event in service.queue.events if event["event"] in kinds]
    return [bean["id"] for event in told for bean in event["data"] if bean["type"] == "chunks"]


@pytest.mark.parametrize(
    "removal",
    [
        m.ContentDelete(cid=COPY, path="a"),
        m.ContentDrain(cid=COPY, path="a"),
        m.ContentTruncate(cid=COPY, path="a", size=0),
        m.ContainerFlush(cid=COPY),
    ],
    ids=lambda removal: removal.operation(),
)
def test_chunks_of_the_source_are_not_deleted_through_the_copy(
    services: tuple[Service, Service], removal: m.Operation
) -> None:
    source, target = services
    source.bench.put("a", size=10)
    # A second metachunk, for the truncation.
    first = source.bench.show("a").chunks
    more = [m.Chunk(url=chunk.url + "F", pos="0", size=chunk.size, hash=chunk.hash) for chunk in first]
    append = m.ContentPut(
        cid=CID, path="a", version=1, content_id="AB", size=10, chunks=more, append=True,
        chunk_method="plain/nb_copy=3", security=m.Security(nb_copy=3),
    )  # fmt: skip
    source.bench.call(append)
    target.call(request(source.address))
    target.call(m.ContainerSetStatus(cid=COPY, status="enabled"))
    chunks = target.call(m.ContentShow(cid=COPY, path="a")).chunks
    own = chunks[-1]
    content = target.call(m.ContentShow(cid=COPY, path="a")).content_id

    def bean(url: str) -> m.RawChunk:
        return m.RawChunk(id=url, hash=own.hash, size=own.size, content=content, pos=own.pos)

    target.call(m.RawUpdate(cid=COPY, old=[bean(own.url)], new=[bean("http://own/CHUNK")]))
    target.call(removal)
    target.queue.wait_for(lambda: deleted_chunks(target))
    assert deleted_chunks(target) == ["http://own/CHUNK"]


def test_a_copy_within_one_service(services: tuple[Service, Service]) -> None:
    source, _ = services
    source.bench.put("a")
    source.call(request(source.address))
    assert listing(source.bench, COPY) == listing(source.bench, CID)


def test_events_of_a_copy(services: tuple[Service, Service]) -> None:
    source, target = services
    source.queue.down = True
    source.bench.put("a", size=7)
    target.call(request(source.address), reqid="reqid-7", origin="tool")
    target.queue.wait_for(lambda: "container.state" in target.queue.kinds())
    # What waits in the outbox of the source is told by the source alone.
    assert target.queue.kinds() == ["container.new", "container.state"]
    new, state = target.queue.events
    url = {"ns": "NS", "account": "other", "user": "copy", "id": COPY}
    assert new["url"] == state["url"] == url
    assert new["data"] == {
        "system": {"sys.m2.quota": "100000"}, "properties": {"color": "red"}, "peers": ["p9", "p8"],
        "bucket": None,
    }  # fmt: skip
    assert (new["request_id"], new["origin"]) == ("reqid-7", "tool")
    assert (state["data"]["bytes-count"], state["data"]["object-count"]) == (7, 1)
    source.queue.down = False
    source.queue.wait_for(lambda: "content.new" in source.queue.kinds())


def test_the_destination_must_be_free(services: tuple[Service, Service]) -> None:
    source, target = services
    target.bench.create()
    before = target.bench.properties()
    assert code_of(lambda: target.call(request(source.address, cid=CID, source_cid=COPY))) == 433
    assert target.bench.properties() == before
    target.call(request(source.address))
    assert code_of(lambda: target.call(request(source.address))) == 433


def test_concurrent_copies_have_one_winner(services: tuple[Service, Service]) -> None:
    source, target = services
    source.bench.put("a")
    outcomes: list[int] = []

    def copy() -> None:
        try:
            target.call(request(source.address))
            outcomes.append(0)
        except StatusError as exc:
            outcomes.append(exc.code)

    threads = [threading.Thread(target=copy) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [0, 433, 433, 433]
    assert listing(target.bench, COPY) == listing(source.bench, CID)


def test_the_source_must_be_there(services: tuple[Service, Service]) -> None:
    source, target = services
    absent = request(source.address, source_cid="EE" * 32)
    assert code_of(lambda: target.call(absent)) == 431
    source.bench.repository.write(base_name(CID), lambda tx: tx.unset("sys.m2.init"))
    assert code_of(lambda: target.call(request(source.address))) == 431
    source.bench.call(m.ContainerDestroy(cid=CID, force=True))
    assert code_of(lambda: target.call(request(source.address))) == 431
    assert leftovers(target) == []
    assert not target.bench.repository.exists(base_name(COPY))


@pytest.mark.parametrize(
    "fields",
    [{"source_cid": COPY}, {"account": ""}, {"name": ""}, {"namespace": ""}, {"source_address": "nowhere"}],
)
def test_bad_requests(services: tuple[Service, Service], fields: dict[str, str]) -> None:
    source, target = services
    assert code_of(lambda: target.call(request(**{"source_address": source.address, **fields}))) == 400
    assert leftovers(target) == []


def test_a_slave_namespace_makes_no_copy(services: tuple[Service, Service]) -> None:
    source, target = services
    target.bench.variables.set("ns.master", "off")
    assert code_of(lambda: target.call(request(source.address))) == 500
    target.call(request(source.address), admin=True)


def test_a_source_that_is_down(services: tuple[Service, Service]) -> None:
    _, target = services
    held, port = held_port()
    with held:
        assert code_of(lambda: target.call(request(f"127.0.0.1:{port}"))) == 2
    assert leftovers(target) == []


def test_a_copy_of_a_container_that_is_written(services: tuple[Service, Service]) -> None:
    source, target = services
    for number in range(300):
        source.bench.put(f"old-{number:04d}")
    done = threading.Event()
    written: list[int] = []

    def write() -> None:
        number = 0
        while not done.is_set():
            source.bench.put(f"new-{number:06d}", size=3)
            number += 1
            written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for round_ in range(5):
            wait_for_more(written, 5)
            least = len(written)
            cid = f"{round_:064X}"
            target.call(request(source.address, cid=cid, name=f"copy{round_}"))
            most = len(written) + 1
            # A prefix of the history: every object that was acknowledged before, none twice, and counters
            # that are those of the rows.
            admin = target.bench.call(m.ContainerGetProperties(cid=cid)).properties
            objects = int(admin["sys.m2.objects"])
            assert 300 + least <= objects <= 300 + most
            assert int(admin["sys.m2.usage"]) == 3000 + 3 * (objects - 300)
            target.bench.call(m.ContainerTouch(cid=cid, recompute=True))
            again = target.bench.call(m.ContainerGetProperties(cid=cid)).properties
            assert again["sys.m2.objects"] == admin["sys.m2.objects"]
            last = m.ContentShow(cid=cid, path=f"new-{objects - 301:06d}")
            assert target.bench.call(last).size == 3
            last.path = f"new-{objects - 300:06d}"
            assert code_of(lambda request=last: target.bench.call(request)) == 420  # type: ignore[misc]
    finally:
        done.set()
        writer.join()


# --- images ---------------------------------------------------------------------------------------


def test_an_image_by_http(services: tuple[Service, Service], pool: HttpPool) -> None:
    source, _ = services
    source.bench.put("a")
    answer = pool.request("GET", f"http://{source.address}/v1/dump?base={base_name(CID)}")
    assert answer.status == 200
    assert answer.headers["content-length"] == str(len(answer.data))
    assert answer.headers["x-oio-dump-hash"] == blake3(answer.data).hexdigest()
    assert answer.data.startswith(b"SQLite format 3\0")
    assert os.listdir(os.path.join(source.bench.volume, ".new")) == []


@pytest.mark.parametrize(
    ("query", "headers", "http_status"),
    [
        (f"base={'EE' * 32}.1", {}, 404), ("base=../x", {}, 400), ("base=", {}, 400), ("", {}, 400),
        (f"base={base_name(CID)}", {"x-oio-timeout": "0"}, 503),
        (f"base={base_name(CID)}", {"x-oio-timeout": "soon"}, 400),
    ],
)  # fmt: skip
def test_refused_images(
    services: tuple[Service, Service], pool: HttpPool, query: str, headers: dict[str, str], http_status: int
) -> None:
    source, _ = services
    answer = pool.request("GET", f"http://{source.address}/v1/dump?{query}", headers)
    assert answer.status == http_status
    assert leftovers(source) == []


def test_writers_do_not_wait_for_an_image(
    services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, _ = services
    source.bench.put("a")
    repository = source.bench.repository
    with repository.opened(base_name(CID)) as base:
        plain = readers._copy_pages
        monkeypatch.setattr(readers, "COPY_PAGES", 1)

        def slow(connection: Any, path: str, deadline: float | None) -> None:
            # Between the beginning of the view and the copy of the pages.
            source.bench.put("b")
            plain(connection, path, deadline)

        monkeypatch.setattr(readers, "_copy_pages", slow)
        path = str(tmp_path / "image")
        base.copy_to(path)
    dump.verify(path, META2, base_name(CID))
    image = apsw.Connection(path)
    assert image.execute("SELECT alias FROM aliases").fetchall() == [("a",)]
    image.close()


def test_images_wait_for_their_turn(
    services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = services
    monkeypatch.setattr(dump, "TURN_TIMEOUT_S", 0.01)
    dumps = dump.Dumps(source.bench.repository)
    answers = [dumps.answer(base_name(CID), None) for _ in range(dump.DUMPS_MAX)]
    assert code_of(lambda: dumps.answer(base_name(CID), None)) == 509
    for answer in answers:
        assert isinstance(answer.body, dump.FileBody)
        answer.body.close()
        assert answer.after_sent is not None
        answer.after_sent()
    dumps.answer(base_name(CID), None).body.close()  # type: ignore[union-attr]


@pytest.fixture
def image(services: tuple[Service, Service], pool: HttpPool) -> bytes:
    source, _ = services
    source.bench.put("a")
    return pool.request("GET", f"http://{source.address}/v1/dump?base={base_name(CID)}").data


class Liar:
    """A service that sends what it is told to send."""

    def __init__(self, answer: Callable[[Request], Response]) -> None:
        self.server = Server(answer, [("127.0.0.1", 0)])
        self.server.start()
        host, port = self.server.addresses[0]
        self.address = f"{host}:{port}"


@pytest.fixture
def lie() -> Iterator[Callable[..., str]]:
    liars: list[Liar] = []

    def make(body: Any, digest: str | None = None, status: int = 200, length: int | None = None) -> str:
        def answer(_request: Request) -> Response:
            headers = [] if digest is None else [("x-oio-dump-hash", digest)]
            return Response(status, body() if callable(body) else body, headers, content_length=length)

        liars.append(Liar(answer))
        return liars[-1].address

    yield make
    for liar in liars:
        liar.server.stop(1)


def test_a_corrupted_transfer(
    services: tuple[Service, Service], image: bytes, lie: Callable[..., str]
) -> None:
    _, target = services
    digest = blake3(image).hexdigest()
    damaged = bytearray(image)
    damaged[5000] ^= 1
    assert code_of(lambda: target.call(request(lie(bytes(damaged), digest)))) == 9
    assert code_of(lambda: target.call(request(lie(image)))) == 9
    assert code_of(lambda: target.call(request(lie(image[:4096], digest)))) == 9
    assert leftovers(target) == []
    target.call(request(lie(image, digest.upper())))
    assert listing(target.bench, COPY)


def test_a_truncated_transfer(
    services: tuple[Service, Service], image: bytes, lie: Callable[..., str]
) -> None:
    _, target = services
    digest = blake3(image).hexdigest()

    def cut() -> Iterator[bytes]:
        yield image[:8192]
        raise OSError("cut")

    for length in (len(image), None):
        assert code_of(lambda n=length: target.call(request(lie(cut, digest, length=n)))) in (3, 4, 9)  # type: ignore[misc]
    assert leftovers(target) == []


def test_an_image_that_is_no_sound_base(
    services: tuple[Service, Service], image: bytes, lie: Callable[..., str], tmp_path: Path
) -> None:
    _, target = services
    damaged = bytearray(image)
    damaged[4096:] = b"\xff" * (len(image) - 4096)
    for body in (b"", b"not a base", image[: len(image) // 8192 * 4096], bytes(damaged)):
        assert code_of(lambda b=body: target.call(request(lie(b, blake3(b).hexdigest())))) == 511  # type: ignore[misc]
    # A sound base, but another one.
    other = request(lie(image, blake3(image).hexdigest()), source_cid="EE" * 32)
    assert code_of(lambda: target.call(other)) == 511
    assert leftovers(target) == []


def test_a_service_that_refuses(services: tuple[Service, Service], lie: Callable[..., str]) -> None:
    _, target = services
    assert code_of(lambda: target.call(request(lie(b"?", status=500)))) == 502


def test_a_deadline_bounds_a_copy(services: tuple[Service, Service], tmp_path: Path, pool: HttpPool) -> None:
    source, _ = services
    late = time.monotonic() - 1
    fetch = (pool, source.address, META2, base_name(CID), str(tmp_path / "image"))
    assert code_of(lambda: dump.fetch(*fetch, deadline=late)) in (5, 7)
    assert code_of(lambda: source.bench.repository.copy_out(base_name(CID), str(tmp_path / "i"), late)) == 504


def test_a_failed_installation_leaves_nothing(
    services: tuple[Service, Service], image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = services

    def refuse(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("oio.meta.base_files.os.link", refuse)
    assert code_of(lambda: target.call(request(source.address))) == 503
    assert leftovers(target) == []
    monkeypatch.undo()
    target.call(request(source.address))
    target.queue.wait_for(lambda: "container.new" in target.queue.kinds())


def test_a_copy_survives_a_restart(services: tuple[Service, Service]) -> None:
    source, target = services
    source.bench.put("a")
    target.queue.down = True
    target.call(request(source.address))
    target.bench.repository.close()
    queue = FakeQueue()
    again = Meta2Bench(target.bench.volume, queue)
    try:
        assert listing(again, COPY) == listing(source.bench, CID)
        queue.wait_for(lambda: "container.new" in queue.kinds())
    finally:
        again.repository.close()
