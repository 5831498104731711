# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``openio election`` on copies that answer from memory."""

import json
from types import SimpleNamespace

import pytest

from oio.cli import election


class Admin:
    """Records what it is asked, and answers for two copies, unsorted."""

    def __init__(self, **bodies):
        self.asked = []
        self.bodies = bodies

    def __getattr__(self, name):
        def ask(service_type, **kwargs):
            self.asked.append((name, service_type, kwargs))
            peers = {
                "s2": {"status": {"status": 303, "message": "s1"}, "body": self.bodies.get("s2", "")},
                "s1": {"status": {"status": 200, "message": "OK"}, "body": self.bodies.get("s1", "")},
            }
            return {"peers": peers, "type": service_type} if name == "election_status" else peers

        return ask


def run(kind, admin, *args, account="acme"):
    manager = SimpleNamespace(account_option=account, admin=admin)
    app = SimpleNamespace(client_manager=manager, request_id=lambda prefix: prefix + "1")
    command = getattr(election, f"Election{kind}")(app, None)
    columns, rows = command.take_action(command.get_parser("openio election").parse_args(args))
    return columns, list(rows)


@pytest.mark.parametrize("kind", ["Ping", "Status", "Leave"])
def test_rows(kind):
    admin = Admin()
    columns, rows = run(kind, admin, "meta2", "photos")
    assert columns == ("Id", "Status", "Message")
    assert rows == [("s1", 200, "OK"), ("s2", 303, "s1")]
    assert admin.asked == [
        (f"election_{kind.lower()}", "meta2",
         {"account": "acme", "reference": "photos", "cid": None, "service_id": None, "read_timeout": 32.0,
          "reqid": "ACLI-EL-1"})
    ]  # fmt: skip


def test_a_container_id_needs_no_account():
    admin = Admin()
    options = ["--service-id", "a", "--service-id", "b", "--timeout", "1.5"]
    run("Ping", admin, "meta2", "CID", "--cid", *options, account="")
    assert admin.asked[0][2] == {
        "account": None, "reference": None, "cid": "CID", "service_id": ["a", "b"], "read_timeout": 1.5,
        "reqid": "ACLI-EL-1",
    }  # fmt: skip


@pytest.mark.parametrize(("given", "sent"), [((), None), (("-1",), None), (("0",), 0), (("2",), 2)])
def test_check_of_the_copied_file(given, sent):
    admin = Admin()
    columns, rows = run("Sync", admin, "meta2", "photos", *(["--check-type", *given] if given else []))
    assert admin.asked[0][2]["check_type"] == sent
    assert columns == ("Id", "Status", "Message", "Body") and rows[0][3] == '""'


@pytest.mark.parametrize("wrong", ["3", "-2", "x"])
def test_other_checks_do_not_exist(wrong):
    with pytest.raises(SystemExit) as exit_:
        run("Sync", Admin(), "meta2", "photos", "--check-type", wrong)
    assert exit_.value.code == 2


LOG = ["1500:NONE:PEERING:LISTING", "odd", "x:a:b:c", "99999999999999999999:a:b:c", 7]


def test_bodies():
    admin = Admin(s1={"log": LOG, "a": 1}, s2=None)
    _, rows = run("Debug", admin, "meta2", "photos")
    assert rows[0][3] == json.dumps({"a": 1, "log": LOG}, indent=4, sort_keys=True) and rows[1][3] == "null"
    assert admin.asked[0][2]["reqid"] == "ACLI-EL-1"
    _, rows = run("Debug", admin, "meta2", "photos", "-f", "json")
    assert rows[0][3] == {"log": LOG, "a": 1} and rows[1][3] is None
    _, rows = run("Debug", admin, "meta2", "photos", "-f", "json", "--human")
    assert rows[0][3] == {"a": 1, "log": ["1970-01-01T00:00:01.500Z NONE, PEERING -> LISTING", *LOG[1:]]}
    assert rows[1][3] is None
