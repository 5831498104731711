# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio object list`` of 100,000 objects: all of them, in every format, in constant memory."""

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
#: What a listing may take beyond that of an empty container: pages, and the start of a table that is wide.
MEMORY_MAX_KIB = 24 << 10

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


@pytest.fixture
def listing(cluster, container, tmp_path):
    """Lists a container to its end: the lines, and the peak of the memory in KiB."""
    openio = OpenioProgram(cluster, tmp_path)

    def run(name, *args):
        with open(tmp_path / "listing", "w+", encoding="utf-8") as out:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, "object", "list", name, "--full", *args], cwd=ROOT,
                env=openio.environment, stdout=out, stderr=subprocess.PIPE, text=True, check=True,
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
    _, empty_kib = listing(container, "-f", form)
    lines, peak_kib = listing(large, "-f", form)
    assert READERS[form](lines) == [name_of(number) for number in range(OBJECTS)]
    assert peak_kib - empty_kib < MEMORY_MAX_KIB
