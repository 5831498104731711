# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Client of the conscience, for the proxy.

>>> client = RegistryClient(["127.0.0.1:6000"], HttpPool())           # doctest: +SKIP
>>> snapshot = client.snapshot()                                      # doctest: +SKIP
>>> client.snapshot(known_generation=snapshot.generation)  # None: nothing changed          # doctest: +SKIP

Consciences are tried in order; the next one only when the network or the service behind failed. One that is
silent, which costs time each time it is asked, is asked last for a while. Anything the conscience refuses is a
:class:`StatusError` with its code; no conscience at all is code 503.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from oio.common.status import BAD_REQUEST, UNAVAILABLE, StatusError
from oio.conscience.messages import (
    SCORE_COMPUTE,
    SCORE_MAX,
    SCORE_UNLOCK,
    NamespaceInfo,
    Service,
    ServiceDef,
    Snapshot,
)
from oio.http.client import ConnectTimeout, HttpClientError, HttpPool, HttpResponse, ReadTimeout, WriteTimeout

_SILENCE = (ConnectTimeout, ReadTimeout, WriteTimeout)

# Answers come from memory; more than this means that the host or the network is in trouble.
TIMEOUT_S = 10.0
# Time allowed to a conscience when there is another one to ask.
TIMEOUT_WITH_OTHERS_S = 3.0
# How long a conscience that let a request time out is asked after the others.
SUSPICION_S = 15.0


class RegistryClient:
    """Thread-safe; holds no state but its addresses and when some of them were silent."""

    def __init__(
        self, addresses: Sequence[str], pool: HttpPool, timeout_s: float = TIMEOUT_S
    ) -> None:
        """``addresses`` are the ``IP:PORT`` of the consciences, in order of preference."""
        self.addresses = list(addresses)
        self._pool = pool
        self.timeout_s = timeout_s
        self._silent: dict[str, float] = {}

    def snapshot(
        self, known_generation: int | None = None, full: bool = True, *, reqid: str = ""
    ) -> Snapshot | None:
        """Everything at one generation; None when that is still ``known_generation``."""
        target = f"/v1/snapshot?full={int(full)}"
        if known_generation is not None:
            target += f"&generation={known_generation}"
        response = self._call("GET", target, reqid=reqid)
        return None if response.status == 304 else _decode(response, Snapshot)

    def services(
        self, kind: str, full: bool = False, *, reqid: str = "", within_s: float | None = None
    ) -> list[Service]:
        """Services of a type, straight from the conscience; 453 when the type is unknown."""
        target = f"/v1/services?type={quote(kind, safe='')}&full={int(full)}"
        return _decode(self._call("GET", target, reqid=reqid, within_s=within_s), list[Service])

    def types(self, *, reqid: str = "") -> list[str]:
        """Names of the service types."""
        return _decode(self._call("GET", "/v1/types", reqid=reqid), list[str])

    def info(self, *, reqid: str = "") -> NamespaceInfo:
        """Policies, pools and securities."""
        return _decode(self._call("GET", "/v1/info", reqid=reqid), NamespaceInfo)

    def push(
        self, services: Iterable[ServiceDef], *, reqid: str = "", within_s: float | None = None
    ) -> None:
        """Register, lock and unlock, each service according to its score; all of them or none."""
        body = msgspec.json.encode(list(services))
        self._call("POST", "/v1/push", body, reqid=reqid, within_s=within_s)

    def register(self, services: Iterable[ServiceDef], *, reqid: str = "") -> None:
        """Push services whose score is to be computed."""
        self.push((_with_score(srv, SCORE_COMPUTE) for srv in services), reqid=reqid)

    def lock(self, services: Iterable[ServiceDef], *, reqid: str = "") -> None:
        """Lock services at their score, brought into 0..100."""
        self.push((_with_score(srv, max(0, min(SCORE_MAX, srv.score))) for srv in services), reqid=reqid)

    def unlock(self, services: Iterable[ServiceDef], *, reqid: str = "") -> None:
        """Give services back to the computation; unknown ones stay unknown."""
        self.push((_with_score(srv, SCORE_UNLOCK) for srv in services), reqid=reqid)

    def deregister(
        self, services: Iterable[ServiceDef], *, reqid: str = "", within_s: float | None = None
    ) -> None:
        """Forget services."""
        body = msgspec.json.encode(list(services))
        self._call("POST", "/v1/deregister", body, reqid=reqid, within_s=within_s)

    def flush(self, kind: str, *, reqid: str = "", within_s: float | None = None) -> None:
        """Forget all services of a type."""
        self._call("POST", f"/v1/flush?type={quote(kind, safe='')}", reqid=reqid, within_s=within_s)

    def _call(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        reqid: str = "",
        within_s: float | None = None,
    ) -> HttpResponse:
        """Ask the consciences in turn, each for ``timeout_s`` at most, all of them for ``within_s``.

        A request that timed out may have been applied. Asking another one again is right all the same: to
        register, to lock or to forget twice is to do it once.
        """
        headers = {"x-oio-req-id": reqid} if reqid else {}
        deadline = None if within_s is None else time.monotonic() + within_s
        failures = []
        addresses = self._in_order()
        for rank, address in enumerate(addresses, start=1):
            timeout_s = self.timeout_s
            if rank < len(addresses):
                timeout_s = min(timeout_s, TIMEOUT_WITH_OTHERS_S)
            if deadline is not None:
                timeout_s = min(timeout_s, deadline - time.monotonic())
                if timeout_s <= 0:
                    failures.append(f"{address}: no time left")
                    break
            try:
                response = self._pool.request(
                    method, f"http://{address}{target}", headers=headers, body=body,
                    timeout=timeout_s, idempotent=True,
                )
            except HttpClientError as exc:
                failures.append(f"{address}: {exc}")
                if isinstance(exc, _SILENCE):
                    self._silent[address] = time.monotonic()
                continue
            self._silent.pop(address, None)
            if response.status < 400:
                return response
            error = _error_of(response)
            if response.status not in (502, 503, 504):
                raise error
            failures.append(f"{address}: {error}")
        raise StatusError(
            UNAVAILABLE,
            f"Conscience error: none of {len(addresses)} answered"
            f" ({'; '.join(failures) or 'no address configured'})",
        )

    def _in_order(self) -> list[str]:
        """The addresses, those that were silent lately after the others."""
        if not self._silent:
            return self.addresses
        since = time.monotonic() - SUSPICION_S
        return sorted(self.addresses, key=lambda address: self._silent.get(address, 0.0) > since)


def _with_score(service: ServiceDef, score: int) -> ServiceDef:
    return msgspec.structs.replace(service, score=score)


class _Error(msgspec.Struct):
    status: int = 0
    message: str = ""


def _error_of(response: HttpResponse) -> StatusError:
    try:
        error = msgspec.json.decode(response.data, type=_Error)
    except msgspec.DecodeError:
        error = _Error(message=bytes(response.data[:200]).decode("utf-8", "replace"))
    code = error.status or (BAD_REQUEST if response.status < 500 else UNAVAILABLE)
    return StatusError(code, error.message or f"HTTP {response.status}")


def _decode(response: HttpResponse, kind: Any) -> Any:
    try:
        return msgspec.json.decode(response.data, type=kind)
    except msgspec.DecodeError as exc:
        raise StatusError(UNAVAILABLE, f"Conscience error: unreadable answer: {exc}") from exc
