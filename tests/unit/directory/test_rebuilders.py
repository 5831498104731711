# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Programs that rebuild bases and check masters: items, outcomes, exit codes. Services live in memory."""

import logging
from types import SimpleNamespace

import pytest

from oio.common.exceptions import ConfigurationException, NotFound, OioException, ServiceBusy
from oio.common.utils import cid_from_name
from oio.directory import check_master, move_program
from oio.rebuilder import meta1_rebuilder, meta2_rebuilder
from oio.rebuilder.meta1_rebuilder import Meta1Rebuilder
from oio.rebuilder.meta2_rebuilder import Meta2Rebuilder

A, B, C = ("A" * 64, "B" * 64, "C" * 64)
LOGGER = logging.getLogger("test")
PROXY = {"namespace": "NS", "proxy": "127.0.0.1:1", "ns.meta1_digits": "1"}


@pytest.fixture(autouse=True)
def namespace(monkeypatch):
    monkeypatch.setattr("oio.common.client.load_namespace_conf", lambda _ns: PROXY)
    monkeypatch.setattr(meta1_rebuilder, "load_namespace_conf", lambda _ns: PROXY)
    monkeypatch.setattr(meta1_rebuilder.time, "sleep", lambda _seconds: None)


def answers(codes):
    return {name: {"status": {"status": code, "message": f"m{code}"}, "body": ""} for name, code in codes.items()}


def outcome(tool):
    """Error of each item, and the exit code."""
    tool.prepare_local_dispatcher()
    found = {tool.string_from_item(item): error for item, _, error in tool.run()}
    return found, tool.is_success()


CONF = {"namespace": "NS", "items_per_second": 0}


# --- containers ---------------------------------------------------------------------------------------------


class Database:
    def __init__(self, failing=(), statuses=None):
        self.failing, self.statuses = failing, statuses or {}
        self.admin = self

    def rebuild(self, cid, reqid):
        yield {"base": f"{cid}.1", "err": None}
        yield {"base": f"{cid}.2", "err": OioException("lost") if cid in self.failing else None}

    def election_sync(self, service_type, cid, reqid):
        assert service_type == "meta2"
        return answers({"a": 200, "b": 301, "c": self.statuses.get(cid, 200)})


def meta2_tool(database, **kwargs):
    tool = Meta2Rebuilder({**CONF, "rdir_fetch_limit": 2}, logger=LOGGER, **kwargs)
    tool.meta2_database = database
    return tool


def test_containers_of_a_file(tmp_path):
    path = tmp_path / "list"
    path.write_text(f"# two\n{A}\n\n  {B}  \n#{C}\n")
    found, success = outcome(meta2_tool(Database(), input_file=str(path)))
    assert found == {f"NS|{A}": None, f"NS|{B}": None} and success


def test_containers_of_a_service():
    class Rdir:
        def meta2_index_fetch(self, volume, marker, limit):
            assert (volume, limit) == ("S", 2)
            cids = [A, B] if marker is None else [C]
            records = [{"container_url": cid, "container_id": cid} for cid in cids]
            return {"records": records, "truncated": marker is None}

    tool = meta2_tool(Database(failing=[B], statuses={f"{C}.1": 503}), service_id="S")
    tool.rdir_client = Rdir()
    found, success = outcome(tool)
    errors = {A: None, B: f"{B}.2: lost", C: f"{C}.1: c: m503 (503)"}
    assert not success and found == {f"NS|{cid}": error for cid, error in errors.items()}


def test_a_service_or_a_file_is_needed():
    with pytest.raises(ConfigurationException):
        Meta2Rebuilder(CONF, logger=LOGGER)
    with pytest.raises(SystemExit) as exit_:
        meta2_rebuilder.main(["NS"])
    assert exit_.value.code == 2


@pytest.mark.parametrize("main", [meta1_rebuilder.main, meta2_rebuilder.main])
def test_a_file_that_cannot_be_read(main, capsys):
    assert main(["--input-file", "/nosuch", "-q", "NS"]) == 1
    assert "/nosuch: No such file" in capsys.readouterr().err


# --- the directory ------------------------------------------------------------------------------------------


class Admin:
    """Services that have their bases, but for those that are lost, which come back when the base is touched."""

    def __init__(self, lost=(), errors=(), comes_back=True):
        self.lost, self.errors, self.comes_back = {*lost}, [*errors], comes_back
        self.said = []

    def has_base(self, service_type, cid, reqid):
        self.said.append("has")
        assert service_type == "meta1"
        if self.errors:
            raise self.errors.pop(0)
        return answers({"a": 200, "b": 431 if cid in self.lost else 200})

    def election_leave(self, service_type, cid, reqid):
        self.said.append("leave")

    def set_properties(self, service_type, cid, system, reqid):
        self.said.append("touch")
        assert int(system["sys.last_rebuild"]) > 1e9
        if self.comes_back:
            self.lost.discard(cid)


def meta1_tool(admin, path):
    tool = Meta1Rebuilder(CONF, input_file=str(path), logger=LOGGER)
    tool.admin_client = admin
    return tool


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "list"
    path.write_text(f"{A}\na\n{A[:7]}\nb\n")
    return path


def base(digit):
    return digit.ljust(64, "0")


def test_bases_are_looked_at_once(listed):
    admin = Admin()
    assert outcome(meta1_tool(admin, listed)) == ({base("A"): None, base("B"): None}, True)
    assert admin.said == ["has", "has"]


def test_lost_bases_come_back(listed):
    admin = Admin(lost=[base("B")])
    assert outcome(meta1_tool(admin, listed)) == ({base("A"): None, base("B"): None}, True)
    assert admin.said == ["has", "has", "leave", "touch", "has"]


def test_what_passes_by_itself_is_tried_again(listed):
    assert outcome(meta1_tool(Admin(errors=[ServiceBusy(), NotFound(), ServiceBusy(), NotFound()]), listed))[1]
    found, success = outcome(meta1_tool(Admin(errors=[ServiceBusy()] * 5), listed))
    assert not success and [*found.values()].count(None) == 1


def test_bases_that_do_not_come_back(listed, monkeypatch):
    monkeypatch.setattr(meta1_rebuilder, "ARRIVAL_S", 0.0)
    found, success = outcome(meta1_tool(Admin(lost=[base("A")], comes_back=False), listed))
    assert not success and found == {base("A"): "b: m431 (431)", base("B"): None}


def test_all_the_bases_that_are_used():
    tool = Meta1Rebuilder(CONF, logger=LOGGER)
    tool.digits = 4
    tool.conscience_client = SimpleNamespace(all_services=lambda kind: [{"id": f"{kind}-1"}])
    pages = {None: [["c1"], ["c2"]], "c2": [["c3"]], "c3": []}
    tool.account_client = SimpleNamespace(
        account_list=lambda: ["acme"], container_list=lambda _account, limit, marker: {"listing": pages[marker]}
    )
    used = [("_RDIR", "rawx-1"), ("_RDIR", "meta2-1"), ("acme", "c1"), ("acme", "c2"), ("acme", "c3")]
    assert [*tool._fetch_items()] == [cid_from_name(*one)[:4].ljust(64, "0") for one in used]


# --- masters, moves -----------------------------------------------------------------------------------------


def test_masters(monkeypatch, capsys):
    said = []

    class Elections:
        def __init__(self, conf, **_kwargs):
            assert conf == {"namespace": "NS"}

        def election_status(self, service_type, account=None, reference=None, cid=None):
            if reference == "missing":
                raise NotFound()
            codes = {"meta0": {"a": 200, "b": 303}, "meta1": {"a": 503, "b": 303}, "meta2": {"a": 200, "b": 200}}
            return {"peers": answers(codes[service_type])}

        def election_leave(self, service_type, **location):
            said.append((service_type, location))

    monkeypatch.setattr(check_master, "AdminClient", Elections)
    assert check_master.main(["--oio-ns", "NS", "--oio-account", "acme", "c", "-v"]) == 0
    err = capsys.readouterr().err
    assert "meta0 c: one master, a" in err and "meta1 c: 0 masters" in err and "meta2 c: 2 masters" in err
    assert check_master.main(["--oio-ns", "NS", "--cid", A, "-t", "meta0", "-t", "meta2", "-x"]) == 0
    assert said == [("meta2", {"cid": A})]
    assert check_master.main(["--oio-ns", "NS", "--oio-account", "acme", "missing", "c"]) == 1
    assert "meta2 c: 2 masters" in capsys.readouterr().err, "the others are looked at"
    monkeypatch.delenv("OIO_NS", raising=False)
    monkeypatch.delenv("OIO_ACCOUNT", raising=False)
    for words in (["c"], ["--oio-ns", "NS", "c"], ["--oio-ns", "NS"]):
        with pytest.raises(SystemExit) as exit_:
            check_master.main(words)
        assert exit_.value.code == 2


def test_moves(monkeypatch, capsys):
    class Moves:
        def __init__(self, conf):
            assert conf == {"namespace": "NS"}

        def move(self, base, src, dst):
            yield {"base": f"{base}.1", "src": src, "dst": dst or "chosen", "err": None}
            if dst == "bad":
                yield {"base": f"{base}.2", "src": src, "dst": dst, "err": OioException("no")}

    monkeypatch.setattr(move_program, "Meta2Database", Moves)
    assert move_program.main(["NS", A, "src"]) == 0
    assert capsys.readouterr().out == f"{A}.1 src chosen\n"
    assert move_program.main(["NS", A, "src", "bad"]) == 1
    told = capsys.readouterr()
    assert told.out == f"{A}.1 src bad\n" and f"ERROR: {A}.2: no\n" in told.err
