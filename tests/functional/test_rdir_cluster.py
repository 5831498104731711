# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The reverse directory of a running cluster: assignments, records that follow the chunks, commands."""

import json
import os
import subprocess
import sys
import time

import pytest
from support import ACCOUNT, ROOT, eventually

from oio.common.exceptions import ClientException, NotFound, VolumeException
from oio.common.status import POLICY_NOT_SATISFIABLE
from oio.directory.indexer import Meta2IndexingWorker
from oio.rdir.client import RdirClient
from oio.rdir.dispatcher import RdirDispatcher, volume_id_of


@pytest.fixture
def rdir(cluster):
    """A client of the reverse directory."""
    return RdirClient({"namespace": cluster.namespace}, endpoint=cluster.proxy)


@pytest.fixture
def dispatcher(cluster, rdir):
    """What assigns reverse directories."""
    return RdirDispatcher({"namespace": cluster.namespace}, rdir_client=rdir, endpoint=cluster.proxy)


@pytest.fixture
def openio(cluster, tmp_path):
    """Run ``openio`` with these arguments; returns the finished process."""

    def run(*args, check=True):
        environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "oio.cli.openio", *args], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, done.stderr + done.stdout
        return done

    run.json = lambda *args, **kwargs: json.loads(run(*args, "-f", "json", **kwargs).stdout)
    return run


def volume_of(chunk):
    return chunk["url"].split("/")[2]


def test_records_follow_the_chunks(api, container, rdir):
    chunks, *_ = api.object_create_ext(ACCOUNT, container, obj_name="o", data=b"x" * 5000, policy="THREECOPIES")
    cid = api.container_get_properties(ACCOUNT, container)["system"]["sys.name"].partition(".")[0]

    def recorded():
        return {
            (volume, chunk)
            for volume in map(volume_of, chunks)
            for _cid, _content, chunk, _value in rdir.chunk_fetch(volume, container_id=cid)
        }

    wanted = {(volume_of(chunk), chunk["url"].rpartition("/")[2]) for chunk in chunks}
    eventually(lambda: recorded() == wanted, what="the records of the chunks")
    (_cid, _content, _chunk, value), = rdir.chunk_fetch(volume_of(chunks[0]), container_id=cid)
    assert abs(value["mtime"] - time.time()) < 60
    assert rdir.status(volume_of(chunks[0]), prefix=cid)["container"] == {cid: {"total": 1}}
    api.object_delete(ACCOUNT, container, "o")
    eventually(lambda: recorded() == set(), what="the end of the records")


def test_containers_are_indexed_and_indexed_again(cluster, api, container, rdir):
    url = f"{cluster.namespace}/{ACCOUNT}/{container}"
    links = api.directory.list(ACCOUNT, container, service_type="meta2")
    peer = links["srv"][0]["host"]

    def indexed():
        page = rdir.meta2_index_fetch(peer, prefix=url)
        return [record["container_id"] for record in page["records"]]

    eventually(lambda: indexed() == [links["cid"]], what="the record of the container")
    rdir.meta2_index_delete(peer, container_path=url)
    assert indexed() == []
    number = peer.rpartition("-")[2]
    volume = next(
        service["tags"]["tag.vol"] for service in rdir.cs.all_services("meta2")
        if volume_id_of(service) == peer
    )  # fmt: skip
    conf = {"namespace": cluster.namespace, "proxyd_url": cluster.proxy, "scanned_per_second": "0"}
    worker = Meta2IndexingWorker(volume, conf)
    worker.crawl_volume()
    assert indexed() == [links["cid"]], number
    assert worker.success_nb >= 1


def test_every_volume_has_an_rdir(dispatcher):
    for kind in ("rawx", "meta2"):
        services, rdirs = dispatcher.get_assignments(kind)
        addresses = {rdir["addr"] for rdir in rdirs}
        assert services and all(service["rdir"]["addr"] in addresses for service in services)
        again = dispatcher.assign_services(kind)
        assert {volume_id_of(s): s["rdir"]["addr"] for s in again} == {
            volume_id_of(s): s["rdir"]["addr"] for s in services
        }


def test_assigning_again_and_distances(dispatcher, rdir):
    services, rdirs = dispatcher.get_assignments("rawx")
    volume = volume_id_of(services[0])
    (service,) = dispatcher.assign_services("rawx", service_id=volume, reassign=True, min_dist=1)
    assert service["rdir"]["addr"] in {known["addr"] for known in rdirs}
    assert rdir._get_rdir_addr(volume) == service["rdir"]["addr"]
    assert rdir.admin_show(volume) == {}
    # All the services are on one host.
    with pytest.raises(ClientException) as raised:
        dispatcher.assign_services("rawx", service_id=volume, reassign=True, min_dist=3, dry_run=True)
    assert raised.value.status == POLICY_NOT_SATISFIABLE
    dispatcher.assign_services("rawx", service_id=volume, reassign=True, dry_run=True)


def test_a_volume_without_rdir(rdir):
    with pytest.raises(VolumeException, match="No rdir assigned to volume nobody"):
        rdir.chunk_push("nobody", "A" * 64, "B" * 32, "C" * 64)


def test_commands_of_assignments(openio, cluster):
    rows = openio.json("rdir", "assignments", "rawx")
    assert [list(row) for row in rows[:1]] == [["Rdir", "Rawx", "Rdir location", "Rawx location"]]
    volumes = sorted(row["Rawx"] for row in rows)
    assert len(set(volumes)) == 12
    assert openio.json("rdir", "bootstrap", "rawx") == rows
    assert openio.json("rdir", "bootstrap", "rawx", "--dry-run", "--max-per-rdir", "40", "--min-dist", "1") == rows
    one = openio.json("rdir", "bootstrap", "rawx", "--service-id", volumes[0])
    assert [row["Rawx"] for row in one] == volumes[:1]
    (total,) = openio.json("rdir", "assignments", "rawx", "--aggregated")
    assert (total["Number of bases"], sorted(total["Bases"].split())) == (12, volumes)
    assert list(openio.json("rdir", "assignments", "meta2")[0])[1] == "Meta2"
    old = openio("volume", "assignation", "-f", "json")
    assert json.loads(old.stdout) == rows
    assert "Deprecated" in old.stderr
    assert json.loads(openio("volume", "admin", "bootstrap", "-f", "json").stdout) == rows
    wrong = openio("rdir", "bootstrap", "rawx", "--service-id", "nobody", check=False)
    assert wrong.returncode == 1
    assert "nobody isn't a rawx" in wrong.stderr
    assert openio("rdir", "assignments", "nothing", check=False).returncode == 1


def test_commands_of_volumes(openio, rdir):
    one, two = (row["Rawx"] for row in openio.json("rdir", "assignments", "rawx")[:2])
    cid = f"{time.time_ns():064X}"
    for number in range(3):
        rdir.chunk_push(one, cid, "B" * 32, f"{number:064X}", mtime=number + 1)
    shown = openio.json("volume", "show", one)
    assert json.loads(shown[f"container.{cid}"]) == {"total": 3}
    assert shown["chunk"]["total"] >= 3
    try:
        rows = openio.json("volume", "admin", "incident", one, two, "--date", "2")
        assert rows[0] == {"Volume": one, "Date": 2}
        assert abs(rows[1]["Date"] - time.time()) < 60
        assert openio.json("volume", "admin", "lock", one, "--key", "me") == [{"Volume": one, "Success": True}]
        assert openio.json("volume", "admin", "show", one) == {
            "volume": one, "incident_date": "2", "lock": "me"
        }  # fmt: skip
        assert json.loads(openio.json("volume", "show", one)[f"container.{cid}"]) == {"total": 3, "to_rebuild": 2}
        refused = openio("volume", "admin", "lock", one, "--key", "you", check=False)
        assert (refused.returncode, "Already locked by me" in refused.stderr) == (1, True)
        cleared = openio("volume", "admin", "clear", "--repair", one, two, "-f", "json", check=False)
        assert cleared.returncode == 1
        first, second = json.loads(cleared.stdout)
        assert (first["Success"], "Already locked by me" in first["Message"]) == (False, True)
        assert (second["Volume"], second["Success"]) == (two, True)
    finally:
        openio("volume", "admin", "unlock", one, two)
    (row,) = openio.json("volume", "admin", "clear", "--before-incident", one)
    assert row == {"Volume": one, "Success": True, "Message": {"removed": 2, "repaired": 0, "errors": 0}}
    assert openio.json("volume", "admin", "show", one) == {"volume": one}
    rdir.chunk_delete(one, cid, "B" * 32, f"{2:064X}")
    (row,) = openio.json("volume", "admin", "clear", "--repair", one)
    assert row["Message"]["errors"] == 0
    for command in (["volume", "show"], ["volume", "admin", "show"]):
        missing = openio(*command, "nobody", check=False)
        assert (missing.returncode, "No rdir assigned to volume nobody" in missing.stderr) == (1, True)


def test_an_unknown_database(rdir, dispatcher):
    """A link whose database does not exist: as if nothing had been pushed."""
    services, _rdirs = dispatcher.get_assignments("rawx")
    address = services[0]["rdir"]["addr"]
    rdir._get_rdir_addr = lambda _volume, **_kwargs: address
    with pytest.raises(NotFound, match="DB not found"):
        list(rdir.chunk_fetch("never"))
