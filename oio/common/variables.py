# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Variables of the services: typed, bounded, changeable at run time through ``/config``.

Each is declared once, with kind, default, bounds and meaning. Values come as text from ``sds.conf`` or from a
request; durations are seconds inside the code and microseconds in ``/config`` (contract: "Values"), unless they
are of the kind ``epoch``, seconds everywhere. A number without a suffix has the unit that ``/config`` shows: what
is read there can be written back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRUE_WORDS = frozenset({"1", "yes", "true", "on", "enable", "enabled", "yeah"})
FALSE_WORDS = frozenset({"0", "no", "false", "off", "disable", "disabled", "nope"})

_SIZE_UNITS = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15, "e": 10**18,
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40, "pi": 2**50, "ei": 2**60,
}
_DURATION_UNITS = {
    "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0,
    "w": 7 * 86400.0, "M": 28 * 86400.0,
}
_NUMBER = re.compile(r"^([+-]?\d+(?:\.\d*)?)\s*([A-Za-z]*)\Z")


def parse_boolean(text: str, default: bool = False) -> bool:
    """Boolean of headers, parameters and variables; any other text gives the default."""
    word = text.strip().lower()
    return word in TRUE_WORDS or (default and word not in FALSE_WORDS)


@dataclass(frozen=True)
class Variable:
    """Declaration of a variable.

    :ivar kind: ``bool``, ``int``, ``size`` (bytes), ``duration`` and ``epoch`` (seconds inside), ``float`` or
        ``str``.
    """

    name: str
    kind: str
    default: Any
    doc: str
    minimum: float | None = None
    maximum: float | None = None

    def parse(self, text: str) -> Any:
        """Value of a text, clamped to the bounds. :raises ValueError: when it cannot be read."""
        text = str(text).strip()
        if self.kind == "str":
            return text
        if self.kind == "bool":
            word = text.lower()
            if word not in TRUE_WORDS and word not in FALSE_WORDS:
                raise ValueError(f"{self.name}: not a boolean: {text!r}")
            return word in TRUE_WORDS
        match = _NUMBER.match(text)
        if not match:
            raise ValueError(f"{self.name}: not a {self.kind}: {text!r}")
        number, unit = float(match[1]), match[2]
        factor: float | None
        if self.kind in ("duration", "epoch"):
            factor = _DURATION_UNITS.get(unit, _DURATION_UNITS.get(unit.lower()))
            if not unit:
                factor = 1.0 if self.kind == "epoch" else 1e-6
        else:
            factor = _SIZE_UNITS.get(unit.lower())
        if factor is None:
            raise ValueError(f"{self.name}: unknown unit {unit!r}")
        value = number * factor
        if self.minimum is not None:
            value = max(value, self.minimum)
        if self.maximum is not None:
            value = min(value, self.maximum)
        if self.kind in ("int", "size"):
            # Large integers must not lose digits through a float.
            exact = int(match[1]) * int(factor) if "." not in match[1] else int(value)
            return exact if value == number * factor else int(value)
        return value

    def text(self, value: Any) -> str:
        """Text of a value, as ``/config`` shows it."""
        if self.kind == "bool":
            return "on" if value else "off"
        if self.kind == "duration":
            return str(round(value * 1e6))
        if self.kind == "epoch":
            return str(round(value))
        if self.kind == "float":
            return f"{value:.6f}"
        return str(value)


def _declare(*variables: Variable) -> dict[str, Variable]:
    return {variable.name: variable for variable in variables}


DECLARED: dict[str, Variable] = _declare(
    # Namespace.
    Variable("ns.chunk_size", "size", 10 * 2**20, "Size of a chunk", 1, 2**63),
    Variable("ns.flat_bits", "int", 17, "Bits of automatic container names", 0, 64),
    Variable("ns.master", "bool", True, "Does the namespace accept writes?"),
    Variable("ns.worm", "bool", False, "Write once, read many"),
    Variable("ns.meta1_digits", "int", 4, "Significant hex digits of meta1 prefixes", 0, 4),
    Variable(
        "ns.service_update_policy", "str", "meta2=KEEP|3|1;sqlx=KEEP|1|1|;rdir=KEEP|1|1|",
        "How services are linked to references, by type",
    ),
    Variable("ns.storage_policy", "str", "NONE", "Storage policy when nothing else tells"),
    # Proxy.
    Variable("proxy.cache.enabled", "bool", True, "All the caches of the proxy"),
    Variable("proxy.bulk.max.create_many", "int", 100, "Containers per request", 1, 100000),
    Variable("proxy.bulk.max.delete_many", "int", 100, "Objects per request", 1, 100000),
    Variable("proxy.location", "str", "", "Location of the proxy"),
    Variable("proxy.outgoing.timeout.common", "float", 30.0, "Seconds for a request", 0.01, 3600),
    Variable("proxy.outgoing.timeout.config", "float", 10.0, "Seconds, forward/config", 0.01, 3600),
    Variable("proxy.outgoing.timeout.stat", "float", 10.0, "Seconds, forward/stats", 0.01, 3600),
    Variable(
        "proxy.outgoing.timeout.conscience", "float", 10.0, "Seconds, conscience", 0.01, 3600
    ),
    Variable("proxy.outgoing.timeout.info", "float", 5.0, "Seconds, forward/info", 0.01, 3600),
    Variable("proxy.period.cs.downstream", "duration", 5.0, "Services are read again", 0.05, 3600),
    Variable("proxy.period.cs.upstream", "duration", 1.0, "Registrations are sent", 0.05, 3600),
    Variable("proxy.period.reload.nsinfo", "duration", 30.0, "Policies are read again", 0.05, 3600),
    Variable("proxy.period.refresh.csurl", "duration", 30.0, "Consciences reread", 0.05, 3600),
    Variable("proxy.period.refresh.srvtypes", "duration", 30.0, "Types are read again", 0.05, 3600),
    Variable("proxy.prefer.master_for_read", "bool", False, "Read from the master of a base"),
    Variable("proxy.prefer.slave_for_read", "bool", False, "Read from slaves first, which may be late"),
    Variable("proxy.prefer.master_for_write", "bool", True, "Write to the master of a base first"),
    Variable("proxy.quirk.local_scores", "bool", False, "Real scores in local/list"),
    Variable("proxy.request.max_delay", "duration", 60.0, "Default deadline", 0.01, 86400),
    Variable("proxy.srv_local.patch", "bool", False, "Prefer near services in chunk lists"),
    Variable("proxy.srv_local.prepare", "int", 0, "Prefer near services at prepare", 0, 2),
    Variable("proxy.srv_shuffle", "bool", True, "Shuffle the replicas of a container"),
    Variable("proxy.dir_shuffle", "bool", True, "Shuffle the meta1 replicas"),
    Variable("proxy.ttl.services.down", "duration", 5.0, "Memory of down services", 0, 86400),
    Variable("proxy.ttl.services.known", "duration", 5 * 86400.0, "Memory of services", 0, 1e8),
    Variable("proxy.ttl.services.master", "duration", 1800.0, "Memory of masters", 0, 1e8),
    Variable("proxy.ttl.services.local", "duration", 30.0, "Memory of local services", 0, 86400),
    Variable("proxy.url.path.maxlen", "int", 2048, "Longest path of a route", 1, 65536),
    # Resolver.
    Variable("resolver.cache.csm0.max.default", "int", 4194304, "Prefixes cached", 0, 2**32),
    Variable("resolver.cache.csm0.ttl.default", "duration", 0.0, "0 = no expiry", 0, 1e8),
    Variable("resolver.cache.srv.max.default", "int", 4194304, "References cached", 0, 2**32),
    Variable("resolver.cache.srv.ttl.default", "duration", 0.0, "0 = no expiry", 0, 1e8),
    # Placement.
    Variable("core.lb.allow_distance_bypass", "bool", True, "Lower the distance when targets crowd"),
    Variable("core.lb.generate_random_chunk_ids", "bool", True, "Random or predictable chunk ids"),
    Variable("core.lb.weighted_random_attempts", "int", 8, "Draws before the full walk", 1, 1000),
    Variable("core.sds.strict_utf8", "bool", True, "Refuse names that are not UTF-8"),
    # Containers.
    Variable("meta2.max_versions", "int", 1, "Versions kept per object", -1, 2**31),
    Variable("meta2.retention_period", "epoch", 604800.0, "Delete markers kept", 0, 1e10),
    Variable("meta2.delete_exceeding_versions", "bool", False, "Purge at put"),
    Variable("meta2.container.max_size", "size", 0, "Quota of containers, 0 = none", 0, 2**63 - 1),
    Variable("meta2.flush_limit", "int", 1000, "Objects per flush", 1, 2**31),
    # Events.
    Variable("rawx.events_allowed", "bool", True, "Do chunk servers emit events?"),
    Variable("events.common.pending.max", "int", 10000, "Events kept in memory", 1, 2**31),
    Variable("events.common.pending.delay", "duration", 1.0, "States wait for others", 0.01, 3600),
    Variable("events.beanstalkd.prio", "int", 2**32 - 1, "Priority of jobs", 0, 2**32 - 1),
    Variable("events.beanstalkd.ttr", "duration", 120.0, "Time to run of jobs", 1, 1e6),
    Variable("events.beanstalkd.timeout", "duration", 4.0, "Wait for beanstalkd", 0.01, 3600),
    Variable("events.beanstalkd.check_period", "duration", 0.0, "0: any number of jobs", 0, 1e6),
    Variable("events.beanstalkd.check_level_deny", "int", 512000, "Jobs, then wait", 1, 2**31),
    Variable("meta2.tube.container_new", "str", "oio", "Tube of storage.container.new"),
    Variable("meta2.tube.container_deleted", "str", "oio", "Tube of storage.container.deleted"),
    Variable("meta2.tube.container_state", "str", "oio", "Tube of storage.container.state"),
    Variable("meta2.tube.container_updated", "str", "oio", "Tube of storage.container.update"),
    Variable("meta2.tube.content_created", "str", "oio", "Tube of storage.content.new"),
    Variable("meta2.tube.content_appended", "str", "oio", "Tube of storage.content.append"),
    Variable("meta2.tube.content_deleted", "str", "oio", "Tube of storage.content.deleted"),
    Variable("meta2.tube.content_updated", "str", "oio", "Tube of storage.content.update"),
    Variable("meta2.tube.content_drained", "str", "oio", "Tube of storage.content.drained"),
    Variable("meta2.tube.content_broken", "str", "oio", "Tube of storage.content.broken, .perfectible"),
    Variable("meta2.tube.meta2_deleted", "str", "oio", "Tube of storage.meta2.deleted"),
    Variable("rawx.tube.chunk_created", "str", "oio", "Tube of storage.chunk.new"),
    Variable("rawx.tube.chunk_deleted", "str", "oio", "Tube of storage.chunk.deleted"),
    Variable("meta1.tube.services", "str", "oio", "Tube of account.services"),
    Variable("meta1.tube.references", "str", "oio", "Tube of no event"),
    # Volumes.
    Variable("volume.lazy_lock", "bool", True, "Mark a volume without marks as ours"),
    Variable("rdir.fd_per_base", "int", 0, "Files per database of an rdir", 0, 2**31),
    Variable("rdir.fd_reserve", "int", 0, "Files that an rdir keeps for connections; 0: a quarter", 0, 2**31),
    # Bases.
    Variable("sqliterepo.repo.hard_max", "int", 1024, "Open bases at most", 1, 2**20),
    Variable("sqliterepo.cache.timeout.open", "duration", 20.0, "Wait for a base", 0.01, 3600),
    Variable("sqliterepo.cache.waiting.max", "int", 256, "Waiters per base", 1, 65536),
    Variable("sqliterepo.page_size", "int", 4096, "Page size of new bases", 512, 65536),
    Variable(
        "sqliterepo.sync", "str", "full",
        "full: every commit is on disk; normal: a power cut loses the last commits; off: test only",
    ),
    # Copies of bases and their elections.
    Variable("sqliterepo.election.allow_master", "bool", True, "May this service be master?"),
    Variable("sqliterepo.election.shards", "int", 8, "Elections per set of peers: masters spread", 1, 256),
    Variable("sqliterepo.election.lease", "duration", 1.0, "A master is obeyed that long without news", 0.1, 60),
    Variable("sqliterepo.election.wait.delay", "duration", 20.0, "Requests wait for a master", 0.1, 3600),
    Variable("sqliterepo.election.delay.expire_slave", "duration", 12600.0, "Idle slaves leave", 1, 1e7),
    Variable("sqliterepo.election.delay.expire_master", "duration", 14400.0, "Idle masters leave", 1, 1e7),
    Variable("sqliterepo.log.max_entries", "int", 256, "Changes kept per base for late copies", 8, 65536),
    Variable("sqliterepo.log.max_size", "size", 4 << 20, "Bytes of those changes", 65536, 2**40),
    Variable("sqliterepo.outgoing.timeout.cnx.replicate", "duration", 1.0, "Connection to a copy", 0.05, 60),
    Variable("sqliterepo.outgoing.timeout.req.replicate", "duration", 5.0, "Answer of a copy", 0.05, 3600),
    Variable("sqliterepo.outgoing.timeout.req.resync", "duration", 241.0, "Copy of a whole base", 1, 86400),
    Variable("sqliterepo.dump.check_type", "int", 1, "0: no check of copies; 1: quick_check; 2: full", 0, 2),
    Variable("sqliterepo.service.exit_ttl", "duration", 10.0, "Elections are left at the end", 0, 3600),
    Variable("sqliterepo.zk.timeout", "duration", 10.0, "Session with ZooKeeper", 0.5, 3600),
    Variable("sqliterepo.zk.shuffle", "bool", True, "Begin with any server of a ZooKeeper"),
    Variable("sqliterepo.zk.mux_factor", "int", 1, "Connections to each ZooKeeper", 1, 64),
    Variable("sqliterepo.zk.rrd.window", "int", 30, "Seconds in which reconnections are counted", 1, 86400),
    Variable("sqliterepo.zk.rrd.threshold", "int", 5, "More reconnections: elections are left; 0: never", 0, 2000),
    Variable("proxy.force.master", "bool", False, "Every request needs the master"),
    # Faults made on purpose.
    Variable("enbug.proxy.cs.failure_rate", "int", 0, "Percents of conscience/* that fail", 0, 100),
    Variable("enbug.proxy.request_failure.alone", "int", 0, "Percents of lost calls to a lone copy", 0, 100),
    Variable("enbug.proxy.request_failure.first", "int", 0, "Percents, to the copy that is asked first", 0, 100),
    Variable("enbug.proxy.request_failure.middle", "int", 0, "Percents, to the ones between", 0, 100),
    Variable("enbug.proxy.request_failure.last", "int", 0, "Percents, to the last one", 0, 100),
    # Servers.
    Variable("common.verbosity.reset_delay", "duration", 300.0, "Debug logs after SIGUSR1", 0, 1e7),
    Variable("server.access_log", "bool", True, "Does the proxy log each request?"),
    Variable("server.cnx.timeout.idle", "duration", 300.0, "Idle connections closed", 1, 1e6),
    Variable("server.request.max_size", "size", 2**30, "Largest request body", 1024, 2**40),
    Variable("server.pool.max_threads", "int", 64, "Threads that answer requests", 1, 4096),
)


#: Variables that files of older versions set, and why they change nothing here.
WITHOUT_EFFECT = {
    "rdir.fd_per_base": "a database has a fixed number of files",
    "core.sds.strict_utf8": "names are always UTF-8",
    "meta1.tube.references": "no event tells of references without services",
    "sqliterepo.zk.mux_factor": "elections are per group of bases, one connection has the room for all of them",
    "sqliterepo.service.exit_ttl": "a service that ends leaves its elections at once",
    "proxy.period.refresh.srvtypes": "types come with the services, see proxy.period.cs.downstream",
    "proxy.period.reload.nsinfo": "policies come with the services, see proxy.period.cs.downstream",
}


class Variables:
    """Values of the declared variables in one process.

    >>> v = Variables({"ns.chunk_size": "1Mi", "proxy.period.cs.downstream": "500ms"})
    >>> v["ns.chunk_size"], v["proxy.period.cs.downstream"]
    (1048576, 0.5)
    """

    def __init__(self, conf: Mapping[str, str] | None = None) -> None:
        self._values: dict[str, Any] = {}
        self.errors: list[str] = []
        self.reset(conf)

    def reset(self, conf: Mapping[str, str] | None = None) -> None:
        """Go back to defaults, then take the configuration; what is wrong in it is kept in ``errors``."""
        values = {name: variable.default for name, variable in DECLARED.items()}
        errors = []
        for name, text in (conf or {}).items():
            variable = DECLARED.get("ns.meta1_digits" if name == "meta1_digits" else name)
            if variable is None:
                continue
            if name in WITHOUT_EFFECT:
                errors.append(f"{name} has no effect: {WITHOUT_EFFECT[name]}")
            try:
                values[variable.name] = variable.parse(text)
            except ValueError as exc:
                errors.append(str(exc))
        self._values, self.errors = values, errors

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def set(self, name: str, text: Any) -> bool:
        """Set a variable from its text; False when it is unknown or the text cannot be read."""
        variable = DECLARED.get(name)
        if variable is None:
            return False
        try:
            value = variable.parse("on" if text is True else "off" if text is False else str(text))
        except ValueError:
            return False
        self._values[name] = value
        return True

    def as_text(self) -> dict[str, str]:
        """All the variables as texts, sorted by name."""
        return {name: DECLARED[name].text(self._values[name]) for name in sorted(self._values)}
