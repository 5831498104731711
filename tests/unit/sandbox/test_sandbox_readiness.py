# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""When a service counts as ready: what the conscience knows of it must be of now."""

import os
import time

import pytest

from oio.conscience.messages import NamespaceInfo, Service, Snapshot
from oio.sandbox import Options, Sandbox
from oio.sandbox.readiness import Readiness


class Supervised:
    """All services, of which some run."""

    def __init__(self, **pids):
        self.pids = pids

    def states(self):
        return {f"DEMO-{name.replace('_', '-')}-1": {"pid": pid} for name, pid in self.pids.items()}


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """A wait for one rawx, and the tags with which the conscience knows it."""
    found = Sandbox(str(tmp_path / "home"), Options(namespace="DEMO", rawx=1, base_port=20000)).init()
    (rawx,) = found.of_type("rawx")
    tags = {"tag.up": True}

    class Registry:
        def snapshot(self):
            known = Service(type="rawx", addr=rawx.addr, score=50, tags=dict(tags))
            namespace = NamespaceInfo(ns="DEMO")
            return Snapshot(generation=1, namespace=namespace, types=["rawx"], services={"rawx": [known]})

    waits = []

    def wait(**pids):
        waits.append(Readiness(found, Supervised(**pids), 1.0, lambda _text: None))
        monkeypatch.setattr(waits[-1], "_registry", Registry())
        waits[-1]._answered[rawx.name] = time.monotonic()
        return list(waits[-1]._missing_scores([rawx]).values())

    yield wait, tags
    for one in waits:
        one.close()


def test_a_score_of_the_time_before_the_restart_is_not_believed(ready):
    """The agent may have seen that the service was down meanwhile: that is told a moment later."""
    wait, tags = ready
    tags["stat.looked"] = time.monotonic() - 1
    (reason,) = wait(conscience_agent=os.getpid())
    assert "has not looked" in reason
    tags["stat.looked"] = time.monotonic() + 1
    assert wait(conscience_agent=os.getpid()) == []


def test_without_an_agent_that_looks_the_score_is_believed(ready):
    wait, tags = ready
    assert wait(conscience_agent=os.getpid()) == [], "an agent that does not tell when it looks"
    tags["stat.looked"] = time.monotonic() - 1
    assert wait() == []
    assert wait(rawx=os.getpid()) == []
