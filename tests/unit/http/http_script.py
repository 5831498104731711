# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A server that does what a test tells it, byte for byte."""

import socket
import threading

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Script:
    """A server that plays one list of actions per connection, and keeps what it received.

    An action is bytes to send, None to receive a request head, or "close".
    """

    def __init__(self, *connections):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/p"
        self.host, self.port = self.listener.getsockname()
        self.received: list[bytes] = []
        self.step = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, args=(connections,), daemon=True)
        self.thread.start()

    def _run(self, connections):
        kept = []
        for actions in connections:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                break
            kept.append(sock)
            for action in actions:
                if action is None:
                    data = b""
                    while b"\r\n\r\n" not in data:
                        piece = sock.recv(65536)
                        if not piece:
                            break
                        data += piece
                    self.received.append(data)
                elif action == "close":
                    sock.close()
                elif action == "wait":
                    assert self.step.acquire(timeout=10)
                else:
                    sock.sendall(action)
        self.step.acquire(timeout=10)
        for sock in kept:
            sock.close()

    def end(self):
        self.step.release(10)
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listener.close()
