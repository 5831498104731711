# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio account``: every command."""

import pytest
from cli_program import OpenioProgram
from proxy_http import fresh_name
from support import eventually

KEYS = [
    "account", "buckets", "bytes", "containers", "ctime", "damaged_objects", "metadata", "missing_chunks",
    "objects", "replication_enabled",
]  # fmt: skip
STATISTICS = ("Name", "bytes", "containers", "objects", "ctime", "metadata")


@pytest.fixture
def openio(cluster, tmp_path):
    return OpenioProgram(cluster, tmp_path)


@pytest.fixture
def account(request):
    return fresh_name(request.node.name)


def test_accounts_come_and_go(openio, account):
    other = account + "-2"
    assert openio.json("account", "create", account, other, account) == [
        {"Name": account, "Created": True},
        {"Name": other, "Created": True},
        {"Name": account, "Created": False},
    ]
    names = [row["Name"] for row in openio.formats_of_list("account", "list", columns=("Name",), shared=True)]
    assert {account, other} <= set(names)
    openio.silent("account", "delete", account, other)
    assert not {account, other} & {row["Name"] for row in openio.json("account", "list")}
    assert f"Account '{account}' does not exist." in openio.error("account", "delete", account)
    assert "'openio account list'" in openio.error("account", "show", account)


def test_statistics_of_accounts_are_values_unless_told_otherwise(openio, account):
    openio("account", "create", account)
    for flag in ("--stats", "--long"):
        (line,) = [line for line in openio("account", "list", flag).stdout.splitlines() if account in line]
        assert line.startswith(f"{account} 0 0 0 ") and line.endswith(" {}")
    rows = openio.json("account", "list", "--stats")
    assert tuple(rows[0]) == STATISTICS
    assert openio("account", "list", "-f", "json", "--stats").stdout.splitlines()[0].count(" ") >= 5
    openio.silent("account", "delete", account)


def test_metadata_of_an_account(openio, account):
    openio("account", "create", account)
    openio.silent("account", "set", account, "-p", "a=1", "--property", "b=x=y", "-p", "c=3")
    shown = openio.formats_of_show("account", "show", account)
    assert list(shown) == KEYS
    assert shown["metadata"] == {"a": "1", "b": "x=y", "c": "3"} and shown["account"] == account
    openio.silent("account", "unset", account, "-p", "a", "--property", "b")
    assert openio.json("account", "show", account)["metadata"] == {"c": "3"}
    assert openio("account", "unset", account, status=2).stdout == ""
    table = openio("account", "show", account, "-c", "bytes", "-c", "ctime", "-c", "objects").stdout
    assert "| 0B " in table and "." not in table


def test_refresh_and_flush(openio, api, account):
    openio("account", "create", account)
    openio("container", "create", "one", "two", account=account)
    for name in ("one", "two"):
        api.object_create(account, name, data=b"x", obj_name="o")

    def containers():
        return api.account_show(account)["containers"]

    # A container is known at once; what it tells of itself a second later would make it known again.
    eventually(lambda: (containers(), api.account_show(account)["objects"]) == (2, 2))
    openio.silent("account", "flush", account)
    assert containers() == 0
    assert openio("container", "list", account=account).stdout == "\n"
    openio.silent("container", "touch", "one", account=account)
    eventually(lambda: containers() == 1)
    openio.silent("account", "refresh", account)
    assert openio.error("account", "refresh") == "Missing value for account or --all"
    assert "does not exist" in openio.error("account", "refresh", account + "-absent")
    assert "does not exist" in openio.error("account", "flush", account + "-absent")
    assert "409" in openio.error("account", "delete", account)


def test_all_accounts_are_refreshed_whatever_the_name(openio, account):
    openio("account", "create", account)
    openio.silent("account", "refresh", "--all", "no-such-account")
    openio.silent("account", "delete", account)
