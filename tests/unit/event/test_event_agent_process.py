# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The real agent on real queues: signals, kills, exit codes, buried events, filters of third parties."""

import os
import signal
import time
from collections import Counter

import pytest
from agent_process import AgentProcess, install_package
from servers import BeanstalkdServer, RedisServer
from support import eventually

from oio.event.client import EventClient
from oio.event.worker.running import DEATHS_MAX

SERVERS = {"redis": RedisServer, "beanstalk": BeanstalkdServer}
QUICK = {"retry_delay_s": 0.05, "retry_delay_max_s": 0.1}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return install_package(tmp_path_factory.mktemp("acme"))


@pytest.fixture
def server(request, tmp_path):
    """A queue server; None for spools."""
    kind = request.param
    if kind == "spool":
        yield None
        return
    if SERVERS[kind].program is None:
        pytest.skip(f"no server for {kind} on this machine")
    with SERVERS[kind](tmp_path / kind) as server:
        yield server


@pytest.fixture
def make(server, tmp_path, package):
    agents = []

    def make(start=True, **options):
        home = tmp_path / f"agent-{len(agents)}"
        home.mkdir()
        url = server.url if server else f"spool://{tmp_path}/spools"
        agent = AgentProcess(home, url, package, **options)
        agents.append(agent)
        return agent.start() if start else agent

    yield make
    for agent in agents:
        agent.close()


every = pytest.mark.parametrize("server", ["redis", "beanstalk", "spool"], indirect=True)
one = pytest.mark.parametrize("server", ["redis"], indirect=True)


@every
def test_events_are_handled_once_by_filters_of_a_package(make, server):
    agent = make(workers=2 if server else 1)
    agent.put(*({"n": number} for number in range(100)))
    agent.put({}, kind="p")
    eventually(lambda: agent.outcome("handled") == 101)
    assert Counter(agent.seen()) == Counter(range(100))
    facts = agent.facts()
    assert {fact["pid"] for fact in facts} <= set(agent.children())
    assert all(fact["green"] for fact in facts)
    assert {"account_client", "pool", "rdir_client", "source"} <= set(facts[0]["shared"])
    assert {fact["option"] for fact in facts} == {"100%"}
    assert len(set(agent.home.joinpath("record.plain").read_text().split())) == 1
    assert agent.metric("event_agent_filter_calls_total", filter="recorder") == 100
    assert agent.metric("event_agent_filter_errors_total") == 0
    assert agent.metric("event_agent_lag_seconds_max") < 60
    eventually(lambda: agent.metric("event_agent_queue", state="ready") == 0)
    assert agent.stop() == 0
    with agent.source() as source:
        assert source.reserve(0.2) is None


@every
def test_a_failed_event_is_tried_again_and_buried_at_last(make, server):
    agent = make(**QUICK, max_attempts=3)
    agent.put({"n": 1, "do": "retry"}, {"n": 2})
    eventually(lambda: agent.outcome("buried") == 1)
    assert Counter(agent.seen()) == {1: 3, 2: 1}
    assert agent.outcome("retry") == agent.metric("event_agent_retries_total") == 2
    assert "given up after 3 deliveries" in agent.log.read_text()
    # Exhumed, it has as many deliveries again.
    if server is None:
        agent.stop()
    assert EventClient({"namespace": "NS", "event-agent": agent.url}).exhume() == 1
    if server is None:
        agent.start()
    eventually(lambda: Counter(agent.seen())[1] == 6)
    eventually(lambda: agent.log.read_text().count("given up after 3 deliveries") == 2)
    if server is not None:
        with agent.source() as source:
            eventually(lambda: source.stats().buried == 1)


@every
def test_buried_events_are_exhumed(make, server, tmp_path):
    agent = make(**QUICK)
    agent.put(*({"n": number, "do": "bury", "go": str(agent.go)} for number in range(5)))
    eventually(lambda: agent.outcome("buried") == 5)
    agent.go.touch()
    if server is None:
        # The base of a spool belongs to its reader.
        agent.stop()
    client = EventClient({"namespace": "NS", "event-agent": agent.url})
    assert client.exhume(limit=2) == 2
    assert client.exhume() == 3
    if server is None:
        agent.start()
    eventually(lambda: agent.outcome("handled") == 5)
    assert Counter(agent.seen()) == Counter([*range(5)] * 2)


@every
def test_a_killed_worker_loses_nothing(make, server):
    """And what it had comes back at once: its time to run is two minutes."""
    agent = make()
    agent.put({"n": 1, "do": "wait", "go": str(agent.go)}, *({"n": number} for number in range(2, 20)))
    eventually(lambda: len(agent.seen()) == 19)
    (worker,) = agent.children()
    os.kill(worker, signal.SIGKILL)
    agent.go.touch()
    eventually(lambda: Counter(agent.seen())[1] == 2, what="the event of the dead comes again")
    eventually(lambda: agent.metric("event_agent_restarts_total") == 1)
    (other,) = agent.children()
    assert other != worker
    assert agent.stop() == 0
    assert set(agent.seen()) == set(range(1, 20))


@every
def test_what_a_killed_agent_had_comes_back_to_the_next(make, server):
    agent = make()
    agent.put({"n": 1, "do": "wait", "go": str(agent.go)}, *({"n": number} for number in range(2, 20)))
    eventually(lambda: len(agent.seen()) == 19)
    # The parent cannot start workers any more, and the worker cannot give anything back.
    (worker,) = agent.children()
    agent.process.send_signal(signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    agent.process.kill()
    agent.process.wait()
    agent.go.touch()
    agent.start()
    eventually(lambda: Counter(agent.seen())[1] == 2, what="the event of the dead comes again")
    assert agent.stop() == 0
    assert set(agent.seen()) == set(range(1, 20))


@every
def test_stop_gives_back_what_runs(make, server):
    agent = make(stop_grace_s=0.2)
    agent.put({"n": 1, "do": "wait", "go": str(agent.go)})
    eventually(lambda: agent.seen() == [1])
    begin = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - begin < 3
    # At once, although its time to run is two minutes.
    with agent.source() as source:
        job = source.reserve(2.0)
        assert b'"n": 1' in job.body
        source.release(job)


@one
def test_stop_lets_events_end(make, server):
    agent = make()
    agent.put({"n": 1, "do": "wait", "go": str(agent.go)})
    eventually(lambda: agent.seen() == [1])
    agent.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    agent.go.touch()
    assert agent.process.wait(10) == 0
    with agent.source() as source:
        assert source.stats().ready == source.stats().reserved == 0


@one
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_leave_at_once(make, server, number):
    agent = make(stop_grace_s=60)
    agent.put({"n": 1, "do": "wait", "go": str(agent.go)})
    eventually(lambda: agent.seen() == [1])
    begin = time.monotonic()
    assert agent.stop(number) == 0
    assert time.monotonic() - begin < 3


@one
def test_workers_end_with_their_parent(make, server):
    agent = make(workers=2, stop_grace_s=0.2)
    workers = agent.children()
    assert len(workers) == 2
    agent.process.kill()
    agent.process.wait()
    eventually(lambda: not any(os.path.exists(f"/proc/{worker}/cmdline") for worker in workers), 10)


@one
def test_handlers_are_read_again(make, server):
    agent = make()
    agent.put({}, kind="new")
    eventually(lambda: agent.outcome("ignored") == 1)
    agent.handlers.write_text(agent.handlers.read_text() + "[handler:new]\npipeline = recorder\n")
    agent.process.send_signal(signal.SIGHUP)
    eventually(lambda: "read again" in agent.log.read_text())
    agent.put({"n": 1}, kind="new")
    eventually(lambda: agent.seen() == [1])
    agent.handlers.write_text("[handler:new]\npipeline = missing\n")
    agent.process.send_signal(signal.SIGHUP)
    eventually(lambda: "the handlers stay as they are" in agent.log.read_text())
    agent.put({"n": 2}, kind="new")
    eventually(lambda: agent.seen() == [1, 2])


@pytest.mark.parametrize("server", ["redis", "beanstalk"], indirect=True)
def test_a_queue_server_that_dies_is_waited_for(make, server):
    agent = make(ttr_s=1)
    agent.put({"n": 1})
    eventually(lambda: agent.seen() == [1])
    server.kill()
    eventually(lambda: "lost" in agent.log.read_text())
    server.start()
    agent.put({"n": 2})
    eventually(lambda: 2 in agent.seen())
    eventually(lambda: "is back" in agent.log.read_text())
    assert agent.stop() == 0


@one
def test_an_event_that_kills_its_workers_is_buried_at_last(make, server):
    agent = make(workers=1, concurrency=2, ttr_s=1)
    agent.put({"n": 0, "do": "exit"}, *({"n": number} for number in range(1, 30)))
    eventually(lambda: agent.outcome("buried") == 1, 40)
    assert set(agent.seen()) == set(range(30))
    assert agent.seen().count(0) == DEATHS_MAX
    assert "workers died" in agent.log.read_text()
    assert agent.stop() == 0


@one
def test_exit_codes(make, server, tmp_path):
    agent = make(start=False)
    done = agent.run("-v")
    assert done.returncode == 1 and "usage: oio-event-agent" in done.stderr
    for arguments in (["--unknown", "x"], ["a", "b"]):
        assert agent.run(*arguments).returncode == 2
    done = agent.run(str(tmp_path / "missing"))
    assert done.returncode == 1 and "oio-event-agent" in done.stderr
    other = tmp_path / "other.conf"
    other.write_text("[other]\n")
    done = agent.run(str(other))
    assert done.returncode == 1 and "[event-agent]" in done.stderr
    user = make(start=False, user="nobody-by-that-name")
    done = user.run()
    assert done.returncode == 1 and "nobody-by-that-name" in done.stderr
    for text in ("[handler:x]\npipeline = a\n", "[handler:x]\npipeline = a\n[filter:a]\nuse = egg:nobody#x\n"):
        agent.handlers.write_text(text)
        done = agent.run()
        assert done.returncode == 3 and "Traceback" not in done.stderr and "handlers.conf" in done.stderr
    agent.handlers.unlink()
    assert agent.run().returncode == 3
