# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Applications of programs, under a real gunicorn, and the dispatch of their requests."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from support import ROOT

pytest.importorskip("gunicorn")
werkzeug = pytest.importorskip("werkzeug")

from werkzeug.exceptions import BadRequest, abort  # noqa: E402
from werkzeug.routing import Map, Rule  # noqa: E402
from werkzeug.test import Client  # noqa: E402
from werkzeug.wrappers import Response  # noqa: E402

from oio.common import wsgi  # noqa: E402
from oio.common.exceptions import ServiceBusy  # noqa: E402
from oio.common.utils import CPU_COUNT  # noqa: E402
from oio.common.wsgi import Application, ServiceLogger, WerkzeugApp, init_request_processor  # noqa: E402

CLOSE_S = 30
PROGRAM = """
import sys
from oio.common.wsgi import Application, ServiceLogger, init_request_processor

def create_app(conf):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode(), b" ", conf["greeting"].encode()]
    return app

app, conf, logger, name = init_request_processor(sys.argv[1], "my-service", create_app)
Application(app, conf, logger_class=ServiceLogger).run()
"""


# --- dispatch -------------------------------------------------------------------------------------


class Shop(WerkzeugApp):
    """Routes that succeed and fail in all ways."""

    def __init__(self, logger):
        rules = [
            Rule("/item/<name>", endpoint="item", methods=["GET", "PUT"]),
            Rule("/busy", endpoint="busy"),
            Rule("/broken", endpoint="broken"),
            Rule("/bad", endpoint="bad"),
            Rule("/own", endpoint="own"),
            Rule("/missing-method", endpoint="nothing"),
        ]
        super().__init__(Map(rules), logger)

    def on_item(self, req, name):
        return Response(f"{req.method} {name} {req.args.get('k')} {req.get_data(as_text=True)}")

    def on_busy(self, _req):
        raise ServiceBusy(message="tired")

    def on_broken(self, _req):
        raise KeyError("oops")

    def on_bad(self, _req):
        raise BadRequest("<b>no & \"no\"</b>")

    def on_own(self, _req):
        abort(Response("mine", status=418))


@pytest.fixture
def shop():
    logger = logging.getLogger("test-shop")
    return Client(Shop(logger))


def test_a_request_goes_to_the_method_of_its_route(shop):
    answer = shop.put("/item/a%20b?k=v", data=b"body")
    assert (answer.status_code, answer.text) == (200, "PUT a b v body")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/busy", 503, "Could not satisfy the request: tired (HTTP 503)"),
        ("/broken", 500, "Unmanaged error: 'oops'"),
        ("/bad", 400, "&lt;b&gt;no &amp; &quot;no&quot;&lt;/b&gt;"),
        ("/own", 418, "mine"),
    ],
)
def test_every_failure_has_its_answer(shop, path, status, text):
    answer = shop.get(path)
    assert (answer.status_code, answer.text) == (status, text)


def test_unknown_routes_and_methods(shop):
    answer = shop.get("/nowhere")
    assert answer.status_code == 404 and "not found on the server" in answer.text and "<" not in answer.text
    answer = shop.post("/item/a")
    assert answer.status_code == 405 and set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "PUT"}
    assert shop.get("/missing-method").status_code == 500


def test_a_failure_is_logged_with_its_traceback(shop, caplog):
    shop.get("/broken")
    assert "GET /broken failed" in caplog.text and "KeyError: 'oops'" in caplog.text


# --- configuration --------------------------------------------------------------------------------


def settings(conf, logger_class=None):
    return Application(lambda environ, start: [], conf, logger_class).cfg


def test_the_defaults(monkeypatch):
    monkeypatch.setattr(wsgi, "SUPPORTED_WORKERS", {"eventlet": "", "gthread": ""})
    monkeypatch.setattr(wsgi, "_usable_worker_class", lambda name: {"eventlet": "sync"}[name])
    cfg = settings({})
    assert cfg.bind == ["127.0.0.1:8000"] and cfg.workers == CPU_COUNT
    assert (cfg.backlog, cfg.worker_connections, cfg.keepalive, cfg.worker_class_str) == (2048, 1000, 30, "sync")


def test_the_values_of_the_configuration(tmp_path):
    conf = {
        "bind_addr": "127.0.0.2", "bind_port": "6001", "backlog": "10", "workers": "3", "worker_class": "sync",
        "worker_connections": "50", "syslog_prefix": "pre", "log_address": str(tmp_path),
        "access_log_format": "%(m)s", "proc_name": "me",
    }  # fmt: skip
    cfg = settings(conf)
    assert cfg.bind == ["127.0.0.2:6001"] and cfg.worker_class_str == "sync"
    assert (cfg.backlog, cfg.workers, cfg.worker_connections) == (10, 3, 50)
    assert (cfg.syslog, cfg.syslog_prefix, cfg.syslog_addr) == (True, "pre", f"unix://{tmp_path}")
    assert (cfg.access_log_format, cfg.proc_name) == ("%(m)s", "me")
    assert settings({"log_address": str(tmp_path / "absent")}).syslog is False
    assert settings({"log_address": str(tmp_path / "absent")}, ServiceLogger).logger_class is ServiceLogger


def test_threads_replace_workers_that_gunicorn_lacks(monkeypatch):
    monkeypatch.setattr(wsgi, "SUPPORTED_WORKERS", {"gthread": ""})
    cfg = settings({"worker_class": "eventlet", "threads": "5"})
    assert cfg.worker_class_str == "gthread" and cfg.threads == 5
    assert settings({}).threads == wsgi.FALLBACK_THREADS


# --- a real server --------------------------------------------------------------------------------


@pytest.fixture
def syslog(tmp_path):
    """Receives what is logged to syslog."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        receiver.settimeout(CLOSE_S)
        yield receiver


def next_line(syslog, text):
    """First line that holds a text, and those before it."""
    lines = []
    while not lines or text not in lines[-1]:
        lines.append(syslog.recv(65536).decode())
    return lines[-1], lines[:-1]


def test_a_service_answers_and_logs_until_it_is_stopped(tmp_path, syslog):
    conf = tmp_path / "my.conf"
    conf.write_text(
        f"[my-service]\nbind_port = 0\nworkers = 1\ngreeting = hello\nlog_address = {tmp_path}/log\n"
        "syslog_prefix = OIO,NS,my,1\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(conf)], stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        started, _ = next_line(syslog, "Listening at")
        # 16 * 8 + 6: LOCAL0, information.
        assert re.match(r"<134>OIO,NS,my,1: \d+ [0-9A-F]+ gunicorn\.error INFO Listening at", started)
        url = re.search(r"http://[\d.:]+", started)[0]
        for path in ("/status", "/a?b=c"):
            request = urllib.request.Request(url + path, headers={"X-oio-req-id": "REQ1"})
            with urllib.request.urlopen(request, timeout=CLOSE_S) as answer:
                assert answer.read() == path.partition("?")[0].encode() + b" hello"
        line, before = next_line(syslog, "gunicorn.access")
        # 17 * 8 + 6: LOCAL1; the monitoring left no trace.
        assert line.startswith("<142>OIO,NS,my,1: ") and "127.0.0.1 GET 200 " in line
        assert "REQ1 /a?b=c" in line and not [one for one in before if "/status" in one]
        process.send_signal(signal.SIGTERM)
        assert process.wait(CLOSE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_processor_gets_its_section_and_logger(tmp_path):
    conf = tmp_path / "my.conf"
    conf.write_text("[my-service]\nk = v\n")
    app, options, logger, name = init_request_processor(str(conf), "my-service", dict, verbose=False, more=1)
    assert app == {"k": "v"} == options and name == logger.name == "my-service"
    given = logging.getLogger("given")
    assert init_request_processor(str(conf), "my-service", dict, logger=given)[2] is given
    with pytest.raises(SystemExit):
        init_request_processor(str(conf), "other", dict)


def test_addresses_of_syslog():
    assert wsgi._log_conf("unix:///dev/log#dgram") == {"log_address": "/dev/log"}
    assert wsgi._log_conf("udp://host:1514") == {"log_udp_host": "host", "log_udp_port": "1514"}


def test_the_extra_is_named_when_it_is_missing():
    code = "import sys; sys.modules['gunicorn.app.base'] = None; import oio.common.wsgi"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert "oio-sds[wsgi]" in done.stderr and done.returncode == 1


def test_nothing_green_is_loaded():
    code = "import sys, oio.common.wsgi; assert 'eventlet' not in sys.modules and 'gevent' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
