# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where everything of a local cluster is: directories, services, addresses, volumes.

The layout is computed once from the options, stored as JSON, and read again by every later command, so that
restarts keep ports and volumes::

    HOME/sds.conf               the namespace, for programs (HOME is ~/.oio unless told otherwise)
    HOME/sds/layout.json        this
    HOME/sds/made-home          is there when HOME was not before: it goes with the cluster then
    HOME/sds/conf               one file per service; watch/ is what the conscience agent reads
    HOME/sds/{run,logs}         sockets and pids; one log per service
    DATA/NS-TYPE-N              volumes (DATA is HOME/sds/data unless told otherwise)
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import uuid
from contextlib import suppress
from typing import Any

import msgspec

from oio.sandbox import ports, subnet
from oio.sandbox.errors import SandboxError
from oio.sandbox.options import TYPES, Options

#: Layout of this version. 1: events in spools, accounts in a SQLite base, no index of volumes.
VERSION = 2
#: Longest path of a Unix socket that works everywhere, less what supervisord appends while it binds.
_SOCKET_PATH_MAX = 90
#: Globs, variables, quotes and comments of the configuration formats that hold paths.
_UNSAFE = re.compile(r"[%*?\[\]{}\"'\\;#\n\r]")

#: Types that own a volume.
VOLUME_TYPES = frozenset(
    {"conscience", "beanstalkd", "redis", "zookeeper", "meta0", "meta1", "meta2", "rawx", "rdir"}
)
#: Types that hold events on their way: started first, stopped last.
QUEUE_TYPES = frozenset({"beanstalkd", "redis"})
#: What others lean on from their first moment: started first, stopped last.
GROUND_TYPES = QUEUE_TYPES | {"zookeeper"}
#: Types that the conscience does not know: nobody draws one by its score.
UNSCORED_TYPES = frozenset({"conscience", "zookeeper", "ecd", "event-agent", "webhook"})
#: Types whose services are spread over the host groups; all the others are at the centre.
SPREAD_TYPES = frozenset({"meta0", "meta1", "meta2", "rawx"})
#: The host group of what must stay within reach when a host is lost: proxy, conscience, queues, agents…
CENTRE = "centre"
#: The host group of ZooKeeper alone, so that others can be cut off from it, and from nothing else. Each server of
#: an ensemble has one of its own (``zookeeper2``), and this means all of them.
ZOOKEEPER = "zookeeper"
#: What a server of an ensemble listens on besides the port of its clients: for followers, and for elections.
_ENSEMBLE_PORTS = 2


class Service(msgspec.Struct, kw_only=True):
    """One service of the cluster. ``port`` is 0 when it does not listen."""

    type: str
    num: int
    name: str
    host: str = ""
    port: int = 0
    service_id: str = ""
    volume: str = ""
    location: str = ""
    slots: list[str] = []
    #: Host group: ``host2``, the centre or ZooKeeper's.
    group: str = CENTRE
    #: Ports for others of its kind.
    more_ports: list[int] = []

    @property
    def ports(self) -> list[int]:
        """All that it listens on."""
        return [self.port, *self.more_ports] if self.port else []

    @property
    def addr(self) -> str:
        """``host:port``"""
        return f"{self.host}:{self.port}"

    @property
    def id(self) -> str:
        """What the conscience knows it by."""
        return self.service_id or self.addr


class Layout(msgspec.Struct, kw_only=True):
    """A whole cluster."""

    home: str
    options: Options
    services: list[Service]
    #: Mark in the environment of every process of this cluster: proof that a process is ours.
    mark: str
    version: int = 1
    #: First three numbers of the addresses of isolated hosts, empty when hosts are not isolated.
    subnet: str = ""

    @property
    def root(self) -> str:
        """``HOME/sds``"""
        return root_of(self.home)

    @property
    def conf_dir(self) -> str:
        """Configuration of the services."""
        return os.path.join(self.root, "conf")

    @property
    def run_dir(self) -> str:
        """Socket and pid of the supervisor."""
        return os.path.join(self.root, "run")

    @property
    def log_dir(self) -> str:
        """One log per service."""
        return os.path.join(self.root, "logs")

    @property
    def data_dir(self) -> str:
        """Volumes of the services."""
        return self.options.data_dir or os.path.join(self.root, "data")

    @property
    def sds_conf(self) -> str:
        """Namespace configuration, as programs read it."""
        return os.path.join(self.home, "sds.conf")

    @property
    def supervisor_socket(self) -> str:
        """Control socket of the supervisor; elsewhere when the path is too long for a socket."""
        name = f"oio-{os.getuid()}-{_digest(self.home)}.sock"
        for path in (os.path.join(self.run_dir, "supervisor.sock"), os.path.join(tempfile.gettempdir(), name)):
            if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
                return path
        return os.path.join("/tmp", name)

    @property
    def webhook(self) -> str:
        """URL that changes of objects are told to, empty when they are told to nobody."""
        if not self.options.webhook_enabled:
            return ""
        own = self.of_type("webhook")
        return f"http://{own[0].addr}" if own else self.options.webhook_endpoint

    @property
    def zookeeper(self) -> str:
        """Connection string of ZooKeeper, empty when nothing is replicated."""
        return ",".join(one.addr for one in self.of_type("zookeeper")) or self.options.zookeeper_host

    @property
    def host_groups(self) -> list[str]:
        """``["host1", "host2"]``; nothing when all is on one host."""
        count = self.options.host_groups
        return [f"host{num}" for num in range(1, count + 1)] if count > 1 else []

    @property
    def zookeeper_groups(self) -> list[str]:
        """``["zookeeper"]``, or one for each server of an ensemble."""
        count = self.options.zookeeper
        return [f"{ZOOKEEPER}{num}" for num in range(1, count + 1)] if count > 1 else [ZOOKEEPER]

    @property
    def groups(self) -> list[str]:
        """All host groups."""
        return [CENTRE, *self.zookeeper_groups, *self.host_groups]

    def address_of(self, group: str) -> str:
        """Address of an isolated host group."""
        if group == CENTRE:
            return f"{self.subnet}.1"
        if group.startswith(ZOOKEEPER):
            return f"{self.subnet}.{1 + int(group.removeprefix(ZOOKEEPER) or 1)}"
        return f"{self.subnet}.{10 + int(group.removeprefix('host'))}"

    def of_type(self, *types: str) -> list[Service]:
        """Services of these types."""
        return [service for service in self.services if service.type in types]

    def select(self, targets: list[str]) -> list[Service]:
        """Services named by targets: nothing or ``@NS`` is everything, ``@rawx`` a type, ``@host2`` a host
        group, else a name.

        :raises SandboxError: when a target matches nothing.
        """
        chosen: dict[str, Service] = {}
        for target in targets or [f"@{self.options.namespace}"]:
            if target == f"@{self.options.namespace}":
                matching = self.services
            elif target.startswith("@") and target[1:] in self.groups:
                matching = [one for one in self.services if one.group == target[1:]]
            elif target.startswith("@"):
                matching = self.of_type(target[1:])
            else:
                matching = [one for one in self.services if target in (one.name, one.service_id)]
            if not matching:
                known = [*dict.fromkeys(one.type for one in self.services), *self.host_groups]
                raise SandboxError(
                    f"{target} is no service of this cluster; types and hosts: "
                    + ", ".join(f"@{name}" for name in known)
                )
            chosen.update((one.name, one) for one in matching)
        return list(chosen.values())

    def save(self) -> None:
        """Write the layout, whole or not at all."""
        path = layout_path(self.home)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(f"{path}.tmp", "wb") as out:
            out.write(msgspec.json.format(msgspec.json.encode(self), indent=1))
        os.replace(f"{path}.tmp", path)


def is_plain(path: str) -> bool:
    """Can every configuration format hold this path, as it is?"""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:  # a name that is no text
        return False
    return _UNSAFE.search(path) is None


def plain_home(home: str) -> str:
    """The home as configuration files name it: through a link when they cannot hold its real name."""
    if is_plain(home):
        return home
    return os.path.join(tempfile.gettempdir(), f"oio-{os.getuid()}-{_digest(home)}")


def make_home(home: str) -> None:
    """Make the home unless it is there, and remember who made it."""
    try:
        os.makedirs(home, mode=0o700)
    except FileExistsError:
        if not os.path.isdir(home):
            raise
        return
    os.makedirs(root_of(home), mode=0o700, exist_ok=True)
    with open(_home_mark(home), "wb"):
        pass


def remove_home(home: str) -> None:
    """Remove what is around a layout that is gone; the home too, when :func:`make_home` made it."""
    ours = os.path.exists(_home_mark(home))
    with suppress(OSError):
        os.unlink(_home_mark(home))
    with suppress(OSError):
        os.rmdir(root_of(home))
        if ours:
            os.rmdir(home)


def make_alias(home: str) -> None:
    """Make the link of a home that needs one. :raises SandboxError: when its place is taken."""
    alias = plain_home(home)
    if alias == home:
        return
    try:
        os.symlink(home, alias)
    except FileExistsError:
        if not os.path.islink(alias) or os.readlink(alias) != home or os.lstat(alias).st_uid != os.getuid():
            raise SandboxError(f"{alias} is in the way: remove it") from None


def remove_alias(home: str) -> None:
    """Remove the link of a home, if any."""
    alias = plain_home(home)
    if alias != home and os.path.islink(alias) and os.readlink(alias) == home:
        os.unlink(alias)


def _digest(home: str) -> str:
    return hashlib.sha256(os.fsencode(home)).hexdigest()[:16]


def _home_mark(home: str) -> str:
    return os.path.join(root_of(home), "made-home")


def root_of(home: str) -> str:
    """Directory of a cluster below its home."""
    return os.path.join(home, "sds")


def layout_path(home: str) -> str:
    """File of the layout."""
    return os.path.join(root_of(home), "layout.json")


def load(home: str) -> Layout | None:
    """Layout of the cluster of this home, ``None`` when there is none, or its computation was interrupted."""
    try:
        with open(layout_path(home), "rb") as stream:
            layout = msgspec.convert(_as_of_now(msgspec.json.decode(stream.read())), Layout)
            return layout if all(one.port or not one.host for one in layout.services) else None
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as err:
        raise SandboxError(f"{layout_path(home)} is damaged: {err}") from err


def _as_of_now(layout: Any) -> Any:
    """A layout written when ``zookeeper`` was where one runs, not how many of them."""
    options = layout.get("options", {}) if isinstance(layout, dict) else {}
    if isinstance(options.get("zookeeper"), str):
        options.update(zookeeper=0, zookeeper_host=options["zookeeper"])
    return layout


def check_version(layout: Layout) -> None:
    """:raises SandboxError: when another version laid this cluster out, for other services."""
    if layout.version == VERSION:
        return
    other = "an earlier" if layout.version < VERSION else "a later"
    raise SandboxError(
        f"{layout.home} holds a cluster of {other} version (layout {layout.version}, this is {VERSION}),"
        " whose events and accounts this one would not find. Stop it and run it with the version that made"
        f" it, choose another --home, or remove it with all its data: oio-sandbox --home {layout.home} destroy"
    )


def compute(home: str, options: Options) -> Layout:
    """Lay a cluster out, with ports that are free now and reserved from now on."""
    options.check()
    layout = Layout(
        home=plain_home(home), options=options, services=[], mark=uuid.uuid4().hex, version=VERSION
    )
    if options.isolate_hosts:
        layout.subnet = subnet.choose(layout.home)
    add = layout.services.append
    add(_service(layout, "proxy", 1))
    for type_ in TYPES:
        for num in range(1, getattr(options, type_) + 1):
            add(_service(layout, type_, num))
    if options.webhook_enabled and not options.webhook_endpoint:
        add(_service(layout, "webhook", 1))
    for num in range(1, max(1, options.beanstalkd) + 1):
        add(_service(layout, "event-agent", num))
    count = len(layout.services) + _ENSEMBLE_PORTS * len(_members(layout))
    # The file must exist before ports are reserved in its name: a reservation whose layout is gone is void.
    layout.save()
    try:
        found = _ports(layout, count, layout_path(home))
    except SandboxError:
        os.unlink(layout_path(home))
        raise
    for service in layout.services:
        service.port = found.pop(0)
    for service in _members(layout):
        service.more_ports = [found.pop(0) for _ in range(_ENSEMBLE_PORTS)]
    add(_service(layout, "conscience-agent", 1))
    layout.save()
    return layout


def _ports(layout: Layout, count: int, owner: str) -> list[int]:
    first = layout.options.base_port
    if layout.subnet:  # nobody else is there
        return list(range(first, first + count))
    return ports.reserve([service.host for service in layout.services], first, count, owner)


def _members(layout: Layout) -> list[Service]:
    """Servers of ZooKeeper that are not alone."""
    servers = layout.of_type("zookeeper")
    return servers if len(servers) > 1 else []


def _service(layout: Layout, type_: str, num: int) -> Service:
    options = layout.options
    name = f"{options.namespace}-{type_}-{num}"
    hosts = options.hosts_of(type_)
    service = Service(type=type_, num=num, name=name)
    if type_ == "zookeeper":
        service.group = layout.zookeeper_groups[num - 1]
    elif layout.host_groups and type_ in SPREAD_TYPES:
        service.group = layout.host_groups[(num - 1) % len(layout.host_groups)]
    if type_ == "conscience-agent":
        return service
    service.host = layout.address_of(service.group) if layout.subnet else hosts[(num - 1) % len(hosts)]
    # Index and volume must not be at one place: a single index is at a place of its own.
    place = f"rdir-{num}" if type_ == "rdir" else str(num)
    where = service.host.replace(".", "-").replace(":", "-")
    if service.group in layout.host_groups and len(set(hosts)) == 1:
        where = service.group
    service.location = f"rack.{where}.{place}"
    if options.service_ids and type_ in ("meta2", "rawx"):
        service.service_id = name
    if type_ in VOLUME_TYPES:
        service.volume = os.path.join(layout.data_dir, name)
    if type_ == "rawx":
        service.slots = ["rawx", "rawx-odd" if num % 2 else "rawx-even"]
    return service
