# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Scores, bounds, locks, ages and the file that keeps them."""

import logging

import msgspec
import pytest

from oio.common.status import StatusError
from oio.conscience.messages import ServiceDef, Services
from oio.conscience.persistence import Persistence
from oio.conscience.registry import Registry
from oio.conscience.settings import ServiceType, Settings, Storage

LOGGER = logging.getLogger("test")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make_registry(clock=None, **types):
    kinds = {
        "rawx": ServiceType("rawx", "num stat.cpu", timeout_s=60),
        "meta0": ServiceType("meta0", "num stat.cpu", timeout_s=60, lock_at_first_register=False),
        **types,
    }
    settings = Settings("NS", ("127.0.0.1", 0), kinds, Storage({"ONE": "NONE:NONE"}, {}, {}))
    return Registry(settings, LOGGER, monotonic=clock or Clock(), wall=lambda: 1.0)


def definition(kind="rawx", port=6000, score=-2, **tags):
    names = {"up": "tag.up", "first": "tag.1", "cpu": "stat.cpu"}
    return ServiceDef(
        type=kind, addr=f"127.0.0.1:{port}", score=score, tags={names.get(k, k): v for k, v in tags.items()}
    )


def one(registry, kind="rawx"):
    (service,) = registry.services_of(kind, True)
    return service


def test_first_registration_locks_until_unlocked():
    registry = make_registry()
    registry.push([definition(first=True, up=True, cpu=80)])
    service = one(registry)
    assert (service.score, service.tags["tag.lock"]) == (0, True)
    assert "tag.1" not in service.tags
    registry.push([definition(up=True, cpu=80)])
    assert one(registry).score == 0
    registry.push([definition(score=-1)])
    service = one(registry)
    assert (service.score, service.tags["tag.lock"]) == (5, False)


def test_first_mark_of_a_restarted_proxy_does_not_lock():
    registry = make_registry()
    registry.push([definition(up=True, cpu=80)])
    registry.push([definition(first=True, up=True, cpu=80)])
    assert one(registry).tags["tag.lock"] is False


def test_types_that_serve_at_once():
    registry = make_registry()
    registry.push([definition("meta0", first=True, up=True, cpu=80.9)])
    assert one(registry, "meta0").score == 80


def test_increase_is_bounded_and_decrease_is_not():
    registry = make_registry()
    for cpu, score in ((50, 50), (90, 55), (90, 60), (10, 10), (12, 12), (100, 17)):
        registry.push([definition(up=True, cpu=cpu)])
        assert one(registry).score == score


def test_undefined_tag_leaves_the_score():
    registry = make_registry()
    registry.push([definition(up=True)])
    assert one(registry).score == -1
    registry.push([definition(up=True, cpu=40)])
    registry.push([definition(up=True)])
    assert one(registry).score == 45 - 5


def test_not_a_number_is_zero():
    registry = make_registry(rawx=ServiceType("rawx", "root(2, 0 - 4)"))
    registry.push([definition(up=True)])
    assert one(registry).score == 0


def test_down_is_zero_and_comes_back_by_steps():
    registry = make_registry()
    registry.push([definition(up=True, cpu=50)])
    registry.push([definition(up=False, cpu=50)])
    assert one(registry).score == 0
    registry.push([definition(up=True, cpu=50)])
    assert one(registry).score == 5


def test_lock_holds_against_everything_but_unlock():
    clock = Clock()
    registry = make_registry(clock)
    registry.push([definition(score=42)])
    assert (one(registry).score, one(registry).tags["tag.lock"]) == (42, True)
    registry.push([definition(up=False, cpu=100)])
    assert one(registry).score == 42
    clock.now += 10000
    assert registry.expire() == 0
    assert one(registry).score == 42
    registry.push([definition(up=True, cpu=100)])
    registry.push([definition(score=-1)])
    assert (one(registry).score, one(registry).tags["tag.lock"]) == (47, False)


def test_unlocking_a_service_that_is_down_gives_zero():
    registry = make_registry()
    registry.push([definition(up=False, cpu=100)])
    registry.push([definition(score=10)])
    registry.push([definition(score=-1)])
    assert one(registry).score == 0


def test_unlock_does_not_register():
    registry = make_registry()
    registry.push([definition(score=-1)])
    assert registry.services_of("rawx", True) == []


def test_expiry():
    clock = Clock()
    registry = make_registry(clock)
    registry.push([definition(up=True, cpu=50)])
    clock.now += 60
    assert registry.expire() == 0
    clock.now += 1
    assert registry.expire() == 1
    assert (one(registry).score, one(registry).tags["tag.up"]) == (0, False)
    assert registry.expire() == 0
    registry.push([definition(up=True, cpu=50)])
    assert one(registry).score == 5


def test_alerts_are_rare(caplog):
    clock = Clock()
    registry = make_registry(clock)
    for port in (1, 2, 3):
        registry.push([definition(port=port, up=True, cpu=50)])
    with caplog.at_level("WARNING"):
        registry.push([definition(port=1, up=False)])
        registry.push([definition(port=2, up=False)])
        clock.now += 31
        registry.push([definition(port=3, up=False)])
    assert len(caplog.records) == 2


def test_tags_are_merged():
    registry = make_registry()
    registry.push([definition(up=True, cpu=50, **{"tag.loc": "a.b", "tag.vol": "/x"})])
    registry.push([definition(up=True, cpu=50, **{"tag.loc": "a.c"})])
    assert one(registry).tags["tag.loc"] == "a.c"
    assert one(registry).tags["tag.vol"] == "/x"
    (brief,) = registry.services_of("rawx", False)
    assert "stat.cpu" not in brief.tags


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (definition("unknown"), 453),
        (ServiceDef(type="rawx", addr="127.0.0.1:7", ns="OTHER"), 418),
        (definition(port=6000, **{f"tag.x{i}": 1 for i in range(250)}), 400),
    ],
)
def test_a_batch_is_applied_whole_or_not_at_all(bad, code):
    registry = make_registry()
    registry.push([definition(up=True, cpu=1, **{f"tag.y{i}": 1 for i in range(100)})])
    generation = registry.generation
    with pytest.raises(StatusError) as caught:
        registry.push([definition(port=9, up=True, cpu=1), bad])
    assert caught.value.code == code
    assert len(registry.services_of("rawx", True)) == 1
    assert registry.generation == generation


def test_deregister_and_flush():
    registry = make_registry()
    registry.push([definition(port=port, up=True, cpu=1) for port in (1, 2, 3)])
    assert registry.deregister([definition(port=2), definition(port=99)]) == 1
    assert {service.addr for service in registry.services_of("rawx", False)} == {"127.0.0.1:1", "127.0.0.1:3"}
    assert registry.flush("rawx") == 2
    with pytest.raises(StatusError):
        registry.flush("nothing")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('[{"type": "rawx"}]', "addr"),
        ('[{"addr": "127.0.0.1:1"}]', "type"),
        ('[{"type": "rawx", "addr": "127.0.0.1"}]', "addr"),
        ('[{"type": "rawx", "addr": "127.0.0.1:0"}]', "addr"),
        ('[{"type": "rawx", "addr": "127.0.0.1:70000"}]', "addr"),
        ('[{"type": "rawx", "addr": "300.0.0.1:1"}]', "addr"),
        ('[{"type": "rawx", "addr": "host:1"}]', "addr"),
        ('[{"type": "rawx", "addr": "127.0.0.1:1", "score": 101}]', "score"),
        ('[{"type": "rawx", "addr": "127.0.0.1:1", "score": "1"}]', "score"),
        ('[{"type": "rawx", "addr": "127.0.0.1:1", "tags": {"x": 1}}]', "tags"),
        ('[{"type": "rawx", "addr": "127.0.0.1:1", "tags": {"tag.x": null}}]', "tags"),
        ('[{"type": "ra wx", "addr": "127.0.0.1:1"}]', "type"),
        ('{"type": "rawx"}', "array"),
        ("[", "truncated"),
    ],
)
def test_bad_messages_name_the_field(body, field):
    with pytest.raises(msgspec.DecodeError, match=field):
        msgspec.json.decode(body, type=Services)


def test_ipv6_addresses():
    assert ServiceDef(type="rawx", addr="[::1]:6000").addr == "[::1]:6000"
    with pytest.raises(ValueError):
        ServiceDef(type="rawx", addr="[::zz]:6000")


# --- persistence ---------------------------------------------------------------------------------


def persistence_of(registry, path, namespace="NS"):
    return Persistence(registry, str(path), namespace, LOGGER)


def test_round_trip(tmp_path):
    registry = make_registry()
    registry.push([definition(port=1, up=True, cpu=55.5, **{"tag.loc": "a.b"})])
    registry.push([definition(port=2, score=42)])
    persistence = persistence_of(registry, tmp_path / "state")
    assert persistence.save_if_changed()
    assert persistence.save_if_changed() and persistence.saves == 1

    clock = Clock()
    again = make_registry(clock)
    assert persistence_of(again, tmp_path / "state").load() == 2
    assert again.services_of("rawx", True) == registry.services_of("rawx", True)
    again.push([definition(port=2, up=True, cpu=99)])
    assert again.scores()["rawx"]["127.0.0.1:2"] == 42
    # What was down is the conscience: the ages start again.
    assert again.expire() == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def test_damaged_file_is_kept_aside(tmp_path, caplog):
    registry = make_registry()
    registry.push([definition(up=True, cpu=55)])
    path = tmp_path / "state"
    persistence_of(registry, path).save()
    good = path.read_bytes()
    cases = [b"", good[:-10], good.replace(b"55", b"56"), b"\xff" + good, b"[]", b'{"format":9}']
    for number, bad in enumerate(cases, start=1):
        path.write_bytes(bad)
        again = make_registry()
        assert persistence_of(again, path).load() == 0
        assert again.services_of("rawx", True) == []
        assert not path.exists()
        assert len(list(tmp_path.glob("state.corrupt-*"))) == number
    assert "unusable" in caplog.text


def test_file_of_another_namespace_is_refused(tmp_path):
    registry = make_registry()
    persistence_of(registry, tmp_path / "state", "OTHER").save()
    assert persistence_of(make_registry(), tmp_path / "state").load() == 0
    assert len(list(tmp_path.glob("state.corrupt-*"))) == 1


def test_types_no_longer_configured_are_left_out(tmp_path, caplog):
    registry = make_registry(echo=ServiceType("echo"))
    registry.push([definition("echo", up=True), definition(up=True, cpu=1)])
    persistence_of(registry, tmp_path / "state").save()
    again = make_registry()
    assert persistence_of(again, tmp_path / "state").load() == 1
    assert "echo" in caplog.text


def test_failed_save_is_told_and_tried_again(tmp_path):
    registry = make_registry()
    directory = tmp_path / "sub"
    persistence = persistence_of(registry, directory / "state")
    assert persistence.save() is False
    assert persistence.failures == 1
    directory.mkdir()
    assert persistence.save_if_changed()
    assert (directory / "state").exists()
