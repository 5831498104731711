# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Misfortunes of a cluster. What happens, to whom and for how long follows from a seed."""

import contextlib
import random
import time
from pathlib import Path

from histories.copies import files_of
from processes import fill
from support import ACCOUNT, eventually

from oio.common.exceptions import OioException
from oio.common.utils import cid_from_name
from oio.directory.admin import AdminClient

META = ("meta0", "meta1", "meta2")
#: Longer than leases, and than the sessions of ZooKeeper in a local cluster (seconds).
LONG_S = (4.0, 12.0)
SHORT_S = (0.3, 1.5)
RESTART_S = 40.0


class Misfortune:
    """Something that happens, lasts and ends.

    :ivar words: who was hit, and how.
    """

    kind = ""
    lasts_s = (0.0, 0.5)

    def __init__(self, cluster, rng, targets):
        self.cluster = cluster
        self.targets = targets
        self.duration_s = rng.uniform(*self.lasts_s)
        #: Drawn ahead: which of the victims that there are is only known when it happens.
        self.draw = rng.random()

    def one_of(self, victims):
        """The victim that was drawn."""
        ordered = sorted(victims)
        return ordered[int(self.draw * len(ordered))]

    def services(self, *types):
        """Names of the services of some types."""
        return [service.name for service in self.cluster.services(*types)]

    def happen(self):
        """:returns: words about it."""
        raise NotImplementedError

    def last(self):
        """Wait for its end."""
        time.sleep(self.duration_s)

    def end(self):
        """Undo it. The cluster may need a moment afterwards."""


class Kill(Misfortune):
    """A process ends without a word, and is started again by the supervisor."""

    def victims(self):
        """Names of services, all of which end."""
        raise NotImplementedError

    def happen(self):
        asked_s = time.monotonic()
        names = self.victims()
        self.sought_s = time.monotonic() - asked_s
        pids = self.cluster.pids()
        self._former = {name: pids[name] for name in names if name in pids}
        for name in names:
            self.cluster.kill(name)
        return f"{self.kind} {' '.join(names)}{_sought(self.sought_s)}"

    def end(self):
        for name, pid in self._former.items():
            self.cluster.wait_restarted(name, pid, RESTART_S)


class KillMeta(Kill):
    kind = "kill meta"

    def victims(self):
        return [self.one_of(self.services(*META))]


class KillMaster(Kill):
    kind = "kill master"

    def victims(self):
        return [master_of(self.cluster, self.one_of(self.targets))]


class KillProxy(Kill):
    kind = "kill proxy"

    def victims(self):
        return [self.one_of(self.services("proxy"))]


class KillTwoMeta(Kill):
    kind = "kill all of a meta type"

    def victims(self):
        return self.services(self.one_of(("meta1", "meta2")))


class KillConscience(Kill):
    kind = "kill conscience"

    def victims(self):
        return [self.one_of(self.services("conscience", "conscience-agent"))]


class KillHost(Kill):
    kind = "kill host"

    def victims(self):
        group = self.one_of(self.cluster.layout.host_groups)
        return [service.name for service in self.cluster.services() if service.group == group]


class KillZooKeeper(Kill):
    kind = "kill zookeeper"

    def victims(self):
        return self.services("zookeeper")


class Pause(Misfortune):
    """A process hangs, longer than anybody waits for it, and goes on as if nothing had been."""

    kind = "pause meta"
    lasts_s = LONG_S

    def victims(self):
        """What hangs: names of services or of host groups."""
        return [self.one_of(self.services(*META))]

    def happen(self):
        asked_s = time.monotonic()
        self._victims = self.victims()
        sought_s = time.monotonic() - asked_s
        self.cluster.pause(*self._victims)
        return f"{self.kind} {' '.join(self._victims)} for {self.duration_s:.1f} s{_sought(sought_s)}"

    def end(self):
        self.cluster.resume(*self._victims)


class PauseBriefly(Pause):
    kind = "pause meta briefly"
    lasts_s = SHORT_S


class PauseMaster(Pause):
    kind = "pause master"

    def victims(self):
        return [master_of(self.cluster, self.one_of(self.targets))]


class PauseHost(Pause):
    kind = "pause host"

    def victims(self):
        return [f"@{self.one_of(self.cluster.layout.host_groups)}"]


class PauseZooKeeper(Pause):
    kind = "pause zookeeper"

    def victims(self):
        return self.services("zookeeper")


class Cut(Misfortune):
    """A host is cut off from all others."""

    kind = "cut host"
    lasts_s = LONG_S
    peer = ""
    one_way = False

    def happen(self):
        self._group = self.one_of(self.cluster.layout.host_groups)
        self.cluster.cut(self._group, self.peer, self.one_way)
        return f"{self.kind} {self._group} for {self.duration_s:.1f} s"

    def end(self):
        self.cluster.heal(self._group)


class CutOneWay(Cut):
    kind = "cut host, one way"
    one_way = True


class CutFromZooKeeper(Cut):
    kind = "cut host from zookeeper"
    peer = "zookeeper"


class CutFromHost(Cut):
    kind = "cut host from another"

    def happen(self):
        groups = sorted(self.cluster.layout.host_groups)
        self._group = self.one_of(groups)
        peer = groups[(groups.index(self._group) + 1) % len(groups)]
        self.cluster.cut(self._group, peer)
        return f"{self.kind} {self._group} {peer} for {self.duration_s:.1f} s"


class FullDisk(Misfortune):
    """The file system of a volume is full. It must be one of its own: see ``small_disk``."""

    kind = "full disk"
    lasts_s = (1.0, 4.0)

    def happen(self):
        service = self.one_of([service.name for service in self.cluster.services(*META) if is_small(service)])
        self._filler = fill(self.cluster.service(service).volume)
        return f"{self.kind} {service} for {self.duration_s:.1f} s"

    def end(self):
        self._filler.unlink()


class Restart(Misfortune):
    """Services are stopped and started one after the other, as an upgrade does."""

    kind = "rolling restart"

    def happen(self):
        for name in self.services(*META):
            self.cluster.restart(name, timeout_s=RESTART_S)
        return self.kind


class RemoveBase(Misfortune):
    """The file of one copy of a base goes away under its running service."""

    kind = "remove file"

    def happen(self):
        cid = cid_from_name(ACCOUNT, self.one_of(self.targets))
        places = {
            service.name: path
            for service in self.cluster.services("meta2")
            for name, path in files_of(service).items()
            if name.startswith(cid)
        }
        name = self.one_of(places)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{places[name]}{suffix}").unlink()
        return f"{self.kind} {places[name].name} of {name}"


def _sought(time_s):
    """Words about a victim that was hard to find: a master that nobody knows."""
    return f" (sought for {time_s:.1f} s)" if time_s > 2 else ""


def is_small(service):
    """Is its volume a file system of its own?"""
    return service.volume and Path(service.volume).is_mount()


def master_of(cluster, container):
    """Name of the service that is master of a container; of the only one when there is one copy."""
    conf = {"namespace": cluster.namespace}
    admin = AdminClient(conf, endpoint=cluster.proxy)

    def found():
        with contextlib.suppress(OioException):
            return admin.election_status("meta2", ACCOUNT, container).get("master")

    service_id = eventually(found, 30, f"a master of {container}")
    services = cluster.services("meta2")
    return next(one.name for one in services if service_id in (one.service_id, one.addr))


SINGLE = (KillMeta, KillMeta, KillProxy, KillTwoMeta, KillConscience, Pause, PauseBriefly, Restart)
REPLICATED = (
    KillMaster, KillMaster, KillMeta, KillProxy, KillTwoMeta, KillHost, KillZooKeeper, KillConscience,
    PauseMaster, PauseMaster, Pause, PauseBriefly, PauseHost, PauseZooKeeper, Restart, RemoveBase,
)  # fmt: skip
ISOLATED = (Cut, Cut, CutOneWay, CutFromZooKeeper, CutFromHost)
SMALL_DISK = (FullDisk,)


def plan(cluster, seed, rounds, kinds, targets, lasts_max_s=None):
    """Misfortunes of a run, each of which follows from the seed and its own number.

    :param targets: containers whose copies are hit.
    :param lasts_max_s: none lasts longer.
    """
    rngs = [random.Random(f"{seed}/round/{number}") for number in range(rounds)]
    found = [rng.choice(kinds)(cluster, rng, targets) for rng in rngs]
    for misfortune in found:
        misfortune.duration_s = min(misfortune.duration_s, lasts_max_s or misfortune.duration_s)
    return found
