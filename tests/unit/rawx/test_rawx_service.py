# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Dispatch, information, counters, probe, logs, TLS, and the configuration file."""

import logging
import os
import socket
import ssl
import subprocess

import pytest
from rawx_harness import CHUNK, headers_for, read_reply, wait_for
from support import held_port

from oio.common.exceptions import ConfigurationException
from oio.rawx import config, main
from oio.rawx.config import RawxConfig
from oio.rawx.logs import LogHandler, LogWriter
from oio.rawx.probe import VolumeProbe, touch_volume
from oio.rawx.server import Rawx

MINIMAL = "listen 127.0.0.1:6201\nnamespace NS\ndocroot /tmp\n"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


# -- dispatch ----------------------------------------------------------------------------------


def stat_of(client, hits):
    """Text of /stat once that many requests were counted, which is after their answers."""
    texts = []

    def counted():
        texts.append(client.request("GET", "/stat").body.decode())
        found = dict(line.split()[1:] for line in texts[-1].splitlines() if "counter" in line)
        return int(found["req.hits"]) - int(found["req.hits.stat"]) >= hits

    wait_for(counted)
    return texts[-1]


def test_host_check(start):
    service = start(service_id="NS-rawx-1")
    client = service.client
    for host in ("NS-rawx-1", client.address, ""):
        if host:
            assert client.request("GET", "/info", host=host).status == 200
    for host in (f"localhost:{client.port}", "127.0.0.1", "ns-rawx-1"):
        reply = client.request("GET", "/info", host=host)
        assert (reply.status, reply.body) == (418, b"")
    assert "counter req.hits.info 2\n" in stat_of(client, 2)


@pytest.mark.parametrize("path", ["/", "/" + "A" * 23, "/" + "A" * 65, "/" + "G" * 64, "/info/x",
                                  f"/{CHUNK}/x", "/%00"])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_bad_paths(service, client, method, path):
    reply = client.request(method, path, body=b"")
    assert (reply.status, reply.body) == (400, b"")
    assert "counter req.hits 0\n" in client.request("GET", "/stat").body.decode()


def test_methods(client):
    for path in ("/info", "/stat", f"/{CHUNK}"):
        assert client.request("POST", path, body=b"abc").status == 405
    assert client.request("PUT", "/info", body=b"abc").status == 405
    assert client.request("DELETE", "/stat").status == 405
    assert client.request("PATCH", f"/{CHUNK}").status == 405
    assert "counter req.hits.other 6\n" in stat_of(client, 6)


def test_short_ids_and_slashes(client):
    short = "A" * 24
    assert client.request("PUT", f"//{short}", headers_for(chunk_id=None), body=b"x").status == 201
    assert client.request("GET", f"///{short}").body == b"x"
    assert client.request("GET", "//info").status == 200


def test_request_id(client):
    assert "x-oio-req-id" not in client.get().headers
    assert client.get(**{"X-oio-req-id": "A" * 70}).headers["x-oio-req-id"] == "A" * 63
    assert client.get(**{"X-trans-id": "TX"}).headers["x-oio-req-id"] == "TX"


def test_connection_close(client):
    assert client.get(Connection="close").headers["connection"] == "close"


def test_keepalive_off(start):
    client = start(http_keepalive=False).client
    assert client.put(b"x").headers["connection"] == "close"


def test_error_header_in_verbose_mode(start):
    client = start(verbose=True).client
    assert "chunk-pos" in client.put(b"x", chunk_pos=None).headers["x-error"]
    assert "x-error" not in start().client.put(b"x", chunk_pos=None).headers


# -- information -------------------------------------------------------------------------------


def test_info(start):
    service = start(service_id="NS-rawx-1")
    reply = service.client.request("GET", "/info")
    assert reply.body.decode() == f"namespace NS\npath {service.root}\nservice_id NS-rawx-1\n"
    head = service.client.request("HEAD", "/info")
    assert (head.status, head.body) == (200, b"")
    assert start().client.request("GET", "/info").body.count(b"\n") == 2


def test_stat(service, client):
    client.put(b"hello")
    client.get()
    client.get("A" * 64)
    client.delete()
    client.request("GET", "/info")
    text = stat_of(client, 5)
    names = [line.split()[1] for line in text.splitlines() if line.startswith("counter")]
    kinds = ["put", "copy", "get", "head", "del", "stat", "info", "raw", "other"]
    assert names == [
        "req.time", *(f"req.time.{kind}" for kind in kinds),
        "req.hits", *(f"req.hits.{kind}" for kind in kinds),
        *(f"rep.hits.{name}" for name in ("2xx", "4xx", "5xx", "other", "403", "404")),
        "rep.bread", "rep.bwritten",
    ]  # fmt: skip
    for line in ("req.hits.copy 0", "req.hits.put 1", "req.hits.get 2", "req.hits.del 1",
                 "req.hits.head 0", "req.hits.info 1", "req.hits.raw 0", "rep.hits.5xx 0",
                 "rep.hits.4xx 1", "rep.hits.404 1", "rep.bread 5", "rep.bwritten 5"):  # fmt: skip
        assert f"counter {line}\n" in text
    assert text.endswith(f"config volume {service.root}\n")


# -- probe -------------------------------------------------------------------------------------


def test_probe(tmp_path):
    clock, failures = Clock(), []

    def check(root):
        touch_volume(root)
        if failures:
            raise OSError(5, "Input/output error")

    probe = VolumeProbe(str(tmp_path), check, clock)
    assert probe.healthy()
    probe.run_once()
    assert os.listdir(tmp_path) == []
    clock.now += 59
    assert probe.healthy()
    clock.now += 2
    assert not probe.healthy()
    probe.run_once()
    assert probe.healthy()
    failures.append(1)
    probe.run_once()
    assert not probe.healthy()
    failures.clear()
    probe.run_once()
    assert probe.healthy()


def test_a_broken_volume_answers_503_to_everything(start, tmp_path):
    def check(root):
        raise OSError(5, "Input/output error")

    probe = VolumeProbe(str(tmp_path), check)
    client = start(probe=probe).client
    assert client.request("GET", "/info").status == 200
    probe.run_once()
    replies = [client.request("GET", "/info"), client.request("GET", "/stat"), client.put(b"x")]
    assert [reply.status for reply in replies] == [503] * 3


# -- logs --------------------------------------------------------------------------------------


def test_access_log(start):
    lines = []
    writer = LogWriter([lambda priority, line: lines.append((priority, line))])
    service = start(log=writer)
    client = service.client
    client.put(b"hello", headers={"X-oio-req-id": "REQ"})
    client.get()
    client.request("GET", "/info")
    client.get("A" * 64)
    client.delete()
    stat_of(client, 5)
    logger = logging.getLogger("oio.rawx.test")
    handler = LogHandler(writer)
    logger.addHandler(handler)
    logger.error("broken\nbadly")
    logger.removeHandler(handler)
    service.close()
    writer.close()
    pid = os.getpid()
    texts = sorted((line.split() for _, line in lines if " access " in line), key=lambda f: f[6:8])
    assert [fields[6:8] for fields in texts] == [
        ["DELETE", "204"], ["GET", "200"], ["GET", "404"], ["PUT", "201"]]  # fmt: skip
    put = texts[3]
    assert put[:5] == [str(pid), "access", "INF", "-", client.address]
    assert put[9:] == ["0", "5", "-", "REQ", f"/{CHUNK}", "http"]
    assert texts[1][9:13] == ["5", "0", "-", "-"]
    assert {priority for priority, line in lines if " access " in line} == {17 * 8 + 6}
    assert (16 * 8 + 3, f"{pid} log ERR - broken#012badly") in lines


def test_access_log_options(start):
    lines = []
    writer = LogWriter([lambda priority, line: lines.append(line)])
    service = start(log=writer, log_access_get=False, log_access_put=False, log_access_delete=False)
    client = service.client
    client.put(b"hello")
    client.get()
    client.put(b"hello")
    client.delete()
    client.delete()
    stat_of(client, 5)
    writer.close()
    assert sorted(line.split()[6:8] for line in lines if " access " in line) == [
        ["DELETE", "404"], ["PUT", "409"]]  # fmt: skip


def test_metrics(client):
    client.put(b"hello")
    client.get()
    client.request("GET", "/" + "0" * 64)
    stat = stat_of(client, 3)
    reply = client.request("GET", "/metrics")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    lines = reply.body.decode().splitlines()
    for line in (
        'oio_rawx_requests_total{kind="put"} 1.0',
        'oio_rawx_requests_total{kind="get"} 2.0',
        'oio_rawx_replies_total{status="404"} 1.0',
        'oio_rawx_chunk_bytes_total{direction="received"} 5.0',
        'oio_rawx_chunk_bytes_total{direction="sent"} 5.0',
        "oio_rawx_volume_up 1.0",
    ):
        assert line in lines
    assert client.request("HEAD", "/metrics").status == 200
    assert client.request("PUT", "/metrics").status == 400
    assert "counter req.hits.other 0\n" in stat


# -- TLS ---------------------------------------------------------------------------------------


def test_tls(tmp_path, start):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=rawx"],
        check=True, capture_output=True,
    )  # fmt: skip
    held, port = held_port()
    address = f"127.0.0.1:{port}"
    service = start(tls_rawx_url=address, tls_cert_file=str(cert), tls_key_file=str(key))
    data = os.urandom(2 << 20)
    assert service.client.put(data).status == 201
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as raw:
        with context.wrap_socket(raw) as sock:
            sock.sendall(f"GET /{CHUNK} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
            reply = read_reply(sock)
    assert (reply.status, reply.body) == (200, data)
    held.close()
    assert f"url_tls {address}\n".encode() in service.client.request("GET", "/info").body


# -- configuration -----------------------------------------------------------------------------


def test_minimal_configuration():
    parsed = config.parse(MINIMAL)
    assert parsed == RawxConfig(listen="127.0.0.1:6201", namespace="NS", docroot="/tmp")
    assert (parsed.fsync, parsed.fsync_dir) == (True, True)


@pytest.mark.parametrize(("line", "expected"), [
    ('docroot "/srv/my disk"', "/srv/my disk"), ('docroot "/srv/x"  # comment', "/srv/x"),
    ('docroot /srv/x "y"', "/srv/x"), ('docroot "/srv/a"b"', '/srv/a"b'), ("docroot /srv/my disk", "/srv/my"),
])  # fmt: skip
def test_values_with_blanks_stand_between_quotes(line, expected):
    assert config.parse(f"{MINIMAL}{line}\n").docroot == expected


def test_configuration_syntax():
    parsed = config.parse(
        "Listen 1.2.3.4:1 junk\n#listen 9.9.9.9:9\ngrid_namespace A\nnamespace B\n"
        "grid_docroot\t/srv/\nunknown x\ngrid_hash_width 0x2\nhash_depth 010\nFSYNC off\n"
        "fsync Nope\ngrid_fsync_dir 0\ngrid_compress zlib\nbuffer_size 1\ntcp_keepalive KO\n"
        "fadvise_upload NoCache\nfadvise_download yes\nlog_access_get disabled\nPidFile x\n"
        "events maybe\ntimeout_idle 7\nchecksum smart\n"
    )
    assert (parsed.listen, parsed.namespace, parsed.docroot) == ("1.2.3.4:1", "B", "/srv")
    assert (parsed.hash_width, parsed.hash_depth) == (2, 8)
    assert (parsed.fsync, parsed.fsync_dir, parsed.compression) == (False, False, "zlib")
    assert (parsed.buffer_size, parsed.http_keepalive) == (32 * 1024, False)
    assert (parsed.fadvise_upload, parsed.fadvise_download) == ("nocache", "cache")
    assert (parsed.log_access_get, parsed.events, parsed.timeout_idle_s) == (False, True, 7)
    assert "tcp_keepalive" in parsed.warnings[0]
    assert "checksum has no effect" in parsed.warnings[1]


@pytest.mark.parametrize("text", [
    "", "listen 127.0.0.1:6201\nnamespace NS\n", "listen x\nnamespace NS\ndocroot /tmp\n",
    MINIMAL + "listen 127.0.0.1:0\n", MINIMAL + "docroot relative\n", MINIMAL + "hash_width x\n",
    MINIMAL + "hash_width 30\n", MINIMAL + "hash_width -1\n", MINIMAL + "timeout_idle 09\n",
    MINIMAL + "tls_rawx_url 127.0.0.1:1\n",
])  # fmt: skip
def test_wrong_configurations(text):
    with pytest.raises(ConfigurationException):
        config.parse(text)


def test_the_sample_is_valid_and_shows_defaults():
    sample = os.path.join(os.path.dirname(__file__), "../../../etc/rawx.conf-sample")
    parsed = config.load(sample)
    assert parsed.namespace == "OPENIO"
    with open(sample, encoding="utf-8") as stream:
        text = stream.read()
    shown = {line[1:].split()[0] for line in text.splitlines() if line[:1] == "#" and line[1:2].islower()}
    assert {"fsync", "compression", "event_queue", "timeout_idle", "tls_rawx_url"} <= shown


def test_unknown_compressions_are_refused(tmp_path):
    with pytest.raises(ConfigurationException, match="lz4"):
        Rawx(RawxConfig("127.0.0.1:0", "NS", str(tmp_path), compression="lz4"))


# -- command line ------------------------------------------------------------------------------


def test_a_volume_of_another_service_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("oio.rawx.logs.setup", lambda *_args: None)
    os.setxattr(tmp_path, "user.server.id", b"NS-rawx-2")
    conf = tmp_path / "rawx.conf"
    conf.write_text(f"{MINIMAL}docroot {tmp_path}\nservice_id NS-rawx-1\nevents off\n")
    assert main.main(["-f", str(conf)]) == 1
    assert "NS-rawx-2" in capsys.readouterr().err
    conf.write_text(f"{MINIMAL}docroot {tmp_path}/none\nevents off\n")
    assert main.main(["-f", str(conf)]) == 1
    conf.write_text("listen x\n")
    assert main.main(["-f", str(conf)]) == 1


@pytest.mark.parametrize("arguments", [[], ["-f"], ["-f", "x", "positional"], ["-z", "-f", "x"]])
def test_wrong_command_lines(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main.parse_arguments(arguments)
    assert caught.value.code
    capsys.readouterr()


def test_command_line():
    options = main.parse_arguments(["-s", "ID", "-v", "-D", "x", "-servicing", "-f", "conf"])
    assert (options.syslog, options.verbose, options.servicing, options.file) == ("ID", True, True, "conf")
