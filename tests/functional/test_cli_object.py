# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio object``: what ``test_cli.py`` does not run."""

import hashlib
import os
import subprocess
import sys

import pytest
from cli_program import OpenioProgram
from support import ACCOUNT

from oio.common.utils import cid_from_name

COLUMNS = ("Name", "Size", "Hash", "Version")
LONG = (*COLUMNS, "Deleted", "Content-Type", "Last-Modified", "Policy", "Properties")


@pytest.fixture
def openio(cluster, tmp_path):
    return OpenioProgram(cluster, tmp_path)


@pytest.fixture
def put(api, container):
    def put(name, data=b"data", **kwargs):
        api.object_create(ACCOUNT, container, data=data, obj_name=name, **kwargs)

    return put


def test_every_format_of_objects(openio, container, put, tmp_path):
    put("a", properties={"k": "v"})
    put("b")
    rows = openio.formats_of_list("object", "list", container, columns=COLUMNS)
    assert [row["Name"] for row in rows] == ["a", "b"]
    assert tuple(openio.json("object", "list", container, "--long")[0]) == LONG
    shown = openio.formats_of_show("object", "show", container, "a")
    assert list(shown) == [
        "account", "container", "ctime", "hash", "id", "meta.k", "mime-type", "mtime", "object", "policy", "size",
        "version",
    ]  # fmt: skip
    columns = ("Pos", "Id", "Metachunk size", "Metachunk hash")
    assert len(openio.formats_of_list("object", "locate", container, "a", columns=columns, moving=["Id"])) == 3
    (tmp_path / "f").write_bytes(b"x")
    (row,) = openio.formats_of_list(
        "object", "create", container, "f", columns=("Name", "Size", "Hash", "Status")
    )
    assert row["Hash"] == hashlib.md5(b"x").hexdigest().upper()
    assert openio("object", "delete", container, "f", "-f", "csv").stdout == '"Name","Deleted"\n"f",True\n'


def test_a_drained_object_has_no_data_left(openio, api, container, put):
    put("a")
    put("b")
    openio.silent("object", "drain", container, "a")
    assert "drained" in openio.error("object", "save", container, "a", "--file", "copy")
    assert openio.json("object", "show", container, "a")["size"] == "4"
    openio.silent("object", "drain", "--cid", cid_from_name(ACCOUNT, container), "b")
    assert "(HTTP 404)" in openio.error("object", "drain", container, "absent")
    openio.silent("object", "drain", "--auto", container, "a")


def test_links(openio, api, container, put):
    put("a", properties={"k": "v"})
    openio.silent("object", "link", container, "a", "l1")
    assert openio.json("object", "show", container, "l1")["meta.k"] == "v"
    cid = cid_from_name(ACCOUNT, container)
    openio.silent(
        "object", "link", "--cid", cid, "a", "l2", "--property", "x=y", "--dest-container", "ignored"
    )
    shown = openio.json("object", "show", "--cid", cid, "l2")
    assert (shown["meta.x"], shown.get("meta.k")) == ("y", None)
    _meta, chunks = api.object_locate(ACCOUNT, container, "l2", chunk_info=True)
    assert all(chunk["full_path"].startswith(f"{ACCOUNT}/{container}/l2/") for chunk in chunks)
    other = container + "-other"
    api.container_create(ACCOUNT, other)
    openio.silent("object", "link", container, "a", "l3", "--link-container", other, "--dest-content-id", "A" * 32)
    assert openio.json("object", "show", other, "l3")["id"] == "A" * 32
    version = openio.json("object", "show", container, "a")["version"]
    content_id = openio.json("object", "show", container, "a")["id"]
    openio.silent("object", "link", container, "a", "l4", "--object-version", version, "--content-id", content_id)
    assert "'absent' does not exist" in openio.error("object", "link", container, "absent", "l5")
    _meta, stream = api.object_fetch(ACCOUNT, container, "l1")
    assert b"".join(stream) == b"data"


def test_links_of_computed_containers(openio, tmp_path):
    (tmp_path / "link-source").write_bytes(b"x")
    openio("object", "create", "--auto", "link-source")
    openio.silent("object", "link", "--auto", "link-source", "link-made")
    shown = openio.json("object", "show", "--auto", "link-made")
    assert shown["container"] != openio.json("object", "show", "--auto", "link-source")["container"]
    assert openio.json("object", "delete", "--auto", "_", "link-source", "nothing-there", "link-made") == [
        {"Name": "link-source", "Deleted": True},
        {"Name": "nothing-there", "Deleted": False},
        {"Name": "link-made", "Deleted": True},
    ]


def test_touch(openio, container, put):
    put("a")
    put("b")
    openio.silent("object", "touch", container, "a", "b")
    openio.silent("object", "touch", "--cid", cid_from_name(ACCOUNT, container), "a")
    version = openio.json("object", "show", container, "a")["version"]
    openio.silent("object", "touch", container, "a", "--object-version", version)
    line = openio.error("object", "touch", container, "a", "b", "--object-version", version)
    assert line == "Cannot specify a version for several objects"
    assert "(HTTP 404)" in openio.error("object", "touch", container, "absent")


def test_purge_of_one_object(openio, api, container, put):
    openio("container", "set", container, "--versioning", "-1")
    for name in ("a", "a", "a", "b", "b"):
        put(name)

    def versions():
        return [item["name"] for item in api.object_list(ACCOUNT, container, versions=True)["objects"]]

    openio.silent("object", "purge", container, "a", "--max-versions", "2")
    assert versions() == ["a", "a", "b", "b"]
    openio.silent("object", "purge", "--cid", cid_from_name(ACCOUNT, container), "b", "--max-versions", "1")
    assert versions() == ["a", "a", "b"]


def test_names_that_are_not_text_are_failed_rows(openio, container, tmp_path):
    (tmp_path / "strange").write_bytes(b"x")
    done = openio("object", "create", container, "strange", "--name", "\udcff", "-f", "value", status=1)
    assert done.stdout == "\udcff 0 None Failed\n" and "not UTF-8" in done.stderr
    for name in ("line\nfeed", "\x1b[31mred", "é/漢", " ", "a" * 1023):
        (row,) = openio.json("object", "create", container, "strange", f"--name={name}")
        assert row["Name"] == name
        assert openio.json("object", "show", container, name)["object"] == name
    openio("object", "create", container, "strange", "--name=-dash")
    assert openio("object", "show", "-f", "value", "-c", "object", container, "--", "-dash").stdout == "-dash\n"
    table = openio("object", "list", container, "--prefix", "\x1b").stdout
    assert "\\x1b[31mred" in table and "\x1b" not in table
    plain = openio("object", "list", container, "--prefix", "\x1b", "-f", "value", "-c", "Name").stdout
    assert plain == "\x1b[31mred\n"


def test_what_cannot_be_a_name_is_told_before_anything_is_done(openio, container, put, tmp_path):
    put("a")
    (tmp_path / "file").write_bytes(b"x")
    bad = os.fsdecode(b"a\xff")
    for words in (
        ["show", container], ["save", container], ["delete", container, "a"], ["touch", container],
        ["show", "--auto"], ["locate", container], ["link", container, "a"],
    ):  # fmt: skip
        assert "is not UTF-8" in openio.error("object", *words, bad)
        assert "cannot be empty" in openio.error("object", *words, "")
    done = openio("object", "create", "--auto", "file", "--name", bad, status=1)
    assert "is not UTF-8" in done.stderr and "codec" not in done.stderr
    assert [row["Name"] for row in openio.json("object", "list", container)] == ["a"]


def test_a_name_does_not_look_like_several_rows(openio, container, put):
    put("a\n| b |", properties={"k": "v", "l": "w"})
    (row,) = openio("object", "list", container).stdout.splitlines()[3:-1]
    assert row.startswith("| a\\n| b | ")
    # Properties have a line each.
    assert len(openio("object", "list", container, "--long").stdout.splitlines()[3:-1]) == 2
    assert "a\\n| b |" in openio("object", "show", container, "a\n| b |").stdout


def test_a_reader_that_goes_away_is_no_error(openio, container, put):
    put("a")
    for words in (["object", "list", container, "-f", "value"], ["help"], ["object", "list", container]):
        process = openio.start(*words)
        process.stdout.close()
        assert process.stderr.read() == b""
        # Help goes through a pager, which does not mind.
        assert process.wait(30) == (0 if words == ["help"] else 141)
        process.stderr.close()


def test_a_full_disk_is_told(openio, container, put):
    put("a")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "oio.cli.openio", "object", "list", container], env=openio.environment,
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "[Errno 28] No space left on device\n")
