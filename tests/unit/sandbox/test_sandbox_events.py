# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where the events of local clusters go, and what is done with each type."""

import configparser
import os

import pytest
import yaml

from oio.event.agent_settings import load_agent_settings
from oio.sandbox import Options, Sandbox, SandboxError, event_conf, generate, layout, queues

ALWAYS = {
    "storage.content.new": [],
    "storage.content.update": [],
    "storage.content.append": [],
    "storage.content.broken": ["content_rebuild"],
    "storage.content.deleted": ["content_cleaner"],
    "storage.content.drained": ["content_cleaner"],
    "storage.content.perfectible": ["logger", "content_improve"],
    "storage.container.new": ["account_update", "volume_index"],
    "storage.container.update": [],
    "storage.container.deleted": ["account_update"],
    "storage.container.state": ["account_update"],
    "storage.chunk.new": ["volume_index"],
    "storage.chunk.deleted": ["volume_index"],
    "storage.meta2.deleted": ["volume_index"],
    "account.services": ["account_update", "volume_index"],
}


@pytest.fixture(autouse=True)
def _own_reservations(tmp_path, monkeypatch):
    """Keep the reservations of ports of the tests apart from those of the user."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(directory))
    monkeypatch.setattr(queues.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.fixture
def init(tmp_path):
    """Lays a cluster out."""
    return lambda **fields: Sandbox(str(tmp_path / "home"), Options(namespace="DEMO", rawx=1, **fields)).init()


def read_handlers(found, num=1):
    parser = configparser.ConfigParser()
    parser.optionxform = str
    assert parser.read(os.path.join(found.conf_dir, f"event-handlers-{num}.conf"))
    pipelines = {
        name.partition(":")[2]: parser[name]["pipeline"].split()
        for name in parser.sections() if name.startswith("handler:")
    }  # fmt: skip
    filters = {
        name.partition(":")[2]: dict(parser[name])
        for name in parser.sections() if name.startswith("filter:")
    }  # fmt: skip
    return pipelines, filters


def read_namespace(found):
    parser = configparser.ConfigParser()
    parser.read(found.sds_conf)
    return parser["DEMO"]


def test_events_go_through_redis(init):
    found = init()
    (redis,) = found.of_type("redis")
    assert read_namespace(found)["event-agent"] == f"redis://{redis.addr}/1"
    settings = load_agent_settings(os.path.join(found.conf_dir, "DEMO-event-agent-1.conf"))
    assert settings.queue_urls == (f"redis://{redis.addr}/1",)
    assert (settings.namespace, settings.tube, settings.workers) == ("DEMO", "oio", 1)
    (agent,) = found.of_type("event-agent")
    assert settings.listen == (agent.host, agent.port)


def test_events_go_through_beanstalkd_when_there_is_one(init):
    found = init(beanstalkd=2)
    urls = [f"beanstalk://{service.addr}" for service in found.of_type("beanstalkd")]
    assert read_namespace(found)["event-agent"] == ";".join(urls)
    for num, url in enumerate(urls, start=1):
        settings = load_agent_settings(os.path.join(found.conf_dir, f"DEMO-event-agent-{num}.conf"))
        assert settings.queue_urls == (url,)
        assert settings.handlers_conf == os.path.join(found.conf_dir, f"event-handlers-{num}.conf")
        _pipelines, filters = read_handlers(found, num)
        assert filters["content_rebuild"]["queue_url"] == url


def test_reference_pipelines(init):
    pipelines, filters = read_handlers(init())
    assert pipelines == ALWAYS
    assert set(filters) == {name for pipeline in ALWAYS.values() for name in pipeline}
    assert filters["content_rebuild"]["use"] == filters["content_improve"]["use"] == "egg:oio#notify"
    assert filters["content_rebuild"]["tube"] == "oio-rebuild"
    assert filters["content_improve"]["tube"] == "oio-improve"
    cleaner = filters["content_cleaner"]
    assert (cleaner["concurrency"], cleaner["pool_maxsize"], cleaner["timeout"]) == ("4", "16", "4.5")


def test_a_copy_of_each_event_is_kept_last_and_at_one_place(init):
    found = init(preserve_events=True, beanstalkd=2)
    for num in (1, 2):
        pipelines, filters = read_handlers(found, num)
        assert pipelines == {type_: [*names, "preserve"] for type_, names in ALWAYS.items()}
        assert filters["preserve"] == {
            "use": "egg:oio#notify", "tube": "oio-preserved",
            "queue_url": f"beanstalk://{found.of_type('beanstalkd')[0].addr}",
        }  # fmt: skip


def test_replication_comes_first_and_looks_at_objects_and_containers(init):
    pipelines, filters = read_handlers(init(replication_events=True))
    for type_, names in ALWAYS.items():
        expected = ["replication"] if type_.startswith(("storage.content", "storage.container")) else []
        assert pipelines[type_] == expected + names
    assert filters["replication"]["use"] == "egg:oio#replicate"
    assert filters["replication"]["check_replication_enabled"] == "true"


def test_a_webhook_is_told_of_objects(init):
    found = init(webhook_enabled=True, webhook_endpoint="http://127.0.0.1:9/a%20b")
    pipelines, filters = read_handlers(found)
    told = {type_ for type_, names in pipelines.items() if "webhook" in names}
    assert told == {f"storage.content.{name}" for name in ("new", "update", "append", "deleted")}
    assert filters["webhook"] == {"use": "egg:oio#webhook", "endpoint": "http://127.0.0.1:9/a%20b"}


    assert not found.of_type("webhook"), "it is elsewhere"


def test_a_webhook_without_endpoint_gets_a_service_that_remembers(init):
    found = init(webhook_enabled=True)
    (service,) = found.of_type("webhook")
    _, filters = read_handlers(found)
    assert filters["webhook"]["endpoint"] == f"http://{service.addr}" == found.webhook
    assert generate.command(found, service)[-1] == service.addr
    assert not os.path.exists(os.path.join(found.conf_dir, "watch", f"{service.name}.yml"))
    assert layout.compute(found.home, found.options).of_type("webhook"), "laid out again, with other ports"


@pytest.mark.parametrize("enabled", [True, False])
def test_the_test_configuration_tells_the_webhook_when_there_is_one(init, enabled):
    found = init(webhook_enabled=enabled)
    with open(os.path.join(found.conf_dir, "test.yml"), encoding="utf-8") as stream:
        conf = yaml.safe_load(stream)
    addresses = [service.addr for service in found.of_type("webhook")]
    assert conf["webhook"] == (f"http://{addresses[0]}" if enabled else "")
    assert [entry["addr"] for entry in conf["services"].get("webhook", [])] == addresses
    assert conf["services"]["event-agent"] == [{"num": "1"}]
    (redis,) = found.of_type("redis")
    assert conf["services"]["redis"] == [{"num": "1", "addr": redis.addr, "path": redis.volume}]


def test_rawx_emit_events_unless_told_otherwise(init):
    def conf_of(found):
        with open(os.path.join(found.conf_dir, "DEMO-rawx-1.conf"), encoding="utf-8") as stream:
            return stream.read()

    assert "events off" not in conf_of(init())


def test_rawx_without_events(init):
    found = init(rawx_events=False)
    with open(os.path.join(found.conf_dir, "DEMO-rawx-1.conf"), encoding="utf-8") as stream:
        assert "events off" in stream.read()


def test_without_a_queue_of_its_own_the_redis_of_somebody_else_is_used(init):
    found = init(redis=0, redis_host="10.0.0.1:6379")
    assert event_conf.queue_urls(found) == ["redis://10.0.0.1:6379/1"]


@pytest.mark.parametrize(("version", "told"), [(1, "an earlier version"), (3, "a later version")])
def test_clusters_of_other_versions_are_refused_and_can_be_removed(init, version, told):
    found = init()
    found.version = version
    found.save()
    with open(os.path.join(found.root, "mark"), "w", encoding="utf-8"):
        sandbox = Sandbox(found.home)
    with pytest.raises(SandboxError, match=rf"(?s){told}.*destroy"):
        sandbox.start()
    os.unlink(os.path.join(found.root, "mark"))
    sandbox.destroy()
    assert not os.path.lexists(found.home)


def test_a_layout_without_version_is_of_the_first(init):
    found = init()
    path = layout.layout_path(found.home)
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    with open(path, "w", encoding="utf-8") as out:
        out.write(text.replace(f'"version": {layout.VERSION}', '"other": 0'))
    assert layout.load(found.home).version == 1
