# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Connection pools under the names that programs know, and the conversion of transport errors.

``get_pool_manager`` returns our own pool. ``urllib3`` and ``SafePoolManager`` are loaded when a program asks
for them: a ``SafePoolManager`` (or any urllib3 ``PoolManager``) is accepted wherever a pool is.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from oio.common.easy_value import float_value, int_value
from oio.common.exceptions import OioException, OioNetworkException, OioTimeout
from oio.http import client as http_client

if TYPE_CHECKING:
    from oio.http.client import HttpPool

DEFAULT_POOLSIZE = 32
DEFAULT_RETRIES = 0
DEFAULT_BACKOFF = 0
# Longest pause between two retries.
_PAUSE_MAX_S = 120.0

URLLIB3_REQUESTS_KWARGS = (
    "fields",
    "headers",
    "body",
    "retries",
    "redirect",
    "assert_same_host",
    "timeout",
    "pool_timeout",
    "release_conn",
    "chunked",
)
URLLIB3_POOLMANAGER_KWARGS = (
    "pool_connections",
    "pool_maxsize",
    "max_retries",
    "backoff_factor",
    "socket_options",
    "source_address",
    "cert_reqs",
    "ca_certs",
)


def get_pool_manager(
    pool_connections: int | str = DEFAULT_POOLSIZE,
    pool_maxsize: int | str = DEFAULT_POOLSIZE,
    max_retries: int | str = DEFAULT_RETRIES,
    backoff_factor: float | str = DEFAULT_BACKOFF,
    **kwargs: Any,
) -> HttpPool:
    """Make a pool of keep-alive connections.

    :param pool_connections: accepted; the number of addresses is not bounded.
    :param pool_maxsize: idle connections kept for each address.
    :param max_retries: how often a request is sent again after a transport error, when that is safe: it never
        left, or its method is idempotent. (One that meets a stale connection is sent again in any case.)
    :param backoff_factor: seconds before the second retry, doubled before each of the next.
    :keyword socket_options: triples ``(level, option, value)`` for each connection.
    :keyword source_address: address (or ``(address, port)``) to connect from.
    :keyword cert_reqs: ``CERT_REQUIRED`` to verify the certificates of ``https`` services.
    :keyword ca_certs: file of the authorities that sign them.
    :raises ValueError: when a figure is not a number.
    """
    int_value(pool_connections, DEFAULT_POOLSIZE)
    max_idle = int_value(pool_maxsize, DEFAULT_POOLSIZE)
    retries = int_value(max_retries, DEFAULT_RETRIES)
    backoff_s = float_value(backoff_factor, DEFAULT_BACKOFF) if retries else 0.0
    source_address = kwargs.get("source_address") or None
    if isinstance(source_address, str):
        source_address = (source_address, 0)
    options: dict[str, Any] = {
        "max_idle_per_address": max_idle,
        "source_address": source_address,
        "tls_verify": _wants_verification(kwargs.get("cert_reqs")),
        "tls_ca_file": kwargs.get("ca_certs") or None,
    }
    socket_options = kwargs.get("socket_options")
    if retries or socket_options:
        return _TunedPool(retries, backoff_s, socket_options or (), **options)
    return http_client.HttpPool(**options)


class _TunedPool(http_client.HttpPool):
    """What only the programs that ask for it pay for: retries, and options of sockets."""

    def __init__(
        self, retries: int, backoff_s: float, socket_options: Iterable[tuple[int, int, Any]], **options: Any
    ) -> None:
        super().__init__(**options)
        self.retries = retries
        self.backoff_s = backoff_s
        self.socket_options = tuple(socket_options)

    def request(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Send a request, and send it again after errors that allow it."""
        for retry in itertools.count():
            try:
                return super().request(method, *args, **kwargs)
            except http_client.HttpClientError as exc:
                safe = not exc.sent or method in http_client.IDEMPOTENT
                # The first retry follows at once: most often a connection was lost, or a service restarted.
                pause_s = min(self.backoff_s * 2 ** (retry - 1), _PAUSE_MAX_S) if retry else 0.0
                deadline = kwargs.get("deadline")
                late = deadline is not None and time.monotonic() + pause_s >= deadline
                if retry >= self.retries or late or not safe:
                    raise
            if pause_s:
                time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _connect(self, *args: Any) -> Any:
        connection = super()._connect(*args)
        for level, option, value in self.socket_options:
            connection.sock.setsockopt(level, option, value)
        return connection


def _wants_verification(cert_reqs: Any) -> bool:
    """Meaning of ``cert_reqs``, in the forms that urllib3 takes (name, or constant of ``ssl``)."""
    if isinstance(cert_reqs, str):
        return cert_reqs.upper().removeprefix("CERT_") == "REQUIRED"
    return bool(cert_reqs)


def pool_timeout(pool: Any, connect_s: float | None, read_s: float | None) -> Any:
    """Timeout in the form that this kind of pool takes."""
    if isinstance(pool, http_client.HttpPool):
        return connect_s, read_s
    import urllib3

    return urllib3.Timeout(connect=connect_s, read=read_s)


def timeout_bounds(timeout: Any) -> tuple[float | None, float | None]:
    """Seconds to connect and to wait for an answer, as a ``urllib3.Timeout`` (or what looks like one) tells.

    None where it tells nothing.
    """
    if hasattr(timeout, "start_connect"):
        # What is left to read depends on the time already spent when the whole is bounded: none yet.
        timeout = timeout.clone()
        timeout.start_connect()
    bounds = (getattr(timeout, "connect_timeout", None), getattr(timeout, "read_timeout", None))
    connect_s, read_s = (float(value) if isinstance(value, (int, float)) else None for value in bounds)
    return connect_s, read_s


def answers_as_they_come(pool: Any) -> dict[str, Any]:
    """Keywords by which a pool of urllib3 hands over the answer of a busy service.

    Left alone it obeys the header ``Retry-After``: it would wait and ask again several times, unknown to the
    caller whose business that is, and beyond any deadline.
    """
    settings = getattr(pool, "connection_pool_kw", None)
    if not isinstance(settings, dict):
        return {}
    import urllib3

    retries = settings.get("retries")
    if not isinstance(retries, urllib3.Retry):
        if retries is False:
            return {}
        retries = urllib3.Retry.from_int(retries)
    if not retries.respect_retry_after_header:
        return {}
    return {"retries": retries.new(respect_retry_after_header=False)}


def pool_errors() -> tuple[type[Exception], ...]:
    """Classes of the errors that a pool may raise; ``ValueError`` is for what cannot be sent as it is."""
    urllib3_errors = sys.modules.get("urllib3.exceptions")
    if urllib3_errors is None:
        return (http_client.HttpClientError, ValueError)
    return (http_client.HttpClientError, ValueError, urllib3_errors.HTTPError)


def oio_exception_from_httperror(
    exc: BaseException, reqid: str | None = None, url: str | None = None
) -> NoReturn:
    """Raise the exception of the package that a transport error stands for.

    The first argument of what is raised tells the request id and the address.
    """
    facts = []
    if reqid:
        facts.append(f"reqid={reqid}")
    if url:
        facts.append(f"host={_netloc(url)}")
    args = (", ".join(facts), str(exc)) if facts else (str(exc),)
    raise _class_of(exc)(*args) from exc


def _netloc(url: str) -> str:
    return url.split("://", 1)[-1].split("/", 1)[0]


def _class_of(exc: BaseException) -> type[OioException]:
    if isinstance(exc, http_client.HttpClientError):
        if isinstance(exc, (http_client.ConnectTimeout, http_client.ReadTimeout, http_client.WriteTimeout)):
            return OioTimeout
        return OioNetworkException
    if not type(exc).__module__.startswith("urllib3"):
        return OioException
    from urllib3 import exceptions as errors

    if isinstance(exc, errors.MaxRetryError):
        if isinstance(exc.reason, errors.NewConnectionError):
            return OioNetworkException
        return OioTimeout if isinstance(exc.reason, errors.TimeoutError) else OioNetworkException
    if isinstance(exc, errors.NewConnectionError):
        return OioNetworkException
    if isinstance(exc, errors.TimeoutError):
        return OioTimeout
    if isinstance(exc, (errors.ProtocolError, errors.ProxyError, errors.ClosedPoolError)):
        return OioNetworkException
    return OioException


def _make_safe_pool_manager() -> type[Any]:
    import urllib3

    class SafePoolManager(urllib3.PoolManager):
        """urllib3 pool whose ``request`` drops unknown keywords."""

        def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
            """Send a request with the keywords that urllib3 knows."""
            kept = {name: kwargs[name] for name in URLLIB3_REQUESTS_KWARGS if name in kwargs}
            return super().request(method, url, *args, **kept)

    return SafePoolManager


def __getattr__(name: str) -> Any:
    if name == "urllib3":
        import urllib3

        value: Any = urllib3
    elif name == "SafePoolManager":
        value = _make_safe_pool_manager()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
