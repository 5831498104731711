# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Copies of events for other programs, while agents and queues are killed: some come twice, none is missing."""

import contextlib
import http.server
import json
import os
import random
import shutil
import threading

import pytest
from faults import Hurry, Writers
from support import ACCOUNT, eventually, start_cluster

from oio import ObjectStorageApi
from oio.common.exceptions import OioException
from oio.event.source import SourceError, open_source
from oio.sandbox.event_conf import queue_urls

BOX = "told"
KILLS = 6
NEW, DELETED = "storage.content.new", "storage.content.deleted"
needs_beanstalkd = pytest.mark.skipif(shutil.which("beanstalkd") is None, reason="beanstalkd is not installed")


class Endpoint(http.server.ThreadingHTTPServer):
    """A web service that is told of objects; now and then it drops a connection, before or after it listened."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told = set()
        self.calls = 0
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, *_args):
        """A client that was killed is none of our business."""

    def close(self):
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        server.calls += 1
        if server.calls % 50 == 10:
            self.close_connection = True
            return
        server.told.add((event["eventType"], event["data"]["container"], event["data"]["name"]))
        if server.calls % 50 == 30:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args):
        """Say nothing."""


@pytest.fixture
def endpoint():
    server = Endpoint()
    yield server
    server.close()


@pytest.fixture(params=["redis", pytest.param("beanstalkd", marks=needs_beanstalkd)])
def queue_type(request):
    return request.param


@pytest.fixture
def cluster(queue_type, endpoint, tmp_path):
    """A cluster whose changes of objects are told to a web service, then copied to another tube."""
    queues = {"beanstalkd": 2} if queue_type == "beanstalkd" else {}
    sandbox = start_cluster(
        tmp_path, f"TOLD{os.getpid()}", rawx=3, preserve_events=True, webhook_enabled=True,
        webhook_endpoint=endpoint.url, **queues,
    )  # fmt: skip
    yield sandbox
    sandbox.destroy()


class Copies:
    """What came to the tube of the copies."""

    def __init__(self, url):
        self._url = url
        self.found = set()

    def take(self):
        try:
            with open_source(self._url, "oio-preserved") as source:
                while job := source.reserve(0.2):
                    event = json.loads(job.body)
                    url = event.get("url") or {}
                    self.found.add((event["event"], url.get("user"), url.get("path")))
                    source.delete(job)
        except SourceError:
            pass  # just killed
        return self.found


def test_no_copy_is_missing_after_kills(cluster, endpoint, queue_type):
    rng = random.Random(os.environ.get("OIO_CHAOS_SEED"))
    api = ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy)
    copies = Copies(queue_urls(cluster.layout)[0])

    def kill_one():
        victim = rng.choice(cluster.services("event-agent", queue_type))
        # The supervisor gives up what dies again and again before it has started.
        eventually(lambda: cluster.status(victim.name)[0]["state"] == "RUNNING", what=f"{victim.name} runs")
        pid = cluster.pids()[victim.name]
        cluster.kill(victim.name)
        cluster.wait_restarted(victim.name, pid)

    with Writers(cluster, BOX, "SINGLE") as writers:
        for _ in range(KILLS):
            writers.progress(rng.randrange(5, 30))
            kill_one()
    objects = sorted(writers.acknowledged)
    for number, name in enumerate(objects):
        if number % max(1, len(objects) // KILLS) == 1:
            kill_one()
        api.object_delete(ACCOUNT, BOX, name)
    expected = {(kind, BOX, name) for kind in (NEW, DELETED) for name in objects}
    missing = {}
    hurry = Hurry(cluster)

    def all_there():
        with contextlib.suppress(OioException):  # not back yet
            hurry()
        missing["told"] = expected - endpoint.told
        missing["copied"] = expected - copies.take()
        return not any(missing.values())

    eventually(all_there, 60, missing)
