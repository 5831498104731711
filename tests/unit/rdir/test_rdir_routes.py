# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Routes of the reverse directory: what they take, what they answer, and their statuses."""

import json
import logging
import random

import pytest

from oio.common import status as codes
from oio.common.status import StatusError
from oio.http.messages import Request, Response
from oio.rdir.server import AccessLog

CID, CONTENT, CHUNK = "A" * 64, "B" * 32, "C" * 64
RECORD = {"container_id": CID, "content_id": CONTENT, "chunk_id": CHUNK, "mtime": 1234}
KEY = f"{CID}|{CONTENT}|{CHUNK}"
BASE = {"container_url": "NS/acme/c", "container_id": CID}

# Every path with the methods that it takes.
METHODS = {
    "/status": ["GET"],
    "/config": ["GET", "POST"],
    "/metrics": ["GET"],
    "/v1/status": ["GET"],
    "/v1/rdir/admin/show": ["GET"],
    "/v1/rdir/create": ["POST"],
    "/v1/rdir/push": ["POST"],
    "/v1/rdir/push-many": ["POST"],
    "/v1/rdir/delete": ["DELETE"],
    "/v1/rdir/delete-many": ["POST"],
    "/v1/rdir/fetch": ["POST"],
    "/v1/rdir/status": ["GET", "POST"],
    "/v1/rdir/admin/lock": ["POST"],
    "/v1/rdir/admin/unlock": ["POST"],
    "/v1/rdir/admin/incident": ["GET", "POST"],
    "/v1/rdir/admin/clear": ["POST"],
    "/v1/rdir/meta2/create": ["POST"],
    "/v1/rdir/meta2/push": ["POST"],
    "/v1/rdir/meta2/delete": ["POST"],
    "/v1/rdir/meta2/fetch": ["POST"],
}


def told(response):
    """(HTTP status, inner status, message) of an error."""
    body = json.loads(response.data)
    assert response.headers["content-type"] == "application/json"
    return response.status, body["status"], body["message"]


def listed(response):
    """Items of a page."""
    assert response.status == 200, response.data
    return json.loads(response.data)


def test_the_table_of_routes_is_complete(rdir):
    assert dict(rdir.service.routes()) == METHODS


@pytest.mark.parametrize("path", METHODS)
def test_only_exact_paths_are_routes(rdir, path):
    head, _, last = path.rpartition("/")
    for wrong in (f"/{path}", f"{path}/", f"{head}//{last}", f"/x{path}", f"{path}x", f"/x/{path}", path.upper()):
        for method in ("GET", "POST", "DELETE"):
            answer = rdir.ask(method, f"{wrong}?vol=v", RECORD)
            assert told(answer) == (404, 400, "Route not managed"), wrong


@pytest.mark.parametrize("path", METHODS)
def test_other_methods_are_refused_after_the_json(rdir, path):
    for method in {"GET", "POST", "PUT", "DELETE"} - set(METHODS[path]):
        assert told(rdir.ask(method, path)) == (405, 400, "Bad method")
        assert told(rdir.ask(method, path, {})) == (405, 400, "Bad method")
        assert told(rdir.ask(method, path, b"{no"))[0] == 400
    assert rdir.ask("HEAD", path).status == 405


@pytest.mark.parametrize("path", list(METHODS))
def test_a_body_must_be_json_even_when_it_is_of_no_use(rdir, path):
    rdir.ask("POST", "/v1/rdir/create?vol=v")
    for method in METHODS[path]:
        for body in (b"{", b"nope", b'{"a":1}}'):
            code, inner, message = told(rdir.ask(method, f"{path}?vol=v", body))
            assert (code, inner) == (400, 400)
            assert message.startswith("Invalid JSON")


def test_status_and_config(rdir):
    assert json.loads(rdir.ask("GET", "/status").data) == {"opened_db_count": 0, "service_id": "TEST-rdir-1"}
    rdir.ask("POST", "/v1/rdir/create?vol=v")
    rdir.ask("POST", "/v1/rdir/meta2/create?vol=v")
    assert json.loads(rdir.ask("GET", "/status").data)["opened_db_count"] == 1
    config = json.loads(rdir.ask("GET", "/config").data)
    assert config["rdir.fd_per_base"] == "0"
    assert all(isinstance(value, str) for value in config.values())
    answer = rdir.ask("POST", "/config", {"server.cnx.timeout.idle": "60s", "no.such": 1})
    assert json.loads(answer.data) == {"server.cnx.timeout.idle": True, "no.such": False}
    assert rdir.ask("POST", "/config").status == 400


def test_an_unknown_volume(rdir):
    for method, action, body in (
        ("POST", "push", RECORD), ("POST", "fetch", None), ("GET", "status", None), ("POST", "status", None),
        ("DELETE", "delete", RECORD), ("GET", "admin/show", None), ("POST", "admin/lock", {"who": "me"}),
        ("POST", "admin/unlock", None), ("GET", "admin/incident", None), ("POST", "admin/incident", {"date": 1}),
        ("POST", "admin/clear", None), ("POST", "push-many", {"records": [RECORD]}),
        ("POST", "delete-many", {"records": []}), ("POST", "meta2/delete", BASE),
    ):  # fmt: skip
        assert told(rdir.ask(method, f"/v1/rdir/{action}?vol=v", body)) == (404, 404, "DB not found"), action
    assert told(rdir.ask("GET", "/v1/status?vol=v"))[0] == 404
    assert told(rdir.ask("POST", "/v1/rdir/push?vol=v&create=maybe", RECORD))[0] == 404
    assert told(rdir.ask("POST", "/v1/rdir/meta2/fetch?vol=v", {}))[:2] == (400, 404)
    assert told(rdir.ask("POST", "/v1/rdir/meta2/push?vol=v&create=0", BASE))[0] == 404


@pytest.mark.parametrize("query", ["", "?vol=", "?vol", "?volume=v"])
def test_a_volume_is_needed(rdir, query):
    for method, action, body in (
        ("POST", "create", None), ("POST", "push", RECORD), ("POST", "fetch", None), ("GET", "status", None),
        ("DELETE", "delete", RECORD), ("DELETE", "delete", None), ("GET", "admin/show", None),
        ("POST", "admin/lock", {"who": "me"}), ("POST", "admin/unlock", None), ("GET", "admin/incident", None),
        ("POST", "admin/incident", {"date": 1}), ("POST", "admin/clear", None), ("POST", "meta2/create", None),
    ):  # fmt: skip
        assert told(rdir.ask(method, f"/v1/rdir/{action}{query}", body))[0] == 400, action
    assert told(rdir.ask("POST", f"/v1/rdir/create{query}")) == (400, 400, "no volume id")
    for action in ("push", "delete", "fetch"):
        assert told(rdir.ask("POST", f"/v1/rdir/meta2/{action}{query}", BASE)) == (400, 400, "no meta2 id")


def test_the_life_of_a_record(rdir):
    assert [rdir.ask("POST", "/v1/rdir/create?vol=v").status for _ in range(2)] == [201, 201]
    empty = rdir.ask("POST", "/v1/rdir/fetch?vol=v")
    assert listed(empty) == []
    assert empty.headers["x-oio-list-truncated"] == "false"
    answer = rdir.ask("POST", "/v1/rdir/push?vol=v", {**RECORD, "content_path": "ignored", "rtime": None})
    assert (answer.status, answer.data) == (204, b"")
    assert listed(rdir.ask("POST", "/v1/rdir/fetch?vol=v")) == [[KEY, {"mtime": 1234}]]
    rdir.ask("POST", "/v1/rdir/push?vol=v", {**RECORD, "mtime": None, "rtime": 7})
    assert listed(rdir.ask("POST", "/v1/rdir/fetch?vol=v")) == [[KEY, {"mtime": 7}]]
    del (without := dict(RECORD))["mtime"]
    rdir.ask("POST", "/v1/rdir/push?vol=v", without)
    assert listed(rdir.ask("POST", "/v1/rdir/fetch?vol=v")) == [[KEY, {"mtime": 0}]]
    for _ in range(2):
        assert rdir.ask("DELETE", "/v1/rdir/delete?vol=v", RECORD).status == 204
    assert listed(rdir.ask("POST", "/v1/rdir/fetch?vol=v")) == []
    assert rdir.ask("POST", "/v1/rdir/push?vol=new&create=True", RECORD).status == 204
    assert len(listed(rdir.ask("POST", "/v1/rdir/fetch?vol=new", None))) == 1


@pytest.mark.parametrize("field", ["container_id", "content_id", "chunk_id"])
@pytest.mark.parametrize("value", ["absent", None, 1, 1.5, True, [], {}])
def test_the_three_ids_are_needed(rdir, field, value):
    rdir.ask("POST", "/v1/rdir/create?vol=v")
    record = {**RECORD, field: value}
    if value == "absent":
        del record[field]
    for method, action, body in (
        ("POST", "push", record), ("DELETE", "delete", record),
        ("POST", "push-many", {"records": [RECORD, record]}), ("POST", "delete-many", {"records": [record]}),
    ):  # fmt: skip
        assert told(rdir.ask(method, f"/v1/rdir/{action}?vol=v", body))[:2] == (400, 400)
    assert listed(rdir.ask("POST", "/v1/rdir/fetch?vol=v")) == []


def test_ids_hold_no_control_character(rdir):
    for character in ("\n", "\r", "\0", "\x7f"):
        answer = rdir.ask("POST", "/v1/rdir/push?vol=v&create=1", {**RECORD, "content_id": f"a{character}b"})
        assert answer.status == 400


@pytest.mark.parametrize("value", [1.0, "1", True, [], 2**63, -(2**63) - 1])
def test_numbers_are_integers(rdir, value):
    rdir.ask("POST", "/v1/rdir/create?vol=v")
    for field in ("mtime", "rtime", "when"):
        assert rdir.ask("POST", "/v1/rdir/push?vol=v", {**RECORD, field: value}).status == 400
    assert rdir.ask("POST", "/v1/rdir/admin/incident?vol=v", {"date": value}).status == 400
    assert rdir.ask("POST", "/v1/rdir/fetch?vol=v", {"limit": value}).status == 400
    assert rdir.ask("POST", "/v1/rdir/meta2/fetch?vol=v", {"limit": value}).status == 400


@pytest.mark.parametrize("body", [None, b"null", b" null ", [], "text", 5])
def test_bodies_that_are_not_objects(rdir, body):
    rdir.ask("POST", "/v1/rdir/create?vol=v")
    rdir.ask("POST", "/v1/rdir/meta2/create?vol=v")
    for method, action in (
        ("POST", "push"), ("DELETE", "delete"), ("POST", "push-many"), ("POST", "delete-many"),
        ("POST", "admin/lock"), ("POST", "admin/incident"), ("POST", "meta2/push"), ("POST", "meta2/delete"),
        ("POST", "meta2/fetch"),
    ):  # fmt: skip
        assert told(rdir.ask(method, f"/v1/rdir/{action}?vol=v", body))[:2] == (400, 400), action
    nothing = body is None or (isinstance(body, bytes) and b"null" in body)
    assert rdir.ask("POST", "/v1/rdir/fetch?vol=v", body).status == (200 if nothing else 400)
    assert rdir.ask("GET", "/v1/rdir/status?vol=v", body).status == 200


def test_pages_of_any_filters_visit_everything_once(rdir):
    dice = random.Random(7)
    expected = {}
    for _ in range(21):
        chunk = f"{dice.getrandbits(256):064X}"
        ids = (dice.choice(["0" * 64, "A" * 64, "z"]), dice.choice(["B" * 32, "é", "日"]), chunk)
        expected["|".join(ids)] = dice.randint(1, 9)
        record = dict(zip(("container_id", "content_id", "chunk_id"), ids, strict=True))
        body = {**record, "mtime": expected["|".join(ids)]}
        assert rdir.ask("POST", "/v1/rdir/push?vol=v&create=yes", body).status == 204
    rdir.ask("POST", "/v1/rdir/admin/incident?vol=v", {"date": 5})
    keys = sorted(expected)
    for container in (None, "0" * 64, "z", "y"):
        for start in (None, keys[0], keys[9], "0"):
            for rebuild in (False, True):
                wanted = [
                    [key, {"mtime": expected[key]}] for key in keys
                    if key.startswith(container or "") and (start is None or key > start)
                    and (not rebuild or expected[key] <= 5)
                ]  # fmt: skip
                if start == "0" and wanted and wanted[0][0].startswith("0"):
                    continue  # a marker that is no key skips one record
                found, requests, marker = [], 0, start
                while True:
                    body = {"start_after": marker, "limit": 2, "container_id": container, "rebuild": rebuild}
                    answer = rdir.ask("POST", "/v1/rdir/fetch?vol=v", body)
                    found += listed(answer)
                    requests += 1
                    if answer.headers["x-oio-list-truncated"] == "false":
                        assert "x-oio-list-marker" not in answer.headers
                        break
                    marker = answer.headers["x-oio-list-marker"].encode("latin-1").decode()
                assert found == wanted
                assert requests == max(1, -(-len(wanted) // 2))


def test_the_query_of_a_listing_has_the_last_word(rdir):
    for number in range(4):
        record = {**RECORD, "chunk_id": f"{number:064X}", "mtime": number}
        rdir.ask("POST", "/v1/rdir/push?vol=v&create=on", record)
    rdir.ask("POST", "/v1/rdir/admin/incident?vol=v", {"date": 1})

    def count(query, body=None):
        return len(listed(rdir.ask("POST", f"/v1/rdir/fetch?vol=v{query}", body)))

    assert count("", {"limit": 1}) == 1
    assert count("&max=3", {"limit": 1}) == 3
    assert count("&max=0", {"limit": 1}) == count("&max=-5") == count("&max=99999") == 4
    assert count("&prefix=B", {"container_id": CID}) == 0
    assert count("&prefix=", {"container_id": "B"}) == 4
    assert count(f"&marker={CID}%7C{CONTENT}%7C{2:064X}", {"start_after": ""}) == 1
    assert count("&marker=") == 3
    assert count("&rebuild=0", {"rebuild": True}) == 4
    assert count("&rebuild=TRUE", {"rebuild": False}) == count("", {"rebuild": True}) == 2
    assert count("&rebuild=what", {"rebuild": True}) == 2
    assert rdir.ask("POST", "/v1/rdir/fetch?vol=v", {"rebuild": "yes"}).status == 400


def test_rebuild_without_incident_gives_nothing(rdir):
    rdir.ask("POST", "/v1/rdir/push?vol=v&create=1", RECORD)
    answer = rdir.ask("POST", "/v1/rdir/fetch?vol=v&rebuild=1")
    assert (listed(answer), answer.headers["x-oio-list-truncated"]) == ([], "false")


def test_status_of_a_volume_before_and_after_an_incident(rdir):
    rdir.ask("POST", "/v1/rdir/create?vol=v")
    assert json.loads(rdir.ask("GET", "/v1/rdir/status?vol=v").data) == {"chunk": {"total": 0}, "container": {}}
    for chunk, mtime, container in (("1", 10, CID), ("2", 20, CID), ("3", 30, "D" * 64)):
        record = {**RECORD, "container_id": container, "chunk_id": chunk * 64, "mtime": mtime}
        rdir.ask("POST", "/v1/rdir/push?vol=v", record)
    other = "D" * 64
    expected = {"chunk": {"total": 3}, "container": {CID: {"total": 2}, other: {"total": 1}}}
    assert json.loads(rdir.ask("POST", "/v1/rdir/status?vol=v").data) == expected
    assert rdir.ask("POST", "/v1/rdir/admin/incident?vol=v", {"date": 20}).status == 204
    assert json.loads(rdir.ask("GET", "/v1/rdir/admin/incident?vol=v").data) == {"date": 20}
    assert json.loads(rdir.ask("GET", "/v1/rdir/status?vol=v").data) == {
        "chunk": {"total": 3, "to_rebuild": 2},
        "container": {CID: {"total": 2, "to_rebuild": 2}, other: {"total": 1}},
        "rebuild": {"incident_date": 20},
    }
    page = rdir.ask("GET", "/v1/rdir/status?vol=v&max=2")
    assert json.loads(page.data)["chunk"]["total"] == 2
    assert page.headers["x-oio-list-truncated"] == "true"
    following = rdir.ask("GET", f"/v1/rdir/status?vol=v&max=2&marker={page.headers['x-oio-list-marker']}")
    assert json.loads(following.data)["container"] == {other: {"total": 1}}
    assert json.loads(rdir.ask("GET", f"/v1/rdir/status?vol=v&prefix={other}").data)["chunk"]["total"] == 1
    cleared = rdir.ask("POST", "/v1/rdir/admin/clear?vol=v")
    assert json.loads(cleared.data) == {"removed": 0, "repaired": 0, "errors": 0}
    assert json.loads(rdir.ask("GET", "/v1/rdir/status?vol=v").data) == expected


def test_locks(rdir):
    assert told(rdir.ask("POST", "/v1/rdir/admin/lock?vol=v", {}))[0] == 400
    assert told(rdir.ask("POST", "/v1/rdir/admin/lock?vol=v", {"who": "me"}))[0] == 404
    rdir.ask("POST", "/v1/rdir/create?vol=v")
    assert told(rdir.ask("POST", "/v1/rdir/admin/lock?vol=v", {"who": ""}))[0] == 400
    assert told(rdir.ask("POST", "/v1/rdir/admin/lock?vol=v", {"who": 5}))[0] == 400
    for _ in range(2):
        assert rdir.ask("POST", "/v1/rdir/admin/lock?vol=v", {"who": "mé"}).status == 204
    refused = rdir.ask("POST", "/v1/rdir/admin/lock?vol=v", {"who": "you"})
    assert told(refused) == (403, 403, "Already locked by mé")
    assert told(rdir.ask("POST", "/v1/rdir/admin/clear?vol=v&all=1"))[::2] == (403, "Already locked by mé")
    assert json.loads(rdir.ask("GET", "/v1/rdir/admin/show?vol=v").data) == {"lock": "mé"}
    for _ in range(2):
        assert rdir.ask("POST", "/v1/rdir/admin/unlock?vol=v").status == 204
    assert json.loads(rdir.ask("GET", "/v1/status?vol=v").data) == {}
    assert rdir.ask("POST", "/v1/rdir/admin/lock?vol=v", {"who": "you"}).status == 204


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("all=1", (2, 0, 0)), ("repair=true", (0, 2, 0)), ("before_incident=on", (1, 0, 0)), ("all=0", (0, 0, 0))],
)
def test_clear(rdir, flags, expected):
    rdir.ask("POST", "/v1/rdir/push?vol=v&create=1", {**RECORD, "mtime": 10})
    rdir.ask("POST", "/v1/rdir/push?vol=v&create=1", {**RECORD, "chunk_id": "new", "mtime": 30})
    rdir.ask("POST", "/v1/rdir/admin/incident?vol=v", {"date": 20})
    answer = json.loads(rdir.ask("POST", f"/v1/rdir/admin/clear?vol=v&{flags}").data)
    assert tuple(answer[name] for name in ("removed", "repaired", "errors")) == expected
    assert len(listed(rdir.ask("POST", "/v1/rdir/fetch?vol=v"))) == 2 - expected[0]
    assert json.loads(rdir.ask("GET", "/v1/rdir/admin/show?vol=v").data) == {}


def test_batches(rdir):
    many = [{**RECORD, "chunk_id": f"{number:064X}", "when": 5_000_000, "mtime": 5} for number in range(50)]
    assert rdir.ask("POST", "/v1/rdir/push-many?vol=v&create=1", {"records": many}).status == 204
    assert rdir.ask("POST", "/v1/rdir/push-many?vol=v", {"records": []}).status == 204
    assert len(listed(rdir.ask("POST", "/v1/rdir/fetch?vol=v"))) == 50
    old = [{**record, "when": 4_000_000} for record in many[:10]]
    assert rdir.ask("POST", "/v1/rdir/delete-many?vol=v", {"records": old}).status == 204
    assert len(listed(rdir.ask("POST", "/v1/rdir/fetch?vol=v"))) == 50
    late = [{**record, "when": 6_000_000} for record in many[:10]]
    rdir.ask("POST", "/v1/rdir/delete-many?vol=v", {"records": late})
    rdir.ask("POST", "/v1/rdir/push-many?vol=v", {"records": many})
    assert len(listed(rdir.ask("POST", "/v1/rdir/fetch?vol=v"))) == 40
    assert rdir.ask("POST", "/v1/rdir/push-many?vol=v", {"records": [RECORD] * 10001}).status == 400
    assert rdir.ask("POST", "/v1/rdir/push-many?vol=v", {"records": {}}).status == 400


def test_containers(rdir):
    assert rdir.ask("POST", "/v1/rdir/meta2/create?vol=m").status == 201
    for missing in BASE:
        body = {name: value for name, value in BASE.items() if name != missing}
        for action in ("push", "delete"):
            assert told(rdir.ask("POST", f"/v1/rdir/meta2/{action}?vol=m", body))[0] == 400
    assert rdir.ask("POST", "/v1/rdir/meta2/push?vol=auto", BASE).status == 204
    assert rdir.ask("POST", "/v1/rdir/meta2/push?vol=m", {**BASE, "unknown": 1}).status == 204
    record = {"container_id": CID, "container_url": "NS/acme/c", "extra_data": None, "mtime": 0}
    page = json.loads(rdir.ask("POST", "/v1/rdir/meta2/fetch?vol=m", {}).data)
    assert page == {"records": [record], "truncated": False}
    rdir.ask("POST", "/v1/rdir/meta2/push?vol=m", {**BASE, "mtime": 5, "extra_data": "x"})
    page = json.loads(rdir.ask("POST", "/v1/rdir/meta2/fetch?vol=m", {"limit": 0, "prefix": "NS/acme"}).data)
    assert page["records"] == [{**record, "mtime": 5, "extra_data": "x"}]
    for number in range(4):
        rdir.ask("POST", "/v1/rdir/meta2/push?vol=m", {**BASE, "container_url": f"NS/b/{number}"})
    found, marker = [], None
    while True:
        body = {"limit": 2, "marker": marker, "prefix": "NS/b/" if marker is None else None}
        page = json.loads(rdir.ask("POST", "/v1/rdir/meta2/fetch?vol=m", body).data)
        found += [item["container_url"] for item in page["records"]]
        if not page["truncated"]:
            break
        marker = found[-1]
    assert found == [f"NS/b/{number}" for number in range(4)]
    for _ in range(2):
        assert rdir.ask("POST", "/v1/rdir/meta2/delete?vol=m", {**BASE, "container_id": "other"}).status == 204
    assert len(json.loads(rdir.ask("POST", "/v1/rdir/meta2/fetch?vol=m", {}).data)["records"]) == 4


@pytest.mark.parametrize("volume", ["..%2F..%2Fetc", "%2Fetc%2Fx", ".", "a+b", "%C3%A9"])
def test_strange_volumes_stay_inside(rdir, volume, tmp_path):
    before = {path.name for path in tmp_path.parent.iterdir()}
    assert rdir.ask("POST", f"/v1/rdir/create?vol={volume}").status == 201
    assert rdir.ask("POST", f"/v1/rdir/fetch?vol={volume}").status == 200
    assert {path.name for path in tmp_path.parent.iterdir()} == before


def test_a_too_long_volume_is_refused(rdir):
    assert told(rdir.ask("POST", f"/v1/rdir/create?vol={'v' * 201}"))[0] == 400


@pytest.mark.parametrize(
    ("code", "expected"),
    [(codes.UNAVAILABLE, 503), (codes.EXCESSIVE_LOAD, 503), (codes.INTERNAL_ERROR, 500), (400, 500), (404, 404)],
)
def test_errors_of_the_store(rdir, monkeypatch, code, expected):
    def fail(*_args, **_kwargs):
        raise StatusError(code, "why")

    monkeypatch.setattr(rdir.store, "chunks", fail)
    answer = rdir.ask("POST", "/v1/rdir/fetch?vol=v")
    assert told(answer) == (expected, code, "why")
    assert answer.headers.get("retry-after") == ("1" if expected == 503 else None)


def test_metrics(rdir):
    rdir.ask("POST", "/v1/rdir/push?vol=v&create=1", RECORD)
    rdir.ask("POST", "/v1/rdir/meta2/push?vol=m", BASE)
    rdir.ask("GET", "/nowhere")
    text = rdir.ask("GET", "/metrics").data.decode()
    for line in (
        'oio_rdir_records_handled_total{action="push"} 1.0',
        'oio_rdir_errors_total{status="404"} 1.0',
        'oio_rdir_entries{kind="chunk",table="chunk",volume="v"} 1.0',
        'oio_rdir_entries{kind="container",table="container",volume="m"} 1.0',
    ):
        assert line in text


def test_the_access_log(caplog):
    caplog.set_level(logging.INFO, "oio.access")
    log_access = AccessLog("127.0.0.1:6301")
    quiet = Request("POST", "/v1/rdir/push?vol=v", peer="1.2.3.4:5", reqid="R")
    log_access(quiet, Response(204), 10)
    assert not caplog.messages
    quiet.context = 0.000009
    log_access(quiet, Response(404, b'{"status":404}'), 10)
    log_access(Request("POST", "/v1/rdir/fetch?vol=v"), Response(200, b"[]"), 11)
    assert caplog.messages == [
        '127.0.0.1:6301 1.2.3.4:5 POST 404 10 0 - R /v1/rdir/push?vol=v t=9 e={"status":404}',
        "127.0.0.1:6301 - POST 200 11 0 - - /v1/rdir/fetch?vol=v t=0",
    ]
