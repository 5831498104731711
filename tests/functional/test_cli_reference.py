# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio reference``: every command."""

import pytest
from cli_program import OpenioProgram
from proxy_http import fresh_name
from support import ACCOUNT

from oio.common.utils import cid_from_name

LINKS = ("Type", "Host", "Args", "Seq")


@pytest.fixture
def openio(cluster, tmp_path):
    return OpenioProgram(cluster, tmp_path)


@pytest.fixture
def name(openio, request):
    name = fresh_name(request.node.name)
    openio("reference", "create", name)
    return name


def test_references_come_and_go(openio):
    one, two = fresh_name("one"), fresh_name("two")
    assert openio.json("reference", "create", one, two, one) == [
        {"Name": one, "Created": True},
        {"Name": two, "Created": True},
        {"Name": one, "Created": False},
    ]
    openio.silent("reference", "delete", one, two)
    for command in ("delete", "show", "list", "locate"):
        assert "Reference not found" in openio.error("reference", command, one)
    assert "Missing parameter" in openio("reference", "show", one, account="", status=1).stderr


def test_properties(openio, name):
    shown = {"account": ACCOUNT, "cid": cid_from_name(ACCOUNT, name), "name": name}
    assert openio.formats_of_show("reference", "show", name) == shown
    openio.silent("reference", "set", name, "--property", "b=2=2", "--property", "a=été")
    assert openio.formats_of_show("reference", "show", name) == shown | {"meta.a": "été", "meta.b": "2=2"}
    openio.silent("reference", "set", name, "--property", "c=3", "--property", "d=4", "--clear")
    assert openio.json("reference", "show", name) == shown | {"meta.c": "3", "meta.d": "4"}
    openio.silent("reference", "unset", name, "--property", "c", "--property", "unknown")
    assert openio.json("reference", "show", name) == shown | {"meta.d": "4"}
    openio.silent("reference", "set", name, "--clear")
    assert openio.json("reference", "show", name) == shown
    assert "--property" in openio("reference", "unset", name, status=2).stderr


def test_where_a_reference_is(openio, cluster, name):
    assert openio.formats_of_show("reference", "locate", name) == {
        "account": ACCOUNT,
        "cid": cid_from_name(ACCOUNT, name),
        "meta0": cluster.services("meta0")[0].addr,
        "meta1": cluster.services("meta1")[0].addr,
        "name": name,
    }


def test_links(openio, cluster, name):
    assert openio.json("reference", "list", name) == []
    assert openio("reference", "list", name).stdout == "\n"
    openio.silent("reference", "link", name, "meta2")
    (row,) = openio.formats_of_list("reference", "list", name, columns=LINKS)
    assert row == {"Type": "meta2", "Host": cluster.services("meta2")[0].id, "Args": "", "Seq": 1}
    openio.silent("reference", "link", name, "meta2")
    assert openio.json("reference", "list", name) == [row]
    assert "is linked to meta2" in openio.error("reference", "delete", name)
    openio("reference", "create", f"{name}-2")
    error = openio.error("reference", "delete", f"{name}-2", name)
    assert error.startswith(f"{name}: ") and "is linked to meta2" in error, "several: which one was it?"
    openio.silent("reference", "unlink", name, "meta2")
    assert openio.json("reference", "list", name) == []
    openio.silent("reference", "poll", name, "meta2")
    assert [row["Type"] for row in openio.json("reference", "list", name)] == ["meta2"]
    assert "nosuch" in openio.error("reference", "link", name, "nosuch")


def test_links_that_are_told(openio, name):
    one, two = "127.0.0.1:9", "127.0.0.2:9"
    openio.silent("reference", "force", name, f"{one},{two}", "rdir", "--seq", "3", "--args", "some text")
    rows = [{"Type": "rdir", "Host": host, "Args": "some text", "Seq": 3} for host in (one, two)]
    assert openio.json("reference", "list", name) == rows
    assert "has a link of type rdir" in openio.error("reference", "force", name, one, "rdir", "--seq", "3")
    assert openio.json("reference", "list", name) == rows
    openio.silent("reference", "force", name, one, "rdir", "--seq", "3", "--replace")
    assert openio.json("reference", "list", name) == [{"Type": "rdir", "Host": one, "Args": "", "Seq": 3}]
