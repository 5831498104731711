# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-check-consistency`` on a real cluster: silent when all agrees, exact about what does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ACCOUNT, ROOT, eventually, start_cluster

from oio import ObjectStorageApi
from oio.account.client import AccountClient
from oio.consistency.main import check_namespace
from oio.rdir.client import RdirClient


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    sandbox = start_cluster(
        tmp_path_factory.mktemp("checked"), f"CHECK{os.getpid()}", rawx=3, chunk_size=2**20
    )
    yield sandbox
    sandbox.destroy()


@pytest.fixture
def api(cluster):
    return ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy)


@pytest.fixture
def conf(cluster):
    return {"namespace": cluster.namespace, "proxyd_url": cluster.proxy}


@pytest.fixture
def check(cluster):
    """Kinds and subjects of what is wrong, in one pass."""

    def run():
        report = check_namespace(cluster.namespace, cluster.proxy, passes=1)
        assert report.unchecked == []
        return {(finding.kind, finding.subject) for finding in report.findings}

    return run


@pytest.fixture
def chunk(api, request, check):
    """One chunk of an object of the test's own: volume, chunk id, container id, content id."""
    container = request.node.name
    api.object_create(ACCOUNT, container, obj_name="o", data=b"data", policy="SINGLE")
    eventually(lambda: check() == set(), what="agreement")
    meta, chunks = api.object_locate(ACCOUNT, container, "o")
    volume, chunk_id = chunks[0]["url"].partition("://")[2].split("/")
    system = api.container_get_properties(ACCOUNT, container)["system"]
    yield volume, chunk_id, system["sys.name"].partition(".")[0], meta["id"]
    api.object_delete(ACCOUNT, container, "o")


def chunk_file(cluster, volume, chunk_id):
    service = next(service for service in cluster.services("rawx") if service.service_id == volume)
    return next(Path(service.volume).glob(f"*/{chunk_id}"))


def test_a_cluster_at_work_comes_to_agree(api, check):
    for number in range(60):
        policy = ("SINGLE", "TWOCOPIES", "THREECOPIES")[number % 3]
        data = b"x" * (number * 997)
        container = f"work-{number % 4}"
        api.object_create(ACCOUNT, container, obj_name=f"o{number}", data=data, policy=policy)
    for number in range(0, 60, 3):
        api.object_delete(ACCOUNT, f"work-{number % 4}", f"o{number}")
    api.object_create(ACCOUNT, "work-1", obj_name="o1", data=b"again", policy="THREECOPIES")
    api.object_drain(ACCOUNT, "work-2", "o2")
    api.container_flush(ACCOUNT, "work-3")
    api.container_delete(ACCOUNT, "work-3")
    eventually(lambda: check() == set(), what="agreement")


def test_a_lost_chunk_file_is_told(cluster, check, chunk):
    volume, chunk_id = chunk[:2]
    chunk_file(cluster, volume, chunk_id).unlink()
    assert check() == {("chunk-missing", f"{volume}/{chunk_id}")}


def test_a_container_that_is_linked_and_not_there_is_told(cluster, api, check, request):
    """As after a creation that failed between the directory and meta2."""
    name = request.node.name
    api.directory.create(ACCOUNT, name)
    api.directory.link(ACCOUNT, name, "meta2")
    service = cluster.services("meta2")[0].service_id
    missing = {("base-missing", f"{service} {cluster.namespace}/{ACCOUNT}/{name}")}
    eventually(lambda: check() == missing, what="the index knows the link")
    api.container_create(ACCOUNT, name)
    eventually(lambda: check() == set(), what="agreement")
    api.container_delete(ACCOUNT, name)


def test_a_lost_index_record_is_told(conf, check, chunk):
    volume, chunk_id, cid, content = chunk
    RdirClient(conf).chunk_delete(volume, cid, content, chunk_id)
    assert check() == {("chunk-not-indexed", f"{volume}/{chunk_id}")}


def test_an_index_record_of_nothing_is_told(conf, check, chunk):
    volume, _chunk_id, cid, content = chunk
    rdir, strange = RdirClient(conf), "AB" * 32
    rdir.chunk_push(volume, cid, content, strange, mtime=1)
    assert check() == {("index-unknown", f"{volume}/{strange}")}
    rdir.chunk_delete(volume, cid, content, strange)


def test_an_orphan_file_is_told(cluster, check, chunk):
    volume, chunk_id = chunk[:2]
    found = chunk_file(cluster, volume, chunk_id)
    orphan = found.with_name(chunk_id[:-4] + "0000")
    orphan.write_bytes(b"data")
    os.setxattr(orphan, f"user.oio.content.fullpath:{orphan.name}", b"a/c/o/1/00")
    assert check() == {("chunk-orphan", f"{volume}/{orphan.name}")}
    orphan.unlink()


def test_wrong_counters_of_an_account_are_told(conf, check, chunk, request):
    container = request.node.name
    shown = AccountClient(conf).container_show(ACCOUNT, container)
    update = {"mtime": float(shown["mtime"]) + 0.01, "objects": 5, "bytes": int(shown["bytes"])}
    AccountClient(conf).container_update(ACCOUNT, container, update)
    assert check() == {
        ("account-container-counters", f"{ACCOUNT}/{container}"), ("account-counters", ACCOUNT),
    }  # fmt: skip
    # The container tells its state again: that is the repair.
    ObjectStorageApi(conf["namespace"], endpoint=conf["proxyd_url"]).container_refresh(ACCOUNT, container)
    eventually(lambda: check() == set(), what="agreement")


def test_the_program_reports_what_stays_wrong_over_its_passes(cluster, chunk):
    volume, chunk_id = chunk[:2]
    chunk_file(cluster, volume, chunk_id).unlink()
    command = [sys.executable, ROOT / "bin" / "oio-check-consistency", cluster.namespace]
    command += ["--passes", "2", "--pause", "0.1"]
    environment = {**os.environ, "OIO_SDS_CONF": cluster.layout.sds_conf, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 1, run.stderr
    report = json.loads(run.stdout)
    assert not report["consistent"] and report["passes"] == 2
    assert [finding["subject"] for finding in report["findings"]] == [f"{volume}/{chunk_id}"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert f"  {volume}/{chunk_id}: " in run.stdout


def test_an_unknown_namespace_is_a_clear_failure():
    run = subprocess.run(
        [sys.executable, ROOT / "bin" / "oio-check-consistency", "NOWHERE"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "NOWHERE" in run.stderr and "Traceback" not in run.stderr
