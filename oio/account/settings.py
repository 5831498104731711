# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Configuration of the account service: section ``[account-server]`` of a file."""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oio.account.scripts import Prefixes
from oio.common.easy_value import boolean_value, int_value
from oio.common.redis_conn import RedisConnection

SECTION = "account-server"
REDIS_PORT = 6379
PORT_MAX = 65535
# Requests that a worker runs at once; each may hold a connection to Redis.
THREADS_MAX = 64
BACKLOG = 2048
WORKER_CONNECTIONS = 1000
REDIS_KEYS = (
    "redis_socket_timeout", "redis_socket_connect_timeout", "redis_socket_keepalive", "redis_retry_on_timeout",
    "redis_max_connections", "redis_health_check_interval",
    "redis_sentinel_socket_timeout", "redis_sentinel_socket_connect_timeout", "redis_sentinel_socket_keepalive",
    "redis_sentinel_retry_on_timeout", "redis_sentinel_max_connections", "redis_sentinel_health_check_interval",
)  # fmt: skip
# Keys of the servers that once ran this service, which mean nothing here.
IGNORED_KEYS = ("worker_class", "proc_name", "access_log_format")


@dataclass(frozen=True)
class Settings:
    """What the file says, with defaults."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    backlog: int = BACKLOG
    connections: int = WORKER_CONNECTIONS
    autocreate: bool = True
    log_level: str = "INFO"
    prefixes: Prefixes = field(default_factory=Prefixes)
    redis: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of a connection to Redis."""
    logs: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """How many requests a worker runs at once."""
        limit = int_value(self.redis.get("max_connections"), THREADS_MAX)
        return max(1, min(THREADS_MAX, limit))

    def connect(self) -> RedisConnection:
        """Make a connection; nothing is sent before the first request. :raises ValueError: on a bad value."""
        return RedisConnection(**self.redis)


def load_settings(path: str) -> Settings:
    """Read a file. :raises ValueError, OSError, configparser.Error: when it cannot be used."""
    conf = configparser.ConfigParser(interpolation=None)
    with open(path, encoding="utf-8") as stream:
        conf.read_file(stream)
    if SECTION not in conf:
        raise ValueError(f"section [{SECTION}] is missing")
    return settings_of(conf[SECTION])


def settings_of(section: Mapping[str, str]) -> Settings:
    """Understand the keys of the section. :raises ValueError: on a bad value or without Redis."""
    settings = Settings(
        host=section.get("bind_addr") or "127.0.0.1",
        port=_number(section, "bind_port", 8000, 0, PORT_MAX),
        workers=_number(section, "workers", os.cpu_count() or 1, 1),
        backlog=_number(section, "backlog", BACKLOG, 1),
        connections=_number(section, "worker_connections", WORKER_CONNECTIONS, 1),
        autocreate=_boolean(section, "autocreate", True),
        log_level=(section.get("log_level") or "INFO").upper(),
        prefixes=Prefixes(
            account=section.get("account_prefix", Prefixes.account),
            bucket=section.get("bucket_prefix", Prefixes.bucket),
            bucket_list=section.get("bucket_list_prefix", Prefixes.bucket_list),
            container_list=section.get("container_list_prefix", Prefixes.container_list),
            bucket_lock=section.get("bucket_lock_prefix", Prefixes.bucket_lock),
        ),
        redis=_redis_options(section),
        logs={
            key: section[key]
            for key in ("syslog_prefix", "log_facility", "log_address")
            if section.get(key)
        },
        ignored=tuple(key for key in IGNORED_KEYS if section.get(key)),
    )
    # Bad options are told at the start, not at the first request.
    settings.connect()
    return settings


def _redis_options(section: Mapping[str, str]) -> dict[str, Any]:
    host = section.get("redis_host")
    # Each with the name that it had in earlier versions.
    sentinels = section.get("redis_sentinel_hosts") or section.get("sentinel_hosts", "")
    name = section.get("redis_sentinel_name") or section.get("sentinel_master_name", "")
    if not host and not (sentinels and name):
        raise ValueError(
            "Redis is missing: set redis_host, or redis_sentinel_hosts and redis_sentinel_name"
        )
    options: dict[str, Any] = {}
    if host:
        port = _number(section, "redis_port", REDIS_PORT, 1, PORT_MAX)
        options["host"] = host if _has_port(host) else f"{host}:{port}"
    else:
        options |= {"sentinel_hosts": sentinels, "sentinel_name": name}
    options |= {key.removeprefix("redis_"): section[key] for key in REDIS_KEYS if section.get(key)}
    return options


def _has_port(host: str) -> bool:
    if host.startswith("["):
        return "]:" in host
    return host.count(":") == 1


def _number(
    section: Mapping[str, str], key: str, default: int, least: int, most: int | None = None
) -> int:
    try:
        number = int(int_value(section.get(key), default))
    except ValueError:
        raise ValueError(f"{key} = {section[key]}: not a number") from None
    if number < least:
        raise ValueError(f"{key} = {number}: less than {least}")
    if most is not None and number > most:
        raise ValueError(f"{key} = {number}: more than {most}")
    return number


def _boolean(section: Mapping[str, str], key: str, default: bool) -> bool:
    try:
        return boolean_value(section.get(key), default)
    except ValueError as exc:
        raise ValueError(f"{key}: {exc}") from None
