# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Real queue servers for tests: own port, own directory, killed and started again at will."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time

from support import held_port

from oio.common.redis_server import find_redis_server

START_S = 10.0


class QueueServer:
    """A server process that keeps its port and its data from one run to the next."""

    def __init__(self, directory):
        self.directory = str(directory)
        os.makedirs(self.directory, exist_ok=True)
        # While the socket is open nobody else gets the port, but a server can listen on it.
        self._held, self.port = held_port()
        self.process = None

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        for _ in range(5):
            with open(os.path.join(self.directory, "log"), "ab") as log:
                self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.directory)
            deadline = time.monotonic() + START_S
            while self.process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    if self.answers():
                        return self
                time.sleep(0.01)
            self.stop()
        raise AssertionError(f"{self.command()} does not start, see the log in {self.directory}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def ask(self, request):
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
            sock.sendall(request)
            return sock.recv(65536)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()
        self._held.close()


class RedisServer(QueueServer):
    """Redis, with a synchronous AOF."""

    program = find_redis_server()

    def __init__(self, directory, *options):
        super().__init__(directory)
        self.options = options

    @property
    def url(self):
        return f"redis://{self.address}/0"

    def command(self):
        return [
            self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory,
            "--appendonly", "yes", "--appendfsync", "always", "--save", "", *self.options,
        ]  # fmt: skip

    def answers(self):
        return self.ask(b"PING\r\n").startswith(b"+PONG")


class BeanstalkdServer(QueueServer):
    """beanstalkd, with a synchronous binlog."""

    program = shutil.which("beanstalkd")

    def __init__(self, directory, *options):
        super().__init__(directory)
        self.options = options

    @property
    def url(self):
        return f"beanstalk://{self.address}"

    def command(self):
        return [
            self.program, "-l", "127.0.0.1", "-p", str(self.port), "-b", self.directory, "-f", "0", *self.options,
        ]  # fmt: skip

    def answers(self):
        return self.ask(b"list-tubes\r\n").startswith(b"OK")
