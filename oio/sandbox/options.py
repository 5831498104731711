# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What a local cluster is made of: options, their defaults, and the YAML files that set them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from oio.common.configuration import one_line
from oio.sandbox.errors import SandboxError

#: Counted types, in the order in which they take ports.
TYPES = (
    "ecd", "conscience", "beanstalkd", "redis", "zookeeper", "meta0", "meta1", "meta2", "rawx", "account", "rdir",
)  # fmt: skip

#: Keys of option files that concern parts this tool does not run: accepted, with a warning.
IGNORED_KEYS = frozenset(
    {
        "backblaze", "container_versions", "key_file", "opensuse", "profile",
        "tls_cert_file", "tls_key_file", "use_tls", "xcute",
    }
)

#: Where the contract expects a Redis that the tool does not run.
REDIS_ELSEWHERE = "127.0.0.1:6379"

#: Services of which there may be none.
_OPTIONAL = frozenset({"ecd", "beanstalkd", "redis", "zookeeper", "rawx", "rdir"})
#: Services of which one is enough.
_SINGLE = frozenset({"redis"})
#: Most of others.
_COUNT_MAX, _ZOOKEEPER_MAX = 200, 9
#: A number that follows from other options.
AS_NEEDED = -1
#: Most copies of a base, and most host groups.
_COPIES_MAX = 20
_ADDRESS = re.compile(r"^[^\s:/]+:[0-9]{1,5}\Z")
_SENTINELS = re.compile(r"^[^\s:/,]+:[0-9]{1,5}(,[^\s:/,]+:[0-9]{1,5})*/[^\s/,?]+\Z")
_CLUSTER = r"[^\s:/,;]+:[0-9]{1,5}(,[^\s:/,;]+:[0-9]{1,5})*(/[^\s:,;]+)?"
_ADDRESSES = re.compile(rf"^{_CLUSTER}(;{_CLUSTER})*\Z")
_ENDPOINT = re.compile(r"^https?://[^\s]+\Z")
_NAMESPACE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_POLICIES = ("SINGLE", "TWOCOPIES", "THREECOPIES", "17COPIES", "EC", "EC21", "ECX21")


class Options(msgspec.Struct, kw_only=True):
    """Options of a local cluster. All have a default; the default cluster is durable."""

    #: Name of the namespace; also the prefix of service ids.
    namespace: str = "OPENIO"
    #: Addresses to listen on: service n of a type listens on the n-th of them, in turn.
    hosts: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.1"])
    #: Types whose services listen elsewhere.
    type_hosts: dict[str, list[str]] = {}
    #: First port; ports that are in use are skipped.
    base_port: int = 6000
    #: Directory of the volumes (empty: ``sds/data`` of the home).
    data_dir: str = ""
    #: Number of services of each type. Programs without erasure coding library need an ecd.
    ecd: int = 0
    conscience: int = 1
    #: Events go through these, when there are some, instead of Redis. The program must be installed.
    beanstalkd: int = 0
    #: Accounts, and events on their way. 0: one that somebody else runs, at ``redis_host``.
    redis: int = 1
    #: Elections of replicated services; as needed: one when there are copies and no ``zookeeper_host``. Several
    #: are the servers of one ensemble.
    zookeeper: int = AS_NEEDED
    #: As needed: as many as there are copies of their bases.
    meta0: int = AS_NEEDED
    meta1: int = AS_NEEDED
    meta2: int = AS_NEEDED
    rawx: int = 12
    account: int = 1
    #: Indexes of what the volumes hold.
    rdir: int = 1
    #: ``host:port`` of a Redis that somebody else runs (used when ``redis`` is 0); or
    #: ``host:port,host:port/name``: Sentinels, and their name for it.
    redis_host: str = ""
    #: Processes of the proxy.
    proxy_workers: int = 2
    #: Policy of containers that have none of their own.
    storage_policy: str = "THREECOPIES"
    #: Size of chunks (bytes).
    chunk_size: int = 10 * 1024 * 1024
    #: ``durable``: what is acknowledged is on disk. ``relaxed``: a power cut may lose the last writes.
    durability: str = "durable"
    #: Compression of chunks by even-numbered rawx (``off``, ``zlib``).
    compression: str = "off"
    #: Significant digits of directory prefixes: 16 to this power is the number of meta1 bases.
    meta1_digits: int = 2
    #: Copies of the directory and of the containers, unless the next two say otherwise.
    replicas: int = 1
    directory_replicas: int = AS_NEEDED
    container_replicas: int = AS_NEEDED
    #: Connection string of a ZooKeeper that somebody else runs (``host:port,host:port``, maybe a root behind).
    zookeeper_host: str = ""
    #: Groups of services that are stopped, paused or cut off together, ``@host1`` and so on. As needed: one
    #: for each of ``hosts`` when there are several, else one for each copy.
    host_groups: int = AS_NEEDED
    #: Has each host group a network namespace and an address of its own, so that it can be cut off? Needs root.
    isolate_hosts: bool = False
    #: Do meta2 and rawx have ids (``NS-rawx-1``) instead of addresses?
    service_ids: bool = True
    #: Do rawx emit events? Without them nothing knows which chunks a volume holds.
    rawx_events: bool = True
    #: Is a copy of each event kept, for tests, in the tube ``oio-preserved``?
    preserve_events: bool = False
    #: Are the events of containers that are replicated elsewhere copied to the tube ``oio-repli``?
    replication_events: bool = False
    #: Are changes of objects told to ``webhook_endpoint``? Empty: to a service of the cluster, for tests.
    webhook_enabled: bool = False
    webhook_endpoint: str = ""
    #: Do rawx create all their directories, in the background, during their first minute?
    prepare_directories: bool = True
    #: Seconds between two checks of a service by the conscience agent.
    check_interval_s: float = 1.0
    #: Further variables for ``sds.conf``.
    config: dict[str, Any] = {}

    def __post_init__(self) -> None:
        """Replace what is as needed by what is needed."""
        for name in ("directory_replicas", "container_replicas"):
            if getattr(self, name) == AS_NEEDED:
                setattr(self, name, self.replicas)
        copies = max(self.directory_replicas, self.container_replicas)
        needed = {
            "meta0": self.directory_replicas,
            "meta1": self.directory_replicas,
            "meta2": self.container_replicas,
            "zookeeper": int(copies > 1 and not self.zookeeper_host),
            "host_groups": len(self.hosts) if len(self.hosts) > 1 else copies,
        }
        for name, number in needed.items():
            if getattr(self, name) == AS_NEEDED:
                setattr(self, name, number)

    def hosts_of(self, type_: str) -> list[str]:
        """Where the services of a type listen."""
        return self.type_hosts.get(type_) or self.hosts

    def check(self) -> None:
        """:raises SandboxError: when the options contradict themselves."""
        if not _NAMESPACE.match(self.namespace):
            raise SandboxError(f"Not a namespace name: {self.namespace!r}")
        if not all((self.hosts, *self.type_hosts.values())):
            raise SandboxError("No host to listen on")
        if not 1 <= self.replicas <= _COPIES_MAX:
            raise SandboxError(f"Number of replicas out of bounds (1..{_COPIES_MAX}): {self.replicas}")
        for type_ in TYPES:
            count = getattr(self, type_)
            low = 0 if type_ in _OPTIONAL else 1
            high = 1 if type_ in _SINGLE else _ZOOKEEPER_MAX if type_ == "zookeeper" else _COUNT_MAX
            if not low <= count <= high:
                raise SandboxError(f"Number of {type_} out of bounds ({low}..{high}): {count}")
        if not self.redis and not (_ADDRESS.match(self.redis_host) or _SENTINELS.match(self.redis_host)):
            raise SandboxError(
                "Without redis, redis_host is its host:port, or host:port,host:port/name of Sentinels,"
                f" not {self.redis_host!r}"
            )
        if self.webhook_endpoint and not _ENDPOINT.match(self.webhook_endpoint):
            raise SandboxError(f"Not the URL of a webhook: {self.webhook_endpoint!r}")
        if not 1 <= self.base_port <= 65000:
            raise SandboxError(f"First port out of bounds (1..65000): {self.base_port}")
        if not 1 <= self.proxy_workers <= 64:
            raise SandboxError(f"Number of proxy processes out of bounds: {self.proxy_workers}")
        if self.durability not in ("durable", "relaxed"):
            raise SandboxError(f"Durability is durable or relaxed, not {self.durability!r}")
        if self.compression not in ("off", "zlib", "deflate", "lzw"):
            raise SandboxError(f"Unknown compression: {self.compression!r}")
        if not 0 <= self.meta1_digits <= 4:
            raise SandboxError(f"meta1_digits is 0 to 4, not {self.meta1_digits}")
        if self.chunk_size < 1:
            raise SandboxError(f"A chunk has at least one byte, not {self.chunk_size}")
        if self.storage_policy not in _POLICIES:
            raise SandboxError(
                f"Unknown storage policy {self.storage_policy}; known: {', '.join(_POLICIES)}"
            )
        self._check_copies()

    def _check_copies(self) -> None:
        for name, type_ in (("directory_replicas", "meta1"), ("container_replicas", "meta2")):
            copies = getattr(self, name)
            if not 1 <= copies <= min(_COPIES_MAX, getattr(self, type_)):
                raise SandboxError(f"{name} is {copies}, with {getattr(self, type_)} {type_}")
            if copies > 1 and not self.zookeeper and not self.zookeeper_host:
                raise SandboxError(f"{name} above 1 needs zookeeper, or zookeeper_host (host:port)")
        if self.zookeeper and self.zookeeper_host:
            raise SandboxError("zookeeper_host is for a cluster that runs no zookeeper of its own")
        if self.zookeeper_host and not _ADDRESSES.match(self.zookeeper_host):
            raise SandboxError(f"zookeeper_host is host:port,host:port/root, not {self.zookeeper_host!r}")
        if not 1 <= self.host_groups <= _COPIES_MAX:
            raise SandboxError(f"Number of host groups out of bounds (1..{_COPIES_MAX}): {self.host_groups}")
        if self.isolate_hosts and self.host_groups == 1:
            raise SandboxError("isolate_hosts needs several host groups: replicas, or host_groups")
        if self.isolate_hosts and (self.type_hosts or self.hosts != ["127.0.0.1"]):
            raise SandboxError("hosts cannot be named when they are isolated: they get addresses of their own")


def load_file(path: str) -> dict[str, Any]:
    """Read a YAML option file into the fields of :class:`Options`, and warnings under ``""``."""
    import yaml

    try:
        with open(path, encoding="utf-8") as stream:
            raw = yaml.safe_load(stream)
    except OSError as err:
        raise SandboxError(f"Cannot read {path}: {err.strerror}") from err
    except (UnicodeDecodeError, yaml.YAMLError) as err:
        raise SandboxError(f"Cannot parse {path}: {one_line(err)}") from err
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise SandboxError(f"{path}: a map of options is expected, not {type(raw).__name__}")
    return from_map(raw, path)


def from_map(raw: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Translate the keys of option files: ``{"rawx": {"count": 3}}`` gives ``{"rawx": 3}``."""
    fields: dict[str, Any] = {}
    warnings: list[str] = []
    known = set(Options.__struct_fields__)
    for key, value in raw.items():
        if key in IGNORED_KEYS:
            warnings.append(f"{origin}: {key} is ignored, this tool does not run that part")
        elif key in TYPES and isinstance(value, Mapping):
            for inner, inner_value in value.items():
                if inner == "count":
                    fields[key] = inner_value
                elif inner == "hosts":
                    fields.setdefault("type_hosts", {})[key] = inner_value
                else:
                    warnings.append(f"{origin}: {key}.{inner} is ignored")
        elif key == "rawx_fsync":
            fields["durability"] = "durable" if value else "relaxed"
        elif key == "zookeeper" and isinstance(value, bool):
            fields[key] = int(value)
        elif key == "zookeeper" and isinstance(value, str):
            fields.update(zookeeper=0, zookeeper_host=value)
        elif key == "redis" and isinstance(value, bool):
            fields[key] = int(value)
            if not value:
                fields.setdefault("redis_host", REDIS_ELSEWHERE)
        elif key == "webhook_endpoint":
            fields[key] = value or ""
        elif key == "monitor_period":
            fields["check_interval_s"] = value
        elif key == "config":
            if not isinstance(value or {}, Mapping):
                raise SandboxError(f"{origin}: config is a map of variables, not {value!r}")
            fields[key] = dict(value or {})
        elif key in known:
            fields[key] = value
        else:
            raise SandboxError(f"{origin}: unknown option {key}")
    if warnings:
        fields[""] = warnings
    return fields


def merge(*layers: Mapping[str, Any]) -> Options:
    """Build options of several layers, the last one wins; ``config`` maps are merged key by key."""
    fields: dict[str, Any] = {}
    config: dict[str, Any] = {}
    type_hosts: dict[str, Any] = {}
    for layer in layers:
        fields.update((name, value) for name, value in layer.items() if name)
        config.update(layer.get("config") or {})
        type_hosts.update(layer.get("type_hosts") or {})
    fields.update(config=config, type_hosts=type_hosts)
    if "ns.chunk_size" in config and not any("chunk_size" in layer for layer in layers):
        fields["chunk_size"] = _bytes(config["ns.chunk_size"])
    try:
        options = msgspec.convert(fields, Options)
    except msgspec.ValidationError as err:
        raise SandboxError(f"Bad option: {err}") from err
    if options.data_dir:
        options.data_dir = os.path.abspath(os.path.expanduser(options.data_dir))
    options.check()
    return options


def _bytes(text: object) -> int:
    from oio.common.variables import DECLARED

    try:
        return int(DECLARED["ns.chunk_size"].parse(str(text)))
    except ValueError as err:
        raise SandboxError(str(err)) from err
