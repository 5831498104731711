# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Registrations, scores and choices of services, through the proxy of a real cluster.

The services are of a type that nothing else uses; they do not exist.
"""

import itertools

import pytest
from proxy_http import RawProxy
from support import eventually

from oio.common.exceptions import Conflict, NotFound, ServiceBusy
from oio.conscience.client import ConscienceClient

ports = itertools.count(1001)


@pytest.fixture
def proxy(cluster):
    proxy = RawProxy(cluster.proxy, cluster.namespace)
    yield proxy
    assert proxy.post("conscience/flush", {"type": "echo"}).status == 204
    reload(proxy)
    proxy.pool.close()


@pytest.fixture
def client(proxy):
    return ConscienceClient({"namespace": proxy.namespace}, endpoint=proxy.address)


def reload(proxy):
    """Have what was registered known everywhere."""
    assert proxy.post("lb/reload").status == 204


def echo(proxy, *, cpu=50, **tags):
    """A new service."""
    port = next(ports)
    return {
        "ns": proxy.namespace, "type": "echo", "addr": f"127.0.0.1:{port}", "score": 77,
        "tags": {"tag.service_id": f"echo-{port}", "tag.up": True, "tag.loc": f"room.rack.h{port}.v",
                 "stat.cpu": cpu, "other": "x", **tags},
    }  # fmt: skip


def add(proxy, *services):
    """Register services, and have their scores computed."""
    for verb in ("register", "unlock"):
        assert proxy.post(f"conscience/{verb}", body=list(services)).status == 204
        reload(proxy)
    return [service["tags"]["tag.service_id"] for service in services]


def listed(proxy, full=None):
    """Services of the type by address."""
    answer = proxy.get("conscience/list", {"type": "echo", **({"full": full} if full else {})})
    assert answer.status == 200, answer
    return {item["addr"]: item for item in answer.json}


# --- registrations


def test_a_new_service_is_locked_at_zero_listed_and_not_polled(proxy):
    service = echo(proxy)
    assert proxy.post("conscience/register", body=service).status == 204
    reload(proxy)
    item = listed(proxy)[service["addr"]]
    assert set(item) == {"addr", "score", "tags"}
    assert item["score"] == 0
    assert item["tags"] == {
        "tag.service_id": service["tags"]["tag.service_id"], "tag.up": True, "tag.lock": True,
        "tag.loc": service["tags"]["tag.loc"],
    }  # fmt: skip
    assert proxy.post("lb/poll", {"pool": "echo"}).code == (500, 481)
    assert proxy.get("lb/choose", {"type": "echo"}).code == (500, 481)


def test_statistics_are_shown_on_demand_with_their_types(proxy):
    service = echo(proxy, cpu=12.5, **{"stat.io": 3, "tag.text": "a", "tag.flag": False})
    add(proxy, service)
    tags = listed(proxy, full="1")[service["addr"]]["tags"]
    assert tags["stat.cpu"] == 12.5 and tags["stat.io"] == 3
    assert tags["tag.text"] == "a" and tags["tag.flag"] is False
    assert "other" not in tags and "tag.1" not in tags
    assert not [name for name in listed(proxy)[service["addr"]]["tags"] if not name.startswith("tag.")]


def test_a_lock_holds_until_it_is_removed(proxy):
    service = echo(proxy)
    add(proxy, service)
    assert proxy.post("conscience/lock", body={**service, "score": 42}).status == 204
    reload(proxy)
    item = listed(proxy)[service["addr"]]
    assert (item["score"], item["tags"]["tag.lock"]) == (42, True)
    proxy.post("conscience/register", body=service)
    reload(proxy)
    assert listed(proxy)[service["addr"]]["score"] == 42
    where = {"type": "echo", "service_id": service["tags"]["tag.service_id"]}
    assert proxy.get("conscience/score", where).json == {"addr": service["addr"], "score": 42}
    proxy.post("conscience/unlock", body=service)
    reload(proxy)
    item = listed(proxy)[service["addr"]]
    assert item["tags"]["tag.lock"] is False
    assert 42 <= item["score"] <= 50


@pytest.mark.parametrize(("given", "kept"), [(300, 100), (-7, 0), (None, 0)])
def test_locked_scores_are_clamped(proxy, given, kept):
    service = {**echo(proxy), "score": given}
    assert proxy.post("conscience/lock", body=service).status == 204
    reload(proxy)
    assert listed(proxy)[service["addr"]]["score"] == kept


def test_unlocking_does_not_register(proxy):
    service = echo(proxy)
    assert proxy.post("conscience/unlock", body=service).status == 204
    reload(proxy)
    assert service["addr"] not in listed(proxy)


def test_a_service_that_is_down_falls_at_once(proxy):
    service = echo(proxy)
    add(proxy, service)
    assert listed(proxy)[service["addr"]]["score"] > 0
    proxy.post("conscience/register", body={**service, "tags": {**service["tags"], "tag.up": False}})
    reload(proxy)
    assert listed(proxy)[service["addr"]]["score"] == 0


def test_deregistered_services_are_gone(proxy):
    one, two, three = (echo(proxy) for _ in range(3))
    add(proxy, one, two, three)
    proxy.post("conscience/register", body=[one, two])
    assert proxy.post("conscience/deregister", body=one).status == 204
    assert proxy.post("conscience/deregister", {"type": "echo"}, [two]).status == 204
    reload(proxy)
    assert set(listed(proxy)) == {three["addr"]}
    assert proxy.post("conscience/flush", {"type": "echo"}).status == 204
    reload(proxy)
    assert listed(proxy) == {}


def test_one_bad_service_registers_none(proxy):
    good = echo(proxy)
    other = echo(proxy)
    for bad in ({**other, "addr": "nowhere"}, {**other, "type": "unknown"}, {"addr": "127.0.0.1:1"}, 3):
        answer = proxy.post("conscience/register", body=[good, bad])
        assert answer.code in ((400, 400), (404, 453))
    reload(proxy)
    assert listed(proxy) == {}


def test_local_services(proxy):
    service = echo(proxy)
    proxy.post("conscience/register", body=service)
    everything = {item["addr"]: item for item in proxy.get("local/list").json}
    mine = everything[service["addr"]]
    assert (mine["ns"], mine["type"]) == (proxy.namespace, "echo")
    assert {item["type"] for item in everything.values()} >= {"rawx", "meta1", "meta2"}, "agents register here"
    (item,) = proxy.get("local/list", {"type": "echo"}).json
    assert set(item) == {"addr", "score", "tags"}


def test_ids_are_resolved(proxy):
    service = echo(proxy)
    (service_id,) = add(proxy, service)
    where = {"type": "echo", "service_id": service_id}
    assert proxy.get("conscience/resolve", where).json == {"addr": service["addr"]}
    answer = proxy.get("conscience/resolve", {"type": "echo", "service_id": "nobody"})
    assert answer.code == (503, 503)
    assert answer.json["message"] == "Conscience error: Service ID [nobody] not found"
    assert proxy.get("conscience/score", {"type": "echo", "service_id": "nobody"}).status == 404


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "conscience/list", (400, 400)), ("GET", "conscience/list?type=unknown", (404, 453)),
        ("GET", "conscience/resolve?type=echo", (400, 400)),
        ("GET", "conscience/resolve?service_id=x", (400, 400)),
        ("GET", "conscience/score?type=echo", (400, 400)), ("POST", "conscience/flush", (400, 400)),
        ("POST", "conscience/flush?type=unknown", (404, 453)),
        ("POST", "conscience/deregister?type=unknown", (404, 453)),
        ("POST", "conscience/deregister", (400, 400)), ("POST", "conscience/lock", (400, 400)),
        ("GET", "conscience/info/anything", (404, 404)), ("POST", "conscience/info", (404, 404)),
        ("GET", "lb/choose", (400, 400)), ("GET", "lb/choose?type=unknown", (404, 453)),
        ("GET", "lb/nothing", (404, 404)),
        ("GET", "lb/choose?type=echo&size=x", (400, 400)), ("POST", "lb/poll", (404, 400)),
        ("POST", "lb/poll?pool=unknown", (400, 400)), ("POST", "lb/poll?policy=unknown", (500, 481)),
        ("POST", "lb/create_pool", (400, 400)),
    ],
)  # fmt: skip
def test_bad_requests(proxy, method, path, code):
    assert proxy.request(method, path).code == code


def test_description_of_the_namespace(proxy, cluster):
    info = proxy.get("conscience/info").json
    assert set(info) == {"ns", "chunksize", "options", "storage_policy", "service_pools", "data_security"}
    assert info["ns"] == cluster.namespace
    assert isinstance(info["chunksize"], int) and isinstance(info["options"]["flat_bitlength"], int)
    assert info["storage_policy"]["SINGLE"].count(":") == 1
    types = proxy.get("conscience/info", {"what": "types"}).json
    assert {"account", "echo", "meta0", "meta1", "meta2", "rawx", "rdir"} <= set(types)


@pytest.fixture
def stopped(cluster):
    """Stops services, and has them back at the end whatever happens."""
    gone = []

    def stop(*types):
        names = [service.name for service in cluster.services(*types)]
        gone.extend(names)
        cluster.stop(*names)

    yield stop
    cluster.start(*gone)
    cluster.wait_ready()


def test_locks_survive_the_conscience_and_the_proxy_goes_on_without_it(proxy, cluster, stopped):
    locked, free = echo(proxy), echo(proxy)
    add(proxy, locked, free)
    proxy.post("conscience/lock", body={**locked, "score": 33})
    reload(proxy)
    stopped("conscience")
    answer = proxy.get("conscience/list", {"type": "echo", "full": "1"})
    assert answer.code == (503, 503) and answer.headers["retry-after"] == "1"
    assert proxy.post("conscience/deregister", body=free).code == (503, 503)
    assert proxy.post("lb/reload").status == 204, "always"
    assert listed(proxy)[locked["addr"]]["score"] == 33, "the last known state"
    assert proxy.get("lb/choose", {"type": "echo", "size": 2}).status == 200
    third = echo(proxy)
    assert proxy.post("conscience/register", body=third).status == 204, "waits for a conscience"
    cluster.start("@conscience")
    eventually(lambda: reload(proxy) or third["addr"] in listed(proxy), what="the registration that waited")
    item = listed(proxy)[locked["addr"]]
    assert (item["score"], item["tags"]["tag.lock"]) == (33, True)


# --- choices


@pytest.fixture
def crowd(proxy):
    """Six services, three of them in the slot ``fast``."""
    fast = [echo(proxy, **{"tag.slots": "fast"}) for _ in range(3)]
    slow = [echo(proxy) for _ in range(3)]
    add(proxy, *fast, *slow)
    return [service["tags"]["tag.service_id"] for service in (*fast, *slow)]


def test_a_slot_is_served_first(proxy, crowd):
    for size, flawed in ((3, None), (4, "1")):
        answer = proxy.get("lb/choose", {"type": "echo", "slot": "fast", "size": size})
        chosen = {item["addr"] for item in answer.json}
        assert len(answer.json) == len(chosen) == size
        assert set(crowd[:3]) <= chosen
        assert answer.headers.get("x-oio-lb-flawed") == flawed
        assert {item["id"] for item in answer.json} == {f"{proxy.namespace}|echo|{one}" for one in chosen}
    answer = proxy.get("lb/choose", {"type": "echo", "size": 7})
    assert answer.code == (500, 481)
    assert "found only 6 services matching the criteria" in answer.json["message"]
    assert len(proxy.get("lb/choose", {"type": "echo"}).json) == 1


def test_pools_are_made_known_to_every_process_of_the_proxy(proxy, crowd):
    body = {"targets": "3,echo-fast,echo;3,echo", "options": {"min_dist": "1", "max_dist": 4}}
    name = f"pool{next(ports)}"
    assert proxy.post("lb/create_pool", {"name": name}, body).status == 201
    assert proxy.post("lb/create_pool", {"name": name}, body).code == (409, 421)
    assert proxy.post("lb/create_pool", {"name": name, "force": "1"}, body).status == 201
    keys = [f"{proxy.namespace}|echo|{one}" for one in crowd]
    for _ in range(10):
        everything = [item["id"] for item in proxy.post("lb/poll", {"pool": name}).json]
        assert sorted(everything) == sorted(keys)
        rest = proxy.post("lb/poll", {"pool": name}, {"known": [keys[0], "NS|echo|nobody"]}).json
        assert sorted(item["id"] for item in rest) == sorted(keys[1:])
    assert proxy.post("lb/poll", {"pool": name}, {"avoid": keys[:1]}).code == (500, 481)
    assert proxy.post("lb/poll", {"pool": name}, {"known": keys}).code == (400, 400)
    for bad in ([], "x", {"avoid": "x"}, {"known_locations": ["x"]}):
        assert proxy.post("lb/poll", {"pool": name}, bad).code == (400, 400)


def test_every_type_has_its_pool(proxy, crowd):
    (item,) = proxy.post("lb/poll", {"pool": "echo"}).json
    assert item["addr"] in crowd
    assert len(proxy.post("lb/poll", {"policy": "THREECOPIES"}).json) in (1, 3)


# --- the client


def test_client_of_the_conscience(client, proxy):
    tags = {"stat.cpu": 90, "tag.up": True}
    service = client.get_service_definition("echo", f"127.0.0.1:{next(ports)}", tags=tags)
    assert client.register(service) is None
    client.lb.create_pool(f"mine{next(ports)}", [(1, "echo")], options={"min_dist": 1})
    client.lock_score({**service, "score": 33})
    reload(proxy)
    (item,) = client.all_services("echo")
    assert (item["id"], item["score"], item["tags"]["tag.lock"]) == (service["addr"], 33, True)
    assert client.all_services("echo", full=True)[0]["tags"]["stat.cpu"] == 90
    assert service["addr"] in {one["addr"] for one in client.local_services() if one["type"] == "echo"}
    assert client.next_instance("echo")["addr"] == service["addr"]
    assert client.next_instances("echo")["id"] == f"{proxy.namespace}|echo|{service['addr']}"
    assert [one["addr"] for one in client.poll("echo")] == [service["addr"]]
    with pytest.raises(Exception, match="481"):
        client.poll("echo", avoid=[f"{proxy.namespace}|echo|{service['addr']}"])
    assert client.unlock_score([service]) is None
    assert client.deregister([service]) is None
    reload(proxy)
    assert client.all_services("echo") == []
    assert client.flush("echo") is None
    assert "echo" in client.service_types()
    assert client.info()["ns"] == proxy.namespace
    with pytest.raises(NotFound) as caught:
        client.all_services("unknown")
    assert caught.value.status == 453


def test_client_resolves_ids(client, cluster):
    rawx = cluster.services("rawx")[0]
    known = {item["addr"]: item["id"] for item in client.all_services("rawx")}
    service_id = known[rawx.addr]
    assert client.resolve("rawx", service_id) == {"addr": rawx.addr}
    assert client.resolve_service_id("rawx", service_id) == rawx.addr
    assert client.resolve_url("rawx", f"http://{service_id}/AB") == f"http://{rawx.addr}/AB"
    with pytest.raises(ServiceBusy):
        client.resolve("rawx", "nobody")


def test_client_of_the_load_balancer(client, proxy, crowd):
    name = f"pool{next(ports)}"
    client.lb.create_pool(name, [(2, "echo-fast", "echo"), (1, "echo")])
    assert len(client.lb.poll(name)) == 3
    with pytest.raises(Conflict):
        client.lb.create_pool(name, [(1, "echo")])
    client.lb.create_pool(name, [(1, "echo")], force=True)
    assert len(client.lb.poll(name)) == 1
    assert len(client.lb.next_instances("echo", size=6)) == 6
    assert client.lb.next_instance("echo")["addr"] in crowd
