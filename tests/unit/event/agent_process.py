# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A real agent for tests, and a real package of somebody else with a filter that does what events tell it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

from support import ROOT, eventually, held_port

from oio.event.queue import open_queue, producer_url
from oio.event.source import open_source
from oio.http.client import HttpClientError, HttpPool

FILTERS = '''
"""A filter that writes down what it sees, and does what the event says."""
import json
import os
import time

from oio.event.filters.base import Filter, make_filter_factory


class Recorder(Filter):
    def init(self):
        self.record = self.conf["record"]

    def process(self, env, beanstalkd, cb):
        from eventlet.patcher import is_monkey_patched

        data = env.get("data") or {}
        fact = {
            "n": data.get("n"), "job_id": env["job_id"], "pid": os.getpid(), "green": is_monkey_patched("socket"),
            "shared": sorted(self.app_env), "option": self.conf.get("option"), "tube": self.conf.get("tube"),
        }
        fd = os.open(self.record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, json.dumps(fact).encode() + b"\\n")
        os.close(fd)
        todo, go = data.get("do"), os.path.exists(data.get("go", "/nothing"))
        if todo == "wait":
            while not os.path.exists(data["go"]):
                time.sleep(0.01)
        elif todo == "retry" and not go:
            return self.retry(cb, "not yet")
        elif todo == "bury" and not go:
            self.bury("as told")
        elif todo == "exit":
            os._exit(9)
        return self.app(env, beanstalkd, cb)


filter_factory = make_filter_factory(Recorder)


def plain_factory(global_conf, **local_conf):
    """A factory that knows nothing of the base class."""
    conf = dict(global_conf, **local_conf)

    def build(app):
        def step(env, beanstalkd, cb):
            with open(conf["record"] + ".plain", "a", encoding="ascii") as stream:
                stream.write(env["job_id"] + "\\n")
            return app(env, beanstalkd, cb)

        return step

    return build
'''
SETUP = """
from setuptools import setup

setup(
    name="Acme_Filters", version="1.2", py_modules=["acme_filters"],
    entry_points={"oio.event.filter_factory": [
        "recorder = acme_filters:filter_factory", "main = acme_filters:plain_factory",
    ]},
)
"""


def install_package(directory):
    """Build the package and install it; returns the directory to put on the path."""
    source, target = directory / "source", directory / "installed"
    source.mkdir()
    (source / "acme_filters.py").write_text(FILTERS)
    (source / "setup.py").write_text(SETUP)
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "--no-deps",
            "--disable-pip-version-check", "--target", str(target), str(source),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


class AgentProcess:
    """``oio-event-agent`` on a queue; type ``t`` goes to the filter above, ``p`` to the plain one."""

    def __init__(self, home, url, package, **options):
        self.home, self.url = home, url
        self.record = home / "record"
        self.go = home / "go"
        self.handlers = home / "handlers.conf"
        self.log = home / "agent.log"
        self.config = home / "agent.conf"
        self._held, self.port = held_port()
        self.process = None
        self._package = package
        self._pool = HttpPool()
        self.handlers.write_text(
            "[handler:t]\npipeline = first recorder\n[handler:p]\npipeline = plain\n"
            "[filter:first]\nuse = egg:oio#noop\n"
            f"[filter:recorder]\nuse = egg:acme-filters#recorder\nrecord = {self.record}\noption = 100%%\n"
            f"[filter:plain]\nuse = egg:Acme_Filters\nrecord = {self.record}\n"
        )
        options = {
            "namespace": "NS", "queue_url": url, "proxy": "127.0.0.1:1", "handlers_conf": self.handlers,
            "listen": f"127.0.0.1:{self.port}", "workers": 1, "concurrency": 3, **options,
        }  # fmt: skip
        text = "".join(f"{key} = {value}\n" for key, value in options.items())
        self.config.write_text(f"[event-agent]\n{text}")
        self.workers = int(options["workers"])

    def run(self, *arguments):
        """Run it to its end; returns the finished process."""
        return subprocess.run(
            self._command(*arguments), env=self._environment(), capture_output=True, text=True, timeout=20,
            check=False,
        )  # fmt: skip

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command(), env=self._environment(), stdout=log, stderr=log)
        eventually(lambda: self.metric("event_agent_workers") == self.workers, what="the agent consumes")
        return self

    def _command(self, *arguments):
        return [sys.executable, str(ROOT / "bin" / "oio-event-agent"), *(arguments or (str(self.config),))]

    def _environment(self):
        return {**os.environ, "PYTHONPATH": f"{self._package}{os.pathsep}{ROOT}"}

    def stop(self, number=signal.SIGTERM):
        """Send a signal and wait; returns the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(15)
        self.process = None
        return code

    def close(self):
        self._pool.close()
        self._held.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def children(self):
        """Pids of the workers."""
        pid = self.process.pid
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as stream:
            return [int(child) for child in stream.read().split()]

    def put(self, *data, kind="t", tube="oio"):
        with open_queue(producer_url(self.url, "test", "1"), tube) as queue:
            queue.put_many(
                [json.dumps({"event": kind, "when": int(time.time() * 1e6), "data": one}).encode() for one in data]
            )

    def facts(self):
        """What the filter wrote down."""
        try:
            return [json.loads(line) for line in self.record.read_text().splitlines()]
        except FileNotFoundError:
            return []

    def seen(self):
        return [fact["n"] for fact in self.facts()]

    def metric(self, name, **labels):
        """Sum of the samples of a family that have these labels; None when it is not told."""
        try:
            text = self._pool.request("GET", f"http://127.0.0.1:{self.port}/metrics").data.decode()
        except HttpClientError:
            return None
        found = None
        for line in text.splitlines():
            match = re.match(r"(\w+)(\{.*\})? (\S+)$", line)
            if match and match[1] == name and all(f'{key}="{one}"' in line for key, one in labels.items()):
                found = (found or 0) + float(match[3])
        return found

    def outcome(self, outcome):
        return self.metric("event_agent_events_total", outcome=outcome) or 0

    def source(self, **more):
        """The queue, seen by another consumer."""
        return open_source(self.url, **more)
