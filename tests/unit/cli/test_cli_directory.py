# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``openio directory`` on a table and services that live in memory."""

import io
import json
import logging
from types import SimpleNamespace

import pytest

from oio.cli import directory
from oio.common.exceptions import (
    CommandError,
    ConfigurationException,
    OioException,
    OioNetworkException,
    PreconditionFailed,
    ServiceBusy,
)
from oio.directory.prefixes import PREFIXES


class Services:
    """meta0, the conscience and the administration of bases; no base was ever used."""

    conf = {"namespace": "NS"}

    def __init__(self, count=4):
        self.count = count
        self.table = {}
        self.timeouts = set()
        self.warmed = []
        self.errors = []

    def all_services(self, _type, reqid=None):
        return [
            {"addr": f"10.0.0.{rank}:6001", "score": 50, "tags": {"tag.loc": f"rack{rank % 2}.host{rank}.v"}}
            for rank in range(self.count)
        ]

    def list(self, read_timeout, reqid):
        self.timeouts.add(read_timeout)
        return self.table

    def force(self, table, read_timeout, reqid):
        self.timeouts.add(read_timeout)
        self.table.update(json.loads(table))

    def has_base(self, _type, cid, service_id, read_timeout, reqid):
        return {one: {"status": {"status": 431, "message": ""}, "body": ""} for one in service_id}

    def election_status(self, service_type, cid, reqid):
        assert service_type == "meta1" and len(cid) == 64 and reqid == "CLI-1"
        if self.errors:
            raise self.errors.pop(0)
        self.warmed.append(cid)


@pytest.fixture
def services():
    return Services()


@pytest.fixture
def run(services, monkeypatch):
    """Runs a command; gives its exit code and what it printed."""

    def run(kind, *args, conf=(("ns.meta1_digits", "1"),)):
        monkeypatch.setattr(directory, "load_namespace_conf", lambda _ns: dict(conf))
        manager = SimpleNamespace(
            namespace="NS", conf=services.conf, meta0=services, admin=services, conscience=services,
            logger=logging.getLogger("test"),
        )  # fmt: skip
        out = io.StringIO()
        app = SimpleNamespace(
            log=logging.getLogger("openio.test"), client_manager=manager, stdout=out, request_id=lambda: "CLI-1"
        )
        command = getattr(directory, f"Directory{kind}")(app, None)
        return command.run(command.get_parser("openio directory").parse_args(args)), out.getvalue()

    return run


def loads(services):
    found = {}
    for prefix, names in services.table.items():
        if prefix.endswith("000"):
            for name in names:
                found[name] = found.get(name, 0) + 1
    return sorted(found.values())


def test_bootstrap_once(run, services):
    assert run("Init", "--meta0-timeout", "7") == (0, "")
    assert len(services.table) == PREFIXES and services.timeouts == {7.0}
    assert loads(services) == [12, 12, 12, 12]
    before = dict(services.table)
    services.count = 8
    assert run("Init") == run("Init", "--check") == (0, "")
    assert services.table == before
    with pytest.raises(OioException, match="Bad number"):
        run("Init", "--check", "--replicas", "4")
    run("Init", "--force")
    assert loads(services) == [6] * 8


def test_bootstraps_that_are_refused(run, services):
    with pytest.raises(PreconditionFailed):
        run("Init", "--level", "rack")
    with pytest.raises(PreconditionFailed):
        run("Init", "--degradation", "2")
    with pytest.raises(ConfigurationException):
        run("Init", "--min-dist", "5")
    with pytest.raises(ConfigurationException):
        run("Init", "--replicas", "0")
    services.count = 0
    with pytest.raises(OioException, match="No meta1"):
        run("Init")
    assert not services.table
    services.count = 4
    assert run("Init", "--level", "rack", "--degradation", "0") == (0, "")


def test_check_and_dump(run, services, caplog):
    assert run("Check")[0] == 1
    run("Init")
    assert run("Check", "--no-rdir") == (0, "")
    assert run("Check", "--replicas", "4")[0] == 1
    assert "Bad number" in caplog.text
    code, out = run("List")
    assert code == 0 and json.loads(out) == services.table


def test_rebalance(run, services):
    run("Init")
    services.count = 6
    assert run("Rebalance") == (0, "")
    assert loads(services) == [8] * 6
    with pytest.raises(ValueError, match="4 copies"):
        services.count = 3
        run("Rebalance", "--replicas", "4")


def test_a_mapping_with_too_few_services_is_not_rebalanced(run, services, caplog):
    run("Init", "--replicas", "2")
    before = dict(services.table)
    assert run("Rebalance", "--replicas", "3")[0] == 1
    assert services.table == before and "nothing is changed" in caplog.text


@pytest.fixture
def root_level():
    """Decommission makes the console talk: put it back."""
    root = logging.getLogger("")
    level, handlers = root.level, [(handler, handler.level) for handler in root.handlers]
    yield root
    root.setLevel(level)
    for handler, former in handlers:
        handler.setLevel(former)


def test_decommission(run, services, root_level):
    run("Init")
    base = next(prefix for prefix, names in services.table.items() if "10.0.0.1:6001" in names)
    assert run("Decommission", "10.0.0.1:6001", base[0].lower()) == (0, "")
    assert loads(services) == [11, 12, 12, 13] and "10.0.0.1:6001" not in services.table[base]
    assert run("Decommission", "10.0.0.1:6001") == (0, "")
    assert loads(services) == [16, 16, 16]
    assert root_level.level <= logging.INFO
    before = dict(services.table)
    services.count = 3
    with pytest.raises(ValueError, match="3 copies"):
        run("Decommission", "10.0.0.2:6001")
    assert services.table == before
    assert run("Decommission", "10.0.0.2:6001", "--ignore-replicas-number-errors") == (0, "")
    assert all("10.0.0.2:6001" not in names for names in services.table.values())


def test_restore(run, services, tmp_path, monkeypatch, caplog):
    run("Init")
    path = tmp_path / "table"
    path.write_text(json.dumps(services.table))
    saved, services.table = services.table, {}
    assert run("Restore", str(path)) == (0, "")
    assert not services.table and "--I-know-what-I-am-doing" in caplog.text
    with pytest.raises(OioException, match="Bad number"):
        run("Restore", str(path), "--replicas", "4")
    monkeypatch.setattr(directory.sys, "stdin", io.StringIO(path.read_text()))
    run("Restore", "-", "--I-know-what-I-am-doing", "--replicas", "4")
    assert services.table == saved
    with pytest.raises(FileNotFoundError):
        run("Restore", str(tmp_path / "none"))
    for wrong in (b"\xff", b"{", b"[]", b'{"0000": 3}'):
        path.write_bytes(wrong)
        with pytest.raises(CommandError, match=f"{path} holds no mapping: "):
            run("Restore", str(path))


@pytest.mark.parametrize(
    ("conf", "bases"),
    [
        ({"ns.meta1_digits": "2"}, 256),
        ({"meta1_digits": "1"}, 16),
        ({"ns.meta1_digits": "0", "meta1_digits": "1"}, 1),
    ],
)
def test_digits(run, services, conf, bases):
    run("Warmup", conf=conf)
    assert len(set(services.warmed)) == bases


def test_digits_that_are_wrong(run, services, caplog):
    for wrong in ("5", "-1", "x"):
        with pytest.raises(ConfigurationException):
            run("Warmup", conf={"ns.meta1_digits": wrong})
    run("Init", conf={})
    assert len(services.table) == PREFIXES and "ns.meta1_digits" in caplog.text


def test_warmup(run, services, monkeypatch, caplog):
    pauses = []
    monkeypatch.setattr(directory.time, "sleep", pauses.append)
    caplog.set_level(logging.INFO)
    services.errors = [ServiceBusy()] * 4
    assert run("Warmup") == (0, "") and len(pauses) == 4
    assert len(services.warmed) == 16 and "100 %" in caplog.text
    services.errors = [ServiceBusy()] * 5 + [OioNetworkException("host=h:1", "refused")]
    assert run("Warmup") == (1, "") and ": host=h:1 refused" in caplog.text
    assert "2 bases of 16" in caplog.text and len(services.warmed) == 30
    assert run("Warmup", "--workers", "4")[0] == 0
    with pytest.raises(CommandError):
        run("Warmup", "--concurrency", "0")
