# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Connections to Redis, one server or a set watched by Sentinel, and locks on it.

>>> redis = RedisConnection(host="127.0.0.1:6379", socket_timeout="5")  # doctest: +SKIP
>>> identifier = redis.acquire_lock_with_timeout("rebuild")  # doctest: +SKIP
>>> redis.release_lock("rebuild", identifier)  # doctest: +SKIP
True

The package ``redis`` (extra ``redis``) is loaded by the first :class:`RedisConnection`; connections are made by
the first command. A command is sent once: an error reaches the caller, unless ``retry_on_timeout`` allows a
second try. Methods of services wrapped in :func:`catch_service_errors` turn such errors into ``ServiceBusy``.

A lock lasts ``lock_timeout`` seconds at most: whoever holds it longer must expect another owner. It lives on the
master only, so it can be granted twice when Sentinel replaces a master that had not yet copied it.
"""

from __future__ import annotations

import functools
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from oio.common.easy_value import boolean_value, float_value, int_value
from oio.common.exceptions import ConfigurationException, ServiceBusy

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

Function = TypeVar("Function", bound=Callable[..., Any])

SENTINEL_PREFIX = "sentinel_"
LOCK_PREFIX = "lock:"
# Options that reach the client, and how their texts are read.
CONNECTION_OPTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "socket_timeout": float_value,
    "socket_connect_timeout": float_value,
    "socket_keepalive": boolean_value,
    "retry_on_timeout": boolean_value,
    "max_connections": int_value,
    "health_check_interval": int_value,
}

# Refused here rather than by each request.
_ABOVE_ZERO = frozenset({"socket_timeout", "socket_connect_timeout", "max_connections"})
_PORT_MAX = 65535

# Between two tries to take a lock: doubled each time, randomly shortened, so that waiters do not march in step.
_LOCK_PAUSE_FIRST_S = 0.001
_LOCK_PAUSE_MAX_S = 0.1

# Only the owner may release: its identifier is compared and the key removed in one step.
_RELEASE_LOCK = """
if redis.call('get', KEYS[1]) == ARGV[1] then
    return redis.call('del', KEYS[1])
end
return 0
"""


class RedisConnection:
    """One Redis server (``host``), or the master and slaves that Sentinel tells.

    :param host: ``ip:port`` of the server.
    :param sentinel_hosts: ``ip:port`` of the Sentinels, separated by commas, or a list of them.
    :param sentinel_name: name under which the Sentinels watch the set.
    :param kwargs: see :data:`CONNECTION_OPTIONS`; with the prefix ``sentinel_``, for the connections to the
        Sentinels themselves. Others are ignored; values may be texts.
    :raises ValueError: when an address or a value is malformed, or when neither ``host`` nor the two options of
        Sentinel are given.
    """

    def __init__(
        self,
        host: str | None = None,
        sentinel_hosts: str | Iterable[str] | None = None,
        sentinel_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        redis = _load_redis()
        options = _connection_options(kwargs)
        self._sentinel: Any = None
        self._conn: Any = None
        self._slave: Any = None
        if host:
            name, port = _parse_address(host)
            self._conn = redis.Redis(host=name, port=port, **options)
            return
        if not sentinel_name:
            raise ValueError("Missing parameter 'sentinel_name' (or 'host')")
        addresses = sentinel_hosts.split(",") if isinstance(sentinel_hosts, str) else list(sentinel_hosts or ())
        if not addresses:
            raise ValueError("Missing parameter 'sentinel_hosts' (or 'host')")
        self._sentinel_name = sentinel_name
        self._sentinel = redis.Sentinel(
            [_parse_address(address) for address in addresses],
            # Timeouts of the set hold for its Sentinels too, unless these have their own.
            sentinel_kwargs=_connection_options({**_of_prefix("socket_", kwargs), **_sentinel_options(kwargs)}),
            **options,
        )

    @property
    def conn(self) -> Redis:
        """Client of the master. Safe to share between threads; it follows a change of master."""
        if self._conn is None:
            self._conn = self._sentinel.master_for(self._sentinel_name)
        return self._conn

    @property
    def conn_slave(self) -> Redis:
        """Client of a slave, which may lag behind; of the only server without Sentinel."""
        if self._sentinel is None:
            return self.conn
        if self._slave is None:
            self._slave = self._sentinel.slave_for(self._sentinel_name)
        return self._slave

    def get_slave_conn(self, force_master: bool = False) -> Redis:
        """Client for reads: of a slave, or of the master for those who must read their own writes."""
        return self.conn if force_master else self.conn_slave

    def register_script(self, script: str) -> Script:
        """Make a callable from a Lua script; it is sent once and then run by its hash, on the master."""
        return self.conn.register_script(script)

    def acquire_lock_with_timeout(
        self, name: str, acquire_timeout: float = 10, lock_timeout: float = 10
    ) -> str | bool:
        """Take a lock, waiting for it ``acquire_timeout`` seconds at most.

        :param lock_timeout: seconds after which the lock is released by itself.
        :returns: identifier to give to :meth:`release_lock`, or False when somebody else kept it.
        """
        identifier = str(uuid.uuid4())
        lifetime_ms = max(1, int(lock_timeout * 1000))
        deadline = time.monotonic() + acquire_timeout
        pause_s = _LOCK_PAUSE_FIRST_S
        while True:
            if self.conn.set(LOCK_PREFIX + name, identifier, nx=True, px=lifetime_ms):
                return identifier
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(left_s, pause_s * random.uniform(0.5, 1.0)))
            pause_s = min(2 * pause_s, _LOCK_PAUSE_MAX_S)

    def release_lock(self, name: str, identifier: str) -> bool:
        """Release a lock. False when its owner is (or has become) somebody else, or nobody."""
        return bool(self._release_script(keys=[LOCK_PREFIX + name], args=[identifier]))

    @functools.cached_property
    def _release_script(self) -> Script:
        return self.register_script(_RELEASE_LOCK)


def catch_service_errors(func: Function) -> Function:
    """Wrap a function: what Redis fails to do now (unreachable, slow, confused) becomes ``ServiceBusy``."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except _service_errors() as exc:
            raise ServiceBusy(message=f"Redis: {exc}") from exc

    return wrapper  # type: ignore[return-value]


def catch_io_errors(func: Function) -> Function:
    """Wrap a function: the use of a connection that another thread closed becomes ``ServiceBusy``."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except ValueError as exc:
            if "closed file" in str(exc):
                raise ServiceBusy(message=f"Redis: {exc}") from exc
            raise

    return wrapper  # type: ignore[return-value]


def _load_redis() -> Any:
    try:
        import redis
    except ImportError as exc:
        raise ConfigurationException(f"The package 'redis' is needed: {exc}") from exc
    return redis


def _service_errors() -> tuple[type[Exception], ...]:
    """Classes to catch, looked up once something was raised: without the package, it is not about Redis."""
    errors = sys.modules.get("redis.exceptions")
    if errors is None:
        return ()
    return errors.ConnectionError, errors.TimeoutError, errors.InvalidResponse


def _parse_address(text: str) -> tuple[str, int]:
    host, colon, port = text.strip().rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= _PORT_MAX:
        raise ValueError(f"Redis address {text!r}: expected IP:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _connection_options(options: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for name, convert in CONNECTION_OPTIONS.items():
        try:
            value = convert(options.get(name), None)
        except ValueError as exc:
            raise ValueError(f"Redis option {name}={options[name]!r}: {exc}") from exc
        if name in _ABOVE_ZERO and value is not None and not value > 0:
            raise ValueError(f"Redis option {name}={options[name]!r}: must be more than 0")
        if value is not None:
            known[name] = value
    from redis.backoff import NoBackoff
    from redis.exceptions import TimeoutError as RedisTimeout
    from redis.retry import Retry

    # The client would try three times by itself, for many seconds: callers have their own deadlines.
    tries = 1 if known.pop("retry_on_timeout", False) else 0
    known["retry"] = Retry(NoBackoff(), tries, supported_errors=(RedisTimeout,))
    return known


def _of_prefix(prefix: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name.startswith(prefix)}


def _sentinel_options(options: Mapping[str, Any]) -> dict[str, Any]:
    own = _of_prefix(SENTINEL_PREFIX, options)
    return {name.removeprefix(SENTINEL_PREFIX): value for name, value in own.items()}
