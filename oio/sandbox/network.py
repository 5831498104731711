# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A private network for a local cluster: each host group in a network namespace with an address of its own.

::

    this machine      10.x.y.254  oio1234abcd ──┐
    host1             10.x.y.11   eth0 ─────────┤
    host2             10.x.y.12   eth0 ─────────┼─ bridge ─ 10.x.y.1  centre (proxy, conscience, queues…)
    zookeeper         10.x.y.2    eth0 ─────────┘

The servers of an ensemble are ``zookeeper1`` (10.x.y.2), ``zookeeper2`` and so on; ``zookeeper`` is all of them.

Nothing of the cluster listens outside the namespaces; the machine only has an address to ask from. Names follow
from the home of the cluster, so that clusters do not meet, and so that what a crash leaves is found again. All
of it needs root and the program ``ip``.

A host group is *cut off* by the loss of its link, as when its cable is pulled. What one group sends to another
is lost when the sender knows a wrong hardware address of it: that goes in one direction, and nobody is told.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Sequence

from oio.sandbox import subnet
from oio.sandbox.errors import SandboxError
from oio.sandbox.layout import CENTRE, ZOOKEEPER, Layout, Service, layout_path
from oio.sandbox.subnet import run

_NAMESPACES = "/run/netns"
#: Interface of the centre and of the others, in their namespaces.
_BRIDGE, _LINK = "bridge", "eth0"
#: Hardware addresses: of the centre, and one that nobody has.
_BRIDGE_ADDRESS, _NOBODY = "02:00:00:00:00:01", "02:00:00:00:00:fe"
_PREFIX_BITS = 24
#: Longest text that the kernel keeps with an interface; what is shortened is no path, and left alone.
_ALIAS_MAX = 250


class Network:
    """The network of one cluster. Nothing is remembered but in the kernel."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tag = hashlib.sha256(os.fsencode(layout.home)).hexdigest()[:8]

    @property
    def interface(self) -> str:
        """What this machine reaches the cluster through."""
        return f"oio{self._tag}"

    def namespace(self, group: str) -> str:
        """Name of the namespace of a host group."""
        return f"oio-{self._tag}-{group}"

    def prefix(self, service: Service) -> list[str]:
        """Words before the command line of a service, which make it run in its namespace."""
        if not self._layout.subnet:
            return []
        path = os.path.join(_NAMESPACES, self.namespace(service.group))
        return [shutil.which("nsenter") or "nsenter", f"--net={path}"]

    def exists(self) -> bool:
        """Is it there, whole?"""
        return os.path.exists(f"/sys/class/net/{self.interface}") and all(
            os.path.exists(os.path.join(_NAMESPACES, self.namespace(group))) for group in self._groups()
        )

    def create(self) -> None:
        """Make it, unless it is there. :raises SandboxError: when it cannot be made."""
        subnet.check_means()
        _sweep()
        if self.exists():
            return
        self.remove()
        if subnet.in_use(self._layout.subnet):
            raise SandboxError(
                f"{self._layout.subnet}.0/{_PREFIX_BITS} is in use on this machine: destroy and init the cluster"
            )
        try:
            self._create()
        except SandboxError:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove all of it, however much there is."""
        _remove(self._tag)

    def cut(self, group: str, peer: str = "", one_way: bool = False) -> None:
        """Cut a host group off; or only what it sends to ``peer`` and, unless ``one_way``, what comes back.

        :raises SandboxError: when there is no such group, or hosts are not isolated.
        """
        self._check(group, peer)
        if group == CENTRE and not peer:
            raise SandboxError("The centre has no link of its own: cut the hosts off")
        for one in self._named(group):
            if not peer:
                self._batch(CENTRE, [f"link set {one} down"])
            for other in self._named(peer) if peer else ():
                if other == one:
                    continue
                self._lose(one, other)
                if not one_way:
                    self._lose(other, one)

    def heal(self, group: str) -> None:
        """Undo all that was cut from or to a host group."""
        self._check(group)
        for one in self._named(group):
            self._heal(one)

    def _heal(self, group: str) -> None:
        if group != CENTRE:
            self._batch(CENTRE, [f"link set {group} up"])
        # Not only wrong addresses: who was looked for in vain is not there for the kernel for another second.
        self._batch(group, _forget(f"dev {_device(group)}"))
        address = self._layout.address_of(group)
        for other in self._groups():
            if other != group:
                self._batch(other, _forget(f"to {address} dev {_device(other)}"))

    def cuts(self) -> list[str]:
        """Host groups without link."""
        if not self.exists():
            return []
        shown = run(["ip", "-n", self.namespace(CENTRE), "-o", "link", "show", "master", _BRIDGE])
        down = set(re.findall(r"^\d+: (\w+)@[^\n]* state DOWN ", shown, re.MULTILINE))
        return [group for group in self._groups() if group in down]

    def _groups(self) -> list[str]:
        return self._layout.groups

    def _named(self, name: str) -> list[str]:
        """Host groups of a name."""
        return self._layout.zookeeper_groups if name == ZOOKEEPER else [name]

    def _check(self, *groups: str) -> None:
        if not self._layout.subnet:
            raise SandboxError("Only isolated hosts can be cut off: init the cluster with --isolate-hosts")
        known_names = {*self._groups(), ZOOKEEPER}
        unknown = [group for group in groups if group and group not in known_names]
        if unknown:
            known = ", ".join(f"@{group}" for group in self._groups())
            raise SandboxError(f"{unknown[0]} is no host of this cluster; hosts: {known}")
        if not self.exists():
            raise SandboxError("The cluster does not run: it has no network")

    def _create(self) -> None:
        layout, centre = self._layout, self.namespace(CENTRE)
        for group in self._groups():
            run(["ip", "netns", "add", self.namespace(group)])
        lines = [
            "link set lo up",
            f"link add {_BRIDGE} address {_BRIDGE_ADDRESS} type bridge stp_state 0 forward_delay 0",
            f"addr add {layout.address_of(CENTRE)}/{_PREFIX_BITS} dev {_BRIDGE}",
            f"link set {_BRIDGE} up",
        ]
        for group in self._groups()[1:]:
            lines += [
                f"link add {group} type veth peer name {_LINK} netns {self.namespace(group)}",
                f"link set {group} master {_BRIDGE} up",
            ]
        self._batch(CENTRE, lines)
        for group in self._groups()[1:]:
            address = layout.address_of(group)
            self._batch(
                group,
                ["link set lo up", f"addr add {address}/{_PREFIX_BITS} dev {_LINK}", f"link set {_LINK} up"],
            )
        run(["ip", "link", "add", self.interface, "type", "veth", "peer", "name", "machine", "netns", centre])
        self._batch(CENTRE, [f"link set machine master {_BRIDGE} up"])
        # Whose it is, for those who find it later.
        run(["ip", "link", "set", self.interface, "alias", layout_path(layout.home)[-_ALIAS_MAX:]])
        run(["ip", "addr", "add", f"{layout.subnet}.254/{_PREFIX_BITS}", "dev", self.interface])
        run(["ip", "link", "set", self.interface, "up"])

    def _lose(self, sender: str, receiver: str) -> None:
        address = self._layout.address_of(receiver)
        self._batch(
            sender, [f"neigh replace {address} lladdr {_NOBODY} dev {_device(sender)} nud permanent"]
        )

    def _batch(self, group: str, lines: Sequence[str]) -> None:
        run(["ip", "-n", self.namespace(group), "-batch", "-"], "\n".join(lines) + "\n")


def _forget(neighbours: str) -> list[str]:
    # Without a state, those that are permanent are left alone.
    return [f"neigh flush {neighbours} nud permanent", f"neigh flush {neighbours}"]


def _device(group: str) -> str:
    return _BRIDGE if group == CENTRE else _LINK


def _sweep() -> None:
    """Remove the networks of clusters whose home is gone."""
    for path in glob.glob("/sys/class/net/oio????????/ifalias"):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as stream:
                owner = stream.read().strip()
        except OSError:
            continue  # it has just been removed
        if owner.startswith("/") and owner.endswith("/layout.json") and not os.path.exists(owner):
            _remove(path.split("/")[-2].removeprefix("oio"))


def _remove(tag: str) -> None:
    # The interface first: a namespace ends with its last process, and would keep the subnet until then.
    interface = f"/sys/class/net/oio{tag}"
    if os.path.exists(interface):
        _delete(["ip", "link", "delete", f"oio{tag}"], interface)
    for path in glob.glob(os.path.join(_NAMESPACES, f"oio-{tag}-*")):
        _delete(["ip", "netns", "delete", os.path.basename(path)], path)


def _delete(words: Sequence[str], path: str) -> None:
    try:
        run(words)
    except SandboxError:
        if os.path.exists(path):
            raise  # else another cluster was quicker to sweep
