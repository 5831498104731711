# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Moves and rebuilds of bases of containers, on services that live in memory."""

import logging

import pytest

from oio.common.exceptions import ClientException, NotFound, OioException, ServiceBusy
from oio.directory.meta2 import Meta2Database

CID = "AB" * 32
LOGGER = logging.getLogger("test")


def answers(services, code=200):
    return {one: {"status": {"status": code, "message": f"m{code}"}, "body": ""} for one in services}


class World:
    """The directory, the conscience, the reverse directory, and the services with their copies, all in one."""

    ns = "NS"

    def __init__(self, peers, spare=("e",), sequences=(1,)):
        self.links = {sequence: [*peers] for sequence in sequences}
        self.copies = {f"{CID}.{sequence}": {*peers} for sequence in sequences}
        self.known = [*peers, *spare]
        self.peers = {}
        self.closed = set()
        self.index = {peer: {CID} for peer in peers}
        self.said = []
        self.failing = {}

    def _note(self, action, base=""):
        self.said.append(action)
        error = self.failing.get(action)
        if error:
            raise error
        if base and self.peers.get(base) is not None:
            assert base in self.copies

    # directory

    def list(self, *, cid, service_type):
        self._note("list")
        assert service_type == "meta2"
        if cid != CID:
            raise NotFound()
        links = [
            {"type": "meta2", "seq": sequence, "host": host, "args": "x"}
            for sequence, hosts in self.links.items() for host in hosts
        ]  # fmt: skip
        return {"account": "acme", "name": "photos", "srv": [*links, {"type": "sqlx", "seq": 1, "host": "z"}]}

    def force(self, *, cid, service_type, services, replace):
        self._note("force")
        assert (cid, service_type, services["type"], replace) == (CID, "meta2", "meta2", True)
        assert services["args"] == "x"
        self.links[services["seq"]] = services["host"].split(",")

    # conscience

    def all_services(self, service_type, reqid=None):
        assert service_type == "meta2"
        return [{"id": one, "addr": f"{one}:1", "score": 10, "tags": {}} for one in self.known]

    def poll(self, pool, avoid, known):
        self._note("poll")
        assert pool == "meta2"
        names = {key.removeprefix("NS|meta2|") for key in [*avoid, *known]}
        free = [one for one in self.known if one not in names]
        if not free:
            raise ClientException(500, 481)
        return [{"id": f"NS|meta2|{free[0]}", "addr": f"{free[0]}:1", "tags": {"tag.service_id": free[0]}}]

    # reverse directory

    def meta2_index_push(self, volume_id, container_url, container_id, mtime):
        self._note("index")
        assert container_url == "NS/acme/photos"
        self.index.setdefault(volume_id, set()).add(container_id)

    def meta2_index_delete(self, volume_id, container_path, container_id):
        self.index[volume_id].discard(container_id)

    # administration of bases

    def has_base(self, service_type, cid, service_id):
        self._note("has")
        return {**answers(service_id, 431), **answers(self.copies[cid] & {*service_id})}

    def election_status(self, service_type, cid, service_id=None):
        self._note("status")
        return {"peers": {}, "master": max(self.copies[cid])}

    def set_peers(self, service_type, cid, peers):
        self._note("peers", cid)
        self.peers[cid] = sorted(peers)

    def copy_base_from(self, service_type, cid, svc_from, svc_to):
        self._note(f"copy from {svc_from}")
        assert svc_from in self.copies[cid]
        self.copies[cid].add(svc_to)

    def election_leave(self, service_type, cid, service_id):
        self._note("leave")
        return answers(service_id)

    def remove_base(self, service_type, cid, service_id):
        self._note("remove")
        self.copies[cid] -= {*service_id}
        return answers(service_id)

    def freeze_base(self, service_type, cid):
        self._note("freeze")
        if cid in self.closed:
            raise ServiceBusy(503, 436)
        self.closed.add(cid)

    def enable_base(self, service_type, cid):
        self._note("enable")
        self.closed.remove(cid)

    def database(self):
        return Meta2Database(
            {"namespace": "NS"}, logger=LOGGER, admin_client=self, conscience_client=self, rdir_client=self,
            directory_client=self,
        )  # fmt: skip

    def move(self, *args, **kwargs):
        return list(self.database().move(*args, **kwargs))


def test_a_base_is_moved():
    world = World("abc")
    assert world.move(CID, "a") == [{"base": f"{CID}.1", "src": "a", "dst": "e", "err": None}]
    assert sorted(world.links[1]) == world.peers[f"{CID}.1"] == sorted(world.copies[f"{CID}.1"]) == ["b", "c", "e"]
    assert world.index == {"a": set(), "b": {CID}, "c": {CID}, "e": {CID}}
    assert world.said == [
        "list", "poll", "has", "status", "peers", "copy from c", "force", "index", "leave", "remove", "status",
    ]  # fmt: skip


@pytest.mark.parametrize("dst", ["f", "f:1"])
def test_the_target_may_be_given(dst):
    world = World("abc", spare="ef")
    assert world.move(f"{CID}.1", "b", dst) == [{"base": f"{CID}.1", "src": "b", "dst": "f", "err": None}]
    assert sorted(world.links[1]) == ["a", "c", "f"] and "poll" not in world.said


def test_all_the_sequence_numbers_are_moved():
    world = World("ab", sequences=(1, 2, 3))
    found = world.move(CID.lower()[:64], "a", "e")
    assert [(one["base"], one["err"]) for one in found] == [(f"{CID}.{number}", None) for number in (1, 2, 3)]
    assert all(sorted(hosts) == ["b", "e"] for hosts in world.links.values())
    world = World("ab", sequences=(1, 2))
    assert [one["base"] for one in world.move(f"{CID}.2", "a")] == [f"{CID}.2"]
    assert world.links == {1: ["a", "b"], 2: ["b", "e"]}


@pytest.mark.parametrize("lost", ["a", "b", "c", "ab", "bc", "ac"])
def test_one_copy_is_enough(lost):
    world = World("abc")
    world.copies[f"{CID}.1"] -= {*lost}
    assert world.move(CID, "a")[0]["err"] is None
    assert "e" in world.copies[f"{CID}.1"] and sorted(world.links[1]) == ["b", "c", "e"]


def check_refused(world, found, dst, text):
    (one,) = found
    assert one["dst"] == dst and text in str(one["err"])
    assert world.links[1] == ["a", "b", "c"] and not world.peers and "force" not in world.said


def test_refusals():
    for args, dst, text in (
        (("x",), None, "Source service isn't used"),
        (("a", "b"), "b", "already used"),
        (("a", "b:1"), "b:1", "already used"),
        (("a", "a"), "a", "already used"),
        (("a", "nosuch"), "nosuch", "must be a known meta2"),
    ):
        world = World("abc")
        check_refused(world, world.move(CID, *args), dst, text)
    world = World("abc", spare="")
    check_refused(world, world.move(CID, "a"), None, "481")
    world = World("abc")
    world.copies[f"{CID}.1"] = set()
    check_refused(world, world.move(CID, "a", "e"), "e", "No base to copy")


@pytest.mark.parametrize("base", ["xyz", CID + ".x", "CD" * 32, CID + ".9"])
def test_bases_that_do_not_exist(base):
    world = World("abc")
    (found,) = world.move(base, "a")
    assert found["base"] == base and isinstance(found["err"], (ValueError, OioException))
    (found,) = world.database().rebuild(base)
    assert found["base"] == base and isinstance(found["err"], (ValueError, OioException))


def test_another_source_is_tried():
    world = World("abc")
    world.failing["copy from c"] = ServiceBusy()
    assert world.move(CID, "a")[0]["err"] is None
    assert [said for said in world.said if said.startswith("copy")] == ["copy from c", "copy from a"]


@pytest.mark.parametrize("step", ["peers", "copy", "force"])
@pytest.mark.parametrize("peers", ["abc", "a"])
def test_a_step_that_fails_ends_the_move(step, peers):
    world = World(peers)
    steps = [f"copy from {peer}" for peer in peers] if step == "copy" else [step]
    world.failing = dict.fromkeys(steps, ServiceBusy())
    (found,) = world.move(CID, "a")
    assert isinstance(found["err"], ServiceBusy) and found["dst"] == "e"
    assert world.links[1] == [*peers] and world.peers.get(f"{CID}.1", [*peers]) == [*peers]
    assert not world.closed and "remove" not in world.said


@pytest.mark.parametrize("step", ["index", "leave", "remove"])
def test_what_fails_after_the_move_is_told_only(step, caplog):
    world = World("abc")
    world.failing[step] = ServiceBusy()
    assert world.move(CID, "a")[0]["err"] is None
    assert sorted(world.links[1]) == ["b", "c", "e"] and caplog.text


def test_a_single_copy_takes_no_write_meanwhile():
    world = World("a")
    assert world.move(CID, "a")[0]["err"] is None
    assert not world.closed and world.copies[f"{CID}.1"] == {"e"}
    order = [said for said in world.said if said in ("freeze", "copy from a", "force", "enable", "remove")]
    assert order == ["freeze", "copy from a", "force", "enable", "remove"]


def test_what_was_frozen_stays_so():
    world = World("a")
    world.closed.add(f"{CID}.1")
    assert world.move(CID, "a")[0]["err"] is None
    assert world.closed == {f"{CID}.1"} and "enable" not in world.said


def test_lost_copies_are_made_again():
    world = World("abc", sequences=(1, 2))
    world.copies[f"{CID}.1"] = {"b"}
    assert list(world.database().rebuild(CID)) == [
        {"base": f"{CID}.1", "err": None}, {"base": f"{CID}.2", "err": None},
    ]  # fmt: skip
    assert world.copies[f"{CID}.1"] == {"a", "b", "c"}
    assert world.said == ["list", "has", "copy from b", "copy from b", "has", "status"]


def test_a_copy_that_cannot_be_made_again():
    world = World("abc")
    world.copies[f"{CID}.1"] = {"b", "c"}
    world.failing = dict.fromkeys(("copy from b", "copy from c"), ServiceBusy())
    (found,) = world.database().rebuild(f"{CID}.1")
    assert isinstance(found["err"], ServiceBusy)
    world.copies[f"{CID}.1"] = set()
    assert "No base to copy" in str(next(world.database().rebuild(f"{CID}.1"))["err"])
