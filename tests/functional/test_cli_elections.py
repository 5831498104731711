# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio election`` where bases have one copy: whoever has it is the master."""

import pytest
from cli_program import OpenioProgram
from proxy_http import fresh_name
from support import ACCOUNT

from oio.common.utils import cid_from_name

COLUMNS = ("Id", "Status", "Message")
WITH_BODY = (*COLUMNS, "Body")


@pytest.fixture
def openio(cluster, tmp_path):
    return OpenioProgram(cluster, tmp_path)


@pytest.fixture
def container(openio, request):
    name = fresh_name(request.node.name)
    openio("container", "create", name)
    return name


@pytest.mark.parametrize("command", ["ping", "status", "leave"])
def test_the_only_copy_is_the_master(openio, cluster, container, command):
    for service_type in ("meta0", "meta1", "meta2"):
        (service,) = cluster.services(service_type)
        (row,) = openio.formats_of_list("election", command, service_type, container, columns=COLUMNS)
        assert row == {"Id": service.id, "Status": 200, "Message": "OK"}
    cid = cid_from_name(ACCOUNT, container)
    assert openio.json("election", command, "meta2", "--cid", cid, account="") == [row]
    assert openio.json("election", command, "meta2", container, "--service-id", row["Id"]) == [row]


def test_bodies(openio, container):
    (row,) = openio.formats_of_list("election", "debug", "meta2", container, columns=WITH_BODY)
    assert (row["Status"], row["Body"]) == (200, {})
    for check in ("-1", "0", "1", "2"):
        (row,) = openio.json("election", "sync", "meta2", container, "--check-type", check)
        assert row["Status"] in (200, 301) and row["Body"] == ""
    assert "| {}" in openio("election", "debug", "meta2", container, "--human").stdout


def test_columns_can_be_chosen(openio, container):
    shown = openio("election", "status", "meta2", container, "-c", "Status", "-c", "Message", "-f", "value")
    assert shown.stdout == "200 OK\n"
    assert "No recognized column" in openio.error("election", "status", "meta2", container, "-c", "Nothing")


@pytest.mark.parametrize("command", ["ping", "status", "leave", "sync", "debug"])
def test_what_does_not_exist(openio, cluster, container, command):
    error = openio.error("election", command, "meta2", fresh_name("none"))
    assert "Reference not found" in error and "(reqid=ACLI-EL-" in error
    assert "Invalid parameter 'type'" in openio.error("election", command, "rawx", container)
    assert "account and reference" in openio.error("election", command, "meta2", container, account="")
    # Each service answers for itself; that one does not does not change the exit code.
    words = ["--service-id", "127.0.0.1:1", "--service-id", cluster.services("meta2")[0].id]
    rows = openio.json("election", command, "meta2", container, *words)
    assert [row["Id"] for row in rows] == sorted(words[1::2])
    statuses = {row["Id"]: row["Status"] for row in rows}
    assert statuses.pop("127.0.0.1:1") not in (200, 303) and [*statuses.values()] in ([200], [301])


@pytest.mark.parametrize(
    "words",
    [
        ["ping"], ["ping", "meta2"], ["sync", "meta2", "c", "--check-type", "3"],
        ["status", "meta2", "c", "--timeout", "x"],
    ],
)  # fmt: skip
def test_bad_command_lines(openio, words):
    assert openio("election", *words, status=2).stdout == ""
