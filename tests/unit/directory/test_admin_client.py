# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What AdminClient and Meta0Client send for each method, and what they make of the answers."""

import json

import pytest

from oio.directory.admin import AdminClient
from oio.directory.meta0 import Meta0Client

ABOVE = "http://127.0.0.1:4444/v3.0/"
URL = ABOVE + "NS/admin/"


class Answer:
    status = 200
    headers = {}


def recording(kind):
    """An instance of this client that records requests instead of sending them."""

    class Client(kind):
        def __init__(self):
            super().__init__({"namespace": "NS"}, endpoint="127.0.0.1:4444")
            self.sent = []
            self.answer = {}

        def _direct_request(self, method, url, **kwargs):
            self.sent.append((method, url, kwargs))
            return Answer(), self.answer

    return Client()


@pytest.fixture
def admin():
    return recording(AdminClient)


def answers(**codes):
    return {name: {"status": {"status": code, "message": "m"}, "body": ""} for name, code in codes.items()}


BASE = {"type": "meta2", "acct": "acme", "ref": "photos"}

METHODS = {
    "election_debug": "debug",
    "election_leave": "leave",
    "election_ping": "ping",
    "election_status": "status",
    "election_sync": "sync",
    "has_base": "has",
    "get_properties": "get_properties",
    "set_properties": "set_properties",
    "remove_base": "remove",
    "vacuum_base": "vacuum",
}


@pytest.mark.parametrize("method", METHODS)
def test_the_base_is_designated(admin, method):
    getattr(admin, method)("meta2", "acme", "photos", read_timeout=3)
    getattr(admin, method)("meta2", cid="CID.1", service_id="one")
    getattr(admin, method)(service_type="meta1", account="acme", reference="photos", service_id=["one", "two"])
    assert {request[:2] for request in admin.sent} == {("POST", URL + METHODS[method])}
    assert admin.sent[0][2]["read_timeout"] == 3
    assert [request[2]["params"] for request in admin.sent] == [
        BASE,
        {"type": "meta2", "cid": "CID.1", "service_id": "one"},
        {**BASE, "type": "meta1", "service_id": "one,two"},
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), (("meta2",), {}), (("meta2", "acme"), {}), ((None, "acme", "photos"), {}),
     (("meta2", "", "photos"), {}), ((), {"cid": "CID"})],
)  # fmt: skip
def test_an_unknown_base_is_refused(admin, method, args, kwargs):
    with pytest.raises(ValueError):
        getattr(admin, method)(*args, **kwargs)
    assert not admin.sent


def test_master_and_slaves(admin):
    admin.answer = answers(s3=303, s1=303, s2=200, s4=503)
    found = admin.election_status("meta2", "acme", "photos")
    assert found == {"peers": admin.answer, "type": "meta2", "master": "s2", "slaves": ["s1", "s3"]}
    admin.answer = answers(s1=503)
    assert admin.election_status("meta2", cid="CID") == {"peers": admin.answer, "type": "meta2"}


def test_what_is_sent_beside_the_base(admin):
    admin.election_sync("meta2", "acme", "photos", check_type=2)
    assert admin.sent[-1][2]["params"] == {**BASE, "check_type": 2}
    admin.set_peers("meta2", "acme", "photos", peers={"c", "a", "b"})
    assert admin.sent[-1][1] == URL + "set_properties"
    assert json.loads(admin.sent[-1][2]["data"]) == {"properties": {}, "system": {"sys.peers": "a,b,c"}}
    admin.set_properties("meta2", "acme", "photos", properties={"k": "v"}, system={"sys.x": "1"})
    assert json.loads(admin.sent[-1][2]["data"]) == {"properties": {"k": "v"}, "system": {"sys.x": "1"}}
    admin.set_properties("meta2", "acme", "photos")
    assert json.loads(admin.sent[-1][2]["data"]) == {"properties": {}, "system": {}}
    admin.copy_base_from("meta2", "acme", "photos", svc_from="a", svc_to="b")
    assert json.loads(admin.sent[-1][2]["data"]) == {"to": "b", "from": "a"}
    admin.copy_base_to("meta2", "acme", "photos", svc_to="b")
    assert json.loads(admin.sent[-1][2]["data"]) == {"to": "b"}
    assert {request[1] for request in admin.sent[-2:]} == {URL + "copy"}


def test_proxies(admin):
    admin.proxy_flush_cache()
    admin.proxy_flush_cache(high=False, proxy_netloc="10.0.0.9:6000")
    admin.proxy_get_cache_status()
    admin.proxy_get_live_config()
    admin.proxy_set_live_config(config={"a": "b"})
    assert [request[:2] for request in admin.sent] == [
        ("POST", ABOVE + "cache/flush/high"),
        ("POST", ABOVE + "cache/flush/low"),
        ("POST", "http://10.0.0.9:6000/v3.0/cache/flush/low"),
        ("GET", ABOVE + "cache/status"),
        ("GET", ABOVE + "config"),
        ("POST", ABOVE + "config"),
    ]
    assert json.loads(admin.sent[-1][2]["data"]) == {"a": "b"}
    with pytest.raises(ValueError):
        admin.proxy_set_live_config()


def test_services(admin):
    admin.service_flush_cache("1.2.3.4:5")
    admin.service_get_live_config("1.2.3.4:5")
    admin.service_set_live_config("1.2.3.4:5", {"a": "b"}, reqid="R")
    admin.service_get_info("1.2.3.4:5")
    admin.service_reload_lb("1.2.3.4:5")
    assert [(method, url.removeprefix(ABOVE)) for method, url, _ in admin.sent] == [
        ("POST", "forward/flush"), ("GET", "forward/config"), ("POST", "forward/config"), ("GET", "forward/info"),
        ("POST", "forward/reload"),
    ]  # fmt: skip
    assert all(request[2]["params"] == {"id": "1.2.3.4:5"} for request in admin.sent)
    assert json.loads(admin.sent[2][2]["data"]) == {"a": "b"} and admin.sent[2][2]["reqid"] == "R"


def test_balanced_elections(admin):
    admin.answer = 3
    assert admin.service_balance_elections("1.2.3.4:5", max_ops=7, inactivity=2) == (200, 3)
    admin.service_balance_elections("1.2.3.4:5")
    assert [request[2]["params"] for request in admin.sent] == [
        {"id": "1.2.3.4:5", "max": 7, "inactivity": 2}, {"id": "1.2.3.4:5"},
    ]  # fmt: skip


def test_table_of_prefixes():
    client = recording(Meta0Client)
    client.answer = {"0000": ["a"]}
    assert client.list(read_timeout=9) == {"0000": ["a"]}
    client.force({"0000": ["b"]})
    client.force('{"0000": ["c"]}')
    assert [request[:2] for request in client.sent] == [
        ("GET", URL + "meta0_list"), ("POST", URL + "meta0_force"), ("POST", URL + "meta0_force"),
    ]  # fmt: skip
    assert [json.loads(request[2]["data"]) for request in client.sent[1:]] == [{"0000": ["b"]}, {"0000": ["c"]}]
