# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Consciences, proxies and agents as processes that tests kill: nothing else of a namespace is there."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import yaml
from proxy_http import RawProxy
from support import ROOT, eventually, held_port

from oio.conscience.registry_client import RegistryClient
from oio.http.client import HttpPool

NS = "NS"
TYPES = """
[type:echo]
score_expr=(num stat.cpu)
score_variation_bound=100
lock_at_first_register=false
[type:rawx]
score_expr=(num stat.cpu)
score_variation_bound=100
[type:volatile]
score_expr=(num stat.cpu)
score_timeout=1
score_variation_bound=100
lock_at_first_register=false
"""


class Program:
    """One of our programs on ports that nobody else is given while it is down."""

    def __init__(self, home, words, port=None):
        self.port = port
        self._words = words
        self._log = home / f"{words[0]}-{port or id(self)}.log"
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.popen = None

    def start(self, wait=True, path=()):
        """Start it; ``path`` goes before the rest of the path of modules."""
        environment = dict(self._environment)
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), environment["PYTHONPATH"]])
        with open(self._log, "ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, str(ROOT / "bin" / self._words[0]), *self._words[1:]],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        if wait and self.port:
            eventually(self.listens, what=f"{self._words[0]} listening")
        return self

    def listens(self):
        assert self.popen.poll() is None, self.log
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    @property
    def log(self):
        return self._log.read_text(errors="replace")

    def signal(self, number):
        self.popen.send_signal(number)

    def kill(self):
        """As if the power of its host had failed."""
        self.popen.kill()
        self.popen.wait()

    def terminate(self):
        """Ask it to stop; gives its exit code."""
        self.popen.terminate()
        return self.popen.wait(20)

    def stop(self):
        if self.popen is not None and self.popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


class Conscience(Program):
    """A conscience; ``state`` is the file that outlives it."""

    def __init__(self, home, config, state, port):
        super().__init__(
            home,
            ["oio-conscience", "-O", f"PersistencePath={state}", "-O", "PersistencePeriod=2", str(config)],
            port,
        )
        self.addr = f"127.0.0.1:{port}"
        self.state = state
        self._client = RegistryClient([self.addr], HttpPool(), 5.0)

    def view(self):
        """``{address: (score, tags)}`` of the services that tests register."""
        services = self._client.snapshot(full=True).services
        return {one.addr: (one.score, one.tags) for kind in sorted(services) for one in services[kind]}

    def hub(self):
        """What it says of the other consciences."""
        response = HttpPool().request("GET", f"http://{self.addr}/status")
        return json.loads(bytes(response.data))["hub"]


class Proxy(Program):
    """A proxy, with what a test asks of it."""

    def __init__(self, home, config, port):
        super().__init__(
            home, ["oio-proxy", "-O", "SysConfig=off", "-O", f"Config={config}", f"127.0.0.1:{port}", NS], port
        )
        self.addr = f"127.0.0.1:{port}"
        self.raw = RawProxy(self.addr, NS)

    def register(self, *services):
        assert self.raw.post("conscience/register", body=list(services)).status == 204

    def lock(self, service, score):
        assert self.raw.post("conscience/lock", body={**service, "score": score}).status == 204

    def listed(self, kind="echo"):
        """``{address: score}``."""
        answer = self.raw.get("conscience/list", {"type": kind})
        return {item["addr"]: item["score"] for item in answer.json} if answer.status == 200 else None


class Registry:
    """Makes and ends the processes of a namespace."""

    def __init__(self, home):
        self._home = home
        self._held = []
        self._programs = []
        self.consciences = []

    def port(self):
        """A port of our own for the whole test."""
        held, port = held_port()
        self._held.append(held)
        return port

    def add(self, program):
        """Have a program ended with the others."""
        self._programs.append(program)
        return program

    def start_consciences(self, count, own_hubs=True):
        """Start consciences that tell each other what they learn, where proxies find them unless ``own_hubs``."""
        policies, services = self._home / "policies", self._home / "services"
        policies.write_text("[STORAGE_POLICY]\nSINGLE=NONE:NONE\n")
        services.write_text(TYPES)
        ports = [self.port() for _ in range(count)]
        hubs = [self.port() for _ in range(count)] if own_hubs else ports
        group = ",".join(f"tcp://127.0.0.1:{hub}" for hub in hubs)
        for number, (port, hub) in enumerate(zip(ports, hubs, strict=True), start=1):
            config = self._home / f"conscience-{number}.conf"
            config.write_text(
                f"[Server.conscience]\nlisten=127.0.0.1:{port}\n[Plugin.conscience]\nparam_namespace={NS}\n"
                f"param_storage_conf={policies}\nparam_service_conf={services}\n"
                f"param_hub.me=tcp://127.0.0.1:{hub}\nparam_hub.group={group}\n"
            )
            state = self._home / f"state-{number}.json"
            self.consciences.append(self.add(Conscience(self._home, config, state, port)))
        for conscience in self.consciences:
            conscience.start(wait=False)
        for conscience in self.consciences:
            eventually(conscience.listens, what="the conscience listening")
        return self.consciences

    def start_proxy(self, *consciences, **variables):
        """Start a proxy that asks these consciences in this order."""
        port = self.port()
        config = self._home / f"proxy-{port}.conf"
        conf = {"proxy.period.cs.downstream": "200ms", "proxy.period.cs.upstream": "100ms", **variables}
        lines = [f"{key}={value}" for key, value in conf.items()]
        addresses = ",".join(one.addr for one in consciences)
        config.write_text(f"[{NS}]\nconscience={addresses}\n" + "\n".join(lines) + "\n")
        return self.add(Proxy(self._home, config, port)).start()

    def start_agent(self, proxy, services, path=(), **options):
        """Start an agent that watches services."""
        number = len(self._programs)
        watch = self._home / f"watch-{number}"
        watch.mkdir()
        for name, description in services.items():
            (watch / f"{name}.yml").write_text(yaml.safe_dump(description))
        config = self._home / f"agent-{number}.yml"
        conf = {"namespace": NS, "proxy": proxy.addr, "check_interval": 0.2, "include_dir": str(watch), **options}
        config.write_text(yaml.safe_dump(conf))
        return self.add(Program(self._home, ["oio-conscience-agent", str(config)])).start(path=path)

    def stop(self):
        for program in reversed(self._programs):
            program.stop()
        for held in self._held:
            held.close()


def service(port, cpu=50, kind="echo", **tags):
    """A service that does not exist."""
    return {"ns": NS, "type": kind, "addr": f"127.0.0.1:{port}", "tags": {"tag.up": True, "stat.cpu": cpu, **tags}}
