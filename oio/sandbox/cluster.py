# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The local cluster as an object: what the command line and the tests drive.

>>> sandbox = Sandbox("/tmp/cluster", Options(namespace="DEMO", rawx=3))   # doctest: +SKIP
>>> sandbox.start()                                                        # doctest: +SKIP
>>> sandbox.kill("DEMO-rawx-2"); sandbox.wait_ready()                      # doctest: +SKIP
>>> sandbox.stop()                                                         # doctest: +SKIP

All state is on disk (the layout) and in the supervisor: two objects on the same home are the same cluster.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import yaml

from oio.sandbox import generate, ports, zookeeper
from oio.sandbox import layout as layouts
from oio.sandbox.errors import SandboxError
from oio.sandbox.layout import Layout, Service
from oio.sandbox.network import Network
from oio.sandbox.options import Options
from oio.sandbox.readiness import Readiness, Report
from oio.sandbox.supervision import Supervision, is_paused

#: How often ports are chosen again when others take them before the first start.
_LAYOUT_ATTEMPTS = 5
#: Time allowed to a whole start. The default cluster needs a few seconds on an idle machine.
START_TIMEOUT_S = 90.0
#: Time allowed to processes that were killed to leave their ports.
_PORTS_FREE_S = 10.0


def default_home() -> str:
    """``~/.oio``, where programs look for the namespace."""
    return os.path.join(os.environ.get("HOME") or os.path.expanduser("~"), ".oio")


class Sandbox:
    """A local cluster in ``home``. As a context manager: started inside, stopped afterwards."""

    def __init__(
        self, home: str | None = None, options: Options | None = None, **fields: Any
    ) -> None:
        """``options``, or fields of :class:`Options`, are used by :meth:`init` only."""
        self.home = os.path.abspath(os.path.expanduser(home or default_home()))
        self._options = options or (Options(**fields) if fields else None)
        self._layout: Layout | None = None

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # --- what it is ---------------------------------------------------------------------------------

    @property
    def initialised(self) -> bool:
        """Is there a cluster in this home, running or not?"""
        return self._layout is not None or os.path.exists(layouts.layout_path(self.home))

    @property
    def layout(self) -> Layout:
        """Where everything is. :raises SandboxError: before :meth:`init`."""
        if self._layout is None:
            self._layout = layouts.load(self.home)
            if self._layout is None:
                raise SandboxError(f"No cluster in {self.home}: init or start it first")
        return self._layout

    @property
    def namespace(self) -> str:
        """Name of the namespace."""
        return self.layout.options.namespace

    @property
    def proxy(self) -> str:
        """Address of the proxy."""
        return self.layout.of_type("proxy")[0].addr

    @property
    def conf(self) -> dict[str, Any]:
        """Content of ``test.yml``: namespace, proxy, services by type, and so on."""
        content: dict[str, Any] = yaml.safe_load(generate.test_conf(self.layout))
        return content

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use this cluster."""
        layout = self.layout
        return {
            "OIO_SDS_CONF": layout.sds_conf,
            "OIO_NS": layout.options.namespace,
            "OIO_ACCOUNT": "test_account",
            "OIO_PROXYD_URL": f"http://{self.proxy}",
            "SDS_TEST_CONFIG_FILE": os.path.join(layout.conf_dir, "test.yml"),
        }

    def services(self, *types: str) -> list[Service]:
        """Services of these types (all without a type)."""
        return self.layout.of_type(*types) if types else list(self.layout.services)

    def service(self, name: str) -> Service:
        """A service by its name. :raises SandboxError: when there is none."""
        return self.layout.select([name])[0]

    def pids(self) -> dict[str, int]:
        """Process id of each service that runs."""
        states = self._supervision().states()
        return {name: state["pid"] for name, state in states.items() if state["pid"]}

    def status(self, *targets: str) -> list[dict[str, Any]]:
        """One entry per service (all without targets): name, type, host group, address, id, state, and so on."""
        chosen = self.layout.select(list(targets))
        states = self._supervision().states()
        scores = self._scores() if states else {}
        return [
            {
                "name": service.name,
                "type": service.type,
                "group": service.group,
                "addr": service.addr if service.port else "",
                "service_id": service.service_id,
                "volume": service.volume,
                "state": "PAUSED" if is_paused(state.get("pid", 0)) else state.get("state", "STOPPED"),
                "pid": state.get("pid", 0),
                "uptime_s": state.get("uptime_s", 0),
                "score": scores.get(service.addr) if service.port else None,
            }
            for service in chosen
            for state in (states.get(service.name, {}),)
        ]

    def orphans(self) -> list[int]:
        """Processes of this cluster that run although its supervisor does not: start or stop ends them."""
        supervision = self._supervision()
        return [] if supervision.alive() else supervision.leftovers()

    # --- what can be done with it ---------------------------------------------------------------------

    def init(self) -> Layout:
        """Lay the cluster out and write its configuration; the options of a former init win.

        :raises SandboxError: when the home holds a cluster of another namespace.
        """
        data_dir = self._options.data_dir if self._options else ""
        if not layouts.is_plain(data_dir):
            raise SandboxError(f"Characters that configuration files cannot hold: {data_dir!r}")
        layouts.make_home(self.home)
        layouts.make_alias(self.home)
        with self._exclusive():
            layout = layouts.load(self.home)
            if layout is None:
                layout = layouts.compute(self.home, self._options or Options())
            elif self._options and self._options.namespace != layout.options.namespace:
                raise SandboxError(
                    f"{self.home} holds the namespace {layout.options.namespace}:"
                    " destroy it, or choose another --home"
                )
            layouts.check_version(layout)
            generate.write_all(layout)
            _check_attributes(layout)
            self._layout = layout
        return layout

    def start(
        self,
        *targets: str,
        timeout_s: float = START_TIMEOUT_S,
        report: Report = lambda _text: None,
        wait: bool = True,
    ) -> None:
        """Start services (all without targets) and wait until they serve.

        :raises SandboxError: naming the service that fails, with the end of its log.
        """
        self._init_with_free_ports(report)
        supervision = self._supervision()
        chosen = self.layout.select(list(targets))
        orphans = self.orphans()
        if orphans:
            report(f"{len(orphans)} processes outlived their supervisor: stopping them")
            supervision.shutdown()
        if self.layout.subnet:
            Network(self.layout).create()
        else:
            self._check_ports(chosen, supervision)
        supervision.launch()
        ready = Readiness(self.layout, supervision, timeout_s, report)
        try:
            ground = [service for service in chosen if service.type in layouts.GROUND_TYPES]
            consciences = [service for service in chosen if service.type == "conscience"]
            first = [*ground, *consciences]
            for service in first:
                supervision.start(service)
            # Everything registers with the conscience: on a small machine it gets the first seconds.
            if wait:
                ready.wait_ground(ground)
            if consciences and wait:
                ready.wait_conscience()
            # An agent that looks at a service before it listens has it known as down until it looks again.
            last = [service for service in chosen if service.type == "conscience-agent"]
            for service in chosen:
                if service not in first and service not in last:
                    supervision.start(service)
            if last and wait:
                ready.wait_answers(chosen)
            for service in last:
                supervision.start(service)
            if wait and self.layout.zookeeper:
                zookeeper.make_tree(self.layout, report)
            if wait:
                ready.wait_all(chosen)
        finally:
            ready.close()

    def wait_ready(
        self,
        *targets: str,
        timeout_s: float = START_TIMEOUT_S,
        report: Report = lambda _text: None,
    ) -> None:
        """Wait until services (all without targets) serve."""
        ready = Readiness(self.layout, self._supervision(), timeout_s, report)
        try:
            ready.wait_conscience()
            ready.wait_all(self.layout.select(list(targets)))
        finally:
            ready.close()

    def stop(self, *targets: str) -> None:
        """Stop services; without targets everything, the supervisor too. Nothing is left running."""
        if not self.initialised:
            return
        supervision = self._supervision()
        if targets:
            if supervision.alive():
                supervision.stop(self.layout.select(list(targets)))
        else:
            supervision.shutdown()
            if self.layout.subnet:
                Network(self.layout).remove()
            layouts.remove_alias(self.home)

    def restart(
        self,
        *targets: str,
        timeout_s: float = START_TIMEOUT_S,
        report: Report = lambda _text: None,
        wait: bool = True,
    ) -> None:
        """Stop services, then start them again."""
        self.stop(*targets)
        self.start(*targets, timeout_s=timeout_s, report=report, wait=wait)

    def kill(self, target: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a service (or to a group); the supervisor restarts what dies."""
        supervision = self._supervision()
        for service in self.layout.select([target]):
            supervision.signal(service, number)

    def pause(self, *targets: str) -> None:
        """Stop processes where they are, as a machine that hangs: nothing is lost, nothing is answered."""
        self._supervision().pause(self.layout.select(list(targets)))

    def resume(self, *targets: str) -> None:
        """Let processes that were paused go on."""
        self._supervision().resume(self.layout.select(list(targets)))

    def cut(self, group: str, peer: str = "", one_way: bool = False) -> None:
        """Cut a host group (``@host2``) off from all others, or from one (``@host3``, ``@zookeeper``).

        Without ``peer``, the clients do not reach it either. With ``one_way`` only what it sends is lost.

        :raises SandboxError: when hosts are not isolated.
        """
        Network(self.layout).cut(group.removeprefix("@"), peer.removeprefix("@"), one_way)

    def heal(self, *groups: str) -> None:
        """Undo all that was cut from host groups (all without groups)."""
        for group in groups or self.layout.groups:
            Network(self.layout).heal(group.removeprefix("@"))

    def cuts(self) -> list[str]:
        """Host groups without link: ``["host2"]``."""
        return Network(self.layout).cuts() if self.layout.subnet else []

    def wait_restarted(self, name: str, former_pid: int, timeout_s: float = 20.0) -> int:
        """Wait until a service that was killed runs under another pid; returns this pid."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            state = self._supervision().states().get(name, {})
            if state.get("pid") and state["pid"] != former_pid:
                return int(state["pid"])
            time.sleep(0.05)
        raise SandboxError(f"{name} was not restarted within {timeout_s:g} s")

    def destroy(self) -> None:
        """Stop everything and remove configuration, logs and volumes, and the home when :meth:`init` made it."""
        layout = layouts.load(self.home)
        if layout is None:
            return
        self._layout = layout
        self.stop()
        layouts.make_alias(self.home)
        with self._exclusive():
            generate.check_sds_conf(layout)
            ports.release(
                [port for service in layout.services for port in service.ports],
                layouts.layout_path(self.home),
            )
            for service in layout.services:
                if service.volume:
                    shutil.rmtree(service.volume, ignore_errors=True)
            with suppress(OSError):
                os.rmdir(layout.data_dir)  # only when nothing else is in it
            with suppress(FileNotFoundError):
                os.unlink(layout.sds_conf)
            former = os.path.join(layout.root, "spool")  # of a cluster of version 1
            for path in (layout.conf_dir, layout.run_dir, layout.log_dir, former):
                shutil.rmtree(path, ignore_errors=True)
            # Last: as long as it is there, an interrupted removal can be run again.
            os.unlink(layouts.layout_path(self.home))
            self._layout = None
        with suppress(OSError):
            os.unlink(os.path.join(layout.root, "lock"))
        layouts.remove_home(self.home)
        layouts.remove_alias(self.home)

    # --- helpers ----------------------------------------------------------------------------------------

    def _init_with_free_ports(self, report: Report) -> None:
        """Lay out, again with other ports when some were taken before the cluster ever started.

        Somebody else may take a port between the layout and the start. Once there is data, ports are
        part of it (the prefix table names meta1 by address), and cannot change any more.
        """
        for _ in range(_LAYOUT_ATTEMPTS):
            layout = self.init()
            if os.path.exists(os.path.join(layout.log_dir, "supervisord.log")):
                return
            listening = [service for service in layout.services if service.port and not layout.subnet]
            taken = [port for one in listening for port in one.ports if not ports.is_free(one.host, port)]
            if not taken:
                return
            report(f"port {taken[0]} was taken meanwhile: choosing others")
            with self._exclusive():
                path = layouts.layout_path(self.home)
                ports.release([port for service in listening for port in service.ports], path)
                self._layout = layouts.compute(self.home, layout.options)

    def _supervision(self) -> Supervision:
        return Supervision(self.layout)

    def _scores(self) -> dict[str, int]:
        """Score by address, empty when the conscience does not answer."""
        from oio.common.status import StatusError
        from oio.conscience.registry_client import RegistryClient
        from oio.http.client import HttpPool

        pool = HttpPool(connect_timeout_s=1.0, read_timeout_s=2.0)
        addresses = [service.addr for service in self.layout.of_type("conscience")]
        try:
            snapshot = RegistryClient(addresses, pool, timeout_s=2.0).snapshot()
        except StatusError:
            return {}
        finally:
            pool.close()
        assert snapshot is not None  # no generation was given
        return {one.addr: one.score for group in snapshot.services.values() for one in group}

    def _check_ports(self, chosen: Iterable[Service], supervision: Supervision) -> None:
        """Tell which port was taken while the cluster was stopped.

        A process that was killed keeps its ports until the kernel has closed its files, which takes seconds
        when the disk is busy: nothing tells any more whose process it was.
        """
        running = {name for name, state in supervision.states().items() if state["pid"]}
        waiting = [service for service in chosen if service.port and service.name not in running]
        deadline = time.monotonic() + _PORTS_FREE_S
        while waiting := [
            one for one in waiting if not all(ports.is_free(one.host, port) for port in one.ports)
        ]:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            taken = [f"{service.addr} of {service.name}" for service in waiting]
            raise SandboxError(
                f"In use by another program: {', '.join(taken)}. Free it, or destroy and init"
                " the cluster to get other ports"
            )

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        os.makedirs(layouts.root_of(self.home), mode=0o700, exist_ok=True)
        with open(os.path.join(layouts.root_of(self.home), "lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _check_attributes(layout: Layout) -> None:
    """Chunks and volumes need user extended attributes."""
    path = os.path.join(layout.data_dir, f".attributes-{os.getpid()}")
    with open(path, "wb"):
        try:
            os.setxattr(path, "user.oio.sandbox", b"1")
        except OSError as err:
            raise SandboxError(
                f"{layout.data_dir} does not support extended attributes ({err.strerror}):"
                " choose a --data directory on another file system"
            ) from err
        finally:
            os.unlink(path)
