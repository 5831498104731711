# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Updates of containers per second: ``python -m tools.benchmark.accounts``.

One real Redis, one account service with one worker, clients in this process. Updates come one by one and in
batches, from one and from several clients, with the append-only file of Redis synced every second and before
every answer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from oio.account.client import AccountClient
from oio.common.redis_server import find_redis_server

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS = 1000
START_MAX_S = 10.0


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def process(words: list[str], port: int, log: Path) -> Iterator[None]:
    """A program that listens on a port."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(log, "wb") as stream:
        running = subprocess.Popen(words, stdout=stream, stderr=stream, env=environment)
    try:
        deadline = time.monotonic() + START_MAX_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if running.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{words[0]} does not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(START_MAX_S)


@contextlib.contextmanager
def service(directory: Path, appendfsync: str) -> Iterator[str]:
    """An account service on a Redis of its own; gives its address."""
    program = find_redis_server()
    if program is None:
        raise SystemExit("no Redis server on this machine")
    store, port = free_port(), free_port()
    redis_words = [
        program, "--port", str(store), "--bind", "127.0.0.1", "--dir", str(directory), "--save", "",
        "--appendonly", "yes", "--appendfsync", appendfsync,
    ]  # fmt: skip
    conf = directory / "account.conf"
    conf.write_text(
        f"[account-server]\nbind_port = {port}\nredis_host = 127.0.0.1:{store}\nworkers = 1\nlog_level = WARNING\n"
    )
    words = [sys.executable, str(ROOT / "bin" / "oio-account-server"), str(conf)]
    with process(redis_words, store, directory / "redis.log"), process(words, port, directory / "account.log"):
        yield f"127.0.0.1:{port}"


def measure(address: str, clients: int, batch: int, seconds: float) -> tuple[float, float]:
    """Updates per second, and the median latency of a request in milliseconds."""
    latencies: list[float] = []
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        client = AccountClient({"namespace": "BENCH"}, endpoint=address, proxy_endpoint="127.0.0.1:1")
        send = sender(client, number, batch)
        mine = []
        while time.monotonic() < end:
            begin = time.perf_counter()
            send()
            mine.append(time.perf_counter() - begin)
        latencies.extend(mine)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latencies.sort()
    return len(latencies) * max(1, batch) / seconds, latencies[len(latencies) // 2] * 1e3


def sender(client: AccountClient, number: int, batch: int) -> Callable[[], object]:
    """What sends one request: always news, of containers of its own, in one bucket."""
    sent = 0

    def state() -> dict[str, object]:
        nonlocal sent
        sent += 1
        return {"mtime": time.time(), "objects": sent, "bytes": 7 * sent, "bucket": "bucket"}

    def one() -> object:
        return client.container_update("bench", f"c-{number}-{sent % CONTAINERS}", state())

    def many() -> object:
        first = sent
        told = [
            {"account": "bench", "name": f"c-{number}-{(first + item) % CONTAINERS}", **state()}
            for item in range(batch)
        ]
        return client.container_update_many(told)

    return many if batch else one


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each measure")
    options = parser.parse_args()
    print("appendfsync  clients  batch  updates/s  p50 of a request (ms)")
    for appendfsync in ("everysec", "always"):
        with tempfile.TemporaryDirectory() as directory, service(Path(directory), appendfsync) as address:
            for clients, batch in ((1, 0), (8, 0), (1, 100), (4, 100)):
                rate, median_ms = measure(address, clients, batch, options.seconds)
                print(f"{appendfsync:11}  {clients:7}  {batch or 1:5}  {rate:9.0f}  {median_ms:8.2f}", flush=True)


if __name__ == "__main__":
    main()
