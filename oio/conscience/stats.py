# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the agent tells about a service beside its being up: collectors of statistics.

A collector returns tags; only those named ``stat.*`` and ``tag.*`` go further than the agent. An exception
makes the service down for the cycle, because a service that cannot say how it feels should not be chosen.

Third parties add collectors through the entry-point group ``oio.conscience.stats``: a class made like
:class:`Collector`, found by the name written in ``type``.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

import msgspec

from oio.common.utils import request_id
from oio.conscience.hoststats import free_ratio
from oio.conscience.plugins import AgentContext, Plugin, load_plugin
from oio.http.client import HttpPool

ENTRY_POINT_GROUP = "oio.conscience.stats"
BEANSTALKD_REPLY_MAX_BYTES = 65536

Stats = dict[str, Any]


class Collector(Plugin):
    """One source of statistics of one service."""

    timeout_default_s = 10.0

    def get_stats(self) -> Stats:
        """Collect once."""
        raise NotImplementedError


class SystemCollector(Collector):
    """``stat.cpu``: percentage of idle processor time."""

    def get_stats(self) -> Stats:
        """Collect once."""
        return {"stat.cpu": 100.0 * self.agent.cpu.idle_ratio()}


class LookCollector(Collector):
    """``stat.looked``: the moment, in seconds on the monotonic clock of the machine.

    Who started a service on this machine sees by it what was found out since.
    """

    def get_stats(self) -> Stats:
        """Collect once."""
        return {"stat.looked": time.monotonic()}


class VolumeCollector(Collector):
    """``stat.space``, ``stat.io`` and ``tag.vol`` of the volume at ``path``."""

    def configure(self) -> None:
        """Reads ``path`` (``/``)."""
        self.path = str(self.conf.get("path") or "/")

    def get_stats(self) -> Stats:
        """Collect once."""
        return {
            "tag.vol": self.path,
            "stat.space": 100.0 * free_ratio(self.path),
            "stat.io": 100.0 * self.agent.disks.idle_ratio(self.path),
        }


class HttpCollector(Collector):
    """Reads a page of the service: ``lines`` (``key value``) or ``json`` (an object)."""

    def configure(self) -> None:
        """Reads ``path`` and ``parser``."""
        self.parser = str(self.conf.get("parser", "lines"))
        if self.parser not in ("lines", "json"):
            raise ValueError(f"parser {self.parser!r} is neither lines nor json")
        self.set_path(str(self.conf.get("path") or ""))

    def set_path(self, path: str) -> None:
        """Choose the page."""
        self.url = f"http://{self.host}:{self.port}/{path.lstrip('/')}"

    def get_stats(self) -> Stats:
        """Collect once."""
        body = self.fetch("GET", self.url)
        return parse_json(body) if self.parser == "json" else parse_lines(body)

    def fetch(self, method: str, url: str) -> bytes:
        """Body of a 200. :raises ValueError: on any other status."""
        headers = {"Connection": "close", "x-oio-req-id": request_id("stat-")}
        return self._body(self.agent.check_pool, method, url, headers)

    def _body(self, pool: HttpPool, method: str, url: str, headers: dict[str, str]) -> bytes:
        response = pool.request(method, url, headers=headers, timeout=self.timeout, idempotent=True)
        if response.status != 200:
            raise ValueError(f"{url} answered {response.status}")
        return bytes(response.data)


class RawxCollector(HttpCollector):
    """Rates of a rawx, from its counters."""

    def configure(self) -> None:
        """Reads ``path`` (``/stat``)."""
        self.parser = "lines"
        self.set_path(str(self.conf.get("path") or "/stat"))
        self._hits, self._time_us, self._read_s = 0, 0, 0.0

    def get_stats(self) -> Stats:
        """Collect once; rates are those since the previous collection."""
        lines = parse_lines(self.fetch("GET", self.url))
        now = time.monotonic()
        hits = int(lines.get("counter req.hits", 0))
        time_us = int(lines.get("counter req.time", 0))
        stats: Stats = {}
        # Counters that went back are those of a restarted service: nothing can be said this time.
        if self._read_s and hits >= self._hits and time_us >= self._time_us:
            new_hits = hits - self._hits
            stats["stat.total_reqpersec"] = new_hits / max(now - self._read_s, 1e-3)
            stats["stat.total_avreqtime"] = (time_us - self._time_us) / new_hits if new_hits else 1
        self._hits, self._time_us, self._read_s = hits, time_us, now
        if lines.get("config service_id"):
            stats["tag.service_id"] = str(lines["config service_id"])
        return stats


class MetaCollector(HttpCollector):
    """Gauges of a meta service, asked through the proxy."""

    def configure(self) -> None:
        """Takes no option."""
        self.target = f"/v3.0/forward/stats?id={self.host}:{self.port}"

    def get_stats(self) -> Stats:
        """Collect once."""
        # The proxy is asked for all the services of the host: over the same connections.
        url, headers = self.agent.proxy_url + self.target, {"x-oio-req-id": request_id("stat-")}
        return gauges(parse_lines(self._body(self.agent.proxy_pool, "POST", url, headers)))


class ProxyCollector(HttpCollector):
    """Gauges of a proxy."""

    def configure(self) -> None:
        """The path is not an option."""
        self.set_path("/v3.0/status")

    def get_stats(self) -> Stats:
        """Collect once. Old proxies write ``key = value``."""
        lines = parse_lines(self.fetch("GET", self.url))
        return gauges({key.removesuffix(" ="): value for key, value in lines.items()})


class BeanstalkdCollector(Collector):
    """Numbers of jobs. An unreachable beanstalkd gives nothing: being up is the business of the checks."""

    _STATS = {
        "current-tubes": "stat.tubes",
        "current-jobs-buried": "stat.jobs_buried",
        "current-jobs-delayed": "stat.jobs_delayed",
        "current-jobs-ready": "stat.jobs_ready",
        "current-jobs-reserved": "stat.jobs_reserved",
        "current-jobs-urgent": "stat.jobs_urgent",
    }

    def configure(self) -> None:
        """Takes no option."""
        self._failing = False

    def get_stats(self) -> Stats:
        """Collect once."""
        try:
            text = self._ask()
        except (OSError, ValueError) as exc:
            if not self._failing:
                self.logger.warning("no statistics of beanstalkd %s:%d: %s", self.host, self.port, exc)
            self._failing = True
            return {}
        self._failing = False
        stats = {}
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if key in self._STATS and value.strip().isdigit():
                stats[self._STATS[key]] = int(value)
        return stats

    def _ask(self) -> str:
        with socket.create_connection((self.host, self.port), self.timeout) as sock:
            sock.sendall(b"stats\r\n")
            reader = sock.makefile("rb")
            status = reader.readline(64).split()
            if len(status) != 2 or status[0] != b"OK":
                raise ValueError(f"unexpected reply {status}")
            size = int(status[1])
            if size > BEANSTALKD_REPLY_MAX_BYTES:
                raise ValueError(f"reply of {size} bytes")
            return reader.read(size).decode("utf-8", "replace")


STATS: dict[str, type[Collector]] = {
    "beanstalkd": BeanstalkdCollector,
    "http": HttpCollector,
    "look": LookCollector,
    "meta": MetaCollector,
    "oioproxy": ProxyCollector,
    "rawx": RawxCollector,
    "system": SystemCollector,
    "volume": VolumeCollector,
}


def make_collector(agent: AgentContext, conf: dict[str, Any], logger: logging.Logger) -> Collector:
    """Collector of the ``type`` of ``conf``. :raises ValueError: when there is none."""
    collector_class = STATS.get(conf["type"]) or load_plugin(ENTRY_POINT_GROUP, conf["type"])
    return collector_class(agent, conf, logger)


def parse_lines(body: bytes) -> Stats:
    """Split each line at its last blank: key, and value as a number when it looks like one."""
    stats: Stats = {}
    for line in body.decode("utf-8", "replace").splitlines():
        words = line.rsplit(None, 1)
        if words:
            stats[words[0]] = _scalar(words[1]) if len(words) == 2 else None
    return stats


def parse_json(body: bytes) -> Stats:
    """Members of an object, prefixed by ``stat.``; ``uuid`` becomes ``tag.uuid``."""
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise ValueError(f"not a JSON object: {exc}") from exc
    stats = {f"stat.{key}": value for key, value in members.items() if key != "uuid"}
    if "uuid" in members:
        stats["tag.uuid"] = members["uuid"]
    return stats


def gauges(lines: Stats) -> Stats:
    """The lines, and ``stat.X`` for each ``gauge X``."""
    found = {
        "stat." + key[len("gauge ") :].strip(): value
        for key, value in lines.items()
        if key.startswith("gauge ")
    }
    return {**lines, **found}


def _scalar(text: str) -> int | float | str:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
