# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Bases that move, or come back, while they are used: the tools of the directory on real clusters."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import ACCOUNT, ROOT, eventually, start_cluster

from oio import ObjectStorageApi
from oio.common.exceptions import OioException, ServiceBusy
from oio.common.utils import cid_from_name
from oio.common.zookeeper_server import find_zookeeper
from oio.directory.meta2 import Meta2Database
from oio.directory.moves import Change

replicated = pytest.mark.skipif(find_zookeeper() is None, reason="ZooKeeper is not installed")
DIGITS = 1


class Site:
    """A cluster, its clients and its programs."""

    def __init__(self, sandbox, copies):
        self.sandbox, self.copies = sandbox, copies
        self.api = ObjectStorageApi(sandbox.namespace, endpoint=sandbox.proxy)
        self.database = Meta2Database({"namespace": sandbox.namespace}, endpoint=sandbox.proxy)
        self.admin, self.directory = self.database.admin, self.database.directory
        self.environment = dict(os.environ) | sandbox.environment
        self.environment.update(PYTHONPATH=str(ROOT), OIO_ACCOUNT=ACCOUNT)

    def run(self, *command, code=0, **kwargs):
        """Run a program; gives standard output and standard error."""
        done = subprocess.run(
            [sys.executable, *command], env=self.environment, capture_output=True, text=True, check=False,
            timeout=120, **kwargs,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def openio(self, *words, **kwargs):
        """Run ``openio``."""
        return self.run("-m", "oio.cli.openio", *words, **kwargs)

    def program(self, name, *words, **kwargs):
        """Run a program of ours."""
        return self.run(str(ROOT / "bin" / name), *words, **kwargs)

    def container(self, name, objects=3):
        """A new container, whose copies have all of it; gives its id."""
        self.api.container_create(ACCOUNT, name)
        for number in range(objects):
            self.api.object_create(ACCOUNT, name, obj_name=f"before-{number}", data=b"before")
        cid = cid_from_name(ACCOUNT, name)
        # A majority is enough for what was acknowledged: the others follow.
        self.check_copies(cid)
        return cid

    def master(self, cid, former=None):
        """The service that leads a container, once one does, and another than the former."""

        def found():
            name = self.admin.election_status("meta2", cid=cid).get("master")
            return name if name != former else None

        return eventually(found, what="a master")

    def peers(self, cid):
        """Services that the directory names, sorted."""
        return sorted(link["host"] for link in self.directory.list(cid=cid, service_type="meta2")["srv"])

    def files(self, cid, service_type="meta2", **kwargs):
        """Path of the copy of each service that has one."""
        found = self.admin.has_base(service_type, cid=cid, **kwargs)
        return {name: Path(one["body"]) for name, one in found.items() if one["status"]["status"] == 200}

    def lose(self, cid, services, service_type="meta2"):
        """Delete files under services that run."""
        files = self.files(cid, service_type)
        for service in services:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{files[service]}{suffix}").unlink(missing_ok=True)

    def versions(self, cid):
        """Versions of the tables of each copy, which are the same when the copies are."""
        seen = {}
        for peer in self.peers(cid):
            system = self.admin.get_properties("meta2", cid=cid, service_id=peer)["system"]
            seen[peer] = {key: value for key, value in system.items() if key.startswith(("version:", "sys.m2"))}
        return seen

    def check_copies(self, cid):
        """All the services have the base, the same one, and one of them is its master."""
        peers = self.peers(cid)
        assert len(peers) == self.copies
        eventually(lambda: sorted(self.files(cid)) == peers, what="all the copies")

        def same():
            seen = [*self.versions(cid).values()]
            return all(one == seen[0] for one in seen)

        eventually(same, what="the same content")

        def elected():
            status = self.admin.election_status("meta2", cid=cid)
            assert sorted(status["peers"]) == peers
            return status.get("master") in peers and len(status.get("slaves", ())) == self.copies - 1

        eventually(elected, what="a master that all know")
        assert self.admin.get_properties("meta2", cid=cid)["system"]["sys.peers"] == ",".join(peers)


def site_of(tmp_path_factory, name, copies, **fields):
    home = tmp_path_factory.mktemp(name)
    sandbox = start_cluster(
        home, f"{name}{os.getpid()}", replicas=copies, rawx=3, proxy_workers=1, meta1_digits=DIGITS, **fields
    )
    before = os.environ.get("OIO_SDS_CONF")
    os.environ["OIO_SDS_CONF"] = sandbox.environment["OIO_SDS_CONF"]
    yield Site(sandbox, copies)
    sandbox.destroy()
    if before is None:
        del os.environ["OIO_SDS_CONF"]
    else:
        os.environ["OIO_SDS_CONF"] = before


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three copies of everything, on more services than that."""
    yield from site_of(tmp_path_factory, "THREE", 3, meta1=4, meta2=5)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One copy of everything, on two services."""
    yield from site_of(tmp_path_factory, "SINGLE", 1, meta1=2, meta2=2)


class Traffic:
    """Writes and reads in a container (or references), until the end of the block.

    What was acknowledged must be there afterwards. Services may be busy, nothing may be missing.
    """

    def __init__(self, write, read):
        self.write, self.read = write, read
        self.written, self.busy, self.wrong = [], 0, []
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._threads = [threading.Thread(target=run) for run in (self._write_all, self._read_all)]

    def _attempt(self, action, name):
        try:
            action(name)
        except ServiceBusy:
            self.busy += 1
            return False
        except OioException as exc:
            self.wrong.append((action.__name__, name, repr(exc)))
        return True

    def _write_all(self):
        number = 0
        while not self._stop.is_set():
            name = f"during-{number:04}"
            if self._attempt(self.write, name):
                with self._progress:
                    self.written.append(name)
                    self._progress.notify_all()
            number += 1

    def _read_all(self):
        while not self._stop.is_set():
            with self._progress:
                self._progress.wait_for(lambda: self.written or self._stop.is_set())
                name = self.written[-1] if self.written else None
            if name:
                self._attempt(self.read, name)

    def wait_more(self, count=5):
        """Wait until so many more were written."""
        with self._progress:
            wanted = len(self.written) + count
            assert self._progress.wait_for(lambda: len(self.written) >= wanted, 30), (self.busy, self.wrong)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.wait_more()
        return self

    def __exit__(self, *exc_info):
        if not exc_info[0]:
            self.wait_more()
        self._stop.set()
        with self._progress:
            self._progress.notify_all()
        for thread in self._threads:
            thread.join()
        assert not self.wrong


def traffic(site, name):
    """Objects of a container."""

    def write(item):
        site.api.object_create(ACCOUNT, name, obj_name=item, data=item.encode())

    def read(item):
        assert b"".join(site.api.object_fetch(ACCOUNT, name, item)[1]) == item.encode()

    return Traffic(write, read)


def check_objects(site, name, written):
    listed = {one["name"] for one in site.api.object_list(ACCOUNT, name, limit=10000)["objects"]}
    assert listed >= {"before-0", "before-1", "before-2", *written}


# --- moves of containers ------------------------------------------------------------------------------------


@replicated
def test_a_container_moves_while_it_is_used(three):
    cid = three.container("moving")
    with traffic(three, "moving") as running:
        for _ in range(3):
            before = three.peers(cid)
            # Each time the master: the slaves move more easily.
            source = three.master(cid)
            (found,) = three.database.move(cid, source)
            assert found["err"] is None and found["dst"] not in before
            assert three.peers(cid) == sorted({*before, found["dst"]} - {source})
            assert three.files(cid, service_id=[source]) == {}
            running.wait_more()
    check_objects(three, "moving", running.written)
    three.check_copies(cid)


@replicated
@pytest.mark.parametrize("lost", ["source", "another", "source and another", "others"])
def test_a_container_moves_with_fewer_copies(three, lost):
    name = f"lost {lost}"
    cid = three.container(name)
    first, second, third = three.peers(cid)
    victims = {"source": [first], "another": [second], "source and another": [first, second],
               "others": [second, third]}[lost]  # fmt: skip
    three.lose(cid, victims)
    (found,) = three.database.move(f"{cid}.1", first)
    assert found["err"] is None
    three.api.object_create(ACCOUNT, name, obj_name="after", data=b"after")
    check_objects(three, name, ["after"])
    for result in three.database.rebuild(cid):
        assert result["err"] is None
    three.check_copies(cid)


@replicated
def test_a_move_that_was_interrupted_is_made_again(three):
    cid = three.container("interrupted")
    before = three.peers(cid)
    source = three.master(cid)
    spare = next(one.id for one in three.sandbox.services("meta2") if one.id not in before)
    after = [spare if peer == source else peer for peer in before]
    change = Change("meta2", f"{cid}.1", tuple(before), tuple(after))
    with traffic(three, "interrupted") as running:
        # The base knows its new services, the directory does not.
        three.database.mover.copy(change)
        running.wait_more(20)
        assert three.peers(cid) == before
        (found,) = three.database.move(cid, source, spare)
        assert found["err"] is None
        running.wait_more()
    check_objects(three, "interrupted", running.written)
    three.check_copies(cid)
    assert three.peers(cid) == sorted(after) and not three.files(cid, service_id=[source])


@replicated
def test_a_container_moves_from_a_service_that_is_down(three):
    cid = three.container("from the dead")
    source = three.master(cid)
    with traffic(three, "from the dead") as running:
        three.sandbox.stop(source)
        try:
            (found,) = three.database.move(cid, source)
            assert found["err"] is None
            running.wait_more()
        finally:
            three.sandbox.restart(source)
        running.wait_more()
    check_objects(three, "from the dead", running.written)
    three.check_copies(cid)


@replicated
def test_moves_that_are_refused(three):
    cid = three.container("staying")
    peers = three.peers(cid)
    others = [service.id for service in three.sandbox.services("meta2") if service.id not in peers]
    for source, target, text in (
        (others[0], None, "Source service isn't used"),
        (peers[0], peers[1], "already used"),
        (peers[0], "nosuch", "must be a known meta2"),
    ):
        (found,) = three.database.move(cid, source, target)
        assert text in str(found["err"]) and found["dst"] == target
    (found,) = three.database.move("CD" * 32, peers[0])
    assert found["err"] is not None
    three.check_copies(cid)
    assert three.peers(cid) == peers


@replicated
def test_the_program_that_moves(three):
    cid = three.container("by program")
    source = three.peers(cid)[0]
    out, err = three.program("oio-meta2-mover", three.sandbox.namespace, cid, source)
    assert out.startswith(f"{cid}.1 {source} ") and "deprecated" in err
    out, err = three.program("oio-meta2-mover", three.sandbox.namespace, cid, source, code=1)
    assert not out and f"ERROR: {cid}.1" in err
    three.check_copies(cid)
    out, err = three.program("oio-check-master", "--oio-ns", three.sandbox.namespace, "-v", "by program")
    assert not out and err.count("one master") == 3
    words = ["--oio-ns", three.sandbox.namespace, "-t", "meta2", "nosuch"]
    out, err = three.program("oio-check-master", *words, code=1)
    assert not out and "not found" in err


def test_a_container_of_one_copy_moves_while_it_is_used(single):
    cid = single.container("alone")
    with traffic(single, "alone") as running:
        for _ in range(4):
            (source,) = single.peers(cid)
            (found,) = single.database.move(cid, source)
            assert found["err"] is None
            assert single.peers(cid) == [found["dst"]] and not single.files(cid, service_id=[source])
            running.wait_more()
    check_objects(single, "alone", running.written)
    single.check_copies(cid)
    assert single.admin.get_properties("meta2", cid=cid)["system"]["sys.status"] == "0"

    def counted():
        shown = single.api.account.container_show(ACCOUNT, "alone")
        return int(shown["objects"]) == 3 + len(running.written)

    eventually(counted, what="the events of all the services")


# --- lost copies of containers --------------------------------------------------------------------------------


@replicated
@pytest.mark.parametrize("lost", [1, 2])
def test_lost_copies_of_a_container_are_made_again(three, lost, tmp_path):
    name = f"rebuilt {lost}"
    cid = three.container(name)
    peers = three.peers(cid)
    three.lose(cid, peers[:lost])
    if lost == 1:
        eventually(lambda: any(
            record["container_id"] == cid for record in three.database.rdir.meta2_index_fetch_all(peers[0])
        ), what="the index")  # fmt: skip
        words = ["--service-id", peers[0], "--rdir-fetch-limit", "1"]
    else:
        path = tmp_path / "list"
        path.write_text(f"# lost\n\n{cid}\n")
        words = ["--input-file", str(path), "--concurrency", "2"]
    out, err = three.program("oio-meta2-rebuilder", *words, three.sandbox.namespace)
    assert not out and f"{three.sandbox.namespace}|{cid} rebuilt" in err
    three.check_copies(cid)
    check_objects(three, name, [])


@replicated
def test_what_cannot_be_made_again(three, tmp_path):
    path = tmp_path / "list"
    path.write_text("CD" * 32)
    _, err = three.program("oio-meta2-rebuilder", "--input-file", str(path), three.sandbox.namespace, code=1)
    assert "not found" in err
    _, err = three.program("oio-meta2-rebuilder", "--input-file", "/nosuch", three.sandbox.namespace, code=1)
    assert "/nosuch" in err
    _, err = three.program("oio-meta2-rebuilder", three.sandbox.namespace, code=2)
    assert "--service-id" in err


# --- the directory --------------------------------------------------------------------------------------------


def references(site, prefix):
    """Properties of references, which live in meta1."""

    def write(item):
        site.directory.create(ACCOUNT, f"{prefix}-{item}", properties={"name": item})

    def read(item):
        assert site.directory.get_properties(ACCOUNT, f"{prefix}-{item}")["properties"] == {"name": item}

    return Traffic(write, read)


def table(site):
    """The services of each base."""
    out, _ = site.openio("directory", "dump")
    found = json.loads(out)
    assert len(found) == 65536
    assert all(found[prefix] == found[prefix[:DIGITS].ljust(4, "0")] for prefix in list(found)[::997])
    return {prefix: set(services) for prefix, services in found.items() if prefix[DIGITS:] == "0" * (4 - DIGITS)}


def check_directory(site):
    """All the bases that are used are where the table says, and nowhere else."""
    everywhere = [service.addr for service in site.sandbox.services("meta1")]
    for base, services in table(site).items():
        assert len(services) == site.copies
        cid = base.ljust(64, "0")

        def placed(cid=cid, services=services):
            held = site.files(cid, "meta1", service_id=everywhere)
            return not held or {*held} == services

        eventually(placed, what=f"copies of {base} on {services}")


def decommission_and_rebalance(site, running):
    copies = ["--replicas", str(site.copies)]
    gone = site.sandbox.services("meta1")[0].addr
    before = table(site)
    _, err = site.openio("directory", "decommission", gone, *copies)
    after = table(site)
    assert not any(gone in services for services in after.values())
    assert all(len(before[base] - after[base]) == (gone in before[base]) for base in before)
    assert f"{gone}: 0 prefixes" in err
    check_directory(site)
    running.wait_more()
    site.openio("directory", "check", *copies)
    # A service without bases is as good as a new one.
    site.openio("directory", "rebalance", *copies)
    again = table(site)
    assert all(len(after[base] - again[base]) <= 1 for base in after)
    share = 16**DIGITS * site.copies / len(site.sandbox.services("meta1"))
    for service in site.sandbox.services("meta1"):
        assert abs(sum(service.addr in services for services in again.values()) - share) <= 1
    check_directory(site)


@replicated
def test_the_directory_moves_while_it_is_used(three):
    with references(three, "moving") as running:
        decommission_and_rebalance(three, running)
    for name in running.written:
        running.read(name)
    for name in running.written[::10]:
        assert three.directory.delete(ACCOUNT, f"moving-{name}") is None


def test_the_directory_of_one_copy_moves(single):
    # What is written while its base moves may be lost: there is nobody to agree with.
    items = references(single, "alone")
    for number in range(40):
        items.write(f"{number}")
    items.wait_more = lambda: None
    decommission_and_rebalance(single, items)
    for number in range(40):
        items.read(f"{number}")


@replicated
def test_the_table_is_saved_and_restored(three, tmp_path):
    before = table(three)
    path = tmp_path / "table.json"
    path.write_text(three.openio("directory", "dump")[0])
    _, err = three.openio("directory", "restore", str(path))
    assert "--I-know-what-I-am-doing" in err
    three.openio("directory", "restore", "-", "--I-know-what-I-am-doing", input=path.read_text())
    assert table(three) == before
    three.openio("directory", "bootstrap", "--check")
    _, err = three.openio("directory", "bootstrap", "--check", "--replicas", "4", code=1)
    assert "Base 0000 has 3 services, 4 expected" in err
    _, err = three.openio("directory", "restore", str(path), "--replicas", "4", code=1)
    assert "nothing is changed" in err
    _, err = three.openio("directory", "rebalance", "--replicas", "5", code=1)
    assert "5 copies of a base need as many locations" in err
    gone = three.sandbox.services("meta1")[0].addr
    _, err = three.openio("directory", "decommission", gone, "--replicas", "4", code=1)
    assert "4 copies" in err
    _, err = three.openio("directory", "decommission", "127.0.0.1:1", code=1)
    assert "not a known meta1 service" in err
    path.write_text("{")
    three.openio("directory", "restore", str(path), code=1)
    assert table(three) == before


@replicated
def test_all_bases_are_warmed_up(three):
    _, err = three.openio("-v", "directory", "warmup", "--proxy", three.sandbox.proxy, "--concurrency", "4")
    assert err.count("bases") == 16 and "100 %: 16 bases" in err
    _, err = three.openio("directory", "warmup", "--proxy", "127.0.0.1:1", code=1)
    assert "16 bases of 16 are not ready" in err


@replicated
def test_lost_copies_of_the_directory_are_made_again(three, tmp_path):
    three.container("of the directory", objects=0)
    base = cid_from_name(ACCOUNT, "of the directory")[:DIGITS].ljust(64, "0")
    service = sorted(three.files(base, "meta1"))[0]
    three.lose(base, [service], "meta1")
    assert service not in three.files(base, "meta1")
    path = tmp_path / "list"
    path.write_text(base[:DIGITS])
    out, _ = three.program("oio-meta1-rebuilder", "-q", "--input-file", str(path), three.sandbox.namespace)
    assert not out and len(three.files(base, "meta1")) == 3
    assert "sys.last_rebuild" in three.admin.get_properties("meta1", cid=base)["system"]
    out, err = three.program("oio-meta1-rebuilder", three.sandbox.namespace)
    assert not out and "errors=0/0" in err
    assert three.directory.has(ACCOUNT, "of the directory")


@replicated
def test_elections(three):
    cid = three.container("elected")

    def rows(*words):
        return json.loads(three.openio("election", *words, "-f", "json")[0])

    def is_known(master):
        found = rows("status", "meta2", "elected")
        assert [row["Id"] for row in found] == peers
        return {row["Id"]: (row["Status"], row["Message"]) for row in found} == {
            peer: (200, "OK") if peer == master else (303, master) for peer in peers
        }

    peers = three.peers(cid)
    master = three.master(cid)
    for _ in range(2):
        eventually(lambda master=master: is_known(master), what="a master that all know")
        assert rows("ping", "meta2", cid, "--cid") == [
            {"Id": peer, "Status": 200, "Message": "OK"} for peer in peers
        ]
        found = rows("leave", "meta2", "elected", "--service-id", master)
        assert found == [{"Id": master, "Status": 200, "Message": "OK"}]
        master = three.master(cid, former=master)
    eventually(lambda: is_known(master), what="a master that all know")
    found = rows("sync", "meta2", "elected", "--check-type", "2")
    assert {row["Id"]: row["Status"] for row in found} == {peer: 301 if peer == master else 200 for peer in peers}
    found = {row["Id"]: row["Body"] for row in rows("debug", "meta2", "elected")}
    assert {body["master"]["id"] for body in found.values()} == {master}
    assert found[master]["local"]["state"] == "MASTER"
    assert sorted(found[master]["peers"]) == sorted({*peers} - {master})
    human = {row["Id"]: row["Body"] for row in rows("debug", "meta2", "elected", "--human")}
    assert all(" -> " in entry for entry in human[master]["log"])
    for service_type in ("meta0", "meta1"):

        def statuses(kind=service_type):
            return sorted(row["Status"] for row in rows("status", kind, "elected"))

        eventually(lambda statuses=statuses: statuses() == [200, 303, 303], what="a master of the directory")
    three.check_copies(cid)
