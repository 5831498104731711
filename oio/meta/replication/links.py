# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Questions to several peers at once, from one thread: all are sent, then all answers are read. No peer holds up
the others, not even one that is stopped and takes nothing in.

A caller says when it has heard enough; the others get a moment more, and then their connection is closed. Whoever
did not answer is *benched*: not asked again by those who can do without it, until it answers a ping.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Mapping

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.http.client import HttpClientError, HttpPool
from oio.http.client_connection import ClientConnection
from oio.http.client_response import ClientResponse
from oio.meta.client import network_code
from oio.meta.messages import ErrorReply, Operation

logger = logging.getLogger("oio.meta.replication")

#: What the answers of the others may take once enough have come (seconds).
GRACE_S = 0.3
#: Answer to a ping of a service that lives (seconds).
PING_TIMEOUT_S = 0.5
_BODY_MAX = 1 << 28

#: Decoded replies, or errors, by peer.
Answers = dict[str, object]

_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[type[Operation], Callable[[bytes], object]] = {}


class _Exchange:
    """One request on its way to one peer."""

    __slots__ = ("connection", "decode", "peer")

    def __init__(self, peer: str, connection: ClientConnection, decode: Callable[[bytes], object]) -> None:
        self.peer = peer
        self.connection = connection
        self.decode = decode


class Links:
    """Connections to the other services of one type.

    :param address_of: address of a service from its id. :raises StatusError: when it is not known.
    """

    def __init__(
        self, address_of: Callable[[str], str], connect_timeout_s: float = 1.0, timeout_s: float = 5.0
    ) -> None:
        self._address_of = address_of
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._pool = HttpPool(max_idle_per_address=64, connect_timeout_s=connect_timeout_s)
        self._benched: dict[str, float] = {}

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    @property
    def pool(self) -> HttpPool:
        """Connections, for transfers of images."""
        return self._pool

    def address_of(self, peer: str) -> str:
        """Address of a peer. :raises StatusError: 503 when it is not known."""
        return self._address_of(peer)

    # --- one peer ------------------------------------------------------------------------------------

    def ask(self, peer: str, request: Operation, timeout_s: float | None = None) -> object:
        """The reply of one peer, True from one that has nothing to say but yes.

        :raises StatusError: its own, or a network code.
        """
        answers = self.ask_all({peer: request}, timeout_s=timeout_s)
        answer = answers[peer]
        if isinstance(answer, StatusError):
            raise answer
        return answer

    def ping(self, peer: str) -> bool:
        """Does a peer live? One that answers is not benched any more."""
        try:
            answer = self._pool.request(
                "POST", f"http://{self._address_of(peer)}/v1/ping", timeout=(PING_TIMEOUT_S, PING_TIMEOUT_S)
            )
        except (HttpClientError, StatusError):
            return False
        if answer.status != 204:
            return False
        self._benched.pop(peer, None)
        return True

    # --- those who do not answer -----------------------------------------------------------------------

    def bench(self, peer: str) -> None:
        """Do without a peer until it answers a ping."""
        if peer not in self._benched:
            logger.warning("peer %s does not answer: others do without it", peer)
        self._benched[peer] = time.monotonic()

    def benched(self, peer: str) -> bool:
        """Is a peer out?"""
        return peer in self._benched

    def benched_peers(self) -> list[str]:
        """Peers that are out."""
        return list(self._benched)

    # --- several -----------------------------------------------------------------------------------------

    def ask_all(
        self,
        requests: Mapping[str, Operation],
        enough: Callable[[Answers], bool] | None = None,
        timeout_s: float | None = None,
        grace_s: float = GRACE_S,
    ) -> Answers:
        """Ask several peers.

        :param enough: given the answers so far: the rest only gets ``grace_s`` more.
        :returns: reply or StatusError for each peer; code 7 for those who did not answer in time.
        """
        answers: Answers = {}
        running: dict[int, _Exchange] = {}
        bodies: dict[int, bytes] = {}
        for peer, request in requests.items():
            body = bodies.get(id(request))
            if body is None:
                body = bodies[id(request)] = _encode(request)
            try:
                exchange = self._send(peer, request, body)
            except StatusError as exc:
                answers[peer] = exc
                self._note_failure(peer, exc)
            else:
                running[exchange.connection.fileno()] = exchange
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        self._collect(running, answers, enough, deadline, grace_s)
        for exchange in running.values():
            exchange.connection.close()
            answers[exchange.peer] = StatusError(status.READ_TIMEOUT, f"{exchange.peer} did not answer in time")
            self.bench(exchange.peer)
        return answers

    def _note_failure(self, peer: str, error: StatusError) -> None:
        if error.code in range(2, 10):
            self.bench(peer)

    def _send(self, peer: str, request: Operation, body: bytes) -> _Exchange:
        """Send a request, as far as the peer takes it, on a connection that is surely open."""
        address = self._address_of(peer)
        host, _, port = address.rpartition(":")
        kind = type(request)
        decode = _decoders.get(kind)
        if decode is None:
            decode = _decoders[kind] = msgspec.msgpack.Decoder(kind.reply).decode
        fresh = False
        while True:
            try:
                connection = self._pool.acquire(
                    host.strip("[]"), int(port), connect_timeout_s=self._connect_timeout_s,
                    read_timeout_s=self._timeout_s, fresh=fresh,
                )
            except HttpClientError as exc:
                raise StatusError(network_code(exc), f"{peer}: {exc}") from exc
            try:
                fields = [("Content-Length", str(len(body)))]
                connection.put_request("POST", f"/v1/{kind.operation()}", fields)
                connection.queue(body)
                connection.send_nowait()
            except HttpClientError as exc:
                connection.close()
                if connection.reused and not fresh:
                    fresh = True
                    continue
                raise StatusError(network_code(exc), f"{peer}: {exc}") from exc
            return _Exchange(peer, connection, decode)

    def _collect(
        self,
        running: dict[int, _Exchange],
        answers: Answers,
        enough: Callable[[Answers], bool] | None,
        deadline: float,
        grace_s: float,
    ) -> None:
        poll = select.poll()
        for fd, exchange in running.items():
            poll.register(fd, select.POLLIN | select.POLLOUT if exchange.connection.pending else select.POLLIN)
        satisfied = False
        while running:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            for fd, _event in poll.poll(left_s * 1000):
                exchange = running[fd]
                connection = exchange.connection
                sending = connection.pending
                # What remains of an answer behind its head may take until then.
                connection.deadline = deadline
                answer = self._read(exchange)
                if answer is None:
                    if sending and not connection.pending:
                        poll.modify(fd, select.POLLIN)
                    continue
                poll.unregister(fd)
                del running[fd]
                answers[exchange.peer] = answer
            if running and not satisfied and enough is not None and enough(answers):
                satisfied = True
                deadline = min(deadline, time.monotonic() + grace_s)

    def _read(self, exchange: _Exchange) -> object | None:
        """The answer of a peer if its head is there, else None; what is left of the request goes first."""
        connection = exchange.connection
        try:
            connection.send_nowait()
            response = connection.try_read_response()
            if response is None:
                return None
            body = response.read_all(_BODY_MAX)
            response.release()
        except HttpClientError as exc:
            connection.close()
            error = StatusError(network_code(exc), f"{exchange.peer}: {exc}")
            self._note_failure(exchange.peer, error)
            return error
        self._benched.pop(exchange.peer, None)
        return _decoded(exchange, response, body)


def _decoded(exchange: _Exchange, response: ClientResponse, body: bytes) -> object:
    if response.status == 204:
        return True
    try:
        if response.status == 200:
            return exchange.decode(body)
        reply = msgspec.msgpack.decode(body, type=ErrorReply)
    except msgspec.MsgspecError:
        return StatusError(
            status.NETWORK_ERROR, f"{exchange.peer}: HTTP {response.status} with a body that makes no sense"
        )
    return StatusError(reply.status, reply.message)
