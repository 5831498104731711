# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Dispatch, ``lb/*``, ``conscience/*``, the routes of the process, and propagation between workers."""

import msgspec
import pytest
from proxy_cluster import NS, rawx
from support import eventually

from oio.common.status import StatusError
from oio.http.messages import Request
from oio.proxy.call import Call, parse_args

REF = "acct=acct&ref=ref"


# --- dispatch


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/v3.0"), ("POST", "/v3.0/status"), ("GET", "/v2.0/status"),
        ("GET", f"/v3.0/{NS}/content/create"), ("GET", f"/v3.0/{NS}/lb/nothing"),
        ("GET", f"/v3.0/{NS}/conscience/info/anything"), ("GET", f"/v3.0/{NS}/" + "a" * 3000),
        ("POST", f"/v3.0/{NS}/container/stage"), ("POST", f"/v3.0/{NS}/content%2Ftouch"),
        ("POST", "/v3.0/NOTHING/lb/nothing"), ("PATCH", "/v3.0/status"),
    ],
)  # fmt: skip
def test_unknown_routes(cluster, method, path):
    answer = cluster.request(method, path, raw=True)
    assert answer.status == 404
    assert answer.json == {"status": 404, "message": "No handler found"}


def test_unusual_paths(cluster):
    for path in (f"//v3.0/{NS}/lb/choose/", f"/v3.0/{NS}/lb%2fchoose", f"/v3.0/{NS}/lb/ch%6fose"):
        answer = cluster.request("GET", path + "?type=rawx", raw=True)
        assert answer.status == (404 if "%2f" in path else 200)
    answer = cluster.request("GET", "/v3.0/OTHER/lb/choose?type=rawx", raw=True)
    assert answer.code == (400, 400)
    assert answer.json["message"] == "Invalid parameter 'namespace'"


def test_arguments():
    assert parse_args("a=1&b&c=%41+x&a=2&=3&d=") == {"a": "1", "b": "", "c": "A x", "": "3", "d": ""}
    assert parse_args("p=%C3%A9") == {"p": "é"}
    assert parse_args("p=" + "é".encode().decode("latin-1")) == {"p": "é"}
    for bad in ("p=%FF", "p=%00", "p=\xff"):
        with pytest.raises(StatusError):
            parse_args(bad)


def test_container_ids(cluster):
    def cid(text):
        return Call(cluster.app, Request("GET", f"/x?cid={text}")).target.cid

    assert cid("ab" * 32) == cid("AB" * 32 + ".1") == "AB" * 32
    assert cid("1f") == "1F" + "0" * 62
    for bad in ("x", "12345", "AB" * 31, "AB" * 33, "AB" * 32 + ".x"):
        with pytest.raises(StatusError):
            cid(bad)


def test_failures_inside_are_told_not_shown(cluster):
    cluster.meta.answers["content_show"] = None
    answer = cluster.get(f"content/locate?{REF}&path=a")
    assert answer.code == (500, 500)
    assert "Traceback" not in answer.json["message"]


# --- lb


def test_choose(cluster):
    answer = cluster.get("lb/choose?type=rawx&size=6")
    assert len({one["id"] for one in answer.json}) == 6
    for one in answer.json:
        assert one["id"] == f"{NS}|rawx|{one['addr']}"
    assert "x-oio-lb-flawed" not in answer.headers
    assert cluster.get("lb/choose").code == (400, 400)
    assert cluster.get("lb/choose?type=rawx&size=x").code == (400, 400)
    assert cluster.get("lb/choose?type=rawx&size=0").code == (400, 400)
    assert cluster.get("lb/choose?type=nothing").code == (404, 453)
    answer = cluster.get("lb/choose?type=rawx&size=7")
    assert answer.code == (500, 481)
    assert answer.json["message"].startswith("found only 6 services matching the criteria: ")
    assert cluster.get("lb/choose?type=rawx&size=5000").code == (500, 481)
    assert cluster.get("lb/choose?type=account").code == (500, 481)


def test_choose_falls_back(cluster):
    cluster.conscience.put(*(rawx(n, **{"tag.slots": "fast"}) for n in (1, 2, 3)))
    cluster.reload()
    assert {one["addr"] for one in cluster.get("lb/choose?type=rawx&size=3&slot=rawx-fast").json} == {
        f"{NS}-rawx-{n}" for n in (1, 2, 3)
    }
    answer = cluster.get("lb/choose?type=rawx&size=4&slot=fast")
    fast = {f"{NS}-rawx-{n}" for n in (1, 2, 3)}
    assert len({one["addr"] for one in answer.json} & fast) == 3
    assert answer.headers["x-oio-lb-flawed"] == "1"


def test_poll(cluster):
    keys = [f"{NS}|rawx|{NS}-rawx-{n}" for n in range(1, 7)]
    assert len(cluster.post("lb/poll?pool=rawx").json) == 1
    assert len(cluster.post("lb/poll?policy=EC").json) == 6
    answer = cluster.post("lb/poll?policy=EC", {"known": [*keys[:4], "NS|rawx|unknown"]})
    assert {one["id"] for one in answer.json} == set(keys[4:])
    answer = cluster.post("lb/poll?pool=rawx3&policy=NOPE", {"avoid": keys[:3]})
    assert {one["id"] for one in answer.json} == set(keys[3:])
    location = cluster.app.world.by_key[keys[0]].location
    answer = cluster.post("lb/poll?policy=EC", {"known_locations": [location], "avoid_locations": []})
    assert {one["id"] for one in answer.json} == set(keys[1:])
    answer = cluster.post("lb/poll?policy=EC", {"avoid_locations": [location]})
    assert answer.code == (500, 481)


@pytest.mark.parametrize(
    ("query", "body", "code"),
    [
        ("", None, (404, 400)), ("pool=nope", None, (400, 400)), ("policy=nope", None, (500, 481)),
        ("pool=rawx", [], (400, 400)), ("pool=rawx", {"avoid": "x"}, (400, 400)),
        ("pool=rawx", {"known_locations": [1.5]}, (400, 400)), ("pool=rawx", {"avoid": [1]}, (400, 400)),
        ("pool=rawx", {"known_locations": [1 << 70]}, (400, 400)),
        ("pool=rawx", {"known": [f"{NS}|rawx|{NS}-rawx-1"]}, (400, 400)),
    ],
)  # fmt: skip
def test_poll_refuses(cluster, query, body, code):
    assert cluster.post(f"lb/poll?{query}", body).code == code


def test_services_at_zero_are_never_polled(cluster):
    cluster.conscience.services["rawx"] = []
    cluster.conscience.put(rawx(1, score=0))
    cluster.reload()
    assert cluster.post("lb/poll?pool=rawx").code == (500, 481)
    assert [one["score"] for one in cluster.get("conscience/list?type=rawx").json] == [0]


def test_create_pool(cluster):
    body = {"targets": "1,rawx;1,rawx-none,rawx", "options": {"min_dist": "2", "max_dist": 4}}
    assert cluster.post("lb/create_pool?name=mine", body).status == 201
    assert cluster.post("lb/create_pool?name=mine", body).code == (409, 421)
    larger = {"targets": "3,rawx", "options": None}
    assert cluster.post("lb/create_pool?name=mine&force=True", larger).status == 201
    assert len(cluster.post("lb/poll?pool=mine").json) == 3
    cluster.reload()
    assert len(cluster.post("lb/poll?pool=mine").json) == 3, "survives a refresh"
    assert cluster.post("lb/create_pool", body).code == (400, 400)
    bad_option = {"targets": "1,rawx", "options": {"min_dist": "x"}}
    for bad in (None, {}, {"targets": 3}, {"targets": "rawx"}, bad_option):
        assert cluster.post("lb/create_pool?name=other", bad).code == (400, 400)


def test_reload(cluster):
    cluster.conscience.put(rawx(9))
    assert cluster.get("conscience/score?type=rawx&service_id=NSTEST-rawx-9").status == 404
    assert cluster.post("lb/reload").status == 204
    assert cluster.get("conscience/score?type=rawx&service_id=NSTEST-rawx-9").json == {
        "addr": "127.0.0.1:6209", "score": 80,
    }  # fmt: skip
    cluster.conscience.failure = 503
    assert cluster.post("lb/reload").status == 204
    assert cluster.get("lb/choose?type=rawx").status == 200, "the last good world stays"


# --- conscience


def test_info(cluster):
    info = cluster.get("conscience/info").json
    assert info["ns"] == NS and info["chunksize"] == 1000
    assert info["options"]["flat_bitlength"] == 17
    assert info["storage_policy"]["THREE"] == "rawx3:DUP3"
    assert info["service_pools"]["rawx3"] == "3,rawx"
    assert cluster.get("conscience/info?what=types").json == cluster.conscience.types


def test_list_and_resolve(cluster):
    cluster.conscience.put(rawx(1, **{"stat.cpu": 12.5}))
    cluster.reload()
    for query, has_stats in (("type=rawx", False), ("type=rawx&full=1", True)):
        items = {one["addr"]: one for one in cluster.get(f"conscience/list?{query}").json}
        assert set(items["127.0.0.1:6201"]) == {"addr", "score", "tags"}
        assert ("stat.cpu" in items["127.0.0.1:6201"]["tags"]) is has_stats
    assert cluster.get("conscience/list").code == (400, 400)
    assert cluster.get("conscience/list?type=x").code == (404, 453)
    assert cluster.get(f"conscience/resolve?type=rawx&service_id={NS}-rawx-2").json == {"addr": "127.0.0.1:6202"}
    answer = cluster.get("conscience/resolve?type=rawx&service_id=x")
    assert answer.code == (503, 503)
    assert answer.json["message"] == "Conscience error: Service ID [x] not found"
    assert cluster.get("conscience/resolve?type=rawx&service_id=127.0.0.1:6202").json == {"addr": "127.0.0.1:6202"}
    assert cluster.get("conscience/resolve?type=rawx&service_id=127.0.0.1:1").code == (503, 503)
    assert cluster.get("conscience/resolve?type=rawx").code == (400, 400)


def definition(port=7001, **changes):
    return {"ns": NS, "type": "rawx", "addr": f"127.0.0.1:{port}", "score": 50,
            "tags": {"tag.up": True, "other": "x", "stat.cpu": 9.5}, **changes}  # fmt: skip


def test_register(cluster):
    pushed = cluster.conscience.pushed
    assert cluster.post("conscience/register", [definition(), definition(7002)]).status == 204
    eventually(lambda: len(pushed) == 2)
    assert pushed[0].score == -2
    assert pushed[0].tags == {"tag.up": True, "stat.cpu": 9.5, "tag.1": True}
    cluster.post("conscience/register", definition())
    eventually(lambda: len(pushed) == 3)
    assert "tag.1" not in pushed[2].tags
    local = cluster.get("local/list").json
    assert {"127.0.0.1:7001", "127.0.0.1:7002"} <= {one["addr"] for one in local}
    assert all(one["type"] == "rawx" and one["ns"] == NS for one in local)
    assert "type" not in cluster.get("local/list?type=rawx").json[0]
    cluster.process.variables.set("proxy.ttl.services.local", "0")
    assert cluster.get("local/list").json == []


def test_a_registration_does_not_erase_a_lock_that_waits(cluster):
    pushed = cluster.conscience.pushed
    cluster.conscience.failure = 503
    cluster.post("conscience/lock", definition(7005, score=300))
    cluster.post("conscience/register", definition(7005, tags={"tag.new": "1"}))
    cluster.post("conscience/register", definition(7006))
    cluster.post("conscience/unlock", definition(7006))
    cluster.conscience.failure = None
    eventually(lambda: len(pushed) >= 2)
    scores = {one.addr: one.score for one in pushed}
    assert scores == {"127.0.0.1:7005": 100, "127.0.0.1:7006": -1}
    tags = next(one.tags for one in pushed if one.addr == "127.0.0.1:7005")
    assert tags["tag.new"] == "1" and tags["tag.up"] is True


def test_tags_of_other_kinds_become_false(cluster):
    cluster.process.variables.set("proxy.cache.enabled", "off")
    tags = {"tag.a": None, "tag.b": [1], "tag.c": {}, "tag.d": 1, "tag.e": True, "stat.f": 0.5, "tag.g": "x"}
    assert cluster.post("conscience/register", definition(tags=tags)).status == 204
    kept = {**tags, "tag.a": False, "tag.b": False, "tag.c": False}
    pushed = cluster.conscience.pushed[0].tags
    assert {key: pushed[key] for key in tags} == kept


def test_registrations_are_sent_at_once_without_caches(cluster):
    cluster.process.variables.set("proxy.cache.enabled", "off")
    assert cluster.post("conscience/lock", definition(7010, score=None)).status == 204
    assert [one.score for one in cluster.conscience.pushed] == [0]
    cluster.conscience.failure = 503
    assert cluster.post("conscience/register", definition(7010)).status == 503


@pytest.mark.parametrize(
    "body",
    [None, b"x", 3, [3], definition(addr="x"), definition(addr=None), definition(type=None), definition(tags=[]),
     definition(score="x"), definition(ns="OTHER"), definition(port=99999)],
)  # fmt: skip
def test_register_refuses(cluster, body):
    assert cluster.post("conscience/register", body).code == (400, 400)


def test_unknown_types(cluster):
    assert cluster.post("conscience/register", definition(type="what")).code == (404, 453)
    assert cluster.post("conscience/deregister?type=what", b"x").code == (404, 453)
    assert cluster.post("conscience/flush?type=what").code == (404, 453)
    assert cluster.post("conscience/flush").code == (400, 400)


def test_deregister_and_flush(cluster):
    assert cluster.post("conscience/deregister", definition()).status == 204
    assert [one.addr for one in cluster.conscience.deregistered] == ["127.0.0.1:7001"]
    assert cluster.post("conscience/deregister", b'"x"').code == (400, 400)
    assert cluster.post("conscience/flush?type=rdir").status == 204


# --- process


def test_config(cluster):
    config = cluster.request("GET", "/v3.0/config", raw=True).json
    assert config["ns.chunk_size"] == "1000" and config["proxy.cache.enabled"] == "on"
    answer = cluster.request("POST", "/v3.0/config", {"ns.chunk_size": "2ki", "nope": 3}, raw=True)
    assert answer.json == {"ns.chunk_size": True, "nope": False}
    assert cluster.process.variables["ns.chunk_size"] == 2048
    for bad in (None, {}, [], {"ns.chunk_size": {}}):
        assert cluster.request("POST", "/v3.0/config", bad, raw=True).code == (400, 400)


def test_time_allowed_to_the_conscience(cluster):
    registry = cluster.process.feed.registry
    assert registry.timeout_s == 10
    cluster.request("POST", "/v3.0/config", {"proxy.outgoing.timeout.conscience": "0.5"}, raw=True)
    assert registry.timeout_s == 0.5


def test_location_of_the_proxy_can_be_configured(cluster):
    cluster.request(
        "POST", "/v3.0/config", {"proxy.location": "room.rack.host3.p", "proxy.srv_local.patch": "on",
                                 "proxy.srv_local.prepare": "1"}, raw=True,
    )  # fmt: skip
    chunks = cluster.post(f"content/prepare2?{REF}&path=a", {"size": 1, "policy": "SINGLE"}).json["chunks"]
    assert "NSTEST-rawx-3" in chunks[0]["url"]
    assert 91 <= chunks[0]["score"] <= 100


def test_status_and_metrics(cluster):
    cluster.get("lb/choose?type=rawx")
    answer = cluster.request("GET", "/v3.0/status", raw=True)
    assert answer.headers["content-type"] == "text/x-java-properties"
    lines = dict(line.rsplit(" ", 1) for line in answer.data.decode().splitlines())
    assert int(lines["counter req.hits.lb_choose_GET"]) >= 1
    assert int(lines["counter req.hits"]) >= 1
    assert "counter req.time.UNEXPECTED" in lines and "counter req.hits.forward_config_POST" in lines
    for name in ("cache.dir.count", "cache.srv.ttl", "down.srv", "known.srv"):
        assert f"gauge {name}" in lines
    text = cluster.request("GET", "/metrics", raw=True).data.decode()
    assert 'oio_proxy_requests_total{route="lb_choose_GET"}' in text


def test_caches(cluster):
    cluster.post(f"content/touch?{REF}&path=a")
    shown = cluster.request("GET", "/v3.0/cache/status", raw=True).json
    assert shown["csm0"]["count"] == shown["meta1"]["count"] == 1
    assert {"count", "max", "ttl"} == set(shown["meta1"])
    assert cluster.request("POST", "/v3.0/cache/flush/low", raw=True).status == 204
    assert cluster.request("GET", "/v3.0/cache/status", raw=True).json["meta1"]["count"] == 0
    assert cluster.request("POST", "/v3.0/cache/flush/high", raw=True).status == 204
    assert cluster.request("GET", "/v3.0/cache/status", raw=True).json["csm0"]["count"] == 0
    items = cluster.request("GET", "/v3.0/cache/show", raw=True).json
    assert {"addr": "127.0.0.1:6201", "id": f"{NS}|rawx|{NS}-rawx-1"} in items
    assert cluster.request("POST", "/v3.0/cache/flush/local", raw=True).status == 204
    assert cluster.get("lb/choose?type=rawx").status == 200


def test_forward(cluster):
    def forward(verb, method="GET", address=cluster.meta.addr, body=None):
        return cluster.request(method, f"/v3.0/forward/{verb}?id={address}", body, raw=True)

    assert forward("ping").status == 204
    assert forward("version").data == b"1.2"
    assert forward("info").json["replication"] == "NONE"
    assert forward("stats", "POST").data == b"counter.requests 12\ngauge.threads 3\n"
    assert forward("config").json == {"meta2.max_versions": "1"}
    assert forward("config", address="").code == (400, 400)
    assert forward("config", address="localhost").code == (400, 400)
    assert forward("ping", address="127.0.0.1:9").status == 503
    for verb in ("reload", "flush"):
        cluster.meta.calls.clear()
        assert forward(verb, "POST").status == 204
        assert cluster.meta.names() == ["refresh"]
        assert forward(verb).code == (404, 404)
    assert forward("nothing", "POST").code == (404, 404)
    # A handler that the service does not have.
    assert forward("kill", "POST").code == (500, 404)


# --- workers


def test_state_changes_reach_the_siblings(make_cluster):
    one, two = make_cluster(), make_cluster()

    def tell(method, target, body, headers):
        request = two.pool.request(method, two.url + target, headers=headers, body=body)
        return [bytes(request.data)] if request.status < 300 else []

    one.app.broadcast = tell
    one.request("POST", "/v3.0/config", {"ns.flat_bits": "20"}, raw=True)
    assert two.process.variables["ns.flat_bits"] == 20
    one.post("lb/create_pool?name=mine", {"targets": "2,rawx"})
    assert len(two.post("lb/poll?pool=mine").json) == 2
    one.post("conscience/register", definition())
    assert [item["addr"] for item in two.get("local/list").json] == ["127.0.0.1:7001"]
    assert two.conscience.pushed == []
    two.post(f"content/touch?{REF}&path=a")
    # Whichever worker answers, what one of them remembers shows.
    assert one.request("GET", "/v3.0/cache/status", raw=True).json["meta1"]["count"] == 1
    assert b"gauge cache.srv.count 1\n" in one.request("GET", "/v3.0/status", raw=True).data
    one.request("POST", "/v3.0/cache/flush/low", raw=True)
    assert two.request("GET", "/v3.0/cache/status", raw=True).json["meta1"]["count"] == 0
    two.conscience.put(rawx(9))
    one.post("lb/reload")
    assert two.get("conscience/score?type=rawx&service_id=NSTEST-rawx-9").status == 200
    text = one.request("GET", "/v3.0/status", raw=True).data
    lines = dict(line.rsplit(" ", 1) for line in text.decode().splitlines())
    assert lines["counter req.hits.content_touch_POST"] == "1"


def test_a_proxy_starts_without_conscience(make_cluster):
    cluster = make_cluster(conscience="127.0.0.1:9", **{"proxy.period.cs.downstream": "50ms"})
    assert cluster.get("lb/choose?type=rawx").code == (503, 503)
    assert cluster.get("conscience/info?what=types").code == (503, 503)
    cluster.process.feed.registry.addresses = [cluster.conscience.addr]
    eventually(lambda: cluster.get("lb/choose?type=rawx").status == 200)


def test_bad_services_of_the_conscience_are_left_out(cluster):
    bad = msgspec.structs.replace(rawx(8), tags={"tag.service_id": 'a"/b'})
    cluster.conscience.put(bad)
    cluster.reload()
    assert len(cluster.get("lb/choose?type=rawx&size=6").json) == 6
