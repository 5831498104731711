# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The single connections that older programs import."""

import socket
import ssl
import subprocess
import sys
import threading

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


@pytest.fixture
def tls_peer(tmp_path):
    """Answers one request through TLS, with a certificate that nobody trusts."""
    pair = [str(tmp_path / "key"), str(tmp_path / "cert")]
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=nobody"
    done = subprocess.run(
        [*command.split(), "-keyout", pair[0], "-out", pair[1]], capture_output=True, check=False, timeout=60
    )
    if done.returncode:
        pytest.skip("openssl cannot make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair[1], pair[0])
    listener = socket.create_server(("127.0.0.1", 0))
    received = []

    def serve():
        connection, _address = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secured:
            while b"\r\n\r\n" not in b"".join(received):
                received.append(secured.recv(4096))
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield "{}:{}".format(*listener.getsockname()), received
    thread.join(30)
    listener.close()


def test_certificates_are_not_verified(tls_peer):
    address, received = tls_peer
    connection = http_connect(address, "GET", "p", {"a": True}, scheme="https")
    assert isinstance(connection, CustomHttpsConnection)
    connection.set_cork()
    connection.set_cork(False)
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"ok")
    assert b"GET /p HTTP/1.1" in received[0] and b"a: True" in received[0]
    connection.close()
