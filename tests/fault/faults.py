# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Tools of the fault tests: finding chunks, stopping services, writers that account for what was acknowledged."""

import contextlib
import hashlib
import os
import random
import threading
import time
from pathlib import Path

import pytest
from support import ACCOUNT, eventually

from oio.common.exceptions import NoSuchObject, OioException
from oio.event.client import EventClient
from oio.sandbox import SandboxError, subnet
from oio.sandbox.event_conf import queue_urls


def read(api, container, name):
    """All the bytes of an object."""
    _metadata, stream = api.object_fetch(ACCOUNT, container, name)
    return b"".join(stream)


def chunk_path(broken, chunk):
    """File of a chunk, from its description."""
    _http, _slashes, server, chunk_id = chunk["url"].split("/")
    service = next(s for s in broken.services("rawx") if server in (s.service_id, s.addr))
    return Path(service.volume, chunk_id[:3], chunk_id)


def servers_of(chunks):
    """Names of the services that hold chunks."""
    return [chunk["url"].split("/")[2] for chunk in chunks]


@contextlib.contextmanager
def stopped(broken, *names):
    """Services that are down meanwhile."""
    broken.stop(*names)
    try:
        yield
    finally:
        broken.start(*names)


def why_not_isolated():
    """Empty when this machine can isolate hosts."""
    try:
        subnet.check_means()
        subnet.run(["ip", "netns", "add", name := f"oio-test-{os.getpid()}"])
    except SandboxError as err:
        return str(err)
    subnet.run(["ip", "netns", "delete", name])
    return ""


def kill_one(sandbox, name):
    """Kill a service, which may just come back from a crash, and wait until it is started again."""
    pid = eventually(lambda: sandbox.pids().get(name), what=f"{name} runs")
    sandbox.kill(name)
    sandbox.wait_restarted(name, pid)


class Hurry:
    """Has events come now that failed while something was down: they wait longer each time, up to minutes.

    Called again and again, it does so now and then.

    :param given_up: may the agents have given up some of them?
    """

    #: Events that are hurried more often may reach the number of deliveries after which an agent gives up.
    PERIOD_S = 5.0

    def __init__(self, sandbox, given_up=False):
        self._given_up = given_up
        self._queues = [EventClient({"event-agent": url}) for url in queue_urls(sandbox.layout)]
        self._last_s = -self.PERIOD_S

    def __call__(self):
        """:raises OioException: when a queue is not back yet."""
        if time.monotonic() - self._last_s < self.PERIOD_S:
            return
        for queue in self._queues:
            assert self._given_up or queue.stats()["current-jobs-buried"] == 0, "an event was given up"
            queue.exhume()
        self._last_s = time.monotonic()


class Background:
    """Threads that work during a ``with``, until ``_stop`` is set at its end."""

    def __init__(self, work, items):
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, args=(item,)) for item in items]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a thread hangs"


class Writers(Background):
    """Threads that upload objects one after the other and remember what was acknowledged.

    ``acknowledged`` maps names to checksums; ``unsure`` holds names whose upload ended with an error: the
    object may be there (the answer was lost), but then it must be whole.
    """

    def __init__(self, broken, container, policy, count=3):
        super().__init__(self._write, range(count))
        self.broken = broken
        self.container = container
        self.policy = policy
        self.acknowledged = {}
        self.unsure = {}

    def _write(self, number):
        from oio import ObjectStorageApi

        api = ObjectStorageApi(self.broken.namespace, endpoint=self.broken.proxy, read_timeout=10.0)
        rng = random.Random(number)
        serial = 0
        while not self._stop.is_set():
            serial += 1
            name = f"w{number}-{serial:05d}"
            data = rng.randbytes(rng.choice([10, 4096, 200_000, 1_500_000]))
            checksum = hashlib.md5(data).hexdigest()
            try:
                api.object_create(ACCOUNT, self.container, obj_name=name, data=data, policy=self.policy)
            except OioException:
                self.unsure[name] = (checksum, len(data))
                time.sleep(0.02)
            else:
                self.acknowledged[name] = (checksum, len(data))

    def progress(self, more):
        """Wait until so many more uploads were acknowledged."""
        target = len(self.acknowledged) + more
        deadline = time.monotonic() + 60
        while len(self.acknowledged) < target:
            assert time.monotonic() < deadline, f"uploads do not go on: {len(self.acknowledged)}/{target}"
            time.sleep(0.02)

    def verify(self, api):
        """Everything acknowledged is there, whole; nothing else is visible; counters are exact."""
        for name, (checksum, _size) in self.acknowledged.items():
            assert hashlib.md5(read(api, self.container, name)).hexdigest() == checksum, name
        listed = {}
        marker = None
        while True:
            page = api.object_list(ACCOUNT, self.container, marker=marker)
            listed.update((entry["name"], entry["size"]) for entry in page["objects"])
            if not page["truncated"]:
                break
            marker = page["next_marker"]
        assert set(self.acknowledged) <= set(listed)
        for name in set(listed) - set(self.acknowledged):
            checksum, size = self.unsure[name]
            assert listed[name] == size
            assert hashlib.md5(read(api, self.container, name)).hexdigest() == checksum
        for name in set(self.unsure) - set(listed):
            with pytest.raises(NoSuchObject):
                read(api, self.container, name)
        system = api.container_get_properties(ACCOUNT, self.container)["system"]
        assert int(system["sys.m2.objects"]) == len(listed)
        assert int(system["sys.m2.usage"]) == sum(listed.values())
