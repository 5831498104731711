# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Tools that the tests share: waiting for conditions, a queue of events, starting clusters."""

import json
import os
import random
import socket
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ACCOUNT = "test_account"
CHUNK_SIZE = 2**20


# Sockets that keep ports of servers that were stopped, until the tests are over.
_held = []


def eventually(condition, timeout_s=20.0, what="condition"):
    """Wait until ``condition()`` gives something true, and return it."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what}: not reached within {timeout_s} s"
        time.sleep(0.02)


def chosen_seed():
    """What the random tests draw from: the same in each run, so that a red one is the work of a change.

    ``OIO_CHAOS_SEED=random`` looks for new misfortunes (``make chaos``), a number repeats a run.
    """
    seed = os.environ.get("OIO_CHAOS_SEED", "1")
    return str(random.randrange(10**6)) if seed == "random" else seed


def held_port():
    """A socket that keeps a port of loopback, and its number: nobody listens there, nobody else is given it.

    A server that sets SO_REUSEADDR can be started on it while the socket is still open.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


def stop_for_good(server):
    """Stop a server, and keep its port: a server of another test that is given it would answer in its place."""
    host, port = server.addresses[0]
    server.stop(0)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    _held.append(sock)


class MemoryQueue:
    """An event queue in memory, for services under test."""

    def __init__(self):
        self.events = []
        self._arrived = threading.Condition()

    def put_many(self, events, timeout_s=None, keys=None):
        """Take events, as the outbox gives them."""
        with self._arrived:
            self.events += [json.loads(event) for event in events]
            self._arrived.notify_all()

    def wait(self, condition):
        """Wait until the list of events fits, and return it. A number: until there are as many."""
        enough = condition if callable(condition) else lambda events: len(events) >= condition
        with self._arrived:
            assert self._arrived.wait_for(lambda: enough(self.events), 5), self.events
            return self.events


def start_cluster(home, namespace, **fields):
    """Start a cluster of its own, whatever else runs on the machine."""
    from oio.sandbox import Sandbox

    fields.setdefault("prepare_directories", False)
    sandbox = Sandbox(str(home), namespace=namespace, base_port=20000, **fields)
    try:
        sandbox.start()
    except BaseException:
        sandbox.stop()
        raise
    return sandbox
