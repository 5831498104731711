# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Waits until a local cluster can serve, and finishes its set-up on the way.

A cluster is ready when every service that runs is known with a score above 0, the prefix table is complete,
every meta1 answers for its prefixes, the proxy finds services to write to, and each volume has an index.
Services that the conscience locked when it saw them for the first time are unlocked.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from oio.common import status
from oio.common.exceptions import OioException
from oio.common.status import StatusError
from oio.conscience.messages import ServiceDef
from oio.conscience.registry_client import RegistryClient
from oio.directory import mapping
from oio.http.client import HttpClientError, HttpPool
from oio.meta.client import MetaClient
from oio.meta.messages import Meta0Get, ReferenceShow
from oio.rdir.dispatcher import RdirDispatcher
from oio.sandbox import queues, zookeeper
from oio.sandbox.errors import SandboxError
from oio.sandbox.layout import GROUND_TYPES, UNSCORED_TYPES, Layout, Service
from oio.sandbox.supervision import Supervision, is_paused, tail

_POLL_S = 0.1
_CALL_TIMEOUT_S = 5.0
#: Processes of a service, one after the other, before it is given up.
_LIVES_MAX = 5
#: What a service answers with 200 once it serves.
_PROBE_PATHS = {
    "proxy": "/v3.0/status",
    "meta0": "/status",
    "meta1": "/status",
    "meta2": "/status",
    "rawx": "/info",
    "account": "/status",
    "rdir": "/status",
    "ecd": "/status",
    "webhook": "/",
    "event-agent": "/metrics",
}
#: What an event agent tells while none of its workers consumes.
_IDLE_AGENT = re.compile(rb"^event_agent_workers 0", re.MULTILINE)
#: Types that nobody finds while their score is 0.
_SCORED_TYPES = frozenset({"meta0", "meta1", "meta2", "rawx", "account", "rdir"})
#: Statistic of the agent: when it found the service up, on the clock of this machine.
_LOOKED_TAG = "stat.looked"
#: Types that ask others, and are asked nothing.
_AGENT_TYPES = frozenset({"conscience-agent", "event-agent"})
#: Name of a reference that is only asked for: "not found" is the answer that shows a meta1 serves.
_PROBE = "oio-sandbox-probe"

Report = Callable[[str], None]


class Readiness:
    """One wait, with one deadline for all its steps."""

    def __init__(
        self, layout: Layout, supervision: Supervision, timeout_s: float, report: Report
    ) -> None:
        self._layout = layout
        self._supervision = supervision
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._report = report
        self._pool = HttpPool(connect_timeout_s=1.0, read_timeout_s=_CALL_TIMEOUT_S)
        self._meta = MetaClient(self._pool)
        self._registry = RegistryClient(
            [service.addr for service in layout.of_type("conscience")], self._pool
        )
        self._bootstrapped = False
        self._dispatcher: RdirDispatcher | None = None
        #: When each service was first seen to answer.
        self._answered: dict[str, float] = {}
        self._wanted: set[str] = set()
        #: Processes that each service was seen to have, 0 for none.
        self._lives: dict[str, set[int]] = {}

    def close(self) -> None:
        """Close the connections that were used."""
        self._pool.close()

    def wait_conscience(self) -> None:
        """Wait for the consciences."""
        self._wait("conscience", self._missing_consciences)

    def wait_ground(self, services: list[Service]) -> None:
        """Wait for what holds the events and the elections: others may start once it serves."""
        if services:
            self._wait(" and ".join({one.type: "" for one in services}), lambda: self._missing_answers(services))

    def wait_answers(self, services: list[Service]) -> None:
        """Wait until these services answer, but for agents."""
        expected = [service for service in services if service.type not in _AGENT_TYPES]
        self._wanted = {service.name for service in expected}
        if expected:
            self._wait("services", lambda: self._missing_answers(expected))

    def wait_all(self, services: list[Service]) -> None:
        """Wait for these services, and set up what the first start must set up."""
        agents = [service for service in services if service.type in _AGENT_TYPES]
        expected = [service for service in services if service not in agents]
        types = {service.type for service in expected}
        self.wait_answers(expected)
        self._wanted = {service.name for service in services}
        if expected:
            self._wait("scores", lambda: self._missing_scores(expected))
        if types & {"meta0", "meta1"}:
            self._wait("directory", self._missing_directory)
        if types & {"proxy", "meta2", "rawx", "rdir"}:
            self._wait("placement", self._missing_placement)
        if types & {"rdir", "meta2", "rawx"}:
            self._wait("indexes", self._missing_indexes)
        if agents:
            # Last: they take their time, in which the others get ready.
            self._wait("agents", lambda: self._missing_answers([one for one in agents if one.port]))
        self._wait("supervisor", lambda: self._missing_states(services))

    # --- the steps: each returns what is missing, by service name ---------------------------------

    def _missing_consciences(self) -> dict[str, str]:
        missing = {}
        for service in self._layout.of_type("conscience"):
            try:
                RegistryClient([service.addr], self._pool).types()
            except StatusError as err:
                missing[service.name] = err.message
        return missing

    def _missing_answers(self, expected: list[Service]) -> dict[str, str]:
        """Ask the services themselves: after a restart the conscience remembers scores of the past."""
        missing = {}
        for service in expected:
            if service.name in self._answered:
                continue
            if service.type in GROUND_TYPES:
                if problem := self._problem_of_ground(service, expected):
                    missing[service.name] = problem
                else:
                    self._answered[service.name] = time.monotonic()
                continue
            if service.type not in _PROBE_PATHS:
                continue
            try:
                url = f"http://{service.addr}{_PROBE_PATHS[service.type]}"
                answer = self._pool.request("GET", url)
            except HttpClientError as err:
                missing[service.name] = str(err)
                continue
            if answer.status != 200:
                missing[service.name] = f"{url} answers {answer.status}"
            elif service.type == "event-agent" and _IDLE_AGENT.search(answer.data):
                missing[service.name] = "it does not consume yet"
            else:
                self._answered[service.name] = time.monotonic()
        return missing

    def _problem_of_ground(self, service: Service, expected: list[Service]) -> str:
        if service.type != "zookeeper":
            return queues.probe(service)
        ensemble = self._layout.of_type("zookeeper")
        states = self._supervision.states()
        running = [one for one in ensemble if one in expected or states.get(one.name, {}).get("pid")]
        return zookeeper.problem(service, alone=2 * len(running) <= len(ensemble))

    def _missing_scores(self, expected: list[Service]) -> dict[str, str]:
        """What the conscience knows may be of the time before a service was restarted, or while it was down.

        That it is of now is sure when the agent found the service up after it had answered.
        """
        self._reload_proxy()
        watched = self._agent_watches()
        try:
            snapshot = self._registry.snapshot()
        except StatusError as err:
            return {service.name: err.message for service in self._layout.of_type("conscience")}
        assert snapshot is not None  # no generation was given
        known = {one.addr: one for group in snapshot.services.values() for one in group}
        missing, locked = {}, []
        for service in expected:
            if service.type in UNSCORED_TYPES:
                continue
            one = known.get(service.addr)
            if one is None:
                missing[service.name] = "not registered"
            elif one.tags.get("tag.lock") and one.score <= 0:
                locked.append(ServiceDef(type=one.type, addr=one.addr))
                missing[service.name] = "locked"
            elif one.score <= 0 and one.type in _SCORED_TYPES:
                up = one.tags.get("tag.up")
                missing[service.name] = f"score {one.score}, up: {up}"
            elif watched and _is_older(one.tags.get(_LOOKED_TAG), self._answered.get(service.name, 0.0)):
                missing[service.name] = "the conscience agent has not looked at it since it answers"
        if locked:
            self._registry.unlock(locked)
        return missing

    def _agent_watches(self) -> bool:
        """Does a conscience agent look at the services now?"""
        states = self._supervision.states()
        pids = [states.get(one.name, {}).get("pid", 0) for one in self._layout.of_type("conscience-agent")]
        return any(pid and not is_paused(pid) for pid in pids)

    def _reload_proxy(self) -> None:
        """Have all processes of the proxy tell the conscience what they were told, then read what it knows."""
        proxy = self._layout.of_type("proxy")[0]
        url = f"http://{proxy.addr}/v3.0/{self._layout.options.namespace}/lb/reload"
        with suppress(HttpClientError):  # it does not run: then it reads when it starts
            self._pool.request("POST", url, body=b"")

    def _missing_directory(self) -> dict[str, str]:
        """Complete the prefix table once, then ask every meta1 for a reference of one of its prefixes."""
        options = self._layout.options
        if options.directory_replicas > 1:
            return self._missing_copies_of_directory()
        meta0 = self._layout.of_type("meta0")[0]
        try:
            self._bootstrap()
            cid = hashlib.sha256(_PROBE.encode()).hexdigest().upper()
            prefix = cid[: mapping.DIGITS_MAX]
            reply = self._meta.call(
                meta0.addr, Meta0Get(prefix=prefix), timeout_s=_CALL_TIMEOUT_S
            )
            serving = reply.mapping.get(prefix, [])
        except StatusError as err:
            return {meta0.name: str(err)}
        names = {service.addr: service.name for service in self._layout.of_type("meta1")}
        missing = {}
        for address in serving:
            try:
                self._meta.call(address, ReferenceShow(cid=cid), timeout_s=_CALL_TIMEOUT_S)
            except StatusError as err:
                if err.code != status.REFERENCE_NOT_FOUND:
                    missing[names.get(address, address)] = str(err)
        return missing

    def _missing_copies_of_directory(self) -> dict[str, str]:
        """Ask the proxy for a reference: whichever host is down, it finds a copy once masters are elected.

        Before the prefix table is complete it does not; all services must run for that.
        """
        proxy = self._layout.of_type("proxy")[0]
        url = f"http://{proxy.addr}/v3.0/{self._layout.options.namespace}/reference/show"
        try:
            answer = self._pool.request("GET", f"{url}?acct={_PROBE}&ref={_PROBE}")
        except HttpClientError as err:
            return {proxy.name: str(err)}
        try:
            told = msgspec.json.decode(answer.data, type=dict[str, Any])
        except msgspec.MsgspecError:
            told = {}
        if told.get("status") == status.REFERENCE_NOT_FOUND:
            return {}
        self._bootstrap()
        return {proxy.name: f"{url} answers {told.get('status', answer.status)} {told.get('message', '')}"}

    def _bootstrap(self) -> None:
        options = self._layout.options
        if self._bootstrapped:
            return
        added = mapping.bootstrap_namespace(
            self._registry, self._meta, options.meta1_digits, options.directory_replicas
        )
        if added:
            self._report(f"prefix table: {added} entries added")
        self._bootstrapped = True

    def _missing_placement(self) -> dict[str, str]:
        """Ask processes of the proxy, which read the scores just now, for all there is to choose.

        Types of which nothing runs, and nothing was to be started, are left out.
        """
        self._reload_proxy()
        proxy = self._layout.of_type("proxy")[0]
        snapshot = self._registry.snapshot()
        assert snapshot is not None  # no generation was given
        counts = {}
        # One rdir that is known before the others would be given all the volumes.
        for type_ in ("meta2", "rawx", "rdir"):
            count = sum(one.score > 0 for one in snapshot.services.get(type_, ()))
            wanted = sum(service.name in self._wanted for service in self._layout.of_type(type_))
            if count or wanted:
                counts[type_] = max(wanted, count)
        options = self._layout.options
        for _ in range(2 * options.proxy_workers):
            with_fresh_connection = HttpPool(connect_timeout_s=1.0, read_timeout_s=_CALL_TIMEOUT_S)
            try:
                for type_, count in counts.items():
                    response = with_fresh_connection.request(
                        "GET",
                        f"http://{proxy.addr}/v3.0/{options.namespace}/lb/choose?type={type_}&size={count}",
                    )
                    if response.status != 200:
                        text = bytes(response.data[:200]).decode("utf-8", "replace")
                        return {proxy.name: f"cannot choose {count} {type_}: {response.status} {text}"}
            except HttpClientError as err:
                return {proxy.name: str(err)}
            finally:
                with_fresh_connection.close()
        return {}

    def _missing_indexes(self) -> dict[str, str]:
        """Give each volume whose service runs an index, unless it has one or no index runs.

        Nothing is written to a volume that was just started before this is done: no event of its chunks has to
        be handled again later.
        """
        snapshot = self._registry.snapshot()
        assert snapshot is not None  # no generation was given
        proxy = self._layout.of_type("proxy")[0]
        running = {one.addr for group in snapshot.services.values() for one in group if one.score > 0}
        rdirs = self._layout.of_type("rdir")
        if proxy.addr not in running or not any(rdir.addr in running for rdir in rdirs):
            return {one.name: "score 0" for one in rdirs if one.name in self._wanted}
        if self._dispatcher is None:
            conf = {"namespace": self._layout.options.namespace}
            self._dispatcher = RdirDispatcher(conf, endpoint=f"http://{proxy.addr}")
        missing: dict[str, str] = {}
        for type_ in ("meta2", "rawx"):
            volumes = [one for one in self._layout.of_type(type_) if one.addr in running]
            if not volumes:
                continue
            try:
                assigned = self._dispatcher.assign_services(type_)
            except OioException as err:
                return {rdirs[0].name: f"cannot be given {type_} volumes: {err}"}
            indexed = {one["addr"] for one in assigned if one.get("rdir")}
            missing.update((one.name, "no index") for one in volumes if one.addr not in indexed)
        return missing

    def _missing_states(self, services: list[Service]) -> dict[str, str]:
        """Who asks for the state after the start must not read that a service is still starting.

        It also is all that is known of a service without port: it serves when it stays alive.
        """
        states = self._supervision.states()
        found = {one.name: states.get(one.name, {}).get("state", "unknown") for one in services}
        return {name: f"state {state}" for name, state in found.items() if state != "RUNNING"}

    # --- waiting ----------------------------------------------------------------------------------

    def _wait(self, step: str, missing_of: Callable[[], dict[str, str]]) -> None:
        begin = time.monotonic()
        checked_at = begin
        while True:
            try:
                missing = missing_of()
            except (StatusError, msgspec.MsgspecError) as err:
                missing = {step: str(err)}
            if not missing:
                self._report(f"{step}: ready in {time.monotonic() - begin:.1f} s")
                return
            now = time.monotonic()
            if now > self._deadline:
                self._fail(f"{step}: not ready after {self._timeout_s:g} s", missing)
            if now - checked_at > 1.0:
                checked_at = now
                self._check_supervisor(self._wanted.union(missing))
            time.sleep(_POLL_S)

    def _check_supervisor(self, names: set[str]) -> None:
        """Do not wait for a service that the supervisor gave up."""
        dead = {}
        for name, state in self._supervision.states().items():
            self._lives.setdefault(name, set()).add(state["pid"])
            # On a busy machine a service may take longer to fail than the supervisor watches its start.
            if name in names and (state["state"] == "FATAL" or self._lived(name) > _LIVES_MAX):
                dead[name] = state["error"] or "it stopped again and again"
        if dead:
            tried = {name for name in names - self._answered.keys() if self._lived(name) > _LIVES_MAX // 2}
            self._supervision.give_up([one for one in self._layout.services if one.name in tried])
            self._fail("Services do not start", dead)

    def _lived(self, name: str) -> int:
        return len(self._lives.get(name, set()) - {0})

    def _fail(self, problem: str, missing: dict[str, str]) -> None:
        lines = [problem]
        for name, reason in list(missing.items())[:5]:
            lines.append(f"- {name}: {reason}")
            path = os.path.join(self._layout.log_dir, f"{name}.log")
            if os.path.exists(path):
                lines.append(f"  end of {path}:")
                lines += [f"    {line}" for line in tail(path).splitlines()]
        if len(missing) > 5:
            lines.append(f"- and {len(missing) - 5} more: {', '.join(list(missing)[5:])}")
        raise SandboxError("\n".join(lines))


def _is_older(looked_s: object, answered_s: float) -> bool:
    """Did the agent look before? An agent of a former version does not tell when it looks."""
    return isinstance(looked_s, (int, float)) and looked_s < answered_s
