# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Questions to several peers: those that answer, and those that refuse, are silent, or talk nonsense."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from oio.common.status import StatusError
from oio.http.server import Request, Response, Server, ServerConfig
from oio.meta.messages import ErrorReply
from oio.meta.replication.links import Answers, Links
from oio.meta.replication.positions import NOWHERE
from oio.meta.replication.wire import CopyInstall, CopyLead, CopyReply, GroupVote, Voice, Vote

#: No test waits for so long when all is well.
LONG_S = 20.0

Handler = Callable[[Request], Response]

encode = msgspec.msgpack.encode


def question(epoch: int = 5) -> GroupVote:
    return GroupVote(voice=Voice(key="K", epoch=epoch, owner="me"), peers=["a", "b", "c"], shard=0)


def promise(request: Request) -> Response:
    """A peer that lives, and promises all that it is asked for."""
    if request.path == "/v1/ping":
        return Response(204)
    assert request.path == "/v1/group_vote"
    asked = msgspec.msgpack.decode(request.read_all(), type=GroupVote)
    return Response(200, encode(Vote(granted=True, epoch=asked.voice.epoch, owner=asked.voice.owner)))


def granted(epoch: int = 5) -> Vote:
    return Vote(granted=True, epoch=epoch, owner="me")


def code(answer: object) -> int:
    assert isinstance(answer, StatusError), answer
    return answer.code


class Peers:
    """Peers on free ports, and the links to them."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        #: The test is over: whoever is silent until then need not be any more.
        self.over = threading.Event()
        self.links = Links(self._address_of, connect_timeout_s=LONG_S, timeout_s=LONG_S)
        self._closers: list[Callable[[], object]] = [self.links.close]

    def _address_of(self, peer: str) -> str:
        if peer not in self.addresses:
            raise StatusError(503, f"{peer} is unknown")
        return self.addresses[peer]

    def serve(self, peer: str, handler: Handler = promise) -> Server:
        server = Server(handler, [("127.0.0.1", 0)], ServerConfig(access_log=None))
        server.start()
        self._closers.append(lambda: server.stop(0.2))
        self._place(peer, server.addresses[0])
        return server

    def serve_raw(self, peer: str, *talks: Callable[[socket.socket], object]) -> None:
        """A peer that does one of these with each connection, then closes it."""
        listener = self.bind(peer)
        listener.listen()

        def run() -> None:
            for talk in talks:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    talk(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

    def bind(self, peer: str) -> socket.socket:
        """The address of a peer where nobody listens, yet."""
        listener = socket.socket()
        self._closers.append(listener.close)
        listener.bind(("127.0.0.1", 0))
        self._place(peer, listener.getsockname())
        return listener

    def _place(self, peer: str, address: tuple[str, int] | str) -> None:
        self.addresses[peer] = f"{address[0]}:{address[1]}"

    def ask(self, *peers: str, **how: object) -> Answers:
        return self.links.ask_all(dict.fromkeys(peers, question()), **how)  # type: ignore[arg-type]

    def close(self) -> None:
        self.over.set()
        for close in reversed(self._closers):
            close()


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    made.close()


@pytest.fixture
def silence(peers: Peers) -> Handler:
    """What a peer does that is silent until the end of the test."""

    def wait(request: Request) -> Response:
        peers.over.wait(LONG_S)
        return promise(request)

    return wait


def read_request(connection: socket.socket) -> None:
    """Read until the request is there whole: it ends with the value of ``shard``."""
    connection.settimeout(LONG_S)
    data = b""
    while not data.endswith(encode(question())):
        data += connection.recv(65536)


def send_vote(connection: socket.socket) -> None:
    body = encode(granted())
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


# --- answers ---------------------------------------------------------------------------------------


def test_all_answer(peers: Peers) -> None:
    for peer in "abc":
        peers.serve(peer)
    for _ in range(3):
        assert peers.ask("a", "b", "c") == dict.fromkeys("abc", granted())
    assert peers.links.pool.idle_count() == 3
    assert peers.links.benched_peers() == []
    assert peers.links.ask("b", question(8)) == granted(8)


def test_nobody_is_asked(peers: Peers) -> None:
    assert peers.links.ask_all({}) == {}


def test_each_peer_may_be_asked_something_else(peers: Peers) -> None:
    peers.serve("a")
    peers.serve("b")
    assert peers.links.ask_all({"a": question(1), "b": question(2)}) == {"a": granted(1), "b": granted(2)}


def test_errors_of_peers_are_theirs(peers: Peers) -> None:
    error = encode(ErrorReply(status=431, message="no base here"))
    peers.serve("a", lambda request: Response(404, error))
    peers.serve("b")
    answers = peers.ask("a", "b")
    assert code(answers["a"]) == 431
    assert "no base here" in str(answers["a"])
    assert answers["b"] == granted()
    with pytest.raises(StatusError, match="no base here") as caught:
        peers.links.ask("a", question())
    assert caught.value.code == 431
    # Whoever answers lives, whatever it says.
    assert not peers.links.benched("a")


@pytest.mark.parametrize(
    ("http_status", "body"),
    [
        (200, b"\xc1"), (200, b""), (200, encode({"epoch": 5})), (200, encode(granted())[:-2]),
        (500, b"<html>no</html>"), (503, b""), (500, encode({"status": "x"})),
    ],
)  # fmt: skip
def test_a_body_that_makes_no_sense(peers: Peers, http_status: int, body: bytes) -> None:
    peers.serve("a", lambda request: Response(http_status, body))
    peers.serve("b")
    answers = peers.ask("a", "b")
    assert code(answers["a"]) == 9
    assert "no sense" in str(answers["a"])
    assert answers["b"] == granted()


def test_a_peer_that_does_not_speak_http(peers: Peers) -> None:
    peers.serve_raw("a", lambda connection: (read_request(connection), connection.sendall(b"220 ftp\r\n\r\n")))
    assert code(peers.ask("a")["a"]) == 9
    assert peers.links.benched("a")


# --- those who do not answer -----------------------------------------------------------------------


def test_a_peer_where_nobody_listens(peers: Peers) -> None:
    peers.serve("a")
    peers.bind("b")
    answers = peers.ask("a", "b")
    assert answers["a"] == granted()
    assert code(answers["b"]) == 2
    assert peers.links.benched_peers() == ["b"]
    with pytest.raises(StatusError):
        peers.links.ask("b", question())


def test_a_peer_without_an_address_is_not_benched(peers: Peers) -> None:
    peers.serve("a")
    answers = peers.ask("a", "nobody")
    assert answers["a"] == granted()
    assert code(answers["nobody"]) == 503
    assert peers.links.benched_peers() == []


def test_a_silent_peer_gets_a_moment_once_enough_have_answered(peers: Peers, silence: Handler) -> None:
    peers.serve("a", silence)
    peers.serve("b")
    seen: list[set[str]] = []

    def enough(answers: Answers) -> bool:
        seen.append(set(answers))
        return "b" in answers

    begin = time.monotonic()
    answers = peers.ask("a", "b", enough=enough, grace_s=0.05)
    assert 0.05 <= time.monotonic() - begin < LONG_S / 2
    assert answers["b"] == granted()
    assert code(answers["a"]) == 7
    assert seen[-1] == {"b"}
    assert peers.links.benched_peers() == ["a"]
    # Its answer, when it comes, is that to a question of the past: the connection is not used again.
    assert peers.links.pool.idle_count() == 1


def test_an_answer_within_the_moment_counts(peers: Peers) -> None:
    second_may_answer = threading.Event()

    def answer_second(request: Request) -> Response:
        assert second_may_answer.wait(LONG_S)
        return promise(request)

    def enough(answers: Answers) -> bool:
        second_may_answer.set()
        return True

    peers.serve("a")
    peers.serve("b", answer_second)
    assert peers.ask("a", "b", enough=enough, grace_s=LONG_S) == {"a": granted(), "b": granted()}
    assert peers.links.benched_peers() == []


def test_nobody_is_waited_for_beyond_the_time(peers: Peers, silence: Handler) -> None:
    peers.serve("a", silence)
    peers.serve("b", silence)
    peers.serve("c")
    begin = time.monotonic()
    answers = peers.ask("a", "b", "c", enough=lambda answers: len(answers) > 1, timeout_s=0.1)
    assert time.monotonic() - begin < LONG_S / 2
    assert [code(answers[peer]) for peer in "ab"] == [7, 7]
    assert answers["c"] == granted()
    assert sorted(peers.links.benched_peers()) == ["a", "b"]


def test_a_peer_that_takes_nothing_in_holds_nobody_up(peers: Peers) -> None:
    """A large request to a stopped process: its kernel accepts the connection, and some of the bytes."""
    stopped = peers.bind("a")
    stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stopped.listen()
    received: list[int] = []

    def take(request: Request) -> Response:
        received.append(len(msgspec.msgpack.decode(request.read_all(), type=CopyInstall).image))
        return Response(200, encode(CopyReply(vote=granted(), done=True)))

    peers.serve("b", take)
    request = CopyInstall(
        base="B", voice=Voice(key="K", epoch=5, owner="me"), position=NOWHERE, image=bytes(32 << 20)
    )
    begin = time.monotonic()
    answers = peers.links.ask_all({"a": request, "b": request}, lambda answers: "b" in answers, grace_s=0.05)
    assert time.monotonic() - begin < LONG_S / 2
    assert answers["b"] == CopyReply(vote=granted(), done=True)
    assert received == [32 << 20]
    assert code(answers["a"]) == 7
    assert peers.links.benched_peers() == ["a"]


def test_an_answer_that_stops_in_the_middle(peers: Peers) -> None:
    def begin_answer(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        peers.over.wait(LONG_S)

    peers.serve_raw("a", begin_answer)
    begin = time.monotonic()
    assert code(peers.ask("a", timeout_s=0.1)["a"]) == 7
    assert time.monotonic() - begin < LONG_S / 2
    assert peers.links.benched("a")


# --- the bench -------------------------------------------------------------------------------------


def test_a_ping_brings_a_peer_back(peers: Peers) -> None:
    peers.serve("a")
    peers.bind("refuses")
    peers.serve("broken", lambda request: Response(503))
    everybody = ["a", "refuses", "broken", "nobody"]
    for peer in everybody:
        peers.links.bench(peer)
    assert [peers.links.ping(peer) for peer in everybody] == [True, False, False, False]
    assert peers.links.benched_peers() == everybody[1:]


def test_a_silent_peer_stays_out(peers: Peers, silence: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oio.meta.replication.links.PING_TIMEOUT_S", 0.05)
    peers.serve("a", silence)
    peers.links.bench("a")
    assert not peers.links.ping("a")
    assert peers.links.benched("a")


def test_an_answer_brings_a_peer_back(peers: Peers) -> None:
    peers.serve("a")
    peers.links.bench("a")
    peers.links.bench("a")
    assert peers.ask("a") == {"a": granted()}
    assert not peers.links.benched("a")


# --- connections -----------------------------------------------------------------------------------


def test_a_connection_that_the_peer_closed_is_replaced(peers: Peers) -> None:
    closing = threading.Event()

    def answer_and_close(connection: socket.socket) -> None:
        read_request(connection)
        send_vote(connection)
        assert closing.wait(LONG_S)

    def answer(connection: socket.socket) -> None:
        read_request(connection)
        send_vote(connection)

    peers.serve_raw("a", answer_and_close, answer)
    assert peers.ask("a") == {"a": granted()}
    assert peers.links.pool.idle_count() == 1
    (idle,) = peers.links.pool._idle[f"http://{peers.addresses['a']}"]
    assert not idle.is_stale()
    closing.set()
    deadline = time.monotonic() + LONG_S
    while not idle.is_stale():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert peers.ask("a") == {"a": granted()}
    assert peers.links.benched_peers() == []


def test_a_peer_that_dies_with_the_question(peers: Peers) -> None:
    peers.serve_raw("a", read_request)
    peers.serve("b")
    answers = peers.ask("a", "b")
    assert code(answers["a"]) in (3, 4)
    assert answers["b"] == granted()
    assert peers.links.benched_peers() == ["a"]


def test_many_threads_get_their_own_answers(peers: Peers) -> None:
    for peer in "abc":
        peers.serve(peer)

    def ask(thread: int) -> bool:
        for number in range(30):
            epoch = thread * 1000 + number
            if peers.links.ask_all(dict.fromkeys("abc", question(epoch))) != dict.fromkeys("abc", granted(epoch)):
                return False
        return True

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(ask, range(12))) == [True] * 12
    assert 3 <= peers.links.pool.idle_count() <= 36
    assert peers.links.benched_peers() == []


def test_what_has_no_reply_is_done(peers: Peers) -> None:
    """A master that is asked to lead a base has nothing to say but yes."""
    paths = []

    def lead(request: Request) -> Response:
        paths.append(request.path)
        request.read_all()
        return Response(204)

    peers.serve("a", lead)
    for _ in range(2):
        assert peers.links.ask("a", CopyLead(base="B.1", peers=["a", "b", "c"])) is True
    assert paths == ["/v1/copy_lead"] * 2
    assert peers.links.benched_peers() == []
