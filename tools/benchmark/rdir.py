# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A reverse directory with very many records: ``python -m tools.benchmark.rdir --records 10000000``.

One real rdir process, one volume. Containers come in turn, in an order that is not that of the keys, some chunks
of each at a time; in the last part of the run one chunk at a time: then nearly every record of a batch lies on a
page of its own, which is the worst that events can bring. Prints rates, the memory of the process without the
mapped file, and the size on disk.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oio.rdir.client import BatchingRdirClient, RdirClient

ROOT = Path(__file__).resolve().parents[2]
VOLUME = "BENCH-rawx-1"
WHEN = 1_700_000_000_000_000
CHUNKS_PER_CONTAINER = 100
START_MAX_S = 10.0


class _Direct:
    """The rdir is known: no directory is asked."""

    address = ""

    def _get_rdir_addr(self, volume_id: str, reqid: str | None = None, **kwargs: Any) -> str:
        del volume_id, reqid, kwargs
        return self.address


class _Client(_Direct, RdirClient):
    pass


class _BatchingClient(_Direct, BatchingRdirClient):
    pass


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=2000, help="records per request")
    parser.add_argument("--page", type=int, default=10000, help="records per page of fetch")
    parser.add_argument("--run", type=int, default=10, help="chunks of a container that come together")
    parser.add_argument("--tail", type=int, default=100_000, help="last records, one chunk at a time")
    parser.add_argument("--singles", type=int, default=5000, help="records pushed by concurrent single calls")
    parser.add_argument("--sync", choices=("on", "off"), default="on")
    parser.add_argument("--directory", help="where to put the database (default: a temporary directory)")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="rdir-bench-", dir=options.directory))
    process, address = start(home, options.sync)
    _Direct.address = address
    try:
        measure(options, process.pid, home)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        shutil.rmtree(home)
    return 0


def start(home: Path, sync: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / "db").mkdir()
    (home / "sds.conf").write_text("[BENCH]\nproxy = 127.0.0.1:6000\n")
    (home / "rdir.conf").write_text(
        f"[rdir-server]\nnamespace = BENCH\ndb_path = {home}/db\nbind_addr = 127.0.0.1\nbind_port = {port}\n"
        f"sync = {sync}\n"
    )
    environment = {**os.environ, "OIO_SDS_CONF": str(home / "sds.conf"), "PYTHONPATH": str(ROOT)}
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin/oio-rdir-server"), str(home / "rdir.conf")],
            env=environment, stderr=log,
        )  # fmt: skip
    deadline = time.monotonic() + START_MAX_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, f"127.0.0.1:{port}"
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((home / "log").read_text()) from None
            time.sleep(0.05)


def records(count: int, run: int = 1, first: int = 0, containers: int = 0) -> Iterator[dict[str, Any]]:
    """Records, `run` of the same container in a row, in an order that is not the one of the keys."""
    containers = containers or max(1, count // CHUNKS_PER_CONTAINER)
    for number in range(first, first + count):
        container = hashlib.sha256(b"%d" % (number // run % containers)).hexdigest().upper()
        chunk = hashlib.sha256(b"chunk%d" % number).hexdigest().upper()
        when = WHEN + number
        yield {
            "container_id": container, "content_id": chunk[:32], "chunk_id": chunk,
            "mtime": when // 1000000, "when": when,
        }  # fmt: skip


def measure(options: argparse.Namespace, pid: int, home: Path) -> None:
    """Fill, read, and print figures."""
    client = _Client({"namespace": "BENCH"}, endpoint="127.0.0.1:1")
    client.create(VOLUME)
    containers = max(1, options.records // CHUNKS_PER_CONTAINER)
    main_count = max(0, options.records - options.tail)
    rates = push(client, records(main_count, options.run, 0, containers), options.batch)
    print(f"records                    {options.records:>12,}")
    tenth = max(1, len(rates) // 10)
    print_rate("push, runs", rates)
    print_rate("push, runs, first tenth", rates[:tenth])
    print_rate("push, runs, last tenth", rates[-tenth:])
    tail = options.records - main_count
    rates += (last := push(client, records(tail, 1, main_count, containers), options.batch))
    print_rate("push, one at a time", last)
    done = options.records
    print(f"slowest batch of {options.batch:<10}{max(seconds for _, seconds in rates) * 1000:>12,.1f} ms")
    print(f"CPU of the service, push   {cpu_s(pid) * 1e6 / done:>12,.1f} µs per record")
    print_memory(pid, home, done)
    begin = time.monotonic()
    count = sum(1 for _ in client.chunk_fetch(VOLUME, limit=options.page))
    print(f"fetch                      {count / (time.monotonic() - begin):>12,.0f} /s ({count:,} records)")
    begin = time.monotonic()
    total = client.status(VOLUME, max=10000)["chunk"]["total"]
    print(f"status                     {total / (time.monotonic() - begin):>12,.0f} /s")
    print_memory(pid, home, done)
    singles(options.singles)


def push(client: RdirClient, source: Iterator[dict[str, Any]], size: int) -> list[tuple[int, float]]:
    """Push all records; gives (records, seconds) of each request."""
    rates = []
    while batch := list(itertools.islice(source, size)):
        sent = time.monotonic()
        client.chunk_push_many(VOLUME, batch)
        rates.append((len(batch), time.monotonic() - sent))
    return rates


def print_rate(title: str, rates: list[tuple[int, float]]) -> None:
    """Records per second while requests were waited for."""
    rate = sum(count for count, _ in rates) / max(1e-9, sum(seconds for _, seconds in rates))
    print(f"{title:<27}{rate:>12,.0f} /s", flush=True)


def singles(count: int) -> None:
    """Single calls of 32 threads, which the client groups."""
    client = _BatchingClient({"namespace": "BENCH"}, endpoint="127.0.0.1:1")
    found = list(records(count, first=2**40))

    def work(first: int) -> None:
        for record in found[first::32]:
            ids = (record["container_id"], record["content_id"], record["chunk_id"])
            client.chunk_push(VOLUME, *ids, mtime=record["mtime"], when=record["when"])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(32)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"single pushes, 32 threads  {count / (time.monotonic() - begin):>12,.0f} /s")


def print_memory(pid: int, home: Path, count: int) -> None:
    """Memory of the service, and size of its files."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    anonymous, mapped = (int(status[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile"))
    size = sum(path.stat().st_blocks * 512 for path in (home / "db").rglob("*"))
    print(f"memory                     {anonymous:>12,.1f} MiB of its own, {mapped:,.0f} MiB of mapped files")
    print(f"size on disk               {size / 2**20:>12,.1f} MiB, {size / max(1, count):,.0f} bytes per record")


def cpu_s(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
