# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The indexer of meta2 volumes: which records it pushes, and what it makes of what is wrong."""

import configparser
import os
import threading

import pytest
from support import eventually

from oio.common import logger as logger_module
from oio.common import volume_lock
from oio.common.exceptions import NotFound, OioException, VolumeException
from oio.common.utils import cid_from_name
from oio.directory import indexer
from oio.directory.indexer import Meta2Indexer, Meta2IndexingWorker

ID = "TEST-meta2-1"
CONF = {"namespace": "TEST", "proxyd_url": "127.0.0.1:1", "scanned_per_second": "0"}


class Directory:
    """Knows containers by their ids; an exception in the place of one is raised."""

    def __init__(self):
        self.known = {}

    def add(self, name, *peers):
        cid = cid_from_name("acme", name)
        self.known[cid] = {
            "account": "acme", "name": name, "srv": [{"type": "meta2", "host": peer} for peer in peers]
        }  # fmt: skip
        return cid

    def list(self, cid, **_kwargs):
        found = self.known.get(cid, NotFound(404, 431, "Container not found"))
        if isinstance(found, Exception):
            raise found
        return found


class Index:
    """Keeps what is pushed and deleted."""

    def __init__(self):
        self.pushed, self.deleted, self.error = [], [], None

    def meta2_index_push(self, **record):
        if self.error:
            raise self.error
        self.pushed.append(record)

    def meta2_index_delete(self, **record):
        if self.error:
            raise self.error
        self.deleted.append(record)


@pytest.fixture
def volume(tmp_path):
    """A directory that carries the marks of a meta2."""
    path = tmp_path / "meta2"
    path.mkdir()
    volume_lock.lock_volume(str(path), "TEST", "meta2", ID).release()
    return path


@pytest.fixture
def worker(volume):
    return make_worker(volume)


def make_worker(volume, **more):
    made = Meta2IndexingWorker(str(volume), {**CONF, **more})
    made.dir_client, made.index_client = Directory(), Index()
    made.warnings = []
    made.warn = lambda msg, db_id: made.warnings.append((db_id, msg))
    return made


def add_base(volume, name):
    directory = volume / name[:3]
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(b"")


def test_every_container_of_the_volume_is_pushed(volume, worker):
    for name in ("a", "b", "c"):
        add_base(volume, f"{worker.dir_client.add(name, 'other', ID)}.1.meta2")
    cid = cid_from_name("acme", "a")
    for name in (f"{cid}.1.meta2-wal", f"{cid}.1.meta2-shm", "something else"):
        add_base(volume, name)
    (volume / ".outbox").mkdir()
    (volume / ".outbox/x.meta2").write_bytes(b"")
    worker.crawl_volume()
    assert sorted(record["container_url"] for record in worker.index_client.pushed) == [
        "TEST/acme/a", "TEST/acme/b", "TEST/acme/c"
    ]  # fmt: skip
    record = next(found for found in worker.index_client.pushed if found["container_id"] == cid)
    assert record["volume_id"] == ID
    assert record["mtime"] > 1.7e9
    assert (worker.success_nb, worker.failed_nb, worker.warnings) == (3, 0, [])
    worker.crawl_volume()
    assert (worker.success_nb, worker.passes) == (3, 2)


def test_what_is_wrong_is_counted_and_does_not_stop_the_pass(volume, worker):
    good = worker.dir_client.add("good", ID)
    foreign = worker.dir_client.add("foreign", "other")
    broken = worker.dir_client.add("broken", ID)
    worker.dir_client.known[broken] = OioException("directory down")
    liar = worker.dir_client.add("liar", ID)
    worker.dir_client.known[liar] = worker.dir_client.known[good]
    unknown = cid_from_name("acme", "unknown")
    for cid in (good, foreign, broken, liar, unknown):
        add_base(volume, f"{cid}.1.meta2")
    for name in ("short.1.meta2", f"{good}.meta2", f"{good}.x.meta2", f"{good}.1.2.meta2"):
        add_base(volume, name)
    worker.crawl_volume()
    assert [record["container_id"] for record in worker.index_client.pushed] == [good]
    assert (worker.success_nb, worker.failed_nb) == (1, 8)
    told = dict(worker.warnings)
    assert "belongs to other" in told[f"{foreign}.1"]
    assert "directory down" in told[f"{broken}.1"]
    assert "another container" in told[f"{liar}.1"]
    assert "does not know" in told[f"{unknown}.1"]
    assert "malformed" in told["short.1.meta2"]
    assert worker.index_client.deleted == []
    worker.index_client.error = VolumeException("No rdir assigned")
    worker.crawl_volume()
    assert (worker.success_nb, worker.failed_nb) == (0, 9)


def test_records_of_containers_of_others_are_removed_when_asked_for(volume):
    worker = make_worker(volume, try_removing_faulty_indexes="true")
    cid = worker.dir_client.add("foreign", "other")
    add_base(volume, f"{cid}.1.meta2")
    worker.crawl_volume()
    (deleted,) = worker.index_client.deleted
    assert (deleted["volume_id"], deleted["container_path"], deleted["container_id"]) == (
        ID, "TEST/acme/foreign", cid
    )  # fmt: skip
    worker.index_client.error = OioException("rdir down")
    worker.crawl_volume()
    assert worker.failed_nb == 1


def test_one_base_by_its_name(worker):
    cid = worker.dir_client.add("a", ID)
    worker.index_meta2_database(f"{cid}.1")
    assert len(worker.index_client.pushed) == 1
    with pytest.raises(OioException):
        worker.index_meta2_database("nothing")


def test_passes_repeat_until_the_stop(volume):
    worker = make_worker(volume, interval="0.01", report_interval="0")
    add_base(volume, f"{worker.dir_client.add('a', ID)}.1.meta2")
    thread = threading.Thread(target=worker.run)
    thread.start()
    eventually(lambda: worker.passes >= 3, what="three passes")
    worker.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_only_volumes_of_meta2(tmp_path, volume):
    (tmp_path / "bare").mkdir()
    with pytest.raises(OioException, match="Missing attribute"):
        Meta2IndexingWorker(str(tmp_path / "bare"), CONF)
    os.setxattr(volume, volume_lock.XATTR_TYPE, b"rawx")
    with pytest.raises(OioException, match="Wrong attribute"):
        Meta2IndexingWorker(str(volume), CONF)


def test_the_daemon_has_a_worker_per_volume(volume):
    with pytest.raises(OioException, match="volume_list"):
        Meta2Indexer(CONF)
    daemon = Meta2Indexer({**CONF, "volume_list": f"{volume}, {volume},"})
    assert [worker.volume for worker in daemon.volume_workers] == [str(volume)] * 2
    for worker in daemon.volume_workers:
        worker.dir_client, worker.index_client = Directory(), Index()
    thread = threading.Thread(target=daemon.run)
    thread.start()
    eventually(lambda: all(worker.passes for worker in daemon.volume_workers), what="a pass of each")
    daemon.stop()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def no_console(monkeypatch):
    """As in a process of its own: a console that another test asked for would tell errors too."""
    monkeypatch.setattr(logger_module, "_console_used", False)


def test_the_command_line_writes_a_configuration(tmp_path, volume, monkeypatch, capsys, no_console):
    path = tmp_path / "indexer.conf"
    words = ["--namespace", "TEST", "--volume-list", str(volume), "/other", "--interval", "5", "--generate-config"]
    assert indexer.main([*words, str(path)]) == 0
    parser = configparser.ConfigParser()
    parser.read(path)
    written = dict(parser["meta2-indexer"])
    assert written == {"namespace": "TEST", "volume_list": f"{volume},/other", "interval": "5"}
    assert indexer.main([*words, str(tmp_path / "no/where")]) == 1
    assert "No such file" in capsys.readouterr().err
    started = []
    monkeypatch.setattr(Meta2Indexer, "start", lambda daemon: started.append(daemon.conf))
    monkeypatch.setattr(Meta2IndexingWorker, "__init__", lambda *_args: None)
    assert indexer.main(["--interval", "7", "--try-removing-faulty-indexes", str(path)]) == 0
    assert started == [{**written, "interval": "7", "try_removing_faulty_indexes": "True"}]
    (tmp_path / "empty.conf").write_text("[meta2-indexer]\n")
    assert indexer.main([str(tmp_path / "empty.conf")]) == 1
    said = capsys.readouterr().err
    assert "volume_list is missing" in said and said.count("\n") == 1, "also without -v"


def test_a_volume_of_something_else_is_told_without_verbose_option(tmp_path, capsys, no_console):
    path = tmp_path / "indexer.conf"
    path.write_text(f"[meta2-indexer]\nnamespace = TEST\nvolume_list = {tmp_path}\n")
    assert indexer.main([str(path)]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path) in said and said.count("\n") == 1
