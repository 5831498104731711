# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Long listings: all of 100,000 objects, or as many of them or of containers as asked for, in constant memory."""

import csv
import json
import subprocess
import sys
import time

import pytest
from cli_program import OpenioProgram
from proxy_http import RawProxy
from support import ACCOUNT, ROOT

OBJECTS = 100_000
BATCH = 5_000
#: Services give 10,000 at once.
CONTAINERS = 25_000
TOLD_AT_ONCE = 1_000
#: What a listing may take beyond that of an empty container: pages, and the start of a table that is wide.
MEMORY_MAX_KIB = 24 << 10

#: Less than what the rows of a page of 10,000 containers take.
PAGE_KIB = 4 << 10

#: Runs ``openio``, then tells the peak of its memory in the last line of its errors.
PROGRAM = """
import sys
from oio.cli.openio import main
status = main()
text = open("/proc/self/status").read()
sys.stdout.flush()
print(int(text.partition("VmHWM:")[2].split()[0]), file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def large(cluster):
    """A container of many objects, whose rows are inserted as they are."""
    from oio import ObjectStorageApi

    name = f"large-{time.time_ns()}"
    ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy).container_create(ACCOUNT, name)
    proxy = RawProxy(cluster.proxy, cluster.namespace)
    for first in range(0, OBJECTS, BATCH):
        rows = [row for number in range(first, first + BATCH) for row in rows_of(number)]
        answer = proxy.post("container/raw_insert", {"acct": ACCOUNT, "ref": name}, body=rows)
        assert answer.status == 204, answer.data
    proxy.pool.close()
    return name


def name_of(number):
    return f"an object of a long listing, with the number {number:06}"


def rows_of(number):
    content = f"{number + 1:032X}"
    yield {
        "type": "header", "id": content, "chunk-method": "plain/nb_copy=1", "mime-type": "text/plain",
        "hash": content, "size": number,
    }  # fmt: skip
    yield {
        "type": "alias", "name": name_of(number), "version": 1 + number, "header": content, "ctime": 1, "mtime": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def crowded(cluster):
    """An account that was told of many containers."""
    from oio import ObjectStorageApi

    account = f"crowded-{time.time_ns()}"
    client = ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy).account
    client.account_create(account)
    for first in range(0, CONTAINERS, TOLD_AT_ONCE):
        numbers = range(first, min(first + TOLD_AT_ONCE, CONTAINERS))
        empty = {"account": account, "mtime": 1, "objects": 0, "bytes": 0}
        told = [{**empty, "name": f"{number:06}"} for number in numbers]
        assert {reply["status"] for reply in client.container_update_many(told)} == {200}
    yield account
    client.account_flush(account)
    client.account_delete(account)


@pytest.fixture
def listing(cluster, container, tmp_path):
    """Runs a listing: the lines, and the peak of the memory in KiB."""
    openio = OpenioProgram(cluster, tmp_path)

    def run(*args):
        with open(tmp_path / "listing", "w+", encoding="utf-8") as out:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, *args], cwd=ROOT, env=openio.environment,
                stdout=out, stderr=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            out.seek(0)
            (peak_kib,) = done.stderr.splitlines()
            return out.read().splitlines(), int(peak_kib)

    return run


READERS = {
    "value": lambda lines: [line.rsplit(" ", 3)[0] for line in lines],
    "csv": lambda lines: [row[0] for row in csv.reader(lines[1:])],
    "json": lambda lines: [row["Name"] for row in json.loads("\n".join(lines))],
    "table": lambda lines: [line.split("|")[1].strip() for line in lines[3:-1]],
}


@pytest.mark.parametrize("form", READERS)
def test_all_the_objects_are_listed_in_constant_memory(listing, large, container, form):
    _, empty_kib = listing("object", "list", container, "--full", "-f", form)
    lines, peak_kib = listing("object", "list", large, "--full", "-f", form)
    assert READERS[form](lines) == [name_of(number) for number in range(OBJECTS)]
    assert peak_kib - empty_kib < MEMORY_MAX_KIB


@pytest.mark.parametrize("limit", [9_999, 10_001, 30_000])
def test_as_many_objects_as_asked_for(listing, large, limit):
    first = name_of(499)
    lines, _ = listing("object", "list", large, "--limit", str(limit), "--marker", first, "-f", "value")
    assert READERS["value"](lines) == [name_of(number) for number in range(500, 500 + limit)]


@pytest.mark.parametrize("limit", [10_000, 10_001, 1_000_000])
def test_as_many_containers_as_asked_for(listing, crowded, limit):
    names = [f"{number:06}" for number in range(CONTAINERS)]
    where = ("container", "list", "-a", crowded, "-f", "value", "-c", "Name")
    assert listing(*where, "--limit", str(limit))[0] == names[:limit]
    few = ("--prefix", "00", "--end-marker", "000010")
    assert listing(*where, "--limit", str(limit), *few)[0] == names[:10]
    lines, _ = listing(*where, "--limit", str(limit), "--marker", names[99], "--delimiter", "9")
    assert len(lines) <= limit and lines == sorted(set(lines)) and lines[0] == names[100]


@pytest.mark.parametrize("form", ["value", "csv"])
def test_rows_of_many_containers_take_constant_memory(listing, crowded, form):
    where = ("container", "list", "-a", crowded, "-f", form)
    _, page_kib = listing(*where, "--limit", "10000")
    lines, peak_kib = listing(*where, "--limit", str(CONTAINERS))
    assert len(lines) == CONTAINERS + (form == "csv")
    assert peak_kib - page_kib < PAGE_KIB


def test_a_page_is_what_is_listed_without_a_limit(listing, crowded):
    lines, _ = listing("container", "list", "-a", crowded, "-f", "value")
    assert len(lines) == 1_000
