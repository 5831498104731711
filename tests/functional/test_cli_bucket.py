# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio bucket``: every command."""

import re
import time

import pytest
from cli_program import OpenioProgram
from support import eventually

from oio.common.exceptions import NotFound

COLUMNS = ("Name", "Bytes", "Objects", "Mtime")


@pytest.fixture
def bucket():
    # Names of buckets are those of no other test of any account; accounts are named after them here.
    return f"bucket-{time.time_ns()}"


@pytest.fixture
def openio(cluster, tmp_path, bucket):
    return OpenioProgram(cluster, tmp_path, account="a-" + bucket)


def account_of(api, bucket):
    try:
        return api.bucket_show(bucket)["account"]
    except NotFound:
        return None


def test_a_bucket_is_set_before_it_has_containers(openio, api, bucket):
    changed = openio.json("bucket", "set", bucket, "--replicate", "on")
    shown = openio.json("bucket", "show", bucket)
    assert changed == shown and shown["replication_enabled"] is True
    openio("container", "create", "--bucket-name", bucket, bucket)
    eventually(lambda: account_of(api, bucket))
    shown = openio.formats_of_show("bucket", "show", bucket, moving=["mtime"])
    assert list(shown) == [
        "account", "bytes", "damaged_objects", "missing_chunks", "mtime", "objects", "replication_enabled",
    ]  # fmt: skip
    assert shown["replication_enabled"] is True
    assert openio.json("bucket", "set", bucket)["replication_enabled"] is True
    assert openio.json("bucket", "set", bucket, "--replication", "NO")["replication_enabled"] is False
    for word in ("maybe", ""):
        done = openio("bucket", "set", bucket, "--replicate", word, status=2)
        assert f"invalid boolean {word!r}" in done.stderr
    table = openio("bucket", "show", bucket, "-c", "mtime").stdout
    assert re.search(r"\| [0-9]{4}-[0-9]{2}-[0-9]{2}T", table)


def test_buckets_are_listed(openio, api, bucket):
    names = [f"{bucket}-{number}" for number in range(3)]
    for number, name in enumerate(names):
        openio("container", "create", "--bucket-name", name, "--versioning", str(number - 1), name)
    eventually(lambda: len(api.bucket_list("a-" + bucket)["listing"]) == 3)
    rows = openio.formats_of_list("bucket", "list", columns=COLUMNS, moving=["Mtime"])
    assert [row["Name"] for row in rows] == names
    rows = openio.json("bucket", "list", "--versioning")
    assert [row["Versioning"] for row in rows] == ["Enabled", "Suspended", "Enabled"]

    def listed(*args):
        return openio("bucket", "list", *args, "-c", "Name", "-f", "value").stdout.split()

    assert listed("--limit", "2") == names[:2]
    assert listed("--marker", names[0]) == names[1:]
    assert listed("--prefix", names[1]) == [names[1]]
    assert listed("--full", "--limit", "1") == names
    assert len(openio("bucket", "list", "--no-paging").stdout.splitlines()) == 3
    openio("container", "delete", names[1])
    assert "--limit wants a positive number" in openio.error("bucket", "list", "--limit", "x")


def test_a_bucket_is_refreshed_with_its_folders(openio, api, bucket):
    roots = [bucket, bucket + "%2Ffolder", bucket + "+segments", bucket + "+segments%2Fpart", bucket + "-other"]
    openio("container", "create", "--bucket-name", bucket, *roots)
    eventually(lambda: account_of(api, bucket))
    eventually(lambda: len(api.container_list("a-" + bucket)) == len(roots))
    openio.silent("bucket", "refresh", bucket)
    done = openio("bucket", "refresh", bucket, "--touch", "--recompute")
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == "4 events triggered" and "without --touch" in second
    assert "--recompute goes with --touch" in openio.error("bucket", "refresh", bucket, "--recompute")
    assert "(HTTP 404)" in openio.error("bucket", "refresh", bucket + "-absent")
    line = openio.error("bucket", "show", bucket + "-absent")
    assert "(HTTP 404)" in line and "reqid=CLI-BUCKET-" in line


def test_containers_that_cannot_be_touched_do_not_stop_the_others(openio, api, bucket):
    openio("container", "create", "--bucket-name", bucket, bucket)
    eventually(lambda: account_of(api, bucket))
    done = openio("bucket", "refresh", bucket, "--touch")
    errors, *counts = done.stderr.splitlines()
    assert f"/{bucket}+segments: " in errors and counts[0] == "1 events triggered"
