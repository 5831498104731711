# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio container``: what ``test_cli.py`` does not run."""

import re

import pytest
from cli_program import OpenioProgram
from support import ACCOUNT, eventually

from oio.common.utils import cid_from_name


@pytest.fixture
def openio(cluster, tmp_path):
    return OpenioProgram(cluster, tmp_path)


@pytest.fixture
def fill(api, container):
    def fill(*names, data=b"data"):
        for name in names:
            api.object_create(ACCOUNT, container, data=data, obj_name=name)

    return fill


def names_in(api, container, **kwargs):
    return [item["name"] for item in api.object_list(ACCOUNT, container, **kwargs)["objects"]]


def test_every_format_of_a_container(openio, container):
    shown = openio.formats_of_show("container", "show", container, moving=["ctime"])
    assert shown["container"] == container and shown["base_name"].startswith(cid_from_name(ACCOUNT, container))
    (row,) = openio.formats_of_list("container", "create", container, columns=("Name", "Created"))
    assert row == {"Name": container, "Created": False}


def test_every_format_of_the_list(openio, api, container):
    account = container[-19:]
    api.account_create(account)
    openio("container", "create", "a", "b", "b/c", "d", account=account)
    eventually(lambda: len(api.container_list(account)) == 4)
    columns = ("Name", "Bytes", "Count", "Mtime", "CID")
    openio.environment["OIO_ACCOUNT"] = account
    rows = openio.formats_of_list("container", "list", columns=columns, moving=["Mtime"])
    assert [row["CID"] for row in rows] == [cid_from_name(account, name) for name in ("a", "b", "b/c", "d")]

    def listed(*args):
        return openio("container", "list", *args, "-f", "value", "-c", "Name").stdout.split()

    assert listed("--prefix", "b") == ["b", "b/c"]
    assert listed("--delimiter", "/") == ["a", "b", "b/", "d"]
    assert listed("--marker", "b", "--limit", "1") == ["b/c"]
    assert listed("--end-marker", "b/c") == ["a", "b"]
    assert listed("--full", "--limit", "1") == ["a", "b", "b/c", "d"]
    assert openio("container", "list", "--no-paging").stdout.startswith("a 0 0 ")


def test_where_a_container_is(openio, container):
    shown = openio.formats_of_show("container", "locate", container)
    assert list(shown) == ["account", "base_name", "meta0", "meta1", "meta2", "meta2.sys.peers", "name", "status"]
    assert shown == openio.json("container", "locate", "--cid", shown["base_name"])
    assert (shown["account"], shown["name"], shown["status"]) == (ACCOUNT, container, "Enabled")
    assert all(shown[key] for key in ("meta0", "meta1", "meta2", "meta2.sys.peers"))
    assert "does not exist" in openio.error("container", "locate", container + "-absent")


def test_settings_are_set_and_unset(openio, container):
    cid = cid_from_name(ACCOUNT, container)
    openio.silent(
        "container", "set", container, "--property", "a=1", "--property", "b=2", "--quota", "1000",
        "--stgpol", "SINGLE", "--versioning", "3", "--delete-exceeding-versions", "true", "--bucket-name", "bk",
    )  # fmt: skip
    shown = openio.json("container", "show", container)
    assert (shown["meta.a"], shown["meta.b"], shown["quota"]) == ("1", "2", "1000")
    assert (shown["storage_policy"], shown["max_versions"], shown["bucket"]) == ("SINGLE", "3", "bk")
    assert shown["delete_exceeding_versions"] is True
    openio.silent("container", "set", "--cid", cid, "--clear", "--property", "c=3")
    shown = openio.json("container", "show", container)
    assert "meta.a" not in shown and shown["meta.c"] == "3" and shown["quota"] == "1000"
    openio.silent("container", "unset", container, "--quota", "--storage-policy", "--max-versions")
    openio.silent("container", "unset", "--cid", cid, "--bucket-name", "--delete-exceeding-versions")
    shown = openio.json("container", "show", container)
    assert {shown[key] for key in ("quota", "storage_policy", "max_versions")} == {"Namespace default"}
    assert not {"bucket", "delete_exceeding_versions"} & set(shown) and shown["meta.c"] == "3"
    openio("container", "set", container, "--property", "d=4")
    openio.silent("container", "unset", container, "--property", "d")
    assert openio.json("container", "show", container)["meta.c"] == "3"
    openio.silent("container", "unset", container)
    assert not [key for key in openio.json("container", "show", container) if key.startswith("meta.")]


def test_clearing_needs_nothing_to_set(openio, container):
    openio("container", "set", container, "--property", "a=1", "--quota", "1000")
    openio.silent("container", "set", container, "--clear")
    shown = openio.json("container", "show", container)
    assert "meta.a" not in shown and shown["quota"] == "1000"
    assert "No properties found" in openio.error("container", "set", container)


def test_containers_that_cannot_be_created_are_failed_rows(openio, container):
    names = [container + "-x", container, container + "-y"]
    done = openio("container", "create", "--stgpol", "NOPE", *names, "-f", "value", status=1)
    assert done.stdout == "".join(f"{name} False\n" for name in names)
    lines = done.stderr.splitlines()
    assert [name in line for name, line in zip(names, lines, strict=True)] == [True] * 3
    assert all("Storage policy [NOPE] not supported (STATUS 480) (reqid=CLI-" in line for line in lines)
    openio("container", "create", container, container, "-f", "value")


def test_the_container_that_fails_among_several_is_told(openio, container, fill):
    fill("one")
    empty = container + "-e"
    openio("container", "create", empty)
    line = openio.error("container", "delete", empty, container)
    assert line.startswith(f"{container}: Container not empty") and "Hint: 'openio container flush'" in line
    assert openio.error("container", "delete", container).startswith("Container not empty")
    line = openio.error("container", "delete", empty, container)
    assert line.startswith(f"Container '{empty}' does not exist.")
    line = openio.error("container", "touch", container, empty)
    assert line.startswith(f"{empty}: ") and "(HTTP 403) (STATUS 406)" in line


@pytest.mark.parametrize("word", ["", "None", "maybe"])
def test_what_is_no_boolean_is_refused(openio, container, word):
    done = openio("container", "set", container, "--delete-exceeding-versions", word, status=2)
    assert f"invalid boolean {word!r}" in done.stderr


def test_the_status_of_a_container(openio, container):
    for status in ("frozen", "disabled", "enabled"):
        openio.silent("container", "set", container, "--status", status)
        assert openio.json("container", "locate", container)["status"] == status.capitalize()
    assert "Unknown status 'asleep'" in openio.error("container", "set", container, "--status", "asleep")


def test_touch_and_refresh(openio, api, container, fill):
    def counted():
        return {entry[0]: entry[1] for entry in api.container_list(ACCOUNT, prefix=container)}.get(container)

    fill("one")
    eventually(lambda: counted() == 1)
    api.account.container_reset(ACCOUNT, container, 2**32)
    openio.silent("container", "touch", container, "--recompute")
    openio.silent("container", "touch", "--cid", cid_from_name(ACCOUNT, container))
    done = openio("container", "refresh", container, status=1)
    assert "409" in done.stderr, "the account knows something of the future"
    assert openio.error("container", "touch", container + "-absent")
    assert "does not exist" in openio.error("container", "refresh", container + "-absent")
    other = container + "-r"
    openio("container", "create", other)
    eventually(lambda: api.container_list(ACCOUNT, prefix=other))
    openio.silent("container", "refresh", "--cid", cid_from_name(ACCOUNT, other))


def test_flush(openio, api, container, fill):
    fill("a", "b", "c")
    openio.silent("container", "flush", container)
    assert names_in(api, container) == []
    fill("a", "b")
    openio.silent("container", "flush", "--quickly", "--cid", cid_from_name(ACCOUNT, container))
    assert names_in(api, container) == []
    assert "does not exist" in openio.error("container", "flush", container + "-absent")


def test_purge_keeps_as_many_versions_as_told(openio, api, container, fill):
    openio.silent("container", "set", container, "--versioning", "-1")
    fill("a", "a", "a", "b", "b")
    openio.silent("container", "purge", container)
    assert len(names_in(api, container, versions=True)) == 5
    openio.silent("container", "purge", container, "--max-versions", "2")
    assert names_in(api, container, versions=True) == ["a", "a", "b", "b"]
    openio.silent("container", "purge", "--cid", cid_from_name(ACCOUNT, container), "--max-versions", "0")
    assert names_in(api, container, versions=True) == ["a", "b"]
    openio.silent("container", "purge", container, "--max-versions", "-1")


def test_snapshots(openio, api, container, fill):
    fill("a", "b")
    copy = container + "-copy"
    words = ("container", "snapshot", container, "--dst-container", copy, "--chunk-batch-size", "1")
    assert openio.json(*words) == [{"Account": ACCOUNT, "Container": copy, "Status": "OK"}]
    assert names_in(api, copy) == ["a", "b"]
    assert openio.json("container", "show", copy)["status"] == "Frozen"
    (row,) = openio.json(
        "container", "snapshot", "--cid", cid_from_name(ACCOUNT, container), "--dst-account", "others"
    )
    assert row["Account"] == "others" and re.fullmatch(re.escape(container) + r"-\d{10}\.\d{5}", row["Container"])
    assert openio.error(*words)
    assert "does not exist" in openio.error("container", "snapshot", container + "-absent")
    assert "--chunk-batch-size" in openio.error("container", "snapshot", container, "--chunk-batch-size", "0")
    assert openio.json("container", "show", container)["status"] == "Enabled"


def test_a_container_is_saved_below_the_current_directory(openio, container, fill, tmp_path):
    outside = ["../outside", "/tmp/outside", "a//b", "dir/./x"]
    fill("plain", "dir/sub/file", "dir/é", *outside)
    done = openio("container", "save", container, status=1)
    assert done.stdout == "" and "4 of 7 objects could not be saved" in done.stderr
    assert all(repr(name) in done.stderr for name in outside)
    found = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"plain": b"data", "dir/sub/file": b"data", "dir/é": b"data"}
    assert not (tmp_path.parent / "outside").exists()
    assert "does not exist" in openio.error("container", "save", container + "-absent")
