# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The single connections that older programs import."""

import socket
import subprocess
import sys

import pytest

from oio.common import http as http_module
from oio.common.http_eventlet import CustomHttpConnection, CustomHttpsConnection, http_connect
from oio.http.server import Response, Server


@pytest.fixture
def server():
    """Answers with the target, the headers and the body of the request."""

    def handle(request):
        body = f"{request.target}|{request.headers.get('x-list')}|{request.headers.get('x-n')}|".encode()
        return Response(200, body + request.read())

    server = Server(handle, [("127.0.0.1", 0)])
    server.start()
    yield "{}:{}".format(*server.addresses[0][:2])
    server.stop()


@pytest.mark.parametrize("path", ["a é", "a é".encode(), "/a é"])
def test_the_head_is_sent_at_once_and_the_body_is_the_callers(server, path):
    headers = {"X-List": ["a", "b"], "X-N": 3, "Content-Length": 4}
    connection = http_connect(server, "PUT", path, headers, query_string="k=v")
    assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    connection.set_cork()
    connection.send(b"body")
    connection.set_cork(False)
    response = connection.getresponse()
    assert response.status == 200
    assert response.read() == b"/a%20%C3%A9?k=v|a, b|3|body"
    response.close()
    connection.close()


def test_closing_a_response_that_was_not_read_ends_the_connection(server):
    connection = http_connect(server, "GET", "/")
    response = connection.getresponse()
    response.close()
    assert connection.sock.recv(1) == b""
    response.force_close()
    connection.close()


def test_names():
    assert http_module.CustomHttpConnection is CustomHttpConnection
    assert not hasattr(CustomHttpsConnection, "set_nodelay")
    with pytest.raises(AttributeError):
        _ = http_module.NoSuchName


def test_no_eventlet_is_loaded():
    code = "import sys, oio.common.http_eventlet; assert 'eventlet' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
