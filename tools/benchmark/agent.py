# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""How many events a second one worker of the event agent handles: ``python -m tools.benchmark.agent [options]``.

A real Redis holds the events and the accounts, the account service and the reverse directory are the real ones
(``--stand-ins``: small servers that say yes instead); the proxy and the rawx are always stand-ins, which share
one process. The events are there before the agent starts; what is timed is from the first one taken to the last
one settled. On a busy machine compare the events per second of processor time of the worker.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oio.common.redis_server import find_redis_server
from oio.event.queue import open_queue, producer_url
from oio.http.client import HttpClientError, HttpPool

ROOT = Path(__file__).parents[2]
NAMESPACE = "BENCH"
VOLUMES = 4
CONTAINERS = 200
START_TIMEOUT_S = 20.0
RUN_TIMEOUT_S = 300.0
POLL_S = 0.1
HANDLERS = """
[handler:storage.container.state]
pipeline = logger account_update
[handler:storage.chunk.new]
pipeline = logger volume_index
[handler:storage.chunk.deleted]
pipeline = logger volume_index
[handler:storage.content.deleted]
pipeline = logger content_cleaner
[filter:logger]
use = egg:oio#logger
[filter:account_update]
use = egg:oio#account_update
[filter:volume_index]
use = egg:oio#volume_index
[filter:content_cleaner]
use = egg:oio#content_cleaner
"""


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code."""
    options = _parser().parse_args(argv)
    home = Path(tempfile.mkdtemp(prefix="oio-agent-"))
    processes = _Processes(home)
    try:
        _measure(options, home, processes)
    finally:
        processes.stop()
        if options.keep:
            print(f"kept: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.agent", description=__doc__)
    parser.add_argument("--events", type=int, default=20000, help="events in the queue (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=10, help="green threads (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--queue", choices=["redis", "beanstalk", "spool"], default="redis")
    parser.add_argument("--only", choices=["state", "new", "deleted", "cleaned"], help="one kind of event")
    parser.add_argument("--stand-ins", action="store_true", help="neither real account service nor real rdir")
    parser.add_argument("--profile", metavar="FILE", help="have py-spy write a profile of the worker")
    parser.add_argument("--keep", action="store_true", help="keep the directory of the run")
    return parser


def _measure(options: argparse.Namespace, home: Path, processes: _Processes) -> None:
    redis = processes.redis()
    account = rdir = ""
    if not options.stand_ins:
        account = processes.account(f"{redis[0]}:{redis[1]}")
        rdir = processes.rdir()
    stand_in = processes.stand_in(account, rdir)
    url = {
        "redis": lambda: f"redis://{redis[0]}:{redis[1]}/0",
        "beanstalk": lambda: f"beanstalk://{processes.beanstalkd()}",
        "spool": lambda: f"spool://{home}/spool",
    }[options.queue]()
    with open_queue(producer_url(url, "bench", "1")) as queue:
        events = list(_events(options.events, options.only))
        for start in range(0, len(events), 500):
            queue.put_many([json.dumps(event).encode() for event in events[start : start + 500]])
    agent, listen = processes.agent(url, stand_in, options)
    pool = HttpPool()
    worker = _worker_of(agent.pid)
    if options.profile:
        spy = str(Path(sys.executable).with_name("py-spy"))
        processes.spawn([spy, "record", "-p", str(worker), "-o", options.profile, "-f", "raw", "-d", "8"])
    begin_s = end_s = 0.0
    done = 0
    while done < options.events:
        text = _metrics(pool, listen)
        done = sum(
            _sum(text, "event_agent_events_total", f'outcome="{outcome}"')
            for outcome in ("handled", "ignored", "buried")
        )
        now = time.monotonic()
        if not begin_s and done:
            begin_s, first, cpu_s = now, done, _cpu_s(worker)
        if begin_s:
            end_s = now
        if begin_s and now - begin_s > RUN_TIMEOUT_S:
            break
        time.sleep(POLL_S)
    seconds, used_s = max(end_s - begin_s, 1e-9), max(_cpu_s(worker) - cpu_s, 1e-9)
    run = f"{options.queue}, {options.only or 'mix'}, {options.workers} × {options.concurrency} green threads"
    line = f"{run}: {done} events, {(done - first) / seconds:.0f} events/s"
    if options.workers == 1:
        line += (
            f", {(done - first) / used_s:.0f} events per second of processor time of the worker "
            f"({100 * used_s / seconds:.0f} % of a processor)"
        )
    print(line)
    for outcome in ("retry", "buried", "unanswered"):
        number = _sum(text, "event_agent_events_total", f'outcome="{outcome}"')
        if number:
            print(f"  {outcome}: {number}")


def _events(count: int, only: str | None) -> Iterator[dict[str, Any]]:
    generator = random.Random(1)
    kinds = [only] if only else ["state", "new", "deleted", "cleaned"]
    for number in range(count):
        container = generator.randrange(CONTAINERS)
        url = {"ns": NAMESPACE, "account": "acme", "user": f"box{container}", "id": f"{container:064X}"}
        when = int(time.time() * 1e6)
        chunk = f"{generator.getrandbits(256):064X}"
        service = f"{NAMESPACE}-rawx-{number % VOLUMES + 1}"
        kind = kinds[number % len(kinds)]
        if kind == "state":
            data: Any = {
                "bucket": None, "policy": "SINGLE", "ctime": when, "bytes-count": number, "object-count": 1,
                "damaged-objects": 0, "missing-chunks": 0,
            }  # fmt: skip
            yield {"event": "storage.container.state", "when": when, "url": url, "data": data, "request_id": "R"}
        elif kind == "cleaned":
            data = [
                {"type": "aliases", "name": "o", "version": 1, "ctime": 1, "mtime": 1, "deleted": False},
                {"type": "contents_headers", "id": "00", "size": 1, "chunk-method": "plain/nb_copy=1"},
                {"type": "chunks", "id": f"http://{service}/{chunk}", "pos": "0", "hash": "00", "size": 1},
            ]
            yield {"event": "storage.content.deleted", "when": when, "url": url, "data": data, "request_id": "R"}
        else:
            data = {
                "volume_id": "127.0.0.1:6200", "volume_service_id": service, "container_id": url["id"],
                "content_path": "o", "content_version": "1", "content_id": f"{number:032X}", "chunk_id": chunk,
                "content_storage_policy": "SINGLE", "chunk_position": "0", "chunk_size": "1", "oio_version": "4.2",
            }  # fmt: skip
            yield {"event": f"storage.chunk.{kind}", "when": when, "data": data, "request_id": "R"}


class _Processes:
    """What the run needs beside the agent."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._running: list[subprocess.Popen[bytes]] = []
        sds = home / "sds.conf"
        sds.write_text(f"[{NAMESPACE}]\nproxy = 127.0.0.1:1\n")
        self._environment = {**os.environ, "OIO_SDS_CONF": str(sds)}

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a program; its output goes to a file of its own."""
        log = self._home / f"{Path(command[0]).name}-{len(self._running)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, env=self._environment
            )
        self._running.append(process)
        return process

    def stop(self) -> None:
        """End everything, the last one first."""
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def redis(self) -> tuple[str, int]:
        """A Redis that keeps nothing."""
        program = find_redis_server()
        if program is None:
            raise SystemExit("no Redis server is installed")
        port = _free_port()
        self.spawn([program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._home)])
        return "127.0.0.1", _answering(port)

    def beanstalkd(self) -> str:
        """A beanstalkd that keeps nothing."""
        port = _free_port()
        self.spawn(["beanstalkd", "-l", "127.0.0.1", "-p", str(port)])
        return f"127.0.0.1:{_answering(port)}"

    def account(self, redis: str) -> str:
        """The account service."""
        port = _free_port()
        path = self._home / "account.conf"
        path.write_text(
            f"[account-server]\nbind_addr=127.0.0.1\nbind_port={port}\nredis_host={redis}\nworkers=1\n"
            "log_level=WARNING\n"
        )
        self.spawn([sys.executable, "bin/oio-account-server", str(path)])
        return f"127.0.0.1:{_answering(port)}"

    def rdir(self) -> str:
        """The reverse directory."""
        port = _free_port()
        path = self._home / "rdir.conf"
        (self._home / "rdir").mkdir()
        path.write_text(
            f"[rdir-server]\nnamespace={NAMESPACE}\nbind_addr=127.0.0.1\nbind_port={port}\n"
            f"db_path={self._home}/rdir\nlog_level=WARNING\n"
        )
        self.spawn([sys.executable, "bin/oio-rdir-server", str(path)])
        return f"127.0.0.1:{_answering(port)}"

    def stand_in(self, account: str, rdir: str) -> str:
        """The proxy and the rawx, and what is not real."""
        port = _free_port()
        address = f"127.0.0.1:{port}"
        self.spawn(
            [sys.executable, "-m", "tools.benchmark.stand_in", str(port), account or address, rdir or address]
        )
        _answering(port)
        return address

    def agent(self, url: str, proxy: str, options: argparse.Namespace) -> tuple[subprocess.Popen[bytes], str]:
        """The agent, and the address of its metrics."""
        port = _free_port()
        (self._home / "handlers.conf").write_text(HANDLERS)
        path = self._home / "agent.conf"
        path.write_text(
            f"[event-agent]\nnamespace={NAMESPACE}\nqueue_url={url}\nworkers={options.workers}\n"
            f"concurrency={options.concurrency}\nhandlers_conf={self._home}/handlers.conf\nproxy={proxy}\n"
            f"listen=127.0.0.1:{port}\n"
        )
        agent = self.spawn([sys.executable, "bin/oio-event-agent", str(path)])
        return agent, f"127.0.0.1:{_answering(port)}"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _answering(port: int) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return port
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _worker_of(parent: int) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if children:
            return int(children[0])
        if time.monotonic() > deadline:
            raise SystemExit("the agent has no worker")
        time.sleep(0.01)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _metrics(pool: HttpPool, address: str) -> str:
    try:
        return pool.request("GET", f"http://{address}/metrics").data.decode()
    except HttpClientError:
        return ""


def _sum(text: str, name: str, label: str) -> int:
    lines = (line for line in text.splitlines() if line.startswith(name) and label in line)
    return sum(int(float(re.split(r"\s+", line)[-1])) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
