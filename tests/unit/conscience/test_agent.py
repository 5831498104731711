# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The agent against real sockets: services that answer, fail and hang, and a proxy that listens to it."""

import logging
import socket
import threading
import time

import msgspec
import pytest
import yaml
from support import eventually, held_port

from oio.common.exceptions import ConfigurationException
from oio.conscience.agent import Agent
from oio.conscience.agent_settings import load_agent_settings
from oio.conscience.checkers import Verdict, make_checker
from oio.conscience.hoststats import CpuSampler, DiskSampler, free_ratio
from oio.conscience.plugins import AgentContext
from oio.conscience.stats import make_collector, parse_json, parse_lines
from oio.http.server import Response, Server

LOGGER = logging.getLogger("test")
DEADLINE_S = 10


class FakeService:
    """Answers every path with what `pages` says, else 404; remembers what was posted."""

    def __init__(self):
        self.pages = {}
        self.posted = []
        self.headers = {}
        self.refused = ""
        self.server = Server(self.handle, [("127.0.0.1", 0)])
        self.server.start()
        self.port = self.server.addresses[0][1]

    def handle(self, request):
        self.headers[request.target] = request.headers
        if request.method == "POST" and request.target not in self.pages:
            body = msgspec.json.decode(request.read_all(1 << 20))
            if self.refused and any(item["type"] == self.refused for item in body):
                return Response(404, b'{"status":453}')
            self.posted.append((request.target, body))
            return Response(204)
        if request.target not in self.pages:
            return Response(404)
        status, text = self.pages[request.target]
        return Response(status, text)

    def registered(self, name):
        """Tags of the last registration of a type."""
        for _, batch in reversed(self.posted):
            for item in batch:
                if item["type"] == name:
                    return item
        return None


@pytest.fixture
def fake():
    services = []

    def make():
        services.append(FakeService())
        return services[-1]

    yield make
    for service in services:
        service.server.stop(0.1)


@pytest.fixture
def context(fake):
    proxy = fake()
    context = AgentContext("NS", f"127.0.0.1:{proxy.port}", {})
    context.fake_proxy = proxy
    yield context
    context.close()


@pytest.fixture
def run_agent(tmp_path):
    agents = []

    def run(proxy, services, **options):
        path = tmp_path / "agent.yml"
        conf = {"namespace": "NS", "check_interval": 0.05, "services": services, **options}
        path.write_text(yaml.safe_dump(conf))
        agent = Agent(load_agent_settings(str(path), LOGGER), f"127.0.0.1:{proxy.port}", LOGGER)
        agents.append(agent)
        agent.start()
        return agent

    yield run
    for agent in agents:
        agent.stop(1)


def describe(port, kind, checks, stats=(), **more):
    return {"host": "127.0.0.1", "port": port, "type": kind, "checks": checks, "stats": list(stats), **more}


@pytest.fixture
def closed_port():
    held, port = held_port()
    with held:
        yield port


@pytest.mark.parametrize(
    ("rise", "fall", "results", "expected"),
    [
        (1, 1, "10101", "10101"),
        (2, 1, "1011011", "1001001"),
        (1, 3, "100010001", "111011101"),
        (2, 2, "0110100", "0011110"),
        (3, 2, "0111010111", "0001111111"),
    ],
)
def test_rise_and_fall(rise, fall, results, expected):
    verdict = Verdict(rise, fall)
    got = "".join("01"[verdict.add(result == "1")] for result in results)
    assert got == expected


def test_checkers(context, fake, closed_port):
    service = fake()
    service.pages = {"/info": (200, b"x"), "/made": (201, b""), "/v1/ping": (204, b"")}
    dead = closed_port

    def check(kind, port=service.port, **more):
        conf = {"type": kind, "host": "127.0.0.1", "port": port, **more}
        return make_checker(context, conf, LOGGER).check()

    assert check("tcp") and not check("tcp", dead)
    assert check("http", uri="/info") and check("http", uri="info")
    assert not check("http", uri="/made") and not check("http", uri="/none")
    assert not check("http", dead, uri="/info")
    assert check("asn1") and not check("asn1", dead)
    assert service.headers["/info"]["x-oio-req-id"].startswith("chk-")
    with pytest.raises(KeyError):
        check("http")
    for bad in ({"rise": 0}, {"fall": 0}, {"timeout": "long"}, {"interval": "x"}):
        with pytest.raises(ValueError):
            check("tcp", **bad)
    with pytest.raises(ValueError):
        check("carrier-pigeon")


@pytest.mark.parametrize(("answer", "up"), [(b"pong", True), (b"", False)])
def test_the_ping_of_former_meta_services(context, answer, up):
    with socket.create_server(("127.0.0.1", 0)) as server:
        received = []

        def serve():
            for _ in range(2):
                peer, _ = server.accept()
                with peer:
                    received.append(peer.recv(64))
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        conf = {"type": "asn1", "host": "127.0.0.1", "port": server.getsockname()[1]}
        checker = make_checker(context, conf, LOGGER)
        assert [checker.check(), checker.check()] == [up, up]
        thread.join(DEADLINE_S)
    for frame in received:
        assert frame[:8] == b"\x00\x00\x00\x30\x30\x2e\x80\x20"
        assert int(frame[8:40], 16) and frame[40:] == b"\x81\x08REQ_PING\xa3\x00"
    assert received[0] != received[1]


def test_a_meta_service_that_speaks_http_is_asked_in_http(context, fake):
    service = fake()
    conf = {"type": "asn1", "host": "127.0.0.1", "port": service.port}
    checker = make_checker(context, conf, LOGGER)
    assert not checker.check(), "it answers, but it is not well"
    service.pages["/v1/ping"] = (204, b"")
    assert checker.check()
    service.pages["/v1/ping"] = (503, b"")
    assert not checker.check()


def test_a_check_may_be_rarer_than_the_cycle(context, fake):
    service = fake()
    service.pages["/a"] = service.pages["/b"] = (200, b"")
    where = {"type": "http", "host": "127.0.0.1", "port": service.port}
    rare = make_checker(context, {**where, "uri": "/a", "interval": 3600}, LOGGER)
    usual = make_checker(context, {**where, "uri": "/b"}, LOGGER)
    assert rare.check() and usual.check()
    service.pages.clear()
    assert rare.check() and not usual.check()


def test_only_the_fall_is_told(context, fake, caplog):
    service = fake()
    service.pages["/"] = (200, b"")
    conf = {"type": "http", "host": "127.0.0.1", "port": service.port, "uri": "/", "fall": 2, "rise": 2}
    checker = make_checker(context, conf, LOGGER)
    results = []
    for status in (200, 500, 500, 500, 200, 500, 200, 200, 500, 501):
        service.pages["/"] = (status, b"")
        results.append(checker.check())
    assert results == [True, True, False, False, False, False, False, True, True, False]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "status 500" in told[0] and "status 501" in told[1]


def test_a_silent_service_fails_in_time(context):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        conf = {"type": "http", "uri": "/", "host": "127.0.0.1", "timeout": 0.1}
        begin = time.monotonic()
        assert not make_checker(context, {**conf, "port": silent.getsockname()[1]}, LOGGER).check()
        assert time.monotonic() - begin < DEADLINE_S / 2


def test_collectors(context, fake, tmp_path, closed_port):
    service = fake()
    stat = b"counter req.time %d\ncounter req.hits %d\nconfig volume /v\nconfig service_id NS-rawx-1\n"
    service.pages = {
        "/stat": (200, stat % (1000, 10)),
        "/status": (200, b'{"opened_db_count":3,"uuid":"U"}'),
        "/v3.0/status": (200, b"gauge cache.dir.count = 7\ncounter x 1\n"),
    }
    context.fake_proxy.pages[f"/v3.0/forward/stats?id=127.0.0.1:{service.port}"] = (200, b"gauge g 1.5\n")

    def collector(kind, **more):
        conf = {"type": kind, "host": "127.0.0.1", "port": service.port, **more}
        return make_collector(context, conf, LOGGER)

    rawx = collector("rawx")
    assert rawx.get_stats() == {"tag.service_id": "NS-rawx-1"}
    service.pages["/stat"] = (200, stat % (3000, 14))
    stats = rawx.get_stats()
    assert stats["stat.total_avreqtime"] == 500
    assert stats["stat.total_reqpersec"] > 0
    assert rawx.get_stats()["stat.total_avreqtime"] == 1
    service.pages["/stat"] = (200, stat % (1, 1))
    assert "stat.total_avreqtime" not in rawx.get_stats()

    assert collector("http", path="/status", parser="json").get_stats() == {
        "stat.opened_db_count": 3,
        "tag.uuid": "U",
    }
    assert service.headers["/status"]["connection"] == "close"
    assert service.headers["/status"]["x-oio-req-id"].startswith("stat-")
    assert collector("oioproxy").get_stats()["stat.cache.dir.count"] == 7
    assert collector("meta").get_stats() == {"gauge g": 1.5, "stat.g": 1.5}
    assert 0 <= collector("system").get_stats()["stat.cpu"] <= 100
    volume = collector("volume", path=str(tmp_path)).get_stats()
    assert volume["tag.vol"] == str(tmp_path) and 0 <= volume["stat.space"] <= 100
    assert collector("volume", path="/does/not/exist").get_stats()["stat.space"] == 0
    assert collector("beanstalkd", port=closed_port).get_stats() == {}
    with pytest.raises(ValueError):
        collector("http", path="/none").get_stats()
    with pytest.raises(ValueError):
        collector("http", parser="xml")


def test_beanstalkd(context):
    reply = b"---\ncurrent-jobs-ready: 4\ncurrent-tubes: 2\nversion: x\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            peer, _ = server.accept()
            with peer:
                peer.recv(64)
                peer.sendall(b"OK %d\r\n%s\r\n" % (len(reply), reply))

        thread = threading.Thread(target=serve)
        thread.start()
        conf = {"type": "beanstalkd", "host": "127.0.0.1", "port": server.getsockname()[1]}
        assert make_collector(context, conf, LOGGER).get_stats() == {"stat.jobs_ready": 4, "stat.tubes": 2}
        thread.join(DEADLINE_S)


def test_parsers():
    assert parse_lines(b"a b 1\nc 1.5\nd text\ne\n\n") == {"a b": 1, "c": 1.5, "d": "text", "e": None}
    with pytest.raises(ValueError):
        parse_json(b"[1]")
    with pytest.raises(ValueError):
        parse_json(b"{")


def test_cpu_is_a_ratio_between_two_readings(tmp_path):
    now = [0.0]
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 10 80 0\ncpu0 1 1 1 1\n")
    sampler = CpuSampler(str(stat), clock=lambda: now[0])
    assert sampler.idle_ratio() == 1.0
    stat.write_text("cpu  40 0 40 120 0\n")
    assert sampler.idle_ratio() == 1.0
    now[0] = 1.0
    assert sampler.idle_ratio() == pytest.approx(0.4)


def test_disks_are_busy_by_their_ticks(tmp_path):
    device = tmp_path.stat().st_dev
    major, minor = device >> 8 & 0xFFF, device & 0xFF
    now = [0.0]
    stats = tmp_path / "diskstats"
    line = " {} {} sda 1 2 3 4 5 6 7 8 9 {} 11 12 13\n"
    stats.write_text(line.format(major, minor, 1000))
    sampler = DiskSampler(str(stats), clock=lambda: now[0])
    assert sampler.idle_ratio(str(tmp_path)) == 1.0
    now[0] = 1.0
    stats.write_text(line.format(major, minor, 1250))
    assert sampler.idle_ratio(str(tmp_path)) == pytest.approx(0.75)
    assert sampler.idle_ratio("/does/not/exist") == 1.0
    assert 0 <= free_ratio(str(tmp_path)) <= 1


def test_registers_up_and_down(fake, run_agent, tmp_path, closed_port):
    proxy, service = fake(), fake()
    service.pages["/info"] = (200, b"")
    checks = [{"type": "http", "uri": "/info"}]
    run_agent(
        proxy,
        {
            "one": describe(
                service.port, "rawx", checks, [{"type": "volume", "path": str(tmp_path)}, {"type": "system"}],
                location="a.b", slots=["rawx", "rawx-even"], service_id="ID", tls="127.0.0.1:1",
            ),
            "dead": describe(closed_port, "rdir", [{"type": "tcp"}]),
        },
    )  # fmt: skip
    eventually(lambda: proxy.registered("rawx") and proxy.registered("rdir"))
    item = proxy.registered("rawx")
    assert proxy.posted[0][0] == "/v3.0/NS/conscience/register"
    assert (item["ns"], item["addr"], item["score"]) == ("NS", f"127.0.0.1:{service.port}", 0)
    tags = item["tags"]
    assert (tags["tag.up"], tags["tag.loc"], tags["tag.slots"]) == (True, "a.b", "rawx,rawx-even")
    assert (tags["tag.service_id"], tags["tag.tls"]) == ("ID", "127.0.0.1:1")
    assert {"stat.space", "stat.io", "stat.cpu", "tag.vol"} <= tags.keys()
    assert proxy.registered("rdir")["tags"] == {"tag.up": False}
    service.pages["/info"] = (503, b"")
    eventually(lambda: proxy.registered("rawx")["tags"]["tag.up"] is False)
    assert "stat.space" in proxy.registered("rawx")["tags"]
    service.pages["/info"] = (200, b"")
    eventually(lambda: proxy.registered("rawx")["tags"]["tag.up"] is True)


def test_no_statistics_means_down(fake, run_agent):
    proxy, service = fake(), fake()
    run_agent(
        proxy, {"one": describe(service.port, "rdir", [{"type": "tcp"}], [{"type": "http", "path": "/status"}])}
    )
    eventually(lambda: proxy.registered("rdir"))
    assert proxy.registered("rdir")["tags"]["tag.up"] is False


def test_a_hanging_service_delays_nobody(fake, run_agent):
    proxy, service = fake(), fake()
    service.pages["/info"] = (200, b"")
    silent = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    services = {
        f"silent{n}": describe(
            sock.getsockname()[1], "rdir", [{"type": "http", "uri": "/", "timeout": 30}]
        )
        for n, sock in enumerate(silent)
    }
    services["live"] = describe(service.port, "rawx", [{"type": "http", "uri": "/info"}])
    agent = run_agent(proxy, services)
    eventually(lambda: sum(batch[0]["type"] == "rawx" for _, batch in proxy.posted) >= 3)
    assert proxy.registered("rdir") is None
    agent.stop(0.5)
    for sock in silent:
        sock.close()


def test_services_are_registered_together(fake, run_agent):
    proxy, service = fake(), fake()
    services = {
        f"s{n}": describe(service.port, "rawx", [{"type": "tcp"}], host=f"127.0.0.{n}") for n in range(1, 11)
    }
    run_agent(proxy, services, check_interval=0.3)
    eventually(lambda: len(proxy.posted) >= 3)
    assert max(len(batch) for _, batch in proxy.posted) == 10


def test_one_refused_service_does_not_keep_the_others_out(fake, run_agent, closed_port):
    proxy, service = fake(), fake()
    proxy.refused = "strange"
    run_agent(
        proxy,
        {
            "good": describe(service.port, "rawx", [{"type": "tcp"}]),
            "bad": describe(closed_port, "strange", [{"type": "tcp"}]),
        },
    )
    eventually(lambda: proxy.registered("rawx"))


def test_deregister_on_exit(fake, run_agent):
    proxy, service = fake(), fake()
    agent = run_agent(
        proxy,
        {"one": describe(service.port, "rawx", [{"type": "tcp"}], deregister_on_exit=True)},
        check_interval=60,
    )
    eventually(lambda: proxy.registered("rawx"))
    assert proxy.registered("rawx")["tags"]["tag.up"] is True
    agent.stop(1)
    assert proxy.registered("rawx")["tags"]["tag.up"] is False


# --- configuration -------------------------------------------------------------------------------


def test_configuration(tmp_path, caplog):
    watch = tmp_path / "watch"
    watch.mkdir()
    good = describe(1, "rawx", [{"type": "tcp"}], rise=3, check_interval=5)
    (watch / "a.yml").write_text(yaml.safe_dump(good))
    (watch / "b.json").write_text(msgspec.json.encode(describe(2, "rdir", [])).decode())
    (watch / "empty.yaml").write_text("")
    (watch / "ignored.txt").write_text("nonsense")
    (watch / "missing.yml").write_text("host: 127.0.0.1\nport: 9\n")
    (watch / "off.yml").write_text(yaml.safe_dump(describe(8, "rawx", [], enabled=False)))
    (watch / "moved.yml").write_text(yaml.safe_dump(describe(2, "rawx", [], enabled="no")))
    (watch / "unsure.yml").write_text(yaml.safe_dump(describe(10, "rawx", [], enabled="perhaps")))
    for name in ("twin1", "twin2"):
        (watch / f"{name}.yml").write_text(yaml.safe_dump(describe(7, "rawx", [])))
    path = tmp_path / "agent.yml"
    inline = {"c": describe(3, "x", [])}
    path.write_text(
        yaml.safe_dump({"namespace": "NS", "include_dir": str(watch), "rise": 2, "services": inline})
    )
    settings = load_agent_settings(str(path), LOGGER)
    services = {service.name: service for service in settings.services}
    assert sorted(services) == ["a", "b", "c"]
    assert (services["a"].rise, services["a"].fall, services["a"].interval_s) == (3, 1, 5)
    assert (services["b"].rise, services["b"].interval_s) == (2, 1)
    for word in ("twin1, twin2", "127.0.0.1:7", "missing", "empty.yaml", "unsure"):
        assert word in caplog.text


def test_what_is_no_tag_has_its_service_ignored(tmp_path, caplog):
    inline = {
        port: describe(port, "rawx", [], **{key: value})
        for port, (key, value) in enumerate(
            [("slots", {"a": "b"}), ("slots", 5), ("slots", [["a"]]), ("location", [1]), ("service_id", {"a": 1}),
             ("tls", []), ("location", "a.b"), ("slots", "a,b"), ("slots", None)], 1)
    }  # fmt: skip
    inline[1000] = inline["twin"] = describe(99, "rawx", [])
    path = tmp_path / "agent.yml"
    path.write_text(yaml.safe_dump({"namespace": "NS", "services": inline}, sort_keys=False))
    assert [service.name for service in load_agent_settings(str(path), LOGGER).services] == ["7", "8", "9"]
    for number in range(1, 7):
        assert f"service {number} is ignored" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "a: [", "{}", "namespace: NS\nrise: 0", "namespace: NS\nfall: x",
                                  "namespace: NS\ninclude_dir: /does/not/exist", "namespace: NS\ninclude_dir: 5",
                                  "namespace: NS\ninclude_dir: {a: b}", "namespace: NS\ninclude_dir: [5]",
                                  "namespace: NS\nservices: [1, 2]", "namespace: NS\nservices: x"])  # fmt: skip
def test_bad_configuration(tmp_path, text):
    path = tmp_path / "agent.yml"
    path.write_text(text)
    with pytest.raises(ConfigurationException):
        load_agent_settings(str(path), LOGGER)


def test_plugins_of_other_packages(context, fake, tmp_path, monkeypatch):
    (tmp_path / "oio_test_plugin.py").write_text(
        "from oio.conscience.checkers import Checker\nfrom oio.conscience.stats import Collector\n"
        "class Never(Checker):\n    def _check(self):\n        return False\n"
        "class Weather(Collector):\n    def get_stats(self):\n        return {'stat.rain': 1}\n"
    )
    info = tmp_path / "oio_test_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oio-test-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[oio.conscience.checker]\nnever = oio_test_plugin:Never\n"
        "[oio.conscience.stats]\nweather = oio_test_plugin:Weather\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    where = {"host": "127.0.0.1", "port": 1}
    assert not make_checker(context, {**where, "type": "never"}, LOGGER).check()
    assert make_collector(context, {**where, "type": "weather"}, LOGGER).get_stats() == {"stat.rain": 1}


def test_values_that_are_no_scalars(fake, run_agent):
    proxy, service = fake(), fake()
    service.pages["/status"] = (200, b'{"list":[1],"none":null,"map":{},"text":"x","number":1.5,"flag":true}')
    stats = [{"type": "http", "path": "/status", "parser": "json"}]
    run_agent(proxy, {"one": describe(service.port, "rdir", [], stats)})
    eventually(lambda: proxy.registered("rdir"))
    assert proxy.registered("rdir")["tags"] == {
        "tag.up": True, "stat.list": False, "stat.none": False, "stat.map": False, "stat.text": "x",
        "stat.number": 1.5, "stat.flag": True,
    }  # fmt: skip


def test_included_files_of_several_directories(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, port in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.yml").write_text(yaml.safe_dump(describe(port, "rawx", [])))
        (tmp_path / name / "same.json").write_text(msgspec.json.encode(describe(port + 4, "x", [])).decode())
    path = tmp_path / "agent.yml"
    path.write_text(yaml.safe_dump({"namespace": "NS", "include_dir": f"~/one:{tmp_path}/two"}))
    ports = {service.name: service.port for service in load_agent_settings(str(path), LOGGER).services}
    assert ports == {"one": 1, "two": 2, "same": 6}
    assert "same is described again" in caplog.text
    (tmp_path / "two" / "list.yml").write_text("[1, 2]")
    with pytest.raises(ConfigurationException, match="a dictionary is expected"):
        load_agent_settings(str(path), LOGGER)


def test_bad_checks_are_left_out(fake, run_agent):
    proxy, service = fake(), fake()
    agent = run_agent(
        proxy,
        {
            "nouri": describe(1, "rawx", [{"type": "http"}]),
            "nocheck": describe(2, "rawx", [{"type": "smell"}]),
            "nostat": describe(3, "rawx", [], [{"type": "smell"}]),
            "good": describe(service.port, "rawx", [{"type": "tcp"}]),
        },
    )
    assert [watcher.settings.name for watcher in agent.watchers] == ["good"]
