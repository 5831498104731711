# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Choosing an rdir for each volume: balance, constraints, failures."""

import collections

import pytest

from oio.common.exceptions import (
    BadRequest,
    ClientException,
    Conflict,
    NotFound,
    OioException,
    OioNetworkException,
    ServiceBusy,
    ServiceUnavailable,
)
from oio.rdir import client
from oio.rdir import dispatcher as module
from oio.rdir.dispatcher import JOKER_SVC_TARGET, RDIR_ACCT, RdirDispatcher, _make_id


class Cluster:
    """What the dispatcher asks: registry, load balancer, directory and rdir in one."""

    def __init__(self, rawx=6, rdirs=3, named=()):
        self.rawx = [
            {"addr": f"10.0.0.{n}:6200", "score": 50, "tags": {"tag.service_id": f"T-rawx-{n}"}}
            for n in range(rawx)
        ]
        self.rawx.append({"addr": "10.0.0.99:6200", "score": 0, "tags": {}})
        self.rdirs = [
            {"addr": f"10.0.1.{n}:6300", "score": 50, "tags": {"stat.opened_db_count": 0}} for n in range(rdirs)
        ]
        for number, name in named:
            self.rdirs[number]["tags"]["tag.service_id"] = name
        self.links, self.pools, self.polls, self.created, self.forced = {}, [], [], [], []
        self.poll_errors, self.force_errors, self.list_errors, self.create_error = [], [], {}, None
        self.lb, self.turn = self, 0

    # registry
    def all_services(self, srv_type, full=False, **_kwargs):
        found = {"rawx": self.rawx, "rdir": self.rdirs}[srv_type]
        return [{**service, "tags": dict(service["tags"])} for service in found]

    # load balancer
    def create_pool(self, name, targets, force=False, options=None, **_kwargs):
        self.pools.append((name, targets, force, options))

    def poll(self, pool, avoid, known, **_kwargs):
        assert pool == "__rawx_rdir"
        self.polls.append((avoid, known))
        if self.poll_errors:
            raise self.poll_errors.pop(0)
        keys = [_make_id("T", "rdir", rdir["tags"].get("tag.service_id") or rdir["addr"]) for rdir in self.rdirs]
        free = [key for key, rdir in zip(keys, self.rdirs, strict=True) if key not in avoid and rdir["score"] > 0]
        if not free:
            raise ClientException(500, 481, "no service")
        self.turn += 1
        key = free[self.turn % len(free)]
        return [{"id": known[0], "addr": "x"}, {"id": key, "addr": key.rpartition("|")[2]}]

    # directory
    def list(self, account, reference, service_type, **_kwargs):
        assert (account, service_type) == (RDIR_ACCT, "rdir")
        if reference in self.list_errors:
            raise self.list_errors[reference]
        if reference not in self.links:
            raise NotFound(404, 406, "Reference not found")
        return {"srv": [{"type": "rdir", "host": self.links[reference]}]}

    def force(self, account, reference, service_type, link, autocreate, replace, **_kwargs):
        assert account == RDIR_ACCT and autocreate and service_type == "rdir"
        self.forced.append((reference, link, replace))
        if self.force_errors:
            error = self.force_errors.pop(0)
            if error is not None:
                raise error
        self.links[reference] = link["host"]

    # rdir
    pool_manager = None

    def _clear_cache(self, volume):
        pass

    def create(self, volume, service_type, **_kwargs):
        if self.create_error:
            raise self.create_error
        self.created.append((volume, service_type))

    def dispatcher(self):
        made = RdirDispatcher({"namespace": "T"}, rdir_client=self, endpoint="127.0.0.1:1")
        made.cs = made.directory = self
        return made


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that are asked for, and not made."""
    asked = []
    monkeypatch.setattr(module.time, "sleep", asked.append)
    return asked


def test_all_get_one_and_none_has_more_than_its_share():
    cluster = Cluster(rawx=19, rdirs=3)
    services = cluster.dispatcher().assign_all_rawx()
    counts = collections.Counter(service["rdir"]["addr"] for service in services)
    assert sum(counts.values()) == 20
    assert max(counts.values()) <= 20 / 3 + 1
    assert len(cluster.created) == 20
    assert ("10.0.0.99:6200", "rawx") in cluster.created, "a service with score 0 gets one as well"
    assert cluster.links == {
        service["tags"].get("tag.service_id", service["addr"]): service["rdir"]["addr"] for service in services
    }
    reference, link, replace = cluster.forced[0]
    assert link == {
        "host": cluster.links[reference], "type": "rdir", "seq": 1, "args": "",
        "id": f"T|rdir|{cluster.links[reference]}",
    }  # fmt: skip
    assert replace is False
    assert cluster.pools == [("__rawx_rdir", [(1, JOKER_SVC_TARGET), (1, "rdir")], True, {})]
    assert cluster.polls[0] == ([], ["T|rawx|T-rawx-0"])
    again = cluster.dispatcher().assign_all_rawx()
    assert len(cluster.forced) == 20
    assert all(service["rdir"] for service in again)


def test_those_above_the_average_are_avoided():
    cluster = Cluster(rawx=1, rdirs=3)
    cluster.rdirs[0]["tags"]["stat.opened_db_count"] = 10
    cluster.rdirs[1]["tags"]["stat.opened_db_count"] = 2
    cluster.rdirs[2]["score"] = 0
    cluster.dispatcher().assign_services("rawx")
    assert cluster.polls[0][0] == ["T|rdir|10.0.1.0:6300"]


def test_names_of_rdir_are_known_to_the_load_balancer_and_addresses_are_linked():
    cluster = Cluster(rawx=4, rdirs=2, named=[(0, "T-rdir-1"), (1, "T-rdir-2")])
    cluster.rdirs[0]["tags"]["stat.opened_db_count"] = 3
    services = cluster.dispatcher().assign_services("rawx", service_id="T-rawx-1")
    assert cluster.polls[0][0] == ["T|rdir|10.0.1.0:6300", "T|rdir|T-rdir-1"]
    assert cluster.links == {"T-rawx-1": "10.0.1.1:6300"}
    assert [service["rdir"]["tags"]["tag.service_id"] for service in services] == ["T-rdir-2"]
    cluster.links["T-rawx-2"] = "T-rdir-1"
    services, _rdirs = cluster.dispatcher().get_assignments("rawx")
    assert services[2]["rdir"]["addr"] == "10.0.1.0:6300"
    assert "rdir" not in services[3]


def test_what_cannot_be_balanced_is_done_without_balance():
    cluster = Cluster(rawx=1, rdirs=2)
    cluster.rdirs[0]["tags"]["stat.opened_db_count"] = 5
    cluster.poll_errors = [ClientException(500, 481, "distance")]
    cluster.dispatcher().assign_services("rawx", service_id="T-rawx-0", min_dist=2)
    assert [avoid for avoid, _known in cluster.polls] == [["T|rdir|10.0.1.0:6300"], []]
    assert cluster.pools[0][3] == {"min_dist": "2"}


def test_the_maximum_is_never_exceeded():
    cluster = Cluster(rawx=5, rdirs=2)
    with pytest.raises(ClientException, match="no service"):
        cluster.dispatcher().assign_services("rawx", max_per_rdir=2)
    assert collections.Counter(cluster.links.values()) == {"10.0.1.0:6300": 2, "10.0.1.1:6300": 2}


def test_a_pool_that_the_proxy_forgot_is_made_again():
    cluster = Cluster()
    cluster.poll_errors = [None, BadRequest(400, 400, "pool not found")]
    cluster.poll_errors.pop(0)
    cluster.dispatcher().assign_services("rawx")
    assert len(cluster.pools) == 2


def test_another_minimal_distance_makes_another_pool():
    cluster = Cluster(rawx=2)
    dispatcher = cluster.dispatcher()
    dispatcher.assign_services("rawx", service_id="T-rawx-0")
    dispatcher.assign_services("rawx", service_id="T-rawx-1", min_dist=3)
    assert [options for *_rest, options in cluster.pools] == [{}, {"min_dist": "3"}]


def test_a_dry_run_changes_nothing():
    cluster = Cluster(rawx=9)
    services = cluster.dispatcher().assign_services("rawx", dry_run=True)
    assert max(collections.Counter(service["rdir"]["addr"] for service in services).values()) <= 10 / 3 + 1
    assert not cluster.links and not cluster.forced and not cluster.created


def test_assigning_again():
    cluster = Cluster(rawx=2, rdirs=2)
    cluster.links = {"T-rawx-0": "10.0.1.0:6300", "T-rawx-1": "gone:1", "10.0.0.99:6200": "10.0.1.0:6300"}
    services = cluster.dispatcher().assign_services("rawx")
    assert not cluster.forced
    assert services[1]["rdir"] == {"addr": "gone:1", "score": 0, "tags": {}}
    cluster.dispatcher().assign_services("rawx", service_id="T-rawx-1", reassign=True)
    assert [(reference, replace) for reference, _link, replace in cluster.forced] == [("T-rawx-1", True)]
    assert cluster.links["T-rawx-1"].startswith("10.0.1.")


def test_wrong_requests():
    cluster = Cluster()
    with pytest.raises(ValueError, match="nope isn't a rawx"):
        cluster.dispatcher().assign_services("rawx", service_id="nope")
    cluster.rdirs = []
    with pytest.raises(ServiceUnavailable, match="No rdir"):
        cluster.dispatcher().assign_services("rawx")
    cluster = Cluster(rawx=2)
    for rdir in cluster.rdirs:
        rdir["score"] = 0
    with pytest.raises(ServiceUnavailable, match="score of 0"):
        cluster.dispatcher().assign_services("rawx")


@pytest.mark.parametrize(
    "error",
    [
        NotFound(404, 406, "a"), ClientException(500, 450, "b"), ServiceBusy(503, 503, "c"),
        ClientException(504, 504, "d"),
    ],
)  # fmt: skip
def test_what_passes_is_waited_for(pauses, error):
    cluster = Cluster()
    cluster.force_errors = [error] * 3
    cluster.dispatcher().assign_services("rawx", service_id="T-rawx-0")
    assert pauses == [0, 1, 2]
    assert "T-rawx-0" in cluster.links
    cluster.force_errors = [error] * 7
    with pytest.raises(type(error)):
        cluster.dispatcher().assign_services("rawx", service_id="T-rawx-1")
    assert pauses == [0, 1, 2, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "error", [Conflict(403, 455, "linked"), ClientException(500, 19, "UNIQUE constraint failed")]
)
def test_a_link_that_somebody_else_made_holds(pauses, error):
    cluster = Cluster()
    cluster.force_errors = [error]
    force = cluster.force

    def meanwhile(account, reference, *args, **kwargs):
        cluster.links[reference] = "10.0.1.2:6300"
        force(account, reference, *args, **kwargs)

    cluster.force = meanwhile
    services = cluster.dispatcher().assign_services("rawx", service_id="T-rawx-0")
    assert services[0]["rdir"]["addr"] == "10.0.1.2:6300"
    assert not pauses


def test_a_database_that_cannot_be_created_is_no_failure():
    cluster = Cluster()
    cluster.create_error = OioNetworkException("refused")
    assert all("rdir" in service for service in cluster.dispatcher().assign_services("rawx"))


def test_failures_are_told_at_the_end(pauses):
    cluster = Cluster(rawx=4)
    cluster.list_errors = {"T-rawx-1": OioNetworkException("one")}
    with pytest.raises(OioNetworkException, match=r"^one$"):
        cluster.dispatcher().assign_services("rawx")
    assert sorted(cluster.links) == ["10.0.0.99:6200", "T-rawx-0", "T-rawx-2", "T-rawx-3"]
    cluster = Cluster(rawx=4)
    cluster.list_errors = {"T-rawx-1": ServiceBusy(503, 503, "one"), "T-rawx-2": ServiceBusy(503, 503, "two")}
    with pytest.raises(ServiceBusy, match=r"2 services without rdir: .*one.*two"):
        cluster.dispatcher().assign_services("rawx")
    cluster.list_errors["T-rawx-2"] = OioNetworkException("two")
    with pytest.raises(OioException, match="2 services without rdir") as raised:
        cluster.dispatcher().assign_services("rawx")
    assert type(raised.value) is OioException
    cluster.list_errors = {f"T-rawx-{n}": OioNetworkException("lost") for n in range(4)}
    services, rdirs = cluster.dispatcher().get_assignments("rawx")
    assert ["rdir" in service for service in services] == [False] * 4 + [True]
    assert len(rdirs) == 3


@pytest.mark.parametrize("name", ["JOKER_SVC_TARGET", "RDIR_ACCT", "RdirDispatcher", "_make_id"])
def test_the_module_of_the_client_has_the_names_of_the_dispatcher(name):
    assert getattr(client, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="no attribute 'RdirElsewhere'"):
        _ = client.RdirElsewhere
